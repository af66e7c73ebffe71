//! What ends a transition when there is nothing to wait for: an instance whose guest is run by somebody else, or by nobody.
//!
//! Whoever does run machines ends the transitions of its own in the same way, when the machine is there or gone.

use crate::instance::{InstanceId, UnixSeconds};
use crate::store::record::Transition;
use crate::store::{Key, Record, View};

use crate::api::call::Change;

/// For how long a terminated instance can still be asked about: about an hour on EC2.
pub const TERMINATED_SECONDS: u64 = 3600;

/// What becomes of the instances that are on the way to something, those excepted for which `has_machine`.
#[must_use]
pub fn settle(
    view: &View,
    has_machine: impl Fn(InstanceId) -> bool,
    now: UnixSeconds,
) -> Vec<Change> {
    let ids = view.instances().keys().copied();
    ids.flat_map(|id| arrive(view, id, has_machine(id), now))
        .collect()
}

fn arrive(view: &View, id: InstanceId, has_machine: bool, now: UnixSeconds) -> Vec<Change> {
    let Some(record) = view.instance(id) else {
        return Vec::new();
    };
    let mut life = view.life(id).clone();
    let mut record = record.clone();
    match record.transition {
        Some(Transition::Terminated { at }) if at.0.saturating_add(TERMINATED_SECONDS) < now.0 => {
            return vec![
                Change::Remove(Key::instance(id)),
                Change::Remove(Key::life(id)),
            ];
        }
        Some(Transition::Terminated { .. }) | None => return Vec::new(),
        Some(_) if has_machine => return Vec::new(),
        Some(Transition::Pending) => record.transition = None,
        Some(Transition::Stopping) => {
            record.transition = None;
            life.stop(now);
        }
        Some(Transition::ShuttingDown) => {
            record.transition = Some(Transition::Terminated { at: now });
            life.stop(now);
        }
    }
    let mut changes = vec![Change::Put(Record::Instance(Box::new(record)))];
    if life != *view.life(id) {
        changes.push(Change::Put(Record::Life(id, Box::new(life))));
    }
    changes
}
