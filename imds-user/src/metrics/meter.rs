//! The ledger as several have it: the supervisor enters what responders count, the keeper takes it out.

#[cfg(test)]
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::ledger::Ledger;
use super::{Counts, Minute};
use crate::instance::{InstanceId, UnixMillis};
use crate::responder::protocol::Counted;

/// A handle on a [`Ledger`]. Clones are of the same one.
#[derive(Clone, Debug)]
pub struct Meter {
    ledger: Arc<Mutex<Ledger>>,
    clock: fn() -> UnixMillis,
    /// Told when something is in there that no responder could say again.
    urgent: Arc<Notify>,
}

impl Meter {
    /// A handle on this ledger.
    #[must_use]
    pub fn new(ledger: Ledger, clock: fn() -> UnixMillis) -> Self {
        Self {
            ledger: Arc::new(Mutex::new(ledger)),
            clock,
            urgent: Arc::default(),
        }
    }

    pub(super) fn now(&self) -> UnixMillis {
        (self.clock)()
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // A panic elsewhere left counts, which are numbers whatever they are.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn urgent(&self) {
        self.urgent.notified().await;
    }

    /// How long until the next minute begins.
    #[must_use]
    pub fn until_next_minute(&self) -> Duration {
        let now = self.now();
        let next = (Minute::of(now).0 + 1) * 60_000;
        Duration::from_millis(next - now.0)
    }

    /// See [`Ledger::look`].
    pub fn observe(&self, counted: &[Counted]) {
        self.ledger().look(&entries(counted), self.now());
    }

    /// See [`Ledger::resume`].
    pub fn resume(&self, counted: &[Counted]) {
        self.ledger().resume(&entries(counted), self.now());
    }

    /// See [`Ledger::add`].
    pub fn add(&self, more: &[Counted]) {
        self.ledger().add(&entries(more), self.now());
        self.urgent.notify_one();
    }

    /// Nobody counts on for these.
    pub fn close(&self, gone: &[Counted]) {
        let is_gone = |slot, id| gone.iter().any(|one| (one.slot, one.id) == (slot, id));
        self.close_unless(|slot, id| !is_gone(slot, id));
    }

    /// See [`Ledger::close_unless`].
    pub fn close_unless(&self, goes_on: impl Fn(u32, InstanceId) -> bool) {
        self.ledger().close_unless(goes_on);
        self.urgent.notify_one();
    }

    /// Of whom something is not kept yet.
    #[cfg(test)]
    pub(crate) fn unkept(&self) -> BTreeSet<InstanceId> {
        let ledger = self.ledger();
        let ids = ledger.unkept_ids().map(|(id, _)| id);
        ids.collect()
    }

    /// See [`Ledger::id_of`].
    #[must_use]
    pub fn id_of(&self, slot: u32) -> Option<InstanceId> {
        self.ledger().id_of(slot)
    }
}

fn entries(counted: &[Counted]) -> Vec<(u32, InstanceId, Counts)> {
    let of = |one: &Counted| {
        let counts = Counts {
            no_token: one.counters.no_token,
            no_token_rejected: one.counters.no_token_rejected,
        };
        (one.slot, one.id, counts)
    };
    counted.iter().map(of).collect()
}
