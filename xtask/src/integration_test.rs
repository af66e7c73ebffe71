//! `cargo xtask integration-test`: the tests that need root and a kernel, all or some of them.

use std::process::{Command, ExitCode};

use anyhow::bail;

use crate::{
    command,
    setup::{self, Extent},
    test::{self, Environment},
};

/// How many tests run at a time. Each spends most of its time waiting for a namespace, a guest or the network, so more
/// of them than cores do no harm.
const TEST_THREADS: &str = "4";

/// Run the tests of the package `tests` only
///
/// They make network namespaces, load programs into the kernel and boot a virtual machine, so they need root. Whatever
/// else the machine does is left alone.
#[derive(Debug, clap::Args)]
pub(crate) struct IntegrationTest {
    /// Only tests with one of these in their names
    filters: Vec<String>,
}

impl IntegrationTest {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let found = setup::ensure(Extent::Tests)?;
        need_root()?;
        test::build()?;
        let environment = Environment::new(found)?;
        Ok(test::run(&mut command(&self.filters), &environment)?.conclude())
    }
}

/// Fails with what to do, unless run by root.
pub(crate) fn need_root() -> anyhow::Result<()> {
    if !setup::is_root() {
        bail!(
            "only root may make network namespaces and load programs: run this as root (`cargo test` alone runs the \
             unit tests)"
        );
    }
    Ok(())
}

pub(crate) fn command(filters: &[String]) -> Command {
    let mut cargo = command::cargo();
    cargo.args(["test", "--package", "imds-tests", "--no-fail-fast", "--"]);
    cargo.args(["--test-threads", TEST_THREADS]).args(filters);
    cargo
}
