//! Whatever the way between guest and host is, the service answers over it.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use imds_tests::{
    Address, Arp, Connection, Guest, GuestBuilder, Host, INSTANCE_ID, Segment, TcpFrame, parse_arp,
    parse_tcp,
};

const USER_DATA: &str = "/latest/user-data";

#[test]
fn ipv6_works_by_a_gateway_on_link_and_behind_a_bridge() {
    let Some(mut host) = Host::new() else { return };
    let guests = [
        host.guest("routed")
            .routed("10.0.0.10")
            .ipv6("fd00:1::10")
            .up(),
        host.guest("onlink")
            .on_link("10.0.0.10")
            .ipv6("fd00:1::10")
            .up(),
        host.guest("bridged")
            .bridged("br0", "10.0.0.10")
            .ipv6("fd00:1::10")
            .up(),
    ];
    let _daemon = host.start();
    for guest in &guests {
        assert_eq!(
            guest.get_from(Address::V6, INSTANCE_ID).text(),
            guest.id(),
            "{}",
            guest.name()
        );
        assert_eq!(
            guest.get(INSTANCE_ID).text(),
            guest.id(),
            "{}",
            guest.name()
        );
    }
}

#[test]
fn a_guest_with_a_link_local_address_alone_is_answered_over_ipv6() {
    let Some(mut host) = Host::new() else { return };
    let guest = host
        .guest("bare")
        .on_link_without_address()
        .ipv6_enabled()
        .up();
    let _daemon = host.start();
    let mut connection = guest.connect_to(Address::V6);
    let IpAddr::V6(own) = connection.local().ip() else {
        panic!("{:?} is not IPv6", connection.local())
    };
    assert!(own.is_unicast_link_local(), "{own}");
    assert_eq!(connection.get(INSTANCE_ID, &[]).text(), guest.id());
}

#[test]
fn ipv6_is_closed_unless_enabled() {
    let Some(mut host) = Host::new() else { return };
    let guest = host
        .guest("web")
        .routed("10.0.0.10")
        .ipv6("fd00:1::10")
        .option("http-protocol-ipv6", "\"disabled\"")
        .up();
    let _daemon = host.start();
    assert_eq!(guest.get(INSTANCE_ID).text(), guest.id());
    let connection = guest
        .namespace()
        .enter(|| Connection::open_within(Address::V6, Duration::from_millis(1500)));
    let answer = connection.and_then(|mut connection| connection.exchange("GET", INSTANCE_ID, &[]));
    assert!(answer.as_ref().is_err(), "{answer:?}");
}

#[test]
fn any_address_of_a_guest_is_answered() {
    let Some(mut host) = Host::new() else { return };
    let addresses = [
        "10.0.0.10",
        "10.255.255.254",
        "100.64.0.7",
        "126.255.255.254",
        "128.0.0.1",
        "169.254.1.2",
        "169.254.169.253",
        "172.17.0.2",
        "192.168.0.1",
        "223.255.255.254",
        "240.0.0.5",
        "255.255.255.254",
        "1.0.0.1",
    ];
    let guests: Vec<Guest> = addresses
        .iter()
        .enumerate()
        .map(|(n, ip)| host.guest(&format!("g{n}")).routed(ip).up())
        .collect();
    let _daemon = host.start();
    for (guest, address) in guests.iter().zip(addresses) {
        let mut connection = guest
            .try_connect(Address::V4)
            .unwrap_or_else(|error| panic!("from {address}: {error}"));
        assert_eq!(connection.local().ip().to_string(), address);
        assert_eq!(
            connection.get(INSTANCE_ID, &[]).text(),
            guest.id(),
            "{address}"
        );
    }
}

#[test]
fn a_loopback_address_on_the_wire_is_dropped_and_counted() {
    let Some(mut host) = Host::new() else { return };
    let tap = host.guest("raw").tap();
    let _daemon = host.start();
    for last in [1, 5] {
        let from = Ipv4Addr::new(127, 0, 0, last);
        tap.send(&TcpFrame::syn(tap.mac(), tap.port_mac(), from.into(), 40_000).bytes());
    }
    assert_eq!(tap.receive(Duration::from_millis(300), parse_tcp), None);
    assert_eq!(host.counter("bad-source"), 2);
}

#[test]
fn a_host_that_filters_by_reverse_path_serves_its_guests() {
    let Some(mut host) = Host::new() else { return };
    host.filter_reverse_path();
    let guests = [
        host.guest("web").routed("10.0.0.10").up(),
        host.guest("db").routed("10.0.0.10").up(),
        host.guest("legacy").bridged("br0", "10.0.1.10").up(),
        host.guest("link").on_link("10.0.0.10").up(),
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
fn sixteen_kilobytes_of_user_data_arrive_at_mtu_576() {
    check_user_data(576, &[Address::V4]);
}

#[test]
fn sixteen_kilobytes_of_user_data_arrive_at_mtu_1280() {
    check_user_data(1280, &[Address::V4, Address::V6]);
}

#[test]
fn sixteen_kilobytes_of_user_data_arrive_at_mtu_1500() {
    check_user_data(1500, &[Address::V4, Address::V6]);
}

#[test]
fn sixteen_kilobytes_of_user_data_arrive_at_mtu_9000() {
    check_user_data(9000, &[Address::V4, Address::V6]);
}

fn check_user_data(mtu: u32, addresses: &[Address]) {
    let Some(mut host) = Host::new() else { return };
    let data = bytes_of_16_kib();
    let wide = mtu >= 1280;
    let dress = |guest: GuestBuilder<'_>, ipv6: &str| {
        let guest = guest.mtu(mtu).user_data(&data);
        if wide {
            guest.ipv6(ipv6).up()
        } else {
            guest.up()
        }
    };
    let guests = [
        dress(host.guest("routed").routed("10.0.0.10"), "fd00:1::10"),
        dress(host.guest("onlink").on_link("10.0.0.10"), "fd00:1::10"),
        dress(
            host.guest("bridged").bridged("br0", "10.0.0.10"),
            "fd00:1::10",
        ),
    ];
    let _daemon = host.start();
    for guest in &guests {
        for address in addresses {
            let response = guest.get_from(*address, USER_DATA);
            assert_eq!(response.status(), 200, "{} {address:?}", guest.name());
            assert!(
                response.body == data,
                "{} {address:?}: other bytes than were configured",
                guest.name()
            );
        }
    }
}

/// Every byte value, without a short period, so that a lost or repeated segment shows.
fn bytes_of_16_kib() -> Vec<u8> {
    (0..16_384_u32)
        .map(|n| (n.wrapping_mul(0x9e37_79b1) >> 23) as u8)
        .collect()
}

#[test]
fn a_request_of_many_segments_is_read_whole() {
    let Some(mut host) = Host::new() else { return };
    let guests: Vec<Guest> = [576, 1500, 9000]
        .map(|mtu| {
            host.guest(&format!("m{mtu}"))
                .routed("10.0.0.10")
                .mtu(mtu)
                .up()
        })
        .into();
    let _daemon = host.start();
    // A little under the bound of a request's head, which is 16 KiB.
    let padding = "x".repeat(16_000);
    for guest in &guests {
        let mut connection = guest.connect();
        for _ in 0..3 {
            assert_eq!(
                connection
                    .get(INSTANCE_ID, &[("X-Padding", &padding)])
                    .text(),
                guest.id(),
                "{}",
                guest.name()
            );
        }
    }
}

/// The guest and the machine two hops behind it have 1500 bytes, the cable between them 1280, so that neither end's
/// segment size tells: only the loss of full packets does.
#[test]
fn an_answer_passes_a_narrow_hop_behind_a_forwarding_guest() {
    let Some(mut host) = Host::new() else { return };
    let data = bytes_of_16_kib();
    let web = host.guest("web").routed("10.0.0.10").user_data(&data).up();
    let router = web.behind("router", "172.17.0.2", 1280);
    let pod = router.behind("pod", "172.18.0.2", 1500);
    web.namespace().ip("route add 172.18.0.0/24 via 172.17.0.2");
    let _daemon = host.start();
    assert_eq!(pod.get(INSTANCE_ID).text(), web.id());
    let response = pod.get(USER_DATA);
    assert!(
        response.body == data,
        "status {} and {} bytes",
        response.status(),
        response.body.len()
    );
}

#[test]
fn an_answer_passes_a_narrow_hop_behind_a_forwarding_guest_over_ipv6() {
    let Some(mut host) = Host::new() else { return };
    let data = bytes_of_16_kib();
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .ipv6("fd00:1::10")
        .user_data(&data)
        .up();
    let router = web.behind("router", "172.17.0.2", 1280);
    let pod = router.behind("pod", "172.18.0.2", 1500);
    web.forward_ipv6_to(&router, "router", "fd00:17");
    router.forward_ipv6_to(&pod, "pod", "fd00:18");
    web.namespace().ip("route add fd00:18::/64 via fd00:17::2");
    let _daemon = host.start();
    let response = pod.get_from(Address::V6, USER_DATA);
    assert!(
        response.body == data,
        "status {} and {} bytes",
        response.status(),
        response.body.len()
    );
}

#[test]
fn a_tagged_guest_is_answered_under_its_tag() {
    let Some(mut host) = Host::new() else { return };
    let tap = host.guest("raw").ipv6_enabled().tap();
    let _daemon = host.start();
    for (tag, port) in [(Some(7), 40_007), (Some(4094), 40_094), (None, 40_000)] {
        for (from, port) in [("10.0.0.10", port), ("fd00:1::10", port + 1000)] {
            let from: IpAddr = from.parse().expect("an address");
            let mut syn = TcpFrame::syn(tap.mac(), tap.port_mac(), from, port);
            syn.vlan = tag;
            let request = format!("GET {INSTANCE_ID} HTTP/1.1\r\nHost: x\r\n\r\n");
            let segments = tap.fetch(&syn, request.as_bytes());
            assert!(
                segments.iter().all(|segment| segment.vlan == tag),
                "{tag:?}: {segments:?}"
            );
            assert!(text_of(segments).ends_with(tap.id()), "{tag:?} {from}");
        }
    }
}

fn text_of(segments: Vec<Segment>) -> String {
    let bytes: Vec<u8> = segments
        .into_iter()
        .flat_map(|segment| segment.payload)
        .collect();
    String::from_utf8(bytes).expect("the answer is text")
}

#[test]
fn a_question_for_the_hardware_address_is_answered_under_its_tag() {
    let Some(mut host) = Host::new() else { return };
    let tap = host.guest("raw").tap();
    let _daemon = host.start();
    let (guest, service) = (
        Ipv4Addr::new(10, 0, 0, 10),
        Ipv4Addr::new(169, 254, 169, 254),
    );
    for vlan in [None, Some(7), Some(4094)] {
        let question = Arp {
            destination_mac: [0xff; 6],
            vlan,
            operation: 1,
            sender: (tap.mac(), guest),
            target: ([0; 6], service),
        };
        tap.send(&question.bytes());
        let answer = tap
            .receive(Duration::from_secs(5), parse_arp)
            .unwrap_or_else(|| panic!("no answer under {vlan:?}"));
        let speaker = answer.sender.0;
        let expected = Arp {
            destination_mac: tap.mac(),
            vlan,
            operation: 2,
            sender: (speaker, service),
            target: (tap.mac(), guest),
        };
        assert_eq!(answer, expected);
        assert_eq!(speaker[0] & 1, 0, "{speaker:02x?} is no station's address");
    }
}

#[test]
fn a_question_for_another_hardware_address_is_the_hosts_business() {
    let Some(mut host) = Host::new() else { return };
    let tap = host.guest("raw").tap();
    host.namespace().ip("address add 10.0.0.1/24 dev tap-raw");
    let _daemon = host.start();
    let (guest, gateway) = (Ipv4Addr::new(10, 0, 0, 10), Ipv4Addr::new(10, 0, 0, 1));
    let question = Arp {
        destination_mac: [0xff; 6],
        vlan: None,
        operation: 1,
        sender: (tap.mac(), guest),
        target: ([0; 6], gateway),
    };
    tap.send(&question.bytes());
    let answer = tap
        .receive(Duration::from_secs(5), parse_arp)
        .expect("the host answers for itself");
    assert_eq!(answer.sender, (tap.port_mac(), gateway));
}

#[test]
fn traffic_that_is_not_for_the_service_passes_untouched() {
    let Some(mut host) = Host::new() else { return };
    let one = host.guest("one").bridged("br0", "10.0.0.10").up();
    let two = host.guest("two").bridged("br0", "10.0.0.11").up();
    let _daemon = host.start();
    assert_eq!(one.get(INSTANCE_ID).text(), one.id());
    let listener = two
        .namespace()
        .enter(|| std::net::TcpListener::bind("0.0.0.0:80"))
        .expect("a listener");
    let to = Address::Other("10.0.0.11:80".parse().expect("an address"));
    drop(one.connect_to(to));
    let (_stream, from) = listener
        .accept()
        .expect("a guest reaches its neighbour on the bridge");
    assert_eq!(from.ip(), IpAddr::V4(Ipv4Addr::new(10, 0, 0, 10)));
}
