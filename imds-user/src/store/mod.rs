//! The store: what must outlive the daemon and what several may change, with who changed it.
//!
//! [`record`] says what is kept, [`backend`] what whoever keeps it must be able to do, [`view`] is all of it in memory, which
//! readers look at and changes are drafted from, [`history`] tells what became of it, and [`handle`] is what others have of it:
//! a thread that does what takes time. [`sqlite`] keeps it. Changes are optimistic: one is drafted from what
//! a view shows and committed on the condition that nobody wrote it since; who was too late looks and drafts again.

pub mod apply;
pub mod backend;
pub mod digest;
pub mod export;
pub mod handle;
pub mod history;
#[cfg(test)]
pub(crate) mod memory;
pub mod record;
pub mod shown;
pub mod sqlite;
#[cfg(test)]
mod tests;
pub mod view;

pub use backend::{Backend, CommitError, HistoryQuery, Revision, StoreError, Transaction};
pub use digest::Digest;
pub use handle::{Changes, Store, Watch};
pub use history::{Entry, Note, Who};
pub use record::{
    AccessKey, AccountDefaults, Attributes, InstanceRecord, InstanceState, Key, KeyPair, KeyRole,
    Kind, Owner, Record,
};
pub use sqlite::Sqlite;
pub use view::{Draft, Versioned, View};
