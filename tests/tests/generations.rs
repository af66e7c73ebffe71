//! A slot belongs to an interface while that lives. Whatever comes under its name or its number afterwards is another one,
//! whether a daemon was there to see it or not: it has the former's identity if the configuration gives that to the name,
//! never for its number, and nothing that the former left in any case.

use std::io;
use std::thread;
use std::time::Duration;

use imds_tests::{
    Address, Connection, Guest, Host, INSTANCE_ID, STAND_IN_ANSWER, Uplink, eventually, has_command,
};

const SOON: Duration = Duration::from_secs(5);
/// Long enough for a SYN to be sent again, so that silence is an answer.
const SILENCE: Duration = Duration::from_millis(1500);

fn slot(host: &Host, name: &str) -> Option<u64> {
    let status = host.status();
    let ports = status["ports"].as_array().expect("a list");
    let port = ports.iter().find(|port| port["name"] == name)?;
    port["slot"].as_u64()
}

/// A guest that was made after another's interface had gone: under its name, its number, or both.
fn heir(host: &mut Host, name: &str, number: u32) -> Guest {
    host.guest(name)
        .routed("10.0.0.10")
        .id("i-0feedfacefeedface")
        .index(number)
        .unregistered()
        .up()
}

/// Waits until the guest `web` has another slot than this one; it.
fn another_slot(host: &Host, former: Option<u64>) -> u64 {
    eventually("another slot", SOON, || {
        slot(host, "web").filter(|now| Some(*now) != former)
    })
}

/// It is nobody to the service: neither the former guest nor anybody else.
fn check_unknown(guest: &Guest) {
    let connected = guest
        .namespace()
        .enter(|| Connection::open_within(Address::V4, SILENCE));
    assert!(connected.is_err(), "{} was answered", guest.name());
}

#[test]
fn an_interface_made_anew_under_the_same_name_and_number_is_what_the_configuration_says_in_a_slot_of_its_own()
 {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let mut daemon = host.start();
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    let (number, former_slot) = (host.namespace().index("veth-web"), slot(&host, "web"));

    host.namespace().ip("link delete veth-web");
    let late = heir(&mut host, "web", number);
    assert_eq!(host.namespace().index("veth-web"), number);
    let second_slot = another_slot(&host, former_slot);
    // Who has the name is who it is named for.
    assert_eq!(late.get(INSTANCE_ID).text(), web.id());
    assert!(daemon.log().contains("veth-web"), "{}", daemon.log());

    host.instance("web").key("id", "\"i-0feedfacefeedface\"");
    host.write_config();
    daemon.reload();
    assert_eq!(late.get(INSTANCE_ID).text(), late.id());
    let third_slot = slot(&host, "web");
    assert!(![former_slot, Some(second_slot)].contains(&third_slot));
}

#[test]
fn a_number_that_comes_again_with_another_name_brings_nothing() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let daemon = host.start();
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    let number = host.namespace().index("veth-web");
    host.namespace().ip("link delete veth-web");
    let other = heir(&mut host, "other", number);
    check_unknown(&other);
    drop(daemon);
}

#[test]
fn what_came_while_no_daemon_ran_inherits_nothing() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let db = host.guest("db").routed("10.0.0.11").up();
    let daemon = host.start();
    for guest in [&web, &db] {
        assert_eq!(guest.get(INSTANCE_ID).text(), guest.id());
    }
    let [web_number, db_number] = ["veth-web", "veth-db"].map(|name| host.namespace().index(name));
    let [web_slot, db_slot] = ["web", "db"].map(|name| slot(&host, name));
    daemon.stop();

    // One comes again under its name and number, the other's number with another name.
    host.namespace()
        .ip("link delete veth-web\nlink delete veth-db");
    let late = heir(&mut host, "web", web_number);
    let other = heir(&mut host, "other", db_number);
    host.instance("web").key("id", "\"i-0feedfacefeedface\"");
    host.forget("db");
    for guest in [&late, &other] {
        check_unknown(guest);
    }
    let daemon = host.start();
    assert_eq!(late.get(INSTANCE_ID).text(), late.id());
    check_unknown(&other);
    assert_ne!(
        slot(&host, "web"),
        web_slot,
        "another interface, another slot"
    );
    assert_ne!(slot(&host, "web"), db_slot);
    drop(daemon);
}

/// The configuration has not changed at all; the interface has.
#[test]
fn an_instance_whose_interface_was_made_anew_gets_another_slot() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let daemon = host.start();
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    let (number, former_slot) = (host.namespace().index("veth-web"), slot(&host, "web"));
    daemon.stop();
    host.namespace().ip("link delete veth-web");
    let again = host
        .guest("web")
        .routed("10.0.0.10")
        .index(number)
        .unregistered()
        .up();
    let _daemon = host.start();
    assert_eq!(again.get(INSTANCE_ID).text(), web.id());
    assert_ne!(slot(&host, "web"), former_slot);
}

/// An interface that leaves for another namespace and comes back has lost what it was.
#[test]
fn an_interface_that_was_elsewhere_is_another_one() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let elsewhere = imds_tests::Namespace::new();
    let _daemon = host.start();
    let mut open = web.connect();
    assert_eq!(open.get(INSTANCE_ID, &[]).text(), web.id());
    let former_slot = slot(&host, "web");
    host.namespace()
        .ip(&format!("link set veth-web netns {}", elsewhere.path()));
    let home = host.namespace().path();
    elsewhere.ip(&format!("link set veth-web netns {home}"));
    host.namespace().ip("link set veth-web up");
    another_slot(&host, former_slot);
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    let answer = open.exchange("GET", INSTANCE_ID, &[]);
    assert!(answer.is_err(), "{answer:?}");
}

#[test]
fn connections_of_a_removed_instance_are_reset() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let db = host.guest("db").routed("10.0.0.11").up();
    let mut daemon = host.start();
    let mut connections: Vec<Connection> = (0..50).map(|_| web.connect()).collect();
    for connection in &mut connections {
        assert_eq!(connection.get(INSTANCE_ID, &[]).text(), web.id());
    }
    let mut others = db.connect();
    assert_eq!(others.get(INSTANCE_ID, &[]).text(), db.id());
    host.forget("web");
    host.write_config();
    daemon.reload();
    for connection in &mut connections {
        // Nothing is sent: the end has come by itself.
        let end = connection.receive().err().map(|error| error.kind());
        assert_eq!(end, Some(io::ErrorKind::ConnectionReset));
    }
    assert_eq!(others.get(INSTANCE_ID, &[]).text(), db.id());
}

/// The next instance on a port, or another port, never gets the slot that packets may still carry.
#[test]
fn a_slot_that_was_given_back_does_not_come_again_soon() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let mut daemon = host.start();
    let mut seen = vec![slot(&host, "web")];
    for round in 0..4 {
        host.instance("web")
            .key("id", &format!("\"i-{round:017x}\""));
        if round % 2 == 0 {
            host.write_config();
            daemon.reload();
        } else {
            daemon.crash();
            daemon = host.start();
        }
        assert_eq!(web.get(INSTANCE_ID).text(), format!("i-{round:017x}"));
        let next = slot(&host, "web");
        assert!(!seen.contains(&next), "{next:?} after {seen:?}");
        seen.push(next);
    }
}

/// With the daemon held up, so that the kernel is alone: an answer that is still on its way to a guest whose interface went
/// does not come out of the one that has its number now.
#[test]
fn an_answer_to_a_guest_that_is_gone_reaches_nobody() {
    if !has_command("nft") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .user_data(b"a secret of the former guest")
        .up();
    let daemon = host.start();
    let number = host.namespace().index("veth-web");
    let mut connection = web.connect();
    assert_eq!(connection.get(INSTANCE_ID, &[]).text(), web.id());
    // The guest asks and hears nothing, so the answer is sent again and again.
    web.namespace().batch(
        "nft",
        &["-f", "-"],
        "table ip imds_test {\n chain input { type filter hook input priority filter; policy drop; }\n}\n",
    );
    connection
        .send(b"GET /latest/user-data HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("a request is short");
    daemon.pause();
    host.namespace().ip("link delete veth-web");
    let late = heir(&mut host, "web", number);
    let frames = late.frames();
    assert_eq!(host.namespace().index("veth-web"), number);
    thread::sleep(SILENCE);
    let secret = b"a secret";
    let is_answer = |frame: &&Vec<u8>| frame.windows(secret.len()).any(|part| part == secret);
    let answers = frames.take();
    let n_answers = answers.iter().filter(is_answer).count();
    daemon.resume();
    assert_eq!(n_answers, 0, "the late guest saw the former's answer");
    // It was sent, and met nobody.
    assert!(host.counter("reply-stale") > 0);
}

/// More notifications than fit their buffer, and among those that were lost the end of an interface and the coming of an
/// uplink.
#[test]
fn lost_notifications_are_made_up_for() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let db = host.guest("db").routed("10.0.0.11").up();
    let daemon = host.start();
    for guest in [&web, &db] {
        assert_eq!(guest.get(INSTANCE_ID).text(), guest.id());
    }
    let (number, former_slot) = (host.namespace().index("veth-web"), slot(&host, "web"));
    daemon.pause();
    let storm: String = (0..5000)
        .map(|turn| format!("link set veth-db alias turn-{turn}\n"))
        .collect();
    host.namespace().ip(&storm);
    host.namespace().ip("link delete veth-web");
    let late = heir(&mut host, "web", number);
    let uplink = host.uplink("up0");
    daemon.resume();
    let is_followed = || {
        let status = host.status();
        let is_guarded = status["guard"]["uplinks"][0]["is_guarded"] == true;
        is_guarded.then_some(())
    };
    eventually("everything is followed", SOON, is_followed);
    another_slot(&host, former_slot);
    assert_eq!(late.get(INSTANCE_ID).text(), web.id());
    assert_eq!(uplink.packets(), 0);
    assert_eq!(db.get(INSTANCE_ID).text(), db.id());
}

/// While the old interface's number is another's, and the daemon cannot know yet, that one is under the guard like any
/// stranger.
#[test]
fn a_late_interface_is_guarded_while_the_daemon_does_not_know() {
    let Some(mut host) = Host::new() else { return };
    let uplink: Uplink = host.uplink("up0");
    let web = host.guest("web").routed("10.0.0.10").up();
    let daemon = host.start();
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    let number = host.namespace().index("veth-web");
    daemon.pause();
    host.namespace().ip("link delete veth-web");
    let late = heir(&mut host, "web", number);
    host.namespace().ip("route add 10.0.0.10/32 dev veth-web");
    check_unknown(&late);
    daemon.resume();
    assert_eq!(uplink.packets(), 0, "{STAND_IN_ANSWER}");
}
