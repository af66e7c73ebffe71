//! What a test does where the machine lacks something: say so, where people and CI see it.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;

/// Prints `SKIP: test: reason` and appends the line to the file that `IMDS_SKIP_LOG` names, so that CI can count them.
#[expect(
    clippy::print_stderr,
    reason = "the printed line is the promise of a skip"
)]
pub fn skip(reason: &str) {
    let name = thread::current()
        .name()
        .unwrap_or("unnamed test")
        .to_owned();
    let line = format!("SKIP: {name}: {reason}\n");
    eprint!("{line}");
    let Some(path) = std::env::var_os("IMDS_SKIP_LOG") else {
        return;
    };
    let mut log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .expect("IMDS_SKIP_LOG names a file to append to");
    log.write_all(line.as_bytes())
        .expect("the skip log takes a line");
}

/// Whether this process may make network namespaces and load programs; a skip when not.
#[must_use]
pub fn needs_root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    skip("needs root (network namespaces, eBPF)");
    false
}

/// Whether `command` is found in PATH; a skip when not.
#[must_use]
pub fn has_command(command: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| Path::new(&dir).join(command).is_file()) {
        return true;
    }
    skip(&format!("needs the command {command}"));
    false
}

/// The path that an environment variable of the setup names; a skip when it names none.
#[must_use]
pub fn path_of(variable: &str, what: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        skip(&format!(
            "{variable} is not set: `cargo xtask setup --tests` installs {what}"
        ));
    }
    path
}
