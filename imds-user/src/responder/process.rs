//! `imds respond`: the responder's own main function. It takes its sockets from the daemon that starts it, gives up every
//! right, and serves. Daemons come and go: what one said stays in force until the next says otherwise.

use std::{
    collections::HashMap,
    io::{self, Write},
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
    },
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use nix::{
    sys::socket::{Backlog, listen},
    unistd::{geteuid, setsid},
};
use rustix::thread::set_name;
use tokio::{
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::{
    confine::{self, ConfineError},
    greeting::{Greeting, Order, Tally},
    protocol::{
        self, Attached, Counted, Counters, Digest, FromResponder, Hello, Known, ToResponder,
    },
    rights,
    workers::Workers,
};
use crate::{
    http::{
        guests::{Guest, Guests, Leaving},
        server::Server,
    },
    token::{TokenKey, TokenKeys},
};

/// What the daemon sends beside [`Hello`]: the listening sockets, the namespace, and the socket that daemons connect to.
pub const DESCRIPTORS: usize = 4;

/// How long a responder that serves nobody yet waits for the daemon that started it.
const FIRST_DAEMON_WITHIN: Duration = Duration::from_secs(30);
/// How long whoever was greeted may take to say what it wants.
const ORDER_WITHIN: Duration = Duration::from_secs(10);
/// Daemons that wait: there is one at a time, and who looks whether the responder is there.
const BACKLOG: i32 = 16;
/// How often a responder that drains looks whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long connections of guests that are gone may take to end before the daemon is told that they have. What they still
/// send by then is dropped.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);
/// Requests for signatures that may wait for a daemon to read them. A guest has at most one among them.
const UNSIGNED_MAX: usize = 1024;

/// Why a responder could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The line to the daemon.
    #[error("speak to the daemon: {0} (`imds respond` is started by `imds run`, not by hand)")]
    Daemon(#[source] io::Error),
    /// A right could not be given up.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// A thread or its runtime could not be started.
    #[error("start a worker: {0}")]
    Worker(#[source] io::Error),
}

/// Serves until a daemon says that another responder does, or until the process is ended.
///
/// # Errors
/// When the daemon does not say what to serve with, or a right cannot be given up: nothing is served then.
pub fn run() -> Result<(), ProcessError> {
    confine::close_inherited_descriptors()?;
    // A session of its own: the terminal's end and its interrupt key are not the responder's business. Whoever starts it
    // by hand may lead a group already; it is told the reason below.
    setsid().ok();
    // Else it would be called "exe", after what the daemon starts it by.
    set_name(c"imds-respond").ok();
    let daemon_uid = geteuid().as_raw();
    let stdin = io::stdin().as_fd().try_clone_to_owned();
    let birth = StdUnixStream::from(stdin.map_err(ProcessError::Daemon)?);
    let [v4, v6, netns, control] =
        rights::receive(&birth, &mut [0]).map_err(ProcessError::Daemon)?;
    let listeners = [v4, v6].map(TcpListener::from);
    let greeting = Greeting::own().map_err(ProcessError::Daemon)?;
    confine::drop_privileges(&netns)?;
    drop(netns);

    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ProcessError::Worker)?;
    let hello = runtime
        .block_on(hello(&birth))
        .map_err(ProcessError::Daemon)?;
    let guests = Arc::new(Guests::with_connections(confine::connections_max()));
    let keys = TokenKeys {
        current: TokenKey::new(*hello.token_key),
        previous: None,
    };
    let (to_be_signed, unsigned) = mpsc::channel(UNSIGNED_MAX);
    let server = Arc::new(Server::new(Arc::clone(&guests), keys, to_be_signed));
    let responder = Responder {
        workers: Workers::start(&server, &listeners, hello.workers)
            .map_err(ProcessError::Worker)?,
        guests,
        server,
        listeners,
        unsigned,
        greeting,
        hello: protocol::digest(&hello).map_err(ProcessError::Daemon)?,
        daemon_uid,
    };
    drop(hello);
    runtime.block_on(async {
        let daemons = daemons(control).map_err(ProcessError::Daemon)?;
        confine::restrict_system_calls()?;
        say_ready(birth).map_err(ProcessError::Daemon)?;
        responder.attend(daemons).await;
        Ok(())
    })
}

async fn hello(birth: &StdUnixStream) -> io::Result<Hello> {
    let line = birth.try_clone()?;
    line.set_nonblocking(true)?;
    let hello = protocol::receive(&mut UnixStream::from_std(line)?).await?;
    hello.ok_or_else(|| io::Error::other("no introduction"))
}

/// Listens for daemons. Only now, with the rights given up: the kernel tells whoever connects who it was that listened.
fn daemons(socket: OwnedFd) -> io::Result<UnixListener> {
    listen(&socket, Backlog::new(BACKLOG)?)?;
    let listener = StdUnixListener::from(socket);
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

fn say_ready(mut birth: StdUnixStream) -> io::Result<()> {
    birth.write_all(&[1])
}

struct Responder {
    guests: Arc<Guests>,
    server: Arc<Server>,
    workers: Workers,
    listeners: [TcpListener; 2],
    /// Slots whose identity document a daemon is to sign.
    unsigned: mpsc::Receiver<u32>,
    greeting: Greeting,
    hello: Digest,
    daemon_uid: u32,
}

/// How a conversation with a daemon ended.
enum Parting {
    /// The daemon left.
    Left,
    /// This responder is not needed any more.
    Drain {
        daemon: UnixStream,
        within: Duration,
    },
}

impl Responder {
    /// Listens to one daemon after the other.
    async fn attend(mut self, daemons: UnixListener) {
        loop {
            let next = timeout(FIRST_DAEMON_WITHIN, daemons.accept());
            let daemon = match next.await {
                Ok(Ok((daemon, _))) => daemon,
                Ok(Err(error)) => {
                    tracing::warn!("accept a daemon: {error}");
                    sleep(LOOK_EVERY).await;
                    continue;
                }
                Err(_) if self.workers.serve() => continue,
                Err(_) => return,
            };
            match self.converse(daemon).await {
                Ok(Parting::Drain { daemon, within }) => {
                    return self.drain(daemons, daemon, within).await;
                }
                // Who was never told what to serve has nothing to go on with.
                Ok(Parting::Left) if self.workers.serve() => {}
                Ok(Parting::Left) => return,
                Err(error) => tracing::warn!("speak to a daemon: {error}"),
            }
        }
    }

    /// Greets whoever is let in, and does what it says until it leaves.
    async fn converse(&mut self, mut daemon: UnixStream) -> io::Result<Parting> {
        self.check(&daemon)?;
        if self.greeting.send(&daemon, &self.listeners).is_err() {
            return Ok(Parting::Left);
        }
        loop {
            let order = match timeout(ORDER_WITHIN, Order::receive(&mut daemon)).await? {
                // It only looked, and did not even read the greeting.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => None,
                order => order?,
            };
            match order {
                Some(Order::Attach) => return self.obey(daemon).await,
                Some(Order::Count) => self.tally().send(&mut daemon).await?,
                Some(Order::Drain { seconds }) => {
                    let within = Duration::from_secs(seconds.into());
                    return Ok(Parting::Drain { daemon, within });
                }
                None => return Ok(Parting::Left),
            }
        }
    }

    /// Lets in root and the user that the daemon ran as.
    fn check(&self, daemon: &UnixStream) -> io::Result<()> {
        let uid = daemon.peer_cred()?.uid();
        if uid == 0 || uid == self.daemon_uid {
            return Ok(());
        }
        Err(io::Error::other(format!("user {uid} is not let in")))
    }

    /// Does what the daemon says until it closes the line.
    async fn obey(&mut self, daemon: UnixStream) -> io::Result<Parting> {
        let told = FromResponder::Attached(self.attached()?);
        let (orders, mut to) = daemon.into_split();
        protocol::send(&mut to, &told).await?;
        // Unbounded, but an answer is to an order. Reading must never wait for writing: the daemon may be doing the same.
        let (answer, answers) = mpsc::unbounded_channel();
        let Self {
            guests,
            workers,
            unsigned,
            ..
        } = self;
        tokio::select! {
            done = act(orders, guests, workers, &answer) => done?,
            done = speak(to, answers, unsigned) => done?,
        }
        Ok(Parting::Left)
    }

    /// What earlier daemons said.
    fn attached(&self) -> io::Result<Attached> {
        let known = |(slot, guest): (&u32, &Arc<Guest>)| {
            Ok(Known {
                slot: *slot,
                id: guest.instance().id,
                at: guest.published(),
                state: protocol::digest_of_state(guest.state())?,
                counters: counters_of(guest),
            })
        };
        let host = self.guests.host();
        Ok(Attached {
            hello: self.hello,
            host: host.map(|host| protocol::digest(&*host)).transpose()?,
            instances: self
                .guests
                .all()
                .iter()
                .map(known)
                .collect::<io::Result<_>>()?,
        })
    }

    fn tally(&self) -> Tally {
        let counted = count(&self.guests).into_iter();
        Tally(counted.map(|one| (one.slot, one.counters)).collect())
    }

    /// Leaves the listeners to another responder, finishes what is under way, and says what was counted to all who want
    /// to know.
    async fn drain(mut self, daemons: UnixListener, daemon: UnixStream, within: Duration) {
        self.server.drain();
        self.greeting.drains = true;
        let mut waiting = Vec::new();
        self.say_what_was_counted(&mut waiting, daemon).await;
        let deadline = Instant::now() + within;
        while !self.server.is_drained() && Instant::now() < deadline {
            if let Ok(Ok((daemon, _))) = timeout(LOOK_EVERY, daemons.accept()).await
                && self.check(&daemon).is_ok()
                && self.greeting.send(&daemon, &self.listeners).is_ok()
            {
                self.say_what_was_counted(&mut waiting, daemon).await;
            }
        }
        for daemon in std::mem::take(&mut waiting) {
            self.say_what_was_counted(&mut waiting, daemon).await;
        }
    }

    /// Tells one daemon, and keeps its line for the next time. Whoever left does not want to know.
    async fn say_what_was_counted(&self, waiting: &mut Vec<UnixStream>, mut daemon: UnixStream) {
        let tally = self.tally();
        if let Ok(Ok(())) = timeout(ORDER_WITHIN, tally.send(&mut daemon)).await {
            waiting.push(daemon);
        }
    }
}

/// Does what the daemon says until it closes the line.
async fn act(
    mut orders: OwnedReadHalf,
    guests: &Guests,
    workers: &Workers,
    answer: &mpsc::UnboundedSender<FromResponder>,
) -> io::Result<()> {
    let mut leaving = Leaving::default();
    let mut gone = Vec::new();
    let mut told = HashMap::new();
    while let Some(message) = protocol::receive(&mut orders).await? {
        match message {
            ToResponder::Host(host) => guests.set_host(host),
            ToResponder::Upsert(instances) => guests.upsert(instances),
            ToResponder::Remove(slots) => {
                for slot in &slots {
                    told.remove(slot);
                }
                let known = slots.iter().map(|slot| (*slot, guests.get(*slot)));
                gone.extend(known.filter_map(|(slot, guest)| Some((slot, guest?))));
                leaving.extend(guests.remove(&slots));
            }
            ToResponder::Signed { slot, signatures } => guests.sign(slot, signatures),
            ToResponder::Add(counted) => add(guests, &counted),
            // Sending fails when the line broke, which reading notices too.
            ToResponder::Apply(revision) => {
                workers.let_go();
                await_end_of(&std::mem::take(&mut leaving)).await;
                if !gone.is_empty() {
                    let gone = std::mem::take(&mut gone).into_iter();
                    let gone = gone.map(|(slot, guest)| counted(slot, &guest));
                    answer.send(FromResponder::Gone(gone.collect())).ok();
                }
                answer.send(FromResponder::Applied(revision)).ok();
            }
            ToResponder::Count => {
                answer.send(FromResponder::Counters(count(guests))).ok();
            }
            ToResponder::CountChanged => {
                let changed = changed(guests, &mut told);
                answer.send(FromResponder::Changed(changed)).ok();
            }
            ToResponder::Ping(number) => {
                let (pulse, answer) = (workers.pulse(), answer.clone());
                tokio::spawn(async move {
                    pulse.await;
                    answer.send(FromResponder::Alive(number)).ok();
                });
            }
        }
    }
    Ok(())
}

/// Tells the daemon what it asked for, and what is to be signed.
async fn speak(
    mut to: OwnedWriteHalf,
    mut answers: mpsc::UnboundedReceiver<FromResponder>,
    unsigned: &mut mpsc::Receiver<u32>,
) -> io::Result<()> {
    loop {
        let message = tokio::select! {
            Some(answer) = answers.recv() => answer,
            Some(slot) = unsigned.recv() => FromResponder::Sign(slot),
            else => return Ok(()),
        };
        protocol::send(&mut to, &message).await?;
    }
}

/// Waits until the workers have closed the sockets of guests that are gone.
async fn await_end_of(leaving: &Leaving) {
    let deadline = Instant::now() + LEAVE_WITHIN;
    while !leaving.is_over() && Instant::now() < deadline {
        sleep(Duration::from_millis(1)).await;
    }
}

fn count(guests: &Guests) -> Vec<Counted> {
    let all = guests.all();
    all.iter()
        .map(|(slot, guest)| counted(*slot, guest))
        .collect()
}

/// What is other than `told`, which has it from now on.
fn changed(guests: &Guests, told: &mut HashMap<u32, Counted>) -> Vec<Counted> {
    let mut now = count(guests);
    now.retain(|one| one.counters.to_words() != [0; Counters::WORDS]);
    let mut before: HashMap<u32, Counted> = std::mem::take(told);
    *told = now.iter().map(|one| (one.slot, *one)).collect();
    now.retain(|one| {
        let before = before.remove(&one.slot);
        before.is_none_or(|before| {
            (before.id, before.counters.to_words()) != (one.id, one.counters.to_words())
        })
    });
    now
}

fn counted(slot: u32, guest: &Guest) -> Counted {
    Counted {
        slot,
        id: guest.instance().id,
        counters: counters_of(guest),
    }
}

fn counters_of(guest: &Guest) -> Counters {
    let tally = &guest.tally;
    Counters {
        requests: tally.requests.load(Ordering::Relaxed),
        tokens_issued: tally.tokens_issued.load(Ordering::Relaxed),
        no_token: tally.no_token.load(Ordering::Relaxed),
        no_token_rejected: tally.no_token_rejected.load(Ordering::Relaxed),
        throttled: tally.throttled.load(Ordering::Relaxed),
        connections: guest.open_connections() as u64,
    }
}

/// Counts on from what others counted. Guests that are gone meanwhile took their counts along.
fn add(guests: &Guests, counted: &[(u32, Counters)]) {
    for (slot, counters) in counted {
        let Some(guest) = guests.get(*slot) else {
            continue;
        };
        let Counters {
            requests,
            tokens_issued,
            no_token,
            no_token_rejected,
            throttled,
            connections: _,
        } = *counters;
        let tally = &guest.tally;
        for (counter, count) in [
            (&tally.requests, requests),
            (&tally.tokens_issued, tokens_issued),
            (&tally.no_token, no_token),
            (&tally.no_token_rejected, no_token_rejected),
            (&tally.throttled, throttled),
        ] {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }
}
