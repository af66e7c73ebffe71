//! Daemons come and go, and guests notice nothing: no request is lost in a planned restart or an upgrade, none is answered
//! with another guest's identity, ever.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use imds_tests::{
    Address, Connection, FdStore, Figures, Guest, Host, INSTANCE_ID, Load, TOKEN_FIELD, eventually,
    has_command, imds_path, is_alive, responders_of,
};
use imds_user::responder::door::Door;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const KEEP: (&str, &str) = ("Connection", "keep-alive");

/// A host with guests that could be mistaken for each other: two have the same address.
fn host() -> Option<(Host, [Guest; 3])> {
    let mut host = Host::new()?;
    let web = host.guest("web").routed("10.0.0.10").tokens_required().up();
    let db = host.guest("db").routed("10.0.0.10").tokens_required().up();
    let legacy = host.guest("legacy").bridged("br0", "10.0.1.10").up();
    Some((host, [web, db, legacy]))
}

fn load(guests: &[Guest; 3]) -> Load {
    Load::on(&guests.each_ref())
}

/// The figures that this is about, where whoever runs the tests sees them.
#[expect(clippy::print_stdout, reason = "for whoever runs the tests")]
fn print(what: &str, figures: &Figures) {
    println!("{what}: {figures}");
}

#[test]
fn a_planned_restart_loses_no_request() {
    const RESTARTS: usize = 3;
    let Some((host, guests)) = host() else { return };
    let mut daemon = host.start();
    let responder = daemon.responder_pid();
    let load = load(&guests);
    for _ in 0..RESTARTS {
        load.go_on_for(100);
        daemon.stop();
        load.go_on_for(100);
        daemon = host.start();
    }
    load.go_on_for(100);
    let figures = load.finish();
    print("planned restarts", &figures);
    figures.assert_flawless("planned restarts");
    assert_eq!(daemon.responder_pid(), responder, "the responder served on");
}

#[test]
fn a_crash_of_the_daemon_loses_no_request() {
    const CRASHES: usize = 3;
    let Some((host, guests)) = host() else { return };
    let mut daemon = host.start();
    let responder = daemon.responder_pid();
    let load = load(&guests);
    let mut recovery = Duration::ZERO;
    for _ in 0..CRASHES {
        load.go_on_for(100);
        daemon.crash();
        load.go_on_for(100);
        let began = Instant::now();
        daemon = host.start();
        recovery = recovery.max(began.elapsed());
    }
    load.go_on_for(100);
    let figures = load.finish();
    print("crashes of the daemon", &figures);
    println!("the next daemon was ready within {recovery:.0?}");
    figures.assert_flawless("crashes of the daemon");
    assert_eq!(daemon.responder_pid(), responder, "the responder served on");
}

#[test]
fn an_upgrade_loses_no_request() {
    const UPGRADES: usize = 3;
    let Some((host, guests)) = host() else { return };
    let mut daemon = host.start();
    let load = load(&guests);
    for number in 0..UPGRADES {
        load.go_on_for(100);
        let old = daemon.responder_pid();
        daemon.stop();
        daemon = host.start_version(&host.another_version(&format!("imds-{number}")));
        assert_ne!(daemon.responder_pid(), old, "another version answers now");
        load.go_on_for(100);
        eventually(
            "the end of the old responder",
            Duration::from_secs(25),
            || (!is_alive(old)).then_some(()),
        );
    }
    load.go_on_for(100);
    let figures = load.finish();
    print("upgrades", &figures);
    figures.assert_flawless("upgrades");
}

/// A request that was begun under one version is finished by it, whoever answers the next.
#[test]
fn a_request_in_flight_is_answered_after_an_upgrade() {
    let Some((host, [web, _db, _legacy])) = host() else {
        return;
    };
    let daemon = host.start();
    let old = daemon.responder_pid();
    let token = web.put_token(600);
    let fields = [KEEP, (TOKEN_FIELD, token.as_str())];
    // Made before, since a responder waits for a request's rest for twenty seconds only.
    let next = host.another_version("imds-next");

    let mut half = web.connect();
    half.send(format!("GET {INSTANCE_ID} HTTP/1.1\r\nHost: 169.2").as_bytes())
        .unwrap();
    let mut unread = web.connect();
    unread
        .send(
            format!("GET {INSTANCE_ID} HTTP/1.1\r\nHost: x\r\n{TOKEN_FIELD}: {token}\r\n\r\n")
                .as_bytes(),
        )
        .unwrap();
    let mut idle = web.connect();
    assert_eq!(idle.get(INSTANCE_ID, &fields).text(), web.id());

    daemon.stop();
    let daemon = host.start_version(&next);
    assert_ne!(daemon.responder_pid(), old);
    assert!(is_alive(old), "it has connections to finish");

    let rest = format!("54.169.254\r\nConnection: keep-alive\r\n{TOKEN_FIELD}: {token}\r\n\r\n");
    half.send(rest.as_bytes()).unwrap();
    for (what, answer) in [
        ("begun before", half.receive().unwrap()),
        ("begun after", idle.get(INSTANCE_ID, &fields)),
    ] {
        assert_eq!(answer.text(), web.id(), "{what}");
        // The last on this connection: the next request goes to the next version.
        assert_eq!(answer.header("Connection"), Some("close"), "{what}");
    }
    eventually(
        "the end of the old responder",
        Duration::from_secs(5),
        || (!is_alive(old)).then_some(()),
    );
    assert_eq!(unread.receive().unwrap().text(), web.id(), "never read");
    assert_eq!(web.get_with_token(INSTANCE_ID, &token).text(), web.id());
}

#[test]
fn guests_are_served_while_no_daemon_runs() {
    let Some((host, guests)) = host() else { return };
    let daemon = host.start();
    let tokens = guests.each_ref().map(|guest| guest.put_token(600));
    daemon.stop();
    for (guest, token) in guests.iter().zip(&tokens) {
        assert_eq!(guest.get_with_token(INSTANCE_ID, token).text(), guest.id());
        let token = guest.put_token(600);
        assert_eq!(guest.get_with_token(INSTANCE_ID, &token).text(), guest.id());
    }
}

/// What was changed while no daemon ran is seen by the next request of a connection that is open all the time; what was not
/// changed stays, also the moment since when it is in force.
#[test]
fn the_next_daemon_brings_what_changed_meanwhile() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let db = host.guest("db").routed("10.0.0.10").user_data(b"old").up();
    let zed = host.guest("zed").routed("10.0.0.10").up();
    let daemon = host.start();
    let responder = daemon.responder_pid();
    let mut of_web = web.connect();
    let mut of_db = db.connect();
    let mut of_zed = zed.connect();
    let before = of_web.get(INSTANCE_ID, &[KEEP]);
    assert_eq!(before.text(), web.id());
    assert_eq!(of_db.get("/latest/user-data", &[KEEP]).text(), "old");
    assert_eq!(of_zed.get(INSTANCE_ID, &[KEEP]).text(), zed.id());
    daemon.stop();
    // Times are told in seconds.
    thread::sleep(Duration::from_millis(1100));

    host.instance("db").user_data(b"new");
    host.forget("zed");
    let daemon = host.start();
    assert_eq!(daemon.responder_pid(), responder);
    let after = of_web.get(INSTANCE_ID, &[KEEP]);
    assert_eq!(after.text(), web.id());
    assert_eq!(
        after.header("Last-Modified"),
        before.header("Last-Modified")
    );
    assert_eq!(of_db.get("/latest/user-data", &[KEEP]).text(), "new");
    let (answer, _) = of_zed.receive_raw(Duration::from_secs(1));
    assert_eq!(answer, b"", "nobody asked");
    assert!(
        of_zed.send(b"GET / HTTP/1.1\r\n\r\n").is_err() || {
            let (answer, _) = of_zed.receive_raw(Duration::from_secs(1));
            answer.is_empty()
        }
    );
}

/// The count of requests is what the guest has asked, whoever has answered and whoever has counted.
#[test]
fn counters_continue() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let count = |host: &Host| host.status()["ports"][0]["requests"].as_u64();
    let mut asked = 0;
    let mut ask = |times: u64| {
        for _ in 0..times {
            assert_eq!(web.get(INSTANCE_ID).text(), web.id());
        }
        asked += times;
        Some(asked)
    };
    let daemon = host.start();
    let expected = ask(3);
    assert_eq!(count(&host), expected);

    daemon.stop();
    ask(4);
    let mut daemon = host.start();
    let expected = ask(1);
    assert_eq!(count(&host), expected, "after a restart");

    daemon.crash();
    ask(2);
    let daemon = host.start();
    let expected = ask(1);
    assert_eq!(count(&host), expected, "after a crash of the daemon");

    // What a responder has counted since it was last asked is lost when it is killed; it was just asked.
    let responder = daemon.responder_pid();
    kill(responder, Signal::SIGKILL).unwrap();
    eventually("another responder", Duration::from_secs(10), || {
        (daemon.responder_pid() != responder).then_some(())
    });
    let expected = ask(5);
    assert_eq!(count(&host), expected, "after the responder was killed");

    let mut open = web.connect();
    assert_eq!(open.get(INSTANCE_ID, &[KEEP]).text(), web.id());
    daemon.stop();
    let expected = ask(2).map(|asked| asked + 1);
    let _daemon = host.start_version(&host.another_version("imds-next"));
    assert_eq!(count(&host), expected, "after an upgrade");
    ask(2);
    assert_eq!(open.get(INSTANCE_ID, &[KEEP]).text(), web.id());
    // The last one was answered by the old version, which tells when it ends.
    let expected = ask(1).map(|asked| asked + 2);
    eventually(
        "the last count of the old version",
        Duration::from_secs(5),
        || (count(&host) == expected).then_some(()),
    );
}

#[test]
fn a_responder_with_other_settings_is_replaced_without_a_lost_request() {
    let Some((host, guests)) = host() else { return };
    let daemon = host.start();
    let old = daemon.responder_pid();
    let load = load(&guests);
    load.go_on_for(100);
    daemon.stop();
    // Tokens of before are worth nothing any more, which a guest is told; nobody else loses anything.
    fs::remove_file(host.state_dir().join("token.key")).unwrap();
    let daemon = host.start();
    assert_ne!(daemon.responder_pid(), old);
    let figures = load.finish();
    figures.assert_no_wrong_identity("another key");
    let other: Vec<_> = figures
        .failed
        .iter()
        .filter(|failed| !failed.contains("401 Unauthorized"))
        .collect();
    assert_eq!(other, Vec::<&String>::new());
}

/// However far a daemon gets before it is killed, the next one makes it good.
#[test]
fn a_daemon_killed_at_any_moment_of_an_upgrade_is_made_good_by_the_next() {
    const KILLS: u64 = 12;
    let Some((host, guests)) = host() else { return };
    let daemon = host.start();
    let load = load(&guests);
    load.go_on_for(50);
    daemon.stop();
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let versions = [
        host.another_version("imds-a"),
        host.another_version("imds-b"),
    ];
    for number in 0..KILLS {
        // A start takes about 100 ms; a linear congruential generator spreads the kills over it and a little beyond.
        let random = (seed + number).wrapping_mul(6_364_136_223_846_793_005) >> 33;
        let after = Duration::from_millis(random % 150);
        host.start_version_and_kill(&versions[number as usize % 2], after);
    }
    let daemon = host.start();
    load.go_on_for(100);
    let figures = load.finish();
    print("a daemon killed while it takes over", &figures);
    figures.assert_flawless("a daemon killed while it takes over");
    let serves = daemon.responder_pid();
    eventually(
        "the end of all other responders",
        Duration::from_secs(25),
        || (responders_of(&host.state_dir()) == [serves]).then_some(()),
    );
}

/// The processes of two daemons in a row are gone: the sockets with them, and guests are refused, not left to wait.
#[test]
fn guests_are_refused_when_nobody_is_left() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let mut daemon = host.start();
    let responder = daemon.responder_pid();
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    daemon.crash();
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    kill(responder, Signal::SIGKILL).unwrap();
    eventually("a refusal", Duration::from_secs(2), || {
        is_refused(&web).then_some(())
    });
    let _daemon = host.start();
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
}

fn is_refused(guest: &Guest) -> bool {
    let connected = guest
        .namespace()
        .enter(|| Connection::open_within(Address::V4, Duration::from_millis(500)));
    matches!(connected, Err(error) if error.kind() == ErrorKind::ConnectionRefused)
}

/// A host on which the responder's user may have no process more: every start fails. After a few guests are refused instead
/// of kept waiting, and they are served again as soon as a responder lives.
#[test]
fn guests_are_refused_while_no_responder_can_be_started() {
    if !has_command("prlimit") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let daemon = host.start();
    let before = daemon.responder_pid();
    // Root is not subject to this limit, but what it starts inherits it and becomes another user.
    let limit = |processes: &str| {
        let pid = daemon.pid().to_string();
        let limit = format!("--nproc={processes}:");
        let output = host.namespace().run(&["prlimit", "--pid", &pid, &limit]);
        assert!(output.status.success(), "{output:?}");
    };
    limit("1");
    kill(before, Signal::SIGKILL).unwrap();
    let began = Instant::now();
    eventually("a refusal", Duration::from_secs(20), || {
        is_refused(&web).then_some(())
    });
    println!(
        "refused {:.0?} after the last responder ended",
        began.elapsed()
    );
    let status = host.status();
    assert_eq!(status["responder"]["pid"], Value::Null, "{status}");
    assert!(
        status["responder"]["failed_starts"].as_u64() >= Some(5),
        "{status}"
    );
    assert!(
        daemon.log().contains("guests are refused"),
        "{}",
        daemon.log()
    );
    limit("10000");
    // Whoever connects while one more start is about to fail is refused a moment later.
    let answer = eventually("an answer", Duration::from_secs(40), || {
        let mut connection = web.try_connect(Address::V4).ok()?;
        connection.exchange("GET", INSTANCE_ID, &[]).ok()
    });
    assert_eq!(answer.text(), web.id());
    assert_ne!(daemon.responder_pid(), before);
    assert_eq!(host.status()["responder"]["failed_starts"], 0);
}

/// Under a service manager that keeps the sockets, not even the death of both processes refuses a guest: it waits in the
/// queue. When the service manager gives up, it is refused.
#[test]
fn connections_wait_while_the_service_manager_keeps_the_sockets() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let store = FdStore::default();
    let mut daemon = host.start_with(&store);
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    for _ in 0..2 {
        let responder = daemon.responder_pid();
        daemon.crash();
        kill(responder, Signal::SIGKILL).unwrap();
        eventually("its end", Duration::from_secs(5), || {
            (!is_alive(responder)).then_some(())
        });
        // Taken into the queue; nobody accepts it yet.
        let mut waiting = web.connect();
        daemon = host.start_with(&store);
        assert_eq!(waiting.get(INSTANCE_ID, &[]).text(), web.id());
    }
    let responder = daemon.responder_pid();
    daemon.crash();
    kill(responder, Signal::SIGKILL).unwrap();
    store.discard();
    eventually("a refusal", Duration::from_secs(2), || {
        is_refused(&web).then_some(())
    });
}

/// Sockets of a namespace that is gone are of no use to anybody, and the service manager would hand them out first.
#[test]
fn sockets_of_a_namespace_that_is_gone_are_kept_by_nobody() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let store = FdStore::default();
    host.start_with(&store).stop();
    host.take_down();
    assert_eq!(store.len(), 2, "of the namespace that was");

    let mut daemon = host.start_with(&store);
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    assert_eq!(store.len(), 2, "of the one that is");
    let responder = daemon.responder_pid();
    daemon.crash();
    kill(responder, Signal::SIGKILL).unwrap();
    eventually("its end", Duration::from_secs(5), || {
        (!is_alive(responder)).then_some(())
    });
    let mut waiting = web.connect();
    let _daemon = host.start_with(&store);
    assert_eq!(waiting.get(INSTANCE_ID, &[]).text(), web.id());
}

/// Only root may tell a responder anything. Who else gets as far as its socket hears nothing, and is not in the way.
#[test]
fn a_stranger_at_the_door_of_a_responder_is_turned_away() {
    if !has_command("setpriv") || !has_command("curl") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let daemon = host.start();
    let responder = daemon.responder_pid();
    daemon.stop();
    let directory = host.state_dir().join("responders");
    let door = Door::all(&directory).unwrap()[0].path().to_owned();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&host.state_dir()), 0o700);
    assert_eq!(mode(&directory), 0o700);
    assert_eq!(mode(&door), 0o600);

    let door = door.to_str().unwrap();
    let knock = [
        "curl",
        "-sS",
        "--max-time",
        "5",
        "--unix-socket",
        door,
        "http://x/",
    ];
    let stranger = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let by_stranger = || host.namespace().run(&[&stranger[..], &knock].concat());
    const CANNOT_CONNECT: i32 = 7;
    assert_eq!(
        by_stranger().status.code(),
        Some(CANNOT_CONNECT),
        "the directories are closed"
    );
    for path in [host.dir(), &host.state_dir(), &directory, door.as_ref()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    // An empty reply, or a reset before the request was written or read.
    const NOTHING_CAME: [i32; 3] = [CANNOT_CONNECT, 52, 56];
    let output = by_stranger();
    let code = output.status.code().unwrap();
    assert!(NOTHING_CAME.contains(&code), "{output:?}");
    // Root is greeted, with something that is no HTTP.
    const NO_HTTP: i32 = 1;
    let output = host.namespace().run(&knock);
    assert_eq!(output.status.code(), Some(NO_HTTP), "{output:?}");

    let daemon = host.start();
    let log = daemon.log();
    assert!(log.contains("user 65534 is not let in"), "{log}");
    assert_eq!(daemon.responder_pid(), responder);
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
}

/// Whoever reads the log may go: neither the daemon nor the responder minds.
#[test]
fn a_log_that_nobody_reads_any_more_harms_nobody() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    host.write_config();
    let script = "\"$0\" run --config \"$1\" --state-dir \"$2\" 2>&1 | head -n 1";
    let (binary, config, state_dir) = (imds_path(), host.config_path(), host.state_dir());
    let mut shell = Command::new("sh");
    shell
        .args(["-c", script])
        .args([&binary, &config, &state_dir])
        .stdout(Stdio::null());
    let mut shell = host.namespace().enter(|| shell.spawn()).unwrap();
    let status = || imds_user::control::client::status(&state_dir).ok();
    let responder = || Some(Pid::from_raw(status()?.responder.pid?.cast_signed()));
    let within = Duration::from_secs(10);
    let first = eventually("a responder", within, responder);
    let daemon = Pid::from_raw(status().unwrap().daemon.pid.cast_signed());

    // What the daemon says of this, nobody hears; and what the next responder says of a stranger neither.
    kill(first, Signal::SIGKILL).unwrap();
    let second = eventually("another responder", within, || {
        responder().filter(|pid| *pid != first)
    });
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    kill(daemon, Signal::SIGTERM).unwrap();
    eventually("the end of the daemon", within, || {
        (!is_alive(daemon)).then_some(())
    });
    let doors = Door::all(&state_dir.join("responders")).unwrap();
    for _ in 0..3 {
        // An order that there is none of, about which the responder warns.
        let mut line = UnixStream::connect(doors[0].path()).unwrap();
        line.write_all(&[9; 8]).unwrap();
        let mut greeting = Vec::new();
        line.read_to_end(&mut greeting).unwrap();
        assert!(greeting.starts_with(b"imdsresp"), "{greeting:?}");
    }
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    assert_eq!(responders_of(&state_dir), [second]);
    shell.wait().unwrap();
}
