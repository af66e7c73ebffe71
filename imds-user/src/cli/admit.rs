//! `imds admit` and `imds forget`: guests that the configuration does not name.

use std::io::Write;
use std::process::ExitCode;

use imds_user::control;

use super::event::write_done;
use super::{EXIT_FINE, StateDir};

const ADMIT_EXAMPLES: &str = "\
Examples:
  imds status                                    lists interfaces that are closed, and how to admit each
  imds admit --port vnet3                        an instance of defaults
  imds admit --port vnet3 --name web type=m5.large http-tokens=required tags.Name=web
  imds admit --port tap0 --by-name               also for the next interface of that name

Keys are those of [[instance]] in the configuration file that need no table, and EC2's words for some
(instance-type). Lists have commas: security-groups=web,ssh.";

/// Serve the guest behind an interface, as an instance of these keys
///
/// It is remembered until the interface is gone, also when the daemon is started again: the next interface of the same
/// name is another guest's, unless you say --by-name. What is to last belongs into the configuration.
#[derive(Debug, clap::Args)]
#[command(after_help = ADMIT_EXAMPLES)]
pub(crate) struct Admit {
    /// The interface
    #[arg(long, value_name = "NAME")]
    port: imds_user::config::PortName,

    /// What commands call the instance [default: the interface's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// For whatever interface has this name, now and later
    #[arg(long)]
    by_name: bool,

    /// What the instance is
    #[arg(value_name = "KEY=VALUE", value_parser = pair)]
    keys: Vec<(String, String)>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    state_dir: StateDir,
}

const FORGET_EXAMPLES: &str = "\
Examples:
  imds forget web     its interface is closed if a pattern of [discovery] matches it, or else let go";

/// Take back that a guest was admitted
#[derive(Debug, clap::Args)]
#[command(after_help = FORGET_EXAMPLES)]
pub(crate) struct Forget {
    /// Which instance
    instance: String,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    state_dir: StateDir,
}

impl Admit {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let state_dir = &self.state_dir.state_dir;
        let port = self.port.to_string();
        let done = control::client::admit(state_dir, port, self.name, self.by_name, self.keys)?;
        write_done(out, &done, self.json)?;
        Ok(ExitCode::from(EXIT_FINE))
    }
}

impl Forget {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let done = control::client::forget(&self.state_dir.state_dir, self.instance)?;
        write_done(out, &done, self.json)?;
        Ok(ExitCode::from(EXIT_FINE))
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write a key and its value, such as type=m5.large".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_cut_at_its_first_sign() {
        let is = |key: &str, value: &str| Ok((key.to_owned(), value.to_owned()));
        assert_eq!(pair("type=m5.large"), is("type", "m5.large"));
        assert_eq!(pair("user-data=a=b"), is("user-data", "a=b"));
        assert_eq!(pair("hostname="), is("hostname", ""));
        for text in ["type", "=x", ""] {
            assert!(pair(text).is_err(), "{text}");
        }
    }
}
