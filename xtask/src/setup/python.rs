//! A Python with boto3 in a folder of its own, so that neither the system's nor the user's packages are touched.

use std::{path::PathBuf, process::Command};

use super::Machine;
use crate::{command, workspace};

/// The AWS SDK for Python, whose own code for instance metadata the tests put to work.
const BOTO3: &str = "boto3==1.44.5";

/// Returns the interpreter that has boto3.
pub(super) fn ensure(machine: &Machine) -> anyhow::Result<PathBuf> {
    let venv = workspace::target_dir("test-venv")?;
    let python = venv.join("bin/python");
    if has_boto3(&python) {
        machine.ok(format_args!("{BOTO3} in {}", venv.display()));
        return Ok(python);
    }
    machine.installing(format_args!("{BOTO3} in {}, by pip", venv.display()));
    let mut make = Command::new("python3");
    command::quietly(make.args(["-m", "venv", "--clear"]).arg(&venv))?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--no-input"]);
    command::quietly(pip.args(["--disable-pip-version-check", BOTO3]))?;
    Ok(python)
}

fn has_boto3(python: &std::path::Path) -> bool {
    let assert = "import sys, boto3; sys.exit('boto3==' + boto3.__version__ != sys.argv[1])";
    command::succeeds(Command::new(python).args(["-c", assert, BOTO3]))
}
