//! `GetMetricData`: one statistic of each of many metrics, in pages.
//!
//! A token of the next page says how many values came before and as of when, so that a minute that begins meanwhile shifts
//! nothing.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use super::points::{Point, Span, Statistic, points};
use super::read::{Source, period, source, span};
use super::{Document, Facts};
use crate::api::fault::{Code, Refusal};
use crate::api::query::Params;
use crate::instance::InstanceId;
use crate::metrics::Minute;

/// The most metrics in one call.
const QUERIES_MAX: usize = 500;
/// The most values in one answer.
const VALUES_MAX: usize = 100_800;
/// The longest name of a query.
const ID_CHARACTERS_MAX: usize = 255;

/// The call.
#[derive(Clone, Debug)]
pub struct Request {
    queries: Vec<Query>,
    span: Span,
    is_ascending: bool,
    values_max: usize,
    page: Page,
    /// Of what makes pages those of the same list.
    digest: [u8; 8],
}

#[derive(Clone, Debug)]
struct Query {
    id: String,
    label: String,
    source: Option<Source>,
    statistic: Statistic,
    period_minutes: u64,
    is_returned: bool,
}

/// Where an answer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Page {
    as_of: Minute,
    n_before: usize,
}

impl Request {
    pub(super) fn read(params: &Params<'_>, now: Minute) -> Result<Self, Refusal> {
        let list = params.list("MetricDataQueries.member")?;
        if list.is_empty() {
            return Err(Refusal::missing("MetricDataQueries"));
        }
        if list.len() > QUERIES_MAX {
            let message = format!(
                "The collection MetricDataQueries must not have a size greater than {QUERIES_MAX}."
            );
            return Err(invalid(message));
        }
        let queries = list
            .iter()
            .map(Query::read)
            .collect::<Result<Vec<_>, _>>()?;
        let mut ids = BTreeSet::new();
        if let Some(twice) = queries.iter().find(|query| !ids.insert(&query.id)) {
            let message = format!(
                "The values for parameter id in MetricDataQueries must be unique: {} is there twice.",
                twice.id
            );
            return Err(invalid(message));
        }
        if !queries.iter().any(|query| query.is_returned) {
            return Err(invalid(
                "At least one query must have ReturnData set to true.",
            ));
        }
        let orders = &[("TimestampDescending", false), ("TimestampAscending", true)];
        let is_ascending = params.word("ScanBy", orders)?.unwrap_or(false);
        let values_max = params.number("MaxDatapoints", 1..=VALUES_MAX as i32)?;
        let values_max = values_max.and_then(|max| usize::try_from(max).ok());
        // Labels have no times in them.
        let _labels_in = params.text("LabelOptions.Timezone");
        let digest = digest(params);
        let first = Page {
            as_of: now,
            n_before: 0,
        };
        let page = match params.text("NextToken") {
            Some(token) => Page::read(token, digest, now)?,
            None => first,
        };
        Ok(Self {
            queries,
            span: span(params, page.as_of)?,
            is_ascending,
            values_max: values_max.unwrap_or(VALUES_MAX),
            page,
            digest,
        })
    }

    pub(super) fn instances(&self) -> BTreeSet<InstanceId> {
        let returned = self.queries.iter().filter(|query| query.is_returned);
        let sources = returned.filter_map(|query| query.source);
        sources.map(|source| source.id).collect()
    }

    pub(super) fn span(&self) -> Span {
        self.span
    }

    pub(super) fn answer(&self, facts: &Facts) -> Document {
        let mut skip = self.page.n_before;
        let mut room = self.values_max;
        let mut has_more = false;
        let mut results = Vec::new();
        for query in self.queries.iter().filter(|query| query.is_returned) {
            let points = self.points(query, facts);
            let from = skip.min(points.len());
            let to = points.len().min(from + room);
            skip -= from;
            room -= to - from;
            has_more |= to < points.len();
            results.push(query.result(&points[from..to], to < points.len()));
        }
        let mut fields = vec![
            ("MetricDataResults", Document::List(results)),
            ("Messages", Document::List(Vec::new())),
        ];
        if has_more {
            let next = Page {
                n_before: self.page.n_before + self.values_max,
                ..self.page
            };
            fields.push(("NextToken", Document::Text(next.token(self.digest))));
        }
        Document::Fields(fields)
    }

    fn points(&self, query: &Query, facts: &Facts) -> Vec<Point> {
        let of = |source: &Source| {
            let history = facts.histories.get(&source.id)?;
            let (span, period, now) = (self.span, query.period_minutes, self.page.as_of);
            Some(points(history, source.metric, span, period, now))
        };
        let mut points = query.source.as_ref().and_then(of).unwrap_or_default();
        if !self.is_ascending {
            points.reverse();
        }
        points
    }
}

impl Query {
    fn read(place: &Params<'_>) -> Result<Self, Refusal> {
        let id = place.required("Id")?;
        let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let is_id = id.starts_with(|first: char| first.is_ascii_lowercase())
            && id.bytes().all(is_letter)
            && id.len() <= ID_CHARACTERS_MAX;
        if !is_id {
            return Err(invalid(format!(
                "The value {id} for parameter Id is not matching the expected pattern ^[a-z][a-zA-Z0-9_]*$."
            )));
        }
        if let Some(expression) = place.text("Expression") {
            return Err(invalid(format!(
                "Error in expression '{id}': expressions are not evaluated here, only MetricStat is; the expression is \
                 {expression}."
            )));
        }
        let stat = place.at("MetricStat");
        if !stat.is_given() {
            return Err(invalid(format!(
                "The query {id} must have either MetricStat or Expression."
            )));
        }
        let name = stat.required("Stat")?;
        let statistic = Statistic::named(name).ok_or_else(|| {
            invalid(format!(
                "The value {name} for parameter {} is not available here. Valid values are {}.",
                stat.at("Stat").path(),
                Statistic::ALL.map(Statistic::as_str).join(", ")
            ))
        })?;
        // One account is all there is.
        let _account = place.text("AccountId");
        let _period_of_expressions = place.text("Period");
        let (source, metric) = source(&stat.at("Metric"), &stat)?;
        Ok(Self {
            id: id.to_owned(),
            label: place.text("Label").unwrap_or(metric).to_owned(),
            source,
            statistic,
            period_minutes: period(&stat, Code::ValidationError)?,
            is_returned: place.flag("ReturnData")?.unwrap_or(true),
        })
    }

    fn result(&self, points: &[Point], is_partial: bool) -> Document {
        let times = points.iter().map(|point| Document::Time(point.at.begin()));
        let values = points.iter().map(|point| self.statistic.of(point));
        let status = if is_partial {
            "PartialData"
        } else {
            "Complete"
        };
        Document::Fields(vec![
            ("Id", Document::text(&self.id)),
            ("Label", Document::text(&self.label)),
            ("Timestamps", Document::List(times.collect())),
            (
                "Values",
                Document::List(values.map(Document::Number).collect()),
            ),
            ("StatusCode", Document::text(status)),
        ])
    }
}

impl Page {
    fn token(self, digest: [u8; 8]) -> String {
        let mut bytes = digest.to_vec();
        bytes.extend(self.as_of.0.to_be_bytes());
        bytes.extend((self.n_before as u64).to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn read(token: &str, digest: [u8; 8], now: Minute) -> Result<Self, Refusal> {
        let read = || {
            let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
            let bytes: [u8; 24] = bytes.try_into().ok()?;
            let word = |from: usize| {
                let word = bytes.get(from..from + 8)?;
                Some(u64::from_be_bytes(word.try_into().ok()?))
            };
            let page = Self {
                as_of: Minute(word(8)?),
                n_before: usize::try_from(word(16)?).ok()?,
            };
            let is_ours = bytes[..8] == digest && page.as_of <= now && page.n_before > 0;
            is_ours.then_some(page)
        };
        let message = "The next token specified is invalid: it is of another call.";
        read().ok_or_else(|| Refusal::new(Code::InvalidNextToken, message))
    }
}

/// Of everything that says which values there are, and how many in a page.
fn digest(params: &Params<'_>) -> [u8; 8] {
    let mut hash = Sha256::new();
    for (name, value) in params.fields() {
        if !matches!(&*name, "NextToken" | "Action" | "Version") {
            for text in [name, value] {
                hash.update((text.len() as u64).to_be_bytes());
                hash.update(text);
            }
        }
    }
    let digest: [u8; 32] = hash.finalize().into();
    std::array::from_fn(|at| digest[at])
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Refusal {
    Refusal::new(Code::ValidationError, message)
}
