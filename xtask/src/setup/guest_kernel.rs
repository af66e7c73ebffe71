//! A kernel for the virtual machine of the tests: Debian's for clouds, unpacked, not installed.

use std::{env, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, bail};

use super::Machine;
use crate::{command, workspace};

/// The package that always depends on the newest of them.
const NEWEST: &str = "linux-image-cloud-amd64";

/// Returns the folder that has `boot/vmlinuz-*` and `lib/modules/*`; none where there is no such package.
pub(super) fn ensure(machine: &mut Machine) -> anyhow::Result<Option<PathBuf>> {
    if env::consts::ARCH != "x86_64" {
        machine.without("a guest kernel: the tests' virtual machine is an x86_64 one");
        return Ok(None);
    }
    let dir = workspace::root().join("target/test-kernel");
    if is_complete(&dir) {
        machine.ok(format_args!("a guest kernel in {}", dir.display()));
        return Ok(Some(dir));
    }
    if !machine.apt.knows(NEWEST) {
        machine.without(format_args!(
            "a guest kernel: apt has no {NEWEST}, so the virtual machine's tests will be skipped"
        ));
        return Ok(None);
    }
    let package = newest(machine)?;
    machine.installing(format_args!("{package}, unpacked into {}", dir.display()));
    unpack(machine, &package, &dir)?;
    Ok(Some(dir))
}

fn newest(machine: &mut Machine) -> anyhow::Result<String> {
    let dependencies = machine.apt.dependencies(NEWEST)?;
    let mut images = dependencies
        .into_iter()
        .filter(|name| name.starts_with("linux-image-"));
    images
        .next()
        .with_context(|| format!("the package {NEWEST} depends on no kernel"))
}

/// Unpacks beside the final folder first, so that one cut short is not taken for a kernel.
fn unpack(machine: &mut Machine, package: &str, dir: &PathBuf) -> anyhow::Result<()> {
    let partial = dir.with_extension("partial");
    command::quietly(Command::new("rm").arg("-rf").args([&partial, dir]))?;
    machine.apt.unpack(package, &partial)?;
    if !is_complete(&partial) {
        bail!("the package {package} has no boot/vmlinuz-* and lib/modules/*");
    }
    fs::rename(&partial, dir).with_context(|| format!("move the kernel to {}", dir.display()))
}

fn is_complete(dir: &std::path::Path) -> bool {
    let has = |folder: &str, start: &str| {
        fs::read_dir(dir.join(folder)).is_ok_and(|mut entries| {
            entries.any(|entry| {
                entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with(start))
            })
        })
    };
    has("boot", "vmlinuz-") && has("lib/modules", "")
}
