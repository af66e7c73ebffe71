//! Responders that run already: found, replaced without a lost request, or removed.

use std::{io, net::TcpListener, path::Path, process::ExitStatus, time::Duration};

use tokio::{net::UnixStream, time::timeout};

use super::{
    door::Door,
    greeting::{Build, Greeting, Order, Tally},
    handle::Handle,
    listeners,
};

/// How long a responder may take to end when it was killed: as long as the kernel needs.
const KILLED_WITHIN: Duration = Duration::from_secs(5);
/// What a responder may take longer than it was given to drain.
const GRACE: Duration = Duration::from_secs(2);
/// How long one may take to say what it has counted.
const TALLY_WITHIN: Duration = Duration::from_secs(5);

/// A responder that an earlier daemon started.
#[derive(Debug)]
pub struct Found {
    pub(super) handle: Handle,
    pub(super) door: Door,
    /// Nothing of one that does not greet.
    greeting: Option<Greeting>,
    listeners: Option<[TcpListener; 2]>,
    /// The namespace that it listens in.
    namespace: Option<u64>,
}

/// Finds all that run, the latest first. What is left of those that do not run any more is removed.
///
/// # Errors
/// When the directory cannot be read, or a process not be looked at.
pub async fn find(directory: &Path) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for door in Door::all(directory)? {
        let Some(handle) = Handle::of_listener(door.path())? else {
            door.remove();
            continue;
        };
        let (greeting, listeners) = match door.knock().await {
            Ok((_, greeting, listeners)) => (Some(greeting), Some(listeners)),
            Err(error) => {
                tracing::warn!("responder {} does not greet: {error}", handle.pid());
                (None, None)
            }
        };
        let namespace = listeners.as_ref().and_then(listeners::namespace_of);
        found.push(Found {
            handle,
            door,
            greeting,
            listeners,
            namespace,
        });
    }
    Ok(found)
}

impl Found {
    /// The listening sockets, if they are such in this namespace. Given away once.
    pub fn take_listeners(&mut self, namespace: u64) -> Option<[TcpListener; 2]> {
        self.listeners
            .take_if(|_| self.namespace == Some(namespace))
    }

    /// Whether it may be told what to serve: it is of this daemon's own build, and listens in this namespace.
    #[must_use]
    pub fn may_serve(&self, build: Build, namespace: u64) -> bool {
        let is_right = |greeting: &Greeting| greeting.build == build && !greeting.drains;
        self.greeting.as_ref().is_some_and(is_right) && self.is_in(namespace)
    }

    /// Whether it listens in this namespace.
    #[must_use]
    pub fn is_in(&self, namespace: u64) -> bool {
        self.namespace == Some(namespace)
    }

    /// Ends it at once.
    pub async fn end(self) {
        end(&self.handle).await;
        self.door.remove();
    }

    /// What people call what it runs.
    #[must_use]
    pub fn version(&self) -> &str {
        self.greeting
            .as_ref()
            .map_or("unknown", |greeting| &greeting.version)
    }

    /// What it has counted; nothing, if it does not say so.
    pub async fn tally(&self) -> Tally {
        let ask = async {
            let (mut line, ..) = self.door.knock().await?;
            Order::Count.send(&mut line).await?;
            Tally::receive(&mut line).await
        };
        match timeout(TALLY_WITHIN, ask).await {
            Ok(Ok(tally)) => tally,
            Ok(Err(_)) | Err(_) => Tally::default(),
        }
    }
}

/// A responder that finishes what is under way, while another serves its listeners.
#[derive(Debug)]
pub struct Retiring {
    handle: Handle,
    door: Door,
    within: Duration,
    /// None of one that could not be told.
    line: Option<UnixStream>,
}

/// Has a responder accept no connection any more. Those that are open it may finish within this time.
pub async fn retire(handle: Handle, door: Door, seconds: u32) -> Retiring {
    let ask = async {
        let (mut line, ..) = door.knock().await?;
        Order::Drain { seconds }.send(&mut line).await?;
        Tally::receive(&mut line).await?;
        Ok::<_, io::Error>(line)
    };
    let line = timeout(TALLY_WITHIN, ask).await.ok().and_then(Result::ok);
    Retiring {
        handle,
        door,
        within: Duration::from_secs(seconds.into()),
        line,
    }
}

impl Retiring {
    /// Waits for its end, and kills it if it does not end in time. What it has counted at last is known if it did.
    pub async fn ended(self) -> Option<Tally> {
        let Self {
            handle,
            door,
            within,
            line,
        } = self;
        let mut tally = None;
        if let Some(mut line) = line {
            let told = timeout(within + GRACE, Tally::receive(&mut line)).await;
            tally = told.ok().and_then(Result::ok);
        }
        if tally.is_none() || timeout(GRACE, handle.ended()).await.is_err() {
            tracing::warn!("responder {} does not drain: it is killed", handle.pid());
            end(&handle).await;
        }
        door.remove();
        tally
    }
}

/// Kills a responder and waits for its end; says how it ended, if that is known.
pub async fn end(handle: &Handle) -> Option<ExitStatus> {
    if let Err(error) = handle.kill() {
        tracing::error!("end responder {}: {error}", handle.pid());
    }
    let Ok(status) = timeout(KILLED_WITHIN, handle.ended()).await else {
        tracing::error!("responder {} does not end", handle.pid());
        return None;
    };
    status
}

/// Removes all responders of a state directory, and what they are reached by; says whether there was any. For when no
/// daemon runs, which would start another.
///
/// # Errors
/// When one is there and cannot be ended, or the directory cannot be removed.
pub async fn remove(directory: &Path) -> io::Result<bool> {
    let mut was_there = false;
    for door in Door::all(directory)? {
        if let Some(handle) = Handle::of_listener(door.path())? {
            was_there = true;
            handle.kill()?;
            timeout(KILLED_WITHIN, handle.ended()).await?;
        }
        door.remove();
    }
    Door::remove_directory(directory)?;
    Ok(was_there)
}
