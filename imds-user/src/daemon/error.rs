//! Why the daemon does not start, or does not go on.

use std::io;

use super::BTF;
use crate::{
    api::{server::DoorError, tls::TlsError},
    cgroups::CgroupsError,
    config::ConfigError,
    dataplane::DataPlaneError,
    netns::link::LinkError,
    responder::namespace::NamespaceError,
    responder::supervisor::ResponderError,
    state::StateError,
    store::{CommitError, StoreError, apply::ApplyError},
};

/// Why the daemon did not start or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Not root.
    #[error("only root can load programs and make namespaces: run it with sudo")]
    NotRoot,
    /// The kernel was built without type information.
    #[error(
        "this kernel has no BTF ({BTF}): boot one with CONFIG_DEBUG_INFO_BTF=y, as every current distribution has it"
    )]
    NoBtf,
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A port's interface is not there.
    #[error(
        "interface {port} of instance {instance} is not there: make it first, or correct `port` in the configuration (`ip -br link` lists what is there)"
    )]
    NoInterface {
        /// The interface.
        port: String,
        /// The instance's name.
        instance: String,
    },
    /// A port's interface cannot be a port.
    #[error("interface {port} cannot be the port of instance {instance}: {why}")]
    NotAPort {
        /// The interface.
        port: String,
        /// The instance's name.
        instance: String,
        /// What is in the way.
        why: String,
    },
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// Programs, maps or filters.
    #[error(transparent)]
    DataPlane(#[from] DataPlaneError),
    /// The tree of cgroups.
    #[error(transparent)]
    Cgroups(#[from] CgroupsError),
    /// The responder's namespace.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The responder.
    #[error(transparent)]
    Responder(#[from] ResponderError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What was to be kept was changed by somebody else meanwhile.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The configuration does not fit the instances of others.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The control API cannot be where it is to be.
    #[error(transparent)]
    Door(#[from] DoorError),
    /// The certificate of the control API.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The interfaces could not be listed.
    #[error(transparent)]
    Links(#[from] LinkError),
    /// Something else of the system.
    #[error("{what}: {cause}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
}
