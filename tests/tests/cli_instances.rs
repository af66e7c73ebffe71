//! What an operator does with instances at the command line: brings and forgets those whose guests somebody else runs, changes
//! their metadata options and what new ones get, and looks at who did it. Guests see it at their next request.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Output;
use std::time::{Duration, Instant};

use imds_tests::{Address, Guest, Host, INSTANCE_ID, eventually, patience};
use serde_json::Value;

const WRONG_USE: i32 = 64;
const SOMETHING_MISSING: i32 = 69;

/// A host without a configuration, with a guest that nobody has told it of.
fn bare_host() -> Option<(Host, Guest)> {
    let mut host = Host::new()?;
    let web = host.guest("web").routed("10.0.0.10").unregistered().up();
    host.without_config();
    Some((host, web))
}

/// A host whose file has two guests that need no tokens.
fn host_with_two() -> Option<(Host, Guest, Guest)> {
    let mut host = Host::new()?;
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .option("http-tokens", "\"optional\"")
        .up();
    let db = host
        .guest("db")
        .routed("10.0.0.10")
        .option("http-tokens", "\"optional\"")
        .up();
    Some((host, web, db))
}

/// What a command that is done says.
#[track_caller]
fn done(host: &Host, line: &str) -> String {
    let output = host.command(line);
    assert!(output.status.success(), "{line}: {output:?}");
    assert!(output.stderr.is_empty(), "{line}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[track_caller]
fn json(host: &Host, line: &str) -> Value {
    serde_json::from_str(&done(host, line)).expect("JSON")
}

/// One line on standard error with all of `words` in it.
#[track_caller]
fn check_refused(output: &Output, code: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is missing in: {said}");
    }
    assert!(output.stdout.is_empty(), "{output:?}");
}

#[track_caller]
fn check_wrong(host: &Host, line: &str, words: &[&str]) {
    check_refused(&host.command(line), WRONG_USE, words);
}

/// The status of a request without a token.
fn without_token(guest: &Guest) -> u16 {
    guest.get(INSTANCE_ID).status()
}

fn is_answered(guest: &Guest) -> bool {
    let asked = guest.try_connect(Address::V4).and_then(|mut connection| {
        connection.exchange_within("PUT", "/latest/api/token", &[TTL], Duration::from_secs(2))
    });
    asked.is_ok()
}

const TTL: (&str, &str) = ("X-aws-ec2-metadata-token-ttl-seconds", "60");

fn names_and_states(host: &Host) -> Vec<(String, String)> {
    let list = json(host, "instance list --json");
    let list = list.as_array().expect("a list").iter();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    list.map(|one| (text(&one["name"]), text(&one["state"])))
        .collect()
}

#[test]
fn a_daemon_without_a_file_serves_what_is_added_and_goes_on_with_it() {
    let Some((host, web)) = bare_host() else {
        return;
    };
    let daemon = host.start();
    assert_eq!(done(&host, "instance list").trim(), "no instances");
    assert!(done(&host, "status").contains("no configuration file"));
    let user_data = host.dir().join("user-data");
    fs::write(&user_data, "#!/bin/sh\necho hello\n").expect("a file");
    let rest = format!(
        "--port veth-web --type m5.large --ip 10.0.0.10 --mac 02:00:00:00:00:77 --role app --tag Name=front --tag a=b \
         --http-tokens required --hop-limit 3 --instance-metadata-tags enabled --user-data {}",
        user_data.display()
    );
    let rehearsed = done(&host, &format!("instance add web {rest} --dry-run"));
    assert!(rehearsed.contains("+ web i-"), "{rehearsed}");
    assert!(names_and_states(&host).is_empty());
    let added = done(&host, &format!("instance add web {rest}"));
    assert!(added.contains("in force at veth-web"), "{added}");

    let check = |host: &Host| {
        let shown = json(host, "instance show front --json");
        let id = shown["instance_id"].as_str().expect("an id");
        assert_eq!(shown["owner"], "api");
        assert_eq!(shown["private_ipv4"], "10.0.0.10");
        assert_eq!(shown["metadata_options"]["state"], "applied");
        assert_eq!(without_token(&web), 401);
        let token = web.put_token(60);
        let get = |path: &str| {
            let path = format!("/latest/{path}");
            web.get_with_token(&path, &token).text().to_owned()
        };
        assert_eq!(get("meta-data/instance-id"), id);
        assert_eq!(get("meta-data/instance-type"), "m5.large");
        assert_eq!(get("meta-data/local-ipv4"), "10.0.0.10");
        assert_eq!(get("meta-data/mac"), "02:00:00:00:00:77");
        assert_eq!(get("meta-data/tags/instance/Name"), "front");
        assert_eq!(get("meta-data/iam/security-credentials/"), "app");
        assert_eq!(get("user-data"), "#!/bin/sh\necho hello\n");
        id.to_owned()
    };
    let id = check(&host);
    daemon.stop();
    let _daemon = host.start();
    assert_eq!(check(&host), id);
    let history = done(&host, "history web");
    assert!(history.contains("uid 0"), "{history}");
    assert!(history.contains("imds instance add web"), "{history}");
}

#[test]
fn what_is_removed_is_answered_no_more_and_remembered_for_a_while() {
    let Some((host, web)) = bare_host() else {
        return;
    };
    let daemon = host.start();
    done(&host, "instance add web --port veth-web");
    let id = web.get(INSTANCE_ID).text().to_owned();
    let removed = done(&host, &format!("instance terminate {}", &id[..9]));
    assert!(removed.contains("removed"), "{removed}");
    assert!(!is_answered(&web));
    let one = |name: &str, state: &str| (name.to_owned(), state.to_owned());
    assert_eq!(names_and_states(&host), [one("web", "terminated")]);
    check_wrong(&host, "instance stop web", &["it is terminated"]);
    // Name and port are free again, and the name means the one that is there.
    done(&host, "instance add web --port veth-web");
    assert_eq!(
        names_and_states(&host),
        [one("web", "running"), one("web", "terminated")]
    );
    let next = web.get(INSTANCE_ID).text().to_owned();
    assert_ne!(next, id);
    assert_eq!(
        json(&host, "instance show web --json")["instance_id"],
        *next
    );
    daemon.stop();
    let _daemon = host.start();
    assert_eq!(web.get(INSTANCE_ID).text(), next);
}

#[test]
fn one_that_is_added_before_its_interface_is_served_when_that_comes() {
    let Some(mut host) = Host::new() else { return };
    host.without_config();
    let _daemon = host.start();
    let added = done(
        &host,
        "instance add late --port veth-late --http-tokens required",
    );
    assert!(
        added.contains("waits for its port: interface veth-late is not there"),
        "{added}"
    );
    let late = host.guest("late").routed("10.0.0.10").unregistered().up();
    let token = eventually("the guest is served", Duration::from_secs(10), || {
        Some(late.try_connect(Address::V4).ok()?.put_token(60))
    });
    let id = json(&host, "instance show late --json")["instance_id"].clone();
    assert_eq!(late.get_with_token(INSTANCE_ID, &token).text(), id);
    check_wrong(
        &host,
        "instance add other --port veth-late",
        &["veth-late is the port of instance late"],
    );
    check_wrong(
        &host,
        "instance add late --port veth-x",
        &["the name `late` is that of i-"],
    );
    check_wrong(
        &host,
        "instance add x --port veth-x --type t3.mcro",
        &["t3.mcro", "did you mean `t3.micro`?"],
    );
    check_wrong(
        &host,
        "instance add x --port veth-x --image ami-12345678",
        &["ami-12345678", "did you mean `ami-"],
    );
    check_wrong(&host, "instance add x --port lo", &["lo", "Ethernet"]);
    check_wrong(&host, "instance remove laet", &["did you mean `late`?"]);
}

#[test]
fn options_are_set_by_name_and_the_next_request_sees_them() {
    let Some((host, web, db)) = host_with_two() else {
        return;
    };
    let daemon = host.start();
    let mut open = web.connect();
    assert_eq!(open.get(INSTANCE_ID, &[]).status(), 200);

    let rehearsed = done(&host, "options set --all --http-tokens required --dry-run");
    assert!(
        rehearsed.contains("would be changed: 2, as before: 0"),
        "{rehearsed}"
    );
    assert_eq!((without_token(&web), without_token(&db)), (200, 200));

    let set = done(
        &host,
        "options set web --http-tokens required --http-put-response-hop-limit 2",
    );
    assert_eq!(open.get(INSTANCE_ID, &[]).status(), 401);
    assert_eq!((without_token(&web), without_token(&db)), (401, 200));
    assert!(set.contains("http-tokens: optional → required"), "{set}");
    assert!(set.contains("http-put-response-hop-limit: 1 → 2"), "{set}");
    assert!(!set.contains("pending"), "{set}");
    assert_eq!(
        done(&host, "options set web --http-tokens required"),
        "nothing to change\n"
    );

    // All or none.
    check_wrong(
        &host,
        "options set db wbe --http-tokens required",
        &["did you mean `web`?"],
    );
    assert_eq!(without_token(&db), 200);
    let all = json(&host, "options set web db --http-endpoint disabled --json");
    assert_eq!(all["changes"].as_array().map(Vec::len), Some(2), "{all}");
    for instance in all["instances"].as_array().expect("a list") {
        assert_eq!(instance["metadata_options"]["state"], "applied", "{all}");
    }
    let token_free = (without_token(&web), without_token(&db));
    assert_eq!(token_free, (403, 403));
    done(&host, "options set --all --http-endpoint enabled");

    // What is set of a stopped one waits for its start.
    done(&host, "instance stop db");
    let set = done(&host, "options set db --http-tokens required");
    assert!(
        set.contains("pending: db (stopped): in force when it is started"),
        "{set}"
    );
    assert_eq!(
        json(&host, "options get db --json")[0]["metadata_options"]["state"],
        "pending"
    );
    done(&host, "instance start db");
    assert_eq!(without_token(&db), 401);
    let options = json(&host, "options get --json");
    let states = options.as_array().expect("a list").iter();
    let states: Vec<_> = states
        .map(|one| one["metadata_options"]["state"].as_str())
        .collect();
    assert_eq!(states, [Some("applied"); 2]);
    let table = done(&host, "options get");
    assert!(
        table
            .lines()
            .next()
            .is_some_and(|heads| heads.contains("TOKENS")),
        "{table}"
    );

    daemon.stop();
    let _daemon = host.start();
    assert_eq!((without_token(&web), without_token(&db)), (401, 401));
}

/// The delay from the command's answer to the guest's first refused request is what a request takes: it is in force before.
#[test]
fn when_a_command_returns_no_request_is_answered_by_what_was_before() {
    let Some((host, web, _db)) = host_with_two() else {
        return;
    };
    let _daemon = host.start();
    let mut open = web.connect();
    let mut slowest = Duration::ZERO;
    for round in 0..20 {
        let (value, status) = [("required", 401), ("optional", 200)][round % 2];
        done(&host, &format!("options set web --http-tokens {value}"));
        let asked = Instant::now();
        assert_eq!(open.get(INSTANCE_ID, &[]).status(), status, "round {round}");
        slowest = slowest.max(asked.elapsed());
    }
    println!(
        "the first request after `imds options set` took {slowest:?} at most, and saw the change each time"
    );
}

#[test]
fn defaults_hold_for_what_comes_and_for_nothing_that_is_there() {
    let Some((host, web)) = bare_host() else {
        return;
    };
    let _daemon = host.start();
    done(&host, "instance add web --port veth-web");
    let set = done(&host, "defaults set --http-tokens required --hop-limit 5");
    assert!(set.contains("http-tokens: required"), "{set}");
    assert_eq!(without_token(&web), 200);
    done(&host, "instance remove web");
    done(&host, "instance add web --port veth-web");
    assert_eq!(without_token(&web), 401);
    let options = json(&host, "options get web --json")[0]["metadata_options"].clone();
    assert_eq!(options["http_put_response_hop_limit"], 5);

    done(
        &host,
        "defaults set --http-tokens-enforced enabled --hop-limit no-preference",
    );
    let defaults = json(&host, "defaults get --json");
    assert_eq!(
        defaults,
        serde_json::json!({"http_tokens": "required", "http_tokens_enforced": "enabled"})
    );
    check_wrong(
        &host,
        "instance add other --port veth-x --http-tokens optional",
        &["httpTokensEnforced"],
    );
    check_wrong(&host, "defaults set --hop-limit 65", &["65", "1 to 64"]);
    check_wrong(&host, "defaults set", &["say which default"]);
    let history = done(&host, "history --action defaults");
    assert!(history.contains("imds defaults set"), "{history}");
}

/// Whose instances they are decides who takes them away.
#[test]
fn what_others_own_is_not_removed_by_command() {
    let Some((host, web, _db)) = host_with_two() else {
        return;
    };
    let _daemon = host.start();
    check_wrong(
        &host,
        "instance remove web",
        &["web is the configuration file's", "imds apply -f"],
    );
    assert_eq!(without_token(&web), 200);
    check_wrong(&host, "options set web", &["say which option"]);
}

/// Calls of the API make instances without a port: they are shown, found and switched all the same.
#[test]
fn instances_that_have_no_guest_are_shown_and_switched() {
    let Some((host, _web)) = bare_host() else {
        return;
    };
    let daemon = host.start();
    done(&host, "instance add web --port veth-web --tag Name=front");
    let id = json(&host, "instance show front --json")["instance_id"].clone();
    let id = id.as_str().expect("an id");
    // A record that lost its port is what such an instance is.
    daemon.stop();
    take_port_away(&host, id);
    let _daemon = host.start();
    let state = |host: &Host| names_and_states(host)[0].1.clone();
    assert_eq!(state(&host), "running");
    let stopped = done(&host, "instance stop front");
    assert!(stopped.contains("stopped"), "{stopped}");
    eventually("it is stopped", Duration::from_secs(5), || {
        (state(&host) == "stopped").then_some(())
    });
    done(&host, &format!("instance start {}", &id[..8]));
    eventually("it runs", Duration::from_secs(5), || {
        (state(&host) == "running").then_some(())
    });
    done(&host, "instance reboot web");
    check_wrong(&host, "event web rebalance", &["has no guest here"]);
    done(&host, "options set web --http-tokens required");
    let options = json(&host, "options get web --json")[0]["metadata_options"].clone();
    assert_eq!(
        (&options["state"], &options["http_tokens"]),
        (&"applied".into(), &"required".into())
    );
}

fn take_port_away(host: &Host, id: &str) {
    use imds_tests::records::{put, view_of};
    use imds_user::store::{Backend, InstanceRecord, Sqlite};
    let mut store = Sqlite::open(&host.state_dir().join("store.db")).expect("it opens");
    let view = view_of(&mut store);
    let id = id.parse().expect("an id");
    let mut record = InstanceRecord::clone(view.instance(id).expect("it is there"));
    record.port = None;
    store.commit(&put(&view, [record])).expect("it is kept");
}

#[test]
fn the_history_is_searched_and_followed() {
    let Some((host, _web, _db)) = host_with_two() else {
        return;
    };
    let _daemon = host.start();
    done(&host, "options set web --http-tokens required");
    done(&host, "options set db --http-endpoint disabled");
    done(&host, "instance stop db");
    let lines = |line: &str| {
        let said = done(&host, &format!("history --json {line}"));
        let lines = said.lines();
        lines
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["what"].to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(lines("--action OPTIONS").len(), 2);
    assert_eq!(lines("db --action options"), ["\"imds options set db\""]);
    assert_eq!(lines("--who daemon --action options").len(), 0);
    assert_eq!(lines("--who daemon --limit 1").len(), 1);
    assert!(lines("--since 1h").len() >= 4);
    assert_eq!(lines("--since 2999-01-01T00:00:00Z").len(), 0);
    assert_eq!(done(&host, "history --who nobody").trim(), "nothing");
    check_wrong(&host, "history dd", &["did you mean `db`?"]);

    let state_dir = host.state_dir();
    let mut child = host.spawn_imds(&[
        "history",
        "--follow",
        "--json",
        "--limit",
        "0",
        "--state-dir",
        state_dir.to_str().expect("text"),
    ]);
    let stdout = child.stdout.take().expect("its output is taken");
    let mut lines = BufReader::new(stdout).lines();
    // It may not have looked for the first time yet.
    let seen = std::thread::spawn(move || lines.next());
    let mut is_on = true;
    while !seen.is_finished() {
        let to = if is_on { "optional" } else { "required" };
        is_on = !is_on;
        done(&host, &format!("options set web --http-tokens {to}"));
    }
    let line = seen
        .join()
        .expect("no panic")
        .expect("a line")
        .expect("text");
    assert!(line.contains("imds options set web"), "{line}");
    child.kill().expect("it can be ended");
    child.wait().expect("it ends");
}

#[test]
fn without_a_daemon_commands_say_so() {
    let Some((host, _web)) = bare_host() else {
        return;
    };
    for line in [
        "instance add web --port veth-web",
        "instance remove web",
        "options get",
        "options set web --http-tokens required",
        "defaults",
        "defaults set --http-tokens required",
    ] {
        check_refused(&host.command(line), SOMETHING_MISSING, &["imds run"]);
    }
}

/// What was applied holds for a daemon that is started without a file.
#[test]
fn what_was_applied_is_served_without_the_file() {
    let Some((mut host, web, _db)) = host_with_two() else {
        return;
    };
    host.host_keys("domain-name = \"example.test\"");
    let daemon = host.start();
    assert_eq!(without_token(&web), 200);
    daemon.stop();
    host.without_config();
    let mut daemon = host.start();
    let has_its_name = |web: &Guest| {
        let name = web.get("/latest/meta-data/hostname").text().to_owned();
        assert!(name.ends_with(".example.test"), "{name}");
    };
    has_its_name(&web);
    daemon.reload();
    has_its_name(&web);
    assert_eq!(names_and_states(&host).len(), 2);
}

/// What a person admitted is an instance like any other: it is found, it is changed, and that lasts.
#[test]
fn a_guest_that_was_admitted_has_a_record_that_lasts() {
    let Some((host, web)) = bare_host() else {
        return;
    };
    let daemon = host.start();
    done(
        &host,
        "admit --port veth-web --name web http-tokens=optional type=m5.large",
    );
    let shown = json(&host, "instance show web --json");
    assert_eq!(
        (&shown["owner"], &shown["instance_type"]),
        (&"admitted".into(), &"m5.large".into())
    );
    assert_eq!(owners(&host), ["admitted"]);
    assert_eq!(without_token(&web), 200);
    done(&host, "options set web --http-tokens required");
    assert_eq!(without_token(&web), 401);
    daemon.stop();
    let _daemon = host.start();
    assert_eq!(without_token(&web), 401);
    check_wrong(
        &host,
        "instance add web --port veth-x",
        &["the name `web` is that of"],
    );
    check_wrong(
        &host,
        "instance add other --port veth-web",
        &["veth-web is the port of instance web"],
    );
    let history = done(&host, "history web");
    assert!(history.contains("imds options set web"), "{history}");
    // AWS's tools see it as any other.
    let id = json(&host, "instance show web --json")["instance_id"].clone();
    let id = id.as_str().expect("an id");
    let described = call(&host, "Action=DescribeInstances");
    assert!(
        described.contains(&format!("<instanceId>{id}</instanceId>")),
        "{described}"
    );
    let modify =
        format!("Action=ModifyInstanceMetadataOptions&InstanceId={id}&HttpTokens=optional");
    let modified = call(&host, &modify);
    assert!(
        modified.contains("<httpTokens>optional</httpTokens>"),
        "{modified}"
    );
    eventually("it is in force", Duration::from_secs(5), || {
        (without_token(&web) == 200).then_some(())
    });
    let refused = call(
        &host,
        &format!("Action=TerminateInstances&InstanceId.1={id}"),
    );
    assert!(refused.contains("imds forget"), "{refused}");
    done(&host, "instance remove web");
    assert!(owners(&host).is_empty());
    assert!(names_and_states(&host).is_empty());
}

#[test]
fn a_guest_of_a_template_has_a_record_as_long_as_it_is_there() {
    let Some(mut host) = Host::new() else { return };
    host.tables("[[template]]\nports = [\"veth-t*\"]\ntype = \"m5.large\"");
    let mut daemon = host.start();
    let guest = host.guest("t1").routed("10.0.0.10").unregistered().up();
    eventually("the guest is served", Duration::from_secs(10), || {
        guest.try_connect(Address::V4).ok()
    });
    assert_eq!(without_token(&guest), 200);
    assert_eq!(owners(&host), ["discovered"]);
    done(&host, "options set --all --http-tokens required");
    assert_eq!(without_token(&guest), 401);
    daemon.reload();
    assert_eq!(without_token(&guest), 401);
    daemon.stop();
    let _daemon = host.start();
    assert_eq!(without_token(&guest), 401);
    check_wrong(
        &host,
        "instance remove veth-t1",
        &["veth-t1 was not admitted by command"],
    );
    host.namespace().ip("link del veth-t1");
    eventually("its record is forgotten", Duration::from_secs(10), || {
        owners(&host).is_empty().then_some(())
    });
}

/// Whose the records in the store are.
fn owners(host: &Host) -> Vec<&'static str> {
    let mut store =
        imds_user::store::Sqlite::open(&host.state_dir().join("store.db")).expect("it opens");
    let view = imds_tests::records::view_of(&mut store);
    let records = view.instances().values();
    records.map(|record| record.value.owner.as_str()).collect()
}

/// A call of the API by its Unix socket; the answer, with its head.
fn call(host: &Host, form: &str) -> String {
    let mut stream = UnixStream::connect(host.state_dir().join("api.sock")).expect("it listens");
    let request = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    );
    stream.write_all(request.as_bytes()).expect("it takes it");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

#[test]
fn options_of_a_thousand_instances_are_set_in_one_go() {
    const COUNT: usize = 1000;
    let Some((mut host, web, _db)) = host_with_two() else {
        return;
    };
    let tables = (0..COUNT).map(|number| format!("[[instance]]\nport = \"wait{number}\"\n"));
    host.tables(&tables.collect::<String>());
    let _daemon = host.start();
    let asked = Instant::now();
    let set = done(&host, "options set --all --http-tokens required");
    let took = asked.elapsed();
    assert!(
        set.contains(&format!("changed: {}, as before: 0", COUNT + 2)),
        "{set}"
    );
    assert_eq!(without_token(&web), 401);
    assert!(!set.contains("pending"), "{set}");
    println!(
        "`imds options set --all` of {} instances took {took:?}",
        COUNT + 2
    );
    assert!(took < patience(Duration::from_secs(8)), "{took:?}");
}
