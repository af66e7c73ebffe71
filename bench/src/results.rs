//! What was measured, held against its aim, as a table for people and as JSON for programs. Pure.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use crate::{
    options::Figure,
    statistics::{median, quantile},
};

/// All of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    pub(crate) rows: Vec<Row>,
}

/// What the figures depend on.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    /// Of the checkout; with a `+` when it was changed since.
    pub(crate) commit: String,
    pub(crate) kernel: String,
    pub(crate) cpus: usize,
    /// `release` or `debug`.
    pub(crate) build: &'static str,
    /// What a guest's limits were.
    pub(crate) limits: &'static str,
}

/// One figure of one case.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) figure: Figure,
    /// The case.
    pub(crate) what: String,
    /// The median of the rounds.
    pub(crate) value: f64,
    pub(crate) unit: Unit,
    /// The quarters of the rounds lie below the one and above the other.
    pub(crate) quartiles: [f64; 2],
    pub(crate) aim: Option<Aim>,
    /// None in a run that judges nothing.
    pub(crate) verdict: Option<Verdict>,
    /// What the value was made from, by contestant.
    pub(crate) details: Vec<Detail>,
}

/// Figures of one contestant.
#[derive(Debug, Serialize)]
pub(crate) struct Detail {
    pub(crate) name: &'static str,
    /// Each with its unit in its name.
    pub(crate) values: BTreeMap<&'static str, f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unit {
    Ratio,
    Nanoseconds,
    Milliseconds,
    Seconds,
    Bytes,
    Megabytes,
}

/// What is wanted of a value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Aim {
    AtLeast {
        aim: f64,
        /// Below it the bench fails.
        floor: Option<f64>,
    },
    Below {
        aim: f64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    Met,
    Missed,
    /// So far off that the run fails.
    Failed,
}

impl Row {
    /// A row whose value is the median of its rounds.
    pub(crate) fn of_rounds(figure: Figure, what: String, rounds: &[f64], unit: Unit) -> Self {
        Self {
            figure,
            what,
            value: median(rounds),
            unit,
            quartiles: [quantile(rounds, 0.25), quantile(rounds, 0.75)],
            aim: None,
            verdict: None,
            details: Vec::new(),
        }
    }

    pub(crate) fn aimed(self, aim: Aim) -> Self {
        Self {
            aim: Some(aim),
            verdict: Some(aim.judge(self.value)),
            ..self
        }
    }

    pub(crate) fn with(mut self, name: &'static str, values: &[(&'static str, f64)]) -> Self {
        let values = values.iter().copied().collect();
        self.details.push(Detail { name, values });
        self
    }

    /// What is impossible, whatever the machine: a value that is no number, a time or rate that is not positive.
    pub(crate) fn nonsense(&self) -> Option<String> {
        let details = self.details.iter().flat_map(|detail| {
            let named =
                |(name, value): (&&'static str, &f64)| (format!("{} {name}", detail.name), *value);
            detail.values.iter().map(named)
        });
        let wrong = details
            .into_iter()
            .find(|(_, value)| !value.is_finite() || *value <= 0.0);
        if let Some((name, value)) = wrong {
            return Some(format!("{}: {name} is {value}", self.what));
        }
        let is_ratio = self.unit == Unit::Ratio;
        if !self.value.is_finite() || is_ratio && self.value <= 0.0 {
            return Some(format!("{} is {}", self.what, self.value));
        }
        None
    }
}

impl Aim {
    fn judge(self, value: f64) -> Verdict {
        match self {
            Self::AtLeast { aim, .. } if value >= aim => Verdict::Met,
            Self::AtLeast {
                floor: Some(floor), ..
            } if value < floor => Verdict::Failed,
            Self::Below { aim } if value < aim => Verdict::Met,
            _ => Verdict::Missed,
        }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast { aim, .. } => write!(f, "at least {aim}"),
            Self::Below { aim } => write!(f, "under {}", grouped(*aim)),
        }
    }
}

impl Verdict {
    const fn word(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::Failed => "FAILED",
        }
    }
}

impl Unit {
    /// The value with as many digits as it is worth.
    fn show(self, value: f64) -> String {
        match self {
            Self::Ratio => format!("{value:.3}"),
            Self::Nanoseconds => format!("{value:.1} ns"),
            Self::Milliseconds => format!("{value:.2} ms"),
            Self::Seconds => format!("{value:.2} s"),
            Self::Bytes => format!("{} B", grouped(value.round())),
            Self::Megabytes => format!("{value:.1} MB"),
        }
    }
}

impl Figure {
    /// What is measured, as the heading of its rows.
    const fn heading(self) -> &'static str {
        match self {
            Self::A => {
                "(a) requests through the whole path / the same responder on a bare veth pair"
            }
            Self::B => {
                "(b) requests through the whole path / a plain hyper server on that pair, as many bytes"
            }
            Self::C => "(c) a foreign packet's cost over an empty program",
            Self::D => "(d) many instances: memory of both processes, start until all are served",
            Self::E => "(e) the control API with many instances, and their store",
        }
    }
}

impl Serialize for Figure {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::A => "a",
            Self::B => "b",
            Self::C => "c",
            Self::D => "d",
            Self::E => "e",
        })
    }
}

impl Results {
    /// Whether a row is so far off that the run fails.
    pub(crate) fn has_failed(&self) -> bool {
        let mut rows = self.rows.iter();
        rows.any(|row| row.verdict == Some(Verdict::Failed))
    }

    /// Takes the verdicts away: the run judges nothing.
    pub(crate) fn without_verdicts(mut self) -> Self {
        for row in &mut self.rows {
            row.verdict = None;
        }
        self
    }

    /// The table, for a terminal.
    pub(crate) fn table(&self) -> String {
        let Machine {
            commit,
            kernel,
            cpus,
            build,
            limits,
        } = &self.machine;
        let mut text = format!(
            "commit {commit}, {build} build, kernel {kernel}, {cpus} CPUs, limits {limits}\n"
        );
        let width = self.rows.iter().map(|row| row.what.chars().count()).max();
        let mut figure = None;
        for row in &self.rows {
            if figure != Some(row.figure) {
                figure = Some(row.figure);
                text.push_str(&format!("\n{}\n", row.figure.heading()));
            }
            text.push_str(&line(row, width.unwrap_or_default()));
            for detail in &row.details {
                text.push_str(&detail_line(detail));
            }
        }
        text
    }
}

fn line(row: &Row, width: usize) -> String {
    let Row {
        what,
        value,
        unit,
        quartiles: [low, high],
        ..
    } = row;
    let value = unit.show(*value);
    let spread = format!("({} … {})", unit.show(*low), unit.show(*high));
    let aim = row.aim.map(|aim| aim.to_string()).unwrap_or_default();
    let verdict = row.verdict.map(Verdict::word).unwrap_or_default();
    let line = format!("  {what:<width$}  {value:>10}  {spread:<24}  {aim:<14}  {verdict}");
    format!("{}\n", line.trim_end())
}

fn detail_line(Detail { name, values }: &Detail) -> String {
    let values: Vec<String> = values
        .iter()
        .map(|(name, value)| {
            let digits = if *value < 100.0 { 1 } else { 0 };
            let scale = 10_f64.powi(digits);
            format!(
                "{} {}",
                name.replace('_', " "),
                grouped((value * scale).round() / scale)
            )
        })
        .collect();
    format!("      {name:<20} {}\n", values.join(", "))
}

/// `12345.6` as `12,345.6`.
fn grouped(value: f64) -> String {
    let plain = value.abs().to_string();
    let (whole, fraction) = match plain.split_once('.') {
        Some((whole, fraction)) => (whole, format!(".{fraction}")),
        None => (plain.as_str(), String::new()),
    };
    let mut groups = Vec::new();
    let mut rest = whole;
    while rest.len() > 3 {
        let (before, group) = rest.split_at(rest.len() - 3);
        groups.push(group);
        rest = before;
    }
    groups.push(rest);
    groups.reverse();
    let sign = if value < 0.0 { "-" } else { "" };
    format!("{sign}{}{fraction}", groups.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratio(rounds: &[f64]) -> Row {
        Row::of_rounds(
            Figure::A,
            "instance-id, 1 connection".into(),
            rounds,
            Unit::Ratio,
        )
    }

    fn results(rows: Vec<Row>) -> Results {
        let machine = Machine {
            commit: "abc1234".into(),
            kernel: "6.18.0".into(),
            cpus: 2,
            build: "release",
            limits: "off",
        };
        Results { machine, rows }
    }

    #[test]
    fn values_are_held_against_their_aims() {
        let check =
            |aim: Aim, value, expected| assert_eq!(aim.judge(value), expected, "{aim:?} {value}");
        let (path, plain) = (
            Aim::AtLeast {
                aim: 0.95,
                floor: Some(0.9),
            },
            Aim::AtLeast {
                aim: 0.85,
                floor: None,
            },
        );
        check(path, 0.95, Verdict::Met);
        check(path, 0.949, Verdict::Missed);
        check(path, 0.9, Verdict::Missed);
        check(path, 0.899, Verdict::Failed);
        check(plain, 0.85, Verdict::Met);
        check(plain, 0.1, Verdict::Missed);
        check(Aim::Below { aim: 15.0 }, 14.9, Verdict::Met);
        check(Aim::Below { aim: 15.0 }, 15.0, Verdict::Missed);
        check(Aim::Below { aim: 15.0 }, f64::NAN, Verdict::Missed);
    }

    #[test]
    fn one_failed_row_fails_the_run() {
        let aim = Aim::AtLeast {
            aim: 0.95,
            floor: Some(0.9),
        };
        let good = || ratio(&[0.97]).aimed(aim);
        let bad = || ratio(&[0.5]).aimed(aim);
        assert!(!results(vec![good(), good()]).has_failed());
        assert!(results(vec![good(), bad()]).has_failed());
        assert!(!results(vec![good(), bad()]).without_verdicts().has_failed());
    }

    #[test]
    fn the_table_says_value_spread_aim_and_verdict() {
        let aim = Aim::AtLeast {
            aim: 0.95,
            floor: Some(0.9),
        };
        let row = ratio(&[0.96, 0.97, 0.98]).aimed(aim).with(
            "whole path",
            &[("requests_per_second", 15_900.4), ("p50_us", 61.04)],
        );
        let table = results(vec![row]).table();
        let expected = "\
commit abc1234, release build, kernel 6.18.0, 2 CPUs, limits off

(a) requests through the whole path / the same responder on a bare veth pair
  instance-id, 1 connection       0.970  (0.965 … 0.975)           at least 0.95   met
      whole path           p50 us 61, requests per second 15,900
";
        assert_eq!(table, expected);
    }

    #[test]
    fn json_names_what_the_table_shows() {
        let row = ratio(&[0.5])
            .aimed(Aim::AtLeast {
                aim: 0.95,
                floor: Some(0.9),
            })
            .with("bare pair", &[("requests_per_second", 2.0)]);
        let json = serde_json::to_value(results(vec![row])).expect("plain data");
        assert_eq!(json["machine"]["commit"], "abc1234");
        let row = &json["rows"][0];
        assert_eq!(row["figure"], "a");
        assert_eq!(row["unit"], "ratio");
        assert_eq!(row["value"], 0.5);
        assert_eq!(row["verdict"], "failed");
        assert_eq!(row["aim"]["at-least"]["floor"], 0.9);
        assert_eq!(row["details"][0]["values"]["requests_per_second"], 2.0);
    }

    #[test]
    fn what_cannot_be_is_noticed() {
        let check = |row: Row, is_nonsense: bool| {
            assert_eq!(row.nonsense().is_some(), is_nonsense, "{row:?}");
        };
        check(
            ratio(&[0.97]).with("whole path", &[("requests_per_second", 1.0)]),
            false,
        );
        check(
            ratio(&[0.97]).with("whole path", &[("requests_per_second", 0.0)]),
            true,
        );
        check(ratio(&[f64::NAN]), true);
        check(ratio(&[0.0]), true);
        // A program may seem cheaper than an empty one where both cost next to nothing.
        let cost = |ns| Row::of_rounds(Figure::C, "IPv4".into(), &[ns], Unit::Nanoseconds);
        check(cost(-0.3), false);
        check(cost(f64::INFINITY), true);
    }

    #[test]
    fn numbers_are_grouped() {
        let check = |value, expected: &str| assert_eq!(grouped(value), expected);
        check(0.0, "0");
        check(999.0, "999");
        check(1000.0, "1,000");
        check(1_234_567.5, "1,234,567.5");
        check(-4096.0, "-4,096");
    }
}
