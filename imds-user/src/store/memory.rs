//! A store that forgets: what SQLite is compared with, and what tests of its users stand on.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::backend::{
    Backend, CommitError, HistoryQuery, Item, Revision, State, StoreError, Transaction,
};
use super::history::Entry;
use super::record::Key;
use crate::instance::InstanceId;
use crate::metrics::{Base, Batch, Counts, Minute};

/// Keys, values and history in memory.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    revision: Revision,
    items: BTreeMap<Key, (Option<Vec<u8>>, Revision)>,
    history: Vec<Entry>,
    metered: BTreeMap<(InstanceId, Minute), Counts>,
    bases: BTreeMap<u32, Base>,
}

impl Memory {
    fn items(&self, is_wanted: impl Fn(&Item) -> bool) -> State {
        let items = self.items.iter().map(|(key, (value, revision))| Item {
            key: key.clone(),
            value: value.clone(),
            revision: *revision,
        });
        State {
            revision: self.revision,
            items: items.filter(is_wanted).collect(),
        }
    }

    fn written(&self, key: &Key) -> Option<Revision> {
        let (value, revision) = self.items.get(key)?;
        value.as_ref().map(|_| *revision)
    }
}

impl Backend for Memory {
    fn load(&mut self) -> Result<State, StoreError> {
        Ok(self.items(|item| item.value.is_some()))
    }

    fn changes_after(&mut self, revision: Revision) -> Result<Option<State>, StoreError> {
        let changes = self.items(|item| item.revision > revision);
        Ok((revision <= self.revision).then_some(changes))
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<Revision, CommitError> {
        for (key, expected) in &transaction.expected {
            if self.written(key) != *expected {
                return Err(CommitError::Conflict(key.clone()));
            }
        }
        for (kind, revision) in &transaction.expected_of_all {
            let mut items = self.items.iter();
            if let Some((key, _)) = items.find(|(key, (_, at))| key.kind == *kind && at > revision)
            {
                return Err(CommitError::Conflict(key.clone()));
            }
        }
        if !transaction.writes.is_empty() {
            self.revision.0 += 1;
        }
        for (key, value) in &transaction.writes {
            let item = (value.clone(), self.revision);
            self.items.insert(key.clone(), item);
        }
        for entry in &transaction.history {
            self.history.push(Entry {
                number: self.history.len() as u64 + 1,
                revision: self.revision,
                at: entry.note.at,
                who: entry.note.who.to_string().into(),
                what: entry.note.what.clone(),
                about: entry.about.as_ref().map(|key| key.to_string().into()),
                changes: entry.changes.clone(),
                refused: entry.refused.clone(),
            });
        }
        Ok(self.revision)
    }

    fn history(&mut self, query: &HistoryQuery) -> Result<Vec<Entry>, StoreError> {
        let about: Vec<String> = query.about.iter().map(ToString::to_string).collect();
        let is_wanted = |entry: &&Entry| {
            let is_about = |wanted: &String| entry.about.as_deref() == Some(wanted);
            let is_early = query.before.is_none_or(|before| entry.number < before);
            is_early && (about.is_empty() || about.iter().any(is_about))
        };
        let entries = self.history.iter().rev().filter(is_wanted);
        Ok(entries.take(query.limit).cloned().collect())
    }

    fn meter(&mut self, batch: &Batch) -> Result<(), StoreError> {
        for (id, minute, counts) in &batch.counts {
            *self.metered.entry((*id, *minute)).or_default() += *counts;
        }
        for (slot, base) in &batch.bases {
            match base {
                Some(base) => drop(self.bases.insert(*slot, *base)),
                None => drop(self.bases.remove(slot)),
            }
        }
        let first_hour = batch.first_kept.hour();
        self.metered
            .retain(|(_, minute), _| minute.hour() >= first_hour);
        Ok(())
    }

    fn metered(
        &mut self,
        id: InstanceId,
        minutes: &RangeInclusive<Minute>,
    ) -> Result<BTreeMap<Minute, Counts>, StoreError> {
        let range = (id, *minutes.start())..=(id, *minutes.end());
        let counts = self.metered.range(range);
        Ok(counts
            .map(|((_, minute), counts)| (*minute, *counts))
            .collect())
    }

    fn metered_instances(&mut self, from: Minute) -> Result<BTreeMap<InstanceId, u64>, StoreError> {
        let keys = self.metered.keys();
        let late = keys.filter(|(_, minute)| minute.hour() >= from.hour());
        Ok(late.map(|(id, minute)| (*id, minute.hour())).collect())
    }

    fn bases(&mut self) -> Result<BTreeMap<u32, Base>, StoreError> {
        Ok(self.bases.clone())
    }
}
