//! A configuration file is applied as a whole: at a start, by a reload, and by `imds apply`. What others changed lasts as long as
//! the file does not say otherwise, guests see it at their next request, and who did it is told.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Output;
use std::time::Duration;

use imds_tests::records::view_of;
use imds_tests::{Address, Guest, Host, INSTANCE_ID, SmallDisk, TOKEN_FIELD, eventually};
use imds_user::config::PortBy;
use imds_user::instance::options::TokenUse;
use imds_user::instance::{InstanceId, UnixMillis, UnixSeconds};
use imds_user::life::Life;
use imds_user::store::Backend;
use imds_user::store::record::Transition;
use imds_user::store::{InstanceRecord, Note, Owner, Record, Sqlite, View, Who};
use serde_json::Value;

const WRONG_USE: i32 = 64;
const SOMETHING_MISSING: i32 = 69;

const OPTIONAL: &str = "\"optional\"";
const REQUIRED: &str = "\"required\"";

/// A host with one guest, whose file says that tokens are optional.
fn host_with_web() -> Option<(Host, Guest)> {
    let mut host = Host::new()?;
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .option("http-tokens", OPTIONAL)
        .up();
    Some((host, web))
}

/// Runs `imds` with the state directory of this host.
fn imds(host: &Host, args: &str) -> Output {
    let state_dir = host.state_dir();
    let mut argv: Vec<&str> = args.split(' ').collect();
    argv.extend(["--state-dir", state_dir.to_str().expect("text")]);
    host.imds(&argv)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Applies the configuration as the host has it; the names of what changed, with what happened to each.
fn apply(host: &Host, options: &str) -> Vec<String> {
    host.write_config();
    let path = host.config_path();
    let output = imds(
        host,
        &format!("apply --json{options} -f {}", path.display()),
    );
    assert!(output.status.success(), "{output:?}");
    let applied: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let changes = applied["changes"].as_array().expect("a list");
    changes
        .iter()
        .map(|change| {
            let action = change["action"].as_str().expect("text");
            format!("{action} {}", change["name"].as_str().expect("text"))
        })
        .collect()
}

/// What a call of the API does to the record of an instance, or to a copy of it.
fn call(host: &Host, id: &str, change: impl Fn(&mut InstanceRecord)) {
    let id: InstanceId = id.parse().expect("an id");
    write(host, |view| {
        let mut record = view.instance(id).expect("it is kept").clone();
        change(&mut record);
        Record::Instance(Box::new(record))
    });
}

fn write(host: &Host, record: impl Fn(&View) -> Record) {
    let mut store = Sqlite::open(&host.state_dir().join("store.db")).expect("it opens");
    let view = view_of(&mut store);
    let mut draft = view.draft(Note {
        at: UnixMillis(1),
        who: Who::AccessKey("AKIA1".into()),
        what: "ModifyInstanceMetadataOptions".into(),
    });
    draft.put(&record(&view)).expect("it is written down");
    store.commit(&draft.finish()).expect("it is kept");
}

#[test]
fn a_file_is_in_force_when_the_command_returns() {
    let Some((mut host, web)) = host_with_web() else {
        return;
    };
    let _daemon = host.start();
    let mut open = web.connect();
    assert_eq!(open.get(INSTANCE_ID, &[]).status(), 200);
    // What the daemon read at its start is there already.
    assert_eq!(apply(&host, ""), [""; 0]);
    host.instance("web").option("http-tokens", REQUIRED);
    assert_eq!(apply(&host, " --dry-run"), ["change web"]);
    assert_eq!(open.get(INSTANCE_ID, &[]).status(), 200);
    assert_eq!(apply(&host, ""), ["change web"]);
    assert_eq!(open.get(INSTANCE_ID, &[]).status(), 401);
    assert_eq!(web.get(INSTANCE_ID).status(), 401);
    assert_eq!(apply(&host, ""), [""; 0]);
    let token = web.put_token(60);
    host.instance("web").key("hostname", "\"h\"");
    assert_eq!(apply(&host, ""), ["change web"]);
    let answer = open.get("/latest/meta-data/hostname", &[(TOKEN_FIELD, &token)]);
    assert_eq!(answer.text(), "h");
    let shown = said(&imds(&host, "history web"));
    for part in [
        "http-tokens: optional → required",
        "hostname: h",
        "uid 0",
        "imds apply -f",
        "daemon",
        "added",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    host.forget("web");
    assert_eq!(apply(&host, ""), ["remove web"]);
    assert_eq!(host.status()["ports"], serde_json::json!([]));
}

#[test]
fn what_a_call_changed_lasts_until_the_file_says_otherwise() {
    let Some((mut host, web)) = host_with_web() else {
        return;
    };
    host.start().stop();
    call(&host, web.id(), |record| {
        record.spec.options.http_tokens = TokenUse::Required;
    });
    // The file is as it was: a daemon that starts takes nothing back.
    let mut daemon = host.start();
    assert_eq!(web.get(INSTANCE_ID).status(), 401);
    host.instance("web").key("hostname", "\"h\"");
    host.write_config();
    daemon.reload();
    let token = web.put_token(60);
    assert_eq!(
        web.get_with_token("/latest/meta-data/hostname", &token)
            .text(),
        "h"
    );
    assert_eq!(web.get(INSTANCE_ID).status(), 401);
    // Who applies it means all that it says.
    assert_eq!(apply(&host, ""), ["change web"]);
    assert_eq!(web.get(INSTANCE_ID).status(), 200);
    daemon.stop();
    // A line that was edited counts for the daemon too.
    call(&host, web.id(), |record| {
        record.spec.options.http_put_response_hop_limit = 7.try_into().expect("7 is not 0");
    });
    host.instance("web").option("http-tokens", REQUIRED);
    let _daemon = host.start();
    assert_eq!(web.get(INSTANCE_ID).status(), 401);
    let history = said(&imds(&host, "history --json web"));
    let who: Vec<String> = history
        .lines()
        .map(|line| {
            let entry: Value = serde_json::from_str(line).expect("JSON");
            entry["who"].as_str().expect("text").to_owned()
        })
        .collect();
    assert_eq!(
        who,
        [
            "daemon",
            "key AKIA1",
            "uid 0",
            "daemon",
            "key AKIA1",
            "daemon"
        ],
        "{history}"
    );
}

#[test]
fn without_a_daemon_it_is_kept_for_the_next_one() {
    let Some((host, web)) = host_with_web() else {
        return;
    };
    let output = imds(&host, "history");
    assert_eq!(output.status.code(), Some(SOMETHING_MISSING), "{output:?}");
    let added = apply(&host, "");
    assert_eq!(added, ["add [host], [discovery] and templates", "add web"]);
    assert_eq!(apply(&host, ""), [""; 0]);
    call(&host, web.id(), |record| {
        record.spec.options.http_tokens = TokenUse::Required;
    });
    {
        let _daemon = host.start();
        assert_eq!(web.get(INSTANCE_ID).status(), 401);
    }
    let check_wrong = |host: &Host| {
        let before = said(&imds(host, "export"));
        host.write_raw_config("[[instance]]\nport = \"veth-web\"\ntype = 7\n");
        let path = host.config_path();
        let output = imds(host, &format!("apply -f {}", path.display()));
        assert_eq!(output.status.code(), Some(WRONG_USE), "{output:?}");
        assert_eq!(said(&imds(host, "export")), before);
    };
    check_wrong(&host);
    let _daemon = host.start();
    check_wrong(&host);
    assert_eq!(web.get(INSTANCE_ID).status(), 401);
}

/// What others write is in force soon; what this daemon's own API writes, at once.
#[test]
fn what_others_change_of_the_records_is_in_force_while_the_daemon_runs() {
    let Some((mut host, web)) = host_with_web() else {
        return;
    };
    let db = host.guest("db").routed("10.0.0.11").unregistered().up();
    let _daemon = host.start();
    let mut open = web.connect();
    assert_eq!(open.get(INSTANCE_ID, &[]).status(), 200);
    call(&host, web.id(), |record| {
        record.spec.options.http_tokens = TokenUse::Required;
        record.options.change();
    });
    let soon = Duration::from_secs(5);
    eventually("tokens are required", soon, || {
        (open.get(INSTANCE_ID, &[]).status() == 401).then_some(())
    });
    eventually("it is said", soon, || {
        let mut store = Sqlite::open(&host.state_dir().join("store.db")).expect("it opens");
        let id = web.id().parse().expect("an id");
        let view = view_of(&mut store);
        let record = view.instance(id).expect("it is kept");
        (record.options.state() == "applied").then_some(())
    });
    // One that a call of the API brings, at a port that waits for it.
    let launched = "i-0fedcba9876543210";
    call(&host, web.id(), |record| {
        record.spec.id = launched.parse().expect("an id");
        record.name = "launched".into();
        record.owner = Owner::Api;
        record.said.clear();
        record.port = Some(PortBy::Name(db.port().parse().expect("a name")));
        record.spec.options.http_tokens = TokenUse::Optional;
    });
    eventually("it is served", soon, || {
        let answer = db
            .try_connect(Address::V4)
            .ok()?
            .get(INSTANCE_ID, &[])
            .text()
            .to_owned();
        (answer == launched).then_some(())
    });
    // No file takes it away, and it is there after a start.
    assert_eq!(apply(&host, ""), ["change web"]);
    assert_eq!(db.get(INSTANCE_ID).text(), launched);
    // It is stopped, started and terminated by records alone.
    let life = |stopped| {
        let id: InstanceId = launched.parse().expect("an id");
        write(&host, |_| {
            Record::Life(
                id,
                Box::new(Life {
                    stopped,
                    ..Life::NOTHING
                }),
            )
        });
    };
    let ports = |host: &Host, name: &str| -> Vec<String> {
        let status = host.status();
        let ports = status["ports"].as_array().expect("a list").clone();
        let of_it = ports.iter().filter(|port| port["name"] == name);
        of_it
            .map(|port| port["state"].as_str().expect("text").to_owned())
            .collect()
    };
    life(Some(UnixSeconds(1)));
    eventually("it is stopped", soon, || {
        (ports(&host, "launched") == ["stopped"]).then_some(())
    });
    life(None);
    eventually("it runs", soon, || {
        (ports(&host, "launched") == ["running"]).then_some(())
    });
    assert_eq!(db.get(INSTANCE_ID).text(), launched);
    call(&host, launched, |record| {
        record.transition = Some(Transition::Terminated { at: UnixSeconds(1) });
    });
    eventually("it is gone", soon, || {
        ports(&host, "launched").is_empty().then_some(())
    });
    assert_eq!(ports(&host, "web"), ["running"]);
}

/// What one host exports makes the same of another.
#[test]
fn an_export_is_a_configuration() {
    let Some((host, web)) = host_with_web() else {
        return;
    };
    let of = |web: &Guest| {
        let document = web
            .get("/latest/dynamic/instance-identity/document")
            .text()
            .to_owned();
        let mac = web.get("/latest/meta-data/mac").text().to_owned();
        (document, mac)
    };
    let expected = {
        let _daemon = host.start();
        of(&web)
    };
    let exported = said(&imds(&host, "export"));
    // Another installation makes other things up.
    for name in ["installation.json", "store.db"] {
        fs::remove_file(host.state_dir().join(name)).expect("it is there");
    }
    host.write_raw_config(&exported);
    let path = host.config_path();
    let output = imds(&host, &format!("apply -f {}", path.display()));
    assert!(output.status.success(), "{output:?}\n{exported}");
    assert_eq!(said(&imds(&host, "export")), exported);
    let daemon = host.start_as_written();
    assert_eq!(of(&web), expected);
    daemon.stop();
}

/// A file system without room is no reason not to serve.
#[test]
fn a_full_disk_stops_neither_a_start_nor_a_reload() {
    // Before the host, so that it is there until the host is gone.
    let Some(small) = SmallDisk::mount("1m") else {
        return;
    };
    let Some((mut host, web)) = host_with_web() else {
        return;
    };
    symlink(small.path(), host.state_dir()).expect("a link");
    host.start().stop();
    let ballast = small.fill("ballast");
    host.instance("web")
        .option("http-tokens", REQUIRED)
        .user_data(&[b'x'; 12_000]);
    let mut daemon = host.start();
    assert_eq!(web.get(INSTANCE_ID).status(), 401);
    host.instance("web").key("hostname", "\"h\"");
    host.write_config();
    daemon.reload();
    let token = web.put_token(60);
    assert_eq!(
        web.get_with_token("/latest/meta-data/hostname", &token)
            .text(),
        "h"
    );
    assert!(daemon.log().contains("no room"), "{}", daemon.log());
    // What a person asks for is kept or not done.
    host.instance("web").key("hostname", "\"i\"");
    host.write_config();
    let path = host.config_path();
    let output = imds(&host, &format!("apply -f {}", path.display()));
    assert!(!output.status.success(), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("no room"),
        "{output:?}"
    );
    assert_eq!(
        web.get_with_token("/latest/meta-data/hostname", &token)
            .text(),
        "h"
    );
    fs::remove_file(ballast).expect("it was there");
    assert_eq!(apply(&host, ""), ["change web"]);
    assert_eq!(
        web.get_with_token("/latest/meta-data/hostname", &token)
            .text(),
        "i"
    );
    daemon.stop();
}
