//! IPv4 (RFC 791).

use super::pair;

/// Header length without options, bytes.
pub const BYTES: usize = 20;
/// Offset of the header checksum.
pub const CHECKSUM: usize = 10;
/// Offset of the source address.
pub const SOURCE: usize = 12;
/// Offset of the destination address.
pub const DESTINATION: usize = 16;
/// Offset of the checksum in a TCP header that follows directly.
pub const TCP_CHECKSUM: usize = BYTES + 16;

/// A header without options.
#[derive(Clone, Copy)]
pub struct Ipv4(pub [u16; 10]);

impl Ipv4 {
    /// The version field; 4 in anything that a host takes for IPv4.
    #[inline(always)]
    pub const fn version(&self) -> u8 {
        (u16::from_be(self.0[0]) >> 12) as u8
    }

    /// Header length in 32-bit words; 5 without options.
    #[inline(always)]
    pub const fn header_words(&self) -> u8 {
        (u16::from_be(self.0[0]) >> 8) as u8 & 0x0f
    }

    /// Length of the whole packet, bytes.
    #[inline(always)]
    pub const fn total_bytes(&self) -> u16 {
        u16::from_be(self.0[1])
    }

    /// Whether this is a fragment: more follow, or it is not at the start.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        u16::from_be(self.0[3]) & 0x3fff != 0
    }

    /// Protocol number.
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        u16::from_be(self.0[4]) as u8
    }

    /// Source address, host order.
    #[inline(always)]
    pub const fn source(&self) -> u32 {
        pair(self.0[6], self.0[7])
    }

    /// Destination address, host order.
    #[inline(always)]
    pub const fn destination(&self) -> u32 {
        pair(self.0[8], self.0[9])
    }

    /// The source as an IPv4-mapped IPv6 address, network order.
    #[inline(always)]
    pub const fn source_mapped(&self) -> [u16; 8] {
        [0, 0, 0, 0, 0, 0xffff, self.0[6], self.0[7]]
    }

    /// The destination as an IPv4-mapped IPv6 address, network order.
    #[inline(always)]
    pub const fn destination_mapped(&self) -> [u16; 8] {
        [0, 0, 0, 0, 0, 0xffff, self.0[8], self.0[9]]
    }
}
