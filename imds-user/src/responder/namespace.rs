//! The responder's network namespace: tags are local addresses there, everything else is reached through one veth pair,
//! and whatever is sent into that pair meets `responder_ingress` on the host's side.
//!
//! No address, route or firewall rule of the host takes part. Every setting that is relied on is set explicitly: a new
//! namespace may inherit the host's.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};

use crate::{
    dataplane::{Port, tag_prefix_v6},
    netns::{
        NetNs, NetNsError,
        link::{LinkError, Links, Route, VethPair},
        sysctl::{self, SysctlError},
    },
};

/// The port of the metadata service.
pub const HTTP_PORT: u16 = 80;
/// The namespace's end of the veth pair.
const INNER: &str = "imds0";
/// Jumbo frames and a little more; guests with less say so in their SYN.
const MTU_BYTES: u32 = 9216;
/// The segment size that guests are offered: what fits 1280 bytes, the least that every IPv6 link carries. Requests are
/// short, and so no hop between a guest and its own guests needs to tell us about its MTU (ICMP for us is dropped).
const OFFERED_MSS_BYTES: u32 = 1220;
/// For the same reason answers over IPv6 are cut to fit 1280 bytes; over IPv4 routers may fragment them (no DF).
const IPV6_PATH_MTU_BYTES: u32 = 1280;
/// Connections that wait to be accepted; the kernel caps it at `somaxconn`, which is set to the same.
const BACKLOG: i32 = 4096;

/// Settings of the namespace, in this order.
const SYSCTLS: &[(&str, &str)] = &[
    // Guests use any source address, and answers leave by the only way there is.
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/imds0/rp_filter", "0"),
    // Tags are loopback addresses that come in over the veth.
    ("net/ipv4/conf/all/route_localnet", "1"),
    ("net/ipv4/conf/imds0/route_localnet", "1"),
    ("net/ipv4/conf/all/forwarding", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/all/log_martians", "0"),
    ("net/ipv4/ip_default_ttl", "64"),
    // ICMP never reaches us: no DF over IPv4, and probing where segments vanish all the same.
    ("net/ipv4/ip_no_pmtu_disc", "1"),
    ("net/ipv4/tcp_mtu_probing", "1"),
    // The one that every kernel has built in. Others pace what they send by timers, for paths longer than a cable.
    ("net/ipv4/tcp_congestion_control", "reno"),
    // A guest that sends SYNs and no more: cookies once the queue is full, and few repeats.
    ("net/ipv4/tcp_syncookies", "1"),
    ("net/ipv4/tcp_synack_retries", "3"),
    ("net/ipv4/tcp_max_syn_backlog", "4096"),
    ("net/core/somaxconn", "4096"),
    // What a vanished guest leaves behind is given up soon.
    ("net/ipv4/tcp_fin_timeout", "15"),
    ("net/ipv4/tcp_orphan_retries", "2"),
    ("net/ipv4/tcp_retries2", "8"),
    // No duplicate address detection, router solicitations or addresses of its own.
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/imds0/disable_ipv6", "0"),
    ("net/ipv6/conf/lo/disable_ipv6", "0"),
    ("net/ipv6/conf/all/forwarding", "0"),
    ("net/ipv6/conf/imds0/accept_dad", "0"),
    ("net/ipv6/conf/imds0/accept_ra", "0"),
    ("net/ipv6/conf/imds0/autoconf", "0"),
    ("net/ipv6/conf/imds0/router_solicitations", "0"),
    ("net/ipv6/conf/imds0/addr_gen_mode", "1"),
];

/// Why the namespace could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The namespace itself.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// An interface, address or route.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A setting.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// A listening socket.
    #[error("listen on {address} in the responder's namespace: {cause}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// The namespace, ready, with its sockets.
#[derive(Debug)]
pub struct ResponderNamespace {
    /// The namespace.
    pub netns: NetNs,
    /// The host's end of the veth pair.
    pub host_end: Port,
    /// Listening on every IPv4 and every IPv6 address of the namespace. Held by the daemon too, so that connections wait
    /// in their queues while a responder is replaced.
    pub listeners: [TcpListener; 2],
}

impl ResponderNamespace {
    /// Makes the namespace; what an earlier daemon of the same name left is removed first. `name` is the namespace's and
    /// the host end's, so it must be an interface name.
    ///
    /// # Errors
    /// When the kernel refuses a part; what was made is removed again.
    pub async fn create(name: &str) -> Result<Self, NamespaceError> {
        Self::remove(name).await?;
        let made = Self::build(name).await;
        if made.is_err() {
            // The first error is the one to report.
            drop(Self::remove(name).await);
        }
        made
    }

    async fn build(name: &str) -> Result<Self, NamespaceError> {
        let netns = NetNs::create(name)?;
        let host = Links::open()?;
        host.add_veth(&VethPair {
            peer_netns: Some(&netns),
            mtu: Some(MTU_BYTES),
            ..VethPair::new(name, INNER)
        })
        .await?;
        // The host's stack has nothing to say to the responder.
        sysctl::set(
            &NetNs::current()?,
            &format!("net/ipv6/conf/{name}/disable_ipv6"),
            "1",
        )?;
        host.set_up(name).await?;
        let ifindex = host.index(name).await?;

        for (key, value) in SYSCTLS {
            sysctl::set(&netns, key, value)?;
        }
        let inside = Links::open_in(&netns)?;
        inside.set_up("lo").await?;
        inside.set_noarp(INNER).await?;
        inside.set_up(INNER).await?;
        for route in routes() {
            inside.add_route(&route).await?;
        }
        let listeners = netns.run(listeners)??;
        let host_end = Port {
            name: name.to_owned(),
            ifindex,
            has_peer_elsewhere: true,
        };
        Ok(Self {
            netns,
            host_end,
            listeners,
        })
    }

    /// Removes the namespace and the veth pair of this name, if they are there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove(name: &str) -> Result<(), NamespaceError> {
        let host = Links::open()?;
        if host.get(name).await?.is_some() {
            host.delete(name).await?;
        }
        match NetNs::delete(name) {
            Ok(()) | Err(NetNsError::Missing { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn routes() -> [Route; 4] {
    let (prefix, prefix_bits) = tag_prefix_v6();
    [
        Route::local(prefix.into(), prefix_bits),
        Route::default_v4().dev(INNER).advmss(OFFERED_MSS_BYTES),
        Route::default_v6()
            .dev(INNER)
            .mtu_locked(IPV6_PATH_MTU_BYTES)
            .advmss(OFFERED_MSS_BYTES),
        // Guests may call from link-local addresses.
        Route::to(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 64)
            .dev(INNER)
            .mtu_locked(IPV6_PATH_MTU_BYTES)
            .advmss(OFFERED_MSS_BYTES),
    ]
}

fn listeners() -> Result<[TcpListener; 2], NamespaceError> {
    let on = |address: SocketAddr| {
        listener(address).map_err(|cause| NamespaceError::Listen { address, cause })
    };
    Ok([
        on((Ipv4Addr::UNSPECIFIED, HTTP_PORT).into())?,
        on((Ipv6Addr::UNSPECIFIED, HTTP_PORT).into())?,
    ])
}

/// A listening socket, non-blocking. What is set here is inherited by every connection.
fn listener(address: SocketAddr) -> io::Result<TcpListener> {
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
    bind(
        std::os::fd::AsRawFd::as_raw_fd(&socket),
        &SockaddrStorage::from(address),
    )?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from(socket))
}
