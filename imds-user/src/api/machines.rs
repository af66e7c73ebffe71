//! Instances whose guests a launcher runs: what is to be done about each, and what its record says afterwards.
//!
//! A record says what a guest should be doing, and is written first. So whoever carries this out may end at any moment: the next
//! one finds the same to do, and a launcher does the same twice without harm.
//!
//! | the record | the guest | what is done |
//! |---|---|---|
//! | pending | any | it is launched; then the record runs, or the launch has failed |
//! | running, to be rebooted | any | it is rebooted |
//! | running | runs | nothing |
//! | running | ended | the record is told to stop or to terminate, as its shutdown behavior says |
//! | running | gone, or ended with the host | the record is told to stop |
//! | stopping | any | it is stopped; then the record is |
//! | stopped | runs | the record is told to stop |
//! | shutting down | any | it is terminated; then the record is |

use super::call::Change;
use super::ec2::types;
use crate::instance::{Host, InstanceId, UnixSeconds};
use crate::launch::plan::{Bounds, Spec};
use crate::life::Life;
use crate::metadata;
use crate::store::record::{ShutdownBehavior, StateReason, Transition};
use crate::store::{InstanceRecord, InstanceState, Record, View};

/// Processes and threads for each processor of an instance's type, and for all of them together.
const PIDS_PER_VCPU: u32 = 512;
const PIDS_MAX: u32 = 16_384;

/// What a launcher is to do about a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Have it run.
    Launch(Box<Spec>),
    /// Have it not run.
    Stop,
    /// Have it begin again; where it was ended for that already, begin.
    Reboot(Box<Spec>),
    /// Have it be gone.
    Terminate,
}

impl Task {
    /// Whether a guest is to run after it.
    #[must_use]
    pub fn is_start(&self) -> bool {
        matches!(self, Self::Launch(_) | Self::Reboot(_))
    }

    /// A word for it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Launch(_) => "launch",
            Self::Stop => "stop",
            Self::Reboot(_) => "reboot",
            Self::Terminate => "terminate",
        }
    }
}

/// What a guest is found to be doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It runs.
    Running,
    /// It ended, and what belongs to it is there.
    Ended,
    /// There is nothing of it.
    Gone,
}

/// What the records want done about an instance, if anything.
#[must_use]
pub fn task(view: &View, id: InstanceId, host: &Host) -> Option<Task> {
    let (record, life) = (view.instance(id)?, view.life(id));
    let machine = record.machine.as_ref()?;
    let spec = || spec_of(record, life, host).map(Box::new);
    match record.state(life) {
        InstanceState::Pending => spec().map(Task::Launch),
        InstanceState::Running if machine.reboot => spec().map(Task::Reboot),
        InstanceState::Running | InstanceState::Stopped => None,
        InstanceState::Stopping => Some(Task::Stop),
        InstanceState::ShuttingDown | InstanceState::Terminated => Some(Task::Terminate),
    }
}

/// The guest of an instance: what its metadata says of it. An instance without an IPv4 address is never given one to launch.
fn spec_of(record: &InstanceRecord, life: &Life, host: &Host) -> Option<Spec> {
    let machine = record.machine.as_ref()?;
    let instance = life.over(&record.spec);
    let primary = &instance.primary;
    let name = metadata::private_hostname(host, &instance);
    // The kernel's name of a machine is the first label, and of at most 64 bytes.
    let label = name.split('.').next().unwrap_or_default();
    let hostname: String = label.chars().take(64).collect();
    Some(Spec {
        id: instance.id,
        image: machine.image.clone(),
        hostname,
        ipv4: primary.private_ipv4()?,
        subnet: primary.subnet.ipv4_cidr?,
        mac: primary.mac,
        bounds: bounds_of(&instance.instance_type),
    })
}

/// What EC2 sells under that name, as far as a launcher bounds it. Where the type has none, what guests have by default.
fn bounds_of(instance_type: &str) -> Bounds {
    let usual = Bounds::default();
    let Some((vcpus, memory_mib)) = types::size(instance_type) else {
        return usual;
    };
    Bounds {
        memory_bytes: memory_mib << 20,
        pids: vcpus.saturating_mul(PIDS_PER_VCPU).min(PIDS_MAX),
        ..usual
    }
}

/// What becomes of an instance after a task was carried out. It may have been told something else meanwhile: then that is
/// the next task.
#[must_use]
pub fn done(view: &View, id: InstanceId, task: &Task, now: UnixSeconds) -> Vec<Change> {
    change(view, id, |state, record, life| match (task, state) {
        (Task::Launch(_), InstanceState::Pending) => record.transition = None,
        (Task::Reboot(_), _) => be_rebooted(record),
        (Task::Stop, InstanceState::Stopping) => {
            record.transition = None;
            be_rebooted(record);
            life.stop(now);
        }
        (Task::Terminate, InstanceState::ShuttingDown) => {
            record.transition = Some(Transition::Terminated { at: now });
            record.machine = None;
            life.stop(now);
        }
        (Task::Terminate, InstanceState::Terminated) => record.machine = None,
        (Task::Launch(_) | Task::Stop | Task::Terminate, _) => {}
    })
}

/// What becomes of an instance whose guest could not be started. An end that failed is tried again.
#[must_use]
pub fn failed(view: &View, id: InstanceId, task: &Task) -> Vec<Change> {
    change(view, id, |state, record, life| match (task, state) {
        (Task::Launch(_), InstanceState::Pending) => {
            // EC2 takes back a launch, and leaves stopped what was.
            let is_first = life.started.is_none();
            let back = if is_first {
                Transition::ShuttingDown
            } else {
                Transition::Stopping
            };
            turn(record, back, StateReason::LaunchFailed);
        }
        (Task::Reboot(_), InstanceState::Running) => {
            be_rebooted(record);
            turn(record, Transition::Stopping, StateReason::LaunchFailed);
        }
        _ => {}
    })
}

/// What becomes of an instance of which nothing is to be done, by what its guest is found to be doing. `booted` is when the
/// host was.
#[must_use]
pub fn look(view: &View, id: InstanceId, seen: Seen, booted: UnixSeconds) -> Vec<Change> {
    change(view, id, |state, record, life| {
        let is_wanted = match state {
            InstanceState::Running => true,
            InstanceState::Stopped => false,
            _ => return,
        };
        match seen {
            Seen::Running if is_wanted => {}
            Seen::Running => record.transition = Some(Transition::Stopping),
            Seen::Ended | Seen::Gone if !is_wanted => {}
            // Its own end leaves what belongs to it, and it cannot have begun before the host did.
            Seen::Ended if record.launch_time(life) >= booted => {
                let then = match record.attributes.instance_initiated_shutdown_behavior {
                    ShutdownBehavior::Stop => Transition::Stopping,
                    ShutdownBehavior::Terminate => Transition::ShuttingDown,
                };
                turn(record, then, StateReason::InstanceInitiated);
            }
            Seen::Ended | Seen::Gone => {
                turn(record, Transition::Stopping, StateReason::HostFailed);
            }
        }
    })
}

fn turn(record: &mut InstanceRecord, to: Transition, why: StateReason) {
    record.transition = Some(to);
    record.state_reason = Some(why);
}

fn be_rebooted(record: &mut InstanceRecord) {
    if let Some(machine) = &mut record.machine {
        machine.reboot = false;
    }
}

/// Changes what is there of an instance that has a machine.
fn change(
    view: &View,
    id: InstanceId,
    change: impl FnOnce(InstanceState, &mut InstanceRecord, &mut Life),
) -> Vec<Change> {
    let before = view.instance(id).filter(|record| record.machine.is_some());
    let Some(before) = before else {
        return Vec::new();
    };
    let mut record = before.clone();
    let mut life = view.life(id).clone();
    change(before.state(&life), &mut record, &mut life);
    let mut changes = Vec::new();
    if record != *before {
        changes.push(Change::Put(Record::Instance(Box::new(record))));
    }
    if life != *view.life(id) {
        changes.push(Change::Put(Record::Life(id, Box::new(life))));
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Files, Ground, Installation, load};
    use crate::launch::plan::Image;
    use crate::life::tests::configured;
    use crate::store::Owner;
    use crate::store::backend::{Item, Revision};
    use crate::store::record::Machine;

    const NOW: UnixSeconds = UnixSeconds(2000);
    /// Before every launch of these tests, and after it.
    const LONG_AGO: UnixSeconds = UnixSeconds(10);
    const SINCE: UnixSeconds = UnixSeconds(9000);

    /// An instance with a machine, in one state; words say what else there is to it.
    fn in_state(words: &str) -> View {
        let spec = configured("private-ipv4 = \"172.31.17.9\"\ntype = \"m5.xlarge\"");
        let id = spec.id;
        let mut record = InstanceRecord::new("web", Owner::Api, spec);
        let mut life = Life::default();
        record.machine = Some(Machine {
            image: Image::Host,
            reboot: false,
        });
        for word in words.split(' ') {
            match word {
                "pending" => record.transition = Some(Transition::Pending),
                "stopping" => record.transition = Some(Transition::Stopping),
                "shutting-down" => record.transition = Some(Transition::ShuttingDown),
                "terminated" => record.transition = Some(Transition::Terminated { at: NOW }),
                "stopped" => life.stop(NOW),
                "again" => {
                    life.stop(LONG_AGO);
                    life.start(LONG_AGO, UnixSeconds(1000));
                }
                "terminates" => {
                    record.attributes.instance_initiated_shutdown_behavior =
                        ShutdownBehavior::Terminate;
                }
                "reboots" => {
                    record.machine = record.machine.map(|machine| Machine {
                        reboot: true,
                        ..machine
                    });
                }
                "foreign" => record.machine = None,
                _ => assert_eq!(word, "running"),
            }
        }
        let mut view = View::default();
        let records = [
            Record::Instance(Box::new(record)),
            Record::Life(id, Box::new(life)),
        ];
        keep(
            &mut view,
            records.into_iter().map(Change::Put).collect::<Vec<_>>(),
        );
        view
    }

    fn keep(view: &mut View, changes: Vec<Change>) {
        let revision = Revision(view.revision().0 + 1);
        let items = changes.into_iter().map(|change| match change {
            Change::Put(record) => Item {
                key: record.key(),
                value: Some(record.encode().unwrap()),
                revision,
            },
            Change::Remove(key) => panic!("{key} is removed"),
        });
        view.take(revision, items.collect()).unwrap();
    }

    fn id(view: &View) -> InstanceId {
        *view.instances().keys().next().unwrap()
    }

    fn host() -> Host {
        struct Nothing;
        impl Files for Nothing {
            fn read(&self, _: &std::path::Path, _: usize) -> std::io::Result<Vec<u8>> {
                Ok(b"[host]\nregion = \"eu-central-1\"\n[[instance]]\nport = \"x\"\n".to_vec())
            }
        }
        let installation = Installation {
            seed: [7; 16],
            created: NOW,
        };
        let settings = load(std::path::Path::new("x"), &installation, &Nothing).unwrap();
        Ground::of(settings.host, installation).host
    }

    fn wanted(view: &View) -> Option<Task> {
        task(view, id(view), &host())
    }

    /// The state, and why it is in it.
    fn shown(view: &View) -> String {
        let id = id(view);
        let record = view.instance(id).unwrap();
        let mut shown = record.state(view.life(id)).as_str().to_owned();
        if record
            .machine
            .as_ref()
            .is_some_and(|machine| machine.reboot)
        {
            shown.push_str(" reboots");
        }
        if let Some(reason) = record.state_reason {
            shown.push(' ');
            shown.push_str(reason.code());
        }
        shown
    }

    #[test]
    fn a_record_says_what_is_to_be_done_about_its_guest() {
        for (words, expected) in [
            ("pending", Some("launch")),
            ("pending again", Some("launch")),
            ("running", None),
            ("running reboots", Some("reboot")),
            ("stopping", Some("stop")),
            ("stopping reboots", Some("stop")),
            ("stopped", None),
            ("stopped reboots", None),
            ("shutting-down", Some("terminate")),
            ("shutting-down stopped", Some("terminate")),
            ("terminated", Some("terminate")),
            ("pending foreign", None),
            ("shutting-down foreign", None),
        ] {
            let task = wanted(&in_state(words));
            assert_eq!(task.as_ref().map(Task::as_str), expected, "{words}");
        }
    }

    #[test]
    fn a_guest_is_launched_as_its_metadata_says() {
        let view = in_state("pending");
        let Some(Task::Launch(spec)) = wanted(&view) else {
            panic!("it is launched")
        };
        let primary = &view.instance(id(&view)).unwrap().spec.primary;
        let expected = Spec {
            id: id(&view),
            image: Image::Host,
            hostname: "ip-172-31-17-9".into(),
            ipv4: [172, 31, 17, 9].into(),
            subnet: primary.subnet.ipv4_cidr.unwrap(),
            mac: primary.mac,
            bounds: Bounds {
                memory_bytes: 16 << 30,
                pids: 2048,
                ..Bounds::default()
            },
        };
        assert_eq!(*spec, expected);
        assert_eq!(bounds_of("no type"), Bounds::default());
        assert_eq!(bounds_of("m5.24xlarge").pids, PIDS_MAX);
    }

    #[test]
    fn what_was_done_is_what_the_record_says() {
        let launch = || wanted(&in_state("pending")).unwrap();
        let reboot = || wanted(&in_state("running reboots")).unwrap();
        for (words, task, expected) in [
            ("pending", launch(), "running"),
            ("pending again", launch(), "running"),
            // It was told something else meanwhile.
            ("shutting-down", launch(), "shutting-down"),
            ("running reboots", reboot(), "running"),
            ("stopping reboots", reboot(), "stopping"),
            ("stopping reboots", Task::Stop, "stopped"),
            ("shutting-down", Task::Stop, "shutting-down"),
            ("shutting-down", Task::Terminate, "terminated"),
            ("terminated", Task::Terminate, "terminated"),
        ] {
            let mut view = in_state(words);
            let changes = done(&view, id(&view), &task, NOW);
            keep(&mut view, changes);
            assert_eq!(shown(&view), expected, "{words}, {task:?}");
            let is_over = expected == "terminated";
            assert!(!(is_over && wanted(&view).is_some()), "it is done");
        }
    }

    #[test]
    fn a_start_that_fails_is_taken_back() {
        let launch = || wanted(&in_state("pending")).unwrap();
        let reboot = || wanted(&in_state("running reboots")).unwrap();
        let error = "Server.InternalError";
        for (words, task, expected) in [
            ("pending", launch(), format!("shutting-down {error}")),
            ("pending again", launch(), format!("stopping {error}")),
            ("shutting-down", launch(), "shutting-down".to_owned()),
            ("running reboots", reboot(), format!("stopping {error}")),
            ("stopping", Task::Stop, "stopping".to_owned()),
            ("shutting-down", Task::Terminate, "shutting-down".to_owned()),
        ] {
            let mut view = in_state(words);
            let changes = failed(&view, id(&view), &task);
            keep(&mut view, changes);
            assert_eq!(shown(&view), expected, "{words}, {task:?}");
        }
    }

    #[test]
    fn a_guest_that_ends_takes_its_instance_along() {
        let (client, server) = ("Client.InstanceInitiatedShutdown", "Server.InternalError");
        let stopping = |why: &str| format!("stopping {why}");
        for (words, seen, booted, expected) in [
            ("running", Seen::Running, LONG_AGO, "running".to_owned()),
            ("running", Seen::Ended, LONG_AGO, stopping(client)),
            (
                "running terminates",
                Seen::Ended,
                LONG_AGO,
                format!("shutting-down {client}"),
            ),
            // The host was rebooted, or somebody took it away: that is not the guest's doing.
            ("running terminates", Seen::Ended, SINCE, stopping(server)),
            ("running terminates", Seen::Gone, LONG_AGO, stopping(server)),
            ("stopped", Seen::Ended, LONG_AGO, "stopped".to_owned()),
            ("stopped", Seen::Gone, LONG_AGO, "stopped".to_owned()),
            ("stopped", Seen::Running, LONG_AGO, "stopping".to_owned()),
            ("pending", Seen::Gone, LONG_AGO, "pending".to_owned()),
            ("stopping", Seen::Running, LONG_AGO, "stopping".to_owned()),
        ] {
            let mut view = in_state(words);
            let changes = look(&view, id(&view), seen, booted);
            keep(&mut view, changes);
            assert_eq!(shown(&view), expected, "{words}, {seen:?}");
        }
        let foreign = in_state("running foreign");
        assert_eq!(look(&foreign, id(&foreign), Seen::Gone, SINCE), []);
    }
}
