//! The binary under test.

use std::path::PathBuf;
use std::process::Output;

use crate::process::run;

/// The path of `imds`: `IMDS_BIN`, or else the one that cargo put beside the test executables.
///
/// # Panics
/// When there is none: a test without the binary under test is a failure, not a skip.
#[must_use]
pub fn imds_path() -> PathBuf {
    let path = match std::env::var_os("IMDS_BIN") {
        Some(path) => PathBuf::from(path),
        None => beside_the_tests(),
    };
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build` first, or name the binary by IMDS_BIN",
        path.display()
    );
    path
}

/// Runs `imds` with arguments in the namespace of the calling thread, and waits for its end.
#[must_use]
pub fn imds(args: &[&str]) -> Output {
    let path = imds_path();
    let mut argv = vec![path.to_str().expect("the binary's path is text")];
    argv.extend(args);
    run(&argv)
}

/// Test executables lie in target/PROFILE/deps, the binary one folder up.
fn beside_the_tests() -> PathBuf {
    let test = std::env::current_exe().expect("a process knows its executable");
    let deps = test.parent().expect("an executable lies in a folder");
    let folder = if deps.ends_with("deps") {
        deps.parent().expect("deps lies in a folder")
    } else {
        deps
    };
    folder.join("imds")
}
