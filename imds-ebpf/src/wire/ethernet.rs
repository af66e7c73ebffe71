//! Ethernet (IEEE 802.3) and its VLAN tags (802.1Q, 802.1ad).

/// Header length without tags, bytes.
pub const BYTES: usize = 14;
/// Length of one VLAN tag, bytes.
pub const TAG_BYTES: usize = 4;
/// Offset of the two MAC addresses (destination, then source).
pub const MACS: usize = 0;

/// Offset of the EtherType.
pub const ETHERTYPE: usize = 12;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of an 802.1Q tag.
pub const VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad service tag.
pub const SERVICE_VLAN: u16 = 0x88a8;

/// A header without tags.
#[derive(Clone, Copy)]
pub struct Ethernet(pub [u16; 7]);

impl Ethernet {
    /// Destination MAC, network order.
    #[inline(always)]
    pub const fn destination(&self) -> [u16; 3] {
        [self.0[0], self.0[1], self.0[2]]
    }

    /// Source MAC, network order.
    #[inline(always)]
    pub const fn source(&self) -> [u16; 3] {
        [self.0[3], self.0[4], self.0[5]]
    }

    /// EtherType, host order.
    #[inline(always)]
    pub const fn ethertype(&self) -> u16 {
        u16::from_be(self.0[6])
    }
}

/// Whether the EtherType is a VLAN tag's.
#[inline(always)]
pub const fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, VLAN | SERVICE_VLAN)
}

/// Whether a station can have this MAC (network order): not a group address, not zero.
#[inline(always)]
pub const fn is_station(mac: [u16; 3]) -> bool {
    u16::from_be(mac[0]) & 0x0100 == 0 && mac[0] | mac[1] | mac[2] != 0
}
