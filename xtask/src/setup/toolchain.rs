//! The Rust toolchain for the BPF target, which rustup knows as `imds-bpf` wherever it came from.
//!
//! `imds-user/build.rs` looks for the same name. Two ways lead to it: a nightly with `rust-src`, of which cargo builds
//! `core` for BPF; or, where rustup cannot download, Debian's compiler, for which Debian packages a ready `core`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use super::Machine;
use crate::{command, workspace};

const NAME: &str = "imds-bpf";
/// A nightly of a fixed day, since any other may have stopped to compile aya-ebpf. Its LLVM, 22, is the newest that both
/// bpf-linker and Debian have.
const NIGHTLY: &str = "nightly-2026-05-20";
/// Seconds until a download that does not get on is given up.
const DOWNLOAD_SECONDS_MAX: &str = "600";
/// Debian's newest compiler, which it keeps for its web browsers, and `core` for BPF.
const DEBIAN: &[&str] = &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
/// Where Debian's packages put it.
const DEBIAN_PREFIX: &str = "/usr";

/// A toolchain that builds for BPF.
#[derive(Debug)]
pub(super) struct Toolchain {
    version: Version,
    core: Core,
}

/// Where `core` for BPF comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Core {
    /// Compiled already, by Debian.
    Ready,
    /// rustup's `rust-src`.
    Source,
}

/// What `rustc -vV` tells.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    /// `1.97.0-nightly`
    release: String,
    /// `22`
    llvm_major: u32,
}

impl Toolchain {
    /// The major version of its LLVM, which bpf-linker's has to be, too.
    pub(super) fn llvm_major(&self) -> u32 {
        self.version.llvm_major
    }

    pub(super) fn core(&self) -> Core {
        self.core
    }

    pub(super) fn has_clippy(&self) -> bool {
        command::succeeds(self.command("cargo-clippy").arg("--version"))
    }

    /// A program of this toolchain.
    pub(super) fn command(&self, program: &str) -> Command {
        rustup_run(program)
    }
}

/// Finds the toolchain, or makes it.
pub(super) fn ensure(machine: &mut Machine) -> anyhow::Result<Toolchain> {
    if workspace::program("rustup").is_none() {
        bail!("rustup is needed: install it from https://rustup.rs, or the package `rustup`");
    }
    if let Ok(toolchain) = find() {
        machine.ok(toolchain.to_string());
        return Ok(toolchain);
    }
    if let Err(why_not) = by_rustup(machine) {
        machine.without(format_args!("{NIGHTLY} by rustup: {why_not:#}"));
        by_debian(machine).context(
            "no toolchain for BPF: rustup could not download one, and Debian's packages are not to be had either",
        )?;
    }
    let toolchain = find()?;
    machine.ok(toolchain.to_string());
    Ok(toolchain)
}

/// The toolchain of our name, if it can do what we need.
fn find() -> anyhow::Result<Toolchain> {
    let version = parse_version(&command::output(rustup_run("rustc").arg("-vV"))?)?;
    let oldest = env!("CARGO_PKG_RUST_VERSION");
    if !is_at_least(&version.release, oldest) {
        bail!(
            "the toolchain {NAME} is rustc {}, but {oldest} or newer is needed: update it, or unlink it (`rustup \
             toolchain uninstall {NAME}`) and run `cargo xtask setup` again",
            version.release
        );
    }
    let sysroot = command::output(rustup_run("rustc").args(["--print", "sysroot"]))?;
    let core = find_core(Path::new(sysroot.trim()))
        .with_context(|| format!("the toolchain {NAME} has no `core` for BPF"))?;
    Ok(Toolchain { version, core })
}

/// The linter, as the eBPF programs are built.
pub(crate) fn bpf_clippy() -> Command {
    let mut clippy = rustup_run("cargo");
    clippy.current_dir(workspace::root());
    clippy.args(["clippy", "--quiet", "--package", "imds-ebpf", "--bins"]);
    clippy.args(["--features", "programs", "--release"]);
    clippy.args([
        "--target",
        "bpfel-unknown-none",
        "--target-dir",
        "target/xtask/bpf-clippy",
    ]);
    if find().is_ok_and(|toolchain| toolchain.core == Core::Source) {
        clippy.args(["-Z", "build-std=core"]);
    }
    clippy.args(["--", "-D", "warnings"]);
    let arch = std::env::consts::ARCH;
    clippy.env(
        "CARGO_ENCODED_RUSTFLAGS",
        format!("--cfg=bpf_target_arch=\"{arch}\""),
    );
    clippy
}

fn find_core(sysroot: &Path) -> Option<Core> {
    let rustlib = sysroot.join("lib/rustlib");
    if rustlib.join("bpfel-unknown-none/lib").is_dir() {
        return Some(Core::Ready);
    }
    rustlib
        .join("src/rust/library/core")
        .is_dir()
        .then_some(Core::Source)
}

fn by_rustup(machine: &Machine) -> anyhow::Result<()> {
    machine.installing(format_args!("{NIGHTLY} with rust-src, by rustup"));
    let mut install = Command::new("timeout");
    install.args([DOWNLOAD_SECONDS_MAX, "rustup", "toolchain", "install"]);
    install.args([NIGHTLY, "--profile", "minimal", "--no-self-update"]);
    install.args(["--component", "rust-src", "--component", "clippy"]);
    // A backtrace of rustup's would push its reason out of what is kept.
    install.env("RUST_BACKTRACE", "0");
    command::quietly(&mut install).map_err(first_line)?;
    let mut sysroot = Command::new("rustup");
    sysroot.args(["run", NIGHTLY, "rustc", "--print", "sysroot"]);
    link(Path::new(command::output(&mut sysroot)?.trim()))
}

fn by_debian(machine: &mut Machine) -> anyhow::Result<()> {
    machine.installing(format_args!("{} by apt", DEBIAN.join(", ")));
    let packages: Vec<_> = DEBIAN.iter().map(ToString::to_string).collect();
    machine.apt.install(&packages)?;
    link(Path::new(DEBIAN_PREFIX))
}

fn link(sysroot: &Path) -> anyhow::Result<()> {
    let mut link = Command::new("rustup");
    link.args(["toolchain", "link", NAME]).arg(sysroot);
    command::quietly(&mut link)
}

fn rustup_run(program: &str) -> Command {
    let mut run = Command::new("rustup");
    run.args(["run", NAME, program]);
    run
}

/// rustup explains itself at length; the reason comes first.
fn first_line(cause: anyhow::Error) -> anyhow::Error {
    let said = format!("{cause:#}");
    let reason = said.lines().find(|line| line.starts_with("error:"));
    anyhow::anyhow!(
        "{}",
        reason
            .or_else(|| said.lines().next())
            .unwrap_or_default()
            .trim_start_matches("error: ")
    )
}

fn parse_version(said: &str) -> anyhow::Result<Version> {
    let field = |name: &str| {
        said.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let release = field("release:").context("`rustc -vV` names no release")?;
    let llvm = field("LLVM version:").context("`rustc -vV` names no LLVM version")?;
    let llvm_major = llvm
        .split('.')
        .next()
        .and_then(|major| major.parse().ok())
        .with_context(|| format!("`rustc -vV` names the LLVM version {llvm:?}"))?;
    Ok(Version {
        release: release.to_owned(),
        llvm_major,
    })
}

/// Compares versions by major and minor number: of two patch releases, either will do.
fn is_at_least(release: &str, oldest: &str) -> bool {
    let numbers = |version: &str| -> Vec<u32> {
        let parts = version.split('.').take(2);
        parts.map(|part| part.parse().unwrap_or(0)).collect()
    };
    numbers(release) >= numbers(oldest)
}

impl std::fmt::Display for Toolchain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let core = match self.core {
            Core::Ready => "core for BPF is ready",
            Core::Source => "core for BPF is built from rust-src",
        };
        let Version {
            release,
            llvm_major,
        } = &self.version;
        write!(
            f,
            "toolchain {NAME}: rustc {release}, LLVM {llvm_major}, {core}"
        )
    }
}

/// The folder of LLVM's programs and libraries as Debian packages them.
pub(super) fn debian_llvm(major: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{major}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_compilers_own_words() {
        let said = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\n\
                    release: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        let version = parse_version(said).unwrap();
        assert_eq!(version.release, "1.97.0-nightly");
        assert_eq!(version.llvm_major, 22);
    }

    #[test]
    fn a_compiler_that_does_not_tell_its_llvm_is_an_error() {
        let check = |said: &str| assert!(parse_version(said).is_err(), "{said}");
        check("");
        check("release: 1.97.0\n");
        check("release: 1.97.0\nLLVM version: unknown\n");
    }

    #[test]
    fn releases_are_compared_as_numbers() {
        let check = |release: &str, expected| {
            assert_eq!(is_at_least(release, "1.95"), expected, "{release}");
        };
        check("1.95.0", true);
        check("1.101.0-nightly", true);
        check("2.0.0", true);
        check("1.94.9", false);
        check("1.63.0", false);
    }

    #[test]
    fn the_reason_of_rustup_is_its_first_error() {
        let said = anyhow::anyhow!(
            "rustup ended with 1\ninfo: syncing\nerror: could not download file\ncaused by"
        );
        assert_eq!(first_line(said).to_string(), "could not download file");
        assert_eq!(
            first_line(anyhow::anyhow!("killed\nmore")).to_string(),
            "killed"
        );
    }
}
