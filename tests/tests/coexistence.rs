//! Others on the host: programs on the hooks that ours are on, firewalls with their rules, network cards of every make.
//! What is not ours goes on to them, and what they do disturbs nothing, as far as they pass packets on.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::time::Duration;

use imds_tests::{
    Docker, ForeignProgram, Guest, Host, INSTANCE_ID, Namespace, Segment, TC_ACT_OK, TC_ACT_UNSPEC,
    Tap, TcpFrame, has_command, skip,
};

/// Neither the service's nor anybody's: what goes there is none of our business.
const ELSEWHERE: &str = "192.0.2.1:9";
const PACKETS: u64 = 5;
const TCX_IS_MISSING: &str = "this kernel has no TCX (before 6.6)";

/// A guest that sends nothing by itself.
fn quiet_guest(host: &mut Host) -> Guest {
    let guest = host.guest("web").routed("10.0.0.10").up();
    let quiet = "net/ipv6/conf/all/disable_ipv6";
    guest.namespace().sysctl(quiet, "1");
    guest
}

fn check_served(guest: &Guest) {
    assert_eq!(guest.get(INSTANCE_ID).text(), guest.id());
}

/// Nothing of the service reaches the guest, and nothing hangs for longer than this.
fn check_unserved(guest: &Guest) {
    let asked = guest.namespace().enter(|| {
        imds_tests::Connection::open_within(imds_tests::Address::V4, Duration::from_millis(300))
    });
    assert!(asked.is_err(), "{} is served", guest.name());
}

/// How many packets a program saw while the guest did something.
fn seen(program: &ForeignProgram, act: impl FnOnce()) -> u64 {
    let before = program.count();
    act();
    program.count() - before
}

fn send_elsewhere(guest: &Guest) {
    guest.namespace().enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        for _ in 0..PACKETS {
            socket
                .send_to(b"x", ELSEWHERE)
                .expect("the guest has a route");
        }
    });
}

/// What was done to the way into a port, and is undone when this is dropped.
type Undo = Option<OwnedFd>;

/// Puts a program on the way into a port of the host.
type Attach = fn(&ForeignProgram, &Namespace, &str) -> Undo;

/// The program sees the guest's packets to others; those to the service only where it comes first. The guest is served
/// with it in place, by a daemon that comes afterwards and one that was there before.
fn check_beside(attach: Attach, is_first: [bool; 2]) {
    if !has_command("tc") {
        return;
    }
    for (daemon_comes_first, is_first) in [false, true].into_iter().zip(is_first) {
        let Some(mut host) = Host::new() else { return };
        let guest = quiet_guest(&mut host);
        let theirs = ForeignProgram::load(TC_ACT_UNSPEC);
        let attach = || attach(&theirs, host.namespace(), guest.port());
        let (_daemon, _undo) = if daemon_comes_first {
            let daemon = host.start();
            (daemon, attach())
        } else {
            let undo = attach();
            (host.start(), undo)
        };
        let what = format!("the daemon came first: {daemon_comes_first}");
        assert_eq!(seen(&theirs, || send_elsewhere(&guest)), PACKETS, "{what}");
        let of_service = seen(&theirs, || check_served(&guest));
        assert_eq!(of_service > 0, is_first, "{what}: {of_service} packets");
    }
}

#[test]
fn a_filter_at_a_later_priority_sees_what_is_not_ours() {
    check_beside(
        |program, host, port| {
            program.attach_filter(host, port, 10);
            None
        },
        [false, false],
    );
}

/// Of the same priority, the kernel runs first what was put there last.
#[test]
fn a_filter_at_our_own_priority_disturbs_nothing() {
    check_beside(
        |program, host, port| {
            program.attach_filter(host, port, 1);
            None
        },
        [false, true],
    );
}

#[test]
fn a_tcx_program_that_passes_on_disturbs_nothing() {
    if has_tcx() {
        check_beside(
            |program, host, port| program.attach_tcx(host, port),
            [true, true],
        );
    }
}

/// Who is asked first and passes a packet itself leaves us none. Then guests get no answer; the host's own metadata
/// service is guarded all the same, and `imds doctor` names the program.
#[test]
fn a_program_that_ends_the_chain_is_told_of() {
    if !has_command("tc") || !has_tcx() {
        return;
    }
    let attach: [(&str, Attach); 2] = [
        ("TCX", |program, host, port| program.attach_tcx(host, port)),
        ("filter", |program, host, port| {
            program.attach_filter(host, port, 1);
            None
        }),
    ];
    for (way, attach) in attach {
        let Some(mut host) = Host::new() else { return };
        let guest = quiet_guest(&mut host);
        let uplink = host.uplink("up0");
        let _daemon = host.start();
        check_served(&guest);
        let said = doctor(&host);
        assert!(said.contains("there are none"), "{said}");
        let theirs = ForeignProgram::load(TC_ACT_OK);
        let undo = attach(&theirs, host.namespace(), guest.port());
        check_unserved(&guest);
        assert!(theirs.count() > 0, "{way}: it was never asked");
        assert_eq!(uplink.packets(), 0, "{way}: packets left by the uplink");
        assert_eq!(uplink.answers(), 0, "{way}");
        let said = doctor(&host);
        let line = said.lines().find(|line| line.contains(way));
        assert!(
            line.is_some_and(|line| line.contains(guest.port())),
            "{way}: {said}"
        );
        if let Some(link) = undo {
            drop(link);
            check_served(&guest);
        }
    }
}

fn doctor(host: &Host) -> String {
    let output = host.imds(&["doctor"]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether this kernel has TCX; a skip if not.
fn has_tcx() -> bool {
    let Some(mut host) = Host::new() else {
        return false;
    };
    let guest = host.guest("probe").routed("10.0.0.10").up();
    let theirs = ForeignProgram::load(TC_ACT_UNSPEC);
    let has_it = theirs.attach_tcx(host.namespace(), guest.port()).is_some();
    if !has_it {
        skip(TCX_IS_MISSING);
    }
    has_it
}

// --- firewalls ---

/// Rules as the usual tools write them, before the daemon starts and after. Their interfaces are guests' here.
fn check_rules(rules: &str) {
    if !has_command("nft") {
        return;
    }
    let guests_of = |host: &mut Host| {
        [
            host.guest("routed")
                .routed("10.0.0.10")
                .ipv6("fd00:1::10")
                .up(),
            host.guest("virt").bridged("virbr0", "192.168.122.2").up(),
            host.guest("docker").bridged("docker0", "172.17.0.2").up(),
        ]
    };
    for rules_come_first in [true, false] {
        let Some(mut host) = Host::new() else { return };
        // Bridged packets go through the rules as well, where the kernel can do that.
        let guests = guests_of(&mut host);
        host.namespace().sysctl("net/ipv4/ip_forward", "1");
        let load = || host.namespace().batch("nft", &["-f", "-"], rules);
        if rules_come_first {
            load();
        }
        let _daemon = host.start();
        if !rules_come_first {
            guests.iter().for_each(check_served);
            load();
        }
        guests.iter().for_each(check_served);
    }
}

#[test]
fn the_rules_of_docker_disturb_nothing() {
    check_rules(include_str!("../fixtures/firewall/docker.nft"));
}

#[test]
fn the_rules_of_firewalld_disturb_nothing() {
    check_rules(include_str!("../fixtures/firewall/firewalld.nft"));
}

#[test]
fn the_rules_of_libvirt_disturb_nothing() {
    check_rules(include_str!("../fixtures/firewall/libvirt.nft"));
}

/// Docker itself on the host, with a container at whose port 80 it has the host's port 80 end.
#[test]
fn docker_itself_disturbs_nothing() {
    let Some(mut host) = Host::new() else { return };
    let guest = host.guest("web").routed("10.0.0.10").up();
    let Some(docker) = Docker::start(&host) else {
        return;
    };
    let _daemon = host.start();
    check_served(&guest);
    drop(docker.told("run --detach --name other --publish 80:80 busybox /bin/busybox sleep 600"));
    let rules = host.namespace().run(&["iptables-save"]);
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    assert!(rules.contains("--dport 80"), "no rule of Docker's: {rules}");
    check_served(&guest);
    drop(docker.told("rm --force other"));
    check_served(&guest);
}

// --- network cards ---

const USER_DATA: &str = "/latest/user-data";

/// Answers and requests longer than a packet arrive whole.
fn check_long(guest: &Guest, what: &str) {
    let answer = guest.get(USER_DATA);
    assert_eq!(answer.body, data(), "{what}");
    let padding = "p".repeat(14_000);
    let answer = guest.request("GET", INSTANCE_ID, &[("X-Padding", &padding)]);
    assert_eq!(answer.text(), guest.id(), "{what}: a long request");
}

fn data() -> Vec<u8> {
    (0..16_384_u32).map(|at| (at % 251) as u8).collect()
}

/// A guest's own idea of what its cable carries, above and below the host's.
#[test]
fn a_guest_whose_mtu_is_not_its_ports_is_served() {
    for (port, guest_has) in [(1500, 1400), (1500, 9000), (9000, 1500), (9000, 1280)] {
        let Some(mut host) = Host::new() else { return };
        let guest = host
            .guest("web")
            .routed("10.0.0.10")
            .mtu(port)
            .user_data(&data())
            .up();
        guest
            .namespace()
            .ip(&format!("link set eth0 mtu {guest_has}"));
        let _daemon = host.start();
        check_long(&guest, &format!("port {port}, guest {guest_has}"));
    }
}

/// Each on its own and all together, at both ends of the cable.
#[test]
fn guests_are_served_with_and_without_offloads() {
    if !has_command("ethtool") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let guest = host
        .guest("web")
        .routed("10.0.0.10")
        .user_data(&data())
        .up();
    let daemon = host.start();
    let responder = Namespace::of(daemon.responder_pid());
    let all = "rx off tx off sg off tso off gso off gro off";
    for off in [
        "rx off", "tx off", "sg off", "tso off", "gso off", "gro off", all,
    ] {
        let on = off.replace("off", "on");
        for setting in [off, on.as_str()] {
            set_offloads(guest.namespace(), "eth0", setting);
            set_offloads(host.namespace(), guest.port(), setting);
            check_long(&guest, setting);
        }
    }
    set_offloads(&responder, "imds0", all);
    check_long(&guest, "none in the responder's namespace");
    set_offloads(guest.namespace(), "eth0", all);
    check_long(&guest, "none anywhere");
}

fn set_offloads(namespace: &Namespace, interface: &str, settings: &str) {
    let mut command = vec!["ethtool", "-K", interface];
    command.extend(settings.split(' '));
    let set = namespace.run(&command);
    assert!(set.status.success(), "{command:?}: {set:?}");
}

/// The answer to a request of 4,000 bytes, which a card without offloads sends in several frames.
fn ask(tap: &Tap, port: u16, request_bytes: usize) -> Vec<Segment> {
    let from = std::net::Ipv4Addr::new(10, 0, 0, 10);
    let syn = TcpFrame::syn(tap.mac(), tap.port_mac(), from.into(), port);
    let head = format!("GET {USER_DATA} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Padding: ");
    let padding = "p".repeat(request_bytes.saturating_sub(head.len() + 4));
    tap.fetch(&syn, format!("{head}{padding}\r\n\r\n").as_bytes())
}

fn check_answer(segments: &[Segment], what: &str) {
    let bytes: Vec<u8> = segments
        .iter()
        .flat_map(|segment| segment.payload.clone())
        .collect();
    assert!(bytes.starts_with(b"HTTP/1.1 200 "), "{what}");
    assert!(bytes.ends_with(&data()), "{what}: {} bytes", bytes.len());
}

/// As QEMU opens a tap for a machine with several processors. Packets of one connection come by each queue in turn.
#[test]
fn a_tap_of_several_queues_is_a_port() {
    let Some(mut host) = Host::new() else { return };
    let tap = host.guest("smp").queues(4).user_data(&data()).tap();
    let _daemon = host.start();
    for port in 40_000..40_008 {
        check_answer(&ask(&tap, port, 0), "four queues");
    }
}

/// What a caller takes that offers no segment size, as RFC 9293 has it.
const SEGMENT_BYTES_MAX: usize = 536;

/// As a virtio card does it: checksums half done, several segments in one frame, in both directions.
#[test]
fn a_card_that_leaves_checksums_and_segments_to_others_is_served() {
    for queues in [1, 4] {
        let Some(mut host) = Host::new() else { return };
        let tap = host
            .guest("virtio")
            .queues(queues)
            .offloads()
            .user_data(&data())
            .tap();
        let _daemon = host.start();
        for (port, request_bytes) in [(40_000, 0), (40_001, 4000), (40_002, 16_000)] {
            let segments = ask(&tap, port, request_bytes);
            check_answer(
                &segments,
                &format!("{queues} queues, {request_bytes} bytes"),
            );
            let longest = segments.iter().map(|segment| segment.payload.len()).max();
            // How many segments the kernel leaves in one piece depends on its pace; two are more than the guest may be sent.
            assert!(
                longest > Some(SEGMENT_BYTES_MAX),
                "nothing was left to the guest: {longest:?}"
            );
        }
    }
}

/// Filters of others are there before and after: nothing of theirs is taken away with ours.
#[test]
fn taking_everything_down_leaves_the_filters_of_others() {
    if !has_command("tc") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let guest = quiet_guest(&mut host);
    let theirs = [1, 10].map(|priority| {
        let program = ForeignProgram::load(TC_ACT_UNSPEC);
        program.attach_filter(host.namespace(), guest.port(), priority);
        program
    });
    host.start().stop();
    host.take_down();
    for program in &theirs {
        assert_eq!(seen(program, || send_elsewhere(&guest)), PACKETS);
    }
}
