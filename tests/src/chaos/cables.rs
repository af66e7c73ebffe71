//! What happens to interfaces meanwhile, whatever the daemon is doing.

use std::thread;
use std::time::{Duration, Instant};

use super::ledger::{Kind, Touched};
use super::{SERVED_WITHIN, Stage, pause_of};
use crate::random::Random;

/// The name that an interface has while it has none of its own.
const ASIDE: &str = "aside";

pub(super) struct Cables<'a> {
    stage: &'a Stage<'a>,
    random: Random,
    /// For each machine whose cable is played with, by which name the host knows it.
    ports: Vec<String>,
}

impl<'a> Cables<'a> {
    pub(super) fn new(stage: &'a Stage<'a>, random: Random) -> Self {
        let machines = &stage.machines[stage.cables.clone()];
        Self {
            stage,
            random,
            ports: machines.iter().map(super::Machine::port).collect(),
        }
    }

    /// Plays until it is over. The cards of each round come in an order of their own.
    pub(super) fn run(mut self, until: Instant) -> Result<(), String> {
        loop {
            for kind in self.random.shuffled(Kind::OF_CABLES) {
                if self.stage.is_over(until) {
                    return Ok(());
                }
                self.play(kind)
                    .map_err(|why| format!("{}: {why}", kind.name()))?;
                thread::sleep(pause_of(&self.random, 100..500));
            }
        }
    }

    fn play(&mut self, kind: Kind) -> Result<(), String> {
        let one = self.random.below(self.ports.len());
        let other = (one + 1 + self.random.below(self.ports.len() - 1)) % self.ports.len();
        let touched = match kind {
            Kind::NamesExchanged | Kind::RecreatedExchanged => vec![one, other],
            _ => vec![one],
        };
        let first = self.stage.cables.start;
        let guests: Vec<usize> = touched.iter().map(|at| first + at).collect();
        let began = Instant::now();
        let window = self
            .stage
            .ledger
            .begin(kind, Touched::Some(guests.clone()), began);
        match kind {
            Kind::Recreated => self.recreate(one),
            Kind::Renamed => self.rename(one),
            Kind::NamesExchanged => self.exchange_names(one, other)?,
            Kind::RecreatedExchanged => self.recreate_exchanged(one, other),
            _ => self.unplug(one),
        }
        self.stage.settle(&guests, SERVED_WITHIN)?;
        self.stage.note_recovery(kind, began.elapsed());
        self.stage.ledger.end(window, Instant::now());
        Ok(())
    }

    fn machine(&self, at: usize) -> &'a super::Machine {
        &self.stage.machines[self.stage.cables.start + at]
    }

    fn recreate(&self, at: usize) {
        let (host, port) = (self.stage.network(), &self.ports[at]);
        host.ip(&format!("link delete {port}"));
        thread::sleep(pause_of(&self.random, 0..200));
        self.machine(at).plug(host, port);
    }

    fn rename(&self, at: usize) {
        let (host, port) = (self.stage.network(), &self.ports[at]);
        host.ip(&renamed(port, ASIDE));
        host.ip(&format!("link set {ASIDE} up"));
        thread::sleep(pause_of(&self.random, 50..400));
        host.ip(&renamed(ASIDE, port));
        host.ip(&format!("link set {port} up"));
    }

    /// As a careful operator does it: the guests are let go on only when both ports are served again. So no answer may
    /// name the former instance, from the moment that the cables are down.
    fn exchange_names(&mut self, one: usize, other: usize) -> Result<(), String> {
        let host = self.stage.network();
        let (first, second) = (self.ports[one].clone(), self.ports[other].clone());
        host.ip(&format!("link set {first} down\nlink set {second} down"));
        self.exchange_identities(one, other);
        host.ip(&renamed(&first, ASIDE));
        host.ip(&renamed(&second, &first));
        host.ip(&renamed(ASIDE, &second));
        for port in [&first, &second] {
            self.wait_for(port)?;
        }
        host.ip(&format!("link set {first} up\nlink set {second} up"));
        Ok(())
    }

    /// Nobody waits for anything here: an interface made anew has to be nobody until it is known who it is.
    fn recreate_exchanged(&mut self, one: usize, other: usize) {
        let host = self.stage.network();
        for port in [&self.ports[one], &self.ports[other]] {
            host.ip(&format!("link delete {port}"));
        }
        self.exchange_identities(one, other);
        for at in [one, other] {
            self.machine(at).plug(host, &self.ports[at]);
        }
    }

    fn unplug(&self, at: usize) {
        let (host, port) = (self.stage.network(), &self.ports[at]);
        host.ip(&format!("link set {port} down"));
        thread::sleep(pause_of(&self.random, 0..300));
        host.ip(&format!("link set {port} up"));
    }

    /// Each machine is behind the other's port from now on, and so the other's instance.
    fn exchange_identities(&mut self, one: usize, other: usize) {
        self.ports.swap(one, other);
        for at in [one, other] {
            let port = &self.ports[at];
            let mut owners = self.stage.machines.iter();
            let owner = owners.find(|machine| machine.port() == *port);
            let id = &owner.expect("every port is somebody's").id;
            self.machine(at).expected.set(&[id], Instant::now());
        }
    }

    /// `imds wait`, also while the daemon is down or does not answer.
    fn wait_for(&self, port: &str) -> Result<(), String> {
        let deadline = Instant::now() + SERVED_WITHIN;
        loop {
            let output = self.stage.host().command(&format!("wait --port {port}"));
            if output.status.success() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("imds wait --port {port}: {output:?}"));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A kernel of before 6.2 renames only what is down.
fn renamed(from: &str, to: &str) -> String {
    format!("link set {from} down\nlink set {from} name {to}")
}
