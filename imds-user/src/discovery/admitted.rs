//! Guests that a person admitted with `imds admit`. Pure; the state directory keeps them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::PortName;
use crate::config::pairs::Pairs;
use crate::netns::link::Mac;

/// One of them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admission {
    /// The port.
    pub port: String,
    /// The interface that it was said of; none if it holds for whatever has the port's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Interface>,
    /// What it is called, if not as its port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Keys and values of its instance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<(String, String)>,
}

/// One interface, and no other that there ever was or will be on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// The kernel's number for this boot of the machine.
    pub boot: String,
    /// The kernel's number for the network namespace.
    pub namespace: u64,
    /// Its number there.
    pub ifindex: u32,
    /// Its hardware address, by which it is known again after a time at which nobody saw whether it went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admitted {
    /// In the order in which they were admitted.
    pub admissions: Vec<Admission>,
}

/// Shows no values of keys: user data may be among them.
impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<&String> = self.keys.iter().map(|(key, _)| key).collect();
        f.debug_struct("Admission")
            .field("port", &self.port)
            .field("to", &self.to)
            .field("name", &self.name)
            .field("keys", &keys)
            .finish()
    }
}

impl Admission {
    /// What commands call it.
    #[must_use]
    pub fn called(&self) -> &str {
        let named = self.keys.iter().find(|(key, _)| key == "name");
        match (named, &self.name) {
            (Some((_, name)), _) => name,
            (None, Some(name)) => name,
            (None, None) => &self.port,
        }
    }

    /// What its made-up values follow from. For a name it is what the configuration would have, so that a guest which is
    /// written down there later stays who it is.
    #[must_use]
    pub fn seed(&self) -> String {
        match &self.to {
            Some(interface) => interface.seed(),
            None => self.port.clone(),
        }
    }

    /// Its keys and values.
    #[must_use]
    pub fn pairs(&self) -> Pairs {
        Pairs::new("", self.keys.clone())
    }
}

impl Interface {
    /// What no other interface has.
    #[must_use]
    pub fn seed(&self) -> String {
        let Self {
            boot,
            namespace,
            ifindex,
            mac: _,
        } = self;
        format!("{boot} {namespace} {ifindex}")
    }
}

impl Admitted {
    /// Whether there is one for this port, or with this name.
    #[must_use]
    pub fn has(&self, port: &PortName, name: &str) -> bool {
        let mut admissions = self.admissions.iter();
        admissions.any(|one| one.port == port.as_str() || one.called() == name)
    }

    /// Takes one out, by what it is called.
    pub fn remove(&mut self, name: &str) -> Option<Admission> {
        let at = self
            .admissions
            .iter()
            .position(|one| one.called() == name)?;
        Some(self.admissions.remove(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(port: &str, name: Option<&str>, to: Option<u32>) -> Admission {
        Admission {
            port: port.to_owned(),
            to: to.map(|ifindex| Interface {
                boot: "b".to_owned(),
                namespace: 4,
                ifindex,
                mac: None,
            }),
            name: name.map(str::to_owned),
            keys: Vec::new(),
        }
    }

    #[test]
    fn an_admission_is_found_by_its_port_and_by_what_it_is_called() {
        let mut keyed = admission("vnet2", None, None);
        keyed.keys = vec![("name".to_owned(), "db".to_owned())];
        let mut admitted = Admitted {
            admissions: vec![
                admission("vnet0", None, None),
                admission("vnet1", Some("web"), None),
                keyed,
            ],
        };
        for (port, name, is_there) in [
            ("vnet0", "x", true),
            ("vnet9", "vnet0", true),
            ("vnet9", "web", true),
            ("vnet9", "vnet1", false),
            ("vnet9", "db", true),
            ("vnet9", "vnet2", false),
        ] {
            assert_eq!(
                admitted.has(&port.parse().unwrap(), name),
                is_there,
                "{port} {name}"
            );
        }
        assert_eq!(admitted.remove("web").unwrap().port, "vnet1");
        assert_eq!(admitted.remove("web"), None);
    }

    #[test]
    fn another_interface_of_the_name_is_another_instance() {
        let seeds: Vec<String> = [Some(7), Some(8), None]
            .map(|to| admission("vnet0", None, to).seed())
            .into();
        assert_eq!(seeds, ["b 4 7", "b 4 8", "vnet0"]);
    }

    #[test]
    fn admissions_are_kept_as_they_are() {
        let admitted = Admitted {
            admissions: vec![
                admission("vnet0", None, Some(7)),
                admission("vnet1", Some("web"), None),
            ],
        };
        let text = serde_json::to_string(&admitted).unwrap();
        assert_eq!(serde_json::from_str::<Admitted>(&text).unwrap(), admitted);
    }
}
