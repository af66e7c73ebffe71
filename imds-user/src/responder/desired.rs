//! What a responder is to serve, and how that differs from what it was told.

use std::{collections::HashMap, io, sync::Arc};

use super::protocol::{self, Attached, Known};
use crate::instance::{Host, InstanceId, Published};

/// A change of what is served.
#[derive(Debug, Default)]
pub struct Update {
    /// What all instances share, if that changed.
    pub host: Option<Host>,
    /// New instances and new states of known ones, by slot.
    pub upsert: Vec<(u32, Arc<Published>)>,
    /// Slots whose instance is gone.
    pub remove: Vec<u32>,
}

/// Everything a new responder must be told.
#[derive(Debug, Default)]
pub(super) struct Desired {
    pub(super) host: Option<Host>,
    pub(super) instances: HashMap<u32, Arc<Published>>,
}

impl Desired {
    /// Takes a change on.
    pub(super) fn merge(&mut self, update: &Update) {
        if let Some(host) = &update.host {
            self.host = Some(host.clone());
        }
        for slot in &update.remove {
            self.instances.remove(slot);
        }
        for (slot, instance) in &update.upsert {
            self.instances.insert(*slot, Arc::clone(instance));
        }
    }

    /// An instance, and what it shares with the others.
    pub(super) fn get(&self, slot: u32) -> Option<(&Host, &Published)> {
        self.host
            .as_ref()
            .zip(self.instances.get(&slot).map(|state| &**state))
    }

    /// Who has a slot.
    pub(super) fn id_of(&self, slot: u32) -> Option<InstanceId> {
        self.instances.get(&slot).map(|state| state.instance.id)
    }

    /// Who has which slot.
    pub(super) fn ids(&self) -> impl Iterator<Item = (u32, InstanceId)> {
        let all = self.instances.iter();
        all.map(|(slot, state)| (*slot, state.instance.id))
    }

    /// What a responder must be told that was told this already. What it has as it should be stays as it is, also the time
    /// since when.
    pub(super) fn differs_from(&mut self, told: &Attached) -> io::Result<Update> {
        let known: HashMap<u32, &Known> = told
            .instances
            .iter()
            .map(|known| (known.slot, known))
            .collect();
        let mut update = Update::default();
        let host = self.host.as_ref().map(protocol::digest).transpose()?;
        if told.host != host {
            update.host = self.host.clone();
        }
        // What all share is part of what each is told.
        let is_host_known = update.host.is_none();
        for (slot, known) in &known {
            let wanted = self.instances.get(slot);
            // The connections of another instance must not become this one's.
            if wanted.is_none_or(|wanted| wanted.instance.id != known.id) {
                update.remove.push(*slot);
            }
        }
        for (slot, wanted) in &mut self.instances {
            match known.get(slot) {
                Some(known)
                    if is_host_known
                        && known.id == wanted.instance.id
                        && known.state == protocol::digest_of_state(wanted)? =>
                {
                    Arc::make_mut(wanted).at = known.at;
                }
                _ => update.upsert.push((*slot, Arc::clone(wanted))),
            }
        }
        Ok(update)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{super::protocol::Counters, *};
    use crate::{
        config::{self, Files, Installation},
        instance::UnixSeconds,
    };

    struct File(&'static str);

    impl Files for File {
        fn read(&self, _path: &Path, _bytes_max: usize) -> io::Result<Vec<u8>> {
            Ok(self.0.into())
        }
    }

    const TOML: &str = "[host]\nregion = \"eu-central-1\"\n[[instance]]\nport = \"p1\"\n[[instance]]\nport = \"p2\"\n";

    /// Two instances in the slots 1 and 2, made known at this time.
    fn desired(at: u64) -> Desired {
        let installation = Installation {
            seed: [7; 16],
            created: UnixSeconds(1_700_000_000),
        };
        let settings =
            config::load(Path::new("imds.toml"), &installation, &File(TOML)).expect("it is right");
        let instances = settings.guests.into_iter().map(|guest| {
            Arc::new(Published {
                at: UnixSeconds(at),
                limits: guest.limits,
                instance: guest.instance,
            })
        });
        Desired {
            host: Some(settings.host),
            instances: (1..).zip(instances).collect(),
        }
    }

    /// What a responder says that was told this.
    fn told(desired: &Desired) -> Attached {
        let known = |(slot, state): (&u32, &Arc<Published>)| Known {
            slot: *slot,
            id: state.instance.id,
            at: state.at,
            state: protocol::digest_of_state(state).unwrap(),
            counters: Counters::default(),
        };
        Attached {
            host: desired
                .host
                .as_ref()
                .map(|host| protocol::digest(host).unwrap()),
            instances: desired.instances.iter().map(known).collect(),
            ..Attached::default()
        }
    }

    /// A change of what is wanted, and what a responder is told then that was told everything before: whether what all
    /// share, which slots are removed, which are told (anew), and since when what is in slot 1 is in force.
    fn check(change: impl FnOnce(&mut Desired), expected: (bool, &[u32], &[u32], Option<u64>)) {
        let told = told(&desired(100));
        let mut now = desired(200);
        change(&mut now);
        let update = now.differs_from(&told).unwrap();
        let mut upsert: Vec<u32> = update.upsert.iter().map(|(slot, _)| *slot).collect();
        upsert.sort_unstable();
        let at = now.instances.get(&1).map(|state| state.at.0);
        let found = (update.host.is_some(), &*update.remove, &*upsert, at);
        assert_eq!(found, expected);
    }

    fn change(desired: &mut Desired, slot: u32, change: impl FnOnce(&mut Published)) {
        let state = desired.instances.get_mut(&slot).expect("it is there");
        change(Arc::make_mut(state));
    }

    #[test]
    fn a_responder_is_told_what_it_was_not_told_and_what_is_known_keeps_its_time() {
        check(|_| {}, (false, &[], &[], Some(100)));
        check(
            |now| change(now, 1, |state| state.limits.connections += 1),
            (false, &[], &[1], Some(200)),
        );
        check(
            |now| change(now, 2, |state| state.instance.launch_index += 1),
            (false, &[], &[2], Some(100)),
        );
        check(
            |now| drop(now.instances.remove(&1)),
            (false, &[1], &[], None),
        );
        check(
            |now| {
                let second = Arc::clone(&now.instances[&2]);
                now.instances.insert(3, second);
            },
            (false, &[], &[3], Some(100)),
        );
    }

    /// Connections of the one must not become the other's.
    #[test]
    fn a_slot_with_another_instance_is_emptied_first() {
        let swap = |now: &mut Desired| {
            let second = Arc::clone(&now.instances[&2]);
            now.instances.insert(1, second);
        };
        check(swap, (false, &[1], &[1], Some(200)));
    }

    #[test]
    fn what_all_share_makes_every_state_a_new_one() {
        let other = |now: &mut Desired| {
            now.host.as_mut().expect("a host").domain_name = Some("other".into());
        };
        check(other, (true, &[], &[1, 2], Some(200)));
    }

    #[test]
    fn a_new_responder_is_told_everything() {
        let update = desired(200).differs_from(&Attached::default()).unwrap();
        assert!(update.host.is_some());
        assert_eq!((update.upsert.len(), update.remove.len()), (2, 0));
    }
}
