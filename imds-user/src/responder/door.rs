//! The socket by which daemons reach a running responder, and the directory of all of them: `STATE_DIR/responders/N`, the
//! highest number being the latest. Made by the daemon, listened on by the responder alone.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    net::TcpListener,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};
use tokio::{net::UnixStream, time::timeout};

use super::greeting::Greeting;

/// How long a responder may take to greet. One that serves does so within a millisecond.
const GREETING_WITHIN: Duration = Duration::from_secs(3);

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
        bind(socket.as_raw_fd(), &UnixAddr::new(&door.path)?)?;
        // The directory lets nobody else in; this is the second lock.
        fs::set_permissions(&door.path, Permissions::from_mode(0o600))?;
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
        fs::remove_dir_all(directory).unwrap();
    }
}
