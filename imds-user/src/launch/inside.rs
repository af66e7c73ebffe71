//! Commands inside a guest: in all of its namespaces, in its control group, with the rights that it has itself.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus};

use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;

use super::cgroup::{CgroupError, Groups};
use super::first::{self, FirstError};
use super::user_data::ENVIRONMENT;

/// Variables of whoever calls that a program in the guest gets too.
const KEPT_VARIABLES: [&str; 2] = ["TERM", "COLORTERM"];

/// All that a guest has of its own.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWUSER
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWCGROUP);

/// Why a command could not be executed in a guest.
#[derive(Debug, thiserror::Error)]
pub enum InsideError {
    /// Its control group.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Its namespaces.
    #[error("enter the guest")]
    Enter(#[source] io::Error),
    /// Its rights.
    #[error(transparent)]
    Rights(#[from] FirstError),
    /// The command.
    #[error("execute `{program}`")]
    Command {
        /// As it was given.
        program: String,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
}

/// Runs a command in the guest whose first process this is, with the standard streams of this process, to its end; it
/// ends when this process does. For the only thread of a process that does nothing else afterwards: it moves into the
/// guest as well, and does not get out again.
///
/// The command has a session of its own, so that a terminal which it is given is not its controlling one: it cannot type
/// into it.
///
/// # Errors
/// When it could not be executed.
pub fn run(
    first: impl AsFd,
    groups: &Groups,
    program: OsString,
    args: Vec<OsString>,
) -> Result<u8, InsideError> {
    groups.join(std::process::id())?;
    // Before the guest can see anything of this process.
    prctl::set_dumpable(false).map_err(|errno| InsideError::Enter(errno.into()))?;
    setns(first, NAMESPACES).map_err(|errno| InsideError::Enter(errno.into()))?;
    first::become_root()?;
    first::drop_rights()?;
    // A guest may have removed its home.
    let home = Path::new("/root");
    let start = if home.is_dir() { home } else { Path::new("/") };
    let kept = KEPT_VARIABLES.map(|name| (name, std::env::var_os(name)));
    let mut command = Command::new(&program);
    command
        .args(args)
        .env_clear()
        .envs(ENVIRONMENT)
        .envs(
            kept.into_iter()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .current_dir(start);
    detach(&mut command);
    let outcome = command.spawn().and_then(|mut child| child.wait());
    outcome.map(code_of).map_err(|cause| InsideError::Command {
        program: program.to_string_lossy().into_owned(),
        cause,
    })
}

#[expect(
    unsafe_code,
    reason = "std offers no safe way to start a process in a new session"
)]
fn detach(command: &mut Command) {
    let detach = || {
        nix::unistd::setsid()?;
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        first::be_ordinary();
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe functions may be called. setsid(2), prctl(2), and open(2),
    // write(2), close(2) behind `be_ordinary` are; that allocates nothing (a short path is kept on the stack), and this
    // process has one thread, so no lock is held by another.
    unsafe { command.pre_exec(detach) };
}

/// As shells say it.
pub(super) fn code_of(status: ExitStatus) -> u8 {
    let by_signal = || 128 + status.signal().unwrap_or(0);
    let code = status.code().unwrap_or_else(by_signal);
    u8::try_from(code & 0xff).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        for (status, expected) in [(0, 0), (7 << 8, 7), (255 << 8, 255), (9, 137), (15, 143)] {
            assert_eq!(
                code_of(ExitStatus::from_raw(status)),
                expected,
                "{status:#x}"
            );
        }
    }
}
