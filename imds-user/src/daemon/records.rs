//! The daemon and the store: what a configuration file makes of the records, and what of them is in force.
//!
//! The order is that of commands: decided, kept, put in force, and only then answered. A disk without room is no reason not to
//! serve: what a file says can be read from it again.

use std::path::{Path, PathBuf};

use super::{Daemon, DaemonError, Options, now_millis};
use crate::config::{self, Guest, Settings, disk::Disk};
use crate::control::Applied;
use crate::instance::InstanceId;
use crate::life::State;
use crate::state::StateDir;
use crate::store::apply::{Change, Plan, Precedence, plan};
use crate::store::{
    CommitError, InstanceRecord, Note, Record, Sqlite, Store, StoreError, Transaction, View, Who,
};

/// A file that is to be put in force.
pub(super) struct Reading {
    /// What it says, with the instances as they are to be.
    pub(super) settings: Settings,
    /// What it changes.
    pub(super) changes: Vec<Change>,
    /// What is to be kept of it.
    pub(super) pending: Pending,
}

/// What is still to be kept of a file; nothing, perhaps.
pub(super) struct Pending(Option<Transaction>);

/// Opens the store of a state directory, whose lock the caller holds.
pub(super) fn open(state: &StateDir) -> Result<Store, StoreError> {
    Store::start(Sqlite::open(&state.store())?)
}

/// Reads a file and decides what becomes of the records.
pub(super) fn read(
    state: &StateDir,
    store: &Store,
    file: &Path,
    precedence: Precedence,
    note: Note,
) -> Result<Reading, DaemonError> {
    let (mut settings, rest) = config::load_with_rest(file, &state.installation()?, &Disk)?;
    let guests: Vec<Guest> = std::mem::take(&mut settings.guests);
    store.read(|view| {
        let plan: Plan = plan(view, &guests, &rest, precedence)?;
        let transaction = if plan.is_nothing() {
            None
        } else {
            let transaction = plan.transaction(view, note);
            Some(transaction.map_err(StoreError::from)?)
        };
        settings.guests = plan.in_force(view, guests);
        Ok(Reading {
            settings,
            changes: plan.changes,
            pending: Pending(transaction),
        })
    })
}

impl Pending {
    /// Keeps what it changes. Where there is no room for it, it is served nevertheless: the file says it again.
    pub(super) async fn keep(self, store: &Store) -> Result<(), DaemonError> {
        let Some(transaction) = self.0 else {
            return Ok(());
        };
        match store.commit(transaction).await {
            Ok(_) => Ok(()),
            Err(CommitError::Store(error @ StoreError::Full(_))) => {
                tracing::error!("the configuration is served and not kept: {error}");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps what it changes, or nothing of it is done.
    pub(super) async fn keep_or_fail(self, store: &Store) -> Result<(), DaemonError> {
        if let Some(transaction) = self.0 {
            store.commit(transaction).await?;
        }
        Ok(())
    }
}

/// What the daemon notes when it reads its file.
pub(super) fn of_the_daemon(options: &Options) -> Note {
    Note {
        at: now_millis(),
        who: Who::Daemon,
        what: format!("read {}", options.config.display()).into(),
    }
}

impl Daemon {
    /// Applies a file that a person names. The inner error is for that person.
    pub(super) async fn apply_file(
        &mut self,
        state: &StateDir,
        file: PathBuf,
        is_dry_run: bool,
        uid: u32,
    ) -> Result<Result<Applied, String>, DaemonError> {
        let note = Note {
            at: now_millis(),
            who: Who::User(uid),
            what: format!("imds apply -f {}", file.display()).into(),
        };
        let reading = read(state, &self.store, &file, Precedence::File, note);
        let reading = match reading {
            Ok(reading) => reading,
            Err(DaemonError::Config(error)) => return Ok(Err(error.to_string())),
            Err(DaemonError::Apply(error)) => return Ok(Err(error.to_string())),
            Err(error) => return Err(error),
        };
        let changes = reading.changes.clone();
        if !is_dry_run {
            let Reading {
                settings, pending, ..
            } = reading;
            match self.take_on(state, settings, pending, true).await {
                Ok(()) => {}
                Err(error @ (DaemonError::NoInterface { .. } | DaemonError::NotAPort { .. })) => {
                    return Ok(Err(error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Ok(Applied {
            dry_run: is_dry_run,
            in_force: !is_dry_run,
            changes,
        }))
    }

    /// Notes that the options of the instances that run are in force. It is what everybody was waiting for, so that a disk
    /// without room is told in the log alone.
    pub(super) async fn note_applied(&self) {
        let is_running = |id: &InstanceId| self.lives.of(*id).state() == State::Running;
        let draft = |view: &View| -> Result<(Transaction, ()), StoreError> {
            let mut draft = view.draft(Note {
                at: now_millis(),
                who: Who::Daemon,
                what: "applied".into(),
            });
            for (id, versioned) in view.instances() {
                let record = &versioned.value;
                let is_pending = record.options.applied != record.options.changed;
                if is_pending && !record.is_terminated() && is_running(id) {
                    let mut record = InstanceRecord::clone(record);
                    record.options.apply();
                    draft.put_unnoted(&Record::Instance(Box::new(record)))?;
                }
            }
            Ok((draft.finish(), ()))
        };
        let has_pending = self.store.read(|view| {
            let mut records = view.instances().iter();
            records.any(|(id, versioned)| {
                let options = versioned.value.options;
                options.applied != options.changed && is_running(id)
            })
        });
        if !has_pending {
            return;
        }
        if let Err(error) = self.store.update(draft).await {
            tracing::error!("note that options are applied: {error}");
        }
    }
}
