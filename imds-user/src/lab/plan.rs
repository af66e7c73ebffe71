//! What a lab consists of: guests, addresses, instances and the configuration that says so. Pure.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::LabName;
use crate::instance::UnixSeconds;
use crate::netns::link::Mac;

/// The configuration file, with a word between `@`s where labs differ.
const CONFIG: &str = include_str!("host.toml");

/// How long the role's credentials are good for, as EC2 hands them out.
const CREDENTIALS_LAST_SECONDS: u64 = 6 * 60 * 60;

/// A guest of a lab.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guest {
    /// Routed, tokens required, has a role, tags and IPv6; 169.254.169.254 is on its link.
    Web,
    /// Routed, tokens required, the same address as [`Guest::Web`], user data; 169.254.169.254 by its gateway.
    Db,
    /// Behind a bridge, tokens optional.
    Legacy,
}

/// How a guest's port reaches the host's network.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Attachment {
    /// The port has the gateway's address itself.
    Routed,
    /// The port belongs to a bridge, which has the gateway's address.
    Bridged,
}

/// The bridge of [`Attachment::Bridged`].
pub const BRIDGE: &str = "br0";

/// The bridge's hardware address: one of its own, as a bridge with an uplink would have.
pub const BRIDGE_MAC: Mac = [0x06, 0x00, 0x0a, 0x00, 0x01, 0x01];

/// What a guest calls its interface.
pub const GUEST_INTERFACE: &str = "eth0";

/// Prefix lengths of the guests' networks, in bits.
pub const IPV4_PREFIX_BITS: u8 = 24;
/// See [`IPV4_PREFIX_BITS`].
pub const IPV6_PREFIX_BITS: u8 = 64;

impl Guest {
    /// Every guest, in the order in which people are shown them.
    pub const ALL: [Self; 3] = [Self::Web, Self::Db, Self::Legacy];

    /// What commands call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::Db => "db",
            Self::Legacy => "legacy",
        }
    }

    /// The host's side of its veth pair.
    #[must_use]
    pub fn port(self) -> &'static str {
        match self {
            Self::Web => "veth-web",
            Self::Db => "veth-db",
            Self::Legacy => "veth-legacy",
        }
    }

    /// How its port reaches the host's network.
    #[must_use]
    pub fn attachment(self) -> Attachment {
        match self {
            Self::Web | Self::Db => Attachment::Routed,
            Self::Legacy => Attachment::Bridged,
        }
    }

    /// Whether it takes the metadata addresses to be on its link, and so asks for their hardware address.
    #[must_use]
    pub fn has_metadata_on_link(self) -> bool {
        self == Self::Web
    }

    /// Its own address.
    #[must_use]
    pub fn ipv4(self) -> Ipv4Addr {
        match self {
            Self::Web | Self::Db => Ipv4Addr::new(10, 0, 0, 10),
            Self::Legacy => Ipv4Addr::new(10, 0, 1, 10),
        }
    }

    /// Its gateway's address.
    #[must_use]
    pub fn gateway_ipv4(self) -> Ipv4Addr {
        match self.attachment() {
            Attachment::Routed => Ipv4Addr::new(10, 0, 0, 1),
            Attachment::Bridged => Ipv4Addr::new(10, 0, 1, 1),
        }
    }

    /// Its own address.
    #[must_use]
    pub fn ipv6(self) -> Ipv6Addr {
        match self {
            Self::Web | Self::Db => Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0x10),
            Self::Legacy => Ipv6Addr::new(0xfd00, 0x10, 0, 1, 0, 0, 0, 0x10),
        }
    }

    /// Its gateway's address.
    #[must_use]
    pub fn gateway_ipv6(self) -> Ipv6Addr {
        match self.attachment() {
            Attachment::Routed => Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 1),
            Attachment::Bridged => Ipv6Addr::new(0xfd00, 0x10, 0, 1, 0, 0, 0, 1),
        }
    }

    /// Its interface's hardware address.
    #[must_use]
    pub fn mac(self) -> Mac {
        match self {
            Self::Web => [0x06, 0x17, 0x04, 0xd7, 0x26, 0x09],
            Self::Db => [0x06, 0x5e, 0x91, 0x3a, 0xc4, 0x77],
            Self::Legacy => [0x06, 0xb2, 0x4c, 0x08, 0x5d, 0x13],
        }
    }

    /// EC2's `HttpTokens`, as [`config`] has it.
    #[must_use]
    pub fn http_tokens(self) -> &'static str {
        match self {
            Self::Web | Self::Db => "required",
            Self::Legacy => "optional",
        }
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Guest {
    type Err = NoSuchGuest;

    fn from_str(text: &str) -> Result<Self, NoSuchGuest> {
        Self::ALL
            .into_iter()
            .find(|guest| guest.name() == text)
            .ok_or(NoSuchGuest)
    }
}

/// The text is no guest's name.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("the guests are web, db and legacy")]
pub struct NoSuchGuest;

/// The id of a guest's instance: the same each time, another in another lab.
#[must_use]
pub fn instance_id(name: &LabName, guest: Guest) -> String {
    let digest = digest(name, guest, "instance id");
    let digits: String = digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("i-0{digits}")
}

/// The daemon's configuration.
#[must_use]
pub fn config(name: &LabName, now: UnixSeconds) -> String {
    let expiration = UnixSeconds(now.0 + CREDENTIALS_LAST_SECONDS).iso();
    let mut text = CONFIG.to_owned();
    for guest in Guest::ALL {
        text = text.replace(&format!("@{guest}.id@"), &instance_id(name, guest));
    }
    [
        ("@name@", name.to_string()),
        (
            "@access-key-id@",
            format!("ASIA{}", letters(name, "access key id", BASE32, 16)),
        ),
        (
            "@secret-access-key@",
            letters(name, "secret access key", BASE64, 40),
        ),
        ("@token@", letters(name, "token", BASE64, 356)),
        ("@expiration@", expiration.to_string()),
    ]
    .into_iter()
    .fold(text, |text, (word, value)| text.replace(word, &value))
}

const BASE32: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
const BASE64: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Characters that look drawn at random and open nothing.
fn letters(name: &LabName, purpose: &str, alphabet: &[u8], count: usize) -> String {
    let bytes = (0_u32..).flat_map(|block| digest(name, Guest::Web, &format!("{purpose} {block}")));
    bytes
        .take(count)
        .map(|byte| char::from(alphabet[usize::from(byte) % alphabet.len()]))
        .collect()
}

fn digest(name: &LabName, guest: Guest, purpose: &str) -> [u8; 32] {
    Sha256::digest(format!("imds lab {name} {guest} {purpose}")).into()
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::*;
    use crate::config::{self, Files, Installation};

    fn lab() -> LabName {
        "lab".parse().unwrap()
    }

    #[test]
    fn instance_ids_have_the_right_form_and_are_all_different() {
        let other: LabName = "other".parse().unwrap();
        let ids: Vec<_> = [lab(), other]
            .iter()
            .flat_map(|name| Guest::ALL.map(|guest| instance_id(name, guest)))
            .collect();
        for (at, id) in ids.iter().enumerate() {
            let digits = id.strip_prefix("i-").unwrap();
            assert_eq!(digits.len(), 17, "{id}");
            assert!(
                digits
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)),
                "{id}"
            );
            assert!(!ids[..at].contains(id), "{id} twice");
        }
    }

    #[test]
    fn the_configuration_has_no_word_left_to_fill_in() {
        let text = config(&lab(), UnixSeconds(0));
        assert!(
            !text.contains('@') || text.matches('@').count() == text.matches("imds-lab@").count(),
            "{text}"
        );
        toml::from_str::<toml::Table>(&text).unwrap();
    }

    #[test]
    fn the_configuration_says_of_each_guest_what_the_plan_says() {
        let text = config(&lab(), UnixSeconds(0));
        let table: toml::Table = toml::from_str(&text).unwrap();
        let instances = table["instance"].as_array().unwrap();
        assert_eq!(instances.len(), Guest::ALL.len());
        for (guest, instance) in Guest::ALL.into_iter().zip(instances) {
            let mac = guest.mac().map(|byte| format!("{byte:02x}")).join(":");
            let is = |key: &str, value: &str| {
                assert_eq!(instance[key].as_str(), Some(value), "{guest}: {key}");
            };
            is("name", guest.name());
            is("port", guest.port());
            is("id", &instance_id(&lab(), guest));
            is("private-ipv4", &guest.ipv4().to_string());
            is("mac", &mac);
            assert_eq!(
                instance["metadata-options"]["http-tokens"].as_str(),
                Some(guest.http_tokens()),
                "{guest}"
            );
        }
    }

    /// The file's text is what stands in for a file system.
    struct OneFile(String);

    impl Files for OneFile {
        fn read(&self, _path: &Path, _bytes_max: usize) -> io::Result<Vec<u8>> {
            Ok(self.0.clone().into())
        }
    }

    #[test]
    fn the_daemon_accepts_the_configuration() {
        let file = OneFile(config(&lab(), UnixSeconds(0)));
        let installation = Installation {
            seed: [7; 16],
            created: UnixSeconds(0),
        };
        let settings = config::load(Path::new("imds.toml"), &installation, &file).unwrap();
        let names: Vec<_> = settings.guests.iter().map(|guest| &*guest.name).collect();
        assert_eq!(names, Guest::ALL.map(Guest::name));
        let ids: Vec<_> = settings
            .guests
            .iter()
            .map(|guest| guest.instance.id.to_string())
            .collect();
        assert_eq!(ids, Guest::ALL.map(|guest| instance_id(&lab(), guest)));
    }

    #[test]
    fn credentials_look_like_credentials() {
        let table: toml::Table = toml::from_str(&config(&lab(), UnixSeconds(0))).unwrap();
        let role = &table["instance"][0]["role"];
        assert_eq!(role["access-key-id"].as_str().unwrap().len(), 20);
        assert_eq!(role["secret-access-key"].as_str().unwrap().len(), 40);
        assert_eq!(role["expiration"].as_str().unwrap(), "1970-01-01T06:00:00Z");
    }
}
