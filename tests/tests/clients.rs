//! The clients that guests really use, unmodified.

use std::process::Output;

use imds_tests::{Guest, Host, has_command, run, skip};

/// Credentials that boto3 has to find; AWS's own example values.
const ROLE: &str = r#"
[instance.role]
name = "web-role"
access-key-id = "ASIAIOSFODNN7EXAMPLE"
secret-access-key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
token = "session-token-of-the-role"
expiration = "2099-12-31T23:59:59Z"
"#;

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn curl_does_what_the_user_guide_says() {
    if !has_command("curl") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").tokens_required().up();
    let _daemon = host.start();
    let script = r#"
        TOKEN=$(curl -sS -X PUT http://169.254.169.254/latest/api/token -H "X-aws-ec2-metadata-token-ttl-seconds: 21600") &&
        curl -sS -H "X-aws-ec2-metadata-token: $TOKEN" http://169.254.169.254/latest/meta-data/instance-id
    "#;
    assert_eq!(stdout(&web.run(&["sh", "-c", script])), web.id());
    let refused = web.run(&[
        "curl",
        "-sS",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "http://169.254.169.254/latest/meta-data/",
    ]);
    assert_eq!(stdout(&refused), "401");
}

#[test]
fn curl_reads_several_leaves_on_one_connection() {
    if !has_command("curl") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .key("type", "\"t3.micro\"")
        .up();
    let _daemon = host.start();
    let base = "http://169.254.169.254/latest/meta-data";
    let output = web.run(&[
        "curl",
        "-sS",
        "-H",
        "Connection: keep-alive",
        "-w",
        "\n%{num_connects}\n",
        &format!("{base}/instance-id"),
        &format!("{base}/instance-type"),
    ]);
    let expected = format!("{}\n1\nt3.micro\n0", web.id());
    assert_eq!(stdout(&output), expected);
}

/// Runs a Python script in the guest with boto3; none, and a skip, where there is no Python that has it.
fn boto3(guest: &Guest, script: &str) -> Option<Output> {
    let python = std::env::var("IMDS_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    if !run(&[&python, "-c", "import boto3"]).status.success() {
        skip(&format!(
            "{python} has no boto3 (IMDS_TEST_PYTHON names a Python that has)"
        ));
        return None;
    }
    // Nothing but the metadata service may tell boto3 anything.
    let argv = [
        "env",
        "-i",
        "PATH=/usr/bin:/bin",
        "HOME=/nonexistent",
        "AWS_METADATA_SERVICE_NUM_ATTEMPTS=1",
        &python,
        "-c",
        script,
    ];
    Some(guest.run(&argv))
}

#[test]
fn boto3_finds_credentials_and_region() {
    let Some(mut host) = Host::new() else { return };
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .tokens_required()
        .tables(ROLE)
        .up();
    let _daemon = host.start();
    let script = r#"
import boto3
from botocore.utils import InstanceMetadataRegionFetcher
credentials = boto3.Session().get_credentials()
frozen = credentials.get_frozen_credentials()
print(credentials.method, frozen.access_key, frozen.secret_key, frozen.token)
print(InstanceMetadataRegionFetcher().retrieve_region())
"#;
    let Some(output) = boto3(&web, script) else {
        return;
    };
    let expected = "iam-role ASIAIOSFODNN7EXAMPLE wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY session-token-of-the-role\neu-central-1";
    assert_eq!(stdout(&output), expected);
}

#[test]
fn boto3_finds_them_over_ipv6_too() {
    let Some(mut host) = Host::new() else { return };
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .ipv6("fd00:1::10")
        .tokens_required()
        .tables(ROLE)
        .up();
    let _daemon = host.start();
    let script = r#"
import os
os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"] = "IPv6"
import boto3
print(boto3.Session().get_credentials().get_frozen_credentials().access_key)
"#;
    let Some(output) = boto3(&web, script) else {
        return;
    };
    assert_eq!(stdout(&output), "ASIAIOSFODNN7EXAMPLE");
}

#[test]
fn boto3_of_a_guest_without_a_role_finds_none() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let _daemon = host.start();
    let Some(output) = boto3(
        &web,
        "import boto3\nprint(boto3.Session().get_credentials())",
    ) else {
        return;
    };
    assert_eq!(stdout(&output), "None");
}
