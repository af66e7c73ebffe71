//! A host on which everything goes wrong while twenty guests ask who they are.
//!
//! Whoever is not touched by what happens must not lose a request; nobody may ever be told another's identity; and not one
//! packet of a guest may reach the stand-in for the host's own metadata service. [`run`] plays disturbances in an order that
//! a seed gives, the service's and the cables' at the same time, and counts. What a disturbance may cost is said in
//! [`Kind::may_cost`].

mod cables;
mod client;
mod ledger;
mod machine;
mod report;
mod service;

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant};

use cables::Cables;
use client::{Client, Seen, ask_as_host, knock};
pub use ledger::{Account, Expected, Kind, Ledger, Times, Touched};
use machine::{Machine, await_served, make_bridge};
pub use report::{Report, Row};
use service::Service;

use crate::host::Host;
use crate::namespace::Namespace;
use crate::process::{allow_open_files, eventually};
use crate::random::Random;
use crate::skip::has_command;
use crate::uplink::Uplink;

/// Guests, at least: some that nothing is done to, some whose instance, and some whose cable is played with.
pub const GUESTS_MIN: usize = 6;
/// As many as have a hardware address and, behind the bridge, an address.
pub const GUESTS_MAX: usize = 200;

/// Until everybody is served again, at most: a bound, no aim.
const SERVED_WITHIN: Duration = Duration::from_secs(60);
/// Room for the notifications of a few interfaces; those of a storm get lost.
const NOTIFICATION_BYTES: usize = 4096;
/// How often the counts are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What is to be played.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The order of everything that is left to chance.
    pub seed: u64,
    /// How many guests.
    pub guests: usize,
    /// For how long. What was begun is brought to its end.
    pub time: Duration,
    /// How often `progress` is told.
    pub progress_every: Duration,
}

/// Plays it, unless `is_interrupted` becomes true before. None, and a skip, where the machine does not allow it.
///
/// # Panics
/// When the machine refuses what a test may expect of it.
pub fn run(
    plan: &Plan,
    is_interrupted: &AtomicBool,
    mut progress: impl FnMut(&str),
) -> Option<Report> {
    if !has_command("prlimit") || !has_command("mount") {
        return None;
    }
    allow_open_files(16_384);
    let stage = Stage::new(plan, is_interrupted)?;
    let began = Instant::now();
    let until = began + plan.time;
    let random = |actor: u64| Random::of(plan.seed.wrapping_mul(31).wrapping_add(actor));
    let is_over = AtomicBool::new(false);
    let mut log = String::new();
    thread::scope(|scope| {
        let end = EndOf(&is_over);
        let service = match Service::start(&stage, random(1)) {
            Ok(service) => service,
            Err(why) => return stage.violated(why),
        };
        for machine in &stage.machines {
            for keeps in [true, false] {
                let client = Client::new(machine, keeps, &stage.seen);
                let is_over = &is_over;
                scope.spawn(move || client.run(is_over));
            }
        }
        for stranger in &stage.strangers {
            scope.spawn(|| knock(stranger, &stage.seen, &is_over));
        }
        scope.spawn(|| ask_as_host(stage.network(), &stage.seen, &is_over));
        let everybody: Vec<usize> = (0..stage.machines.len()).collect();
        let first = stage.settle(&everybody, SERVED_WITHIN);
        let cables = Cables::new(&stage, random(2));
        let stage = &stage;
        let cables = scope.spawn(move || {
            let _end = EndOfAll(stage);
            let outcome = cables.run(until);
            stage.note_end(&outcome);
            outcome
        });
        let actor = scope.spawn(move || {
            let _end = EndOfAll(stage);
            let mut service = service;
            let outcome = first.and_then(|()| service.run(until));
            stage.note_end(&outcome);
            // The last disturbance of the cables may still need its daemon.
            (outcome, service)
        });
        let mut told = Instant::now();
        while !actor.is_finished() || !cables.is_finished() {
            thread::sleep(LOOK_EVERY);
            // So that no frame is lost for want of room.
            let leaked = stage.leaked();
            if told.elapsed() >= plan.progress_every {
                told = Instant::now();
                progress(&stage.progress(began.elapsed(), leaked));
            }
        }
        let cables = cables.join().unwrap_or_else(|panic| resume_unwind(panic));
        let (outcome, service) = actor.join().unwrap_or_else(|panic| resume_unwind(panic));
        for outcome in [outcome, cables] {
            outcome.unwrap_or_else(|why| stage.violated(why));
        }
        drop(end);
        log = service.log();
    });
    Some(Report::of(&stage, plan, began.elapsed(), &log))
}

/// Ends the clients, also when whoever holds it panics.
struct EndOf<'a>(&'a AtomicBool);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// If one actor panics, the other has nothing to wait for.
struct EndOfAll<'a>(&'a Stage<'a>);

impl Drop for EndOfAll<'_> {
    fn drop(&mut self) {
        let is_failed = &self.0.is_failed;
        is_failed.fetch_or(thread::panicking(), Ordering::Relaxed);
    }
}

/// Everything that the actors and the clients share. Machines come first: their namespaces go before the host's.
struct Stage<'a> {
    machines: Vec<Machine>,
    strangers: Vec<Machine>,
    /// Those to whose instances something happens.
    movers: Range<usize>,
    /// Those to whose cables something happens.
    cables: Range<usize>,
    network: Namespace,
    uplink: Uplink,
    /// What reached the stand-in before there was a guard, which shows that it can be reached.
    reached_before: u64,
    answered_before: u64,
    host: RwLock<Host>,
    ledger: Ledger,
    seen: Seen,
    recoveries: Mutex<BTreeMap<Kind, Times>>,
    violations: Mutex<Vec<String>>,
    now_playing: Mutex<&'static str>,
    is_interrupted: &'a AtomicBool,
    is_failed: AtomicBool,
    failed_starts: AtomicU64,
}

impl<'a> Stage<'a> {
    fn new(plan: &Plan, is_interrupted: &'a AtomicBool) -> Option<Self> {
        let mut host = Host::new()?;
        let n_guests = plan.guests.clamp(GUESTS_MIN, GUESTS_MAX);
        host.small_state_disk();
        host.run_option(&format!("--notification-bytes={NOTIFICATION_BYTES}"));
        let uplink = host.uplink("up0");
        make_bridge(&mut host);
        let network = host.namespace().handle();
        let machines: Vec<Machine> = (0..n_guests)
            .map(|number| Machine::new(number, &format!("g{number:02}")))
            .collect();
        let strangers: Vec<Machine> = (n_guests..n_guests + 2)
            .map(|number| Machine::new(number, &format!("s{number:02}")))
            .collect();
        for machine in machines.iter().chain(&strangers) {
            machine.plug(&network, &machine.port());
        }
        for machine in &machines {
            host.add_instance(machine.instance());
        }
        let few = (n_guests / 5).max(2);
        let stage = Self {
            movers: n_guests - 2 * few..n_guests - few,
            cables: n_guests - few..n_guests,
            machines,
            strangers,
            network,
            reached_before: 0,
            answered_before: 0,
            uplink,
            host: RwLock::new(host),
            ledger: Ledger::default(),
            seen: Seen::default(),
            recoveries: Mutex::default(),
            violations: Mutex::default(),
            now_playing: Mutex::new("start"),
            is_interrupted,
            is_failed: AtomicBool::new(false),
            failed_starts: AtomicU64::new(0),
        };
        Some(stage.prove_that_it_leaks())
    }

    /// Before there is a guard, a stranger's call does reach the stand-in: what is counted later could be otherwise.
    fn prove_that_it_leaks(mut self) -> Self {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let end = EndOf(&is_over);
            scope.spawn(|| knock(&self.strangers[0], &Seen::default(), &is_over));
            eventually(
                "a stranger reaches the stand-in without a guard",
                Duration::from_secs(10),
                || (self.uplink.forwarded() > 0).then_some(()),
            );
            drop(end);
        });
        self.reached_before = self.uplink.forwarded();
        self.answered_before = self.uplink.answers();
        self
    }

    fn host(&self) -> RwLockReadGuard<'_, Host> {
        self.host.read().expect("nobody panics with it")
    }

    fn change_host(&self, change: impl FnOnce(&mut Host)) {
        change(&mut self.host.write().expect("nobody panics with it"));
    }

    /// The host's network, without a hold on the host.
    fn network(&self) -> &Namespace {
        &self.network
    }

    fn is_over(&self, until: Instant) -> bool {
        Instant::now() >= until
            || self.is_interrupted.load(Ordering::Relaxed)
            || self.is_failed.load(Ordering::Relaxed)
            || self.seen.has_wrong()
    }

    /// If one actor cannot go on, the other need not.
    fn note_end(&self, outcome: &Result<(), String>) {
        self.is_failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
    }

    fn say(&self, kind: Kind) {
        *self.now_playing.lock().expect("nobody panics with it") = kind.name();
    }

    fn violated(&self, what: String) {
        client::note(&self.violations, what);
    }

    /// A start that failed is made good by the supervisor, and yet only a full disk or a responder that dies meanwhile is a
    /// reason for one.
    fn note_failed_start(&self, why: &str) {
        let now = *self.now_playing.lock().expect("nobody panics with it");
        let is_excused = [Kind::FullDisk, Kind::BothKilled].map(Kind::name);
        if is_excused.contains(&now) {
            self.failed_starts.fetch_add(1, Ordering::Relaxed);
        } else {
            self.violated(format!("{now}: a start failed: {}", tail(why, 5)));
        }
    }

    fn note_recovery(&self, kind: Kind, time: Duration) {
        let mut recoveries = self.recoveries.lock().expect("nobody panics with it");
        recoveries.entry(kind).or_default().add(time);
    }

    /// Waits until every client of these was answered to something that it asked from now on.
    fn settle(&self, guests: &[usize], within: Duration) -> Result<(), String> {
        let machines: Vec<&Machine> = guests.iter().map(|at| &self.machines[*at]).collect();
        await_served(&machines, Instant::now(), within, &self.is_failed)
    }

    /// Packets of guests that reached the stand-in.
    fn leaked(&self) -> u64 {
        self.uplink.forwarded() - self.reached_before
    }

    fn progress(&self, elapsed: Duration, leaked: u64) -> String {
        let n_played: u64 = self.ledger.counts().values().sum();
        let now = *self.now_playing.lock().expect("nobody panics with it");
        let (answered, failed, wrong) = self.seen.counts();
        format!(
            "{:>4} s  {answered:>8} answered  {failed:>4} failed  {wrong} wrong  {leaked} leaked  {n_played:>3} disturbances, \
             now: {now}",
            elapsed.as_secs()
        )
    }
}

/// The last lines of a text.
fn tail(text: &str, n_lines: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(n_lines)..].join("\n")
}

/// So many milliseconds.
fn pause_of(random: &Random, range: Range<usize>) -> Duration {
    let millis = range.start + random.below(range.end - range.start);
    Duration::from_millis(millis as u64)
}
