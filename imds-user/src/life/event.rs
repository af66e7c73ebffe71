//! What a person asks to happen, whether it may, and what change it makes.

use serde::{Deserialize, Serialize};

use super::change::{Change, Kind};
use super::{Life, State, When};
use crate::instance::details::{
    LifeCycle, MaintenanceCode, MaintenanceEvent, MaintenanceState, SpotAction, SpotInterruption,
    TargetLifecycleState,
};
use crate::instance::{Instance, UnixSeconds};

/// Characters of a description; EC2's own are a sentence.
pub const DESCRIPTION_MAX: usize = 255;

/// What is asked for. Moments may be relative to the one at which it shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// Announce the interruption of a Spot Instance.
    SpotInterruption {
        /// What will happen.
        action: SpotAction,
        /// When.
        time: When,
        /// Also to one that is no Spot Instance.
        force: bool,
    },
    /// Issue a rebalance recommendation.
    Rebalance {
        /// Also to one that is no Spot Instance.
        force: bool,
    },
    /// Schedule maintenance.
    Maintenance {
        /// What kind.
        code: MaintenanceCode,
        /// From when to when.
        window: MaintenanceWindow,
        /// For people; there is one for each code.
        description: Option<String>,
    },
    /// End scheduled maintenance: it moves into the history.
    MaintenanceOver {
        /// Which, by its id or how that alone begins.
        event_id: String,
        /// Whether it was done or called off.
        state: MaintenanceState,
    },
    /// Let Auto Scaling take the instance to a state.
    Autoscaling {
        /// That state.
        state: TargetLifecycleState,
    },
    /// Say whether hibernation is configured.
    Hibernation {
        /// Whether it is.
        configured: bool,
    },
    /// Take back what was announced or planned.
    Clear {
        /// Of which kinds; none means all.
        kinds: Vec<Kind>,
    },
}

/// When maintenance may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceWindow {
    /// The earliest start.
    pub not_before: When,
    /// The latest end, counted from the earliest start.
    pub not_after: When,
    /// Until when it may be put off, counted from the earliest start; for reboots.
    pub not_before_deadline: Option<When>,
}

/// Why something does not happen. The texts speak of the instance as "it".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Only Spot Instances are told this.
    #[error(
        "only a Spot Instance is told this, and its life cycle is `{}`: write `life-cycle = \"spot\"` in its \
         configuration and reload, or say --force", .0.as_str()
    )]
    NotSpot(LifeCycle),
    /// Not while it is stopped.
    #[error("it is stopped: start it first (`imds instance start`)")]
    Stopped,
    /// Only reboots can be put off.
    #[error("only a reboot has a deadline: `{}` has none", .0.as_str())]
    NoDeadline(MaintenanceCode),
    /// The end comes before the start.
    #[error("maintenance that starts at {} cannot end at {}, which is earlier", .not_before.iso(), .not_after.iso())]
    EndsBeforeStart {
        /// The earliest start.
        not_before: UnixSeconds,
        /// The latest end.
        not_after: UnixSeconds,
    },
    /// The deadline comes before the start.
    #[error("maintenance that starts at {} cannot have a deadline at {}, which is earlier", .not_before.iso(), .deadline.iso())]
    DeadlineBeforeStart {
        /// The earliest start.
        not_before: UnixSeconds,
        /// The deadline.
        deadline: UnixSeconds,
    },
    /// A description that no line can hold.
    #[error("a description is one line of 1 to {DESCRIPTION_MAX} characters")]
    Description,
    /// No event can be ended.
    #[error("it has no scheduled maintenance")]
    NothingScheduled,
    /// Not that one.
    #[error(
        "`{written}` {} of its scheduled maintenance: {}",
        if *.is_ambiguous { "begins the id of more than one event" } else { "is no event" },
        .scheduled.join(", ")
    )]
    NoSuchEvent {
        /// What was written.
        written: Box<str>,
        /// Whether several begin so.
        is_ambiguous: bool,
        /// What there is.
        scheduled: Vec<Box<str>>,
    },
    /// The list is full.
    #[error("{0} maintenance events are scheduled for it: complete or cancel some first")]
    TooMuchMaintenance(usize),
    /// The list is full.
    #[error("{0} changes are planned for it: take some back first (`clear`)")]
    TooMuchPlanned(usize),
}

impl Event {
    /// Whether it may happen to this instance, now or, if it is delayed, later.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, instance: &Instance, life: &Life, is_delayed: bool) -> Result<(), Refusal> {
        match self {
            Self::SpotInterruption { force, .. } | Self::Rebalance { force } => {
                let life_cycle = instance.details().life_cycle;
                if life_cycle != LifeCycle::Spot && !force {
                    return Err(Refusal::NotSpot(life_cycle));
                }
                if life.state() == State::Stopped && !is_delayed {
                    return Err(Refusal::Stopped);
                }
                Ok(())
            }
            Self::MaintenanceOver { event_id, .. } => life.find_scheduled(event_id).map(drop),
            Self::Maintenance {
                code,
                window,
                description,
            } => {
                check_description(description.as_deref())?;
                if window.not_before_deadline.is_some() && !is_reboot(*code) {
                    return Err(Refusal::NoDeadline(*code));
                }
                Ok(())
            }
            Self::Autoscaling { .. } | Self::Hibernation { .. } | Self::Clear { .. } => Ok(()),
        }
    }

    /// The change that it makes if it shows at `at`. Maintenance gets the id that follows from `random`.
    ///
    /// # Errors
    /// When its moments contradict each other.
    pub fn resolve(
        self,
        life: &Life,
        at: UnixSeconds,
        random: &[u8; 9],
    ) -> Result<Change, Refusal> {
        Ok(match self {
            Self::SpotInterruption { action, time, .. } => {
                let time = time.after(at);
                Change::SpotInterruption(SpotInterruption { action, time })
            }
            Self::Rebalance { .. } => Change::Rebalance(at),
            Self::Maintenance {
                code,
                window,
                description,
            } => {
                let description = description.unwrap_or_else(|| usual_description(code).to_owned());
                Change::Maintenance(scheduled(code, window, description, at, random)?)
            }
            Self::MaintenanceOver { event_id, state } => {
                let event_id = life.find_scheduled(&event_id)?.event_id.clone();
                Change::MaintenanceOver { event_id, state }
            }
            Self::Autoscaling { state } => Change::Autoscaling(state),
            Self::Hibernation { configured } => Change::Hibernation(configured),
            Self::Clear { kinds } if kinds.is_empty() => Change::Clear(Kind::ALL.to_vec()),
            Self::Clear { kinds } => Change::Clear(kinds),
        })
    }
}

fn scheduled(
    code: MaintenanceCode,
    window: MaintenanceWindow,
    description: String,
    at: UnixSeconds,
    random: &[u8; 9],
) -> Result<MaintenanceEvent, Refusal> {
    let not_before = window.not_before.after(at);
    let not_after = window.not_after.after(not_before);
    if not_after < not_before {
        return Err(Refusal::EndsBeforeStart {
            not_before,
            not_after,
        });
    }
    let not_before_deadline = window
        .not_before_deadline
        .map(|when| when.after(not_before));
    if let Some(deadline) = not_before_deadline.filter(|deadline| *deadline < not_before) {
        return Err(Refusal::DeadlineBeforeStart {
            not_before,
            deadline,
        });
    }
    Ok(MaintenanceEvent {
        code,
        description: description.into(),
        event_id: event_id(random),
        not_before,
        not_after,
        not_before_deadline,
        state: MaintenanceState::Active,
    })
}

/// `instance-event-` and 17 hexadecimal digits.
fn event_id(random: &[u8; 9]) -> Box<str> {
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("instance-event-{}", &digits[..17]).into()
}

fn is_reboot(code: MaintenanceCode) -> bool {
    matches!(
        code,
        MaintenanceCode::InstanceReboot | MaintenanceCode::SystemReboot
    )
}

/// The first is in EC2's manual; the others are chosen: published notices word them so or alike.
fn usual_description(code: MaintenanceCode) -> &'static str {
    match code {
        MaintenanceCode::InstanceReboot | MaintenanceCode::SystemReboot => "scheduled reboot",
        MaintenanceCode::SystemMaintenance => "scheduled maintenance",
        MaintenanceCode::InstanceRetirement | MaintenanceCode::InstanceStop => {
            "The instance is running on degraded hardware"
        }
    }
}

fn check_description(description: Option<&str>) -> Result<(), Refusal> {
    let is_fit = |text: &str| {
        let n_characters = text.chars().count();
        (1..=DESCRIPTION_MAX).contains(&n_characters) && !text.contains(char::is_control)
    };
    if description.is_none_or(is_fit) {
        Ok(())
    } else {
        Err(Refusal::Description)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{configured, maintenance};
    use super::*;

    const NOW: UnixSeconds = UnixSeconds(1_767_225_600);
    const RANDOM: [u8; 9] = [0x0d, 0x59, 0x93, 0x72, 0x88, 0xb7, 0x49, 0xb3, 0x2f];

    fn spot(force: bool) -> Event {
        Event::SpotInterruption {
            action: SpotAction::Stop,
            time: When::In(120),
            force,
        }
    }

    fn window(not_before: When, not_after: When, deadline: Option<When>) -> MaintenanceWindow {
        MaintenanceWindow {
            not_before,
            not_after,
            not_before_deadline: deadline,
        }
    }

    fn scheduled(code: MaintenanceCode, window: MaintenanceWindow) -> Event {
        Event::Maintenance {
            code,
            window,
            description: None,
        }
    }

    fn over(event_id: &str) -> Event {
        Event::MaintenanceOver {
            event_id: event_id.into(),
            state: MaintenanceState::Completed,
        }
    }

    #[test]
    fn only_spot_instances_that_run_are_told_of_interruptions() {
        let check = |lines: &str, is_stopped, is_delayed, event: &Event, expected: Option<&str>| {
            let mut life = Life::default();
            if is_stopped {
                life.stop(NOW);
            }
            let refusal = event.check(&configured(lines), &life, is_delayed).err();
            let refusal = refusal.map(|refusal| refusal.to_string());
            assert_eq!(refusal.as_deref(), expected, "{lines} {event:?}");
        };
        const SPOT: &str = "life-cycle = \"spot\"";
        const SCHEDULED: &str = "life-cycle = \"scheduled\"";
        let not_spot = |life_cycle| {
            format!(
                "only a Spot Instance is told this, and its life cycle is `{life_cycle}`: write `life-cycle = \"spot\"` \
                 in its configuration and reload, or say --force"
            )
        };
        for (plain, forced) in [
            (spot(false), spot(true)),
            (
                Event::Rebalance { force: false },
                Event::Rebalance { force: true },
            ),
        ] {
            check(SPOT, false, false, &plain, None);
            check("", false, false, &plain, Some(&not_spot("on-demand")));
            check(SCHEDULED, false, true, &plain, Some(&not_spot("scheduled")));
            check("", false, false, &forced, None);
            let stopped = Some("it is stopped: start it first (`imds instance start`)");
            check(SPOT, true, false, &plain, stopped);
            check("", true, false, &forced, stopped);
            // It may run again by then.
            check(SPOT, true, true, &plain, None);
        }
        let state = TargetLifecycleState::InService;
        check("", true, false, &Event::Autoscaling { state }, None);
    }

    #[test]
    fn moments_become_times() {
        let check = |event: Event, expected: Change| {
            let described = format!("{event:?}");
            let change = event.resolve(&Life::default(), NOW, &RANDOM).unwrap();
            assert_eq!(change, expected, "{described}");
        };
        let interruption = |time| {
            Change::SpotInterruption(SpotInterruption {
                action: SpotAction::Stop,
                time,
            })
        };
        check(spot(false), interruption(UnixSeconds(NOW.0 + 120)));
        let at = Event::SpotInterruption {
            action: SpotAction::Stop,
            time: When::At(UnixSeconds(5)),
            force: false,
        };
        check(at, interruption(UnixSeconds(5)));
        check(Event::Rebalance { force: false }, Change::Rebalance(NOW));
        check(
            scheduled(
                MaintenanceCode::SystemReboot,
                window(When::In(3600), When::In(60), Some(When::In(86_400))),
            ),
            Change::Maintenance(MaintenanceEvent {
                code: MaintenanceCode::SystemReboot,
                description: "scheduled reboot".into(),
                event_id: "instance-event-0d59937288b749b32".into(),
                not_before: UnixSeconds(NOW.0 + 3600),
                not_after: UnixSeconds(NOW.0 + 3660),
                not_before_deadline: Some(UnixSeconds(NOW.0 + 90_000)),
                state: MaintenanceState::Active,
            }),
        );
        check(
            Event::Clear { kinds: vec![] },
            Change::Clear(Kind::ALL.to_vec()),
        );
        check(
            Event::Clear {
                kinds: vec![Kind::Rebalance],
            },
            Change::Clear(vec![Kind::Rebalance]),
        );
    }

    #[test]
    fn maintenance_that_cannot_be_is_refused() {
        use MaintenanceCode::{InstanceReboot, InstanceStop, SystemReboot};
        let check = |event: Event, expected: &str| {
            let mut life = Life::default();
            let active = MaintenanceState::Active;
            life.maintenance_events = vec![maintenance("instance-event-1", SystemReboot, active)];
            let refusal = event
                .check(&configured(""), &life, false)
                .and_then(|()| event.resolve(&life, NOW, &RANDOM).map(drop))
                .unwrap_err();
            assert_eq!(refusal.to_string(), expected);
        };
        let hour = When::In(3600);
        check(
            scheduled(InstanceStop, window(hour, hour, Some(hour))),
            "only a reboot has a deadline: `instance-stop` has none",
        );
        check(
            scheduled(InstanceReboot, window(hour, When::At(NOW), None)),
            "maintenance that starts at 2026-01-01T01:00:00Z cannot end at 2026-01-01T00:00:00Z, which is earlier",
        );
        check(
            scheduled(InstanceReboot, window(hour, hour, Some(When::At(NOW)))),
            "maintenance that starts at 2026-01-01T01:00:00Z cannot have a deadline at 2026-01-01T00:00:00Z, which is earlier",
        );
        check(
            over("instance-event-2"),
            "`instance-event-2` is no event of its scheduled maintenance: instance-event-1",
        );
        for description in ["", "two\nlines", &"x".repeat(DESCRIPTION_MAX + 1)] {
            let event = Event::Maintenance {
                code: InstanceStop,
                window: window(hour, hour, None),
                description: Some(description.to_owned()),
            };
            check(event, "a description is one line of 1 to 255 characters");
        }
    }

    #[test]
    fn an_event_may_be_named_by_the_beginning_of_its_id() {
        let mut life = Life::default();
        let active = MaintenanceState::Active;
        let reboot = MaintenanceCode::SystemReboot;
        life.maintenance_events = vec![maintenance("instance-event-1a", reboot, active)];
        let expected = Change::MaintenanceOver {
            event_id: "instance-event-1a".into(),
            state: MaintenanceState::Completed,
        };
        assert_eq!(
            over("instance-event-1").resolve(&life, NOW, &RANDOM),
            Ok(expected)
        );
    }

    /// Whatever is asked for fits into one line of the control socket.
    #[test]
    fn the_longest_event_is_a_short_request() {
        let event = Event::Maintenance {
            code: MaintenanceCode::InstanceRetirement,
            window: window(When::At(NOW), When::At(NOW), Some(When::At(NOW))),
            description: Some("\u{10ffff}".repeat(DESCRIPTION_MAX)),
        };
        let text = serde_json::to_string(&event).unwrap();
        assert!(
            text.len() < crate::control::REQUEST_BYTES_MAX / 2,
            "{}",
            text.len()
        );
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }
}
