//! What can change about an instance while it runs, and what each change does to its life.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::event::Refusal;
use super::{Life, State};
use crate::instance::details::{
    MaintenanceEvent, MaintenanceState, SpotInterruption, TargetLifecycleState,
};
use crate::instance::{UnixMillis, UnixSeconds};

/// As many as that of one instance's maintenance events are kept, past ones included, and as many planned changes: both
/// are held in memory and sent to the responder whole.
const KEPT_MAX: usize = 100;

/// A change with everything in it: no moment is relative, no id is still to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// The interruption of a Spot Instance is announced.
    SpotInterruption(SpotInterruption),
    /// A rebalance recommendation is issued, at that time.
    Rebalance(UnixSeconds),
    /// Maintenance is scheduled.
    Maintenance(MaintenanceEvent),
    /// Scheduled maintenance was done, or is called off.
    MaintenanceOver {
        /// Which event.
        event_id: Box<str>,
        /// [`MaintenanceState::Completed`] or [`MaintenanceState::Canceled`].
        state: MaintenanceState,
    },
    /// Auto Scaling takes the instance to a state.
    Autoscaling(TargetLifecycleState),
    /// Hibernation is, or is not, configured.
    Hibernation(bool),
    /// All of these are taken back, announced and planned.
    Clear(Vec<Kind>),
}

/// What kinds of things are announced. The words are those of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `spot/`
    SpotInterruption,
    /// `events/recommendations/rebalance`
    Rebalance,
    /// `events/maintenance/`, its history too.
    Maintenance,
    /// `autoscaling/target-lifecycle-state`
    Autoscaling,
    /// `hibernation/configured`
    Hibernation,
}

impl Kind {
    /// Every kind.
    pub const ALL: &'static [Self] = &[
        Self::SpotInterruption,
        Self::Rebalance,
        Self::Maintenance,
        Self::Autoscaling,
        Self::Hibernation,
    ];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SpotInterruption => "spot-interruption",
            Self::Rebalance => "rebalance",
            Self::Maintenance => "maintenance",
            Self::Autoscaling => "autoscaling",
            Self::Hibernation => "hibernation",
        }
    }
}

/// A change that is still to come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planned {
    /// When.
    pub at: UnixMillis,
    /// What.
    pub change: Change,
}

impl Change {
    /// What it is about. Nobody plans to take something back, so that is about nothing.
    fn kind(&self) -> Option<Kind> {
        match self {
            Self::SpotInterruption(_) => Some(Kind::SpotInterruption),
            Self::Rebalance(_) => Some(Kind::Rebalance),
            Self::Maintenance(_) | Self::MaintenanceOver { .. } => Some(Kind::Maintenance),
            Self::Autoscaling(_) => Some(Kind::Autoscaling),
            Self::Hibernation(_) => Some(Kind::Hibernation),
            Self::Clear(_) => None,
        }
    }
}

/// For people: what the guest is told.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SpotInterruption(SpotInterruption { action, time }) => {
                write!(
                    f,
                    "spot interruption: {} at {}",
                    action.as_str(),
                    time.iso()
                )
            }
            Self::Rebalance(time) => write!(f, "rebalance recommendation of {}", time.iso()),
            Self::Maintenance(event) => write!(
                f,
                "maintenance {}: {} from {} to {}",
                event.event_id,
                event.code.as_str(),
                event.not_before.iso(),
                event.not_after.iso()
            ),
            Self::MaintenanceOver { event_id, state } => {
                write!(f, "maintenance {event_id}: {}", state.as_str())
            }
            Self::Autoscaling(state) => write!(f, "Auto Scaling target state: {}", state.as_str()),
            Self::Hibernation(true) => f.write_str("hibernation: configured"),
            Self::Hibernation(false) => f.write_str("hibernation: not configured"),
            Self::Clear(kinds) => {
                let words: Vec<_> = kinds.iter().map(|kind| kind.as_str()).collect();
                write!(f, "taken back: {}", words.join(", "))
            }
        }
    }
}

impl Life {
    /// Makes a change happen.
    ///
    /// # Errors
    /// When it speaks of maintenance that is not scheduled, or there is too much of it.
    pub fn apply(&mut self, change: &Change) -> Result<(), Refusal> {
        match change {
            // Nobody is told while it is off, and when it starts again it is on another host.
            Change::SpotInterruption(_) | Change::Rebalance(_)
                if self.state() == State::Stopped => {}
            Change::SpotInterruption(interruption) => self.spot_interruption = Some(*interruption),
            Change::Rebalance(time) => self.rebalance_notice = Some(*time),
            Change::Maintenance(event) => self.schedule(event)?,
            Change::MaintenanceOver { event_id, state } => {
                self.scheduled_mut(event_id)?.state = *state;
            }
            Change::Autoscaling(state) => self.target_lifecycle_state = Some(*state),
            Change::Hibernation(is_configured) => {
                self.hibernation_configured = Some(*is_configured);
            }
            Change::Clear(kinds) => self.clear(kinds),
        }
        Ok(())
    }

    /// Notes a change that is to happen later.
    ///
    /// # Errors
    /// When too much is planned.
    pub fn plan(&mut self, at: UnixMillis, change: Change) -> Result<(), Refusal> {
        if self.planned.len() >= KEPT_MAX {
            return Err(Refusal::TooMuchPlanned(KEPT_MAX));
        }
        self.planned.push(Planned { at, change });
        Ok(())
    }

    /// Makes what is due happen, in its order, also where it is long overdue; what happened. What cannot happen any more,
    /// such as the end of an event that is over, does not.
    pub(super) fn fall_due(&mut self, now: UnixMillis) -> Vec<Change> {
        let mut due: Vec<_> = self
            .planned
            .extract_if(.., |planned| planned.at <= now)
            .collect();
        due.sort_by_key(|planned| planned.at);
        due.into_iter()
            .map(|planned| planned.change)
            .filter(|change| self.apply(change).is_ok())
            .collect()
    }

    fn schedule(&mut self, event: &MaintenanceEvent) -> Result<(), Refusal> {
        if self.maintenance_events.len() >= KEPT_MAX {
            // The oldest history gives way, as EC2 forgets it too, after a week or so.
            let oldest = self
                .maintenance_events
                .iter()
                .position(|event| event.state != MaintenanceState::Active)
                .ok_or(Refusal::TooMuchMaintenance(KEPT_MAX))?;
            self.maintenance_events.remove(oldest);
        }
        self.maintenance_events.push(event.clone());
        Ok(())
    }

    /// The scheduled event with this id.
    fn scheduled_mut(&mut self, event_id: &str) -> Result<&mut MaintenanceEvent, Refusal> {
        let scheduled = self.find_scheduled(event_id)?.event_id.clone();
        self.maintenance_events
            .iter_mut()
            .find(|event| event.event_id == scheduled)
            .ok_or(Refusal::NothingScheduled)
    }

    /// The scheduled event with this id, or with an id that alone begins so.
    pub(super) fn find_scheduled(&self, written: &str) -> Result<&MaintenanceEvent, Refusal> {
        let active = || {
            self.maintenance_events
                .iter()
                .filter(|event| event.state == MaintenanceState::Active)
        };
        if let Some(exact) = active().find(|event| *event.event_id == *written) {
            return Ok(exact);
        }
        let mut alike = active().filter(|event| event.event_id.starts_with(written));
        match (alike.next(), alike.next()) {
            (Some(event), None) => Ok(event),
            _ if active().next().is_none() => Err(Refusal::NothingScheduled),
            (found, _) => Err(Refusal::NoSuchEvent {
                written: written.into(),
                is_ambiguous: found.is_some(),
                scheduled: active().map(|event| event.event_id.clone()).collect(),
            }),
        }
    }

    fn clear(&mut self, kinds: &[Kind]) {
        self.planned.retain(|planned| {
            planned
                .change
                .kind()
                .is_none_or(|kind| !kinds.contains(&kind))
        });
        for kind in kinds {
            match kind {
                Kind::SpotInterruption => self.spot_interruption = None,
                Kind::Rebalance => self.rebalance_notice = None,
                Kind::Maintenance => self.maintenance_events.clear(),
                Kind::Autoscaling => self.target_lifecycle_state = None,
                Kind::Hibernation => self.hibernation_configured = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::maintenance;
    use super::*;
    use crate::instance::details::{MaintenanceCode, SpotAction};

    const REBOOT: MaintenanceCode = MaintenanceCode::SystemReboot;

    fn spot(time: u64) -> Change {
        Change::SpotInterruption(SpotInterruption {
            action: SpotAction::Terminate,
            time: UnixSeconds(time),
        })
    }

    fn scheduled(event_id: &str) -> Change {
        Change::Maintenance(maintenance(event_id, REBOOT, MaintenanceState::Active))
    }

    fn over(event_id: &str, state: MaintenanceState) -> Change {
        let event_id = event_id.into();
        Change::MaintenanceOver { event_id, state }
    }

    /// Applies changes one after the other; what is left of the life, or the refusal of the last.
    fn check(changes: &[Change], expected: Result<Life, &str>) {
        let mut life = Life::default();
        let outcome = changes.iter().try_for_each(|change| life.apply(change));
        let outcome = outcome.map(|()| life).map_err(|error| error.to_string());
        assert_eq!(outcome, expected.map_err(str::to_owned), "{changes:?}");
    }

    #[test]
    fn each_change_changes_one_thing() {
        check(
            &[spot(1), spot(2)],
            Ok(Life {
                spot_interruption: Some(SpotInterruption {
                    action: SpotAction::Terminate,
                    time: UnixSeconds(2),
                }),
                ..Life::default()
            }),
        );
        check(
            &[Change::Rebalance(UnixSeconds(3))],
            Ok(Life {
                rebalance_notice: Some(UnixSeconds(3)),
                ..Life::default()
            }),
        );
        check(
            &[Change::Autoscaling(TargetLifecycleState::Terminated)],
            Ok(Life {
                target_lifecycle_state: Some(TargetLifecycleState::Terminated),
                ..Life::default()
            }),
        );
        check(
            &[Change::Hibernation(false)],
            Ok(Life {
                hibernation_configured: Some(false),
                ..Life::default()
            }),
        );
    }

    #[test]
    fn maintenance_goes_from_scheduled_to_history_once() {
        use MaintenanceState::{Active, Canceled, Completed};
        let events = |states: [(&str, MaintenanceState); 2]| {
            let maintenance_events = states
                .map(|(event_id, state)| maintenance(event_id, REBOOT, state))
                .into();
            Ok(Life {
                maintenance_events,
                ..Life::default()
            })
        };
        let two = [scheduled("event-1a"), scheduled("event-2b")];
        let then = |change| [&two[..], &[change]].concat();
        check(&two, events([("event-1a", Active), ("event-2b", Active)]));
        check(
            &then(over("event-1a", Completed)),
            events([("event-1a", Completed), ("event-2b", Active)]),
        );
        check(
            &then(over("event-2", Canceled)),
            events([("event-1a", Active), ("event-2b", Canceled)]),
        );
        check(
            &then(over("event-", Canceled)),
            Err(
                "`event-` begins the id of more than one event of its scheduled maintenance: event-1a, event-2b",
            ),
        );
        check(
            &then(over("event-3", Canceled)),
            Err("`event-3` is no event of its scheduled maintenance: event-1a, event-2b"),
        );
        check(
            &[scheduled("a"), over("a", Completed), over("a", Canceled)],
            Err("it has no scheduled maintenance"),
        );
    }

    #[test]
    fn what_is_taken_back_is_gone_with_what_was_planned_of_it() {
        let everything = || {
            let mut life = Life::default();
            for change in [
                spot(1),
                Change::Rebalance(UnixSeconds(2)),
                scheduled("a"),
                over("a", MaintenanceState::Completed),
                Change::Autoscaling(TargetLifecycleState::Standby),
                Change::Hibernation(true),
            ] {
                life.apply(&change).unwrap();
                if !matches!(change, Change::MaintenanceOver { .. }) {
                    life.plan(UnixMillis(9), change).unwrap();
                }
            }
            life
        };
        let mut life = everything();
        life.apply(&Change::Clear(Kind::ALL.to_vec())).unwrap();
        assert_eq!(life, Life::default());
        for kind in Kind::ALL {
            let mut life = everything();
            life.apply(&Change::Clear(vec![*kind])).unwrap();
            assert_eq!(life.planned.len(), 4, "{kind:?}");
            let n_told = [
                life.spot_interruption.is_some(),
                life.rebalance_notice.is_some(),
                !life.maintenance_events.is_empty(),
                life.target_lifecycle_state.is_some(),
                life.hibernation_configured.is_some(),
            ];
            let is_left = |told: &&bool| **told;
            assert_eq!(n_told.iter().filter(is_left).count(), 4, "{kind:?}");
        }
    }

    #[test]
    fn a_stopped_instance_is_told_nothing_about_its_old_host() {
        let mut life = Life::default();
        life.stop(UnixSeconds(1));
        let before = life.clone();
        for change in [spot(2), Change::Rebalance(UnixSeconds(2))] {
            life.apply(&change).unwrap();
            assert_eq!(life, before, "{change}");
        }
    }

    #[test]
    fn planned_changes_happen_in_their_order_however_late() {
        let mut life = Life::default();
        for (at, time) in [(3000, 3), (1000, 1), (2000, 2)] {
            life.plan(UnixMillis(at), spot(time)).unwrap();
        }
        // Its event is over by then, or never was.
        life.plan(UnixMillis(1500), over("a", MaintenanceState::Canceled))
            .unwrap();
        assert_eq!(life.fall_due(UnixMillis(2500)), [spot(1), spot(2)]);
        assert_eq!(life.planned.len(), 1);
        assert_eq!(life.fall_due(UnixMillis(999_999)), [spot(3)]);
        assert_eq!(
            life.spot_interruption.map(|interruption| interruption.time),
            Some(UnixSeconds(3))
        );
    }

    #[test]
    fn lists_have_an_end() {
        let mut life = Life::default();
        for number in 0..KEPT_MAX {
            life.apply(&scheduled(&format!("event-{number}"))).unwrap();
            life.plan(UnixMillis(1), spot(1)).unwrap();
        }
        assert_eq!(
            life.apply(&scheduled("one-more")),
            Err(Refusal::TooMuchMaintenance(KEPT_MAX))
        );
        assert_eq!(
            life.plan(UnixMillis(1), spot(1)),
            Err(Refusal::TooMuchPlanned(KEPT_MAX))
        );
        life.apply(&over("event-7", MaintenanceState::Completed))
            .unwrap();
        life.apply(&scheduled("one-more")).unwrap();
        let ids: Vec<_> = life
            .maintenance_events
            .iter()
            .map(|event| &*event.event_id)
            .collect();
        assert_eq!(ids.len(), KEPT_MAX);
        assert!(
            !ids.contains(&"event-7") && ids.ends_with(&["one-more"]),
            "{ids:?}"
        );
    }

    #[test]
    fn changes_read_well() {
        for (change, expected) in [
            (
                spot(0),
                "spot interruption: terminate at 1970-01-01T00:00:00Z",
            ),
            (
                Change::Rebalance(UnixSeconds(1)),
                "rebalance recommendation of 1970-01-01T00:00:01Z",
            ),
            (
                scheduled("event-1"),
                "maintenance event-1: system-reboot from 1970-01-01T00:50:00Z to 1970-01-01T01:06:40Z",
            ),
            (
                over("event-1", MaintenanceState::Canceled),
                "maintenance event-1: canceled",
            ),
            (
                Change::Autoscaling(TargetLifecycleState::WarmedStopped),
                "Auto Scaling target state: Warmed:Stopped",
            ),
            (Change::Hibernation(true), "hibernation: configured"),
            (Change::Hibernation(false), "hibernation: not configured"),
            (
                Change::Clear(vec![Kind::Rebalance, Kind::Maintenance]),
                "taken back: rebalance, maintenance",
            ),
        ] {
            assert_eq!(change.to_string(), expected);
        }
    }
}
