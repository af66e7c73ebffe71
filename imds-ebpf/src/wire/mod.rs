//! Packet headers as they lie in a frame: what each field is and where. No decisions, no maps, no helpers.
//!
//! Headers are arrays of 16-bit groups in network byte order: every bit pattern is valid, packet data is aligned to
//! two bytes at least, and only the groups that are used get loaded.

pub mod arp;
pub mod ethernet;
pub mod ipv4;
pub mod ipv6;
pub mod neighbour;

/// The metadata service's IPv4 address, 169.254.169.254, in host byte order.
pub const METADATA_V4: u32 = 0xa9fe_a9fe;
/// The metadata service's IPv6 address, fd00:ec2::254, as groups in host byte order.
pub const METADATA_V6: [u16; 8] = [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254];
/// The MAC address that the metadata service answers ARP and neighbour solicitations with: locally administered,
/// "IMDS" in ASCII. Guests never see each other's copy of it, since no frame to it passes the port.
pub const METADATA_MAC: [u16; 3] = [0x0249, 0x4d44, 0x5301];

/// IP protocol numbers (IANA).
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 extension headers: hop-by-hop, routing, fragment, ESP, AH, destination options, mobility, HIP, shim6.
    pub const EXTENSION_HEADERS: [u8; 9] = [0, 43, 44, 50, 51, 60, 135, 139, 140];
    /// The IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
}

/// Length of a TCP header without options, bytes.
pub const TCP_BYTES_MIN: u32 = 20;

/// Two network-order groups as one host-order number.
#[inline(always)]
const fn pair(high_be: u16, low_be: u16) -> u32 {
    ((u16::from_be(high_be) as u32) << 16) | u16::from_be(low_be) as u32
}

/// Eight network-order groups in host byte order.
#[inline(always)]
pub(crate) const fn host_order(groups_be: [u16; 8]) -> [u16; 8] {
    let [a, b, c, d, e, f, g, h] = groups_be;
    [
        u16::from_be(a),
        u16::from_be(b),
        u16::from_be(c),
        u16::from_be(d),
        u16::from_be(e),
        u16::from_be(f),
        u16::from_be(g),
        u16::from_be(h),
    ]
}

/// Eight host-order groups in network byte order.
#[inline(always)]
pub const fn network_order(groups: [u16; 8]) -> [u16; 8] {
    // The conversion is its own inverse.
    host_order(groups)
}

/// Whether the address (network order) is the metadata service's. Most foreign packets fail at the first group.
#[inline(always)]
pub const fn is_metadata_v6(groups_be: &[u16; 8]) -> bool {
    groups_be[0] == METADATA_V6[0].to_be()
        && groups_be[1] == METADATA_V6[1].to_be()
        && groups_be[7] == METADATA_V6[7].to_be()
        && groups_be[2] | groups_be[3] | groups_be[4] | groups_be[5] | groups_be[6] == 0
}

/// Reads a header of `N` groups from the start of `bytes`; none if they do not reach. For tests and user space:
/// the programs read through the kernel's packet pointers.
pub fn groups<const N: usize>(bytes: &[u8]) -> Option<[u16; N]> {
    let mut groups = [0; N];
    for (index, group) in groups.iter_mut().enumerate() {
        let pair = bytes.get(index * 2..index * 2 + 2)?;
        *group = u16::from_ne_bytes([pair[0], pair[1]]);
    }
    Some(groups)
}
