//! What one guest may take: packets, requests and new connections a second, connections and requests at a time. Others
//! notice nothing.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use imds_tests::{Address, Guest, Host, INSTANCE_ID, TcpFrame, eventually};

const KEEP: (&str, &str) = ("Connection", "keep-alive");

/// A host with a bounded guest and a neighbour without bounds.
fn host_with(limits: &str) -> Option<(Host, Guest, Guest)> {
    let mut host = Host::new()?;
    let bounded = host
        .guest("bounded")
        .routed("10.0.0.10")
        .tables(&format!("[instance.limits]\n{limits}"))
        .up();
    let free = host.guest("free").routed("10.0.0.10").up();
    Some((host, bounded, free))
}

#[test]
fn packets_beyond_the_limit_are_dropped_and_counted() {
    let Some((host, bounded, free)) = host_with("packets-per-second = 20") else {
        return;
    };
    let _daemon = host.start();
    // A connection with one request takes five packets or six, so the allowance of a second is used up by the fourth.
    // TCP sends again what was dropped: the guest is slow, not shut out.
    for _ in 0..8 {
        assert_eq!(bounded.get(INSTANCE_ID).text(), bounded.id());
    }
    let dropped = host.counter("rate-limited");
    assert!(dropped > 0, "nothing was dropped");
    for _ in 0..30 {
        assert_eq!(free.get(INSTANCE_ID).text(), free.id(), "the neighbour");
    }
    assert_eq!(
        host.counter("rate-limited"),
        dropped,
        "the neighbour was limited too"
    );
}

/// EC2's number, to the packet: 1,024 at once, and as many evenly in every second that follows.
#[test]
fn a_port_sends_1024_packets_a_second_unless_something_else_is_said() {
    const SENT: u64 = 4_000;
    let Some(mut host) = Host::new() else { return };
    host.usual_limits();
    let tap = host.guest("raw").tap();
    let _daemon = host.start();
    let counted = || (host.counter("delivered"), host.counter("rate-limited"));
    let before = counted();
    // Made before, so that also a slow machine sends them faster than they are let through.
    let frames = (0..SENT).map(|number| {
        let from = Ipv4Addr::from(0x0a00_0000 + u32::try_from(number).expect("a few thousand"));
        TcpFrame::syn(tap.mac(), tap.port_mac(), from.into(), 40_000).bytes()
    });
    let frames: Vec<_> = frames.collect();
    let begin = Instant::now();
    for frame in &frames {
        tap.send(frame);
    }
    let (delivered, dropped) = eventually("all are counted", Duration::from_secs(5), || {
        let (delivered, dropped) = counted();
        let new = (delivered - before.0, dropped - before.1);
        (new.0 + new.1 == SENT).then_some(new)
    });
    let later = begin.elapsed().as_millis() * 1024 / 1000 + 1;
    let later = u64::try_from(later).expect("a few seconds");
    assert!(
        dropped > 0,
        "{delivered} of {SENT} packets were let through"
    );
    assert!(
        (1024..=1024 + later).contains(&delivered),
        "{delivered} packets delivered in {:?}",
        begin.elapsed()
    );
}

#[test]
fn requests_beyond_the_limit_get_the_page_of_503() {
    let Some((host, bounded, free)) = host_with("requests-per-second = 5") else {
        return;
    };
    let _daemon = host.start();
    let mut connection = bounded.connect();
    // A second that begins with the first request admits five; a slow machine may let some more through, never fifty.
    let refused = (0..50)
        .map(|_| connection.get(INSTANCE_ID, &[KEEP]))
        .find(|answer| answer.status() != 200)
        .expect("a refusal");
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.header("Content-Length"), Some("359"));
    assert_eq!(refused.header("Content-Type"), Some("text/html"));
    assert_eq!(refused.header("Server"), Some("EC2ws"));
    assert_eq!(refused.header("Connection"), Some("close"));
    let port = &host.status()["ports"][0];
    assert_eq!(port["name"], "bounded");
    assert!(port["throttled"].as_u64() > Some(0), "{port}");
    let mut connection = free.connect();
    for _ in 0..50 {
        assert_eq!(
            connection.get(INSTANCE_ID, &[KEEP]).status(),
            200,
            "the neighbour"
        );
    }
}

#[test]
fn the_longest_idle_connection_gives_way() {
    let Some((host, bounded, free)) = host_with("connections = 3") else {
        return;
    };
    let _daemon = host.start();
    let mut neighbour = free.connect();
    assert_eq!(neighbour.get(INSTANCE_ID, &[KEEP]).status(), 200);
    let mut open: Vec<_> = (0..3)
        .map(|_| {
            let mut connection = bounded.connect();
            assert_eq!(connection.get(INSTANCE_ID, &[KEEP]).status(), 200);
            connection
        })
        .collect();
    // The first is used again, so the second is now idle for longest.
    assert_eq!(open[0].get(INSTANCE_ID, &[KEEP]).status(), 200);
    let mut fourth = bounded.connect();
    assert_eq!(fourth.get(INSTANCE_ID, &[KEEP]).status(), 200);
    assert!(
        open[1].receive().is_err(),
        "the second connection is still open"
    );
    for index in [0, 2] {
        assert_eq!(
            open[index].get(INSTANCE_ID, &[KEEP]).status(),
            200,
            "{index}"
        );
    }
    assert_eq!(neighbour.get(INSTANCE_ID, &[KEEP]).status(), 200);
}

#[test]
fn new_connections_beyond_the_limit_are_reset() {
    let Some((host, bounded, free)) = host_with("connections-per-second = 3") else {
        return;
    };
    let _daemon = host.start();
    let asks = |guest: &Guest| {
        let connection = guest.try_connect(Address::V4);
        connection.and_then(|mut connection| connection.exchange("GET", INSTANCE_ID, &[]))
    };
    assert!(asks(&bounded).is_ok(), "the first");
    // A slow machine may let some more through than three, never fifty.
    assert!(
        (0..50).any(|_| asks(&bounded).is_err()),
        "none was one too many"
    );
    for _ in 0..50 {
        assert!(asks(&free).is_ok(), "the neighbour");
    }
}

/// The requests are half a head each; those that are so for longest give way.
#[test]
fn the_request_that_takes_longest_gives_way() {
    const LIMIT: usize = 3;
    const OPEN: usize = 5;
    let Some((host, bounded, free)) = host_with("requests-in-flight = 3") else {
        return;
    };
    let _daemon = host.start();
    let request = format!("GET {INSTANCE_ID} HTTP/1.1\r\nHost: a\r\n\r\n");
    let (first_half, second_half) = request.split_at(20);
    let mut open: Vec<_> = (0..OPEN).map(|_| bounded.connect()).collect();
    for connection in &mut open {
        connection
            .send(first_half.as_bytes())
            .expect("an open connection takes half a head");
    }
    eventually("the first give way", Duration::from_secs(10), || {
        open.retain_mut(|connection| !connection.receive_raw(Duration::from_millis(20)).1);
        (open.len() <= LIMIT).then_some(())
    });
    assert_eq!(open.len(), LIMIT);
    for connection in &mut open {
        connection
            .send(second_half.as_bytes())
            .expect("it is open still");
        let answer = connection.receive().expect("an answer to the whole");
        assert_eq!(answer.text(), bounded.id());
    }
    assert_eq!(free.get(INSTANCE_ID).text(), free.id());
}
