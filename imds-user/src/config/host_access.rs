//! Which processes of the host may reach the host's own metadata service.

use std::fmt;
use std::str::FromStr;

/// Which processes of the host may reach the host's own metadata service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostAccess {
    /// All of them: nothing is looked at.
    #[default]
    Any,
    /// Those in these cgroups or below, and no others.
    AllowList(Vec<CgroupPath>),
}

/// A cgroup by its place below the root of cgroup v2, as `/proc/PID/cgroup` shows it: `system.slice/cloud-init.service`.
/// The root itself is none: all processes are below it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupPath(Box<str>);

/// A text that is no place of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CgroupPathError {
    /// The root.
    #[error(
        "every process is below the root: write `host-access = \"any\"` if all may, or leave the list empty if none may"
    )]
    Root,
    /// A path of the file system.
    #[error(
        "`{0}` is a place in the file system: leave out where cgroups are mounted, as in `/proc/PID/cgroup` (system.slice/cloud-init.service)"
    )]
    Mounted(String),
    /// Not a path from the root.
    #[error(
        "`{0}` is not the place of a cgroup: write it as in `/proc/PID/cgroup` (system.slice/cloud-init.service)"
    )]
    Odd(String),
    /// Deeper than the programs look.
    #[error("`{0}` is deeper than {max} levels: name one of the cgroups above it", max = CgroupPath::LEVELS_MAX)]
    Deep(String),
}

impl CgroupPath {
    /// How deep below the root it may be: the programs look at as many cgroups above a caller.
    pub const LEVELS_MAX: usize = 32;

    /// The path below the root, without a `/` at either end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CgroupPath {
    type Err = CgroupPathError;

    fn from_str(text: &str) -> Result<Self, CgroupPathError> {
        let path = text.trim_matches('/');
        if path.is_empty() && !text.is_empty() {
            return Err(CgroupPathError::Root);
        }
        if text.starts_with("/sys/") {
            return Err(CgroupPathError::Mounted(text.to_owned()));
        }
        let is_odd =
            |name: &str| matches!(name, "" | "." | "..") || name.contains(char::is_control);
        if path.split('/').any(is_odd) {
            return Err(CgroupPathError::Odd(text.to_owned()));
        }
        if path.split('/').count() > Self::LEVELS_MAX {
            return Err(CgroupPathError::Deep(text.to_owned()));
        }
        Ok(Self(path.into()))
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
