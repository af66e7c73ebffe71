//! Responders that no door leads to: the state directory was emptied by hand, or a daemon was killed in the moment before
//! the one that it started could be reached. They are found by where they live.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use crate::netns::NetNs;

/// How long the kernel may take to end a killed process.
const KILL_WITHIN: Duration = Duration::from_secs(5);
/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Ends every responder in the namespace. The caller holds the lock of the daemon whose namespace it is, so any in there is
/// nobody's. To see them takes the right to trace, which a daemon does not keep.
///
/// # Errors
/// When one outlives SIGKILL.
pub async fn end_all(netns: &NetNs) -> io::Result<()> {
    for responder in responders_in(netns) {
        match kill(responder, Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    if are_gone_within(netns, KILL_WITHIN).await {
        return Ok(());
    }
    Err(io::Error::other(
        "a responder of an earlier daemon does not end",
    ))
}

async fn are_gone_within(netns: &NetNs, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while !responders_in(netns).is_empty() {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(LOOK_EVERY).await;
    }
    true
}

fn responders_in(netns: &NetNs) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_in(*pid, netns) && is_responder(*pid))
        .map(Pid::from_raw)
        .collect()
}

fn is_in(pid: i32, netns: &NetNs) -> bool {
    fs::metadata(format!("/proc/{pid}/ns/net"))
        .is_ok_and(|metadata| metadata.ino() == netns.inode())
}

/// Whether it was started as one; somebody who looks around in the namespace was not.
fn is_responder(pid: i32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).nth(1) == Some(b"respond")
}
