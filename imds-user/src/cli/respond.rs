//! `imds respond`: the process that answers guests. Started by the daemon.

use std::{io::Write, process::ExitCode};

use clap::Args;
use imds_user::responder::process;

/// Answer guests; started by `imds run`, with its sockets on standard input
#[derive(Debug, Args)]
pub(crate) struct Respond {}

impl Respond {
    #[expect(clippy::unused_self, reason = "every command runs alike")]
    pub(crate) fn run(self, _out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        super::log_to_stderr();
        process::run()?;
        Ok(ExitCode::SUCCESS)
    }
}
