//! Sockets in, answers out. Who asks is decided by the address that a connection was made to, nothing else; what is
//! answered is decided by [`respond`].

use std::{
    future::pending,
    io,
    net::{SocketAddr, TcpListener as StdTcpListener},
    num::NonZeroU8,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Buf;
use futures_util::future::poll_immediate;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    time::timeout,
};

use super::{
    bounds::UNTAKEN_BYTES_MAX,
    guests::{Admission, Connection, Guest, Guests, Tally},
    head::{self, Reading, RequestHead, Room},
    respond::{Services, respond},
    response::{Accounting, Response},
    signing::WAIT_MAX,
    untaken::bytes_untaken,
};
use crate::{
    instance::{AddressFamily, Slot, UnixMillis},
    token::TokenKeys,
};

/// How long a connection may go without an answer: to send its request, to take its answer, or idle.
const IDLE_MAX: Duration = Duration::from_secs(20);
/// How much is read at a time: the whole head of every client there is.
const READ_BYTES: usize = 2 << 10;
/// Room that a connection keeps for what it reads next.
const KEPT_BYTES_MAX: usize = 4 << 10;
/// What is still read, and for how long, after the last answer of a connection whose client may not be done with
/// sending: closed with bytes unread, the kernel would send a RST, and the client might lose the answer.
const LINGER_BYTES_MAX: usize = 64 << 10;
const LINGER_MAX: Duration = Duration::from_secs(2);
/// How much is sent before a look at whether the guest takes it.
const SENT_BYTES_UNSEEN: usize = 4 << 10;
/// Pauses between such looks at a guest that does not.
const LOOK_AFTER: Duration = Duration::from_millis(1);
const LOOK_EVERY_MAX: Duration = Duration::from_millis(64);
/// Pause after the kernel could not give us a connection (descriptors, memory), so that the wait is not a busy one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// How often that is told: guests that take all descriptors are not to fill the log, too.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How often a request waits for signatures: they may come for a document that has changed meanwhile, even twice.
const SIGNATURE_WAITS: usize = 3;

/// What all connections share.
pub struct Server {
    guests: Arc<Guests>,
    token_keys: TokenKeys,
    /// Slots whose identity document is to be signed, for the daemon.
    unsigned: mpsc::Sender<u32>,
    /// Where the clock of [`Connection::active_nanoseconds`] starts.
    epoch: Instant,
    connections: AtomicU64,
    /// How many threads and families still accept.
    accepting: AtomicUsize,
    drains: AtomicBool,
    told_to_drain: Notify,
}

impl Server {
    /// A server for these guests. The slots of those whose identity document is to be signed are sent to `unsigned`.
    #[must_use]
    pub fn new(guests: Arc<Guests>, token_keys: TokenKeys, unsigned: mpsc::Sender<u32>) -> Self {
        Self {
            guests,
            token_keys,
            unsigned,
            epoch: Instant::now(),
            connections: AtomicU64::new(0),
            accepting: AtomicUsize::new(0),
            drains: AtomicBool::new(false),
            told_to_drain: Notify::new(),
        }
    }

    /// Accepts no connection from now on, and ends those there are with their next answer: another process serves the
    /// listeners.
    pub fn drain(&self) {
        self.drains.store(true, Ordering::SeqCst);
        self.told_to_drain.notify_waiters();
    }

    /// Whether that is done.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.drains() && self.accepting.load(Ordering::SeqCst) == 0 && self.guests.is_quiet()
    }

    fn drains(&self) -> bool {
        self.drains.load(Ordering::SeqCst)
    }

    fn now_nanoseconds(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Serves the listeners until [`Server::drain`]; connections that are open then are served on by the runtime. Several
/// threads may do so, each with clones of the listeners.
pub async fn serve(server: Arc<Server>, listeners: [StdTcpListener; 2]) {
    let [v4, v6] = listeners;
    tokio::join!(accept(&server, v4), accept(&server, v6));
}

async fn accept(server: &Arc<Server>, listener: StdTcpListener) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!("listen: {error}");
            return pending().await;
        }
    };
    // Before the first look, so that it is not missed.
    let mut told_to_drain = pin!(server.told_to_drain.notified());
    server.accepting.fetch_add(1, Ordering::SeqCst);
    let mut told = None;
    while !server.drains() {
        tokio::select! {
            // In this order, so that no connection is accepted any more once the server drains.
            biased;
            () = &mut told_to_drain => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => admit(server, stream),
                // The guest hung up while it waited; the next one may not have.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if told.is_none_or(|told: Instant| told.elapsed() >= TELL_EVERY) {
                        tracing::warn!("accept a connection: {error}");
                        told = Some(Instant::now());
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    server.accepting.fetch_sub(1, Ordering::SeqCst);
}

/// Finds out who it is and serves it; a stranger is reset, and what is one too many of its second.
fn admit(server: &Arc<Server>, stream: TcpStream) {
    let Some((caller, guest)) = caller_of(server, &stream) else {
        return reset(stream);
    };
    let now = server.now_nanoseconds();
    let newcomers = &guest.tally.newcomers;
    if !newcomers.admits(guest.limits().connections_per_second, now) {
        guest.tally.throttled.fetch_add(1, Ordering::Relaxed);
        return reset(stream);
    }
    let number = server.connections.fetch_add(1, Ordering::Relaxed);
    let admission = server.guests.admit(&guest, number, now);
    tokio::spawn(converse(Arc::clone(server), stream, caller, admission));
}

/// The guest at the other end.
#[derive(Clone, Copy)]
struct Caller {
    slot: Slot,
    family: AddressFamily,
}

fn caller_of(server: &Server, stream: &TcpStream) -> Option<(Caller, Arc<Guest>)> {
    let (slot, family) = match stream.local_addr().ok()? {
        SocketAddr::V4(address) => (Slot::from_tag_v4(*address.ip())?, AddressFamily::Ipv4),
        SocketAddr::V6(address) => (Slot::from_tag_v6(*address.ip())?, AddressFamily::Ipv6),
    };
    let guest = server.guests.get(slot.number())?;
    guest
        .instance()
        .accepts(family)
        .then_some((Caller { slot, family }, guest))
}

/// Ends a connection with a RST.
fn reset(stream: TcpStream) {
    // If the option is refused the connection ends with a FIN instead.
    drop(stream.set_zero_linger());
}

async fn converse(server: Arc<Server>, stream: TcpStream, caller: Caller, admission: Admission) {
    let connection = &admission.connection;
    let wire = Wire {
        stream,
        unread: Vec::new(),
        sent_bytes_unseen: 0,
        family: caller.family,
        hop_limit: None,
        admission: &admission,
    };
    tokio::select! {
        // What ends a conversation early is the guest's business.
        _ended = talk(&server, wire, caller) => {}
        () = connection.evicted.notified() => {}
        () = idle_for_too_long(&server, connection) => {}
    }
}

/// Answers requests in their order, until one is the last.
async fn talk(server: &Server, mut wire: Wire<'_>, caller: Caller) -> Result<(), Ended> {
    let admission = wire.admission;
    let mut n_known = 0;
    let mut half_a_head = None;
    loop {
        let connection = &admission.connection;
        let Some(mut answer) = answer(server, caller, connection, &wire.unread, n_known)? else {
            n_known = wire.unread.len();
            if n_known > 0 {
                half_a_head.get_or_insert_with(|| admission.begin_flight());
            }
            wire.read().await?;
            continue;
        };
        half_a_head = None;
        if answer.response.lacks_signatures {
            let _in_flight = admission.begin_flight();
            // In a place of its own, so that all other requests do without the room for it.
            let signed = Box::pin(have_signed(server, caller, &wire.unread)).await?;
            answer.response = signed.unwrap_or(answer.response);
        }
        if server.drains() {
            answer.response = answer.response.and_close();
        }
        if let Some(limit) = answer.response.hop_limit {
            wire.lower_hop_limit(limit)?;
        }
        wire.send(&answer.response).await?;
        if answer.response.close {
            wire.close(&answer).await?;
            return Ok(());
        }
        wire.forget(answer.n_bytes);
        wire.await_taken_in_part().await?;
        n_known = 0;
    }
}

/// Ends when the connection was accepted or last answered [`IDLE_MAX`] ago.
async fn idle_for_too_long(server: &Server, connection: &Connection) {
    loop {
        let active = connection.active_nanoseconds.load(Ordering::Relaxed);
        let idle = Duration::from_nanos(server.now_nanoseconds().saturating_sub(active));
        let Some(left) = IDLE_MAX.checked_sub(idle).filter(|left| !left.is_zero()) else {
            return;
        };
        tokio::time::sleep(left).await;
    }
}

/// Why a connection is closed without an answer.
#[derive(Debug, thiserror::Error)]
enum Ended {
    /// The guest is gone, or may not use this address any more.
    #[error("no such guest")]
    Gone,
    /// The guest closed or reset it, or the kernel refused.
    #[error(transparent)]
    Wire(#[from] io::Error),
}

/// An answer, and what it answers.
struct Answer {
    response: Response,
    /// Length of the request's head.
    n_bytes: usize,
    /// Whether the client may be sending more than the head.
    has_more: bool,
}

/// What the bytes of a connection get; nothing yet while they are a part of a head, `n_known` of them the part that was
/// known already.
fn answer(
    server: &Server,
    caller: Caller,
    connection: &Connection,
    unread: &[u8],
    n_known: usize,
) -> Result<Option<Answer>, Ended> {
    let mut room = Room::new();
    let request = match head::read(unread, n_known, &mut room) {
        Reading::Partial => return Ok(None),
        Reading::Whole(head, n_bytes) => Some((head, n_bytes)),
        Reading::Malformed => None,
    };
    connection
        .active_nanoseconds
        .store(server.now_nanoseconds(), Ordering::Relaxed);
    let guest = guest_of(server, caller)?;
    let response = if is_throttled(server, &guest) {
        Response::unavailable(now().seconds(), true)
    } else {
        let response = match &request {
            Some((head, _)) => judge(server, &guest, head)?,
            None => Response::malformed(now().seconds()),
        };
        tally(&guest, &response);
        response
    };
    let (n_bytes, has_body) = request.map_or((unread.len(), true), |(head, n_bytes)| {
        (n_bytes, head.announces_body())
    });
    Ok(Some(Answer {
        response,
        n_bytes,
        has_more: has_body || unread.len() > n_bytes,
    }))
}

/// The guest as it is now, if it is there and may still use this address.
fn guest_of(server: &Server, caller: Caller) -> Result<Arc<Guest>, Ended> {
    let guest = server.guests.get(caller.slot.number()).ok_or(Ended::Gone)?;
    if guest.instance().accepts(caller.family) {
        Ok(guest)
    } else {
        Err(Ended::Gone)
    }
}

/// Asks the rules.
fn judge(server: &Server, guest: &Guest, head: &RequestHead<'_>) -> Result<Response, Ended> {
    let host = server.guests.host().ok_or(Ended::Gone)?;
    let signatures = guest.signing.signatures();
    let services = Services {
        host: &host,
        token_keys: &server.token_keys,
        nonce: &nonce,
        published: guest.published(),
        signatures: signatures.as_deref(),
    };
    Ok(respond(head, guest.instance(), &services, now()))
}

/// Has the guest's document signed and asks the rules again about the request that `unread` begins with. None when no
/// signatures come in time: what the rules said before holds then.
async fn have_signed(
    server: &Server,
    caller: Caller,
    unread: &[u8],
) -> Result<Option<Response>, Ended> {
    let mut room = Room::new();
    let Reading::Whole(head, _) = head::read(unread, 0, &mut room) else {
        return Ok(None);
    };
    let number = caller.slot.number();
    let signed = async {
        for _ in 0..SIGNATURE_WAITS {
            let guest = guest_of(server, caller)?;
            let woken = guest.signing.woken();
            if !server.guests.is_current(number, &guest) {
                continue;
            }
            let response = judge(server, &guest, &head)?;
            if !response.lacks_signatures {
                return Ok(response);
            }
            if guest.signing.may_ask(server.now_nanoseconds()) {
                // A full queue, as a closed one, is a daemon that is away: no answer comes.
                server.unsigned.try_send(number).ok();
            }
            woken.await;
        }
        let guest = guest_of(server, caller)?;
        judge(server, &guest, &head)
    };
    timeout(WAIT_MAX, signed).await.ok().transpose()
}

/// Whether this request is one too many of its second.
fn is_throttled(server: &Server, guest: &Guest) -> bool {
    let Tally {
        throttle,
        throttled,
        ..
    } = &*guest.tally;
    if throttle.admits(guest.limits().requests_per_second, server.now_nanoseconds()) {
        return false;
    }
    throttled.fetch_add(1, Ordering::Relaxed);
    true
}

fn tally(guest: &Guest, response: &Response) {
    let tally = &guest.tally;
    tally.requests.fetch_add(1, Ordering::Relaxed);
    let counter = match response.accounting {
        Accounting::TokenIssued => &tally.tokens_issued,
        Accounting::NoToken => &tally.no_token,
        Accounting::NoTokenRejected => &tally.no_token_rejected,
        Accounting::Nothing | Accounting::Token | Accounting::TokenRejected => return,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

fn now() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn nonce() -> [u8; 12] {
    let mut nonce = [0; 12];
    // Without randomness no token may be made; this ends the one connection (a task of tokio's), not the process.
    getrandom::fill(&mut nonce).expect("the kernel has randomness once it has booted");
    nonce
}

/// A guest's connection: bytes in, bytes out, and the TTL that they are sent with.
struct Wire<'admission> {
    stream: TcpStream,
    /// What came and is not answered yet.
    unread: Vec<u8>,
    /// What was sent since the guest was last seen to take it.
    sent_bytes_unseen: usize,
    family: AddressFamily,
    /// The lowest TTL that any answer asked for; none yet, and the namespace's default is used.
    hop_limit: Option<NonZeroU8>,
    admission: &'admission Admission,
}

/// The kernel goes on with what is untaken for minutes after the end of the socket, and no limit of the guest's would count
/// it. So what ends with something untaken ends with a RST, which drops it.
impl Drop for Wire<'_> {
    fn drop(&mut self) {
        let connection = &self.admission.connection;
        let resets = connection.resets.load(Ordering::Relaxed);
        if resets || bytes_untaken(&self.stream).is_ok_and(|bytes| bytes > 0) {
            // If the option is refused the connection ends with a FIN instead.
            drop(self.stream.set_zero_linger());
        }
    }
}

impl Wire<'_> {
    /// Waits for more bytes, and makes room for them only when they are there.
    async fn read(&mut self) -> io::Result<()> {
        self.stream.readable().await?;
        self.unread.reserve(READ_BYTES);
        // Not `try_read_buf`: this one notes when a read took all there was, and spares the next call in vain.
        match self.stream.read_buf(&mut self.unread).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Sends an answer in one call. Its body is not copied, be it long or a secret that is wiped when the answer is dropped.
    async fn send(&mut self, answer: &Response) -> io::Result<()> {
        let head = answer.wire_head();
        self.sent_bytes_unseen += head.len() + answer.body.len();
        let mut bytes = Buf::chain(head.as_slice(), &*answer.body);
        let mut sending = pin!(self.stream.write_all_buf(&mut bytes));
        if let Some(sent) = poll_immediate(sending.as_mut()).await {
            return sent;
        }
        let _in_flight = self.admission.begin_flight();
        sending.await
    }

    /// Waits until the guest has taken most of what it was sent: as long as it has not, the request is in flight.
    async fn await_taken_in_part(&mut self) -> io::Result<()> {
        if self.sent_bytes_unseen <= SENT_BYTES_UNSEEN {
            return Ok(());
        }
        self.await_taken(UNTAKEN_BYTES_MAX).await?;
        self.sent_bytes_unseen = 0;
        Ok(())
    }

    /// Waits until at most so much is untaken.
    async fn await_taken(&self, bytes_max: usize) -> io::Result<()> {
        if bytes_untaken(&self.stream)? <= bytes_max {
            return Ok(());
        }
        let _in_flight = self.admission.begin_flight();
        // Who sends its next request, or hangs up, has read what it was sent, as a rule; only then is there no hurry.
        let mut pause = LOOK_AFTER;
        drop(timeout(pause, self.stream.readable()).await);
        while bytes_untaken(&self.stream)? > bytes_max {
            tokio::time::sleep(pause).await;
            pause = LOOK_EVERY_MAX.min(pause * 2);
        }
        Ok(())
    }

    /// Drops the bytes of a request that was answered.
    fn forget(&mut self, n_bytes: usize) {
        self.unread.drain(..n_bytes);
        self.unread.shrink_to(KEPT_BYTES_MAX);
    }

    /// Sets the TTL before anything is written with it; never raises it again, since a retransmitted segment has the TTL
    /// of the moment. When the kernel refuses, nothing is written.
    fn lower_hop_limit(&mut self, asked: NonZeroU8) -> io::Result<()> {
        if self.hop_limit.is_some_and(|set| set <= asked) {
            return Ok(());
        }
        let limit = libc::c_int::from(asked.get());
        match self.family {
            AddressFamily::Ipv4 => setsockopt(&self.stream, sockopt::Ipv4Ttl, &limit)?,
            AddressFamily::Ipv6 => setsockopt(&self.stream, sockopt::Ipv6Ttl, &limit)?,
        }
        self.hop_limit = Some(asked);
        Ok(())
    }

    /// Ends the connection after its last answer, once the guest has taken it.
    async fn close(mut self, last: &Answer) -> io::Result<()> {
        self.stream.shutdown().await?;
        if last.has_more {
            // Whoever sends for longer does not read either.
            timeout(LINGER_MAX, self.discard()).await.ok();
        }
        self.await_taken(0).await
    }

    /// Reads to the end, a bounded part of the way.
    async fn discard(&mut self) {
        let mut n_bytes = 0;
        while n_bytes < LINGER_BYTES_MAX {
            self.unread.clear();
            if self.read().await.is_err() {
                return;
            }
            n_bytes += self.unread.len();
        }
    }
}
