//! `placement/`

use super::super::tree::{Entry, Value, leaf};

/// The guide's label 2020-08-24 is not served; what it names appears with the next version that is.
pub(super) static PLACEMENT: &[Entry] = &[
    leaf("availability-zone", "2008-02-01", |view| {
        Some(view.zone().name().into())
    }),
    leaf("availability-zone-id", "2019-10-01", |view| {
        Some(view.zone().id().into())
    }),
    leaf("group-name", "2020-10-27", |view| {
        view.details().placement_group.as_deref().map(Value::from)
    }),
    leaf("host-id", "2020-10-27", |view| {
        view.details()
            .dedicated_host_id
            .as_ref()
            .map(|id| id.as_str().into())
    }),
    leaf("partition-number", "2020-10-27", |view| {
        view.details().partition_number.map(Value::of)
    }),
    leaf("region", "2020-10-27", |view| {
        Some(view.zone().region().into())
    }),
];
