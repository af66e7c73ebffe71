//! The guard: programs on the way out of uplinks that drop what the host forwards to the metadata addresses.
//!
//! An interface that once was an uplink stays guarded until it is gone or the configuration is read again: a route that
//! comes and goes opens nothing. Where the kernel refuses, the others are guarded all the same, and the refusal is kept
//! for whoever asks.

use std::collections::BTreeMap;

use super::{
    DataPlane, DataPlaneError,
    filter::Direction,
    load::{UPLINK_EGRESS, UPLINK_EGRESS_IP},
    map_error, removed,
};

/// An interface by which packets leave the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Its number.
    pub ifindex: u32,
    /// Whether its packets have an Ethernet header.
    pub is_ethernet: bool,
}

/// An interface that the guard is on, or was meant to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardedUplink {
    /// Its name.
    pub name: String,
    /// Its number.
    pub ifindex: u32,
    /// Why the kernel refused, if it did.
    pub refusal: Option<String>,
}

/// By interface number.
pub(super) type Guarded = BTreeMap<u32, GuardedUplink>;

impl DataPlane {
    /// Guards these interfaces too. A refusal is logged when it is new, and tried again the next time.
    pub fn guard(&mut self, uplinks: impl IntoIterator<Item = Uplink>) {
        for uplink in uplinks {
            let known = self.guarded.get(&uplink.ifindex);
            if known.is_some_and(|known| known.refusal.is_none() && known.name == uplink.name) {
                continue;
            }
            let program = if uplink.is_ethernet {
                UPLINK_EGRESS
            } else {
                UPLINK_EGRESS_IP
            };
            let interface = (uplink.name.as_str(), uplink.ifindex);
            let refusal = self
                .attach(program, Direction::Egress, interface)
                .err()
                .map(|error| error.to_string());
            match &refusal {
                Some(refusal) if known_refusal(&self.guarded, uplink.ifindex) != Some(refusal) => {
                    tracing::error!(
                        "guests are not kept from the host's own metadata service on an uplink: {refusal}"
                    );
                }
                Some(_) => {}
                None => tracing::info!("uplink {} is guarded", uplink.name),
            }
            let guarded = GuardedUplink {
                name: uplink.name,
                ifindex: uplink.ifindex,
                refusal,
            };
            self.guarded.insert(uplink.ifindex, guarded);
        }
    }

    /// Takes the guard off every interface but these.
    ///
    /// # Errors
    /// When the kernel refuses; the others were tried.
    pub fn unguard_all_but(&mut self, kept: &[u32]) -> Result<(), DataPlaneError> {
        let mut outcome = Ok(());
        for (ifindex, uplink) in std::mem::take(&mut self.guarded) {
            if kept.contains(&ifindex) {
                self.guarded.insert(ifindex, uplink);
                continue;
            }
            let detached = self.filters.detach(ifindex, Direction::Egress);
            outcome = outcome.and(detached.map_err(|cause| DataPlaneError::Detach {
                interface: uplink.name,
                cause,
            }));
        }
        outcome
    }

    /// Forgets an interface that is gone: its number may come again with another one.
    ///
    /// # Errors
    /// When the map refuses.
    pub fn forget_interface(&mut self, ifindex: u32) -> Result<(), DataPlaneError> {
        self.guarded.remove(&ifindex);
        removed(self.guarded_from.remove(&ifindex)).map_err(map_error("GUARDED"))
    }

    /// Forgets interfaces that lost the guard, with their filters or by becoming others of the same number, so that they
    /// are guarded again.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn recheck_guard(&mut self) -> Result<(), DataPlaneError> {
        let guarded: Vec<u32> = self.guarded.keys().copied().collect();
        for ifindex in guarded {
            let on = self.filters.on(ifindex).map_err(DataPlaneError::Filters)?;
            if !on.iter().any(|one| one.direction == Direction::Egress) {
                self.guarded.remove(&ifindex);
            }
        }
        Ok(())
    }

    /// The interfaces that are guarded, or were meant to be.
    #[must_use]
    pub fn guarded(&self) -> Vec<GuardedUplink> {
        self.guarded.values().cloned().collect()
    }

    /// How many packets the guard dropped, by the number of the interface that they came in by.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn guarded_from(&self) -> Result<BTreeMap<u32, u64>, DataPlaneError> {
        self.guarded_from
            .iter()
            .map(|entry| {
                let (ifindex, counts) = entry.map_err(map_error("GUARDED"))?;
                Ok((ifindex, counts.iter().sum()))
            })
            .collect()
    }
}

fn known_refusal(guarded: &Guarded, ifindex: u32) -> Option<&String> {
    guarded.get(&ifindex)?.refusal.as_ref()
}
