//! `imds check`: is a configuration right?

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use imds_user::config;
use imds_user::config::{Installation, disk::Disk};
use imds_user::instance::TokenUse;

use super::table::{Align, Cell, Table};
use super::{BOLD, EXIT_FINE, GOOD};

const EXAMPLES: &str = "\
Examples:
  imds check --config /etc/imds.toml
  imds check --config new.toml && cp new.toml /etc/imds.toml && systemctl reload imds

Exit code 64 when something is wrong; the message says in which line, and what would be right. Whether the
ports are there is not looked at.";

/// What is not given is made up from this; a check shows nothing that is made up.
const INSTALLATION: Installation = Installation {
    seed: [0; 16],
    created: imds_user::instance::UnixSeconds(0),
};

/// Check a configuration file without touching anything
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Check {
    /// The configuration file (TOML; see docs/configuration.md)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    config: PathBuf,
}

impl Check {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let settings = config::load(&self.config, &INSTALLATION, &Disk)?;
        let count = settings.guests.len();
        let plural = if count == 1 { "" } else { "s" };
        writeln!(
            out,
            "{GOOD}{} is fine:{GOOD:#} {count} instance{plural}\n",
            self.config.display()
        )?;
        let mut table = Table::new([
            ("NAME", Align::Left),
            ("PORT", Align::Left),
            ("TOKENS", Align::Left),
        ]);
        for guest in &settings.guests {
            let tokens = match guest.instance.options.http_tokens {
                TokenUse::Optional => "optional",
                TokenUse::Required => "required",
            };
            table.row([
                Cell::styled(guest.name.to_string(), BOLD),
                (&guest.port).into(),
                tokens.into(),
            ]);
        }
        table.write(out)?;
        Ok(ExitCode::from(EXIT_FINE))
    }
}
