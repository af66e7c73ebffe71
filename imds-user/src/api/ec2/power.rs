//! `StartInstances`, `StopInstances`, `RebootInstances`, `TerminateInstances`, and `MonitorInstances`, which is called alike.
//!
//! What is asked is noted as a transition of the record; whoever runs the machine sees it, does it, and ends the transition
//! (see [`super::settle`]).

use super::instance::{Known, incorrect_state, some_named, write_state};
use crate::api::call::{Call, Change, Outcome};
use crate::api::fault::{Code, Refusal};
use crate::instance::details::Details;
use crate::instance::{Instance, Switch};
use crate::store::record::{StateReason, Transition};
use crate::store::{InstanceRecord, InstanceState, Owner, Record};

/// What becomes of one instance.
struct Turn<'a> {
    known: Known<'a>,
    state: InstanceState,
    changes: Vec<Change>,
}

impl<'a> Turn<'a> {
    /// It is so already.
    fn none(known: Known<'a>) -> Self {
        Self {
            state: known.state(),
            known,
            changes: Vec::new(),
        }
    }

    fn to(known: Known<'a>, state: InstanceState, transition: Transition) -> Self {
        let mut record = known.record.clone();
        record.transition = Some(transition);
        // Whatever it was: now it is what it was told to be.
        record.state_reason = record
            .state_reason
            .filter(|reason| *reason == StateReason::NoGuest);
        Self {
            known,
            state,
            changes: vec![put(record)],
        }
    }
}

fn put(record: InstanceRecord) -> Change {
    Change::Put(Record::Instance(Box::new(record)))
}

pub(super) fn start(call: &Call<'_>) -> Result<Outcome, Refusal> {
    turn_all(call, |known| match known.state() {
        InstanceState::Running | InstanceState::Pending => Ok(Turn::none(known)),
        InstanceState::Stopped => {
            let mut life = known.life.clone();
            life.start(known.launch_time(), call.now());
            let mut turn = Turn::to(known, InstanceState::Pending, Transition::Pending);
            let life = Record::Life(known.id(), Box::new(life));
            turn.changes.push(Change::Put(life));
            Ok(turn)
        }
        InstanceState::Stopping | InstanceState::ShuttingDown | InstanceState::Terminated => {
            Err(incorrect_state(&known))
        }
    })
}

pub(super) fn stop(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let _ways = (
        call.params.flag("Force")?,
        call.params.flag("SkipOsShutdown")?,
    );
    if call.params.flag("Hibernate")? == Some(true) {
        return Err(Refusal::unsupported("Instances cannot be hibernated here"));
    }
    turn_all(call, |known| match known.state() {
        InstanceState::Stopped | InstanceState::Stopping => Ok(Turn::none(known)),
        InstanceState::Running if known.record.attributes.disable_api_stop => {
            Err(protected(&known, "stopped", "disableApiStop"))
        }
        InstanceState::Running => Ok(Turn::to(
            known,
            InstanceState::Stopping,
            Transition::Stopping,
        )),
        InstanceState::Pending | InstanceState::ShuttingDown | InstanceState::Terminated => {
            Err(incorrect_state(&known))
        }
    })
}

pub(super) fn terminate(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let _ways = (
        call.params.flag("Force")?,
        call.params.flag("SkipOsShutdown")?,
    );
    turn_all(call, |known| match known.state() {
        InstanceState::ShuttingDown | InstanceState::Terminated => Ok(Turn::none(known)),
        _ if known.record.attributes.disable_api_termination => {
            Err(protected(&known, "terminated", "disableApiTermination"))
        }
        _ => match not_ours(&known) {
            None => Ok(Turn::to(
                known,
                InstanceState::ShuttingDown,
                Transition::ShuttingDown,
            )),
            Some(refusal) => Err(refusal),
        },
    })
}

/// Who brought an instance here takes it away.
fn not_ours(known: &Known<'_>) -> Option<Refusal> {
    let how = match known.record.owner {
        Owner::Api => return None,
        Owner::File => "remove it from the configuration file",
        Owner::Admitted => "take back its admission (imds forget)",
        Owner::Discovered => "remove its guest",
    };
    let message = format!(
        "The instance '{}' was not launched by this API: {how}",
        known.id()
    );
    Some(Refusal::unsupported(message))
}

fn protected(known: &Known<'_>, done: &str, attribute: &str) -> Refusal {
    Refusal::new(
        Code::OperationNotPermitted,
        format!(
            "The instance '{}' may not be {done}. Modify its '{attribute}' instance attribute and try again.",
            known.id()
        ),
    )
}

/// All or none.
fn turn_all<'a>(
    call: &Call<'a>,
    turn: impl Fn(Known<'a>) -> Result<Turn<'a>, Refusal>,
) -> Result<Outcome, Refusal> {
    let known = some_named(call)?;
    let turns: Vec<_> = known.into_iter().map(turn).collect::<Result<_, _>>()?;
    let mut outcome = call.ec2_reply(|xml| {
        xml.list("instancesSet", &turns, |xml, turn| {
            xml.el("instanceId", turn.known.id());
            write_state(xml, "currentState", turn.state);
            write_state(xml, "previousState", turn.known.state());
        });
    });
    outcome.changes = turns.into_iter().flat_map(|turn| turn.changes).collect();
    Ok(outcome)
}

/// Launch time, address and session tokens of an instance outlive its reboot; reboots of it that were scheduled do not.
pub(super) fn reboot(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let mut outcome = call.ec2_done();
    for known in some_named(call)? {
        let mut life = known.life.clone();
        let is_running = known.state() == InstanceState::Running;
        if !is_running || life.reboot().is_err() {
            return Err(incorrect_state(&known));
        }
        if life != *known.life {
            outcome = outcome.put(Record::Life(known.id(), Box::new(life)));
        }
        let mut record = known.record.clone();
        if let Some(machine) = &mut record.machine {
            machine.reboot = true;
            outcome.changes.push(put(record));
        }
    }
    Ok(outcome)
}

pub(super) fn monitor(call: &Call<'_>) -> Result<Outcome, Refusal> {
    set_monitoring(call, Switch::Enabled, "pending")
}

pub(super) fn unmonitor(call: &Call<'_>) -> Result<Outcome, Refusal> {
    set_monitoring(call, Switch::Disabled, "disabling")
}

fn set_monitoring(call: &Call<'_>, to: Switch, said: &str) -> Result<Outcome, Refusal> {
    let known = some_named(call)?;
    let mut outcome = call.ec2_reply(|xml| {
        xml.list("instancesSet", &known, |xml, known| {
            xml.el("instanceId", known.id());
            xml.within("monitoring", |xml| {
                xml.el("state", said);
            });
        });
    });
    for known in known {
        if known.record.is_monitored() != to.is_enabled() {
            let mut record = known.record.clone();
            change_details(&mut record.spec, |details| details.monitoring = Some(to));
            outcome.changes.push(put(record));
        }
    }
    Ok(outcome)
}

/// Changes what few instances have.
pub(super) fn change_details(spec: &mut Instance, change: impl FnOnce(&mut Details)) {
    let mut details = spec.details().clone();
    change(&mut details);
    spec.details = (details != Details::NONE).then(|| Box::new(details));
}
