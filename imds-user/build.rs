//! Compiles the eBPF programs of `imds-ebpf`, so that a plain `cargo build` makes a whole `imds`.
//!
//! The object lands in `$OUT_DIR/imds-ebpf`, from where `dataplane::load` takes it into the binary.
//! Nothing is installed here: what is missing is the business of `cargo xtask setup`, and the build says so.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use aya_build::{Package, Toolchain};

/// What `cargo xtask setup` calls the toolchain that it has found or made; see `xtask/src/setup/toolchain.rs`.
const TOOLCHAIN: &str = "imds-bpf";
/// What somebody who builds eBPF programs anyway has.
const FALLBACK_TOOLCHAIN: &str = "nightly";
const LINKER: &str = "bpf-linker";

fn main() -> anyhow::Result<()> {
    // Asked when it runs: a build that was moved or copied along with its checkout knows the former place otherwise.
    let package = env::var_os("CARGO_MANIFEST_DIR").context("cargo names the package's folder")?;
    let workspace = Path::new(&package).join("..").canonicalize()?;
    let programs = workspace.join("imds-ebpf");
    // aya-build watches the package's folder; these decide about the object, too.
    for watched in ["Cargo.lock", "Cargo.toml"] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(watched).display()
        );
    }

    if env::var_os("CARGO_CFG_FUZZING").is_some() {
        return without_programs();
    }
    let Some(toolchain) = toolchain() else {
        missing("no Rust toolchain that builds eBPF programs");
        return Ok(());
    };
    if !in_path(LINKER) {
        missing("no bpf-linker");
        return Ok(());
    }
    quieten_inner_cargo();
    let root_dir = programs
        .to_str()
        .context("the checkout's path is not UTF-8")?;
    let built = aya_build::build_ebpf(
        [Package {
            name: "imds-ebpf",
            root_dir,
            features: &["programs"],
            ..Package::default()
        }],
        Toolchain::Custom(toolchain),
    );
    if let Err(cause) = built {
        println!("cargo::error=the eBPF programs did not build, see the lines above ({cause:#})");
    }
    Ok(())
}

/// A fuzzer loads nothing into a kernel, and its compiler's flags are not for BPF.
fn without_programs() -> anyhow::Result<()> {
    let out_dir = env::var_os("OUT_DIR").context("cargo names the folder for what is built")?;
    std::fs::write(Path::new(&out_dir).join("imds-ebpf"), []).context("write an empty object")
}

/// Fails the build with one line: cargo adds neither a backtrace nor the script's output to it.
fn missing(what: &str) {
    println!("cargo::error={what} here: run `cargo xtask setup`, then build again");
}

/// aya-build turns each line of the inner cargo into a warning of ours, which every later build would repeat.
#[expect(
    unsafe_code,
    clippy::disallowed_methods,
    reason = "aya-build takes the inner cargo's settings from the environment alone"
)]
fn quieten_inner_cargo() {
    // SAFETY: nothing else reads or writes the environment meanwhile: this process has one thread until aya-build starts.
    unsafe { env::set_var("CARGO_TERM_QUIET", "true") };
}

fn toolchain() -> Option<&'static str> {
    [TOOLCHAIN, FALLBACK_TOOLCHAIN]
        .into_iter()
        .find(|name| builds_for_bpf(name))
}

/// Whether the toolchain has a `core` for BPF, ready (Debian's) or as source (rustup's `rust-src`).
fn builds_for_bpf(toolchain: &str) -> bool {
    let Some(sysroot) = sysroot(toolchain) else {
        return false;
    };
    let rustlib = sysroot.join("lib/rustlib");
    rustlib.join("bpfel-unknown-none/lib").is_dir()
        || rustlib.join("src/rust/library/core").is_dir()
}

fn sysroot(toolchain: &str) -> Option<PathBuf> {
    let output = Command::new("rustup")
        .args(["run", toolchain, "rustc", "--print", "sysroot"])
        // cargo names its own compiler to what it starts.
        .env_remove("RUSTC")
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
}

fn in_path(program: &str) -> bool {
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}
