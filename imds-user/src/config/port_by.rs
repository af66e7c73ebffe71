//! How the port of a guest is found among the interfaces of the host.
//!
//! Every way goes by what the host itself has set: the name, number and hardware address of its own interface, and the
//! namespace that the other end of a veth pair was put into. Nothing that a guest can write takes part.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::PortName;
use crate::instance::MacAddress;

/// How the port of a guest is found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortBy {
    /// The interface of this name, also when it was made anew.
    Name(PortName),
    /// The interface with this hardware address, or with this one and `fe` for its first byte, as libvirt gives it to
    /// the tap of a guest so that no bridge takes it for its own.
    Mac(MacAddress),
    /// The end of a veth pair whose other end is in the network namespace of this name (`ip netns`).
    Netns(NetnsName),
    /// The interface of this number. A number is given once, so another interface never has it.
    Index(u32),
}

/// From where a guest is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file names it.
    Configuration,
    /// A call of the API made it.
    Api,
    /// A person admitted it (`imds admit`).
    Admission,
    /// A source saw it ([`crate::discovery::source`]).
    Source,
    /// A template of the configuration made it of an interface.
    Template,
}

/// Name of a network namespace, as `ip netns` has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "Box<str>")]
pub struct NetnsName(Box<str>);

/// A text that is no name of a network namespace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a network namespace: `ip netns` lists them")]
pub struct NetnsNameError(String);

impl NetnsName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NetnsName {
    type Err = NetnsNameError;

    /// A file's name (`/run/netns/NAME`).
    fn from_str(text: &str) -> Result<Self, NetnsNameError> {
        let is_bad = |c: char| c == '/' || c.is_whitespace() || c.is_control();
        let has_bad_length = text.is_empty() || text.len() > 255;
        if has_bad_length || matches!(text, "." | "..") || text.contains(is_bad) {
            return Err(NetnsNameError(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for NetnsName {
    type Error = NetnsNameError;

    fn try_from(text: String) -> Result<Self, NetnsNameError> {
        text.parse()
    }
}

impl From<NetnsName> for Box<str> {
    fn from(name: NetnsName) -> Self {
        name.0
    }
}

/// What is looked for, in a form that no interface can have for a name unless it is one.
impl fmt::Display for PortBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.pad(name.as_str()),
            Self::Mac(mac) => f.pad(&format!("mac {mac}")),
            Self::Netns(name) => f.pad(&format!("netns {}", name.0)),
            Self::Index(index) => f.pad(&format!("interface {index}")),
        }
    }
}

impl PortBy {
    /// Whether the guest is one also while there is no such interface. A number is given once, so nobody waits for it.
    #[must_use]
    pub fn outlives_its_interface(&self) -> bool {
        !matches!(self, Self::Index(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_looked_for_is_told_without_being_taken_for_an_interface() {
        let mac: MacAddress = "52:54:00:12:34:56".parse().unwrap();
        for (by, text) in [
            (PortBy::Name("vnet0".parse().unwrap()), "vnet0"),
            (PortBy::Mac(mac), "mac 52:54:00:12:34:56"),
            (PortBy::Netns("blue".parse().unwrap()), "netns blue"),
            (PortBy::Index(7), "interface 7"),
        ] {
            assert_eq!(by.to_string(), text);
            let is_name = matches!(by, PortBy::Name(_));
            assert_eq!(text.parse::<PortName>().is_ok(), is_name, "{text}");
        }
    }

    #[test]
    fn a_namespace_has_a_file_name() {
        for name in ["blue", "cni-0b1c", ".hidden"] {
            assert_eq!(name.parse::<NetnsName>().unwrap().as_str(), name);
        }
        for name in ["", ".", "..", "a/b", "a b", &"x".repeat(256)] {
            assert!(name.parse::<NetnsName>().is_err(), "{name}");
        }
    }
}
