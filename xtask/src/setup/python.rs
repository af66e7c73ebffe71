//! A Python with AWS's clients in a folder of its own, so that neither the system's nor the user's packages are touched.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::Machine;
use crate::{command, workspace};

/// The clients whose own code for instance metadata the tests put to work: AWS's SDK, AWS's command line, and a library
/// that knows the whole tree.
const CLIENTS: [&str; 3] = ["boto3==1.44.5", "awscli==1.46.2", "ec2-metadata==3.0.0"];

/// Returns the interpreter that has them.
pub(super) fn ensure(machine: &Machine) -> anyhow::Result<PathBuf> {
    let venv = workspace::target_dir("test-venv")?;
    let python = venv.join("bin/python");
    let clients = CLIENTS.join(", ");
    if CLIENTS.iter().all(|client| has(&python, client)) {
        machine.ok(format_args!("{clients} in {}", venv.display()));
        return Ok(python);
    }
    machine.installing(format_args!("{clients} in {}, by pip", venv.display()));
    let mut make = Command::new("python3");
    command::quietly(make.args(["-m", "venv", "--clear"]).arg(&venv))?;
    pip_install(&python, &CLIENTS)?;
    Ok(python)
}

/// Adds packages to the folder of that interpreter.
pub(super) fn pip_install(python: &Path, packages: &[&str]) -> anyhow::Result<()> {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--no-input"]);
    command::quietly(pip.arg("--disable-pip-version-check").args(packages))
}

/// Whether the interpreter has that package at that version.
pub(super) fn has(python: &Path, requirement: &str) -> bool {
    let assert = "import sys, importlib.metadata as m; name, version = sys.argv[1].split('=='); \
                  sys.exit(m.version(name) != version)";
    command::succeeds(Command::new(python).args(["-c", assert, requirement]))
}
