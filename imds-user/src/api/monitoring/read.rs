//! What the operations' parameters have in common.

use std::ops::RangeInclusive;

use super::points::Span;
use crate::api::fault::{Code, Refusal};
use crate::api::query::Params;
use crate::instance::{InstanceId, UnixMillis, UnixSeconds};
use crate::metrics::{Metric, Minute};

/// The one namespace of which anything is known.
pub(super) const NAMESPACE: &str = "AWS/EC2";
/// The one dimension.
pub(super) const DIMENSION: &str = "InstanceId";
/// The most dimensions that a metric has.
const DIMENSIONS_MAX: usize = 30;
const DAY_MINUTES: u64 = 24 * 60;

/// Units that CloudWatch knows. Counts are in `Count`.
const UNITS: [&str; 27] = [
    "Seconds",
    "Microseconds",
    "Milliseconds",
    "Bytes",
    "Kilobytes",
    "Megabytes",
    "Gigabytes",
    "Terabytes",
    "Bits",
    "Kilobits",
    "Megabits",
    "Gigabits",
    "Terabits",
    "Percent",
    "Count",
    "Bytes/Second",
    "Kilobytes/Second",
    "Megabytes/Second",
    "Gigabytes/Second",
    "Terabytes/Second",
    "Bits/Second",
    "Kilobits/Second",
    "Megabits/Second",
    "Gigabits/Second",
    "Terabits/Second",
    "Count/Second",
    "None",
];

/// A metric of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) metric: Metric,
    pub(super) id: InstanceId,
}

/// The metric at a place and the unit at another. `None` if it is one of which there is nothing, and its name.
pub(super) fn source<'a>(
    place: &Params<'a>,
    units: &Params<'a>,
) -> Result<(Option<Source>, &'a str), Refusal> {
    let namespace = place.required("Namespace")?;
    let name = place.required("MetricName")?;
    let id = match &dimensions(place)?[..] {
        [(DIMENSION, Some(value))] => value.parse().ok(),
        _ => None,
    };
    let words = UNITS.map(|unit| (unit, unit));
    let unit = units.word("Unit", &words)?.unwrap_or("Count");
    let is_ours = namespace == NAMESPACE && unit == "Count";
    let source = Metric::named(name).zip(id).filter(|_| is_ours);
    Ok((source.map(|(metric, id)| Source { metric, id }), name))
}

/// Names of dimensions and what is said of them.
pub(super) fn dimensions<'a>(
    place: &Params<'a>,
) -> Result<Vec<(&'a str, Option<&'a str>)>, Refusal> {
    let list = place.list("Dimensions.member")?;
    if list.len() > DIMENSIONS_MAX {
        let message = format!(
            "The parameter {} has more than {DIMENSIONS_MAX} items.",
            place.at("Dimensions").path()
        );
        return Err(Refusal::new(Code::InvalidParameterValue, message));
    }
    let read = |one: &Params<'a>| Ok((one.required("Name")?, one.text("Value")));
    list.iter().map(read).collect()
}

/// `StartTime` and `EndTime`. A start is rounded down, to a minute or more the longer ago it is; the end is not part of it.
pub(super) fn span(params: &Params<'_>, now: Minute) -> Result<Span, Refusal> {
    let time = |name: &str| {
        params.required(name)?;
        let right = "Write a time such as 2026-01-31T12:00:00Z.";
        let read = params.parsed(name, right, instant)?;
        read.ok_or_else(|| Refusal::missing(name))
    };
    let (start, end) = (time("StartTime")?, time("EndTime")?);
    if start >= end {
        return Err(Refusal::new(
            Code::InvalidParameterValue,
            "The parameter StartTime must be less than the parameter EndTime.",
        ));
    }
    let begin = Minute::of(start).0;
    let step = match now.0.saturating_sub(begin) {
        age if age < 15 * DAY_MINUTES => 1,
        age if age < 63 * DAY_MINUTES => 5,
        _ => 60,
    };
    Ok(Span {
        begin: Minute(begin - begin % step),
        end: Minute(end.0.div_ceil(60_000)),
    })
}

/// `Period`, in minutes. Metrics of a higher resolution than a minute there are none.
pub(super) fn period(params: &Params<'_>, code: Code) -> Result<u64, Refusal> {
    const RANGE: RangeInclusive<u64> = 60..=86_400 * 365;
    let place = params.at("Period");
    let text = params.required("Period")?;
    let seconds = text.parse::<u64>().ok();
    let seconds = seconds.filter(|seconds| RANGE.contains(seconds) && seconds.is_multiple_of(60));
    let seconds = seconds.ok_or_else(|| {
        let message = format!(
            "The parameter {} must be a multiple of 60 seconds, and at least 60; the value is {text}.",
            place.path()
        );
        Refusal::new(code, message)
    })?;
    Ok(seconds / 60)
}

/// A point in time as clients write it: seconds since 1970, perhaps with a fraction, or a date and time of ISO 8601, in UTC unless it
/// says otherwise.
pub(super) fn instant(text: &str) -> Option<UnixMillis> {
    if let Ok(seconds) = text.parse::<f64>() {
        const LATEST: f64 = 1e11;
        let is_time = (0.0..=LATEST).contains(&seconds);
        // In range, so that nothing is cut off.
        return is_time.then_some(UnixMillis((seconds * 1000.0).round() as u64));
    }
    let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00:00"));
    let (time, offset_minutes) = zone_of(time)?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let whole = match time.len() {
        5 => format!("{date}T{time}:00Z"),
        _ => format!("{date}T{time}Z"),
    };
    let UnixSeconds(local) = UnixSeconds::from_iso(&whole)?;
    let seconds = i64::try_from(local).ok()? - offset_minutes * 60;
    Some(UnixMillis(
        u64::try_from(seconds).ok()? * 1000 + millis_of(fraction)?,
    ))
}

/// Cuts the zone off a time: what is left, and by how many minutes it is before UTC.
fn zone_of(time: &str) -> Option<(&str, i64)> {
    if let Some(time) = time.strip_suffix('Z') {
        return Some((time, 0));
    }
    let Some(at) = time.find(['+', '-']) else {
        return Some((time, 0));
    };
    let (time, zone) = time.split_at(at);
    let digits = zone[1..].replace(':', "");
    if digits.len() != 4 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number: i64 = digits.parse().ok()?;
    let minutes = number / 100 * 60 + number % 100;
    Some((
        time,
        if zone.starts_with('-') {
            -minutes
        } else {
            minutes
        },
    ))
}

fn millis_of(fraction: &str) -> Option<u64> {
    if fraction.is_empty() || !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000".chars()).take(3).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_clients_write_them() {
        let at = 784_111_777_000;
        for (text, millis) in [
            ("784111777", at),
            ("784111777.25", at + 250),
            ("7.84111777e8", at),
            ("1994-11-06T08:49:37Z", at),
            ("1994-11-06T08:49:37.042Z", at + 42),
            ("1994-11-06T08:49:37.1Z", at + 100),
            ("1994-11-06T08:49:37", at),
            ("1994-11-06 08:49:37", at),
            ("1994-11-06T08:49:37+00:00", at),
            ("1994-11-06T10:49:37+02:00", at),
            ("1994-11-06T00:49:37.000001-0800", at),
            ("1994-11-06T08:49Z", at - 37_000),
            ("1994-11-06", at - 37_000 - (8 * 60 + 49) * 60_000),
            ("0", 0),
        ] {
            assert_eq!(instant(text), Some(UnixMillis(millis)), "{text}");
        }
        for text in [
            "",
            "now",
            "-1",
            "NaN",
            "inf",
            "1e12",
            "1994-11-06T",
            "1994-13-06T00:00:00Z",
            "1994-11-06T08:49:37.Z",
            "1994-11-06T08:49:37+2",
            "1994-11-06T08:49:37+é2:00",
            "1970-01-01T00:00:00+01:00",
        ] {
            assert_eq!(instant(text), None, "{text}");
        }
    }
}
