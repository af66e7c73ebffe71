//! Those who ask all the time: guests on a connection that they keep and on one for every request, strangers that try to
//! reach the host's own service, and the host itself, which may.

use std::io;
use std::net::UdpSocket;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::machine::Machine;
use crate::http::{Address, Connection, Response};
use crate::namespace::Namespace;
use crate::uplink::STAND_IN_ANSWER;
use crate::{INSTANCE_ID, TOKEN, TOKEN_FIELD, TTL_FIELD};

/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(15);
/// How long a client waits for an answer: longer than a responder that hangs is let hang. An answer that was lost with its
/// interface never comes, and nothing tells.
const PATIENCE: Duration = Duration::from_secs(6);
/// How often a client mints another token.
const REQUESTS_A_TOKEN: u64 = 50;
/// A wait that is worth being listed.
const SLOW: Duration = Duration::from_millis(100);
/// How long a stranger knocks.
const KNOCK: Duration = Duration::from_millis(200);

/// What the host is, among guests.
const HOST: usize = usize::MAX;

/// Something that went otherwise than it should.
#[derive(Clone, Debug)]
pub(super) struct Incident {
    pub(super) guest: usize,
    /// The last moment at which all was well with this client, and this connection.
    pub(super) since: Instant,
    pub(super) until: Instant,
    pub(super) what: String,
}

/// What all clients have seen.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) answered: AtomicU64,
    pub(super) failed: Mutex<Vec<Incident>>,
    pub(super) wrong: Mutex<Vec<Incident>>,
    /// Answers that took long.
    pub(super) slow: Mutex<Vec<Incident>>,
    /// How often a stranger tried.
    pub(super) knocks: AtomicU64,
    /// What a stranger got to hear.
    pub(super) leaks: Mutex<Vec<String>>,
    /// How often the host asked its own service, and was answered.
    pub(super) own: AtomicU64,
    pub(super) own_failed: Mutex<Vec<Incident>>,
}

impl Seen {
    /// Answered, failed, wrong.
    pub(super) fn counts(&self) -> (u64, usize, usize) {
        let answered = self.answered.load(Ordering::Relaxed);
        (answered, length(&self.failed), length(&self.wrong))
    }

    pub(super) fn has_wrong(&self) -> bool {
        length(&self.wrong) > 0
    }
}

fn length<T>(list: &Mutex<Vec<T>>) -> usize {
    list.lock().expect("nobody panics with it").len()
}

/// One client of a guest.
pub(super) struct Client<'a> {
    pub(super) machine: &'a Machine,
    pub(super) keeps: bool,
    pub(super) seen: &'a Seen,
    token: Option<String>,
    /// The connection, and when it last gave an answer.
    kept: Option<(Connection, Instant)>,
    turn: u64,
}

impl<'a> Client<'a> {
    pub(super) fn new(machine: &'a Machine, keeps: bool, seen: &'a Seen) -> Self {
        Self {
            machine,
            keeps,
            seen,
            token: None,
            kept: None,
            turn: 0,
        }
    }

    /// Asks until it is over.
    pub(super) fn run(mut self, is_over: &AtomicBool) {
        let machine = self.machine;
        machine.namespace.enter(|| {
            while !is_over.load(Ordering::Relaxed) {
                self.ask_once();
                thread::sleep(PAUSE);
            }
        });
    }

    fn ask_once(&mut self) {
        let began = Instant::now();
        let since = self.kept.as_ref().map_or(began, |(_, last)| *last);
        let outcome = self.ask();
        let until = Instant::now();
        let (guest, client) = (self.machine.number, usize::from(self.keeps));
        let incident = |what: String| Incident {
            guest,
            since,
            until,
            what: format!(
                "{} (keeps: {client}), {:?}: {what}",
                self.machine.name,
                until - began
            ),
        };
        match outcome {
            Ok(id) if self.machine.expected.allows(&id, began, until) => {
                self.seen.answered.fetch_add(1, Ordering::Relaxed);
                self.machine.note_served(client, began);
                if until - began > SLOW {
                    note(&self.seen.slow, incident("slow".to_owned()));
                }
            }
            Ok(id) => note(&self.seen.wrong, incident(format!("was told {id}"))),
            Err(error) => note(&self.seen.failed, incident(error.to_string())),
        }
    }

    /// Who am I? As a client asks that knows HTTP: what the server closes is opened anew for the next request.
    fn ask(&mut self) -> io::Result<String> {
        self.turn += 1;
        if self.turn.is_multiple_of(REQUESTS_A_TOKEN) {
            self.token = None;
        }
        let token = match self.token.take() {
            Some(token) => token,
            None => {
                let answer = self.exchange("PUT", TOKEN, &[(TTL_FIELD, "600")])?;
                text_of(&answer)?
            }
        };
        let answer = self.exchange("GET", INSTANCE_ID, &[(TOKEN_FIELD, &token)])?;
        // One that is refused is worth nothing any more.
        if answer.status() != 401 {
            self.token = Some(token);
        }
        text_of(&answer)
    }

    fn exchange(
        &mut self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
    ) -> io::Result<Response> {
        let mut connection = match self.kept.take() {
            Some((connection, _)) => connection,
            None => Connection::open(self.address())?,
        };
        let keep = if self.keeps { "keep-alive" } else { "close" };
        let mut all = vec![("Connection", keep)];
        all.extend_from_slice(fields);
        let answer = connection.exchange_within(method, path, &all, PATIENCE)?;
        if self.keeps && answer.header("Connection") != Some("close") {
            self.kept = Some((connection, Instant::now()));
        }
        Ok(answer)
    }

    fn address(&self) -> Address {
        if self.machine.has_ipv6() && self.turn.is_multiple_of(3) {
            Address::V6
        } else {
            Address::V4
        }
    }
}

fn text_of(answer: &Response) -> io::Result<String> {
    match answer.status() {
        200 => Ok(answer.text().to_owned()),
        _ => Err(io::Error::other(format!("{answer:?}"))),
    }
}

/// A guest that nobody registered: whatever it tries, it hears nothing.
pub(super) fn knock(machine: &Machine, seen: &Seen, is_over: &AtomicBool) {
    machine.namespace.enter(|| {
        while !is_over.load(Ordering::Relaxed) {
            for address in [Address::V4, Address::V6] {
                seen.knocks
                    .fetch_add(send_datagrams(address), Ordering::Relaxed);
                seen.knocks.fetch_add(1, Ordering::Relaxed);
                if let Ok(mut connection) = Connection::open_within(address, KNOCK) {
                    let heard = connection.exchange("GET", INSTANCE_ID, &[]);
                    note(
                        &seen.leaks,
                        format!("{} at {address:?}: {heard:?}", machine.name),
                    );
                }
            }
        }
    });
}

/// Datagrams to the service; how many could be sent.
fn send_datagrams(to: Address) -> u64 {
    const DATAGRAMS: usize = 10;
    let any = match to {
        Address::V6 => "[::]:0",
        _ => "0.0.0.0:0",
    };
    let Ok(socket) = UdpSocket::bind(any) else {
        return 0;
    };
    let sent = (0..DATAGRAMS).filter(|_| socket.send_to(b"?", to.socket()).is_ok());
    sent.count() as u64
}

/// The host, which asks its own service all the while.
pub(super) fn ask_as_host(host: &Namespace, seen: &Seen, is_over: &AtomicBool) {
    const PAUSE: Duration = Duration::from_millis(100);
    host.enter(|| {
        while !is_over.load(Ordering::Relaxed) {
            let since = Instant::now();
            let answer = Connection::open(Address::V4)
                .and_then(|mut connection| connection.exchange("GET", "/latest/meta-data/", &[]));
            match answer {
                Ok(answer) if answer.text() == STAND_IN_ANSWER => {
                    seen.own.fetch_add(1, Ordering::Relaxed);
                }
                other => note(
                    &seen.own_failed,
                    Incident {
                        guest: HOST,
                        since,
                        until: Instant::now(),
                        what: format!("{other:?}"),
                    },
                ),
            }
            thread::sleep(PAUSE);
        }
    });
}

pub(super) fn note<T>(list: &Mutex<Vec<T>>, entry: T) {
    list.lock().expect("nobody panics with it").push(entry);
}
