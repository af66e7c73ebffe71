//! Each guest gets the metadata of itself and never of another, whatever it sends.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use imds_tests::{
    Address, Connection, Guest, Host, INSTANCE_ID, InstanceText, TcpFrame, allow_open_files,
    parse_tcp,
};

/// Long enough for a lost SYN to be sent again, so that silence is an answer.
const SILENCE: Duration = Duration::from_millis(1500);

#[test]
fn guests_with_one_address_get_their_own_ids() {
    let Some(mut host) = Host::new() else { return };
    let guests = [
        host.guest("web").routed("10.0.0.10").up(),
        host.guest("db").routed("10.0.0.10").up(),
        host.guest("link").on_link("10.0.0.10").up(),
        host.guest("legacy").bridged("br0", "10.0.0.10").up(),
        host.guest("older").bridged("br1", "10.0.0.10").up(),
    ];
    let _daemon = host.start();
    for guest in &guests {
        assert_eq!(
            guest.get(INSTANCE_ID).text(),
            guest.id(),
            "{}",
            guest.name()
        );
    }
}

#[test]
fn guests_on_one_bridge_get_their_own_ids() {
    let Some(mut host) = Host::new() else { return };
    let one = host.guest("one").bridged("br0", "10.0.0.10").up();
    let two = host.guest("two").bridged("br0", "10.0.0.11").up();
    let _daemon = host.start();
    for guest in [&one, &two] {
        assert_eq!(
            guest.get(INSTANCE_ID).text(),
            guest.id(),
            "{}",
            guest.name()
        );
    }
}

#[test]
fn guests_under_load_never_see_each_others_ids() {
    const CONNECTIONS: usize = 4;
    const REQUESTS: usize = 1000;
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let db = host.guest("db").routed("10.0.0.10").up();
    let _daemon = host.start();
    thread::scope(|scope| {
        for guest in [&web, &db] {
            for _ in 0..CONNECTIONS {
                scope.spawn(|| ask_many_times(guest, REQUESTS));
            }
            scope.spawn(|| connect_many_times(guest, REQUESTS / 4));
        }
    });
}

fn ask_many_times(guest: &Guest, requests: usize) {
    let mut connection = guest.connect();
    for _ in 0..requests {
        assert_eq!(connection.get(INSTANCE_ID, &[]).text(), guest.id());
    }
}

fn connect_many_times(guest: &Guest, connections: usize) {
    guest.namespace().enter(|| {
        for _ in 0..connections {
            let mut connection =
                Connection::open(Address::V4).expect("the service answers under load");
            assert_eq!(connection.get(INSTANCE_ID, &[]).text(), guest.id());
        }
    });
}

#[test]
fn one_four_tuple_in_two_guests_is_two_connections() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let db = host.guest("db").routed("10.0.0.10").up();
    let _daemon = host.start();
    let mut first = web.connect();
    let port = first.local().port();
    let from = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 10), port));
    let mut second = db
        .namespace()
        .enter(|| Connection::open_from_port(from, Address::V4))
        .expect("the tuple is free here");
    for _ in 0..10 {
        assert_eq!(first.get(INSTANCE_ID, &[]).text(), web.id());
        assert_eq!(second.get(INSTANCE_ID, &[]).text(), db.id());
    }
}

#[test]
fn a_token_of_one_guest_is_refused_at_another() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").tokens_required().up();
    let db = host.guest("db").routed("10.0.0.10").up();
    let _daemon = host.start();
    let token = web.put_token(60);
    assert_eq!(web.get_with_token(INSTANCE_ID, &token).status(), 200);
    let refused = db.get_with_token(INSTANCE_ID, &token);
    assert_eq!((refused.status(), refused.text()), (401, ""));
}

#[test]
fn a_guest_of_ten_thousand_addresses_is_answered_on_each_and_disturbs_nobody() {
    const ADDRESSES: u32 = 10_000;
    // Below the bound on connections of one guest, which is 1024.
    const OPEN_TOGETHER: u32 = 1000;
    let Some(mut host) = Host::new() else { return };
    let many = host.guest("many").routed("10.0.0.10").up();
    let other = host.guest("other").routed("10.0.0.10").up();
    allow_open_files(4096);
    // Every address of 10/8 is one of the guest's own: the kernel's way to have millions of addresses.
    many.namespace().ip("route add local 10.0.0.0/8 dev lo");
    let _daemon = host.start();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut connection = other.connect();
            while !done.load(Ordering::Relaxed) {
                assert_eq!(connection.get(INSTANCE_ID, &[]).text(), other.id());
            }
        });
        many.namespace().enter(|| {
            for first in (0..ADDRESSES).step_by(OPEN_TOGETHER as usize) {
                ask_from_each(first..first + OPEN_TOGETHER, many.id());
            }
        });
        done.store(true, Ordering::Relaxed);
    });
}

/// Opens a connection from each address, and only then asks on each.
fn ask_from_each(addresses: std::ops::Range<u32>, id: &str) {
    let base = u32::from(Ipv4Addr::new(10, 1, 0, 0));
    let connections: Vec<Connection> = addresses
        .map(|number| {
            let from = Ipv4Addr::from(base + number);
            Connection::open_from(IpAddr::V4(from), Address::V4)
                .unwrap_or_else(|error| panic!("from {from}: {error}"))
        })
        .collect();
    for mut connection in connections {
        assert_eq!(connection.get(INSTANCE_ID, &[]).text(), id);
    }
}

#[test]
fn a_port_name_used_again_by_another_guest_brings_nothing_of_the_former() {
    let Some(mut host) = Host::new() else { return };
    let former = host.guest("web").routed("10.0.0.10").tokens_required().up();
    let mut daemon = host.start();
    let token = former.put_token(600);
    assert_eq!(former.get_with_token(INSTANCE_ID, &token).status(), 200);

    host.namespace().ip("link delete veth-web");
    host.forget("web");
    host.write_config();
    daemon.reload();
    let latter = host
        .guest("web")
        .routed("10.0.0.10")
        .id("i-0feedfacefeedface")
        .tokens_required()
        .up();
    host.write_config();
    daemon.reload();

    assert_eq!(
        latter.get_with_token(INSTANCE_ID, &token).status(),
        401,
        "the former guest's token"
    );
    let own = latter.put_token(60);
    assert_eq!(
        latter.get_with_token(INSTANCE_ID, &own).text(),
        "i-0feedfacefeedface"
    );
}

#[test]
fn an_open_connection_ends_with_its_instance() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let mut daemon = host.start();
    let mut connection = web.connect();
    assert_eq!(connection.get(INSTANCE_ID, &[]).text(), web.id());

    host.forget("web");
    host.add_instance(InstanceText::new("heir", web.port(), "i-0feedfacefeedface"));
    host.write_config();
    daemon.reload();

    let answer = connection.exchange("GET", INSTANCE_ID, &[("Connection", "keep-alive")]);
    if let Ok(answer) = answer {
        assert_ne!(
            answer.status(),
            200,
            "a connection of a former instance was served: {answer:?}"
        );
    }
    assert_eq!(web.get(INSTANCE_ID).text(), "i-0feedfacefeedface");
}

/// The identity is the port's: an address or a MAC of the neighbour's brings the sender its own id, and the neighbour nothing.
#[test]
fn a_borrowed_address_and_mac_bring_the_senders_own_id() {
    let Some(mut host) = Host::new() else { return };
    let victim = host.guest("victim").routed("10.0.0.10").up();
    let spoofer = host.guest("spoofer").tap();
    let _daemon = host.start();
    let victim_mac = bytes_of_mac(&victim.namespace().mac("eth0"));
    let mut victims = victim.connect();
    assert_eq!(victims.get(INSTANCE_ID, &[]).text(), victim.id());

    let port = victims.local().port();
    let syn = TcpFrame::syn(
        victim_mac,
        spoofer.port_mac(),
        Ipv4Addr::new(10, 0, 0, 10).into(),
        port,
    );
    let segments = spoofer.fetch(
        &syn,
        format!("GET {INSTANCE_ID} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes(),
    );
    assert!(
        segments
            .iter()
            .all(|segment| segment.destination_mac == victim_mac)
    );
    let answer: Vec<u8> = segments
        .into_iter()
        .flat_map(|segment| segment.payload)
        .collect();
    let answer = String::from_utf8(answer).expect("the answer is text");
    assert!(answer.contains(spoofer.id()), "{answer}");
    assert!(!answer.contains(victim.id()), "{answer}");
    assert_eq!(
        victims.get(INSTANCE_ID, &[]).text(),
        victim.id(),
        "the same four-tuple at another port disturbs nothing"
    );
}

fn bytes_of_mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal"))
        .collect();
    bytes.try_into().expect("six bytes")
}

/// Tags are addresses of the responder's side alone. A guest that sends to one reaches nobody: the host drops what
/// comes for 127/8 from outside, and has no route to the IPv6 tags.
#[test]
fn packets_to_tag_addresses_get_no_answer() {
    let Some(mut host) = Host::new() else { return };
    let guest = host
        .guest("web")
        .routed("10.0.0.10")
        .ipv6("fd00:1::10")
        .up();
    let raw = host.guest("raw").tap();
    let _daemon = host.start();
    assert_eq!(guest.get(INSTANCE_ID).text(), guest.id());
    for slot in 0..4_u8 {
        let v4 = Ipv4Addr::new(127, 128, 0, slot);
        let mut frame = TcpFrame::syn(
            raw.mac(),
            raw.port_mac(),
            IpAddr::V4(Ipv4Addr::new(10, 0, 0, 11)),
            40_000,
        );
        frame.addresses.1 = IpAddr::V4(v4);
        raw.send(&frame.bytes());
        let v6 = format!("fd49:4d44:5300::{slot}")
            .parse()
            .expect("an address");
        frame.addresses = ("fd00:1::11".parse().expect("an address"), IpAddr::V6(v6));
        raw.send(&frame.bytes());
        let refused = guest.namespace().enter(|| {
            Connection::open_within(
                Address::Other(SocketAddr::new(IpAddr::V6(v6), 80)),
                Duration::from_millis(300),
            )
        });
        assert!(refused.is_err(), "a connection to {v6} succeeded");
    }
    let synack = raw.receive(SILENCE, |bytes| {
        parse_tcp(bytes).filter(|segment| segment.flags.0)
    });
    assert_eq!(synack, None);
}

#[test]
fn a_guest_that_is_no_instance_gets_no_answer() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let nobody = host.guest("nobody").routed("10.0.0.11").unregistered().up();
    let _daemon = host.start();
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    let answer = nobody
        .namespace()
        .enter(|| Connection::open_within(Address::V4, SILENCE));
    assert!(
        answer.is_err(),
        "a guest that nobody registered was answered"
    );
}
