//! Guests of our own: what RunInstances starts.
//!
//! A guest is launched by a process of its own, `imds launcher`, with rights that the daemon does not have: it makes
//! namespaces of every kind, and what it starts must not inherit what the daemon's unit forbids. It remembers nothing.
//! What a guest is stands in its directory, whether it runs is asked of the kernel, so launcher and daemon may end at
//! any moment; guests stay, and the next ones find them.
//!
//! | module | part |
//! |---|---|
//! | [`plan`] | what is launched, and what all of it is called; pure |
//! | [`record`] | the guest's directory |
//! | [`namespaces`] | guests made of the host's own programs |
//! | [`docker`] | guests made of Docker's images |
//! | [`launchers`] | both behind one |
//! | [`first`], [`root`], [`user_data`] | their first process, their files, their first boot |
//! | [`cable`], [`door`] | their network, shut until the daemon serves it |
//! | [`cgroup`] | what they may use |
//! | [`found`] | their processes, in the kernel's words |
//! | [`inside`], [`console`] | commands in them, and what they print |
//! | [`order`], [`server`], [`client`] | the launcher's socket |

pub mod cable;
pub mod cgroup;
pub mod client;
pub mod console;
pub mod docker;
pub mod door;
pub mod first;
pub mod found;
pub mod inside;
pub mod launchers;
pub mod namespaces;
pub mod order;
pub mod plan;
pub mod record;
pub mod root;
pub mod server;
pub mod user_data;

use std::ffi::OsString;
use std::io;

use serde::{Deserialize, Serialize};

use crate::instance::InstanceId;
use plan::Spec;

/// Something that guests can be launched by.
pub trait Launcher {
    /// Starts a guest: one that was never there, or one that was stopped, whose files it finds again. When this returns
    /// its port is served and what is in it runs; when it fails nothing runs, and a guest that was never there is not.
    fn start(&self, spec: &Spec) -> impl Future<Output = Result<Running, LaunchError>> + Send;

    /// Ends what runs in a guest, after it was asked to end by itself. Its files stay. One that does not run is let be.
    fn stop(&self, id: InstanceId) -> impl Future<Output = Result<(), LaunchError>> + Send;

    /// Ends it and takes away all that belongs to it. One that is not there is let be.
    fn terminate(&self, id: InstanceId) -> impl Future<Output = Result<(), LaunchError>> + Send;

    /// What it is doing.
    fn state(&self, id: InstanceId) -> impl Future<Output = Result<State, LaunchError>> + Send;

    /// Runs a command in it, with the standard streams of this process, and hands on its exit code. For a process that
    /// does nothing else.
    fn exec(
        &self,
        id: InstanceId,
        program: OsString,
        args: Vec<OsString>,
    ) -> Result<u8, LaunchError>;
}

/// A guest that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Running {
    /// Its port: the host's interface.
    pub port: String,
    /// Its first process, as the host numbers it.
    pub pid: u32,
}

/// What a guest is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Its first process lives.
    Running(Running),
    /// It was launched, and its first process is no more.
    Stopped,
    /// It was never launched here, or was terminated.
    Absent,
}

/// Why a guest could not be launched, or reached.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// It runs already.
    #[error("guest {0} runs already")]
    Runs(InstanceId),
    /// It does not run.
    #[error("guest {0} does not run: start its instance first")]
    Stopped(InstanceId),
    /// There is none.
    #[error("instance {0} has no guest that was launched here")]
    Absent(InstanceId),
    /// Another launcher has the state directory.
    #[error("another launcher runs with this state directory")]
    Locked,
    /// There is no such image here.
    #[error("no image `{0}` on this host")]
    Image(String),
    /// It was launched from an image of the other kind.
    #[error("guest {0} is of another kind of image: terminate it first")]
    OtherKind(InstanceId),
    /// Docker, in its or our words.
    #[error("{0}")]
    Docker(String),
    /// Its first process did not come to be.
    #[error("the guest's first process: {0}")]
    First(String),
    /// Something of the system.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// Its directory.
    #[error(transparent)]
    Record(#[from] record::RecordError),
    /// Its control group.
    #[error(transparent)]
    Cgroup(#[from] cgroup::CgroupError),
    /// Its network.
    #[error(transparent)]
    Cable(#[from] cable::CableError),
    /// Its network's namespace.
    #[error(transparent)]
    NetNs(#[from] crate::netns::NetNsError),
    /// Its port.
    #[error(transparent)]
    Door(#[from] door::DoorError),
    /// Its file system.
    #[error(transparent)]
    Root(#[from] root::RootError),
    /// What it printed.
    #[error(transparent)]
    Console(#[from] console::ConsoleError),
    /// A command in it.
    #[error(transparent)]
    Inside(#[from] inside::InsideError),
}

pub(crate) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> LaunchError {
    move |cause| LaunchError::System {
        what,
        cause: cause.into(),
    }
}
