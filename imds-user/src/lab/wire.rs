//! Builds a lab's network: the namespaces, their interfaces, addresses and routes.
//!
//! The host has no way out, so nothing that is sent inside a lab ever leaves the machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::plan::{
    Attachment, BRIDGE, BRIDGE_MAC, GUEST_INTERFACE, Guest, IPV4_PREFIX_BITS, IPV6_PREFIX_BITS,
};
use super::{LabError, LabName};
use crate::netns::link::{Links, Route, VethPair};
use crate::netns::{NetNs, sysctl};

/// EC2's metadata addresses.
const METADATA_IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const METADATA_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Makes the host and its guests. Must be called within a tokio runtime.
///
/// # Errors
/// When something cannot be made; what was made by then stays.
pub async fn build(name: &LabName) -> Result<(), LabError> {
    let host = NetNs::create(&name.host_netns())?;
    // The same prefix lies behind two ports here, which a strict check of sources would take for spoofing.
    for key in [
        "net/ipv4/conf/all/rp_filter",
        "net/ipv4/conf/default/rp_filter",
    ] {
        sysctl::set(&host, key, "0")?;
    }
    prepare_ipv6(&host)?;
    let links = Links::open_in(&host)?;
    links.set_up("lo").await?;
    links.add_bridge(BRIDGE, Some(BRIDGE_MAC)).await?;
    links.set_up(BRIDGE).await?;
    for guest in Guest::ALL {
        build_guest(name, guest, &links).await?;
    }
    Ok(())
}

async fn build_guest(name: &LabName, guest: Guest, host: &Links) -> Result<(), LabError> {
    let namespace = NetNs::create(&name.guest_netns(guest))?;
    prepare_ipv6(&namespace)?;
    let port = guest.port();
    let pair = VethPair {
        peer_mac: Some(guest.mac()),
        peer_netns: Some(&namespace),
        ..VethPair::new(port, GUEST_INTERFACE)
    };
    host.add_veth(&pair).await?;
    host.set_up(port).await?;
    let gateway = match guest.attachment() {
        Attachment::Routed => port,
        Attachment::Bridged => {
            host.enslave(port, BRIDGE).await?;
            BRIDGE
        }
    };
    add_addresses(host, gateway, guest.gateway_ipv4(), guest.gateway_ipv6()).await?;
    address_guest(guest, &Links::open_in(&namespace)?).await
}

async fn address_guest(guest: Guest, inside: &Links) -> Result<(), LabError> {
    inside.set_up("lo").await?;
    inside.set_up(GUEST_INTERFACE).await?;
    add_addresses(inside, GUEST_INTERFACE, guest.ipv4(), guest.ipv6()).await?;
    for route in routes(guest).into_iter().filter(is_possible) {
        inside.add_route(&route).await?;
    }
    Ok(())
}

async fn add_addresses(
    links: &Links,
    interface: &str,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
) -> Result<(), LabError> {
    links
        .add_address(interface, ipv4.into(), IPV4_PREFIX_BITS)
        .await?;
    if has_ipv6() {
        links
            .add_address(interface, ipv6.into(), IPV6_PREFIX_BITS)
            .await?;
    }
    Ok(())
}

fn routes(guest: Guest) -> Vec<Route> {
    let mut routes = vec![
        Route::default_v4().via(guest.gateway_ipv4().into()),
        Route::default_v6().via(guest.gateway_ipv6().into()),
    ];
    if guest.has_metadata_on_link() {
        let on_link = |address: IpAddr| Route::to_host(address).dev(GUEST_INTERFACE);
        routes.extend([on_link(METADATA_IPV4.into()), on_link(METADATA_IPV6.into())]);
    }
    routes
}

fn is_possible(route: &Route) -> bool {
    has_ipv6() || route.is_ipv4()
}

/// A kernel started with `ipv6.disable=1` has none; a lab is of use by IPv4 alone.
fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// A new namespace may inherit the machine's settings (`net.core.devconf_inherit_init_net`).
fn prepare_ipv6(namespace: &NetNs) -> Result<(), LabError> {
    if !has_ipv6() {
        return Ok(());
    }
    for (key, value) in [
        ("disable_ipv6", "0"),
        ("accept_ra", "0"),
        ("accept_dad", "0"),
    ] {
        for scope in ["all", "default"] {
            sysctl::set(namespace, &format!("net/ipv6/conf/{scope}/{key}"), value)?;
        }
    }
    Ok(())
}
