//! The file system as [`Files`].

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use super::Files;

/// Files as they are on disk.
#[derive(Clone, Copy, Debug)]
pub struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?
            .take(bytes_max as u64)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}
