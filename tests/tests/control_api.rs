//! AWS's own clients drive the control API: boto3 and the AWS CLI, unmodified, over a store on disk.
//!
//! The API runs in the test's own process, on a loopback address.

#![expect(
    clippy::unwrap_used,
    reason = "test code, also outside of the functions that the lint takes for tests"
)]

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use imds_tests::{
    Address, Api as Client, Host as TestHost, INSTANCE_ID, Random, has_command, path_of, skip,
};
use imds_user::api::attend::attend;
use imds_user::api::ec2;
use imds_user::api::ec2::settle::Others;
use imds_user::api::server;
use imds_user::api::service::Api;
use imds_user::api::sts;
use imds_user::api::tls::Tls;
use imds_user::config::{Files, Ground, Guest, Installation, load};
use imds_user::instance::{InstanceId, TokenUse, UnixMillis, UnixSeconds};
use imds_user::store::{
    AccessKey, HistoryQuery, InstanceRecord, KeyRole, Note, Owner, Record, Sqlite, Store,
    StoreError, Who,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const ACCOUNT: &str = "123456789012";
const FILE: &str = r#"
[host]
account-id = "123456789012"

[[instance]]
port = "veth-file"
id = "i-0123456789abcdef0"

[instance.tags]
Name = "from-the-file"
"#;

/// A configuration file that is nowhere.
struct OneFile;

impl Files for OneFile {
    fn read(&self, _: &Path, _: usize) -> std::io::Result<Vec<u8>> {
        Ok(FILE.as_bytes().to_vec())
    }
}

/// Nobody runs machines, and whatever options are written are served at once.
struct Nobody;

impl Others for Nobody {
    fn has_machine(&self, _: InstanceId) -> bool {
        false
    }

    fn serves(&self, _: &InstanceRecord) -> bool {
        true
    }
}

/// A control API that runs, with an instance of a file in its store.
struct Running {
    directory: TempDir,
    runtime: Runtime,
    store: Store,
    address: SocketAddr,
    /// The image that can be launched.
    image: String,
}

impl Running {
    fn start() -> Self {
        Self::start_with(Some)
    }

    /// One without an instance.
    fn empty() -> Self {
        Self::start_with(|_| None)
    }

    /// With what is made of the instance of the file.
    fn start_with(of_file: impl FnOnce(Guest) -> Option<Guest>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let installation = Installation {
            seed: [5; 16],
            created: UnixSeconds(1_700_000_000),
        };
        let settings = load(Path::new("x.toml"), &installation, &OneFile).unwrap();
        let ground = Ground::of(settings.host, installation);
        let image = ground.images[0].id.to_string();
        let (store, address) = runtime.block_on(async {
            let backend = Sqlite::open(&directory.path().join("store")).unwrap();
            let store = Store::start(backend).unwrap();
            let guest = settings.guests.into_iter().next().unwrap();
            if let Some(guest) = of_file(guest) {
                let record = InstanceRecord::new("file", Owner::File, guest.instance);
                add(&store, record).await;
            }
            let address = serve(&store, ground, directory.path()).await;
            tokio::spawn(attend(store.clone(), Nobody, now));
            (store, address)
        });
        Self {
            directory,
            runtime,
            store,
            address,
            image,
        }
    }

    fn key(&self, role: KeyRole) -> AccessKey {
        let key = |view: &imds_user::store::View| {
            let mut keys = view.access_keys().values();
            let key = keys.find(|key| key.value.role == role);
            key.map(|key| AccessKey::clone(&key.value))
        };
        self.store.read(key).expect("a key for each role")
    }

    /// What a client needs to know.
    fn environment(&self, command: &mut Command) {
        let (admin, reader) = (self.key(KeyRole::Admin), self.key(KeyRole::ReadOnly));
        let actions = ec2::ACTIONS.iter().chain(sts::ACTIONS);
        let actions: Vec<_> = actions.map(|action| action.name).collect();
        command.env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        for (name, value) in [
            ("HOME", self.directory.path().to_str().unwrap()),
            ("AWS_ENDPOINT_URL", &format!("http://{}", self.address)),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_ACCESS_KEY_ID", &admin.id),
            ("AWS_SECRET_ACCESS_KEY", admin.secret.expose()),
            ("ADMIN_KEY", &admin.id),
            ("ADMIN_SECRET", admin.secret.expose()),
            ("READER_KEY", &reader.id),
            ("READER_SECRET", reader.secret.expose()),
            ("ACCOUNT", ACCOUNT),
            ("FILE_INSTANCE", "i-0123456789abcdef0"),
            ("ACTIONS", &actions.join(",")),
        ] {
            command.env(name, value);
        }
    }

    /// Runs Python with AWS's clients; `None` where there is none.
    fn python(&self, module: &str, args: &[&str]) -> Option<Output> {
        let python = std::env::var("IMDS_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let import = Command::new(&python)
            .args(["-c", &format!("import {module}")])
            .output();
        if !import.is_ok_and(|output| output.status.success()) {
            skip(&format!(
                "{python} has no {module} (IMDS_TEST_PYTHON names a Python that has)"
            ));
            return None;
        }
        let mut command = Command::new(python);
        self.environment(&mut command);
        Some(command.args(args).output().unwrap())
    }

    fn aws(&self, args: &[&str]) -> Option<Output> {
        self.python("awscli", &[&["-m", "awscli"], args].concat())
    }

    /// The second version of AWS's command line. Debian's is older than the variable that names the endpoint.
    fn aws_2(&self, args: &[&str]) -> Option<Output> {
        let program = path_of("IMDS_TEST_AWS_CLI_2", "Debian's awscli, where there is one")?;
        let mut command = Command::new(program);
        self.environment(&mut command);
        let endpoint = format!("http://{}", self.address);
        let args = command.args(["--endpoint-url", &endpoint]).args(args);
        Some(args.output().unwrap())
    }

    fn history(&self) -> Vec<imds_user::store::Entry> {
        let query = HistoryQuery {
            limit: 1000,
            ..HistoryQuery::default()
        };
        self.runtime.block_on(self.store.history(query)).unwrap()
    }
}

fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    UnixMillis(u64::try_from(since.unwrap().as_millis()).unwrap())
}

async fn add(store: &Store, record: InstanceRecord) {
    let record = Record::Instance(Box::new(record));
    let added = store.update(|view| {
        let mut draft = view.draft(Note {
            at: now(),
            who: Who::Daemon,
            what: "test".into(),
        });
        draft.put(&record)?;
        Ok::<_, StoreError>((draft.finish(), ()))
    });
    added.await.unwrap();
}

async fn serve(store: &Store, ground: Ground, directory: &Path) -> SocketAddr {
    let api = Api::start(store.clone(), ground).await.unwrap();
    let listener = server::listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(server::serve(Arc::clone(&api), listener));
    let unix = server::listen_unix(&directory.join("api.sock")).unwrap();
    tokio::spawn(server::serve_unix(api, unix));
    address
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

#[test]
fn boto3_makes_every_call_and_finds_its_reply_in_the_model() {
    let running = Running::start();
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/fixtures/control-api/clients.py"
    );
    let Some(output) = running.python("boto3", &[script]) else {
        return;
    };
    assert!(output.status.success(), "{}", text(&output));
}

/// The list, and what is to differ from it and why, is in the script.
#[test]
fn boto3_finds_what_the_tests_of_moto_find() {
    let running = Running::empty();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/moto.py");
    let Some(output) = running.python("boto3", &[script]) else {
        return;
    };
    println!("{}", text(&output));
    assert!(output.status.success());
}

#[test]
fn the_aws_cli_hardens_an_instance_and_the_history_knows_who_did_it() {
    let running = Running::start();
    let instance = "i-0123456789abcdef0";
    let modify = [
        "ec2",
        "modify-instance-metadata-options",
        "--instance-id",
        instance,
        "--http-tokens",
        "required",
    ];
    let Some(output) = running.aws(&modify) else {
        return;
    };
    assert!(output.status.success(), "{}", text(&output));
    let query = "Reservations[].Instances[].MetadataOptions.HttpTokens";
    let args = [
        "ec2",
        "describe-instances",
        "--query",
        query,
        "--output",
        "text",
    ];
    let shown = running.aws(&args).unwrap();
    assert_eq!(text(&shown).trim(), "required");
    let history = running.history();
    let entry = history
        .iter()
        .find(|entry| &*entry.what == "ec2:ModifyInstanceMetadataOptions")
        .unwrap();
    let key = running.key(KeyRole::Admin).id;
    assert_eq!(&*entry.who, format!("key {key}"));
    assert_eq!(
        entry.about.as_deref(),
        Some(&*format!("instance/{instance}"))
    );
    let change = entry.changes.iter().map(ToString::to_string);
    assert!(
        change
            .into_iter()
            .any(|change| change.contains("optional → required")),
        "{entry:?}"
    );
    assert!(
        history
            .iter()
            .any(|entry| &*entry.what == "ec2:DescribeInstances"),
        "who looked is noted too"
    );
}

/// An operator's day with a command line: instances that exist are hardened, those to come too, and what is wrong is refused
/// and changes nothing.
fn check_command_line(running: &Running, aws: impl Fn(&[&str]) -> Option<Output>) {
    let refused = |args: &[&str], code: &str| {
        let output = aws(args).unwrap();
        let said = text(&output);
        assert!(!output.status.success(), "{args:?}");
        assert!(said.contains(&format!("({code})")), "{args:?}: {said}");
    };
    let say = |args: &[&str], query: &str| {
        let args = [&["ec2"], args, &["--output", "text", "--query", query]].concat();
        let output = aws(&args).unwrap();
        assert!(output.status.success(), "{args:?}: {}", text(&output));
        text(&output).trim().to_owned()
    };
    let Some(output) = aws(&["sts", "get-caller-identity"]) else {
        return;
    };
    assert!(text(&output).contains(ACCOUNT), "{}", text(&output));
    let launch = |options: &[&str]| {
        let run = ["run-instances", "--image-id", &running.image];
        say(&[&run, options].concat(), "Instances[0].InstanceId")
    };
    let options_of = |id: &str| {
        let query = "Reservations[0].Instances[0].MetadataOptions.[HttpTokens,HttpPutResponseHopLimit,HttpEndpoint,\
                     HttpProtocolIpv6,InstanceMetadataTags]";
        say(&["describe-instances", "--instance-ids", id], query).replace('\t', " ")
    };
    let hardened = launch(&[
        "--metadata-options",
        "HttpTokens=required,HttpPutResponseHopLimit=2",
    ]);
    assert_eq!(
        options_of(&hardened),
        "required 2 enabled disabled disabled"
    );
    let existing = launch(&[]);
    assert_eq!(
        options_of(&existing),
        "optional 1 enabled disabled disabled"
    );
    let modify = |more: &[&str]| {
        let modify = [
            "modify-instance-metadata-options",
            "--instance-id",
            &existing,
        ];
        let query = "InstanceMetadataOptions.State";
        assert_eq!(say(&[&modify, more].concat(), query), "pending");
    };
    let offenders = || {
        let filters = [
            "--filters",
            "Name=metadata-options.http-tokens,Values=optional",
        ];
        let query = "Reservations[].Instances[].InstanceId";
        say(&[&["describe-instances"], &filters[..]].concat(), query)
    };
    let wrong = |id: &str, more: &[&str], code: &str| {
        let modify = [
            "ec2",
            "modify-instance-metadata-options",
            "--instance-id",
            id,
        ];
        refused(&[&modify, more].concat(), code);
    };
    wrong(
        &existing,
        &["--http-tokens", "required", "--dry-run"],
        "DryRunOperation",
    );
    wrong(
        &existing,
        &["--http-tokens", "maybe"],
        "InvalidParameterValue",
    );
    wrong(
        &existing,
        &["--http-put-response-hop-limit", "65"],
        "InvalidParameterValue",
    );
    wrong(
        "i-1234abcd",
        &["--http-tokens", "required"],
        "InvalidInstanceID.NotFound",
    );
    wrong(
        "web",
        &["--http-tokens", "required"],
        "InvalidInstanceID.Malformed",
    );
    assert_eq!(
        options_of(&existing),
        "optional 1 enabled disabled disabled"
    );
    assert_eq!(offenders(), existing);
    modify(&["--http-tokens", "required"]);
    assert_eq!(
        options_of(&existing),
        "required 1 enabled disabled disabled"
    );
    assert_eq!(offenders(), "");
    let rest = [
        "--http-put-response-hop-limit",
        "3",
        "--http-endpoint",
        "disabled",
    ];
    let rest = [
        &rest[..],
        &[
            "--http-protocol-ipv6",
            "enabled",
            "--instance-metadata-tags",
            "enabled",
        ],
    ];
    modify(&rest.concat());
    assert_eq!(options_of(&existing), "required 3 disabled enabled enabled");
    let defaults = [
        "modify-instance-metadata-defaults",
        "--http-tokens",
        "required",
    ];
    let set = aws(&[
        &["ec2"],
        &defaults[..],
        &["--http-put-response-hop-limit", "2"],
    ]
    .concat())
    .unwrap();
    if text(&set).contains("nvalid choice") {
        skip("this command line is older than account defaults");
        return;
    }
    assert!(set.status.success(), "{}", text(&set));
    let shown = say(
        &["get-instance-metadata-defaults"],
        "AccountLevel.[HttpTokens,HttpPutResponseHopLimit]",
    );
    assert_eq!(shown, "required\t2");
    assert_eq!(
        options_of(&launch(&[])),
        "required 2 enabled disabled disabled"
    );
    let optional = launch(&["--metadata-options", "HttpTokens=optional"]);
    assert_eq!(
        options_of(&optional),
        "optional 2 enabled disabled disabled"
    );
    assert_eq!(options_of(&existing), "required 3 disabled enabled enabled");
}

#[test]
fn the_first_aws_cli_hardens_what_is_and_what_is_to_come() {
    let running = Running::empty();
    check_command_line(&running, |args| running.aws(args));
}

#[test]
fn the_second_aws_cli_hardens_what_is_and_what_is_to_come() {
    let running = Running::empty();
    check_command_line(&running, |args| running.aws_2(args));
}

#[test]
fn a_key_is_made_once_and_holds_after_a_restart() {
    let running = Running::start();
    let before = running.key(KeyRole::Admin);
    let Running {
        directory,
        runtime,
        store,
        ..
    } = running;
    runtime.block_on(store.close());
    drop(runtime);
    let runtime = Runtime::new().unwrap();
    let store = Store::start(Sqlite::open(&directory.path().join("store")).unwrap()).unwrap();
    let installation = Installation {
        seed: [5; 16],
        created: UnixSeconds(1_700_000_000),
    };
    let host = load(Path::new("x.toml"), &installation, &OneFile)
        .unwrap()
        .host;
    runtime.block_on(async {
        Api::start(store.clone(), Ground::of(host, installation))
            .await
            .unwrap();
    });
    let n_keys = store.read(|view| view.access_keys().len());
    let kept = store.read(|view| view.access_key(&before.id).cloned());
    assert_eq!((n_keys, kept), (2, Some(before)));
}

#[test]
fn the_socket_knows_its_caller_without_a_signature() {
    let running = Running::start();
    let mut stream = UnixStream::connect(running.directory.path().join("api.sock")).unwrap();
    let body = "Action=GetCallerIdentity&Version=2011-06-15";
    let reply = ask(&mut stream, "POST", "/", body);
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    let uid = nix::unistd::geteuid();
    assert!(
        reply.contains(&format!("<UserId>uid {uid}</UserId>")),
        "{reply}"
    );
}

/// A request, and all that is answered until the connection ends.
fn ask(
    stream: &mut (impl std::io::Read + std::io::Write),
    method: &str,
    target: &str,
    body: &str,
) -> String {
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    // A server that has enough may end the connection before it has all.
    let _sent = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body.as_bytes()));
    let mut reply = Vec::new();
    let _read = stream.read_to_end(&mut reply);
    String::from_utf8_lossy(&reply).into_owned()
}

fn check_wire(running: &Running, method: &str, target: &str, body: &str, status: u16, part: &str) {
    let mut stream = TcpStream::connect(running.address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let reply = ask(&mut stream, method, target, body);
    let start = format!("HTTP/1.1 {status} ");
    assert!(
        reply.starts_with(&start) && reply.contains(part),
        "{method} {target}: {reply}"
    );
}

#[test]
fn who_does_not_sign_gets_nothing_and_leaves_no_trace_in_the_history() {
    let running = Running::start();
    let n_entries = running.history().len();
    let check = |method: &str, target: &str, body: &str, status: u16, part: &str| {
        check_wire(&running, method, target, body, status, part);
    };
    let describe = "Action=DescribeInstances&Version=2016-11-15";
    check("POST", "/", describe, 401, "<Code>AuthFailure</Code>");
    check(
        "GET",
        &format!("/?{describe}"),
        "",
        401,
        "<Code>AuthFailure</Code>",
    );
    check("POST", "/", "", 401, "<Code>AuthFailure</Code>");
    check("POST", "/", "%", 401, "<Code>AuthFailure</Code>");
    check(
        "POST",
        "/",
        "Action=GetCallerIdentity&Version=2011-06-15",
        403,
        "<Code>MissingAuthenticationToken</Code>",
    );
    check(
        "GET",
        "/latest/meta-data/",
        "",
        400,
        "<Code>InvalidAction</Code>",
    );
    check(
        "PUT",
        "/?X-Amz-Signature=1",
        "",
        400,
        "<Code>IncompleteSignature</Code>",
    );
    let long = "a".repeat((1 << 20) + 1);
    check(
        "POST",
        "/",
        &long,
        413,
        "<Code>RequestEntityTooLarge</Code>",
    );
    assert_eq!(running.history().len(), n_entries);
}

#[test]
fn a_call_that_is_sent_again_later_or_changed_on_its_way_changes_nothing() {
    let running = Running::start();
    let script = r#"
import datetime, os, sys, urllib.error, urllib.request
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from unittest import mock

url = os.environ["AWS_ENDPOINT_URL"] + "/"
body = ("Action=ModifyInstanceMetadataOptions&Version=2016-11-15&HttpTokens=required&InstanceId="
        + os.environ["FILE_INSTANCE"])
keys = Credentials(os.environ["ADMIN_KEY"], os.environ["ADMIN_SECRET"])

def send(minutes=0, change=lambda headers, body: body):
    request = AWSRequest("POST", url, data=body, headers={
        "Content-Type": "application/x-www-form-urlencoded; charset=utf-8"})
    at = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=minutes)
    with mock.patch("botocore.auth.get_current_datetime", lambda **_: at, create=True):
        SigV4Auth(keys, "ec2", "us-east-1").add_auth(request)
    headers = dict(request.headers)
    sent = change(headers, body)
    try:
        urllib.request.urlopen(urllib.request.Request(url, sent.encode(), headers), timeout=5)
        return 200
    except urllib.error.HTTPError as error:
        return error.code

def header(name, value):
    def change(headers, body):
        headers[name] = value
        return body
    return change

assert send(minutes=16) == 400, send(minutes=16)
assert send(minutes=-16) == 400
assert send(change=lambda _, body: body.replace("required", "optional")) == 401
assert send(change=lambda _, body: body + "&DryRun=false") == 401
assert send(change=header("Content-Type", "text/plain")) == 401
assert send(change=header("Host", "elsewhere")) == 401
assert send(change=header("X-Amz-Security-Token", "mine")) == 400
if sys.argv[1] == "whole":
    assert send(minutes=14) == 200
"#;
    let tokens = || {
        let id = "i-0123456789abcdef0".parse().unwrap();
        running
            .store
            .read(|view| view.instance(id).unwrap().spec.options.http_tokens)
    };
    let before = tokens();
    for (how, changes) in [("spoiled", false), ("whole", true)] {
        let Some(output) = running.python("botocore", &["-c", script, how]) else {
            return;
        };
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(tokens() != before, changes, "{how}");
    }
}

/// A call as it goes over the wire, signed by AWS's signer.
fn signed_call(running: &Running, is_presigned: bool) -> Vec<u8> {
    let key = running.key(KeyRole::Admin);
    let credentials = Credentials::new(&*key.id, key.secret.expose(), None, None, "test");
    let identity = credentials.into();
    let form = "Action=ModifyInstanceMetadataOptions&Version=2016-11-15&HttpTokens=required&InstanceId=i-0123456789abcdef0";
    let mut settings = SigningSettings::default();
    if is_presigned {
        settings.signature_location = SignatureLocation::QueryParams;
        settings.expires_in = Some(Duration::from_secs(600));
    }
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region("us-east-1")
        .name("ec2")
        .time(SystemTime::now())
        .settings(settings)
        .build()
        .unwrap()
        .into();
    let host = running.address.to_string();
    let (method, query, body) = match is_presigned {
        true => ("GET", form, ""),
        false => ("POST", "", form),
    };
    let mut headers = vec![("host".to_owned(), host.clone())];
    if !is_presigned {
        let kind = "application/x-www-form-urlencoded; charset=utf-8".to_owned();
        headers.push(("content-type".to_owned(), kind));
    }
    let mut target = format!("/?{query}").trim_end_matches('?').to_owned();
    let given = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let body_to_sign = SignableBody::Bytes(body.as_bytes());
    let uri = format!("http://{host}{target}");
    let signable = SignableRequest::new(method, uri, given, body_to_sign).unwrap();
    let (signed, _) = sign(signable, &params).unwrap().into_parts();
    let (more, query) = signed.into_parts();
    for header in more {
        headers.push((header.name().to_owned(), header.value().to_owned()));
    }
    for (name, value) in query {
        let value: String = value
            .bytes()
            .map(|byte| match byte {
                byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                    char::from(byte).to_string()
                }
                byte => format!("%{byte:02X}"),
            })
            .collect();
        target.push_str(&format!("&{name}={value}"));
    }
    let headers = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"));
    format!(
        "{method} {target} HTTP/1.1\r\n{}\r\n{body}",
        headers.collect::<String>()
    )
    .into_bytes()
}

/// Sends bytes as they are, and with the length of their body, and returns the status of the answer, if there is one.
fn send_raw(running: &Running, request: &[u8]) -> Option<u16> {
    use std::io::{Read, Write};
    let end = request.windows(4).position(|part| part == b"\r\n\r\n");
    // A head that does not end is waited for.
    let patience = Duration::from_millis(if end.is_some() { 10_000 } else { 100 });
    let n_body = end.map_or(0, |end| request.len() - end - 4);
    let line = request.iter().position(|byte| *byte == b'\n');
    let (first, rest) = request.split_at(line.map_or(0, |at| at + 1));
    let fields = format!("Connection: close\r\nContent-Length: {n_body}\r\n");
    let mut stream = TcpStream::connect(running.address).unwrap();
    stream.set_read_timeout(Some(patience)).unwrap();
    // A server that has enough may end the connection before it has all.
    let _sent = stream.write_all(&[first, fields.as_bytes(), rest].concat());
    let mut reply = Vec::new();
    let _read = stream.read_to_end(&mut reply);
    let reply = String::from_utf8_lossy(&reply).into_owned();
    reply.split(' ').nth(1)?.parse().ok()
}

/// Whatever byte of a call is another, in its first line, the names and values of its headers or its body, nothing comes of it,
/// unless it says the same as before: as `Host` and `host` do, or `%2f` and `%2F`.
#[test]
fn a_call_of_which_one_byte_is_another_has_no_effect() {
    const EACH: usize = 5000;
    let running = Running::start();
    let random = Random::by_time();
    let says_the_same = |one: &[u8], other: &[u8]| {
        // The test's own reading. Spaces around a value, the version of HTTP, and the case of names and escapes are nothing.
        let meaning = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            // Lines may end without a carriage return.
            let lines = text.split_inclusive('\n');
            let n_head = lines
                .clone()
                .take_while(|line| !line.trim_end().is_empty())
                .count();
            let mut head = lines.clone().take(n_head).map(|line| line.trim_end());
            let body: String = lines.skip(n_head + 1).collect();
            let first = head.next()?;
            let words: Vec<_> = first.split(' ').collect();
            let [method, target, "HTTP/1.1" | "HTTP/1.0"] = words[..] else {
                return None;
            };
            let target = target.replace("%2f", "%2F").replace("%3b", "%3B");
            let mut fields: Vec<(String, String)> = head
                .map(|field| {
                    let (name, value) = field.split_once(':')?;
                    let words: Vec<_> = value
                        .split([' ', '\t'])
                        .filter(|word| !word.is_empty())
                        .collect();
                    Some((name.to_ascii_lowercase(), words.join(" ")))
                })
                .collect::<Option<_>>()?;
            fields.sort();
            Some((method.to_owned(), target, fields, body))
        };
        let meaning_of_one = meaning(one);
        meaning_of_one.is_some() && meaning_of_one == meaning(other)
    };
    let n_done = || {
        let history = running.history().into_iter();
        history
            .filter(|entry| &*entry.what == "ec2:ModifyInstanceMetadataOptions")
            .count()
    };
    let mut n_whole = 0;
    for is_presigned in [false, true] {
        let call = signed_call(&running, is_presigned);
        assert_eq!(
            send_raw(&running, &call),
            Some(200),
            "{}",
            String::from_utf8_lossy(&call)
        );
        n_whole += 1;
        for _ in 0..EACH {
            let mut changed = call.clone();
            let at = random.below(changed.len());
            let other = random.next().to_le_bytes()[0];
            // Half of them by one bit, as lines and memory do it, and half by any other byte.
            changed[at] ^= if random.below(2) == 0 {
                1 << random.below(8)
            } else {
                other.max(1)
            };
            let status = send_raw(&running, &changed);
            if status == Some(200) {
                n_whole += 1;
                assert!(
                    says_the_same(&call, &changed),
                    "IMDS_TEST_SEED={}: {}",
                    random.seed(),
                    String::from_utf8_lossy(&changed)
                );
            } else {
                assert!(
                    status.is_none_or(|status| (400..500).contains(&status)),
                    "{status:?}"
                );
            }
        }
    }
    assert_eq!(n_done(), n_whole, "calls in the history");
    println!(
        "{} calls of which one byte was another: {} said the same",
        2 * EACH,
        n_whole - 2
    );
}

#[test]
fn it_is_offered_to_this_machine_alone() {
    let runtime = Runtime::new().unwrap();
    let _entered = runtime.enter();
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "10.0.0.1:80"] {
        let error = server::listen(address.parse().unwrap()).unwrap_err();
        assert!(
            error.to_string().contains("is not a loopback address"),
            "{error}"
        );
    }
    // The port of somebody else is not taken over.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = server::listen(taken.local_addr().unwrap()).unwrap_err();
    assert!(
        error.to_string().starts_with("listen at 127.0.0.1:"),
        "{error}"
    );
}

#[test]
fn beyond_this_machine_it_is_offered_by_tls() {
    let running = Running::start();
    let at = |name: &str| running.directory.path().join(name);
    let (certificate, key) = (at("certificate.pem"), at("key.pem"));
    let made = Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=api",
        ])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output();
    if !made.is_ok_and(|output| output.status.success()) {
        skip("openssl is not installed");
        return;
    }
    assert!(Tls::read(&key, &key).is_err() && Tls::read(&certificate, &certificate).is_err());
    let tls = Tls::read(&certificate, &key).unwrap();
    let address = running.runtime.block_on(async {
        let installation = Installation {
            seed: [5; 16],
            created: UnixSeconds(1_700_000_000),
        };
        let host = load(Path::new("x.toml"), &installation, &OneFile)
            .unwrap()
            .host;
        let ground = Ground::of(host, installation);
        let api = Api::start(running.store.clone(), ground).await.unwrap();
        let listener = server::listen_anywhere("0.0.0.0:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(server::serve_tls(api, listener, tls));
        format!("https://127.0.0.1:{port}")
    });
    let whoami = ["sts", "get-caller-identity", "--endpoint-url", &address];
    let trusted = ["--ca-bundle", certificate.to_str().unwrap()];
    let Some(output) = running.aws(&[&whoami[..], &trusted[..]].concat()) else {
        return;
    };
    assert!(
        output.status.success() && text(&output).contains(ACCOUNT),
        "{}",
        text(&output)
    );
    let without = running.aws(&whoami).unwrap();
    assert!(
        text(&without).contains("certificate verify failed"),
        "{}",
        text(&without)
    );
    // Without TLS nothing is said.
    let mut stream = TcpStream::connect(address.trim_start_matches("https://")).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let reply = ask(&mut stream, "POST", "/", "Action=DescribeRegions");
    assert!(!reply.contains("HTTP/1.1"), "{reply}");
}

/// A guest that routes 127.0.0.1 to a host that lets it (`route_localnet`, as some container networks set it).
#[test]
fn a_guest_reaches_it_by_no_route() {
    let Some(mut host) = TestHost::new() else {
        return;
    };
    let web = host.guest("web").bridged("br0", "10.0.0.10").up();
    for namespace in [host.namespace(), web.namespace()] {
        let set = "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet";
        assert!(namespace.run(&["sh", "-c", set]).status.success());
    }
    assert!(
        web.run(&["ip", "address", "flush", "dev", "lo"])
            .status
            .success()
    );
    let runtime = Runtime::new().unwrap();
    let (open, ours) = host.namespace().enter(|| {
        let _entered = runtime.enter();
        let open = TcpListener::bind("127.0.0.1:0").unwrap();
        (
            open,
            server::listen("127.0.0.1:0".parse().unwrap()).unwrap(),
        )
    });
    let to = |address: SocketAddr| web.try_connect(Address::Other(address));
    let there = to(open.local_addr().unwrap());
    assert!(there.is_ok(), "the route is there: {:?}", there.err());
    assert!(to(ours.local_addr().unwrap()).is_err());
}

/// Calls the Unix socket of a daemon, which knows that root calls.
fn call(host: &TestHost, form: &str) -> String {
    let mut stream = UnixStream::connect(host.state_dir().join("api.sock")).unwrap();
    let reply = ask(
        &mut stream,
        "POST",
        "/",
        &format!("{form}&Version=2016-11-15"),
    );
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{form}: {reply}");
    reply
}

#[test]
fn what_is_stopped_by_the_api_is_not_answered_until_it_is_started() {
    let Some(mut host) = TestHost::new() else {
        return;
    };
    let web = host.guest("web").routed("10.0.0.10").up();
    let _daemon = host.start();
    let until = |state: &str| {
        let begun = Instant::now();
        let describe = format!("Action=DescribeInstances&InstanceId.1={}", web.id());
        while !call(&host, &describe).contains(&format!("<name>{state}</name>")) {
            assert!(
                begun.elapsed() < Duration::from_secs(5),
                "it is not {state}"
            );
        }
    };
    call(
        &host,
        &format!("Action=StopInstances&InstanceId.1={}", web.id()),
    );
    until("stopped");
    let shown = host.command("status --json");
    assert!(
        text(&shown).contains(r#""state":"stopped""#)
            || text(&shown).contains(r#""state": "stopped""#),
        "{}",
        text(&shown)
    );
    call(
        &host,
        &format!("Action=StartInstances&InstanceId.1={}", web.id()),
    );
    until("running");
    let begun = Instant::now();
    while host.status()["ports"][0]["state"] != "running" {
        assert!(begun.elapsed() < Duration::from_secs(5), "it does not run");
    }
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
}

#[test]
fn imds_aws_env_points_the_aws_cli_to_the_daemon() {
    let Some(mut host) = TestHost::new() else {
        return;
    };
    let web = host.guest("web").routed("10.0.0.10").up();
    let _daemon = host.start();
    let found = host.command("aws-env --json");
    let found: serde_json::Value = serde_json::from_slice(&found.stdout).expect("JSON");
    assert_eq!(found["AWS_ENDPOINT_URL"], "http://127.0.0.1:4566");
    let shell = text(&host.command("aws-env --role read-only"));
    assert!(shell.contains("export AWS_ACCESS_KEY_ID='AKIA"), "{shell}");
    assert!(
        !shell.contains(found["AWS_ACCESS_KEY_ID"].as_str().unwrap()),
        "each role has its key"
    );
    let python = std::env::var("IMDS_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let variables = found.as_object().unwrap().iter();
    let variables = variables.map(|(name, value)| format!("{name}={}", value.as_str().unwrap()));
    let mut argv = vec!["env".to_owned()];
    argv.extend(variables);
    argv.push(python.clone());
    let query = "Reservations[].Instances[].InstanceId";
    let args = [
        "-m",
        "awscli",
        "ec2",
        "describe-instances",
        "--query",
        query,
        "--output",
        "text",
    ];
    argv.extend(args.map(str::to_owned));
    let argv: Vec<_> = argv.iter().map(String::as_str).collect();
    let shown = host.namespace().run(&argv);
    if text(&shown).contains("No module named") {
        skip(&format!("{python} has no awscli"));
        return;
    }
    assert_eq!(text(&shown).trim(), web.id());
    // Its guest finds nothing there.
    let api = Address::Other("127.0.0.1:4566".parse().unwrap());
    assert!(web.try_connect(api).is_err());
}

#[test]
fn a_daemon_that_offers_it_nowhere_says_so() {
    let Some(mut host) = TestHost::new() else {
        return;
    };
    let _web = host.guest("web").routed("10.0.0.10").up();
    host.run_option("--api").run_option("none");
    let _daemon = host.start();
    let refused = host.command("aws-env");
    assert!(!refused.status.success());
    assert!(text(&refused).contains("--api none"), "{}", text(&refused));
}

#[test]
fn a_daemon_does_not_offer_it_to_the_network_without_tls() {
    let Some(mut host) = TestHost::new() else {
        return;
    };
    let _web = host.guest("web").routed("10.0.0.10").up();
    host.write_config();
    host.run_option("--api").run_option("0.0.0.0:4566");
    let refused = host.run_to_the_end();
    assert!(!refused.status.success());
    assert!(
        text(&refused).contains("0.0.0.0 is not a loopback address"),
        "{}",
        text(&refused)
    );
}

/// A configuration of Terraform's, in a directory of its own.
struct Terraform<'a> {
    running: &'a Running,
    directory: TempDir,
}

impl<'a> Terraform<'a> {
    /// `None` where Terraform or its provider is not installed.
    fn new(running: &'a Running) -> Option<Self> {
        let mirror = "find / -xdev -path '*/hashicorp/aws' -type d 2>/dev/null | head -n 1";
        let mirror = Command::new("sh").args(["-c", mirror]).output().unwrap();
        let mirror = String::from_utf8(mirror.stdout).unwrap();
        let root = Path::new(mirror.trim()).ancestors().nth(3);
        let (true, Some(root)) = (has_command("terraform"), root) else {
            skip("Terraform or a mirror of its AWS provider is not installed");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let settings = format!(
            "disable_checkpoint = true\nprovider_installation {{\n  filesystem_mirror {{\n    path = \"{}\"\n    \
             include = [\"*/*/*\"]\n  }}\n}}\n",
            root.display()
        );
        std::fs::write(directory.path().join("settings.tfrc"), settings).unwrap();
        Some(Self { running, directory })
    }

    /// Writes what is wanted: files of `fixtures/control-api`.
    fn want(&self, files: &[&str], words: &[(&str, &str)]) {
        for file in ["main.tf", "instance.tf", "defaults.tf"] {
            let path = self.directory.path().join(file);
            if !files.contains(&file) {
                // It may never have been there.
                std::fs::remove_file(path).ok();
                continue;
            }
            let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/control-api");
            let mut text = std::fs::read_to_string(fixtures.join(file))
                .unwrap()
                .replace("ENDPOINT", &format!("http://{}", self.running.address))
                .replace("IMAGE", &self.running.image);
            for (word, value) in words {
                text = text.replace(word, value);
            }
            std::fs::write(path, text).unwrap();
        }
    }

    /// Runs a command, which is to end with this status.
    fn run(&self, args: &[&str], status: i32) {
        let mut command = Command::new("timeout");
        self.running.environment(&mut command);
        command
            .args(["120", "terraform"])
            .args(args)
            .env(
                "TF_CLI_CONFIG_FILE",
                self.directory.path().join("settings.tfrc"),
            )
            .env("TF_IN_AUTOMATION", "1")
            .env("CHECKPOINT_DISABLE", "1")
            .current_dir(self.directory.path());
        let output = command.output().unwrap();
        let found = output.status.code();
        assert_eq!(found, Some(status), "terraform {args:?}: {}", text(&output));
    }
}

/// The provider looks at none of these things before it begins, in most labs.
const SKIPS: &str = "skip_credentials_validation = true
  skip_requesting_account_id  = true
  skip_region_validation      = true";

fn check_terraform(skips: &str) {
    const APPLY: &[&str] = &["apply", "-auto-approve", "-input=false", "-no-color"];
    const PLAN: &[&str] = &["plan", "-detailed-exitcode", "-input=false", "-no-color"];
    const DESTROY: &[&str] = &["destroy", "-auto-approve", "-input=false", "-no-color"];
    let running = Running::empty();
    let Some(terraform) = Terraform::new(&running) else {
        return;
    };
    let tagged = |name: &str| {
        running.store.read(|view| {
            let mut records = view.instances().values().map(|record| &*record.value);
            let is_it =
                |record: &&InstanceRecord| record.spec.tags.iter().any(|tag| &*tag.value == name);
            records.find(is_it).unwrap().clone()
        })
    };
    let options = |name: &str| {
        let options = tagged(name).spec.options;
        (
            options.http_tokens,
            options.http_put_response_hop_limit.get(),
        )
    };
    let want = |files: &[&str], tokens: &str, stage: &str| {
        terraform.want(
            files,
            &[("SKIPS", skips), ("TOKENS", tokens), ("STAGE", stage)],
        );
    };
    // Made, and as it is wanted.
    want(&["main.tf", "instance.tf"], "optional", "one");
    terraform.run(&["init", "-input=false", "-no-color"], 0);
    terraform.run(APPLY, 0);
    terraform.run(PLAN, 0);
    let first = tagged("web");
    assert_eq!(options("web"), (TokenUse::Optional, 1));
    // In place: the instance stays the same.
    want(&["main.tf", "instance.tf"], "required", "two");
    terraform.run(APPLY, 0);
    terraform.run(PLAN, 0);
    let hardened = tagged("web");
    assert_eq!(hardened.spec.id, first.spec.id);
    assert_eq!(options("web"), (TokenUse::Required, 1));
    assert!(hardened.spec.tags.iter().any(|tag| &*tag.value == "two"));
    // What others change is seen and taken back.
    let id = first.spec.id.to_string();
    let drift = [
        "ec2",
        "modify-instance-metadata-options",
        "--http-tokens",
        "optional",
        "--instance-id",
        &id,
    ];
    if let Some(output) = running.aws(&drift) {
        assert!(output.status.success(), "{}", text(&output));
        terraform.run(PLAN, 2);
    }
    // What is said for the account is for what is to come.
    want(
        &["main.tf", "instance.tf", "defaults.tf"],
        "required",
        "two",
    );
    terraform.run(APPLY, 0);
    terraform.run(PLAN, 0);
    assert_eq!(options("web"), (TokenUse::Required, 1));
    assert_eq!(options("plain"), (TokenUse::Required, 3));
    terraform.run(DESTROY, 0);
    assert!(tagged("web").is_terminated() && tagged("plain").is_terminated());
    let defaults = running.store.read(imds_user::store::View::defaults);
    assert_eq!(defaults, imds_user::store::AccountDefaults::default());
}

#[test]
fn terraform_makes_hardens_and_removes_an_instance_and_sees_what_others_changed() {
    check_terraform("");
}

#[test]
fn terraform_does_the_same_when_it_is_told_to_look_at_nothing_before() {
    check_terraform(SKIPS);
}

/// Does something in many threads at once, each with a connection of its own.
fn at_once<T: Send>(
    running: &Running,
    n_threads: usize,
    each: impl Fn(usize, &mut Client) -> T + Sync,
) -> Vec<T> {
    let begin = Barrier::new(n_threads);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads)
            .map(|number| {
                let (begin, each) = (&begin, &each);
                let mut client = Client::connect(running.directory.path()).unwrap();
                scope.spawn(move || {
                    begin.wait();
                    each(number, &mut client)
                })
            })
            .collect();
        let done = threads
            .into_iter()
            .map(|thread| thread.join().expect("no thread panics"));
        done.collect()
    })
}

/// What a reply has in elements of this name, each once, sorted.
fn all_of(reply: &str, element: &str) -> BTreeSet<String> {
    let (start, end) = (format!("<{element}>"), format!("</{element}>"));
    let parts = reply.split(&start).skip(1);
    let parts = parts.filter_map(|part| part.split_once(&end));
    parts.map(|(inside, _)| inside.to_owned()).collect()
}

#[test]
fn the_same_launch_by_many_clients_at_once_launches_once() {
    const CLIENTS: usize = 8;
    const ROUNDS: usize = 10;
    let running = Running::empty();
    for round in 0..ROUNDS {
        let launch = format!(
            "Action=RunInstances&ImageId={}&MinCount=2&MaxCount=2&ClientToken=token-{round}",
            running.image
        );
        let launched = at_once(&running, CLIENTS, |_, client| {
            all_of(&client.call(&launch).body, "instanceId")
        });
        assert_eq!(launched[0].len(), 2);
        assert!(
            launched.iter().all(|one| *one == launched[0]),
            "{launched:?}"
        );
        assert_eq!(
            running.store.read(|view| view.instances().len()),
            2 * (round + 1)
        );
    }
}

#[test]
fn launches_at_once_get_addresses_of_their_own() {
    const CLIENTS: usize = 8;
    const EACH: usize = 10;
    let running = Running::empty();
    let launch = format!(
        "Action=RunInstances&ImageId={}&MinCount=1&MaxCount=1",
        running.image
    );
    at_once(&running, CLIENTS, |_, client| {
        (0..EACH).for_each(|_| drop(client.call(&launch)));
    });
    let addresses: Vec<_> = running.store.read(|view| {
        let records = view.instances().values();
        let addresses = records.map(|record| record.value.spec.primary.private_ipv4s[0].address);
        addresses.collect()
    });
    let different: BTreeSet<_> = addresses.iter().collect();
    assert_eq!(
        (addresses.len(), different.len()),
        (CLIENTS * EACH, CLIENTS * EACH)
    );
}

/// Threads by the socket and processes with boto3 change tags and options of one instance, each its own. All of them are there
/// at the end, and each stands in the history once.
#[test]
fn many_clients_that_change_one_instance_lose_nothing_of_each_other() {
    const THREADS: usize = 6;
    const PROCESSES: usize = 3;
    const EACH: usize = 5;
    let running = Running::start();
    let instance = "i-0123456789abcdef0";
    let script = r#"
import os, sys, boto3
ec2 = boto3.client("ec2")
for number in range(int(sys.argv[2])):
    tag = {"Key": f"process-{sys.argv[1]}-{number}", "Value": "x"}
    ec2.create_tags(Resources=[os.environ["FILE_INSTANCE"]], Tags=[tag])
"#;
    let n_processes = thread::scope(|scope| {
        let processes: Vec<_> = (0..PROCESSES)
            .map(|number| {
                let running = &running;
                scope.spawn(move || {
                    let args = ["-c", script, &number.to_string(), &EACH.to_string()];
                    running.python("boto3", &args)
                })
            })
            .collect();
        at_once(&running, THREADS, |number, client| {
            for n in 0..EACH {
                let key = format!("thread-{number}-{n}");
                client.call(&format!(
                    "Action=CreateTags&ResourceId.1={instance}&Tag.1.Key={key}&Tag.1.Value=x"
                ));
                // Options, too: each of two threads has one.
                let option = match number {
                    0 => format!("HttpPutResponseHopLimit={}", 10 + n),
                    1 if n % 2 == 0 => "HttpTokens=required".to_owned(),
                    1 => "HttpTokens=optional".to_owned(),
                    _ => continue,
                };
                client.call(&format!(
                    "Action=ModifyInstanceMetadataOptions&InstanceId={instance}&{option}"
                ));
            }
        });
        let outputs = processes
            .into_iter()
            .filter_map(|process| process.join().unwrap());
        let outputs =
            outputs.inspect(|output| assert!(output.status.success(), "{}", text(output)));
        outputs.count()
    });
    let expected: BTreeSet<String> = (0..THREADS)
        .map(|number| format!("thread-{number}"))
        .chain((0..n_processes).map(|number| format!("process-{number}")))
        .flat_map(|who| (0..EACH).map(move |n| format!("{who}-{n}")))
        .collect();
    let record = running
        .store
        .read(|view| view.instance(instance.parse().unwrap()).unwrap().clone());
    let tags: BTreeSet<String> = record
        .spec
        .tags
        .iter()
        .map(|tag| tag.key.to_string())
        .collect();
    assert!(
        tags.is_superset(&expected),
        "{:?} are lost",
        expected.difference(&tags)
    );
    let options = record.spec.options;
    assert_eq!(
        options.http_put_response_hop_limit.get(),
        10 + EACH as u8 - 1
    );
    assert_eq!(options.http_tokens, TokenUse::Required);
    let history = running.history();
    let n_entries = |what: &str| {
        let entries = history
            .iter()
            .filter(|entry| &*entry.what == what && !entry.changes.is_empty());
        entries.count()
    };
    assert_eq!(n_entries("ec2:CreateTags"), expected.len());
    assert_eq!(n_entries("ec2:ModifyInstanceMetadataOptions"), 2 * EACH);
    for key in &expected {
        let entries = history.iter().filter(|entry| {
            let changes = entry.changes.iter().map(ToString::to_string);
            changes
                .into_iter()
                .any(|change| change.contains(key.as_str()))
        });
        assert_eq!(entries.count(), 1, "entries about {key}");
    }
}
