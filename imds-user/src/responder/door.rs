//! The socket by which daemons reach a running responder, and the directory of all of them: `STATE_DIR/responders/N`, the
//! highest number being the latest. Made by the daemon, listened on by the responder alone.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    net::TcpListener,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket},
};
use tokio::{net::UnixStream, time::timeout};

use super::greeting::Greeting;

/// How long a responder may take to greet. One that serves does so within a millisecond.
const GREETING_WITHIN: Duration = Duration::from_secs(3);

/// A file without content that gives its place to a socket for which a full disk has none: an upgrade must not wait until
/// somebody made room.
const SPARE: &str = "spare";

/// One responder's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Door {
    path: PathBuf,
    number: u64,
}

impl Door {
    /// Makes the next one, and the directory if it is not there. Nobody listens on it yet.
    ///
    /// # Errors
    /// When the file system refuses, or the path is too long for a socket.
    pub fn make(directory: &Path) -> io::Result<(Self, OwnedFd)> {
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let latest = Self::all(directory)?.first().map_or(0, |door| door.number);
        let door = Self::numbered(directory, latest + 1);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        let address = UnixAddr::new(&door.path)?;
        bind(socket.as_raw_fd(), &address).or_else(|error| {
            if !matches!(error, Errno::ENOSPC | Errno::EDQUOT) {
                return Err(error);
            }
            tracing::warn!("{} is full", directory.display());
            fs::remove_file(directory.join(SPARE)).ok();
            bind(socket.as_raw_fd(), &address)
        })?;
        // The directory lets nobody else in; this is the second lock.
        fs::set_permissions(&door.path, Permissions::from_mode(0o600))?;
        // If there is no room for it now, there may be the next time.
        File::create(directory.join(SPARE)).ok();
        Ok((door, socket))
    }

    /// All there are, the latest first.
    ///
    /// # Errors
    /// When the directory is there and cannot be read.
    pub fn all(directory: &Path) -> io::Result<Vec<Self>> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut doors = Vec::new();
        for entry in entries {
            let number = entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            doors.extend(number.map(|number| Self::numbered(directory, number)));
        }
        doors.sort_by_key(|door| std::cmp::Reverse(door.number));
        Ok(doors)
    }

    /// Removes the directory, if it is there. All doors have to be removed before.
    ///
    /// # Errors
    /// When there is something else in it.
    pub fn remove_directory(directory: &Path) -> io::Result<()> {
        let absent_is_fine = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        };
        fs::remove_file(directory.join(SPARE)).or_else(absent_is_fine)?;
        fs::remove_dir(directory).or_else(absent_is_fine)
    }

    fn numbered(directory: &Path, number: u64) -> Self {
        Self {
            path: directory.join(number.to_string()),
            number,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Knocks, and waits for the greeting.
    ///
    /// # Errors
    /// When nobody answers in time.
    pub async fn knock(&self) -> io::Result<(UnixStream, Greeting, [TcpListener; 2])> {
        let greeted = async {
            let line = UnixStream::connect(&self.path).await?;
            let (greeting, listeners) = Greeting::receive(&line).await?;
            Ok((line, greeting, listeners))
        };
        timeout(GREETING_WITHIN, greeted).await?
    }

    /// Removes it, once nobody is behind it any more.
    pub fn remove(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("remove {}: {error}", self.path.display());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doors_are_numbered_and_the_latest_comes_first() {
        let directory = std::env::temp_dir().join(format!("imds-door-{}", std::process::id()));
        assert_eq!(Door::all(&directory).unwrap(), []);
        let (first, _socket) = Door::make(&directory).unwrap();
        for number in 2..=11 {
            let (door, _socket) = Door::make(&directory).unwrap();
            assert_eq!(door.path(), directory.join(number.to_string()));
        }
        fs::write(directory.join("other"), "").unwrap();
        let all = Door::all(&directory).unwrap();
        let numbers: Vec<u64> = all.iter().map(|door| door.number).collect();
        assert_eq!(numbers, (1..=11).rev().collect::<Vec<_>>());
        first.remove();
        first.remove();
        assert!(!first.path().exists());
        let mode = fs::metadata(&directory).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let is_left = Door::remove_directory(&directory).unwrap_err();
        assert_eq!(is_left.kind(), io::ErrorKind::DirectoryNotEmpty);
        fs::remove_file(directory.join("other")).unwrap();
        for door in Door::all(&directory).unwrap() {
            door.remove();
        }
        Door::remove_directory(&directory).unwrap();
        Door::remove_directory(&directory).unwrap();
        assert!(!directory.exists());
    }
}
