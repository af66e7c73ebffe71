//! `imds down`: takes away what a stopped daemon has left.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use imds_user::teardown::{self, Found};

use super::{EXIT_FINE, GOOD, StateDir, WARNING, require_root};

const EXAMPLES: &str = "\
Examples:
  systemctl stop imds && imds down                this host has no imds any more
  systemctl stop imds && imds down --keep-closed  guests stay refused, nothing answers

A daemon that stops leaves its guests served by the responder, and the next one goes on where it ended; this is for
hosts that shall do without. On a cloud host guests may reach the host's own metadata service afterwards, as before imds
came. Run it in the daemon's network namespace.";

/// Remove what a stopped daemon has left: the responder, filters, programs, the responder's namespace
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Down {
    /// End what still answers, and leave every port refusing
    #[arg(long)]
    keep_closed: bool,

    #[command(flatten)]
    state_dir: StateDir,
}

impl Down {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        require_root("taking imds away")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start a runtime")?;
        let state_dir = &self.state_dir.state_dir;
        if self.keep_closed {
            let found = runtime.block_on(teardown::close(state_dir))?;
            write_closed(out, found)?;
        } else {
            let found = runtime.block_on(teardown::down(state_dir))?;
            write_removed(out, found)?;
        }
        Ok(ExitCode::from(EXIT_FINE))
    }
}

fn write_closed(out: &mut dyn Write, found: Found) -> std::io::Result<()> {
    match found.n_ports {
        0 => writeln!(
            out,
            "{WARNING}no port is closed:{WARNING:#} no filter of imds is on an interface of this network namespace"
        ),
        1 => writeln!(out, "{GOOD}closed:{GOOD:#} 1 port refuses"),
        n_ports => writeln!(out, "{GOOD}closed:{GOOD:#} {n_ports} ports refuse"),
    }
}

fn write_removed(out: &mut dyn Write, found: Found) -> std::io::Result<()> {
    if !found.is_anything {
        return writeln!(out, "there was nothing to remove");
    }
    match found.n_ports {
        1 => writeln!(
            out,
            "{GOOD}removed:{GOOD:#} 1 port is as it was before imds"
        )?,
        n_ports => writeln!(
            out,
            "{GOOD}removed:{GOOD:#} {n_ports} ports are as they were before imds"
        )?,
    }
    if found.is_elsewhere {
        writeln!(
            out,
            "{WARNING}filters stay{WARNING:#} on interfaces of another network namespace, in which the daemon ran: they \
             drop what is for the metadata addresses"
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(write: fn(&mut dyn Write, Found) -> std::io::Result<()>, found: Found, says: &str) {
        let mut out = Vec::new();
        write(&mut out, found).unwrap();
        let text = anstream::adapter::strip_str(std::str::from_utf8(&out).unwrap()).to_string();
        assert!(text.starts_with(says), "{text}");
    }

    #[test]
    fn what_was_there_is_told() {
        let found = |n_ports, is_elsewhere, is_anything| Found {
            n_ports,
            is_elsewhere,
            is_anything,
        };
        check(write_removed, found(0, false, false), "there was nothing");
        check(write_removed, found(1, false, true), "removed: 1 port is");
        check(write_removed, found(3, false, true), "removed: 3 ports are");
        let elsewhere = "removed: 0 ports are as they were before imds\nfilters stay";
        check(write_removed, found(0, true, true), elsewhere);
        check(write_closed, found(0, false, false), "no port is closed");
        check(
            write_closed,
            found(1, false, true),
            "closed: 1 port refuses",
        );
        check(
            write_closed,
            found(2, false, true),
            "closed: 2 ports refuse",
        );
    }
}
