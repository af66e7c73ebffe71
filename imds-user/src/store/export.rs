//! Records as a configuration file that makes the same of them: `imds export`. Pure.
//!
//! Everything that was made up stands in it, so that another host makes the same instances of it.

use serde_json::Value;

use super::record::{InstanceRecord, Record};
use super::shown::{Node, Secrecy, Tree};
use super::view::View;
use crate::config::pairs::quoted;
use crate::config::{PortBy, Rest};

/// What becomes of the secret half of credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrets {
    /// A comment says that it was left out. A file with such a place is refused until it is filled in.
    LeftOut,
    /// It is written.
    Written,
}

/// What the API alone knows of an instance: no file can say it.
const NOT_OF_THE_FILE: &[&str] = &[
    "owner",
    "state",
    "launch",
    "key-name",
    "profile-association",
    "attributes",
    "machine",
    "state-reason",
];

/// What comes first in a table; the rest is sorted.
const FIRST: &[&str] = &["name", "port", "port-mac", "netns", "ports", "id", "type"];

/// The file.
#[must_use]
pub fn export(view: &View, secrets: Secrets) -> String {
    let mut writer = Writer {
        text: String::new(),
        secrets,
    };
    if let Some(rest) = view.rest() {
        writer.rest(rest);
    }
    for versioned in view.instances().values() {
        let record = &versioned.value;
        match why_not(record) {
            Some(why) => writer.left_out(record, why),
            None => writer.instance(record),
        }
    }
    writer.text
}

/// What a file says besides instances, with everything that is secret in it.
#[must_use]
pub fn export_rest(rest: &Rest) -> String {
    let mut writer = Writer {
        text: String::new(),
        secrets: Secrets::Written,
    };
    writer.rest(rest);
    writer.text
}

/// Why no file can have an instance.
fn why_not(record: &InstanceRecord) -> Option<&'static str> {
    if record.is_terminated() {
        return Some("it is terminated");
    }
    if record.machine.is_some() {
        return Some("its guest was launched here, and elsewhere there is none");
    }
    match &record.port {
        None => Some("it has no port"),
        Some(PortBy::Index(_)) => Some("it belongs to one interface, and to none that comes later"),
        Some(PortBy::Name(_) | PortBy::Mac(_) | PortBy::Netns(_)) => None,
    }
}

struct Writer {
    text: String,
    secrets: Secrets,
}

impl Writer {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn rest(&mut self, rest: &Rest) {
        self.table("", &Record::Rest(rest.clone()).shown());
    }

    fn left_out(&mut self, record: &InstanceRecord, why: &str) {
        // Whatever is in a name: this stays one line.
        let name = record.name.escape_debug();
        self.line(&format!(
            "\n# {name} ({}) is left out: {why}",
            record.spec.id
        ));
    }

    fn instance(&mut self, record: &InstanceRecord) {
        let mut tree = Record::Instance(Box::new(record.clone())).shown();
        tree.0
            .retain(|name, _| !NOT_OF_THE_FILE.contains(&name.as_str()));
        self.line("\n[[instance]]");
        self.table("instance", &tree);
    }

    /// What is in a table: values first, for what follows a table's head belongs to that table.
    fn table(&mut self, path: &str, tree: &Tree) {
        let is_first = |name: &&String| FIRST.contains(&name.as_str());
        let first = FIRST.iter().filter_map(|name| tree.0.get_key_value(*name));
        let rest = tree.0.iter().filter(|(name, _)| !is_first(name));
        let nodes: Vec<(&String, &Node)> = first.chain(rest).collect();
        for (name, node) in &nodes {
            self.value(name, node);
        }
        for (name, node) in nodes {
            let path = match path {
                "" => key(name),
                path => format!("{path}.{}", key(name)),
            };
            match node {
                Node::Value(_) | Node::Secret { .. } => {}
                Node::Table(table) => {
                    self.line(&format!("\n[{path}]"));
                    self.table(&path, table);
                }
                Node::List(tables) => {
                    for table in tables {
                        self.line(&format!("\n[[{path}]]"));
                        self.table(&path, table);
                    }
                }
            }
        }
    }

    fn value(&mut self, name: &str, node: &Node) {
        let name = key(name);
        match node {
            Node::Secret {
                secrecy: Secrecy::Credential,
                ..
            } if self.secrets == Secrets::LeftOut => {
                self.line(&format!("# {name} is a secret and left out: write it here"));
            }
            Node::Value(value) | Node::Secret { value, .. } => {
                self.line(&format!("{name} = {}", text(value)));
            }
            Node::Table(_) | Node::List(_) => {}
        }
    }
}

/// A key of TOML: bare where it can be.
fn key(name: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !name.is_empty() && name.chars().all(is_bare) {
        name.to_owned()
    } else {
        quoted(name)
    }
}

/// A value of TOML. There is no null in a record's words.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(text).collect();
            format!("[{}]", values.join(", "))
        }
        Value::Object(fields) => {
            let fields = fields.iter();
            let fields: Vec<String> = fields
                .map(|(name, value)| format!("{} = {}", key(name), text(value)))
                .collect();
            format!("{{ {} }}", fields.join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::super::apply::{Precedence, plan};
    use super::super::backend::{Backend, State};
    use super::super::memory::Memory;
    use super::super::record::Transition;
    use super::super::{Note, Who};
    use super::*;
    use crate::config::{self, Files, Guest, Installation};
    use crate::instance::{UnixMillis, UnixSeconds};

    struct OneFile(String);
    impl Files for OneFile {
        fn read(&self, path: &Path, _bytes_max: usize) -> io::Result<Vec<u8>> {
            match path.to_str() {
                Some("/etc/imds.toml") => Ok(self.0.clone().into()),
                _ => Ok(b"#!/bin/sh\n\xff\x00".into()),
            }
        }
    }

    fn loaded(text: &str, seed: u8) -> Result<(Vec<Guest>, config::Rest), String> {
        let installation = Installation {
            seed: [seed; 16],
            created: UnixSeconds(1000),
        };
        let file = OneFile(text.to_owned());
        let loaded = config::load_with_rest(Path::new("/etc/imds.toml"), &installation, &file);
        loaded
            .map(|(settings, rest)| (settings.guests, rest))
            .map_err(|error| error.to_string())
    }

    fn records(text: &str) -> View {
        let (guests, rest) = loaded(text, 7).unwrap();
        let plan = plan(&View::default(), &guests, &rest, Precedence::File).unwrap();
        let note = Note {
            at: UnixMillis(0),
            who: Who::User(0),
            what: "apply".into(),
        };
        let mut memory = Memory::default();
        let transaction = plan.transaction(&View::default(), note).unwrap();
        memory.commit(&transaction).unwrap();
        let State { revision, items } = memory.load().unwrap();
        let mut view = View::default();
        view.take(revision, items).unwrap();
        view
    }

    const EVERYTHING: &str = r##"
        [host]
        region = "eu-central-1"
        domain-name = "example.internal"
        limits.connections = 100
        [discovery]
        ports = ["tap*"]
        [[template]]
        ports = ["tap*"]
        tags.From = "template"
        user-data-file = "init.sh"
        role = { name = "r", access-key-id = "ASIA2", secret-access-key = "hunter4", token = "hunter5" }

        [[instance]]
        port = "vnet0"
        [[instance]]
        name = "full"
        port-mac = "52:54:00:12:34:56"
        id = "i-0123456789abcdef0"
        type = "m5.large"
        launch-index = 3
        launch-time = "2024-01-31T12:00:00Z"
        private-ipv4 = "10.0.0.10"
        secondary-private-ipv4s = ["10.0.0.11", "10.0.0.12"]
        public-ipv4 = "203.0.113.10"
        ipv4-associations = { "203.0.113.12" = "10.0.0.12" }
        ipv6s = ["2001:db8::1"]
        ipv4-prefixes = ["10.0.16.0/28"]
        ipv6-prefixes = ["2001:db8:1::/80"]
        security-groups = []
        subnet = { ipv6-cidrs = ["2001:db8::/64"], vpc-ipv4-cidrs = ["10.0.0.0/16", "10.1.0.0/16"], vpc-ipv6-cidrs = ["2001:db8::/56"] }
        user-data-file = "boot.sh"
        metadata-options = { http-tokens = "required", http-endpoint = "enabled", http-put-response-hop-limit = 64, http-protocol-ipv6 = "enabled", instance-metadata-tags = "disabled" }
        tags = { Name = "a \"quoted\" \\ one\nof two lines", "with space/é" = "", "aws:x" = "y" }
        role = { name = "reader", instance-profile = "p/q", access-key-id = "ASIA1", secret-access-key = "hunter2", token = "hunter3", expiration = "2030-01-31T12:00:00Z" }
        account-id = "210987654321"
        availability-zone = "eu-central-1b"
        availability-zone-id = "euc1-az9"
        hostname = "h"
        architecture = "arm64"
        system = "nitro"
        profile = "default-hvm"
        life-cycle = "spot"
        instance-action = "shutdown"
        manifest-path = "m"
        ancestor-ami-ids = ["ami-0123456789abcdef0"]
        kernel-id = "aki-0123456789abcdef0"
        ramdisk-id = "ari-0123456789abcdef0"
        product-codes = ["x"]
        billing-products = ["bp-1"]
        block-device-mapping = { root = "/dev/sda1", ebs1 = "sdb" }
        monitoring = "enabled"
        hibernation-configured = false
        target-lifecycle-state = "Warmed:Running"
        placement-group = "g"
        partition-number = 2
        dedicated-host-id = "h-0123456789abcdef0"
        limits.packets-per-second = 0
        [[instance.public-key]]
        name = "me"
        openssh = "ssh-ed25519 AAAA me"
        [[instance.public-key]]
        name = "you"
        openssh = "ssh-ed25519 BBBB you"
        [[instance.network-interface]]
        private-ipv4 = "10.0.32.10"
        device-number = 4
        network-card = 1
        owner-id = "111111111111"
        [[instance.network-interface]]
        subnet = { ipv6-native = true, ipv6-cidrs = ["2001:db8:2::/64"] }
        ipv6s = ["2001:db8:2::1"]
        [instance.managed-ssh-keys]
        active-keys = [{ os-user = "root", blob = "a\nb", expiration = "2030-01-31T12:00:00Z" }]
        signer-cert = "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----"
        signer-ocsp = { a = "YQ==" }
        [[instance]]
        netns = "blue"
        role = { name = "from-elsewhere", credential-process = ["/usr/bin/vault", "--path=a b"], credential-process-environment = ["VAULT_ADDR"] }
        [[instance]]
        port = "vnet7"
        role.name = "made-up"
        security-groups = ["web", "ssh"]
        private-ipv4 = "192.168.7.9"
    "##;

    /// What an exported file makes on another host, whose made-up values are others.
    #[test]
    fn another_host_makes_the_same_of_it() {
        let view = records(EVERYTHING);
        let text = export(&view, Secrets::Written);
        let (mut guests, rest) =
            loaded(&text, 99).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let (mut expected, expected_rest) = loaded(EVERYTHING, 7).unwrap();
        assert_eq!(rest, expected_rest);
        for guests in [&mut guests, &mut expected] {
            guests.sort_by_key(|guest| guest.instance.id);
            for guest in guests {
                // All of it is said now.
                guest.said = config::Said::default();
            }
        }
        assert_eq!(guests.len(), expected.len());
        for (guest, expected) in guests.iter().zip(&expected) {
            assert_eq!(guest, expected, "{text}");
        }
    }

    #[test]
    fn credentials_are_left_out_and_missed() {
        let text = export(&records(EVERYTHING), Secrets::LeftOut);
        assert!(!text.contains("hunter"), "{text}");
        let lines = text
            .lines()
            .filter(|line| line.contains("is a secret and left out"));
        assert_eq!(lines.count(), 4);
        let error = loaded(&text, 7).unwrap_err();
        assert!(
            error.contains("credentials are access-key-id, secret-access-key and token together"),
            "{error}"
        );
    }

    #[test]
    fn what_no_file_can_have_is_named() {
        let mut view = records("[[instance]]\nport = \"vnet0\"");
        let record = InstanceRecord::clone(&view.instances().values().next().unwrap().value);
        let id = record.spec.id;
        let mut check = |change: fn(&mut InstanceRecord), expected: &str| {
            let mut changed = record.clone();
            changed.name = "a\nb".into();
            change(&mut changed);
            let item = super::super::backend::Item {
                key: super::super::Key::instance(id),
                value: Some(Record::Instance(Box::new(changed)).encode().unwrap()),
                revision: super::super::Revision(9),
            };
            view.take(super::super::Revision(9), vec![item]).unwrap();
            let text = export(&view, Secrets::Written);
            assert!(
                text.ends_with(&format!("\n# a\\nb ({id}) is left out: {expected}\n")),
                "{text}"
            );
        };
        check(|record| record.port = None, "it has no port");
        check(
            |record| record.port = Some(PortBy::Index(7)),
            "it belongs to one interface, and to none that comes later",
        );
        check(
            |record| record.transition = Some(Transition::Terminated { at: UnixSeconds(1) }),
            "it is terminated",
        );
    }

    #[test]
    fn a_file_without_anything_is_empty() {
        assert_eq!(export(&View::default(), Secrets::LeftOut), "");
        let text = export(&records(""), Secrets::LeftOut);
        assert!(text.starts_with("\n[host]\naccount-id = "), "{text}");
    }
}
