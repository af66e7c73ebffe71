//! The host's own metadata service is the host's: no guest reaches it through the host, whether it is served, not yet or
//! not at all. A stand-in at the end of an uplink counts what comes there.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use imds_tests::{
    Address, Connection, Guest, Host, INSTANCE_ID, STAND_IN_ANSWER, TcpFrame, Uplink, eventually,
    has_command,
};
use serde_json::Value;

/// Long enough for a SYN to be sent again, so that silence is an answer.
const SILENCE: Duration = Duration::from_millis(1500);
/// How soon a change of routes or interfaces is followed.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(5);

const BOTH: [Address; 2] = [Address::V4, Address::V6];

/// A guest that nobody registered, whose packets the host forwards, and to which it knows the way back.
fn stranger(host: &mut Host, name: &str, number: u8) -> Guest {
    let (v4, v6) = (format!("10.0.0.{number}"), format!("fd00:1::{number}"));
    let guest = host.guest(name).routed(&v4).ipv6(&v6).unregistered().up();
    let port = guest.port();
    let mac = guest.namespace().mac("eth0");
    host.namespace().ip(&format!(
        "route add {v4}/32 dev {port}\n\
         route add {v6}/128 dev {port}\n\
         neighbour add {v6} lladdr {mac} dev {port} nud permanent"
    ));
    guest
}

fn try_within(guest: &Guest, to: Address) -> io::Result<Connection> {
    guest
        .namespace()
        .enter(|| Connection::open_within(to, SILENCE))
}

/// The guest's call comes to nothing, and the stand-in never hears of it.
fn check_kept_out(guest: &Guest, uplinks: &[&Uplink]) {
    let before: Vec<u64> = uplinks.iter().map(|uplink| uplink.packets()).collect();
    for address in BOTH {
        let connected = try_within(guest, address);
        assert!(connected.is_err(), "{} reached {address:?}", guest.name());
    }
    let after: Vec<u64> = uplinks.iter().map(|uplink| uplink.packets()).collect();
    assert_eq!(after, before, "packets of {} at the stand-in", guest.name());
}

fn check_host_reaches(host: &Host, uplink: &Uplink) {
    let before = uplink.answers();
    for address in BOTH {
        let answer = host.namespace().enter(|| {
            let mut connection = Connection::open(address).expect("the host's own way is open");
            connection.get("/latest/meta-data/", &[])
        });
        assert_eq!(answer.text(), STAND_IN_ANSWER, "{address:?}");
    }
    assert_eq!(uplink.answers(), before + 2);
}

fn guarded_uplinks(host: &Host) -> Vec<String> {
    let status = host.status();
    let uplinks = status["guard"]["uplinks"].as_array().expect("a list");
    let on = uplinks.iter().filter(|uplink| uplink["is_guarded"] == true);
    on.filter_map(|uplink| Some(uplink["interface"].as_str()?.to_owned()))
        .collect()
}

fn await_guarded(host: &Host, interface: &str) {
    let is_guarded = || {
        guarded_uplinks(host)
            .contains(&interface.to_owned())
            .then_some(())
    };
    eventually(
        &format!("{interface} is guarded"),
        FOLLOWED_WITHIN,
        is_guarded,
    );
}

/// That the tests here could fail: without the guard a stranger is answered by the stand-in.
#[test]
fn without_the_guard_a_stranger_reaches_the_stand_in_and_the_operator_is_warned() {
    let Some(mut host) = Host::new() else { return };
    let uplink = host.uplink("up0");
    let stranger = stranger(&mut host, "stranger", 20);
    host.host_keys("guard = false");
    let daemon = host.start();
    for address in BOTH {
        let mut connection = stranger.connect_to(address);
        let answer = connection.get("/latest/meta-data/", &[]);
        assert_eq!(answer.text(), STAND_IN_ANSWER, "{address:?}");
    }
    assert!(uplink.packets() > 0 && uplink.answers() == 2);
    let log = daemon.log();
    assert!(
        log.contains("WARN") && log.contains("guard = false"),
        "{log}"
    );
    let state_dir = host.state_dir();
    let status = host.imds(&["status", "--state-dir", state_dir.to_str().expect("text")]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("Guard      off"), "{status}");
}

#[test]
fn a_stranger_never_reaches_the_hosts_service_while_the_host_does() {
    let Some(mut host) = Host::new() else { return };
    let uplink = host.uplink("up0");
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .ipv6("fd00:1::10")
        .up();
    let stranger = stranger(&mut host, "stranger", 20);
    let _daemon = host.start();
    for _ in 0..3 {
        check_kept_out(&stranger, &[&uplink]);
        check_host_reaches(&host, &uplink);
        for address in BOTH {
            assert_eq!(web.get_from(address, INSTANCE_ID).text(), web.id());
        }
    }
    // What the stranger sends to others is nobody's business.
    let elsewhere = Address::Other((IpAddr::V4(uplink.gateway()), 80).into());
    let refused = try_within(&stranger, elsewhere)
        .err()
        .map(|error| error.kind());
    assert_eq!(refused, Some(io::ErrorKind::ConnectionRefused));
}

#[test]
fn what_was_dropped_is_counted_by_the_interface_that_it_came_in_by() {
    let Some(mut host) = Host::new() else { return };
    let uplink = host.uplink("up0");
    let one = stranger(&mut host, "one", 20);
    let two = stranger(&mut host, "two", 21);
    let _daemon = host.start();
    check_kept_out(&one, &[&uplink]);
    check_kept_out(&two, &[&uplink]);
    check_host_reaches(&host, &uplink);
    let status = host.status();
    let dropped = &status["guard"]["dropped"];
    let of = |guest: &Guest| dropped[guest.port()].as_u64().unwrap_or_default();
    // Each tried both addresses at least once.
    assert!(of(&one) >= 2 && of(&two) >= 2, "{dropped}");
    assert_eq!(host.counter("guarded"), of(&one) + of(&two));
    assert_eq!(dropped.as_object().map(serde_json::Map::len), Some(2));

    let state_dir = host.state_dir();
    let table = host.imds(&["status", "--state-dir", state_dir.to_str().expect("text")]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    let line = format!("Guard      on up0, dropped from veth-one {}", of(&one));
    assert!(table.contains(&line), "{line:?} is missing in\n{table}");

    // The number of an interface that is gone may come again with another one.
    host.namespace().ip("link delete veth-one");
    let is_forgotten = || {
        let status = host.status();
        let dropped = status["guard"]["dropped"].as_object()?.clone();
        (dropped.len() == 1).then_some(())
    };
    eventually(
        "the gone interface is forgotten",
        FOLLOWED_WITHIN,
        is_forgotten,
    );
}

#[test]
fn a_guest_is_kept_out_before_its_port_is_attached_and_served_after() {
    let Some(mut host) = Host::new() else { return };
    let uplink = host.uplink("up0");
    let mut daemon = host.start();
    let late = host
        .guest("late")
        .routed("10.0.0.10")
        .ipv6("fd00:1::10")
        .up();
    check_kept_out(&late, &[&uplink]);
    host.write_config();
    daemon.reload();
    for address in BOTH {
        assert_eq!(late.get_from(address, INSTANCE_ID).text(), late.id());
    }
    assert_eq!(uplink.packets(), 0);
}

#[test]
fn an_uplink_that_appears_later_is_guarded() {
    let Some(mut host) = Host::new() else { return };
    let stranger = stranger(&mut host, "stranger", 20);
    let _daemon = host.start();
    assert_eq!(guarded_uplinks(&host), Vec::<String>::new());
    let uplink = host.uplink("up0");
    await_guarded(&host, "up0");
    check_kept_out(&stranger, &[&uplink]);
    check_host_reaches(&host, &uplink);
}

#[test]
fn the_default_route_is_followed_to_another_interface() {
    let Some(mut host) = Host::new() else { return };
    let first = host.uplink("up0");
    let second = host.uplink_without_route("up1");
    let stranger = stranger(&mut host, "stranger", 20);
    let _daemon = host.start();
    assert_eq!(guarded_uplinks(&host), ["up0"]);
    check_kept_out(&stranger, &[&first, &second]);
    second.take_default_routes(host.namespace());
    await_guarded(&host, "up1");
    check_kept_out(&stranger, &[&first, &second]);
    check_host_reaches(&host, &second);
    first.take_default_routes(host.namespace());
    check_kept_out(&stranger, &[&first, &second]);
}

/// By a rule of policy a guest's packets take a table that the main one knows nothing of.
#[test]
fn uplinks_of_every_routing_table_are_guarded() {
    let Some(mut host) = Host::new() else { return };
    let first = host.uplink("up0");
    let second = host.uplink_without_route("up1");
    let stranger = stranger(&mut host, "stranger", 20);
    let port = stranger.port().to_owned();
    host.namespace().ip(&format!(
        "route add default via {} table 77\nrule add iif {port} table 77\n\
         route add ::/0 via {} table 77\nrule add from ::/0 iif {port} table 77",
        second.gateway(),
        second.gateway_v6()
    ));
    let _daemon = host.start();
    check_kept_out(&stranger, &[&first, &second]);
    check_host_reaches(&host, &first);
}

/// A bridge hands frames from port to port, where no route of the host has a say.
#[test]
fn a_stranger_on_the_uplinks_bridge_is_kept_out() {
    let Some(mut host) = Host::new() else { return };
    let uplink = host.uplink_on_bridge("br0", "up0");
    let gateway = uplink.gateway();
    let stranger = host
        .guest("stranger")
        .bridged("br0", "10.0.0.20")
        .unregistered()
        .up();
    let web = host.guest("web").bridged("br0", "10.0.0.10").up();
    for guest in [&stranger, &web] {
        guest.namespace().ip(&format!(
            "route add {gateway}/32 dev eth0\nroute add 169.254.169.254/32 via {gateway} dev eth0"
        ));
    }
    uplink.namespace().ip("route add 10.0.0.0/24 dev eth0");
    let _daemon = host.start();
    let before = uplink.packets();
    assert!(try_within(&stranger, Address::V4).is_err());
    assert_eq!(uplink.packets(), before);
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    assert_eq!(uplink.packets(), before);
    check_host_reaches(&host, &uplink);
    let dropped = host.status()["guard"]["dropped"].clone();
    assert!(dropped[stranger.port()].as_u64() > Some(0), "{dropped}");
    // Everything else passes the bridge as ever.
    let elsewhere = Address::Other((IpAddr::V4(gateway), 80).into());
    let refused = try_within(&stranger, elsewhere)
        .err()
        .map(|error| error.kind());
    assert_eq!(refused, Some(io::ErrorKind::ConnectionRefused));
}

#[test]
fn frames_of_every_form_are_kept_in() {
    let Some(mut host) = Host::new() else { return };
    let uplink = host.uplink("up0");
    let tap = host.guest("odd").unregistered().tap();
    let _daemon = host.start();
    // So that the host need not ask who its next hop is, which would lose the first packets of an unguarded one, too.
    let (gateway, mac) = (uplink.gateway(), uplink.namespace().mac("eth0"));
    host.namespace().ip(&format!(
        "neighbour replace {gateway} lladdr {mac} dev up0 nud permanent"
    ));
    let plain = TcpFrame::syn(
        tap.mac(),
        tap.port_mac(),
        Ipv4Addr::new(10, 0, 0, 30).into(),
        40_000,
    );
    let mut forms = vec![("a SYN", plain.bytes())];
    let v6 = TcpFrame::syn(
        tap.mac(),
        tap.port_mac(),
        "fd00:1::30".parse().expect("an address"),
        40_000,
    );
    forms.push(("a SYN over IPv6", v6.bytes()));
    forms.push((
        "a first fragment",
        with_ipv4(&plain.bytes(), |ip| ip[6] = 0x20),
    ));
    forms.push(("a last fragment", with_ipv4(&plain.bytes(), |ip| ip[7] = 9)));
    forms.push(("UDP", with_ipv4(&plain.bytes(), |ip| ip[9] = 17)));
    forms.push(("ICMP", with_ipv4(&plain.bytes(), |ip| ip[9] = 1)));
    forms.push((
        "a protocol of no name",
        with_ipv4(&plain.bytes(), |ip| ip[9] = 253),
    ));
    forms.push(("IPv4 with options", with_options(&plain.bytes())));
    for (number, (what, frame)) in forms.iter().enumerate() {
        tap.send(frame);
        let counted = || (host.counter("guarded") > number as u64).then_some(());
        eventually(what, Duration::from_secs(5), counted);
        assert_eq!(uplink.packets(), 0, "{what} reached the stand-in");
    }
    assert_eq!(host.counter("guarded"), forms.len() as u64);
    let dropped = host.status()["guard"]["dropped"]["tap-odd"].as_u64();
    assert_eq!(dropped, Some(forms.len() as u64));
}

/// Received by the bridge, as far as routing is concerned.
#[test]
fn a_stranger_behind_a_bridge_of_the_host_is_kept_out() {
    let Some(mut host) = Host::new() else { return };
    let uplink = host.uplink("up0");
    let stranger = host
        .guest("stranger")
        .bridged("br0", "10.0.0.20")
        .ipv6("fd00:1::20")
        .unregistered()
        .up();
    let _daemon = host.start();
    check_kept_out(&stranger, &[&uplink]);
    let dropped = host.status()["guard"]["dropped"].clone();
    assert!(dropped["br0"].as_u64() >= Some(2), "{dropped}");
    check_host_reaches(&host, &uplink);
}

/// The frame with another IPv4 header, whose checksum is right again.
fn with_ipv4(frame: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut frame = frame.to_vec();
    change(&mut frame[14..34]);
    mend_checksum(&mut frame, 20);
    frame
}

/// The frame with four bytes of options, "no operation" each.
fn with_options(frame: &[u8]) -> Vec<u8> {
    let mut longer = [&frame[..34], &[1; 4], &frame[34..]].concat();
    longer[14] = 0x46;
    let total = u16::from_be_bytes([longer[16], longer[17]]) + 4;
    longer[16..18].copy_from_slice(&total.to_be_bytes());
    mend_checksum(&mut longer, 24);
    longer
}

fn mend_checksum(frame: &mut [u8], header_bytes: usize) {
    frame[24..26].fill(0);
    let words = frame[14..14 + header_bytes].chunks_exact(2);
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded twice");
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
}

/// A device without Ethernet, as of a VPN: its packets begin with the IP header.
#[test]
fn an_uplink_without_ethernet_is_guarded() {
    let Some(mut host) = Host::new() else { return };
    let tun = host.tun_uplink("tun0");
    let stranger = stranger(&mut host, "stranger", 20);
    let _daemon = host.start();
    assert_eq!(guarded_uplinks(&host), ["tun0"]);
    for address in BOTH {
        assert!(try_within(&stranger, address).is_err());
        let elsewhere = match address {
            Address::V4 => "203.0.113.7:80",
            _ => "[2001:db8:7::7]:80",
        };
        let elsewhere = Address::Other(elsewhere.parse().expect("an address"));
        assert!(try_within(&stranger, elsewhere).is_err(), "nobody is there");
    }
    // The host's own calls leave by it, a stranger's do not; what is for others leaves, whoever sends it.
    let own = host
        .namespace()
        .enter(|| Connection::open_within(Address::V4, SILENCE));
    assert!(own.is_err(), "nobody is there");
    let mut seen = (0, 0, 0);
    let is_last = |packet: &[u8]| {
        let (source, destination) = match packet[0] >> 4 {
            4 => (packet[12..16].to_vec(), packet[16..20].to_vec()),
            _ => (packet[8..24].to_vec(), packet[24..40].to_vec()),
        };
        let is_strangers = source == [10, 0, 0, 20] || source.ends_with(&[0, 0x20]);
        let is_for_metadata =
            destination == [169, 254, 169, 254] || destination.starts_with(&[0xfd, 0, 0x0e, 0xc2]);
        match (is_strangers, is_for_metadata) {
            (true, true) => seen.0 += 1,
            (true, false) => seen.1 += 1,
            (false, true) => seen.2 += 1,
            (false, false) => {}
        }
        None::<()>
    };
    tun.receive(Duration::from_millis(200), is_last);
    let (strangers, elsewhere, own) = seen;
    assert_eq!(strangers, 0, "a stranger's packets left by the tunnel");
    assert!(elsewhere >= 2 && own >= 1, "{seen:?}");
    assert!(host.counter("guarded") >= 2);
}

/// The operator knows better: only what is named is guarded, also when it comes later.
#[test]
fn named_uplinks_are_guarded_and_no_others() {
    let Some(mut host) = Host::new() else { return };
    let named = host.uplink_without_route("up0");
    let _other = host.uplink("up1");
    host.host_keys("uplinks = [\"up0\", \"up9\"]");
    let daemon = host.start();
    assert_eq!(guarded_uplinks(&host), ["up0"]);
    assert!(daemon.log().contains("up9"), "{}", daemon.log());
    let stranger = stranger(&mut host, "stranger", 20);
    named.take_default_routes(host.namespace());
    check_kept_out(&stranger, &[&named]);
    let late = host.uplink("up9");
    await_guarded(&host, "up9");
    check_kept_out(&stranger, &[&late]);
}

/// Translation leaves the destination as it is, or makes it the metadata address; both are seen as they leave.
#[test]
fn translation_opens_no_way() {
    if !has_command("nft") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let uplink = host.uplink("up0");
    let stranger = stranger(&mut host, "stranger", 20);
    host.namespace().batch(
        "nft",
        &["-f", "-"],
        "
table ip imds_test {
  chain pre { type nat hook prerouting priority dstnat; ip daddr 203.0.113.9 tcp dport 80 dnat to 169.254.169.254:80; }
  chain post { type nat hook postrouting priority srcnat; oifname up0 masquerade; }
}
",
    );
    let _daemon = host.start();
    check_kept_out(&stranger, &[&uplink]);
    let translated = Address::Other("203.0.113.9:80".parse().expect("an address"));
    assert!(try_within(&stranger, translated).is_err());
    assert_eq!(uplink.packets(), 0);
    check_host_reaches(&host, &uplink);
}

/// Another's filter on the uplink runs after the guard, and sees what the guard lets pass.
#[test]
fn the_guard_gets_along_with_another_filter_on_the_uplink() {
    if !has_command("tc") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let uplink = host.uplink("up0");
    let stranger = stranger(&mut host, "stranger", 20);
    let tc = |line: &str| {
        let words: Vec<String> = line.split(' ').map(|word| word.replace('_', " ")).collect();
        let argv: Vec<&str> = ["tc"]
            .into_iter()
            .chain(words.iter().map(String::as_str))
            .collect();
        let output = host.namespace().run(&argv);
        assert!(output.status.success(), "{line}: {output:?}");
        output
    };
    tc("qdisc add dev up0 clsact");
    // A classic program of one instruction that matches everything.
    tc("filter add dev up0 egress prio 7 protocol all bpf bytecode 1,6_0_0_4294967295 flowid 1:1");
    let daemon = host.start();
    check_kept_out(&stranger, &[&uplink]);
    check_host_reaches(&host, &uplink);
    let listed = tc("-s -j filter show dev up0 egress");
    let listed: Value = serde_json::from_slice(&listed.stdout).expect("tc prints JSON");
    let priorities: Vec<u64> = listed
        .as_array()
        .expect("a list")
        .iter()
        .filter(|filter| filter["options"].is_object())
        .filter_map(|filter| filter["pref"].as_u64())
        .collect();
    assert_eq!(priorities, [1, 7], "{listed}");
    drop(daemon);
}

/// A queue that has no way out would run the guard on the way in, where it says nothing about what leaves.
#[test]
fn an_uplink_that_cannot_be_guarded_is_told_of() {
    if !has_command("tc") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let _uplink = host.uplink("up0");
    let added = host
        .namespace()
        .run(&["tc", "qdisc", "add", "dev", "up0", "ingress"]);
    assert!(added.status.success(), "{added:?}");
    let daemon = host.start();
    assert_eq!(guarded_uplinks(&host), Vec::<String>::new());
    let status = host.status();
    let why_not = status["guard"]["uplinks"][0]["why_not"].to_string();
    assert!(
        why_not.contains("ingress") && why_not.contains("clsact"),
        "{status}"
    );
    assert!(daemon.log().contains("ERROR"), "{}", daemon.log());
    // Once it can be, it is.
    let removed = host
        .namespace()
        .run(&["tc", "qdisc", "delete", "dev", "up0", "ingress"]);
    assert!(removed.status.success(), "{removed:?}");
    host.namespace().ip("link set up0 alias changed");
    await_guarded(&host, "up0");
}
