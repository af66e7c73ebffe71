//! `imds lab`: a host and three guests to try things on, and nothing of it afterwards.

use std::collections::BTreeSet;
use std::fs;
use std::process::Output;
use std::time::Duration;

use imds_tests::{
    children_of, eventually, has_command, imds, imds_path, is_alive, needs_root, network_of,
    program_exists, programs_of, run, users_of_network,
};
use nix::unistd::Pid;

/// A lab of this test's own; taken down when dropped, also by a failure.
struct Lab {
    name: String,
}

impl Lab {
    fn up(name: &str) -> (Self, Output) {
        let lab = Self {
            name: format!("t{}-{name}", std::process::id()),
        };
        let output = lab.command("up", &[]);
        (lab, output)
    }

    fn command(&self, command: &str, rest: &[&str]) -> Output {
        imds(&[&["lab", command, "--name", &self.name], rest].concat())
    }

    fn exec(&self, guest: &str, argv: &[&str]) -> String {
        let output = self.command("exec", &[&[guest, "--"], argv].concat());
        stdout(&output)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.command("down", &[]));
    }
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a lab could leave on the machine, by name: namespaces, interfaces, mounts, processes, programs' pins.
fn traces(name: &str) -> BTreeSet<String> {
    let mut traces = BTreeSet::new();
    let listings = [
        stdout(&run(&["ip", "netns", "list"])),
        stdout(&run(&["ip", "-oneline", "link"])),
        fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted"),
        processes(),
        files(),
    ];
    for listing in listings {
        traces.extend(
            listing
                .lines()
                .filter(|line| line.contains(name))
                .map(str::to_owned),
        );
    }
    traces
}

/// Names in the folders where namespaces, sockets and pins live.
fn files() -> String {
    let folders = ["/run", "/run/netns", "/run/imds", "/sys/fs/bpf", "/var/lib"];
    let entries = folders
        .into_iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .filter_map(Result::ok);
    entries
        .map(|entry| format!("{}\n", entry.path().display()))
        .collect()
}

/// The command line of every process but our own.
fn processes() -> String {
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc")
        .expect("/proc is mounted")
        .filter_map(Result::ok);
    let entries = entries.filter(|entry| entry.file_name().to_string_lossy() != own);
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " ") + "\n")
        .collect()
}

/// The processes of a lab: those that have its name in their command line, and their children.
fn members(name: &str) -> Vec<Pid> {
    let entries = fs::read_dir("/proc")
        .expect("/proc is mounted")
        .filter_map(Result::ok);
    let pids = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw);
    let named = pids.filter(|pid| *pid != Pid::this() && names(*pid, name));
    named
        .flat_map(|pid| [vec![pid], children_of(pid)].concat())
        .collect()
}

fn names(pid: Pid, name: &str) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).contains(name)
}

/// Interfaces of the machine's own namespace: a lab adds none, not even for a moment that lasts.
fn own_links() -> BTreeSet<String> {
    let links = stdout(&run(&["ip", "-oneline", "link"]));
    links
        .lines()
        .filter_map(|line| line.split(": ").nth(1))
        .map(str::to_owned)
        .collect()
}

const TOKEN_SCRIPT: &str = r#"
    TOKEN=$(curl -sS -X PUT http://169.254.169.254/latest/api/token -H "X-aws-ec2-metadata-token-ttl-seconds: 60") &&
    curl -sS -H "X-aws-ec2-metadata-token: $TOKEN" http://169.254.169.254/latest/meta-data/instance-id
"#;

#[test]
fn a_lab_serves_three_guests_and_leaves_nothing() {
    if !needs_root() {
        return;
    }
    let links = own_links();
    let (lab, up) = Lab::up("three");
    let told = stdout(&up);
    for next in ["lab exec", "lab shell", "lab status", "lab down", "web"] {
        assert!(told.contains(next), "{next:?} is missing in:\n{told}");
    }
    assert_eq!(own_links(), links, "the real host's network is untouched");

    let ids: BTreeSet<String> = ["web", "db", "legacy"]
        .into_iter()
        .map(|guest| lab.exec(guest, &["sh", "-c", TOKEN_SCRIPT]))
        .collect();
    assert_eq!(ids.len(), 3, "{ids:?}");
    assert!(
        ids.iter().all(|id| id.starts_with("i-") && id.len() == 19),
        "{ids:?}"
    );

    let address = |guest| {
        lab.exec(
            guest,
            &["ip", "-4", "-oneline", "address", "show", "scope", "global"],
        )
        .split_whitespace()
        .nth(3)
        .map(str::to_owned)
    };
    assert_eq!(address("web"), address("db"), "web and db have one address");
    let status_of = |guest| {
        let url = "http://169.254.169.254/latest/meta-data/";
        lab.exec(
            guest,
            &["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", url],
        )
    };
    assert_eq!(
        [status_of("web"), status_of("db"), status_of("legacy")],
        ["401", "401", "200"]
    );

    let status = stdout(&lab.command("status", &[]));
    for guest in ["web", "db", "legacy"] {
        assert!(status.contains(guest), "{guest} is missing in:\n{status}");
    }
    let members = members(&lab.name);
    assert!(!members.is_empty(), "a lab has processes");
    let networks: BTreeSet<u64> = members.iter().map(|pid| network_of(*pid)).collect();
    assert!(
        !networks.contains(&network_of(Pid::this())),
        "a process of the lab lives in the real host's network"
    );
    let programs: BTreeSet<String> = members.iter().flat_map(|pid| programs_of(*pid)).collect();

    stdout(&lab.command("down", &[]));
    assert_eq!(
        members
            .into_iter()
            .filter(|pid| is_alive(*pid))
            .collect::<Vec<_>>(),
        []
    );
    assert_eq!(
        networks
            .into_iter()
            .flat_map(users_of_network)
            .collect::<Vec<_>>(),
        Vec::<String>::new()
    );
    if has_command("bpftool") {
        eventually(
            "the kernel lets go of the programs",
            Duration::from_secs(10),
            || programs.iter().all(|id| !program_exists(id)).then_some(()),
        );
    }
    assert_eq!(traces(&lab.name), BTreeSet::new());
    assert_eq!(own_links(), links);
}

#[test]
fn exec_hands_on_exit_codes_and_output() {
    if !needs_root() {
        return;
    }
    let (lab, up) = Lab::up("exec");
    stdout(&up);
    assert_eq!(lab.exec("web", &["echo", "hello"]), "hello\n");
    let failed = lab.command("exec", &["web", "--", "sh", "-c", "exit 7"]);
    assert_eq!(failed.status.code(), Some(7), "{failed:?}");
    let unknown = lab.command("exec", &["nobody", "--", "true"]);
    assert!(!unknown.status.success(), "{unknown:?}");
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(said.contains("nobody") && said.contains("web"), "{said}");
}

#[test]
fn a_lab_that_is_up_stays_as_it_is_when_brought_up_again() {
    if !needs_root() {
        return;
    }
    let (lab, up) = Lab::up("twice");
    stdout(&up);
    let again = lab.command("up", &[]);
    assert!(stdout(&again).contains("up already"), "{again:?}");
    let id = lab.exec("web", &["sh", "-c", TOKEN_SCRIPT]);
    assert!(id.starts_with("i-"), "the first lab serves on: {id}");
}

#[test]
fn a_lab_that_is_not_up_can_be_taken_down() {
    if !needs_root() {
        return;
    }
    let lab = Lab {
        name: format!("t{}-none", std::process::id()),
    };
    let down = lab.command("down", &[]);
    assert!(
        down.status.success(),
        "taking down twice changes nothing: {down:?}"
    );
}

/// Every command of the page, in its order, as somebody would type it who reads it from top to bottom.
#[test]
fn the_commands_of_the_page_on_events_work_as_written() {
    if !needs_root() || !has_command("curl") {
        return;
    }
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/events.md");
    let page = fs::read_to_string(page).expect("the page is there");
    let commands: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("imds lab "))
        .collect();
    assert!(commands.len() > 10, "{commands:?}");
    assert_eq!(commands[0], "up");
    let (lab, up) = Lab::up("page");
    stdout(&up);
    let binary = imds_path();
    let binary = binary.to_str().expect("text");
    for command in &commands[1..] {
        let line = format!("{binary} lab --name {} {command}", lab.name);
        let output = run(&["sh", "-c", &line]);
        assert!(output.status.success(), "imds lab {command}: {output:?}");
        let is_look = command.starts_with("exec") && !command.contains("404");
        let found = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!is_look || !found.contains("404"), "{command}: {found}");
    }
}
