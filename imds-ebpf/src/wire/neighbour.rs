//! Neighbour discovery for IPv6 (RFC 4861).

use super::{METADATA_MAC, METADATA_V6, ipv6::Ipv6, network_order, protocol};

/// Bytes of a solicitation or advertisement without options.
pub const BYTES: usize = 24;
/// ICMPv6 type of a neighbour solicitation.
pub const SOLICITATION: u8 = 135;
/// ICMPv6 type of a neighbour advertisement.
pub const ADVERTISEMENT: u8 = 136;
/// The hop limit that shows that no router forwarded the packet (RFC 4861, 7.1).
pub const HOP_LIMIT: u8 = 255;
/// Bytes of our advertisement with its one option, IPv6 header included.
pub const ANSWER_BYTES: usize = super::ipv6::BYTES + BYTES + 8;
const ANSWER_GROUPS: usize = ANSWER_BYTES / 2;

/// A solicitation or advertisement up to its options.
#[derive(Clone, Copy)]
pub struct Neighbour(pub [u16; 12]);

impl Neighbour {
    /// ICMPv6 type.
    #[inline(always)]
    pub const fn kind(&self) -> u8 {
        (u16::from_be(self.0[0]) >> 8) as u8
    }

    /// ICMPv6 code, 0 in a valid packet.
    #[inline(always)]
    pub const fn code(&self) -> u8 {
        u16::from_be(self.0[0]) as u8
    }

    /// The address asked for or told about, network order.
    #[inline(always)]
    pub const fn target(&self) -> [u16; 8] {
        let g = &self.0;
        [g[4], g[5], g[6], g[7], g[8], g[9], g[10], g[11]]
    }
}

/// The advertisement that answers a solicitation for the metadata address: IPv6 header, ICMPv6 and the target
/// link-layer address option, with its checksum, in network order. Solicited and override flags are set.
#[inline(always)]
pub fn advertisement(solicitation: &Ipv6) -> [u16; ANSWER_GROUPS] {
    const PAYLOAD: u16 = (ANSWER_BYTES - super::ipv6::BYTES) as u16;
    const SOLICITED_OVERRIDE: u16 = 0x6000;
    const TARGET_LINK_LAYER_ADDRESS: u16 = 0x0201;
    let metadata = network_order(METADATA_V6);
    let guest = solicitation.source();

    let mut answer = [0; ANSWER_GROUPS];
    answer[0] = 0x6000_u16.to_be();
    answer[2] = PAYLOAD.to_be();
    answer[3] = (u16::from(protocol::ICMPV6) << 8 | u16::from(HOP_LIMIT)).to_be();
    put(&mut answer, 4, &metadata);
    put(&mut answer, 12, &guest);
    answer[20] = (u16::from(ADVERTISEMENT) << 8).to_be();
    answer[22] = SOLICITED_OVERRIDE.to_be();
    put(&mut answer, 24, &metadata);
    answer[32] = TARGET_LINK_LAYER_ADDRESS.to_be();
    put(
        &mut answer,
        33,
        &[
            METADATA_MAC[0].to_be(),
            METADATA_MAC[1].to_be(),
            METADATA_MAC[2].to_be(),
        ],
    );
    answer[21] = checksum(&answer, PAYLOAD);
    answer
}

#[inline(always)]
fn put<const N: usize>(answer: &mut [u16; ANSWER_GROUPS], at: usize, groups: &[u16; N]) {
    let mut index = 0;
    while index < N {
        answer[at + index] = groups[index];
        index += 1;
    }
}

/// The Internet checksum of the ICMPv6 message with its pseudo-header. Sums of network-order groups are the
/// network-order sum (RFC 1071, byte order independence).
#[inline(always)]
fn checksum(packet: &[u16; ANSWER_GROUPS], payload_bytes: u16) -> u16 {
    let mut sum = u32::from(payload_bytes.to_be()) + u32::from(u16::from(protocol::ICMPV6).to_be());
    let mut index = 4; // both addresses, then the message
    while index < ANSWER_GROUPS {
        sum += u32::from(packet[index]);
        index += 1;
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}
