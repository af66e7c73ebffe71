//! Which processes of the host reach the host's own metadata service, and what was refused to the others.

use std::collections::{BTreeMap, BTreeSet};

use super::{Daemon, DaemonError};
use crate::cgroups::{Cgroups, CgroupsError};
use crate::config::{CgroupPath, HostAccess};
use crate::control::{CgroupStatus, HostAccessStatus};
use crate::dataplane::{DataPlane, DataPlaneError};

/// That only some processes of the host do.
#[derive(Debug)]
pub(super) struct Restriction {
    cgroups: Cgroups,
    named: Vec<CgroupPath>,
    /// Those that are there.
    present: BTreeMap<CgroupPath, u64>,
}

impl Restriction {
    /// Finds what is needed for it; none where there is to be none. Nothing is touched yet.
    pub(super) fn prepare(access: HostAccess) -> Result<Option<Self>, CgroupsError> {
        let HostAccess::AllowList(named) = access else {
            return Ok(None);
        };
        let mut cgroups = Cgroups::open()?;
        cgroups.follow(&named);
        Ok(Some(Self {
            cgroups,
            named,
            present: BTreeMap::new(),
        }))
    }

    /// Lets those call that are there now.
    fn allow(&mut self, dataplane: &mut DataPlane) -> Result<(), DataPlaneError> {
        self.present = self.cgroups.present();
        dataplane.allow_cgroups(&self.present.values().copied().collect())
    }

    fn missing(&self) -> impl Iterator<Item = &CgroupPath> {
        let is_missing = |cgroup: &&CgroupPath| !self.present.contains_key(*cgroup);
        self.named.iter().filter(is_missing)
    }
}

/// Waits until what is named may be another cgroup.
pub(super) async fn changed(restriction: &mut Option<Restriction>) {
    match restriction {
        Some(restriction) => restriction.cgroups.changed().await,
        None => std::future::pending().await,
    }
}

/// Puts it in force, or takes it away. Who may is known before anybody is refused, and who may no longer is refused
/// at once.
pub(super) fn enforce(
    dataplane: &mut DataPlane,
    restriction: &mut Option<Restriction>,
    netns_cookie: u64,
) -> Result<(), DataPlaneError> {
    let Some(restriction) = restriction else {
        dataplane.unrestrict_host()?;
        return dataplane.allow_cgroups(&BTreeSet::new());
    };
    restriction.allow(dataplane)?;
    dataplane.restrict_host(restriction.cgroups.root(), netns_cookie)?;
    for cgroup in restriction.missing() {
        tracing::warn!(
            "cgroup {cgroup} is not there: its processes may call this host's own metadata service once it is"
        );
    }
    Ok(())
}

impl Daemon {
    /// Looks again which of the named cgroups are there.
    pub(super) fn follow_cgroups(&mut self) -> Result<(), DataPlaneError> {
        let Some(restriction) = &mut self.restriction else {
            return Ok(());
        };
        let before = restriction.present.clone();
        restriction.allow(&mut self.dataplane)?;
        for (cgroup, id) in &restriction.present {
            if before.get(cgroup) != Some(id) {
                tracing::info!(
                    "cgroup {cgroup} is there: its processes may call this host's own metadata service"
                );
            }
        }
        for cgroup in before.keys() {
            if !restriction.present.contains_key(cgroup) {
                tracing::info!("cgroup {cgroup} is gone");
            }
        }
        Ok(())
    }

    pub(super) fn host_access_report(&self) -> Result<HostAccessStatus, DaemonError> {
        let Some(restriction) = &self.restriction else {
            return Ok(HostAccessStatus::default());
        };
        let refused = self.dataplane.refused_of()?;
        let names = restriction
            .cgroups
            .names_of(&refused.keys().copied().collect());
        let name_of = |id: u64| {
            let name = names.get(&id).cloned();
            name.unwrap_or_else(|| format!("a cgroup that is gone ({id})"))
        };
        let cgroups = restriction.named.iter().map(|cgroup| CgroupStatus {
            cgroup: cgroup.to_string(),
            is_there: restriction.present.contains_key(cgroup),
        });
        Ok(HostAccessStatus {
            is_restricted: true,
            cgroups: cgroups.collect(),
            refused: refused
                .into_iter()
                .map(|(id, count)| (name_of(id), count))
                .collect(),
        })
    }
}
