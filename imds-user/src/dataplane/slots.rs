//! Which slots are given away. Pure.

use std::collections::VecDeque;

use imds_ebpf::abi::slot::{INDEX_BITS, INSTANCES_MAX, SLOT_MAX};

/// Hands out slots, so that a number comes back as late as possible: first every index once, then the index that was
/// given back longest ago, with its generation counted up.
#[derive(Debug, Default)]
pub struct SlotAllocator {
    /// Indices below this were used at least once.
    fresh: u32,
    /// What the next user of each returned index will get, oldest first.
    returned: VecDeque<u32>,
}

/// Every slot is taken: the host has 65,536 instances.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {INSTANCES_MAX} slots are taken: remove instances from the configuration")]
pub struct SlotsExhausted;

impl SlotAllocator {
    /// A slot that nobody has.
    ///
    /// # Errors
    /// When all are taken.
    pub fn allocate(&mut self) -> Result<u32, SlotsExhausted> {
        if self.fresh < INSTANCES_MAX {
            let index = self.fresh;
            self.fresh += 1;
            // Slot 0 is nobody's, so that zeroed memory never names an instance: index 0 starts a generation later.
            return Ok(if index == 0 {
                next_generation(index)
            } else {
                index
            });
        }
        self.returned.pop_front().ok_or(SlotsExhausted)
    }

    /// Takes back a slot that no packet and no connection carries any more.
    pub fn release(&mut self, slot: u32) {
        self.returned.push_back(next_generation(slot));
    }
}

/// The same index, a generation later; after the last generation the first again, without slot 0 and without the
/// highest number, whose tag 127.255.255.255 is a broadcast address.
fn next_generation(slot: u32) -> u32 {
    let next = (slot + (1 << INDEX_BITS)) & SLOT_MAX;
    if next == 0 || next == SLOT_MAX {
        return next_generation(next);
    }
    next
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use imds_ebpf::abi::slot::index_of;

    use super::*;

    #[test]
    fn every_index_is_handed_out_once_and_then_no_more() {
        let mut slots = SlotAllocator::default();
        let given: HashSet<u32> = (0..INSTANCES_MAX)
            .map(|_| index_of(slots.allocate().expect("there are this many")))
            .collect();
        assert_eq!(given.len(), INSTANCES_MAX as usize);
        assert_eq!(slots.allocate(), Err(SlotsExhausted));
    }

    #[test]
    fn a_returned_index_gets_a_new_number_and_the_oldest_comes_first() {
        let mut slots = SlotAllocator::default();
        let all: Vec<u32> = (0..INSTANCES_MAX)
            .map(|_| slots.allocate().expect("free"))
            .collect();
        slots.release(all[7]);
        slots.release(all[3]);
        assert_eq!(slots.allocate(), Ok(all[7] + (1 << INDEX_BITS)));
        assert_eq!(slots.allocate(), Ok(all[3] + (1 << INDEX_BITS)));
    }

    #[test]
    fn an_index_goes_through_its_generations_without_zero_and_without_the_broadcast_tag() {
        for index in [0, 1, INSTANCES_MAX - 1] {
            let mut slot = index;
            let mut seen = HashSet::new();
            for _ in 0..1000 {
                slot = next_generation(slot);
                assert_eq!(index_of(slot), index);
                assert!(slot != 0 && slot < SLOT_MAX);
                seen.insert(slot);
            }
            assert!(seen.len() >= 127, "index {index}: {}", seen.len());
        }
    }
}
