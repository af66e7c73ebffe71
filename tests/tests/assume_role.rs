//! AssumeRole: the host asks STS with its own credentials, here a stand-in on the host's loopback. For a binary that was
//! built with the feature `aws`; see `cargo xtask aws-test`.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use imds_tests::{Daemon, Guest, Host, eventually, imds};
use imds_user::instance::UnixSeconds;
use serde_json::Value;

const CREDENTIALS: &str = "/latest/meta-data/iam/security-credentials/web";
const ROLE_ARN: &str = "arn:aws:iam::123456789012:role/web";
/// Bound on an answer of STS and a few repetitions of a question.
const SOON: Duration = Duration::from_secs(30);

/// What the stand-in answers: status and body.
type Answer = (u16, String);

/// A stand-in for STS in the host's namespace. It answers every request with what it is told to, and keeps what it was
/// asked. Its thread ends with the test's process.
struct StandIn {
    address: SocketAddr,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl StandIn {
    fn start(host: &Host, answer: Answer) -> Self {
        let listener = host
            .namespace()
            .enter(|| TcpListener::bind("127.0.0.1:0"))
            .expect("loopback is up");
        let address = listener.local_addr().expect("it is bound");
        let answer = Arc::new(Mutex::new(answer));
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (answering, asking) = (Arc::clone(&answer), Arc::clone(&asked));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // The SDK keeps connections, and may have several.
                let (answering, asking) = (Arc::clone(&answering), Arc::clone(&asking));
                thread::spawn(move || converse(&stream, &answering, &asking));
            }
        });
        Self {
            address,
            answer,
            asked,
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn answers(&self, answer: Answer) {
        *self.answer.lock().expect("no panic under the lock") = answer;
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic under the lock").clone()
    }
}

/// Answers requests until the other side closes.
fn converse(
    stream: &TcpStream,
    answer: &Mutex<Answer>,
    asked: &Mutex<Vec<String>>,
) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut length, mut head) = (0, String::new());
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
            if line.trim().is_empty() {
                break;
            }
            head.push_str(&line);
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        asked
            .lock()
            .expect("no panic under the lock")
            .push(format!("{head}\n{body}"));
        let (status, text) = answer.lock().expect("no panic under the lock").clone();
        let mut writer = stream;
        write!(
            writer,
            "HTTP/1.1 {status} Some Reason\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        )?;
    }
}

/// STS's answer with credentials whose every part has `mark` in it.
fn credentials(mark: &str, life_seconds: u64) -> Answer {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("it is after 1970");
    let expiration = UnixSeconds(now.as_secs() + life_seconds);
    let body = format!(
        r#"<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
<AssumedRoleUser><AssumedRoleId>AROAEXAMPLE:session</AssumedRoleId><Arn>arn:aws:sts::123456789012:assumed-role/web/session</Arn></AssumedRoleUser>
<Credentials><AccessKeyId>ASIA{mark}</AccessKeyId><SecretAccessKey>secret-{mark}</SecretAccessKey>
<SessionToken>token-{mark}</SessionToken><Expiration>{}</Expiration></Credentials>
</AssumeRoleResult><ResponseMetadata><RequestId>c6104cbe-af31-11e0-8154-cbc7ccf896c7</RequestId></ResponseMetadata></AssumeRoleResponse>"#,
        expiration.iso()
    );
    (200, body)
}

fn refusal(code: &str, message: &str) -> Answer {
    let body = format!(
        r#"<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>{code}</Code>
<Message>{message}</Message></Error><RequestId>c6104cbe-af31-11e0-8154-cbc7ccf896c7</RequestId></ErrorResponse>"#
    );
    (403, body)
}

/// A host with credentials of its own, whose daemon logs all that it and the SDK have to say.
fn host() -> Option<Host> {
    let mut host = Host::new()?;
    host.daemon_env("AWS_ACCESS_KEY_ID", "AKIAHOST")
        .daemon_env("AWS_SECRET_ACCESS_KEY", "secret-of-host")
        .daemon_env("AWS_SESSION_TOKEN", "token-of-host")
        .daemon_env("RUST_LOG", "trace");
    isolate(&mut host);
    Some(host)
}

/// Nothing of this machine may tell the SDK anything.
fn isolate(host: &mut Host) {
    host.daemon_env("AWS_EC2_METADATA_DISABLED", "true")
        .daemon_env("AWS_CONFIG_FILE", "/nonexistent")
        .daemon_env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        .daemon_env("HOME", "/nonexistent");
}

fn role(url: &str, more: &str) -> String {
    format!(
        "[instance.role]\nname = \"web\"\nassume-role-arn = \"{ROLE_ARN}\"\nendpoint-url = \"{url}\"\n{more}\n"
    )
}

fn document(guest: &Guest) -> Value {
    let answer = guest.get(CREDENTIALS);
    assert_eq!(answer.status(), 200, "{answer:?}");
    serde_json::from_str(answer.text()).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

fn wait_for(guest: &Guest, key: &str, value: &str) -> Value {
    eventually(&format!("{key} is {value}"), SOON, || {
        Some(document(guest)).filter(|document| document[key] == value)
    })
}

fn last_error(host: &Host) -> String {
    eventually("an error", SOON, || {
        let status = host.status();
        let error = status["ports"][0]["credentials"]["last_error"].as_str()?;
        Some(error.to_owned())
    })
}

fn assert_no_secrets(daemon: &Daemon) {
    let log = daemon.log();
    for secret in ["secret-", "token-"] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret} is in the log");
    }
}

/// The other blocks of the document are `documents.rs`'s.
#[test]
fn the_configuration_in_the_document_is_right() {
    let text = include_str!("../../docs/credentials.md");
    let block = text
        .split_once("```toml aws\n")
        .and_then(|(_, rest)| rest.split_once("```"))
        .expect("the document shows how");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("imds.toml");
    fs::write(&file, block.0).expect("the directory takes a file");
    let output = imds(&["check", "--config", file.to_str().expect("paths are text")]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_guest_has_credentials_of_the_role_that_the_host_assumes() {
    let Some(mut host) = host() else { return };
    let sts = StandIn::start(&host, credentials("ONE", 3600));
    let more = "external-id = \"shared/id\"\nsession-duration-seconds = 7200";
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .tables(&role(&sts.url(), more))
        .up();
    let daemon = host.start();
    let found = wait_for(&web, "Code", "Success");
    assert_eq!(found["AccessKeyId"], "ASIAONE");
    assert_eq!(found["SecretAccessKey"], "secret-ONE");
    assert_eq!(found["Token"], "token-ONE");

    let asked = sts.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    for part in [
        "Action=AssumeRole",
        "RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fweb",
        &format!("RoleSessionName={}", web.id()),
        "ExternalId=shared%2Fid",
        "DurationSeconds=7200",
        // Signed by the host, for STS of the instance's region.
        "Credential=AKIAHOST/",
        "/eu-central-1/sts/aws4_request",
    ] {
        assert!(asked[0].contains(part), "{part} is not in {}", asked[0]);
    }
    let told = &host.status()["ports"][0]["credentials"];
    assert_eq!(told["kind"], "assume-role");
    assert_eq!(told["source"], format!("role {ROLE_ARN}"));
    assert_eq!(told["state"], "fresh");
    assert_no_secrets(&daemon);
}

#[test]
fn credentials_of_a_role_are_renewed() {
    let Some(mut host) = host() else { return };
    let sts = StandIn::start(&host, credentials("ONE", 8));
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .tables(&role(&sts.url(), ""))
        .up();
    let daemon = host.start();
    wait_for(&web, "AccessKeyId", "ASIAONE");
    sts.answers(credentials("TWO", 3600));
    wait_for(&web, "AccessKeyId", "ASIATWO");
    assert_no_secrets(&daemon);
}

#[test]
fn instances_with_a_session_name_in_common_share_a_session() {
    let Some(mut host) = host() else { return };
    let sts = StandIn::start(&host, credentials("ONE", 3600));
    let shared = role(&sts.url(), "session-name = \"fleet\"");
    let web = host.guest("web").routed("10.0.0.10").tables(&shared).up();
    let db = host.guest("db").routed("10.0.0.11").tables(&shared).up();
    let own = role(&sts.url(), "");
    let other = host.guest("other").routed("10.0.0.12").tables(&own).up();
    let _daemon = host.start();
    for guest in [&web, &db, &other] {
        wait_for(guest, "AccessKeyId", "ASIAONE");
    }
    let sessions = sts.asked();
    let n_of = |name: &str| {
        let part = format!("RoleSessionName={name}");
        sessions
            .iter()
            .filter(|asked| asked.contains(&part))
            .count()
    };
    assert_eq!((n_of("fleet"), n_of(other.id())), (1, 1), "{sessions:?}");
}

#[test]
fn a_role_that_may_not_be_assumed_is_told_in_ec2s_words() {
    let Some(mut host) = host() else { return };
    let message =
        "User: arn:aws:iam::123456789012:user/host is not authorized to perform: sts:AssumeRole";
    let sts = StandIn::start(&host, refusal("AccessDenied", message));
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .tables(&role(&sts.url(), ""))
        .up();
    let daemon = host.start();
    let found = wait_for(&web, "Code", "AssumeRoleUnauthorizedAccess");
    let updated = found["LastUpdated"].as_str().expect("a time");
    let expected = format!(
        "{{\n  \"Code\" : \"AssumeRoleUnauthorizedAccess\",\n  \"Message\" : \"EC2 cannot assume the role web.  Please \
         see documentation at https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_iam-ec2.html#troubleshoot_iam-ec2_errors-info-doc.\",\n  \
         \"LastUpdated\" : \"{updated}\"\n}}"
    );
    assert_eq!(web.get(CREDENTIALS).text(), expected);
    assert_eq!(
        last_error(&host),
        format!("STS refused: AccessDenied: {message}")
    );

    // Somebody corrects the trust policy.
    sts.answers(credentials("ONE", 3600));
    wait_for(&web, "AccessKeyId", "ASIAONE");
    assert_no_secrets(&daemon);
}

#[test]
fn other_refusals_are_told_to_the_operator_by_their_code_alone() {
    let Some(mut host) = host() else { return };
    let message = "The Canonical String for this request should have been secret-canonical-string";
    let sts = StandIn::start(&host, refusal("SignatureDoesNotMatch", message));
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .tables(&role(&sts.url(), ""))
        .up();
    let daemon = host.start();
    assert_eq!(last_error(&host), "STS refused: SignatureDoesNotMatch");
    assert_eq!(document(&web)["Code"], "Failed");
    assert_no_secrets(&daemon);
}

#[test]
fn an_sts_that_is_not_there_is_named() {
    let Some(mut host) = host() else { return };
    // Nobody listens on a port of the host's loopback that was never bound.
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .tables(&role("http://127.0.0.1:9", ""))
        .up();
    let _daemon = host.start();
    assert_eq!(
        last_error(&host),
        "STS cannot be reached: Connection refused (os error 111)"
    );
    assert_eq!(document(&web)["Code"], "Failed");
}

#[test]
fn a_host_without_credentials_is_told_so() {
    let Some(mut host) = Host::new() else { return };
    isolate(&mut host);
    let sts = StandIn::start(&host, credentials("ONE", 3600));
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .tables(&role(&sts.url(), ""))
        .up();
    let _daemon = host.start();
    let error = last_error(&host);
    assert!(
        error.contains("the host has no credentials of its own"),
        "{error}"
    );
    assert_eq!(document(&web)["Code"], "Failed");
    assert_eq!(sts.asked(), Vec::<String>::new());
}
