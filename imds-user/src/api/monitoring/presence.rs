//! When an instance was there, as far as the records tell.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::instance::InstanceId;
use crate::metrics::Minute;
use crate::store::View;
use crate::store::record::Transition;

/// The minutes in which an instance ran, the last time: from its launch or start until it was stopped or terminated, or now.
/// `None` of one that has no record, because somebody else brought it.
#[must_use]
pub fn presence(view: &View, id: InstanceId, now: Minute) -> Option<RangeInclusive<Minute>> {
    let record = &view.instances().get(&id)?.value;
    let life = view.life(id);
    let gone = match record.transition {
        Some(Transition::Terminated { at }) => Some(at),
        Some(Transition::Pending) => return None,
        _ => life.stopped,
    };
    let since = Minute::holding(record.launch_time(life));
    Some(since..=gone.map_or(now, Minute::holding).min(now))
}

/// Instances that have points, and when the last one is: those that are or were there, and those of whom something was counted,
/// with the hour in which it was.
#[must_use]
pub fn instances(
    view: &View,
    counted: &BTreeMap<InstanceId, u64>,
    now: Minute,
) -> BTreeMap<InstanceId, Minute> {
    let by_count = counted
        .iter()
        .map(|(id, hour)| (*id, Minute(hour * 60 + 59).min(now)));
    let mut last: BTreeMap<_, _> = by_count.collect();
    for id in view.instances().keys() {
        let present = presence(view, *id, now);
        let end = present.map(|minutes| *minutes.end());
        if let Some(end) = end.filter(|end| *end >= now.first_kept()) {
            let last = last.entry(*id).or_insert(end);
            *last = end.max(*last);
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::UnixSeconds;
    use crate::life::Life;
    use crate::life::tests::configured;
    use crate::store::backend::{Item, Revision};
    use crate::store::{InstanceRecord, Owner, Record};

    const NOW: Minute = Minute(100);

    fn check(transition: Option<Transition>, life: Life, expected: Option<(u64, u64)>) {
        let mut spec = configured("name = \"web\"");
        spec.pending_time = UnixSeconds(600);
        let id = spec.id;
        let mut record = InstanceRecord::new("web", Owner::Api, spec);
        record.transition = transition;
        let mut view = View::default();
        let records = [
            Record::Instance(Box::new(record)),
            Record::Life(id, Box::new(life)),
        ];
        let items = records.iter().map(|record| Item {
            key: record.key(),
            value: Some(record.encode().unwrap()),
            revision: Revision(1),
        });
        view.take(Revision(1), items.collect()).unwrap();
        let found = presence(&view, id, NOW);
        let found = found.map(|minutes| (minutes.start().0, minutes.end().0));
        assert_eq!(found, expected);
    }

    #[test]
    fn an_instance_is_there_from_its_launch_until_it_is_stopped_or_terminated() {
        let life = |started: Option<u64>, stopped: Option<u64>| Life {
            started: started.map(UnixSeconds),
            stopped: stopped.map(UnixSeconds),
            ..Life::NOTHING
        };
        check(None, Life::NOTHING, Some((10, 100)));
        check(None, life(Some(1200), None), Some((20, 100)));
        check(None, life(None, Some(3059)), Some((10, 50)));
        check(Some(Transition::Pending), Life::NOTHING, None);
        let terminated = Transition::Terminated {
            at: UnixSeconds(1800),
        };
        check(Some(terminated), life(None, Some(3059)), Some((10, 30)));
        let id = InstanceId::from_digest(&[1; 9]);
        assert_eq!(presence(&View::default(), id, NOW), None);
    }
}
