//! A guest's network: a veth pair, the host's end of which is its port, an address, a way out.
//!
//! The port is routed: the host has a route to the guest's address by it, and the gateway's address on it. No guest
//! shares a wire with another, so none can take another's address.

use std::net::IpAddr;

use super::plan::{GUEST_INTERFACE, Names, PORT_PREFIX, Spec};
use crate::netns::link::{LinkError, Links, Route, VethPair};
use crate::netns::uplink::Way;
use crate::netns::{NetNs, NetNsError};

/// A cable that could not be laid.
#[derive(Debug, thiserror::Error)]
pub enum CableError {
    /// An interface, address or route.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The guest's namespace.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// The guest's address is where the host goes another way.
    #[error(
        "{address} is in {network}/{prefix_bits}, which this host reaches by an interface of its own: give the instance a subnet that nobody else has"
    )]
    Elsewhere {
        /// The guest's or its gateway's address.
        address: IpAddr,
        /// Where the host finds it.
        network: IpAddr,
        /// Its prefix.
        prefix_bits: u8,
    },
}

/// Lays the cable. The port is down: nothing passes.
///
/// # Errors
/// When the kernel refuses, or the host has another use for the addresses.
pub async fn lay(names: &Names, spec: &Spec) -> Result<(), CableError> {
    let host = Links::open()?;
    let links = host.list().await?;
    let is_guests = |ifindex: u32| {
        let mut links = links.iter();
        links.any(|link| link.index == ifindex && link.name.starts_with(PORT_PREFIX))
    };
    for way in host.ways().await? {
        if !is_guests(way.ifindex) {
            check(&way, spec)?;
        }
    }
    let inside = NetNs::open(&names.netns)?;
    let pair = VethPair {
        peer_mac: Some(spec.mac.0),
        peer_netns: Some(&inside),
        ..VethPair::new(&names.port, GUEST_INTERFACE)
    };
    host.add_veth(&pair).await?;
    let guest = Links::open_in(&inside)?;
    guest.set_up("lo").await?;
    guest.set_up(GUEST_INTERFACE).await?;
    let gateway = spec.gateway().into();
    guest
        .add_address(GUEST_INTERFACE, spec.ipv4.into(), 32)
        .await?;
    let way_out = Route::default_v4()
        .via(gateway)
        .dev(GUEST_INTERFACE)
        .onlink();
    Ok(guest.add_route(&way_out).await?)
}

/// Lets packets pass.
///
/// # Errors
/// When the kernel refuses.
pub async fn open(names: &Names, spec: &Spec) -> Result<(), CableError> {
    let host = Links::open()?;
    host.set_up(&names.port).await?;
    host.add_address(&names.port, spec.gateway().into(), 32)
        .await?;
    let route = Route::to_host(spec.ipv4.into()).dev(&names.port);
    Ok(host.add_route(&route).await?)
}

/// Takes the cable away, and the guest's namespace's name.
///
/// # Errors
/// When the kernel refuses.
pub async fn remove(names: &Names) -> Result<(), CableError> {
    let host = Links::open()?;
    if host.get(&names.port).await?.is_some() {
        match host.delete(&names.port).await {
            // It went with the guest's namespace in between.
            Err(_) if host.get(&names.port).await?.is_none() => {}
            deleted => deleted?,
        }
    }
    match NetNs::delete(&names.netns) {
        Ok(()) | Err(NetNsError::Missing { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether a route of the host's is in the way: a default route is none.
fn check(way: &Way, spec: &Spec) -> Result<(), CableError> {
    let addresses = [spec.ipv4, spec.gateway()].map(IpAddr::from);
    let covered = addresses.into_iter().find(|address| way.covers(*address));
    match covered {
        Some(address) if way.prefix_bits > 0 => Err(CableError::Elsewhere {
            address,
            network: way.destination,
            prefix_bits: way.prefix_bits,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::MacAddress;
    use crate::launch::plan::{Bounds, Image};

    #[test]
    fn a_subnet_that_the_host_is_in_itself_is_refused() {
        let spec = Spec {
            id: "i-0123456789abcdef0".parse().unwrap(),
            image: Image::Host,
            hostname: "web".into(),
            ipv4: [172, 31, 17, 9].into(),
            subnet: "172.31.16.0/20".parse().unwrap(),
            mac: MacAddress([6, 0, 0, 0, 0, 1]),
            bounds: Bounds::default(),
        };
        for (destination, prefix_bits, is_free) in [
            ("0.0.0.0", 0, true),
            ("::", 0, true),
            ("10.0.0.0", 8, true),
            ("172.31.32.0", 20, true),
            ("172.31.17.8", 32, true),
            ("172.31.16.0", 20, false),
            ("172.16.0.0", 12, false),
            ("172.31.16.1", 32, false),
            ("172.31.17.9", 32, false),
        ] {
            let way = Way {
                destination: destination.parse().unwrap(),
                prefix_bits,
                table: 254,
                ifindex: 2,
            };
            assert_eq!(
                check(&way, &spec).is_ok(),
                is_free,
                "{destination}/{prefix_bits}"
            );
        }
    }
}
