//! What the daemon tells of interfaces: which are waited for, which are closed and why.

use serde::{Deserialize, Serialize};

/// What the daemon knows of the host beyond the guests that it serves.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct DiscoveryStatus {
    /// Guests without a port.
    pub waiting: Vec<WaitingStatus>,
    /// Interfaces that drop what their guests send to the metadata addresses.
    pub closed: Vec<ClosedStatus>,
    /// What tells of guests.
    pub sources: Vec<SourceStatus>,
    /// How often the kernel told of more changes than there was room for, so that everything was looked at.
    pub lost_notifications: u64,
}

/// A guest that waits for its interface.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WaitingStatus {
    /// What commands call it.
    pub name: String,
    /// What is waited for: `vnet0`, `netns blue`, `mac 52:54:00:12:34:56`.
    pub port: String,
    /// Why it is not served.
    pub why: String,
}

/// An interface that is closed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ClosedStatus {
    /// Its name.
    pub port: String,
    /// Its number.
    pub ifindex: u32,
    /// Why.
    pub why: String,
    /// The command that would admit its guest; none where something else has to be put right.
    pub admit: Option<String>,
}

/// Something that tells of guests.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SourceStatus {
    /// `docker`
    pub source: String,
    /// Where it is asked.
    pub place: String,
    /// What keeps it from telling more.
    pub trouble: Option<String>,
    /// Guests that cannot be served and have no interface that could be closed, with the reason.
    pub refused: Vec<String>,
}

/// What became of an interface.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PortReport {
    /// Its name.
    pub interface: String,
    /// How it stands.
    pub state: PortState,
    /// Why, where it is not served.
    pub why: String,
}

/// How an interface stands.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortState {
    /// It is not there.
    Missing,
    /// It is there and nobody's: packets pass.
    Open,
    /// What its guest sends to the metadata addresses is dropped.
    Closed,
    /// Its guest is answered.
    Served,
}
