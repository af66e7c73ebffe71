//! From the counts of minutes to the points of periods.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::metrics::{Counts, Metric, Minute};

/// What is known of an instance.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Minutes in which something was counted.
    pub counts: BTreeMap<Minute, Counts>,
    /// When it was there, so that nothing counted means none.
    pub present: Option<RangeInclusive<Minute>>,
}

impl History {
    fn at(&self, minute: Minute, metric: Metric) -> Option<u64> {
        let counted = self.counts.get(&minute).map(|counts| counts.of(metric));
        let was_there = || self.present.as_ref()?.contains(&minute).then_some(0);
        counted.or_else(was_there)
    }
}

/// Periods one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Where the first begins.
    pub(super) begin: Minute,
    /// The first minute after them. The last period may be cut short by it.
    pub(super) end: Minute,
}

impl Span {
    /// Those of its minutes of which something can be known.
    pub(super) fn minutes(&self, now: Minute) -> RangeInclusive<Minute> {
        let first = self.begin.max(now.first_kept());
        // An end of 0 is of no minute; an empty range it is then.
        let Some(last) = self.end.0.checked_sub(1) else {
            return Minute(1)..=Minute(0);
        };
        first..=Minute(last).min(now)
    }
}

/// What the samples of a period come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) at: Minute,
    sum: u64,
    n_samples: u64,
    least: u64,
    most: u64,
}

impl Point {
    fn of(at: Minute, sample: u64) -> Self {
        Self {
            at,
            sum: sample,
            n_samples: 1,
            least: sample,
            most: sample,
        }
    }

    fn add(&mut self, sample: u64) {
        self.sum = self.sum.saturating_add(sample);
        self.n_samples += 1;
        self.least = self.least.min(sample);
        self.most = self.most.max(sample);
    }
}

/// The points of an instance up to now, the earliest first. Periods without a sample have none.
pub(super) fn points(
    history: &History,
    metric: Metric,
    span: Span,
    period_minutes: u64,
    now: Minute,
) -> Vec<Point> {
    let mut points: Vec<Point> = Vec::new();
    let minutes = span.minutes(now);
    for minute in minutes.start().0..=minutes.end().0 {
        let Some(sample) = history.at(Minute(minute), metric) else {
            continue;
        };
        let n_periods = (minute - span.begin.0) / period_minutes;
        let at = Minute(span.begin.0 + n_periods * period_minutes);
        match points.last_mut().filter(|point| point.at == at) {
            Some(point) => point.add(sample),
            None => points.push(Point::of(at, sample)),
        }
    }
    points
}

/// What is asked for of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Statistic {
    SampleCount,
    Average,
    Sum,
    Minimum,
    Maximum,
}

impl Statistic {
    pub(super) const ALL: [Self; 5] = [
        Self::SampleCount,
        Self::Average,
        Self::Sum,
        Self::Minimum,
        Self::Maximum,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::SampleCount => "SampleCount",
            Self::Average => "Average",
            Self::Sum => "Sum",
            Self::Minimum => "Minimum",
            Self::Maximum => "Maximum",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|statistic| statistic.as_str() == name)
    }

    /// Exact up to 2^53.
    pub(super) fn of(self, point: &Point) -> f64 {
        match self {
            Self::SampleCount => point.n_samples as f64,
            Self::Average => point.sum as f64 / point.n_samples as f64,
            Self::Sum => point.sum as f64,
            Self::Minimum => point.least as f64,
            Self::Maximum => point.most as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Minute = Minute(30_000_000);

    /// Counts by minutes before now, and since when it is there, by the same measure.
    fn history(counts: &[(u64, u64)], present: Option<u64>) -> History {
        let counted = |(ago, no_token): &(u64, u64)| {
            let counts = Counts {
                no_token: *no_token,
                no_token_rejected: 0,
            };
            (Minute(NOW.0 - ago), counts)
        };
        History {
            counts: counts.iter().map(counted).collect(),
            present: present.map(|ago| Minute(NOW.0 - ago)..=NOW),
        }
    }

    /// Points from and up to so many minutes ago: how long ago each is, and its sum, number of samples, least, most and mean.
    fn check(history: &History, from: u64, to: u64, period: u64, expected: &[(u64, [f64; 5])]) {
        let span = Span {
            begin: Minute(NOW.0 - from),
            end: Minute(NOW.0 - to),
        };
        let points = points(history, Metric::NoToken, span, period, NOW);
        let found: Vec<_> = points
            .iter()
            .map(|point| {
                let statistics = [
                    Statistic::Sum,
                    Statistic::SampleCount,
                    Statistic::Minimum,
                    Statistic::Maximum,
                    Statistic::Average,
                ];
                (NOW.0 - point.at.0, statistics.map(|one| one.of(point)))
            })
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn minutes_become_periods_that_begin_where_they_are_asked_to() {
        let history = history(&[(9, 1), (8, 2), (5, 4), (1, 8)], None);
        let one = |count: f64| [count, 1.0, count, count, count];
        check(
            &history,
            10,
            0,
            1,
            &[(9, one(1.0)), (8, one(2.0)), (5, one(4.0)), (1, one(8.0))],
        );
        check(
            &history,
            10,
            0,
            5,
            &[
                (10, [3.0, 2.0, 1.0, 2.0, 1.5]),
                (5, [12.0, 2.0, 4.0, 8.0, 6.0]),
            ],
        );
        check(&history, 9, 1, 5, &[(9, [7.0, 3.0, 1.0, 4.0, 7.0 / 3.0])]);
        check(&history, 8, 8, 5, &[]);
    }

    #[test]
    fn an_instance_that_is_there_has_a_point_in_every_minute_up_to_now() {
        let history = history(&[(9, 1), (1, 2)], Some(2));
        let check = |from, period, expected: &[_]| {
            let span = Span {
                begin: Minute(NOW.0 - from),
                end: Minute(NOW.0 + 1000),
            };
            let points = points(&history, Metric::NoToken, span, period, NOW);
            let found: Vec<_> = points
                .iter()
                .map(|point| (NOW.0 - point.at.0, point.sum, point.n_samples))
                .collect();
            assert_eq!(found, expected);
        };
        check(10, 1, &[(9, 1, 1), (2, 0, 1), (1, 2, 1), (0, 0, 1)]);
        check(10, 5, &[(10, 1, 1), (5, 2, 2), (0, 0, 1)]);
        let span = Span {
            begin: NOW,
            end: Minute(NOW.0 + 1),
        };
        let rejected = points(&history, Metric::NoTokenRejected, span, 1, NOW);
        assert_eq!(rejected, [Point::of(NOW, 0)]);
    }

    #[test]
    fn there_is_nothing_before_fifteen_days() {
        let whole = Span {
            begin: Minute(0),
            end: Minute(u64::MAX),
        };
        let kept = whole.minutes(NOW);
        assert_eq!(*kept.end(), NOW);
        assert_eq!(kept.end().0 - kept.start().0 + 1, 15 * 24 * 60);
        let none = Span {
            begin: Minute(0),
            end: Minute(0),
        };
        assert!(none.minutes(NOW).is_empty());
        // Periods still begin where they are asked to.
        let history = history(&[(1, 5)], None);
        let found = points(&history, Metric::NoToken, whole, 60 * 24, NOW);
        assert_eq!(found[0].at.0 % (60 * 24), 0);
    }
}
