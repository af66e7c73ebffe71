//! Interfaces come and go while the daemon runs: guests are served when theirs are there, and an interface that is a
//! guest's is never open.

use std::collections::BTreeMap;
use std::io;
use std::process::Output;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use imds_tests::{
    Address, Connection, Guest, Host, INSTANCE_ID, InstanceText, Response, eventually, has_command,
    imds_path,
};
use imds_user::netns::NetNs;
use serde_json::Value;

const OK: Option<i32> = Some(0);
const WRONG_USE: Option<i32> = Some(64);
const MISSING: Option<i32> = Some(69);

/// Bound on what the daemon does when an interface comes or goes; it takes some ten milliseconds.
const SOON: Duration = Duration::from_secs(5);
/// Long enough for a lost SYN to be sent again, so that silence is an answer.
const SILENCE: Duration = Duration::from_millis(1500);

/// Waits until the guest is answered; its id. It asks only then, so that what leaks is none of its questions.
fn id_told(host: &Host, guest: &Guest) -> String {
    let wait = format!("wait --port {}", guest.port());
    check_done(&host.command(&wait));
    guest.get(INSTANCE_ID).text().to_owned()
}

fn check_silence(guest: &Guest) {
    let connected = guest
        .namespace()
        .enter(|| Connection::open_within(Address::V4, SILENCE));
    let error = connected.err().expect("a closed port lets nothing through");
    let is_silence = matches!(
        error.kind(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock | io::ErrorKind::HostUnreachable
    );
    assert!(is_silence, "{error}");
}

/// The rows of a list in `imds status`, by their ports.
fn listed(host: &Host, list: &str) -> BTreeMap<String, Value> {
    let status = host.status();
    let rows = status["discovery"][list].as_array().expect("a list");
    let by_port = |row: &Value| {
        (
            row["port"].as_str().expect("a port").to_owned(),
            row.clone(),
        )
    };
    rows.iter().map(by_port).collect()
}

fn why<'a>(rows: &'a BTreeMap<String, Value>, port: &str) -> &'a str {
    let row = rows.get(port);
    row.and_then(|row| row["why"].as_str())
        .unwrap_or_else(|| panic!("{port} is not among {rows:?}"))
}

fn eventually_listed(host: &Host, list: &str, ports: &[&str]) {
    eventually(&format!("{list}: {ports:?}"), SOON, || {
        let rows = listed(host, list);
        let found: Vec<&str> = rows.keys().map(String::as_str).collect();
        (found == ports).then_some(())
    });
}

fn ifindex(host: &Host, interface: &str) -> u64 {
    let links = host.namespace().links();
    let link = links.iter().find(|link| link["ifname"] == interface);
    link.and_then(|link| link["ifindex"].as_u64())
        .unwrap_or_else(|| panic!("no {interface}"))
}

fn said(output: &Output) -> String {
    let streams = [&output.stdout, &output.stderr];
    streams.map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

fn check_done(output: &Output) {
    assert_eq!(output.status.code(), OK, "{}", said(output));
}

/// Gives the host itself the metadata address, as if its own service were there: what arrives has got past us. Nobody
/// answers, since nobody has to.
fn stand_in(host: &Host) {
    host.namespace().ip("address add 169.254.169.254/32 dev lo");
}

/// TCP segments that the host itself was given. It uses no TCP for anything else.
fn n_leaked(host: &Host) -> u64 {
    let snmp = host
        .namespace()
        .enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))
        .expect("the kernel counts");
    let mut tcp = snmp.lines().filter(|line| line.starts_with("Tcp: "));
    let (names, values) = (tcp.next().expect("names"), tcp.next().expect("values"));
    let mut counters = names.split(' ').zip(values.split(' '));
    let (_, value) = counters
        .find(|(name, _)| *name == "InSegs")
        .expect("a counter of segments");
    value.parse().expect("a number")
}

/// Sends a SYN or two and does not wait for an answer.
fn knock(guest: &Guest) {
    let within = Duration::from_millis(50);
    let knock = || Connection::open_within(Address::V4, within);
    assert!(guest.namespace().enter(knock).is_err(), "nobody is there");
}

#[test]
fn a_guest_is_served_when_its_interface_comes_and_again_when_it_comes_back() {
    let Some(mut host) = Host::new() else { return };
    let id = "i-0123456789abcdef0";
    host.add_instance(InstanceText::new("web", "veth-web", id));
    let daemon = host.start();
    assert!(daemon.log().contains("veth-web"), "{}", daemon.log());
    eventually_listed(&host, "waiting", &["veth-web"]);
    assert_eq!(host.status()["ports"][0]["state"], "waiting");
    let mut token = None;
    for _ in 0..5 {
        let web = host.guest("web").routed("10.0.0.10").unregistered().up();
        assert_eq!(id_told(&host, &web), id);
        eventually_listed(&host, "waiting", &[]);
        // Its tokens are the instance's, whichever interface it has.
        let token = token.get_or_insert_with(|| web.put_token(60));
        assert_eq!(web.get_with_token(INSTANCE_ID, token).text(), id);
        host.namespace().ip("link delete veth-web");
        eventually_listed(&host, "waiting", &["veth-web"]);
    }
}

#[test]
fn a_near_miss_in_an_interfaces_name_is_told() {
    let Some(mut host) = Host::new() else { return };
    let _web = host.guest("web").routed("10.0.0.10").unregistered().up();
    host.add_instance(InstanceText::new("web", "veth-wbe", "i-0123456789abcdef0"));
    let daemon = host.start();
    for text in [
        daemon.log(),
        why(&listed(&host, "waiting"), "veth-wbe").to_owned(),
        said(&host.command("status")),
    ] {
        assert!(
            text.contains("veth-wbe") && text.contains("`veth-web`"),
            "{text}"
        );
    }
}

/// The interface is closed, its guest is listed with a command, and the command does it.
#[test]
fn an_unknown_guest_is_closed_until_it_is_admitted() {
    let Some(mut host) = Host::new() else { return };
    host.tables("[discovery]\nports = [\"veth-n*\"]");
    let web = host.guest("web").routed("10.0.0.10").up();
    let before = host.guest("nobody").routed("10.0.0.11").unregistered().up();
    let outside = host
        .guest("outside")
        .routed("10.0.0.12")
        .unregistered()
        .up();
    stand_in(&host);
    let daemon = host.start();
    let after = host.guest("new").routed("10.0.0.13").unregistered().up();
    eventually_listed(&host, "closed", &["veth-new", "veth-nobody"]);
    check_silence(&before);
    check_silence(&after);
    assert_eq!(n_leaked(&host), 0);
    // What no pattern matches is none of ours, and this is what would have become of the others.
    knock(&outside);
    let leaked = n_leaked(&host);
    assert!(leaked > 0);

    let rows = listed(&host, "closed");
    let command = rows["veth-new"]["admit"].as_str().expect("a command");
    let words: Vec<&str> = command.split(' ').skip(1).collect();
    check_done(&host.imds(&words));
    eventually_listed(&host, "closed", &["veth-nobody"]);
    let id = id_told(&host, &after);
    assert!(id.starts_with("i-") && id != web.id(), "{id}");
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    check_silence(&before);
    assert_eq!(n_leaked(&host), leaked);

    daemon.stop();
    let daemon = host.start();
    assert_eq!(id_told(&host, &after), id);
    daemon.stop();
}

#[test]
fn an_admitted_guest_is_what_the_command_says_and_can_be_forgotten() {
    let Some(mut host) = Host::new() else { return };
    host.tables("[discovery]\nports = [\"veth-*\"]");
    let web = host.guest("web").routed("10.0.0.10").up();
    let new = host.guest("new").routed("10.0.0.11").unregistered().up();
    let other = host.guest("other").routed("10.0.0.12").unregistered().up();
    let _daemon = host.start();
    let refusals = [
        ("admit --port veth-web", "web"),
        ("admit --port veth-none", "--by-name"),
        ("admit --port veth-new --name web", "web"),
        ("admit --port veth-new http-tokens=mandatory", "required"),
        ("admit --port veth-new http-token=required", "http-tokens"),
        ("admit --port veth-new id=i-1", "i-1"),
        ("admit --port veth-new nonsense", "key"),
        ("admit --port no/port", "no/port"),
        ("forget web", "configuration"),
        ("forget nobody", "nobody"),
    ];
    for (line, word) in refusals {
        let output = host.command(line);
        assert_eq!(output.status.code(), WRONG_USE, "{line}: {}", said(&output));
        assert!(said(&output).contains(word), "{line}: {}", said(&output));
    }
    let same_id = format!("admit --port veth-new id={}", web.id());
    assert_eq!(host.command(&same_id).status.code(), WRONG_USE);
    check_silence(&new);

    check_done(&host.command(
        "admit --port veth-new --name cache type=m5.large http-tokens=required tags.Name=c",
    ));
    check_done(&host.command("admit --port veth-other"));
    let token = eventually("a token", SOON, || {
        let mut connection = new.try_connect(Address::V4).ok()?;
        Some(connection.put_token(60))
    });
    assert_eq!(new.get(INSTANCE_ID).status(), 401);
    let kind = new.get_with_token("/latest/meta-data/instance-type", &token);
    assert_eq!(kind.text(), "m5.large");
    check_done(&host.command("instance show cache"));
    let mut open = other.connect();
    assert_eq!(open.get(INSTANCE_ID, &[]).status(), 200);

    check_done(&host.command("forget cache"));
    check_done(&host.command("forget veth-other"));
    eventually_listed(&host, "closed", &["veth-new", "veth-other"]);
    check_silence(&new);
    assert!(open.exchange("GET", INSTANCE_ID, &[]).is_err());
    assert_eq!(host.command("forget cache").status.code(), WRONG_USE);
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
}

/// The next interface of the name is another guest's.
#[test]
fn an_interface_made_anew_is_admitted_anew_unless_it_is_admitted_by_name() {
    let Some(mut host) = Host::new() else { return };
    host.tables("[discovery]\nports = [\"veth-*\"]");
    stand_in(&host);
    let daemon = host.start();
    let plug = |host: &mut Host, name| host.guest(name).routed("10.0.0.10").unregistered().up();
    let one = plug(&mut host, "one");
    check_done(&host.command("wait --port veth-one --closed"));
    check_done(&host.command("admit --port veth-one"));
    check_done(&host.command("admit --port veth-two --by-name"));
    let two = plug(&mut host, "two");
    let (id_of_one, id_of_two) = (id_told(&host, &one), id_told(&host, &two));
    for name in ["one", "two"] {
        host.namespace().ip(&format!("link delete veth-{name}"));
    }
    let one = plug(&mut host, "one");
    let two = plug(&mut host, "two");
    assert_eq!(id_told(&host, &two), id_of_two);
    check_done(&host.command("wait --port veth-one --closed"));
    check_silence(&one);
    daemon.stop();
    let daemon = host.start();
    check_silence(&one);
    assert_eq!(id_told(&host, &two), id_of_two);
    check_done(&host.command("admit --port veth-one"));
    assert_ne!(id_told(&host, &one), id_of_one);
    // It goes while no daemon runs, and another comes.
    daemon.stop();
    host.namespace().ip("link delete veth-one");
    let one = plug(&mut host, "one");
    let _daemon = host.start();
    check_silence(&one);
    assert_eq!(n_leaked(&host), 0);
}

#[test]
fn after_a_wait_no_packet_of_the_guest_passes() {
    const GUESTS: usize = 25;
    let Some(mut host) = Host::new() else { return };
    host.tables("[discovery]\nports = [\"veth-*\"]");
    stand_in(&host);
    let _daemon = host.start();
    let mut slowest = Duration::ZERO;
    for number in 0..GUESTS {
        let name = format!("g{number}");
        let guest = host.guest(&name).routed("10.0.0.10").unregistered().up();
        let begin = Instant::now();
        check_done(&host.command(&format!("wait --port {} --closed", guest.port())));
        slowest = slowest.max(begin.elapsed());
        // Now it starts, and this is the first thing that it does.
        knock(&guest);
    }
    assert_eq!(n_leaked(&host), 0);
    println!("discovery: the slowest of {GUESTS} waits took {slowest:?}");
}

#[test]
fn a_wait_ends_when_the_port_is_served_and_says_what_is_in_the_way_otherwise() {
    let Some(mut host) = Host::new() else { return };
    host.tables("[discovery]\nports = [\"veth-n*\"]");
    host.add_instance(InstanceText::new(
        "late",
        "veth-late",
        "i-0123456789abcdef0",
    ));
    let no_daemon = host.command("wait --port veth-late --timeout 100ms");
    assert_eq!(no_daemon.status.code(), MISSING, "{}", said(&no_daemon));
    let _daemon = host.start();
    let _nobody = host.guest("nobody").routed("10.0.0.11").unregistered().up();
    let _open = host.guest("open").routed("10.0.0.12").unregistered().up();
    check_done(&host.command("wait --port veth-nobody --closed"));
    for (line, code, word) in [
        ("--port veth-late --timeout 100ms", MISSING, "not there"),
        (
            "--port veth-late --closed --timeout 100ms",
            MISSING,
            "not there",
        ),
        ("--port veth-nobody --timeout 100ms", MISSING, "not known"),
        (
            "--port veth-open --closed --timeout 100ms",
            MISSING,
            "no pattern",
        ),
        ("--port veth/x", WRONG_USE, "veth/x"),
        ("--port veth-late --timeout soon", WRONG_USE, "10s"),
        ("--closed", WRONG_USE, "--port"),
    ] {
        let output = host.command(&format!("wait {line}"));
        assert_eq!(output.status.code(), code, "{line}: {}", said(&output));
        assert!(said(&output).contains(word), "{line}: {}", said(&output));
    }

    let plugged = AtomicBool::new(false);
    let mut took = Duration::ZERO;
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let output = host.command("wait --port veth-late --timeout 20s");
            assert!(plugged.load(Ordering::Relaxed), "it did not wait");
            output
        });
        thread::sleep(Duration::from_millis(200));
        plugged.store(true, Ordering::Relaxed);
        let begin = Instant::now();
        host.namespace()
            .ip("link add veth-late type veth peer name other");
        check_done(&waiting.join().expect("no panic"));
        took = begin.elapsed();
    });
    println!("discovery: {took:?} from an interface's making to the end of a wait for it");
    check_done(&host.command("instance stop late"));
    check_done(&host.command("wait --port veth-late --closed"));
    let stopped = host.command("wait --port veth-late --timeout 100ms");
    assert_eq!(stopped.status.code(), MISSING);
    assert!(said(&stopped).contains("stopped"), "{}", said(&stopped));
}

/// What is served, attached and told is about the interface that is there, not the one that was.
#[test]
fn a_wait_is_about_the_interface_that_is_there_now() {
    let Some(mut host) = Host::new() else { return };
    host.add_instance(InstanceText::new("web", "veth-web", "i-0123456789abcdef0"));
    let _daemon = host.start();
    for _ in 0..20 {
        host.namespace()
            .ip("link add veth-web type veth peer name other");
        check_done(&host.command("wait --port veth-web"));
        let index = ifindex(&host, "veth-web");
        assert_eq!(host.status()["ports"][0]["ifindex"], index);
        host.namespace().ip("link delete veth-web");
    }
}

#[test]
fn the_guest_of_a_named_namespace_is_found_by_that_name() {
    let Some(mut host) = Host::new() else { return };
    let names = ["blue", "red"].map(|name| format!("imds-{name}-{}", std::process::id()));
    let ids = ["i-0bbbbbbbbbbbbbbbb", "i-0eeeeeeeeeeeeeeee"];
    let mut toml = String::new();
    for (name, id) in names.iter().zip(ids) {
        toml.push_str(&format!(
            "[[instance]]\nnetns = \"{name}\"\nid = \"{id}\"\n"
        ));
    }
    host.tables(&toml);
    let daemon = host.start();
    let waiting: Vec<String> = names.iter().map(|name| format!("netns {name}")).collect();
    eventually_listed(&host, "waiting", &[&waiting[0], &waiting[1]]);

    let named: Vec<Named> = names.iter().map(|name| Named::new(name)).collect();
    for (number, namespace) in named.iter().enumerate() {
        // Made here and moved there, as container runtimes do.
        host.namespace().ip(&format!(
            "link add port-{number} type veth peer name eth0\n\
             link set port-{number} up\n\
             link set eth0 netns {}",
            namespace.0
        ));
        namespace.configure();
    }
    for (namespace, id) in named.iter().zip(ids) {
        namespace.check_id(id);
    }
    // A restart finds them again.
    daemon.stop();
    let _daemon = host.start();
    for (namespace, id) in named.iter().zip(ids) {
        namespace.check_id(id);
    }
    // The other end goes to the other namespace: who is there is who it is.
    host.namespace().ip("link delete port-1");
    eventually_listed(&host, "waiting", &[&waiting[1]]);
    named[0].run("link set eth0 down\nlink set eth0 name eth7");
    named[0].run(&format!("link set eth7 netns {}", named[1].0));
    named[1].run("link set eth7 name eth0");
    named[1].configure();
    named[1].check_id(ids[1]);
}

/// A namespace with a name, which goes with this value.
struct Named(String);

impl Named {
    fn new(name: &str) -> Self {
        NetNs::create(name).expect("nobody has this name");
        Self(name.to_owned())
    }

    fn run(&self, lines: &str) {
        let namespace = NetNs::open(&self.0).expect("it was made");
        let ip = || {
            for line in lines.lines() {
                let words: Vec<&str> = std::iter::once("ip").chain(line.split(' ')).collect();
                let output = imds_tests::run(&words);
                assert!(output.status.success(), "{line}: {output:?}");
            }
        };
        namespace.run(ip).expect("root may enter");
    }

    fn configure(&self) {
        self.run(
            "link set eth0 up\naddress add 10.0.0.10/32 dev eth0\nroute add 169.254.169.254/32 dev eth0 src 10.0.0.10",
        );
    }

    fn check_id(&self, id: &str) {
        let namespace = NetNs::open(&self.0).expect("it was made");
        let ask = || {
            let mut connection = Connection::open(Address::V4).ok()?;
            let answer = connection.exchange("GET", INSTANCE_ID, &[]).ok()?;
            (answer.text() == id).then_some(())
        };
        eventually(&format!("{id} in {}", self.0), SOON, || {
            namespace.run(ask).expect("root may enter")
        });
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        NetNs::delete(&self.0).ok();
    }
}

/// The address that decides is that of the host's own end; the guest may give its end what it likes.
#[test]
fn a_guest_is_found_by_the_address_of_the_hosts_interface_alone() {
    let Some(mut host) = Host::new() else { return };
    host.tables(
        "[[instance]]\nname = \"same\"\nport-mac = \"02:00:00:00:00:07\"\nid = \"i-0aaaaaaaaaaaaaaaa\"\n\
         [[instance]]\nname = \"libvirt\"\nport-mac = \"52:54:00:12:34:56\"\nid = \"i-0bbbbbbbbbbbbbbbb\"\n\
         [discovery]\nports = [\"veth-*\"]",
    );
    let _daemon = host.start();
    let plug = |host: &mut Host, name| host.guest(name).on_link("10.0.0.10").unregistered().up();
    let same = plug(&mut host, "x1");
    let libvirt = plug(&mut host, "x2");
    let liar = plug(&mut host, "x3");
    liar.namespace()
        .ip("link set eth0 address 52:54:00:12:34:56");
    host.namespace().ip(
        "link set veth-x1 address 02:00:00:00:00:07\nlink set veth-x2 address fe:54:00:12:34:56",
    );
    assert_eq!(id_told(&host, &same), "i-0aaaaaaaaaaaaaaaa");
    assert_eq!(id_told(&host, &libvirt), "i-0bbbbbbbbbbbbbbbb");
    eventually_listed(&host, "closed", &["veth-x3"]);
    check_silence(&liar);
    libvirt
        .namespace()
        .ip("link set eth0 address 02:00:00:00:00:07");
    assert_eq!(id_told(&host, &libvirt), "i-0bbbbbbbbbbbbbbbb");
}

#[test]
fn a_template_makes_an_instance_of_every_interface_that_matches() {
    let Some(mut host) = Host::new() else { return };
    host.tables(
        "[[template]]\nports = [\"veth-t*\"]\ntype = \"m5.large\"\n[template.metadata-options]\nhttp-tokens = \"required\"",
    );
    let web = host.guest("twin").routed("10.0.0.10").up();
    let plug = |host: &mut Host, name| host.guest(name).routed("10.0.0.10").unregistered().up();
    let before = plug(&mut host, "t1");
    let daemon = host.start();
    let after = plug(&mut host, "t2");
    let tell = |guest: &Guest| {
        let token = eventually("a token", SOON, || {
            Some(guest.try_connect(Address::V4).ok()?.put_token(60))
        });
        let kind = guest.get_with_token("/latest/meta-data/instance-type", &token);
        assert_eq!(kind.text(), "m5.large");
        guest.get_with_token(INSTANCE_ID, &token).text().to_owned()
    };
    let (one, two) = (tell(&before), tell(&after));
    assert_ne!(one, two);
    // Who is named is no template's.
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    daemon.stop();
    let mut daemon = host.start();
    assert_eq!((tell(&before), tell(&after)), (one.clone(), two));
    // An interface made anew under its name is another instance.
    host.namespace().ip("link delete veth-t1");
    let again = plug(&mut host, "t1");
    assert_ne!(tell(&again), one);
    // What cannot be a template's is refused, and what was stays.
    host.no_tables()
        .tables("[[template]]\nports = [\"veth-t*\"]\nid = \"i-0123456789abcdef0\"");
    host.write_config();
    daemon.reload();
    assert!(daemon.log().contains("template"), "{}", daemon.log());
    tell(&again);
    // Without the template nobody knows them.
    host.no_tables();
    host.write_config();
    daemon.reload();
    assert_eq!(host.status()["ports"].as_array().map(Vec::len), Some(1));
}

#[test]
fn patterns_take_effect_with_a_reload_and_end_with_one() {
    if !has_command("bpftool") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let nobody = host.guest("nobody").routed("10.0.0.11").unregistered().up();
    stand_in(&host);
    let mut daemon = host.start();
    knock(&nobody);
    let leaked = n_leaked(&host);
    assert!(leaked > 0);
    assert!(filters_on(&host, nobody.port()).is_empty());
    host.tables("[discovery]\nports = [\"*\"]");
    host.write_config();
    daemon.reload();
    let rows = listed(&host, "closed");
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["veth-nobody"]);
    assert_eq!(filters_on(&host, nobody.port()).len(), 1);
    check_silence(&nobody);
    // A guest that is taken out is an unknown one then, in no moment an open one.
    host.forget("web");
    host.write_config();
    daemon.reload();
    assert_eq!(listed(&host, "closed").len(), 2);
    check_silence(&web);
    assert_eq!(n_leaked(&host), leaked);
    host.no_tables();
    host.write_config();
    daemon.reload();
    assert!(listed(&host, "closed").is_empty());
    assert!(filters_on(&host, nobody.port()).is_empty());
}

#[test]
fn what_is_closed_stays_closed_without_a_daemon_until_everything_is_taken_down() {
    if !has_command("bpftool") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    host.tables("[discovery]\nports = [\"veth-*\"]");
    stand_in(&host);
    let daemon = host.start();
    let nobody = host.guest("nobody").routed("10.0.0.11").unregistered().up();
    check_done(&host.command("wait --port veth-nobody --closed"));
    daemon.stop();
    check_silence(&nobody);
    let mut daemon = host.start();
    assert_eq!(listed(&host, "closed").len(), 1);
    check_silence(&nobody);
    daemon.crash();
    check_silence(&nobody);
    assert_eq!(filters_on(&host, nobody.port()).len(), 1);
    assert_eq!(n_leaked(&host), 0);
    check_done(&host.command("down"));
    assert!(filters_on(&host, nobody.port()).is_empty());
}

fn filters_on(host: &Host, interface: &str) -> Vec<Value> {
    let output = host
        .namespace()
        .run(&["bpftool", "-j", "net", "show", "dev", interface]);
    let all: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("bpftool: {error}: {output:?}"));
    all[0]["tc"].as_array().expect("a list of filters").clone()
}

/// Nobody who had a name gets what another one of that name had.
#[test]
fn a_renamed_interface_is_closed_and_its_name_is_free() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    stand_in(&host);
    let _daemon = host.start();
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    rename(&host, "veth-web", "veth-old");
    eventually_listed(&host, "closed", &["veth-old"]);
    eventually_listed(&host, "waiting", &["veth-web"]);
    check_silence(&web);
    let new = host.guest("web").routed("10.0.0.10").unregistered().up();
    assert_eq!(id_told(&host, &new), web.id());
    check_silence(&web);
    host.namespace().ip("link delete veth-old");
    eventually_listed(&host, "closed", &[]);
    assert_eq!(new.get(INSTANCE_ID).text(), web.id());
    assert_eq!(n_leaked(&host), 0);
}

/// One step after the other, each seen by itself: who waits for a name is not forgotten when another interface gets it.
#[test]
fn two_interfaces_may_exchange_their_names() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let db = host.guest("db").routed("10.0.0.10").up();
    stand_in(&host);
    let daemon = host.start();
    for guest in [&web, &db] {
        assert_eq!(id_told(&host, guest), guest.id());
    }
    let rename = |from: &str, to: &str| {
        host.namespace()
            .ip(&format!("link set {from} down\nlink set {from} name {to}"));
    };
    rename("veth-web", "aside");
    eventually_listed(&host, "waiting", &["veth-web"]);
    rename("veth-db", "veth-web");
    eventually_listed(&host, "waiting", &["veth-db"]);
    check_done(&host.command("wait --port veth-web"));
    host.namespace().ip("link set veth-web up");
    assert_eq!(db.get(INSTANCE_ID).text(), web.id(), "the first name");
    rename("aside", "veth-db");
    check_done(&host.command("wait --port veth-db"));
    host.namespace().ip("link set veth-db up");
    assert_eq!(web.get(INSTANCE_ID).text(), db.id(), "the second name");
    assert_eq!(db.get(INSTANCE_ID).text(), web.id(), "the first name");

    // While nobody can look, a name goes on from an interface that is removed.
    daemon.pause();
    host.namespace().ip("link delete veth-web");
    rename("veth-db", "veth-web");
    daemon.resume();
    eventually_listed(&host, "waiting", &["veth-db"]);
    check_done(&host.command("wait --port veth-web"));
    host.namespace().ip("link set veth-web up");
    assert_eq!(
        web.get(INSTANCE_ID).text(),
        web.id(),
        "the name of a gone one"
    );
    let again = host.guest("db").routed("10.0.0.10").unregistered().up();
    assert_eq!(id_told(&host, &again), again.id());
    assert_eq!(n_leaked(&host), 0);
}

/// Renames an interface. Kernels before 6.2 refuse that while it is up.
fn rename(host: &Host, from: &str, to: &str) {
    let namespace = host.namespace();
    let live = namespace.run(&["ip", "link", "set", from, "name", to]);
    if !live.status.success() {
        namespace.ip(&format!(
            "link set {from} down\nlink set {from} name {to}\nlink set {to} up"
        ));
    }
}

/// The machine is off, and so is whatever interface comes under its name.
#[test]
fn the_interface_of_a_stopped_instance_is_closed_when_it_comes() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    stand_in(&host);
    let _daemon = host.start();
    check_done(&host.command("instance stop web"));
    host.namespace().ip("link delete veth-web");
    eventually_listed(&host, "waiting", &["veth-web"]);
    let again = host.guest("web").routed("10.0.0.10").unregistered().up();
    check_done(&host.command("wait --port veth-web --closed"));
    check_silence(&again);
    check_done(&host.command("instance start web"));
    assert_eq!(id_told(&host, &again), web.id());
    assert_eq!(n_leaked(&host), 0);
}

/// Three thousand interfaces come and most of them go, more than notifications have room for, while guests ask and ask.
/// Half of the interfaces are nobody's, half get an instance by a template.
#[test]
fn a_storm_of_interfaces_is_followed_and_served_guests_do_not_notice() {
    const ROUNDS: usize = 6;
    const INTERFACES: usize = 250;
    if !has_command("bpftool") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    host.tables("[discovery]\nports = [\"storm*\"]\n[[template]]\nports = [\"storm*a\"]");
    host.run_option("--notification-bytes=4096");
    let guests = [
        host.guest("web").routed("10.0.0.10").up(),
        host.guest("db").bridged("br0", "10.0.0.10").up(),
        host.guest("link").on_link("10.0.0.10").up(),
    ];
    let _daemon = host.start();
    let is_over = AtomicBool::new(false);
    let (n_answers, failures) = (&AtomicUsize::new(0), &Mutex::new(Vec::new()));
    let begin = Instant::now();
    let asking = &|| !is_over.load(Ordering::Relaxed);
    thread::scope(|scope| {
        for guest in &guests {
            let count = |answer: io::Result<Response>| {
                let told = answer.map(|answer| answer.text().to_owned());
                if told.as_ref().is_ok_and(|id| id == guest.id()) {
                    n_answers.fetch_add(1, Ordering::Relaxed);
                } else {
                    let mut failures = failures.lock().expect("nobody panics with it");
                    failures.push(format!("{}: {told:?}", guest.name()));
                }
            };
            scope.spawn(move || {
                let mut connection = guest.connect();
                while asking() {
                    count(connection.exchange("GET", INSTANCE_ID, &[("Connection", "keep-alive")]));
                    thread::sleep(Duration::from_millis(1));
                }
            });
            scope.spawn(move || {
                guest.namespace().enter(|| {
                    while asking() {
                        count(
                            Connection::open(Address::V4)
                                .and_then(|mut one| one.exchange("GET", INSTANCE_ID, &[])),
                        );
                        thread::sleep(Duration::from_millis(2));
                    }
                });
            });
        }
        for round in 0..ROUNDS {
            storm(&host, round, INTERFACES);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let took = begin.elapsed();
    let expected: BTreeMap<String, u64> = host
        .namespace()
        .links()
        .iter()
        .filter_map(|link| {
            let name = link["ifname"].as_str()?;
            let index = link["ifindex"].as_u64()?;
            name.starts_with("storm").then(|| (name.to_owned(), index))
        })
        .collect();
    assert_eq!(expected.len(), INTERFACES * 2);
    let settled = eventually("what is there is closed", Duration::from_secs(20), || {
        let status = host.status();
        let (closed, served) = (&status["discovery"]["closed"], &status["ports"]);
        let closed = in_the_storm(closed, "b");
        let served = in_the_storm(served, "a");
        let both = closed.into_iter().chain(served).collect::<BTreeMap<_, _>>();
        (both == expected).then(|| begin.elapsed())
    });
    check_filters(&host, &expected);
    let lost = host.status()["discovery"]["lost_notifications"]
        .as_u64()
        .expect("a number");
    let n_answers = n_answers.load(Ordering::Relaxed);
    let failures = failures.lock().expect("nobody panics with it");
    println!(
        "storm: {} interfaces in {took:?}, settled after {settled:?}; {lost} losses of notifications; {n_answers} \
         requests answered, {} failed",
        ROUNDS * INTERFACES * 2,
        failures.len()
    );
    let some: Vec<&String> = failures.iter().take(5).collect();
    assert!(failures.is_empty(), "{some:?}");
    assert!(n_answers > 100, "guests hardly asked: {n_answers}");
    assert!(
        lost > 0,
        "the storm fitted into the buffer: this shows nothing"
    );
}

/// The storm's interfaces in a list of `imds status`, which all end so, with their numbers.
fn in_the_storm(rows: &Value, end: &str) -> BTreeMap<String, u64> {
    let rows = rows.as_array().expect("a list").iter();
    let of_storm = rows.filter(|row| {
        row["port"]
            .as_str()
            .is_some_and(|name| name.starts_with("storm"))
    });
    of_storm
        .map(|row| {
            let name = row["port"].as_str().expect("a name");
            assert!(name.ends_with(end), "{row}");
            (name.to_owned(), row["ifindex"].as_u64().expect("a number"))
        })
        .collect()
}

/// A round of the storm: this many pairs come, those of the round before go, so that names come again with new numbers.
fn storm(host: &Host, round: usize, interfaces: usize) {
    if round > 0 {
        host.namespace().ip("link delete group 77");
    }
    let pairs: Vec<String> = (0..interfaces)
        .map(|number| {
            format!("link add storm{number}a group 77 type veth peer name storm{number}b group 77")
        })
        .collect();
    host.namespace().ip(&pairs.join("\n"));
}

/// The kernel has our filter on exactly these.
fn check_filters(host: &Host, expected: &BTreeMap<String, u64>) {
    let output = host.namespace().run(&["bpftool", "-j", "net", "show"]);
    let all: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("bpftool: {error}: {output:?}"));
    let filters = all[0]["tc"].as_array().expect("a list of filters");
    let found: BTreeMap<String, u64> = filters
        .iter()
        .filter_map(|filter| {
            let name = filter["devname"].as_str()?;
            let index = filter["ifindex"].as_u64()?;
            name.starts_with("storm").then(|| (name.to_owned(), index))
        })
        .collect();
    assert_eq!(found, *expected);
    let n_of_storm = filters
        .iter()
        .filter(|filter| {
            filter["devname"]
                .as_str()
                .is_some_and(|name| name.starts_with("storm"))
        })
        .count();
    assert_eq!(n_of_storm, expected.len(), "an interface has two filters");
}

/// What the document shows is what happens: in a host of its own, with the usual folders, which are thrown away afterwards.
#[test]
fn the_commands_of_the_document_do_what_it_says() {
    const BEFORE: &str = r#"
        set -e
        mount -t tmpfs none /var/lib
        mkdir /var/lib/etc /var/lib/work
        mount -t overlay overlay -o lowerdir=/etc,upperdir=/var/lib/etc,workdir=/var/lib/work /etc
        trap 'kill $!; wait; imds down' EXIT
    "#;
    const AFTER: &str = r#"
        ip link add br0 type bridge
        ip tuntap add dev tap0 mode tap
        sh "$0/qemu-ifup" tap0
        ip tuntap add dev vnet7 mode tap
        echo "<domain><disk><target dev='vda'/></disk><interface>
            <target dev='vnet7'/></interface></domain>" | sh "$0/libvirt-hook" guest start begin -
        sh "$0/libvirt-hook" guest stopped end - </dev/null
        ip -brief link show master br0
        imds status --json
    "#;
    if !has_command("unshare") {
        return;
    }
    let Some(host) = Host::new() else { return };
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/discovery.md");
    let document = std::fs::read_to_string(document).expect("the document is there");
    let block = |name: &str| {
        let (_, rest) = document
            .split_once(&format!("```{name}\n"))
            .unwrap_or_else(|| panic!("no block {name}"));
        rest.split_once("```").expect("it ends").0.to_owned()
    };
    for name in ["qemu-ifup", "libvirt-hook"] {
        let file = host.dir().join(name);
        std::fs::write(file, block(&format!("sh {name}"))).expect("a file");
    }
    let imds = imds_path();
    let bin = imds.parent().expect("it lies in a folder").display();
    let walk = block("sh");
    let script = format!("PATH={bin}:$PATH\n{BEFORE}\n{walk}\n{AFTER}");
    let folder = host.dir().to_str().expect("text");
    let output = host.namespace().run(&[
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        &script,
        folder,
    ]);
    let told = said(&output);
    assert_eq!(output.status.code(), OK, "{told}");
    for words in [
        "imds admit --port veth0",
        "who is behind it is not known",
        "admitted at veth0",
        "running",
        "forgotten; it was at veth0",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert!(told.lines().any(|line| line.starts_with("tap0 ")), "{told}");
    for port in ["tap0", "vnet7", "veth0"] {
        assert!(
            told.contains(&format!("\"port\": \"{port}\"")),
            "{port}: {told}"
        );
    }
}
