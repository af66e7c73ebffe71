//! A small disk that can be full.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::process::run;

/// Room for what a daemon keeps, and little more.
const BYTES: &str = "8m";
const FILES: u32 = 1000;

/// A file system in memory. It is unmounted when this value is dropped.
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    pub(crate) fn mount(path: &Path) -> Self {
        let options = format!("size={BYTES},nr_inodes={FILES},mode=700");
        let text = path.to_str().expect("temporary paths are text");
        let output = run(&["mount", "-t", "tmpfs", "-o", &options, "imds-test", text]);
        assert!(output.status.success(), "mount: {output:?}");
        Self {
            path: path.to_owned(),
        }
    }

    /// Leaves no byte and no file to anybody.
    ///
    /// # Panics
    /// When the disk refuses for another reason than that it is full.
    pub fn fill(&self) {
        let folder = self.path.join("filler");
        fs::create_dir_all(&folder).expect("the disk takes a folder");
        let chunk = vec![0; 64 << 10];
        let is_full = |outcome: io::Result<()>| match outcome {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::StorageFull => true,
            Err(error) => panic!("fill {}: {error}", folder.display()),
        };
        let mut bytes = File::create(folder.join("bytes")).expect("the disk takes a file");
        while !is_full(bytes.write_all(&chunk)) {}
        for number in 0..FILES {
            let empty = File::create(folder.join(number.to_string()));
            if is_full(empty.map(drop)) {
                return;
            }
        }
    }

    /// Gives back what [`Disk::fill`] took.
    ///
    /// # Panics
    /// When it cannot.
    pub fn empty(&self) {
        let folder = self.path.join("filler");
        if folder.exists() {
            fs::remove_dir_all(folder).expect("the filler can be removed");
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: whoever holds a file there is on its way out.
        let text = self.path.to_str().expect("temporary paths are text");
        drop(run(&["umount", "-l", text]));
    }
}
