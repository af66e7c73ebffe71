//! The clients that guests really use, unmodified: what each of them finds is what the configuration says. Where a client
//! can, it has to show tokens.

use std::process::Output;

use imds_tests::{Guest, GuestSystem, Host, Identity, Sts, has_command, path_of, run, skip};

const ACCESS_KEY_ID: &str = "ASIAIOSFODNN7EXAMPLE";
const SECRET_ACCESS_KEY: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const SESSION_TOKEN: &str = "session-token-of-the-role";
/// 2099-12-31T23:59:59Z
const EXPIRY_SECONDS: &str = "4102444799";
const ACCOUNT: &str = "123456789012";
const ROLE_ARN: &str = "arn:aws:sts::123456789012:assumed-role/web-role/i-0123456789abcdef0";

/// Credentials that clients have to find; AWS's own example values.
const ROLE: &str = r#"
[instance.role]
name = "web-role"
access-key-id = "ASIAIOSFODNN7EXAMPLE"
secret-access-key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
token = "session-token-of-the-role"
expiration = "2099-12-31T23:59:59Z"
"#;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEbXbYVcCu5dXYbrX6AxRk1QtWc4DWqKyGdvV+5vBmnd my-key";

/// An instance with a value in whatever the clients that print all look at.
fn described(host: &mut Host) -> Guest {
    let more = format!(
        "{ROLE}\n[[instance.public-key]]\nname = \"my-key\"\nopenssh = {KEY:?}\n\
         [instance.block-device-mapping]\nami = \"/dev/xvda\"\nebs1 = \"/dev/sdf\"\nroot = \"/dev/xvda\""
    );
    host.guest("web")
        .routed("10.0.0.10")
        .tokens_required()
        .option("instance-metadata-tags", "\"enabled\"")
        .id("i-0123456789abcdef0")
        .key("type", "\"r6i.large\"")
        .key("image-id", "\"ami-0c55b159cbfafe1f0\"")
        .key("ancestor-ami-ids", "[\"ami-02ab4f1c7d90e8356\"]")
        .key("reservation-id", "\"r-0abcdef1234567890\"")
        .key("launch-index", "3")
        .key("private-ipv4", "\"10.0.0.10\"")
        .key("public-ipv4", "\"203.0.113.25\"")
        .key("mac", "\"06:17:04:d7:26:09\"")
        .key("interface-id", "\"eni-0fedcba9876543210\"")
        .key("security-groups", "[\"default\", \"web\"]")
        .key("subnet.ipv4-cidr", "\"10.0.0.0/24\"")
        .key("kernel-id", "\"aki-0123456789abcdef0\"")
        .key("ramdisk-id", "\"ari-0123456789abcdef0\"")
        .key("product-codes", "[\"3iplms73etrdhxdepv72l6ywj\"]")
        .key("target-lifecycle-state", "\"InService\"")
        .key("tags.Name", "\"web\"")
        .user_data(b"#!/bin/sh\necho hello\n")
        .tables(&more)
        .up()
}

fn with_role(host: &mut Host) -> Guest {
    host.guest("web")
        .routed("10.0.0.10")
        .tokens_required()
        .tables(ROLE)
        .up()
}

/// A stand-in that knows the role's credentials.
fn sts(guest: &Guest) -> Sts {
    let identity = Identity {
        access_key_id: ACCESS_KEY_ID.to_owned(),
        secret_access_key: SECRET_ACCESS_KEY.to_owned(),
        session_token: SESSION_TOKEN.to_owned(),
        account: ACCOUNT.to_owned(),
        arn: ROLE_ARN.to_owned(),
    };
    Sts::start(guest, identity)
}

/// Asserts that one call came, with the role's credentials, for the region.
fn assert_role_called(sts: &Sts, region: &str) {
    let calls = sts.calls();
    let [call] = &calls[..] else {
        panic!("one call, not {calls:?}");
    };
    assert!(call.is_known, "{call:?}");
    assert_eq!(call.region, region);
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Every line has to be there, in any order.
fn assert_lines(output: &Output, expected: &[&str]) {
    let said = stdout(output);
    for line in expected {
        assert!(
            said.lines().any(|said| said.trim() == *line),
            "{line:?} is missing:\n{said}"
        );
    }
}

/// Runs a program in the guest. Nothing but the metadata service may tell it anything; `variables` are what it is told
/// all the same.
fn run_bare(guest: &Guest, variables: &[&str], argv: &[&str]) -> Output {
    let bare = ["env", "-i", "PATH=/usr/bin:/bin", "HOME=/nonexistent"];
    guest.run(&[&bare[..], variables, argv].concat())
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

/// Runs Python with arguments in the guest; none, and a skip, where there is no Python that has the module.
fn python(guest: &Guest, module: &str, variables: &[&str], args: &[&str]) -> Option<Output> {
    let python = std::env::var("IMDS_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let import = format!("import {module}, sys\nprint(sys.executable)");
    let found = run(&[&python, "-c", &import]);
    if !found.status.success() {
        skip(&format!(
            "{python} has no {module} (IMDS_TEST_PYTHON names a Python that has)"
        ));
        return None;
    }
    // The program itself: what was found in PATH may be a script that the guest's environment leads elsewhere.
    let python = stdout(&found);
    let once = ["AWS_METADATA_SERVICE_NUM_ATTEMPTS=1"];
    let variables = [&once[..], variables].concat();
    Some(run_bare(
        guest,
        &variables,
        &[&[python.as_str()], args].concat(),
    ))
}

fn boto3(guest: &Guest, script: &str) -> Option<Output> {
    python(guest, "boto3", &[], &["-c", script])
}

#[test]
fn boto3_finds_credentials_and_region() {
    let Some(mut host) = Host::new() else { return };
    let web = with_role(&mut host);
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
    let expected =
        format!("iam-role {ACCESS_KEY_ID} {SECRET_ACCESS_KEY} {SESSION_TOKEN}\neu-central-1");
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
    assert_eq!(stdout(&output), ACCESS_KEY_ID);
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

/// Runs the AWS CLI in the guest, with its log on standard error.
fn aws(guest: &Guest, variables: &[&str], args: &[&str]) -> Option<Output> {
    let args = [&["-m", "awscli", "--debug"], args].concat();
    python(guest, "awscli", variables, &args)
}

#[test]
fn the_aws_cli_takes_the_credentials_of_the_role() {
    let Some(mut host) = Host::new() else { return };
    let web = with_role(&mut host);
    let _daemon = host.start();
    let Some(output) = aws(&web, &[], &["configure", "list"]) else {
        return;
    };
    let found: Vec<String> = stdout(&output)
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    // It shows the last four characters.
    for line in [
        "access_key ****************MPLE iam-role",
        "secret_key ****************EKEY iam-role",
    ] {
        assert!(found.iter().any(|found| found == line), "{found:?}");
    }
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(
        log.contains("Found credentials from IAM Role: web-role"),
        "{log}"
    );
}

#[test]
fn the_aws_cli_is_at_sts_who_its_instance_is() {
    let Some(mut host) = Host::new() else { return };
    let web = with_role(&mut host);
    let _daemon = host.start();
    let sts = sts(&web);
    let endpoint = format!("AWS_ENDPOINT_URL_STS={}", sts.url());
    let args = ["sts", "get-caller-identity", "--output", "text"];
    let query = ["--query", "[Account,Arn]"];
    // Version 1 asks for no region.
    let region = ["--region", "eu-central-1"];
    let args = [&args[..], &query, &region].concat();
    let Some(output) = aws(&web, &[&endpoint], &args) else {
        return;
    };
    assert_eq!(stdout(&output), format!("{ACCOUNT}\t{ROLE_ARN}"));
    assert_role_called(&sts, "eu-central-1");
}

#[test]
fn the_aws_sdk_for_rust_finds_region_credentials_and_itself() {
    let Some(program) = path_of("IMDS_TEST_SDK_RUST", "a program with the AWS SDK for Rust") else {
        return;
    };
    let Some(mut host) = Host::new() else { return };
    let web = with_role(&mut host);
    let _daemon = host.start();
    let sts = sts(&web);
    let endpoint = format!("AWS_ENDPOINT_URL_STS={}", sts.url());
    let output = run_bare(&web, &[&endpoint], &[&program.display().to_string()]);
    let expected = format!(
        "region=eu-central-1\naccess-key-id={ACCESS_KEY_ID}\nsecret-access-key={SECRET_ACCESS_KEY}\n\
         token={SESSION_TOKEN}\nexpiry={EXPIRY_SECONDS}\ninstance-id={}\naccount={ACCOUNT}\narn={ROLE_ARN}",
        web.id()
    );
    assert_eq!(stdout(&output), expected);
    assert_role_called(&sts, "eu-central-1");
}

#[test]
fn the_aws_sdk_for_javascript_finds_region_credentials_and_itself() {
    let Some(node) = path_of("IMDS_TEST_NODE", "Node.js") else {
        return;
    };
    let Some(sdk) = path_of("IMDS_TEST_SDK_JS", "the AWS SDK for JavaScript") else {
        return;
    };
    let Some(mut host) = Host::new() else { return };
    let web = with_role(&mut host);
    let _daemon = host.start();
    let sts = sts(&web);
    let endpoint = format!("AWS_ENDPOINT_URL_STS={}", sts.url());
    let script = r#"
import { MetadataService } from "@aws-sdk/ec2-metadata-service";
import { GetCallerIdentityCommand, STSClient } from "@aws-sdk/client-sts";
const region = await new MetadataService({}).request("/latest/meta-data/placement/region", {});
const client = new STSClient({ region });
const found = await client.config.credentials();
console.log(region, found.accessKeyId, found.secretAccessKey, found.sessionToken, found.expiration.toISOString());
const identity = await client.send(new GetCallerIdentityCommand({}));
console.log(identity.Account, identity.Arn);
"#;
    // A script that is no file looks for modules in its working directory.
    let argv = [
        "env",
        "-C",
        &sdk.display().to_string(),
        &node.display().to_string(),
        "--input-type=module",
        "--eval",
        script,
    ];
    let output = run_bare(&web, &[&endpoint], &argv);
    let expected = format!(
        "eu-central-1 {ACCESS_KEY_ID} {SECRET_ACCESS_KEY} {SESSION_TOKEN} 2099-12-31T23:59:59.000Z\n\
         {ACCOUNT} {ROLE_ARN}"
    );
    assert_eq!(stdout(&output), expected);
    assert_role_called(&sts, "eu-central-1");
}

#[test]
fn the_python_library_ec2_metadata_reads_every_attribute() {
    let Some(mut host) = Host::new() else { return };
    let web = described(&mut host);
    let _daemon = host.start();
    // All that it knows, so that none of them raises; then those that say most.
    let script = r#"
from functools import cached_property
from ec2_metadata import EC2Metadata, NetworkInterface, ec2_metadata
for kind, thing in [(EC2Metadata, ec2_metadata), *((NetworkInterface, card) for card in ec2_metadata.network_interfaces.values())]:
    for name, what in vars(kind).items():
        if isinstance(what, (property, cached_property)):
            getattr(thing, name)
e = ec2_metadata
card = e.network_interfaces[e.mac]
for name in ["account_id", "ami_id", "ami_launch_index", "autoscaling_target_lifecycle_state", "availability_zone",
             "availability_zone_id", "domain", "instance_id", "instance_type", "kernel_id", "mac", "partition",
             "private_hostname", "private_ipv4", "public_hostname", "public_ipv4", "region", "reservation_id",
             "security_groups", "spot_instance_action", "user_data"]:
    print(name, getattr(e, name))
print("role", e.instance_profile_name, e.iam_security_credentials["SecretAccessKey"])
print("document", e.instance_identity_document["instanceId"], e.instance_identity_document["region"])
print("keys", {name: key.openssh_key for name, key in e.public_keys.items()})
print("tags", dict(e.tags))
print("card", card.interface_id, card.device_number, card.ipv4_associations, card.subnet_ipv4_cidr_block)
"#;
    let Some(output) = python(&web, "ec2_metadata", &[], &["-c", script]) else {
        return;
    };
    // As EC2 sends it, with the line's end.
    let keys = format!(r"keys {{'my-key': '{KEY}\n'}}");
    let role = format!("role web-role {SECRET_ACCESS_KEY}");
    let expected = [
        "account_id 123456789012",
        "ami_id ami-0c55b159cbfafe1f0",
        "ami_launch_index 3",
        "autoscaling_target_lifecycle_state InService",
        "availability_zone eu-central-1b",
        "availability_zone_id euc1-az2",
        "domain amazonaws.com",
        "instance_id i-0123456789abcdef0",
        "instance_type r6i.large",
        "kernel_id aki-0123456789abcdef0",
        "mac 06:17:04:d7:26:09",
        "partition aws",
        "private_hostname ip-10-0-0-10.eu-central-1.compute.internal",
        "private_ipv4 10.0.0.10",
        "public_hostname ec2-203-0-113-25.eu-central-1.compute.amazonaws.com",
        "public_ipv4 203.0.113.25",
        "region eu-central-1",
        "reservation_id r-0abcdef1234567890",
        "security_groups ['default', 'web']",
        "spot_instance_action None",
        "user_data b'#!/bin/sh\\necho hello\\n'",
        &role,
        "document i-0123456789abcdef0 eu-central-1",
        &keys,
        "tags {'Name': 'web'}",
        "card eni-0fedcba9876543210 0 {'203.0.113.25': ['10.0.0.10']} 10.0.0.0/24",
    ];
    assert_lines(&output, &expected);
}

#[test]
fn ec2metadata_of_cloud_utils_prints_what_is_configured() {
    let Some(system) = GuestSystem::find() else {
        return;
    };
    let Some(mut host) = Host::new() else { return };
    let web = described(&mut host);
    let _daemon = host.start();
    let Some(output) = system.run(&web, "exec ec2metadata") else {
        return;
    };
    let keys = format!("public-keys: ['{KEY}']");
    let expected = [
        "ami-id: ami-0c55b159cbfafe1f0",
        "ami-launch-index: 3",
        "ami-manifest-path: (unknown)",
        "ancestor-ami-ids: ami-02ab4f1c7d90e8356",
        "availability-zone: eu-central-1b",
        "block-device-mapping: ami",
        "ebs1",
        "root",
        "instance-action: none",
        "instance-id: i-0123456789abcdef0",
        "instance-type: r6i.large",
        "local-hostname: ip-10-0-0-10.eu-central-1.compute.internal",
        "local-ipv4: 10.0.0.10",
        "kernel-id: aki-0123456789abcdef0",
        // It asks under version 2009-04-04, which has no MAC addresses.
        "mac: unavailable",
        "product-codes: 3iplms73etrdhxdepv72l6ywj",
        "public-hostname: ec2-203-0-113-25.eu-central-1.compute.amazonaws.com",
        "public-ipv4: 203.0.113.25",
        &keys,
        "ramdisk-id: ari-0123456789abcdef0",
        "reservation-id: r-0abcdef1234567890",
        "security-groups: default",
        "web",
        r"user-data: b'#!/bin/sh\necho hello\n'",
    ];
    assert_lines(&output, &expected);
}

#[test]
fn amazons_own_script_ec2_metadata_prints_what_is_configured() {
    let Some(system) = GuestSystem::find() else {
        return;
    };
    let Some(mut host) = Host::new() else { return };
    let web = described(&mut host);
    let _daemon = host.start();
    let Some(output) = system.run(&web, "exec ec2-metadata --all") else {
        return;
    };
    let expected = [
        "ami-id: ami-0c55b159cbfafe1f0",
        "ami-launch-index: 3",
        "ancestor-ami-ids: ami-02ab4f1c7d90e8356",
        "ami: /dev/xvda",
        "ebs1: /dev/sdf",
        "root: /dev/xvda",
        "instance-id: i-0123456789abcdef0",
        "instance-type: r6i.large",
        "local-hostname: ip-10-0-0-10.eu-central-1.compute.internal",
        "local-ipv4: 10.0.0.10",
        "kernel-id: aki-0123456789abcdef0",
        "placement: eu-central-1b",
        "product-codes: 3iplms73etrdhxdepv72l6ywj",
        "public-hostname: ec2-203-0-113-25.eu-central-1.compute.amazonaws.com",
        "public-ipv4: 203.0.113.25",
        "keyname:my-key",
        "format:openssh-key",
        KEY,
        "ramdisk-id: ari-0123456789abcdef0",
        "reservation-id: r-0abcdef1234567890",
        "security-groups: default",
        "user-data: #!/bin/sh",
        "Name: web",
    ];
    assert_lines(&output, &expected);
    assert!(!stdout(&output).contains("not available"), "{output:?}");
}
