//! Where maps and programs outlive the daemon: files of a BPF file system (bpffs).
//!
//! ```text
//! /sys/fs/bpf/imds-0a1b2c3d/            named after the state directory; or STATE_DIR/bpf/imds-0a1b2c3d/
//!     5e6f7081-2b/                      what fits: stamp of the maps, and namespace of the host
//!         PORTS  SLOTS  …  port_ingress …
//!             links-1/              host_connect4 …, while the host's own processes are kept from its metadata service
//!     5e6f7081-2b-new/                  half made; its daemon was interrupted
//! ```
//!
//! Maps are of use to a daemon that understands them (see [`super::load::stamp`]) and runs in the network namespace whose
//! interfaces they name by number (the kernel's cookie of the namespace, which never comes twice). Any others are left
//! alone until their successors are in force, and then removed. Maps appear all at once, by the renaming of their folder.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use aya::{Ebpf, maps::MapData};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::statfs;

use super::DataPlaneError;
use super::load::{self, MAPS, PROGRAMS};

/// Where it is mounted on most hosts.
const COMMON: &str = "/sys/fs/bpf";
/// Where the daemon mounts one of its own otherwise, in its state directory.
const PRIVATE: &str = "bpf";
/// `BPF_FS_MAGIC`, linux/magic.h.
const MAGIC: i64 = 0xcafe_4a11;

/// The folder of one daemon's maps and programs.
#[derive(Debug)]
pub struct Pins {
    /// Of all that belongs to the state directory.
    root: PathBuf,
    /// Of what fits this daemon.
    folder: String,
    is_adopted: bool,
    /// Every place that may hold something of the state directory.
    roots: [PathBuf; 2],
}

impl Pins {
    /// Finds what an earlier daemon of this state directory has left, if it fits; otherwise prepares a place. `name` is
    /// what the state directory is called among daemons.
    ///
    /// # Errors
    /// When there is no BPF file system and none can be mounted, or it refuses.
    pub fn open(state_dir: &Path, name: &str, netns_cookie: u64) -> Result<Self, DataPlaneError> {
        let roots = roots(state_dir, name);
        let folder = format!("{}-{netns_cookie:x}", load::stamp());
        let fitting = roots.iter().find(|root| is_complete(&root.join(&folder)));
        let (root, is_adopted) = match fitting {
            Some(root) => (root.clone(), true),
            None => (make_root(state_dir, &roots)?, false),
        };
        let pins = Self {
            root,
            folder,
            is_adopted,
            roots,
        };
        if !is_adopted {
            for left in [pins.final_folder(), pins.new_folder()] {
                remove(&left)?;
            }
            make_folder(&pins.new_folder())?;
        }
        Ok(pins)
    }

    /// Whether what an earlier daemon has left is used.
    #[must_use]
    pub fn is_adopted(&self) -> bool {
        self.is_adopted
    }

    /// Where maps are, or are to be made.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        if self.is_adopted {
            self.final_folder()
        } else {
            self.new_folder()
        }
    }

    /// Makes the maps that were made here the ones that a later daemon finds.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn commit(&mut self) -> Result<(), DataPlaneError> {
        if !self.is_adopted {
            let (new, folder) = (self.new_folder(), self.final_folder());
            fs::rename(&new, &folder).map_err(failed("rename", &new))?;
            self.is_adopted = true;
        }
        Ok(())
    }

    /// Pins the programs, so that people find what is in force; an earlier daemon's give way.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn pin_programs(&self, ebpf: &mut Ebpf) -> Result<(), DataPlaneError> {
        for name in PROGRAMS {
            let path = self.folder().join(name);
            remove(&path)?;
            let program = load::classifier(ebpf, name)?;
            program
                .pin(&path)
                .map_err(|cause| failed("pin", &path)(io::Error::other(cause)))?;
        }
        Ok(())
    }

    /// Removes whatever else earlier daemons of the state directory have left.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn reap(&self) -> Result<(), DataPlaneError> {
        for root in &self.roots {
            for entry in entries(root)? {
                if entry != self.final_folder() {
                    remove(&entry)?;
                }
            }
            if *root != self.root {
                remove(root)?;
            }
        }
        Ok(())
    }

    fn final_folder(&self) -> PathBuf {
        self.root.join(&self.folder)
    }

    fn new_folder(&self) -> PathBuf {
        self.root.join(format!("{}-new", self.folder))
    }
}

/// What daemons of a state directory have left, without regard to who understands it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// Something, for interfaces of the network namespace with this cookie.
    Here,
    /// Something, for interfaces of other network namespaces alone.
    Elsewhere,
}

/// Looks what is there.
///
/// # Errors
/// When the file system refuses.
pub fn left(state_dir: &Path, name: &str, netns_cookie: u64) -> Result<Left, DataPlaneError> {
    let mut left = Left::Nothing;
    for root in roots(state_dir, name) {
        for entry in entries(&root)? {
            let folder = entry.file_name().map(|name| name.to_string_lossy());
            let cookie = folder
                .as_deref()
                .and_then(|name| name.split('-').nth(1).map(str::to_owned));
            if cookie == Some(format!("{netns_cookie:x}")) {
                return Ok(Left::Here);
            }
            left = Left::Elsewhere;
        }
    }
    Ok(left)
}

/// Removes everything, the mount in the state directory included.
///
/// # Errors
/// When the file system refuses.
pub fn remove_all(state_dir: &Path, name: &str) -> Result<(), DataPlaneError> {
    for root in roots(state_dir, name) {
        remove(&root)?;
    }
    let private = state_dir.join(PRIVATE);
    if is_bpffs(&private) {
        umount2(&private, MntFlags::MNT_DETACH)
            .map_err(|cause| failed("unmount", &private)(cause.into()))?;
    }
    match fs::remove_dir(&private) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", &private)(cause))
        }
        _ => Ok(()),
    }
}

fn roots(state_dir: &Path, name: &str) -> [PathBuf; 2] {
    [state_dir.join(PRIVATE), PathBuf::from(COMMON)].map(|place| place.join(name))
}

/// Makes a folder in the common file system, or, where that is missing or closed (in a container), in one of our own.
fn make_root(state_dir: &Path, roots: &[PathBuf; 2]) -> Result<PathBuf, DataPlaneError> {
    let [private, common] = roots;
    if is_bpffs(Path::new(COMMON)) && make_folder(common).is_ok() {
        return Ok(common.clone());
    }
    let mount_point = state_dir.join(PRIVATE);
    if !is_bpffs(&mount_point) {
        make_folder(&mount_point)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(
            Some("bpf"),
            &mount_point,
            Some("bpf"),
            flags,
            Some("mode=0700"),
        )
        .map_err(|cause| failed("mount a BPF file system on", &mount_point)(cause.into()))?;
    }
    make_folder(private)?;
    Ok(private.clone())
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|statistics| {
        #[allow(
            clippy::unnecessary_cast,
            reason = "the type of the number differs between architectures"
        )]
        let magic = statistics.filesystem_type().0 as i64;
        magic == MAGIC
    })
}

/// Whether every map is there and looks as it should.
fn is_complete(folder: &Path) -> bool {
    MAPS.iter().all(|shape| {
        MapData::from_pin(folder.join(shape.name))
            .and_then(|map| shape.fits(&map))
            .unwrap_or(false)
    })
}

pub(super) fn make_folder(path: &Path) -> Result<(), DataPlaneError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
            Err(failed("make", path)(cause))
        }
        _ => Ok(()),
    }
}

pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataPlaneError> {
    let read = match fs::read_dir(folder) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(failed("read", folder))?,
    };
    read.map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()
        .map_err(failed("read", folder))
}

/// Removes a file or folder, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), DataPlaneError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(cause) => Err(cause),
    };
    match removed {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(cause)),
        _ => Ok(()),
    }
}

pub(super) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataPlaneError {
    let path = path.to_owned();
    move |cause| DataPlaneError::Pins { what, path, cause }
}
