//! `cargo xtask bench`: what the service costs. Builds the service and the program that measures it (package `bench`),
//! and runs that.

use std::{
    env,
    ffi::OsString,
    process::{Command, ExitCode},
};

use anyhow::Context as _;

use crate::{
    command, integration_test, report,
    setup::{self, Extent},
    tally::Tally,
    workspace,
};

// Here for the help, and to refuse what is wrong before anything is built.
#[path = "../../bench/src/options.rs"]
mod options;

/// Measure what the service costs: requests, foreign packets, memory, start, the control API
///
/// (a) Requests a second and their times through the whole path over those of the same responder on a bare veth pair, and
/// (b) over those of a plain hyper server there; (c) nanoseconds that a foreign packet costs over an empty program; (d)
/// memory and time to start with 1, 100 and 10,000 instances; (e) calls of the control API, a start and the store with 10,000
/// instances. Prints a table, writes JSON, and fails when a figure of (a)
/// is below 0.90. Needs root, and a machine that does nothing else. Everything happens in network namespaces.
#[derive(Debug, clap::Args)]
#[command(after_help = options::EXAMPLES)]
pub(crate) struct Bench {
    #[command(flatten)]
    options: options::Options,
}

impl Bench {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        setup::ensure(Extent::Run)?;
        integration_test::need_root()?;
        let build = if self.options.quick {
            Build::Debug
        } else {
            Build::Release
        };
        // As they were typed, since they were good.
        let status = program(build, after_the_task(env::args_os()))?
            .status()
            .context("start the bench")?;
        Ok(if status.success() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

/// A short run, which counts as one test: that everything runs and gives figures that can be.
pub(crate) fn quick() -> Tally {
    let mut tally = Tally::default();
    match program(Build::Debug, vec!["--quick".into()])
        .and_then(|mut bench| command::run(&mut bench))
    {
        Ok(()) => tally.n_passed += 1,
        Err(cause) => {
            report::error(&cause);
            tally.failures.push("bench --quick".into());
        }
    }
    tally
}

/// The words of a command line behind `bench`.
fn after_the_task(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    words.skip_while(|word| word != "bench").skip(1).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Build {
    Debug,
    Release,
}

/// Builds the service and the program that measures it, each for itself: built together, the service would have features
/// that only the other needs.
fn program(build: Build, arguments: Vec<OsString>) -> anyhow::Result<Command> {
    let folder = match build {
        Build::Debug => "debug",
        Build::Release => "release",
    };
    report::outcome("building", format_args!("imds and its bench, {folder}"));
    for package in ["imds-user", "imds-bench"] {
        let mut cargo = command::cargo();
        cargo.args(["build", "--quiet", "--package", package]);
        if build == Build::Release {
            cargo.arg("--release");
        }
        command::run(&mut cargo)?;
    }
    // Beside the folder that this program was built into.
    let programs = workspace::profile_dir()?.with_file_name(folder);
    let mut bench = Command::new(programs.join("imds-bench"));
    bench.args(arguments).env("IMDS_BIN", programs.join("imds"));
    Ok(bench)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_told_what_stands_behind_the_task() {
        let check = |line: &str, expected: &[&str]| {
            let words = line.split(' ').map(OsString::from);
            assert_eq!(after_the_task(words), expected, "{line}");
        };
        check("xtask bench", &[]);
        check("xtask bench --only a,c", &["--only", "a,c"]);
        check("xtask bench --case bench", &["--case", "bench"]);
    }
}
