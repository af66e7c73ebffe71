//! Which slots are given away. Pure; what has to be remembered of it is in the table of owners.

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
    /// How many were ever given back.
    n_returned: u64,
}

/// What became of an index that was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// The slot that it was last given away as.
    pub slot: u32,
    /// How many were given back before it; none while it is somebody's.
    pub returned: Option<u64>,
}

/// Every slot is taken: the host has 65,536 instances.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {INSTANCES_MAX} slots are taken: remove instances from the configuration")]
pub struct SlotsExhausted;

impl SlotAllocator {
    /// Goes on where an earlier one ended: the past of each index that it used, in the order of the indices.
    #[must_use]
    pub fn recover(past: &[Past]) -> Self {
        let mut returned: Vec<(u64, u32)> = past
            .iter()
            .filter_map(|one| Some((one.returned?, next_generation(one.slot))))
            .collect();
        returned.sort_unstable();
        Self {
            fresh: u32::try_from(past.len()).unwrap_or(INSTANCES_MAX),
            n_returned: returned.last().map_or(0, |(order, _)| order + 1),
            returned: returned.into_iter().map(|(_, slot)| slot).collect(),
        }
    }

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

    /// Takes back a slot that no packet and no connection carries any more; how many were before it.
    pub fn release(&mut self, slot: u32) -> u64 {
        self.returned.push_back(next_generation(slot));
        let order = self.n_returned;
        self.n_returned += 1;
        order
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
    use std::collections::{BTreeMap, HashSet};

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

    /// What the table of owners would remember.
    #[derive(Default)]
    struct Table(BTreeMap<u32, Past>);

    impl Table {
        fn allocate(&mut self, slots: &mut SlotAllocator) -> Option<u32> {
            let slot = slots.allocate().ok()?;
            let past = Past {
                slot,
                returned: None,
            };
            self.0.insert(index_of(slot), past);
            Some(slot)
        }

        fn release(&mut self, slots: &mut SlotAllocator, slot: u32) {
            let returned = Some(slots.release(slot));
            self.0.insert(index_of(slot), Past { slot, returned });
        }

        fn recovered(&self) -> SlotAllocator {
            SlotAllocator::recover(&self.0.values().copied().collect::<Vec<_>>())
        }
    }

    /// A restart between any two steps changes nothing: the one that goes on and the one that is recovered hand out the
    /// same slots.
    #[test]
    fn a_recovered_allocator_goes_on_as_if_nothing_had_happened() {
        let (mut slots, mut table) = (SlotAllocator::default(), Table::default());
        let mut held: VecDeque<u32> = (0..INSTANCES_MAX)
            .map(|_| table.allocate(&mut slots).expect("free"))
            .collect();
        for round in 0..200 {
            for _ in 0..round % 7 {
                // From the middle, so that the order of return is not that of the indices.
                let slot = held.remove(held.len() / 2).expect("many are held");
                table.release(&mut slots, slot);
            }
            let mut recovered = table.recovered();
            let next = table.allocate(&mut slots);
            assert_eq!(recovered.allocate().ok(), next, "round {round}");
            held.extend(next);
            slots = table.recovered();
        }
    }

    #[test]
    fn a_recovered_allocator_gives_no_slot_that_is_somebodys() {
        let (mut slots, mut table) = (SlotAllocator::default(), Table::default());
        let first = table.allocate(&mut slots).expect("free");
        let second = table.allocate(&mut slots).expect("free");
        table.release(&mut slots, first);
        let mut recovered = table.recovered();
        let given: HashSet<u32> = std::iter::from_fn(|| recovered.allocate().ok()).collect();
        assert_eq!(given.len(), INSTANCES_MAX as usize - 1);
        assert!(!given.contains(&first) && !given.contains(&second));
        assert!(!given.iter().any(|slot| index_of(*slot) == index_of(second)));
    }
}
