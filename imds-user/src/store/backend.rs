//! What a store must be able to do, whoever keeps it: SQLite on this host, or something that a fleet shares.
//!
//! Keys have whole values. Every transaction that writes makes the next revision, one number for the whole store, and
//! every key knows the revision that wrote it last. Whoever has read at a revision writes on the condition that it is
//! still the last one; whoever follows asks for what changed after the last one that it knows. etcd's keys, values,
//! `mod_revision`, transactions and watches are all of this, and SQL is none of it.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::history::{Entry, NewEntry};
use super::record::{Key, Kind, RecordError};
use crate::instance::InstanceId;
use crate::metrics::{Base, Batch, Counts, Minute};

/// The number of a state of the store. It only ever grows.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Revision(pub u64);

/// A key, its value, and the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The key.
    pub key: Key,
    /// The value; none if the key was deleted.
    pub value: Option<Vec<u8>>,
    /// Since when it is so.
    pub revision: Revision,
}

/// The state of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Its number.
    pub revision: Revision,
    /// What is there, in no order. After some revision: what is other since, deleted keys among it, each once.
    pub items: Vec<Item>,
}

/// What is to be written in one piece, and on which condition.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transaction {
    /// Keys, and the revision that must have written them last; none: the key must not be there.
    pub expected: Vec<(Key, Option<Revision>)>,
    /// Kinds of which no key may have been written since, whichever: who chooses something that nobody else has looked at
    /// all of them.
    pub expected_of_all: Vec<(Kind, Revision)>,
    /// Keys and their new values; none deletes.
    pub writes: Vec<(Key, Option<Vec<u8>>)>,
    /// What is noted of it.
    pub history: Vec<NewEntry>,
}

/// Which entries of the history are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryQuery {
    /// Those about these keys; about anything if there is none.
    pub about: Vec<Key>,
    /// Those with a smaller number.
    pub before: Option<u64>,
    /// No more than so many: the latest.
    pub limit: usize,
}

/// Keeps keys, values and the history. Calls block, and may take as long as a disk or a network does.
pub trait Backend: Send {
    /// All there is.
    ///
    /// # Errors
    /// When it cannot be read.
    fn load(&mut self) -> Result<State, StoreError>;

    /// What changed after a revision. None if that is too long ago to be told: all is to be loaded anew.
    ///
    /// # Errors
    /// When it cannot be read.
    fn changes_after(&mut self, revision: Revision) -> Result<Option<State>, StoreError>;

    /// Writes all of a transaction or nothing. When this returns, what was written outlives the process and the machine.
    /// The revision that it made; the present one if it writes nothing.
    ///
    /// # Errors
    /// When its condition does not hold any more, or it cannot be kept. Nothing is written then.
    fn commit(&mut self, transaction: &Transaction) -> Result<Revision, CommitError>;

    /// Entries of the history, the latest first.
    ///
    /// # Errors
    /// When they cannot be read.
    fn history(&mut self, query: &HistoryQuery) -> Result<Vec<Entry>, StoreError>;

    /// Adds what was counted to what is there, and moves the bases, all or nothing; removes what is not kept any more. Counts
    /// have no revision and no history: they are no decision of anybody's.
    ///
    /// # Errors
    /// When it cannot be kept. Nothing is written then.
    fn meter(&mut self, batch: &Batch) -> Result<(), StoreError>;

    /// What was counted of an instance in these minutes.
    ///
    /// # Errors
    /// When it cannot be read.
    fn metered(
        &mut self,
        id: InstanceId,
        minutes: &RangeInclusive<Minute>,
    ) -> Result<BTreeMap<Minute, Counts>, StoreError>;

    /// Of whom something was counted from this minute's hour on, and the last such hour.
    ///
    /// # Errors
    /// When it cannot be read.
    fn metered_instances(&mut self, from: Minute) -> Result<BTreeMap<InstanceId, u64>, StoreError>;

    /// The bases, by slot.
    ///
    /// # Errors
    /// When they cannot be read.
    fn bases(&mut self) -> Result<BTreeMap<u32, Base>, StoreError>;
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Somebody else wrote in between.
    #[error("{0} was changed by somebody else meanwhile")]
    Conflict(Key),
    /// It could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A store that cannot be used, or not now.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No room.
    #[error("{}: no room on its file system: nothing was changed; make room and try again", .0.display())]
    Full(PathBuf),
    /// Another process writes for too long.
    #[error("{}: another process holds it: nothing was changed; try again", .0.display())]
    Busy(PathBuf),
    /// It was made by a later version.
    #[error(
        "{} was written by a newer imds (its schema is {found}, this one knows up to {known}): use that one, or restore a copy from before",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The schema that it has.
        found: u32,
        /// The latest that we know.
        known: u32,
    },
    /// It is not what it should be.
    #[error("{} is damaged ({cause}): restore it from a copy, or remove it to begin anew (what was changed by commands is lost)", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// A record is not what it should be.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The file system refused.
    #[error("{what} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Its thread ended, which it never does by itself.
    #[error("the store was closed")]
    Closed,
}
