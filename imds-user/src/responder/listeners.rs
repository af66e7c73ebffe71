//! The listening sockets of the metadata service: made once for a namespace, then handed from process to process, so that
//! a connection waits in their queues while nobody accepts, and is refused only when the last holder is gone.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use nix::sys::{
    socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockopt, listen,
        setsockopt, socket, sockopt,
    },
    stat::fstat,
};

use super::namespace::NamespaceError;
use crate::{http::bounds::BACKLOG, netns::NetNs};

/// The port of the metadata service.
pub const HTTP_PORT: u16 = 80;

/// On every IPv4 address and on every IPv6 address.
const ADDRESSES: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), HTTP_PORT),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), HTTP_PORT),
];

/// Makes both in a namespace.
///
/// # Errors
/// When the kernel refuses: somebody else listens there, say.
pub fn open(netns: &NetNs) -> Result<[TcpListener; 2], NamespaceError> {
    let [v4, v6] = ADDRESSES;
    netns.run(|| Ok([listener(v4)?, listener(v6)?]))?
}

/// Clones of both, for another holder.
///
/// # Errors
/// When this process has no descriptor left.
pub fn clone(listeners: &[TcpListener; 2]) -> io::Result<[TcpListener; 2]> {
    let [v4, v6] = listeners;
    Ok([v4.try_clone()?, v6.try_clone()?])
}

/// The number of the namespace in which both listen, each where it should. None if they do anything else: whoever handed
/// them over may have been broken into.
#[must_use]
pub fn namespace_of(listeners: &[TcpListener; 2]) -> Option<u64> {
    let is_right = |(listener, address): (&TcpListener, SocketAddr)| {
        listener.local_addr().is_ok_and(|own| own == address)
            && getsockopt(listener, sockopt::AcceptConn).is_ok_and(|accepts| accepts)
    };
    if !listeners.iter().zip(ADDRESSES).all(is_right) {
        return None;
    }
    let [v4, v6] = listeners;
    let inode = inode_of_namespace(v4).ok()?;
    (inode_of_namespace(v6).ok()? == inode).then_some(inode)
}

/// A listening socket, non-blocking. What is set here is inherited by every connection.
fn listener(address: SocketAddr) -> Result<TcpListener, NamespaceError> {
    let open = || {
        let family = if address.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(family, SockType::Stream, flags, None)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        if address.is_ipv6() {
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
        }
        // An answer is one write; it must not wait for the acknowledgement of the one before.
        setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        // The kernel caps it at `somaxconn`, which is set to the same.
        listen(&socket, Backlog::new(BACKLOG)?)?;
        Ok(TcpListener::from(socket))
    };
    open().map_err(|cause| NamespaceError::Listen { address, cause })
}

#[expect(unsafe_code, reason = "no crate in use wraps this ioctl")]
fn inode_of_namespace(socket: &TcpListener) -> io::Result<u64> {
    // In every architecture's socket ioctls, include/uapi/linux/sockios.h; since Linux 4.10.
    const SIOCGSKNS: libc::Ioctl = 0x894c;
    // SAFETY: the call takes no argument beside the descriptor, which is open, and touches no memory of ours.
    let raw = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us, and nobody else knows the number.
    let namespace = unsafe { OwnedFd::from_raw_fd(raw) };
    Ok(fstat(&namespace)?.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::for_test::Scratch;

    #[test]
    fn listeners_are_known_by_their_namespace() {
        let (Some(one), Some(other)) = (Scratch::new(), Scratch::new()) else {
            return;
        };
        let in_one = open(&one.0).unwrap();
        let in_other = open(&other.0).unwrap();
        assert_eq!(namespace_of(&in_one), Some(one.0.inode()));
        assert_eq!(namespace_of(&in_other), Some(other.0.inode()));
        let ([v4, _], [_, v6]) = (in_one, in_other);
        assert_eq!(namespace_of(&[v4, v6]), None, "one of each");
    }

    #[test]
    fn what_does_not_listen_where_it_should_is_not_ours() {
        let Some(scratch) = Scratch::new() else {
            return;
        };
        let [v4, v6] = open(&scratch.0).unwrap();
        assert_eq!(namespace_of(&[v6, v4]), None, "families are mixed up");
        let elsewhere = scratch
            .0
            .run(|| {
                [
                    TcpListener::bind("0.0.0.0:81"),
                    TcpListener::bind("[::]:80"),
                ]
            })
            .unwrap()
            .map(Result::unwrap);
        assert_eq!(namespace_of(&elsewhere), None, "another port");
    }
}
