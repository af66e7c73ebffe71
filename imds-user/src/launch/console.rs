//! What a guest printed: a file that only ever grows by its length, not by what it takes of the disk.
//!
//! The guest's first process appends; once there is enough, the oldest is given back to the file system (a hole at the
//! start of the file). So an offset means the same for as long as the guest lives, and a reader needs no agreement with
//! the writer. A file system without holes has the file begin anew.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

/// How much of the end is kept: what EC2's GetConsoleOutput gives.
pub const KEPT_BYTES: u64 = 64 << 10;

/// How much more there may be before the oldest goes, so that it goes in pieces worth a system call.
const SLACK_BYTES: u64 = 64 << 10;

/// Holes are whole blocks.
const BLOCK_BYTES: u64 = 4096;

/// Offsets beyond this are refused by some file systems; the file begins anew.
const LENGTH_BYTES_MAX: u64 = 1 << 40;

/// How often a follower looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The writer's end.
#[derive(Debug)]
pub struct Console {
    file: File,
    /// Where what is kept begins, as far as this writer knows.
    start: u64,
}

impl Console {
    /// Takes over a file that was opened for appending.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self { file, start: 0 }
    }

    /// Appends. What a full disk does not take is lost: a guest must not wait for it.
    pub fn append(&mut self, bytes: &[u8]) {
        if self.file.write_all(bytes).is_err() {
            return;
        }
        let length = self.file.metadata().map_or(0, |metadata| metadata.len());
        if let Some(end) = end_of_hole(self.start, length) {
            if length < LENGTH_BYTES_MAX && punch(&self.file, end).is_ok() {
                self.start = end;
            } else {
                // The best that can be had here is the latest.
                self.file.set_len(0).ok();
                self.start = 0;
            }
        }
    }

    /// Appends a line of the first process's own.
    pub fn note(&mut self, text: &str) {
        self.append(format!("imds: {text}\n").as_bytes());
    }
}

/// Up to where the oldest is to go, if there is too much.
fn end_of_hole(start: u64, length: u64) -> Option<u64> {
    if length.saturating_sub(start) <= KEPT_BYTES + SLACK_BYTES {
        return None;
    }
    Some((length - KEPT_BYTES) / BLOCK_BYTES * BLOCK_BYTES)
}

fn punch(file: impl AsFd, end: u64) -> Result<(), Errno> {
    let end = libc::off_t::try_from(end).map_err(|_| Errno::EFBIG)?;
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, hole, 0, end)
}

/// Writes what is kept of a console to `out`.
///
/// # Errors
/// When there is none, or `out` takes no more.
pub fn show(path: &Path, out: &mut dyn Write) -> Result<(), ConsoleError> {
    let mut reader = Reader::open(path)?;
    reader.copy(out)?;
    Ok(())
}

/// The same, and then what comes, until the guest is no more. It may be stopped and started meanwhile.
///
/// # Errors
/// As [`show`].
pub fn follow(path: &Path, out: &mut dyn Write) -> Result<(), ConsoleError> {
    let mut reader = Reader::open(path)?;
    loop {
        // Looked at before, so that what came last is read after it.
        let is_there = path.exists();
        reader.copy(out)?;
        out.flush().map_err(ConsoleError::Write)?;
        if !is_there {
            return Ok(());
        }
        thread::sleep(LOOK_EVERY);
    }
}

struct Reader {
    path: PathBuf,
    file: File,
    offset: u64,
}

impl Reader {
    fn open(path: &Path) -> Result<Self, ConsoleError> {
        let file = File::open(path).map_err(|cause| ConsoleError::Read {
            path: path.to_owned(),
            cause,
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
            offset: 0,
        })
    }

    /// Hands out everything from the offset on that is kept.
    fn copy(&mut self, out: &mut dyn Write) -> Result<(), ConsoleError> {
        let bytes = self.rest().map_err(|cause| ConsoleError::Read {
            path: self.path.clone(),
            cause,
        })?;
        out.write_all(&bytes).map_err(ConsoleError::Write)
    }

    fn rest(&mut self) -> io::Result<Vec<u8>> {
        let length = self.file.metadata()?.len();
        if length < self.offset {
            // It has begun anew.
            self.offset = 0;
        }
        self.offset = self.offset.max(length.saturating_sub(KEPT_BYTES));
        self.file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        Read::by_ref(&mut self.file)
            .take(length - self.offset)
            .read_to_end(&mut bytes)?;
        self.offset += bytes.len() as u64;
        Ok(bytes)
    }
}

/// Why a console could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// Not read.
    #[error("read the console {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// Whoever reads takes no more.
    #[error("write the console's text")]
    Write(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// A console in a file of its own, removed at the end.
    fn with_console(name: &str, test: impl FnOnce(&mut Console, &Path)) {
        let path = std::env::temp_dir().join(format!("imds-{name}-{}", std::process::id()));
        let file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .read(true)
            .open(&path)
            .unwrap();
        test(&mut Console::new(file), &path);
        fs::remove_file(path).unwrap();
    }

    fn shown(path: &Path) -> Vec<u8> {
        let mut out = Vec::new();
        show(path, &mut out).unwrap();
        out
    }

    #[test]
    fn the_oldest_goes_when_there_is_too_much() {
        let full = KEPT_BYTES + SLACK_BYTES;
        for (start, length, expected) in [
            (0, 0, None),
            (0, full, None),
            (0, full + 1, Some(SLACK_BYTES)),
            (0, full + 5000, Some(SLACK_BYTES + BLOCK_BYTES)),
            (SLACK_BYTES, full + 1, None),
            (SLACK_BYTES, full + SLACK_BYTES + 1, Some(2 * SLACK_BYTES)),
        ] {
            assert_eq!(end_of_hole(start, length), expected, "{start} {length}");
        }
    }

    #[test]
    fn a_flood_takes_no_more_than_a_bound_and_ends_with_its_end() {
        with_console("console-flood", |console, path| {
            let line = [b'x'; 1000];
            for _ in 0..10_000 {
                console.append(&line);
            }
            console.note("the end");
            let metadata = fs::metadata(path).unwrap();
            let used = metadata.blocks() * 512;
            assert!(
                used <= KEPT_BYTES + SLACK_BYTES + 2 * BLOCK_BYTES,
                "{used} bytes on the disk"
            );
            let text = shown(path);
            assert!(text.ends_with(b"xxximds: the end\n"));
            assert!(text.len() as u64 <= KEPT_BYTES);
            assert!(!text.contains(&0), "the hole is not shown");
        });
    }

    #[test]
    fn a_follower_reads_on_where_it_was_also_when_the_file_begins_anew() {
        with_console("console-follow", |console, path| {
            let mut reader = Reader::open(path).unwrap();
            let mut next = || String::from_utf8(reader.rest().unwrap()).unwrap();
            assert_eq!(next(), "");
            console.append(b"one");
            assert_eq!(next(), "one");
            console.append(b"two");
            assert_eq!(next(), "two");
            console.file.set_len(0).unwrap();
            console.append(b"x");
            assert_eq!(next(), "x");
        });
    }

    #[test]
    fn following_ends_with_the_guest() {
        let path = std::env::temp_dir().join(format!("imds-console-gone-{}", std::process::id()));
        fs::write(&path, "last words").unwrap();
        let mut out = Vec::new();
        thread::scope(|scope| {
            let follower = scope.spawn(|| follow(&path, &mut out));
            thread::sleep(LOOK_EVERY);
            fs::remove_file(&path).unwrap();
            follower.join().unwrap().unwrap();
        });
        assert_eq!(out, b"last words");
        assert!(matches!(
            show(&path, &mut Vec::new()),
            Err(ConsoleError::Read { .. })
        ));
    }
}
