//! What is in the kernel outlives the daemon, and so does the responder: between two daemons guests are served or refused and
//! nothing else, the next one goes on where the last one ended, whatever that was, and `imds down` takes it all away.
//!
//! The guard is off in most of these tests. So a port that were open for a moment would show at the stand-in.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use imds_tests::{
    Address, Connection, Guest, Host, INSTANCE_ID, Random, Uplink, eventually, has_command,
    is_alive, network_of, program_exists, programs_of, users_of_network,
};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

const BOTH: [Address; 2] = [Address::V4, Address::V6];
/// Long enough for everything here that is not silence.
const SOON: Duration = Duration::from_secs(5);

/// A host without a guard, with a way to a stand-in, and a guest that would find it.
fn host_and_web() -> Option<(Host, Uplink, Guest)> {
    let mut host = Host::new()?;
    host.host_keys("guard = false");
    let uplink = host.uplink("up0");
    let web = guest(&mut host, "web", 10);
    Some((host, uplink, web))
}

/// A guest to which the host knows the way back, so that a stand-in could answer it.
fn guest(host: &mut Host, name: &str, number: u8) -> Guest {
    let (v4, v6) = (format!("10.0.0.{number}"), format!("fd00:1::{number}"));
    let guest = host.guest(name).routed(&v4).ipv6(&v6).up();
    let (port, mac) = (guest.port(), guest.namespace().mac("eth0"));
    host.namespace().ip(&format!(
        "route add {v4}/32 dev {port}\n\
         route add {v6}/128 dev {port}\n\
         neighbour add {v6} lladdr {mac} dev {port} nud permanent"
    ));
    guest
}

fn check_served(guests: &[&Guest]) {
    for guest in guests {
        for address in BOTH {
            let answer = guest.get_from(address, INSTANCE_ID);
            assert_eq!(answer.text(), guest.id(), "{} at {address:?}", guest.name());
        }
    }
}

fn check_refused(guest: &Guest) {
    for address in BOTH {
        let refusal = guest.try_connect(address).err().map(|error| error.kind());
        let expected = Some(io::ErrorKind::ConnectionRefused);
        assert_eq!(refusal, expected, "{} at {address:?}", guest.name());
    }
}

/// The programs of ours on an interface, by direction.
fn filters(host: &Host, interface: &str) -> Vec<(String, String)> {
    let of = |direction: &str| {
        let argv = ["tc", "-j", "filter", "show", "dev", interface, direction];
        let output = host.namespace().run(&argv);
        let filters: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        let filters = filters.as_array().cloned().unwrap_or_default();
        let names = filters.iter().filter_map(|filter| {
            let name = filter["options"]["bpf_name"].as_str()?;
            Some((direction.to_owned(), name.to_owned()))
        });
        names.collect::<Vec<_>>()
    };
    [of("ingress"), of("egress")].concat()
}

fn has_queue(host: &Host, interface: &str) -> bool {
    let argv = ["tc", "qdisc", "show", "dev", interface];
    let output = host.namespace().run(&argv);
    String::from_utf8_lossy(&output.stdout).contains("clsact")
}

fn on_way_in(program: &str) -> Vec<(String, String)> {
    vec![("ingress".to_owned(), program.to_owned())]
}

/// Slot of each guest that is served.
fn slots(host: &Host) -> Vec<(String, u64)> {
    let status = host.status();
    let ports = status["ports"].as_array().expect("a list").clone();
    let slot = |port: &Value| {
        let name = port["name"].as_str().expect("a name").to_owned();
        (name, port["slot"].as_u64().expect("a number"))
    };
    ports.iter().map(slot).collect()
}

/// Where the host's maps and programs are pinned: a folder for each data plane.
fn data_planes(host: &Host) -> Vec<PathBuf> {
    let state_dir = host.state_dir().canonicalize().expect("a state directory");
    let name = imds_user::state::namespace_name_in(&state_dir);
    let roots = [state_dir.join("bpf"), PathBuf::from("/sys/fs/bpf")];
    let folders = roots
        .iter()
        .filter_map(|root| fs::read_dir(root.join(&name)).ok())
        .flatten();
    folders
        .map(|entry| entry.expect("a readable folder").path())
        .collect()
}

fn responder_interface(host: &Host) -> String {
    let state_dir = host.state_dir().canonicalize().expect("a state directory");
    imds_user::state::namespace_name_in(&state_dir)
}

fn down(host: &Host, options: &[&str]) -> Output {
    let state_dir = host.state_dir();
    let state_dir = state_dir.to_str().expect("temporary paths are text");
    host.imds(&[&["down", "--state-dir", state_dir], options].concat())
}

#[test]
fn after_a_stop_guests_are_served_until_the_responder_is_ended_and_refused_then() {
    let Some((host, uplink, web)) = host_and_web() else {
        return;
    };
    let daemon = host.start();
    let mut open = web.connect();
    let keep = [("Connection", "keep-alive")];
    assert_eq!(open.get(INSTANCE_ID, &keep).text(), web.id());
    daemon.stop();
    assert_eq!(open.get(INSTANCE_ID, &keep).text(), web.id());
    check_served(&[&web]);
    assert_eq!(uplink.packets(), 0);

    let closed = down(&host, &["--keep-closed"]);
    assert!(closed.status.success(), "{closed:?}");
    let answer = open.exchange("GET", INSTANCE_ID, &[]);
    assert!(answer.is_err(), "{answer:?}");
    check_refused(&web);
    assert_eq!(uplink.packets(), 0);
    let _daemon = host.start();
    check_served(&[&web]);
}

#[test]
fn after_a_crash_of_both_processes_guests_are_refused_and_never_reach_the_hosts_service() {
    let Some((host, uplink, web)) = host_and_web() else {
        return;
    };
    let mut daemon = host.start();
    let responder = daemon.responder_pid();
    check_served(&[&web]);
    daemon.crash();
    check_served(&[&web]);
    kill(responder, Signal::SIGKILL).expect("the responder runs");
    eventually("nobody listens any more", SOON, || {
        web.try_connect(Address::V4).err()
    });
    check_refused(&web);
    assert_eq!(uplink.packets(), 0);
    let _daemon = host.start();
    check_served(&[&web]);
}

/// The guard stays as well: who was never served is kept out while there is no daemon.
#[test]
fn the_guard_outlives_the_daemon() {
    let Some(mut host) = Host::new() else { return };
    let uplink = host.uplink("up0");
    let stranger = host
        .guest("stranger")
        .routed("10.0.0.20")
        .unregistered()
        .up();
    host.start().stop();
    let within = Duration::from_millis(1500);
    let reached = stranger
        .namespace()
        .enter(|| Connection::open_within(Address::V4, within));
    assert!(reached.is_err());
    assert_eq!(uplink.packets(), 0);
    let own = host.namespace().enter(|| Connection::open(Address::V4));
    assert!(own.is_ok(), "the host's own way is open");
}

/// The control socket cannot be made, which is found out when everything else is there.
#[test]
fn a_first_start_that_fails_leaves_nothing_and_a_later_one_leaves_guests_served() {
    let Some((host, uplink, web)) = host_and_web() else {
        return;
    };
    let links = host.namespace().link_names();
    let in_the_way = host.state_dir().join("control.sock");
    let fail = || {
        fs::remove_file(&in_the_way).ok();
        fs::create_dir_all(in_the_way.join("something")).expect("a folder");
        let output = host.run_to_the_end();
        assert!(!output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("listen on the control socket"), "{said}");
        fs::remove_dir_all(&in_the_way).expect("the folder");
    };
    host.write_config();
    fail();
    assert_eq!(host.namespace().link_names(), links);
    assert_eq!(filters(&host, web.port()), []);
    assert_eq!(data_planes(&host), Vec::<PathBuf>::new());

    host.start().stop();
    fail();
    check_served(&[&web]);
    assert_eq!(uplink.packets(), 0);
    let _daemon = host.start();
    check_served(&[&web]);
}

#[test]
fn down_leaves_nothing() {
    if !has_command("bpftool") || !has_command("tc") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let _uplink = host.uplink("up0");
    let web = host.guest("web").routed("10.0.0.10").up();
    let legacy = host.guest("legacy").bridged("br0", "10.0.0.10").up();
    let links_before = host.namespace().link_names();
    let daemon = host.start();
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    assert_eq!(legacy.get(INSTANCE_ID).text(), legacy.id());
    let responder = daemon.responder_pid();
    let namespace = network_of(responder);
    let programs = programs_of(daemon.pid());
    assert!(
        programs.len() >= 4,
        "the daemon holds its programs: {programs:?}"
    );

    let refused = down(&host, &[]);
    assert!(!refused.status.success(), "a daemon runs: {refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("stop it first") && said.lines().count() == 1,
        "{said}"
    );
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());

    daemon.stop();
    assert!(is_alive(responder), "the responder serves on");
    assert!(!data_planes(&host).is_empty());
    let removed = down(&host, &[]);
    assert!(removed.status.success(), "{removed:?}");
    assert!(!is_alive(responder), "the responder outlived its end");
    assert!(!host.state_dir().join("responders").exists());
    let said = String::from_utf8_lossy(&removed.stdout).into_owned();
    assert!(said.contains("2 ports"), "{said}");
    assert_eq!(host.namespace().link_names(), links_before);
    for interface in [web.port(), legacy.port(), "up0"] {
        assert_eq!(filters(&host, interface), [], "{interface}");
        assert!(!has_queue(&host, interface), "{interface}");
    }
    // The number may be that of a namespace of another test already; the name may not.
    let name = responder_interface(&host);
    let users = users_of_network(namespace);
    assert!(!users.iter().any(|user| user.contains(&name)), "{users:?}");
    assert_eq!(data_planes(&host), Vec::<PathBuf>::new());
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let state_dir = host.state_dir();
    assert!(
        !mounts.contains(state_dir.to_str().expect("text")),
        "{mounts}"
    );
    eventually("the kernel lets go of the programs", SOON, || {
        programs.iter().all(|id| !program_exists(id)).then_some(())
    });
    let again = down(&host, &[]);
    assert!(again.status.success(), "{again:?}");

    // And imds can come again.
    let _daemon = host.start();
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
}

#[test]
fn down_leaves_what_others_have_put_on_an_interface() {
    if !has_command("tc") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    for line in [
        "qdisc add dev veth-web clsact",
        "filter add dev veth-web ingress prio 7 protocol all bpf bytecode 1,6_0_0_0 flowid 1:1",
    ] {
        let words: Vec<String> = line.split(' ').map(|word| word.replace('_', " ")).collect();
        let argv: Vec<&str> = ["tc"]
            .into_iter()
            .chain(words.iter().map(String::as_str))
            .collect();
        let output = host.namespace().run(&argv);
        assert!(output.status.success(), "{line}: {output:?}");
    }
    let daemon = host.start();
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    daemon.stop();
    assert!(down(&host, &[]).status.success());
    assert!(has_queue(&host, web.port()));
    let argv = ["tc", "filter", "show", "dev", "veth-web", "ingress"];
    let left = host.namespace().run(&argv);
    let left = String::from_utf8_lossy(&left.stdout).into_owned();
    assert!(
        left.contains("pref 7") && !left.contains("port_ingress"),
        "{left}"
    );
}

#[test]
fn a_restart_goes_on_where_the_last_daemon_ended() {
    let Some((mut host, uplink, web)) = host_and_web() else {
        return;
    };
    let db = guest(&mut host, "db", 11);
    let mut daemon = host.start();
    check_served(&[&web, &db]);
    let (before, links) = (slots(&host), host.namespace().link_names());
    let delivered = host.counter("delivered");
    for crash in [false, true, false] {
        if crash {
            daemon.crash();
            drop(daemon);
        } else {
            daemon.stop();
        }
        daemon = host.start();
        assert_eq!(slots(&host), before, "an instance keeps its slot");
        check_served(&[&web, &db]);
        assert_eq!(host.namespace().link_names(), links);
        for port in [web.port(), db.port()] {
            assert_eq!(filters(&host, port), on_way_in("port_ingress"), "{port}");
        }
        let responder = responder_interface(&host);
        assert_eq!(filters(&host, &responder), on_way_in("responder_ingress"));
        assert_eq!(data_planes(&host).len(), 1);
    }
    assert!(host.counter("delivered") > delivered, "counts go on");
    assert_eq!(uplink.packets(), 0);
}

#[test]
fn what_changed_in_the_configuration_while_no_daemon_ran_is_closed_and_opened() {
    let Some((mut host, uplink, web)) = host_and_web() else {
        return;
    };
    let db = guest(&mut host, "db", 11);
    let gone = guest(&mut host, "gone", 12);
    let daemon = host.start();
    check_served(&[&web, &db, &gone]);
    let before = slots(&host);
    daemon.stop();
    // Two instances change places, one goes, one comes.
    host.instance("web").key("port", "\"veth-db\"");
    host.instance("db").key("port", "\"veth-web\"");
    host.forget("gone");
    let late = guest(&mut host, "late", 13);
    assert_eq!(uplink.packets(), 0);
    let daemon = host.start();
    for address in BOTH {
        assert_eq!(web.get_from(address, INSTANCE_ID).text(), db.id());
        assert_eq!(db.get_from(address, INSTANCE_ID).text(), web.id());
    }
    check_served(&[&late]);
    assert_eq!(filters(&host, gone.port()), []);
    let after = slots(&host);
    let used: BTreeSet<u64> = before.iter().map(|(_, slot)| *slot).collect();
    for (name, slot) in &after {
        assert!(
            !used.contains(slot),
            "{name} has a slot of before: {after:?}"
        );
    }
    // What was closed has left nothing that a later daemon would take up.
    daemon.stop();
    let _daemon = host.start();
    assert_eq!(slots(&host), after);
    assert_eq!(filters(&host, gone.port()), []);
}

/// A machine that is switched off hears nothing: its port is silent with a daemon, without one, and with the next.
#[test]
fn the_port_of_a_stopped_instance_stays_silent() {
    let Some((host, uplink, web)) = host_and_web() else {
        return;
    };
    let daemon = host.start();
    check_served(&[&web]);
    let state_dir = host.state_dir();
    let state_dir = state_dir.to_str().expect("temporary paths are text");
    let switch = |action: &str| {
        let output = host.imds(&["instance", action, "web", "--state-dir", state_dir]);
        assert!(output.status.success(), "{output:?}");
    };
    let check_silent = || {
        for address in BOTH {
            let silence = Duration::from_millis(1500);
            let connect = || Connection::open_within(address, silence);
            let failure = web.namespace().enter(connect).err();
            assert_eq!(
                failure.map(|error| error.kind()),
                Some(io::ErrorKind::TimedOut)
            );
        }
        assert_eq!(filters(&host, web.port()), on_way_in("port_ingress"));
        assert_eq!(uplink.packets(), 0);
    };
    switch("stop");
    check_silent();
    daemon.stop();
    check_silent();
    let _daemon = host.start();
    check_silent();
    switch("start");
    check_served(&[&web]);
}

/// An answer of a former time: what the state directory's pins say is not what this daemon understands.
#[test]
fn maps_of_another_version_are_migrated_without_a_port_being_open() {
    let Some((mut host, uplink, web)) = host_and_web() else {
        return;
    };
    let db = guest(&mut host, "db", 11);
    let daemon = host.start();
    check_served(&[&web, &db]);
    let [current] = &data_planes(&host)[..] else {
        panic!("{:?}", data_planes(&host));
    };
    let name = current.file_name().expect("a name").to_string_lossy();
    let (_, cookie) = name.split_once('-').expect("a stamp and a cookie");
    let older = current.with_file_name(format!("00000000-{cookie}"));
    daemon.stop();
    fs::rename(current, &older).expect("bpffs renames folders");

    let callers = Callers::of(&[&web, &db]);
    let daemon = host.start();
    check_served(&[&web, &db]);
    callers.check("a migration");
    assert_eq!(data_planes(&host), std::slice::from_ref(current));
    for port in [web.port(), db.port()] {
        assert_eq!(filters(&host, port), on_way_in("port_ingress"), "{port}");
    }
    assert_eq!(uplink.packets(), 0);
    drop(daemon);
}

#[test]
fn a_namespace_of_another_life_is_not_taken_for_this_one() {
    let Some((host, uplink, web)) = host_and_web() else {
        return;
    };
    let daemon = host.start();
    check_served(&[&web]);
    let [current] = &data_planes(&host)[..] else {
        panic!("{:?}", data_planes(&host));
    };
    let name = current.file_name().expect("a name").to_string_lossy();
    let (stamp, _) = name.split_once('-').expect("a stamp and a cookie");
    daemon.stop();
    // The same maps, for interfaces of a namespace that is not this one.
    let others = current.with_file_name(format!("{stamp}-7"));
    fs::rename(current, others).expect("bpffs renames folders");
    let _daemon = host.start();
    check_served(&[&web]);
    assert_eq!(data_planes(&host), std::slice::from_ref(current));
    assert_eq!(uplink.packets(), 0);
}

#[test]
fn damaged_pins_are_made_anew() {
    let Some((host, uplink, web)) = host_and_web() else {
        return;
    };
    let mut daemon = Some(host.start());
    type Damage = fn(&PathBuf);
    let damage: [(&str, Damage); 3] = [
        ("a map is missing", |folder| {
            fs::remove_file(folder.join("OWNERS")).expect("a pin");
        }),
        ("a map is another one", |folder| {
            fs::rename(folder.join("SLOTS"), folder.join("RATES")).expect("pins");
        }),
        ("everything is missing", |folder| {
            fs::remove_dir_all(folder).expect("a folder");
        }),
    ];
    for (what, damage) in damage {
        daemon.take().expect("a daemon").stop();
        for folder in data_planes(&host) {
            damage(&folder);
        }
        let callers = Callers::of(&[&web]);
        daemon = Some(host.start());
        check_served(&[&web]);
        callers.check(what);
        assert_eq!(data_planes(&host).len(), 1, "{what}");
        assert_eq!(filters(&host, web.port()), on_way_in("port_ingress"));
        assert_eq!(uplink.packets(), 0, "{what}");
    }
}

#[test]
fn what_somebody_removed_while_no_daemon_ran_is_mended() {
    if !has_command("tc") {
        return;
    }
    let Some((host, _uplink, web)) = host_and_web() else {
        return;
    };
    let mut daemon = Some(host.start());
    check_served(&[&web]);
    let before = slots(&host);
    let responder = responder_interface(&host);
    let harm = [
        format!("ip link delete {responder}"),
        format!("ip link set {responder} down"),
        format!("ip netns delete {responder}"),
        format!("tc qdisc delete dev {responder} clsact"),
        "tc qdisc delete dev veth-web clsact".to_owned(),
    ];
    for harm in &harm {
        daemon.take().expect("a daemon").stop();
        let argv: Vec<&str> = harm.split(' ').collect();
        let output = host.namespace().run(&argv);
        assert!(output.status.success(), "{harm}: {output:?}");
        daemon = Some(host.start());
        check_served(&[&web]);
        assert_eq!(slots(&host), before, "{harm}");
    }
}

/// The responder's end of the cable goes while it serves: the path is closed, and open again at once.
#[test]
fn a_cable_that_is_pulled_is_put_back() {
    let Some((host, uplink, web)) = host_and_web() else {
        return;
    };
    let daemon = host.start();
    check_served(&[&web]);
    let (responder, pid) = (responder_interface(&host), daemon.responder_pid());
    host.namespace().ip(&format!("link delete {responder}"));
    let is_served = || {
        let mut connection = web.try_connect(Address::V4).ok()?;
        let answer = connection.exchange("GET", INSTANCE_ID, &[]).ok()?;
        (answer.text() == web.id()).then_some(())
    };
    eventually("the guest is served again", SOON, is_served);
    assert_eq!(
        daemon.responder_pid(),
        pid,
        "no reason for another responder"
    );
    assert_eq!(uplink.packets(), 0);
}

/// A daemon that is killed at any moment of its start leaves something that the next start repairs, and no port open that
/// was not.
#[test]
fn a_start_that_is_killed_at_any_moment_is_repaired_by_the_next() {
    const KILLED: u32 = 24;
    let Some((mut host, uplink, web)) = host_and_web() else {
        return;
    };
    let db = guest(&mut host, "db", 11);
    let random = Random::by_time();
    let usual = time_of_a_start(&host);
    let callers = Callers::of(&[&web, &db]);
    for number in 0..KILLED {
        let what = format!("seed {}, start {number}", random.seed());
        host.start_and_kill(usual.mul_f64(random.fraction() * 1.1));
        if number % 4 == 3 {
            let _daemon = host.start();
            check_once(&host, &[&web, &db], &what);
            assert_eq!(uplink.packets(), 0, "{what}");
        }
    }
    callers.check(&format!("seed {}", random.seed()));
    assert_eq!(uplink.packets(), 0);
}

/// The same where there was nothing before.
#[test]
fn a_first_start_that_is_killed_at_any_moment_is_repaired_by_the_next() {
    const KILLED: u32 = 10;
    let Some(mut host) = Host::new() else { return };
    let web = guest(&mut host, "web", 10);
    let random = Random::by_time();
    let usual = time_of_a_start(&host);
    let links = host.namespace().link_names();
    for number in 0..KILLED {
        let what = format!("seed {}, start {number}", random.seed());
        assert!(down(&host, &[]).status.success(), "{what}");
        host.start_and_kill(usual.mul_f64(random.fraction() * 1.1));
        let _daemon = host.start();
        check_once(&host, &[&web], &what);
        assert_eq!(host.namespace().link_names(), links, "{what}");
    }
}

/// The system calls by which a start changes anything outside of its process.
const CALLS: &str = "bpf,sendto,mount,umount2,rename,mkdir,unlink,unlinkat,rmdir,setns,unshare,write,socket,bind,\
                     setsockopt,clone3,openat";

/// As above, but by the system call and not by the clock: strace ends the daemon when it makes its n-th.
#[test]
fn a_start_that_is_killed_at_one_of_its_system_calls_is_repaired_by_the_next() {
    if !has_command("strace") {
        return;
    }
    let Some((mut host, uplink, web)) = host_and_web() else {
        return;
    };
    let db = guest(&mut host, "db", 11);
    host.start().stop();
    let callers = Callers::of(&[&web, &db]);
    let n_killed = kill_at_calls(|n| {
        let is_killed = host.start_and_kill_at(CALLS, n);
        let _daemon = host.start();
        check_once(&host, &[&web, &db], &format!("call {n}"));
        assert_eq!(uplink.packets(), 0, "call {n}");
        is_killed
    });
    callers.check(&format!("{n_killed} calls"));
}

/// The same where there was nothing before.
#[test]
fn a_first_start_that_is_killed_at_one_of_its_system_calls_is_repaired_by_the_next() {
    if !has_command("strace") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let web = guest(&mut host, "web", 10);
    kill_at_calls(|n| {
        assert!(down(&host, &[]).status.success(), "call {n}");
        let is_killed = host.start_and_kill_at(CALLS, n);
        let _daemon = host.start();
        check_once(&host, &[&web], &format!("call {n}"));
        is_killed
    });
}

/// Kills a start at every third of its calls, at others each time the test is run, until one makes fewer.
fn kill_at_calls(mut kill_at: impl FnMut(usize) -> bool) -> usize {
    const ONE_OF: usize = 3;
    let first = 1 + Random::by_time().below(ONE_OF);
    let n_killed = (first..)
        .step_by(ONE_OF)
        .take_while(|n| kill_at(*n))
        .count();
    assert!(
        n_killed > 20,
        "a start makes more calls than {n_killed} thrice"
    );
    n_killed
}

fn time_of_a_start(host: &Host) -> Duration {
    host.start().stop();
    let begin = Instant::now();
    let _daemon = host.start();
    begin.elapsed()
}

fn check_once(host: &Host, guests: &[&Guest], what: &str) {
    check_served(guests);
    for guest in guests {
        let port = guest.port();
        assert_eq!(
            filters(host, port),
            on_way_in("port_ingress"),
            "{what}: {port}"
        );
    }
    let responder = responder_interface(host);
    let found = filters(host, &responder);
    assert_eq!(found, on_way_in("responder_ingress"), "{what}");
    assert_eq!(data_planes(host).len(), 1, "{what}");
    let slots = slots(host);
    let different: BTreeSet<u64> = slots.iter().map(|(_, slot)| *slot).collect();
    assert_eq!(
        (slots.len(), different.len()),
        (guests.len(), guests.len()),
        "{what}"
    );
}

/// Guests that call all the time, each in a thread. Being refused or not answered is fine; another's answer never is.
struct Callers {
    is_over: Arc<AtomicBool>,
    n_answers: Arc<AtomicU64>,
    threads: Vec<thread::JoinHandle<Vec<String>>>,
}

impl Callers {
    fn of(guests: &[&Guest]) -> Self {
        let (is_over, n_answers) = Default::default();
        let mut callers = Self {
            is_over,
            n_answers,
            threads: Vec::new(),
        };
        for guest in guests {
            let (guest, is_over) = ((*guest).clone(), Arc::clone(&callers.is_over));
            let n_answers = Arc::clone(&callers.n_answers);
            let caller = move || {
                guest
                    .namespace()
                    .enter(|| call(&guest, &is_over, &n_answers))
            };
            callers.threads.push(thread::spawn(caller));
        }
        callers
    }

    /// Ends the calls; no answer was another's.
    fn check(self, what: &str) {
        eventually("an answer to a caller", SOON, || {
            (self.n_answers.load(Ordering::Relaxed) > 0).then_some(())
        });
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let wrong = thread.join().expect("a caller does not panic");
            assert_eq!(wrong, Vec::<String>::new(), "{what}");
        }
    }
}

fn call(guest: &Guest, is_over: &AtomicBool, n_answers: &AtomicU64) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut number = 0_usize;
    while !is_over.load(Ordering::Relaxed) {
        number += 1;
        let address = BOTH[number % 2];
        let Ok(mut connection) = Connection::open_within(address, Duration::from_millis(50)) else {
            continue;
        };
        let Ok(answer) = connection.exchange("GET", INSTANCE_ID, &[]) else {
            continue;
        };
        n_answers.fetch_add(1, Ordering::Relaxed);
        if answer.text() != guest.id() {
            wrong.push(format!("{}: {answer:?}", guest.name()));
        }
    }
    wrong
}
