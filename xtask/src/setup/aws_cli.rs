//! The second version of AWS's command line, which is not on PyPI: Debian's package, where there is one.

use std::path::PathBuf;
use std::process::Command;

use super::Machine;
use crate::command;

const PACKAGE: &str = "awscli";
/// Where the package puts it. Other programs of this name are earlier in PATH on many machines.
const PROGRAM: &str = "/usr/bin/aws";

/// Returns the program; none where it cannot be had.
pub(super) fn ensure(machine: &mut Machine) -> anyhow::Result<Option<PathBuf>> {
    if !is_there() {
        if !machine.apt.knows(PACKAGE) {
            machine.without(format_args!(
                "AWS's second command line: apt has no {PACKAGE}, so the test with it will be skipped"
            ));
            return Ok(None);
        }
        machine.installing(format_args!("{PACKAGE} (AWS's second command line)"));
        machine.apt.install(&[PACKAGE.to_owned()])?;
    }
    if is_there() {
        machine.ok(format_args!("AWS's second command line, {PROGRAM}"));
        return Ok(Some(PROGRAM.into()));
    }
    machine.without(format_args!(
        "AWS's second command line: {PACKAGE} has another, so the test with it will be skipped"
    ));
    Ok(None)
}

fn is_there() -> bool {
    let version = command::output(Command::new(PROGRAM).arg("--version"));
    version.is_ok_and(|version| version.starts_with("aws-cli/2"))
}
