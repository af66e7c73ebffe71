//! Whatever a guest sends: a clean error or a close, a count, and everybody else served as before.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use imds_tests::{
    Address, Connection, Daemon, Guest, Host, INSTANCE_ID, ProcessStatus, Tap, TcpFrame,
    allow_open_files, eventually, parse_arp, parse_tcp, patience,
};

/// Resident memory that the responder may reach whatever guests do to it.
const RESIDENT_KIB_MAX: u64 = 256 * 1024;

/// Time within which a neighbour of a hostile guest has its answer.
const SERVED_WITHIN: Duration = Duration::from_secs(2);

fn check_served(guest: &Guest) {
    let begin = Instant::now();
    assert_eq!(guest.get(INSTANCE_ID).text(), guest.id());
    assert!(
        begin.elapsed() < patience(SERVED_WITHIN),
        "{} waited {:?}",
        guest.name(),
        begin.elapsed()
    );
}

#[expect(clippy::print_stderr, reason = "the figure is worth seeing in the log")]
fn check_memory(daemon: &Daemon, what: &str) {
    let resident = ProcessStatus::of(daemon.responder_pid()).resident_kib();
    eprintln!("responder after {what}: {resident} KiB resident");
    assert!(resident < RESIDENT_KIB_MAX, "{what}: {resident} KiB");
}

// --- packets ---

const GUEST_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;

/// A SYN over IPv4, changed; the checksum of its IPv4 header is made right again.
fn v4(tap: &Tap, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = TcpFrame::syn(tap.mac(), tap.port_mac(), GUEST_V4.into(), 40_000).bytes();
    change(&mut frame);
    if frame.len() >= ETHERNET + IPV4 {
        fix_ipv4_checksum(&mut frame);
    }
    frame
}

/// A SYN over IPv6, changed.
fn v6(tap: &Tap, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let from: Ipv6Addr = "fd00:1::10".parse().expect("an address");
    let mut frame = TcpFrame::syn(tap.mac(), tap.port_mac(), from.into(), 40_000).bytes();
    change(&mut frame);
    frame
}

fn fix_ipv4_checksum(frame: &mut [u8]) {
    let words = usize::from(frame[ETHERNET] & 0x0f).max(5);
    let end = (ETHERNET + words * 4).min(frame.len());
    frame[ETHERNET + 10..ETHERNET + 12].fill(0);
    let sum: u32 = frame[ETHERNET..end]
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    let checksum = !u16::try_from(folded).expect("folded twice");
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&checksum.to_be_bytes());
}

/// Four bytes of IP options (no operation) behind the IPv4 header.
fn with_options(frame: &mut Vec<u8>) {
    frame[ETHERNET] = 0x46;
    frame.splice(ETHERNET + IPV4..ETHERNET + IPV4, [1, 1, 1, 1]);
    let total = u16::try_from(frame.len() - ETHERNET).expect("short");
    frame[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&total.to_be_bytes());
}

/// An IPv6 extension header without content in front of TCP.
fn with_extension(frame: &mut Vec<u8>, next_header: u8) {
    frame[ETHERNET + 6] = next_header;
    frame.splice(ETHERNET + IPV6..ETHERNET + IPV6, [6, 0, 0, 0, 0, 0, 0, 0]);
    let payload = u16::try_from(frame.len() - ETHERNET - IPV6).expect("short");
    frame[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&payload.to_be_bytes());
}

/// Two VLAN tags.
fn twice_tagged(frame: &mut Vec<u8>) {
    frame.splice(12..12, [0x88, 0xa8, 0, 7, 0x81, 0, 0, 8]);
}

/// Bytes to be written over a frame.
fn put(at: usize, bytes: &'static [u8]) -> impl FnOnce(&mut Vec<u8>) {
    move |frame| frame[at..at + bytes.len()].copy_from_slice(bytes)
}

/// A frame cut short behind its Ethernet header.
fn cut(bytes: usize) -> impl FnOnce(&mut Vec<u8>) {
    move |frame| frame.truncate(ETHERNET + bytes)
}

/// What is sent, as whom to count it, for everything about the service that nobody can answer.
fn hopeless_packets(tap: &Tap) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    const FLAGS: usize = ETHERNET + 6;
    const PROTOCOL: usize = ETHERNET + 9;
    const SOURCE: usize = ETHERNET + 12;
    const NEXT_HEADER: usize = ETHERNET + 6;
    const SOURCE_V6: usize = ETHERNET + 8;
    vec![
        ("a first fragment", v4(tap, put(FLAGS, &[0x20])), "fragment"),
        (
            "a later fragment",
            v4(tap, put(FLAGS, &[0, 0x10])),
            "fragment",
        ),
        (
            "an IPv6 fragment",
            v6(tap, |f| with_extension(f, 44)),
            "fragment",
        ),
        ("IP options", v4(tap, with_options), "ip-options"),
        (
            "hop-by-hop options",
            v6(tap, |f| with_extension(f, 0)),
            "extension-header",
        ),
        (
            "destination options",
            v6(tap, |f| with_extension(f, 60)),
            "extension-header",
        ),
        (
            "a routing header",
            v6(tap, |f| with_extension(f, 43)),
            "extension-header",
        ),
        ("UDP", v4(tap, put(PROTOCOL, &[17])), "udp"),
        ("UDP over IPv6", v6(tap, put(NEXT_HEADER, &[17])), "udp"),
        ("ICMP", v4(tap, put(PROTOCOL, &[1])), "icmp"),
        ("ICMPv6", v6(tap, put(NEXT_HEADER, &[58])), "icmp"),
        ("SCTP", v4(tap, put(PROTOCOL, &[132])), "other-protocol"),
        (
            "SCTP over IPv6",
            v6(tap, put(NEXT_HEADER, &[132])),
            "other-protocol",
        ),
        ("half a TCP header", v4(tap, cut(IPV4 + 10)), "truncated"),
        ("no TCP header", v4(tap, cut(IPV4)), "truncated"),
        (
            "half a TCP header over IPv6",
            v6(tap, cut(IPV6 + 10)),
            "truncated",
        ),
        (
            "a header shorter than itself",
            v4(tap, put(ETHERNET, &[0x44])),
            "malformed",
        ),
        (
            "IPv4 that says it is 5",
            v4(tap, put(ETHERNET, &[0x55])),
            "malformed",
        ),
        (
            "a length shorter than the headers",
            v4(tap, put(ETHERNET + 2, &[0, 21])),
            "malformed",
        ),
        (
            "a sender of multicast MAC",
            v4(tap, put(6, &[1])),
            "malformed",
        ),
        (
            "a sender without an address",
            v4(tap, put(SOURCE, &[0, 0, 0, 0])),
            "bad-source",
        ),
        (
            "a multicast sender",
            v4(tap, put(SOURCE, &[224])),
            "bad-source",
        ),
        (
            "a broadcast sender",
            v4(tap, put(SOURCE, &[255, 255, 255, 255])),
            "bad-source",
        ),
        (
            "a loopback sender",
            v4(tap, put(SOURCE, &[127, 128, 0, 1])),
            "bad-source",
        ),
        (
            "an IPv6 sender without an address",
            v6(tap, put(SOURCE_V6, &[0; 16])),
            "bad-source",
        ),
        (
            "the service as the sender",
            v4(tap, put(SOURCE, &[169, 254, 169, 254])),
            "spoofed-source",
        ),
        ("two VLAN tags", v4(tap, twice_tagged), "double-tagged"),
    ]
}

#[test]
fn packets_that_cannot_be_handled_are_dropped_and_counted() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let tap = host.guest("raw").ipv6_enabled().tap();
    let _daemon = host.start();
    for (what, frame, counter) in hopeless_packets(&tap) {
        check_counted(&host, what, &tap, &frame, counter);
    }
    assert_eq!(
        tap.receive(Duration::from_millis(100), parse_tcp),
        None,
        "something was answered"
    );
    check_served(&web);
    let request = format!("GET {INSTANCE_ID} HTTP/1.1\r\nHost: x\r\n\r\n");
    let syn = TcpFrame::syn(tap.mac(), tap.port_mac(), GUEST_V4.into(), 41_000);
    let served = tap.fetch(&syn, request.as_bytes());
    assert!(
        served.len() > 1,
        "the hostile guest itself is served when it behaves: {served:?}"
    );
}

/// Sends a frame and waits until it is counted, once and under this name.
fn check_counted(host: &Host, what: &str, tap: &Tap, frame: &[u8], counter: &str) {
    let before = host.counter(counter);
    tap.send(frame);
    eventually(
        &format!("{what} counted as {counter}"),
        Duration::from_secs(2),
        || (host.counter(counter) > before).then_some(()),
    );
    assert_eq!(host.counter(counter), before + 1, "{what}");
}

/// Frames cut anywhere, and frames of noise: nothing of it may stop anything.
#[test]
fn noise_disturbs_nobody() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let tap = host.guest("raw").ipv6_enabled().tap();
    let daemon = host.start();
    let responder = daemon.responder_pid();
    let whole = [
        v4(&tap, |_| {}),
        v6(&tap, |_| {}),
        v4(&tap, twice_tagged),
        v4(&tap, with_options),
    ];
    for frame in &whole {
        for length in ETHERNET..frame.len() {
            tap.send(&frame[..length]);
        }
        for position in ETHERNET..frame.len() {
            for bit in [0x01, 0x80] {
                let mut changed = frame.clone();
                changed[position] ^= bit;
                tap.send(&changed);
            }
        }
    }
    // A tap device refuses what is no frame at all; what matters is that we try.
    for length in 0..ETHERNET {
        let refused = tap.try_send(&whole[0][..length]);
        assert!(refused.is_err(), "{length} bytes");
    }
    check_served(&web);
    assert_eq!(
        daemon.responder_pid(),
        responder,
        "the responder was replaced"
    );
    // Whatever the tap received for it is TCP or ARP for the guest itself, with right checksums (parse_tcp asserts it).
    while tap
        .receive(Duration::from_millis(50), |frame| {
            parse_tcp(frame)
                .map(drop)
                .or_else(|| parse_arp(frame).map(drop))
        })
        .is_some()
    {}
}

/// SYNs without end from ever new addresses fill no table that others need.
#[test]
fn a_flood_of_syns_disturbs_nobody() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let tap = host.guest("raw").tap();
    let daemon = host.start();
    for number in 0..20_000_u32 {
        let from = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 0)) + number);
        let port = 1024 + u16::try_from(number % 60_000).expect("a port");
        tap.send(&TcpFrame::syn(tap.mac(), tap.port_mac(), from.into(), port).bytes());
        if number % 2000 == 0 {
            check_served(&web);
        }
    }
    check_served(&web);
    check_memory(&daemon, "20,000 SYNs");
}

// --- requests ---

/// Sends bytes and returns the status of the answer, or none when the connection was closed without one.
fn status_of(guest: &Guest, bytes: &[u8]) -> io::Result<Option<u16>> {
    let mut connection = guest.try_connect(Address::V4)?;
    // The other end may close before everything is sent.
    connection.send(bytes).ok();
    connection.finish_sending().ok();
    match connection.receive() {
        Ok(response) => Ok(Some(response.status())),
        Err(error)
            if error.kind() == io::ErrorKind::TimedOut
                || error.kind() == io::ErrorKind::InvalidData =>
        {
            Err(error)
        }
        Err(_) => Ok(None),
    }
}

#[test]
fn malformed_requests_get_an_error_or_a_close() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let mallory = host.guest("mallory").routed("10.0.0.10").up();
    let daemon = host.start();
    let responder = daemon.responder_pid();
    let long_path = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000));
    let long_field = format!(
        "GET {INSTANCE_ID} HTTP/1.1\r\nX: {}\r\n\r\n",
        "a".repeat(1_000_000)
    );
    let many_fields = format!(
        "GET {INSTANCE_ID} HTTP/1.1\r\n{}\r\n",
        "X: y\r\n".repeat(100_000)
    );
    let over_the_bound = format!(
        "GET {INSTANCE_ID} HTTP/1.1\r\nX: {}\r\n\r\n",
        "a".repeat(32 << 10)
    );
    let long_token = format!(
        "GET {INSTANCE_ID} HTTP/1.1\r\nX-aws-ec2-metadata-token: {}\r\n\r\n",
        "A".repeat(4000)
    );
    let cases: [&[u8]; 27] = [
        b"",
        b"\r\n",
        b"\r\n\r\n",
        b"GET",
        b"GET \r\n\r\n",
        b"GET / HTTP/1.1",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTCPCP/1.0\r\n\r\n",
        b"get / http/1.1\r\n\r\n",
        b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nNo colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n: no name\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: \0\r\n\r\n",
        b"GET / HTTP/1.1\r\nX : space\r\n\r\n",
        b"GET / HTTP/1.1\r\n folded\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        long_path.as_bytes(),
        long_field.as_bytes(),
        many_fields.as_bytes(),
        long_token.as_bytes(),
        over_the_bound.as_bytes(),
    ];
    for case in cases {
        let shown = String::from_utf8_lossy(&case[..case.len().min(60)]).into_owned();
        let status = status_of(&mallory, case).unwrap_or_else(|error| panic!("{shown:?}: {error}"));
        assert!(
            status.is_none_or(|status| (400..600).contains(&status)),
            "{shown:?}: {status:?}"
        );
        assert_ne!(status, Some(500), "{shown:?}");
    }
    check_served(&web);
    check_served(&mallory);
    assert_eq!(
        daemon.responder_pid(),
        responder,
        "the responder was replaced"
    );
    check_memory(&daemon, "malformed requests");
}

#[test]
fn a_header_without_end_is_cut_off() {
    const BYTES_TRIED: usize = 64 * 1024 * 1024;
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let mallory = host.guest("mallory").routed("10.0.0.10").up();
    let daemon = host.start();
    let mut connection = mallory.connect();
    connection
        .send(b"GET / HTTP/1.1\r\nX: ")
        .expect("the beginning goes out");
    let chunk = vec![b'a'; 64 * 1024];
    let sent = (0..BYTES_TRIED / chunk.len())
        .take_while(|_| connection.send(&chunk).is_ok())
        .count()
        * chunk.len();
    assert!(sent < BYTES_TRIED, "{sent} bytes of one header were taken");
    check_served(&web);
    check_memory(&daemon, "a header without end");
}

/// A request comes within a bounded time or not at all, however steadily it drips.
#[test]
fn slow_headers_are_cut_off() {
    // The responder gives a connection 20 seconds.
    const CUT_OFF_WITHIN: Duration = Duration::from_secs(25);
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let mallory = host.guest("mallory").routed("10.0.0.10").up();
    let _daemon = host.start();
    let mut silent = mallory.connect();
    let mut dripping = mallory.connect();
    dripping
        .send(b"GET / HTTP/1.1\r\n")
        .expect("the beginning goes out");
    let begin = Instant::now();
    let cut_off = loop {
        dripping.send(b"X").ok();
        let (bytes, closed) = dripping.receive_raw(Duration::from_millis(200));
        assert!(!bytes.starts_with(b"HTTP/1.1 2"), "{bytes:?}");
        if closed {
            break begin.elapsed();
        }
        assert!(
            begin.elapsed() < CUT_OFF_WITHIN,
            "still open after {:?}",
            begin.elapsed()
        );
    };
    check_served(&web);
    let (bytes, closed) = silent.receive_raw(CUT_OFF_WITHIN.saturating_sub(cut_off));
    assert!(
        closed,
        "a connection without a request is still open: {bytes:?}"
    );
}

/// The neighbour is served all the while, and so is the guest itself as soon as its connections are gone.
#[test]
fn ten_thousand_idle_connections_disturb_no_neighbour() {
    const IDLE: usize = 10_000;
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let mallory = host.guest("mallory").routed("10.0.0.10").up();
    allow_open_files(2 * IDLE as u64);
    let daemon = host.start();
    let mut idle = Vec::new();
    for _ in 0..IDLE / 500 {
        // Those beyond the bound may be refused or closed in whatever way, but not left to wait.
        idle.extend(mallory.namespace().enter(|| open_idle(500)));
        check_served(&web);
    }
    check_memory(&daemon, "10,000 idle connections");
    drop(idle);
    eventually("the guest is served again", Duration::from_secs(20), || {
        let mut connection = mallory
            .namespace()
            .enter(|| Connection::open_within(Address::V4, Duration::from_secs(2)))
            .ok()?;
        connection.exchange("GET", INSTANCE_ID, &[]).ok()
    });
}

fn open_idle(connections: usize) -> Vec<Connection> {
    (0..connections)
        .filter_map(|_| Connection::open_within(Address::V4, Duration::from_secs(2)).ok())
        .collect()
}
