//! Where the guard is, and what it did.

use super::{Daemon, DaemonError};
use crate::config::{Guard, PortName};
use crate::control::{GuardStatus, UplinkStatus};
use crate::dataplane::DataPlane;
use crate::dataplane::guard::Uplink;
use crate::netns::link::{Link, Links};
use crate::netns::uplink::{self, Way};

/// Guards what is to be guarded now, and nothing else.
pub(super) async fn guard_exactly(
    dataplane: &mut DataPlane,
    links: &Links,
    guard: &Guard,
) -> Result<(), DaemonError> {
    let uplinks = find(links, guard).await?;
    if *guard == Guard::Off {
        tracing::warn!(
            "the guard is off (guard = false): guests that are not served, or not yet, may reach this host's own \
             metadata service by its uplinks"
        );
    }
    if let Guard::Named(names) = guard {
        let is_missing =
            |name: &&PortName| uplinks.iter().all(|uplink| uplink.name != name.as_str());
        for name in names.iter().filter(is_missing) {
            tracing::warn!("uplink {name} is not there: it is guarded once it is");
        }
    }
    let kept: Vec<u32> = uplinks.iter().map(|uplink| uplink.ifindex).collect();
    dataplane.guard(uplinks);
    Ok(dataplane.unguard_all_but(&kept)?)
}

/// The uplinks there are.
async fn find(links: &Links, guard: &Guard) -> Result<Vec<Uplink>, DaemonError> {
    Ok(among(&links.list().await?, &links.ways().await?, guard))
}

/// The uplinks among these interfaces, with these routes.
pub(super) fn among(links: &[Link], ways: &[Way], guard: &Guard) -> Vec<Uplink> {
    let uplink = |link: &Link| Uplink {
        name: link.name.clone(),
        ifindex: link.index,
        is_ethernet: link.is_ethernet,
    };
    match guard {
        Guard::Off => Vec::new(),
        Guard::Found => uplink::uplinks(links, ways)
            .into_iter()
            .map(uplink)
            .collect(),
        Guard::Named(names) => {
            let is_named = |link: &&Link| names.iter().any(|name| name.as_str() == link.name);
            links.iter().filter(is_named).map(uplink).collect()
        }
    }
}

impl Daemon {
    pub(super) async fn guard_report(&self) -> Result<GuardStatus, DaemonError> {
        let links = self.links.list().await?;
        let name_of = |ifindex: u32| {
            let link = links.iter().find(|link| link.index == ifindex);
            link.map_or_else(|| format!("interface {ifindex}"), |link| link.name.clone())
        };
        let guarded = self.dataplane.guarded();
        let missing = match &self.guard {
            Guard::Named(names) => names.as_slice(),
            Guard::Found | Guard::Off => &[],
        };
        let missing = missing
            .iter()
            .filter(|name| guarded.iter().all(|uplink| uplink.name != name.as_str()))
            .map(|name| UplinkStatus {
                interface: name.to_string(),
                is_guarded: false,
                why_not: Some("there is no such interface".to_owned()),
            });
        let uplinks = guarded.iter().map(|uplink| UplinkStatus {
            interface: uplink.name.clone(),
            is_guarded: uplink.refusal.is_none(),
            why_not: uplink.refusal.clone(),
        });
        let dropped = self.dataplane.guarded_from()?;
        Ok(GuardStatus {
            is_on: self.guard != Guard::Off,
            uplinks: uplinks.chain(missing).collect(),
            dropped: dropped
                .into_iter()
                .map(|(ifindex, count)| (name_of(ifindex), count))
                .collect(),
        })
    }
}
