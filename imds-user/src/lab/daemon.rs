//! The lab's daemon: started in the lab's host, awaited until it is ready, stopped again.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixDatagram;
use tokio::time::{Instant, sleep, timeout_at};

use super::LabName;
use super::record::{Process, Record, RecordError};
use crate::netns::{NetNs, NetNsError};

/// How long a daemon may take until it serves three ports, on a slow machine with a debug build.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// How long a daemon may take to stop before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// How long the kernel may take to end a killed process.
const KILL_WITHIN: Duration = Duration::from_secs(5);

/// How often a process is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How much of the log an error shows.
const LOG_LINES_SHOWN: usize = 8;

/// Starts `program run` in the lab's host, in a session of its own, and waits until it says that it is ready
/// (sd_notify(3), `READY=1`). Must be called within a tokio runtime.
///
/// # Errors
/// When it cannot be started, ends, or is not ready in time; the error shows the end of its log.
pub async fn start(name: &LabName, program: &Path) -> Result<(), DaemonError> {
    let state_dir = name.state_dir();
    let socket_path = state_dir.join("notify.sock");
    let socket = UnixDatagram::bind(&socket_path).map_err(|cause| DaemonError::Notify { cause })?;
    let host = NetNs::open(&name.host_netns())?;
    let mut child = host.run(|| spawn(name, program, &socket_path))??;
    // At once, so that a daemon whose starter is killed can be found.
    let mut record = Record {
        daemon: Process::now(child.id()),
        is_ready: false,
    };
    record.write(&state_dir)?;
    let outcome = await_ready(&socket, &mut child).await;
    fs::remove_file(&socket_path).ok();
    outcome.map_err(|fault| fault.with_log(name.log_path()))?;
    record.is_ready = true;
    Ok(record.write(&state_dir)?)
}

/// Stops a daemon: it is asked, and killed if it does not.
///
/// # Errors
/// When it outlives that.
pub async fn stop(record: &Record) -> Result<(), DaemonError> {
    let Some(process) = record.daemon.filter(Process::is_alive) else {
        return Ok(());
    };
    for (signal, patience) in [
        (Signal::SIGTERM, STOP_WITHIN),
        (Signal::SIGKILL, KILL_WITHIN),
    ] {
        match kill(pid_of(process), signal) {
            Ok(()) => {}
            Err(Errno::ESRCH) => return Ok(()),
            Err(errno) => {
                return Err(DaemonError::Stop {
                    pid: process.pid,
                    cause: errno.into(),
                });
            }
        }
        if is_over_within(process, patience).await {
            return Ok(());
        }
    }
    Err(DaemonError::Stop {
        pid: process.pid,
        cause: io::ErrorKind::TimedOut.into(),
    })
}

/// Waits for a process's end; whether it came in time.
pub(super) async fn is_over_within(process: Process, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while process.is_alive() {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(LOOK_EVERY).await;
    }
    true
}

pub(super) fn pid_of(process: Process) -> Pid {
    Pid::from_raw(process.pid.cast_signed())
}

fn spawn(name: &LabName, program: &Path, notify_socket: &Path) -> Result<Child, DaemonError> {
    let open_log = || {
        let log = File::options()
            .create(true)
            .append(true)
            .open(name.log_path())?;
        Ok((log.try_clone()?, log))
    };
    let (out, err) = open_log().map_err(|cause| DaemonError::Log {
        path: name.log_path(),
        cause,
    })?;
    let mut command = Command::new(program);
    command
        .arg("run")
        .arg("--config")
        .arg(name.config_path())
        .arg("--state-dir")
        .arg(name.state_dir())
        .env("NOTIFY_SOCKET", notify_socket)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err);
    detach(&mut command);
    command.spawn().map_err(|cause| DaemonError::Spawn {
        program: program.to_owned(),
        cause,
    })
}

/// A session of its own: the terminal's end and its interrupt key are not the daemon's business.
#[expect(
    unsafe_code,
    reason = "std offers no safe way to start a process in a new session"
)]
fn detach(command: &mut Command) {
    let new_session = || nix::unistd::setsid().map(drop).map_err(io::Error::from);
    // SAFETY: between fork and exec only async-signal-safe functions may be called; setsid(2) is one
    // (signal-safety(7)), and the closure neither allocates nor touches what other threads may hold.
    unsafe { command.pre_exec(new_session) };
}

async fn await_ready(socket: &UnixDatagram, child: &mut Child) -> Result<(), Fault> {
    let deadline = Instant::now() + READY_WITHIN;
    let mut message = [0_u8; 4096];
    loop {
        if let Some(status) = child.try_wait().map_err(Fault::Wait)? {
            return Err(Fault::Ended(status));
        }
        if Instant::now() >= deadline {
            return Err(Fault::TooSlow);
        }
        match timeout_at(Instant::now() + LOOK_EVERY, socket.recv(&mut message)).await {
            Ok(Ok(length)) if is_ready(&message[..length]) => return Ok(()),
            Ok(Ok(_)) | Err(_) => {}
            Ok(Err(cause)) => return Err(Fault::Wait(cause)),
        }
    }
}

/// A message is lines of `KEY=VALUE`, sd_notify(3).
fn is_ready(message: &[u8]) -> bool {
    message
        .split(|byte| *byte == b'\n')
        .any(|line| line == b"READY=1")
}

/// Why a daemon did not become ready.
#[derive(Debug)]
enum Fault {
    Ended(ExitStatus),
    TooSlow,
    Wait(io::Error),
}

impl Fault {
    fn with_log(self, path: PathBuf) -> DaemonError {
        let log = fs::read_to_string(&path).unwrap_or_default();
        let log = tail(&log);
        match self {
            Self::Ended(status) => DaemonError::Ended { status, log },
            Self::TooSlow => DaemonError::TooSlow { log },
            Self::Wait(cause) => DaemonError::Notify { cause },
        }
    }
}

/// The end of a log, for an error of one line.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
    if shown.is_empty() {
        "nothing".to_owned()
    } else {
        shown.join(" | ")
    }
}

/// What can go wrong with the daemon.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// No socket for its readiness, or it broke.
    #[error("listen for the daemon's readiness")]
    Notify {
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// No log.
    #[error("open the daemon's log {}", path.display())]
    Log {
        /// Where it would be.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The program could not be executed.
    #[error("start {}", program.display())]
    Spawn {
        /// That program.
        program: PathBuf,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// It ended before it was ready.
    #[error("the daemon ended before it was ready ({status}); it said: {log}")]
    Ended {
        /// How.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// It was not ready in time.
    #[error("the daemon is not ready after {} s; it said: {log}", READY_WITHIN.as_secs())]
    TooSlow {
        /// The end of its log.
        log: String,
    },
    /// It does not end.
    #[error("stop the daemon, process {pid}")]
    Stop {
        /// That process.
        pid: u32,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The lab's host.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// The lab's notes.
    #[error(transparent)]
    Record(#[from] RecordError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_is_one_line_among_others() {
        for (message, expected) in [
            ("READY=1", true),
            ("STATUS=serving 3 ports\nREADY=1\n", true),
            ("READY=10", false),
            ("NOTREADY=1", false),
            ("", false),
        ] {
            assert_eq!(is_ready(message.as_bytes()), expected, "{message:?}");
        }
    }

    #[test]
    fn an_error_shows_the_end_of_the_log() {
        let long: String = (1..=20).map(|line| format!("line {line}\n")).collect();
        assert!(tail(&long).starts_with("line 13 | ") && tail(&long).ends_with(" | line 20"));
        assert_eq!(tail("one\n\n  two\n"), "one | two");
        assert_eq!(tail(""), "nothing");
    }
}
