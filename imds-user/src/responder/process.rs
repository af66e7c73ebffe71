//! `imds respond`: the responder's own main function. It takes its sockets from the daemon, gives up every right, serves,
//! and does what the daemon says until the daemon closes the line.

use std::{
    io,
    net::TcpListener,
    os::{fd::AsFd, unix::net::UnixStream as StdUnixStream},
    sync::{Arc, Barrier, OnceLock, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use tokio::{
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime,
    sync::mpsc,
};

use super::{
    confine::{self, ConfineError},
    protocol::{self, Counters, FromResponder, ToResponder},
};
use crate::{
    http::{
        guests::{Guests, Leaving},
        server::{self, Server},
    },
    token::{TokenKey, TokenKeys},
};

/// Requests for signatures that may wait for the daemon to read them. A guest has at most one among them.
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

/// Serves until the daemon closes the line on standard input.
///
/// # Errors
/// When the daemon does not introduce itself, or a right cannot be given up: nothing is served then.
pub fn run() -> Result<(), ProcessError> {
    confine::close_inherited_descriptors()?;
    let line = StdUnixStream::from(
        io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map_err(ProcessError::Daemon)?,
    );
    let [v4, v6, netns] = protocol::receive_descriptors(&line).map_err(ProcessError::Daemon)?;
    let listeners = [v4, v6].map(TcpListener::from);
    confine::drop_privileges(&netns)?;
    drop(netns);

    line.set_nonblocking(true).map_err(ProcessError::Daemon)?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ProcessError::Daemon)?;
    runtime.block_on(attend(line, listeners))
}

async fn attend(line: StdUnixStream, listeners: [TcpListener; 2]) -> Result<(), ProcessError> {
    let mut line = UnixStream::from_std(line).map_err(ProcessError::Daemon)?;
    let hello = protocol::receive(&mut line)
        .await
        .map_err(ProcessError::Daemon)?;
    let Some(ToResponder::Hello { token_key, workers }) = hello else {
        return Err(ProcessError::Daemon(io::Error::other("no introduction")));
    };
    let guests = Arc::new(Guests::default());
    let (unsigned, to_be_signed) = mpsc::channel(UNSIGNED_MAX);
    let server = Arc::new(Server::new(
        Arc::clone(&guests),
        TokenKeys {
            current: TokenKey::new(token_key),
            previous: None,
        },
        unsigned,
    ));
    let gate = Arc::new(OnceLock::new());
    start_workers(&server, &gate, &listeners, workers)?;
    drop(listeners);
    confine::restrict_system_calls()?;
    let (orders, answers) = line.into_split();
    // Unbounded, but an answer is to an order. Reading must never wait for writing: the daemon may be doing the same.
    let (answer, answered) = mpsc::unbounded_channel();
    let done = tokio::select! {
        done = obey(orders, &guests, &gate, &answer) => done,
        done = speak(answers, answered, to_be_signed) => done,
    };
    done.map_err(ProcessError::Daemon)
}

/// Opened when the daemon said everything. Before, the connections that waited for this responder would be taken for
/// strangers' and refused.
type Gate = OnceLock<()>;

/// Starts the threads that serve. All of them wait at the gate, with everything they need, when this returns, so that
/// the system calls of a thread's start need not be allowed.
fn start_workers(
    server: &Arc<Server>,
    gate: &Arc<Gate>,
    listeners: &[TcpListener; 2],
    workers: u16,
) -> Result<(), ProcessError> {
    let ready = Arc::new(Barrier::new(usize::from(workers) + 1));
    for number in 0..workers {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ProcessError::Worker)?;
        let listeners = clone(listeners).map_err(ProcessError::Worker)?;
        let (server, gate, ready) = (Arc::clone(server), Arc::clone(gate), Arc::clone(&ready));
        thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                ready.wait();
                gate.wait();
                runtime.block_on(server::serve(server, listeners));
            })
            .map_err(ProcessError::Worker)?;
    }
    ready.wait();
    Ok(())
}

fn clone(listeners: &[TcpListener; 2]) -> io::Result<[TcpListener; 2]> {
    let [v4, v6] = listeners;
    Ok([v4.try_clone()?, v6.try_clone()?])
}

/// How long connections of guests that are gone may take to end before the daemon is told that they have. What they still
/// send by then is dropped.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// Does what the daemon says until it closes the line.
async fn obey(
    mut orders: OwnedReadHalf,
    guests: &Guests,
    gate: &Gate,
    answer: &mpsc::UnboundedSender<FromResponder>,
) -> io::Result<()> {
    let mut leaving = Leaving::default();
    while let Some(message) = protocol::receive(&mut orders).await? {
        let message = match message {
            ToResponder::Hello { .. } => return Err(io::Error::other("a second introduction")),
            ToResponder::Host(host) => {
                guests.set_host(host);
                continue;
            }
            ToResponder::Upsert(instances) => {
                guests.upsert(instances);
                continue;
            }
            ToResponder::Remove(slots) => {
                leaving.extend(guests.remove(&slots));
                continue;
            }
            ToResponder::Signed { slot, signatures } => {
                guests.sign(slot, signatures);
                continue;
            }
            ToResponder::Apply(revision) => {
                gate.get_or_init(|| ());
                await_end_of(&std::mem::take(&mut leaving)).await;
                FromResponder::Applied(revision)
            }
            ToResponder::Count => FromResponder::Counters(count(guests)),
        };
        // It fails when the line broke, which reading notices too.
        answer.send(message).ok();
    }
    Ok(())
}

/// Tells the daemon what it asked for, and what is to be signed.
async fn speak(
    mut to: OwnedWriteHalf,
    mut answers: mpsc::UnboundedReceiver<FromResponder>,
    mut unsigned: mpsc::Receiver<u32>,
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
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn count(guests: &Guests) -> Vec<(u32, Counters)> {
    let all = guests.all();
    all.iter()
        .map(|(slot, guest)| {
            let tally = &guest.tally;
            let counters = Counters {
                requests: tally.requests.load(Ordering::Relaxed),
                tokens_issued: tally.tokens_issued.load(Ordering::Relaxed),
                no_token: tally.no_token.load(Ordering::Relaxed),
                no_token_rejected: tally.no_token_rejected.load(Ordering::Relaxed),
                throttled: tally.throttled.load(Ordering::Relaxed),
                connections: guest.open_connections() as u64,
            };
            (*slot, counters)
        })
        .collect()
}
