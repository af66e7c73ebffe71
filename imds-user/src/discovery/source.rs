//! Sources: what tells of guests that the configuration does not name.
//!
//! A source is a task that watches where guests are made and sends, after every change, all guests that it knows of. What
//! it says replaces what it said before. It names interfaces by number, read while it had hold of the guest's namespace or
//! device: numbers are not given twice, so a message that comes late names an interface that is gone, never another one.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::docker;
use crate::config::pairs::Pairs;
use crate::netns::link::Links;

/// All that a source knows of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The guests.
    pub guests: Vec<Sighting>,
    /// What keeps the source from knowing more, for people.
    pub trouble: Option<String>,
}

/// A guest that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// What it is where it was seen: `container web`.
    pub what: String,
    /// What commands call it, unless it says something else.
    pub name: String,
    /// What no other guest has, and this one keeps.
    pub seed: String,
    /// The numbers of the interfaces that are its ports, the one to be served first.
    pub ports: Vec<u32>,
    /// What it says of itself; or why it cannot be served.
    pub says: Result<Pairs, String>,
}

/// The sources that run. Dropping it ends them.
#[derive(Debug)]
pub struct Sources {
    heard: mpsc::Receiver<Snapshot>,
    look: Arc<Notify>,
    docker: Option<JoinHandle<()>>,
}

impl Sources {
    /// Starts those that are asked for. Must be called in the host's namespace, within a tokio runtime.
    #[must_use]
    pub fn start(docker_socket: Option<&Path>, links: &Links) -> Self {
        let (tell, heard) = mpsc::channel(1);
        let look = Arc::new(Notify::new());
        let docker = docker_socket.map(|socket| {
            let docker = docker::Docker::new(socket.to_owned(), links.clone());
            tokio::spawn(docker.watch(tell, Arc::clone(&look)))
        });
        Self {
            heard,
            look,
            docker,
        }
    }

    /// Whether there is any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.docker.is_none()
    }

    /// The next that is told; never, where there is no source. Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Snapshot {
        match self.heard.recv().await {
            Some(snapshot) => snapshot,
            None => std::future::pending().await,
        }
    }

    /// Has every source look again: an interface came that nobody has spoken for.
    pub fn look(&self) {
        self.look.notify_one();
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        if let Some(docker) = &self.docker {
            docker.abort();
        }
    }
}
