//! The local control socket: what may be asked over it, and the answers.
//!
//! A client connects to `STATE_DIR/control.sock`, writes one [`Request`] as a line of JSON and reads one
//! [`Answer`] as a line of JSON; then the connection ends. The socket lies in a directory that only the
//! daemon's user may enter. Guests never reach it. The server's side is the daemon's, the client's is
//! [`client`].

pub mod client;
pub mod discovery;
pub mod find;
pub mod instance;
pub mod server;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use discovery::{DiscoveryStatus, PortReport, PortState};
pub use instance::{Done, InstanceReport};

use crate::config::PortBy;
use crate::instance::Secret;
use crate::instance::credentials::{Role, RoleCredentials};
use crate::life::{Event, When};
use crate::store::apply::Change;
use crate::store::{AccountDefaults, KeyRole};

/// The socket's name in the state directory.
pub const SOCKET_NAME: &str = "control.sock";

/// The longest request in bytes that a server reads before it hangs up: room for user data in base64, and as much again.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;

/// What a client may ask.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Ports, instances, counters: answered by [`Answer::Status`].
    Status {},
    /// Every instance: answered by [`Answer::Instances`].
    Instances {},
    /// One instance, by name, id or the beginning of its id: answered by [`Answer::Instances`] with one in it.
    Instance {
        /// Which.
        instance: String,
    },
    /// Switch a machine on or off, or reboot it: answered by [`Answer::Done`], as are all that follow.
    Power {
        /// Which.
        instance: String,
        /// What to do.
        action: PowerAction,
    },
    /// Let something happen to an instance.
    Event {
        /// Which.
        instance: String,
        /// What.
        event: Event,
        /// When it shows; at once if nothing is said.
        after: Option<When>,
    },
    /// Make an interface the port of an instance of these keys and values.
    Admit {
        /// Its name.
        port: String,
        /// What the instance is called, if not as its port.
        name: Option<String>,
        /// Whether it holds for whatever interface has this name, now and later.
        by_name: bool,
        /// As labels of containers have them, without `imds.`.
        keys: Vec<(String, String)>,
    },
    /// Take back that a guest was admitted.
    Forget {
        /// Which.
        instance: String,
    },
    /// Make instances what a configuration file says: answered by [`Answer::Applied`].
    Apply {
        /// Its whole path.
        file: PathBuf,
        /// Only say what would change.
        dry_run: bool,
    },
    /// Register an instance whose guest somebody else runs: answered by [`Answer::Ordered`], as are the next three.
    AddInstance {
        /// What commands will call it.
        name: String,
        /// How its port is found, which need not be there yet.
        port: PortBy,
        /// What else it is: parameters of EC2's `RunInstances`, by their names, and `MacAddress` and `Address`, which its guest
        /// may have already.
        parameters: Parameters,
        /// Only say what would be done.
        dry_run: bool,
    },
    /// Forget an instance for good, as EC2's `TerminateInstances` does; or take back an admission.
    RemoveInstance {
        /// Which.
        instance: String,
    },
    /// Change metadata options.
    ModifyOptions {
        /// Of which instances: all or none of them.
        instances: Vec<String>,
        /// Of every instance that is not gone. None are named then.
        all: bool,
        /// Which options: parameters of EC2's `ModifyInstanceMetadataOptions`.
        parameters: Parameters,
        /// Only say what would change.
        dry_run: bool,
    },
    /// Change what new instances get.
    ModifyDefaults {
        /// Parameters of EC2's `ModifyInstanceMetadataDefaults`.
        parameters: Parameters,
        /// Only say what would change.
        dry_run: bool,
    },
    /// What new instances get: answered by [`Answer::Defaults`].
    Defaults {},
    /// What AWS's tools need to reach the control API: answered by [`Answer::AwsEnv`].
    AwsEnv {
        /// What they are to be allowed.
        role: KeyRole,
    },
    /// What became of an interface: answered by [`Answer::Port`].
    Port {
        /// Its name.
        port: String,
    },
}

/// Names and values, as a call of the API has them. What they may be is for its actions to say.
pub type Parameters = Vec<(String, String)>;

/// What can be done to a machine.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerAction {
    /// EC2's `StopInstances`.
    Stop,
    /// EC2's `StartInstances`.
    Start,
    /// EC2's `RebootInstances`.
    Reboot,
}

/// What the daemon answers.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// The request was not understood or could not be served.
    Error {
        /// Why, for people.
        error: String,
    },
    /// The request does not fit what is there: an instance that is not known, an action that is not for it.
    Refused {
        /// Why, for people.
        refused: String,
    },
    /// To [`Request::AddInstance`], [`Request::RemoveInstance`], [`Request::ModifyOptions`] and [`Request::ModifyDefaults`].
    Ordered(Ordered),
    /// To [`Request::Apply`].
    Applied(Applied),
    /// To [`Request::AwsEnv`].
    AwsEnv(AwsEnv),
    /// Something is done and in force, or planned.
    Done(Box<Done>),
    /// To [`Request::Instances`] and [`Request::Instance`].
    Instances {
        /// In the order of their ports.
        instances: Vec<InstanceReport>,
    },
    /// To [`Request::Port`].
    Port(PortReport),
    /// To [`Request::Defaults`].
    Defaults {
        /// What new instances get.
        defaults: AccountDefaults,
    },
    /// To [`Request::Status`].
    Status(Box<StatusReport>),
}

/// What applying a configuration file changed, as `imds apply --json` prints it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Applied {
    /// Whether it was only said.
    pub dry_run: bool,
    /// Whether a daemon serves it.
    pub in_force: bool,
    /// What changed, or would.
    pub changes: Vec<Change>,
}

/// What a command changed of what is kept, as it prints it with `--json`. It is in force, as far as the instances are not
/// said to wait for something.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Ordered {
    /// Whether it was only said.
    pub dry_run: bool,
    /// What changed, or would.
    pub changes: Vec<Change>,
    /// The instances that it is about, as they are now; none that is not there yet.
    pub instances: Vec<InstanceReport>,
}

/// What AWS's tools need to reach the control API.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AwsEnv {
    /// Its address: `http://127.0.0.1:4566`.
    pub endpoint: String,
    /// The region that calls are signed for.
    pub region: String,
    /// Which key.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: Secret,
}

/// What the daemon is doing, as `imds status --json` prints it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct StatusReport {
    /// The daemon itself.
    pub daemon: DaemonStatus,
    /// The process that answers guests.
    pub responder: ResponderStatus,
    /// Every port, in the order of the configuration.
    pub ports: Vec<PortStatus>,
    /// Where this host's own metadata service is kept from guests.
    pub guard: GuardStatus,
    /// Which processes of the host reach it.
    #[serde(default)]
    pub host_access: HostAccessStatus,
    /// Interfaces that guests wait for, interfaces that are closed, and what tells of guests.
    #[serde(default)]
    pub discovery: DiscoveryStatus,
    /// Packets for the metadata addresses that were dropped, by reason. Reasons that never happened may be there.
    pub drops: BTreeMap<String, u64>,
    /// Packets that the programs dealt with otherwise (`intercepted`, `replied` …), by what was done.
    pub packets: BTreeMap<String, u64>,
}

/// The daemon.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DaemonStatus {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// When it started, seconds of Unix time.
    pub started_unix_seconds: u64,
    /// The path of its configuration file; empty if it was started without one.
    pub config: String,
}

/// The responder.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ResponderStatus {
    /// Its process; `None` between its end and the start of the next.
    pub pid: Option<u32>,
    /// How often it was started again since the daemon started.
    pub restarts: u64,
    /// How many starts have failed since the last one that did not. From the fifth on guests are refused.
    #[serde(default)]
    pub failed_starts: u32,
    /// Its worker threads.
    pub workers: u32,
}

/// The guard on the uplinks.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct GuardStatus {
    /// Whether there is to be one.
    pub is_on: bool,
    /// Where it is, or should be.
    pub uplinks: Vec<UplinkStatus>,
    /// Packets that the host would have forwarded to the metadata addresses, by the interface that they came in by.
    pub dropped: BTreeMap<String, u64>,
}

/// An interface by which packets leave the host.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct UplinkStatus {
    /// Its name.
    pub interface: String,
    /// Whether the guard is on it.
    pub is_guarded: bool,
    /// Why not, otherwise.
    pub why_not: Option<String>,
}

/// Which processes of the host reach the host's own metadata service.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct HostAccessStatus {
    /// Whether all others are refused; all reach it otherwise.
    pub is_restricted: bool,
    /// The cgroups whose processes do.
    pub cgroups: Vec<CgroupStatus>,
    /// Calls that were refused, by the cgroup of the caller.
    pub refused: BTreeMap<String, u64>,
}

/// A cgroup that the configuration names.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CgroupStatus {
    /// Its place below the root.
    pub cgroup: String,
    /// Whether there is one now. Its processes are not known otherwise.
    pub is_there: bool,
}

/// One port and the instance behind it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PortStatus {
    /// The interface's name, or while there is none what is waited for: `netns blue`.
    pub port: String,
    /// The interface's number; 0 while there is none.
    pub ifindex: u32,
    /// The instance's slot on this host; none while it is stopped or waits for its interface.
    pub slot: Option<u32>,
    /// `running`, `stopped`, or `waiting` for an interface.
    pub state: String,
    /// `i-…`
    pub instance_id: String,
    /// What commands call the instance.
    pub name: String,
    /// EC2's `HttpTokens`: `optional` or `required`.
    pub http_tokens: String,
    /// Requests answered.
    pub requests: u64,
    /// Session tokens handed out.
    pub tokens_issued: u64,
    /// Requests without a token that were answered (EC2's metric `MetadataNoToken`).
    pub no_token: u64,
    /// Requests without a token that were refused (EC2's metric `MetadataNoTokenRejected`).
    pub no_token_rejected: u64,
    /// Requests that were answered with 503, being too many in their second.
    pub throttled: u64,
    /// Connections open now.
    pub connections: u64,
    /// The credentials of the instance's role; `null` without a role.
    #[serde(default)]
    pub credentials: Option<CredentialStatus>,
}

/// The credentials of a role.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CredentialStatus {
    /// Name of the role.
    pub role: String,
    /// Kind of their source: `static`, `generated`, `credential-process` or `assume-role`.
    pub kind: String,
    /// Which command or role that is.
    pub source: Option<String>,
    /// `fresh`; `pending`, before the source has answered; `stale`, when what is served could not be renewed; `failed`,
    /// when there is nothing to serve.
    pub state: String,
    /// When what is served expires, seconds of Unix time. `null` also for what is renewed by itself or never expires.
    pub expires_unix_seconds: Option<u64>,
    /// Why the source gave nothing when it was last asked.
    pub last_error: Option<String>,
}

impl CredentialStatus {
    /// Of credentials that come from the configuration.
    #[must_use]
    pub fn of_given(role: &Role) -> Self {
        let (kind, validity) = match &role.credentials {
            RoleCredentials::Given(credentials) => ("static", credentials.validity),
            RoleCredentials::Generated | RoleCredentials::Unavailable(_) => ("generated", None),
        };
        Self {
            role: role.name.to_string(),
            kind: kind.to_owned(),
            source: None,
            state: "fresh".to_owned(),
            expires_unix_seconds: validity.map(|validity| validity.expiration.0),
            last_error: None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::store::apply::Action;

    fn report() -> StatusReport {
        StatusReport {
            daemon: DaemonStatus {
                pid: 4711,
                version: "0.1.0".into(),
                started_unix_seconds: 1_700_000_000,
                config: "/etc/imds.toml".into(),
            },
            responder: ResponderStatus {
                pid: Some(4712),
                restarts: 0,
                failed_starts: 0,
                workers: 2,
            },
            ports: vec![PortStatus {
                port: "veth-web".into(),
                ifindex: 7,
                slot: Some(1),
                state: "running".into(),
                instance_id: "i-0123456789abcdef0".into(),
                name: "web".into(),
                http_tokens: "required".into(),
                requests: 12,
                tokens_issued: 3,
                no_token: 0,
                no_token_rejected: 1,
                throttled: 0,
                connections: 0,
                credentials: None,
            }],
            guard: GuardStatus {
                is_on: true,
                uplinks: vec![UplinkStatus {
                    interface: "eth0".into(),
                    is_guarded: true,
                    why_not: None,
                }],
                dropped: BTreeMap::from([("veth-late".into(), 3)]),
            },
            host_access: HostAccessStatus::default(),
            discovery: DiscoveryStatus::default(),
            drops: BTreeMap::from([("udp".into(), 2)]),
            packets: BTreeMap::from([("intercepted".into(), 99)]),
        }
    }

    #[test]
    fn a_request_is_the_documented_line() {
        assert_eq!(
            serde_json::to_string(&Request::Status {}).unwrap(),
            r#"{"command":"status"}"#
        );
        for (line, is_good) in [
            (r#"{"command":"status"}"#, true),
            (r#"{"command":"instances"}"#, true),
            (r#"{"command":"instance","instance":"web"}"#, true),
            (
                r#"{"command":"power","instance":"web","action":"reboot"}"#,
                true,
            ),
            (
                r#"{"command":"event","instance":"web","event":{"kind":"rebalance","force":false},"after":"1m"}"#,
                true,
            ),
            (
                r#"{"command":"event","instance":"web","event":{"kind":"spot-interruption","action":"stop","time":"2026-01-01T00:00:00Z","force":false},"after":null}"#,
                true,
            ),
            (
                r#"{"command":"event","instance":"web","event":{"kind":"rebalance","force":false},"after":"soon"}"#,
                false,
            ),
            (
                r#"{"command":"admit","port":"vnet3","name":null,"by_name":false,"keys":[["type","m5.large"]]}"#,
                true,
            ),
            (r#"{"command":"forget","instance":"web"}"#, true),
            (r#"{"command":"port","port":"vnet3"}"#, true),
            (
                r#"{"command":"apply","file":"/etc/imds.toml","dry_run":true}"#,
                true,
            ),
            (r#"{"command":"apply","file":"/etc/imds.toml"}"#, false),
            (
                r#"{"command":"add-instance","name":"web","port":{"name":"vnet0"},"parameters":[["InstanceType","m5.large"]],"dry_run":false}"#,
                true,
            ),
            (
                r#"{"command":"add-instance","name":"web","port":{"name":"a/b"},"parameters":[],"dry_run":false}"#,
                false,
            ),
            (r#"{"command":"remove-instance","instance":"web"}"#, true),
            (
                r#"{"command":"modify-options","instances":["web"],"all":false,"parameters":[["HttpTokens","required"]],"dry_run":true}"#,
                true,
            ),
            (
                r#"{"command":"modify-defaults","parameters":[["HttpTokens","no-preference"]],"dry_run":false}"#,
                true,
            ),
            (r#"{"command":"defaults"}"#, true),
            (r#"{"command":"power","instance":"web"}"#, false),
            (r#"{"command":"reboot"}"#, false),
            (r#"{"command":"status","port":1}"#, false),
            (r#"{}"#, false),
        ] {
            assert_eq!(
                serde_json::from_str::<Request>(line).is_ok(),
                is_good,
                "{line}"
            );
        }
    }

    #[test]
    fn an_answer_is_the_bare_report_or_an_error() {
        let status = Answer::Status(Box::new(report()));
        let line = serde_json::to_string(&status).unwrap();
        assert!(line.starts_with(r#"{"daemon":{"pid":4711,"#), "{line}");
        assert_eq!(serde_json::from_str::<Answer>(&line).unwrap(), status);
        let refused = Answer::Refused {
            refused: "no instance".into(),
        };
        assert_eq!(
            serde_json::from_str::<Answer>(r#"{"refused":"no instance"}"#).unwrap(),
            refused
        );
        let port = Answer::Port(PortReport {
            interface: "vnet3".into(),
            state: PortState::Closed,
            why: "nobody knows".into(),
        });
        let line = serde_json::to_string(&port).unwrap();
        assert_eq!(
            line,
            r#"{"interface":"vnet3","state":"closed","why":"nobody knows"}"#
        );
        assert_eq!(serde_json::from_str::<Answer>(&line).unwrap(), port);
        let applied = Answer::Applied(Applied {
            dry_run: false,
            in_force: true,
            changes: vec![Change {
                instance_id: None,
                name: "web".into(),
                action: Action::Remove,
                fields: Vec::new(),
            }],
        });
        let line = serde_json::to_string(&applied).unwrap();
        assert_eq!(
            line,
            r#"{"dry_run":false,"in_force":true,"changes":[{"instance_id":null,"name":"web","action":"remove"}]}"#
        );
        assert_eq!(serde_json::from_str::<Answer>(&line).unwrap(), applied);
        let ordered = Answer::Ordered(Ordered {
            dry_run: true,
            changes: Vec::new(),
            instances: Vec::new(),
        });
        let line = serde_json::to_string(&ordered).unwrap();
        assert_eq!(line, r#"{"dry_run":true,"changes":[],"instances":[]}"#);
        assert_eq!(serde_json::from_str::<Answer>(&line).unwrap(), ordered);
        let defaults = Answer::Defaults {
            defaults: AccountDefaults::default(),
        };
        let line = serde_json::to_string(&defaults).unwrap();
        assert_eq!(line, r#"{"defaults":{}}"#);
        assert_eq!(serde_json::from_str::<Answer>(&line).unwrap(), defaults);
        let error = Answer::Error { error: "no".into() };
        assert_eq!(
            serde_json::from_str::<Answer>(r#"{"error":"no"}"#).unwrap(),
            error
        );
    }
}
