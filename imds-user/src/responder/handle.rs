//! A responder's process, held so that its number can never mean another process: a child of this daemon, or one that an
//! earlier daemon started.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::ExitStatusExt},
    },
    path::Path,
    process::{Child, ExitStatus},
};

use nix::sys::{
    socket::{getsockopt, sockopt},
    wait::{Id, WaitPidFlag, WaitStatus, waitid},
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::{Interest, unix::AsyncFd};

/// The process. Dropping the handle does nothing to it.
#[derive(Debug)]
pub struct Handle {
    pid: u32,
    process: AsyncFd<OwnedFd>,
}

impl Handle {
    /// Of a child that was not waited for, so that its number is still its own.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn of_child(child: &Child) -> io::Result<Self> {
        Self::of(child.id())
    }

    /// Of the process that listens on a socket, in the kernel's words; none when nobody does.
    ///
    /// # Errors
    /// When the socket cannot be connected to for another reason.
    pub fn of_listener(socket: &Path) -> io::Result<Option<Self>> {
        loop {
            let Some(pid) = listener_of(socket)? else {
                return Ok(None);
            };
            let handle = match Self::of(pid) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
                handle => handle?,
            };
            // It still listens, so the number was not another's when the handle was made.
            if listener_of(socket)? == Some(pid) {
                return Ok(Some(handle));
            }
        }
    }

    fn of(pid: u32) -> io::Result<Self> {
        let number = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(io::ErrorKind::InvalidData)?;
        let process = watch(pidfd_open(number, PidfdFlags::empty())?)?;
        Ok(Self { pid, process })
    }

    /// Its number, for people.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends it at once, if it has not ended already.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.process.get_ref(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for its end; how it ended is known of a child only.
    pub async fn ended(&self) -> Option<ExitStatus> {
        // An error would mean that there is no event loop, and then nobody waits.
        self.process.readable().await.ok()?.retain_ready();
        let status = waitid(
            Id::PIDFd(self.process.get_ref().as_fd()),
            WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG,
        );
        match status {
            Ok(WaitStatus::Exited(_, code)) => Some(ExitStatus::from_raw(code << 8)),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(ExitStatus::from_raw(signal as i32)),
            // Somebody else's child.
            Ok(_) | Err(_) => None,
        }
    }
}

/// A process's descriptor is readable once the process has ended, pidfd_open(2).
#[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
fn watch(process: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor for as long as it lives, and the AsyncFd owns it.
    let watched = unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) };
    Ok(watched?)
}

/// Who listens on a Unix socket. The kernel notes whoever called listen(2), unix(7), SO_PEERCRED.
fn listener_of(socket: &Path) -> io::Result<Option<u32>> {
    let stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let peer = getsockopt(&stream, sockopt::PeerCredentials)?;
    Ok(u32::try_from(peer.pid()).ok().filter(|pid| *pid > 0))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, process::Command};

    use super::*;

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test);
    }

    #[test]
    #[expect(clippy::zombie_processes, reason = "the handle waits for it")]
    fn the_end_of_a_child_is_seen_and_told() {
        run(async {
            let child = Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
            let status = Handle::of_child(&child).unwrap().ended().await;
            assert_eq!(status.and_then(|status| status.code()), Some(3));
            let child = Command::new("sleep").arg("600").spawn().unwrap();
            let handle = Handle::of_child(&child).unwrap();
            handle.kill().unwrap();
            let status = handle.ended().await;
            assert_eq!(status.and_then(|status| status.signal()), Some(9));
            handle.kill().unwrap();
        });
    }

    #[test]
    fn a_listener_is_known_by_its_process_and_a_socket_without_one_is_nobodys() {
        run(async {
            let socket = std::env::temp_dir().join(format!("imds-handle-{}", std::process::id()));
            let listener = UnixListener::bind(&socket).unwrap();
            let handle = Handle::of_listener(&socket).unwrap().unwrap();
            assert_eq!(handle.pid(), std::process::id());
            drop(listener);
            assert!(Handle::of_listener(&socket).unwrap().is_none());
            std::fs::remove_file(&socket).unwrap();
            assert!(Handle::of_listener(&socket).unwrap().is_none());
        });
    }
}
