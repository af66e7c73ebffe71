//! Debian's package manager, where there is one and we may use it.

use std::{path::Path, process::Command};

use anyhow::{Context as _, bail};

use crate::{command, workspace};

/// What apt-get is told in every call: ask nothing, and wait for another apt that is at work.
const OPTIONS: &[&str] = &["--yes", "--quiet", "--option", "DPkg::Lock::Timeout=300"];

/// apt, whose lists are brought up to date once, before they are first used.
#[derive(Debug, Default)]
pub(super) struct Apt {
    is_updated: bool,
}

impl Apt {
    /// Installs the packages, without what they only recommend.
    pub(super) fn install(&mut self, packages: &[String]) -> anyhow::Result<()> {
        let by_hand = format!(
            "apt-get install --no-install-recommends {}",
            packages.join(" ")
        );
        self.usable().with_context(|| {
            format!("needed here: `{by_hand}`, or what your system calls these")
        })?;
        self.update();
        let mut install = apt_get("install");
        command::quietly(install.arg("--no-install-recommends").args(packages))
    }

    /// Whether apt knows the package and could install it.
    pub(super) fn knows(&mut self, package: &str) -> bool {
        if self.usable().is_err() {
            return false;
        }
        self.update();
        let policy = command::output(Command::new("apt-cache").args(["policy", package]));
        policy.is_ok_and(|policy| has_candidate(&policy))
    }

    /// The packages that a package depends on.
    pub(super) fn dependencies(&mut self, package: &str) -> anyhow::Result<Vec<String>> {
        self.update();
        let said = command::output(Command::new("apt-cache").args(["depends", package]))?;
        Ok(dependencies(&said))
    }

    /// Unpacks a package into a folder; nothing of it is installed.
    pub(super) fn unpack(&mut self, package: &str, into: &Path) -> anyhow::Result<()> {
        self.update();
        let downloads = workspace::target_dir("xtask/downloads")?;
        command::quietly(apt_get("download").arg(package).current_dir(&downloads))?;
        let archive = downloaded(&downloads, package)?;
        command::quietly(Command::new("dpkg").arg("-x").arg(&archive).arg(into))?;
        std::fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))
    }

    fn usable(&self) -> anyhow::Result<()> {
        if workspace::program("apt-get").is_none() {
            bail!("this system has no apt-get");
        }
        if !is_root() {
            bail!("only root may install packages: run `cargo xtask setup` as root");
        }
        Ok(())
    }

    /// Without a network, the lists that are there have to do: what then cannot be installed says so itself.
    fn update(&mut self) {
        if !std::mem::replace(&mut self.is_updated, true) {
            command::succeeds(&mut apt_get("update"));
        }
    }
}

fn apt_get(verb: &str) -> Command {
    let mut apt_get = Command::new("apt-get");
    apt_get
        .args(OPTIONS)
        .arg(verb)
        .env("DEBIAN_FRONTEND", "noninteractive");
    apt_get
}

/// Whether this process may do everything.
pub(crate) fn is_root() -> bool {
    command::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

fn downloaded(folder: &Path, package: &str) -> anyhow::Result<std::path::PathBuf> {
    let start = format!("{package}_");
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&start) {
            return Ok(entry.path());
        }
    }
    bail!("apt-get downloaded no archive of {package}");
}

/// Reads `apt-cache policy PACKAGE`, which says nothing at all of a package that it does not know.
fn has_candidate(policy: &str) -> bool {
    let candidate = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate:"));
    candidate.is_some_and(|version| version.trim() != "(none)")
}

/// Reads `apt-cache depends PACKAGE`.
fn dependencies(said: &str) -> Vec<String> {
    let names = said
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends:"));
    names.map(|name| name.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_known_by_its_candidate() {
        let check =
            |policy: &str, expected| assert_eq!(has_candidate(policy), expected, "{policy}");
        check(
            "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0\n",
            true,
        );
        check("gone:\n  Installed: 1.0\n  Candidate: (none)\n", false);
        check("", false);
    }

    #[test]
    fn dependencies_are_read_without_what_is_only_suggested() {
        let said = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n  Suggests: linux-doc\n";
        assert_eq!(dependencies(said), ["linux-image-6.1.0-56-cloud-amd64"]);
        assert!(dependencies("").is_empty());
    }
}
