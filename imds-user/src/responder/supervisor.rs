//! The daemon's side of the responder: starts it, feeds it, counts with it, and replaces it at once when it dies. The
//! listening sockets are the daemon's too, so connections wait in their queues meanwhile.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::{UnixStream, unix::OwnedWriteHalf},
    process::{Child, Command},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use zeroize::Zeroizing;

use super::{
    protocol::{self, CHUNK_INSTANCES, Counters, FromResponder, ToResponder},
    signing::Signing,
};
use crate::{
    identity::{
        Signatures,
        signer::{Signed, Signer},
    },
    instance::{Host, Published},
    metadata,
    netns::NetNs,
};

/// How long a responder may take to say that it has everything.
const START_SECONDS_MAX: u64 = 30;
/// A responder that lived shorter than this did not really start: the next one waits a little.
const LIFE_MIN: Duration = Duration::from_secs(1);
/// The longest wait between starts.
const PAUSE_MAX: Duration = Duration::from_secs(1);

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
    #[error("the responder ended while it started ({0}); the log above says why")]
    Died(ExitStatus),
    /// It did not become ready.
    #[error("the responder was not ready after {START_SECONDS_MAX} s")]
    Late,
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
}

/// A change of what is served.
#[derive(Debug, Default)]
pub struct Update {
    /// What all instances share, if that changed.
    pub host: Option<Host>,
    /// New instances and new states of known ones, by slot.
    pub upsert: Vec<(u32, Arc<Published>)>,
    /// Slots whose instance is gone.
    pub remove: Vec<u32>,
}

/// What `imds status` shows of the responder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponderStatus {
    /// The process, while there is one.
    pub pid: Option<u32>,
    /// How often it was replaced.
    pub restarts: u64,
}

/// The supervised responder. Dropping it ends the process.
#[derive(Debug)]
pub struct Responder {
    commands: mpsc::Sender<Order>,
    status: watch::Receiver<ResponderStatus>,
    task: JoinHandle<()>,
}

enum Order {
    Update(Update, oneshot::Sender<()>),
    Count(oneshot::Sender<BTreeMap<u32, Counters>>),
}

impl Responder {
    /// Starts a responder with these instances and waits until it serves them. Their identity documents are signed by
    /// `signer`.
    ///
    /// # Errors
    /// When the process does not start or does not become ready.
    pub async fn start(
        start: Start,
        initial: Update,
        signer: Signer,
    ) -> Result<Self, ResponderError> {
        let mut desired = Desired::default();
        desired.merge(&initial);
        let running = Running::start(&start, &desired).await?;
        let (report, status) = watch::channel(ResponderStatus {
            pid: running.child.id(),
            restarts: 0,
        });
        let (commands, orders) = mpsc::channel(64);
        let supervisor = Supervisor {
            start,
            desired,
            orders,
            report,
            restarts: 0,
            ended: BTreeMap::new(),
            signing: Signing::new(signer),
        };
        let task = tokio::spawn(supervisor.run(running));
        Ok(Self {
            commands,
            status,
            task,
        })
    }

    /// Changes what is served; returns when the change is in force, or will be with the next responder.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub async fn update(&self, update: Update) -> Result<(), ResponderError> {
        let (done, applied) = oneshot::channel();
        self.commands
            .send(Order::Update(update, done))
            .await
            .map_err(|_| ResponderError::Stopped)?;
        // An error means that the process died before it said so; the next one starts with the change.
        drop(applied.await);
        if self.commands.is_closed() {
            Err(ResponderError::Stopped)
        } else {
            Ok(())
        }
    }

    /// What was counted for each slot since the daemon started. What a responder counted since the last question is lost
    /// when it dies.
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

    /// The process and how often it was replaced.
    #[must_use]
    pub fn status(&self) -> ResponderStatus {
        *self.status.borrow()
    }

    /// Ends the process and waits for its end.
    pub async fn stop(self) {
        drop(self.commands);
        // The task ends by itself; a panic in it is in the log already.
        drop(self.task.await);
    }
}

/// Everything a new responder must be told.
#[derive(Debug, Default)]
struct Desired {
    host: Option<Host>,
    instances: HashMap<u32, Arc<Published>>,
}

impl Desired {
    fn merge(&mut self, update: &Update) {
        if let Some(host) = &update.host {
            self.host = Some(host.clone());
        }
        for slot in &update.remove {
            self.instances.remove(slot);
        }
        for (slot, instance) in &update.upsert {
            self.instances.insert(*slot, Arc::clone(instance));
        }
    }

    /// An instance, and what it shares with the others.
    fn get(&self, slot: u32) -> Option<(&Host, &Published)> {
        self.host
            .as_ref()
            .zip(self.instances.get(&slot).map(|state| &**state))
    }

    fn as_update(&self) -> Update {
        Update {
            host: self.host.clone(),
            upsert: self
                .instances
                .iter()
                .map(|(slot, instance)| (*slot, Arc::clone(instance)))
                .collect(),
            remove: Vec::new(),
        }
    }
}

struct Supervisor {
    start: Start,
    desired: Desired,
    orders: mpsc::Receiver<Order>,
    report: watch::Sender<ResponderStatus>,
    restarts: u64,
    /// What earlier responders counted.
    ended: BTreeMap<u32, Counters>,
    signing: Signing,
}

enum End {
    /// Nobody wants it any more.
    Stopped,
    /// The process ended by itself.
    Died,
}

impl Supervisor {
    async fn run(mut self, mut running: Running) {
        let mut pause = Duration::ZERO;
        loop {
            let started = Instant::now();
            self.report.send_replace(ResponderStatus {
                pid: running.child.id(),
                restarts: self.restarts,
            });
            match self.attend(&mut running).await {
                End::Stopped => return running.stop().await,
                End::Died => {}
            }
            self.keep_counters(&running);
            self.report.send_replace(ResponderStatus {
                pid: None,
                restarts: self.restarts,
            });
            if started.elapsed() >= LIFE_MIN {
                pause = Duration::ZERO;
            }
            running = match self.replace(&mut pause).await {
                Some(next) => next,
                None => return,
            };
        }
    }

    /// Starts responders until one serves; none when nobody wants one any more.
    async fn replace(&mut self, pause: &mut Duration) -> Option<Running> {
        loop {
            tokio::time::sleep(*pause).await;
            *pause = (*pause * 2).clamp(Duration::from_millis(10), PAUSE_MAX);
            if self.orders.is_closed() {
                return None;
            }
            self.restarts += 1;
            match Running::start(&self.start, &self.desired).await {
                Ok(running) => return Some(running),
                Err(error) => tracing::error!("start a new responder: {error}"),
            }
        }
    }

    /// Passes orders on until the process or the supervisor ends.
    async fn attend(&mut self, running: &mut Running) -> End {
        loop {
            if let Err(error) = self.sign(running).await {
                tracing::error!("tell the responder: {error}");
                return End::Died;
            }
            tokio::select! {
                order = self.orders.recv() => {
                    let Some(order) = order else { return End::Stopped };
                    if let Err(error) = self.obey(order, running).await {
                        tracing::error!("tell the responder: {error}");
                        return End::Died;
                    }
                }
                message = running.messages.recv() => match message {
                    Some(message) => running.note(message, &self.ended),
                    None => {
                        running.log_end().await;
                        return End::Died;
                    }
                },
                signed = self.signing.next() => {
                    if let Err(error) = self.pass_on(signed, running).await {
                        tracing::error!("tell the responder: {error}");
                        return End::Died;
                    }
                }
            }
        }
    }

    /// Has signed what the responder asked for, or tells it at once.
    async fn sign(&mut self, running: &mut Running) -> io::Result<()> {
        for slot in std::mem::take(&mut running.unsigned) {
            let Some((host, instance)) = self.desired.get(slot) else {
                continue;
            };
            let document = metadata::identity_document(host, &instance.instance);
            let Some(signatures) = self.signing.ask(slot, document).cloned() else {
                continue;
            };
            running.tell_signed(slot, Some(signatures)).await?;
        }
        Ok(())
    }

    async fn pass_on(&mut self, signed: Signed, running: &mut Running) -> io::Result<()> {
        let Signed { slot, signatures } = signed;
        if self.desired.get(slot).is_none() {
            return Ok(());
        }
        if let Some(signatures) = &signatures {
            self.signing.keep(slot, signatures);
        }
        running.tell_signed(slot, signatures).await
    }

    async fn obey(&mut self, order: Order, running: &mut Running) -> io::Result<()> {
        match order {
            Order::Update(update, done) => {
                self.desired.merge(&update);
                self.signing.forget(&update.remove);
                running.update(&update, done).await
            }
            Order::Count(answer) => {
                running.questions.push(answer);
                protocol::send(&mut running.writer, &ToResponder::Count).await
            }
        }
    }

    fn keep_counters(&mut self, running: &Running) {
        self.ended = add(&self.ended, &running.counted);
        for counters in self.ended.values_mut() {
            counters.connections = 0;
        }
    }
}

/// One process.
struct Running {
    child: Child,
    writer: OwnedWriteHalf,
    messages: mpsc::Receiver<FromResponder>,
    revision: u64,
    /// Who waits for which revision. Dropped with the process, so that nobody waits for one that is gone.
    waiting: Vec<(u64, oneshot::Sender<()>)>,
    questions: Vec<oneshot::Sender<BTreeMap<u32, Counters>>>,
    /// The last answer.
    counted: Vec<(u32, Counters)>,
    /// Slots that it wants signatures of.
    unsigned: Vec<u32>,
}

impl Running {
    async fn start(start: &Start, desired: &Desired) -> Result<Self, ResponderError> {
        let failed = |what| move |cause| ResponderError::Io { what, cause };
        let (ours, theirs) = StdUnixStream::pair().map_err(failed("make a socket for"))?;
        let child = Command::new("/proc/self/exe")
            .arg("respond")
            .env_clear()
            .envs(
                std::env::vars_os()
                    .filter(|(name, _)| name == "RUST_LOG" || name == "RUST_BACKTRACE"),
            )
            .current_dir("/")
            // Ctrl-C in a terminal is for the daemon, which ends the responder when it is time.
            .process_group(0)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed("start"))?;
        let [v4, v6] = &start.listeners;
        protocol::send_descriptors(&ours, [v4.as_fd(), v6.as_fd(), start.netns.as_fd()])
            .map_err(failed("send sockets to"))?;
        ours.set_nonblocking(true).map_err(failed("speak to"))?;
        let (mut reader, writer) = UnixStream::from_std(ours)
            .map_err(failed("speak to"))?
            .into_split();
        let (forward, messages) = mpsc::channel(64);
        tokio::spawn(async move {
            while let Ok(Some(message)) = protocol::receive(&mut reader).await {
                if forward.send(message).await.is_err() {
                    return;
                }
            }
        });
        let (waiting, questions, counted) = (Vec::new(), Vec::new(), Vec::new());
        let mut running = Self {
            child,
            writer,
            messages,
            revision: 0,
            waiting,
            questions,
            counted,
            unsigned: Vec::new(),
        };
        match tokio::time::timeout(
            Duration::from_secs(START_SECONDS_MAX),
            running.introduce(start, desired),
        )
        .await
        {
            Ok(introduced) => introduced.map(|()| running),
            Err(_) => Err(ResponderError::Late),
        }
    }

    async fn introduce(&mut self, start: &Start, desired: &Desired) -> Result<(), ResponderError> {
        let hello = ToResponder::Hello {
            token_key: *start.token_key,
            workers: start.workers,
        };
        let (done, mut applied) = oneshot::channel();
        let told = match protocol::send(&mut self.writer, &hello).await {
            Ok(()) => self.update(&desired.as_update(), done).await,
            Err(error) => Err(error),
        };
        // A broken pipe means that it died; its exit status says more.
        drop(told);
        while let Some(message) = self.messages.recv().await {
            self.note(message, &BTreeMap::new());
            if applied.try_recv().is_ok() {
                return Ok(());
            }
        }
        let status = self
            .child
            .wait()
            .await
            .map_err(|cause| ResponderError::Io {
                what: "wait for",
                cause,
            })?;
        Err(ResponderError::Died(status))
    }

    async fn update(&mut self, update: &Update, done: oneshot::Sender<()>) -> io::Result<()> {
        self.revision += 1;
        self.waiting.push((self.revision, done));
        if let Some(host) = &update.host {
            protocol::send(&mut self.writer, &ToResponder::Host(host.clone())).await?;
        }
        if !update.remove.is_empty() {
            protocol::send(
                &mut self.writer,
                &ToResponder::Remove(update.remove.clone()),
            )
            .await?;
        }
        for chunk in update.upsert.chunks(CHUNK_INSTANCES) {
            protocol::send(&mut self.writer, &ToResponder::Upsert(chunk.to_vec())).await?;
        }
        protocol::send(&mut self.writer, &ToResponder::Apply(self.revision)).await
    }

    fn note(&mut self, message: FromResponder, ended: &BTreeMap<u32, Counters>) {
        match message {
            FromResponder::Applied(revision) => {
                for (_, done) in self
                    .waiting
                    .extract_if(.., |(number, _)| *number <= revision)
                {
                    // Whoever asked may have gone.
                    done.send(()).ok();
                }
            }
            FromResponder::Counters(counted) => {
                self.counted = counted;
                let total = add(ended, &self.counted);
                for question in self.questions.drain(..) {
                    drop(question.send(total.clone()));
                }
            }
            FromResponder::Sign(slot) => self.unsigned.push(slot),
        }
    }

    async fn tell_signed(&mut self, slot: u32, signatures: Option<Signatures>) -> io::Result<()> {
        let signed = ToResponder::Signed { slot, signatures };
        protocol::send(&mut self.writer, &signed).await
    }

    async fn log_end(&mut self) {
        match self.child.wait().await {
            Ok(status) => tracing::error!("the responder ended ({status}); starting another"),
            Err(error) => tracing::error!("the responder ended ({error}); starting another"),
        }
    }

    async fn stop(mut self) {
        if let Err(error) = self.child.kill().await {
            tracing::warn!("end the responder: {error}");
        }
    }
}

fn add(ended: &BTreeMap<u32, Counters>, counted: &[(u32, Counters)]) -> BTreeMap<u32, Counters> {
    let mut total = ended.clone();
    for (slot, counters) in counted {
        let sum = total.entry(*slot).or_default();
        sum.requests += counters.requests;
        sum.tokens_issued += counters.tokens_issued;
        sum.no_token += counters.no_token;
        sum.no_token_rejected += counters.no_token_rejected;
        sum.throttled += counters.throttled;
        sum.connections += counters.connections;
    }
    total
}
