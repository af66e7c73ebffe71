//! `cargo xtask integration-test`: the tests that need root and a kernel, all or some of them.

use std::process::{Command, ExitCode};

use anyhow::{bail, ensure};

use crate::{
    command,
    setup::{self, Extent},
    tally::Tally,
    test::{self, Environment},
    workspace,
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
    /// Only these: files of `tests/tests` without the `.rs`, or parts of tests' names
    filters: Vec<String>,
}

impl IntegrationTest {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let found = setup::ensure(Extent::Tests)?;
        need_root()?;
        test::build()?;
        let environment = Environment::new(found)?;
        let tally = test::run(&mut command(&self.filters), &environment)?;
        ensure!(
            tally != Tally::default(),
            "no test is meant by {}: give a file of tests/tests without its .rs, or a part of a test's name",
            self.filters.join(" ")
        );
        Ok(tally.conclude())
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

/// The tests that are meant: of the files named, of all if none is, those with one of the other words in their names.
pub(crate) fn command(filters: &[String]) -> Command {
    let (files, names): (Vec<&str>, Vec<&str>) = filters
        .iter()
        .map(String::as_str)
        .partition(|filter| is_test_file(filter));
    let mut cargo = command::cargo();
    cargo.args(["test", "--package", "imds-tests", "--no-fail-fast"]);
    for file in files {
        cargo.args(["--test", file]);
    }
    cargo
        .args(["--", "--test-threads", TEST_THREADS])
        .args(names);
    cargo
}

fn is_test_file(name: &str) -> bool {
    let tests = workspace::root().join("tests/tests");
    tests.join(name).with_extension("rs").is_file()
}
