//! An instance written as keys and values, as labels of containers and command lines have it:
//! `instance-type=m5.large`, `http-tokens=required`, `tags.Name=web`. Pure.
//!
//! The keys are those of `[[instance]]` in the configuration file, and EC2's words for some. What is written becomes
//! such a table and is read and checked as the file's are, so there is one set of rules. Keys that name files of the
//! host, or say where an instance's port is, are not among them: whoever may label a container has no say in these.

use super::file::{self, InstanceEntry};
use super::nearest::nearest;
use super::{Guest, Problem};

/// What a value is, where it is more than text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    /// A number or a truth value, which TOML has without quotes.
    Bare,
    /// Texts with commas between them.
    List,
}

/// A key as it is written, and the file's.
struct Key {
    written: &'static str,
    path: &'static str,
    form: Form,
}

const fn key(written: &'static str, path: &'static str, form: Form) -> Key {
    Key {
        written,
        path,
        form,
    }
}

/// A key that is the same in the file.
const fn same(written: &'static str, form: Form) -> Key {
    key(written, written, form)
}

const KEYS: &[Key] = &[
    same("name", Form::Text),
    same("id", Form::Text),
    same("type", Form::Text),
    key("instance-type", "type", Form::Text),
    same("image-id", Form::Text),
    same("reservation-id", Form::Text),
    same("launch-index", Form::Bare),
    same("launch-time", Form::Text),
    same("private-ipv4", Form::Text),
    same("secondary-private-ipv4s", Form::List),
    same("public-ipv4", Form::Text),
    same("ipv6s", Form::List),
    same("mac", Form::Text),
    same("interface-id", Form::Text),
    same("security-groups", Form::List),
    same("hostname", Form::Text),
    same("user-data", Form::Text),
    same("user-data-base64", Form::Text),
    same("account-id", Form::Text),
    same("availability-zone", Form::Text),
    same("architecture", Form::Text),
    same("life-cycle", Form::Text),
    same("placement-group", Form::Text),
    key("role", "role.name", Form::Text),
    key("http-tokens", "metadata-options.http-tokens", Form::Text),
    key(
        "http-endpoint",
        "metadata-options.http-endpoint",
        Form::Text,
    ),
    key(
        "http-put-response-hop-limit",
        "metadata-options.http-put-response-hop-limit",
        Form::Bare,
    ),
    key(
        "http-protocol-ipv6",
        "metadata-options.http-protocol-ipv6",
        Form::Text,
    ),
    key(
        "instance-metadata-tags",
        "metadata-options.instance-metadata-tags",
        Form::Text,
    ),
    same("limits.packets-per-second", Form::Bare),
    same("limits.requests-per-second", Form::Bare),
    same("limits.connections-per-second", Form::Bare),
    same("limits.connections", Form::Bare),
    same("limits.requests-in-flight", Form::Bare),
];

/// `tags.KEY` is the tag of that key.
const TAG: &str = "tags.";
/// `public-key.NAME` is the key pair of that name.
const PUBLIC_KEY: &str = "public-key.";

/// What was written of one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pairs {
    /// What stands before each key where it was written, for messages.
    prefix: &'static str,
    pairs: Vec<(String, String)>,
}

/// A key or value that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct PairsError {
    /// The key, as it was written.
    pub key: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Pairs {
    /// Keys and values, with what stood before each key.
    #[must_use]
    pub fn new(prefix: &'static str, pairs: Vec<(String, String)>) -> Self {
        Self { prefix, pairs }
    }

    /// The table that they are, resolved.
    pub(super) fn resolved(
        &self,
        resolve: impl FnOnce(&InstanceEntry) -> Result<Guest, Problem>,
    ) -> Result<Guest, PairsError> {
        let table = Table::of(self)?;
        let parsed = file::parse(&table.text);
        parsed
            .and_then(|file| resolve(file.instance[0].get_ref()))
            .map_err(|problem| table.error(&problem))
    }

    fn error(&self, key: &str, message: String) -> PairsError {
        PairsError {
            key: format!("{}{key}", self.prefix),
            message,
        }
    }
}

/// The TOML of it, a line for each key, so that what is wrong in a line is wrong with its key.
struct Table<'a> {
    of: &'a Pairs,
    text: String,
    /// Where the line of each pair ends.
    ends: Vec<usize>,
}

impl<'a> Table<'a> {
    fn of(of: &'a Pairs) -> Result<Self, PairsError> {
        let mut table = Self {
            of,
            text: "[[instance]]\n".to_owned(),
            ends: Vec::with_capacity(of.pairs.len()),
        };
        // A table of TOML's goes to the next one, so those of key pairs come last.
        let is_plain = |(key, _): &&(String, String)| !key.starts_with(PUBLIC_KEY);
        for (key, value) in of.pairs.iter().filter(is_plain) {
            let line = line(key, value).map_err(|message| of.error(key, message))?;
            table.push(&line);
        }
        for (key, value) in of.pairs.iter().filter(|pair| !is_plain(pair)) {
            let name = key.trim_start_matches(PUBLIC_KEY);
            table.push(&format!(
                "[[instance.public-key]]\nname = {}\nopenssh = {}",
                quoted(name),
                quoted(value)
            ));
        }
        Ok(table)
    }

    fn push(&mut self, lines: &str) {
        self.text.push_str(lines);
        self.text.push('\n');
        self.ends.push(self.text.len());
    }

    fn error(&self, problem: &Problem) -> PairsError {
        let is_plain = |key: &str| !key.starts_with(PUBLIC_KEY);
        let keys = self.of.pairs.iter().map(|(key, _)| key.as_str());
        let in_order = keys
            .clone()
            .filter(|key| is_plain(key))
            .chain(keys.filter(|key| !is_plain(key)));
        let mut places = self.ends.iter().zip(in_order);
        let key = places.find(|(end, _)| problem.span.start < **end);
        let key = key.map_or("", |(_, key)| key);
        self.of.error(key, problem.message.clone())
    }
}

fn line(key: &str, value: &str) -> Result<String, String> {
    if let Some(tag) = key.strip_prefix(TAG) {
        return Ok(format!("tags.{} = {}", quoted(tag), quoted(value)));
    }
    let Some(known) = KEYS.iter().find(|known| known.written == key) else {
        return Err(unknown(key));
    };
    let value = match known.form {
        Form::Text => quoted(value),
        Form::Bare if is_bare(value) => value.to_owned(),
        // Then TOML says which type it should be.
        Form::Bare => quoted(value),
        Form::List => {
            let items = value.split(',').map(str::trim);
            let items: Vec<String> = items.filter(|item| !item.is_empty()).map(quoted).collect();
            format!("[{}]", items.join(", "))
        }
    };
    Ok(format!("{} = {value}", known.path))
}

fn is_bare(value: &str) -> bool {
    matches!(value, "true" | "false") || value.parse::<i64>().is_ok_and(|n| n.to_string() == value)
}

fn unknown(key: &str) -> String {
    let known: Vec<&str> = KEYS.iter().map(|key| key.written).collect();
    match nearest(key, &known) {
        Some(meant) => format!("unknown key: did you mean `{meant}`?"),
        None => format!(
            "unknown key: there are {}, {TAG}KEY and {PUBLIC_KEY}NAME",
            known.join(", ")
        ),
    }
}

/// A string of TOML.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            control if control.is_control() => {
                quoted.push_str(&format!("\\U{:08X}", u32::from(control)));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;
    use std::sync::Arc;

    use super::super::mould::{Mould, Newcomer};
    use super::super::{Files, Installation, Origin, PortBy};
    use super::*;
    use crate::instance::UnixSeconds;

    struct NoFiles;

    impl Files for NoFiles {
        fn read(&self, _path: &Path, _bytes_max: usize) -> io::Result<Vec<u8>> {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    fn resolved(pairs: &[(&str, &str)]) -> Result<Guest, String> {
        let mould = Mould {
            host: Arc::default(),
            installation: Installation {
                seed: [7; 16],
                created: UnixSeconds(0),
            },
            directory: "/".into(),
            templates: Arc::new([]),
        };
        let newcomer = Newcomer {
            name: "redis",
            port: &PortBy::Index(7),
            seed: "container 1",
            origin: Origin::Source,
        };
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let pairs = Pairs::new("imds.", pairs.iter().map(owned).collect());
        mould
            .from_pairs(&pairs, &newcomer, &NoFiles)
            .map_err(|error| error.to_string())
    }

    fn check_refused(pairs: &[(&str, &str)], expected: &str) {
        assert_eq!(resolved(pairs).unwrap_err(), expected, "{pairs:?}");
    }

    #[test]
    fn nothing_written_is_an_instance_of_defaults() {
        let guest = resolved(&[]).unwrap();
        assert_eq!((&*guest.name, guest.port), ("redis", PortBy::Index(7)));
        assert_eq!(&*guest.instance.instance_type, "t3.micro");
    }

    #[test]
    fn what_is_written_is_what_the_file_would_make_of_it() {
        let guest = resolved(&[
            ("name", "cache"),
            ("instance-type", "m5.large"),
            ("http-tokens", "required"),
            ("http-put-response-hop-limit", "2"),
            ("security-groups", "web, ssh,"),
            ("public-key.me", "ssh-ed25519 AAAA me"),
            ("tags.Name", "a \"quoted\" \\ value\nof two lines\u{7}"),
            ("limits.connections", "3"),
            ("role", "reader"),
            ("user-data", "#!/bin/sh\necho \"$HOME\"\n"),
            ("public-key.you", "ssh-ed25519 BBBB you"),
        ])
        .unwrap();
        let toml = r##"
            [[instance]]
            name = "cache"
            port = "x"
            type = "m5.large"
            security-groups = ["web", "ssh"]
            tags.Name = "a \"quoted\" \\ value\nof two lines\u0007"
            user-data = "#!/bin/sh\necho \"$HOME\"\n"
            limits.connections = 3
            role.name = "reader"
            metadata-options = { http-tokens = "required", http-put-response-hop-limit = 2 }
            public-key = [{ name = "me", openssh = "ssh-ed25519 AAAA me" }, { name = "you", openssh = "ssh-ed25519 BBBB you" }]
        "##;
        let installation = Installation {
            seed: [7; 16],
            created: UnixSeconds(0),
        };
        let file = file::parse(toml).unwrap();
        let settings =
            super::super::resolve::resolve(&file, &installation, Path::new("/"), &NoFiles).unwrap();
        let expected = &settings.guests[0];
        assert_eq!(
            (&guest.name, guest.limits),
            (&expected.name, expected.limits)
        );
        let (one, other) = (&guest.instance, &expected.instance);
        // What is made up follows from the seed; all else is the same.
        assert_eq!(one.options, other.options);
        assert_eq!(one.instance_type, other.instance_type);
        assert_eq!(one.tags, other.tags);
        assert_eq!(one.user_data, other.user_data);
        assert_eq!(one.public_keys, other.public_keys);
        assert_eq!(one.primary.security_groups, other.primary.security_groups);
        assert_eq!(one.role, other.role);
        assert_ne!(one.id, other.id);
    }

    #[test]
    fn what_is_wrong_is_said_of_its_key() {
        check_refused(
            &[("instance-type", "t3.nano"), ("http-tokens", "mandatory")],
            "imds.http-tokens: `mandatory` is unknown: write one of optional, required",
        );
        check_refused(
            &[("http-token", "required")],
            "imds.http-token: unknown key: did you mean `http-tokens`?",
        );
        check_refused(
            &[("http-put-response-hop-limit", "many")],
            "imds.http-put-response-hop-limit: invalid type: string \"many\", expected i64",
        );
        check_refused(
            &[("http-put-response-hop-limit", "65"), ("name", "x")],
            "imds.http-put-response-hop-limit: 65 is out of range: the hop limit is 1 to 64",
        );
        check_refused(
            &[("public-key.me", "nonsense"), ("name", "x")],
            "imds.public-key.me: not a public key of OpenSSH: write a line such as `ssh-ed25519 AAAA… comment`",
        );
        check_refused(
            &[("type", "a"), ("instance-type", "b")],
            "imds.instance-type: duplicate key",
        );
        check_refused(&[("id", "i-1")], &resolved(&[("id", "i-1")]).unwrap_err());
    }

    #[test]
    fn files_of_the_host_and_ports_cannot_be_named() {
        for key in [
            "user-data-file",
            "port",
            "port-mac",
            "netns",
            "ports",
            "role.secret-access-key",
        ] {
            let error = resolved(&[(key, "x")]).unwrap_err();
            assert!(
                error.starts_with(&format!("imds.{key}: unknown key")),
                "{error}"
            );
        }
    }

    #[test]
    fn no_value_breaks_out_of_its_line() {
        let guest = resolved(&[
            ("hostname", "x"),
            ("tags.a\"]\nid = \"i-1", "\"\nport = \"lo"),
        ]);
        let guest = guest.unwrap();
        assert_eq!(guest.port, PortBy::Index(7));
        assert_eq!(&*guest.instance.tags[0].key, "a\"]\nid = \"i-1");
    }
}
