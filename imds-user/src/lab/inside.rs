//! Commands inside a lab: in a guest's (or the host's) network namespace, under its host name.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::sethostname;

use super::daemon::{is_over_within, pid_of};
use super::plan::Guest;
use super::record::Process;
use super::{LabError, LabName};
use crate::netns::NetNs;

/// How long programs left in a guest may take to end when asked.
const END_WITHIN: Duration = Duration::from_secs(2);

/// Where a command runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// In a guest.
    Guest(Guest),
    /// Where the daemon runs.
    Host,
}

impl Place {
    /// What commands and prompts call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Guest(guest) => guest.name(),
            Self::Host => "host",
        }
    }

    fn netns(self, lab: &LabName) -> String {
        match self {
            Self::Guest(guest) => lab.guest_netns(guest),
            Self::Host => lab.host_netns(),
        }
    }
}

/// Becomes a command inside a lab; returns only when that fails. The process must have one thread: what is
/// entered here, only the calling thread enters.
#[must_use]
pub fn exec(lab: &LabName, place: Place, program: OsString, args: Vec<OsString>) -> LabError {
    if let Err(error) = enter(lab, place) {
        return error;
    }
    let cause = Command::new(&program).args(args).exec();
    InsideError::Command {
        program: program.to_string_lossy().into_owned(),
        cause,
    }
    .into()
}

/// Becomes a shell inside a lab whose prompt says where one is.
#[must_use]
pub fn shell(lab: &LabName, place: Place, shell: Option<OsString>) -> LabError {
    if let Err(error) = enter(lab, place) {
        return error;
    }
    let program = shell
        .filter(|shell| !shell.is_empty())
        .unwrap_or_else(|| "bash".into());
    let mut command = Command::new(&program);
    command
        .env("IMDS_LAB_GUEST", place.name())
        .env("PS1", prompt(lab, place.name()));
    // bash's own start-up file would set another prompt.
    if Path::new(&program)
        .file_name()
        .is_some_and(|name| name == "bash")
    {
        command.arg("--rcfile").arg(bashrc_path(lab));
    }
    let cause = command.exec();
    InsideError::Command {
        program: program.to_string_lossy().into_owned(),
        cause,
    }
    .into()
}

/// What an interactive bash in this lab reads first.
#[must_use]
pub fn bashrc(lab: &LabName) -> String {
    let prompt = prompt(lab, "'\"$IMDS_LAB_GUEST\"'");
    format!("[ -r ~/.bashrc ] && . ~/.bashrc\nPS1='{prompt}'\nunset PROMPT_COMMAND\n")
}

/// Where [`bashrc`] is written.
#[must_use]
pub fn bashrc_path(lab: &LabName) -> PathBuf {
    lab.state_dir().join("bashrc")
}

/// Ends every process that is in a namespace: shells that were left open, servers started in the background.
/// Without them the namespace would live on, nameless.
///
/// # Errors
/// When one outlives SIGKILL.
pub(super) async fn end_processes(netns: &str) -> Result<(), LabError> {
    let inode = NetNs::open(netns)?.inode();
    for signal in [Signal::SIGHUP, Signal::SIGKILL] {
        let processes = processes_in(inode);
        for process in &processes {
            // One that has ended by itself is what we want.
            kill(pid_of(*process), signal).ok();
        }
        for process in processes {
            is_over_within(process, END_WITHIN).await;
        }
    }
    match processes_in(inode).first() {
        None => Ok(()),
        Some(process) => Err(InsideError::Outlives {
            pid: process.pid,
            netns: netns.to_owned(),
        }
        .into()),
    }
}

fn enter(lab: &LabName, place: Place) -> Result<(), LabError> {
    let netns = place.netns(lab);
    if !NetNs::exists(&netns) {
        return Err(LabError::NotUp { name: lab.clone() });
    }
    NetNs::open(&netns)?.enter()?;
    unshare(CloneFlags::CLONE_NEWUTS)
        .and_then(|()| sethostname(place.name()))
        .map_err(|errno| InsideError::HostName {
            name: place.name(),
            cause: errno.into(),
        })?;
    Ok(())
}

fn prompt(lab: &LabName, place: &str) -> String {
    format!("[{}:{place}] \\w \\$ ", lab.host_netns())
}

fn processes_in(netns_inode: u64) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_in(*pid, netns_inode))
        .filter_map(Process::now)
        .filter(Process::is_alive)
        .collect()
}

fn is_in(pid: u32, netns_inode: u64) -> bool {
    fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|metadata| metadata.ino() == netns_inode)
}

/// What can go wrong inside.
#[derive(Debug, thiserror::Error)]
pub enum InsideError {
    /// No host name.
    #[error("take the host name `{name}`")]
    HostName {
        /// The guest's name.
        name: &'static str,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The command could not be executed.
    #[error("execute `{program}`")]
    Command {
        /// As it was given.
        program: String,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// A process that cannot be killed.
    #[error("process {pid} in network namespace `{netns}` does not end")]
    Outlives {
        /// That process.
        pid: u32,
        /// Where it is.
        netns: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::for_test::Scratch;

    #[test]
    fn what_was_left_running_is_ended() {
        let Some(scratch) = Scratch::new() else {
            return;
        };
        let sleep = || Command::new("sleep").arg("1000").spawn().unwrap();
        let mut inside = scratch.0.run(sleep).unwrap();
        let mut outside = sleep();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime
            .block_on(end_processes(scratch.0.name().unwrap()))
            .unwrap();
        assert!(inside.try_wait().unwrap().is_some());
        assert!(
            outside.try_wait().unwrap().is_none(),
            "of another namespace"
        );
        outside.kill().unwrap();
        outside.wait().unwrap();
    }

    #[test]
    fn the_prompt_names_lab_and_guest() {
        let lab: LabName = "lab".parse().unwrap();
        assert_eq!(prompt(&lab, "web"), r"[imds-lab:web] \w \$ ");
        assert!(bashrc(&lab).contains("\nPS1='[imds-lab:'\"$IMDS_LAB_GUEST\"'] \\w \\$ '\n"));
    }
}
