//! `cargo xtask aws-test`: everything that proves the feature `aws`, which nothing else builds.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

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
/// The AWS SDK takes longer to build than all else together: the first time, some minutes. What is built lies in
/// `target/aws`, so that neither way of building undoes the other. STS itself is not called: the tests bring a stand-in.
/// Needs root. `cargo xtask test` does the same but for the lints.
#[derive(Debug, clap::Args)]
pub(crate) struct AwsTest {}

impl AwsTest {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let mut progress = Progress::new(3);
        progress.next("setup");
        let found = setup::ensure(Extent::Tests)?;
        integration_test::need_root()?;
        let environment = Environment::new(found)?;

        progress.next("lints");
        let target = target()?;
        let mut clippy = cargo(&target, &["clippy", "--quiet", "--all-targets"]);
        command::run(clippy.args(["--", "-D", "warnings"]))?;
        let mut tally = Tally {
            n_passed: 1,
            ..Tally::default()
        };

        progress.next("tests");
        tally.add(self::tally(environment)?);
        Ok(tally.conclude())
    }
}

/// Builds with the feature and runs its tests. The build counts as one.
pub(crate) fn tally(environment: Environment) -> anyhow::Result<Tally> {
    let target = target()?;
    let environment = environment.with_imds(target.join("debug/imds"));
    command::run(&mut cargo(&target, &["build", "--quiet"]))?;
    let mut tally = Tally {
        n_passed: 1,
        ..Tally::default()
    };
    tally.add(test::run(
        &mut cargo(&target, &["test", "--lib", "credentials"]),
        &environment,
    )?);
    let mut assume_role = command::cargo();
    assume_role.args(["test", "--package", "imds-tests", "--features", "aws"]);
    assume_role.args(["--test", "assume_role"]);
    tally.add(test::run(&mut assume_role, &environment)?);
    Ok(tally)
}

fn target() -> anyhow::Result<PathBuf> {
    workspace::target_dir("aws")
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
