//! What ends a transition when there is nothing to wait for: an instance whose guest is run by somebody else, or by nobody.
//!
//! Whoever does run machines ends the transitions of its own in the same way, when the machine is there or gone.

use crate::instance::{InstanceId, UnixSeconds};
use crate::store::record::Transition;
use crate::store::{InstanceRecord, InstanceState, Key, Record, View};

use crate::api::call::Change;

/// For how long a terminated instance can still be asked about: about an hour on EC2.
pub const TERMINATED_SECONDS: u64 = 3600;

/// Who else has a part in instances.
pub trait Others {
    /// Whether somebody runs a machine for it, and so ends its transitions.
    fn has_machine(&self, id: InstanceId) -> bool;
    /// Whether its guest is served by the options of this record: then they are applied.
    fn serves(&self, record: &InstanceRecord) -> bool;
}

/// What becomes of the instances that are on the way to something.
#[must_use]
pub fn settle(view: &View, others: &impl Others, now: UnixSeconds) -> Vec<Change> {
    let ids = view.instances().keys().copied();
    ids.flat_map(|id| arrive(view, id, others, now)).collect()
}

fn arrive(view: &View, id: InstanceId, others: &impl Others, now: UnixSeconds) -> Vec<Change> {
    let Some(before) = view.instance(id) else {
        return Vec::new();
    };
    // So it is with nearly all of them, at every change of any.
    if before.transition.is_none() && before.options.applied == before.options.changed {
        return Vec::new();
    }
    let mut life = view.life(id).clone();
    let mut record = before.clone();
    match record.transition {
        // Not before whoever runs its machine has taken it away.
        Some(Transition::Terminated { .. }) if record.machine.is_some() => {}
        Some(Transition::Terminated { at }) if at.0.saturating_add(TERMINATED_SECONDS) < now.0 => {
            return vec![
                Change::Remove(Key::instance(id)),
                Change::Remove(Key::life(id)),
            ];
        }
        Some(Transition::Terminated { .. }) | None => {}
        Some(_) if record.machine.is_some() || others.has_machine(id) => {}
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
    // What is changed of a stopped instance is in force when it runs again.
    let runs = record.state(&life) == InstanceState::Running;
    if runs && record.options.applied != record.options.changed && others.serves(&record) {
        record.options.apply();
    }
    let mut changes = Vec::new();
    if record != *before {
        changes.push(Change::Put(Record::Instance(Box::new(record))));
    }
    if life != *view.life(id) {
        changes.push(Change::Put(Record::Life(id, Box::new(life))));
    }
    changes
}
