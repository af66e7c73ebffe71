//! What happens to the daemon, the responder and what they need, one thing after the other; and their supervisor, which
//! starts the daemon again as systemd would.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ledger::{Kind, Touched};
use super::machine::Machine;
use super::{SERVED_WITHIN, Stage, pause_of};
use crate::binary::imds_path;
use crate::daemon::Daemon;
use crate::http::{Address, Connection};
use crate::process::{eventually, is_alive, run};
use crate::random::Random;
use crate::service_manager::FdStore;

/// The supervisor's pause before another start: `RestartSec=` of the unit.
const RESTART_PAUSE: Duration = Duration::from_millis(100);
/// How long the supervisor goes on with starts that fail.
const STARTED_WITHIN: Duration = Duration::from_secs(60);
/// How long starts are tried on a full disk, before it is found that none succeeds.
const TRIED_WHEN_FULL: Duration = Duration::from_secs(3);
/// More connections than one guest may have.
const GREED: usize = 1200;
/// Descriptors that are enough for the daemon, beside two for each guest.
const DAEMONS_DESCRIPTORS: usize = 160;
/// More changes of an interface than their notifications' buffer holds.
const STORM: usize = 2000;

pub(super) struct Service<'a> {
    stage: &'a Stage<'a>,
    random: Random,
    store: FdStore,
    /// None while it is stopped.
    daemon: Option<Daemon>,
    /// Copies of the binary: another file is another version.
    versions: [PathBuf; 2],
    version: usize,
    /// For each mover, which instance the configuration has at its port.
    owners: Vec<usize>,
}

impl<'a> Service<'a> {
    /// Starts the daemon.
    pub(super) fn start(stage: &'a Stage<'a>, random: Random) -> Result<Self, String> {
        let versions = [imds_path(), stage.host().another_version("imds-next")];
        let mut service = Self {
            stage,
            random,
            store: FdStore::default(),
            daemon: None,
            versions,
            version: 0,
            owners: stage.movers.clone().collect(),
        };
        service.supervise(STARTED_WITHIN)?;
        Ok(service)
    }

    /// Plays until it is over. The cards of each round come in an order of their own.
    pub(super) fn run(&mut self, until: Instant) -> Result<(), String> {
        loop {
            for kind in self.random.shuffled(Kind::OF_SERVICE) {
                if self.stage.is_over(until) {
                    return Ok(());
                }
                self.stage.say(kind);
                self.play(kind)
                    .map_err(|why| format!("{}: {why}", kind.name()))?;
                self.check_alive(kind);
                thread::sleep(pause_of(&self.random, 50..250));
            }
        }
    }

    /// Everything that the daemons said.
    pub(super) fn log(&self) -> String {
        let log = self.stage.host().dir().join("notify.log");
        fs::read_to_string(log).unwrap_or_default()
    }

    fn play(&mut self, kind: Kind) -> Result<(), String> {
        let touched = match kind {
            Kind::StopAndStart | Kind::Greed | Kind::LostNotifications => {
                let movers = self.stage.movers.clone();
                vec![movers.start + self.random.below(movers.len())]
            }
            Kind::PortsExchanged => self.stage.movers.clone().take(2).collect(),
            _ => Vec::new(),
        };
        let everybody = || (0..self.stage.machines.len()).collect();
        let (whom, guests) = if touched.is_empty() {
            (Touched::All, everybody())
        } else {
            (Touched::Some(touched.clone()), touched)
        };
        let began = Instant::now();
        let window = self.stage.ledger.begin(kind, whom, began);
        match kind {
            Kind::Restart => self.restart()?,
            Kind::Upgrade => {
                self.version = 1 - self.version;
                self.restart()?;
            }
            Kind::DaemonKilled => self.kill_daemon()?,
            Kind::StartKilled => self.kill_starts()?,
            Kind::DaemonPaused => self.hold_up(),
            Kind::Reload => self.change_options(),
            Kind::BrokenReload => self.read_broken_file(),
            Kind::DaemonDescriptors => self.starve_daemon()?,
            Kind::ResponderDescriptors => self.starve_responder()?,
            Kind::FullDisk => self.fill_disk()?,
            Kind::UplinkFlaps => {
                let down_for = pause_of(&self.random, 0..500);
                self.stage.uplink.flap(self.stage.network(), down_for);
            }
            Kind::ResponderKilled => self.kill_responder(),
            Kind::ResponderHangs => self.signal_responder(Signal::SIGSTOP),
            Kind::BothKilled => self.kill_both()?,
            Kind::FullDiskResponderKilled => {
                self.stage.host().state_disk().fill();
                self.signal_responder(Signal::SIGKILL);
            }
            Kind::StopAndStart => self.stop_and_start(&self.stage.machines[guests[0]])?,
            Kind::PortsExchanged => self.exchange_ports(),
            Kind::Greed => self.be_greedy(&self.stage.machines[guests[0]]),
            Kind::LostNotifications => self.lose_notifications(&self.stage.machines[guests[0]]),
            Kind::Recreated
            | Kind::Renamed
            | Kind::NamesExchanged
            | Kind::RecreatedExchanged
            | Kind::Unplugged => unreachable!("that is for those who are at the cables"),
        }
        self.stage.settle(&guests, SERVED_WITHIN)?;
        if kind.may_cost() {
            self.stage.note_recovery(kind, began.elapsed());
        }
        if kind == Kind::FullDiskResponderKilled {
            self.stage.host().state_disk().empty();
        }
        self.stage.ledger.end(window, Instant::now());
        Ok(())
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("it runs between disturbances")
    }

    /// Starts the daemon, again and again until it serves; how long that took.
    fn supervise(&mut self, within: Duration) -> Result<Duration, String> {
        let began = Instant::now();
        loop {
            let started = self
                .stage
                .host()
                .try_start(&self.versions[self.version], &self.store);
            match started {
                Ok(daemon) => {
                    self.daemon = Some(daemon);
                    return Ok(began.elapsed());
                }
                Err(why) if began.elapsed() > within => return Err(why),
                Err(why) => {
                    self.stage.note_failed_start(&why);
                    thread::sleep(RESTART_PAUSE);
                }
            }
        }
    }

    /// No disturbance is a reason for the daemon to end by itself.
    fn check_alive(&mut self, kind: Kind) {
        let daemon = self.daemon.as_mut().expect("it was started again");
        let Some(status) = daemon.ended() else {
            return;
        };
        let log = daemon.log();
        self.stage.violated(format!(
            "{}: the daemon ended by itself ({status}):\n{}",
            kind.name(),
            super::tail(&log, 15)
        ));
        self.daemon = None;
        if let Err(why) = self.supervise(STARTED_WITHIN) {
            self.stage.violated(why);
        }
    }

    fn stop(&mut self) {
        let daemon = self.daemon.take().expect("it runs between disturbances");
        daemon.stop();
    }

    fn restart(&mut self) -> Result<(), String> {
        self.stop();
        thread::sleep(pause_of(&self.random, 0..300));
        self.supervise(STARTED_WITHIN).map(drop)
    }

    fn crash(&mut self) {
        let mut daemon = self.daemon.take().expect("it runs between disturbances");
        daemon.crash();
    }

    fn kill_daemon(&mut self) -> Result<(), String> {
        let began = Instant::now();
        self.crash();
        thread::sleep(RESTART_PAUSE);
        self.supervise(STARTED_WITHIN)?;
        self.stage
            .note_recovery(Kind::DaemonKilled, began.elapsed());
        Ok(())
    }

    fn kill_starts(&mut self) -> Result<(), String> {
        self.stop();
        for _ in 0..=self.random.below(3) {
            let after = pause_of(&self.random, 0..300);
            let version = &self.versions[self.random.below(2)];
            self.stage.host().start_version_and_kill(version, after);
        }
        self.supervise(STARTED_WITHIN).map(drop)
    }

    fn hold_up(&self) {
        self.daemon().pause();
        thread::sleep(pause_of(&self.random, 100..1500));
        self.daemon().resume();
    }

    fn change_options(&mut self) {
        let random = &self.random;
        self.stage.change_host(|host| {
            for machine in &self.stage.machines {
                let tokens = ["\"optional\"", "\"required\""][random.below(2)];
                let hops = (1 + random.below(8)).to_string();
                let tag = format!("[instance.tags]\nTurn = \"{}\"", random.below(1000));
                host.instance(&machine.name)
                    .option("http-tokens", tokens)
                    .option("http-put-response-hop-limit", &hops)
                    .set_tables(&tag);
            }
            host.write_config();
        });
        self.reload();
    }

    fn read_broken_file(&mut self) {
        self.stage.host().write_raw_config("[[instance]]\nname = ");
        self.reload();
        self.stage.host().write_config();
        self.reload();
    }

    fn reload(&mut self) {
        let daemon = self.daemon.as_mut();
        daemon.expect("it runs between disturbances").reload();
    }

    /// Lets the daemon have no more descriptors than it has, for a while, in which it is asked for something, and an interface
    /// is made anew.
    fn starve_daemon(&self) -> Result<(), String> {
        let stage = self.stage;
        let mover = &stage.machines[stage.movers.start + self.random.below(stage.movers.len())];
        let whom = Touched::Some(vec![mover.number]);
        let daemon = self.daemon().pid();
        let usual = open_files_limit(daemon);
        let open = fs::read_dir(format!("/proc/{daemon}/fd")).map_or(0, Iterator::count);
        limit_open_files(daemon, &format!("{open}:"));
        let anew = stage.ledger.begin(Kind::Recreated, whom, Instant::now());
        stage.network().ip(&format!("link delete {}", mover.port()));
        for _ in 0..=self.random.below(3) {
            // It may be too poor to answer.
            drop(stage.host().command("status"));
            thread::sleep(pause_of(&self.random, 50..400));
        }
        mover.plug(stage.network(), &mover.port());
        thread::sleep(pause_of(&self.random, 0..400));
        limit_open_files(daemon, &format!("{usual}:"));
        stage.settle(&[mover.number], SERVED_WITHIN)?;
        stage.ledger.end(anew, Instant::now());
        Ok(())
    }

    /// A responder that may have few descriptors, which it inherits from the daemon, and a guest that takes all of them:
    /// the others wait until it lets go. Where the daemon may raise limits nothing can be taken from its responder, and the
    /// guest meets the bound of a guest instead.
    fn starve_responder(&mut self) -> Result<(), String> {
        let everybody: Vec<usize> = (0..self.stage.machines.len()).collect();
        let ledger = &self.stage.ledger;
        let change = ledger.begin(Kind::ResponderKilled, Touched::All, Instant::now());
        let daemon = self.daemon().pid();
        let few = DAEMONS_DESCRIPTORS + 2 * self.stage.machines.len();
        limit_open_files(daemon, &few.to_string());
        self.signal_responder(Signal::SIGKILL);
        self.stage.settle(&everybody, SERVED_WITHIN)?;
        ledger.end(change, Instant::now());

        let greedy = &self.stage.machines[self.stage.movers.start];
        let whom = Touched::Some(vec![greedy.number]);
        let greed = ledger.begin(Kind::Greed, whom, Instant::now());
        self.be_greedy(greedy);
        self.stage.settle(&everybody, SERVED_WITHIN)?;
        ledger.end(greed, Instant::now());
        // Another version starts another responder, as rich as ever.
        self.version = 1 - self.version;
        self.restart()
    }

    /// A full disk: what has to be kept is refused with the reason, and everything else goes on.
    fn fill_disk(&mut self) -> Result<(), String> {
        self.stage.host().state_disk().fill();
        let name = &self.stage.machines[self.stage.movers.start].name;
        let refused = self.stage.host().command(&format!("instance stop {name}"));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        if refused.status.success() || !said.contains("no room on its file system") {
            self.stage
                .violated(format!("a full disk: `imds instance stop` said {said:?}"));
        }
        let outcome = match self.random.below(3) {
            0 => {
                self.crash();
                self.supervise(TRIED_WHEN_FULL).map(drop)
            }
            1 => {
                self.version = 1 - self.version;
                self.stop();
                self.supervise(TRIED_WHEN_FULL).map(drop)
            }
            _ => {
                self.change_options();
                Ok(())
            }
        };
        self.stage.host().state_disk().empty();
        if let Err(why) = outcome {
            self.stage
                .violated(format!("no start on a full disk: {}", super::tail(&why, 6)));
            self.supervise(STARTED_WITHIN)?;
        }
        Ok(())
    }

    /// At once, or while the daemon is held up and cannot start another.
    fn kill_responder(&self) {
        let responder = self.daemon().responder_pid();
        let is_held_up = self.random.below(2) == 0;
        if is_held_up {
            self.daemon().pause();
            kill(responder, Signal::SIGKILL).ok();
            thread::sleep(pause_of(&self.random, 50..500));
            self.daemon().resume();
        } else {
            kill(responder, Signal::SIGKILL).ok();
        }
        self.await_other_than(responder);
    }

    fn signal_responder(&self, signal: Signal) {
        let responder = self.daemon().responder_pid();
        // One that ended meanwhile is not there to be ended.
        kill(responder, signal).ok();
        self.await_other_than(responder);
    }

    fn await_other_than(&self, responder: Pid) {
        eventually("another responder", SERVED_WITHIN, || {
            let now = self.daemon().responder_now();
            now.is_some_and(|now| now != responder).then_some(())
        });
    }

    /// Both, or the responder at whatever moment of a start, which may be another version's.
    fn kill_both(&mut self) -> Result<(), String> {
        let responder = self.daemon().responder_pid();
        if self.random.below(2) == 0 {
            self.crash();
            kill(responder, Signal::SIGKILL).ok();
            eventually("its end", Duration::from_secs(10), || {
                (!is_alive(responder)).then_some(())
            });
            thread::sleep(RESTART_PAUSE);
            return self.supervise(STARTED_WITHIN).map(drop);
        }
        self.stop();
        self.version = self.random.below(2);
        let after = pause_of(&self.random, 0..200);
        thread::scope(|scope| {
            scope.spawn(|| {
                // The moment is what is tried, so nothing can be waited for.
                thread::sleep(after);
                kill(responder, Signal::SIGKILL).ok();
            });
            self.supervise(STARTED_WITHIN).map(drop)
        })
    }

    fn stop_and_start(&self, machine: &Machine) -> Result<(), String> {
        // Whoever the configuration has there now.
        let owner = self.owners[machine.number - self.stage.movers.start];
        let name = &self.stage.machines[owner].name;
        for action in ["stop", "start"] {
            let output = self
                .stage
                .host()
                .command(&format!("instance {action} {name}"));
            if !output.status.success() {
                return Err(format!("{action} {name}: {output:?}"));
            }
            thread::sleep(pause_of(&self.random, 0..300));
        }
        Ok(())
    }

    /// The first two movers: each is the other from now on.
    fn exchange_ports(&mut self) {
        let machines = &self.stage.machines;
        let (one, other) = (
            &machines[self.stage.movers.start],
            &machines[self.stage.movers.start + 1],
        );
        let (first, second) = (self.owners[0], self.owners[1]);
        let ids = [&*machines[first].id, &*machines[second].id];
        for machine in [one, other] {
            machine.expected.set(&ids, Instant::now());
        }
        self.owners.swap(0, 1);
        self.stage.change_host(|host| {
            let quoted = crate::instance::quoted;
            host.instance(&machines[first].name)
                .key("port", &quoted(&other.port()));
            host.instance(&machines[second].name)
                .key("port", &quoted(&one.port()));
            host.write_config();
        });
        self.reload();
        one.expected.set(&[ids[1]], Instant::now());
        other.expected.set(&[ids[0]], Instant::now());
    }

    fn be_greedy(&self, machine: &Machine) {
        let held: Vec<Connection> = machine.namespace.enter(|| {
            let open = |number: usize| {
                let within = Duration::from_millis(500);
                let mut connection = Connection::open_within(Address::V4, within).ok()?;
                if number.is_multiple_of(2) {
                    // The beginning of a request that never ends.
                    connection.send(b"GET / HTTP/1.1\r\nX: ").ok()?;
                }
                Some(connection)
            };
            (0..GREED).filter_map(open).collect()
        });
        thread::sleep(pause_of(&self.random, 100..500));
        drop(held);
    }

    fn lose_notifications(&self, machine: &Machine) {
        let stranger = self.stage.strangers[0].port();
        let storm: String = (0..STORM)
            .map(|turn| format!("link set {stranger} alias turn-{turn}\n"))
            .collect();
        self.daemon().pause();
        let host = self.stage.network();
        host.ip(&storm);
        host.ip(&format!("link delete {}", machine.port()));
        machine.plug(host, &machine.port());
        self.daemon().resume();
    }
}

/// What `prlimit --nofile=` says, for a process of the user that this is.
fn limit_open_files(of: Pid, limits: &str) {
    let (pid, limits) = (of.to_string(), format!("--nofile={limits}"));
    let output = run(&["prlimit", "--pid", &pid, &limits]);
    assert!(output.status.success(), "{output:?}");
}

/// How many descriptors a process may have.
fn open_files_limit(of: Pid) -> String {
    let limits = fs::read_to_string(format!("/proc/{of}/limits")).unwrap_or_default();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    soft.expect("every process has a limit").to_owned()
}
