//! The responder's network namespace: tags are local addresses there, everything else is reached through one veth pair,
//! and whatever is sent into that pair meets `responder_ingress` on the host's side.
//!
//! No address, route or firewall rule of the host takes part. Every setting that is relied on is set explicitly: a new
//! namespace may inherit the host's.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use super::listeners;
use crate::{
    dataplane::{Port, tag_prefix_v6},
    netns::{
        NetNs, NetNsError,
        link::{Link, LinkError, Links, Route, VethPair},
        sysctl::{self, SysctlError},
    },
};

/// The namespace's end of the veth pair.
const INNER: &str = "imds0";
/// Jumbo frames and a little more; guests with less say so in their SYN.
const MTU_BYTES: u32 = 9216;
/// The segment size that guests are offered: what fits 1280 bytes, the least that every IPv6 link carries. Requests are
/// short, and so no hop between a guest and its own guests needs to tell us about its MTU (ICMP for us is dropped).
const OFFERED_MSS_BYTES: u32 = 1220;
/// For the same reason answers over IPv6 are cut to fit 1280 bytes; over IPv4 routers may fragment them (no DF).
const IPV6_PATH_MTU_BYTES: u32 = 1280;
/// How long the sockets of an earlier responder may be in the way.
const LISTEN_WITHIN: Duration = Duration::from_secs(5);

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
    // What one connection can have the kernel hold, and how many that are over: `http::bounds` counts on it. The most of an
    // answer fits, and a request always.
    ("net/ipv4/tcp_wmem", "4096 16384 32768"),
    ("net/ipv4/tcp_rmem", "4096 32768 32768"),
    ("net/ipv4/tcp_max_tw_buckets", "16384"),
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

/// The namespace, ready.
#[derive(Debug)]
pub struct ResponderNamespace {
    /// The namespace.
    pub netns: NetNs,
    /// The host's end of the veth pair.
    pub host_end: Port,
}

impl ResponderNamespace {
    /// Makes the namespace, or mends what an earlier daemon of the same name has left of it: whatever is right stays, with
    /// the sockets in it. `name` is the namespace's and the host end's, so it must be an interface name.
    ///
    /// # Errors
    /// When the kernel refuses a part.
    pub async fn ensure(name: &str) -> Result<Self, NamespaceError> {
        let netns = ensure_netns(name)?;
        let host = Links::open()?;
        let inside = Links::open_in(&netns)?;
        ensure_cable(name, &netns, &host, &inside).await?;
        // The host's stack has nothing to say to the responder.
        sysctl::set(
            &NetNs::current()?,
            &format!("net/ipv6/conf/{name}/disable_ipv6"),
            "1",
        )?;
        host.set_up(name).await?;
        for (key, value) in SYSCTLS {
            sysctl::set(&netns, key, value)?;
        }
        inside.set_up("lo").await?;
        inside.set_noarp(INNER).await?;
        inside.set_up(INNER).await?;
        for route in routes() {
            match inside.add_route(&route).await {
                Err(LinkError::Route { cause, .. })
                    if cause.kind() == io::ErrorKind::AlreadyExists => {}
                added => added?,
            }
        }
        let host_end = Port {
            name: name.to_owned(),
            ifindex: host.index(name).await?,
            has_peer_elsewhere: true,
        };
        Ok(Self { netns, host_end })
    }

    /// New listening sockets in it, for when nobody has those of an earlier daemon any more.
    ///
    /// The caller has no responder yet. Whoever still has the port is one that is about to end.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn listen(&self) -> Result<[TcpListener; 2], NamespaceError> {
        let started = Instant::now();
        loop {
            match listeners::open(&self.netns) {
                Err(NamespaceError::Listen { cause, .. })
                    if cause.kind() == io::ErrorKind::AddrInUse
                        && started.elapsed() < LISTEN_WITHIN =>
                {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Removes the namespace and the veth pair of this name, if they are there. What is in it goes with it: sockets lose
    /// their guests at once, and whatever still redirects there drops.
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

fn ensure_netns(name: &str) -> Result<NetNs, NetNsError> {
    if NetNs::exists(name) {
        return NetNs::open(name);
    }
    // A file alone, by somebody who was interrupted while making it, would be in the way.
    match NetNs::delete(name) {
        Ok(()) | Err(NetNsError::Missing { .. }) => NetNs::create(name),
        Err(error) => Err(error),
    }
}

/// Makes sure of the veth pair between here and the namespace. An end without the other is of no use.
async fn ensure_cable(
    name: &str,
    netns: &NetNs,
    host: &Links,
    inside: &Links,
) -> Result<(), LinkError> {
    let (outer, inner) = (host.get(name).await?, inside.get(INNER).await?);
    if let (Some(outer), Some(inner)) = (&outer, &inner)
        && are_ends_of_one(outer, inner)
    {
        return Ok(());
    }
    if outer.is_some() {
        host.delete(name).await?;
    }
    if inside.get(INNER).await?.is_some() {
        inside.delete(INNER).await?;
    }
    host.add_veth(&VethPair {
        peer_netns: Some(netns),
        mtu: Some(MTU_BYTES),
        ..VethPair::new(name, INNER)
    })
    .await
}

fn are_ends_of_one(outer: &Link, inner: &Link) -> bool {
    let leads_to = |from: &Link, to: &Link| {
        from.kind == "veth" && from.peer_netnsid.is_some() && from.lower == Some(to.index)
    };
    leads_to(outer, inner) && leads_to(inner, outer)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::for_test::Scratch;

    /// A namespace of the name of its host's, with `-r`, removed on drop.
    struct Made(String);

    impl Drop for Made {
        fn drop(&mut self) {
            drop(NetNs::delete(&self.0));
        }
    }

    fn with_host(test: impl AsyncFn(&str) + Send + Sync) {
        let Some(host) = Scratch::new() else { return };
        // An interface has this name too, so it must be short.
        let name = format!("ir{}", host.0.inode());
        let made = Made(name);
        host.0.run_async(|| test(&made.0)).unwrap();
    }

    #[test]
    fn what_is_right_stays_and_what_is_missing_is_made() {
        with_host(async |name| {
            let first = ResponderNamespace::ensure(name).await.unwrap();
            let second = ResponderNamespace::ensure(name).await.unwrap();
            assert_eq!(second.netns.inode(), first.netns.inode());
            assert_eq!(second.host_end, first.host_end);

            let host = Links::open().unwrap();
            host.delete(name).await.unwrap();
            let mended = ResponderNamespace::ensure(name).await.unwrap();
            assert_eq!(mended.netns.inode(), first.netns.inode(), "sockets live on");
            assert_ne!(mended.host_end.ifindex, first.host_end.ifindex);
            assert!(host.get(name).await.unwrap().unwrap().carrier);

            let inside = Links::open_in(&mended.netns).unwrap();
            host.set_down(name).await.unwrap();
            inside.set_down("lo").await.unwrap();
            sysctl::set(&mended.netns, "net/ipv4/conf/all/route_localnet", "0").unwrap();
            let again = ResponderNamespace::ensure(name).await.unwrap();
            assert_eq!(again.host_end, mended.host_end);
            assert!(host.get(name).await.unwrap().unwrap().carrier);
            again.listen().await.unwrap();

            ResponderNamespace::remove(name).await.unwrap();
            assert_eq!(host.get(name).await.unwrap(), None);
            assert!(!NetNs::exists(name));
            ResponderNamespace::remove(name).await.unwrap();
        });
    }

    #[test]
    fn a_cable_to_elsewhere_is_replaced() {
        with_host(async |name| {
            let host = Links::open().unwrap();
            host.add_veth(&VethPair::new(name, "other")).await.unwrap();
            let made = ResponderNamespace::ensure(name).await.unwrap();
            let outer = host.get(name).await.unwrap().unwrap();
            assert!(outer.peer_netnsid.is_some() && outer.carrier);
            assert_eq!(outer.index, made.host_end.ifindex);
            assert_eq!(host.get("other").await.unwrap(), None);
        });
    }
}
