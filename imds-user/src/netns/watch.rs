//! Follows the interfaces and routes of the calling thread's namespace, by netlink's notifications.
//!
//! A change says what to look at, never what is there: whoever follows asks the kernel then. So a notification that is
//! lost, or one of many, costs a look and is never a wrong picture.

use std::io;

use nix::errno::Errno;
use rtnetlink::MulticastGroup;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};

/// What may be different from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The interface of this number is gone. The number may come again with another.
    Gone(u32),
    /// An interface came or became another: its name, its bridge.
    Interfaces,
    /// A route came or went.
    Routes,
    /// Notifications were lost: anything.
    Anything,
}

/// What has to be followed.
const GROUPS: [MulticastGroup; 3] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// Room for notifications that nobody has read yet, or as much of it as the host grants (`net.core.rmem_max`). A storm
/// beyond it is a [`Change::Anything`].
const BUFFER_BYTES: usize = 4 << 20;

/// A subscription to changes.
pub struct Watch {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl Watch {
    /// Subscribes: what changes from now on will be told. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When there is no netlink.
    pub fn open() -> io::Result<Self> {
        Self::with_buffer(BUFFER_BYTES)
    }

    /// Subscribes with this much room for what nobody has read yet.
    ///
    /// # Errors
    /// When there is no netlink.
    pub fn with_buffer(bytes: usize) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let groups = GROUPS.map(|group| 1 << (group as u32 - 1));
        let groups = groups.into_iter().fold(0, |all, group| all | group);
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        socket.socket_ref().set_rx_buf_sz(bytes)?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(1 << 16),
        })
    }

    /// Waits for changes; cancelling the wait loses none.
    ///
    /// # Errors
    /// When the socket broke; it is of no use any more.
    pub async fn next(&mut self) -> io::Result<Vec<Change>> {
        let Self { socket, buffer } = self;
        buffer.clear();
        match std::future::poll_fn(|context| socket.poll_recv(context, buffer)).await {
            Ok(()) => Ok(changes(buffer)),
            Err(cause) if cause.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                Ok(vec![Change::Anything])
            }
            Err(cause) => Err(cause),
        }
    }
}

/// The changes that a datagram tells of. Its headers are enough: `struct nlmsghdr` (linux/netlink.h), for interfaces
/// followed by `struct ifinfomsg` (linux/rtnetlink.h).
fn changes(mut bytes: &[u8]) -> Vec<Change> {
    const HEADER_BYTES: usize = 16;
    const TYPE: usize = 4;
    const INTERFACE: usize = HEADER_BYTES + 4;
    let mut changes = Vec::new();
    while let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
        let length = u32_at(header, 0) as usize;
        let Some(message) = bytes.get(..length).filter(|_| length >= HEADER_BYTES) else {
            return vec![Change::Anything];
        };
        let change = match u16::from_ne_bytes([message[TYPE], message[TYPE + 1]]) {
            libc::RTM_NEWLINK => Change::Interfaces,
            libc::RTM_DELLINK if length >= INTERFACE + 4 && !is_of_bridge(message) => {
                Change::Gone(u32_at(message, INTERFACE))
            }
            libc::RTM_DELLINK => Change::Interfaces,
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => Change::Routes,
            _ => Change::Anything,
        };
        if !changes.contains(&change) {
            changes.push(change);
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    changes
}

/// Bridges tell so that an interface left them (`ifi_family` is AF_BRIDGE); it is still there.
fn is_of_bridge(message: &[u8]) -> bool {
    message.get(16).copied() == u8::try_from(libc::AF_BRIDGE).ok()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(value)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::for_test::Scratch;
    use super::super::link::{Links, Route, VethPair};
    use super::*;

    fn message(kind: u16, family: u8, index: u32) -> Vec<u8> {
        let mut bytes = vec![0; 32];
        bytes[..4].copy_from_slice(&32_u32.to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[16] = family;
        bytes[20..24].copy_from_slice(&index.to_ne_bytes());
        bytes
    }

    #[test]
    fn headers_tell_what_to_look_at() {
        let bridge = u8::try_from(libc::AF_BRIDGE).unwrap();
        let gone = message(libc::RTM_DELLINK, 0, 7);
        let torn = &gone[..20];
        for (bytes, expected) in [
            (gone.clone(), vec![Change::Gone(7)]),
            (
                message(libc::RTM_DELLINK, bridge, 7),
                vec![Change::Interfaces],
            ),
            (message(libc::RTM_NEWLINK, 0, 7), vec![Change::Interfaces]),
            (message(libc::RTM_NEWROUTE, 2, 0), vec![Change::Routes]),
            (message(libc::RTM_NEWADDR, 2, 0), vec![Change::Anything]),
            (
                [gone.clone(), message(libc::RTM_DELROUTE, 2, 0)].concat(),
                vec![Change::Gone(7), Change::Routes],
            ),
            (torn.to_vec(), vec![Change::Anything]),
            (Vec::new(), vec![]),
        ] {
            assert_eq!(changes(&bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn interfaces_and_routes_are_followed() {
        let Some(scratch) = Scratch::new() else {
            return;
        };
        let follow = || async {
            let mut watch = Watch::open().unwrap();
            let links = Links::open().unwrap();
            links.add_veth(&VethPair::new("a", "b")).await.unwrap();
            let index = links.index("a").await.unwrap();
            wait_for(&mut watch, Change::Interfaces).await;
            links.set_up("a").await.unwrap();
            links.set_up("b").await.unwrap();
            let route = Route::to_host("192.0.2.1".parse().unwrap()).dev("a");
            links.add_route(&route).await.unwrap();
            wait_for(&mut watch, Change::Routes).await;
            links.delete("b").await.unwrap();
            wait_for(&mut watch, Change::Gone(index)).await;
        };
        scratch.0.run_async(follow).unwrap();
    }

    async fn wait_for(watch: &mut Watch, change: Change) {
        let found = async { while !watch.next().await.unwrap().contains(&change) {} };
        tokio::time::timeout(Duration::from_secs(5), found)
            .await
            .unwrap_or_else(|_| panic!("no {change:?}"));
    }
}
