//! Life: what happens to an instance after it was configured. It is stopped and started, EC2 announces things to it, and
//! both outlive the daemon.
//!
//! A [`Life`] holds what commands did to one instance; [`Life::over`] lays it over what the configuration says, and that
//! is what the guest sees. An [`Event`] is what a person asks for, in moments counted from now; [`Event::resolve`] makes
//! the [`Change`] of it, in which nothing is relative, so that it can be planned, kept in a file and applied late.
//!
//! All rules are here and pure: nothing reads a clock or a file. The daemon keeps [`Lives`] and says what time it is.

pub mod change;
pub mod event;
pub mod when;

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use change::{Change, Kind, Planned};
pub use event::{Event, MaintenanceWindow, Refusal};
pub use when::When;

use crate::instance::details::{
    Details, MaintenanceCode, MaintenanceEvent, MaintenanceState, SpotInterruption,
    TargetLifecycleState,
};
use crate::instance::{Instance, InstanceId, UnixMillis, UnixSeconds, UserData};

/// EC2's instance state, as far as it can be told from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its guest is answered.
    Running,
    /// Its port is closed.
    Stopped,
}

impl State {
    /// EC2's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
        }
    }
}

/// What happened to one instance. Empty for most: then it is what the configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Life {
    /// Since when it is stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<UnixSeconds>,
    /// When it was last started: its `pendingTime` from then on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<UnixSeconds>,
    /// The user data that it runs with, where the configuration has other by now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs_with: Option<RunsWith>,
    /// The announced interruption.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spot_interruption: Option<SpotInterruption>,
    /// When a rebalance recommendation was issued.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rebalance_notice: Option<UnixSeconds>,
    /// Scheduled and past maintenance, in the order in which it was scheduled.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub maintenance_events: Vec<MaintenanceEvent>,
    /// The state that Auto Scaling takes it to, if not the configuration's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_lifecycle_state: Option<TargetLifecycleState>,
    /// Whether hibernation is configured, if not as the configuration says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hibernation_configured: Option<bool>,
    /// What is still to come, in no order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub planned: Vec<Planned>,
}

/// The user data that an instance runs with: perhaps none. A type of its own, so that "none" is not "as configured".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunsWith {
    /// In base64 where it is written down.
    #[serde(serialize_with = "in_base64", deserialize_with = "from_base64")]
    pub user_data: Option<UserData>,
}

impl Life {
    /// The life of an instance to which nothing happened.
    pub const NOTHING: Self = Self {
        stopped: None,
        started: None,
        runs_with: None,
        spot_interruption: None,
        rebalance_notice: None,
        maintenance_events: Vec::new(),
        target_lifecycle_state: None,
        hibernation_configured: None,
        planned: Vec::new(),
    };

    /// Whether it runs.
    #[must_use]
    pub fn state(&self) -> State {
        match self.stopped {
            Some(_) => State::Stopped,
            None => State::Running,
        }
    }

    /// The instance as it is: what was configured, and over it what happened since.
    #[must_use]
    pub fn over(&self, configured: &Instance) -> Instance {
        let mut instance = configured.clone();
        if let Some(started) = self.started {
            instance.pending_time = started;
        }
        if let Some(RunsWith { user_data }) = &self.runs_with {
            instance.user_data.clone_from(user_data);
        }
        let details = Details {
            maintenance_events: self.maintenance_events.clone(),
            rebalance_notice: self.rebalance_notice,
            spot_interruption: self.spot_interruption,
            target_lifecycle_state: self
                .target_lifecycle_state
                .or(configured.details().target_lifecycle_state),
            hibernation_configured: self
                .hibernation_configured
                .or(configured.details().hibernation_configured),
            ..configured.details().clone()
        };
        instance.details = (details != Details::NONE).then(|| Box::new(details));
        instance
    }

    /// Notes what the configuration now says of user data. EC2 changes it only while an instance is stopped, so a running
    /// one keeps what it has until its next start.
    pub fn reconfigured(&mut self, has: &Option<UserData>, configured: &Option<UserData>) {
        if self.state() == State::Running {
            let user_data = has.clone();
            self.runs_with = (has != configured).then_some(RunsWith { user_data });
        }
    }

    /// The machine is switched off. Nothing happens to one that is.
    pub fn stop(&mut self, now: UnixSeconds) {
        self.stopped.get_or_insert(now);
    }

    /// The machine is switched on, on another host: a new launch time, the configured user data, and nothing that was
    /// announced for the old host. Nothing happens to one that runs.
    ///
    /// The new time is later than the last even within one second, or with a clock that was set back: session tokens are
    /// bound to it, and those of before must not come to life again.
    ///
    /// EC2's manual says of scheduled events that a stop and start is a way to have the maintenance done earlier; that
    /// the event is canceled then is inferred from what it says of reboots.
    pub fn start(&mut self, pending_time: UnixSeconds, now: UnixSeconds) {
        if self.stopped.take().is_none() {
            return;
        }
        self.started = Some(now.max(UnixSeconds(pending_time.0.saturating_add(1))));
        self.runs_with = None;
        self.spot_interruption = None;
        self.rebalance_notice = None;
        self.cancel_maintenance(|_| true);
    }

    /// The machine is rebooted in place: launch time, tokens and user data stay. A scheduled reboot of the instance is
    /// canceled at once (EC2 User Guide, "Actions for instance reboot"); one of its host is not.
    ///
    /// # Errors
    /// When it is stopped.
    pub fn reboot(&mut self) -> Result<(), Refusal> {
        match self.state() {
            State::Stopped => Err(Refusal::Stopped),
            State::Running => {
                self.cancel_maintenance(|code| code == MaintenanceCode::InstanceReboot);
                Ok(())
            }
        }
    }

    fn cancel_maintenance(&mut self, is_meant: impl Fn(MaintenanceCode) -> bool) {
        for event in &mut self.maintenance_events {
            if event.state == MaintenanceState::Active && is_meant(event.code) {
                event.state = MaintenanceState::Canceled;
            }
        }
    }
}

/// The lives of all instances of a host, by their id; also of those that the configuration does not have just now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lives {
    instances: BTreeMap<InstanceId, Life>,
}

impl Lives {
    /// What happened to an instance.
    #[must_use]
    pub fn of(&self, id: InstanceId) -> &Life {
        static NOTHING: Life = Life::NOTHING;
        self.instances.get(&id).unwrap_or(&NOTHING)
    }

    /// Every life in which something happened.
    pub fn iter(&self) -> impl Iterator<Item = (InstanceId, &Life)> {
        self.instances.iter().map(|(id, life)| (*id, life))
    }

    /// Replaces the life of an instance; the one before.
    pub fn replace(&mut self, id: InstanceId, life: Life) -> Life {
        let before = if life == Life::default() {
            self.instances.remove(&id)
        } else {
            self.instances.insert(id, life)
        };
        before.unwrap_or_default()
    }

    /// When the next planned change is due.
    #[must_use]
    pub fn next_due(&self) -> Option<UnixMillis> {
        let planned = self.instances.values().flat_map(|life| &life.planned);
        planned.map(|planned| planned.at).min()
    }

    /// Applies what is due, in its order; what was applied, and to whom.
    pub fn fall_due(&mut self, now: UnixMillis) -> Vec<(InstanceId, Change)> {
        let mut applied = Vec::new();
        for (id, life) in &mut self.instances {
            let changes = life.fall_due(now);
            applied.extend(changes.into_iter().map(|change| (*id, change)));
        }
        self.instances.retain(|_, life| *life != Life::default());
        applied
    }
}

fn in_base64<S: Serializer>(
    user_data: &Option<UserData>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let text = user_data.as_ref().map(|data| STANDARD.encode(data.bytes()));
    text.serialize(serializer)
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<UserData>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let bytes = STANDARD.decode(text).map_err(de::Error::custom)?;
    let user_data = UserData::try_from(Bytes::from(bytes)).map_err(de::Error::custom)?;
    Ok(Some(user_data))
}

impl FromIterator<(InstanceId, Life)> for Lives {
    fn from_iter<T: IntoIterator<Item = (InstanceId, Life)>>(lives: T) -> Self {
        let mut all = Self::default();
        for (id, life) in lives {
            all.replace(id, life);
        }
        all
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io;
    use std::path::Path;

    use super::*;
    use crate::config::{self, Files, Installation};
    use crate::instance::details::SpotAction;

    /// An instance as the configuration makes it of these lines.
    pub(crate) fn configured(lines: &str) -> Instance {
        struct OneFile(String);
        impl Files for OneFile {
            fn read(&self, _path: &Path, _bytes_max: usize) -> io::Result<Vec<u8>> {
                Ok(self.0.clone().into())
            }
        }
        let file = OneFile(format!("[[instance]]\nport = \"vnet0\"\n{lines}\n"));
        let installation = Installation {
            seed: [7; 16],
            created: LAUNCHED,
        };
        let settings = config::load(Path::new("imds.toml"), &installation, &file).unwrap();
        settings.guests.into_iter().next().unwrap().instance
    }

    const LAUNCHED: UnixSeconds = UnixSeconds(1000);
    const NOW: UnixSeconds = UnixSeconds(2000);

    pub(crate) fn maintenance(
        event_id: &str,
        code: MaintenanceCode,
        state: MaintenanceState,
    ) -> MaintenanceEvent {
        MaintenanceEvent {
            code,
            description: "scheduled reboot".into(),
            event_id: event_id.into(),
            not_before: UnixSeconds(3000),
            not_after: UnixSeconds(4000),
            not_before_deadline: None,
            state,
        }
    }

    fn user_data(text: &'static str) -> Option<UserData> {
        Some(UserData::try_from(Bytes::from_static(text.as_bytes())).unwrap())
    }

    fn runs_with(user_data: Option<UserData>) -> Option<RunsWith> {
        Some(RunsWith { user_data })
    }

    /// A life in which everything happened.
    fn full() -> Life {
        Life {
            stopped: None,
            started: Some(NOW),
            runs_with: runs_with(user_data("old")),
            spot_interruption: Some(SpotInterruption {
                action: SpotAction::Stop,
                time: UnixSeconds(2120),
            }),
            rebalance_notice: Some(NOW),
            maintenance_events: vec![
                maintenance(
                    "a",
                    MaintenanceCode::InstanceReboot,
                    MaintenanceState::Active,
                ),
                maintenance("b", MaintenanceCode::SystemReboot, MaintenanceState::Active),
                maintenance(
                    "c",
                    MaintenanceCode::InstanceStop,
                    MaintenanceState::Completed,
                ),
            ],
            target_lifecycle_state: Some(TargetLifecycleState::Standby),
            hibernation_configured: Some(false),
            planned: vec![Planned {
                at: UnixMillis(9_000_250),
                change: Change::Rebalance(UnixSeconds(9000)),
            }],
        }
    }

    #[test]
    fn without_a_life_an_instance_is_as_configured() {
        for lines in [
            "",
            "user-data = \"x\"\nlife-cycle = \"spot\"\ntarget-lifecycle-state = \"InService\"",
        ] {
            let configured = configured(lines);
            assert_eq!(Life::default().over(&configured), configured, "{lines}");
        }
    }

    /// What a life changes, and nothing else.
    #[test]
    fn a_life_lies_over_the_configuration() {
        let configured = configured(
            "user-data = \"new\"\nhostname = \"h\"\ntarget-lifecycle-state = \"InService\"\nhibernation-configured = true",
        );
        type Change = fn(&mut Instance, &mut Details);
        let check = |life: Life, change: Change| {
            let mut expected = configured.clone();
            let mut details = configured.details().clone();
            change(&mut expected, &mut details);
            expected.details = Some(Box::new(details));
            assert_eq!(life.over(&configured), expected, "{life:?}");
        };
        let started = Life {
            started: Some(NOW),
            ..Life::default()
        };
        check(started, |instance, _| instance.pending_time = NOW);
        let held_back = |user_data| Life {
            runs_with: runs_with(user_data),
            ..Life::default()
        };
        check(held_back(user_data("old")), |instance, _| {
            instance.user_data = user_data("old");
        });
        check(held_back(None), |instance, _| instance.user_data = None);
        let overridden = Life {
            target_lifecycle_state: Some(TargetLifecycleState::Standby),
            hibernation_configured: Some(false),
            ..Life::default()
        };
        check(overridden, |_, details| {
            details.target_lifecycle_state = Some(TargetLifecycleState::Standby);
            details.hibernation_configured = Some(false);
        });
        check(full(), |instance, details| {
            let life = full();
            instance.pending_time = NOW;
            instance.user_data = user_data("old");
            details.spot_interruption = life.spot_interruption;
            details.rebalance_notice = life.rebalance_notice;
            details.maintenance_events = life.maintenance_events;
            details.target_lifecycle_state = life.target_lifecycle_state;
            details.hibernation_configured = life.hibernation_configured;
        });
    }

    #[test]
    fn a_start_is_a_new_launch_on_another_host() {
        let mut life = full();
        life.stop(UnixSeconds(2500));
        assert_eq!(life.state(), State::Stopped);
        life.stop(UnixSeconds(2600));
        assert_eq!(life.stopped, Some(UnixSeconds(2500)), "stopped once");
        life.start(NOW, UnixSeconds(2700));
        let states = |life: &Life| -> Vec<_> {
            life.maintenance_events
                .iter()
                .map(|event| event.state.as_str())
                .collect()
        };
        assert_eq!(states(&life), ["canceled", "canceled", "completed"]);
        let expected = Life {
            started: Some(UnixSeconds(2700)),
            runs_with: None,
            spot_interruption: None,
            rebalance_notice: None,
            maintenance_events: life.maintenance_events.clone(),
            ..full()
        };
        assert_eq!(life, expected);
        life.start(UnixSeconds(2700), UnixSeconds(2800));
        assert_eq!(life, expected, "it runs already");
    }

    #[test]
    fn launch_times_only_ever_grow() {
        for (pending, now, started) in [
            (1000, 2000, 2000),
            (1999, 2000, 2000),
            // Within one second, and with a clock that was set back.
            (2000, 2000, 2001),
            (2001, 2000, 2002),
            (9000, 2000, 9001),
        ] {
            let mut life = Life::default();
            life.stop(UnixSeconds(now));
            life.start(UnixSeconds(pending), UnixSeconds(now));
            assert_eq!(life.started, Some(UnixSeconds(started)), "{pending} {now}");
        }
    }

    #[test]
    fn a_reboot_cancels_the_scheduled_one_and_keeps_everything_else() {
        let mut life = full();
        life.reboot().unwrap();
        let mut expected = full();
        expected.maintenance_events[0].state = MaintenanceState::Canceled;
        assert_eq!(life, expected);
        life.stop(NOW);
        assert_eq!(life.reboot(), Err(Refusal::Stopped));
    }

    #[test]
    fn user_data_changes_only_while_stopped() {
        let check = |mut life: Life, has, configured, expected: Option<RunsWith>| {
            life.reconfigured(&has, &configured);
            assert_eq!(life.runs_with, expected, "{has:?} {configured:?}");
        };
        let (old, new) = (|| user_data("old"), || user_data("new"));
        check(Life::default(), old(), new(), runs_with(old()));
        check(Life::default(), None, new(), runs_with(None));
        check(Life::default(), old(), None, runs_with(old()));
        check(Life::default(), old(), old(), None);
        // The configuration went back to what it runs with.
        check(full(), old(), old(), None);
        // Another change is held back likewise.
        check(full(), old(), user_data("newer"), runs_with(old()));
        let mut stopped = Life::default();
        stopped.stop(NOW);
        check(stopped, old(), new(), None);
    }

    #[test]
    fn lives_are_written_down_and_read_again() {
        let id: InstanceId = "i-0123456789abcdef0".parse().unwrap();
        let mut lives = Lives::default();
        assert_eq!(
            serde_json::to_string(&lives).unwrap(),
            r#"{"instances":{}}"#
        );
        assert_eq!(lives.of(id), &Life::default());
        let without_user_data = Life {
            stopped: Some(NOW),
            runs_with: runs_with(None),
            ..full()
        };
        for life in [full(), without_user_data, Life::default()] {
            lives.replace(id, life.clone());
            let text = serde_json::to_string(&lives).unwrap();
            let read: Lives = serde_json::from_str(&text).unwrap();
            assert_eq!(read.of(id), &life, "{text}");
        }
        assert_eq!(lives, Lives::default(), "an empty life takes no room");
    }

    #[test]
    fn the_written_form_is_this() {
        let id: InstanceId = "i-0123456789abcdef0".parse().unwrap();
        let mut lives = Lives::default();
        let life = Life {
            started: Some(NOW),
            runs_with: runs_with(user_data("old")),
            planned: full().planned,
            ..Life::default()
        };
        lives.replace(id, life);
        assert_eq!(
            serde_json::to_string(&lives).unwrap(),
            r#"{"instances":{"i-0123456789abcdef0":{"started":2000,"runs_with":{"user_data":"b2xk"},"planned":[{"at":9000250,"change":{"rebalance":9000}}]}}}"#
        );
        let unknown = r#"{"instances":{"i-0123456789abcdef0":{"hibernates":true}}}"#;
        assert!(
            serde_json::from_str::<Lives>(unknown).is_err(),
            "of a later version"
        );
    }

    #[test]
    fn debug_shows_no_user_data() {
        let shown = format!("{:?}", runs_with(user_data("hunter2")));
        assert!(!shown.contains("hunter"), "{shown}");
    }

    #[test]
    fn what_is_due_happens_to_whom_it_was_planned_for() {
        let [one, two]: [InstanceId; 2] =
            ["i-0aaaaaaaaaaaaaaaa", "i-0bbbbbbbbbbbbbbbb"].map(|id| id.parse().unwrap());
        let planned = |at, change: &Change| Planned {
            at: UnixMillis(at),
            change: change.clone(),
        };
        let (first, second) = (Change::Rebalance(UnixSeconds(1)), Change::Hibernation(true));
        let mut lives = Lives::default();
        assert_eq!(lives.next_due(), None);
        for (id, planned) in [
            (one, vec![planned(3000, &second), planned(2000, &first)]),
            (two, vec![planned(2500, &first)]),
        ] {
            let life = Life {
                planned,
                ..Life::default()
            };
            lives.replace(id, life);
        }
        assert_eq!(lives.next_due(), Some(UnixMillis(2000)));
        assert_eq!(lives.fall_due(UnixMillis(1999)), []);
        assert_eq!(lives.fall_due(UnixMillis(2000)), [(one, first.clone())]);
        assert_eq!(lives.next_due(), Some(UnixMillis(2500)));
        assert_eq!(
            lives.fall_due(UnixMillis(9000)),
            [(one, second), (two, first)]
        );
        assert_eq!(lives.next_due(), None);
        assert_eq!(lives.of(one).hibernation_configured, Some(true));
        assert_eq!(lives.of(two).rebalance_notice, Some(UnixSeconds(1)));
    }
}
