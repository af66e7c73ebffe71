//! Runs one `cargo test`, shows what it says and adds it up.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;

use super::results::Results;
use crate::{command, report, setup::Found, tally::Tally, workspace};

/// What tests are told by environment variables.
pub(crate) struct Environment {
    variables: Vec<(&'static str, OsString)>,
    /// Where a test that is skipped appends why, a line each.
    skip_log: PathBuf,
}

impl Environment {
    pub(crate) fn new(found: Found) -> anyhow::Result<Self> {
        let skip_log = workspace::target_dir("xtask")?.join("skips.log");
        let mut variables = found.test_environment;
        variables.push(("IMDS_BIN", workspace::imds()?.into()));
        variables.push(("IMDS_SKIP_LOG", skip_log.clone().into()));
        Ok(Self {
            variables,
            skip_log,
        })
    }

    /// The same, with another binary under test.
    pub(crate) fn with_imds(mut self, imds: PathBuf) -> Self {
        self.variables.push(("IMDS_BIN", imds.into()));
        self
    }

    /// What tests are told.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&'static str, &OsStr)> {
        let variables = self.variables.iter();
        variables.map(|(name, value)| (*name, value.as_os_str()))
    }

    /// One of them.
    pub(crate) fn variable(&self, name: &str) -> Option<&OsStr> {
        let mut variables = self.variables();
        variables.find_map(|(given, value)| (given == name).then_some(value))
    }

    fn take_skips(&self) -> anyhow::Result<String> {
        fs::read_to_string(&self.skip_log)
            .with_context(|| format!("read the skips in {}", self.skip_log.display()))
    }
}

/// Runs the tests. Their output is ours, too.
pub(crate) fn run(cargo: &mut Command, environment: &Environment) -> anyhow::Result<Tally> {
    fs::write(&environment.skip_log, "")
        .with_context(|| format!("empty {}", environment.skip_log.display()))?;
    cargo.envs(environment.variables());
    let mut child = cargo
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", command::shown(cargo)))?;
    let results = read(&mut child)?;
    let status = child.wait().context("wait for cargo test")?;
    Ok(results.conclude(&environment.take_skips()?, status.success()))
}

fn read(child: &mut Child) -> anyhow::Result<Results> {
    let stdout = child.stdout.take().context("cargo test has an output")?;
    let mut results = Results::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("read what the tests print")?;
        let line = String::from_utf8_lossy(&line);
        report::line(&line);
        results.read(&line);
    }
    Ok(results)
}
