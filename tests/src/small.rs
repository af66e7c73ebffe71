//! A file system with little room.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use crate::skip::{needs_root, skip};

/// A directory with a file system of its own, gone with this. What uses it must be gone before.
#[derive(Debug)]
pub struct SmallDisk {
    at: PathBuf,
    _holder: TempDir,
}

impl SmallDisk {
    /// Mounts one of this size, such as `4m`; `None`, and a skip, where the machine does not allow it.
    ///
    /// # Panics
    /// When a temporary directory cannot be made.
    #[must_use]
    pub fn mount(size: &str) -> Option<Self> {
        if !needs_root() {
            return None;
        }
        let holder = tempfile::tempdir().expect("a temporary directory");
        let at = holder.path().join("small");
        fs::create_dir(&at).expect("a directory");
        let options = format!("size={size},mode=700");
        let mounted = mount(
            Some("tmpfs"),
            &at,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(&*options),
        );
        if let Err(error) = mounted {
            skip(&format!("no tmpfs can be mounted: {error}"));
            return None;
        }
        let _holder = holder;
        Some(Self { at, _holder })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Takes all the room that there is, with one file. Its path: to remove it is to have room again.
    ///
    /// # Panics
    /// When there cannot be one more file.
    #[must_use]
    pub fn fill(&self, name: &str) -> PathBuf {
        let path = self.at.join(name);
        let mut file = File::create(&path).expect("a file");
        while file.write_all(&[7; 4096]).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    /// Also where a test failed and something still uses it: then it is gone when that is.
    fn drop(&mut self) {
        let unmounted = umount2(&self.at, MntFlags::MNT_DETACH);
        // A test that fails already has said what matters.
        assert!(
            unmounted.is_ok() || std::thread::panicking(),
            "{unmounted:?}"
        );
    }
}
