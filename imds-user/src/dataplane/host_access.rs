//! Keeps the host's own processes from the host's own metadata service, all but those of some cgroups: programs on calls,
//! at the root of cgroup v2.
//!
//! What attaches a program there is a link. Links are pinned beside the maps, so that they outlive the daemon, and are in
//! force for as long as their files are there. A later daemon attaches its own before it takes the former ones away: for a
//! moment both refuse, and a call that either refuses is refused. Links are made with the kernel's "multi" flag, so
//! those of other hosts on this machine, and whatever else is there, run beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, PerCpuHashMap};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, links::FdLink};

use imds_ebpf::abi::host_access::CGROUP_LEVELS_MAX;

use super::pins::{entries, failed, make_folder, remove};
use crate::config::CgroupPath;

use super::{DataPlane, DataPlaneError, map_error, removed, take};

/// The programs, as they are called in the object and by `bpftool cgroup tree`.
pub const PROGRAMS: [&str; 4] = [
    "host_connect4",
    "host_connect6",
    "host_sendmsg4",
    "host_sendmsg6",
];

/// What folders of links are called, before their number.
const LINKS: &str = "links-";

/// No network namespace has this cookie: the kernel counts from one.
const NO_NETNS: u64 = 0;

const _: () = assert!(CgroupPath::LEVELS_MAX == CGROUP_LEVELS_MAX as usize);

/// The maps, and where links are pinned.
pub(super) struct HostAccess {
    host: Array<MapData, u64>,
    allowed: HashMap<MapData, u64, u32>,
    refused: PerCpuHashMap<MapData, u64, u64>,
    folder: PathBuf,
}

impl HostAccess {
    pub(super) fn take(ebpf: &mut Ebpf, folder: PathBuf) -> Result<Self, DataPlaneError> {
        Ok(Self {
            host: Array::try_from(take(ebpf, "HOST")?).map_err(map_error("HOST"))?,
            allowed: HashMap::try_from(take(ebpf, "ALLOWED")?).map_err(map_error("ALLOWED"))?,
            refused: PerCpuHashMap::try_from(take(ebpf, "REFUSED")?)
                .map_err(map_error("REFUSED"))?,
            folder,
        })
    }

    /// Folders of links, of this daemon or of earlier ones.
    fn links(&self) -> Result<Vec<PathBuf>, DataPlaneError> {
        let mut all = entries(&self.folder)?;
        all.retain(|entry| number_of(entry).is_some());
        Ok(all)
    }
}

impl DataPlane {
    /// Refuses what processes of the host, which is the network namespace with this cookie, call at the metadata
    /// addresses, but for those that [`DataPlane::allow_cgroups`] lets. `root` is the root of the cgroups.
    ///
    /// # Errors
    /// When the kernel refuses; what was in force before still is.
    pub fn restrict_host(
        &mut self,
        root: BorrowedFd<'_>,
        netns_cookie: u64,
    ) -> Result<(), DataPlaneError> {
        self.host_access
            .host
            .set(0, netns_cookie, 0)
            .map_err(map_error("HOST"))?;
        let former = self.host_access.links()?;
        let number = former.iter().filter_map(|links| number_of(links)).max();
        let number = number.map_or(1, |number| number + 1);
        let links = self.host_access.folder.join(format!("{LINKS}{number}"));
        make_folder(&links)?;
        let attached = PROGRAMS
            .iter()
            .try_for_each(|program| attach(&mut self.ebpf, program, root, &links));
        if attached.is_err() {
            // The first error is the one to report.
            drop(remove(&links));
            return attached;
        }
        former.iter().try_for_each(|former| remove(former))
    }

    /// Refuses nothing any more.
    ///
    /// # Errors
    /// When the BPF file system refuses.
    pub fn unrestrict_host(&mut self) -> Result<(), DataPlaneError> {
        // The kernel detaches a program some time after its link went. Until then nobody is of this namespace.
        self.host_access
            .host
            .set(0, NO_NETNS, 0)
            .map_err(map_error("HOST"))?;
        self.host_access
            .links()?
            .iter()
            .try_for_each(|links| remove(links))
    }

    /// Lets the processes of these cgroups call, and no others. Cgroups are known by their ids, which never come twice.
    ///
    /// # Errors
    /// When the map refuses. What is not to call any more was taken out before.
    pub fn allow_cgroups(&mut self, wanted: &BTreeSet<u64>) -> Result<(), DataPlaneError> {
        let allowed = &mut self.host_access.allowed;
        let present: BTreeSet<u64> = allowed
            .keys()
            .collect::<Result<_, _>>()
            .map_err(map_error("ALLOWED"))?;
        for cgroup in present.difference(wanted) {
            removed(allowed.remove(cgroup)).map_err(map_error("ALLOWED"))?;
        }
        for cgroup in wanted.difference(&present) {
            allowed.insert(cgroup, 1, 0).map_err(map_error("ALLOWED"))?;
        }
        Ok(())
    }

    /// How many calls were refused, by the id of the cgroup that made them.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn refused_of(&self) -> Result<BTreeMap<u64, u64>, DataPlaneError> {
        self.host_access
            .refused
            .iter()
            .map(|entry| {
                let (cgroup, counts) = entry.map_err(map_error("REFUSED"))?;
                Ok((cgroup, counts.iter().sum()))
            })
            .collect()
    }
}

/// Loads a program, unless it is, attaches it, and pins what attaches it into the folder.
fn attach(
    ebpf: &mut Ebpf,
    name: &'static str,
    root: BorrowedFd<'_>,
    links: &Path,
) -> Result<(), DataPlaneError> {
    let program: &mut CgroupSockAddr = ebpf
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(DataPlaneError::Missing(name))?;
    if program.fd().is_err() {
        program.load().map_err(|cause| DataPlaneError::Program {
            name,
            cause: Box::new(cause),
        })?;
    }
    let refused = |cause: &dyn std::fmt::Display| DataPlaneError::Cgroup {
        program: name,
        cause: cause.to_string(),
    };
    // For a link the kernel takes no flags, and means "multi".
    let attached = program
        .attach(root, CgroupAttachMode::Single)
        .and_then(|id| program.take_link(id))
        .map_err(|cause| refused(&cause))?;
    let link: FdLink = attached.try_into().map_err(|cause| refused(&cause))?;
    let path = links.join(name);
    link.pin(&path)
        .map_err(|cause| failed("pin", &path)(io::Error::other(cause)))?;
    Ok(())
}

/// The number of a folder of links; none for anything else.
fn number_of(entry: &Path) -> Option<u32> {
    let name = entry.file_name()?.to_str()?;
    name.strip_prefix(LINKS)?.parse().ok()
}
