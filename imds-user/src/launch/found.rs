//! The first process of a guest, found where the kernel has it: in the guest's control group, as process 1 of a
//! namespace. It is held by a descriptor, which means this process for ever and never another of its number.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use super::cgroup::Groups;
use crate::process::Process;

/// How long the kernel may take to end a process that is killed, and all others of its namespace with it.
const KILL_WITHIN: Duration = Duration::from_secs(10);

/// A guest's first process.
#[derive(Debug)]
pub struct First {
    /// Its number on the host.
    pub pid: u32,
    descriptor: OwnedFd,
}

impl First {
    /// The one that lives in these control groups, if one does.
    #[must_use]
    pub fn in_groups(groups: &Groups) -> Option<Self> {
        groups
            .processes()
            .into_iter()
            .filter(|pid| is_first(*pid))
            .find_map(|pid| Self::of(pid).ok().flatten())
            .filter(|first| groups.processes().contains(&first.pid))
    }

    /// The process of this number; none if it has ended.
    ///
    /// # Errors
    /// When the kernel has no such process.
    pub fn of(pid: u32) -> io::Result<Option<Self>> {
        let process = Process::now(pid);
        let number = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let descriptor = pidfd_open(number, PidfdFlags::empty())?;
        // The same before and after: what was opened is what was looked at.
        let is_it = process.is_some_and(|process| process.is_alive());
        Ok(is_it.then_some(Self { pid, descriptor }))
    }

    /// Asks it to end, and ends it if it does not in time.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn end(self, patience: Duration) -> io::Result<()> {
        let ended = watch(&self.descriptor)?;
        for (signal, patience) in [(Signal::TERM, patience), (Signal::KILL, KILL_WITHIN)] {
            match pidfd_send_signal(&self.descriptor, signal) {
                Ok(()) => {}
                Err(rustix::io::Errno::SRCH) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            // A descriptor of a process is readable once it has ended, pidfd_open(2).
            if timeout(patience, ended.readable()).await.is_ok() {
                return Ok(());
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

impl AsFd for First {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

#[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
fn watch(descriptor: &OwnedFd) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    let descriptor = descriptor.as_fd();
    // SAFETY: a BorrowedFd names the same open descriptor for as long as it lives, and the AsyncFd has it.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    Ok(watched?)
}

/// Whether a process is the first of the namespace right beneath ours.
fn is_first(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    is_first_by(&status)
}

/// The kernel lists a process's numbers from our namespace down to its own, proc_pid_status(5).
fn is_first_by(status: &str) -> bool {
    let numbers = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .map(|numbers| numbers.split_whitespace().collect::<Vec<_>>());
    matches!(numbers.as_deref(), Some([_, "1"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_process_is_number_one_one_floor_down() {
        for (numbers, expected) in [
            ("4711 1", true),
            ("4711\t1", true),
            ("4711 2", false),
            ("1", false),
            ("4711", false),
            ("4711 9 1", false),
            ("", false),
        ] {
            let status = format!("Name:\timds\nNSpid:\t{numbers}\nThreads:\t1\n");
            assert_eq!(is_first_by(&status), expected, "{numbers}");
        }
        assert!(!is_first_by(""));
    }

    #[test]
    fn a_process_that_is_asked_to_end_ends() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            for script in ["exec sleep 60", "trap '' TERM; while :; do sleep 60; done"] {
                let mut child = std::process::Command::new("sh")
                    .args(["-c", script])
                    .spawn()
                    .unwrap();
                let first = First::of(child.id()).unwrap().unwrap();
                first.end(Duration::from_millis(50)).await.unwrap();
                child.wait().unwrap();
            }
            assert!(First::of(u32::MAX).is_err());
        });
    }
}
