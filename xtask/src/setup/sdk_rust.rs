//! A program with the AWS SDK for Rust, for the tests. It is a package of its own, outside the workspace: who builds,
//! lints or audits the project does not do it to a hundred crates that no part of the project uses.

use std::path::PathBuf;

use super::Machine;
use crate::{command, workspace};

/// Its manifest, from the checkout's top folder.
pub(crate) const MANIFEST: &str = "tests/sdk-rust/Cargo.toml";
const PROGRAM: &str = "debug/imds-test-sdk-rust";

/// Builds it where it is missing or older than its source, and returns the program.
pub(super) fn ensure(machine: &Machine) -> anyhow::Result<PathBuf> {
    let target = workspace::target_dir("test-sdk-rust")?;
    let program = target.join(PROGRAM);
    if program.is_file() {
        machine.ok(format_args!("AWS SDK for Rust ({})", program.display()));
    } else {
        machine.installing("AWS SDK for Rust, compiled by cargo (takes about a minute)");
    }
    let mut build = command::cargo();
    build.args(["build", "--quiet", "--locked", "--manifest-path", MANIFEST]);
    command::quietly(build.arg("--target-dir").arg(&target))?;
    Ok(program)
}
