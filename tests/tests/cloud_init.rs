//! cloud-init, the program with which images of clouds become instances: as Debian has it, on what it takes for EC2.

use std::process::Output;

use imds_tests::{Dhcp, GuestSystem, Host, Machine};
use serde_json::Value;

const MAC: &str = "06:17:04:d7:26:09";
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEbXbYVcCu5dXYbrX6AxRk1QtWc4DWqKyGdvV+5vBmnd my-key";
const ID: &str = "i-0123456789abcdef0";

const TABLES: &str = r#"
[instance.role]
name = "web-role"
access-key-id = "ASIAIOSFODNN7EXAMPLE"
secret-access-key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
token = "session-token-of-the-role"
expiration = "2099-12-31T23:59:59Z"

[[instance.public-key]]
name = "my-key"
openssh = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEbXbYVcCu5dXYbrX6AxRk1QtWc4DWqKyGdvV+5vBmnd me"

[instance.block-device-mapping]
ami = "/dev/xvda"
ebs1 = "/dev/sdf"
root = "/dev/xvda"
"#;

/// In a container: what is done at a boot with a network that is up. First the firmware is looked at, then the service is
/// read, then the guest is made to what was read. At the end, cloud-init's own view of it all.
const FIRST_BOOT: &str = r#"
/usr/lib/cloud-init/ds-identify --force > /dev/null 2>&1
cloud-init init > /dev/null 2>&1
echo "==> status"; echo $?
echo "==> source"; cat /run/cloud-init/cloud.cfg
echo "==> data"; cat /run/cloud-init/instance-data-sensitive.json
echo "==> user-data"; cloud-init query userdata
echo "==> hostname"; hostname
echo "==> keys"; cat /home/*/.ssh/authorized_keys 2> /dev/null
echo "==> network"; cat /etc/systemd/network/*cloud-init* /etc/netplan/*cloud-init* 2> /dev/null
echo "==> log"; cat /var/log/cloud-init.log
"#;

/// What one first boot left.
struct FirstBoot(String);

impl FirstBoot {
    fn of(output: &Output) -> Self {
        Self(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What follows a headline.
    fn part(&self, name: &str) -> &str {
        let headline = format!("==> {name}\n");
        let (_, rest) = self
            .0
            .split_once(&headline)
            .unwrap_or_else(|| panic!("no {headline:?} in {}", self.0));
        rest.split("==> ").next().unwrap_or_default().trim_end()
    }

    fn data(&self) -> Value {
        let data = self.part("data");
        serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {}", self.0))
    }

    /// Asserts that it went well, by cloud-init's own log.
    fn assert_fine(&self) {
        assert_eq!(self.part("status"), "0", "{}", self.0);
        assert_eq!(self.part("source"), "datasource_list: [ Ec2, None ]");
        let log = self.part("log");
        let bad: Vec<&str> = log
            .lines()
            .filter(|line| {
                ["[WARNING]", "[ERROR]", "[CRITICAL]"]
                    .iter()
                    .any(|bad| line.contains(bad))
            })
            // It would have systemd set up the network again, which does not run in a container.
            .filter(|line| !line.contains("Running interface command ['systemctl', 'restart'"))
            .collect();
        assert!(bad.is_empty(), "{bad:#?}\n{log}");
        assert!(
            log.contains("Found preferred metadata version 2021-03-23"),
            "{log}"
        );
    }
}

/// The value at a path of names; the names of the service have slashes in none.
fn at<'a>(data: &'a Value, path: &str) -> &'a Value {
    path.split('/').fold(data, |value, name| &value[name])
}

#[track_caller]
fn check(data: &Value, path: &str, expected: impl Into<Value>) {
    assert_eq!(at(data, path), &expected.into(), "{path} of {data:#}");
}

#[test]
fn a_guest_becomes_what_its_instance_says() {
    let Some(system) = GuestSystem::find() else {
        return;
    };
    let Some(mut host) = Host::new() else { return };
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .tokens_required()
        .option("instance-metadata-tags", "\"enabled\"")
        .id(ID)
        .key("type", "\"t3.micro\"")
        .key("image-id", "\"ami-0c55b159cbfafe1f0\"")
        .key("hostname", "\"build-7.lab.internal\"")
        .key("private-ipv4", "\"10.0.0.10\"")
        .key("secondary-private-ipv4s", "[\"10.0.0.20\"]")
        .key("public-ipv4", "\"203.0.113.25\"")
        .mac(MAC)
        .key("subnet.ipv4-cidr", "\"10.0.0.0/24\"")
        .key("life-cycle", "\"spot\"")
        .key("placement-group", "\"build\"")
        .key("target-lifecycle-state", "\"InService\"")
        .key("hibernation-configured", "false")
        .key("product-codes", "[\"3iplms73etrdhxdepv72l6ywj\"]")
        .key("monitoring", "\"enabled\"")
        .key("tags.Name", "\"web\"")
        .key("tags.Environment", "\"lab\"")
        .user_data(b"#!/bin/sh\necho hello\n")
        .tables(TABLES)
        .up();
    let _daemon = host.start();
    announce(&host, &["rebalance"]);
    announce(&host, &["maintenance", "system-reboot"]);
    announce(
        &host,
        &["spot-interruption", "stop", "--at", "2031-01-21T09:00:43Z"],
    );
    let Some(output) = system.run(&web, FIRST_BOOT) else {
        return;
    };
    let boot = FirstBoot::of(&output);
    boot.assert_fine();
    assert_eq!(boot.part("user-data"), "#!/bin/sh\necho hello");
    assert_eq!(boot.part("hostname"), "build-7");
    assert_eq!(boot.part("keys"), KEY);

    let data = boot.data();
    let v1 = &data["v1"];
    check(v1, "instance_id", ID);
    check(v1, "cloud_name", "aws");
    check(v1, "region", "eu-central-1");
    check(v1, "availability_zone", "eu-central-1b");
    check(v1, "local_hostname", "build-7");
    check(v1, "public_ssh_keys", vec![KEY]);
    check(v1, "subplatform", "metadata (http://169.254.169.254)");

    let meta_data = meta_data(&data);
    check(meta_data, "instance-id", ID);
    check(meta_data, "instance-type", "t3.micro");
    check(meta_data, "ami-id", "ami-0c55b159cbfafe1f0");
    check(meta_data, "public-ipv4", "203.0.113.25");
    check(meta_data, "public-keys/my-key", vec![KEY]);
    check(meta_data, "placement/group-name", "build");
    check(meta_data, "block-device-mapping/ebs1", "/dev/sdf");
    check(meta_data, "tags/instance/Name", "web");
    check(meta_data, "tags/instance/Environment", "lab");
    check(meta_data, "services/domain", "amazonaws.com");
    check(meta_data, "events/maintenance/history", "[]");
    let scheduled = at(meta_data, "events/maintenance/scheduled");
    assert!(
        scheduled.to_string().contains("system-reboot"),
        "{scheduled}"
    );
    check(meta_data, "spot/instance-action/action", "stop");
    check(
        meta_data,
        "spot/instance-action/time",
        "2031-01-21T09:00:43Z",
    );
    let notice = at(meta_data, "events/recommendations/rebalance/noticeTime");
    assert!(notice.is_string(), "{meta_data:#}");
    check(meta_data, "hibernation/configured", "false");
    check(meta_data, "product-codes", "3iplms73etrdhxdepv72l6ywj");
    check(meta_data, "iam/info/Code", "Success");
    let card = &meta_data["network"]["interfaces"]["macs"][MAC];
    check(card, "local-ipv4s", vec!["10.0.0.10", "10.0.0.20"]);
    check(card, "subnet-ipv4-cidr-block", "10.0.0.0/24");
    check(card, "ipv4-associations/203.0.113.25", "10.0.0.10");
    // Secrets are not for it.
    check(meta_data, "iam/security-credentials", Value::Null);
    let document = at(&data, "ds/dynamic/instance-identity/document");
    check(document, "instanceId", ID);
    check(document, "privateIp", "10.0.0.10");
    for signature in ["pkcs7", "rsa2048", "signature"] {
        let lines = at(&data, &format!("ds/dynamic/instance-identity/{signature}"));
        assert!(
            lines.as_array().is_some_and(|lines| lines.len() > 1),
            "{lines}"
        );
    }

    let network = boot.part("network");
    for line in [MAC, "10.0.0.20/24"] {
        assert!(network.contains(line), "{line} is missing:\n{network}");
    }
}

/// Says to the instance what EC2 would.
fn announce(host: &Host, event: &[&str]) {
    let state_dir = host.state_dir().display().to_string();
    let said = host.imds(&[&["event", "--state-dir", &state_dir, "web"], event].concat());
    assert!(said.status.success(), "{said:?}");
}

/// Newer releases spell it as a name of a variable.
fn meta_data(data: &Value) -> &Value {
    let ds = &data["ds"];
    match &ds["meta-data"] {
        Value::Null => &ds["meta_data"],
        found => found,
    }
}

#[test]
fn a_guest_without_user_data_and_key_boots_too() {
    let Some(system) = GuestSystem::find() else {
        return;
    };
    let Some(mut host) = Host::new() else { return };
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .tokens_required()
        .id(ID)
        .up();
    let _daemon = host.start();
    let Some(output) = system.run(&web, FIRST_BOOT) else {
        return;
    };
    let boot = FirstBoot::of(&output);
    boot.assert_fine();
    assert_eq!((boot.part("user-data"), boot.part("keys")), ("", ""));
    check(&boot.data(), "v1/instance_id", ID);
}

#[test]
fn a_guest_with_ipv6_alone_boots_over_it() {
    let Some(system) = GuestSystem::find() else {
        return;
    };
    let Some(mut host) = Host::new() else { return };
    let web = host
        .guest("web")
        .ipv6("fd00:1::10")
        .tokens_required()
        .id(ID)
        .tables(TABLES)
        .up();
    let _daemon = host.start();
    let Some(output) = system.run(&web, FIRST_BOOT) else {
        return;
    };
    let boot = FirstBoot::of(&output);
    boot.assert_fine();
    let data = boot.data();
    check(&data, "v1/subplatform", "metadata (http://[fd00:ec2::254])");
    check(&data, "v1/instance_id", ID);
    assert_eq!(boot.part("keys"), KEY);
}

#[test]
fn a_guest_whose_firmware_says_nothing_boots_without_tokens() {
    let Some(system) = GuestSystem::find() else {
        return;
    };
    let Some(mut host) = Host::new() else { return };
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .id(ID)
        .tables(TABLES)
        .up();
    let _daemon = host.start();
    let script = format!("for FILE in /sys/class/dmi/id/*; do : > $FILE; done\n{FIRST_BOOT}");
    let Some(output) = system.run(&web, &script) else {
        return;
    };
    let boot = FirstBoot::of(&output);
    assert_eq!(boot.part("status"), "0", "{}", boot.0);
    assert!(!boot.part("log").contains("api/token"), "{}", boot.0);
    check(&boot.data(), "v1/instance_id", ID);
    assert_eq!(boot.part("keys"), KEY);
}

/// User data for the virtual machine: it says on the console what has become of it, and switches itself off. Brackets, for
/// the kernel and a login prompt speak there as well.
const USER_DATA: &str = r#"#!/bin/sh
{
  echo "[user: $(id -un)]"
  echo "[hostname: $(hostname)]"
  echo "[keys: $(cat /home/*/.ssh/authorized_keys)]"
  echo "[instance-id: $(cloud-init query instance_id)]"
  echo "[region: $(cloud-init query region)]"
  echo "[cloud: $(cloud-init query cloud_name)]"
  echo "[address: $(ip -4 -brief address show scope global | tr -s ' ' | cut -d ' ' -f 2,3)]"
  echo "[source: $(cat /run/cloud-init/cloud.cfg)]"
  echo "[warnings: $(grep -E '\[(WARNING|ERROR|CRITICAL)\]' /var/log/cloud-init.log)]"
} > /dev/console
systemctl poweroff --force --force
"#;

#[test]
fn a_virtual_machine_boots_with_cloud_init() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let Some(system) = GuestSystem::find() else {
        return;
    };
    let Some(mut host) = Host::new() else { return };
    let port = host
        .guest("vm")
        .tokens_required()
        .id(ID)
        .key("hostname", "\"build-7.lab.internal\"")
        .key("private-ipv4", "\"10.0.0.10\"")
        .mac(MAC)
        .key("subnet.ipv4-cidr", "\"10.0.0.0/24\"")
        .user_data(USER_DATA.as_bytes())
        .tables(TABLES)
        .persistent_tap();
    let tap = &port.name;
    host.namespace()
        .ip(&format!("address add 10.0.0.1/24 dev {tap}"));
    let _dhcp = Dhcp::start(&host, tap, "10.0.0.10", "10.0.0.1");
    let _daemon = host.start();
    let console = machine.run_system(&host, &system, tap, MAC);
    for said in [
        "[user: root]",
        "[hostname: build-7]",
        &format!("[keys: {KEY}]"),
        &format!("[instance-id: {ID}]"),
        "[region: eu-central-1]",
        "[cloud: aws]",
        "[address: UP 10.0.0.10/24]",
        "[source: datasource_list: [ Ec2, None ]]",
        "[warnings: ]",
    ] {
        assert!(console.contains(said), "{said} is missing:\n{console}");
    }
}
