//! The books: from counters that only grow to what was counted in which minute, each call once.
//!
//! What a look at a slot's counters shows more than the one before was counted in between. The last look that is in the store
//! ([`Base`]) is where a later daemon goes on, so that nothing is counted twice or lost between two daemons.

use std::collections::{BTreeMap, BTreeSet};

use super::{Base, Batch, Counts, Minute};
use crate::instance::{InstanceId, UnixMillis};

/// Looks are this close to each other, or one was missed. What was counted since the last look is of the minute of that one;
/// of now, if it was too long ago to say when.
const LOOKS_APART_MILLIS: u64 = 2_000;
/// How many minutes of instances wait for a disk to take them, 64 bytes each or so. Beyond that an instance's minutes become
/// one, the latest: nothing is lost but when it was.
pub const UNKEPT_MAX: usize = 1 << 18;

/// What was counted and is not kept yet, and from where to count on.
#[derive(Debug, Default)]
pub struct Ledger {
    bases: BTreeMap<u32, Base>,
    /// Slots whose base is another than the one that is kept.
    moved: BTreeSet<u32>,
    unkept: BTreeMap<(InstanceId, Minute), Counts>,
    looked: Option<UnixMillis>,
}

impl Ledger {
    /// Goes on from what is kept.
    #[must_use]
    pub fn open(bases: impl IntoIterator<Item = (u32, Base)>) -> Self {
        Self {
            bases: bases.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Goes on with a responder that counts on for these, or that was never told of any. Counters that are less than what is in
    /// the books already are no reason to count them again.
    pub fn resume(&mut self, counted: &[(u32, InstanceId, Counts)], now: UnixMillis) {
        let known: BTreeMap<u32, InstanceId> =
            counted.iter().map(|(slot, id, _)| (*slot, *id)).collect();
        self.close_unless(|slot, id| known.get(&slot) == Some(&id));
        for (slot, _, counts) in counted {
            if let Some(base) = self.bases.get_mut(slot) {
                let less = base.counts.at_most(*counts);
                if less != base.counts {
                    base.counts = less;
                    self.moved.insert(*slot);
                }
            }
        }
        self.looked = None;
        self.look(counted, now);
    }

    /// Enters what the counters of slots show now.
    pub fn look(&mut self, counted: &[(u32, InstanceId, Counts)], now: UnixMillis) {
        let minute = self.minute(now);
        self.looked = Some(now);
        for (slot, id, counts) in counted {
            let base = self.bases.get(slot).filter(|base| base.id == *id);
            let before = base.map(|base| base.counts).unwrap_or_default();
            self.enter(*slot, *id, counts.since(before), before, minute);
        }
    }

    /// Enters what was counted elsewhere for slots; from now on their counters contain it.
    pub fn add(&mut self, more: &[(u32, InstanceId, Counts)], now: UnixMillis) {
        let minute = self.minute(now);
        for (slot, id, more) in more {
            match self.bases.get(slot) {
                Some(base) if base.id == *id => {
                    let before = base.counts;
                    self.enter(*slot, *id, *more, before, minute);
                }
                _ => self.count(*id, minute, *more),
            }
        }
    }

    fn enter(&mut self, slot: u32, id: InstanceId, more: Counts, before: Counts, minute: Minute) {
        if more.is_nothing() {
            return;
        }
        let mut counts = before;
        counts += more;
        self.bases.insert(slot, Base { id, counts });
        self.moved.insert(slot);
        self.count(id, minute, more);
    }

    fn count(&mut self, id: InstanceId, minute: Minute, more: Counts) {
        if more.is_nothing() {
            return;
        }
        if self.unkept.len() >= UNKEPT_MAX && !self.unkept.contains_key(&(id, minute)) {
            self.fold();
        }
        *self.unkept.entry((id, minute)).or_default() += more;
    }

    /// Makes one minute of all those of an instance.
    fn fold(&mut self) {
        let mut folded: BTreeMap<InstanceId, (Minute, Counts)> = BTreeMap::new();
        for ((id, minute), counts) in std::mem::take(&mut self.unkept) {
            let of_id = folded.entry(id).or_default();
            // They come in order.
            of_id.0 = minute;
            of_id.1 += counts;
        }
        let folded = folded.into_iter();
        self.unkept = folded
            .map(|(id, (minute, counts))| ((id, minute), counts))
            .collect();
    }

    fn minute(&self, now: UnixMillis) -> Minute {
        let is_close =
            |looked: &UnixMillis| looked.0 <= now.0 && now.0 - looked.0 <= LOOKS_APART_MILLIS;
        Minute::of(self.looked.filter(is_close).unwrap_or(now))
    }

    /// Nobody counts on where this says so: whoever has such a slot next begins at nothing.
    pub fn close_unless(&mut self, goes_on: impl Fn(u32, InstanceId) -> bool) {
        let closed: Vec<u32> = self
            .bases
            .iter()
            .filter(|(slot, base)| !goes_on(**slot, base.id))
            .map(|(slot, _)| *slot)
            .collect();
        for slot in closed {
            self.bases.remove(&slot);
            self.moved.insert(slot);
        }
    }

    /// Whose counters a slot has, as far as something was counted.
    #[must_use]
    pub fn id_of(&self, slot: u32) -> Option<InstanceId> {
        self.bases.get(&slot).map(|base| base.id)
    }

    /// What is not kept yet of an instance.
    pub fn unkept_of(&self, id: InstanceId) -> impl Iterator<Item = (Minute, Counts)> + '_ {
        let range = (id, Minute(0))..=(id, Minute(u64::MAX));
        let counts = self.unkept.range(range);
        counts.map(|((_, minute), counts)| (*minute, *counts))
    }

    /// Of whom something is not kept yet, and since when.
    pub fn unkept_ids(&self) -> impl Iterator<Item = (InstanceId, Minute)> + '_ {
        self.unkept.keys().copied()
    }

    /// Takes out what is to be kept now.
    pub fn take(&mut self, now: UnixMillis) -> Batch {
        let counts = std::mem::take(&mut self.unkept).into_iter();
        let moved = std::mem::take(&mut self.moved).into_iter();
        Batch {
            counts: counts
                .map(|((id, minute), counts)| (id, minute, counts))
                .collect(),
            bases: moved
                .map(|slot| (slot, self.bases.get(&slot).copied()))
                .collect(),
            first_kept: Minute::of(now).first_kept(),
        }
    }

    /// Takes back what could not be kept.
    pub fn put_back(&mut self, batch: Batch) {
        self.moved.extend(batch.bases.iter().map(|(slot, _)| *slot));
        for (id, minute, counts) in batch.counts {
            self.count(id, minute, counts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000;
    /// The beginning of minute 1000.
    const NOW: u64 = 1000 * 60 * SECOND;

    fn id(number: u8) -> InstanceId {
        InstanceId::from_digest(&[number; 9])
    }

    fn counts(no_token: u64) -> Counts {
        Counts {
            no_token,
            no_token_rejected: 0,
        }
    }

    fn look(ledger: &mut Ledger, millis: u64, counted: &[(u32, u8, u64)]) {
        let counted = of(counted);
        ledger.look(&counted, UnixMillis(millis));
    }

    fn of(counted: &[(u32, u8, u64)]) -> Vec<(u32, InstanceId, Counts)> {
        let of_one = |one: &(u32, u8, u64)| (one.0, id(one.1), counts(one.2));
        counted.iter().map(of_one).collect()
    }

    /// What is not kept: instance, minute and count.
    fn check(ledger: &Ledger, expected: &[(u8, u64, u64)]) {
        let found: Vec<_> = ledger
            .unkept
            .iter()
            .map(|((id, minute), counts)| (*id, minute.0, counts.no_token))
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(number, minute, count)| (id(*number), *minute, *count))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_was_counted_between_two_looks_is_of_the_minute_of_the_first() {
        let mut ledger = Ledger::default();
        look(&mut ledger, NOW + 30 * SECOND, &[(1, 7, 2)]);
        look(&mut ledger, NOW + 31 * SECOND, &[(1, 7, 2)]);
        check(&ledger, &[(7, 1000, 2)]);
        look(&mut ledger, NOW + 59 * SECOND, &[(1, 7, 3)]);
        // The look at the end of the minute comes a little late.
        look(&mut ledger, NOW + 60 * SECOND + 3, &[(1, 7, 5)]);
        check(&ledger, &[(7, 1000, 5)]);
        look(&mut ledger, NOW + 60 * SECOND + 900, &[(1, 7, 6)]);
        check(&ledger, &[(7, 1000, 5), (7, 1001, 1)]);
        // Nobody looked for a while.
        look(&mut ledger, NOW + 300 * SECOND, &[(1, 7, 10)]);
        check(&ledger, &[(7, 1000, 5), (7, 1001, 1), (7, 1005, 4)]);
        // Somebody set the clock back.
        look(&mut ledger, NOW, &[(1, 7, 11)]);
        check(&ledger, &[(7, 1000, 6), (7, 1001, 1), (7, 1005, 4)]);
    }

    #[test]
    fn counters_that_seem_to_go_back_are_late_news() {
        let mut ledger = Ledger::default();
        look(&mut ledger, NOW, &[(1, 7, 5)]);
        ledger.add(&of(&[(1, 7, 2)]), UnixMillis(NOW));
        look(&mut ledger, NOW, &[(1, 7, 5)]);
        look(&mut ledger, NOW, &[(1, 7, 8)]);
        check(&ledger, &[(7, 1000, 8)]);
    }

    #[test]
    fn what_comes_late_of_an_instance_that_has_gone_is_counted_for_it() {
        let mut ledger = Ledger::default();
        look(&mut ledger, NOW, &[(1, 7, 5)]);
        ledger.close_unless(|slot, _| slot != 1);
        look(&mut ledger, NOW, &[(1, 8, 1)]);
        ledger.add(&of(&[(1, 7, 2)]), UnixMillis(NOW));
        look(&mut ledger, NOW, &[(1, 8, 1)]);
        check(&ledger, &[(7, 1000, 7), (8, 1000, 1)]);
    }

    #[test]
    fn a_slot_that_was_given_back_begins_at_nothing_for_the_same_instance_too() {
        let mut ledger = Ledger::default();
        look(&mut ledger, NOW, &[(1, 7, 5)]);
        ledger.close_unless(|_, _| false);
        look(&mut ledger, NOW, &[(1, 7, 2)]);
        check(&ledger, &[(7, 1000, 7)]);
    }

    #[test]
    fn a_later_daemon_goes_on_from_what_is_kept() {
        let mut first = Ledger::default();
        look(&mut first, NOW, &[(1, 7, 5), (2, 8, 5), (3, 9, 5)]);
        let kept = first.take(UnixMillis(NOW));
        assert_eq!(kept.counts.len(), 3);
        let bases = kept.bases.into_iter();
        let bases: Vec<_> = bases
            .filter_map(|(slot, base)| Some((slot, base?)))
            .collect();
        let reopen = || Ledger::open(bases.clone());
        // The responder counted on; one instance is another, one is gone.
        let mut next = reopen();
        next.resume(&of(&[(1, 7, 6), (2, 6, 2)]), UnixMillis(NOW));
        check(&next, &[(6, 1000, 2), (7, 1000, 1)]);
        let batch = next.take(UnixMillis(NOW));
        let moved: Vec<_> = batch
            .bases
            .iter()
            .map(|(slot, base)| (*slot, base.is_some()))
            .collect();
        assert_eq!(moved, [(1, true), (2, true), (3, false)]);
        // No responder was found: another begins at nothing.
        let mut anew = reopen();
        anew.resume(&[], UnixMillis(NOW));
        look(&mut anew, NOW, &[(1, 7, 6)]);
        check(&anew, &[(7, 1000, 6)]);
        // It lags behind: nothing is counted twice.
        let mut late = reopen();
        late.resume(&of(&[(1, 7, 4)]), UnixMillis(NOW));
        check(&late, &[]);
        look(&mut late, NOW, &[(1, 7, 6)]);
        check(&late, &[(7, 1000, 2)]);
    }

    #[test]
    fn what_could_not_be_kept_is_kept_later() {
        let mut ledger = Ledger::default();
        look(&mut ledger, NOW, &[(1, 7, 5)]);
        let batch = ledger.take(UnixMillis(NOW));
        look(&mut ledger, NOW, &[(1, 7, 6)]);
        ledger.put_back(batch);
        check(&ledger, &[(7, 1000, 6)]);
        let batch = ledger.take(UnixMillis(NOW));
        let base = Base {
            id: id(7),
            counts: counts(6),
        };
        assert_eq!(batch.bases, [(1, Some(base))]);
        assert_eq!(batch.first_kept, Minute(0));
        assert!(ledger.take(UnixMillis(NOW)).is_empty());
    }

    #[test]
    fn a_disk_that_stays_full_costs_the_time_of_what_was_counted_and_no_count() {
        let mut ledger = Ledger::default();
        let n = UNKEPT_MAX as u64 + 10;
        for minute in 0..n {
            look(&mut ledger, minute * 60 * SECOND, &[(1, 7, minute + 1)]);
        }
        assert!(ledger.unkept.len() < 20);
        let total: u64 = ledger.unkept.values().map(|counts| counts.no_token).sum();
        assert_eq!(total, n);
    }
}
