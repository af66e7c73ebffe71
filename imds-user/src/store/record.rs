//! Records: what the store keeps, one whole value a key. Plain data, in JSON, so that any store of keys and values can hold
//! them and a person can read them.
//!
//! What an instance is to its guest stands in [`InstanceRecord::spec`], in the domain's own type, complete; what commands
//! did to its machine since stands in its [`Life`], a record of its own, since it outlives the instance's place in a file.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU8;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use crate::config::{Facet, PortBy, Rest};
use crate::credentials::CredentialSource;
use crate::discovery::admitted::Admission;
use crate::instance::{
    Instance, InstanceId, KeyPairId, Limits, ProfileAssociationId, Secret, Switch, Tag, TokenUse,
    UnixSeconds,
};
use crate::launch::plan::Image;
use crate::life::{self, Life};

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An instance, by its id.
    Instance,
    /// What commands did to an instance, by its id.
    Life,
    /// A guest that a person admitted, by its name.
    Admission,
    /// What new instances get unless their launch says otherwise. There is one.
    Defaults,
    /// An access key of the control API, by its id.
    AccessKey,
    /// A key pair, by its name.
    KeyPair,
    /// What the file says besides instances, when it was last applied. There is one.
    Rest,
}

impl Kind {
    /// Every kind.
    pub const ALL: &'static [Self] = &[
        Self::Instance,
        Self::Life,
        Self::Admission,
        Self::Defaults,
        Self::AccessKey,
        Self::KeyPair,
        Self::Rest,
    ];

    /// What it is called where records are kept.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Instance => "instance",
            Self::Life => "life",
            Self::Admission => "admission",
            Self::Defaults => "defaults",
            Self::AccessKey => "access-key",
            Self::KeyPair => "key-pair",
            Self::Rest => "rest",
        }
    }
}

/// Where a record is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// What it is about.
    pub kind: Kind,
    /// Which one of them.
    pub name: Box<str>,
}

impl Key {
    /// Of the one record with account defaults.
    #[must_use]
    pub fn defaults() -> Self {
        Self::new(Kind::Defaults, "account")
    }

    /// Of an instance.
    #[must_use]
    pub fn instance(id: InstanceId) -> Self {
        Self::new(Kind::Instance, id.as_str())
    }

    /// Of what commands did to an instance.
    #[must_use]
    pub fn life(id: InstanceId) -> Self {
        Self::new(Kind::Life, id.as_str())
    }

    /// Of an admission, by what its guest is called.
    #[must_use]
    pub fn admission(name: &str) -> Self {
        Self::new(Kind::Admission, name)
    }

    /// Of an access key, by its id.
    #[must_use]
    pub fn access_key(id: &str) -> Self {
        Self::new(Kind::AccessKey, id)
    }

    /// Of a key pair, by its name.
    #[must_use]
    pub fn key_pair(name: &str) -> Self {
        Self::new(Kind::KeyPair, name)
    }

    /// Of what the file says besides instances.
    #[must_use]
    pub fn rest() -> Self {
        Self::new(Kind::Rest, "file")
    }

    pub(super) fn new(kind: Kind, name: &str) -> Self {
        let name = name.into();
        Self { kind, name }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.as_str(), self.name)
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// An instance.
    Instance(Box<InstanceRecord>),
    /// What commands did to the instance with this id.
    Life(InstanceId, Box<Life>),
    /// A guest that a person admitted.
    Admission(Box<Admission>),
    /// What new instances get.
    Defaults(AccountDefaults),
    /// An access key.
    AccessKey(AccessKey),
    /// A key pair.
    KeyPair(Box<KeyPair>),
    /// What the file says besides instances.
    Rest(Rest),
}

/// A value that cannot be read as the record that it should be.
#[derive(Debug, thiserror::Error)]
#[error("the record {key} is damaged ({cause}): restore the store from a copy")]
pub struct RecordError {
    /// Which one.
    pub key: Key,
    /// What is wrong with it.
    pub cause: serde_json::Error,
}

impl Record {
    /// What it means that there is no record at a key, where that is something: nothing happened to an instance yet, nobody
    /// prefers anything.
    #[must_use]
    pub fn absent(key: &Key) -> Option<Self> {
        match key.kind {
            Kind::Life => {
                let id = key.name.parse().ok()?;
                Some(Self::Life(id, Box::new(Life::NOTHING)))
            }
            Kind::Defaults => Some(Self::Defaults(AccountDefaults::default())),
            _ => None,
        }
    }

    /// Where it is kept.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Instance(instance) => Key::instance(instance.spec.id),
            Self::Life(id, _) => Key::life(*id),
            Self::Admission(admission) => Key::admission(admission.called()),
            Self::Defaults(_) => Key::defaults(),
            Self::AccessKey(key) => Key::access_key(&key.id),
            Self::KeyPair(pair) => Key::key_pair(&pair.name),
            Self::Rest(_) => Key::rest(),
        }
    }

    /// The text that it is kept as.
    ///
    /// # Errors
    /// None that a record of ours can cause: all its maps have texts for keys.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let text = match self {
            Self::Instance(instance) => serde_json::to_vec(instance),
            Self::Life(_, life) => serde_json::to_vec(life),
            Self::Admission(admission) => serde_json::to_vec(admission),
            Self::Defaults(defaults) => serde_json::to_vec(defaults),
            Self::AccessKey(key) => serde_json::to_vec(key),
            Self::KeyPair(pair) => serde_json::to_vec(pair),
            Self::Rest(rest) => serde_json::to_vec(rest),
        };
        text.map_err(|cause| RecordError {
            key: self.key(),
            cause,
        })
    }

    /// Reads what was kept under a key.
    ///
    /// # Errors
    /// It is not such a record, or another one's.
    pub fn decode(key: &Key, text: &[u8]) -> Result<Self, RecordError> {
        let error = |cause| RecordError {
            key: key.clone(),
            cause,
        };
        let record = match key.kind {
            Kind::Instance => serde_json::from_slice(text).map(Self::Instance),
            Kind::Life => {
                let id = key.name.parse().map_err(|wrong| error(other(wrong)))?;
                serde_json::from_slice(text).map(|life| Self::Life(id, life))
            }
            Kind::Admission => serde_json::from_slice(text).map(Self::Admission),
            Kind::Defaults => serde_json::from_slice(text).map(Self::Defaults),
            Kind::AccessKey => serde_json::from_slice(text).map(Self::AccessKey),
            Kind::KeyPair => serde_json::from_slice(text).map(Self::KeyPair),
            Kind::Rest => serde_json::from_slice(text).map(Self::Rest),
        };
        let record = record.map_err(error)?;
        if record.key() != *key {
            return Err(error(other(format!("it is that of {}", record.key()))));
        }
        Ok(record)
    }
}

fn other(what: impl fmt::Display) -> serde_json::Error {
    serde::de::Error::custom(what)
}

/// An instance, as the configuration file and the API know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceRecord {
    /// What commands call it.
    pub name: Box<str>,
    /// Who brought it here, and so may take it away.
    pub owner: Owner,
    /// How its port is found; none while nobody has made one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<PortBy>,
    /// What its guest may take of the service.
    pub limits: Limits,
    /// Where the credentials of its role come from, if from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential_source: Option<CredentialSource>,
    /// What it is to the service: id, type, image, options, tags, user data, role, interfaces and so on, and the time at which
    /// it was launched (until it is started anew, see [`Life::started`]).
    pub spec: Instance,
    /// How far its metadata options are in force.
    #[serde(default)]
    pub options: OptionsProgress,
    /// What the file said of what others may change too, when it was last applied: what of it is changed, is changed in the
    /// file. Empty for instances of others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub said: BTreeMap<Facet, Digest>,
    /// What its machine is on the way to, or that it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transition: Option<Transition>,
    /// What its launch was asked with.
    #[serde(default, skip_serializing_if = "Launch::is_unremarkable")]
    pub launch: Launch,
    /// Its key pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_name: Option<Box<str>>,
    /// Id of the association with its instance profile, which is the one of [`Instance::role`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile_association: Option<ProfileAssociationId>,
    /// What matters to the API alone.
    #[serde(default, skip_serializing_if = "Attributes::is_usual")]
    pub attributes: Attributes,
    /// The guest that a launcher runs for it; none where its guest is somebody else's, or nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// Why it is in its state, where nobody told it to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_reason: Option<StateReason>,
}

impl InstanceRecord {
    /// An instance about which there is nothing more to say.
    #[must_use]
    pub fn new(name: &str, owner: Owner, spec: Instance) -> Self {
        Self {
            name: name.into(),
            owner,
            port: None,
            limits: Limits::DEFAULT,
            credential_source: None,
            spec,
            options: OptionsProgress::default(),
            said: BTreeMap::new(),
            transition: None,
            launch: Launch::default(),
            key_name: None,
            profile_association: None,
            attributes: Attributes::default(),
            machine: None,
            state_reason: None,
        }
    }

    /// EC2's state of it. What commands did says whether it runs; a transition says more.
    #[must_use]
    pub fn state(&self, life: &Life) -> InstanceState {
        match (&self.transition, life.state()) {
            (Some(Transition::Pending), _) => InstanceState::Pending,
            (Some(Transition::Stopping), _) => InstanceState::Stopping,
            (Some(Transition::ShuttingDown), _) => InstanceState::ShuttingDown,
            (Some(Transition::Terminated { .. }), _) => InstanceState::Terminated,
            (None, life::State::Running) => InstanceState::Running,
            (None, life::State::Stopped) => InstanceState::Stopped,
        }
    }

    /// Whether its machine is gone for good. Such a record is kept for a while, so that it can be asked about.
    #[must_use]
    pub fn is_terminated(&self) -> bool {
        matches!(self.transition, Some(Transition::Terminated { .. }))
    }

    /// When it was last launched or started.
    #[must_use]
    pub fn launch_time(&self, life: &Life) -> UnixSeconds {
        life.started.unwrap_or(self.spec.pending_time)
    }

    /// Whether detailed monitoring is on.
    #[must_use]
    pub fn is_monitored(&self) -> bool {
        let monitoring = self.spec.details().monitoring;
        monitoring.is_some_and(Switch::is_enabled)
    }
}

/// Who brought an instance here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// The configuration file: applying one that does not have it takes it away.
    File,
    /// A call of the API.
    Api,
    /// `imds admit`
    Admitted,
    /// A source or a template, which tells of it anew at every start.
    Discovered,
}

impl Owner {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Api => "api",
            Self::Admitted => "admitted",
            Self::Discovered => "discovered",
        }
    }
}

/// The metadata options of an instance count their changes. They are in force once the one who serves them says so: at once
/// when it runs, at its next start when it is stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptionsProgress {
    /// How often they were changed.
    pub changed: u64,
    /// Up to which change they were in force when this was last written. The daemon may know of later ones.
    pub applied: u64,
}

impl OptionsProgress {
    /// Notes a change.
    pub fn change(&mut self) {
        self.changed += 1;
    }

    /// Notes that they are in force as they are.
    pub fn apply(&mut self) {
        self.applied = self.changed;
    }

    /// EC2's word: `pending` or `applied`.
    #[must_use]
    pub fn state(self) -> &'static str {
        if self.applied == self.changed {
            "applied"
        } else {
            "pending"
        }
    }
}

/// What a machine is on the way to. Where there is none, it runs or is stopped, as its [`Life`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Transition {
    /// To run, for the first time or again.
    Pending,
    /// To be stopped.
    Stopping,
    /// To be gone.
    ShuttingDown,
    /// It is gone.
    Terminated {
        /// Since when.
        at: UnixSeconds,
    },
}

/// The guest that a launcher runs for an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// What it runs.
    pub image: Image,
    /// Whether it is to be rebooted, and was not yet. If somebody ends before that is noted, it is rebooted once more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reboot: bool,
}

/// Why an instance is in a state that nobody told it to be in (EC2 API, `StateReason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateReason {
    /// Its guest shut itself down.
    InstanceInitiated,
    /// Its guest could not be launched. The log of the daemon says why.
    LaunchFailed,
    /// Its guest is gone and did not end by itself: the host was rebooted, or somebody took it away.
    HostFailed,
    /// There is nobody here who launches guests: it is a record, and nothing runs behind it.
    NoGuest,
}

impl StateReason {
    /// EC2's word for it. For the last one it has none.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::InstanceInitiated => "Client.InstanceInitiatedShutdown",
            Self::LaunchFailed | Self::HostFailed => "Server.InternalError",
            Self::NoGuest => "imds.NoGuest",
        }
    }

    /// For people.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::InstanceInitiated => "Instance initiated shutdown",
            Self::LaunchFailed => "Internal error on launch",
            Self::HostFailed => "The guest ended with its host",
            Self::NoGuest => "No launcher runs on this host, so this is a record without a guest",
        }
    }
}

/// EC2's instance state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InstanceState {
    /// On the way to run.
    Pending,
    /// Runs.
    Running,
    /// On the way to be gone.
    ShuttingDown,
    /// Gone.
    Terminated,
    /// On the way to be stopped.
    Stopping,
    /// Stopped.
    Stopped,
}

impl InstanceState {
    /// Every state.
    pub const ALL: &'static [Self] = &[
        Self::Pending,
        Self::Running,
        Self::ShuttingDown,
        Self::Terminated,
        Self::Stopping,
        Self::Stopped,
    ];

    /// The code of it (EC2 API, `InstanceState`).
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Pending => 0,
            Self::Running => 16,
            Self::ShuttingDown => 32,
            Self::Terminated => 48,
            Self::Stopping => 64,
            Self::Stopped => 80,
        }
    }

    /// Whether it is neither gone nor on the way to be.
    #[must_use]
    pub fn is_to_stay(self) -> bool {
        !matches!(self, Self::ShuttingDown | Self::Terminated)
    }

    /// EC2's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::ShuttingDown => "shutting-down",
            Self::Terminated => "terminated",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

/// What a launch was asked with, so that the same call twice launches once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Launch {
    /// `ClientToken`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_token: Option<Box<str>>,
    /// Of the other parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Digest>,
}

impl Launch {
    fn is_unremarkable(&self) -> bool {
        *self == Self::default()
    }
}

/// Attributes of an instance that matter to the API alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Attributes {
    /// `disableApiTermination`
    pub disable_api_termination: bool,
    /// `disableApiStop`
    pub disable_api_stop: bool,
    /// `instanceInitiatedShutdownBehavior`
    pub instance_initiated_shutdown_behavior: ShutdownBehavior,
    /// `sourceDestCheck`
    pub source_dest_check: bool,
    /// `ebsOptimized`
    pub ebs_optimized: bool,
    /// `CreditSpecification.CpuCredits`, where it was asked for.
    pub cpu_credits: Option<CpuCredits>,
}

impl Default for Attributes {
    fn default() -> Self {
        Self {
            disable_api_termination: false,
            disable_api_stop: false,
            instance_initiated_shutdown_behavior: ShutdownBehavior::Stop,
            source_dest_check: true,
            ebs_optimized: false,
            cpu_credits: None,
        }
    }
}

impl Attributes {
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// What becomes of an instance whose guest shuts down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShutdownBehavior {
    /// It is stopped.
    Stop,
    /// It is gone.
    Terminate,
}

/// `CreditSpecification.CpuCredits` of burstable types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuCredits {
    /// `standard`
    Standard,
    /// `unlimited`
    Unlimited,
}

/// What new instances get unless their launch says otherwise (`GetInstanceMetadataDefaults`). None is no preference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccountDefaults {
    /// `HttpTokens`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_tokens: Option<TokenUse>,
    /// `HttpPutResponseHopLimit`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_put_response_hop_limit: Option<NonZeroU8>,
    /// `HttpEndpoint`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_endpoint: Option<Switch>,
    /// `InstanceMetadataTags`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_metadata_tags: Option<Switch>,
    /// `HttpTokensEnforced`: a launch that comes out as `optional` is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_tokens_enforced: Option<Switch>,
}

/// A key that calls of the API are signed with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessKey {
    /// `AKIA` and 16 characters.
    pub id: Box<str>,
    /// What signatures are made with.
    pub secret: Secret,
    /// What its calls may do.
    pub role: KeyRole,
    /// When it was made.
    pub created: UnixSeconds,
}

/// What the calls of an access key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyRole {
    /// Everything.
    Admin,
    /// Look, and change nothing.
    ReadOnly,
}

/// A key pair: its public half. The private one is given away when it is made and never kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyPair {
    /// Its name.
    pub name: Box<str>,
    /// `key-…`
    pub id: KeyPairId,
    /// The OpenSSH line: kind and key, and its name for a comment.
    pub openssh: Box<str>,
    /// As EC2 computes it.
    pub fingerprint: Box<str>,
    /// When it was made or imported.
    pub created: UnixSeconds,
    /// Its tags, sorted bytewise by key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Tag>,
}
