//! `imds guest`: the first process of a launched guest. Started by the launcher.

use std::{io::Write, process::ExitCode};

use clap::Args;
use imds_user::launch::first;

/// Be the first process of a guest; started by `imds launcher`, with a line to it on standard input
#[derive(Debug, Args)]
pub(crate) struct Guest {}

impl Guest {
    #[expect(clippy::unused_self, reason = "every command runs alike")]
    pub(crate) fn run(self, _out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        first::run()?;
        Ok(ExitCode::SUCCESS)
    }
}
