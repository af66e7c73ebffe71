//! What systemd does for us, where it started us: it keeps the listening sockets while no process of ours lives (its file
//! descriptor store), and wants a sign of life now and then. Without systemd, or a unit that asks for neither, whichever
//! process survives keeps the sockets.

use std::{
    future::pending,
    io,
    net::TcpListener,
    os::fd::{AsFd, FromRawFd, OwnedFd, RawFd},
};

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// The names that the sockets are kept by, IPv4 first.
const NAMES: [&str; 2] = ["http-ipv4", "http-ipv6"];

/// Hands clones of the listening sockets to the service manager. What it has already it does not keep twice.
pub fn keep_listeners([v4, v6]: &[TcpListener; 2]) {
    for (name, socket) in NAMES.into_iter().zip([v4, v6]) {
        let state = [NotifyState::FdStore, NotifyState::FdName(name)];
        note(sd_notify::notify_with_fds(&state, &[socket.as_fd()]));
    }
}

/// Takes them back, so that they close with the last process that has them.
pub fn forget_listeners() {
    for name in NAMES {
        note(sd_notify::notify(&[
            NotifyState::FdStoreRemove,
            NotifyState::FdName(name),
        ]));
    }
}

/// What the service manager kept, if it kept all. Once, at the start of the process: the descriptors are handed out.
///
/// # Errors
/// When what it says of them cannot be understood.
pub fn kept_listeners() -> io::Result<Option<[TcpListener; 2]>> {
    let mut kept: Vec<(String, OwnedFd)> = sd_notify::listen_fds_with_names()?
        .map(|(number, name)| (name, own(number)))
        .collect();
    let mut take = |name: &str| {
        let index = kept.iter().position(|(kept, _)| kept == name)?;
        Some(TcpListener::from(kept.swap_remove(index).1))
    };
    let [v4, v6] = NAMES.map(&mut take);
    Ok(v4.zip(v6).map(<[TcpListener; 2]>::from))
}

/// Says that this process does what it is for.
pub fn ready() {
    note(sd_notify::notify(&[NotifyState::Ready]));
}

/// The signs of life that the service manager asked for.
#[derive(Debug)]
pub struct Watchdog(Option<Interval>);

impl Watchdog {
    /// As the service manager asked when it started this process: it waits for a certain time, of which half is used.
    #[must_use]
    pub fn asked_for() -> Self {
        let every = sd_notify::watchdog_enabled().map(|within| within / 2);
        Self(every.filter(|every| !every.is_zero()).map(|every| {
            let mut interval = interval(every);
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        }))
    }

    /// Gives a sign when it is time for one; never, if none was asked for.
    pub async fn sign(&mut self) {
        match &mut self.0 {
            Some(interval) => interval.tick().await,
            None => pending().await,
        };
        note(sd_notify::notify(&[NotifyState::Watchdog]));
    }
}

#[expect(
    unsafe_code,
    reason = "the service manager hands over descriptors as numbers"
)]
fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: by LISTEN_PID it was opened for this process, and nothing else in it knows the number: sd_listen_fds(3).
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn note(told: io::Result<()>) {
    if let Err(error) = told {
        tracing::warn!("tell the service manager: {error}");
    }
}
