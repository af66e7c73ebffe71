//! `cargo xtask chaos`: everything goes wrong while guests ask, for as long as is wanted. Builds the service and the program
//! that plays (package `imds-tests`), and runs that.

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::Context as _;

use crate::{
    command, integration_test, report,
    setup::{self, Extent},
    workspace,
};

// Here for the help, and to refuse what is wrong before anything is built.
#[path = "../../tests/src/bin/imds-chaos/options.rs"]
mod options;

/// Disturb the service in every way while twenty guests ask who they are
///
/// Kills, restarts and upgrades the daemon, kills and hangs the responder, removes, renames and re-creates interfaces,
/// takes file descriptors, fills the state disk, loses netlink messages; and counts. Nobody may ever be told another's
/// identity, no packet may reach the stand-in for the host's own metadata service, and no request may be lost in a planned
/// restart or an upgrade. `cargo xtask test` plays it for twenty seconds. Needs root. Everything happens in network
/// namespaces.
#[derive(Debug, clap::Args)]
#[command(after_help = options::EXAMPLES)]
pub(crate) struct Chaos {
    #[command(flatten)]
    options: options::Options,
}

impl Chaos {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        setup::ensure(Extent::Run)?;
        integration_test::need_root()?;
        report::outcome("building", "imds and what disturbs it");
        // Each for itself: built together, the service would have features that only the other needs.
        command::run(command::cargo().args(["build", "--quiet", "--package", "imds-user"]))?;
        let what_plays = ["build", "--quiet", "--package", "imds-tests", "--bins"];
        command::run(command::cargo().args(what_plays))?;
        let mut chaos = Command::new(workspace::profile_dir()?.join("imds-chaos"));
        let options = self.options;
        chaos
            .env("IMDS_BIN", workspace::imds()?)
            .args(["--minutes", &options.minutes.to_string()])
            .args(["--guests", &options.guests.to_string()]);
        if let Some(seed) = options.seed {
            chaos.args(["--seed", &seed.to_string()]);
        }
        if let Some(json) = options.json {
            chaos.arg("--json").arg(json);
        }
        // In our place, so that Ctrl-C is for it alone, and it can clean up.
        Err(chaos.exec()).context("start the chaos")
    }
}
