//! Where a process lives as far as files and processes go: its mount and its process namespace.

use std::fs::File;
use std::io;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Pid;

/// The mount and the process namespace of a process.
pub struct Jail {
    mounts: File,
    processes: File,
}

impl Jail {
    /// Those that a process has.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: Pid) -> io::Result<Self> {
        Ok(Self {
            mounts: File::open(format!("/proc/{pid}/ns/mnt"))?,
            processes: File::open(format!("/proc/{pid}/ns/pid"))?,
        })
    }

    /// Moves the calling thread there, for good, and what it starts with it.
    ///
    /// # Panics
    /// When the kernel refuses: the caller is root.
    pub fn enter(&self) {
        // Threads share what is mounted where until one says that it will not.
        unshare(CloneFlags::CLONE_FS).expect("a thread may have a view of its own");
        setns(&self.processes, CloneFlags::CLONE_NEWPID).expect("root may enter");
        setns(&self.mounts, CloneFlags::CLONE_NEWNS).expect("root may enter");
    }
}
