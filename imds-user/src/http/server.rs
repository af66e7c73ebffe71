//! Sockets in, answers out. Who asks is decided by the address that a connection was made to, nothing else; what is
//! answered is decided by [`respond`].

use std::{
    future::pending,
    io,
    net::{SocketAddr, TcpListener as StdTcpListener},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use hyper::{
    Request, Response as HyperResponse,
    body::Incoming,
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

use super::{
    body::WholeBody,
    guests::{Admission, Connection, Guest, Guests, Tally},
    head::RequestHead,
    respond::{Services, respond},
    response::{Accounting, Response},
    signing::WAIT_MAX,
};
use crate::{
    instance::{AddressFamily, Slot, UnixMillis},
    token::TokenKeys,
};

/// How long a connection may go without an answer: to send its request, to take its answer, or idle.
const IDLE_MAX: Duration = Duration::from_secs(20);
/// The largest request head, bytes. SDKs send a few hundred; hyper answers 431 above it.
pub const HEAD_BYTES_MAX: usize = 16 << 10;
/// Pause after the kernel could not give us a connection (descriptors, memory), so that the wait is not a busy one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
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
        }
    }

    fn now_nanoseconds(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Serves the listeners, for ever. Several threads may do so, each with clones of the listeners.
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
    loop {
        match listener.accept().await {
            Ok((stream, _)) => admit(server, stream),
            // The guest hung up while it waited; the next one may not have.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!("accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Finds out who it is and serves it; a stranger is reset.
fn admit(server: &Arc<Server>, stream: TcpStream) {
    let Some((caller, guest)) = caller_of(server, &stream) else {
        return reset(stream);
    };
    let number = server.connections.fetch_add(1, Ordering::Relaxed);
    let admission = server
        .guests
        .admit(&guest, number, server.now_nanoseconds());
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
    let hop_limit = Arc::new(AtomicU8::new(HOP_LIMIT_FREE));
    let stream = GuestStream {
        inner: TokioIo::new(stream),
        family: caller.family,
        asked: Arc::clone(&hop_limit),
        set: HOP_LIMIT_FREE,
        connection: Arc::clone(connection),
    };
    let service = service_fn(|request| answer(&server, caller, connection, &hop_limit, request));
    let http = http1::Builder::new()
        .title_case_headers(true)
        .auto_date_header(false)
        // A client that sent its request and shut its side down still wants the answer.
        .half_close(true)
        .max_buf_size(HEAD_BYTES_MAX)
        // One timer of ours covers the head, the answer and idleness.
        .header_read_timeout(None)
        .serve_connection(stream, service);
    tokio::select! {
        // What ends a conversation early is the guest's business.
        _ended = http => {}
        () = connection.evicted.notified() => {}
        () = idle_for_too_long(&server, connection) => {}
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

/// A guest that is gone, or may not use this address any more.
#[derive(Debug, thiserror::Error)]
#[error("no such guest")]
struct Gone;

async fn answer(
    server: &Server,
    caller: Caller,
    connection: &Connection,
    hop_limit: &AtomicU8,
    request: Request<Incoming>,
) -> Result<HyperResponse<WholeBody>, Gone> {
    connection
        .active_nanoseconds
        .store(server.now_nanoseconds(), Ordering::Relaxed);
    let guest = guest_of(server, caller)?;
    if is_throttled(server, &guest) {
        let now = now().seconds();
        return Ok(Response::unavailable(now, true).into_hyper(WholeBody::new));
    }
    let head = RequestHead::of(&request);
    let mut response = judge(server, &guest, &head)?;
    if response.lacks_signatures {
        // In a place of its own, so that all other requests do without the room for it.
        response = Box::pin(have_signed(server, caller, &head, response)).await?;
    }
    tally(&guest, &response);
    if let Some(limit) = response.hop_limit {
        // Before hyper writes the answer, and never raised again: a retransmitted segment has the TTL of the moment.
        hop_limit.fetch_min(limit.get(), Ordering::Relaxed);
    }
    Ok(response.into_hyper(WholeBody::new))
}

/// The guest as it is now, if it is there and may still use this address.
fn guest_of(server: &Server, caller: Caller) -> Result<Arc<Guest>, Gone> {
    let guest = server.guests.get(caller.slot.number()).ok_or(Gone)?;
    if guest.instance().accepts(caller.family) {
        Ok(guest)
    } else {
        Err(Gone)
    }
}

/// Asks the rules.
fn judge(server: &Server, guest: &Guest, head: &RequestHead<'_>) -> Result<Response, Gone> {
    let host = server.guests.host().ok_or(Gone)?;
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

/// Has the guest's document signed and asks the rules again. What they said before holds when no signatures come in time.
async fn have_signed(
    server: &Server,
    caller: Caller,
    head: &RequestHead<'_>,
    unsigned: Response,
) -> Result<Response, Gone> {
    let number = caller.slot.number();
    let signed = async {
        for _ in 0..SIGNATURE_WAITS {
            let guest = guest_of(server, caller)?;
            let woken = guest.signing.woken();
            if !server.guests.is_current(number, &guest) {
                continue;
            }
            let response = judge(server, &guest, head)?;
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
        judge(server, &guest, head)
    };
    timeout(WAIT_MAX, signed).await.unwrap_or(Ok(unsigned))
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
    // Without randomness no token may be made; this ends the one request (hyper's task), not the process.
    getrandom::fill(&mut nonce).expect("the kernel has randomness once it has booted");
    nonce
}

/// No answer asked for a hop limit yet: the namespace's default is used.
const HOP_LIMIT_FREE: u8 = u8::MAX;

/// A guest's connection, which sends with the lowest TTL that any answer on it asked for.
struct GuestStream {
    inner: TokioIo<TcpStream>,
    family: AddressFamily,
    asked: Arc<AtomicU8>,
    /// What the socket was set to.
    set: u8,
    connection: Arc<Connection>,
}

impl Drop for GuestStream {
    fn drop(&mut self) {
        if self.connection.is_orphaned.load(Ordering::Relaxed) {
            // If the option is refused the connection ends with a FIN instead.
            drop(self.inner.inner().set_zero_linger());
        }
    }
}

impl GuestStream {
    /// Sets the TTL before anything is written. When the kernel refuses, nothing is.
    fn lower_hop_limit(&mut self) -> io::Result<()> {
        let asked = self.asked.load(Ordering::Relaxed);
        if asked == self.set {
            return Ok(());
        }
        let limit = libc::c_int::from(asked);
        match self.family {
            AddressFamily::Ipv4 => setsockopt(self.inner.inner(), sockopt::Ipv4Ttl, &limit)?,
            AddressFamily::Ipv6 => setsockopt(self.inner.inner(), sockopt::Ipv6Ttl, &limit)?,
        }
        self.set = asked;
        Ok(())
    }
}

impl Read for GuestStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl Write for GuestStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.lower_hop_limit()?;
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.lower_hop_limit()?;
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
