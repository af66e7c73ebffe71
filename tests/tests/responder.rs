//! The process that parses what guests send can do nothing else, and its death is no outage.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use imds_tests::{
    Address, Connection, Daemon, Guest, Host, INSTANCE_ID, Load, Namespace, Outcome, ProcessStatus,
    Tracee, eventually, is_alive, network_of, patience,
};
use imds_user::capabilities::NEEDED;
use imds_user::netns::NetNs;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn the_responder_has_no_privileges() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let daemon = host.start();
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    let status = ProcessStatus::of(daemon.responder_pid());
    for ids in ["Uid", "Gid"] {
        let root = status.field(ids).split_whitespace().any(|id| id == "0");
        assert!(!root, "{ids}: {}", status.field(ids));
    }
    assert_eq!(status.field("Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status.field(set), "0000000000000000", "{set}");
    }
    assert_eq!(status.field("NoNewPrivs"), "1");
    assert_eq!(status.field("Seccomp"), "2");
}

#[test]
fn the_responder_lives_in_a_network_of_its_own() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let daemon = host.start();
    let inode = network_of(daemon.responder_pid());
    let others = BTreeSet::from([host.namespace().inode(), web.namespace().inode()]);
    assert!(!others.contains(&inode));
    let own = network_of(Pid::this());
    assert_ne!(own, inode);
}

#[test]
fn the_responder_holds_no_file_of_the_host() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    // Whoever starts the daemon may have left something open for its children.
    let left_open = fs::File::open("/proc/self/status").expect("a file");
    fcntl(&left_open, FcntlArg::F_SETFD(FdFlag::empty())).expect("a descriptor takes a flag");
    let daemon = host.start();
    drop(left_open);
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    let descriptors =
        fs::read_dir(format!("/proc/{}/fd", daemon.responder_pid())).expect("root may look");
    let targets = descriptors.filter_map(|entry| Some((entry.ok()?.file_name(), ())));
    for (number, ()) in targets {
        let path = format!(
            "/proc/{}/fd/{}",
            daemon.responder_pid(),
            number.to_string_lossy()
        );
        let Ok(target) = fs::read_link(&path) else {
            continue;
        };
        let target = target.to_string_lossy().into_owned();
        // Standard output and error are the daemon's own, here the test's log.
        let harmless = ["socket:", "anon_inode:", "pipe:", "/dev/null"]
            .iter()
            .any(|kind| target.starts_with(kind));
        assert!(
            harmless || matches!(number.to_str(), Some("1" | "2")),
            "descriptor {number:?} is {target}"
        );
    }
}

#[test]
fn killing_the_responder_under_load_refuses_no_connection() {
    const KILLS: usize = 5;
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let db = host.guest("db").routed("10.0.0.10").up();
    let daemon = host.start();
    let done = AtomicBool::new(false);
    let answered = AtomicU64::new(0);
    thread::scope(|scope| {
        for guest in [&web, &web, &db, &db] {
            scope.spawn(|| {
                guest
                    .namespace()
                    .enter(|| keep_asking(guest, &done, &answered));
            });
        }
        for _ in 0..KILLS {
            let responder = daemon.responder_pid();
            kill(responder, Signal::SIGKILL).expect("the responder runs");
            eventually("another responder", Duration::from_secs(10), || {
                (daemon.responder_pid() != responder).then_some(())
            });
            let before = answered.load(Ordering::Relaxed);
            eventually(
                "answers by the next responder",
                Duration::from_secs(10),
                || (answered.load(Ordering::Relaxed) > before + 20).then_some(()),
            );
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// Every connect has to succeed. A request may be lost with the process that had accepted it, and nothing worse.
fn keep_asking(guest: &Guest, done: &AtomicBool, answered: &AtomicU64) {
    while !done.load(Ordering::Relaxed) {
        let mut connection = Connection::open(Address::V4).expect("a connect is never refused");
        let answer: io::Result<_> = connection.exchange("GET", INSTANCE_ID, &[]);
        if let Ok(answer) = answer {
            assert_eq!(answer.text(), guest.id());
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_token_outlives_the_responder_that_minted_it() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").tokens_required().up();
    let daemon = host.start();
    let token = web.put_token(600);
    let responder = daemon.responder_pid();
    kill(responder, Signal::SIGKILL).expect("the responder runs");
    eventually("another responder", Duration::from_secs(10), || {
        (daemon.responder_pid() != responder).then_some(())
    });
    assert_eq!(web.get_with_token(INSTANCE_ID, &token).text(), web.id());
}

/// Lets something go wrong in a responder under load. Another must take its place within `within`; until then no guest may
/// wait longer, a client may lose the one request that it had under way, and nobody is anybody else at any time.
#[expect(clippy::print_stdout, reason = "for whoever runs the tests")]
fn check_fault(what: &str, within: Duration, inject: impl FnOnce(Pid)) {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let db = host.guest("db").routed("10.0.0.10").up();
    let legacy = host.guest("legacy").bridged("br0", "10.0.1.10").up();
    let daemon = host.start();
    let token = web.put_token(600);
    let guests = [&web, &db, &legacy];
    let load = Load::on(&guests);
    load.go_on_for(100);
    let broken = daemon.responder_pid();
    let began = Instant::now();
    inject(broken);
    eventually("another responder", within, || {
        (next_responder(&daemon, broken)).then_some(())
    });
    let recovery = began.elapsed();
    load.go_on_for(100);
    eventually("the end of the broken one", Duration::from_secs(10), || {
        (!is_alive(broken)).then_some(())
    });
    let figures = load.finish();
    println!("{what}: another serves after {recovery:.0?}; {figures}");
    figures.assert_no_wrong_identity(what);
    let clients = guests.len() * 2;
    let failed = &figures.failed;
    assert!(failed.len() <= clients, "{what}: {failed:?}");
    assert!(
        !failed.iter().any(|failed| failed.contains("refused")),
        "{what}: {failed:?}"
    );
    assert!(
        figures.longest < patience(within + Duration::from_secs(5)),
        "{what}: {figures}"
    );
    assert_eq!(web.get_with_token(INSTANCE_ID, &token).text(), web.id());
}

/// Whether another responder serves; asked without waiting, as a fault may leave none for a moment.
fn next_responder(daemon: &Daemon, broken: Pid) -> bool {
    daemon.responder_now().is_some_and(|now| now != broken)
}

#[test]
fn a_killed_responder_is_replaced() {
    check_fault("a kill", Duration::from_secs(2), |responder| {
        kill(responder, Signal::SIGKILL).unwrap();
    });
}

#[test]
fn a_responder_that_aborts_is_replaced() {
    check_fault("an abort", Duration::from_secs(2), |responder| {
        kill(responder, Signal::SIGABRT).unwrap();
    });
}

/// A system call of a worker fails as it never should: the event loop panics, and the process ends as a whole instead of
/// serving on with a thread less.
#[test]
fn a_responder_in_which_a_thread_panics_is_replaced() {
    check_fault("a panic", Duration::from_secs(2), |responder| {
        Tracee::seize(responder, "worker-0").fail(Errno::EBADF);
    });
}

/// A worker that computes for ever keeps its own connections waiting until the daemon notices; the other workers go on.
#[test]
fn a_responder_in_which_a_thread_loops_is_replaced() {
    check_fault("an endless loop", Duration::from_secs(8), |responder| {
        Tracee::seize(responder, "worker-0").loop_forever();
    });
}

/// The thread that listens to the daemon: guests do not even notice.
#[test]
fn a_responder_that_does_not_listen_any_more_is_replaced() {
    check_fault(
        "a loop in the thread that listens",
        Duration::from_secs(8),
        |responder| {
            Tracee::seize(responder, "imds-respond").loop_forever();
        },
    );
}

#[test]
fn a_stopped_responder_is_replaced() {
    check_fault("a stop", Duration::from_secs(8), |responder| {
        kill(responder, Signal::SIGSTOP).unwrap();
    });
}

/// System calls that a responder which was broken into could try, made by the responder itself, confined as it is.
struct Attempts {
    daemon: Daemon,
    _host: Host,
}

const PATH: &[u8] = b"/etc/passwd\0";

impl Attempts {
    fn new() -> Option<Self> {
        let mut host = Host::new()?;
        let web = host.guest("web").routed("10.0.0.10").up();
        let daemon = host.start();
        assert_eq!(web.get(INSTANCE_ID).text(), web.id());
        Some(Self {
            daemon,
            _host: host,
        })
    }

    /// Makes the responder of the moment try a system call, whose first argument that is "the path" names a file.
    fn check(&self, what: &str, number: libc::c_long, arguments: [Argument; 6], expected: Outcome) {
        let responder = self.daemon.responder_pid();
        let mut thread = Tracee::seize(responder, "worker-0");
        let path = thread.lend(PATH);
        let arguments = arguments.map(|argument| match argument {
            Argument::Path => path,
            Argument::Number(number) => number.cast_unsigned(),
        });
        assert_eq!(thread.call(number, arguments), expected, "{what}");
        drop(thread);
        if matches!(expected, Outcome::Killed(_)) {
            eventually("another responder", Duration::from_secs(10), || {
                next_responder(&self.daemon, responder).then_some(())
            });
        }
    }
}

#[derive(Clone, Copy)]
enum Argument {
    Path,
    Number(i64),
}

const BAD_SYSTEM_CALL: Outcome = Outcome::Killed(Signal::SIGSYS);

/// Arguments of a system call; zeros behind.
fn with<const N: usize>(given: [Argument; N]) -> [Argument; 6] {
    let mut all = [Argument::Number(0); 6];
    all[..N].copy_from_slice(&given);
    all
}

fn numbers<const N: usize>(given: [i64; N]) -> [Argument; 6] {
    with(given.map(Argument::Number))
}

/// What the thread that is examined does all day has to work, or the refusals below would prove nothing.
#[test]
fn the_responder_may_do_what_serving_takes() {
    let Some(attempts) = Attempts::new() else {
        return;
    };
    let pid = i64::from(attempts.daemon.responder_pid().as_raw());
    attempts.check("getpid", libc::SYS_getpid, numbers([]), Outcome::Done(pid));
    attempts.check(
        "sched_yield",
        libc::SYS_sched_yield,
        numbers([]),
        Outcome::Done(0),
    );
    let bad = Outcome::Refused(Errno::EBADF);
    attempts.check("read", libc::SYS_read, numbers([-1]), bad);
    attempts.check("accept4", libc::SYS_accept4, numbers([-1]), bad);
}

#[test]
fn the_responder_cannot_open_a_file() {
    let Some(attempts) = Attempts::new() else {
        return;
    };
    const HERE: i64 = libc::AT_FDCWD as i64;
    let in_here = |more| {
        with([
            Argument::Number(HERE),
            Argument::Path,
            Argument::Number(more),
        ])
    };
    // Refused without an end, for the sake of glibc's allocator.
    attempts.check(
        "openat",
        libc::SYS_openat,
        in_here(0),
        Outcome::Refused(Errno::EACCES),
    );
    attempts.check("openat2", libc::SYS_openat2, in_here(0), BAD_SYSTEM_CALL);
    attempts.check("unlinkat", libc::SYS_unlinkat, in_here(0), BAD_SYSTEM_CALL);
    attempts.check(
        "newfstatat",
        libc::SYS_newfstatat,
        in_here(0),
        BAD_SYSTEM_CALL,
    );
    attempts.check(
        "memfd_create",
        libc::SYS_memfd_create,
        with([Argument::Path]),
        BAD_SYSTEM_CALL,
    );
    attempts.check(
        "mount",
        libc::SYS_mount,
        with([Argument::Path; 2]),
        BAD_SYSTEM_CALL,
    );
    attempts.check(
        "chroot",
        libc::SYS_chroot,
        with([Argument::Path]),
        BAD_SYSTEM_CALL,
    );
}

#[test]
fn the_responder_cannot_make_a_socket() {
    let Some(attempts) = Attempts::new() else {
        return;
    };
    for (family, kind) in [
        (libc::AF_INET, libc::SOCK_STREAM),
        (libc::AF_INET6, libc::SOCK_DGRAM),
        (libc::AF_UNIX, libc::SOCK_STREAM),
        (libc::AF_NETLINK, libc::SOCK_RAW),
        (libc::AF_PACKET, libc::SOCK_RAW),
        (libc::AF_VSOCK, libc::SOCK_STREAM),
    ] {
        let arguments = numbers([family.into(), kind.into()]);
        attempts.check(
            &format!("socket of family {family}"),
            libc::SYS_socket,
            arguments,
            BAD_SYSTEM_CALL,
        );
    }
    attempts.check(
        "socketpair",
        libc::SYS_socketpair,
        numbers([1, 1]),
        BAD_SYSTEM_CALL,
    );
    attempts.check("connect", libc::SYS_connect, numbers([0]), BAD_SYSTEM_CALL);
    attempts.check("bind", libc::SYS_bind, numbers([0]), BAD_SYSTEM_CALL);
    attempts.check("listen", libc::SYS_listen, numbers([0]), BAD_SYSTEM_CALL);
}

#[test]
fn the_responder_reaches_no_map_no_process_and_no_program() {
    let Some(attempts) = Attempts::new() else {
        return;
    };
    let own = i64::from(Pid::this().as_raw());
    attempts.check("bpf", libc::SYS_bpf, numbers([0]), BAD_SYSTEM_CALL);
    attempts.check(
        "perf_event_open",
        libc::SYS_perf_event_open,
        numbers([0]),
        BAD_SYSTEM_CALL,
    );
    attempts.check(
        "ptrace",
        libc::SYS_ptrace,
        numbers([16, own]),
        BAD_SYSTEM_CALL,
    );
    attempts.check(
        "process_vm_readv",
        libc::SYS_process_vm_readv,
        numbers([own]),
        BAD_SYSTEM_CALL,
    );
    attempts.check(
        "pidfd_open",
        libc::SYS_pidfd_open,
        numbers([own]),
        BAD_SYSTEM_CALL,
    );
    attempts.check("kill", libc::SYS_kill, numbers([own]), BAD_SYSTEM_CALL);
    // Which abort(3) needs, and which reaches nobody else.
    let signal = numbers([own, own]);
    attempts.check(
        "tgkill",
        libc::SYS_tgkill,
        signal,
        Outcome::Refused(Errno::EPERM),
    );
    attempts.check(
        "execve",
        libc::SYS_execve,
        with([Argument::Path]),
        BAD_SYSTEM_CALL,
    );
    attempts.check("clone", libc::SYS_clone, numbers([17]), BAD_SYSTEM_CALL);
    attempts.check(
        "unshare",
        libc::SYS_unshare,
        numbers([0x1000_0000]),
        BAD_SYSTEM_CALL,
    );
    attempts.check("setns", libc::SYS_setns, numbers([0]), BAD_SYSTEM_CALL);
    attempts.check("setuid", libc::SYS_setuid, numbers([0]), BAD_SYSTEM_CALL);
    attempts.check(
        "io_uring_setup",
        libc::SYS_io_uring_setup,
        numbers([1]),
        BAD_SYSTEM_CALL,
    );
}

/// Root itself, put into the responder's namespace, reaches nothing but guests from there, each at its own port: what a
/// responder that had broken out of everything else could do.
#[test]
fn nothing_leaves_the_responders_network_but_answers_to_guests() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let other = host
        .guest("other")
        .bridged("br0", "10.0.1.10")
        .unregistered()
        .up();
    let outside = Namespace::new();
    host.namespace().ip(&format!(
        "link add uplink type veth peer name eth0 netns {}\n\
         link set uplink up\naddress add 198.51.100.1/24 dev uplink\nroute add default via 198.51.100.2",
        outside.path()
    ));
    outside.ip("link set eth0 up\naddress add 198.51.100.2/24 dev eth0\naddress add 169.254.169.254/32 dev eth0");
    host.namespace().sysctl("net/ipv4/ip_forward", "1");
    let daemon = host.start();
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());

    let responder = format!("/proc/{}/ns/net", daemon.responder_pid());
    let inside = NetNs::open_path(responder.as_ref()).expect("root may look");
    let targets: [(&str, [u8; 4], &Namespace); 5] = [
        ("the host", [198, 51, 100, 1], host.namespace()),
        ("the host's bridge", [10, 0, 1, 1], host.namespace()),
        (
            "an instance's guest, unasked",
            [10, 0, 0, 10],
            web.namespace(),
        ),
        (
            "another machine of the host",
            [10, 0, 1, 10],
            other.namespace(),
        ),
        ("the world", [198, 51, 100, 2], &outside),
    ];
    let tag = host.status()["ports"][0]["slot"].as_u64().expect("a slot");
    let tag = Ipv4Addr::from_bits(0x7f80_0000 | u32::try_from(tag).expect("a slot has 23 bits"));
    let dropped = host.counter("reply-foreign");
    for (what, address, place) in targets {
        let (tcp, udp) = place.enter(|| {
            (
                TcpListener::bind("0.0.0.0:7777").unwrap(),
                UdpSocket::bind("0.0.0.0:7777").unwrap(),
            )
        });
        tcp.set_nonblocking(true).unwrap();
        udp.set_nonblocking(true).unwrap();
        let target = SocketAddr::from((address, 7777));
        inside
            .run(|| {
                for source in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST, tag] {
                    let socket = UdpSocket::bind((source, 0)).unwrap();
                    // No route from this source is as good as a packet that is dropped.
                    socket.send_to(b"out", target).ok();
                }
                let within = Duration::from_millis(200);
                assert!(
                    Connection::open_within(Address::Other(target), within).is_err(),
                    "{what}"
                );
            })
            .unwrap();
        let nobody = |error: io::Error| error.kind() == io::ErrorKind::WouldBlock;
        assert!(udp.recv(&mut [0; 8]).is_err_and(nobody), "UDP to {what}");
        assert!(tcp.accept().is_err_and(nobody), "TCP to {what}");
    }
    let dropped = host.counter("reply-foreign") - dropped;
    println!("{dropped} packets were dropped on their way out");
    assert!(dropped > 0, "nothing was even tried");
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
}

/// Of root's rights the daemon keeps those that it lists, as far as it was given them, and what it starts gets no other.
#[test]
fn the_daemon_keeps_the_capabilities_that_it_needs_and_no_other() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let daemon = host.start();
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    let set = |of: &ProcessStatus, name: &str| {
        u64::from_str_radix(of.field(name), 16).expect("sets are hexadecimal")
    };
    let given = set(&ProcessStatus::of(Pid::this()), "CapEff");
    let status = ProcessStatus::of(daemon.pid());
    for bit in 0..64 {
        let one = 1 << bit;
        let is_needed = NEEDED.iter().any(|needed| needed.is_in(one));
        let expected = given & one != 0 && is_needed;
        for name in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(
                set(&status, name) & one != 0,
                expected,
                "{name}, capability {bit}"
            );
        }
    }
    for name in ["CapInh", "CapAmb"] {
        assert_eq!(set(&status, name), 0, "{name}");
    }
    assert!(set(&status, "CapEff").count_ones() < 12, "a handful");
}
