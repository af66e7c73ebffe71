//! Programs that cargo runs as its own: formatter, linter, and the judge of dependencies.

use std::process::Command;

use super::{
    Machine,
    toolchain::{Core, Toolchain},
};
use crate::{command, workspace};

const CARGO_DENY: &str = "0.20.2";
const CARGO_FUZZ: &str = "0.13.2";

/// Finds or installs those that `cargo xtask check` calls.
pub(super) fn ensure(machine: &mut Machine, toolchain: &Toolchain) -> anyhow::Result<()> {
    for (component, probe) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if command::succeeds(command::cargo().args([probe, "--version"])) {
            machine.ok(component);
            continue;
        }
        machine.installing(format_args!("{component}, by rustup"));
        command::quietly(Command::new("rustup").args(["component", "add", component]))?;
    }
    ensure_bpf_clippy(machine, toolchain);
    ensure_deny(machine)
}

/// The linter of the BPF toolchain comes with rustup's; Debian packages it on its own. Nothing depends on it but one
/// check, which counts itself as skipped where it is missing.
fn ensure_bpf_clippy(machine: &mut Machine, toolchain: &Toolchain) {
    const DEBIAN: &str = "rust-web-clippy";
    if toolchain.has_clippy() {
        machine.ok("clippy of the BPF toolchain");
        return;
    }
    if toolchain.core() != Core::Ready {
        return;
    }
    machine.installing(format_args!("{DEBIAN} by apt"));
    if let Err(why_not) = machine.apt.install(&[DEBIAN.to_owned()]) {
        machine.without(format_args!("{DEBIAN}: {why_not:#}"));
    }
}

fn ensure_deny(machine: &Machine) -> anyhow::Result<()> {
    if workspace::program("cargo-deny").is_some() {
        machine.ok("cargo-deny");
        return Ok(());
    }
    machine.installing(format_args!(
        "cargo-deny {CARGO_DENY}, compiled by cargo (takes 2 to 4 minutes)"
    ));
    let mut install = command::cargo();
    install.args(["install", "cargo-deny", "--version", CARGO_DENY]);
    // Its default features are another allocator and the system's certificates, for downloads.
    command::quietly(install.args(["--locked", "--no-default-features"]))
}

/// Finds or installs what runs the fuzz targets, which count as skipped where it is not to be had.
pub(super) fn ensure_fuzz(machine: &Machine) {
    if workspace::program("cargo-fuzz").is_some() {
        machine.ok("cargo-fuzz");
        return;
    }
    machine.installing(format_args!(
        "cargo-fuzz {CARGO_FUZZ}, compiled by cargo (takes 1 to 2 minutes)"
    ));
    let mut install = command::cargo();
    install.args(["install", "cargo-fuzz", "--version", CARGO_FUZZ, "--locked"]);
    if let Err(why_not) = command::quietly(&mut install) {
        machine.without(format_args!("cargo-fuzz: {why_not:#}"));
    }
}
