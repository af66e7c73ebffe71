//! CloudWatch's metrics of tokenless calls are exact: they equal the number of requests that guests sent, whatever became of daemon
//! and responder meanwhile, and AWS's own clients read them.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use imds_tests::{Daemon, Guest, Host, INSTANCE_ID, eventually, has_command, is_alive, skip};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

const NO_TOKEN: &str = "MetadataNoToken";
const REJECTED: &str = "MetadataNoTokenRejected";
const API: &str = "127.0.0.1:4566";

fn seconds() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.expect("it is later than 1970").as_secs()
}

/// Calls without a token, all of which are answered with this status.
fn call(guest: &Guest, n: usize, status: u16) {
    for _ in 0..n {
        assert_eq!(guest.get(INSTANCE_ID).status(), status);
    }
}

/// A call of the Unix socket, in JSON; the document it is answered with.
fn ask(host: &Host, operation: &str, body: &Value) -> Value {
    let body = body.to_string();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/x-amz-json-1.0\r\n\
         X-Amz-Target: GraniteServiceVersion20100801.{operation}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let reply = exchange(host, &format!("{head}{body}"));
    let (head, body) = reply.split_once("\r\n\r\n").expect("a whole reply");
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{reply}");
    assert!(
        head.to_lowercase()
            .contains("content-type: application/x-amz-json-1.0")
    );
    serde_json::from_str(body).expect("JSON")
}

fn exchange(host: &Host, request: &str) -> String {
    let mut stream = UnixStream::connect(host.state_dir().join("api.sock")).expect("a door");
    stream.write_all(request.as_bytes()).expect("it is taken");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("text");
    reply
}

/// What was counted for an instance in the last hour, by both calls, which must say the same.
fn counted(host: &Host, id: &str) -> (u64, u64) {
    (sum(host, id, NO_TOKEN), sum(host, id, REJECTED))
}

fn sum(host: &Host, id: &str, metric: &str) -> u64 {
    let now = seconds();
    let of = serde_json::json!({
        "Namespace": "AWS/EC2",
        "MetricName": metric,
        "Dimensions": [{"Name": "InstanceId", "Value": id}],
    });
    let mut statistics = of.clone();
    statistics["StartTime"] = (now - 3600).into();
    statistics["EndTime"] = (now + 60).into();
    statistics["Period"] = 60.into();
    statistics["Statistics"] = serde_json::json!(["Sum"]);
    let answer = ask(host, "GetMetricStatistics", &statistics);
    let by_statistics = sum_of(&answer["Datapoints"], Some("Sum"));
    let data = serde_json::json!({
        "MetricDataQueries": [{"Id": "a", "MetricStat": {"Metric": of, "Period": 300, "Stat": "Sum"}}],
        "StartTime": now - 3600,
        "EndTime": now + 60,
    });
    let answer = ask(host, "GetMetricData", &data);
    let by_data = sum_of(&answer["MetricDataResults"][0]["Values"], None);
    assert_eq!(by_statistics, by_data, "{metric} of {id}");
    by_data as u64
}

/// The sum of a list of numbers, or of what has this name in each item.
fn sum_of(list: &Value, name: Option<&str>) -> f64 {
    let items = list.as_array().expect("a list").iter();
    let numbers = items.map(|item| name.map_or(item, |name| &item[name]));
    numbers
        .map(|number| number.as_f64().expect("a number"))
        .sum()
}

#[test]
fn both_calls_equal_the_number_of_requests_that_were_sent() {
    let Some(mut host) = Host::new() else { return };
    let open = host.guest("open").routed("10.0.0.10").up();
    let strict = host
        .guest("strict")
        .routed("10.0.0.11")
        .tokens_required()
        .up();
    let idle = host.guest("idle").routed("10.0.0.12").up();
    let _daemon = host.start();
    call(&open, 7, 200);
    call(&strict, 5, 401);
    let token = strict.put_token(60);
    assert_eq!(strict.get_with_token(INSTANCE_ID, &token).status(), 200);
    assert_eq!(counted(&host, open.id()), (7, 0));
    assert_eq!(counted(&host, strict.id()), (0, 5));
    assert_eq!(counted(&host, idle.id()), (0, 0));
    // Asking is no call of a guest's, and one more is one more at once.
    call(&open, 1, 200);
    assert_eq!(counted(&host, open.id()), (8, 0));
    let listed = ask(
        &host,
        "ListMetrics",
        &serde_json::json!({"Namespace": "AWS/EC2"}),
    );
    let mut by_instance: BTreeMap<String, usize> = BTreeMap::new();
    for metric in listed["Metrics"].as_array().unwrap() {
        let id = metric["Dimensions"][0]["Value"].as_str().unwrap();
        *by_instance.entry(id.to_owned()).or_default() += 1;
    }
    let expected = [&open, &strict, &idle].map(|guest| (guest.id().to_owned(), 2));
    assert_eq!(by_instance, BTreeMap::from(expected));
}

#[test]
fn a_call_counts_for_the_one_metric_or_the_other_as_the_option_says_at_that_time() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let mut daemon = host.start();
    call(&web, 3, 200);
    for (tokens, n, status) in [("required", 4, 401), ("optional", 2, 200)] {
        let value = format!("\"{tokens}\"");
        host.instance("web").option("http-tokens", &value);
        host.write_config();
        daemon.reload();
        call(&web, n, status);
    }
    assert_eq!(counted(&host, web.id()), (5, 4));
}

/// Starts the daemon, lets something happen between calls, and counts again.
fn check_lasting(what: &str, happens: impl FnOnce(&mut Host, Daemon) -> Daemon) {
    let Some(mut host) = Host::new() else { return };
    let open = host.guest("open").routed("10.0.0.10").up();
    let strict = host
        .guest("strict")
        .routed("10.0.0.11")
        .tokens_required()
        .up();
    let daemon = host.start();
    call(&open, 6, 200);
    call(&strict, 3, 401);
    assert_eq!(counted(&host, open.id()), (6, 0), "before: {what}");
    call(&open, 1, 200);
    assert_eq!(counted(&host, open.id()), (7, 0), "before: {what}");
    let daemon = happens(&mut host, daemon);
    assert_eq!(counted(&host, open.id()), (7, 0), "{what}");
    assert_eq!(counted(&host, strict.id()), (0, 3), "{what}");
    call(&open, 10, 200);
    call(&strict, 20, 401);
    assert_eq!(counted(&host, open.id()), (17, 0), "{what}, and more");
    assert_eq!(counted(&host, strict.id()), (0, 23), "{what}, and more");
    // Once more, on whatever is kept by now.
    daemon.stop();
    let _daemon = host.start();
    assert_eq!(counted(&host, open.id()), (17, 0), "{what}, and a restart");
    assert_eq!(
        counted(&host, strict.id()),
        (0, 23),
        "{what}, and a restart"
    );
}

#[test]
fn a_restart_of_the_daemon_loses_nothing_and_counts_nothing_twice() {
    check_lasting("a restart", |host, daemon| {
        daemon.stop();
        host.start()
    });
}

#[test]
fn a_daemon_that_is_killed_loses_nothing_and_counts_nothing_twice() {
    check_lasting("a killed daemon", |host, mut daemon| {
        daemon.crash();
        host.start()
    });
}

#[test]
fn an_upgrade_loses_nothing_and_counts_nothing_twice() {
    check_lasting("an upgrade", |host, daemon| {
        daemon.stop();
        host.start_version(&host.another_version("imds-next"))
    });
}

/// The old responder answers on connections that are open while the new one answers on others.
#[test]
fn calls_during_upgrades_and_restarts_are_all_counted_once() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let db = host.guest("db").routed("10.0.0.11").up();
    let mut running = Some(host.start());
    let done = AtomicBool::new(false);
    let answered = [&web, &db].map(|guest| (guest, AtomicU64::new(0)));
    thread::scope(|scope| {
        for (guest, answered) in &answered {
            let done = &done;
            scope.spawn(move || {
                let keep = [("Connection", "keep-alive")];
                let mut open = guest.connect();
                while !done.load(Ordering::Relaxed) {
                    let answer = open.exchange("GET", INSTANCE_ID, &keep);
                    match answer {
                        Ok(answer) => assert_eq!(answer.status(), 200),
                        // A responder that drains ends connections that are idle: nothing was answered.
                        Err(_) => {
                            open = guest.connect();
                            continue;
                        }
                    }
                    assert_eq!(guest.get(INSTANCE_ID).status(), 200);
                    answered.fetch_add(2, Ordering::Relaxed);
                }
            });
        }
        for version in 0..4 {
            let before = answered[0].1.load(Ordering::Relaxed);
            eventually("calls", Duration::from_secs(10), || {
                (answered[0].1.load(Ordering::Relaxed) > before + 50).then_some(())
            });
            let mut daemon = running.take().expect("it runs");
            let old = daemon.responder_pid();
            if version % 2 == 0 {
                daemon.crash();
                let binary = host.another_version(&format!("imds-{version}"));
                running = Some(host.start_version(&binary));
                // What it still answers is told to the daemon that let it go.
                eventually("the end of the old one", Duration::from_secs(25), || {
                    (!is_alive(old)).then_some(())
                });
            } else {
                daemon.stop();
                let binary = host.dir().join(format!("imds-{}", version - 1));
                running = Some(host.start_version(&binary));
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    let _daemon = running.expect("it runs");
    for (guest, answered) in answered {
        let answered = answered.into_inner();
        assert!(answered > 200);
        assert_eq!(
            counted(&host, guest.id()),
            (answered, 0),
            "{}",
            guest.name()
        );
    }
}

#[test]
fn a_responder_that_is_killed_takes_no_count_along_that_was_asked_for() {
    check_lasting("a killed responder", |_, daemon| {
        end_responder(&daemon);
        daemon
    });
}

#[test]
fn what_somebody_was_told_stays_when_daemon_and_responder_are_killed_at_once() {
    check_lasting("both killed", |host, mut daemon| {
        let responder = daemon.responder_pid();
        daemon.crash();
        kill(responder, Signal::SIGKILL).unwrap();
        eventually("its end", Duration::from_secs(10), || {
            (!is_alive(responder)).then_some(())
        });
        host.start()
    });
}

/// Nobody asks for a while: the supervisor does, every second.
#[test]
fn a_responder_that_is_killed_has_told_what_it_counted_a_moment_before() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let daemon = host.start();
    call(&web, 9, 200);
    let responder = daemon.responder_pid();
    // Whoever looked whether it has been told would have asked.
    thread::sleep(Duration::from_millis(2500));
    kill(responder, Signal::SIGKILL).unwrap();
    eventually("another responder", Duration::from_secs(10), || {
        daemon.responder_now().filter(|now| *now != responder)
    });
    assert_eq!(counted(&host, web.id()), (9, 0));
}

#[test]
fn what_a_guest_did_before_it_was_stopped_or_removed_is_told_afterwards() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let gone = host.guest("gone").routed("10.0.0.11").up();
    let mut daemon = host.start();
    call(&web, 4, 200);
    call(&gone, 6, 200);
    // Nobody asked before.
    for command in ["instance stop web", "instance start web"] {
        let done = host.command(command);
        assert!(done.status.success(), "{}", text(&done));
    }
    call(&web, 1, 200);
    host.forget("gone");
    host.write_config();
    daemon.reload();
    assert_eq!(counted(&host, web.id()), (5, 0));
    assert_eq!(counted(&host, gone.id()), (6, 0));
    let listed = ask(
        &host,
        "ListMetrics",
        &serde_json::json!({"MetricName": NO_TOKEN}),
    );
    assert!(listed.to_string().contains(gone.id()), "{listed}");
    // Who has its slot next begins at nothing.
    let next = host.guest("next").routed("10.0.0.12").up();
    host.write_config();
    daemon.reload();
    call(&next, 2, 200);
    assert_eq!(counted(&host, next.id()), (2, 0));
    daemon.crash();
    let _daemon = host.start();
    assert_eq!(counted(&host, next.id()), (2, 0));
    assert_eq!(counted(&host, gone.id()), (6, 0));
}

#[test]
fn what_is_counted_grows_neither_history_nor_revision() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let daemon = host.start();
    let history = || {
        let shown = host.command("history --json --limit 1000");
        text(&shown).lines().count()
    };
    let before = history();
    call(&web, 3, 200);
    daemon.stop();
    let _daemon = host.start();
    assert_eq!(history(), before);
    assert_eq!(counted(&host, web.id()), (3, 0));
    // Who asked is in there.
    assert!(history() > before);
}

fn end_responder(daemon: &Daemon) {
    let responder = daemon.responder_pid();
    kill(responder, Signal::SIGKILL).expect("the responder runs");
    eventually("another responder", Duration::from_secs(10), || {
        daemon.responder_now().filter(|now| *now != responder)
    });
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

/// Runs a client of AWS's on the host, as `imds aws-env` has it for a role.
fn client(host: &Host, role: &str, argv: &[&str]) -> Output {
    let found = host.command(&format!("aws-env --json --role {role}"));
    let found: Value = serde_json::from_slice(&found.stdout).expect("JSON");
    let variables = found.as_object().expect("variables").iter();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let variables = variables.map(|(name, value)| format!("{name}={}", text(value)));
    let env = [
        "env".to_owned(),
        "AWS_EC2_METADATA_DISABLED=true".to_owned(),
    ];
    let all: Vec<String> = env
        .into_iter()
        .chain(variables)
        .chain(argv.iter().map(|arg| (*arg).to_owned()))
        .collect();
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    host.namespace().run(&all)
}

fn python() -> String {
    std::env::var("IMDS_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

/// A host whose guests have called, and the clients' endpoint.
fn host_with_calls() -> Option<(Host, [Guest; 2], Daemon)> {
    let mut host = Host::new()?;
    let open = host.guest("open").routed("10.0.0.10").up();
    let strict = host
        .guest("strict")
        .routed("10.0.0.11")
        .tokens_required()
        .up();
    host.run_option("--api").run_option(API);
    let daemon = host.start();
    call(&open, 7, 200);
    call(&strict, 5, 401);
    Some((host, [open, strict], daemon))
}

#[test]
fn boto3_reads_the_metrics_and_finds_each_error_in_its_model() {
    let Some((host, [open, strict], _daemon)) = host_with_calls() else {
        return;
    };
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/fixtures/control-api/metrics.py"
    );
    let python = python();
    // A key that may only look is enough.
    let shown = client(
        &host,
        "read-only",
        &[&python, script, open.id(), strict.id()],
    );
    if text(&shown).contains("No module named") {
        return skip(&format!("{python} has no boto3"));
    }
    assert!(shown.status.success(), "{}", text(&shown));
}

/// Asks a command line for both metrics, in both ways.
fn check_command_line(aws: &[&str]) {
    let Some((host, [open, strict], _daemon)) = host_with_calls() else {
        return;
    };
    let at = |offset: i64| (seconds() as i64 + offset).to_string();
    let (start, end) = (at(-3600), at(60));
    for (guest, metric, expected) in [(&open, NO_TOKEN, 7.0), (&strict, REJECTED, 5.0)] {
        let dimensions = format!("Name=InstanceId,Value={}", guest.id());
        let statistics = [
            "cloudwatch",
            "get-metric-statistics",
            "--namespace",
            "AWS/EC2",
            "--metric-name",
            metric,
            "--dimensions",
            &dimensions,
            "--statistics",
            "Sum",
            "--period",
            "300",
            "--start-time",
            &start,
            "--end-time",
            &end,
            "--output",
            "json",
        ];
        let shown = client(&host, "admin", &[aws, &statistics].concat());
        if text(&shown).contains("No module named") {
            return skip(&format!("{} is not there", aws.join(" ")));
        }
        let answer: Value =
            serde_json::from_slice(&shown.stdout).unwrap_or_else(|_| panic!("{}", text(&shown)));
        let sum = sum_of(&answer["Datapoints"], Some("Sum"));
        assert_eq!(sum, expected, "{answer}");
        let queries = serde_json::json!([{
            "Id": "a",
            "MetricStat": {
                "Metric": {
                    "Namespace": "AWS/EC2",
                    "MetricName": metric,
                    "Dimensions": [{"Name": "InstanceId", "Value": guest.id()}],
                },
                "Period": 60,
                "Stat": "Sum",
            },
        }])
        .to_string();
        let data = [
            "cloudwatch",
            "get-metric-data",
            "--metric-data-queries",
            &queries,
            "--start-time",
            &start,
            "--end-time",
            &end,
            "--output",
            "json",
        ];
        let shown = client(&host, "admin", &[aws, &data].concat());
        let answer: Value =
            serde_json::from_slice(&shown.stdout).unwrap_or_else(|_| panic!("{}", text(&shown)));
        let result = &answer["MetricDataResults"][0];
        let sum = sum_of(&result["Values"], None);
        assert_eq!(
            (sum, &result["StatusCode"]),
            (expected, &"Complete".into()),
            "{answer}"
        );
    }
    let list = [
        "cloudwatch",
        "list-metrics",
        "--namespace",
        "AWS/EC2",
        "--output",
        "json",
    ];
    let shown = client(&host, "admin", &[aws, &list].concat());
    let answer: Value =
        serde_json::from_slice(&shown.stdout).unwrap_or_else(|_| panic!("{}", text(&shown)));
    assert_eq!(answer["Metrics"].as_array().map(Vec::len), Some(4));
    let wrong = [
        "cloudwatch",
        "get-metric-statistics",
        "--namespace",
        "AWS/EC2",
        "--metric-name",
        NO_TOKEN,
        "--statistics",
        "Sum",
        "--period",
        "90",
        "--start-time",
        &start,
        "--end-time",
        &end,
    ];
    let refused = client(&host, "admin", &[aws, &wrong].concat());
    assert!(
        text(&refused).contains("(InvalidParameterValue)"),
        "{}",
        text(&refused)
    );
}

#[test]
fn the_aws_cli_reads_the_metrics() {
    check_command_line(&[&python(), "-m", "awscli"]);
}

/// Of an older SDK, which speaks the query protocol.
#[test]
fn the_aws_cli_of_the_distribution_reads_the_metrics() {
    if !has_command("/usr/bin/aws") {
        return skip("the distribution's awscli is not installed");
    }
    // Version 2.9 has not heard of `AWS_ENDPOINT_URL`.
    let endpoint = format!("http://{API}");
    check_command_line(&["/usr/bin/aws", "--endpoint-url", &endpoint]);
}

#[test]
fn the_query_protocol_is_answered_as_it_was_asked() {
    let Some((host, [open, _], _daemon)) = host_with_calls() else {
        return;
    };
    let ask = |form: &str| {
        let head = format!(
            "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            form.len()
        );
        exchange(&host, &format!("{head}{form}"))
    };
    let sums = format!(
        "Action=GetMetricStatistics&Version=2010-08-01&Namespace=AWS%2FEC2&MetricName={NO_TOKEN}\
         &Dimensions.member.1.Name=InstanceId&Dimensions.member.1.Value={}&StartTime={}&EndTime={}&Period=3600\
         &Statistics.member.1=Sum",
        open.id(),
        seconds() - 1800,
        seconds() + 60
    );
    let reply = ask(&sums);
    assert!(reply.starts_with("HTTP/1.1 200 OK"), "{reply}");
    assert!(
        reply.contains("<Sum>7.0</Sum><Unit>Count</Unit>"),
        "{reply}"
    );
    let refused = ask("Action=GetMetricStatistics&Version=2010-08-01");
    assert!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
    let code = "<ErrorResponse><Error><Type>Sender</Type><Code>MissingParameter</Code>";
    assert!(refused.contains(code), "{refused}");
    let unknown = ask("Action=PutMetricData&Version=2010-08-01");
    assert!(unknown.contains("<Code>InvalidAction</Code>"), "{unknown}");
}
