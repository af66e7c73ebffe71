//! The daemon and the store: what a configuration file makes of the records, and what of them is in force.
//!
//! The order is that of commands: decided, kept, put in force, and only then answered. A disk without room is no reason not to
//! serve: what a file says can be read from it again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::commands::owner_of;
use super::{Daemon, DaemonError, Options, now, now_millis};
use crate::config::{self, Files, Guest, Origin, Said, Settings, disk::Disk};
use crate::control::Applied;
use crate::discovery::admitted::{Admission, Admitted};
use crate::instance::{InstanceId, MetadataOptions};
use crate::life::{Life, Lives, State};
use crate::responder::supervisor::Update;
use crate::state::StateDir;
use crate::store::apply::{Change, Plan, Precedence, is_a_guest_that_turned_up, plan, turned_up};
use crate::store::export::export_rest;
use crate::store::{
    Changes, CommitError, InstanceRecord, Key, Kind, Note, Owner, Record, Sqlite, Store,
    StoreError, Transaction, View, Watch, Who,
};

/// How long after an error the store is asked again.
const PAUSE: Duration = Duration::from_secs(1);

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

/// Opens the store of a state directory, whose lock the caller holds; and what it has of what commands did and whom a person
/// admitted. Where files of daemons without a store have that, the store takes it over, once.
pub(super) async fn open(state: &StateDir) -> Result<(Store, Lives, Admitted), DaemonError> {
    let store = Store::start(Sqlite::open(&state.store())?)?;
    let former = (state.former_lives()?, state.former_admitted()?);
    let mut lives = store.read(lives_of);
    let mut admitted = store.read(admitted_of);
    if let (None, None) = former {
        return Ok((store, lives, admitted));
    }
    lives = former.0.unwrap_or(lives);
    admitted = former.1.unwrap_or(admitted);
    match take_over(&store, &lives, &admitted).await {
        Ok(()) => state.remove_former()?,
        Err(CommitError::Store(error @ StoreError::Full(_))) => {
            tracing::error!("what earlier daemons wrote stays where it is: {error}");
        }
        Err(error) => return Err(error.into()),
    }
    Ok((store, lives, admitted))
}

async fn take_over(store: &Store, lives: &Lives, admitted: &Admitted) -> Result<(), CommitError> {
    let transaction = store.read(|view| -> Result<Transaction, StoreError> {
        let mut draft = view.draft(by_itself("take over what was in files"));
        for (id, life) in lives.iter() {
            draft.put(&Record::Life(id, Box::new(life.clone())))?;
        }
        for admission in &admitted.admissions {
            draft.put(&Record::Admission(Box::new(admission.clone())))?;
        }
        Ok(draft.finish())
    })?;
    store.commit(transaction).await.map(|_| ())
}

fn lives_of(view: &View) -> Lives {
    let lives = view.lives().iter();
    lives
        .map(|(id, versioned)| (*id, Life::clone(&versioned.value)))
        .collect()
}

fn admitted_of(view: &View) -> Admitted {
    let admissions = view.admissions().values();
    Admitted {
        admissions: admissions
            .map(|versioned| Admission::clone(&versioned.value))
            .collect(),
    }
}

/// Keeps what is other in the lives after something happened than before, on the condition that the store has the ones before.
pub(super) async fn keep_lives(
    store: &Store,
    before: &Lives,
    after: &Lives,
    note: Note,
) -> Result<(), CommitError> {
    let ids = before.iter().chain(after.iter()).map(|(id, _)| id);
    let changed: BTreeSet<InstanceId> = ids.filter(|id| before.of(*id) != after.of(*id)).collect();
    let transaction = store.read(|view| -> Result<Transaction, CommitError> {
        let mut draft = view.draft(note);
        for id in changed {
            if view.life(id) != before.of(id) {
                return Err(CommitError::Conflict(Key::life(id)));
            }
            match after.of(id) {
                life if *life == Life::NOTHING => draft.remove(&Key::life(id)),
                life => draft
                    .put(&Record::Life(id, Box::new(life.clone())))
                    .map_err(StoreError::from)?,
            }
        }
        Ok(draft.finish())
    })?;
    store.commit(transaction).await.map(|_| ())
}

/// Keeps whom a person admitted.
pub(super) async fn keep_admitted(
    store: &Store,
    admitted: &Admitted,
    note: Note,
) -> Result<(), CommitError> {
    let transaction = store.read(|view| -> Result<Transaction, StoreError> {
        let mut draft = view.draft(note);
        for admission in &admitted.admissions {
            draft.put(&Record::Admission(Box::new(admission.clone())))?;
        }
        for name in view.admissions().keys() {
            if !admitted
                .admissions
                .iter()
                .any(|one| one.called() == &**name)
            {
                draft.remove(&Key::admission(name));
            }
        }
        Ok(draft.finish())
    })?;
    store.commit(transaction).await.map(|_| ())
}

/// What the next changes of the records are. It waits for as long as it takes to be able to tell.
pub(super) async fn heard(records: &mut Watch) -> Changes {
    loop {
        match records.next().await {
            Ok(changes) => return changes,
            Err(error) => {
                tracing::error!("follow the store: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// What a daemon is to serve: what its file says, of which only the edits count; without a file what the store has.
pub(super) fn read(
    state: &StateDir,
    store: &Store,
    file: Option<&Path>,
    note: Note,
) -> Result<Reading, DaemonError> {
    match file {
        Some(file) => read_file(state, store, file, Precedence::Edits, note),
        None => recorded(state, store),
    }
}

/// What was applied last besides instances, and the instances of the records.
fn recorded(state: &StateDir, store: &Store) -> Result<Reading, DaemonError> {
    let installation = state.installation()?;
    store.read(|view| {
        let text = view.rest().map(export_rest).unwrap_or_default();
        let mut settings = config::load(Path::new(KEPT), &installation, &Kept(text))?;
        settings.guests = guests_of(view, Owner::File);
        settings.guests.extend(guests_of(view, Owner::Api));
        Ok(Reading {
            settings,
            changes: Vec::new(),
            pending: Pending(None),
        })
    })
}

/// What stands for the file in messages.
const KEPT: &str = "(what was last applied)";

/// What the store has, as a file, beside those on disk.
struct Kept(String);

impl Files for Kept {
    fn read(&self, path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
        if path == Path::new(KEPT) {
            return Ok(self.0.clone().into_bytes());
        }
        Disk.read(path, bytes_max)
    }
}

/// Reads a file and decides what becomes of the records.
fn read_file(
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
        let declared: BTreeSet<InstanceId> = guests.iter().map(|guest| guest.instance.id).collect();
        settings.guests = plan.in_force(view, guests);
        let others = guests_of(view, Owner::Api).into_iter();
        let others = others.filter(|guest| !declared.contains(&guest.instance.id));
        settings.guests.extend(others);
        Ok(Reading {
            settings,
            changes: plan.changes,
            pending: Pending(transaction),
        })
    })
}

impl Pending {
    /// Keeps what it changes. Where there is no room for it, it is to be served nevertheless: the file says it again. Whether
    /// it is kept.
    pub(super) async fn keep(self, store: &Store) -> Result<bool, DaemonError> {
        let Some(transaction) = self.0 else {
            return Ok(true);
        };
        match store.commit(transaction).await {
            Ok(_) => Ok(true),
            Err(CommitError::Store(error @ StoreError::Full(_))) => {
                tracing::error!("the configuration is served and not kept: {error}");
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps what it changes, or nothing of it is done.
    pub(super) async fn keep_or_fail(self, store: &Store) -> Result<bool, DaemonError> {
        if let Some(transaction) = self.0 {
            store.commit(transaction).await?;
        }
        Ok(true)
    }
}

/// What the daemon notes when it reads its file.
pub(super) fn of_the_daemon(options: &Options) -> Note {
    match &options.config {
        Some(file) => by_itself(&format!("read {}", file.display())),
        None => by_itself("start"),
    }
}

/// What the daemon notes of what it does by itself.
pub(super) fn by_itself(what: &str) -> Note {
    Note {
        at: now_millis(),
        who: Who::Daemon,
        what: what.into(),
    }
}

/// What is noted of what a user of this machine asked for.
pub(super) fn user(uid: u32, what: String) -> Note {
    Note {
        at: now_millis(),
        who: Who::User(uid),
        what: what.into(),
    }
}

/// The instances of an owner that are to be served: those that have a port and are not terminated.
fn guests_of(view: &View, owner: Owner) -> Vec<Guest> {
    let records = view.instances().values().map(|versioned| &*versioned.value);
    let owned = records.filter(|record| record.owner == owner);
    owned.filter_map(guest_of).collect()
}

fn guest_of(record: &InstanceRecord) -> Option<Guest> {
    if record.is_terminated() {
        return None;
    }
    Some(Guest {
        name: record.name.clone(),
        port: record.port.clone()?,
        origin: match record.owner {
            Owner::File => Origin::Configuration,
            Owner::Api => Origin::Api,
            Owner::Admitted => Origin::Admission,
            Owner::Discovered => Origin::Source,
        },
        limits: record.limits,
        credential_source: record.credential_source.clone(),
        instance: record.spec.clone(),
        said: Said::default(),
    })
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
        let note = user(uid, format!("imds apply -f {}", file.display()));
        let reading = read_file(state, &self.store, &file, Precedence::File, note);
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
            match self.take_on(settings, pending, true).await {
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

    /// Puts in force what others changed of the records: calls of the API, another process. What this daemon wrote itself is
    /// in force already, and nothing comes of it.
    pub(super) async fn hear_of_records(
        &mut self,
        state: &StateDir,
        changes: Changes,
    ) -> Result<(), DaemonError> {
        let Some(keys) = changes.keys else {
            self.lives = self.store.read(lives_of);
            return self.serve_recorded(state).await;
        };
        let is_about_instances = |key: &Key| matches!(key.kind, Kind::Instance | Kind::Life);
        let ids: BTreeSet<InstanceId> = keys
            .iter()
            .filter(|key| is_about_instances(key))
            .filter_map(|key| key.name.parse().ok())
            .collect();
        if ids.is_empty() {
            return Ok(());
        }
        let served = self.served.iter();
        let ports: BTreeMap<InstanceId, String> = served
            .map(|(port, guest)| (guest.state.instance.id, port.clone()))
            .filter(|(id, _)| ids.contains(id))
            .collect();
        let mut update = Update::default();
        let mut is_about_ports = false;
        let mut outcome = Ok(());
        for id in ids {
            let port = ports.get(&id).map(String::as_str);
            match self.renew_recorded(id, port, &mut update).await {
                Ok(is_done) => is_about_ports |= !is_done,
                // The others are not to wait for it.
                Err(error) => outcome = Err(error),
            }
        }
        if !update.upsert.is_empty() {
            self.responder.update(update).await?;
        }
        outcome?;
        if is_about_ports {
            return self.serve_recorded(state).await;
        }
        self.note_applied().await;
        Ok(())
    }

    /// Makes an instance what its records say, if that leaves its port alone; otherwise nothing happens, and this is false.
    async fn renew_recorded(
        &mut self,
        id: InstanceId,
        port: Option<&str>,
        update: &mut Update,
    ) -> Result<bool, DaemonError> {
        let (record, life) = self.store.read(|view| {
            let record = view.instances().get(&id);
            let record = record.map(|versioned| Arc::clone(&versioned.value));
            (record, view.life(id).clone())
        });
        let guest = record.as_deref().and_then(guest_of);
        let (guest, port) = match (guest, port) {
            (Some(guest), Some(port)) => {
                let served = self.served[port].origin;
                // Records do not tell guests of sources from those of templates.
                let is_same = owner_of(served) == owner_of(guest.origin);
                let origin = if is_same { served } else { guest.origin };
                (Guest { origin, ..guest }, port.to_owned())
            }
            // Whether such guests are there is not for their records to say.
            (Some(guest), None)
                if matches!(owner_of(guest.origin), Owner::Admitted | Owner::Discovered) =>
            {
                self.lives.replace(id, life);
                return Ok(true);
            }
            (Some(_), None) => return Ok(false),
            // Whom a source or a person brought is served without a record.
            (None, Some(port)) => {
                let origin = self.served[port].origin;
                let has_records = matches!(origin, Origin::Configuration | Origin::Api);
                self.relive(id, port, life).await?;
                return Ok(!has_records);
            }
            (None, None) => {
                self.lives.replace(id, life);
                return Ok(true);
            }
        };
        let served = &self.served[&port];
        if served.by != guest.port || served.credential_source != guest.credential_source {
            return Ok(false);
        }
        self.relive(id, &port, life).await?;
        self.note_user_data([(&port, &guest)].into_iter()).await;
        self.retell(&port, guest, now(), false, update)?;
        Ok(true)
    }

    /// Keeps a record of every guest that is served and that a person, a source or a template brought, and of nobody who went.
    /// A disk without room is no reason not to serve them: it is tried again with the next that turns up.
    pub(super) async fn keep_turned_up(&mut self) {
        let unkept = self.following.take_unkept();
        let served: BTreeSet<InstanceId> = self
            .served
            .values()
            .map(|guest| guest.state.instance.id)
            .collect();
        let following = &self.following;
        let draft = |view: &View| -> Result<(Transaction, Vec<InstanceId>), StoreError> {
            let mut draft = view.draft(by_itself("follow guests"));
            for (id, guest) in unkept.iter().filter(|(id, _)| served.contains(*id)) {
                if let Some(record) = turned_up(view, guest, owner_of(guest.origin))
                    && view.instance(*id) != Some(&record)
                {
                    draft.put(&Record::Instance(Box::new(record)))?;
                }
            }
            let mut gone = Vec::new();
            for (id, versioned) in view.instances() {
                let record = &versioned.value;
                if is_a_guest_that_turned_up(record)
                    && !served.contains(id)
                    && following.is_forgotten(record)
                {
                    draft.remove(&Key::instance(*id));
                    draft.remove(&Key::life(*id));
                    gone.push(*id);
                }
            }
            let transaction = if draft.is_empty() {
                Transaction::default()
            } else {
                draft.finish()
            };
            Ok((transaction, gone))
        };
        match self.store.update(draft).await {
            Ok((_, gone)) => {
                for id in gone {
                    self.lives.replace(id, Life::NOTHING);
                }
            }
            Err(error) => {
                tracing::error!("records of guests that turned up are not kept: {error}");
            }
        }
    }

    /// Takes on what others let happen to an instance.
    async fn relive(&mut self, id: InstanceId, port: &str, life: Life) -> Result<(), DaemonError> {
        if *self.lives.of(id) == life {
            return Ok(());
        }
        self.lives.replace(id, life);
        self.enforce(port).await
    }

    /// Serves exactly the instances that the records have, and those of others as before.
    async fn serve_recorded(&mut self, state: &StateDir) -> Result<(), DaemonError> {
        if !self.is_file_kept {
            // The records lack what it says.
            return self.try_reload(state).await;
        }
        let guests = self.store.read(|view| {
            let mut guests = guests_of(view, Owner::File);
            guests.extend(guests_of(view, Owner::Api));
            guests
        });
        let wanted = self.following.settle(guests, &self.served).await?;
        self.following.warn(&wanted.0).await;
        self.apply(self.host.clone(), wanted).await?;
        self.note_applied().await;
        Ok(())
    }

    /// Notes which options are in force: those that guests are served by, which is not always what the records have by now. It is
    /// what everybody was waiting for, so that a disk without room is told in the log alone.
    pub(super) async fn note_applied(&self) {
        let is_waited_for = |record: &InstanceRecord| {
            let is_pending = record.options.applied != record.options.changed;
            is_pending && !record.is_terminated()
        };
        let waited_for: BTreeSet<InstanceId> = self.store.read(|view| {
            let records = view.instances().iter();
            let records = records.filter(|(_, versioned)| is_waited_for(&versioned.value));
            records.map(|(id, _)| *id).collect()
        });
        let runs = |id: &InstanceId| self.lives.of(*id).state() == State::Running;
        let waited_for: BTreeSet<InstanceId> = waited_for.into_iter().filter(runs).collect();
        if waited_for.is_empty() {
            return;
        }
        let in_force: BTreeMap<InstanceId, MetadataOptions> = self
            .served
            .values()
            .filter(|guest| waited_for.contains(&guest.state.instance.id))
            .map(|guest| (guest.slot, &guest.state.instance))
            .filter(|(slot, instance)| {
                slot.is_none_or(|slot| self.responder.serves(slot, instance.options))
            })
            .map(|(_, instance)| (instance.id, instance.options))
            .collect();
        let draft = |view: &View| -> Result<(Transaction, ()), StoreError> {
            let mut draft = view.draft(by_itself("applied"));
            for id in &waited_for {
                let Some(record) = view.instance(*id) else {
                    continue;
                };
                // Nobody is served where there is no port.
                let is_in_force =
                    record.port.is_none() || in_force.get(id) == Some(&record.spec.options);
                if is_waited_for(record) && is_in_force {
                    let mut record = InstanceRecord::clone(record);
                    record.options.apply();
                    draft.put_unnoted(&Record::Instance(Box::new(record)))?;
                }
            }
            let transaction = if draft.is_empty() {
                Transaction::default()
            } else {
                draft.finish()
            };
            Ok((transaction, ()))
        };
        if let Err(error) = self.store.update(draft).await {
            tracing::error!("note that options are applied: {error}");
        }
    }
}
