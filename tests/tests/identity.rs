//! The signed identity: what a guest fetches verifies with openssl, done as EC2's user guide says, with the installation's
//! certificate in place of Amazon's.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, SystemTime};

use imds_tests::{
    Daemon, Guest, Host, INSTANCE_ID, TOKEN_FIELD, eventually, has_command, is_alive,
};
use nix::sys::signal::{Signal, kill};

const BASE: &str = "/latest/dynamic/instance-identity";
const KINDS: [&str; 4] = ["rsa2048", "pkcs7", "signature", "dsa2048"];
/// Those that carry the document with them.
const SIGNED_DATA: [&str; 3] = ["rsa2048", "pkcs7", "dsa2048"];

fn leaf(guest: &Guest, name: &str) -> String {
    let response = guest.get(&format!("{BASE}/{name}"));
    assert_eq!(response.status(), 200, "{name}: {response:?}");
    response.text().to_owned()
}

/// A host, if there are openssl and curl as well.
fn new_host() -> Option<Host> {
    if !has_command("openssl") || !has_command("curl") {
        return None;
    }
    Host::new()
}

fn state_dir_of(host: &Host) -> String {
    let path = host.state_dir();
    path.to_str().expect("the test's directory is text").into()
}

fn certificate(host: &Host, kind: &str) -> String {
    let state_dir = state_dir_of(host);
    let arguments = ["identity", "certificate", "--kind", kind];
    let output = host.imds(&[&arguments[..], &["--state-dir", &state_dir]].concat());
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("PEM is text")
}

/// Puts the certificate where the guide's commands look for it, in a directory of this name.
fn directory_with_certificate(host: &Host, name: &str, kind: &str) -> String {
    let directory = host.dir().join(name);
    fs::create_dir_all(&directory).expect("the test's directory takes another");
    fs::write(directory.join("certificate"), certificate(host, kind)).expect("and a file");
    directory.to_str().expect("its name is text").to_owned()
}

/// Starts the daemon and waits for its keys, so that no request of a test has to, however busy the machine is.
fn start(host: &Host) -> Daemon {
    let daemon = host.start();
    certificate(host, "rsa2048");
    daemon
}

fn shell(guest: &Guest, directory: &str, script: &str) -> Output {
    guest.run(&["sh", "-ec", &format!("cd {directory}\n{script}")])
}

fn check_success(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("Verification successful"),
        "{output:?}"
    );
}

/// The guide's commands for IMDSv2, with the name of the leaf as their only variable.
fn fetch_script(leaf: &str) -> String {
    format!(
        r#"
        rm -f {leaf} document
        TOKEN=$(curl -sS -X PUT http://169.254.169.254/latest/api/token -H "X-aws-ec2-metadata-token-ttl-seconds: 21600")
        echo "-----BEGIN PKCS7-----" >> {leaf}
        curl -sS -H "X-aws-ec2-metadata-token: $TOKEN" http://169.254.169.254{BASE}/{leaf} >> {leaf}
        echo "" >> {leaf}
        echo "-----END PKCS7-----" >> {leaf}
        curl -sS -H "X-aws-ec2-metadata-token: $TOKEN" http://169.254.169.254{BASE}/document > document
        "#
    )
}

/// A way to verify that the guide tells, from fetching to the end.
fn verify(host: &Host, guest: &Guest, kind: &str) {
    let directory = directory_with_certificate(host, &format!("{}-{kind}", guest.name()), kind);
    let script = if kind == "signature" {
        format!(
            r#"
            rm -f signature document
            TOKEN=$(curl -sS -X PUT http://169.254.169.254/latest/api/token -H "X-aws-ec2-metadata-token-ttl-seconds: 21600")
            curl -sS -H "X-aws-ec2-metadata-token: $TOKEN" http://169.254.169.254{BASE}/signature | base64 -d >> signature
            curl -sS -H "X-aws-ec2-metadata-token: $TOKEN" http://169.254.169.254{BASE}/document >> document
            openssl x509 -pubkey -noout -in certificate > key
            openssl dgst -sha256 -verify key -signature signature document
            "#
        )
    } else {
        let fetch = fetch_script(kind);
        // First as older editions of the guide have it, with the document given; then with the one that comes along.
        format!(
            r#"{fetch}
            openssl smime -verify -in {kind} -inform PEM -content document -certfile certificate -noverify > /dev/null
            openssl smime -verify -in {kind} -inform PEM -certfile certificate -noverify > contained
            cmp contained document
            "#
        )
    };
    let output = shell(guest, &directory, &script);
    if kind == "signature" {
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("Verified OK"),
            "{output:?}"
        );
    } else {
        check_success(&output);
    }
}

#[test]
fn openssl_verifies_what_a_guest_fetches_as_the_guide_says() {
    let Some(mut host) = new_host() else { return };
    let web = host.guest("web").routed("10.0.0.10").tokens_required().up();
    let _daemon = start(&host);
    for kind in KINDS {
        verify(&host, &web, kind);
    }
    check_other_certificates_do_not_verify(&host, &web);
    check_another_document_does_not_verify(&host, &web);
}

/// Each kind has a key of its own.
fn check_other_certificates_do_not_verify(host: &Host, web: &Guest) {
    let directory = directory_with_certificate(host, "web-rsa2048", "signature");
    let script = "openssl smime -verify -in rsa2048 -inform PEM -certfile certificate -noverify";
    let output = shell(web, &directory, script);
    assert!(!output.status.success(), "{output:?}");
}

fn check_another_document_does_not_verify(host: &Host, web: &Guest) {
    for kind in KINDS {
        let directory = directory_with_certificate(host, &format!("web-{kind}"), kind);
        let path = Path::new(&directory).join("document");
        let mut document = fs::read(&path).expect("the document was fetched");
        let middle = document.len() / 2;
        document[middle] ^= 1;
        fs::write(&path, document).expect("a file can be written again");
        let script = if kind == "signature" {
            "openssl dgst -sha256 -verify key -signature signature document".to_owned()
        } else {
            format!(
                "openssl smime -verify -in {kind} -inform PEM -content document -certfile certificate -noverify"
            )
        };
        let output = shell(web, &directory, &script);
        let said = [&output.stdout[..], &output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(!output.status.success(), "{kind}: {output:?}");
        assert!(
            ["Verification failure", "digest failure"]
                .iter()
                .any(|words| said.contains(words)),
            "{kind}: {output:?}"
        );
    }
}

#[test]
fn leaves_have_the_form_of_ec2s() {
    let Some(mut host) = new_host() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let _daemon = start(&host);
    let listing = web.get(&format!("{BASE}/"));
    assert_eq!(
        listing.text(),
        "rsa2048\npkcs7\ndocument\nsignature\ndsa2048"
    );
    for kind in KINDS {
        let response = web.get(&format!("{BASE}/{kind}"));
        let text = response.text().to_owned();
        assert_eq!(response.header("content-type"), Some("text/plain"));
        check_lines(kind, &text);
        let head = web.request("HEAD", &format!("{BASE}/{kind}"), &[]);
        assert_eq!(head.status(), 200, "{kind}");
        assert_eq!(
            head.header("content-length"),
            Some(text.len().to_string().as_str()),
            "{kind}"
        );
        assert_eq!(web.get(&format!("{BASE}/{kind}/")).text(), text, "{kind}/");
        assert_eq!(web.get(&format!("{BASE}/{kind}/x")).status(), 404);
        assert_eq!(
            web.get(&format!("/2009-04-04/dynamic/instance-identity/{kind}"))
                .text(),
            text,
            "{kind} of an old version"
        );
    }
    assert_eq!(
        web.get("/2008-09-01/dynamic/instance-identity/pkcs7")
            .status(),
        404
    );
    for kind in SIGNED_DATA {
        let text = leaf(&web, kind);
        assert!(text.starts_with("MIAGCSqGSIb3DQEHAqCAMIAC"), "{kind}");
    }
    let signature = leaf(&web, "signature");
    let lengths: Vec<usize> = signature.lines().map(str::len).collect();
    assert_eq!(lengths, [76, 76, 20]);
    assert_eq!(signature.len(), 172 + 2);
}

/// Base64 in lines of 76 characters, no armour, no end of the last line.
fn check_lines(kind: &str, text: &str) {
    let lines: Vec<&str> = text.split('\n').collect();
    let (last, others) = lines.split_last().expect("a text has a line");
    assert!(others.iter().all(|line| line.len() == 76), "{kind}: {text}");
    assert!((1..=76).contains(&last.len()), "{kind}: {text}");
    assert!(
        text.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+/=\n".contains(&byte)),
        "{kind}: {text}"
    );
}

#[test]
fn a_guest_that_asks_while_keys_are_made_waits_for_them() {
    let Some(mut host) = new_host() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let _daemon = host.start();
    // On a machine so busy that keys take longer than a request waits, it is told to come back.
    eventually("signatures", Duration::from_secs(20), || {
        match web.get(&format!("{BASE}/dsa2048")).status() {
            200 => Some(()),
            503 => None,
            other => panic!("{other}"),
        }
    });
}

#[test]
fn a_refused_request_gets_no_signature() {
    let Some(mut host) = new_host() else { return };
    let web = host.guest("web").routed("10.0.0.10").tokens_required().up();
    let _daemon = start(&host);
    let path = format!("{BASE}/rsa2048");
    assert_eq!(web.get(&path).status(), 401);
    assert_eq!(web.get_with_token(&path, "nonsense").status(), 401);
    assert_eq!(web.request("POST", &path, &[]).status(), 405);
    let token = web.put_token(60);
    let forwarded = [
        (TOKEN_FIELD, token.as_str()),
        ("X-Forwarded-For", "10.0.0.1"),
    ];
    assert_eq!(web.request("GET", &path, &forwarded).status(), 403);
    let answer = web.get_with_token(&path, &token);
    assert_eq!(answer.status(), 200);
    assert!(
        answer
            .header("X-aws-ec2-metadata-token-ttl-seconds")
            .is_some()
    );
}

#[test]
fn each_guest_has_signatures_of_its_own() {
    let Some(mut host) = new_host() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let db = host.guest("db").routed("10.0.0.10").up();
    let _daemon = start(&host);
    for kind in KINDS {
        let (of_web, of_db) = (leaf(&web, kind), leaf(&db, kind));
        assert_ne!(of_web, of_db, "{kind}");
        assert_eq!(leaf(&web, kind), of_web, "{kind}");
        verify(&host, &web, kind);
        verify(&host, &db, kind);
    }
}

/// A document is signed once. The time of signing is in the signatures, so a second signing would show.
#[test]
fn signatures_stay_as_long_as_the_document_does() {
    let Some(mut host) = new_host() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let mut daemon = start(&host);
    let tell = || SIGNED_DATA.map(|kind| leaf(&web, kind));
    let before = tell();

    wait_for_the_next_second();
    assert_eq!(tell(), before);

    host.instance("web").key("tags", "{ Name = \"web\" }");
    host.write_config();
    daemon.reload();
    assert_eq!(
        tell(),
        before,
        "after a change that the document does not show"
    );

    let responder = daemon.responder_pid();
    kill(responder, Signal::SIGKILL).expect("the responder can be killed");
    eventually("the responder's end", Duration::from_secs(5), || {
        (!is_alive(responder)).then_some(())
    });
    assert_eq!(tell(), before, "from another responder");
}

fn wait_for_the_next_second() {
    let second = || {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .expect("it is after 1970")
            .as_secs()
    };
    let now = second();
    eventually("the next second", Duration::from_secs(3), || {
        (second() > now).then_some(())
    });
}

#[test]
fn a_changed_document_has_new_signatures() {
    let Some(mut host) = new_host() else { return };
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .key("private-ipv4", "\"10.0.0.10\"")
        .up();
    let mut daemon = start(&host);
    let tell =
        || ["document", "rsa2048", "pkcs7", "signature", "dsa2048"].map(|name| leaf(&web, name));
    let first = tell();

    host.instance("web").key("private-ipv4", "\"10.0.0.11\"");
    host.write_config();
    daemon.reload();
    let second = tell();
    check_changed(&host, &web, &first, &second);

    // What all guests of the host share is in the document too.
    host.write_raw_config(&host.config().replace("123456789012", "210987654321"));
    daemon.reload();
    let third = tell();
    check_changed(&host, &web, &second, &third);

    // A start is another pendingTime.
    wait_for_the_next_second();
    let state_dir = state_dir_of(&host);
    for action in ["stop", "start"] {
        let output = host.imds(&["instance", action, "web", "--state-dir", &state_dir]);
        assert!(output.status.success(), "{output:?}");
    }
    check_changed(&host, &web, &third, &tell());
}

fn check_changed(host: &Host, web: &Guest, before: &[String], after: &[String]) {
    for (before, after) in before.iter().zip(after) {
        assert_ne!(before, after);
    }
    for kind in KINDS {
        verify(host, web, kind);
    }
}

#[test]
fn many_who_ask_at_once_get_the_same() {
    let Some(mut host) = new_host() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let daemon = start(&host);
    let mut connections: Vec<_> = (0..50).map(|_| web.connect()).collect();
    // All wait while the daemon does nothing.
    kill(daemon.pid(), Signal::SIGSTOP).expect("the daemon can be stopped");
    let request = format!("GET {BASE}/rsa2048 HTTP/1.1\r\nConnection: keep-alive\r\n\r\n");
    for connection in &mut connections {
        connection
            .send(request.as_bytes())
            .expect("the request is sent");
    }
    kill(daemon.pid(), Signal::SIGCONT).expect("the daemon can go on");
    let answers: Vec<_> = connections
        .iter_mut()
        .map(|connection| connection.receive().expect("an answer"))
        .collect();
    let expected = leaf(&web, "rsa2048");
    for answer in &answers {
        assert_eq!((answer.status(), answer.text()), (200, expected.as_str()));
    }
}

#[test]
fn without_the_daemon_only_the_signatures_are_missing() {
    let Some(mut host) = new_host() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let db = host.guest("db").routed("10.0.0.10").up();
    let daemon = start(&host);
    let of_db = leaf(&db, "pkcs7");
    kill(daemon.pid(), Signal::SIGSTOP).expect("the daemon can be stopped");
    let refused = web.get(&format!("{BASE}/pkcs7"));
    let (document, id) = (leaf(&web, "document"), web.get(INSTANCE_ID));
    let still_of_db = leaf(&db, "pkcs7");
    kill(daemon.pid(), Signal::SIGCONT).expect("the daemon can go on");

    assert_eq!(
        (refused.status(), refused.text().len()),
        (503, 359),
        "{refused:?}"
    );
    assert!(document.contains(web.id()));
    assert_eq!(id.text(), web.id());
    assert_eq!(still_of_db, of_db);
    verify(&host, &web, "pkcs7");
}

#[test]
fn keys_outlive_the_daemon() {
    let Some(mut host) = new_host() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let daemon = start(&host);
    let before = KINDS.map(|kind| certificate(&host, kind));
    verify(&host, &web, "rsa2048");
    daemon.stop();
    assert_eq!(
        KINDS.map(|kind| certificate(&host, kind)),
        before,
        "without a daemon"
    );
    let _daemon = start(&host);
    assert_eq!(KINDS.map(|kind| certificate(&host, kind)), before);
    for kind in KINDS {
        verify(&host, &web, kind);
    }
}

#[test]
fn keys_are_made_where_no_daemon_ever_ran() {
    let Some(mut host) = new_host() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let state_dir = state_dir_of(&host);
    let output = host.imds(&["identity", "certificate", "--state-dir", &state_dir]);
    assert!(output.status.success(), "{output:?}");
    let all = String::from_utf8(output.stdout).expect("PEM is text");
    for kind in KINDS {
        assert!(
            all.contains(&format!("# verifies dynamic/instance-identity/{kind} (")),
            "{all}"
        );
        assert!(all.contains(&certificate(&host, kind)), "{kind}: {all}");
    }
    let _daemon = start(&host);
    // One file with all of them is as good as the right one.
    let directory = directory_with_certificate(&host, "all", "rsa2048");
    fs::write(Path::new(&directory).join("certificate"), &all).expect("a file can be written");
    let script = format!(
        "{}\nopenssl smime -verify -in dsa2048 -inform PEM -certfile certificate -noverify",
        fetch_script("dsa2048")
    );
    check_success(&shell(&web, &directory, &script));
}

#[test]
fn keys_are_for_root_alone_and_in_no_log() {
    let Some(mut host) = new_host() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let daemon = start(&host);
    leaf(&web, "pkcs7");
    let directory = host.state_dir().join("identity");
    assert_eq!(mode(&directory), 0o700);
    let mut n_keys = 0;
    for entry in fs::read_dir(&directory).expect("root may look") {
        let path = entry.expect("an entry").path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        let checked = host.namespace().run(&[
            "openssl",
            "pkey",
            "-check",
            "-noout",
            "-in",
            path.to_str().expect("text"),
        ]);
        assert!(checked.status.success(), "{checked:?}");
        check_not_told(&daemon, &fs::read_to_string(&path).expect("PEM is text"));
        n_keys += 1;
    }
    assert_eq!(n_keys, KINDS.len());
}

fn mode(path: &Path) -> u32 {
    let metadata = fs::metadata(path).expect("root may look");
    metadata.permissions().mode() & 0o777
}

fn check_not_told(daemon: &Daemon, key: &str) {
    let log = daemon.log();
    for line in key.lines().filter(|line| !line.starts_with("-----")) {
        assert!(!log.contains(line), "{line} is in the log:\n{log}");
    }
}

#[test]
fn a_damaged_key_costs_the_signatures_and_nothing_else() {
    let Some(mut host) = new_host() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let path = host.state_dir().join("identity").join("rsa2048.key");
    certificate(&host, "rsa2048");
    let key = fs::read(&path).expect("asking for a certificate made the key");
    fs::write(&path, "-----BEGIN CERTIFICATE-----\n").expect("root may write");
    let daemon = host.start();
    assert_eq!(web.get(&format!("{BASE}/signature")).status(), 503);
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    assert!(daemon.log().contains("rsa2048.key"), "{}", daemon.log());
    let state_dir = state_dir_of(&host);
    let output = host.imds(&["identity", "certificate", "--state-dir", &state_dir]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("rsa2048.key is damaged"), "{said}");
    daemon.stop();
    fs::write(&path, key).expect("root may write");
    let _daemon = start(&host);
    verify(&host, &web, "rsa2048");
}
