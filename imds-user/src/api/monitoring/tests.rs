//! The operations, in both protocols.

use serde_json::{Value, json};

use super::*;
use crate::api::fault::Code;
use crate::api::query::Query;
use crate::instance::UnixSeconds;
use crate::metrics::Counts;

/// 2026-11-25T10:00:00Z.
const NOW: Minute = Minute(29_926_680);
const ID: &str = "i-0123456789abcdef0";
const OTHER: &str = "i-0123456789abcdef1";

/// An instance that was there since ten minutes ago and called without a token twice nine minutes ago and three times now, and
/// was refused once five minutes ago.
fn facts() -> Facts {
    let counts = |no_token, no_token_rejected| Counts {
        no_token,
        no_token_rejected,
    };
    let minute = |ago: u64| Minute(NOW.0 - ago);
    let history = History {
        counts: BTreeMap::from([
            (minute(9), counts(2, 0)),
            (minute(5), counts(0, 1)),
            (minute(0), counts(3, 0)),
        ]),
        present: Some(minute(10)..=NOW),
    };
    let id = |text: &str| text.parse().unwrap();
    Facts {
        histories: BTreeMap::from([(id(ID), history)]),
        instances: BTreeMap::from([(id(ID), NOW), (id(OTHER), minute(600))]),
    }
}

fn seconds_ago(minutes: u64) -> u64 {
    (NOW.0 - minutes) * 60
}

fn ask(operation: &str, query: &Query) -> Result<Value, Code> {
    let request = Request::read(operation, &query.params(), NOW);
    let request = request.map_err(|refusal| refusal.code)?;
    assert_eq!(query.unknown(), [""; 0]);
    Ok(answer(&request, &facts(), NOW).json())
}

/// The same as a form: times as ISO 8601.
fn form(value: &Value, name: &str, form: &mut String) {
    let place = |part: &str| match name {
        "" => part.to_owned(),
        _ => format!("{name}.{part}"),
    };
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(part, value)| super::tests::form(value, &place(part), form)),
        Value::Array(items) => items.iter().zip(1..).for_each(|(item, number)| {
            super::tests::form(item, &place(&format!("member.{number}")), form);
        }),
        Value::Number(seconds) if name.ends_with("Time") => {
            let at = UnixSeconds(seconds.as_u64().unwrap());
            form.push_str(&format!("{name}={}&", at.iso()));
        }
        Value::String(text) => form.push_str(&format!("{name}={text}&")),
        other => form.push_str(&format!("{name}={other}&")),
    }
}

/// Asks in both protocols, which must be answered alike.
fn both(operation: &str, parameters: &Value) -> Result<Value, Code> {
    let by_json = Query::of_json(parameters.to_string().as_bytes()).unwrap();
    let mut text = String::new();
    form(parameters, "", &mut text);
    let by_form = Query::read(b"", text.as_bytes()).unwrap();
    let answer = ask(operation, &by_json);
    // Tokens are of the protocol in which they were given, as the digest in them is of what was written.
    let without_token = |answer: &Result<Value, Code>| {
        let mut answer = answer.clone();
        if let Ok(Value::Object(fields)) = &mut answer {
            fields.remove("NextToken");
        }
        answer
    };
    if !parameters["NextToken"].is_string() {
        assert_eq!(
            without_token(&answer),
            without_token(&ask(operation, &by_form)),
            "{text}"
        );
    }
    answer
}

fn merged(base: Value, changes: &Value) -> Value {
    let (Value::Object(mut base), Value::Object(changes)) = (base, changes) else {
        panic!("objects");
    };
    base.extend(changes.clone());
    Value::Object(base)
}

fn dimensions(id: &str) -> Value {
    json!([{"Name": "InstanceId", "Value": id}])
}

/// Asks for the sums of the last hour, but for what is said.
fn statistics(changes: &Value) -> Result<Value, Code> {
    let usual = json!({
        "Namespace": "AWS/EC2",
        "MetricName": "MetadataNoToken",
        "Dimensions": dimensions(ID),
        "StartTime": seconds_ago(60),
        "EndTime": seconds_ago(0) + 1,
        "Period": 300,
        "Statistics": ["Sum"],
    });
    both("GetMetricStatistics", &merged(usual, changes))
}

/// How many minutes ago each point is, and its sum.
fn check_sums(changes: Value, expected: &[(u64, f64)]) {
    let answer = statistics(&changes).unwrap();
    let points = answer["Datapoints"].as_array().unwrap().iter();
    let found: Vec<_> = points
        .map(|point| {
            assert_eq!(point["Unit"], "Count");
            let at = point["Timestamp"].as_u64().unwrap();
            (NOW.0 - at / 60, point["Sum"].as_f64().unwrap())
        })
        .collect();
    assert_eq!(found, expected, "{changes}");
}

#[test]
fn statistics_are_of_the_periods_from_the_start_on() {
    check_sums(json!({}), &[(10, 2.0), (5, 0.0), (0, 3.0)]);
    check_sums(
        json!({"MetricName": "MetadataNoTokenRejected"}),
        &[(10, 0.0), (5, 1.0), (0, 0.0)],
    );
    // A start in the middle of a minute is rounded down.
    check_sums(
        json!({"StartTime": seconds_ago(8) - 1}),
        &[(9, 2.0), (4, 3.0)],
    );
    // The end is not part of it.
    check_sums(json!({"EndTime": seconds_ago(0)}), &[(10, 2.0), (5, 0.0)]);
    check_sums(
        json!({"Period": 3600, "StartTime": seconds_ago(59)}),
        &[(59, 5.0)],
    );
    check_sums(
        json!({"StartTime": seconds_ago(1), "Period": 60}),
        &[(1, 0.0), (0, 3.0)],
    );
}

#[test]
fn all_statistics_may_be_asked_for_at_once() {
    let all = json!(["Sum", "SampleCount", "Average", "Minimum", "Maximum"]);
    let answer = statistics(&json!({"Statistics": all, "EndTime": seconds_ago(5)})).unwrap();
    let expected = json!({
        "Label": "MetadataNoToken",
        "Datapoints": [{
            "Timestamp": seconds_ago(10),
            "SampleCount": 5.0,
            "Average": 0.4,
            "Sum": 2.0,
            "Minimum": 0.0,
            "Maximum": 2.0,
            "Unit": "Count",
        }],
    });
    assert_eq!(answer, expected);
}

#[test]
fn what_there_is_nothing_of_has_no_points() {
    for changes in [
        json!({"Namespace": "AWS/S3"}),
        json!({"MetricName": "CPUUtilization"}),
        json!({"Dimensions": []}),
        json!({"Dimensions": dimensions(OTHER)}),
        json!({"Dimensions": dimensions("nobody")}),
        json!({"Dimensions": [{"Name": "ImageId", "Value": "ami-1"}]}),
        json!({"Unit": "Bytes"}),
        json!({"StartTime": 0, "EndTime": 3600}),
        json!({"StartTime": seconds_ago(0) + 3600, "EndTime": seconds_ago(0) + 7200}),
    ] {
        check_sums(changes, &[]);
    }
    check_sums(json!({"Unit": "Count"}), &[(10, 2.0), (5, 0.0), (0, 3.0)]);
}

#[test]
fn statistics_that_cannot_be_had_are_refused() {
    for (changes, code) in [
        (json!({"Namespace": null}), Code::MissingParameter),
        (json!({"MetricName": null}), Code::MissingParameter),
        (json!({"StartTime": null}), Code::MissingParameter),
        (json!({"EndTime": null}), Code::MissingParameter),
        (json!({"Period": null}), Code::MissingParameter),
        (
            json!({"Dimensions": [{"Value": ID}]}),
            Code::MissingParameter,
        ),
        (json!({"Period": 0}), Code::InvalidParameterValue),
        (json!({"Period": 90}), Code::InvalidParameterValue),
        (json!({"Period": -60}), Code::InvalidParameterValue),
        (json!({"StartTime": "soon"}), Code::InvalidParameterValue),
        (
            json!({"EndTime": seconds_ago(60)}),
            Code::InvalidParameterValue,
        ),
        (json!({"Statistics": ["Mean"]}), Code::InvalidParameterValue),
        (json!({"Unit": "Apples"}), Code::InvalidParameterValue),
        (
            json!({"Statistics": null, "ExtendedStatistics": ["p99"]}),
            Code::InvalidParameterValue,
        ),
        (json!({"Statistics": []}), Code::InvalidParameterCombination),
        (
            json!({"StartTime": seconds_ago(1440), "Period": 60}),
            Code::InvalidParameterCombination,
        ),
    ] {
        let changes: Value = changes;
        let without_null = |value: &Value| {
            let Value::Object(fields) = value else {
                panic!("an object")
            };
            let usual = json!({
                "Namespace": "AWS/EC2", "MetricName": "MetadataNoToken", "Dimensions": dimensions(ID),
                "StartTime": seconds_ago(60), "EndTime": seconds_ago(0) + 1, "Period": 300, "Statistics": ["Sum"],
            });
            let Value::Object(mut all) = merged(usual, value) else {
                panic!("an object")
            };
            for (name, value) in fields {
                if value.is_null() {
                    all.remove(name);
                }
            }
            Value::Object(all)
        };
        let found = both("GetMetricStatistics", &without_null(&changes));
        assert_eq!(found.err(), Some(code), "{changes}");
    }
    // One point less is as many as there may be.
    assert!(statistics(&json!({"StartTime": seconds_ago(1439), "Period": 60})).is_ok());
}

#[test]
fn other_operations_are_not_there() {
    assert_eq!(both("PutMetricData", &json!({})), Err(Code::InvalidAction));
}

fn query(id: &str, metric: &str, stat: &str) -> Value {
    json!({
        "Id": id,
        "MetricStat": {
            "Metric": {"Namespace": "AWS/EC2", "MetricName": metric, "Dimensions": dimensions(ID)},
            "Period": 300,
            "Stat": stat,
        },
    })
}

/// Asks for data of the last hour.
fn data(queries: &[Value], changes: &Value) -> Result<Value, Code> {
    let usual = json!({
        "MetricDataQueries": queries,
        "StartTime": seconds_ago(60),
        "EndTime": seconds_ago(0) + 1,
    });
    both("GetMetricData", &merged(usual, changes))
}

/// Results as text: id, status, and values with how many minutes ago they are.
fn shown(answer: &Value) -> Vec<String> {
    let results = answer["MetricDataResults"].as_array().unwrap().iter();
    let shown = results.map(|result| {
        let list = |name: &str| result[name].as_array().unwrap().clone();
        let (times, values) = (list("Timestamps"), list("Values"));
        assert_eq!(times.len(), values.len());
        let points = times.iter().zip(values);
        let points: Vec<_> = points
            .map(|(at, value)| format!("{}:{value}", NOW.0 - at.as_u64().unwrap() / 60))
            .collect();
        let text = |name: &str| result[name].as_str().unwrap();
        format!("{} {} {}", text("Id"), text("StatusCode"), points.join(" "))
    });
    shown.collect()
}

#[test]
fn data_is_of_many_metrics_the_latest_first() {
    let queries = [
        query("a", "MetadataNoToken", "Sum"),
        query("b", "MetadataNoTokenRejected", "Maximum"),
        query("c", "CPUUtilization", "Average"),
        merged(
            query("d", "MetadataNoToken", "Sum"),
            &json!({"ReturnData": false}),
        ),
    ];
    let answer = data(&queries, &json!({})).unwrap();
    assert_eq!(
        shown(&answer),
        [
            "a Complete 0:3.0 5:0.0 10:2.0",
            "b Complete 0:0.0 5:1.0 10:0.0",
            "c Complete "
        ]
    );
    assert_eq!(answer["MetricDataResults"][0]["Label"], "MetadataNoToken");
    assert_eq!(
        (&answer["Messages"], &answer["NextToken"]),
        (&json!([]), &Value::Null)
    );
    let ascending = data(&queries[..1], &json!({"ScanBy": "TimestampAscending"})).unwrap();
    assert_eq!(shown(&ascending), ["a Complete 10:2.0 5:0.0 0:3.0"]);
    let labelled = merged(queries[0].clone(), &json!({"Label": "v1"}));
    let labelled = data(&[labelled], &json!({"LabelOptions": {"Timezone": "+0000"}})).unwrap();
    assert_eq!(labelled["MetricDataResults"][0]["Label"], "v1");
}

#[test]
fn data_comes_in_pages() {
    let queries = [
        query("a", "MetadataNoToken", "Sum"),
        query("b", "MetadataNoTokenRejected", "Sum"),
    ];
    let mut changes = json!({"MaxDatapoints": 2});
    let mut pages = Vec::new();
    loop {
        let answer = data(&queries, &changes).unwrap();
        pages.push(shown(&answer));
        match &answer["NextToken"] {
            Value::String(token) => changes["NextToken"] = json!(token),
            _ => break,
        }
    }
    let expected = [
        ["a PartialData 0:3.0 5:0.0", "b PartialData "],
        ["a Complete 10:2.0", "b PartialData 0:0.0"],
        ["a Complete ", "b Complete 5:1.0 10:0.0"],
    ];
    assert_eq!(pages, expected);
    // A token is of its own call alone.
    for other in [
        json!({"ScanBy": "TimestampAscending"}),
        json!({"MaxDatapoints": 3}),
    ] {
        let refused = data(&queries, &merged(changes.clone(), &other));
        assert_eq!(refused, Err(Code::InvalidNextToken));
    }
    for token in ["x", "AAAA", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "!"] {
        let refused = data(&queries, &json!({"NextToken": token}));
        assert_eq!(refused, Err(Code::InvalidNextToken), "{token}");
    }
}

#[test]
fn data_that_cannot_be_had_is_refused() {
    let usual = || query("a", "MetadataNoToken", "Sum");
    let stat = |name: &str, value: Value| {
        let mut query = usual();
        query["MetricStat"][name] = value;
        query
    };
    let is_hidden = json!({"ReturnData": false});
    for (queries, changes, code) in [
        (vec![], json!({}), Code::MissingParameter),
        (vec![json!({"Id": "a"})], json!({}), Code::ValidationError),
        (
            vec![json!({"Id": "a", "Expression": "m1 + 1"})],
            json!({}),
            Code::ValidationError,
        ),
        (
            vec![merged(usual(), &json!({"Expression": "a"}))],
            json!({}),
            Code::ValidationError,
        ),
        (
            vec![merged(usual(), &json!({"Id": "A"}))],
            json!({}),
            Code::ValidationError,
        ),
        (
            vec![merged(usual(), &json!({"Id": "a-b"}))],
            json!({}),
            Code::ValidationError,
        ),
        (
            vec![merged(usual(), &json!({"Id": "a".repeat(256)}))],
            json!({}),
            Code::ValidationError,
        ),
        (vec![usual(), usual()], json!({}), Code::ValidationError),
        (
            vec![merged(usual(), &is_hidden)],
            json!({}),
            Code::ValidationError,
        ),
        (
            vec![stat("Stat", json!("p99"))],
            json!({}),
            Code::ValidationError,
        ),
        (
            vec![stat("Period", json!(61))],
            json!({}),
            Code::ValidationError,
        ),
        (
            vec![usual()],
            json!({"ScanBy": "Any"}),
            Code::InvalidParameterValue,
        ),
        (
            vec![usual()],
            json!({"MaxDatapoints": 0}),
            Code::InvalidParameterValue,
        ),
        (
            vec![usual()],
            json!({"MaxDatapoints": 100_801}),
            Code::InvalidParameterValue,
        ),
        (
            vec![usual()],
            json!({"EndTime": 1}),
            Code::InvalidParameterValue,
        ),
    ] {
        assert_eq!(
            data(&queries, &changes).err(),
            Some(code),
            "{queries:?} {changes}"
        );
    }
    let many = |n: usize| {
        let queries = (0..n).map(|number| merged(usual(), &json!({"Id": format!("q{number}")})));
        data(&queries.collect::<Vec<_>>(), &json!({})).err()
    };
    assert_eq!(many(500), None);
    assert_eq!(many(501), Some(Code::ValidationError));
}

/// What of `ListMetrics` is left: the ends of ids, and of metrics' names.
fn check_list(parameters: &Value, expected: &[&str]) {
    let answer = both("ListMetrics", parameters).unwrap();
    let metrics = answer["Metrics"].as_array().unwrap().iter();
    let found: Vec<_> = metrics
        .map(|metric| {
            assert_eq!(metric["Namespace"], "AWS/EC2");
            assert_eq!(metric["Dimensions"][0]["Name"], "InstanceId");
            let id = metric["Dimensions"][0]["Value"].as_str().unwrap();
            let name = metric["MetricName"].as_str().unwrap();
            format!("{} {}", &id[17..], &name["Metadata".len()..])
        })
        .collect();
    assert_eq!(found, expected, "{parameters}");
}

#[test]
fn metrics_are_listed_and_filtered() {
    let all = [
        "f0 NoToken",
        "f0 NoTokenRejected",
        "f1 NoToken",
        "f1 NoTokenRejected",
    ];
    check_list(&json!({}), &all);
    check_list(&json!({"Namespace": "AWS/EC2"}), &all);
    check_list(&json!({"Namespace": "AWS/S3"}), &[]);
    check_list(
        &json!({"MetricName": "MetadataNoToken"}),
        &["f0 NoToken", "f1 NoToken"],
    );
    check_list(&json!({"MetricName": "CPUUtilization"}), &[]);
    check_list(&json!({"Dimensions": [{"Name": "InstanceId"}]}), &all);
    check_list(&json!({"Dimensions": dimensions(OTHER)}), &all[2..]);
    check_list(&json!({"Dimensions": [{"Name": "ImageId"}]}), &[]);
    check_list(
        &json!({"RecentlyActive": "PT3H", "IncludeLinkedAccounts": false}),
        &all[..2],
    );
    for parameters in [
        json!({"RecentlyActive": "PT1H"}),
        json!({"NextToken": "x"}),
        json!({"IncludeLinkedAccounts": "maybe"}),
    ] {
        let refused = both("ListMetrics", &parameters);
        assert_eq!(refused, Err(Code::InvalidParameterValue), "{parameters}");
    }
}

#[test]
fn a_long_list_of_metrics_comes_in_pages() {
    let id = |number: u16| {
        let [high, low] = number.to_be_bytes();
        InstanceId::from_digest(&[0, 0, 0, 0, 0, 0, 0, high, low])
    };
    let facts = Facts {
        instances: (0..600).map(|number| (id(number * 16), NOW)).collect(),
        ..Facts::default()
    };
    let mut form = String::new();
    let (mut sizes, mut seen) = (Vec::new(), BTreeSet::new());
    loop {
        let query = Query::read(b"", form.as_bytes()).unwrap();
        let request = Request::read("ListMetrics", &query.params(), NOW).unwrap();
        assert_eq!(request.wants(NOW), Wants::Instances);
        let answer = answer(&request, &facts, NOW).json();
        let metrics = answer["Metrics"].as_array().unwrap();
        sizes.push(metrics.len());
        seen.extend(metrics.iter().map(ToString::to_string));
        match &answer["NextToken"] {
            Value::String(token) => form = format!("NextToken={token}"),
            _ => break,
        }
    }
    assert_eq!((sizes, seen.len()), (vec![500, 500, 200], 1200));
}

#[test]
fn only_what_is_asked_for_is_looked_up() {
    let query = Query::of_json(
        json!({
            "MetricDataQueries": [
                query("a", "MetadataNoToken", "Sum"),
                query("b", "MetadataNoTokenRejected", "Sum"),
                query("c", "CPUUtilization", "Sum"),
            ],
            "StartTime": 0,
            "EndTime": seconds_ago(0) + 1_000_000,
        })
        .to_string()
        .as_bytes(),
    );
    let query = query.unwrap();
    let request = Request::read("GetMetricData", &query.params(), NOW).unwrap();
    let ids = BTreeSet::from([ID.parse().unwrap()]);
    assert_eq!(
        request.wants(NOW),
        Wants::Counts(ids, NOW.first_kept()..=NOW)
    );
}
