//! CloudWatch, as far as it tells how instances use the metadata service: [`crate::metrics::Metric`] in the namespace `AWS/EC2`, by
//! the dimension `InstanceId`. Amazon CloudWatch API Reference, 2010-08-01.
//!
//! Pure: a [`Request`] is read from parameters (a JSON document is read as the form that says the same), says which counts it
//! [`Request::wants`], and is [`answer`]ed from these with a [`Document`], which is written in the protocol of the request.
//!
//! What EC2's documentation leaves open is decided so: there is a point for every minute, whether detailed monitoring is on or
//! not; a minute is one sample; and an instance has a point, which may be 0, in every minute in which it ran or something was
//! counted ([`presence()`]). Anything else that is asked for, other metrics or dimensions, has no points, as for CloudWatch.

mod data;
mod document;
mod list;
mod points;
mod presence;
mod read;
mod statistics;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

pub use document::Document;
pub use points::History;
pub use presence::{instances, presence};

use super::fault::Refusal;
use super::query::Params;
use crate::instance::InstanceId;
use crate::metrics::Minute;

/// What may be called. All of it looks.
pub const OPERATIONS: [&str; 3] = ["GetMetricData", "GetMetricStatistics", "ListMetrics"];

/// What is before the operation in `X-Amz-Target`.
pub const TARGET_PREFIX: &str = "GraniteServiceVersion20100801.";

/// A call that was understood.
#[derive(Clone, Debug)]
pub enum Request {
    /// `GetMetricData`
    Data(data::Request),
    /// `GetMetricStatistics`
    Statistics(statistics::Request),
    /// `ListMetrics`
    List(list::Request),
}

/// What a request is answered from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wants {
    /// The counts of these instances, in these minutes.
    Counts(BTreeSet<InstanceId>, RangeInclusive<Minute>),
    /// Which instances there are.
    Instances,
}

/// What is known.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The counts that were wanted, and when the instance was there.
    pub histories: BTreeMap<InstanceId, History>,
    /// Instances that have points, and when the last one is.
    pub instances: BTreeMap<InstanceId, Minute>,
}

impl Request {
    /// Understands a call of an operation.
    ///
    /// # Errors
    /// In CloudWatch's words.
    pub fn read(operation: &str, params: &Params<'_>, now: Minute) -> Result<Self, Refusal> {
        match operation {
            "GetMetricData" => data::Request::read(params, now).map(Self::Data),
            "GetMetricStatistics" => statistics::Request::read(params, now).map(Self::Statistics),
            "ListMetrics" => list::Request::read(params).map(Self::List),
            other => Err(Refusal::invalid_action(other)),
        }
    }

    /// What it is answered from.
    #[must_use]
    pub fn wants(&self, now: Minute) -> Wants {
        let (ids, span) = match self {
            Self::Data(request) => (request.instances(), request.span()),
            Self::Statistics(request) => (request.instances(), request.span()),
            Self::List(_) => return Wants::Instances,
        };
        Wants::Counts(ids, span.minutes(now))
    }
}

/// Answers a call.
#[must_use]
pub fn answer(request: &Request, facts: &Facts, now: Minute) -> Document {
    match request {
        Request::Data(request) => request.answer(facts),
        Request::Statistics(request) => request.answer(facts, now),
        Request::List(request) => request.answer(facts, now),
    }
}
