//! `ListMetrics`: which metrics of which instances there are.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::read::{DIMENSION, NAMESPACE, dimensions};
use super::{Document, Facts};
use crate::api::fault::{Code, Refusal};
use crate::api::query::Params;
use crate::instance::InstanceId;
use crate::metrics::{Metric, Minute};

/// The most metrics in one answer.
const METRICS_MAX: usize = 500;
/// `PT3H`.
const RECENT_MINUTES: u64 = 180;

/// The call.
#[derive(Clone, Debug)]
pub struct Request {
    namespace: Option<String>,
    name: Option<String>,
    dimensions: Vec<(String, Option<String>)>,
    is_recent: bool,
    after: Option<(InstanceId, Metric)>,
}

impl Request {
    pub(super) fn read(params: &Params<'_>) -> Result<Self, Refusal> {
        let owned = |name: &str| params.text(name).map(str::to_owned);
        let recent = params.word("RecentlyActive", &[("PT3H", ())])?;
        // One account is all there is.
        let _accounts = (
            params.flag("IncludeLinkedAccounts")?,
            params.text("OwningAccount"),
        );
        let dimensions = dimensions(params)?.into_iter();
        Ok(Self {
            namespace: owned("Namespace"),
            name: owned("MetricName"),
            dimensions: dimensions
                .map(|(name, value)| (name.to_owned(), value.map(str::to_owned)))
                .collect(),
            is_recent: recent.is_some(),
            after: params.text("NextToken").map(read_token).transpose()?,
        })
    }

    pub(super) fn answer(&self, facts: &Facts, now: Minute) -> Document {
        let since = Minute(now.0.saturating_sub(RECENT_MINUTES));
        let instances = facts.instances.iter();
        let instances = instances.filter(|(_, last)| !self.is_recent || **last >= since);
        let all = instances.flat_map(|(id, _)| Metric::ALL.map(|metric| (*id, metric)));
        let mut wanted: Vec<_> = all
            .filter(|one| self.after.is_none_or(|after| *one > after))
            .filter(|(id, metric)| self.wants(*id, *metric))
            .take(METRICS_MAX + 1)
            .collect();
        let has_more = wanted.len() > METRICS_MAX;
        wanted.truncate(METRICS_MAX);
        let last = wanted.last().filter(|_| has_more).copied();
        let metrics = wanted.into_iter().map(|(id, metric)| shown(id, metric));
        let mut fields = vec![("Metrics", Document::List(metrics.collect()))];
        if let Some(last) = last {
            fields.push(("NextToken", Document::Text(token(last))));
        }
        Document::Fields(fields)
    }

    fn wants(&self, id: InstanceId, metric: Metric) -> bool {
        let is = |wanted: &Option<String>, text: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted == text)
        };
        let has =
            |(name, value): &(String, Option<String>)| name == DIMENSION && is(value, id.as_str());
        is(&self.namespace, NAMESPACE)
            && is(&self.name, metric.as_str())
            && self.dimensions.iter().all(has)
    }
}

fn shown(id: InstanceId, metric: Metric) -> Document {
    let dimension = Document::Fields(vec![
        ("Name", Document::text(DIMENSION)),
        ("Value", Document::text(id.as_str())),
    ]);
    Document::Fields(vec![
        ("Namespace", Document::text(NAMESPACE)),
        ("MetricName", Document::text(metric.as_str())),
        ("Dimensions", Document::List(vec![dimension])),
    ])
}

/// It names the last one that was shown.
fn token((id, metric): (InstanceId, Metric)) -> String {
    URL_SAFE_NO_PAD.encode(format!("{id} {}", metric.as_str()))
}

fn read_token(token: &str) -> Result<(InstanceId, Metric), Refusal> {
    let read = || {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
        let (id, metric) = text.split_once(' ')?;
        Some((id.parse().ok()?, Metric::named(metric)?))
    };
    // The model has no other error for this operation.
    let message = "The parameter NextToken is invalid.";
    read().ok_or_else(|| Refusal::new(Code::InvalidParameterValue, message))
}
