//! Who is served right now: instances by slot, with the connections and counts of each. Read at every request without a
//! lock, replaced whole at every change.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::Notify;

use super::{
    bounds::{CONNECTIONS_MAX, IN_FLIGHT_MAX},
    signing::Signing,
    throttle::Throttle,
};
use crate::identity::Signatures;
use crate::instance::{Host, Instance, Limits, Published, UnixSeconds};

/// How many connections of the guest with the most end when there are too many in all: to find it takes a look at every
/// guest.
const EVICTED_AT_ONCE: usize = 32;

/// The directory of guests.
pub struct Guests {
    host: ArcSwapOption<Host>,
    by_slot: ArcSwap<HashMap<u32, Arc<Guest>>>,
    connections_max: usize,
    connections: AtomicUsize,
    in_flight: AtomicUsize,
}

/// One guest: its instance as of now, and what stays when the instance changes.
pub struct Guest {
    state: Arc<Published>,
    /// The signatures of this state's identity document.
    pub signing: Signing,
    /// What it did.
    pub tally: Arc<Tally>,
    connections: Arc<Connections>,
}

/// Counts of one guest.
#[derive(Debug, Default)]
pub struct Tally {
    /// Answered requests.
    pub requests: AtomicU64,
    /// Tokens given out.
    pub tokens_issued: AtomicU64,
    /// Requests without a token that were served.
    pub no_token: AtomicU64,
    /// Requests without a token that were refused.
    pub no_token_rejected: AtomicU64,
    /// Requests that were one too many of their second.
    pub throttled: AtomicU64,
    /// What is left of this second's requests.
    pub throttle: Throttle,
    /// What is left of this second's new connections.
    pub newcomers: Throttle,
}

/// The open connections of one guest.
#[derive(Debug, Default)]
struct Connections(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    by_number: HashMap<u64, Arc<Connection>>,
    /// When each was active, as far as anybody looked, and its number; also of some that are closed. A connection only
    /// becomes active later, so the earliest of these is the longest idle if it still holds.
    by_activity: BinaryHeap<Reverse<(u64, u64)>>,
    /// Numbers of those that keep a request in flight, by the order in which they began to.
    in_flight: BTreeMap<u64, u64>,
    begun: u64,
}

/// One open connection.
#[derive(Debug, Default)]
pub struct Connection {
    /// When it was accepted or last answered, nanoseconds on the server's own clock.
    pub active_nanoseconds: AtomicU64,
    /// Told when it must end.
    pub evicted: Notify,
    /// It ends with a RST: its guest is gone, or does not send or take what it should.
    pub resets: AtomicBool,
}

/// Connections of guests that are gone, on their way to their end.
#[derive(Debug, Default)]
pub struct Leaving(Vec<Arc<Connections>>);

/// A connection's place in its guest's list, given up on drop.
pub struct Admission {
    /// The connection.
    pub connection: Arc<Connection>,
    number: u64,
    in_flight_max: usize,
    list: Arc<Connections>,
    guests: Arc<Guests>,
}

/// A connection's place among those that keep a request in flight, given up on drop.
pub struct InFlight<'admission> {
    admission: &'admission Admission,
    turn: u64,
}

impl Default for Guests {
    fn default() -> Self {
        Self::with_connections(CONNECTIONS_MAX)
    }
}

impl Guests {
    /// A directory without guests, of a process that may have so many connections, [`CONNECTIONS_MAX`] at most.
    #[must_use]
    pub fn with_connections(connections_max: usize) -> Self {
        Self {
            host: ArcSwapOption::default(),
            by_slot: ArcSwap::default(),
            connections_max: connections_max.min(CONNECTIONS_MAX),
            connections: AtomicUsize::default(),
            in_flight: AtomicUsize::default(),
        }
    }

    /// What all instances share, once the daemon told it.
    pub fn host(&self) -> Option<Arc<Host>> {
        self.host.load_full()
    }

    /// Replaces what all instances share.
    pub fn set_host(&self, host: Host) {
        self.host.store(Some(Arc::new(host)));
    }

    /// The guest with this slot.
    pub fn get(&self, slot: u32) -> Option<Arc<Guest>> {
        self.by_slot.load().get(&slot).cloned()
    }

    /// Whether this is still the state of the guest with this slot. Who waits for a state to change asks before it waits.
    pub fn is_current(&self, slot: u32, guest: &Arc<Guest>) -> bool {
        let known = self.by_slot.load();
        known
            .get(&slot)
            .is_some_and(|known| Arc::ptr_eq(known, guest))
    }

    /// Adds guests and replaces the instances of known ones; their counts and connections stay.
    pub fn upsert(&self, states: Vec<(u32, Arc<Published>)>) {
        let before = self.by_slot.load_full();
        let mut next = HashMap::clone(&before);
        let slots: Vec<u32> = states.iter().map(|(slot, _)| *slot).collect();
        for (slot, state) in states {
            let (tally, connections) = next
                .get(&slot)
                .map(|known| (Arc::clone(&known.tally), Arc::clone(&known.connections)))
                .unwrap_or_default();
            next.insert(
                slot,
                Arc::new(Guest {
                    state,
                    signing: Signing::default(),
                    tally,
                    connections,
                }),
            );
        }
        self.by_slot.store(Arc::new(next));
        for replaced in slots.iter().filter_map(|slot| before.get(slot)) {
            replaced.signing.wake();
        }
    }

    /// Gives a guest its signatures, or the word that there are none to be had.
    pub fn sign(&self, slot: u32, signatures: Option<Signatures>) {
        if let Some(guest) = self.get(slot) {
            guest.signing.answer(signatures);
        }
    }

    /// Forgets guests and ends their connections, which takes a moment.
    pub fn remove(&self, slots: &[u32]) -> Leaving {
        let mut next = HashMap::clone(&self.by_slot.load());
        let gone: Vec<_> = slots.iter().filter_map(|slot| next.remove(slot)).collect();
        self.by_slot.store(Arc::new(next));
        for guest in &gone {
            guest.signing.wake();
            guest.connections.end_all();
        }
        let connections = gone.iter().map(|guest| Arc::clone(&guest.connections));
        Leaving(connections.collect())
    }

    /// Every guest.
    pub fn all(&self) -> Arc<HashMap<u32, Arc<Guest>>> {
        self.by_slot.load_full()
    }

    /// Whether no connection is open.
    pub fn is_quiet(&self) -> bool {
        self.connections.load(Ordering::SeqCst) == 0
    }

    /// Takes a new connection of a guest in. Where there are too many, the one that was idle longest ends: of this guest,
    /// or, where there are too many in all, of the guest that has the most.
    pub fn admit(self: &Arc<Self>, guest: &Guest, number: u64, now_nanoseconds: u64) -> Admission {
        if self.connections.fetch_add(1, Ordering::Relaxed) >= self.connections_max {
            self.relieve(Connections::len, Open::evict_idle);
        }
        let connection = Arc::new(Connection {
            active_nanoseconds: now_nanoseconds.into(),
            ..Connection::default()
        });
        let list = Arc::clone(&guest.connections);
        let limits = guest.limits();
        let n_left = list.add(number, Arc::clone(&connection), limits.connections);
        self.connections.fetch_sub(n_left, Ordering::Relaxed);
        Admission {
            connection,
            number,
            in_flight_max: limits.requests_in_flight as usize,
            list,
            guests: Arc::clone(self),
        }
    }

    /// Ends some connections of the guest that has the most by some count. They do not count any more, though each has to come
    /// round to its end: or others would have to go for them meanwhile, until none is left.
    fn relieve(&self, count: impl Fn(&Connections) -> usize, evict: impl Fn(&mut Open)) {
        let guests = self.by_slot.load();
        if let Some(largest) = guests
            .values()
            .max_by_key(|guest| count(&guest.connections))
        {
            let mut open = largest.connections.lock();
            let before = open.counts();
            for _ in 0..EVICTED_AT_ONCE {
                evict(&mut open);
            }
            self.count_off(before, open.counts());
        }
    }
}

impl Guests {
    fn count_off(&self, before: (usize, usize), after: (usize, usize)) {
        self.connections
            .fetch_sub(before.0 - after.0, Ordering::Relaxed);
        self.in_flight
            .fetch_sub(before.1 - after.1, Ordering::Relaxed);
    }
}

impl Admission {
    /// The connection has a request that keeps it waiting for its guest, or for a signature, until this is dropped. Where
    /// there are too many such, the one that has been so for longest is reset: of this guest, or, where there are too many
    /// in all, of the guest that has the most.
    pub fn begin_flight(&self) -> InFlight<'_> {
        if self.guests.in_flight.fetch_add(1, Ordering::Relaxed) >= IN_FLIGHT_MAX {
            self.guests
                .relieve(Connections::n_in_flight, Open::evict_in_flight);
        }
        let mut open = self.list.lock();
        if open.in_flight.len() >= self.in_flight_max {
            let before = open.counts();
            open.evict_in_flight();
            self.guests.count_off(before, open.counts());
        }
        let turn = open.begun;
        open.begun += 1;
        open.in_flight.insert(turn, self.number);
        InFlight {
            admission: self,
            turn,
        }
    }
}

impl Leaving {
    /// Whether all of them have ended, their sockets closed.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.iter().all(|connections| connections.len() == 0)
    }

    /// Waits for these as well.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

impl Guest {
    /// What it is told.
    pub fn instance(&self) -> &Instance {
        &self.state.instance
    }

    /// What it may take.
    pub fn limits(&self) -> &Limits {
        &self.state.limits
    }

    /// All of this, and since when.
    pub fn state(&self) -> &Published {
        &self.state
    }

    /// When its metadata was last published.
    pub fn published(&self) -> UnixSeconds {
        self.state.at
    }

    /// How many connections it has open.
    pub fn open_connections(&self) -> usize {
        self.connections.len()
    }
}

impl Connections {
    /// How many left the list for it.
    fn add(&self, number: u64, connection: Arc<Connection>, connections_max: u32) -> usize {
        let mut open = self.lock();
        let before = open.by_number.len();
        if before >= connections_max as usize {
            open.evict_idle();
        }
        let n_left = before - open.by_number.len();
        open.add(number, connection);
        n_left
    }

    fn end_all(&self) {
        for connection in self.lock().by_number.values() {
            connection.reset();
        }
    }

    fn len(&self) -> usize {
        self.lock().by_number.len()
    }

    fn n_in_flight(&self) -> usize {
        self.lock().in_flight.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        // Nothing that runs under the lock panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn add(&mut self, number: u64, connection: Arc<Connection>) {
        let active = connection.active_nanoseconds.load(Ordering::Relaxed);
        self.by_number.insert(number, connection);
        if self.by_activity.len() > 2 * self.by_number.len() {
            let is_open = |Reverse((_, number)): &Reverse<_>| self.by_number.contains_key(number);
            self.by_activity.retain(is_open);
        }
        self.by_activity.push(Reverse((active, number)));
    }

    /// How many there are, and how many requests in flight.
    fn counts(&self) -> (usize, usize) {
        (self.by_number.len(), self.in_flight.len())
    }

    /// Ends the connection that was idle longest. It leaves the list here, so that the next eviction finds another.
    fn evict_idle(&mut self) {
        while let Some(Reverse((noted, number))) = self.by_activity.pop() {
            let Some(connection) = self.by_number.get(&number) else {
                continue;
            };
            let active = connection.active_nanoseconds.load(Ordering::Relaxed);
            if active > noted {
                self.by_activity.push(Reverse((active, number)));
                continue;
            }
            connection.evicted.notify_one();
            self.by_number.remove(&number);
            return;
        }
    }

    /// The same of the one that has kept a request in flight for longest.
    fn evict_in_flight(&mut self) {
        let longest = self.in_flight.pop_first();
        if let Some(connection) = longest.and_then(|(_, number)| self.by_number.remove(&number)) {
            connection.reset();
        }
    }
}

impl Connection {
    /// Ends it with a RST.
    fn reset(&self) {
        self.resets.store(true, Ordering::Relaxed);
        self.evicted.notify_one();
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        // One that was told to end has left the list, and the count, before.
        if self.list.lock().by_number.remove(&self.number).is_some() {
            self.guests.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let Admission { list, guests, .. } = self.admission;
        if list.lock().in_flight.remove(&self.turn).is_some() {
            guests.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, path::Path};

    use super::*;
    use crate::config::{self, Files, Installation};

    /// Connections with numbers from 0, each active at the time of its number.
    fn open(count: u64) -> Open {
        let mut open = Open::default();
        for number in 0..count {
            let connection = Connection {
                active_nanoseconds: number.into(),
                ..Connection::default()
            };
            open.add(number, Arc::new(connection));
        }
        open
    }

    fn check_left(open: &Open, expected: &[u64]) {
        let mut left: Vec<_> = open.by_number.keys().copied().collect();
        left.sort_unstable();
        assert_eq!(left, expected);
    }

    #[test]
    fn the_longest_idle_goes_first_whatever_was_noted_before() {
        let mut open = open(4);
        open.by_number[&0]
            .active_nanoseconds
            .store(9, Ordering::Relaxed);
        open.by_number.remove(&1);
        open.evict_idle();
        check_left(&open, &[0, 3]);
        open.evict_idle();
        check_left(&open, &[0]);
        open.evict_idle();
        check_left(&open, &[]);
        open.evict_idle();
    }

    #[test]
    fn what_is_noted_of_closed_connections_is_forgotten() {
        let mut open = open(2);
        for number in 2..10_000 {
            open.add(number, Arc::default());
            open.by_number.remove(&number);
        }
        assert!(open.by_activity.len() < 10, "{}", open.by_activity.len());
        check_left(&open, &[0, 1]);
    }

    #[test]
    fn the_longest_in_flight_goes_first_and_is_reset() {
        let mut open = open(3);
        open.in_flight = [(0, 2), (1, 0)].into();
        let second = Arc::clone(&open.by_number[&2]);
        open.evict_in_flight();
        check_left(&open, &[0, 1]);
        assert!(second.resets.load(Ordering::Relaxed));
        open.evict_in_flight();
        check_left(&open, &[1]);
        open.evict_in_flight();
        check_left(&open, &[1]);
    }

    struct File(&'static str);

    impl Files for File {
        fn read(&self, _path: &Path, _bytes_max: usize) -> io::Result<Vec<u8>> {
            Ok(self.0.into())
        }
    }

    /// Who was told to end goes when its turn comes. Until then nobody else has to go for it.
    #[test]
    fn a_neighbour_keeps_its_connections_while_another_takes_all_there_are() {
        const TOML: &str = "[host]\nregion = \"eu-central-1\"\n[[instance]]\nport = \"p1\"\n[[instance]]\nport = \"p2\"\n";
        let installation = Installation {
            seed: [7; 16],
            created: UnixSeconds(1_700_000_000),
        };
        let settings =
            config::load(Path::new("imds.toml"), &installation, &File(TOML)).expect("it is right");
        let states = settings.guests.into_iter().map(|guest| {
            Arc::new(Published {
                at: UnixSeconds(0),
                limits: guest.limits,
                instance: guest.instance,
            })
        });
        let guests = Arc::new(Guests::with_connections(50));
        guests.upsert((1..).zip(states).collect());
        let (greedy, neighbour) = (guests.get(1).unwrap(), guests.get(2).unwrap());
        let _two = [0, 1].map(|number| guests.admit(&neighbour, number, number));
        // No task comes round to its end in between.
        let admitted: Vec<_> = (2..500)
            .map(|number| guests.admit(&greedy, number, number))
            .collect();
        assert_eq!(neighbour.open_connections(), 2);
        assert!(greedy.open_connections() <= 48);
        drop(admitted);
        assert_eq!(guests.connections.load(Ordering::Relaxed), 2);
    }
}
