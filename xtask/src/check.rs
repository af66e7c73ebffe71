//! `cargo xtask check`: everything that can be said about the code without running it.

use std::{
    process::{Command, ExitCode},
    time::Instant,
};

use crate::{
    command, report,
    setup::{self, Extent},
    tally::Tally,
    tidy, workspace,
};

/// Look at the code: format, lints, documentation, tidiness, dependencies
///
/// Runs everything and reports all that failed, not the first.
#[derive(Debug, clap::Args)]
pub(crate) struct Check {}

impl Check {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        setup::ensure(Extent::Check)?;
        Ok(tally()?.conclude())
    }
}

/// Makes every check. A check counts as one test.
pub(crate) fn tally() -> anyhow::Result<Tally> {
    let mut tally = Tally::default();
    let judges = [
        format(),
        sdk_format(),
        lints(),
        bpf_lints(),
        documentation(),
        dependencies(),
        advisories(),
    ];
    for judge in judges {
        tally.add(judge.tally()?);
    }
    let started = Instant::now();
    let tidiness = tidy::tally()?;
    tell("tidy", tidiness.failures.is_empty(), started);
    tally.add(tidiness);
    Ok(tally)
}

/// One program that judges the code.
struct Judge {
    name: &'static str,
    command: Command,
    /// How to tell from what it said that it could not judge, and the reason that is given then.
    cannot: Option<(&'static str, &'static str)>,
}

impl Judge {
    fn new(name: &'static str, command: Command) -> Self {
        Self {
            name,
            command,
            cannot: None,
        }
    }

    fn tally(mut self) -> anyhow::Result<Tally> {
        let started = Instant::now();
        let output = command::finish(&mut self.command)?;
        let said = command::said(&output);
        let mut tally = Tally::default();
        if output.status.success() {
            tell(self.name, true, started);
            tally.n_passed = 1;
        } else if let Some((sign, reason)) = self.cannot
            && said.contains(sign)
        {
            tally.skips.push(format!("check {}: {reason}", self.name));
        } else {
            tell(self.name, false, started);
            report::line(format_args!("$ {}\n{said}", command::shown(&self.command)));
            tally.failures.push(format!("check {}", self.name));
        }
        Ok(tally)
    }
}

fn tell(name: &str, is_ok: bool, started: Instant) {
    let seconds = started.elapsed().as_secs_f32();
    let word = if is_ok { "ok" } else { "FAILED" };
    report::outcome(word, format_args!("check {name} ({seconds:.1} s)"));
}

fn format() -> Judge {
    let mut fmt = command::cargo();
    fmt.args(["fmt", "--all", "--", "--check"]);
    Judge::new("format", fmt)
}

/// The tests' program with the AWS SDK is no part of the workspace.
fn sdk_format() -> Judge {
    let mut fmt = command::cargo();
    fmt.args(["fmt", "--manifest-path", setup::SDK_RUST_MANIFEST]);
    fmt.args(["--", "--check"]);
    Judge::new("format of tests/sdk-rust", fmt)
}

fn lints() -> Judge {
    let mut clippy = command::cargo();
    clippy.args(["clippy", "--quiet", "--workspace", "--all-targets"]);
    clippy.args(["--keep-going", "--", "-D", "warnings"]);
    Judge::new("lints", clippy)
}

/// The eBPF programs exist for their own target only, and need its toolchain's linter.
fn bpf_lints() -> Judge {
    let clippy = setup::bpf_clippy();
    let mut judge = Judge::new("lints of the eBPF programs", clippy);
    judge.cannot = Some((
        "is not installed for the custom toolchain",
        "the BPF toolchain has no clippy",
    ));
    judge
}

fn documentation() -> Judge {
    let mut doc = command::cargo();
    doc.args(["doc", "--quiet", "--workspace", "--no-deps", "--keep-going"]);
    doc.env("RUSTDOCFLAGS", "-Dwarnings");
    Judge::new("documentation", doc)
}

fn dependencies() -> Judge {
    // cargo-deny reads the manifests of all dependencies, also of those for systems that nothing was built for yet. A
    // fetch that fails leaves it to cargo-deny to say what is missing.
    command::succeeds(command::cargo().args(["fetch", "--locked", "--quiet"]));
    let mut deny = deny();
    deny.args(["--offline", "check", "bans", "licenses", "sources"]);
    Judge::new("dependencies", deny)
}

fn advisories() -> Judge {
    let mut deny = deny();
    deny.args(["check", "advisories"]);
    let mut judge = Judge::new("advisories", deny);
    judge.cannot = Some((
        "failed to fetch advisory database",
        "the advisory database could not be fetched",
    ));
    judge
}

fn deny() -> Command {
    let mut deny = Command::new("cargo-deny");
    deny.current_dir(workspace::root());
    deny
}
