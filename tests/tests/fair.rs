//! One guest attacks the service with everything that it has; the others notice little, and nothing of theirs fails. What
//! the service holds in memory meanwhile stays below what `http::bounds` works out.
//!
//! Each flood is a row of a table. Times are printed, not asserted: guests, attacker and service share the machine's few
//! cores here.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use imds_tests::{
    Address, Connection, Daemon, Figures, Guest, Host, INSTANCE_ID, Load, Namespace, ProcessStatus,
    TOKEN, TTL_FIELD, Tap, TcpFrame, allow_open_files,
};
use imds_user::http::bounds;
use imds_user::instance::Limits;

/// How long the others ask before the attack begins, and how long it lasts.
const BEFORE: Duration = Duration::from_millis(500);
const DURING: Duration = Duration::from_millis(1000);
/// How many connections an attacker keeps: more than any guest may have.
const KEPT: usize = 1500;
/// The address of the attacker, and of the others: they may well share it.
const ADDRESS: &str = "10.0.0.10";
const KEEP: &str = "Connection: keep-alive\r\n";

/// What an attacker does, over and over, on a thread of its own. Each call counts what it did.
struct Flood {
    name: &'static str,
    threads: usize,
    attack: fn(&Attack<'_>),
    /// The least that it must have come to, or it was no attack.
    at_least: u64,
}

/// An attack that goes on.
struct Attack<'attack> {
    tap: &'attack Tap,
    is_over: &'attack AtomicBool,
    count: &'attack AtomicU64,
}

const FLOODS: &[Flood] = &[
    Flood {
        name: "connections that say nothing",
        threads: 2,
        attack: connect_and_say_nothing,
        at_least: 100,
    },
    Flood {
        name: "a connection a request",
        threads: 2,
        attack: |attack| ask_anew(attack, &request(INSTANCE_ID, "")),
        at_least: 50,
    },
    Flood {
        name: "slow heads",
        threads: 2,
        attack: send_heads_slowly,
        at_least: 100,
    },
    Flood {
        name: "slow readers",
        threads: 2,
        attack: |attack| never_read(attack, &request("/latest/user-data", KEEP).repeat(16)),
        at_least: 100,
    },
    Flood {
        name: "slow readers of a last answer",
        threads: 2,
        attack: |attack| {
            never_read(
                attack,
                &request("/latest/user-data", "Connection: close\r\n"),
            );
        },
        at_least: 100,
    },
    Flood {
        name: "tokens",
        threads: 8,
        attack: |attack| ask_again(attack, &put_token()),
        at_least: 100,
    },
    Flood {
        name: "the signed document",
        threads: 8,
        attack: |attack| {
            ask_again(
                attack,
                &request("/latest/dynamic/instance-identity/rsa2048", KEEP),
            );
        },
        at_least: 100,
    },
    Flood {
        name: "heads of 16 KB",
        threads: 8,
        attack: |attack| ask_again(attack, &longest_head()),
        at_least: 20,
    },
    Flood {
        name: "the longest answers",
        threads: 8,
        attack: |attack| ask_again(attack, &request("/latest/user-data", KEEP)),
        at_least: 50,
    },
    Flood {
        name: "pipelined requests",
        threads: 4,
        attack: pipeline,
        at_least: 100,
    },
    Flood {
        name: "SYNs and no more",
        threads: 1,
        attack: send_syns,
        at_least: 1000,
    },
];

#[test]
fn with_the_usual_limits_a_flood_of_one_guest_fails_no_request_of_others() {
    let Limits {
        packets_per_second,
        requests_per_second,
        ..
    } = Limits::DEFAULT;
    let limits = ("usual", packets_per_second, requests_per_second);
    check_all(limits, bounds::guest_bytes_max(&Limits::DEFAULT));
}

/// So that what protects the others is not the count of packets and requests.
#[test]
fn without_limits_of_packets_and_requests_a_flood_fails_no_request_of_others() {
    // The queues of the kernel fill up then.
    let bound = bounds::guest_bytes_max(&Limits::DEFAULT) + bounds::QUEUES_BYTES_MAX;
    check_all(("none", 0, 0), bound);
}

/// The limits are the attacker's: the others would reach theirs by themselves.
fn check_all((limits, packets, requests): (&str, u32, u32), bound: usize) {
    allow_open_files(20_000);
    let connections = Limits::DEFAULT.connections_per_second;
    let tables = &format!(
        "[instance.limits]\npackets-per-second = {packets}\nrequests-per-second = {requests}\n\
         connections-per-second = {connections}\n"
    );
    for flood in FLOODS {
        let Some(mut host) = Host::new() else { return };
        let attacker = host
            .guest("mallory")
            .routed(ADDRESS)
            .user_data(&[b'#'; 16_384])
            .tables(tables)
            .up();
        let tap = host.guest("raw").tables(tables).tap();
        let others = ["alice", "bob"].map(|name| host.guest(name).routed(ADDRESS).up());
        // It reads little, and nothing by itself.
        attacker
            .namespace()
            .sysctl("net/ipv4/tcp_rmem", "4096 4096 4096");
        attacker
            .namespace()
            .sysctl("net/ipv4/ip_local_port_range", "1024 65535");
        let daemon = host.start();
        let document = "/latest/dynamic/instance-identity/rsa2048";
        assert_eq!(attacker.get(document).status(), 200, "signed beforehand");
        let (most, base) = check(flood, limits, &daemon, &attacker, &tap, &others);
        let grown = most.bytes().saturating_sub(base.bytes());
        assert!(grown <= bound, "{}: {grown} bytes, of {bound}", flood.name);
    }
}

fn check(
    flood: &Flood,
    limits: &str,
    daemon: &Daemon,
    attacker: &Guest,
    tap: &Tap,
    others: &[Guest; 2],
) -> (Memory, Memory) {
    let others = others.each_ref();
    let before = ask_for(BEFORE, &others);
    let base = Memory::of(daemon);
    let (is_over, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let attack = Attack {
        tap,
        is_over: &is_over,
        count: &count,
    };
    let (during, most, lasted) = thread::scope(|scope| {
        // Also when this thread panics.
        let _over = Over(&is_over);
        for _ in 0..flood.threads {
            scope.spawn(|| attacker.namespace().enter(|| (flood.attack)(&attack)));
        }
        let began = Instant::now();
        let load = Load::on(&others);
        let mut most = base;
        while began.elapsed() < DURING {
            most = most.max(Memory::of(daemon));
            thread::sleep(Duration::from_millis(100));
        }
        (load.finish(), most, began.elapsed())
    });
    let count = count.into_inner();
    print(
        flood.name,
        limits,
        count,
        lasted,
        (&before, &during),
        base,
        most,
    );
    during.assert_flawless(flood.name);
    assert!(count >= flood.at_least, "{}: {count} times", flood.name);
    (most, base)
}

/// Ends the attack.
struct Over<'attack>(&'attack AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn ask_for(time: Duration, guests: &[&Guest]) -> Figures {
    let load = Load::on(guests);
    thread::sleep(time);
    let figures = load.finish();
    figures.assert_flawless("before the attack");
    figures
}

#[expect(clippy::print_stderr, reason = "the figures are what this is for")]
fn print(
    flood: &str,
    limits: &str,
    count: u64,
    lasted: Duration,
    (before, during): (&Figures, &Figures),
    base: Memory,
    most: Memory,
) {
    let a_second = u128::from(count) * 1000 / lasted.as_millis();
    let [p50, p99] = [0.5, 0.99].map(|part| {
        let (before, during) = (before.quantile(part), during.quantile(part));
        let ratio = during.as_secs_f64() / before.as_secs_f64();
        format!("{before:.2?} -> {during:.2?} ({ratio:.1})")
    });
    eprintln!(
        "{flood} (limits: {limits}): {a_second}/s; p50 {p50}; p99 {p99}; {during}; memory {base} -> {most}"
    );
}

// --- floods ---

impl Attack<'_> {
    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    fn counts(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Connections without end, the oldest of which are closed when there are more than a guest may have.
    fn keep_connecting(&self, mut then: impl FnMut(&mut Connection, &mut VecDeque<Connection>)) {
        let mut kept = VecDeque::new();
        while self.goes_on() {
            let Ok(mut connection) =
                Connection::open_within(Address::V4, Duration::from_millis(300))
            else {
                continue;
            };
            self.counts();
            then(&mut connection, &mut kept);
            kept.push_back(connection);
            if kept.len() > KEPT / 2 {
                kept.pop_front();
            }
        }
    }
}

fn connect_and_say_nothing(attack: &Attack<'_>) {
    attack.keep_connecting(|_, _| {});
}

/// A byte of a head now and then on each connection.
fn send_heads_slowly(attack: &Attack<'_>) {
    let mut n = 0;
    attack.keep_connecting(|connection, kept| {
        // What the service closed meanwhile takes no byte, and need not.
        connection.send(b"GET /latest/").ok();
        n += 1;
        let length = kept.len().max(1);
        if let Some(earlier) = kept.get_mut(n % length) {
            earlier.send(b"x").ok();
        }
    });
}

fn never_read(attack: &Attack<'_>, requests: &[u8]) {
    attack.keep_connecting(|connection, _| {
        connection.send(requests).ok();
    });
}

fn ask_anew(attack: &Attack<'_>, request: &[u8]) {
    while attack.goes_on() {
        let answered = Connection::open_within(Address::V4, Duration::from_secs(1))
            .and_then(|mut connection| exchange(&mut connection, request));
        if answered.is_ok() {
            attack.counts();
        }
    }
}

/// On one connection as long as the service keeps it.
fn ask_again(attack: &Attack<'_>, request: &[u8]) {
    while attack.goes_on() {
        let Ok(mut connection) = Connection::open_within(Address::V4, Duration::from_secs(1))
        else {
            continue;
        };
        while attack.goes_on() && exchange(&mut connection, request).is_ok_and(|is_open| is_open) {
            attack.counts();
        }
    }
}

/// Sixteen requests at once.
fn pipeline(attack: &Attack<'_>) {
    let requests = request(INSTANCE_ID, KEEP).repeat(16);
    while attack.goes_on() {
        let Ok(mut connection) = Connection::open_within(Address::V4, Duration::from_secs(1))
        else {
            continue;
        };
        while attack.goes_on() && connection.send(&requests).is_ok() {
            let answers = (0..16).map_while(|_| connection.receive().ok());
            let n_answers = answers.count();
            (0..n_answers).for_each(|_| attack.counts());
            if n_answers < 16 {
                break;
            }
        }
    }
}

/// Whether the connection is still open after the answer.
fn exchange(connection: &mut Connection, request: &[u8]) -> std::io::Result<bool> {
    connection.send(request)?;
    let answer = connection.receive()?;
    Ok(answer.header("Connection") != Some("close"))
}

/// From ever new addresses.
fn send_syns(attack: &Attack<'_>) {
    let tap = attack.tap;
    let mut number = 0_u32;
    while attack.goes_on() {
        number = (number + 1) % (1 << 20);
        let from = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 0)) + number);
        tap.send(&TcpFrame::syn(tap.mac(), tap.port_mac(), from.into(), 40_000).bytes());
        attack.counts();
    }
}

fn request(path: &str, fields: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes()
}

fn put_token() -> Vec<u8> {
    format!("PUT {TOKEN} HTTP/1.1\r\nHost: a\r\n{TTL_FIELD}: 60\r\n{KEEP}\r\n").into_bytes()
}

fn longest_head() -> Vec<u8> {
    const FIELDS: usize = 90;
    let field = format!("X: {}\r\n", "y".repeat(170));
    let head = request(INSTANCE_ID, &format!("{KEEP}{}", field.repeat(FIELDS)));
    assert!((15_000..16_384).contains(&head.len()), "{}", head.len());
    head
}

// --- memory ---

/// What a responder holds: its own memory, and the kernel's for its sockets.
#[derive(Clone, Copy)]
struct Memory {
    resident: usize,
    sockets: usize,
}

impl Memory {
    fn of(daemon: &Daemon) -> Self {
        let pid = daemon.responder_pid();
        let resident = ProcessStatus::of(pid).resident_kib() << 10;
        // The machine's /proc/net/sockstat counts the memory of everybody's sockets; these are the namespace's.
        let output = Namespace::of(pid).run(&["ss", "-tanmH"]);
        let text = String::from_utf8_lossy(&output.stdout);
        let sockets = text.lines().filter_map(socket_bytes).sum();
        Self {
            resident: usize::try_from(resident).expect("it is in memory"),
            sockets,
        }
    }

    fn bytes(self) -> usize {
        self.resident + self.sockets
    }

    fn max(self, other: Self) -> Self {
        Self {
            resident: self.resident.max(other.resident),
            sockets: self.sockets.max(other.sockets),
        }
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [resident, sockets] = [self.resident, self.sockets].map(|bytes| bytes >> 10);
        write!(f, "{resident}+{sockets} KiB")
    }
}

/// `… skmem:(r0,rb131072,t0,tb46080,f4096,w0,o0,bl0,d0)`: what was received, what is kept for more, what is to be
/// sent; and the socket itself.
fn socket_bytes(line: &str) -> Option<usize> {
    let (_, memory) = line.split_once("skmem:(")?;
    let field = |name: char| -> usize {
        let mut fields = memory.trim_end().trim_end_matches(')').split(',');
        let value = fields.find_map(|field| {
            let digits = field.strip_prefix(name)?;
            digits.parse().ok()
        });
        value.unwrap_or_default()
    };
    Some(bounds::SOCKET_BYTES + field('r') + field('f') + field('w'))
}
