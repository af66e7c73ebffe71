//! ARP for IPv4 over Ethernet (RFC 826).

use super::pair;

/// Packet length, bytes.
pub const BYTES: usize = 28;
const ETHERNET: u16 = 1;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
/// Lengths of a MAC and an IPv4 address in one group.
const ADDRESS_LENGTHS: u16 = 0x0604;

/// An ARP packet.
#[derive(Clone, Copy)]
pub struct Arp(pub [u16; 14]);

impl Arp {
    /// Whether it is about IPv4 over Ethernet, the only kind with addresses where we look for them.
    #[inline(always)]
    pub const fn is_ipv4_over_ethernet(&self) -> bool {
        u16::from_be(self.0[0]) == ETHERNET
            && u16::from_be(self.0[1]) == super::ethernet::IPV4
            && u16::from_be(self.0[2]) == ADDRESS_LENGTHS
    }

    /// Whether it asks.
    #[inline(always)]
    pub const fn is_request(&self) -> bool {
        u16::from_be(self.0[3]) == REQUEST
    }

    /// The sender's MAC, network order.
    #[inline(always)]
    pub const fn sender_mac(&self) -> [u16; 3] {
        [self.0[4], self.0[5], self.0[6]]
    }

    /// The sender's IPv4 address, host order.
    #[inline(always)]
    pub const fn sender(&self) -> u32 {
        pair(self.0[7], self.0[8])
    }

    /// The IPv4 address asked for or told about, host order.
    #[inline(always)]
    pub const fn target(&self) -> u32 {
        pair(self.0[12], self.0[13])
    }

    /// The reply that says that the target of this request is at `mac` (network order).
    #[inline(always)]
    pub const fn reply(&self, mac: [u16; 3]) -> Self {
        let r = &self.0;
        Self([
            r[0],
            r[1],
            r[2],
            REPLY.to_be(),
            mac[0],
            mac[1],
            mac[2],
            r[12],
            r[13],
            r[4],
            r[5],
            r[6],
            r[7],
            r[8],
        ])
    }
}
