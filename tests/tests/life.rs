//! What happens to an instance: it is told what EC2 tells, stopped and started, and changed while it runs. Its next
//! request sees it, and what was done by command outlives the daemon.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use imds_tests::{Address, Connection, Guest, Host, INSTANCE_ID, TOKEN_FIELD, eventually};
use imds_user::instance::UnixSeconds;
use serde_json::Value;

const WRONG_USE: i32 = 64;
const SOMETHING_MISSING: i32 = 69;

const META_DATA: &str = "/latest/meta-data/";
const INSTANCE_ACTION: &str = "/latest/meta-data/spot/instance-action";
const TERMINATION_TIME: &str = "/latest/meta-data/spot/termination-time";
const REBALANCE: &str = "/latest/meta-data/events/recommendations/rebalance";
const SCHEDULED: &str = "/latest/meta-data/events/maintenance/scheduled";
const HISTORY: &str = "/latest/meta-data/events/maintenance/history";
const TARGET_STATE: &str = "/latest/meta-data/autoscaling/target-lifecycle-state";
const HIBERNATION: &str = "/latest/meta-data/hibernation/configured";
const DOCUMENT: &str = "/latest/dynamic/instance-identity/document";
const USER_DATA: &str = "/latest/user-data";

/// A host with a Spot Instance `web`.
fn host_with_spot() -> Option<(Host, Guest)> {
    let mut host = Host::new()?;
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .key("life-cycle", "\"spot\"")
        .up();
    Some((host, web))
}

/// Runs `imds` with the daemon of this host.
fn imds(host: &Host, args: &str) -> Output {
    let state_dir = host.state_dir();
    let mut argv: Vec<&str> = args.split(' ').collect();
    argv.extend(["--state-dir", state_dir.to_str().expect("text")]);
    host.imds(&argv)
}

/// What a command prints for scripts.
fn told(host: &Host, args: &str) -> Value {
    let output = imds(host, &format!("{args} --json"));
    assert!(output.status.success(), "imds {args}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{args}: {error}"))
}

/// One line on standard error with these words in it, and this exit code.
fn check_refused(host: &Host, args: &str, code: i32, words: &[&str]) {
    let output = imds(host, args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "imds {args}: {said}");
    assert_eq!(said.trim_end().lines().count(), 1, "imds {args}: {said}");
    for word in words {
        assert!(said.contains(word), "imds {args}: no {word:?} in {said}");
    }
}

fn check_text(connection: &mut Connection, path: &str, expected: &str) {
    let answer = connection.get(path, &[]);
    assert_eq!((answer.status(), answer.text()), (200, expected), "{path}");
}

fn check_ends_with(connection: &mut Connection, path: &str, end: &str) {
    let answer = connection.get(path, &[]);
    assert!(answer.text().ends_with(end), "{path}: {answer:?}");
}

/// EC2's page for what is not there: 339 bytes.
fn check_absent(connection: &mut Connection, path: &str) {
    let answer = connection.get(path, &[]);
    assert_eq!(answer.status(), 404, "{path}: {answer:?}");
    assert_eq!(answer.header("Content-Type"), Some("text/html"), "{path}");
    assert_eq!(answer.header("Content-Length"), Some("339"), "{path}");
    assert_eq!(answer.body.len(), 339, "{path}");
    assert!(answer.text().contains("<h1>404 - Not Found</h1>"), "{path}");
}

fn lines(connection: &mut Connection, path: &str) -> Vec<String> {
    let answer = connection.get(path, &[]);
    answer.text().lines().map(str::to_owned).collect()
}

/// A listing as it was before, with one more entry in its place in the order of bytes.
fn with_entry(before: &[String], entry: &str) -> Vec<String> {
    let mut lines = before.to_vec();
    lines.push(entry.to_owned());
    lines.sort_unstable();
    lines
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

/// `2026-01-01T00:00:00Z`, or with milliseconds, as seconds.
fn seconds(time: &Value) -> u64 {
    let text = time.as_str().unwrap_or_else(|| panic!("no time: {time}"));
    let whole = text.split('.').next().unwrap_or(text).trim_end_matches('Z');
    let parsed = UnixSeconds::from_iso(&format!("{whole}Z"));
    parsed.unwrap_or_else(|| panic!("{text} is no time")).0
}

#[test]
fn an_interruption_is_seen_by_the_next_request_and_gone_after_it_was_taken_back() {
    let Some((mut host, web)) = host_with_spot() else {
        return;
    };
    let other = host.guest("other").routed("10.0.0.10").up();
    let _daemon = host.start();
    let mut connection = web.connect();
    check_absent(&mut connection, INSTANCE_ACTION);
    check_absent(&mut connection, TERMINATION_TIME);
    check_absent(&mut connection, "/latest/meta-data/spot/");
    let quiet = lines(&mut connection, META_DATA);

    let before = now();
    let done = told(&host, "event web spot-interruption");
    let answer = connection.get(INSTANCE_ACTION, &[]);
    let after = now();
    let time = &done["instance"]["notices"]["spot_interruption"]["time"];
    let announced = seconds(time) - 120;
    assert!(
        (before..=after).contains(&announced),
        "two minutes ahead: {before} {announced} {after}"
    );
    let in_force = seconds(&done["in_force"]);
    assert!((announced..=after).contains(&in_force), "{done}");
    let time = time.as_str().unwrap();
    assert_eq!(
        answer.text(),
        format!("{{\"action\": \"terminate\", \"time\": \"{time}\"}}")
    );
    assert_eq!(answer.header("Content-Type"), Some("text/plain"));
    check_text(&mut connection, TERMINATION_TIME, time);
    check_text(
        &mut connection,
        "/latest/meta-data/spot/",
        "instance-action\ntermination-time",
    );
    assert_eq!(
        lines(&mut connection, META_DATA),
        with_entry(&quiet, "spot/")
    );
    // Versions that are older than it know nothing of it.
    check_absent(&mut connection, "/2014-02-25/meta-data/spot/");
    check_absent(&mut other.connect(), INSTANCE_ACTION);

    let time = "2031-02-03T04:05:06Z";
    for action in ["stop", "hibernate"] {
        told(
            &host,
            &format!("event web spot-interruption {action} --at {time}"),
        );
        let expected = format!("{{\"action\": \"{action}\", \"time\": \"{time}\"}}");
        check_text(&mut connection, INSTANCE_ACTION, &expected);
        check_absent(&mut connection, TERMINATION_TIME);
    }
    told(&host, "event web spot-interruption terminate --in 1h30m");
    assert_eq!(connection.get(TERMINATION_TIME, &[]).status(), 200);

    told(&host, "event web clear");
    check_absent(&mut connection, INSTANCE_ACTION);
    check_absent(&mut connection, TERMINATION_TIME);
    assert_eq!(lines(&mut connection, META_DATA), quiet);
}

#[test]
fn hibernation_begins_with_its_notice() {
    let Some((host, web)) = host_with_spot() else {
        return;
    };
    let _daemon = host.start();
    let mut connection = web.connect();
    let before = now();
    let done = told(&host, "event web hibernate");
    let time = &done["instance"]["notices"]["spot_interruption"]["time"];
    assert!((before..=now()).contains(&seconds(time)), "{done}");
    let time = time.as_str().unwrap();
    let expected = format!("{{\"action\": \"hibernate\", \"time\": \"{time}\"}}");
    check_text(&mut connection, INSTANCE_ACTION, &expected);

    check_absent(&mut connection, HIBERNATION);
    told(&host, "event web hibernation true");
    check_text(&mut connection, HIBERNATION, "true");
    told(&host, "event web hibernation false");
    check_text(&mut connection, HIBERNATION, "false");
    told(&host, "event web clear hibernation");
    check_absent(&mut connection, HIBERNATION);
    check_text(&mut connection, INSTANCE_ACTION, &expected);
}

#[test]
fn a_rebalance_recommendation_is_seen_by_the_next_request() {
    let Some((host, web)) = host_with_spot() else {
        return;
    };
    let _daemon = host.start();
    let mut connection = web.connect();
    check_absent(&mut connection, REBALANCE);
    check_text(&mut connection, "/latest/meta-data/events/", "maintenance/");

    let before = now();
    let done = told(&host, "event web rebalance");
    let time = &done["instance"]["notices"]["rebalance"];
    assert!((before..=now()).contains(&seconds(time)), "{done}");
    let time = time.as_str().unwrap();
    let expected = format!("{{\"noticeTime\": \"{time}\"}}");
    check_text(&mut connection, REBALANCE, &expected);
    check_text(
        &mut connection,
        "/latest/meta-data/events/",
        "maintenance/\nrecommendations/",
    );
    check_text(
        &mut connection,
        "/latest/meta-data/events/recommendations",
        "rebalance",
    );
    told(&host, "event web clear rebalance");
    check_absent(&mut connection, REBALANCE);
    check_text(&mut connection, "/latest/meta-data/events/", "maintenance/");
}

#[test]
fn maintenance_is_scheduled_and_moves_into_the_history() {
    let Some((host, web)) = host_with_spot() else {
        return;
    };
    let _daemon = host.start();
    let mut connection = web.connect();
    check_text(&mut connection, SCHEDULED, "[]");
    check_text(&mut connection, HISTORY, "[]");

    let first = told(
        &host,
        "event web maintenance system-reboot --not-before 2031-01-21T09:00:43Z --not-after 2031-01-21T09:17:23Z \
         --deadline 2031-05-01T22:00:00Z",
    );
    let first = first["event_id"].as_str().expect("an id").to_owned();
    let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    let digits = first.strip_prefix("instance-event-").expect("EC2's prefix");
    assert!(
        digits.len() == 17 && digits.chars().all(is_digit),
        "{first}"
    );
    let reboot = |prefix: &str, state: &str| {
        format!(
            "{{\n  \"NotBefore\" : \"21 Jan 2031 09:00:43 GMT\",\n  \"Code\" : \"system-reboot\",\n  \
             \"Description\" : \"{prefix}scheduled reboot\",\n  \"EventId\" : \"{first}\",\n  \
             \"NotAfter\" : \"21 Jan 2031 09:17:23 GMT\",\n  \"State\" : \"{state}\",\n  \
             \"NotBeforeDeadline\" : \"1 May 2031 22:00:00 GMT\"\n}}"
        )
    };
    let expected = format!("[ {} ]", reboot("", "active"));
    check_text(&mut connection, SCHEDULED, &expected);
    check_text(&mut connection, HISTORY, "[]");

    let second = told(
        &host,
        "event web maintenance instance-stop --not-before 2031-02-01T00:00:00Z --not-after 1h",
    );
    let second = second["event_id"].as_str().expect("an id").to_owned();
    let stop = |prefix: &str, state: &str| {
        format!(
            "{{\n  \"NotBefore\" : \"1 Feb 2031 00:00:00 GMT\",\n  \"Code\" : \"instance-stop\",\n  \
             \"Description\" : \"{prefix}The instance is running on degraded hardware\",\n  \
             \"EventId\" : \"{second}\",\n  \"NotAfter\" : \"1 Feb 2031 01:00:00 GMT\",\n  \"State\" : \"{state}\"\n}}"
        )
    };
    let expected = format!("[ {},\n{} ]", reboot("", "active"), stop("", "active"));
    check_text(&mut connection, SCHEDULED, &expected);

    told(&host, &format!("event web maintenance --complete {first}"));
    let expected = format!("[ {} ]", stop("", "active"));
    check_text(&mut connection, SCHEDULED, &expected);
    let expected = format!("[ {} ]", reboot("[Completed] ", "completed"));
    check_text(&mut connection, HISTORY, &expected);

    told(&host, &format!("event web maintenance --cancel {second}"));
    check_text(&mut connection, SCHEDULED, "[]");
    let expected = format!(
        "[ {},\n{} ]",
        reboot("[Completed] ", "completed"),
        stop("[Canceled] ", "canceled")
    );
    check_text(&mut connection, HISTORY, &expected);
    check_refused(
        &host,
        &format!("event web maintenance --cancel {second}"),
        WRONG_USE,
        &["web", "no scheduled maintenance"],
    );

    told(&host, "event web clear maintenance");
    check_text(&mut connection, HISTORY, "[]");
}

#[test]
fn auto_scaling_states_lie_over_the_configuration() {
    let Some((mut host, web)) = host_with_spot() else {
        return;
    };
    let grouped = host
        .guest("grouped")
        .routed("10.0.0.10")
        .key("target-lifecycle-state", "\"InService\"")
        .up();
    let _daemon = host.start();
    let mut connection = web.connect();
    let quiet = lines(&mut connection, META_DATA);
    check_absent(&mut connection, TARGET_STATE);
    for state in ["InService", "Warmed:Stopped", "Terminated"] {
        told(&host, &format!("event web autoscaling {state}"));
        check_text(&mut connection, TARGET_STATE, state);
    }
    assert_eq!(
        lines(&mut connection, META_DATA),
        with_entry(&quiet, "autoscaling/")
    );
    told(&host, "event web clear");
    check_absent(&mut connection, TARGET_STATE);

    let mut connection = grouped.connect();
    told(&host, "event grouped autoscaling Standby");
    check_text(&mut connection, TARGET_STATE, "Standby");
    told(&host, "event grouped clear autoscaling");
    check_text(&mut connection, TARGET_STATE, "InService");
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let Some((mut host, web)) = host_with_spot() else {
        return;
    };
    let db = host.guest("db").routed("10.0.0.11").up();
    check_refused(
        &host,
        "event web rebalance",
        SOMETHING_MISSING,
        &["no daemon"],
    );
    let _daemon = host.start();
    for kind in ["spot-interruption", "rebalance", "hibernate"] {
        let words = ["db", "on-demand", "life-cycle = \"spot\"", "--force"];
        check_refused(&host, &format!("event db {kind}"), WRONG_USE, &words);
    }
    let mut connection = db.connect();
    check_absent(&mut connection, INSTANCE_ACTION);
    told(&host, "event db spot-interruption --force");
    assert_eq!(connection.get(INSTANCE_ACTION, &[]).status(), 200);
    check_text(
        &mut connection,
        "/latest/meta-data/instance-life-cycle",
        "on-demand",
    );

    let unknown = ["`wbe`", "did you mean `web`?"];
    for command in [
        "event wbe rebalance",
        "instance stop wbe",
        "instance show wbe",
    ] {
        check_refused(&host, command, WRONG_USE, &unknown);
    }
    check_refused(&host, "instance show nothing", WRONG_USE, &["db, web"]);
    check_refused(
        &host,
        "instance show i-0",
        WRONG_USE,
        &["several", "db", "web"],
    );
    for name in [web.id(), &web.id()[..12]] {
        let shown = told(&host, &format!("instance show {name}"));
        assert_eq!(shown["name"], "web");
    }
}

#[test]
fn a_delayed_event_shows_when_it_is_due_and_not_before() {
    let Some((host, web)) = host_with_spot() else {
        return;
    };
    let _daemon = host.start();
    let mut connection = web.connect();
    let asked = Instant::now();
    let done = told(&host, "event web spot-interruption --in 5s --after 2s");
    assert_eq!(done["in_force"], Value::Null);
    check_absent(&mut connection, INSTANCE_ACTION);
    assert_eq!(
        done["instance"]["planned"].as_array().map(Vec::len),
        Some(1)
    );

    let answer = eventually("the notice", Duration::from_secs(20), || {
        let answer = connection.get(INSTANCE_ACTION, &[]);
        (answer.status() == 200).then_some(answer)
    });
    let shown = asked.elapsed();
    assert!(shown >= Duration::from_secs(2), "after {shown:?}");
    let appears = seconds(&done["appears"]);
    let time = UnixSeconds(appears + 5).iso().to_string();
    assert_eq!(
        answer.text(),
        format!("{{\"action\": \"terminate\", \"time\": \"{time}\"}}")
    );
    let shown = told(&host, "instance show web");
    assert_eq!(shown["planned"], Value::Array(vec![]));

    // Taken back before it shows, it never does.
    told(&host, "event web clear");
    told(&host, "event web rebalance --after 1s");
    told(&host, "event web clear");
    sleep(Duration::from_millis(1500));
    check_absent(&mut connection, REBALANCE);
}

#[test]
fn what_was_told_and_planned_survives_the_daemon() {
    let Some((host, web)) = host_with_spot() else {
        return;
    };
    let mut daemon = host.start();
    let done = told(
        &host,
        "event web maintenance system-reboot --not-before 2031-01-21T09:00:43Z",
    );
    told(
        &host,
        "event web spot-interruption stop --at 2031-01-01T00:00:00Z",
    );
    // The last word before the end: it was answered, so it holds.
    told(&host, "event web autoscaling Terminated");
    daemon.crash();
    let daemon = host.start();
    let mut connection = web.connect();
    check_text(&mut connection, TARGET_STATE, "Terminated");
    check_text(
        &mut connection,
        INSTANCE_ACTION,
        r#"{"action": "stop", "time": "2031-01-01T00:00:00Z"}"#,
    );
    let scheduled = connection.get(SCHEDULED, &[]);
    let event_id = done["event_id"].as_str().expect("an id");
    assert!(scheduled.text().contains(event_id), "{scheduled:?}");

    // Planned by one daemon, shown by the next; and due while there is none.
    told(&host, "event web rebalance --after 4s");
    let hibernation = told(&host, "event web hibernation true --after 1s");
    daemon.stop();
    let due = seconds(&hibernation["appears"]) + 1;
    eventually("the time it is due", Duration::from_secs(10), || {
        (now() > due).then_some(())
    });
    let daemon = host.start();
    let mut connection = web.connect();
    check_text(&mut connection, HIBERNATION, "true");
    eventually("the notice", Duration::from_secs(20), || {
        (connection.get(REBALANCE, &[]).status() == 200).then_some(())
    });
    told(&host, "event web clear");
    daemon.stop();

    let _daemon = host.start();
    let mut connection = web.connect();
    for path in [INSTANCE_ACTION, REBALANCE, TARGET_STATE, HIBERNATION] {
        check_absent(&mut connection, path);
    }
    check_text(&mut connection, SCHEDULED, "[]");
    let file = host.state_dir().join("store.db");
    let mode = fs::metadata(&file)
        .expect("it is kept")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
}

#[test]
fn a_damaged_memory_is_refused() {
    let Some((host, _web)) = host_with_spot() else {
        return;
    };
    host.start().stop();
    fs::write(host.state_dir().join("life.json"), "{").expect("a file");
    let output = host.run_to_the_end();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert!(said.contains("life.json"), "{said}");
}

/// Daemons of before had files for what commands did and for whom a person admitted.
#[test]
fn what_earlier_versions_wrote_is_taken_over_once() {
    let Some((host, web)) = host_with_spot() else {
        return;
    };
    host.start().stop();
    let file = host.state_dir().join("life.json");
    let stopped = format!(
        r#"{{"instances":{{"{}":{{"stopped":1700000000}}}}}}"#,
        web.id()
    );
    fs::write(&file, &stopped).expect("a file");
    let admitted = host.state_dir().join("admitted.json");
    let port =
        r#"{"admissions":[{"port":"vnet-later","name":"later","keys":[["type","m5.large"]]}]}"#;
    fs::write(&admitted, port).expect("a file");
    let daemon = host.start();
    let states = |host: &Host| {
        let instances = told(host, "instance list");
        let instances = instances.as_array().expect("a list");
        let mut states: Vec<String> = instances
            .iter()
            .map(|one| {
                format!("{} {} {}", one["name"], one["state"], one["instance_type"])
                    .replace('"', "")
            })
            .collect();
        states.sort();
        states
    };
    let expected = ["later running m5.large", "web stopped t3.micro"];
    assert_eq!(states(&host), expected);
    assert!(!file.exists() && !admitted.exists());
    told(&host, "instance start web");
    told(&host, "forget later");
    daemon.stop();
    let _daemon = host.start();
    assert_eq!(states(&host), ["web running t3.micro"]);
    check_text(&mut web.connect(), INSTANCE_ID, web.id());
    let history = imds(&host, "history");
    let history = String::from_utf8_lossy(&history.stdout).into_owned();
    for part in ["take over", "imds instance start web", "imds forget later"] {
        assert!(history.contains(part), "{part}: {history}");
    }
}

/// Nothing comes and nothing connects, as from a machine that is off.
fn check_silence(web: &Guest, open: &mut Connection) {
    open.send(format!("GET {INSTANCE_ID} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
        .expect("the guest's kernel takes it");
    let (came, _) = open.receive_raw(Duration::from_millis(1500));
    assert_eq!(came, b"", "{:?}", String::from_utf8_lossy(&came));
    let connected = web
        .namespace()
        .enter(|| Connection::open_within(Address::V4, Duration::from_millis(1500)));
    let error = connected.err().expect("a stopped instance is not reached");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
}

fn pending_time(connection: &mut Connection, fields: &[(&str, &str)]) -> u64 {
    let document = connection.get(DOCUMENT, fields);
    assert_eq!(document.status(), 200, "{document:?}");
    let document: Value = serde_json::from_str(document.text()).expect("JSON");
    seconds(&document["pendingTime"])
}

#[test]
fn a_stopped_instance_is_silent_and_a_started_one_is_launched_anew() {
    let Some(mut host) = Host::new() else { return };
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .tokens_required()
        .user_data(b"first")
        .up();
    let other = host.guest("other").routed("10.0.0.10").up();
    let mut daemon = host.start();
    let mut open = web.connect();
    let token = open.put_token(21_600);
    let with_token = [(TOKEN_FIELD, token.as_str())];
    let launched = pending_time(&mut open, &with_token);

    let stopped = told(&host, "instance stop web");
    assert_eq!(stopped["instance"]["state"], "stopped");
    assert_eq!(stopped["is_changed"], true);
    check_silence(&web, &mut open);
    assert!(host.counter("no-instance") > 0, "its packets are dropped");
    let status = host.status();
    let port = |name: &str| {
        let ports = status["ports"].as_array().expect("ports");
        ports.iter().find(|port| port["name"] == name).cloned()
    };
    let (of_web, of_other) = (port("web").expect("web"), port("other").expect("other"));
    assert_eq!(of_web["state"], "stopped");
    assert_eq!(of_web["slot"], Value::Null);
    assert_eq!(of_other["state"], "running");
    assert_eq!(other.get(INSTANCE_ID).text(), other.id());
    assert_eq!(told(&host, "instance stop web")["is_changed"], false);
    check_refused(&host, "instance reboot web", WRONG_USE, &["web", "stopped"]);

    // It stays off, whatever else happens.
    host.instance("web").user_data(b"second");
    host.write_config();
    daemon.reload();
    check_silence(&web, &mut open);
    daemon.crash();
    let _daemon = host.start();
    check_silence(&web, &mut open);
    assert_eq!(told(&host, "instance show web")["state"], "stopped");

    let started = told(&host, "instance start web");
    assert_eq!(started["instance"]["state"], "running");
    // Its connection of before knows nothing of the new machine.
    let answer = open.exchange("GET", INSTANCE_ID, &with_token);
    assert!(answer.is_err(), "{answer:?}");
    let mut connection = web.connect();
    assert_eq!(connection.get(INSTANCE_ID, &with_token).status(), 401);
    let token = connection.put_token(60);
    let with_token = [(TOKEN_FIELD, token.as_str())];
    let relaunched = pending_time(&mut connection, &with_token);
    assert!(relaunched > launched, "{launched} {relaunched}");
    assert_eq!(connection.get(USER_DATA, &with_token).text(), "second");
    assert_eq!(
        seconds(&started["instance"]["launched"]),
        relaunched,
        "{started}"
    );
    assert_eq!(told(&host, "instance start web")["is_changed"], false);
}

/// Within one second too: its tokens are those of another launch.
#[test]
fn no_token_survives_a_quick_stop_and_start() {
    let Some((host, web)) = host_with_spot() else {
        return;
    };
    let _daemon = host.start();
    let mut tokens = Vec::new();
    let mut launches = Vec::new();
    for _ in 0..4 {
        let mut connection = web.connect();
        let token = connection.put_token(21_600);
        launches.push(pending_time(&mut connection, &[(TOKEN_FIELD, &token)]));
        tokens.push(token);
        told(&host, "instance stop web");
        told(&host, "instance start web");
    }
    assert!(launches.is_sorted_by(|a, b| a < b), "{launches:?}");
    let mut connection = web.connect();
    for token in &tokens {
        let answer = connection.get(INSTANCE_ID, &[(TOKEN_FIELD, token)]);
        assert_eq!(answer.status(), 401);
    }
}

#[test]
fn a_reboot_keeps_launch_time_tokens_and_user_data() {
    let Some((mut host, web)) = host_with_spot() else {
        return;
    };
    host.instance("web").user_data(b"first");
    let mut daemon = host.start();
    let mut connection = web.connect();
    let token = connection.put_token(600);
    let with_token = [(TOKEN_FIELD, token.as_str())];
    let launched = pending_time(&mut connection, &with_token);
    told(
        &host,
        "event web spot-interruption --at 2031-01-01T00:00:00Z",
    );
    told(&host, "event web maintenance system-reboot");
    told(&host, "event web maintenance instance-reboot");
    host.instance("web").user_data(b"second");
    host.write_config();
    daemon.reload();

    let rebooted = told(&host, "instance reboot web");
    assert_eq!(pending_time(&mut connection, &with_token), launched);
    assert_eq!(connection.get(USER_DATA, &with_token).text(), "first");
    assert_eq!(connection.get(INSTANCE_ACTION, &with_token).status(), 200);
    let events = rebooted["instance"]["notices"]["maintenance"]
        .as_array()
        .expect("maintenance");
    let states: Vec<_> = events
        .iter()
        .map(|event| (event["code"].as_str(), event["state"].as_str()))
        .collect();
    assert_eq!(
        states,
        [
            (Some("system-reboot"), Some("active")),
            (Some("instance-reboot"), Some("canceled")),
        ]
    );
}

#[test]
fn changed_user_data_waits_for_the_next_start() {
    let Some((mut host, web)) = host_with_spot() else {
        return;
    };
    host.instance("web").user_data(b"first");
    let mut daemon = host.start();
    let mut connection = web.connect();
    check_text(&mut connection, USER_DATA, "first");

    host.instance("web").user_data(b"second!");
    host.write_config();
    daemon.reload();
    check_text(&mut connection, USER_DATA, "first");
    let log = daemon.log();
    assert!(
        log.contains("WARN") && log.contains("web: its user data changed"),
        "{log}"
    );
    let user_data = told(&host, "instance show web")["user_data"].clone();
    assert_eq!(
        user_data,
        serde_json::json!({"bytes": 5, "is_pending": true, "configured_bytes": 7})
    );
    let list = imds(&host, "instance list");
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(list.contains("user data pending"), "{list}");

    daemon.stop();
    let mut daemon = host.start();
    let mut connection = web.connect();
    check_text(&mut connection, USER_DATA, "first");

    // Back to what it runs with, and away again.
    host.instance("web").user_data(b"first");
    host.write_config();
    daemon.reload();
    let shown = told(&host, "instance show web");
    assert_eq!(shown["user_data"]["is_pending"], false);
    host.instance("web").user_data(b"third");
    host.write_config();
    daemon.reload();
    check_text(&mut connection, USER_DATA, "first");

    told(&host, "instance stop web");
    told(&host, "instance start web");
    let mut connection = web.connect();
    check_text(&mut connection, USER_DATA, "third");
    let shown = told(&host, "instance show web");
    assert_eq!(shown["user_data"]["is_pending"], false);
}

#[test]
fn everything_else_changes_live() {
    let Some((mut host, web)) = host_with_spot() else {
        return;
    };
    let mut daemon = host.start();
    let mut connection = web.connect();
    let path = |leaf: &str| format!("/latest/meta-data/{leaf}");
    check_text(&mut connection, &path("security-groups"), "default");
    check_absent(&mut connection, &path("public-ipv4"));
    check_absent(&mut connection, &path("tags/instance/Stage"));
    check_absent(&mut connection, &path("iam/security-credentials/"));

    host.instance("web")
        .option("instance-metadata-tags", "\"enabled\"")
        .key("tags.Stage", "\"test\"")
        .key("security-groups", "[\"default\", \"web\"]")
        .key("public-ipv4", "\"203.0.113.25\"")
        .tables(
            "[instance.role]\nname = \"web-role\"\n\
             [[instance.network-interface]]\nmac = \"06:17:04:d7:26:0a\"\nprivate-ipv4 = \"10.0.0.20\"",
        );
    host.write_config();
    daemon.reload();
    let mac = connection.get(&path("mac"), &[]).text().to_owned();
    check_text(&mut connection, &path("tags/instance/Stage"), "test");
    check_text(&mut connection, &path("security-groups"), "default\nweb");
    check_text(&mut connection, &path("public-ipv4"), "203.0.113.25");
    check_text(
        &mut connection,
        &path("iam/security-credentials/"),
        "web-role",
    );
    let mut macs = [format!("{mac}/"), "06:17:04:d7:26:0a/".to_owned()];
    macs.sort_unstable();
    check_text(
        &mut connection,
        &path("network/interfaces/macs/"),
        &macs.join("\n"),
    );
    check_text(
        &mut connection,
        &path("network/interfaces/macs/06:17:04:d7:26:0a/local-ipv4s"),
        "10.0.0.20",
    );

    host.instance("web")
        .key("tags.Stage", "\"production\"")
        .key("security-groups", "[\"web\"]")
        .key("public-ipv4", "\"203.0.113.26\"")
        .option("http-tokens", "\"required\"");
    host.write_config();
    daemon.reload();
    assert_eq!(connection.get(INSTANCE_ID, &[]).status(), 401);
    let token = connection.put_token(60);
    for (leaf, expected) in [
        ("tags/instance/Stage", "production"),
        ("security-groups", "web"),
        ("public-ipv4", "203.0.113.26"),
    ] {
        let answer = connection.get(&path(leaf), &[(TOKEN_FIELD, &token)]);
        assert_eq!(answer.text(), expected, "{leaf}");
    }
}

#[test]
fn last_modified_follows_every_change_and_nothing_else() {
    let Some((mut host, web)) = host_with_spot() else {
        return;
    };
    let other = host.guest("other").routed("10.0.0.10").up();
    let mut daemon = host.start();
    let (mut connection, mut neighbour) = (web.connect(), other.connect());
    let last_modified = |connection: &mut Connection| {
        let answer = connection.get(INSTANCE_ID, &[]);
        let value = answer.header("Last-Modified").map(str::to_owned);
        value.expect("every 200 has it")
    };
    let of_neighbour = last_modified(&mut neighbour);
    let mut before = last_modified(&mut connection);
    let mut check = |what: &str, connection: &mut Connection, is_change, act: &mut dyn FnMut()| {
        // Its resolution is a second.
        let start = eventually("the next second", Duration::from_secs(5), || {
            let now = now();
            (UnixSeconds(now).imf_fixdate().to_string() != before).then_some(now)
        });
        act();
        let after = last_modified(connection);
        let moments: Vec<String> = (start..=now())
            .map(|second| UnixSeconds(second).imf_fixdate().to_string())
            .collect();
        if is_change {
            assert!(
                moments.contains(&after),
                "{what}: {after} not in {moments:?}"
            );
        } else {
            assert_eq!(after, before, "{what}");
        }
        before = after;
    };
    let command = |args: &'static str| move |host: &Host| drop(told(host, args));
    for (args, is_change) in [
        ("event web rebalance", true),
        ("event web autoscaling Standby", true),
        ("event web autoscaling Standby", false),
        ("event web clear rebalance", true),
        ("instance show web", false),
        ("instance reboot web", false),
    ] {
        let run = command(args);
        check(args, &mut connection, is_change, &mut || run(&host));
    }
    for (what, stage, is_change) in [
        ("a reload that changes a tag", "\"one\"", true),
        ("a reload that changes nothing", "\"one\"", false),
    ] {
        host.instance("web").key("tags.Stage", stage);
        host.write_config();
        check(what, &mut connection, is_change, &mut || daemon.reload());
    }
    assert_eq!(last_modified(&mut neighbour), of_neighbour);

    // What the host says, every instance says.
    host.host_keys("domain-name = \"lab.example\"");
    host.write_config();
    let what = "a reload that changes what all share";
    check(what, &mut connection, true, &mut || daemon.reload());
    assert_ne!(last_modified(&mut neighbour), of_neighbour);
    check_ends_with(&mut neighbour, "/latest/meta-data/hostname", ".lab.example");
}

/// A virtual machine's interface goes with the machine, and another comes when it is switched on again.
#[test]
fn a_stopped_instance_needs_no_interface() {
    let Some((mut host, web)) = host_with_spot() else {
        return;
    };
    let mut daemon = host.start();
    let id = web.id().to_owned();
    told(&host, "instance stop web");
    host.namespace().ip("link delete veth-web");
    drop(web);
    daemon.reload();
    let late = host.guest("late").routed("10.0.0.11").up();
    host.write_config();
    daemon.reload();
    assert_eq!(late.get(INSTANCE_ID).text(), late.id());
    assert_eq!(told(&host, "instance show web")["state"], "stopped");
    daemon.stop();
    let _daemon = host.start();
    assert_eq!(told(&host, "instance show web")["state"], "stopped");

    let started = told(&host, "instance start web");
    let done = started["done"].as_str().expect("a text");
    assert!(done.contains("waits for its interface"), "{done}");
    assert_eq!(started["instance"]["state"], "running");
    let web = host.guest("web").routed("10.0.0.10").unregistered().up();
    let waited = host.command("wait --port veth-web");
    assert!(waited.status.success(), "{waited:?}");
    assert_eq!(web.get(INSTANCE_ID).text(), id);
}

#[test]
fn a_start_ends_what_was_announced_for_the_old_host() {
    let Some((host, web)) = host_with_spot() else {
        return;
    };
    let _daemon = host.start();
    told(&host, "event web spot-interruption stop");
    told(&host, "event web rebalance");
    told(&host, "event web maintenance instance-stop");
    told(&host, "instance stop web");
    check_refused(&host, "event web rebalance", WRONG_USE, &["web", "stopped"]);
    told(&host, "instance start web");
    let mut connection = web.connect();
    check_absent(&mut connection, INSTANCE_ACTION);
    check_absent(&mut connection, REBALANCE);
    check_text(&mut connection, SCHEDULED, "[]");
    let history = connection.get(HISTORY, &[]);
    assert!(history.text().contains("[Canceled] "), "{history:?}");
}
