//! A token travels as many hops as the instance allows, and no trick with the connection makes it travel further.

use std::time::Duration;

use imds_tests::{Address, Connection, Guest, Host, INSTANCE_ID, TOKEN, TOKEN_FIELD, TTL_FIELD};

/// Time for several retransmissions (the first comes after 200 ms, each next one after twice as long).
const SEVERAL_RETRANSMISSIONS: Duration = Duration::from_millis(2500);

/// What every token begins with.
const TOKEN_BEGINS: &[u8] = b"AQAE";

/// A guest with a hop limit and a container behind it.
fn guest_and_container(host: &mut Host, hops: u8) -> (Guest, Guest) {
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .ipv6("fd00:1::10")
        .hop_limit(hops)
        .up();
    let pod = web.behind("pod", "172.17.0.2", 1500);
    web.forward_ipv6_to(&pod, "pod", "fd00:17");
    (web, pod)
}

fn put(keep_alive: bool) -> Vec<u8> {
    request(
        &format!("PUT {TOKEN}"),
        &format!("{TTL_FIELD}: 60"),
        keep_alive,
    )
}

fn get(keep_alive: bool) -> Vec<u8> {
    request(&format!("GET {INSTANCE_ID}"), "X: y", keep_alive)
}

fn request(line: &str, field: &str, keep_alive: bool) -> Vec<u8> {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    format!(
        "{line} HTTP/1.1\r\nHost: 169.254.169.254\r\n{field}\r\nConnection: {connection}\r\n\r\n"
    )
    .into_bytes()
}

/// Reads for a while and makes sure that nothing of a token came.
fn check_no_token(connection: &mut Connection) -> Vec<u8> {
    let (bytes, _) = connection.receive_raw(SEVERAL_RETRANSMISSIONS);
    let found = bytes
        .windows(TOKEN_BEGINS.len())
        .any(|window| window == TOKEN_BEGINS);
    assert!(
        !found,
        "a token came through: {}",
        String::from_utf8_lossy(&bytes)
    );
    bytes
}

#[test]
fn with_a_limit_of_one_the_guest_gets_a_token_and_its_container_none() {
    let Some(mut host) = Host::new() else { return };
    let (web, pod) = guest_and_container(&mut host, 1);
    let _daemon = host.start();
    for address in [Address::V4, Address::V6] {
        assert_eq!(web.connect_to(address).put_token(60).len(), 56);
        let mut connection = pod.connect_to(address);
        connection.send(&put(false)).expect("the request goes out");
        assert_eq!(check_no_token(&mut connection), b"", "{address:?}");
    }
}

#[test]
fn with_a_limit_of_two_the_container_gets_a_token() {
    let Some(mut host) = Host::new() else { return };
    let (web, pod) = guest_and_container(&mut host, 2);
    let _daemon = host.start();
    for address in [Address::V4, Address::V6] {
        let token = pod.connect_to(address).put_token(60);
        assert_eq!(
            web.get_with_token(INSTANCE_ID, &token).text(),
            web.id(),
            "{address:?}"
        );
    }
}

#[test]
fn with_a_limit_of_two_a_token_stops_at_the_second_hop() {
    let Some(mut host) = Host::new() else { return };
    let (web, pod) = guest_and_container(&mut host, 2);
    let inner = pod.behind("inner", "172.18.0.2", 1500);
    web.namespace().ip("route add 172.18.0.0/24 via 172.17.0.2");
    let _daemon = host.start();
    assert_eq!(inner.get(INSTANCE_ID).text(), web.id());
    let mut connection = inner.connect();
    connection.send(&put(false)).expect("the request goes out");
    assert_eq!(check_no_token(&mut connection), b"");
}

#[test]
fn a_token_of_the_guest_opens_the_service_to_its_container() {
    let Some(mut host) = Host::new() else { return };
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .hop_limit(1)
        .tokens_required()
        .up();
    let pod = web.behind("pod", "172.17.0.2", 1500);
    let _daemon = host.start();
    let token = web.put_token(60);
    let mut connection = pod.connect();
    for _ in 0..3 {
        assert_eq!(
            connection.get(INSTANCE_ID, &[(TOKEN_FIELD, &token)]).text(),
            web.id()
        );
    }
}

#[test]
fn a_get_pipelined_behind_a_put_carries_no_token_through() {
    let Some(mut host) = Host::new() else { return };
    let (_web, pod) = guest_and_container(&mut host, 1);
    let _daemon = host.start();
    for address in [Address::V4, Address::V6] {
        let mut connection = pod.connect_to(address);
        let both = [put(true), get(true)].concat();
        connection.send(&both).expect("the requests go out");
        check_no_token(&mut connection);
    }
}

#[test]
fn a_put_behind_a_get_on_one_connection_carries_no_token_through() {
    let Some(mut host) = Host::new() else { return };
    let (web, pod) = guest_and_container(&mut host, 1);
    let _daemon = host.start();
    for address in [Address::V4, Address::V6] {
        let mut connection = pod.connect_to(address);
        assert_eq!(connection.get(INSTANCE_ID, &[]).text(), web.id());
        connection.send(&put(true)).expect("the request goes out");
        check_no_token(&mut connection);
    }
}

#[test]
fn a_get_sent_after_a_put_on_one_connection_carries_no_token_through() {
    let Some(mut host) = Host::new() else { return };
    let (_web, pod) = guest_and_container(&mut host, 1);
    let _daemon = host.start();
    let mut connection = pod.connect();
    connection.send(&put(true)).expect("the request goes out");
    let (early, _) = connection.receive_raw(Duration::from_millis(300));
    assert_eq!(early, b"");
    // The lost answer is sent again beside the answers to these.
    for _ in 0..3 {
        connection.send(&get(true)).expect("the request goes out");
    }
    check_no_token(&mut connection);
}

#[test]
fn the_guest_itself_goes_on_with_a_connection_on_which_it_got_a_token() {
    let Some(mut host) = Host::new() else { return };
    let (web, _pod) = guest_and_container(&mut host, 1);
    let _daemon = host.start();
    for address in [Address::V4, Address::V6] {
        let mut connection = web.connect_to(address);
        let token = connection.put_token(60);
        for _ in 0..3 {
            assert_eq!(
                connection.get(INSTANCE_ID, &[(TOKEN_FIELD, &token)]).text(),
                web.id()
            );
        }
    }
}
