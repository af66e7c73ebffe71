//! `cargo xtask aws-test`: everything that proves the feature `aws`, which is in no other task.

use std::{path::Path, process::ExitCode};

use crate::{
    command, integration_test,
    report::Progress,
    setup::{self, Extent},
    tally::Tally,
    test::{self, Environment},
    workspace,
};

/// Build with AssumeRole, look at its code, run its tests
///
/// Apart from the other tasks, because the AWS SDK takes longer to build than all else together: the first time, some
/// minutes. What is built lies in `target/aws`, so that neither way of building undoes the other. STS itself is not
/// called: the tests bring a stand-in. Needs root.
#[derive(Debug, clap::Args)]
pub(crate) struct AwsTest {}

impl AwsTest {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let mut progress = Progress::new(4);
        progress.next("setup");
        let found = setup::ensure(Extent::Tests)?;
        integration_test::need_root()?;
        let target = workspace::target_dir("aws")?;
        let environment = Environment::new(found)?.with_imds(target.join("debug/imds"));
        let mut tally = Tally::default();

        progress.next("build");
        command::run(&mut cargo(&target, &["build", "--quiet"]))?;
        tally.n_passed += 1;

        progress.next("lints");
        let mut clippy = cargo(&target, &["clippy", "--quiet", "--all-targets"]);
        command::run(clippy.args(["--", "-D", "warnings"]))?;
        tally.n_passed += 1;

        progress.next("tests");
        tally.add(test::run(
            &mut cargo(&target, &["test", "--lib"]),
            &environment,
        )?);
        let mut assume_role = command::cargo();
        assume_role.args(["test", "--package", "imds-tests", "--features", "aws"]);
        assume_role.args(["--test", "assume_role"]);
        tally.add(test::run(&mut assume_role, &environment)?);
        Ok(tally.conclude())
    }
}

/// The command for the package with the feature, with a folder of its own for what it builds.
fn cargo(target: &Path, task: &[&str]) -> std::process::Command {
    let mut cargo = command::cargo();
    cargo
        .args(task)
        .args(["--package", "imds-user", "--features", "aws"])
        .env("CARGO_TARGET_DIR", target);
    cargo
}
