//! The store: what must outlive the daemon and what several may change, with who changed it.
//!
//! [`record`] says what is kept, [`backend`] what whoever keeps it must be able to do, [`view`] is all of it in memory, which
//! readers look at and changes are drafted from, and [`history`] tells what became of it. Changes are optimistic: one is drafted from what
//! a view shows and committed on the condition that nobody wrote it since; who was too late looks and drafts again.

pub mod backend;
pub mod digest;
pub mod history;
pub mod record;
pub mod shown;
pub mod view;

pub use backend::{Backend, CommitError, HistoryQuery, Revision, StoreError, Transaction};
pub use digest::Digest;
pub use history::{Entry, Note, Who};
pub use record::{
    AccessKey, AccountDefaults, Attributes, InstanceRecord, InstanceState, Key, KeyPair, KeyRole,
    Kind, Owner, Record,
};
pub use view::{Draft, Versioned, View};
