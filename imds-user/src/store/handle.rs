//! The store as the daemon has it: a thread that reads and writes, and in front of it a handle that anybody may have.
//!
//! Readers look at the view in memory and wait for nobody. Who writes waits for the disk, but holds up nobody else.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::thread;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::backend::{
    Backend, CommitError, HistoryQuery, Revision, State, StoreError, Transaction,
};
use super::history::{Entry, NewEntry};
use super::record::Key;
use super::view::View;
use crate::instance::InstanceId;
use crate::metrics::{Base, Batch, Counts, Minute};

/// How often it is looked whether another process wrote. Ours is told at once.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often a change is drafted anew when others were faster. Each time somebody got ahead, so that nothing is stuck.
const ATTEMPTS_MAX: usize = 1000;
/// How many notes are written in one piece.
const NOTES_MAX: usize = 1000;

/// A store that is open. Clones are of the same one, which is closed with the last of them.
#[derive(Clone, Debug)]
pub struct Store {
    jobs: mpsc::Sender<Job>,
    view: Arc<RwLock<View>>,
    revision: watch::Receiver<Revision>,
}

/// What the thread is asked for, and by whom.
enum Job {
    Commit(Transaction, oneshot::Sender<Result<Revision, CommitError>>),
    /// Nobody waits for it.
    Note(NewEntry),
    History(
        HistoryQuery,
        oneshot::Sender<Result<Vec<Entry>, StoreError>>,
    ),
    Changes(Revision, oneshot::Sender<Result<Option<State>, StoreError>>),
    Meter(Batch, oneshot::Sender<Result<(), StoreError>>),
    Metered(
        InstanceId,
        RangeInclusive<Minute>,
        oneshot::Sender<Result<BTreeMap<Minute, Counts>, StoreError>>,
    ),
    MeteredInstances(
        Minute,
        oneshot::Sender<Result<BTreeMap<InstanceId, u64>, StoreError>>,
    ),
    Bases(oneshot::Sender<Result<BTreeMap<u32, Base>, StoreError>>),
    Close(oneshot::Sender<()>),
}

impl Store {
    /// Reads all there is, and starts the thread.
    ///
    /// # Errors
    /// When it cannot be read, or there can be no thread.
    pub fn start(mut backend: impl Backend + 'static) -> Result<Self, StoreError> {
        let mut loaded = View::default();
        let State { revision, items } = backend.load()?;
        loaded.take(revision, items)?;
        let (jobs, queue) = mpsc::channel();
        let view = Arc::new(RwLock::new(loaded));
        let (tell, told) = watch::channel(revision);
        let worker = Worker {
            backend,
            view: Arc::clone(&view),
            tell,
        };
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || worker.work(&queue))
            .map_err(|cause| StoreError::Io {
                what: "start the thread of the store",
                path: "".into(),
                cause,
            })?;
        Ok(Self {
            jobs,
            view,
            revision: told,
        })
    }

    /// Looks at what is there. To be quick about it: changes wait meanwhile.
    pub fn read<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes all of a transaction or nothing. Once this is answered it outlives the machine, and [`Self::read`] shows it.
    ///
    /// # Errors
    /// When somebody else changed meanwhile what it relies on, or it cannot be kept.
    pub async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        if transaction == Transaction::default() {
            // Whoever decided that nothing is to be done need not wait for a disk.
            return Ok(*self.revision.borrow());
        }
        self.ask(|answer| Job::Commit(transaction, answer)).await?
    }

    /// Decides on a change by what is there and writes it, as often as it takes until nobody was faster.
    ///
    /// # Errors
    /// What `decide` says, or that it cannot be kept.
    pub async fn update<T, E: From<StoreError>>(
        &self,
        mut decide: impl FnMut(&View) -> Result<(Transaction, T), E>,
    ) -> Result<(Revision, T), E> {
        for _ in 0..ATTEMPTS_MAX {
            let (transaction, said) = self.read(&mut decide)?;
            match self.commit(transaction).await {
                Ok(revision) => return Ok((revision, said)),
                Err(CommitError::Conflict(_)) => {}
                Err(CommitError::Store(error)) => return Err(error.into()),
            }
        }
        Err(StoreError::Busy("the store".into()).into())
    }

    /// Notes what happened, without waiting for it: it is kept soon, and what cannot be kept is told in the log. However many
    /// notes there are, who commits waits for one write of them at most.
    pub fn note(&self, entry: NewEntry) {
        // A store that is closed keeps nothing.
        self.jobs.send(Job::Note(entry)).ok();
    }

    /// Entries of the history, the latest first.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn history(&self, query: HistoryQuery) -> Result<Vec<Entry>, StoreError> {
        self.ask(|answer| Job::History(query, answer)).await?
    }

    /// Adds what was counted. Nobody who follows hears of it.
    ///
    /// # Errors
    /// When it cannot be kept: nothing of it is.
    pub async fn meter(&self, batch: Batch) -> Result<(), StoreError> {
        self.ask(|answer| Job::Meter(batch, answer)).await?
    }

    /// What was counted of an instance in these minutes.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn metered(
        &self,
        id: InstanceId,
        minutes: RangeInclusive<Minute>,
    ) -> Result<BTreeMap<Minute, Counts>, StoreError> {
        self.ask(|answer| Job::Metered(id, minutes, answer)).await?
    }

    /// Of whom something was counted from this minute's hour on, and the last such hour.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn metered_instances(
        &self,
        from: Minute,
    ) -> Result<BTreeMap<InstanceId, u64>, StoreError> {
        self.ask(|answer| Job::MeteredInstances(from, answer))
            .await?
    }

    /// Up to where counters are counted, by slot.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn bases(&self) -> Result<BTreeMap<u32, Base>, StoreError> {
        self.ask(Job::Bases).await?
    }

    /// Follows what changes after a revision, whoever changes it.
    #[must_use]
    pub fn watch(&self, after: Revision) -> Watch {
        Watch {
            of: self.clone(),
            seen: after,
        }
    }

    /// Ends the thread when it has done what it was asked for before, and leaves the file as small as it can be. Who asks for
    /// more, by another clone, hears that it is closed.
    pub async fn close(self) {
        self.ask(Job::Close).await.ok();
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> Job) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let sent = self.jobs.send(job(answer));
        sent.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)
    }
}

/// Follows what changes. See [`Store::watch`].
#[derive(Clone, Debug)]
pub struct Watch {
    of: Store,
    seen: Revision,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// Up to where this tells.
    pub revision: Revision,
    /// The keys that were written or deleted, each once. None when that cannot be told any more, because it is too long ago:
    /// everything may be other than it was.
    pub keys: Option<Vec<Key>>,
}

impl Watch {
    /// What changed next. Changes that were made since the last call come together. Cancel safe.
    ///
    /// # Errors
    /// When it cannot be read, or the store was closed.
    pub async fn next(&mut self) -> Result<Changes, StoreError> {
        let seen = self.seen;
        let mut told = self.of.revision.clone();
        told.wait_for(|revision| *revision > seen)
            .await
            .map_err(|_| StoreError::Closed)?;
        let state = self.of.ask(|answer| Job::Changes(seen, answer)).await??;
        let (revision, keys) = match state {
            Some(State { revision, items }) => {
                let keys = items.into_iter().map(|item| item.key);
                (revision, Some(keys.collect()))
            }
            None => (*self.of.revision.borrow(), None),
        };
        self.seen = revision;
        Ok(Changes { revision, keys })
    }
}

/// The thread's side.
struct Worker<B> {
    backend: B,
    view: Arc<RwLock<View>>,
    tell: watch::Sender<Revision>,
}

impl<B: Backend> Worker<B> {
    /// Does what it is asked for until nobody is there to ask. Who asked and has gone is no reason to stop.
    fn work(mut self, queue: &mpsc::Receiver<Job>) {
        // What came behind notes that were taken together.
        let mut behind = None;
        loop {
            let next = match behind.take() {
                Some(job) => Ok(job),
                None => queue.recv_timeout(LOOK_EVERY),
            };
            match next {
                Ok(Job::Commit(transaction, answer)) => {
                    answer.send(self.commit(&transaction)).ok();
                }
                Ok(Job::Note(entry)) => {
                    let (entries, other) = notes(entry, queue);
                    behind = other;
                    self.keep(entries);
                }
                Ok(Job::History(query, answer)) => {
                    answer.send(self.backend.history(&query)).ok();
                }
                Ok(Job::Changes(after, answer)) => {
                    answer.send(self.backend.changes_after(after)).ok();
                }
                Ok(Job::Meter(batch, answer)) => {
                    answer.send(self.backend.meter(&batch)).ok();
                }
                Ok(Job::Metered(id, minutes, answer)) => {
                    answer.send(self.backend.metered(id, &minutes)).ok();
                }
                Ok(Job::MeteredInstances(from, answer)) => {
                    answer.send(self.backend.metered_instances(from)).ok();
                }
                Ok(Job::Bases(answer)) => {
                    answer.send(self.backend.bases()).ok();
                }
                Ok(Job::Close(answer)) => {
                    drop(self);
                    answer.send(()).ok();
                    return;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if let Err(error) = self.catch_up() {
                        tracing::error!("the store: {error}");
                    }
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn keep(&mut self, entries: Vec<NewEntry>) {
        let n_entries = entries.len();
        let transaction = Transaction {
            history: entries,
            ..Transaction::default()
        };
        if let Err(error) = self.commit(&transaction) {
            tracing::error!("{n_entries} entries of the history: {error}");
        }
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<Revision, CommitError> {
        let outcome = self.backend.commit(transaction);
        // Whoever has the answer sees it, and what others did before.
        let caught_up = self.catch_up();
        match outcome {
            // It is written, whatever else is wrong.
            Ok(revision) => {
                if let Err(error) = caught_up {
                    tracing::error!("the store: {error}");
                }
                Ok(revision)
            }
            Err(CommitError::Conflict(key)) => {
                caught_up?;
                Err(CommitError::Conflict(key))
            }
            Err(error) => Err(error),
        }
    }

    /// Takes on what was written since the last time.
    fn catch_up(&mut self) -> Result<(), StoreError> {
        let seen = *self.tell.borrow();
        let changes = self.backend.changes_after(seen)?;
        let revision = match changes {
            Some(State { revision, .. }) if revision == seen => return Ok(()),
            Some(State { revision, items }) => {
                let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
                view.take(revision, items)?;
                revision
            }
            None => {
                let State { revision, items } = self.backend.load()?;
                let mut loaded = View::default();
                loaded.take(revision, items)?;
                *self.view.write().unwrap_or_else(PoisonError::into_inner) = loaded;
                revision
            }
        };
        // Nobody may be there to be told.
        self.tell.send_replace(revision);
        Ok(())
    }
}

/// An entry and those that wait behind it, and what is asked for next. A disk takes many of them as fast as one.
fn notes(first: NewEntry, queue: &mpsc::Receiver<Job>) -> (Vec<NewEntry>, Option<Job>) {
    let mut entries = vec![first];
    while entries.len() < NOTES_MAX {
        match queue.try_recv() {
            Ok(Job::Note(entry)) => entries.push(entry),
            Ok(other) => return (entries, Some(other)),
            Err(_) => break,
        }
    }
    (entries, None)
}
