//! `cargo xtask integration-test`: the tests that need root and a kernel, all or some of them, on this machine's kernel or
//! on another.

mod vm;

use std::process::{Command, ExitCode};

use anyhow::{bail, ensure};

pub(crate) use vm::quick as quick_in_vm;

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

/// Shown with the help.
const EXAMPLES: &str = "\
Examples:
  cargo xtask integration-test                    all of them, on this machine's kernel
  cargo xtask integration-test isolation paths    tests/tests/isolation.rs and paths.rs
  cargo xtask integration-test vm                 all that can, on Debian's kernel (40 minutes)
  cargo xtask integration-test vm guard over_ipv6 those of tests/tests/guard.rs with this in their names
  cargo xtask integration-test host vm            tests/tests/vm.rs: `vm` alone is a place";

/// Run the tests of the package `tests` only
///
/// They make network namespaces, load programs into the kernel and boot a virtual machine, so they need root. Whatever
/// else the machine does is left alone.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub(crate) struct IntegrationTest {
    #[command(subcommand)]
    place: Option<Place>,
    #[command(flatten)]
    on_host: OnHost,
}

/// Where the tests run.
#[derive(Debug, clap::Subcommand)]
enum Place {
    /// On this machine's kernel, which is meant if no place is named
    Host(OnHost),
    Vm(vm::InVm),
}

#[derive(Debug, clap::Args)]
struct OnHost {
    #[command(flatten)]
    selection: Selection,
}

/// Which tests are meant.
#[derive(Debug, clap::Args)]
struct Selection {
    /// Only these: files of `tests/tests` without the `.rs`, or parts of tests' names
    filters: Vec<String>,
}

impl IntegrationTest {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.place {
            None => self.on_host.run(),
            Some(Place::Host(on_host)) => on_host.run(),
            Some(Place::Vm(in_vm)) => in_vm.run(),
        }
    }
}

impl OnHost {
    fn run(self) -> anyhow::Result<ExitCode> {
        let found = setup::ensure(Extent::Tests)?;
        need_root()?;
        test::build()?;
        let environment = Environment::new(found)?;
        let tally = test::run(&mut self.selection.command(), &environment)?;
        self.selection.ensure_meant(&tally)?;
        Ok(tally.conclude())
    }
}

impl Selection {
    /// Files that are named, and other words.
    fn split(&self) -> (Vec<&str>, Vec<&str>) {
        let filters = self.filters.iter().map(String::as_str);
        filters.partition(|filter| is_test_file(filter))
    }

    /// The tests that are meant: of the files named, of all if none is, those with one of the other words in their names.
    fn command(&self) -> Command {
        let (files, names) = self.split();
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

    fn ensure_meant(&self, tally: &Tally) -> anyhow::Result<()> {
        ensure!(
            *tally != Tally::default(),
            "no test is meant by {}: give a file of tests/tests without its .rs, or a part of a test's name",
            self.filters.join(" ")
        );
        Ok(())
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

/// The tests that are meant by files and parts of names, on this machine's kernel.
pub(crate) fn command(filters: &[String]) -> Command {
    let selection = Selection {
        filters: filters.to_vec(),
    };
    selection.command()
}

fn is_test_file(name: &str) -> bool {
    let tests = workspace::root().join("tests/tests");
    tests.join(name).with_extension("rs").is_file()
}
