//! `host-access = "allow-list"`: of the host's own processes only those in named cgroups reach the host's own metadata
//! service, and so nobody does for whom another process calls. A stand-in at the end of an uplink counts what comes there.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use imds_tests::{
    Address, Cgroup, Connection, Host, INSTANCE_ID, Machine, Random, STAND_IN_ANSWER, Uplink,
    eventually, has_command, imds_path,
};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrIn, sendto};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Bound on a connect. One that is refused by the programs is refused at once.
const WITHIN: Duration = Duration::from_millis(1500);
/// How soon a change of cgroups is followed. Told, it takes milliseconds; looked up, five seconds.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(10);

const BOTH: [Address; 2] = [Address::V4, Address::V6];
const MAPPED: Ipv6Addr = Ipv4Addr::new(169, 254, 169, 254).to_ipv6_mapped();
const V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Has only these cgroups reach the service, from the next start or reload on.
fn allow(host: &mut Host, cgroups: &[&Cgroup]) {
    let names: Vec<String> = cgroups
        .iter()
        .map(|cgroup| format!("\"{}\"", cgroup.name()))
        .collect();
    host.host_keys(&format!(
        "host-access = \"allow-list\"\nhost-access-cgroups = [{}]",
        names.join(", ")
    ));
}

/// What this process, which is in no cgroup of a test, gets when it calls in the host.
fn call(host: &Host, address: Address) -> io::Result<String> {
    host.namespace().enter(|| {
        let mut connection = Connection::open_within(address, WITHIN)?;
        Ok(connection.get("/latest/meta-data/", &[]).text().to_owned())
    })
}

fn check_open(host: &Host) {
    for address in BOTH {
        let answer = call(host, address);
        assert_eq!(answer.expect("nobody is refused"), STAND_IN_ANSWER);
    }
}

fn check_refused(host: &Host, uplink: &Uplink) {
    let before = uplink.packets();
    for address in BOTH {
        check_eperm(call(host, address), &format!("{address:?}"));
    }
    assert_eq!(uplink.packets(), before, "packets at the stand-in");
}

fn check_eperm<T>(outcome: io::Result<T>, what: &str) {
    let errno = outcome.err().and_then(|error| error.raw_os_error());
    assert_eq!(errno, Some(Errno::EPERM as i32), "{what}");
}

/// What a process in a cgroup gets.
fn curl(host: &Host, cgroup: &Cgroup, address: Address) -> Output {
    let url = format!("{}/latest/meta-data/", address.url());
    let argv = ["curl", "-gsS", "--max-time", "5", &url];
    cgroup.run(host.namespace(), &argv)
}

fn check_reaches(host: &Host, cgroup: &Cgroup) {
    for address in BOTH {
        let output = curl(host, cgroup, address);
        let answer = String::from_utf8_lossy(&output.stdout);
        assert_eq!(answer, STAND_IN_ANSWER, "{}: {output:?}", cgroup.name());
    }
}

fn check_kept_out(host: &Host, cgroup: &Cgroup, uplink: &Uplink) {
    let before = uplink.packets();
    for address in BOTH {
        let output = curl(host, cgroup, address);
        // curl's number for a connect that failed.
        assert_eq!(
            output.status.code(),
            Some(7),
            "{}: {output:?}",
            cgroup.name()
        );
    }
    assert_eq!(uplink.packets(), before, "packets at the stand-in");
}

/// Calls without a pause while `act` runs, and at least a few times. Returns how many calls were refused and how many
/// were not.
fn calls_during(host: &Host, act: impl FnOnce()) -> (u64, u64) {
    let is_over = AtomicBool::new(false);
    let (n_refused, n_open) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            host.namespace().enter(|| {
                let to = Address::V4.socket().into();
                while !is_over.load(Ordering::Relaxed) {
                    // Waiting for no answer, so that there is a call in every gap.
                    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
                    socket.set_nonblocking(true).expect("a flag");
                    let errno = socket
                        .connect(&to)
                        .err()
                        .and_then(|error| error.raw_os_error());
                    let counter = match errno == Some(Errno::EPERM as i32) {
                        true => &n_refused,
                        false => &n_open,
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        let guard = OverOnDrop(&is_over);
        act();
        let so_far = n_refused.load(Ordering::Relaxed) + n_open.load(Ordering::Relaxed);
        eventually("another few calls", WITHIN * 10, || {
            let now = n_refused.load(Ordering::Relaxed) + n_open.load(Ordering::Relaxed);
            (now > so_far + 5).then_some(())
        });
        drop(guard);
    });
    (n_refused.into_inner(), n_open.into_inner())
}

/// So that the calls end when a test fails.
struct OverOnDrop<'a>(&'a AtomicBool);

impl Drop for OverOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn all_reach_it_unless_there_is_a_list_and_a_reload_makes_one_and_takes_it_away() {
    let Some(mut host) = Host::new() else { return };
    let uplink = host.uplink("up0");
    host.write_config();
    let open = host.config();
    let mut daemon = host.start();
    check_open(&host);
    allow(&mut host, &[]);
    host.write_config();
    daemon.reload();
    check_refused(&host, &uplink);
    // Read again, it is as it was at every moment.
    let (n_refused, n_open) = calls_during(&host, || {
        for _ in 0..20 {
            daemon.reload();
        }
    });
    assert!(
        n_refused > 0 && n_open == 0,
        "{n_refused} refused, {n_open} not"
    );
    host.write_raw_config(&open);
    daemon.reload();
    check_open(&host);
}

#[test]
fn no_call_to_either_address_gets_out_in_whatever_form() {
    let Some(mut host) = Host::new() else { return };
    let uplink = host.uplink("up0");
    allow(&mut host, &[]);
    let _daemon = host.start();
    let mut n_calls = 0;
    let mut check = |what: &str, outcome: io::Result<()>| {
        check_eperm(outcome, what);
        n_calls += 1;
    };
    let tcp = |domain, protocol, to: SocketAddr| {
        let socket = Socket::new(domain, Type::STREAM, protocol)?;
        socket.connect_timeout(&to.into(), WITHIN)
    };
    host.namespace().enter(|| {
        for port in [80, 1, 8080, 65_535] {
            let v4 = SocketAddr::from((Ipv4Addr::new(169, 254, 169, 254), port));
            check("TCP", tcp(Domain::IPV4, None, v4));
            let v6 = SocketAddr::from((V6, port));
            check("TCP over IPv6", tcp(Domain::IPV6, None, v6));
            let mapped = SocketAddr::from((MAPPED, port));
            check("TCP, mapped", tcp(Domain::IPV6, None, mapped));
            for (what, from, to) in [
                ("UDP", "0.0.0.0:0", v4),
                ("UDP over IPv6", "[::]:0", v6),
                ("UDP, mapped", "[::]:0", mapped),
            ] {
                let socket = || UdpSocket::bind(from).expect("a socket");
                check(what, socket().send_to(b"x", to).map(drop));
                check(what, socket().connect(to));
            }
        }
        // Data with the SYN: the call is not connect(2).
        let fast = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let to = SockaddrIn::new(169, 254, 169, 254, 80);
        let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
        let sent = sendto(fast.as_raw_fd(), b"GET / HTTP/1.0\r\n\r\n", &to, flags);
        check("TCP Fast Open", sent.map(drop).map_err(io::Error::from));
        let v4 = SocketAddr::from((Ipv4Addr::new(169, 254, 169, 254), 80));
        // Not every kernel has it.
        if Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).is_ok() {
            check("MPTCP", tcp(Domain::IPV4, Some(Protocol::MPTCP), v4));
        }
        // A socket that waits for nobody is refused as well.
        let eager = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        SockRef::from(&eager).set_nonblocking(true).expect("a flag");
        check("TCP without waiting", eager.connect(&v4.into()));
    });
    assert_eq!(uplink.packets(), 0);
    assert_eq!(host.counter("host-refused"), n_calls);
    let status = host.status();
    let refused = &status["host_access"]["refused"];
    assert_eq!(refused[Cgroup::own()].as_u64(), Some(n_calls), "{refused}");
    let table = host.command("status");
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    let line = format!(
        "Host       no process may call its own metadata service; refused to {} {n_calls}\n",
        Cgroup::own()
    );
    assert!(table.contains(&line), "{line:?} is missing in\n{table}");

    // What is called elsewhere is nobody's business.
    let elsewhere = [
        SocketAddr::from((uplink.gateway(), 80)),
        SocketAddr::from((uplink.gateway_v6(), 80)),
        SocketAddr::from((uplink.gateway().to_ipv6_mapped(), 80)),
    ];
    for to in elsewhere {
        let refused = call(&host, Address::Other(to))
            .err()
            .map(|error| error.kind());
        assert_eq!(refused, Some(io::ErrorKind::ConnectionRefused), "{to}");
    }
}

#[test]
fn processes_of_a_named_cgroup_and_those_below_reach_it_and_no_others() {
    let Some(mut host) = Host::new() else { return };
    let (Some(named), Some(other)) = (Cgroup::new(), Cgroup::new()) else {
        return;
    };
    if !has_command("curl") {
        return;
    }
    let uplink = host.uplink("up0");
    allow(&mut host, &[&named]);
    let mut daemon = host.start();
    let below = named.child("below");
    let far_below = below.child("far");
    for cgroup in [&named, &below, &far_below] {
        check_reaches(&host, cgroup);
    }
    check_kept_out(&host, &other, &uplink);
    check_refused(&host, &uplink);

    // Another list: those who may no longer are refused, and nobody else gets through meanwhile.
    host.write_raw_config(&host.config().replace(named.name(), other.name()));
    let (n_refused, n_open) = calls_during(&host, || daemon.reload());
    assert!(
        n_refused > 0 && n_open == 0,
        "{n_refused} refused, {n_open} not"
    );
    check_reaches(&host, &other);
    for cgroup in [&named, &below] {
        check_kept_out(&host, cgroup, &uplink);
    }
    let refused = host.status()["host_access"]["refused"].clone();
    assert_eq!(refused[below.name()].as_u64(), Some(2), "{refused}");
    drop(far_below);
    drop(below);
}

/// A service that is started again is in another cgroup of the same name.
#[test]
fn a_cgroup_is_followed_as_it_comes_and_goes() {
    let Some(mut host) = Host::new() else { return };
    let Some(late) = Cgroup::not_yet() else {
        return;
    };
    if !has_command("curl") {
        return;
    }
    let uplink = host.uplink("up0");
    allow(&mut host, &[&late]);
    let daemon = host.start();
    assert!(daemon.log().contains(late.name()), "{}", daemon.log());
    let is_there = || {
        let status = host.status();
        let cgroup = status["host_access"]["cgroups"][0].clone();
        assert_eq!(cgroup["cgroup"], late.name());
        cgroup["is_there"].as_bool().expect("a flag")
    };
    assert!(!is_there());
    check_refused(&host, &uplink);
    for _ in 0..2 {
        if late.make().is_err() {
            return;
        }
        eventually("the cgroup is there", FOLLOWED_WITHIN, || {
            is_there().then_some(())
        });
        check_reaches(&host, &late);
        late.remove();
        eventually("the cgroup is gone", FOLLOWED_WITHIN, || {
            (!is_there()).then_some(())
        });
    }
    check_refused(&host, &uplink);
}

#[test]
fn guests_and_other_hosts_on_the_machine_notice_nothing() {
    let (Some(mut host), Some(mut other)) = (Host::new(), Host::new()) else {
        return;
    };
    let uplink = host.uplink("up0");
    let other_uplink = other.uplink("up0");
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .ipv6("fd00:1::10")
        .up();
    allow(&mut host, &[]);
    let daemon = host.start();
    let mut others_daemon = other.start();
    let check_guest = || {
        for address in BOTH {
            assert_eq!(web.get_from(address, INSTANCE_ID).text(), web.id());
        }
    };
    check_refused(&host, &uplink);
    check_open(&other);
    check_guest();
    // Both refuse, each for itself.
    allow(&mut other, &[]);
    other.write_config();
    others_daemon.reload();
    check_refused(&host, &uplink);
    check_refused(&other, &other_uplink);
    daemon.stop();
    host.take_down();
    check_open(&host);
    check_refused(&other, &other_uplink);
    let refused = other.counter("host-refused");
    assert_eq!(refused, 4, "calls of the other host alone are counted");
}

#[test]
fn it_outlives_the_daemon_and_ends_with_imds_down() {
    let Some(mut host) = Host::new() else { return };
    let Some(named) = Cgroup::new() else { return };
    if !has_command("curl") {
        return;
    }
    let uplink = host.uplink("up0");
    allow(&mut host, &[&named]);
    let mut daemon = host.start();
    let (n_refused, n_open) = calls_during(&host, || {
        daemon.crash();
        let again = host.start();
        again.stop();
    });
    assert!(
        n_refused > 0 && n_open == 0,
        "{n_refused} refused, {n_open} not"
    );
    assert_eq!(uplink.packets(), 0);
    check_reaches(&host, &named);
    let again = host.start();
    check_refused(&host, &uplink);
    check_reaches(&host, &named);
    again.stop();
    host.take_down();
    check_open(&host);
}

/// Programs are attached and pinned one by one, then the former ones are removed one by one. Whenever the daemon is killed,
/// either are all there.
#[test]
fn a_start_that_is_killed_at_one_of_its_system_calls_leaves_nothing_open() {
    /// Of the calls about maps and programs, those about links are the last ones.
    const FROM: usize = 70;
    const ONE_OF: usize = 6;
    if !has_command("strace") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let uplink = host.uplink("up0");
    allow(&mut host, &[]);
    host.start().stop();
    let mut n_killed = 0;
    let (n_refused, n_open) = calls_during(&host, || {
        // Four links and their folder.
        for n in 1..=5 {
            let is_killed = host.start_and_kill_at("unlinkat", n);
            assert!(is_killed, "a start removes {n} things");
        }
        let first = FROM + Random::by_time().below(ONE_OF);
        let ns = (first..).step_by(ONE_OF);
        n_killed = ns.take_while(|n| host.start_and_kill_at("bpf", *n)).count();
    });
    assert!(n_killed > 2, "{n_killed} of the calls from {FROM} on");
    assert!(
        n_refused > 0 && n_open == 0,
        "{n_refused} refused, {n_open} not"
    );
    let _daemon = host.start();
    // What was left half made is gone: nothing refuses twice.
    let before = host.counter("host-refused");
    check_refused(&host, &uplink);
    assert_eq!(host.counter("host-refused"), before + 2);
}

/// Where the tree of cgroups is not there from its root on, nobody could be refused: better no daemon than one that says it
/// does.
#[test]
fn without_the_whole_tree_of_cgroups_there_is_no_start() {
    const UNMOUNT: &str =
        "for P in $(awk '$3 == \"cgroup2\" { print $2 }' /proc/mounts); do umount -l $P; done";
    if !has_command("unshare") || !has_command("awk") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let Some(cgroup) = Cgroup::new() else { return };
    allow(&mut host, &[]);
    host.write_config();
    for (script, words) in [
        (UNMOUNT.to_owned(), "cgroup v2, which is not mounted"),
        (
            format!("{UNMOUNT}; mount -t cgroup2 none /mnt"),
            "/mnt shows a part of it alone",
        ),
    ] {
        let run = format!("{script}; exec \"$@\"");
        let (binary, config, state_dir) = (imds_path(), host.config_path(), host.state_dir());
        let output = cgroup.run(
            host.namespace(),
            &[
                "unshare",
                "--mount",
                "--cgroup",
                "sh",
                "-c",
                &run,
                "sh",
                text(&binary),
                "run",
                "--config",
                text(&config),
                "--state-dir",
                text(&state_dir),
            ],
        );
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(words), "{output:?}");
        assert_eq!(output.status.code(), Some(69), "{output:?}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

/// To the host, what such a guest calls is called by QEMU.
#[test]
fn a_machine_behind_qemus_user_networking_is_refused_and_the_doctor_names_it() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let Some(mut host) = Host::new() else { return };
    let uplink = host.uplink("up0");
    allow(&mut host, &[]);
    let _daemon = host.start();
    let elsewhere = SocketAddr::from((uplink.gateway(), 8080));
    let listener = uplink.namespace().enter(|| TcpListener::bind(elsewhere));
    let listener = listener.expect("the gateway has this port");
    // Longer than it takes a machine to boot without KVM.
    SockRef::from(&listener)
        .set_read_timeout(Some(Duration::from_secs(100)))
        .expect("a socket takes a time-out");
    let script = format!(
        "ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
echo \"metadata: $(curl -sS --max-time 15 http://169.254.169.254/latest/meta-data/ || echo failed)\"
echo \"elsewhere: $(curl -sS --max-time 15 http://{elsewhere}/)\""
    );
    let console = thread::scope(|scope| {
        // While it waits for the machine's second call, the machine is there to be seen.
        let doctor = scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("the machine calls");
            let said = host.imds(&["doctor"]);
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                request.push(byte[0]);
            }
            let answer = "HTTP/1.0 200 OK\r\n\r\nanswered";
            stream
                .write_all(answer.as_bytes())
                .expect("the machine listens");
            String::from_utf8_lossy(&said.stdout).into_owned()
        });
        let console = machine.run_in_user_mode(&host, &script);
        let said = doctor.join().expect("the doctor speaks");
        let line = said
            .lines()
            .find(|line| line.contains("user-mode networking"));
        let line = line.unwrap_or_else(|| panic!("no line of it:\n{said}"));
        assert!(
            line.contains("(qemu-system-x86_64)") && line.contains("host-access"),
            "{line}"
        );
        console
    });
    assert!(console.contains("metadata: failed"), "{console}");
    assert!(console.contains("elsewhere: answered"), "{console}");
    assert_eq!(uplink.packets(), 0);
    assert!(host.counter("host-refused") >= 1);
}
