//! The state directory: what must outlive the daemon. Readable by root alone.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use crate::{
    config::Installation, discovery::admitted::Admitted, instance::UnixSeconds, life::Lives,
};

/// Where a daemon keeps its state unless it is told otherwise.
pub const USUAL_DIR: &str = "/var/lib/imds";

const INSTALLATION: &str = "installation.json";
const TOKEN_KEY: &str = "token.key";
const LIVES: &str = "life.json";
const ADMITTED: &str = "admitted.json";
const IDENTITY: &str = "identity";
const LOCK: &str = "lock";
const STORE: &str = "store.db";
const SOCKET: &str = "control.sock";
const API_SOCKET: &str = "api.sock";
const RESPONDERS: &str = "responders";

/// A file of the state directory that could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system refused.
    #[error("{what} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Another daemon holds the directory.
    #[error("another daemon runs with the state directory {}: stop it, or give this one another --state-dir", .0.display())]
    Locked(PathBuf),
    /// A file does not hold what it should.
    #[error("{} is damaged ({cause}): restore it, or remove it to have a new one made (instances made up from it change)", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// What happened to instances cannot be told any more.
    #[error("{} is damaged ({cause}): restore it, or remove it, and every instance runs as it is configured", path.display())]
    DamagedLives {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        cause: serde_json::Error,
    },
    /// Who was admitted cannot be told any more.
    #[error("{} is damaged ({cause}): restore it, or remove it, and nobody is admitted but by the configuration", path.display())]
    DamagedAdmissions {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        cause: serde_json::Error,
    },
}

/// The directory, held by one daemon.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl StateDir {
    /// Makes the directory if it is not there, and locks it.
    ///
    /// # Errors
    /// When another daemon has it or the file system refuses.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        fs::create_dir_all(path).map_err(io_error("make the directory", path))?;
        fs::set_permissions(path, Permissions::from_mode(0o700))
            .map_err(io_error("close to others", path))?;
        let path = path.canonicalize().map_err(io_error("find", path))?;
        let lock_path = path.join(LOCK);
        let lock = private_file()
            .create(true)
            .write(true)
            .open(&lock_path)
            .map_err(io_error("open", &lock_path))?;
        let lock =
            Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(
                |(_, cause)| match cause {
                    nix::errno::Errno::EWOULDBLOCK => StateError::Locked(path.clone()),
                    cause => io_error("lock", &lock_path)(cause.into()),
                },
            )?;
        Ok(Self { path, _lock: lock })
    }

    /// The installation's facts; made up at the first call ever.
    ///
    /// # Errors
    /// When the file cannot be read, written or understood.
    pub fn installation(&self) -> Result<Installation, StateError> {
        let path = self.path.join(INSTALLATION);
        let made = || {
            let now = SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default();
            let installation = Installation {
                seed: random()?,
                created: UnixSeconds(now.as_secs()),
            };
            serde_json::to_vec(&installation).map_err(io::Error::other)
        };
        let text = read_or_make(&path, made)?;
        serde_json::from_slice(&text).map_err(|cause| StateError::Damaged {
            path,
            cause: cause.to_string(),
        })
    }

    /// The key of the session tokens; made at the first call ever, so that a restart invalidates no token.
    ///
    /// # Errors
    /// When the file cannot be read, written or understood.
    pub fn token_key(&self) -> Result<[u8; 32], StateError> {
        let path = self.path.join(TOKEN_KEY);
        let key = read_or_make(&path, || random::<32>().map(Vec::from))?;
        let length = key.len();
        key.try_into().map_err(|_| StateError::Damaged {
            path,
            cause: format!("{length} bytes instead of 32"),
        })
    }

    /// What commands did to instances, where a daemon wrote it that had no store.
    ///
    /// # Errors
    /// When the file cannot be read or understood: an instance that was stopped must not run because of that.
    pub fn former_lives(&self) -> Result<Option<Lives>, StateError> {
        let path = self.path.join(LIVES);
        let Some(text) = read_if_there(&path)? else {
            return Ok(None);
        };
        let lives = serde_json::from_slice(&text);
        lives.map_err(|cause| StateError::DamagedLives { path, cause })
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The guests that were admitted, where a daemon wrote it that had no store.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub fn former_admitted(&self) -> Result<Option<Admitted>, StateError> {
        let path = self.path.join(ADMITTED);
        let Some(text) = read_if_there(&path)? else {
            return Ok(None);
        };
        let admitted = serde_json::from_slice(&text);
        admitted.map_err(|cause| StateError::DamagedAdmissions { path, cause })
    }

    /// Removes both, once the store has what is in them.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove_former(&self) -> Result<(), StateError> {
        for name in [LIVES, ADMITTED] {
            let path = self.path.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(io_error("remove", &path))?,
            }
        }
        Ok(())
    }

    /// The Unix socket of the control API.
    #[must_use]
    pub fn api_socket(&self) -> PathBuf {
        self.path.join(API_SOCKET)
    }

    /// Where the control socket of this directory's daemon is.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        socket_in(&self.path)
    }

    /// See [`store_in`].
    #[must_use]
    pub fn store(&self) -> PathBuf {
        store_in(&self.path)
    }

    /// See [`responders_in`].
    #[must_use]
    pub fn responders(&self) -> PathBuf {
        responders_in(&self.path)
    }

    /// See [`identity_in`].
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        identity_in(&self.path)
    }

    /// See [`namespace_name_in`].
    #[must_use]
    pub fn namespace_name(&self) -> String {
        namespace_name_in(&self.path)
    }
}

/// The name of the responder's namespace and of the veth pair into it: an interface name that differs between the
/// daemons of one machine, and is the same after a restart. The path must be canonical.
#[must_use]
pub fn namespace_name_in(state_dir: &Path) -> String {
    let digest = Sha256::digest(state_dir.as_os_str().as_encoded_bytes());
    format!(
        "imds-{:02x}{:02x}{:02x}{:02x}",
        digest[0], digest[1], digest[2], digest[3]
    )
}

/// Where the control socket of a daemon with this state directory is.
#[must_use]
pub fn socket_in(state_dir: &Path) -> PathBuf {
    state_dir.join(SOCKET)
}

/// Where a state directory has what is kept of instances ([`crate::store`]).
#[must_use]
pub fn store_in(state_dir: &Path) -> PathBuf {
    state_dir.join(STORE)
}

/// The directory of the sockets by which the responders of this state directory are reached.
#[must_use]
pub fn responders_in(state_dir: &Path) -> PathBuf {
    state_dir.join(RESPONDERS)
}

/// Where a state directory has the keys that identity documents are signed with. Only who holds its lock writes there.
#[must_use]
pub fn identity_in(state_dir: &Path) -> PathBuf {
    state_dir.join(IDENTITY)
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(io_error("read", path)),
    }
}

/// Reads a file, or makes it.
pub(crate) fn read_or_make(
    path: &Path,
    make: impl FnOnce() -> io::Result<Vec<u8>>,
) -> Result<Vec<u8>, StateError> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        read => return read.map_err(io_error("read", path)),
    }
    let content = make().map_err(io_error("make up", path))?;
    write_whole(path, &content)?;
    Ok(content)
}

/// Writes a file: whole or not at all, also when the machine stops in between.
fn write_whole(path: &Path, content: &[u8]) -> Result<(), StateError> {
    let part = path.with_extension("part");
    let written = private_file()
        .create(true)
        .truncate(true)
        .write(true)
        .open(&part)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()));
    written.map_err(io_error("write", &part))?;
    fs::rename(&part, path).map_err(io_error("write", path))?;
    // The new name is in the directory, which is written like any file.
    let directory = path.parent().unwrap_or(path);
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("write", directory))
}

fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |cause| StateError::Io { what, path, cause }
}
