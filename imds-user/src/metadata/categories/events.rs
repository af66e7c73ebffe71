//! `events/` and `spot/`

use super::super::json::{self, Object};
use super::super::tree::{Entry, Value, leaf, table};
use crate::instance::details::{MaintenanceEvent, MaintenanceState, SpotAction};

pub(super) static EVENTS: &[Entry] = &[
    table("maintenance", MAINTENANCE),
    table("recommendations", RECOMMENDATIONS),
];

static MAINTENANCE: &[Entry] = &[
    leaf("history", "2018-08-17", |view| {
        let past = view
            .details()
            .maintenance_events
            .iter()
            .filter(|event| event.state != MaintenanceState::Active);
        Some(json::list(past.map(document)).into())
    }),
    leaf("scheduled", "2018-08-17", |view| {
        let active = view
            .details()
            .maintenance_events
            .iter()
            .filter(|event| event.state == MaintenanceState::Active);
        Some(json::list(active.map(document)).into())
    }),
];

static RECOMMENDATIONS: &[Entry] = &[leaf("rebalance", "2020-10-27", |view| {
    let time = view.details().rebalance_notice?;
    Some(Value::of(format_args!(
        r#"{{"noticeTime": "{}"}}"#,
        time.iso()
    )))
})];

/// There once an interruption is announced. The guide's label 2016-11-15 of `instance-action` is not served: it appears
/// with the next version that is.
pub(super) static SPOT: &[Entry] = &[
    leaf("instance-action", "2018-03-28", |view| {
        let interruption = view.details().spot_interruption?;
        let (action, time) = (interruption.action.as_str(), interruption.time.iso());
        Some(Value::of(format_args!(
            r#"{{"action": "{action}", "time": "{time}"}}"#
        )))
    }),
    leaf("termination-time", "2014-11-05", |view| {
        let interruption = view.details().spot_interruption?;
        (interruption.action == SpotAction::Terminate).then(|| Value::of(interruption.time.iso()))
    }),
];

fn document(event: &MaintenanceEvent) -> Object {
    let description = &event.description;
    let (state, prefix) = match event.state {
        MaintenanceState::Active => ("active", ""),
        MaintenanceState::Completed => ("completed", "[Completed] "),
        MaintenanceState::Canceled => ("canceled", "[Canceled] "),
    };
    let object = Object::new()
        .string("NotBefore", event.not_before.event_date())
        .string("Code", event.code.as_str())
        .string("Description", format_args!("{prefix}{description}"))
        .string("EventId", &event.event_id)
        .string("NotAfter", event.not_after.event_date())
        .string("State", state);
    match event.not_before_deadline {
        Some(deadline) => object.string("NotBeforeDeadline", deadline.event_date()),
        None => object,
    }
}
