//! IPv6 (RFC 8200).

/// Header length, bytes.
pub const BYTES: usize = 40;
/// Offset of the source address.
pub const SOURCE: usize = 8;
/// Offset of the destination address.
pub const DESTINATION: usize = 24;
/// Offset of the checksum in a TCP header that follows directly.
pub const TCP_CHECKSUM: usize = BYTES + 16;

/// A header.
#[derive(Clone, Copy)]
pub struct Ipv6(pub [u16; 20]);

impl Ipv6 {
    /// The version field; 6 in anything that a host takes for IPv6.
    #[inline(always)]
    pub const fn version(&self) -> u8 {
        (u16::from_be(self.0[0]) >> 12) as u8
    }

    /// Length of what follows the header, bytes.
    #[inline(always)]
    pub const fn payload_bytes(&self) -> u16 {
        u16::from_be(self.0[2])
    }

    /// Protocol number of what follows.
    #[inline(always)]
    pub const fn next_header(&self) -> u8 {
        (u16::from_be(self.0[3]) >> 8) as u8
    }

    /// Hop limit.
    #[inline(always)]
    pub const fn hop_limit(&self) -> u8 {
        u16::from_be(self.0[3]) as u8
    }

    /// Source address, network order.
    #[inline(always)]
    pub const fn source(&self) -> [u16; 8] {
        let g = &self.0;
        [g[4], g[5], g[6], g[7], g[8], g[9], g[10], g[11]]
    }

    /// Destination address, network order.
    #[inline(always)]
    pub const fn destination(&self) -> [u16; 8] {
        let g = &self.0;
        [g[12], g[13], g[14], g[15], g[16], g[17], g[18], g[19]]
    }
}
