//! The daemon's side of the responder: takes over one that runs or starts one, feeds it, counts with it, and replaces it at
//! once when it dies or hangs. The listening sockets are the daemon's too, so connections wait in their queues meanwhile.
//! Where no responder can be started they are closed, so that guests are refused instead of waiting for nobody.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream as StdUnixStream, process::CommandExt},
    },
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::AsyncReadExt,
    net::UnixStream,
    sync::{mpsc, oneshot, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use zeroize::Zeroizing;

pub use super::desired::Update;
use super::{
    desired::Desired,
    door::Door,
    found::{self, Found},
    greeting::{Build, Tally},
    handle::Handle,
    line::{Books, Line},
    listeners,
    namespace::NamespaceError,
    protocol::{self, Attached, Counted, Counters, Hello, ToResponder},
    rights,
    signing::Signing,
};
use crate::{
    identity::signer::{Signed, Signer},
    instance::{InstanceId, MetadataOptions, Published},
    metadata,
    metrics::Meter,
    netns::NetNs,
    service_manager,
};

/// How long a responder may take to say that it has everything.
const START_SECONDS_MAX: u64 = 30;
/// A responder that lived shorter than this did not really start: the next one waits a little.
const LIFE_MIN: Duration = Duration::from_secs(1);
/// The shortest and the longest wait between starts, and the longest once guests are refused.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
const PAUSE_CLOSED_MAX: Duration = Duration::from_secs(30);
/// Starts that may fail one after the other before the listening sockets are closed. With the pauses between them, and a
/// process that fails at once, about a second.
const FAILED_STARTS_MAX: u32 = 5;
/// How often the responder is asked for a sign of life, and how often in a row it may stay silent before another takes over.
const PING_EVERY: Duration = Duration::from_secs(1);
const SILENCES_MAX: u32 = 3;
/// What a responder that was replaced may take to finish what is under way: as long as any connection may go without an
/// answer ...
const DRAIN_SECONDS: u32 = 20;
/// ... and one that hangs, which may keep a processor busy: its other threads finish what they can.
const DRAIN_HANGING_SECONDS: u32 = 1;

/// Why there is no responder.
#[derive(Debug, thiserror::Error)]
pub enum ResponderError {
    /// It could not be started or spoken to.
    #[error("{what} the responder: {cause}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// It ended before it served.
    #[error("the responder ended while it started{}; the log above says why", .0.map_or(String::new(), |status| format!(" ({status})")))]
    Died(Option<ExitStatus>),
    /// It did not become ready.
    #[error("the responder was not ready after {START_SECONDS_MAX} s")]
    Late,
    /// Its listening sockets could not be made again.
    #[error(transparent)]
    Listen(#[from] NamespaceError),
    /// The supervisor is gone.
    #[error("the responder was stopped")]
    Stopped,
}

/// What a responder is started with.
#[derive(Debug)]
pub struct Start {
    /// The namespace it lives in.
    pub netns: NetNs,
    /// Its listening sockets.
    pub listeners: [TcpListener; 2],
    /// The key of the session tokens.
    pub token_key: Zeroizing<[u8; 32]>,
    /// Threads that serve.
    pub workers: u16,
    /// The directory of the sockets by which running responders are reached.
    pub doors: PathBuf,
    /// Where what is counted is entered, by the minute.
    pub meter: Meter,
}

/// What `imds status` shows of the responder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponderStatus {
    /// The process, while there is one.
    pub pid: Option<u32>,
    /// How often another was started in its place.
    pub restarts: u64,
    /// How many starts have failed since the last one that did not.
    pub failed_starts: u32,
}

/// The supervised responder. Dropping it leaves the process to itself.
#[derive(Debug)]
pub struct Responder {
    commands: mpsc::Sender<Order>,
    status: watch::Receiver<ResponderStatus>,
    /// How many responders finish what is under way.
    draining: watch::Receiver<usize>,
    /// The options that are in force, by slot.
    options: HashMap<u32, MetadataOptions>,
    task: JoinHandle<()>,
}

/// A responder that serves, and what.
#[derive(Debug)]
pub struct Started {
    /// The responder.
    pub responder: Responder,
    /// What it serves, by slot. What an earlier daemon said, and this one says too, is in force since then.
    pub in_force: HashMap<u32, Arc<Published>>,
}

enum Order {
    Update(Update, oneshot::Sender<()>),
    Count(oneshot::Sender<BTreeMap<u32, Counters>>),
}

impl Responder {
    /// Goes on with the latest of the responders that run, or starts one that takes over from them, and returns when it
    /// serves these instances, and no other. Their identity documents are signed by `signer`.
    ///
    /// # Errors
    /// When a process does not start or does not become ready; those that run serve on then.
    pub async fn start(
        start: Start,
        initial: Update,
        signer: Signer,
        found: Vec<Found>,
    ) -> Result<Started, ResponderError> {
        let (report, status) = watch::channel(ResponderStatus::default());
        let (tell_draining, draining) = watch::channel(0);
        let (commands, orders) = mpsc::channel(64);
        let Start {
            netns,
            listeners,
            token_key,
            workers,
            doors,
            meter,
        } = start;
        let mut desired = Desired::default();
        desired.merge(&initial);
        let mut supervisor = Supervisor {
            netns,
            listeners: Some(listeners),
            hello: Hello { token_key, workers },
            doors,
            desired,
            orders,
            report,
            restarts: 0,
            failed_starts: 0,
            counted: BTreeMap::new(),
            meter,
            leaving: HashMap::new(),
            retiring: JoinSet::new(),
            draining: tell_draining,
            signing: Signing::new(signer),
        };
        let running = supervisor.adopt_or_start(found).await?;
        supervisor.tell(Some(running.handle.pid()));
        let in_force = supervisor.desired.instances.clone();
        let options = in_force
            .iter()
            .map(|(slot, state)| (*slot, state.instance.options))
            .collect();
        let task = tokio::spawn(supervisor.run(running));
        let responder = Self {
            commands,
            status,
            draining,
            options,
            task,
        };
        Ok(Started {
            responder,
            in_force,
        })
    }

    /// Changes what is served; returns when the change is in force, or will be with the next responder.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub async fn update(&mut self, update: Update) -> Result<(), ResponderError> {
        let (done, applied) = oneshot::channel();
        let options = update.upsert.iter();
        let options = options.map(|(slot, state)| (*slot, state.instance.options));
        let (options, gone): (Vec<_>, _) = (options.collect(), update.remove.clone());
        self.commands
            .send(Order::Update(update, done))
            .await
            .map_err(|_| ResponderError::Stopped)?;
        // An error means that the process died before it said so; the next one starts with the change.
        drop(applied.await);
        if self.commands.is_closed() {
            return Err(ResponderError::Stopped);
        }
        for slot in gone {
            self.options.remove(&slot);
        }
        self.options.extend(options);
        Ok(())
    }

    /// Whether nobody answers a guest by other options than these any more: neither the responder of the moment, nor one that
    /// finishes what is under way, which may still give an answer of the time before to each open connection.
    #[must_use]
    pub fn serves(&self, slot: u32, options: MetadataOptions) -> bool {
        self.options.get(&slot) == Some(&options) && *self.draining.borrow() == 0
    }

    /// Waits until the last responder that finished what was under way has ended. Cancel safe.
    pub async fn drained(&mut self) {
        loop {
            if self.draining.changed().await.is_err() {
                // The supervisor is gone, which whoever has an order hears.
                std::future::pending::<()>().await;
            }
            if *self.draining.borrow_and_update() == 0 {
                return;
            }
        }
    }

    /// What was counted for each slot, by this responder and those before it. What one counted in the last second or so is
    /// lost when it is killed.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub async fn counters(&self) -> Result<BTreeMap<u32, Counters>, ResponderError> {
        let (answer, counters) = oneshot::channel();
        self.commands
            .send(Order::Count(answer))
            .await
            .map_err(|_| ResponderError::Stopped)?;
        counters.await.map_err(|_| ResponderError::Stopped)
    }

    /// Asks for what was counted, for as long as this responder is supervised, without keeping it from being left.
    #[must_use]
    pub fn sampler(&self) -> Sampler {
        Sampler(self.commands.downgrade())
    }

    /// The process and how often it was replaced.
    #[must_use]
    pub fn status(&self) -> ResponderStatus {
        *self.status.borrow()
    }

    /// Leaves the process to itself: it serves on with what it was told.
    pub async fn leave(self) {
        drop(self.commands);
        // The task ends by itself; a panic in it is in the log already.
        drop(self.task.await);
    }
}

/// See [`Responder::sampler`].
#[derive(Clone, Debug)]
pub struct Sampler(mpsc::WeakSender<Order>);

impl Sampler {
    /// Returns when all that was counted until now is entered; at once, if nobody supervises the responder any more.
    pub async fn look(&self) {
        let (answer, counters) = oneshot::channel();
        if let Some(commands) = self.0.upgrade()
            && commands.send(Order::Count(answer)).await.is_ok()
        {
            // Who has gone counted nothing more.
            counters.await.ok();
        }
    }
}

struct Supervisor {
    netns: NetNs,
    /// None while guests are refused.
    listeners: Option<[TcpListener; 2]>,
    hello: Hello,
    doors: PathBuf,
    desired: Desired,
    orders: mpsc::Receiver<Order>,
    report: watch::Sender<ResponderStatus>,
    restarts: u64,
    failed_starts: u32,
    /// What was last heard to be counted.
    counted: BTreeMap<u32, Counters>,
    /// The same, by the minute, and of instances that are gone too.
    meter: Meter,
    /// Who was removed while a responder is still to say what it counted for them at last, by slot.
    leaving: HashMap<u32, InstanceId>,
    /// Responders that finish what is under way. Each ends with what it counted since another took over.
    retiring: JoinSet<Vec<Counted>>,
    /// How many these are, for whoever waits for their end.
    draining: watch::Sender<usize>,
    signing: Signing,
}

/// Why a responder is not attended to any more.
enum End {
    /// The daemon leaves.
    Left,
    /// The process ended by itself.
    Died,
    /// It gives no sign of life.
    Hangs,
}

impl Supervisor {
    async fn run(mut self, mut running: Running) {
        let mut pause = Duration::ZERO;
        loop {
            let started = Instant::now();
            self.tell(Some(running.handle.pid()));
            let end = self.attend(&mut running).await;
            if started.elapsed() >= LIFE_MIN {
                pause = Duration::ZERO;
            }
            // Who asked this one is told what it had said before.
            running.line.answer(&self.counted);
            let next = match end {
                End::Left => return,
                End::Died => {
                    self.tell(None);
                    // It cannot say any more what it counted for those.
                    self.forget_strangers();
                    running.bury().await;
                    self.replace(&mut pause).await
                }
                End::Hangs => self.take_over(running, &mut pause).await,
            };
            running = match next {
                Some(next) => next,
                None => return,
            };
            self.restarts += 1;
        }
    }

    /// The latest responder that runs, if it will do; or a new one, that takes over from those there are.
    async fn adopt_or_start(&mut self, mut found: Vec<Found>) -> Result<Running, ResponderError> {
        let adopted = match found.first() {
            Some(latest) => self.adopt(latest).await,
            None => None,
        };
        // Slots of another namespace mean other guests.
        let namespace = self.netns.inode();
        let running = match adopted {
            Some(line) => {
                let Found { handle, door, .. } = found.remove(0);
                tracing::info!("responder {} serves on", handle.pid());
                Running { handle, door, line }
            }
            None => {
                self.counted = match found.first().filter(|one| one.is_in(namespace)) {
                    Some(latest) => latest.tally().await.0.into_iter().collect(),
                    None => BTreeMap::new(),
                };
                self.meter.resume(&self.with_ids(&self.counted));
                self.start().await?
            }
        };
        for other in found {
            let counted = other.is_in(namespace).then(|| self.counted.clone());
            self.retire(other.handle, other.door, DRAIN_SECONDS, counted)
                .await;
        }
        self.forget_strangers();
        Ok(running)
    }

    /// Whose counts these are: of instances that are served, or that the meter knows from an earlier daemon.
    fn with_ids(&self, counted: &BTreeMap<u32, Counters>) -> Vec<Counted> {
        let of = |(slot, counters): (&u32, &Counters)| {
            let id = self.meter.id_of(*slot).or(self.desired.id_of(*slot))?;
            Some(Counted {
                slot: *slot,
                id,
                counters: *counters,
            })
        };
        counted.iter().filter_map(of).collect()
    }

    /// Forgets what slots counted that nobody has any more.
    fn forget_strangers(&mut self) {
        let Self {
            desired,
            counted,
            meter,
            leaving,
            ..
        } = self;
        leaving.clear();
        counted.retain(|slot, _| desired.id_of(*slot).is_some());
        meter.close_unless(|slot, id| desired.id_of(slot) == Some(id));
    }

    /// Goes on with a responder that runs, if it is one that this daemon could have started.
    async fn adopt(&mut self, found: &Found) -> Option<Line> {
        let pid = found.handle.pid();
        let is_right = Build::own().is_ok_and(|own| found.may_serve(own, self.netns.inode()));
        if !is_right {
            tracing::info!("responder {pid} of version {} is replaced", found.version());
            return None;
        }
        let attach = async {
            let (mut line, told) = Line::attach(&found.door).await?;
            if told.hello != protocol::digest(&self.hello)? {
                return Err(io::Error::other("it was started with other settings"));
            }
            let known = told.instances.iter();
            self.counted = known
                .clone()
                .map(|known| (known.slot, known.counters))
                .collect();
            let counted = known.map(|known| Counted {
                slot: known.slot,
                id: known.id,
                counters: known.counters,
            });
            let is_known = |one: &Counted| {
                let ids = [self.desired.id_of(one.slot), self.meter.id_of(one.slot)];
                ids.contains(&Some(one.id))
            };
            self.meter
                .resume(&counted.filter(is_known).collect::<Vec<_>>());
            self.inform(&mut line, &told).await?;
            Ok(line)
        };
        match within_start_time(attach).await {
            Ok(line) => Some(line),
            Err(why) => {
                tracing::info!("responder {pid} is replaced: {why}");
                None
            }
        }
    }

    /// Starts a responder and tells it everything.
    async fn start(&mut self) -> Result<Running, ResponderError> {
        let started = self.try_start().await;
        match &started {
            Ok(_) if self.failed_starts >= FAILED_STARTS_MAX => {
                tracing::info!("a responder was started: guests are served again");
                self.failed_starts = 0;
            }
            Ok(_) => self.failed_starts = 0,
            Err(_) => {
                self.failed_starts += 1;
                if self.failed_starts >= FAILED_STARTS_MAX {
                    self.close();
                }
            }
        }
        started
    }

    async fn try_start(&mut self) -> Result<Running, ResponderError> {
        let sockets = match self.listeners.take() {
            Some(sockets) => sockets,
            None => listeners::open(&self.netns)?,
        };
        let sockets = self.listeners.insert(sockets);
        let [v4, v6] = sockets;
        let (door, socket) = Door::make(&self.doors).map_err(failed("make a socket for"))?;
        let born = spawn().and_then(|(handle, birth)| {
            let descriptors = [v4.as_fd(), v6.as_fd(), self.netns.as_fd(), socket.as_fd()];
            rights::send(&birth, &[0], descriptors)?;
            Ok((handle, birth))
        });
        drop(socket);
        let (handle, birth) = match born {
            Ok(born) => born,
            Err(cause) => {
                door.remove();
                return Err(failed("start")(cause));
            }
        };
        match within_start_time(self.introduce(&door, birth)).await {
            Ok(line) => Ok(Running { handle, door, line }),
            Err(cause) => Err(give_up(&handle, &door, cause).await),
        }
    }

    /// Tells a process that was just started everything.
    async fn introduce(&mut self, door: &Door, birth: StdUnixStream) -> io::Result<Line> {
        birth.set_nonblocking(true)?;
        let mut birth = UnixStream::from_std(birth)?;
        protocol::send(&mut birth, &self.hello).await?;
        // Said when it has given up its rights and can be reached.
        birth.read_u8().await?;
        let (mut line, told) = Line::attach(door).await?;
        self.inform(&mut line, &told).await?;
        Ok(line)
    }

    /// Tells a responder what it was not told yet, and waits until that is in force.
    async fn inform(&mut self, line: &mut Line, told: &Attached) -> io::Result<()> {
        let update = self.desired.differs_from(told)?;
        let (done, mut applied) = oneshot::channel();
        line.promise(done);
        line.change(&update).await?;
        if told.instances.is_empty() {
            line.say(&ToResponder::Add(self.counts())).await?;
        }
        line.apply().await?;
        while applied.try_recv().is_err() {
            let message = line.messages.recv().await;
            let message = message.ok_or(io::ErrorKind::UnexpectedEof)?;
            line.note(message, self.books());
        }
        Ok(())
    }

    fn books(&mut self) -> Books<'_> {
        Books {
            desired: &self.desired,
            leaving: &mut self.leaving,
            counted: &mut self.counted,
            meter: &self.meter,
        }
    }

    /// What was counted, as numbers that only grow.
    fn counts(&self) -> Vec<(u32, Counters)> {
        self.counted
            .iter()
            .map(|(slot, counters)| (*slot, counters.since(Counters::default())))
            .collect()
    }

    /// Refuses guests: nobody holds the listening sockets any more.
    fn close(&mut self) {
        if self.failed_starts == FAILED_STARTS_MAX {
            tracing::error!(
                "{FAILED_STARTS_MAX} responders could not be started: guests are refused until one can"
            );
        }
        self.listeners = None;
        service_manager::forget_listeners();
    }

    /// Starts responders until one serves; none when the daemon leaves.
    async fn replace(&mut self, pause: &mut Duration) -> Option<Running> {
        loop {
            self.wait(*pause).await?;
            let is_closed = self.failed_starts >= FAILED_STARTS_MAX;
            let pause_max = if is_closed {
                PAUSE_CLOSED_MAX
            } else {
                PAUSE_MAX
            };
            *pause = (*pause * 2).clamp(PAUSE_MIN, pause_max);
            match self.start().await {
                Ok(running) => {
                    if is_closed {
                        self.listeners.as_ref().map(service_manager::keep_listeners);
                    }
                    return Some(running);
                }
                Err(error) => {
                    tracing::error!("start a responder: {error}");
                    self.tell(None);
                }
            }
        }
    }

    /// Waits, and takes orders for the next responder meanwhile; none when the daemon leaves.
    async fn wait(&mut self, pause: Duration) -> Option<()> {
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(until) => return Some(()),
                order = self.orders.recv() => match order? {
                    Order::Update(update, done) => {
                        self.meter.close_unless(|slot, _| !update.remove.contains(&slot));
                        self.merge(&update);
                        // Whoever asked may have gone.
                        done.send(()).ok();
                    }
                    Order::Count(answer) => drop(answer.send(self.counted.clone())),
                },
            }
        }
    }

    /// Replaces a responder that hangs. What of it does not hang finishes what is under way.
    async fn take_over(&mut self, hanging: Running, pause: &mut Duration) -> Option<Running> {
        let Running {
            handle,
            door,
            mut line,
        } = hanging;
        tracing::error!(
            "responder {} gives no sign of life: another takes over",
            handle.pid()
        );
        // Until another has taken over, what they wait for is not in force.
        let _waiting = line.waiting();
        drop(line);
        match self.start().await {
            Ok(next) => {
                let counted = Some(self.counted.clone());
                self.retire(handle, door, DRAIN_HANGING_SECONDS, counted)
                    .await;
                Some(next)
            }
            Err(error) => {
                tracing::error!("start a responder: {error}");
                self.tell(None);
                found::end(&handle).await;
                door.remove();
                self.replace(pause).await
            }
        }
    }

    /// Lets a responder finish what is under way, now that another serves, which counts on from `counted`. None, if what
    /// it counts is of no interest.
    async fn retire(
        &mut self,
        handle: Handle,
        door: Door,
        seconds: u32,
        counted: Option<BTreeMap<u32, Counters>>,
    ) {
        let retiring = found::retire(handle, door, seconds).await;
        self.draining.send_modify(|n| *n += 1);
        // By then a slot may be another's.
        let ids: HashMap<u32, InstanceId> = self.desired.ids().collect();
        self.retiring.spawn(async move {
            let Tally(at_last) = retiring.ended().await.unwrap_or_default();
            let Some(counted) = counted else {
                return Vec::new();
            };
            let since = |(slot, counters): (u32, Counters)| {
                Some(Counted {
                    slot,
                    id: *ids.get(&slot)?,
                    counters: counters.since(*counted.get(&slot)?),
                })
            };
            at_last.into_iter().filter_map(since).collect()
        });
    }

    /// Passes orders on until the process, its patience or the supervisor ends.
    async fn attend(&mut self, running: &mut Running) -> End {
        let line = &mut running.line;
        let mut pings = interval(PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What is counted belongs to the minute in which it is heard of, so it is asked for when one ends, too.
        let mut minute_ends = Instant::now() + self.meter.until_next_minute();
        loop {
            let said = tokio::select! {
                order = self.orders.recv() => match order {
                    Some(order) => self.obey(order, line).await,
                    None => return End::Left,
                },
                message = line.messages.recv() => match message {
                    Some(message) => {
                        line.note(message, self.books());
                        self.sign(line).await
                    }
                    None => return End::Died,
                },
                signed = self.signing.next() => self.pass_on(signed, line).await,
                Some(retired) = self.retiring.join_next() => {
                    self.draining.send_replace(self.retiring.len());
                    self.count_on(retired.unwrap_or_default(), line).await
                }
                _ = pings.tick() => {
                    if line.silences >= SILENCES_MAX {
                        return End::Hangs;
                    }
                    // Also so that little of it is lost with a process that is killed.
                    match line.say(&ToResponder::CountChanged).await {
                        Ok(()) => line.ping().await,
                        error => error,
                    }
                }
                () = sleep_until(minute_ends) => {
                    minute_ends = Instant::now() + self.meter.until_next_minute();
                    line.say(&ToResponder::Count).await
                }
            };
            match said {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return End::Hangs,
                Err(error) => {
                    tracing::error!("tell the responder: {error}");
                    return End::Died;
                }
            }
        }
    }

    /// Has signed what the responder asked for, or tells it at once.
    async fn sign(&mut self, line: &mut Line) -> io::Result<()> {
        for slot in std::mem::take(&mut line.unsigned) {
            let Some((host, instance)) = self.desired.get(slot) else {
                continue;
            };
            let document = metadata::identity_document(host, &instance.instance);
            let Some(signatures) = self.signing.ask(slot, document).cloned() else {
                continue;
            };
            let signatures = Some(signatures);
            line.say(&ToResponder::Signed { slot, signatures }).await?;
        }
        Ok(())
    }

    async fn pass_on(&mut self, signed: Signed, line: &mut Line) -> io::Result<()> {
        let Signed { slot, signatures } = signed;
        if self.desired.get(slot).is_none() {
            return Ok(());
        }
        if let Some(signatures) = &signatures {
            self.signing.keep(slot, signatures);
        }
        line.say(&ToResponder::Signed { slot, signatures }).await
    }

    async fn obey(&mut self, order: Order, line: &mut Line) -> io::Result<()> {
        match order {
            Order::Update(update, done) => {
                self.merge(&update);
                line.promise(done);
                line.change(&update).await?;
                line.apply().await
            }
            Order::Count(answer) => {
                line.questions.push(answer);
                line.say(&ToResponder::Count).await
            }
        }
    }

    fn merge(&mut self, update: &Update) {
        let removed = update.remove.iter();
        let removed = removed.filter_map(|slot| Some((*slot, self.desired.id_of(*slot)?)));
        self.leaving.extend(removed);
        self.desired.merge(update);
        for slot in &update.remove {
            self.counted.remove(slot);
        }
        self.signing.forget(&update.remove);
    }

    /// Adds what a responder counted after another had taken over.
    async fn count_on(&mut self, mut more: Vec<Counted>, line: &mut Line) -> io::Result<()> {
        self.meter.add(&more);
        more.retain(|one| self.desired.id_of(one.slot) == Some(one.id));
        for one in &more {
            let known = self.counted.entry(one.slot).or_default();
            *known = known.plus(one.counters);
        }
        let more = more.into_iter().map(|one| (one.slot, one.counters));
        line.say(&ToResponder::Add(more.collect())).await
    }

    /// Tells whoever looks.
    fn tell(&self, pid: Option<u32>) {
        self.report.send_replace(ResponderStatus {
            pid,
            restarts: self.restarts,
            failed_starts: self.failed_starts,
        });
    }
}

/// One process that serves.
struct Running {
    handle: Handle,
    door: Door,
    line: Line,
}

impl Running {
    /// Sees to the end of a process that ended by itself, or broke the line.
    async fn bury(self) {
        let Self { handle, door, line } = self;
        // One that closed the line and lives is not to be trusted. Who waits for it is told when it serves nobody any more.
        match found::end(&handle).await {
            Some(status) => tracing::error!("the responder ended ({status}); starting another"),
            None => tracing::error!("the responder ended; starting another"),
        }
        drop(line);
        door.remove();
    }
}

/// Starts the process, with one end of a line to it.
fn spawn() -> io::Result<(Handle, StdUnixStream)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    let child = Command::new("/proc/self/exe")
        .arg0("imds")
        .arg("respond")
        .env_clear()
        .envs(
            std::env::vars_os().filter(|(name, _)| name == "RUST_LOG" || name == "RUST_BACKTRACE"),
        )
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()?;
    Ok((Handle::of_child(&child)?, ours))
}

async fn within_start_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(Duration::from_secs(START_SECONDS_MAX), work).await?
}

/// Ends a process that did not become ready, and says what its end says of it.
async fn give_up(handle: &Handle, door: &Door, cause: io::Error) -> ResponderError {
    // A line that broke means that it ended; how says more.
    let error = match timeout(LIFE_MIN, handle.ended()).await {
        Ok(status) => ResponderError::Died(status),
        Err(_) if cause.kind() == io::ErrorKind::TimedOut => ResponderError::Late,
        Err(_) => failed("speak to")(cause),
    };
    found::end(handle).await;
    door.remove();
    error
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> ResponderError {
    move |cause| ResponderError::Io { what, cause }
}
