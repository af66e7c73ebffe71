//! Brings what was counted into the store, and out again.
//!
//! A minute's counts are written when it is over, at once where a slot was given back, and before anybody is told of them: who
//! has an answer can rely on it. What an idle host counts costs no write.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use super::ledger::Ledger;
use super::{Batch, Counts, Meter, Minute};
use crate::instance::{InstanceId, UnixMillis};
use crate::responder::supervisor::Sampler;
use crate::store::{Store, StoreError};

/// What is looked at after a minute has ended is entered by then.
const AFTER_MINUTE: Duration = Duration::from_millis(500);
/// How long a responder is waited for that is asked what it has counted.
const LOOK_WITHIN: Duration = Duration::from_secs(2);
/// How much is written at once: others who write wait for it, some milliseconds.
const CHUNK: usize = 256;

/// Keeps counts. Clones are of the same one.
#[derive(Clone, Debug)]
pub struct Keeper {
    store: Store,
    meter: Meter,
    sampler: Arc<OnceLock<Sampler>>,
    /// Held while counts are on their way: they are neither here nor there then.
    moving: Arc<Mutex<()>>,
}

impl Keeper {
    /// Goes on from what is kept.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn open(store: Store, clock: fn() -> UnixMillis) -> Result<Self, StoreError> {
        let ledger = Ledger::open(store.bases().await?);
        Ok(Self {
            store,
            meter: Meter::new(ledger, clock),
            sampler: Arc::default(),
            moving: Arc::default(),
        })
    }

    /// Where it is entered what responders count.
    #[must_use]
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Asks this supervisor from now on, before anybody is told how much it is. The first one stays.
    pub fn ask(&self, sampler: Sampler) {
        // There is one supervisor in a daemon.
        self.sampler.set(sampler).ok();
    }

    /// Notes, before a responder begins to count at nothing, that the former's counters are no more.
    ///
    /// # Errors
    /// When it cannot be kept.
    pub async fn begin_anew(&self) -> Result<(), StoreError> {
        self.meter.resume(&[]);
        self.write().await
    }

    /// Writes whenever there is something to write, until it is dropped.
    pub async fn run(self) {
        loop {
            tokio::select! {
                () = sleep(self.meter.until_next_minute() + AFTER_MINUTE) => {}
                () = self.meter.urgent() => {}
            }
            if let Err(error) = self.write().await {
                tracing::error!("keep what was counted: {error}");
                // It is tried again, without haste.
                sleep(LOOK_WITHIN).await;
            }
        }
    }

    /// Enters and writes what was counted until now. Where there is no room for it, it is here nevertheless.
    pub async fn look(&self) {
        if let Some(sampler) = self.sampler.get()
            && timeout(LOOK_WITHIN, sampler.look()).await.is_err()
        {
            tracing::warn!("the responder does not say what it has counted");
        }
        if let Err(error) = self.write().await {
            tracing::error!("keep what was counted: {error}");
        }
    }

    /// What was counted of an instance in these minutes; of which nothing was counted are left out. [`Self::look`] brings it up
    /// to now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn counts(
        &self,
        id: InstanceId,
        minutes: RangeInclusive<Minute>,
    ) -> Result<BTreeMap<Minute, Counts>, StoreError> {
        let _still = self.moving.lock().await;
        let mut counts = self.store.metered(id, minutes.clone()).await?;
        let ledger = self.meter.ledger();
        for (minute, more) in ledger.unkept_of(id) {
            if minutes.contains(&minute) {
                *counts.entry(minute).or_default() += more;
            }
        }
        Ok(counts)
    }

    /// Of whom something was counted, and in which hour for the last time.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn counted(&self) -> Result<BTreeMap<InstanceId, u64>, StoreError> {
        let first = Minute::of(self.meter.now()).first_kept();
        let _still = self.moving.lock().await;
        let mut hours = self.store.metered_instances(first).await?;
        for (id, minute) in self.meter.ledger().unkept_ids() {
            let hour = hours.entry(id).or_default();
            *hour = minute.hour().max(*hour);
        }
        Ok(hours)
    }

    async fn write(&self) -> Result<(), StoreError> {
        let _still = self.moving.lock().await;
        let batch = self.meter.ledger().take(self.meter.now());
        let mut parts = parts(batch).into_iter();
        while let Some(part) = parts.next() {
            if let Err(error) = self.store.meter(part.clone()).await {
                let mut ledger = self.meter.ledger();
                ledger.put_back(part);
                parts.for_each(|part| ledger.put_back(part));
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Cuts a batch into parts, each with the bases of the instances whose counts it has.
fn parts(batch: Batch) -> Vec<Batch> {
    let Batch {
        counts,
        bases,
        first_kept,
    } = batch;
    let mut by_id: BTreeMap<InstanceId, Batch> = BTreeMap::new();
    let mut rest = Batch {
        first_kept,
        ..Batch::default()
    };
    for one in counts {
        by_id.entry(one.0).or_default().counts.push(one);
    }
    for (slot, base) in bases {
        match base.and_then(|base| by_id.get_mut(&base.id)) {
            Some(of_id) => of_id.bases.push((slot, base)),
            None => rest.bases.push((slot, base)),
        }
    }
    let mut parts = Vec::new();
    for of_id in by_id.into_values() {
        rest.counts.extend(of_id.counts);
        rest.bases.extend(of_id.bases);
        if rest.counts.len() >= CHUNK {
            let next = Batch {
                first_kept,
                ..Batch::default()
            };
            parts.push(std::mem::replace(&mut rest, next));
        }
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::super::Base;
    use super::*;

    #[test]
    fn what_is_written_at_once_has_counts_and_bases_of_the_same_instances() {
        let id = |number: usize| {
            let mut bytes = [0; 9];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            InstanceId::from_digest(&bytes)
        };
        let counts = Counts {
            no_token: 1,
            no_token_rejected: 0,
        };
        let n = 3 * CHUNK;
        let numbers = 0..n;
        let batch = Batch {
            counts: numbers
                .clone()
                .map(|number| (id(number), Minute(1), counts))
                .collect(),
            bases: numbers
                .map(|number| {
                    (
                        number as u32,
                        Some(Base {
                            id: id(number),
                            counts,
                        }),
                    )
                })
                .chain([(n as u32, None)])
                .collect(),
            first_kept: Minute(9),
        };
        let parts = parts(batch);
        assert_eq!(parts.len(), 3);
        let mut n_bases = 0;
        for part in &parts {
            assert_eq!((part.counts.len(), part.first_kept), (CHUNK, Minute(9)));
            n_bases += part.bases.len();
            for (_, base) in &part.bases {
                let has_counts = |base: &Base| part.counts.iter().any(|(id, ..)| *id == base.id);
                assert!(base.as_ref().is_none_or(has_counts));
            }
        }
        assert_eq!(n_bases, n + 1);
    }
}
