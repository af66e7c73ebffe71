//! Who is served right now: instances by slot, with the connections and counts of each. Read at every request without a
//! lock, replaced whole at every change.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::Notify;

use super::{signing::Signing, throttle::Throttle};
use crate::identity::Signatures;
use crate::instance::{Host, Instance, Limits, Published, UnixSeconds};

/// Connections in all. A connection takes about 10 KB, so they stay below 200 MB. Above it the guest with the most gives
/// way.
pub const CONNECTIONS_MAX: usize = 16_384;

/// The directory of guests.
#[derive(Default)]
pub struct Guests {
    host: ArcSwapOption<Host>,
    by_slot: ArcSwap<HashMap<u32, Arc<Guest>>>,
    connections: AtomicUsize,
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
    /// What is left of this second.
    pub throttle: Throttle,
}

/// The open connections of one guest.
#[derive(Debug, Default)]
struct Connections(Mutex<HashMap<u64, Arc<Connection>>>);

/// One open connection.
#[derive(Debug, Default)]
pub struct Connection {
    /// When it was accepted or last answered, nanoseconds on the server's own clock.
    pub active_nanoseconds: AtomicU64,
    /// Told when it must end.
    pub evicted: Notify,
    /// Its guest is gone: it ends with a RST, as nobody is there to go on with.
    pub is_orphaned: AtomicBool,
}

/// Connections of guests that are gone, on their way to their end.
#[derive(Debug, Default)]
pub struct Leaving(Vec<Arc<Connections>>);

/// A connection's place in its guest's list, given up on drop.
pub struct Admission {
    /// The connection.
    pub connection: Arc<Connection>,
    number: u64,
    list: Arc<Connections>,
    guests: Arc<Guests>,
}

impl Guests {
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
        if self.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            self.evict_from_the_largest();
        }
        let connection = Arc::new(Connection {
            active_nanoseconds: now_nanoseconds.into(),
            ..Connection::default()
        });
        let list = Arc::clone(&guest.connections);
        list.add(number, Arc::clone(&connection), guest.limits().connections);
        Admission {
            connection,
            number,
            list,
            guests: Arc::clone(self),
        }
    }

    fn evict_from_the_largest(&self) {
        let guests = self.by_slot.load();
        if let Some(largest) = guests.values().max_by_key(|guest| guest.connections.len()) {
            largest.connections.evict_one();
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
    fn add(&self, number: u64, connection: Arc<Connection>, connections_max: u32) {
        if self.len() >= connections_max as usize {
            self.evict_one();
        }
        self.lock().insert(number, connection);
    }

    /// Ends the connection that was idle longest. It leaves the list here, so that the next eviction finds another.
    fn evict_one(&self) {
        let mut open = self.lock();
        let idle = open
            .iter()
            .min_by_key(|(_, one)| one.active_nanoseconds.load(Ordering::Relaxed))
            .map(|(number, _)| *number);
        if let Some(connection) = idle.and_then(|number| open.remove(&number)) {
            connection.evicted.notify_one();
        }
    }

    fn end_all(&self) {
        for connection in self.lock().values() {
            connection.is_orphaned.store(true, Ordering::Relaxed);
            connection.evicted.notify_one();
        }
    }

    fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        // Nothing that runs under the lock panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.list.lock().remove(&self.number);
        self.guests.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
