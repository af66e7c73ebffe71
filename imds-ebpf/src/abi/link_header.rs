//! The memory of link headers: with which MAC addresses and VLAN tag a guest's packet came, so that the answer can
//! go back the same way. The responder's own network stack knows neither.
//!
//! There is one [`LinkMemory`] per slot, so a guest that sends from a million addresses makes only itself forget.
//! What is lost is filled from the slot's most recent header, which is of the same port and so never of another guest.

/// Entries per slot, a power of two: enough for a router with a handful of hosts behind it, small enough that the
/// table of all slots stays under 20 MB.
pub const WAYS: usize = 8;

/// A link header as the answer will carry it, and the guest address that it belongs to.
///
/// Two CPUs may write one entry at the same time. The mixture is of two headers of one guest, and its next packet
/// repairs it; TCP sends again what was lost.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkHeader {
    /// The guest's address in network byte order; IPv4 as `::ffff:a.b.c.d`.
    pub address: [u16; 8],
    /// Destination and source MAC of the answer, in the order of the wire. All zero: the entry is empty.
    pub macs: [u16; 6],
    /// VLAN protocol (0x8100 or 0x88a8, host byte order); 0 means untagged.
    pub vlan_protocol: u16,
    /// VLAN tag control information, host byte order.
    pub vlan_tci: u16,
}

/// What is remembered for one slot. Written by `port_ingress`, read by `responder_ingress`, zeroed by the daemon
/// before the slot is given to an instance.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkMemory {
    /// The header of the slot's latest packet.
    pub recent: LinkHeader,
    /// Headers by [`way_of`] the guest's address.
    pub ways: [LinkHeader; WAYS],
}

impl LinkHeader {
    /// Whether anything was remembered here.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        // A guest's own MAC is never zero in its first three bytes and in its last three (port_ingress refuses it).
        self.macs[0] | self.macs[1] | self.macs[2] == 0
    }
}

impl LinkMemory {
    /// The header for an answer to `address`: the one remembered for it, or else the most recent one. None before
    /// the slot's first packet.
    #[inline(always)]
    pub fn header_for(&self, address: &[u16; 8]) -> Option<LinkHeader> {
        let way = &self.ways[way_of(address)];
        if same_address(&way.address, address) && !way.is_empty() {
            return Some(*way);
        }
        if self.recent.is_empty() {
            return None;
        }
        Some(self.recent)
    }

    /// Remembers the header of a packet that just came in. Writes only what changed, so that a busy guest does not
    /// move the cache line from CPU to CPU with every packet.
    #[inline(always)]
    pub fn remember(&mut self, header: &LinkHeader) {
        let way = &mut self.ways[way_of(&header.address)];
        if !same_header(way, header) {
            *way = *header;
        }
        if !same_header(&self.recent, header) {
            self.recent = *header;
        }
    }
}

/// Which entry an address uses.
#[inline(always)]
pub fn way_of(address: &[u16; 8]) -> usize {
    let mixed = (u32::from(address[5]) ^ u32::from(address[4]) << 8)
        .wrapping_add(u32::from(address[6]) << 16 | u32::from(address[7]))
        .wrapping_mul(0x9e37_79b1);
    (mixed >> 29) as usize & (WAYS - 1)
}

// Comparisons by `==` on arrays become calls of memcmp, which the BPF target does not have.
#[inline(always)]
fn same_address(a: &[u16; 8], b: &[u16; 8]) -> bool {
    (a[0] ^ b[0])
        | (a[1] ^ b[1])
        | (a[2] ^ b[2])
        | (a[3] ^ b[3])
        | (a[4] ^ b[4])
        | (a[5] ^ b[5])
        | (a[6] ^ b[6])
        | (a[7] ^ b[7])
        == 0
}

#[inline(always)]
fn same_header(a: &LinkHeader, b: &LinkHeader) -> bool {
    same_address(&a.address, &b.address)
        && (a.macs[0] ^ b.macs[0])
            | (a.macs[1] ^ b.macs[1])
            | (a.macs[2] ^ b.macs[2])
            | (a.macs[3] ^ b.macs[3])
            | (a.macs[4] ^ b.macs[4])
            | (a.macs[5] ^ b.macs[5])
            | (a.vlan_protocol ^ b.vlan_protocol)
            | (a.vlan_tci ^ b.vlan_tci)
            == 0
}

const _: () = assert!(size_of::<LinkHeader>() == 32);
const _: () = assert!(size_of::<LinkMemory>() == 32 * (WAYS + 1));
const _: () = assert!(WAYS == 8, "way_of takes the top three bits");

#[cfg(test)]
mod tests {
    use super::*;

    fn header(address: u16, mac: u16) -> LinkHeader {
        LinkHeader {
            address: [0, 0, 0, 0, 0, 0xffff, 0x0a00, address],
            macs: [mac; 6],
            vlan_protocol: 0,
            vlan_tci: 0,
        }
    }

    #[test]
    fn an_address_gets_its_own_header_back() {
        let mut memory = LinkMemory::default();
        memory.remember(&header(1, 0x11));
        memory.remember(&header(2, 0x22));
        assert_eq!(
            memory.header_for(&header(1, 0).address),
            Some(header(1, 0x11))
        );
        assert_eq!(
            memory.header_for(&header(2, 0).address),
            Some(header(2, 0x22))
        );
    }

    #[test]
    fn an_unknown_address_gets_the_most_recent_header() {
        let mut memory = LinkMemory::default();
        assert_eq!(memory.header_for(&header(9, 0).address), None);
        memory.remember(&header(1, 0x11));
        memory.remember(&header(2, 0x22));
        assert_eq!(
            memory.header_for(&header(9, 0).address),
            Some(header(2, 0x22))
        );
    }

    #[test]
    fn many_addresses_leave_no_entry_of_a_wrong_address() {
        let mut memory = LinkMemory::default();
        for address in 0..10_000 {
            memory.remember(&header(address, address | 1));
            let found = memory.header_for(&header(address, 0).address);
            assert_eq!(found, Some(header(address, address | 1)));
        }
    }

    #[test]
    fn neighbouring_addresses_spread_over_the_ways() {
        let mut used = [false; WAYS];
        for address in 0..64 {
            used[way_of(&header(address, 0).address)] = true;
        }
        assert_eq!(used, [true; WAYS]);
    }
}
