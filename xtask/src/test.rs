//! `cargo xtask test`: everything that proves the project, from a bare machine to the last line.

mod results;
mod run;

use std::process::ExitCode;

pub(crate) use results::Results;
pub(crate) use run::{Environment, run};

use crate::{
    aws_test, bench, check, command, fuzz, integration_test,
    report::{self, Progress},
    setup::{self, Extent},
    tally::Tally,
};

/// Set up what is missing, check the code, build it, run every test
///
/// Needs root: the integration tests make network namespaces and load programs into the kernel. Ends with the line
/// `N passed, N failed, N skipped`, in which a check counts as a test.
#[derive(Debug, clap::Args)]
pub(crate) struct Test {}

impl Test {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let mut progress = Progress::new(9);
        progress.next("setup");
        let found = setup::ensure(Extent::Tests)?;
        integration_test::need_root()?;
        let virtiofsd = found.virtiofsd.clone();
        let environment = Environment::new(found)?;
        let mut tally = Tally::default();

        progress.next("check");
        tally.add(check::tally()?);

        progress.next("build");
        if let Err(cause) = build() {
            report::error(&cause);
            tally.failures.push("build".into());
            return Ok(tally.conclude());
        }
        tally.n_passed += 1;

        progress.next("unit tests");
        tally.add(run(&mut unit_tests(), &environment)?);

        progress.next("integration tests");
        tally.add(run(&mut integration_test::command(&[]), &environment)?);

        progress.next("integration tests in a virtual machine, a few files (`integration-test vm` runs all that can)");
        tally.add(integration_test::quick_in_vm(
            virtiofsd.as_deref(),
            &environment,
        )?);

        progress.next("AssumeRole (feature aws; the first build takes minutes)");
        tally.add(aws_test::tally(environment)?);

        progress.next("fuzz targets");
        tally.add(fuzz::tally(fuzz::LOOK_SECONDS)?);

        progress.next("bench, a short run");
        tally.add(bench::quick());

        let elapsed = report::minutes(progress.elapsed());
        report::line(format_args!("\n==> done after {elapsed}"));
        Ok(tally.conclude())
    }
}

/// Builds the binary that integration tests start.
pub(crate) fn build() -> anyhow::Result<()> {
    command::run(command::cargo().args(["build", "--quiet", "--package", "imds-user"]))
}

fn unit_tests() -> std::process::Command {
    let mut cargo = command::cargo();
    cargo.args(["test", "--workspace", "--exclude", "imds-tests"]);
    cargo.arg("--no-fail-fast");
    cargo
}
