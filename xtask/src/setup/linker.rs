//! bpf-linker, for the LLVM of the toolchain at hand.
//!
//! It reads the bitcode that rustc writes, so its LLVM must be at least as new as rustc's. It is compiled here against
//! Debian's LLVM of the same number; where the system has none, the project's own prebuilt program is taken.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use super::{
    Machine,
    toolchain::{Toolchain, debian_llvm},
};
use crate::{command, workspace};

const PROGRAM: &str = "bpf-linker";
const VERSION: &str = "0.13.0";
/// What this version can be built for.
const LLVM_MAJORS: std::ops::RangeInclusive<u32> = 21..=23;
const RELEASES: &str = "https://github.com/aya-rs/bpf-linker/releases/download";

/// Something to compile and link: one function, which a linker must not lose.
const TRIAL: &str = "#![no_std]\n#[unsafe(no_mangle)]\npub extern \"C\" fn trial(value: u64) -> u64 { value.wrapping_mul(3) }\n";

/// Finds a linker that reads what the toolchain writes, or installs one.
pub(super) fn ensure(machine: &mut Machine, toolchain: &Toolchain) -> anyhow::Result<()> {
    let Err(why_not) = find(machine, toolchain) else {
        return Ok(());
    };
    if let Some(found) = workspace::program(PROGRAM) {
        machine.without(format_args!("{}: {why_not:#}", found.display()));
    }
    install(machine, toolchain)?;
    find(machine, toolchain).with_context(|| {
        format!("{PROGRAM} {VERSION} was installed, but does not do: is its folder (~/.cargo/bin) in PATH?")
    })
}

fn find(machine: &Machine, toolchain: &Toolchain) -> anyhow::Result<()> {
    let program = workspace::program(PROGRAM).with_context(|| format!("no {PROGRAM} in PATH"))?;
    let version = command::output(Command::new(&program).arg("--version"))?;
    let libraries = command::output(Command::new("ldd").arg(&program)).unwrap_or_default();
    if let Some(major) = linked_llvm(&libraries)
        && major < toolchain.llvm_major()
    {
        bail!(
            "its LLVM is {major}, the toolchain's {}",
            toolchain.llvm_major()
        );
    }
    try_out(&program, toolchain)?;
    machine.ok(format_args!("{}, tried out", version.trim()));
    Ok(())
}

/// Compiles a function with the toolchain and links it: the proof that the two fit.
fn try_out(program: &Path, toolchain: &Toolchain) -> anyhow::Result<()> {
    let dir = workspace::target_dir("xtask/linker-trial")?;
    let [source, bitcode, object] = ["trial.rs", "trial.bc", "trial.o"].map(|name| dir.join(name));
    fs::write(&source, TRIAL).with_context(|| format!("write {}", source.display()))?;
    let mut rustc = toolchain.command("rustc");
    rustc.args(["--edition=2024", "--crate-type=lib", "--emit=llvm-bc"]);
    rustc.args(["-Copt-level=2", "-Cpanic=abort", "-o"]);
    command::quietly(rustc.arg(&bitcode).arg(&source))?;
    let mut link = Command::new(program);
    link.args(["--target=bpfel-unknown-none", "--export=trial", "--output"]);
    command::quietly(link.arg(&object).arg(&bitcode))
}

fn install(machine: &mut Machine, toolchain: &Toolchain) -> anyhow::Result<()> {
    let llvm = toolchain.llvm_major();
    if !LLVM_MAJORS.contains(&llvm) {
        bail!(
            "{PROGRAM} {VERSION} knows LLVM {} to {}, the toolchain's is {llvm}: put a {PROGRAM} for it into PATH",
            LLVM_MAJORS.start(),
            LLVM_MAJORS.end()
        );
    }
    if ensure_debian_llvm(machine, llvm)? {
        return compile(machine, llvm);
    }
    download(machine).with_context(|| {
        format!(
            "no {PROGRAM}: there is no package llvm-{llvm}-dev here (https://apt.llvm.org has them), nor could the \
             prebuilt program be downloaded; install either and run `cargo xtask setup` again"
        )
    })
}

/// Installs what bpf-linker is compiled against; false if the system has no such packages.
fn ensure_debian_llvm(machine: &mut Machine, major: u32) -> anyhow::Result<bool> {
    let config = debian_llvm(major).join("bin/llvm-config");
    let polly = debian_llvm(major).join("lib/libPolly.a");
    if config.is_file() && polly.is_file() && Path::new("/usr/include/zstd.h").is_file() {
        machine.ok(format_args!("LLVM {major}'s libraries"));
        return Ok(true);
    }
    let packages = [
        format!("llvm-{major}-dev"),
        format!("libpolly-{major}-dev"),
        "libzstd-dev".to_owned(),
    ];
    if !packages.iter().all(|package| machine.apt.knows(package)) {
        return Ok(false);
    }
    machine.installing(format_args!("{} by apt", packages.join(", ")));
    machine.apt.install(&packages)?;
    Ok(true)
}

fn compile(machine: &Machine, llvm: u32) -> anyhow::Result<()> {
    machine.installing(format_args!(
        "{PROGRAM} {VERSION} for LLVM {llvm}, compiled by cargo (takes 2 to 4 minutes)"
    ));
    let debian = debian_llvm(llvm);
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(
        [debian.join("bin")]
            .into_iter()
            .chain(env::split_paths(&path)),
    )?;
    let mut install = command::cargo();
    install.args(["install", PROGRAM, "--version", VERSION]);
    install.args(["--locked", "--force", "--no-default-features", "--features"]);
    install.arg(format!("llvm-{llvm}"));
    install.env("PATH", path);
    install.env("RUSTFLAGS", format!("-L{}", debian.join("lib").display()));
    command::quietly(&mut install)
}

/// The way that the project's README recommends.
fn download(machine: &mut Machine) -> anyhow::Result<()> {
    let arch = env::consts::ARCH;
    let url = format!("{RELEASES}/v{VERSION}/{PROGRAM}-{arch}-unknown-linux-musl.tar.zst");
    machine.installing(format_args!("{PROGRAM} {VERSION} from {url}"));
    let archive = workspace::target_dir("xtask/downloads")?.join("bpf-linker.tar.zst");
    let mut curl = Command::new("curl");
    curl.args(["--fail", "--location", "--silent", "--show-error"]);
    curl.args(["--connect-timeout", "15", "--max-time", "300", "--output"]);
    command::quietly(curl.arg(&archive).arg(&url))?;
    if workspace::program("zstd").is_none() {
        machine.apt.install(&["zstd".to_owned()])?;
    }
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--zstd", "--file"]).arg(&archive);
    command::quietly(tar.arg("--directory").arg(cargo_bin()?).arg(PROGRAM))
}

/// The folder where cargo puts what it installs.
fn cargo_bin() -> anyhow::Result<PathBuf> {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;
    Ok(home.join("bin"))
}

/// The major version of the LLVM library that `ldd` lists; none if the program has it built in.
fn linked_llvm(libraries: &str) -> Option<u32> {
    let (_, version) = libraries
        .lines()
        .find_map(|line| line.trim().split_once("libLLVM"))?;
    version
        .trim_start_matches(['.', '-', 's', 'o'])
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linkers_llvm_is_read_from_its_libraries() {
        let check =
            |libraries: &str, expected| assert_eq!(linked_llvm(libraries), expected, "{libraries}");
        check(
            "\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x1)\n",
            Some(22),
        );
        check(
            "\tlibc.so.6 => /lib/libc.so.6 (0x2)\n\tlibLLVM-17.so => /lib/libLLVM-17.so (0x1)\n",
            Some(17),
        );
        check("\tlibLLVM-17.so.1 => not found\n", Some(17));
        check(
            "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x1)\n",
            None,
        );
        check("\tnot a dynamic executable\n", None);
    }
}
