//! The launcher under test, and the guests that it starts on a test host.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use imds_user::instance::{InstanceId, MacAddress};
use imds_user::launch::order::{Answer, Order, socket_in};
use imds_user::launch::plan::{Bounds, Image, Names, Spec, hostname};
use imds_user::launch::{Running, State};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::binary::imds_path;
use crate::host::Host;
use crate::instance::{InstanceText, quoted};
use crate::patience::patience;
use crate::process::{eventually, run};

/// Bound on a start; a debug build is slow.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// Bound on an order: a guest that heeds nothing is given seconds to end.
const ORDER_WITHIN: Duration = Duration::from_secs(40);
/// The subnet of launched guests.
const SUBNET: &str = "172.31.16.0/20";

/// A running `imds launcher`, living where the host's daemon does. Dropping it ends it; its guests end with the host.
pub struct Launcher {
    child: Child,
    state_dir: PathBuf,
    log: PathBuf,
}

/// A guest that a launcher starts.
pub struct Launched {
    /// What is ordered.
    pub spec: Spec,
    /// What belongs to it.
    pub names: Names,
}

impl Launched {
    /// A guest of this name and number, and its instance in the host's configuration, with more keys for it.
    ///
    /// # Panics
    /// When the state directory cannot be made.
    pub fn new(
        host: &mut Host,
        name: &str,
        number: u8,
        instance: impl FnOnce(&mut InstanceText),
    ) -> Self {
        fs::create_dir_all(host.state_dir()).expect("the temporary directory takes a folder");
        let state_dir = host.state_dir().canonicalize().expect("it is there");
        let id: InstanceId = format!("i-{number:017x}").parse().expect("an id");
        let names = Names::of(&state_dir, id);
        let ipv4 = Ipv4Addr::new(172, 31, 17, number);
        let mac = MacAddress([6, 0, 0, 0, 0, number]);
        let mut text = InstanceText::new(name, &names.port, id.as_str());
        text.key("private-ipv4", &quoted(&ipv4.to_string()))
            .key("mac", &quoted(&mac.to_string()));
        instance(&mut text);
        host.add_instance(text);
        let spec = Spec {
            id,
            image: Image::Host,
            hostname: hostname(ipv4),
            ipv4,
            subnet: SUBNET.parse().expect("a range"),
            mac,
            bounds: Bounds::default(),
        };
        Self { spec, names }
    }

    /// Its instance id.
    #[must_use]
    pub fn id(&self) -> InstanceId {
        self.spec.id
    }

    /// Runs a command in it.
    #[must_use]
    pub fn exec(&self, host: &Host, argv: &[&str]) -> Output {
        let state_dir = host.state_dir();
        let id = self.id();
        host.imds(&exec_line(&state_dir, id.as_str(), argv))
    }

    /// Starts a command in it and does not wait.
    #[must_use]
    pub fn spawn(&self, host: &Host, argv: &[&str]) -> Child {
        let state_dir = host.state_dir();
        let id = self.id();
        host.spawn_imds(&exec_line(&state_dir, id.as_str(), argv))
    }

    /// Runs a line of sh in it that has to succeed; what it says.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn sh(&self, host: &Host, line: &str) -> String {
        let output = self.exec(host, &["sh", "-c", line]);
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned()
    }

    /// What it printed.
    ///
    /// # Panics
    /// When there is no console.
    #[must_use]
    pub fn console(&self, host: &Host) -> String {
        let output = host.command(&format!("instance console {}", self.id()));
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits until it has printed a text, so often.
    ///
    /// # Panics
    /// When it does not; with what it printed.
    pub fn await_console(&self, host: &Host, text: &str, times: usize) {
        let deadline = Instant::now() + patience(READY_WITHIN);
        loop {
            let console = self.console(host);
            if console.matches(text).count() >= times {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "no {text:?}, {times} times, in:\n{console}"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn exec_line<'a>(state_dir: &'a Path, id: &'a str, argv: &[&'a str]) -> Vec<&'a str> {
    let state_dir = state_dir.to_str().expect("temporary paths are text");
    let words = ["instance", "--state-dir", state_dir, "exec", id, "--"];
    [&words, argv].concat()
}

impl Launcher {
    /// Starts one on a host, and returns when it takes orders.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start(host: &Host) -> Self {
        Self::start_with(host, &[])
    }

    /// Starts one with more options.
    ///
    /// # Panics
    /// As [`Launcher::start`].
    #[must_use]
    pub fn start_with(host: &Host, options: &[&str]) -> Self {
        let state_dir = host.state_dir();
        let log = host.dir().join("launcher.log");
        let child = host.namespace().enter(|| {
            if let Some(jail) = host.jail() {
                jail.enter();
            }
            let file = File::options().create(true).append(true).open(&log);
            // With the mask that its unit has.
            Command::new("sh")
                .args(["-c", "umask 0077; exec \"$0\" \"$@\""])
                .arg(imds_path())
                .arg("launcher")
                .arg("--state-dir")
                .arg(&state_dir)
                .args(options)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(file.expect("a log"))
                .spawn()
                .expect("the binary under test starts")
        });
        let launcher = Self {
            child,
            state_dir,
            log,
        };
        eventually("the launcher takes orders", READY_WITHIN, || {
            UnixStream::connect(socket_in(&launcher.state_dir)).ok()
        });
        launcher
    }

    /// Its process.
    ///
    /// # Panics
    /// Never: a process number fits.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process number is positive"))
    }

    /// Everything it has said.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Gives an order.
    ///
    /// # Panics
    /// When nothing comes back.
    #[must_use]
    pub fn order(&self, order: &Order) -> Answer {
        let (stream, line) = self.send(order);
        let mut answer = String::new();
        BufReader::new(stream)
            .read_line(&mut answer)
            .unwrap_or_else(|error| panic!("{line}: {error}; its log:\n{}", self.log()));
        serde_json::from_str(&answer)
            .unwrap_or_else(|error| panic!("{line}: {error}: {answer:?}; its log:\n{}", self.log()))
    }

    /// Gives an order and does not wait for the answer, which comes by the stream; and the order's line.
    ///
    /// # Panics
    /// When nobody listens.
    pub fn send(&self, order: &Order) -> (UnixStream, String) {
        let mut stream = UnixStream::connect(socket_in(&self.state_dir)).expect("a launcher");
        stream
            .set_read_timeout(Some(patience(ORDER_WITHIN)))
            .expect("a time-out");
        let line = serde_json::to_string(order).expect("an order is JSON");
        writeln!(stream, "{line}").expect("the launcher listens");
        (stream, line)
    }

    /// Launches a guest.
    ///
    /// # Panics
    /// When it does not run.
    pub fn launch(&self, guest: &Launched) -> Running {
        let spec = guest.spec.clone();
        self.running(&Order::Launch { spec })
    }

    /// Gives an order after which a guest runs.
    ///
    /// # Panics
    /// When it does not.
    pub fn running(&self, order: &Order) -> Running {
        match self.order(order) {
            Answer::Running(running) => running,
            other => panic!("{order:?}: {other:?}; the launcher's log:\n{}", self.log()),
        }
    }

    /// Gives an order that needs no more than to be done.
    ///
    /// # Panics
    /// When it is not.
    pub fn done(&self, order: &Order) {
        let answer = self.order(order);
        assert_eq!(answer, Answer::Done, "{order:?}; its log:\n{}", self.log());
    }

    /// What a guest is doing.
    ///
    /// # Panics
    /// When the launcher cannot tell.
    #[must_use]
    pub fn state(&self, guest: &Launched) -> State {
        match self.order(&Order::State { id: guest.id() }) {
            Answer::State(state) => state,
            other => panic!("{other:?}"),
        }
    }

    /// Ends it as a crash does.
    pub fn crash(mut self) {
        self.end(Signal::SIGKILL);
    }

    fn end(&mut self, signal: Signal) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            kill(self.pid(), signal).ok();
        }
        self.child.wait().ok();
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        if thread::panicking() {
            report(&self.log());
        }
        self.end(Signal::SIGTERM);
    }
}

/// Whatever of the machine bears the name of a guest: namespaces, interfaces, mounts, files, control groups.
///
/// # Panics
/// When there is no `/proc`.
#[must_use]
pub fn traces(host: &Host, guest: &Launched) -> BTreeSet<String> {
    let names = &guest.names;
    let dir = names.dir.to_str().expect("text");
    let text = |argv: &[&str]| String::from_utf8_lossy(&run(argv).stdout).into_owned();
    let lists = [
        text(&["ip", "netns", "list"]),
        host.namespace().link_names().join("\n"),
        fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted"),
        text(&["find", host.dir().to_str().expect("text")]),
    ];
    let marks = [&names.netns, &names.port, dir];
    let is_ours = |line: &&str| marks.iter().any(|mark| line.contains(mark));
    let found = lists.iter().flat_map(|list| list.lines()).filter(is_ours);
    let groups = cgroup_mounts();
    let groups = groups
        .iter()
        .flat_map(|mount| names.cgroup.ancestors().map(|group| mount.join(group)))
        .filter(|group| !cgroup_mounts().contains(group) && group.exists())
        .map(|group| group.display().to_string());
    found.map(str::to_owned).chain(groups).collect()
}

/// Where control groups are mounted.
///
/// # Panics
/// When there is no `/proc`.
#[must_use]
pub fn cgroup_mounts() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").expect("/proc is mounted");
    mounts
        .lines()
        .filter(|line| {
            line.split(' ')
                .nth(2)
                .is_some_and(|kind| kind.starts_with("cgroup"))
        })
        .filter_map(|line| Some(PathBuf::from(line.split(' ').nth(1)?)))
        .collect()
}

#[expect(
    clippy::print_stderr,
    reason = "a failed test shows what the launcher said"
)]
fn report(log: &str) {
    eprintln!("--- the launcher's log ---\n{log}--- end of the log ---");
}
