//! The tree of cgroups (cgroup v2): where its root is, which cgroups are there, and that others come and go.
//!
//! A cgroup's id is the number of its directory's inode, and never comes twice (kernfs numbers them in 64 bits). A service
//! that is started again gets another cgroup of the same name, so ids are asked for again whenever a directory on the way
//! to a name changes. This looks and watches; it makes and moves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::{Interest, unix::AsyncFd};
use tokio::time::Instant;

use crate::config::CgroupPath;

/// The root's inode: kernfs gives its root the first number (`kernfs_create_root`, fs/kernfs/dir.c).
const ROOT_INODE: u64 = 1;

/// How often names are looked up without being told of a change: what another container does by a mount of its own is not
/// told here, and a host may be out of watches.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The most cgroups that are looked at to find the names of ids.
const NAMES_LOOKED_AT_MAX: usize = 20_000;

/// Why the tree of cgroups is of no use.
#[derive(Debug, thiserror::Error)]
pub enum CgroupsError {
    /// Not mounted.
    #[error(
        "host-access needs cgroup v2, which is not mounted here: mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    )]
    NotMounted,
    /// Mounted, but not from its root on.
    #[error(
        "host-access needs the root of cgroup v2, and {} shows a part of it alone, as in a container: run the daemon outside, or with the host's cgroup namespace",
        .0.display()
    )]
    Part(PathBuf),
    /// The root cannot be opened.
    #[error("open {}: {cause}", path.display())]
    Root {
        /// Where it is mounted.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// The tree, and the cgroups in it that are followed.
#[derive(Debug)]
pub struct Cgroups {
    path: PathBuf,
    root: File,
    followed: Vec<CgroupPath>,
    watch: Option<Watch>,
    look_at: Instant,
}

/// A subscription to changes of directories.
#[derive(Debug)]
struct Watch {
    inotify: Inotify,
    /// The same subscription, for the event loop.
    readable: AsyncFd<OwnedFd>,
}

impl Cgroups {
    /// Finds the tree. On a hybrid host it is mounted below /sys/fs/cgroup.
    ///
    /// # Errors
    /// When cgroup v2 is not there as a whole.
    pub fn open() -> Result<Self, CgroupsError> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let path = root_among(&mount_points(&mounts), inode_of)?;
        let root = File::open(&path).map_err(|cause| CgroupsError::Root {
            path: path.clone(),
            cause,
        })?;
        Ok(Self {
            path,
            root,
            followed: Vec::new(),
            watch: None,
            look_at: Instant::now() + LOOK_EVERY,
        })
    }

    /// The root's directory.
    #[must_use]
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Follows these from now on; [`Cgroups::changed`] tells of them. Must be called within a tokio runtime.
    pub fn follow(&mut self, cgroups: &[CgroupPath]) {
        self.followed = cgroups.to_vec();
        self.watch = None;
        if cgroups.is_empty() {
            return;
        }
        match Watch::open() {
            Ok(watch) => self.watch = Some(watch),
            Err(error) => tracing::warn!(
                "follow cgroups: {error} (fs.inotify.max_user_instances?): they are looked at every {LOOK_EVERY:?} instead"
            ),
        }
    }

    /// The ids of those followed cgroups that are there. Every directory on the way to one is watched before it is looked
    /// into, so that what comes after the look is told.
    #[must_use]
    pub fn present(&self) -> BTreeMap<CgroupPath, u64> {
        let followed = self.followed.iter().filter_map(|cgroup| {
            let mut place = self.path.clone();
            for name in cgroup.as_str().split('/') {
                if let Some(watch) = &self.watch {
                    watch.add(&place);
                }
                place.push(name);
            }
            Some((cgroup.clone(), inode_of(&place)?))
        });
        followed.collect()
    }

    /// Waits until followed cgroups may have come, gone or changed. Cancelling the wait loses nothing.
    pub async fn changed(&mut self) {
        if self.followed.is_empty() {
            return std::future::pending().await;
        }
        match &self.watch {
            Some(watch) => tokio::select! {
                () = watch.changed() => {}
                () = tokio::time::sleep_until(self.look_at) => {}
            },
            None => tokio::time::sleep_until(self.look_at).await,
        }
        self.look_at = Instant::now() + LOOK_EVERY;
    }

    /// What cgroups with these ids are called, as far as they are there.
    #[must_use]
    pub fn names_of(&self, ids: &BTreeSet<u64>) -> BTreeMap<u64, String> {
        let mut names = BTreeMap::new();
        let mut left = vec![PathBuf::new()];
        if ids.contains(&ROOT_INODE) {
            names.insert(ROOT_INODE, "/".to_owned());
        }
        let mut n_seen = 0;
        while let Some(folder) = left.pop() {
            let Ok(entries) = fs::read_dir(self.path.join(&folder)) else {
                // It has just gone.
                continue;
            };
            let is_folder =
                |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
            for entry in entries.flatten().filter(is_folder) {
                n_seen += 1;
                let place = folder.join(entry.file_name());
                if ids.contains(&entry.ino()) {
                    names.insert(entry.ino(), printable(&place));
                }
                left.push(place);
            }
            if names.len() == ids.len() || n_seen > NAMES_LOOKED_AT_MAX {
                break;
            }
        }
        names
    }
}

impl Watch {
    #[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
    fn open() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let same = inotify.as_fd().try_clone_to_owned()?;
        // SAFETY: an OwnedFd names the same open descriptor for as long as it lives, and the AsyncFd owns it.
        let readable = unsafe { AsyncFd::register_with_interest(same, Interest::READABLE) }?;
        Ok(Self { inotify, readable })
    }

    /// Watches what is made and removed in a directory; one that is watched already stays so. One that is not there will be
    /// told of by the one above.
    fn add(&self, place: &Path) {
        let changes = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ONLYDIR;
        // Where the host is out of watches, names are still looked up every few seconds.
        self.inotify.add_watch(place, changes).ok();
    }

    async fn changed(&self) {
        let Ok(mut ready) = self.readable.readable().await else {
            // There is no event loop, so nobody waits.
            return;
        };
        // What changed does not matter: everything is looked at again.
        while self.inotify.read_events().is_ok() {}
        ready.clear_ready();
    }
}

/// Where cgroup v2 is mounted, from lines of `/proc/self/mounts`, proc_pid_mounts(5).
fn mount_points(mounts: &str) -> Vec<PathBuf> {
    let cgroup2 = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| unescaped(place).into())
    });
    cgroup2.collect()
}

/// Blanks and backslashes in names are written in octal there.
fn unescaped(text: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .into_iter()
    .fold(text.to_owned(), |text, (code, meant)| {
        text.replace(code, meant)
    })
}

/// The first mount of the whole tree.
fn root_among(
    places: &[PathBuf],
    inode_of: impl Fn(&Path) -> Option<u64>,
) -> Result<PathBuf, CgroupsError> {
    let is_root = |place: &&PathBuf| inode_of(place) == Some(ROOT_INODE);
    match (places.iter().find(is_root), places.first()) {
        (Some(root), _) => Ok(root.clone()),
        (None, Some(part)) => Err(CgroupsError::Part(part.clone())),
        (None, None) => Err(CgroupsError::NotMounted),
    }
}

/// Whoever may make cgroups chooses their names, and a terminal obeys some characters.
fn printable(place: &Path) -> String {
    let text = place.to_string_lossy();
    let harmless = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(harmless).collect()
}

/// The number of a directory's inode.
fn inode_of(place: &Path) -> Option<u64> {
    let metadata = fs::symlink_metadata(place).ok()?;
    metadata.is_dir().then(|| metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_cgroup_v2_are_found_wherever_they_are() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\nodd\n\
                      none /mnt/a\\040b cgroup2 ro 0 0\n";
        let found = mount_points(mounts);
        let expected = ["/sys/fs/cgroup/unified", "/mnt/a b"].map(PathBuf::from);
        assert_eq!(found, expected);
    }

    #[test]
    fn a_name_is_no_order_to_a_terminal() {
        let name = printable(Path::new("user.slice/\u{1b}[2Jü x"));
        assert_eq!(name, "user.slice/\u{fffd}[2Jü x");
    }

    #[test]
    fn only_the_whole_tree_will_do() {
        let places = ["/part", "/whole"].map(PathBuf::from);
        let inode_of = |place: &Path| match place.to_str() {
            Some("/whole") => Some(1),
            Some("/part") => Some(4711),
            _ => None,
        };
        assert_eq!(root_among(&places, inode_of).unwrap(), places[1]);
        let part = root_among(&places[..1], inode_of);
        assert!(matches!(part, Err(CgroupsError::Part(place)) if place == places[0]));
        let none = root_among(&[], inode_of);
        assert!(matches!(none, Err(CgroupsError::NotMounted)));
    }
}
