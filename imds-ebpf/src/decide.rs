//! What becomes of a packet, as functions of its headers alone.
//!
//! The rule behind all of them: what is not about the metadata service is none of our business and passes untouched;
//! what is about it is either answered or dropped and counted, never passed on. A packet that ends before it names
//! its destination is foreign: nobody would take it for ours.

use crate::{
    abi::{counter::Counter, slot},
    wire::{
        METADATA_V4, METADATA_V6,
        arp::Arp,
        host_order,
        ipv4::Ipv4,
        ipv6::Ipv6,
        is_metadata_v6,
        neighbour::{self, Neighbour},
        protocol,
    },
};

/// The groups of 169.254.169.254 as they lie in a packet.
const METADATA_V4_HIGH: u16 = ((METADATA_V4 >> 16) as u16).to_be();
const METADATA_V4_LOW: u16 = (METADATA_V4 as u16).to_be();

/// fd00:ec2::254 as it lies in a `sockaddr_in6`, four bytes at a time.
const METADATA_V6_WORDS: [u32; 4] = {
    let [a, b, c, d, e, f, g, h] = METADATA_V6;
    [pair(a, b), pair(c, d), pair(e, f), pair(g, h)]
};

const fn pair(high: u16, low: u16) -> u32 {
    ((high as u32) << 16 | low as u32).to_be()
}

/// Where a guest's packet goes.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not about the metadata service.
    Foreign,
    /// To be dropped and counted.
    Drop(Counter),
    /// TCP to the metadata service: tag it and hand it to the responder.
    Deliver,
    /// To be answered in place.
    Answer,
}

/// Whether source or destination (one after the other, network order) is the metadata service's. The first look at
/// every packet, so it compares as few groups as it can.
#[inline(always)]
pub const fn names_metadata_v4(source_and_destination: &[u16; 4]) -> bool {
    let [source_high, source_low, high, low] = *source_and_destination;
    is_for_metadata_v4(&[high, low]) || is_for_metadata_v4(&[source_high, source_low])
}

/// Whether the packet may be about the metadata service: [`ipv6`] would look further.
#[inline(always)]
pub const fn may_name_metadata_v6(ip: &Ipv6) -> bool {
    const TOP: u16 = crate::wire::METADATA_V6[0].to_be();
    ip.destination()[0] == TOP || ip.source()[0] == TOP || ip.next_header() == protocol::ICMPV6
}

/// Whether an ARP packet tells or asks about the metadata service: [`arp`] would look further.
#[inline(always)]
pub const fn arp_names_metadata(arp: &Arp) -> bool {
    arp.target() == METADATA_V4 || arp.sender() == METADATA_V4
}

/// A guest's IPv4 packet; `frame_bytes` counts from the IPv4 header to the end.
#[inline(always)]
pub fn ipv4(ip: &Ipv4, frame_bytes: u32) -> Verdict {
    if ip.source() == METADATA_V4 {
        return Verdict::Drop(Counter::SpoofedSource);
    }
    if ip.destination() != METADATA_V4 {
        return Verdict::Foreign;
    }
    if ip.version() != 4 || ip.header_words() < 5 {
        return Verdict::Drop(Counter::Malformed);
    }
    if ip.header_words() > 5 {
        return Verdict::Drop(Counter::IpOptions);
    }
    if ip.is_fragment() {
        return Verdict::Drop(Counter::Fragment);
    }
    match ip.protocol() {
        protocol::TCP => {}
        protocol::UDP => return Verdict::Drop(Counter::Udp),
        protocol::ICMP => return Verdict::Drop(Counter::Icmp),
        _ => return Verdict::Drop(Counter::OtherProtocol),
    }
    const BYTES_MIN: u32 = crate::wire::ipv4::BYTES as u32 + crate::wire::TCP_BYTES_MIN;
    if frame_bytes < BYTES_MIN {
        return Verdict::Drop(Counter::Truncated);
    }
    // A GSO packet may say 0 here or less than it holds; only a plain lie is refused.
    if ip.total_bytes() != 0 && u32::from(ip.total_bytes()) < BYTES_MIN {
        return Verdict::Drop(Counter::Malformed);
    }
    if !is_unicast_v4(ip.source()) {
        return Verdict::Drop(Counter::BadSource);
    }
    Verdict::Deliver
}

/// A guest's IPv6 packet by its first header alone. [`Verdict::Answer`] means: ICMPv6, to be looked at by
/// [`neighbour()`] or, where it is too short for that, [`icmpv6`].
#[inline(always)]
pub fn ipv6(ip: &Ipv6, frame_bytes: u32) -> Verdict {
    if is_metadata_v6(&ip.source()) {
        return Verdict::Drop(Counter::SpoofedSource);
    }
    if !is_metadata_v6(&ip.destination()) {
        // Neighbour discovery names the address inside and goes to a multicast group or to anybody.
        return match ip.next_header() {
            protocol::ICMPV6 => Verdict::Answer,
            _ => Verdict::Foreign,
        };
    }
    if ip.version() != 6 {
        return Verdict::Drop(Counter::Malformed);
    }
    match ip.next_header() {
        protocol::TCP => {}
        protocol::ICMPV6 => return Verdict::Answer,
        protocol::UDP => return Verdict::Drop(Counter::Udp),
        protocol::FRAGMENT => return Verdict::Drop(Counter::Fragment),
        other if is_extension_header(other) => return Verdict::Drop(Counter::ExtensionHeader),
        _ => return Verdict::Drop(Counter::OtherProtocol),
    }
    if frame_bytes < crate::wire::ipv6::BYTES as u32 + crate::wire::TCP_BYTES_MIN {
        return Verdict::Drop(Counter::Truncated);
    }
    // 0 is a jumbogram, which a GSO packet of more than 64 KB may be.
    if ip.payload_bytes() != 0 && u32::from(ip.payload_bytes()) < crate::wire::TCP_BYTES_MIN {
        return Verdict::Drop(Counter::Malformed);
    }
    if !is_unicast_v6(&ip.source()) {
        return Verdict::Drop(Counter::BadSource);
    }
    Verdict::Deliver
}

/// A guest's ICMPv6 packet that is not neighbour discovery about the metadata address.
#[inline(always)]
pub fn icmpv6(ip: &Ipv6) -> Verdict {
    if is_metadata_v6(&ip.destination()) {
        return Verdict::Drop(Counter::Icmp);
    }
    Verdict::Foreign
}

/// A guest's ICMPv6 packet that is long enough to be neighbour discovery.
#[inline(always)]
pub fn neighbour(ip: &Ipv6, message: &Neighbour) -> Verdict {
    if !matches!(
        message.kind(),
        neighbour::SOLICITATION | neighbour::ADVERTISEMENT
    ) || !is_metadata_v6(&message.target())
    {
        return icmpv6(ip);
    }
    // An advertisement would claim our address; a solicitation from :: is duplicate address detection by somebody who
    // wants it; any other hop limit came through a router (RFC 4861, 7.1.1).
    if message.kind() != neighbour::SOLICITATION
        || message.code() != 0
        || ip.version() != 6
        || ip.hop_limit() != neighbour::HOP_LIMIT
        || !is_unicast_v6(&ip.source())
    {
        return Verdict::Drop(Counter::NeighbourRefused);
    }
    Verdict::Answer
}

/// A guest's ARP packet.
#[inline(always)]
pub fn arp(arp: &Arp) -> Verdict {
    let claims = arp.sender() == METADATA_V4;
    if !claims && arp.target() != METADATA_V4 {
        return Verdict::Foreign;
    }
    if !arp.is_ipv4_over_ethernet() {
        // The addresses lie elsewhere, so what looked like ours is chance.
        return Verdict::Foreign;
    }
    if claims || !arp.is_request() {
        return Verdict::Drop(Counter::ArpRefused);
    }
    Verdict::Answer
}

/// The slot that an answer from the responder's namespace belongs to; none for anything but TCP from a tag address.
#[inline(always)]
pub fn reply_v4(ip: &Ipv4) -> Option<u32> {
    if ip.header_words() != 5 || ip.is_fragment() || ip.protocol() != protocol::TCP {
        return None;
    }
    slot::slot_of_tag_v4(ip.source())
}

/// As [`reply_v4`], for IPv6.
#[inline(always)]
pub fn reply_v6(ip: &Ipv6) -> Option<u32> {
    if ip.next_header() != protocol::TCP {
        return None;
    }
    slot::slot_of_tag_v6(host_order(ip.source()))
}

/// Whether a packet on its way out came in by an interface of the host (`skb->skb_iif`, which every receipt sets). The
/// host's own packets have none, or `lo`, whose number is 1 in every namespace (`LOOPBACK_IFINDEX`, linux/netdevice.h).
#[inline(always)]
pub const fn is_forwarded(ingress_ifindex: u32) -> bool {
    const LOOPBACK: u32 = 1;
    ingress_ifindex > LOOPBACK
}

/// Whether an IPv4 destination (network order) is the metadata service's.
#[inline(always)]
pub const fn is_for_metadata_v4(destination: &[u16; 2]) -> bool {
    let [high, low] = *destination;
    high == METADATA_V4_HIGH && low == METADATA_V4_LOW
}

/// Whether an IPv6 destination (network order) is the metadata service's.
#[inline(always)]
pub const fn is_for_metadata_v6(destination: &[u16; 8]) -> bool {
    is_metadata_v6(destination)
}

/// Whether a process that calls this IPv4 address (network order, as in a `sockaddr_in`) means the metadata service.
#[inline(always)]
pub const fn is_call_for_metadata_v4(address: u32) -> bool {
    address == METADATA_V4.to_be()
}

/// Whether a process that calls this IPv6 address (network order, as in a `sockaddr_in6`) means the metadata service; also
/// as `::ffff:169.254.169.254`, which the kernel calls over IPv4.
#[inline(always)]
pub const fn is_call_for_metadata_v6(address: &[u32; 4]) -> bool {
    const MAPPED: u32 = 0xffff_u32.to_be();
    let [a, b, c, d] = *address;
    match (a, b, c) {
        (0, 0, MAPPED) => is_call_for_metadata_v4(d),
        _ => {
            a == METADATA_V6_WORDS[0]
                && b == METADATA_V6_WORDS[1]
                && c == METADATA_V6_WORDS[2]
                && d == METADATA_V6_WORDS[3]
        }
    }
}

/// Whether an answer can be sent to this IPv4 address (host order): not 0/8, loopback (which holds the tags),
/// multicast or broadcast. 240/4 is fine: Linux guests use it.
#[inline(always)]
const fn is_unicast_v4(address: u32) -> bool {
    let top = address >> 24;
    !(top == 0 || top == 127 || top >= 224 && top < 240 || address == u32::MAX)
}

/// Whether an answer can be sent to this IPv6 address (network order): not unspecified, loopback, IPv4-mapped or
/// -compatible, multicast, nor one of the tags.
#[inline(always)]
const fn is_unicast_v6(address: &[u16; 8]) -> bool {
    if address[0] | address[1] | address[2] | address[3] | address[4] == 0
        && (address[5] == 0 || address[5] == 0xffff)
    {
        return false;
    }
    u16::from_be(address[0]) >> 8 != 0xff && !slot::is_tag_v6(host_order(*address))
}

#[inline(always)]
const fn is_extension_header(next_header: u8) -> bool {
    let mut index = 0;
    while index < protocol::EXTENSION_HEADERS.len() {
        if protocol::EXTENSION_HEADERS[index] == next_header {
            return true;
        }
        index += 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::network_order;
    use core::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn what_came_in_by_an_interface_is_forwarded_and_what_the_host_sends_is_not() {
        for (ingress_ifindex, expected) in [(0, false), (1, false), (2, true), (u32::MAX, true)] {
            assert_eq!(is_forwarded(ingress_ifindex), expected, "{ingress_ifindex}");
        }
    }

    #[test]
    fn no_address_but_the_services_is_guarded() {
        let v4 = |a: u8, b, c, d| {
            [
                u16::from_be_bytes([a, b]).to_be(),
                u16::from_be_bytes([c, d]).to_be(),
            ]
        };
        for (destination, expected) in [
            (v4(169, 254, 169, 254), true),
            (v4(169, 254, 169, 253), false),
            (v4(169, 254, 254, 169), false),
            (v4(254, 169, 254, 169), false),
            (v4(0, 0, 0, 0), false),
        ] {
            assert_eq!(
                is_for_metadata_v4(&destination),
                expected,
                "{destination:?}"
            );
        }
        let service = network_order(METADATA_V6);
        assert!(is_for_metadata_v6(&service));
        for group in 0..service.len() {
            let mut other = service;
            other[group] ^= 1;
            assert!(!is_for_metadata_v6(&other), "{other:?}");
        }
    }

    fn words(address: Ipv6Addr) -> [u32; 4] {
        let octets = address.octets();
        core::array::from_fn(|word| {
            let at = word * 4;
            u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
        })
    }

    #[test]
    fn a_call_is_for_the_service_by_every_name_that_the_kernel_takes_for_it() {
        for (address, expected) in [
            ([169, 254, 169, 254], true),
            ([169, 254, 169, 253], false),
            ([254, 169, 254, 169], false),
            ([127, 0, 0, 1], false),
            ([0, 0, 0, 0], false),
        ] {
            let is_for = is_call_for_metadata_v4(u32::from_ne_bytes(address));
            assert_eq!(is_for, expected, "{address:?}");
            let mapped = words(Ipv4Addr::from(address).to_ipv6_mapped());
            assert_eq!(is_call_for_metadata_v6(&mapped), expected, "{address:?}");
        }
        for (address, expected) in [
            ("fd00:ec2::254", true),
            ("fd00:ec2::253", false),
            ("fd00:ec2:0:1::254", false),
            // Compatible addresses are no way to IPv4.
            ("::169.254.169.254", false),
            ("::fffe:a9fe:a9fe", false),
            ("64:ff9b::169.254.169.254", false),
            ("::1", false),
        ] {
            let address: Ipv6Addr = address.parse().unwrap();
            assert_eq!(
                is_call_for_metadata_v6(&words(address)),
                expected,
                "{address}"
            );
        }
    }
}
