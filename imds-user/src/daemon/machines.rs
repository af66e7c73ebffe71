//! Instances whose guests a launcher runs: orders it what the records want ([`crate::api::machines`] says what), and writes
//! down what became of it. On the control API's thread, so that neither guests nor commands wait for a launcher.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::records::by_itself;
use super::{now, whole};
use crate::api::call::Change;
use crate::api::machines::{self as rules, Seen, Task};
use crate::api::service::Surroundings;
use crate::config::Ground;
use crate::config::ground::{Image, Launching};
use crate::instance::{Host, InstanceId, UnixSeconds};
use crate::launch::client::{self, OrderError};
use crate::launch::order::{LocalImage, socket_in};
use crate::launch::{State, plan::Spec};
use crate::store::record::StateReason;
use crate::store::{Changes, Kind, Store, StoreError, Transaction, View};

/// How many guests are started at a time: each takes some tenths of a second of a processor.
const STARTS_MAX: usize = 4;
/// How many are ended at a time: most of that is waiting for what is in them.
const ENDS_MAX: usize = 16;
/// How often it is asked which guests run. One that ends by itself is noticed within that.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a launcher that is away is left alone.
const AWAY: Duration = Duration::from_millis(500);
/// After what failed, and as long again each time, up to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long a call waits to hear which images there are.
const IMAGES_WITHIN: Duration = Duration::from_secs(2);

/// Whether RunInstances has guests launched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LaunchMode {
    /// If a launcher was ever started with the state directory.
    #[default]
    Auto,
    /// Or it is refused.
    Required,
    /// Never.
    Never,
}

/// What a call finds of launchers.
#[derive(Clone)]
pub(super) struct Launchers {
    state_dir: PathBuf,
    mode: LaunchMode,
    /// What there was last: a launcher that is being restarted keeps its images.
    images: Arc<Mutex<Vec<LocalImage>>>,
}

impl Launchers {
    /// Of a state directory, whose path is canonical.
    pub(super) fn of(state_dir: &Path, mode: LaunchMode) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            mode,
            images: Arc::default(),
        }
    }

    pub(super) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// A launcher leaves its socket: one that is away comes back.
    fn launching(&self) -> Launching {
        let is_there = || socket_in(&self.state_dir).exists();
        match self.mode {
            LaunchMode::Auto | LaunchMode::Required if is_there() => {
                Launching::By(self.state_dir.clone())
            }
            LaunchMode::Required => Launching::Refused,
            LaunchMode::Auto | LaunchMode::Never => Launching::Records,
        }
    }

    async fn images(&self) -> Vec<LocalImage> {
        let told = timeout(IMAGES_WITHIN, client::images(&self.state_dir)).await;
        let mut known = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(Ok(images)) = told {
            *known = images;
        }
        known.clone()
    }
}

impl Surroundings for Launchers {
    fn look<'a>(&'a self, ground: &'a mut Ground) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(async {
            ground.launching = self.launching();
            if matches!(ground.launching, Launching::By(_)) {
                let images = self.images().await;
                let images = images.iter();
                let images = images.map(|image| Image::of_docker(&image.id, &image.name));
                ground.images.extend(images);
            }
        })
    }
}

/// Carries instances to where their records want them, until the store is closed.
pub(super) async fn attend(store: Store, host: Host, state_dir: PathBuf) {
    let mut watch = store.watch(store.read(View::revision));
    let mut machines = Machines {
        machines: BTreeSet::new(),
        store: store.clone(),
        host,
        state_dir,
        booted: booted(),
        running: JoinSet::new(),
        busy: HashMap::new(),
        pauses: HashMap::new(),
        away: None,
        look: JoinSet::new(),
        next_look: Instant::now(),
        unsure: HashSet::new(),
        told: Told::default(),
    };
    machines.learn(store.read(ids));
    loop {
        machines.begin();
        machines.begin_look();
        let wake = machines.wake();
        tokio::select! {
            heard = watch.next() => match heard {
                Ok(changes) => machines.hear(changes),
                Err(StoreError::Closed) => return,
                Err(error) => {
                    tracing::error!("follow the store: {error}");
                    tokio::time::sleep(PAUSE_FIRST).await;
                }
            },
            Some(ended) = machines.running.join_next() => machines.end(ended).await,
            Some(found) = machines.look.join_next() => machines.end_look(found).await,
            () = sleep_until(wake) => {}
        }
    }
}

/// What was carried out, and what came of it.
struct Ended {
    id: InstanceId,
    task: Task,
    outcome: Result<(), OrderError>,
}

/// What the log was told, so that it is told once.
#[derive(Default)]
struct Told {
    is_away: bool,
    ghosts: bool,
    strangers: HashSet<InstanceId>,
    cannot_look: bool,
}

struct Machines {
    store: Store,
    /// The instances that have one.
    machines: BTreeSet<InstanceId>,
    host: Host,
    state_dir: PathBuf,
    /// When the host was.
    booted: UnixSeconds,
    running: JoinSet<Ended>,
    /// What is being done, one thing at a time for an instance; and whether it is a start.
    busy: HashMap<InstanceId, bool>,
    /// Those that are let be for a while, because something failed.
    pauses: HashMap<InstanceId, Pause>,
    /// Until when nothing is ordered, because nobody takes orders.
    away: Option<Instant>,
    /// Who asks the launcher what runs: nobody, or one at a time.
    look: JoinSet<Found>,
    next_look: Instant,
    /// Those about which something was under way while it was asked: what was seen of them says nothing.
    unsure: HashSet<InstanceId>,
    told: Told,
}

/// What the launcher says of all guests, and how long that took.
type Found = (Result<Vec<(InstanceId, State)>, OrderError>, Duration);

fn ids(view: &View) -> Vec<InstanceId> {
    view.instances().keys().copied().collect()
}

struct Pause {
    until: Instant,
    length: Duration,
}

impl Machines {
    /// Begins as much of what is to be done as may be done at a time.
    fn begin(&mut self) {
        let now = Instant::now();
        if self.away.is_some_and(|until| until > now) {
            return;
        }
        let n_starts = self.busy.values().filter(|is_start| **is_start).count();
        let mut starts = STARTS_MAX.saturating_sub(n_starts);
        let mut ends = ENDS_MAX.saturating_sub(self.busy.len() - n_starts);
        let wanted: Vec<_> = self.store.read(|view| {
            let is_free = |id: &&InstanceId| {
                let is_paused = self.pauses.get(id).is_some_and(|pause| pause.until > now);
                !is_paused && !self.busy.contains_key(id)
            };
            let free = self.machines.iter().filter(is_free);
            let tasks = free.filter_map(|id| Some((*id, rules::task(view, *id, &self.host)?)));
            let fitting = tasks.filter(|(_, task)| {
                let room = if task.is_start() {
                    &mut starts
                } else {
                    &mut ends
                };
                let has_room = *room > 0;
                *room = room.saturating_sub(1);
                has_room
            });
            fitting.collect()
        });
        for (id, task) in wanted {
            self.busy.insert(id, task.is_start());
            self.unsure.insert(id);
            let state_dir = self.state_dir.clone();
            self.running.spawn(async move {
                let outcome = carry_out(&state_dir, id, &task).await;
                Ended { id, task, outcome }
            });
        }
    }

    /// When there is something to be done again that nobody tells of.
    fn wake(&self) -> Instant {
        let now = Instant::now();
        let pauses = self.pauses.values().map(|pause| pause.until);
        let look = self.is_to_look().then_some(self.next_look);
        let moments = pauses.chain(self.away).chain(look);
        // What is past is begun, or waits for what is being done.
        let next = moments.filter(|moment| *moment > now).min();
        next.unwrap_or(now + PAUSE_MAX)
    }

    /// Whether there is anything to look at, and nobody looks.
    fn is_to_look(&self) -> bool {
        self.look.is_empty() && !self.machines.is_empty()
    }

    /// Takes on what others, and this one, wrote.
    fn hear(&mut self, changes: Changes) {
        match changes.keys {
            Some(keys) => {
                let keys = keys.iter().filter(|key| key.kind == Kind::Instance);
                self.learn(keys.filter_map(|key| key.name.parse().ok()).collect());
            }
            None => {
                self.machines.clear();
                self.learn(self.store.read(ids));
            }
        }
    }

    /// Looks which of these instances have machines.
    fn learn(&mut self, ids: Vec<InstanceId>) {
        let (machines, told) = (&mut self.machines, &mut self.told);
        self.store.read(|view| {
            for id in ids {
                let record = view.instance(id);
                if record.is_some_and(|record| record.machine.is_some()) {
                    machines.insert(id);
                } else {
                    machines.remove(&id);
                }
                let is_ghost = record.is_some_and(|record| {
                    record.state_reason == Some(StateReason::NoGuest) && !record.is_terminated()
                });
                if is_ghost && !std::mem::replace(&mut told.ghosts, true) {
                    tell_of_ghosts(id, &self.state_dir);
                }
            }
        });
    }

    /// Writes down what came of a task.
    async fn end(&mut self, ended: Result<Ended, JoinError>) {
        let Ended { id, task, outcome } = match ended {
            Ok(ended) => ended,
            Err(error) => {
                // A defect. Whose task it was is not told, so all that are not under way are free again.
                tracing::error!("a guest's task: {error}");
                if self.running.is_empty() {
                    self.busy.clear();
                }
                return;
            }
        };
        self.busy.remove(&id);
        let what = task.as_str();
        let kept = match outcome {
            Ok(()) => {
                self.is_back();
                self.pauses.remove(&id);
                tracing::info!("guest {id}: {what}: done");
                let note = format!("guest {what}");
                self.keep(&note, |view| rules::done(view, id, &task, now()))
                    .await
            }
            Err(OrderError::Failed(why)) => {
                self.is_back();
                tracing::error!("guest {id}: {what}: {why}");
                let note = format!("guest {what} failed");
                if !task.is_start() {
                    self.pause(id);
                }
                self.keep(&note, |view| rules::failed(view, id, &task))
                    .await
            }
            Err(error) => {
                self.away = Some(Instant::now() + AWAY);
                if !std::mem::replace(&mut self.told.is_away, true) {
                    let why = whole(&error);
                    tracing::warn!("{why}: instances wait for it, guest {id} to {what}");
                }
                Ok(())
            }
        };
        if let Err(error) = kept {
            tracing::error!("guest {id}: {what}: note it: {error}");
            self.pause(id);
        }
    }

    fn is_back(&mut self) {
        self.away = None;
        if std::mem::take(&mut self.told.is_away) {
            tracing::info!("the launcher is there again");
        }
    }

    fn pause(&mut self, id: InstanceId) {
        let former = self.pauses.get(&id).map(|pause| pause.length);
        let length = former.map_or(PAUSE_FIRST, |length| (length * 2).min(PAUSE_MAX));
        let until = Instant::now() + length;
        self.pauses.insert(id, Pause { until, length });
    }

    /// Asks what runs, when it is time.
    fn begin_look(&mut self) {
        let now = Instant::now();
        let is_away = self.away.is_some_and(|until| until > now);
        if self.next_look > now || is_away || !self.is_to_look() {
            return;
        }
        self.unsure = self.busy.keys().copied().collect();
        let state_dir = self.state_dir.clone();
        self.look.spawn(async move {
            let began = Instant::now();
            let guests = client::guests(&state_dir).await;
            (guests, began.elapsed())
        });
    }

    /// Compares what runs with what the records say.
    async fn end_look(&mut self, found: Result<Found, JoinError>) {
        let (guests, took) = found.unwrap_or_else(|error| {
            tracing::error!("which guests run: {error}");
            (Err(OrderError::Astray), Duration::ZERO)
        });
        // A host with so many guests that this takes long is looked at less often.
        self.next_look = Instant::now() + LOOK_EVERY.max(took * 10);
        let guests = match guests {
            Ok(guests) => guests,
            Err(error) => {
                if !std::mem::replace(&mut self.told.cannot_look, true) {
                    tracing::warn!("which guests run is not known: {}", whole(&error));
                }
                return;
            }
        };
        self.told.cannot_look = false;
        let seen: HashMap<InstanceId, Seen> = guests
            .into_iter()
            .map(|(id, state)| (id, seen(&state)))
            .collect();
        self.tell_of_strangers(&seen);
        let (known, unsure, booted) = (&self.machines, &self.unsure, self.booted);
        let look = |view: &View| {
            let ids = known.iter().filter(|id| !unsure.contains(*id));
            ids.flat_map(|id| {
                let found = seen.get(id).copied().unwrap_or(Seen::Gone);
                rules::look(view, *id, found, booted)
            })
            .collect()
        };
        if let Err(error) = self.keep("guests are looked at", look).await {
            tracing::error!("note which guests run: {error}");
        }
    }

    /// Guests that no record knows are let be: somebody ordered them by hand, or took their instance out of the file.
    fn tell_of_strangers(&mut self, seen: &HashMap<InstanceId, Seen>) {
        let strangers: Vec<_> = self.store.read(|view| {
            let strangers = seen.keys().filter(|id| view.instance(**id).is_none());
            strangers.copied().collect()
        });
        for id in strangers {
            if self.told.strangers.insert(id) {
                tracing::warn!(
                    "guest {id} was launched here and no instance has its id: it is let be"
                );
            }
        }
    }

    async fn keep(
        &self,
        what: &str,
        changes: impl Fn(&View) -> Vec<Change>,
    ) -> Result<(), StoreError> {
        let decide = |view: &View| {
            let changes = changes(view);
            if changes.is_empty() {
                return Ok((Transaction::default(), ()));
            }
            let mut draft = view.draft(by_itself(what));
            for change in changes {
                match change {
                    Change::Put(record) => draft.put(&record)?,
                    Change::Remove(key) => draft.remove(&key),
                }
            }
            Ok::<_, StoreError>((draft.finish(), ()))
        };
        self.store.update(decide).await.map(|_| ())
    }
}

/// Instances without a guest are as they were ordered to be, which is easily overlooked.
fn tell_of_ghosts(id: InstanceId, state_dir: &Path) {
    tracing::warn!(
        "no launcher was ever started with {}: {id} and whatever else RunInstances makes without the tag imds:port are \
         records without a guest (`imds launcher` launches guests, `--launcher required` refuses such calls)",
        state_dir.display()
    );
}

async fn carry_out(state_dir: &Path, id: InstanceId, task: &Task) -> Result<(), OrderError> {
    match task {
        Task::Launch(spec) => launch(state_dir, Spec::clone(spec)).await,
        Task::Stop => client::stop(state_dir, id).await,
        Task::Reboot(spec) => match client::state(state_dir, id).await? {
            State::Running(_) => client::reboot(state_dir, id).await.map(|_| ()),
            // A launcher ended in the middle of it.
            State::Stopped => launch(state_dir, Spec::clone(spec)).await,
            State::Absent => Err(OrderError::Failed("there is no such guest".to_owned())),
        },
        Task::Terminate => client::terminate(state_dir, id).await,
    }
}

/// A guest that runs already was launched by a daemon that did not get to write it down.
async fn launch(state_dir: &Path, spec: Spec) -> Result<(), OrderError> {
    let id = spec.id;
    match client::launch(state_dir, spec).await {
        Ok(_) => Ok(()),
        Err(OrderError::Failed(why)) => match client::state(state_dir, id).await? {
            State::Running(_) => Ok(()),
            State::Stopped | State::Absent => Err(OrderError::Failed(why)),
        },
        Err(error) => Err(error),
    }
}

fn seen(state: &State) -> Seen {
    match state {
        State::Running(_) => Seen::Running,
        State::Stopped => Seen::Ended,
        State::Absent => Seen::Gone,
    }
}

/// When the host was booted (proc_stat(5)); the beginning of time if that cannot be told.
fn booted() -> UnixSeconds {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("btime "));
    UnixSeconds(line.and_then(|text| text.trim().parse().ok()).unwrap_or(0))
}
