//! A host: a network namespace with a state directory, in which the daemon runs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::api::Api;
use crate::binary::imds_path;
use crate::daemon::{Daemon, Start};
use crate::disk::Disk;
use crate::guest::GuestBuilder;
use crate::instance::InstanceText;
use crate::jail::Jail;
use crate::namespace::Namespace;
use crate::patience::patience;
use crate::process::{children_of, eventually, is_alive, run};
use crate::service_manager::FdStore;
use crate::skip::{has_command, needs_root};
use crate::tap::Tun;
use crate::uplink::Uplink;

/// Region, zone and account of every test host.
const HOST_TABLE: &str = r#"region = "eu-central-1"
availability-zone = "eu-central-1b"
account-id = "123456789012"
"#;
/// No limits but where a test is about them: load is to show other things.
const NO_LIMITS: &str =
    "limits = { packets-per-second = 0, requests-per-second = 0, connections-per-second = 0 }\n";

/// The hardware address of every bridge: its own, because a bridge without one borrows its first port's and so hides
/// that a routed packet of a bridged guest is addressed to somebody else than the port.
const BRIDGE_MAC: &str = "02:62:72:00:00:01";

/// A test host.
pub struct Host {
    namespace: Namespace,
    /// Goes before the directory that it is mounted in.
    state_disk: Option<Disk>,
    dir: TempDir,
    host_table: String,
    environment: Vec<(String, String)>,
    instances: Vec<InstanceText>,
    tables: String,
    run_options: Vec<String>,
    has_no_config: bool,
    jail: Option<Arc<Jail>>,
    bridges: BTreeSet<String>,
    uplinks: u8,
}

impl Host {
    /// Makes a host without guests; `None`, and a skip, where the machine does not allow it.
    ///
    /// # Panics
    /// When a temporary directory cannot be made.
    #[must_use]
    pub fn new() -> Option<Self> {
        if !needs_root() || !has_command("ip") {
            return None;
        }
        let namespace = Namespace::new();
        // Tests that want the reverse path filter ask for it; a machine's default must not decide.
        namespace.sysctl("net/ipv4/conf/all/rp_filter", "0");
        namespace.sysctl("net/ipv4/conf/default/rp_filter", "0");
        let dir = tempfile::Builder::new()
            .prefix("imds-test-")
            .tempdir()
            .expect("a temporary directory");
        let host_table = format!("{HOST_TABLE}{NO_LIMITS}");
        Some(Self {
            namespace,
            state_disk: None,
            dir,
            host_table,
            environment: Vec::new(),
            instances: Vec::new(),
            tables: String::new(),
            run_options: Vec::new(),
            has_no_config: false,
            jail: None,
            bridges: BTreeSet::new(),
            uplinks: 0,
        })
    }

    /// Begins a guest of this name (ten characters at most: interface names are short).
    pub fn guest(&mut self, name: &str) -> GuestBuilder<'_> {
        GuestBuilder::new(self, name)
    }

    /// Adds keys to the table `[host]`.
    pub fn host_keys(&mut self, toml: &str) -> &mut Self {
        self.host_table.push_str(toml);
        self.host_table.push('\n');
        self
    }

    /// Gives the daemon an environment variable.
    pub fn daemon_env(&mut self, name: &str, value: &str) -> &mut Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Has the limits that a host has of which nothing is said.
    pub fn usual_limits(&mut self) -> &mut Self {
        self.host_table = self.host_table.replace(NO_LIMITS, "");
        self
    }

    /// Adds whole tables to the configuration, such as `[discovery]`.
    pub fn tables(&mut self, toml: &str) -> &mut Self {
        self.tables.push_str(toml);
        self.tables.push('\n');
        self
    }

    /// Takes what [`Host::tables`] added out again.
    pub fn no_tables(&mut self) -> &mut Self {
        self.tables.clear();
        self
    }

    /// Gives `imds run` one more option.
    pub fn run_option(&mut self, option: &str) -> &mut Self {
        self.run_options.push(option.to_owned());
        self
    }

    /// Has the daemon live where a process does that the test started, as far as files and processes go.
    pub fn live_with(&mut self, jail: Jail) -> &mut Self {
        self.jail = Some(Arc::new(jail));
        self
    }

    /// Where its daemon lives, if not where the tests do.
    pub(crate) fn jail(&self) -> Option<&Jail> {
        self.jail.as_deref()
    }

    /// Has the seed of everything made up fixed, so that it is the same in every run.
    ///
    /// # Panics
    /// When the state directory cannot be made.
    pub fn seeded(&mut self) -> &mut Self {
        const INSTALLATION: &str =
            r#"{"seed":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16],"created":1700000000}"#;
        fs::create_dir_all(self.state_dir()).expect("the temporary directory takes a folder");
        fs::write(self.state_dir().join("installation.json"), INSTALLATION)
            .expect("the state directory takes a file");
        self
    }

    /// Has the state directory on a small disk of its own, which the test can fill.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn small_state_disk(&mut self) -> &mut Self {
        fs::create_dir_all(self.state_dir()).expect("the temporary directory takes a folder");
        self.state_disk = Some(Disk::mount(&self.state_dir()));
        self
    }

    /// The small disk.
    ///
    /// # Panics
    /// When [`Host::small_state_disk`] was not called.
    #[must_use]
    pub fn state_disk(&self) -> &Disk {
        self.state_disk.as_ref().expect("there is a small disk")
    }

    /// Turns the strict reverse path filter on, for interfaces there are and will be.
    pub fn filter_reverse_path(&mut self) -> &mut Self {
        self.namespace.sysctl("net/ipv4/conf/all/rp_filter", "1");
        self.namespace
            .sysctl("net/ipv4/conf/default/rp_filter", "1");
        self
    }

    /// The namespace that the daemon runs in.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Connects to the control API of the daemon that runs.
    ///
    /// # Panics
    /// When none does.
    #[must_use]
    pub fn api(&self) -> Api {
        Api::connect(&self.state_dir()).expect("a daemon runs, and has an API")
    }

    /// What the configuration says of one instance, to be changed before a start or a reload.
    ///
    /// # Panics
    /// When no guest has this name.
    pub fn instance(&mut self, name: &str) -> &mut InstanceText {
        self.instances
            .iter_mut()
            .find(|instance| instance.name() == name)
            .unwrap_or_else(|| panic!("no instance {name}"))
    }

    /// Takes an instance out of the configuration; its guest stays.
    pub fn forget(&mut self, name: &str) {
        self.instances.retain(|instance| instance.name() != name);
    }

    /// Puts an instance into the configuration as it is.
    pub fn add_instance(&mut self, instance: InstanceText) {
        self.instances.push(instance);
    }

    /// The configuration file as it stands.
    #[must_use]
    pub fn config(&self) -> String {
        let instances: Vec<String> = self.instances.iter().map(InstanceText::to_toml).collect();
        let (host, tables) = (&self.host_table, &self.tables);
        format!("[host]\n{host}\n{}\n{tables}", instances.join("\n"))
    }

    /// Writes the configuration file.
    pub fn write_config(&self) {
        self.write_raw_config(&self.config());
    }

    /// Writes a configuration file of the test's own.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn write_raw_config(&self, toml: &str) {
        fs::write(self.config_path(), toml).expect("the temporary directory takes a file");
    }

    /// Where the configuration file lies.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.dir.path().join("imds.toml")
    }

    /// Where the daemon keeps its state.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// A directory for files of the test.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts the daemon and returns when every port is served.
    ///
    /// # Panics
    /// When it does not become ready within its bound; with its log.
    #[must_use]
    pub fn start(&self) -> Daemon {
        self.start_version(&imds_path())
    }

    /// From now on daemons are started without a configuration file.
    pub fn without_config(&mut self) -> &mut Self {
        self.has_no_config = true;
        self
    }

    /// Starts the daemon with the configuration file as it is.
    ///
    /// # Panics
    /// As [`Host::start`].
    #[must_use]
    pub fn start_as_written(&self) -> Daemon {
        Daemon::start(&self.namespace, self.what_to_start())
    }

    /// Starts the daemon from another binary.
    ///
    /// # Panics
    /// As [`Host::start`].
    #[must_use]
    pub fn start_version(&self, binary: &Path) -> Daemon {
        self.write_config();
        let start = Start {
            binary: binary.to_owned(),
            ..self.what_to_start()
        };
        Daemon::start(&self.namespace, start)
    }

    /// Starts the daemon under a service manager that keeps its sockets.
    ///
    /// # Panics
    /// As [`Host::start`].
    #[must_use]
    pub fn start_with(&self, store: &FdStore) -> Daemon {
        self.write_config();
        let start = Start {
            store: Some(store.clone()),
            ..self.what_to_start()
        };
        Daemon::start(&self.namespace, start)
    }

    /// Starts the daemon from a binary under a service manager, or says why it did not become ready.
    ///
    /// # Errors
    /// When it ends or is not ready in time; with its log.
    pub fn try_start(&self, binary: &Path, store: &FdStore) -> Result<Daemon, String> {
        self.write_config();
        let start = Start {
            binary: binary.to_owned(),
            store: Some(store.clone()),
            ..self.what_to_start()
        };
        Daemon::try_start(&self.namespace, start)
    }

    /// Starts the daemon and kills it so long afterwards, wherever it is by then. A responder is left to itself.
    pub fn start_and_kill(&self, after: Duration) {
        self.start_version_and_kill(&imds_path(), after);
    }

    /// The same from another binary.
    pub fn start_version_and_kill(&self, binary: &Path, after: Duration) {
        self.write_config();
        let start = Start {
            binary: binary.to_owned(),
            ..self.what_to_start()
        };
        Daemon::start_and_kill(&self.namespace, &start, after);
    }

    /// Another version: a copy of the binary, which is what an upgrade looks like to a responder. A responder speaks with
    /// nobody but its own binary beyond the first words, so that it is the same code does not matter.
    ///
    /// # Panics
    /// When it cannot be copied.
    #[must_use]
    pub fn another_version(&self, name: &str) -> PathBuf {
        let copy = self.dir.path().join(name);
        fs::copy(imds_path(), &copy).expect("the temporary directory takes a copy");
        copy
    }

    fn what_to_start(&self) -> Start {
        Start {
            binary: imds_path(),
            config: (!self.has_no_config).then(|| self.config_path()),
            state_dir: self.state_dir(),
            notify: self.dir.path().join("notify"),
            environment: self.environment.clone(),
            options: self.run_options.clone(),
            jail: self.jail.clone(),
            store: None,
        }
    }

    /// Starts the daemon under strace and kills it when it makes its `n`-th of some system calls. Whether it came to that;
    /// otherwise it served, and was stopped. A responder is left to itself.
    ///
    /// # Panics
    /// When strace may not trace, or the daemon ends otherwise.
    pub fn start_and_kill_at(&self, calls: &str, n: usize) -> bool {
        self.write_config();
        let trace = self.dir.path().join("trace");
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-o", text(&trace)])
            .args(["-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:signal=SIGKILL:when={n}")])
            .arg(imds_path())
            .args(["run", "--config", text(&self.config_path())])
            .args(["--state-dir", text(&self.state_dir())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let strace = self.namespace.enter(|| strace.spawn());
        let mut strace = strace.expect("strace can be started");
        let is_killed = ends_by_itself_within(&mut strace, Duration::from_secs(3));
        if is_killed {
            eventually("strace tells of the kill", Duration::from_secs(2), || {
                let said = fs::read_to_string(&trace).ok()?;
                said.contains("+++ killed by SIGKILL").then_some(())
            });
        }
        // It would follow the responder, which lives on; what it traces is let go.
        strace.kill().ok();
        strace.wait().expect("a killed child can be waited for");
        is_killed
    }

    /// Runs `imds run` with the configuration file as it lies there, for starts that have to fail.
    #[must_use]
    pub fn run_to_the_end(&self) -> Output {
        let (config, state_dir) = (self.config_path(), self.state_dir());
        let mut args = vec![
            "run",
            "--config",
            text(&config),
            "--state-dir",
            text(&state_dir),
        ];
        args.extend(self.run_options.iter().map(String::as_str));
        self.imds(&args)
    }

    /// Runs a command of `imds` in the host's namespace.
    #[must_use]
    pub fn imds(&self, args: &[&str]) -> Output {
        let path = imds_path();
        let mut argv = vec![text(&path)];
        argv.extend(args);
        self.namespace.enter(|| run(&argv))
    }

    /// Runs a command of `imds` about this host's daemon.
    #[must_use]
    pub fn command(&self, line: &str) -> Output {
        let state_dir = self.state_dir();
        let mut args: Vec<&str> = line.split(' ').collect();
        args.extend(["--state-dir", text(&state_dir)]);
        self.imds(&args)
    }

    /// Starts a command of `imds` about this host's daemon and does not wait; its output can be had afterwards.
    #[must_use]
    pub fn spawn(&self, line: &str) -> Child {
        let state_dir = self.state_dir();
        let mut args: Vec<&str> = line.split(' ').collect();
        args.extend(["--state-dir", text(&state_dir)]);
        self.spawn_imds(&args)
    }

    /// Starts `imds` with arguments in the host's namespace and does not wait.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn_imds(&self, args: &[&str]) -> Child {
        let mut command = Command::new(imds_path());
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = self.namespace.enter(|| command.spawn());
        child.expect("the binary under test starts")
    }

    /// What `imds status --json` says.
    ///
    /// # Panics
    /// When it fails or prints something else than JSON.
    #[must_use]
    pub fn status(&self) -> Value {
        let output = self.imds(&["status", "--json", "--state-dir", text(&self.state_dir())]);
        assert!(output.status.success(), "imds status: {output:?}");
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("imds status printed no JSON: {error}: {output:?}"))
    }

    /// How many packets were counted under a name, such as `udp`.
    ///
    /// # Panics
    /// When `imds status --json` has no such counter.
    #[must_use]
    pub fn counter(&self, name: &str) -> u64 {
        let status = self.status();
        let counters = [&status["drops"], &status["packets"]];
        let counted = counters
            .into_iter()
            .find_map(|counters| counters[name].as_u64());
        counted.unwrap_or_else(|| panic!("no counter {name} in {status}"))
    }

    /// Takes down everything that daemons made, as an operator does. None may run.
    ///
    /// # Panics
    /// When that fails.
    pub fn take_down(&self) {
        let output = self.imds(&["down", "--state-dir", text(&self.state_dir())]);
        assert!(output.status.success(), "imds down: {output:?}");
    }

    /// Gives the host a way out, with a stand-in for its own metadata service behind it. The default routes leave by it,
    /// and the host forwards.
    pub fn uplink(&mut self, interface: &str) -> Uplink {
        let uplink = self.uplink_without_route(interface);
        uplink.take_default_routes(&self.namespace);
        uplink
    }

    /// The same, but no route leaves by it yet.
    pub fn uplink_without_route(&mut self, interface: &str) -> Uplink {
        self.forward();
        self.uplinks += 1;
        Uplink::new(&self.namespace, interface, self.uplinks)
    }

    /// The same at a bridge: the interface is one of its ports, and the default routes leave by the bridge.
    pub fn uplink_on_bridge(&mut self, bridge: &str, interface: &str) -> Uplink {
        self.forward();
        self.bridge(bridge);
        self.uplinks += 1;
        let uplink = Uplink::on_bridge(&self.namespace, bridge, interface, self.uplinks);
        uplink.take_default_routes(&self.namespace);
        uplink
    }

    /// Gives the host a way out by a device without Ethernet, as a VPN has it; the test sees what leaves by it.
    pub fn tun_uplink(&mut self, interface: &str) -> Tun {
        self.forward();
        let tun = Tun::new(&self.namespace, interface);
        self.namespace.ip(&format!(
            "route replace default dev {interface}\nroute replace ::/0 dev {interface}"
        ));
        tun
    }

    fn forward(&self) {
        self.namespace.sysctl("net/ipv4/ip_forward", "1");
        self.namespace.sysctl("net/ipv6/conf/all/forwarding", "1");
    }

    /// Makes sure of a bridge with a hardware address of its own.
    pub(crate) fn bridge(&mut self, bridge: &str) {
        if self.bridges.insert(bridge.to_owned()) {
            self.namespace.ip(&format!(
                "link add {bridge} address {BRIDGE_MAC} type bridge\nlink set {bridge} up"
            ));
        }
    }
}

/// What outlives a daemon outlives no host, also where a test failed: `imds down`, and force where that fails.
impl Drop for Host {
    fn drop(&mut self) {
        let state_dir = self.state_dir();
        if !state_dir.exists() {
            return;
        }
        let output = self.imds(&["down", "--state-dir", text(&state_dir)]);
        if output.status.success() {
            return;
        }
        report(&output);
        let mount = state_dir.join("bpf");
        drop(run(&["umount", "-l", text(&mount)]));
        if let Ok(canonical) = state_dir.canonicalize() {
            let name = imds_user::state::namespace_name_in(&canonical);
            drop(run(&["ip", "netns", "delete", &name]));
        }
    }
}

/// Waits for the end of the daemon that strace runs, or for a time after which it is stopped. Whether it came to its end
/// before.
fn ends_by_itself_within(strace: &mut Child, within: Duration) -> bool {
    let pid = Pid::from_raw(i32::try_from(strace.id()).expect("a process number is positive"));
    let is_daemon = |child: &Pid| {
        let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(b"run")
    };
    let deadline = Instant::now() + patience(within);
    let mut daemon = None;
    while Instant::now() < deadline {
        if strace
            .try_wait()
            .expect("a child can be waited for")
            .is_some()
        {
            return true;
        }
        match daemon {
            Some(daemon) if !is_alive(daemon) => return true,
            Some(_) => {}
            None => daemon = children_of(pid).into_iter().find(is_daemon),
        }
        thread::sleep(Duration::from_millis(5));
    }
    let daemon = daemon.expect("strace runs the daemon");
    kill(daemon, Signal::SIGTERM).ok();
    eventually("the end of a stopped daemon", within, || {
        (!is_alive(daemon)).then_some(())
    });
    false
}

#[expect(
    clippy::print_stderr,
    reason = "a host that cannot be removed is worth a look"
)]
fn report(output: &Output) {
    eprintln!("imds down failed: {output:?}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}
