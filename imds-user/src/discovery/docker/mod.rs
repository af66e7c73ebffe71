//! Containers of Docker that say by their labels what they are: `imds.instance-type=m5.large`.
//!
//! Docker is asked over its socket in the file system and tells of changes as they happen. A container with a label of
//! ours is a guest; its port is the host's end of the veth pair that leads to its network namespace, which is found by
//! that namespace alone. Labels that an image brings do not count: whoever makes an image has no say in whose metadata
//! its containers get.
//!
//! Four questions are asked, so HTTP is spoken here (`api`) with the parser that reads guests' requests, and of the answers
//! only what matters is read. The crate bollard reads all of them, into enumerations and numbers of fixed width: one
//! container of anybody's with something in it that its models do not know, which an image alone can bring about, and
//! there is no list of any.

pub(crate) mod api;
mod container;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{Notify, mpsc};

use super::source::{Sighting, Snapshot};
use crate::netns::NetNs;
use crate::netns::link::{Link, Links};
use crate::netns::uplink::defaults;
use api::{Api, ApiError};
use container::{Container, Network};

/// How long after a failure Docker is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Where Docker is, and the host's interfaces.
#[derive(Debug)]
pub struct Docker {
    api: Api,
    links: Links,
    /// Labels of images, which never change.
    images: HashMap<String, BTreeMap<String, String>>,
}

impl Docker {
    /// The Docker daemon behind this socket.
    #[must_use]
    pub fn new(socket: PathBuf, links: Links) -> Self {
        Self {
            api: Api::new(socket),
            links,
            images: HashMap::new(),
        }
    }

    /// Tells of all guests after every change, and when `look` says so, until nobody listens any more.
    pub async fn watch(mut self, tell: mpsc::Sender<Snapshot>, look: Arc<Notify>) {
        let mut last = Snapshot::default();
        while !tell.is_closed() {
            let Err(error) = self.session(&tell, &look, &mut last).await else {
                return;
            };
            // Containers live on while their daemon is away.
            let away = Snapshot {
                trouble: Some(error.to_string()),
                ..last.clone()
            };
            if last.trouble != away.trouble {
                tracing::warn!("{error}");
                last = away;
                if tell.send(last.clone()).await.is_err() {
                    return;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Until Docker goes away, or, with `Ok`, whoever listens.
    async fn session(
        &mut self,
        tell: &mpsc::Sender<Snapshot>,
        look: &Notify,
        last: &mut Snapshot,
    ) -> Result<(), ApiError> {
        // Before the first list, so that nothing happens unseen after it.
        let mut events = self.api.events().await?;
        loop {
            let snapshot = Snapshot {
                guests: self.sightings().await?,
                trouble: None,
            };
            if *last != snapshot {
                last.clone_from(&snapshot);
                if tell.send(snapshot).await.is_err() {
                    return Ok(());
                }
            }
            tokio::select! {
                happened = events.next() => happened?,
                () = look.notified() => {}
                () = tell.closed() => return Ok(()),
            }
        }
    }

    async fn sightings(&mut self) -> Result<Vec<Sighting>, ApiError> {
        let ids = self.api.labelled().await?;
        // Docker answers for a container that is being started only when it is.
        let inspected = join_all(ids.iter().map(|id| self.api.container(id))).await;
        let mut containers = Vec::new();
        for container in inspected {
            containers.extend(container?);
        }
        // Interfaces first, namespaces then: see `Docker::ports`.
        let links = match self.links.list().await {
            Ok(links) => links,
            Err(error) => return Err(ApiError::Host(error.to_string())),
        };
        let mut sightings = Vec::new();
        for container in &containers {
            let of_image = self.labels_of(&container.image).await?;
            let (ports, refusal) = match self.ports(container, &links).await {
                Ok(ports) => (ports, None),
                Err(refusal) => (Vec::new(), Some(refusal)),
            };
            if ports.is_empty() && refusal.is_none() {
                // It has no network, or is only now being started or ended.
                continue;
            }
            sightings.push(Sighting {
                what: format!("container {}", container.name),
                name: container.name.clone(),
                seed: format!("docker {}", container.id),
                ports,
                says: match refusal {
                    Some(refusal) => Err(refusal),
                    None => container.pairs(of_image.as_ref()),
                },
            });
        }
        sightings.sort_by(|one, other| one.seed.cmp(&other.seed));
        Ok(sightings)
    }

    /// The labels of an image; none if it is gone.
    async fn labels_of(
        &mut self,
        image: &str,
    ) -> Result<Option<BTreeMap<String, String>>, ApiError> {
        if let Some(labels) = self.images.get(image) {
            return Ok(Some(labels.clone()));
        }
        let labels = self.api.image(image).await?;
        if let Some(labels) = &labels {
            self.images.insert(image.to_owned(), labels.clone());
        }
        Ok(labels)
    }

    /// The numbers of the interfaces that lead to a container, the one that it reaches the rest of the world by first.
    ///
    /// The namespace is held open while its number is asked for, and the interfaces were listed before: a number that is
    /// given to another namespace meanwhile is not in that list but with interfaces whose namespace is gone.
    async fn ports(&self, container: &Container, links: &[Link]) -> Result<Vec<u32>, String> {
        let path = match &container.network {
            Network::None => return Ok(Vec::new()),
            Network::OfHost => {
                return Err(
                    "it has the host's own network, where it is no guest but a process of the host"
                        .to_owned(),
                );
            }
            Network::OfContainer => {
                return Err(
                    "it has another container's network, and that one's identity with it"
                        .to_owned(),
                );
            }
            Network::Own(path) => path,
        };
        let namespace = NetNs::open_path(path).map_err(|error| {
            format!(
                "{error}: {} (does Docker run in another mount namespace?)",
                cause_of(&error)
            )
        })?;
        let number = self
            .links
            .number_of(&namespace)
            .await
            .map_err(|error| error.to_string())?;
        let leads_there =
            |link: &&Link| link.kind == "veth" && number.is_some() && link.peer_netnsid == number;
        let mut ports: Vec<&Link> = links.iter().filter(leads_there).collect();
        ports.sort_by_key(|link| link.index);
        if ports.len() > 1
            && let Some(main) = main_interface(&namespace).await
        {
            ports.sort_by_key(|link| link.lower != Some(main));
        }
        Ok(ports.into_iter().map(|link| link.index).collect())
    }
}

fn cause_of(error: &dyn std::error::Error) -> String {
    error.source().map(ToString::to_string).unwrap_or_default()
}

/// The number, in a container with several interfaces, of the one that its default route leaves by. Its guest may say
/// what it likes there: it only chooses among its own.
async fn main_interface(namespace: &NetNs) -> Option<u32> {
    let ways = Links::open_in(namespace).ok()?.ways().await.ok()?;
    defaults(&ways).pop_first()
}
