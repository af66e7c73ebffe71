//! Takes away what daemons leave in the kernel: filters, pinned maps and programs, the responder's namespace, and guests
//! that were launched.
//!
//! A daemon that ends leaves all of it, closed. This is for hosts that shall have no imds any more, and for what a first
//! start had made before it failed. The state directory itself stays.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::dataplane::{
    DataPlaneError,
    filter::{Direction, Filter, Filters},
    load::PORT_INGRESS,
    pins::{self, Left},
};
use crate::launch::{self, LaunchError};
use crate::netns::{self, NetNs, NetNsError};
use crate::responder::namespace::{NamespaceError, ResponderNamespace};
use crate::responder::{self, orphan};
use crate::state::{StateDir, StateError};

/// Why something could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum DownError {
    /// A daemon runs.
    #[error("the daemon with the state directory {} runs: stop it first", .0.display())]
    Running(PathBuf),
    /// Guests that were launched.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// Filters or pins.
    #[error(transparent)]
    DataPlane(#[from] DataPlaneError),
    /// The responder's namespace.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A namespace.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// Something else of the system.
    #[error("{what}: {cause}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// What was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Ports with a filter, in this network namespace.
    pub n_ports: usize,
    /// Whether something belongs to interfaces of another network namespace.
    pub is_elsewhere: bool,
    /// Whether anything was there at all.
    pub is_anything: bool,
}

/// Takes everything away that daemons of this state directory have left. Must be called within a tokio runtime, in the
/// network namespace of the daemon.
///
/// # Errors
/// When a daemon runs, or the kernel refuses.
pub async fn down(state_dir: &Path) -> Result<Found, DownError> {
    let Some(state) = held(state_dir)? else {
        return Ok(Found {
            n_ports: 0,
            is_elsewhere: false,
            is_anything: false,
        });
    };
    let cookie = cookie()?;
    let found = look(&state, cookie)?;
    remove(&state, cookie).await?;
    Ok(found)
}

/// Ends a responder that is left, and leaves everything else: guests are refused.
///
/// # Errors
/// When a daemon runs, or the kernel refuses.
pub async fn close(state_dir: &Path) -> Result<Found, DownError> {
    let Some(state) = held(state_dir)? else {
        return Ok(Found {
            n_ports: 0,
            is_elsewhere: false,
            is_anything: false,
        });
    };
    end_responders(&state).await?;
    look(&state, cookie()?)
}

/// As [`down`], for a network namespace that goes too: whatever filters are in it go with it. `state_dir` need not be
/// there.
///
/// # Errors
/// When the kernel refuses.
pub async fn remove_all_but_filters(state_dir: &Path) -> Result<(), DownError> {
    let Some(state) = held(state_dir)? else {
        return Ok(());
    };
    launch::launchers::remove_all(state.path()).await?;
    remove_lasting(&state).await
}

/// Takes everything away, for whoever holds the state directory.
///
/// # Errors
/// When the kernel refuses.
pub async fn remove(state: &StateDir, cookie: u64) -> Result<(), DownError> {
    let filters = own_filters(state, cookie)?;
    // Guests of our own are of no use without us, and would be the only ones who saw what follows.
    launch::launchers::remove_all(state.path()).await?;
    // The responder first, so that guests hear of the end of their connections while there is a way for it. Then ports,
    // while what leaves by uplinks is still guarded.
    end_responders(state).await?;
    detach(&filters, Direction::Ingress)?;
    remove_lasting(state).await?;
    detach(&filters, Direction::Egress)
}

/// Whether no daemon of this state directory has left anything.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn is_nothing_left(state: &StateDir, cookie: u64) -> Result<bool, DownError> {
    let is_anything = look(state, cookie)?.is_anything || !own_filters(state, cookie)?.is_empty();
    Ok(!is_anything)
}

async fn remove_lasting(state: &StateDir) -> Result<(), DownError> {
    let name = state.namespace_name();
    end_responders(state).await?;
    ResponderNamespace::remove(&name).await?;
    pins::remove_all(state.path(), &name)?;
    match fs::remove_file(state.socket()) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(DownError::System {
            what: "remove the control socket",
            cause,
        }),
        _ => Ok(()),
    }
}

async fn end_responders(state: &StateDir) -> Result<(), DownError> {
    let failed = |cause| DownError::System {
        what: "end the responder",
        cause,
    };
    responder::remove(&state.responders())
        .await
        .map_err(failed)?;
    let name = state.namespace_name();
    if !NetNs::exists(&name) {
        return Ok(());
    }
    orphan::end_all(&NetNs::open(&name)?).await.map_err(failed)
}

/// The state directory, held; none if it is not there.
fn held(state_dir: &Path) -> Result<Option<StateDir>, DownError> {
    if !state_dir.exists() {
        return Ok(None);
    }
    match StateDir::open(state_dir) {
        Err(StateError::Locked(path)) => Err(DownError::Running(path)),
        opened => Ok(Some(opened?)),
    }
}

fn cookie() -> Result<u64, DownError> {
    netns::cookie().map_err(|cause| DownError::System {
        what: "ask which network namespace this is",
        cause,
    })
}

fn look(state: &StateDir, cookie: u64) -> Result<Found, DownError> {
    let name = state.namespace_name();
    let left = pins::left(state.path(), &name, cookie)?;
    let is_port = |filter: &&Filter| filter.program == PORT_INGRESS;
    Ok(Found {
        n_ports: own_filters(state, cookie)?.iter().filter(is_port).count(),
        is_elsewhere: left == Left::Elsewhere,
        is_anything: left != Left::Nothing
            || NetNs::exists(&name)
            || state.responders().exists()
            || launch::plan::guests_in(state.path()).exists(),
    })
}

/// The filters of this state directory's daemons in this network namespace. A filter does not say whose it is; but a
/// namespace has one daemon, so they are all ours unless what was left belongs to another namespace, or another daemon
/// runs here.
fn own_filters(state: &StateDir, cookie: u64) -> Result<Vec<Filter>, DownError> {
    let left = pins::left(state.path(), &state.namespace_name(), cookie)?;
    let claim = NetNs::current()?
        .claim()
        .map_err(|cause| DownError::System {
            what: "claim this network namespace",
            cause,
        })?;
    if left == Left::Elsewhere || claim.is_none() {
        return Ok(Vec::new());
    }
    let mut filters = Filters::open().map_err(DataPlaneError::Filters)?;
    Ok(filters.all().map_err(DataPlaneError::Filters)?)
}

fn detach(filters: &[Filter], direction: Direction) -> Result<(), DownError> {
    let mut kernel = Filters::open().map_err(DataPlaneError::Filters)?;
    for filter in filters.iter().filter(|one| one.direction == direction) {
        kernel
            .detach(filter.ifindex, filter.direction)
            .and_then(|()| kernel.remove_empty_queue(filter.ifindex))
            .map_err(|cause| DataPlaneError::Detach {
                interface: filter.ifindex.to_string(),
                cause,
            })?;
    }
    Ok(())
}
