//! What a store holds, in memory and typed: what readers look at, and what changes are drafted from. Pure.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::backend::{Item, Revision, Transaction};
use super::history::{NewEntry, Note, difference};
use super::record::{
    AccessKey, AccountDefaults, InstanceRecord, Key, KeyPair, Kind, Record, RecordError,
};
use crate::config::Rest;
use crate::discovery::admitted::Admission;
use crate::instance::{Instance, InstanceId, SecurityGroup, Subnet};
use crate::life::Life;

/// A value, and the revision that wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct Versioned<T> {
    /// Since when it is so.
    pub revision: Revision,
    /// The value, shared with whoever read it before.
    pub value: Arc<T>,
}

type Table<K, T> = BTreeMap<K, Versioned<T>>;

/// All records at one revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    revision: Revision,
    instances: Table<InstanceId, InstanceRecord>,
    lives: Table<InstanceId, Life>,
    admissions: Table<Box<str>, Admission>,
    defaults: Option<Versioned<AccountDefaults>>,
    access_keys: Table<Box<str>, AccessKey>,
    key_pairs: Table<Box<str>, KeyPair>,
    rest: Option<Versioned<Rest>>,
    shared: Shared,
}

/// Subnets and lists of security groups, of which most instances of a host have the same.
#[derive(Clone, Debug, Default)]
struct Shared {
    subnets: HashSet<Arc<Subnet>>,
    security_groups: HashSet<Arc<[SecurityGroup]>>,
}

/// It says nothing of what a view shows.
impl PartialEq for Shared {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Shared {
    /// Has the instance share what others have too. A text of JSON shares nothing.
    fn share(&mut self, instance: &mut Instance) {
        for interface in std::iter::once(&mut instance.primary).chain(&mut instance.secondary) {
            match self.subnets.get(&interface.subnet) {
                Some(known) => interface.subnet = Arc::clone(known),
                None => drop(self.subnets.insert(Arc::clone(&interface.subnet))),
            }
            match self.security_groups.get(&interface.security_groups) {
                Some(known) => interface.security_groups = Arc::clone(known),
                None => drop(
                    self.security_groups
                        .insert(Arc::clone(&interface.security_groups)),
                ),
            }
        }
    }
}

impl View {
    /// Up to where it is true.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The instances, by their ids; also those that are terminated and not forgotten yet.
    #[must_use]
    pub fn instances(&self) -> &BTreeMap<InstanceId, Versioned<InstanceRecord>> {
        &self.instances
    }

    /// One of them.
    #[must_use]
    pub fn instance(&self, id: InstanceId) -> Option<&InstanceRecord> {
        self.instances.get(&id).map(|versioned| &*versioned.value)
    }

    /// What commands did to an instance; nothing to most.
    #[must_use]
    pub fn life(&self, id: InstanceId) -> &Life {
        static NOTHING: Life = Life::NOTHING;
        self.lives
            .get(&id)
            .map_or(&NOTHING, |versioned| &versioned.value)
    }

    /// Every life in which something happened.
    #[must_use]
    pub fn lives(&self) -> &BTreeMap<InstanceId, Versioned<Life>> {
        &self.lives
    }

    /// Guests that a person admitted, by their names.
    #[must_use]
    pub fn admissions(&self) -> &BTreeMap<Box<str>, Versioned<Admission>> {
        &self.admissions
    }

    /// What new instances get.
    #[must_use]
    pub fn defaults(&self) -> AccountDefaults {
        self.defaults
            .as_ref()
            .map(|versioned| *versioned.value)
            .unwrap_or_default()
    }

    /// An access key, by its id.
    #[must_use]
    pub fn access_key(&self, id: &str) -> Option<&AccessKey> {
        self.access_keys.get(id).map(|versioned| &*versioned.value)
    }

    /// All access keys.
    #[must_use]
    pub fn access_keys(&self) -> &BTreeMap<Box<str>, Versioned<AccessKey>> {
        &self.access_keys
    }

    /// A key pair, by its name.
    #[must_use]
    pub fn key_pair(&self, name: &str) -> Option<&KeyPair> {
        self.key_pairs.get(name).map(|versioned| &*versioned.value)
    }

    /// All key pairs.
    #[must_use]
    pub fn key_pairs(&self) -> &BTreeMap<Box<str>, Versioned<KeyPair>> {
        &self.key_pairs
    }

    /// What the file says besides instances; none if none was ever applied.
    #[must_use]
    pub fn rest(&self) -> Option<&Rest> {
        self.rest.as_ref().map(|versioned| &*versioned.value)
    }

    /// A record of any kind, and the revision that wrote it.
    #[must_use]
    pub fn record(&self, key: &Key) -> Option<(Revision, Record)> {
        fn found<T: Clone>(
            versioned: Option<&Versioned<T>>,
            record: impl FnOnce(T) -> Record,
        ) -> Option<(Revision, Record)> {
            versioned.map(|found| (found.revision, record(T::clone(&found.value))))
        }
        let name = &*key.name;
        match key.kind {
            Kind::Instance => found(self.instances.get(&name.parse().ok()?), |value| {
                Record::Instance(Box::new(value))
            }),
            Kind::Life => {
                let id = name.parse().ok()?;
                found(self.lives.get(&id), |value| {
                    Record::Life(id, Box::new(value))
                })
            }
            Kind::Admission => found(self.admissions.get(name), |value| {
                Record::Admission(Box::new(value))
            }),
            Kind::Defaults => found(self.defaults.as_ref(), Record::Defaults),
            Kind::AccessKey => found(self.access_keys.get(name), Record::AccessKey),
            Kind::KeyPair => found(self.key_pairs.get(name), |value| {
                Record::KeyPair(Box::new(value))
            }),
            Kind::Rest => found(self.rest.as_ref(), Record::Rest),
        }
    }

    /// Begins to draft a change of what is there now.
    #[must_use]
    pub fn draft(&self, note: Note) -> Draft<'_> {
        Draft {
            of: self,
            note,
            transaction: Transaction::default(),
        }
    }

    /// Takes on what changed.
    ///
    /// # Errors
    /// A value cannot be understood. The view is of no use then.
    pub fn take(&mut self, revision: Revision, items: Vec<Item>) -> Result<(), RecordError> {
        for item in items {
            match &item.value {
                Some(value) => self.put(item.revision, Record::decode(&item.key, value)?),
                None => self.remove(&item.key),
            }
        }
        self.revision = revision;
        Ok(())
    }

    fn put(&mut self, revision: Revision, record: Record) {
        fn versioned<T>(revision: Revision, value: T) -> Versioned<T> {
            Versioned {
                revision,
                value: Arc::new(value),
            }
        }
        match record {
            Record::Instance(mut value) => {
                self.shared.share(&mut value.spec);
                let id = value.spec.id;
                self.instances.insert(id, versioned(revision, *value));
            }
            Record::Life(id, value) => {
                self.lives.insert(id, versioned(revision, *value));
            }
            Record::Admission(value) => {
                let name = value.called().into();
                self.admissions.insert(name, versioned(revision, *value));
            }
            Record::Defaults(value) => self.defaults = Some(versioned(revision, value)),
            Record::AccessKey(value) => {
                let id = value.id.clone();
                self.access_keys.insert(id, versioned(revision, value));
            }
            Record::Rest(value) => self.rest = Some(versioned(revision, value)),
            Record::KeyPair(value) => {
                let name = value.name.clone();
                self.key_pairs.insert(name, versioned(revision, *value));
            }
        }
    }

    fn remove(&mut self, key: &Key) {
        let name = &*key.name;
        let id = || name.parse::<InstanceId>().ok();
        match key.kind {
            Kind::Instance => drop(id().and_then(|id| self.instances.remove(&id))),
            Kind::Life => drop(id().and_then(|id| self.lives.remove(&id))),
            Kind::Admission => drop(self.admissions.remove(name)),
            Kind::Defaults => self.defaults = None,
            Kind::AccessKey => drop(self.access_keys.remove(name)),
            Kind::KeyPair => drop(self.key_pairs.remove(name)),
            Kind::Rest => self.rest = None,
        }
    }
}

/// A change in the making: of records as a [`View`] shows them, on the condition that they still are so, with an entry in
/// the history for each.
#[derive(Clone, Debug)]
pub struct Draft<'a> {
    of: &'a View,
    note: Note,
    transaction: Transaction,
}

impl Draft<'_> {
    /// Makes a record what is given, or adds it. Nothing happens if it is so already. To be called once for a key.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn put(&mut self, record: &Record) -> Result<(), RecordError> {
        let key = record.key();
        let before = self.of.record(&key);
        if before.as_ref().is_some_and(|(_, before)| before == record) {
            return Ok(());
        }
        let value = record.encode()?;
        let old = before.as_ref().map(|(_, before)| before.shown());
        let old = old.or_else(|| Some(Record::absent(&key)?.shown()));
        let entry = NewEntry {
            note: self.note.clone(),
            about: Some(key.clone()),
            changes: difference(old.as_ref(), Some(&record.shown())),
            refused: None,
        };
        self.write(
            key,
            before.map(|(revision, _)| revision),
            Some(value),
            entry,
        );
        Ok(())
    }

    /// Makes a record what is given, and no entry of it: what becomes known of a change that has its entry already.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn put_unnoted(&mut self, record: &Record) -> Result<(), RecordError> {
        let key = record.key();
        let revision = self.of.record(&key).map(|(revision, _)| revision);
        let value = record.encode()?;
        self.transaction.expected.push((key.clone(), revision));
        self.transaction.writes.push((key, Some(value)));
        Ok(())
    }

    /// Takes a record away. Nothing happens if it is not there.
    pub fn remove(&mut self, key: &Key) {
        let Some((revision, before)) = self.of.record(key) else {
            return;
        };
        let entry = NewEntry {
            note: self.note.clone(),
            about: Some(key.clone()),
            changes: difference(
                Some(&before.shown()),
                Record::absent(key).map(|absent| absent.shown()).as_ref(),
            ),
            refused: None,
        };
        self.write(key.clone(), Some(revision), None, entry);
    }

    /// Makes what this record says a condition, though it stays.
    pub fn rely_on(&mut self, key: Key) {
        let revision = self.of.record(&key).map(|(revision, _)| revision);
        self.transaction.expected.push((key, revision));
    }

    /// Makes it a condition that no record of a kind was written since, not even a new one.
    pub fn rely_on_all(&mut self, kind: Kind) {
        let expected = (kind, self.of.revision());
        self.transaction.expected_of_all.push(expected);
    }

    /// Whether there is nothing to be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.transaction.writes.is_empty()
    }

    /// What is to be committed. Where nothing changes, that somebody asked for it is still noted.
    #[must_use]
    pub fn finish(self) -> Transaction {
        let mut transaction = self.transaction;
        if transaction.writes.is_empty() {
            transaction.history.push(self.note.of_call(None, None));
        }
        transaction
    }

    fn write(
        &mut self,
        key: Key,
        expected: Option<Revision>,
        value: Option<Vec<u8>>,
        entry: NewEntry,
    ) {
        self.transaction.expected.push((key.clone(), expected));
        self.transaction.writes.push((key, value));
        self.transaction.history.push(entry);
    }
}
