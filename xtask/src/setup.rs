//! `cargo xtask setup`: finds or installs what the checkout needs from the machine.
//!
//! Each part looks first and changes something only when it has to, so that every other task can begin with it. A part
//! that is missing and cannot be installed is an error that says what to do by hand.

mod apt;
mod aws_cli;
mod cargo_tools;
mod docker;
mod file_share;
mod guest_kernel;
mod guest_system;
mod linker;
mod node;
mod packages;
mod python;
mod sdk_rust;
mod toolchain;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

pub(crate) use apt::is_root;
pub(crate) use sdk_rust::MANIFEST as SDK_RUST_MANIFEST;
pub(crate) use toolchain::bpf_clippy;

use crate::report;

/// Find or install what building and running needs
///
/// For building: a Rust toolchain for the BPF target under the name `imds-bpf` (a nightly by rustup, or else Debian's
/// packages) and bpf-linker for the same LLVM. For running: a few programs, by apt. Says what it does, a line a step;
/// a second run changes nothing.
#[derive(Debug, clap::Args)]
pub(crate) struct Setup {
    /// Also what the tests need: QEMU, a guest's kernel and system, Docker, AWS's clients, cargo-deny, cargo-fuzz and the like
    #[arg(long)]
    tests: bool,
}

impl Setup {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let extent = if self.tests {
            Extent::Tests
        } else {
            Extent::Run
        };
        let mut machine = Machine::new(Telling::Everything);
        ensure_on(&mut machine, extent)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// How much is set up, each with what comes before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Extent {
    /// What building and running needs.
    Run,
    /// What looking at the code needs.
    Check,
    /// What the tests need.
    Tests,
}

/// What the setup found that a test run has to be told.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Environment variables for the tests.
    pub(crate) test_environment: Vec<(&'static str, OsString)>,
    /// What shows this machine's files to a virtual one.
    pub(crate) virtiofsd: Option<PathBuf>,
}

impl Found {
    fn tell_tests(&mut self, variable: &'static str, path: PathBuf) {
        self.test_environment.push((variable, path.into()));
    }
}

/// Sets up what is missing, and tells only of that.
pub(crate) fn ensure(extent: Extent) -> anyhow::Result<Found> {
    ensure_on(&mut Machine::new(Telling::Changes), extent)
}

/// Whether also what was there already is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Telling {
    Everything,
    Changes,
}

/// The machine that is set up: its package manager, and the ear of whoever started the task.
struct Machine {
    telling: Telling,
    apt: apt::Apt,
}

impl Machine {
    fn new(telling: Telling) -> Self {
        Self {
            telling,
            apt: apt::Apt::default(),
        }
    }

    /// Tells that something is there.
    fn ok(&self, what: impl std::fmt::Display) {
        if self.telling == Telling::Everything {
            report::outcome("ok", what);
        }
    }

    /// Tells that something is changed now.
    fn installing(&self, what: impl std::fmt::Display) {
        report::outcome("installing", what);
    }

    /// Tells that something cannot be had here, and what follows.
    fn without(&self, what: impl std::fmt::Display) {
        report::outcome("without", what);
    }
}

fn ensure_on(machine: &mut Machine, extent: Extent) -> anyhow::Result<Found> {
    packages::ensure(machine, packages::RUN)?;
    let toolchain = toolchain::ensure(machine)?;
    linker::ensure(machine, &toolchain)?;
    if extent >= Extent::Check {
        cargo_tools::ensure(machine, &toolchain)?;
    }
    let mut found = Found::default();
    if extent >= Extent::Tests {
        packages::ensure(machine, packages::TESTS)?;
        cargo_tools::ensure_fuzz(machine);
        let python = python::ensure(machine)?;
        let javascript = node::ensure(machine, &python)?;
        found.tell_tests("IMDS_TEST_PYTHON", python);
        if let Some(aws) = aws_cli::ensure(machine)? {
            found.tell_tests("IMDS_TEST_AWS_CLI_2", aws);
        }
        found.tell_tests("IMDS_TEST_NODE", javascript.node);
        found.tell_tests("IMDS_TEST_SDK_JS", javascript.sdk);
        found.tell_tests("IMDS_TEST_SDK_RUST", sdk_rust::ensure(machine)?);
        if let Some(kernel) = guest_kernel::ensure(machine)? {
            found.tell_tests("IMDS_TEST_KERNEL_DIR", kernel);
        }
        found.virtiofsd = file_share::ensure(machine)?;
        if let Some(system) = guest_system::ensure(machine)? {
            found.tell_tests("IMDS_TEST_GUEST_DIR", system);
        }
        if let Some(docker) = docker::ensure(machine)? {
            found.tell_tests("IMDS_TEST_DOCKER_DIR", docker);
        }
    }
    Ok(found)
}
