//! Control groups of guests: what a guest may use at most, and by which its processes are found.
//!
//! The places are taken from /proc/mounts: where version 2 has no controller, because version 1 has it (a hybrid host),
//! the bound is set there, and the guest is in both. (`crate::cgroups` looks at the whole of version 2 and no more.)

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::plan::Bounds;

/// How long the kernel may take to notice that a group is empty.
const EMPTY_WITHIN: Duration = Duration::from_secs(5);

/// What the controllers that are used are called.
const CONTROLLERS: [&str; 2] = ["memory", "pids"];

/// Where control groups are on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Mounts {
    /// Version 2.
    v2: Option<PathBuf>,
    /// Version 1: a mount for each controller that is of use here.
    v1: BTreeMap<&'static str, PathBuf>,
}

/// The control groups of one guest: one, or on a hybrid host one in each of several hierarchies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Groups {
    places: Vec<Place>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    dir: PathBuf,
    /// The mount that it is below.
    mount: PathBuf,
    is_v2: bool,
    controllers: Vec<&'static str>,
}

/// A control group that could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No hierarchy at all.
    #[error(
        "no control groups are to be seen in /proc/mounts: mount them, or do not hide them (`ip netns exec` does, `nsenter --net=/run/netns/NAME` does not)"
    )]
    None,
    /// A file or folder.
    #[error("{action} control group {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
}

impl Groups {
    /// The groups of this name (a path below each mount) on this host, whether they are there or not.
    ///
    /// # Errors
    /// When no control groups are mounted.
    pub fn named(name: &Path) -> Result<Self, CgroupError> {
        let text = fs::read_to_string("/proc/mounts").map_err(failed("find", "/proc/mounts"))?;
        let mounts = Mounts::parse(&text);
        let offered = match &mounts.v2 {
            Some(v2) => fs::read_to_string(v2.join("cgroup.controllers")).unwrap_or_default(),
            None => String::new(),
        };
        let places = mounts.places(&offered, name);
        if places.is_empty() {
            return Err(CgroupError::None);
        }
        Ok(Self { places })
    }

    /// Makes them, with these bounds; what of it this host cannot bound.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn make(&self, bounds: Bounds) -> Result<Vec<&'static str>, CgroupError> {
        for place in &self.places {
            place.make(bounds)?;
        }
        let is_bounded = |controller: &&&str| {
            let mut places = self.places.iter();
            places.any(|place| place.controllers.contains(*controller))
        };
        let unbounded = CONTROLLERS.iter().filter(|one| !is_bounded(one));
        Ok(unbounded.copied().collect())
    }

    /// Puts a process into them.
    ///
    /// # Errors
    /// When one is not there, or the kernel refuses.
    pub fn join(&self, pid: u32) -> Result<(), CgroupError> {
        for place in &self.places {
            let path = place.dir.join("cgroup.procs");
            fs::write(&path, pid.to_string()).map_err(failed("join", &path))?;
        }
        Ok(())
    }

    /// The processes in the first of them; none if it is not there.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let Some(place) = self.places.first() else {
            return Vec::new();
        };
        let text = fs::read_to_string(place.dir.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Removes them, and the folder around them if it is empty then. Their processes must be about to end.
    ///
    /// # Errors
    /// When a process stays.
    pub async fn remove(&self) -> Result<(), CgroupError> {
        for place in &self.places {
            remove_when_empty(&place.dir).await?;
            // Other guests' groups may be in it.
            if let Some(parent) = place.dir.parent()
                && parent != place.mount
            {
                fs::remove_dir(parent).ok();
            }
        }
        Ok(())
    }
}

impl Place {
    fn make(&self, bounds: Bounds) -> Result<(), CgroupError> {
        fs::create_dir_all(&self.dir).map_err(failed("make", &self.dir))?;
        if self.is_v2 {
            self.enable_controllers()?;
        }
        for (file, value) in self.settings(bounds) {
            let path = self.dir.join(file);
            match fs::write(&path, &value) {
                // A kernel without accounting of swap has no such file.
                Err(error) if file.contains("sw") && error.kind() == io::ErrorKind::NotFound => {}
                written => written.map_err(failed("bound", &path))?,
            }
        }
        Ok(())
    }

    /// A controller is there for a group when every group above it says so.
    fn enable_controllers(&self) -> Result<(), CgroupError> {
        let above: Vec<&Path> = self
            .dir
            .ancestors()
            .skip(1)
            .take_while(|folder| folder.starts_with(&self.mount))
            .collect();
        for folder in above.into_iter().rev() {
            for controller in &self.controllers {
                let path = folder.join("cgroup.subtree_control");
                fs::write(&path, format!("+{controller}")).map_err(failed("prepare", &path))?;
            }
        }
        Ok(())
    }

    /// The files that bound it. Swap is no way around the bound of memory.
    fn settings(&self, bounds: Bounds) -> Vec<(&'static str, String)> {
        let memory = bounds.memory_bytes.to_string();
        let mut settings = Vec::new();
        for controller in &self.controllers {
            match (*controller, self.is_v2) {
                ("memory", true) => settings.extend([
                    ("memory.max", memory.clone()),
                    ("memory.swap.max", "0".to_owned()),
                ]),
                ("memory", false) => settings.extend([
                    ("memory.limit_in_bytes", memory.clone()),
                    ("memory.memsw.limit_in_bytes", memory.clone()),
                ]),
                _ => settings.push(("pids.max", bounds.pids.to_string())),
            }
        }
        settings
    }
}

impl Mounts {
    /// From the text of /proc/mounts: device, place, kind, options.
    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut fields = line.split(' ');
            let (Some(place), Some(kind), Some(options)) =
                (fields.nth(1), fields.next(), fields.next())
            else {
                continue;
            };
            match kind {
                "cgroup2" => {
                    found.v2.get_or_insert_with(|| place.into());
                }
                "cgroup" => {
                    for controller in CONTROLLERS {
                        if options.split(',').any(|option| option == controller) {
                            found.v1.entry(controller).or_insert_with(|| place.into());
                        }
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// Where groups of a name are, given the controllers that version 2 offers.
    fn places(&self, offered: &str, name: &Path) -> Vec<Place> {
        let is_offered = |controller: &str| offered.split_whitespace().any(|one| one == controller);
        let in_v2 = self.v2.iter().map(|mount| Place {
            dir: mount.join(name),
            mount: mount.clone(),
            is_v2: true,
            controllers: CONTROLLERS
                .into_iter()
                .filter(|controller| is_offered(controller))
                .collect(),
        });
        let in_v1 = self
            .v1
            .iter()
            .filter(|(controller, _)| self.v2.is_none() || !is_offered(controller))
            .map(|(controller, mount)| Place {
                dir: mount.join(name),
                mount: mount.clone(),
                is_v2: false,
                controllers: vec![controller],
            });
        in_v2.chain(in_v1).collect()
    }
}

async fn remove_when_empty(dir: &Path) -> Result<(), CgroupError> {
    let deadline = Instant::now() + EMPTY_WITHIN;
    loop {
        match fs::remove_dir(dir) {
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => return removed.map_err(failed("remove", dir)),
        }
    }
}

fn failed(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.as_ref().to_owned();
    move |cause| CgroupError::File {
        action,
        path,
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2_ALONE: &str =
        "sysfs /sys sysfs rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
    const HYBRID: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup /sys/fs/cgroup/pids cgroup rw,relatime,pids 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
";
    const V1_ALONE: &str = "cgroup /cg/both cgroup rw,pids,memory 0 0\n";

    /// Where the groups `a/b` are: each place, and what is bounded there.
    fn check(mounts: &str, offered: &str, expected: &[(&str, &[&str])]) {
        let places = Mounts::parse(mounts).places(offered, Path::new("a/b"));
        let found: Vec<(&str, Vec<&str>)> = places
            .iter()
            .map(|place| {
                let settings = place.settings(Bounds::default());
                let files = settings.iter().map(|(file, _)| *file).collect();
                (place.dir.to_str().unwrap(), files)
            })
            .collect();
        let expected: Vec<(&str, Vec<&str>)> = expected
            .iter()
            .map(|(dir, files)| (*dir, files.to_vec()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_groups_are_where_their_controllers_are() {
        let of_v2 = ["memory.max", "memory.swap.max", "pids.max"];
        let memory_of_v1 = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"];
        check(
            V2_ALONE,
            "cpuset cpu io memory pids\n",
            &[("/sys/fs/cgroup/a/b", &of_v2)],
        );
        check(
            HYBRID,
            "",
            &[
                ("/sys/fs/cgroup/unified/a/b", &[]),
                ("/sys/fs/cgroup/memory/a/b", &memory_of_v1),
                ("/sys/fs/cgroup/pids/a/b", &["pids.max"]),
            ],
        );
        check(
            HYBRID,
            "pids",
            &[
                ("/sys/fs/cgroup/unified/a/b", &["pids.max"]),
                ("/sys/fs/cgroup/memory/a/b", &memory_of_v1),
            ],
        );
        check(
            V1_ALONE,
            "",
            &[
                ("/cg/both/a/b", &memory_of_v1),
                ("/cg/both/a/b", &["pids.max"]),
            ],
        );
        check("proc /proc proc rw 0 0\n", "", &[]);
    }
}
