//! Slots and tag addresses: how an instance is named inside a packet.
//!
//! A slot has 23 bits, as many as a tag address can carry: the low 16 are an index into the tables, the high 7 a
//! generation that counts how often the index was given away. So a slot that went comes back only after 128 others
//! used its index, long after any packet or socket could still carry it.

/// Bits of a slot that index the slot tables.
pub const INDEX_BITS: u32 = 16;
/// Bits of a slot in all; a tag address carries just as many.
pub const SLOT_BITS: u32 = 23;
/// How many instances a host can have, which is the length of every slot table.
pub const INSTANCES_MAX: u32 = 1 << INDEX_BITS;
/// The largest slot number.
pub const SLOT_MAX: u32 = (1 << SLOT_BITS) - 1;

/// The IPv4 tag addresses are 127.128.0.0/9: loopback, which no guest can use as a source of its own.
pub const TAG_V4_BASE: u32 = 0x7f80_0000;
/// The IPv6 tag addresses are this /64, followed by the slot. "IMDS" in ASCII under `fd`: unique local, ours alone.
pub const TAG_V6_PREFIX: [u16; 4] = [0xfd49, 0x4d44, 0x5300, 0];

/// The slot's place in the slot tables.
#[inline(always)]
pub const fn index_of(slot: u32) -> u32 {
    slot & (INSTANCES_MAX - 1)
}

/// The slot's IPv4 tag address, in host byte order.
#[inline(always)]
pub const fn tag_v4(slot: u32) -> u32 {
    TAG_V4_BASE | (slot & SLOT_MAX)
}

/// The slot behind an IPv4 tag address (host byte order); none for any other address.
#[inline(always)]
pub const fn slot_of_tag_v4(address: u32) -> Option<u32> {
    if address & !SLOT_MAX != TAG_V4_BASE {
        return None;
    }
    Some(address & SLOT_MAX)
}

/// The slot's IPv6 tag address, as eight groups in host byte order.
#[inline(always)]
pub const fn tag_v6(slot: u32) -> [u16; 8] {
    let [a, b, c, d] = TAG_V6_PREFIX;
    [a, b, c, d, 0, 0, (slot >> 16) as u16, slot as u16]
}

/// The slot behind an IPv6 tag address (groups in host byte order); none for any other address.
#[inline(always)]
pub const fn slot_of_tag_v6(groups: [u16; 8]) -> Option<u32> {
    if !is_tag_v6(groups) || groups[4] != 0 || groups[5] != 0 {
        return None;
    }
    let slot = ((groups[6] as u32) << 16) | groups[7] as u32;
    if slot > SLOT_MAX {
        return None;
    }
    Some(slot)
}

/// Whether the address (groups in host byte order) lies in the /64 of the tags.
#[inline(always)]
pub const fn is_tag_v6(groups: [u16; 8]) -> bool {
    groups[0] == TAG_V6_PREFIX[0]
        && groups[1] == TAG_V6_PREFIX[1]
        && groups[2] == TAG_V6_PREFIX[2]
        && groups[3] == TAG_V6_PREFIX[3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_leads_back_to_its_slot() {
        for slot in [1, 2, 0xffff, 0x1_0000, 0x7f_fffe, SLOT_MAX] {
            assert_eq!(slot_of_tag_v4(tag_v4(slot)), Some(slot));
            assert_eq!(slot_of_tag_v6(tag_v6(slot)), Some(slot));
        }
    }

    #[test]
    fn other_addresses_are_no_tags() {
        for address in [0x7f00_0001, 0x7f7f_ffff, 0x8000_0000, 0x0a00_0001, 0] {
            assert_eq!(slot_of_tag_v4(address), None, "{address:#x}");
        }
        let mut beyond = tag_v6(SLOT_MAX);
        beyond[6] = 0x80;
        assert_eq!(slot_of_tag_v6(beyond), None);
        let mut inside = tag_v6(1);
        inside[4] = 1;
        assert_eq!(slot_of_tag_v6(inside), None);
        assert_eq!(slot_of_tag_v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]), None);
    }
}
