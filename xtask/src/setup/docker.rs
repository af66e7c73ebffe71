//! Docker for the tests: Debian's packages, unpacked, not installed, so that no service of this machine's is started or
//! changed.

use std::{env, fs, path::Path, path::PathBuf, process::Command};

use anyhow::Context as _;

use super::Machine;
use crate::{command, workspace};

/// The daemon, what it runs containers with, and the libraries that a plain system may lack. Newer releases have the
/// client in a package of its own.
const PACKAGES: &[&str] = &[
    "docker.io",
    "docker-cli",
    "containerd",
    "runc",
    "libdevmapper1.02.1",
    "libseccomp2",
];
/// Without this one there is no Docker.
const DAEMON: &str = "docker.io";

/// Returns the folder that has `usr/sbin/dockerd` and the rest; none where it cannot be had.
pub(super) fn ensure(machine: &mut Machine) -> anyhow::Result<Option<PathBuf>> {
    let dir = workspace::root().join("target/test-docker");
    if is_complete(&dir) {
        machine.ok(format_args!("Docker in {}", dir.display()));
        return Ok(Some(dir));
    }
    if !machine.apt.knows(DAEMON) {
        machine.without(format_args!(
            "Docker: apt has no {DAEMON}, so the tests with containers will be skipped"
        ));
        return Ok(None);
    }
    machine.installing(format_args!("{DAEMON}, unpacked into {}", dir.display()));
    unpack(machine, &dir)?;
    if !is_complete(&dir) {
        machine.without(format_args!(
            "Docker: what {DAEMON} unpacks to does not run here, so the tests with containers will be skipped"
        ));
        return Ok(None);
    }
    Ok(Some(dir))
}

/// Unpacks beside the final folder first, so that one cut short is not taken for the whole.
fn unpack(machine: &mut Machine, dir: &Path) -> anyhow::Result<()> {
    let partial = dir.with_extension("partial");
    command::quietly(Command::new("rm").arg("-rf").args([&partial, dir]))?;
    for package in PACKAGES {
        if machine.apt.knows(package) {
            machine.apt.unpack(package, &partial)?;
        }
    }
    fs::rename(&partial, dir).with_context(|| format!("move Docker to {}", dir.display()))
}

/// Whether its programs can be started, with libraries that came along if the system has none.
fn is_complete(dir: &Path) -> bool {
    // Older packages have theirs in /lib.
    let libraries = ["usr/lib", "lib"].map(|folder| {
        let arch = env::consts::ARCH;
        let path = dir.join(folder).join(format!("{arch}-linux-gnu"));
        path.to_string_lossy().into_owned()
    });
    let programs = [
        "usr/sbin/dockerd",
        "usr/bin/docker",
        "usr/bin/containerd",
        "usr/sbin/runc",
    ];
    programs.into_iter().all(|program| {
        let mut version = Command::new(dir.join(program));
        version.arg("--version");
        version.env("LD_LIBRARY_PATH", libraries.join(":"));
        command::succeeds(&mut version)
    })
}
