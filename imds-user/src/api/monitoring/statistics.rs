//! `GetMetricStatistics`: some statistics of one metric.

use std::collections::BTreeSet;

use super::points::{History, Point, Span, Statistic, points};
use super::read::{Source, period, source, span};
use super::{Document, Facts};
use crate::api::fault::{Code, Refusal};
use crate::api::query::Params;
use crate::instance::InstanceId;
use crate::metrics::Minute;

/// The most points that one call may ask for.
const POINTS_MAX: u64 = 1440;

/// The call.
#[derive(Clone, Debug)]
pub struct Request {
    label: String,
    source: Option<Source>,
    span: Span,
    period_minutes: u64,
    statistics: BTreeSet<Statistic>,
}

impl Request {
    pub(super) fn read(params: &Params<'_>, now: Minute) -> Result<Self, Refusal> {
        let (source, name) = source(params, params)?;
        let span = span(params, now)?;
        let period_minutes = period(params, Code::InvalidParameterValue)?;
        let statistics = statistics(params)?;
        let n_points = (span.end.0 - span.begin.0).div_ceil(period_minutes);
        if n_points > POINTS_MAX {
            let message = format!(
                "You have requested up to {} datapoints, which exceeds the limit of {}. You may reduce the datapoints requested \
                 by increasing Period, or decreasing the time range.",
                with_commas(n_points),
                with_commas(POINTS_MAX)
            );
            return Err(Refusal::new(Code::InvalidParameterCombination, message));
        }
        Ok(Self {
            label: name.to_owned(),
            source,
            span,
            period_minutes,
            statistics,
        })
    }

    pub(super) fn instances(&self) -> BTreeSet<InstanceId> {
        self.source.iter().map(|source| source.id).collect()
    }

    pub(super) fn span(&self) -> Span {
        self.span
    }

    pub(super) fn answer(&self, facts: &Facts, now: Minute) -> Document {
        let of = |source: &Source| {
            let history: &History = facts.histories.get(&source.id)?;
            let points = points(history, source.metric, self.span, self.period_minutes, now);
            Some(points.iter().map(|point| self.datapoint(point)).collect())
        };
        let datapoints = self.source.as_ref().and_then(of);
        Document::Fields(vec![
            ("Label", Document::text(&self.label)),
            ("Datapoints", Document::List(datapoints.unwrap_or_default())),
        ])
    }

    fn datapoint(&self, point: &Point) -> Document {
        let mut fields = vec![("Timestamp", Document::Time(point.at.begin()))];
        let statistics = self.statistics.iter();
        fields.extend(statistics.map(|one| (one.as_str(), Document::Number(one.of(point)))));
        fields.push(("Unit", Document::text("Count")));
        Document::Fields(fields)
    }
}

fn statistics(params: &Params<'_>) -> Result<BTreeSet<Statistic>, Refusal> {
    let extended = params.texts("ExtendedStatistics.member")?;
    if let Some(name) = extended.first() {
        // Percentiles of counts a minute would be numbers without a meaning.
        let message = format!(
            "The statistic {name} is not available here. Valid statistics are {}.",
            Statistic::ALL.map(Statistic::as_str).join(", ")
        );
        return Err(Refusal::new(Code::InvalidParameterValue, message));
    }
    let names = params.texts("Statistics.member")?;
    if names.is_empty() {
        return Err(Refusal::new(
            Code::InvalidParameterCombination,
            "At least one of the parameters Statistics and ExtendedStatistics must be specified.",
        ));
    }
    let read = |name: &&str| {
        let right = format!(
            "Valid values are {}.",
            Statistic::ALL.map(Statistic::as_str).join(", ")
        );
        Statistic::named(name).ok_or_else(|| Refusal::invalid_value(name, "Statistics", right))
    };
    names.iter().map(read).collect()
}

/// `43,200`, as CloudWatch's message has it.
fn with_commas(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_numbers_have_commas() {
        for (number, text) in [
            (1, "1"),
            (999, "999"),
            (1440, "1,440"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(with_commas(number), text);
        }
    }
}
