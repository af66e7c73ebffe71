//! A network namespace without a name.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Output, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::Pid;

use crate::process::run;

/// A network namespace, alive as long as this handle, a process or a socket in it.
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// Makes a namespace in which `lo` is up and IPv6 addresses are usable at once.
    ///
    /// # Panics
    /// When the kernel refuses: the caller has asked [`crate::needs_root`] before.
    #[must_use]
    pub fn new() -> Self {
        // A thread leaves for a namespace of its own, hands out a handle on it and ends.
        let file = thread::spawn(|| -> io::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        let file = file
            .join()
            .expect("the thread does not panic")
            .expect("root may make a network namespace");
        let namespace = Self { file };
        // Duplicate address detection would keep every new IPv6 address from use for a second.
        namespace.sysctl("net/ipv6/conf/all/accept_dad", "0");
        namespace.sysctl("net/ipv6/conf/default/accept_dad", "0");
        namespace.sysctl("net/ipv6/conf/default/router_solicitations", "0");
        namespace.ip("link set lo up");
        namespace
    }

    /// The namespace that a process lives in.
    ///
    /// # Panics
    /// When there is no such process.
    #[must_use]
    pub fn of(pid: Pid) -> Self {
        let path = format!("/proc/{pid}/ns/net");
        let file = File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        Self { file }
    }

    /// Another handle on it.
    ///
    /// # Panics
    /// When this process has no descriptor left.
    #[must_use]
    pub fn handle(&self) -> Self {
        let file = self.file.try_clone().expect("a descriptor");
        Self { file }
    }

    /// Runs `act` in the namespace, on a thread of its own, and hands on its answer or its panic.
    ///
    /// Processes and sockets that `act` makes stay in the namespace.
    pub fn enter<R: Send>(&self, act: impl FnOnce() -> R + Send) -> R {
        let within = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .expect("root may enter a namespace that it made");
            act()
        };
        let answer = thread::scope(|scope| scope.spawn(within).join());
        answer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs a command to its end (30 seconds at most).
    #[must_use]
    pub fn run(&self, argv: &[&str]) -> Output {
        self.enter(|| run(argv))
    }

    /// Runs lines of `ip -batch`.
    ///
    /// # Panics
    /// When a line fails.
    pub fn ip(&self, lines: &str) {
        self.batch("ip", &["-batch", "-"], lines);
    }

    /// Feeds `lines` to a command that has to succeed, such as `nft -f -`.
    ///
    /// # Panics
    /// When the command fails.
    pub fn batch(&self, command: &str, args: &[&str], lines: &str) {
        let output = self.enter(|| feed(command, args, lines));
        let output = output.unwrap_or_else(|error| panic!("cannot run {command}: {error}"));
        assert!(
            output.status.success(),
            "{command}: {}\n{lines}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Sets `/proc/sys/KEY`.
    ///
    /// # Panics
    /// When there is no such key.
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/{key}");
        self.enter(|| fs::write(&path, value))
            .unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// A path that names the namespace to `ip … netns PATH` and `nsenter --net=PATH`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// The number by which the kernel names it, as in `net:[4026531840]`.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.file
            .metadata()
            .expect("a namespace handle has metadata")
            .ino()
    }

    /// The hardware address of an interface.
    ///
    /// # Panics
    /// When there is no such interface.
    #[must_use]
    pub fn mac(&self, interface: &str) -> String {
        let links = self.links();
        let link = links
            .iter()
            .find(|link| link["ifname"] == interface)
            .unwrap_or_else(|| panic!("no interface {interface}: {links:?}"));
        link["address"]
            .as_str()
            .expect("an interface has an address")
            .to_owned()
    }

    /// The number of an interface.
    ///
    /// # Panics
    /// When there is no such interface.
    #[must_use]
    pub fn index(&self, interface: &str) -> u32 {
        let links = self.links();
        let link = links.iter().find(|link| link["ifname"] == interface);
        let index = link.and_then(|link| u32::try_from(link["ifindex"].as_u64()?).ok());
        index.unwrap_or_else(|| panic!("no interface {interface}: {links:?}"))
    }

    /// All interfaces, as `ip -json link` describes them.
    #[must_use]
    pub fn links(&self) -> Vec<serde_json::Value> {
        let output = self.run(&["ip", "-json", "link", "show"]);
        serde_json::from_slice(&output.stdout).expect("ip prints JSON")
    }

    /// The names of all interfaces, sorted.
    #[must_use]
    pub fn link_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .links()
            .iter()
            .filter_map(|link| Some(link["ifname"].as_str()?.to_owned()))
            .collect();
        names.sort();
        names
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

fn feed(command: &str, args: &[&str], lines: &str) -> io::Result<Output> {
    let mut child = Command::new(command)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    stdin.write_all(lines.as_bytes())?;
    drop(stdin);
    child.wait_with_output()
}
