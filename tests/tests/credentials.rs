//! Credentials that come from elsewhere: guests always have good ones while the source works, have the last ones until
//! they expire when it does not, and are told so after that. Nobody else learns any of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use imds_tests::{
    Daemon, Guest, Host, INSTANCE_ID, Response, eventually, is_alive, memory_contains, run, skip,
};
use imds_user::instance::UnixSeconds;
use nix::unistd::Pid;
use serde_json::Value;

const CREDENTIALS: &str = "/latest/meta-data/iam/security-credentials/web-role";

/// Bound on what the daemon does in its own time: a renewal, or another attempt after a few failures.
const SOON: Duration = Duration::from_secs(20);

fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("it is after 1970")
        .as_secs()
}

/// A role whose credentials come from a command.
fn role(command: &[&str]) -> String {
    format!("[instance.role]\nname = \"web-role\"\ncredential-process = {command:?}\n")
}

/// A file that a command prints: with `cat`, it is the simplest credential process that there is.
struct Printed(PathBuf);

impl Printed {
    fn new(host: &Host, name: &str) -> Self {
        Self(host.dir().join(name))
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("temporary paths are text")
    }

    /// Writes credentials whose every part has `mark` in it. Whole or not at all: the command may run at any time.
    fn write(&self, mark: &str, life_seconds: u64) -> UnixSeconds {
        let expiration = UnixSeconds(now() + life_seconds);
        let text = format!(
            r#"{{"Version": 1, "AccessKeyId": "ASIA{mark}", "SecretAccessKey": "secret-{mark}",
                "SessionToken": "token-{mark}", "Expiration": "{}"}}"#,
            expiration.iso()
        );
        let part = self.0.with_extension("part");
        fs::write(&part, text).expect("the temporary directory takes a file");
        fs::rename(&part, &self.0).expect("a file can be replaced");
        expiration
    }
}

fn document(answer: &Response) -> Value {
    assert_eq!(answer.status(), 200, "{answer:?}");
    serde_json::from_str(answer.text()).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

/// The document once its `key` is `value`.
fn wait_for(guest: &Guest, key: &str, value: &str) -> Value {
    eventually(&format!("{key} is {value}"), SOON, || {
        Some(document(&guest.get(CREDENTIALS))).filter(|document| document[key] == value)
    })
}

/// What `imds status` says of the credentials of an instance.
fn status(host: &Host, name: &str) -> Value {
    let status = host.status();
    let ports = status["ports"].as_array().expect("a list of ports");
    let port = ports.iter().find(|port| port["name"] == name);
    port.unwrap_or_else(|| panic!("no {name} in {status}"))["credentials"].clone()
}

fn assert_no_secrets(daemon: &Daemon) {
    let log = daemon.log();
    for secret in ["secret-", "token-"] {
        assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
    }
}

#[test]
fn a_guest_has_what_the_command_prints() {
    let Some(mut host) = Host::new() else { return };
    host.daemon_env("RUST_LOG", "trace");
    let printed = Printed::new(&host, "web.json");
    let expiration = printed.write("ONE", 6 * 3600);
    let script = "echo secret-on-stderr >&2; exec cat \"$1\"";
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .tables(&role(&["sh", "-c", script, "sh", printed.path()]))
        .up();
    let daemon = host.start();
    let found = wait_for(&web, "Code", "Success");
    let updated = found["LastUpdated"].as_str().expect("a time");
    let expected = format!(
        "{{\n  \"Code\" : \"Success\",\n  \"LastUpdated\" : \"{updated}\",\n  \"Type\" : \"AWS-HMAC\",\n  \
         \"AccessKeyId\" : \"ASIAONE\",\n  \"SecretAccessKey\" : \"secret-ONE\",\n  \"Token\" : \"token-ONE\",\n  \
         \"Expiration\" : \"{}\"\n}}",
        expiration.iso()
    );
    let answer = web.get(CREDENTIALS);
    assert_eq!(answer.text(), expected);
    let obtained = UnixSeconds::from_iso(updated).expect("EC2's form of a time");
    assert!(now() - obtained.0 < 60, "{updated}");
    let list = web.get("/latest/meta-data/iam/security-credentials/");
    assert_eq!(list.text(), "web-role");

    let told = status(&host, "web");
    assert_eq!(told["role"], "web-role");
    assert_eq!(told["kind"], "credential-process");
    assert_eq!(told["source"], "command sh");
    assert_eq!(told["state"], "fresh");
    assert_eq!(told["expires_unix_seconds"], expiration.0);
    assert_eq!(told["last_error"], Value::Null);
    assert_no_secrets(&daemon);
}

#[test]
fn what_the_command_prints_next_is_seen_after_the_renewal() {
    let Some(mut host) = Host::new() else { return };
    let printed = Printed::new(&host, "web.json");
    printed.write("ONE", 8);
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .tables(&role(&["cat", printed.path()]))
        .up();
    let db = host.guest("db").routed("10.0.0.11").up();
    let _daemon = host.start();
    wait_for(&web, "AccessKeyId", "ASIAONE");
    let modified = |guest: &Guest| {
        let answer = guest.get(INSTANCE_ID);
        answer.header("Last-Modified").expect("a time").to_owned()
    };
    let (before, of_others) = (modified(&web), modified(&db));
    let expiration = printed.write("TWO", 6 * 3600);
    let renewed = wait_for(&web, "AccessKeyId", "ASIATWO");
    assert_eq!(renewed["Expiration"], expiration.iso().to_string());
    assert_ne!(modified(&web), before, "Last-Modified follows");
    assert_eq!(modified(&db), of_others, "another instance's does not");
}

#[test]
fn when_the_command_fails_guests_have_the_last_credentials_until_they_expire() {
    let Some(mut host) = Host::new() else { return };
    host.daemon_env("RUST_LOG", "trace");
    let printed = Printed::new(&host, "web.json");
    let expiration = printed.write("ONE", 8);
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .tables(&role(&["cat", printed.path()]))
        .up();
    let daemon = host.start();
    wait_for(&web, "AccessKeyId", "ASIAONE");
    fs::remove_file(printed.path()).expect("it is there");

    eventually("a failure", SOON, || {
        let told = status(&host, "web");
        let is_stale = told["state"] == "stale";
        is_stale.then(|| assert_eq!(told["last_error"], "it ended with exit code 1"))
    });
    let failed = eventually("the end of the credentials", SOON, || {
        let asked = now();
        let found = document(&web.get(CREDENTIALS));
        if asked < expiration.0 {
            let answered = now();
            let is_fine = found["AccessKeyId"] == "ASIAONE" || answered >= expiration.0;
            assert!(is_fine, "{answered} of {}: {found}", expiration.0);
        }
        (found["Code"] != "Success").then_some(found)
    });
    assert!(now() >= expiration.0, "before they expired: {failed}");
    assert_eq!(failed["Code"], "Failed");
    assert!(
        failed["Message"]
            .as_str()
            .is_some_and(|text| text.contains("web-role"))
    );
    assert!(failed.get("AccessKeyId").is_none() && failed.get("Token").is_none());
    let updated = UnixSeconds::from_iso(failed["LastUpdated"].as_str().expect("a time"));
    assert!(updated.is_some_and(|at| at >= expiration), "{failed}");
    assert_eq!(status(&host, "web")["state"], "failed");
    // The guest does not learn what the operator does.
    assert!(!failed.to_string().contains("exit code"), "{failed}");
    let table = host.imds(&[
        "status",
        "--state-dir",
        host.state_dir().to_str().expect("text"),
    ]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    let line = "web: failed; command cat: it ended with exit code 1";
    assert!(table.contains(line), "{table}");

    printed.write("TWO", 6 * 3600);
    wait_for(&web, "AccessKeyId", "ASIATWO");
    let log = daemon.log();
    for line in [
        "credentials of web (command cat): it ended with exit code 1",
        "credentials of web (command cat): there are none to serve",
        "credentials of web (command cat): obtained again",
    ] {
        assert_eq!(log.matches(line).count(), 1, "{line}:\n{log}");
    }
    assert_no_secrets(&daemon);
}

#[test]
fn an_instance_that_was_stopped_starts_with_present_credentials() {
    let Some(mut host) = Host::new() else { return };
    let printed = Printed::new(&host, "web.json");
    printed.write("ONE", 8);
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .tables(&role(&["cat", printed.path()]))
        .up();
    let _daemon = host.start();
    wait_for(&web, "AccessKeyId", "ASIAONE");
    let state_dir = host.state_dir().to_str().expect("text").to_owned();
    let power = |action| {
        let output = host.imds(&["instance", action, "web", "--state-dir", &state_dir]);
        assert!(output.status.success(), "{action}: {output:?}");
    };
    power("stop");
    let expiration = printed.write("TWO", 6 * 3600);
    eventually("the renewal", SOON, || {
        (status(&host, "web")["expires_unix_seconds"] == expiration.0).then_some(())
    });
    power("start");
    assert_eq!(document(&web.get(CREDENTIALS))["AccessKeyId"], "ASIATWO");
}

/// The process whose number a script wrote into a file.
fn told_pid(file: &Path) -> Pid {
    let number = eventually("the command runs", SOON, || {
        let text = fs::read_to_string(file).ok()?;
        text.strip_suffix('\n')?.parse().ok()
    });
    Pid::from_raw(number)
}

#[test]
fn a_command_that_hangs_holds_up_nobody_and_ends_with_the_daemon() {
    let Some(mut host) = Host::new() else { return };
    let printed = Printed::new(&host, "web.json");
    printed.write("ONE", 6 * 3600);
    let pid_file = host.dir().join("pid");
    let script = format!("sleep 600 & echo $! > {}; wait", pid_file.display());
    let hung = host
        .guest("hung")
        .routed("10.0.0.10")
        .tables(&role(&["sh", "-c", &script]))
        .up();
    let web = host
        .guest("web")
        .routed("10.0.0.11")
        .tables(&role(&["cat", printed.path()]))
        .up();
    let mut daemon = host.start();
    let pid = told_pid(&pid_file);
    wait_for(&web, "AccessKeyId", "ASIAONE");
    // It is served like any other instance, but for the credentials.
    assert_eq!(hung.get(INSTANCE_ID).text(), hung.id());
    assert_eq!(document(&hung.get(CREDENTIALS))["Code"], "Failed");
    assert_eq!(status(&host, "hung")["state"], "pending");
    host.instance("web").key("type", "\"m5.large\"");
    host.write_config();
    daemon.reload();
    let instance_type = web.get("/latest/meta-data/instance-type");
    assert_eq!(instance_type.text(), "m5.large");
    assert_eq!(
        document(&web.get(CREDENTIALS))["AccessKeyId"],
        "ASIAONE",
        "a reload that changes something else"
    );
    assert!(
        is_alive(pid),
        "the reload ended a command that is still wanted"
    );
    daemon.stop();
    eventually("the end of the command", SOON, || {
        (!is_alive(pid)).then_some(())
    });
}

#[test]
fn instances_share_a_source_until_a_reload_parts_them() {
    let Some(mut host) = Host::new() else { return };
    let printed = Printed::new(&host, "shared.json");
    printed.write("SHARED", 6 * 3600);
    let calls = host.dir().join("calls");
    let script = format!(
        "echo called >> {}; exec cat {}",
        calls.display(),
        printed.path()
    );
    let shared = role(&["sh", "-c", &script]);
    let n_calls = || {
        fs::read_to_string(&calls)
            .unwrap_or_default()
            .lines()
            .count()
    };
    let web = host.guest("web").routed("10.0.0.10").up();
    let db = host.guest("db").routed("10.0.0.11").tables(&shared).up();
    host.instance("web").set_tables(&shared);
    let mut daemon = host.start();
    for guest in [&web, &db] {
        wait_for(guest, "AccessKeyId", "ASIASHARED");
    }
    assert_eq!(n_calls(), 1, "one call for both");

    // The new source does not answer: the old one's credentials must not be served in its place.
    let pid_file = host.dir().join("pid");
    let script = format!("echo $$ > {}; exec sleep 600", pid_file.display());
    host.instance("web")
        .set_tables(&role(&["sh", "-c", &script]));
    host.write_config();
    daemon.reload();
    for _ in 0..20 {
        assert_eq!(document(&web.get(CREDENTIALS))["Code"], "Failed");
    }
    let hanging = told_pid(&pid_file);
    assert_eq!(document(&db.get(CREDENTIALS))["AccessKeyId"], "ASIASHARED");
    assert_eq!(n_calls(), 1, "the reload asked again");

    // Nobody wants either any more: what runs is ended, and what was given is forgotten.
    let other = Printed::new(&host, "other.json");
    other.write("OTHER", 6 * 3600);
    let other_role = role(&["cat", other.path()]);
    host.instance("web").set_tables(&other_role);
    host.instance("db").set_tables("");
    host.write_config();
    daemon.reload();
    assert_eq!(db.get(CREDENTIALS).status(), 404, "a role that is gone");
    assert_eq!(status(&host, "db"), Value::Null);
    wait_for(&web, "AccessKeyId", "ASIAOTHER");
    eventually("the end of the command", SOON, || {
        (!is_alive(hanging)).then_some(())
    });

    // The first source again: it is asked again.
    host.instance("db").set_tables(&shared);
    host.write_config();
    daemon.reload();
    wait_for(&db, "AccessKeyId", "ASIASHARED");
    assert_eq!(n_calls(), 2);
}

#[test]
fn replaced_secrets_are_in_the_memory_of_neither_process() {
    let Some(mut host) = Host::new() else { return };
    let printed = Printed::new(&host, "web.json");
    let first = printed.write("ONE", 8);
    let _web = host
        .guest("web")
        .routed("10.0.0.10")
        .tables(&role(&["cat", printed.path()]))
        .up();
    let daemon = host.start();
    let expires = |at: UnixSeconds| {
        eventually("credentials", SOON, || {
            (status(&host, "web")["expires_unix_seconds"] == at.0).then_some(())
        });
    };
    let holders = |secret: &str| {
        [daemon.pid(), daemon.responder_pid()].map(|pid| memory_contains(pid, secret.as_bytes()))
    };
    expires(first);
    assert_eq!(
        holders("secret-ONE"),
        [true; 2],
        "the search finds what is there"
    );
    let second = printed.write("TWO", 6 * 3600);
    expires(second);
    eventually("the responder has them", SOON, || {
        (holders("secret-TWO") == [true; 2]).then_some(())
    });
    for secret in ["secret-ONE", "token-ONE"] {
        assert_eq!(holders(secret), [false; 2], "{secret}");
    }
}

#[test]
fn boto3_takes_the_credentials_of_a_command() {
    let Some(mut host) = Host::new() else { return };
    let printed = Printed::new(&host, "web.json");
    printed.write("ONE", 6 * 3600);
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .tokens_required()
        .tables(&role(&["cat", printed.path()]))
        .up();
    let _daemon = host.start();
    eventually("credentials", SOON, || {
        (status(&host, "web")["state"] == "fresh").then_some(())
    });
    let python = std::env::var("IMDS_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    if !run(&[&python, "-c", "import boto3"]).status.success() {
        return skip(&format!(
            "{python} has no boto3 (IMDS_TEST_PYTHON names a Python that has)"
        ));
    }
    let script = r#"
import boto3, logging, sys
logging.basicConfig(stream=sys.stdout, level=logging.WARNING)
credentials = boto3.Session().get_credentials()
frozen = credentials.get_frozen_credentials()
print(credentials.method, frozen.access_key, frozen.secret_key, frozen.token)
"#;
    // Nothing but the metadata service may tell boto3 anything.
    let output = web.run(&[
        "env",
        "-i",
        "PATH=/usr/bin:/bin",
        "HOME=/nonexistent",
        "AWS_METADATA_SERVICE_NUM_ATTEMPTS=1",
        &python,
        "-c",
        script,
    ]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "iam-role ASIAONE secret-ONE token-ONE\n",
        "{output:?}"
    );
}
