//! Which interfaces of a namespace are uplinks: those by which the host would send what is for the metadata addresses,
//! which is by a default route wherever nobody wrote a narrower one. Pure; [`super::link::Links`] asks the kernel.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::link::Link;

/// EC2's metadata addresses.
pub const METADATA_ADDRESSES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// The loopback device, whose number is 1 in every namespace.
const LOOPBACK: u32 = 1;

/// A route, as far as it says by which interface a destination is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// Its network.
    pub destination: IpAddr,
    /// The length of its prefix.
    pub prefix_bits: u8,
    /// The table it stands in.
    pub table: u32,
    /// The interface.
    pub ifindex: u32,
}

impl Way {
    /// Whether it is the route of last resort that everything takes, policy aside.
    #[must_use]
    pub fn is_default(&self) -> bool {
        const MAIN: u32 = libc::RT_TABLE_MAIN as u32;
        self.prefix_bits == 0 && self.table == MAIN
    }

    /// Whether an address is among its destinations.
    #[must_use]
    pub fn covers(&self, address: IpAddr) -> bool {
        let bits = u32::from(self.prefix_bits);
        match (self.destination, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.checked_shr(32 - bits.min(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.checked_shr(128 - bits.min(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// The numbers of the interfaces with a default route in the main table.
#[must_use]
pub fn defaults(ways: &[Way]) -> BTreeSet<u32> {
    let defaults = ways.iter().filter(|way| way.is_default());
    defaults
        .map(|way| way.ifindex)
        .filter(|ifindex| *ifindex != LOOPBACK)
        .collect()
}

/// The uplinks: every interface with a route, in whichever table, that covers a metadata address, and what shares its
/// wire. A guest on the same bridge as an uplink passes its packets from port to port of the bridge, where no route of
/// the host has a say; so every port of such a bridge is an uplink too, and what lies beneath a VLAN is.
#[must_use]
pub fn uplinks<'a>(links: &'a [Link], ways: &[Way]) -> Vec<&'a Link> {
    let covers = |way: &&Way| {
        METADATA_ADDRESSES
            .iter()
            .any(|address| way.covers(*address))
    };
    let mut found: BTreeSet<u32> = BTreeSet::new();
    let mut to_see: Vec<u32> = ways.iter().filter(covers).map(|way| way.ifindex).collect();
    while let Some(ifindex) = to_see.pop() {
        let link = links.iter().find(|link| link.index == ifindex);
        let Some(link) = link.filter(|link| link.index != LOOPBACK) else {
            continue;
        };
        if found.insert(ifindex) {
            to_see.extend(on_the_wire_of(link, links));
        }
    }
    links
        .iter()
        .filter(|link| found.contains(&link.index))
        .collect()
}

/// What a frame can leave by, or pass on its way, without a route's say.
fn on_the_wire_of<'a>(link: &'a Link, links: &'a [Link]) -> impl Iterator<Item = u32> + 'a {
    let is_switch = |link: &Link| matches!(link.kind.as_str(), "bridge" | "openvswitch");
    let controller = link
        .controller
        .and_then(|index| links.iter().find(|link| link.index == index))
        .filter(|link| is_switch(link));
    // Open vSwitch's internal ports, which have the addresses, are no ports of its one device that the others belong to.
    let ports_of_all = link.kind == "openvswitch";
    let is_port = move |other: &&Link| {
        let Some(of) = other.controller else {
            return false;
        };
        of == link.index && is_switch(link)
            || controller.is_some_and(|controller| controller.index == of)
            || ports_of_all
                && links
                    .iter()
                    .any(|link| link.index == of && link.kind == "openvswitch")
    };
    let beneath = link.lower.filter(|_| link.peer_netnsid.is_none());
    let ports = links.iter().filter(is_port).map(|link| link.index);
    beneath.into_iter().chain(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link {
            name: name.into(),
            index,
            kind: kind.into(),
            mtu: 1500,
            mac: None,
            is_ethernet: true,
            is_up: true,
            carrier: true,
            controller: None,
            lower: None,
            peer_netnsid: None,
        }
    }

    fn port(index: u32, name: &str, controller: u32) -> Link {
        Link {
            controller: Some(controller),
            ..link(index, name, "tun")
        }
    }

    fn way(prefix: &str, table: u32, ifindex: u32) -> Way {
        let (destination, bits) = prefix.split_once('/').unwrap();
        Way {
            destination: destination.parse().unwrap(),
            prefix_bits: bits.parse().unwrap(),
            table,
            ifindex,
        }
    }

    /// A host with a physical card, a second one, a VLAN on the first, a bridge with three ports, and another bridge.
    fn host() -> Vec<Link> {
        vec![
            link(1, "lo", ""),
            link(2, "eth0", ""),
            link(3, "eth1", ""),
            Link {
                lower: Some(2),
                ..link(4, "eth0.7", "vlan")
            },
            link(5, "br0", "bridge"),
            port(6, "eth2", 5),
            port(7, "tap0", 5),
            port(8, "tap1", 5),
            link(9, "br1", "bridge"),
            port(10, "tap2", 9),
            Link {
                lower: Some(12),
                peer_netnsid: Some(0),
                ..link(11, "veth0", "veth")
            },
            link(12, "other", ""),
            Link {
                lower: Some(5),
                ..link(13, "br0.9", "vlan")
            },
        ]
    }

    fn check(what: &str, ways: &[Way], expected: &[&str]) {
        let links = host();
        let names: Vec<&str> = uplinks(&links, ways)
            .into_iter()
            .map(|link| link.name.as_str())
            .collect();
        assert_eq!(names, expected, "{what}");
    }

    #[test]
    fn an_uplink_is_what_the_metadata_addresses_are_reached_by() {
        for (what, prefix, expected) in [
            ("a default route", "0.0.0.0/0", true),
            ("a default route for IPv6", "::/0", true),
            ("half of all addresses", "128.0.0.0/1", true),
            ("the other half", "0.0.0.0/1", false),
            ("link-local addresses", "169.254.0.0/16", true),
            ("the address itself", "169.254.169.254/32", true),
            ("its neighbour", "169.254.169.253/32", false),
            ("a private network", "10.0.0.0/8", false),
            ("unique local addresses", "fc00::/7", true),
            ("the IPv6 address itself", "fd00:ec2::254/128", true),
            ("its neighbour", "fd00:ec2::253/128", false),
        ] {
            let expected: &[&str] = if expected { &["eth1"] } else { &[] };
            check(what, &[way(prefix, 254, 3)], expected);
        }
        check("a table of policy's", &[way("0.0.0.0/0", 77, 3)], &["eth1"]);
        check("loopback", &[way("::/0", 254, 1)], &[]);
        check("a gone interface", &[way("0.0.0.0/0", 254, 99)], &[]);
    }

    #[test]
    fn what_shares_the_wire_of_an_uplink_is_one() {
        let by = |ifindex| [way("0.0.0.0/0", 254, ifindex)];
        check("a VLAN and its card", &by(4), &["eth0", "eth0.7"]);
        let bridge = ["br0", "eth2", "tap0", "tap1"];
        check("a bridge and its ports", &by(5), &bridge);
        check("a port and its bridge's", &by(6), &bridge[1..]);
        let with_vlan = [&bridge[..], &["br0.9"]].concat();
        check("a VLAN on a bridge", &by(13), &with_vlan);
        check("a veth into elsewhere", &by(11), &["veth0"]);
    }

    #[test]
    fn ports_of_open_vswitch_are_found_from_its_internal_one() {
        let links = [
            link(2, "ovs-system", "openvswitch"),
            link(3, "br-ex", "openvswitch"),
            Link {
                controller: Some(2),
                ..link(4, "eth0", "")
            },
            link(5, "eth1", ""),
        ];
        let names: Vec<&str> = uplinks(&links, &[way("0.0.0.0/0", 254, 3)])
            .into_iter()
            .map(|link| link.name.as_str())
            .collect();
        assert_eq!(names, ["br-ex", "eth0"]);
    }

    #[test]
    fn defaults_are_those_of_the_main_table() {
        let ways = [
            way("0.0.0.0/0", 254, 2),
            way("::/0", 254, 3),
            way("0.0.0.0/0", 77, 4),
            way("10.0.0.0/8", 254, 5),
            way("::/0", 254, 1),
        ];
        assert_eq!(defaults(&ways), BTreeSet::from([2, 3]));
    }
}
