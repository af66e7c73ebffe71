//! Slots: the small integers by which the kernel programs and the responder know an instance.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use imds_ebpf::abi::slot::{
    INDEX_BITS, SLOT_BITS, SLOT_MAX, index_of, slot_of_tag_v4, slot_of_tag_v6, tag_v4, tag_v6,
};
use serde::{Deserialize, Serialize};

/// Generations that a table index goes through before a slot comes again.
pub const GENERATIONS: u8 = 1 << (SLOT_BITS - INDEX_BITS);

/// An instance on this host, to the data plane. 23 bits: a table index and a generation. Never 0.
///
/// In the responder namespace a connection's local address is the slot's tag address: that, and nothing that the guest
/// sent, says who is asking.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Slot(u32);

/// A number that is no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no slot: slots are 1 to {max}", max = SLOT_MAX)]
pub struct SlotError(u32);

impl Slot {
    /// The slot of a table index in a generation below [`GENERATIONS`]; `None` for the one that is never handed out,
    /// and beyond.
    #[must_use]
    pub fn new(index: u16, generation: u8) -> Option<Self> {
        let raw = u32::from(generation) << INDEX_BITS | u32::from(index);
        Self::try_from(raw).ok()
    }

    /// The number that the maps of the kernel programs have it by.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }

    /// Its place in the tables.
    #[must_use]
    pub fn index(self) -> u16 {
        index_of(self.0) as u16
    }

    /// How often that place was handed out before, modulo [`GENERATIONS`].
    #[must_use]
    pub fn generation(self) -> u8 {
        (self.0 >> INDEX_BITS) as u8
    }

    /// The IPv4 destination that the port program gives this slot's packets.
    #[must_use]
    pub fn tag_v4(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(tag_v4(self.0))
    }

    /// The IPv6 destination that the port program gives this slot's packets.
    #[must_use]
    pub fn tag_v6(self) -> Ipv6Addr {
        Ipv6Addr::from(tag_v6(self.0))
    }

    /// The slot of an IPv4 tag address.
    #[must_use]
    pub fn from_tag_v4(address: Ipv4Addr) -> Option<Self> {
        slot_of_tag_v4(address.to_bits())?.try_into().ok()
    }

    /// The slot of an IPv6 tag address.
    #[must_use]
    pub fn from_tag_v6(address: Ipv6Addr) -> Option<Self> {
        slot_of_tag_v6(address.segments())?.try_into().ok()
    }
}

impl TryFrom<u32> for Slot {
    type Error = SlotError;

    fn try_from(raw: u32) -> Result<Self, SlotError> {
        if raw == 0 || raw > SLOT_MAX {
            return Err(SlotError(raw));
        }
        Ok(Self(raw))
    }
}

impl From<Slot> for u32 {
    fn from(slot: Slot) -> Self {
        slot.0
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({}.{})", self.index(), self.generation())
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index(), self.generation())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(index: u16, generation: u8, v4: &str, v6: &str) {
        let slot = Slot::new(index, generation).unwrap();
        assert_eq!((slot.index(), slot.generation()), (index, generation));
        assert_eq!(slot.tag_v4(), v4.parse::<Ipv4Addr>().unwrap());
        assert_eq!(slot.tag_v6(), v6.parse::<Ipv6Addr>().unwrap());
        assert_eq!(Slot::from_tag_v4(slot.tag_v4()), Some(slot));
        assert_eq!(Slot::from_tag_v6(slot.tag_v6()), Some(slot));
    }

    #[test]
    fn a_slot_and_its_tag_addresses_are_one() {
        check(1, 0, "127.128.0.1", "fd49:4d44:5300::1");
        check(65_535, 0, "127.128.255.255", "fd49:4d44:5300::ffff");
        check(0, 1, "127.129.0.0", "fd49:4d44:5300::1:0");
        check(65_535, 127, "127.255.255.255", "fd49:4d44:5300::7f:ffff");
    }

    #[test]
    fn what_is_no_tag_address_is_no_slot() {
        assert_eq!(Slot::new(0, 0), None);
        assert_eq!(Slot::new(0, GENERATIONS), None);
        for address in [
            "127.128.0.0",
            "127.0.0.1",
            "127.127.255.255",
            "128.0.0.0",
            "169.254.169.254",
        ] {
            assert_eq!(
                Slot::from_tag_v4(address.parse().unwrap()),
                None,
                "{address}"
            );
        }
        for address in [
            "fd49:4d44:5300::",
            "::1",
            "fd49:4d44:5300::80:0",
            "fd49:4d44:5300:1::1",
            "fd00:ec2::254",
        ] {
            assert_eq!(
                Slot::from_tag_v6(address.parse().unwrap()),
                None,
                "{address}"
            );
        }
    }
}
