//! Network namespaces: made, found, entered and removed, with names that `ip netns` knows.
//!
//! A namespace is entered by a thread that ends afterwards ([`NetNs::run`]), never by a thread of a pool:
//! a thread left in the wrong namespace would be met again by work that knows nothing of it. The `ip`
//! binary is never called. What names mean is iproute2's convention: a bind mount at `/run/netns/NAME`,
//! see `netns_add` in iproute2's `ip/ipnetns.c`.

pub mod link;
pub mod sysctl;
pub mod uplink;
pub mod watch;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::panic;
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where named namespaces are, by iproute2's convention.
pub const NETNS_DIR: &str = "/run/netns";

/// The network namespace of the thread that looks.
const THREAD_NETNS: &str = "/proc/thread-self/ns/net";

/// The longest file name that Linux takes (`NAME_MAX`).
const NAME_BYTES_MAX: usize = 255;

/// A network namespace that stays reachable while this value lives.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    name: Option<String>,
    inode: u64,
}

impl NetNs {
    /// Makes a namespace of this name, as `ip netns add NAME` does. Its `lo` is down.
    ///
    /// # Errors
    /// When the name is no file name or is taken, and when the kernel refuses (no root).
    pub fn create(name: &str) -> Result<Self, NetNsError> {
        let path = path_of(name)?;
        prepare_netns_dir()?;
        reserve_name(name, &path)?;
        if let Err(error) = mount_new_namespace(name, &path) {
            // The empty file is of no use to anybody, and the first error is the one to tell.
            fs::remove_file(&path).ok();
            return Err(error);
        }
        Self::open(name)
    }

    /// Opens a named namespace.
    ///
    /// # Errors
    /// [`NetNsError::Missing`] when there is none of this name.
    pub fn open(name: &str) -> Result<Self, NetNsError> {
        let path = path_of(name)?;
        if !Self::exists(name) {
            return Err(NetNsError::Missing {
                name: name.to_owned(),
            });
        }
        let mut namespace = Self::open_path(&path)?;
        namespace.name = Some(name.to_owned());
        Ok(namespace)
    }

    /// Opens a namespace by a file that stands for it, such as `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open_path(path: &Path) -> Result<Self, NetNsError> {
        let open = || {
            let file = File::open(path)?;
            let inode = file.metadata()?.ino();
            Ok(Self {
                file,
                name: None,
                inode,
            })
        };
        open().map_err(|cause| NetNsError::Open {
            path: path.to_owned(),
            cause,
        })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn current() -> Result<Self, NetNsError> {
        Self::open_path(Path::new(THREAD_NETNS))
    }

    /// Gives a namespace that is there already a name: that of a process, by its `/proc/PID/ns/net`. It lives on with the
    /// name when that process ends.
    ///
    /// # Errors
    /// When the name is no file name or is taken, and when the kernel refuses (no root).
    pub fn name_path(namespace: &Path, name: &str) -> Result<Self, NetNsError> {
        let path = path_of(name)?;
        prepare_netns_dir()?;
        reserve_name(name, &path)?;
        if let Err(cause) = bind(namespace, &path) {
            fs::remove_file(&path).ok();
            return Err(NetNsError::Create {
                name: name.to_owned(),
                cause: cause.into(),
            });
        }
        Self::open(name)
    }

    /// Removes the name; the namespace ends when the last process, socket and descriptor in it is gone.
    ///
    /// # Errors
    /// [`NetNsError::Missing`] when there is none of this name.
    pub fn delete(name: &str) -> Result<(), NetNsError> {
        let path = path_of(name)?;
        if !path.exists() {
            return Err(NetNsError::Missing {
                name: name.to_owned(),
            });
        }
        let refused = |cause| NetNsError::Delete {
            name: name.to_owned(),
            cause,
        };
        match umount2(&path, MntFlags::MNT_DETACH) {
            // EINVAL: a file without a mount, left by somebody who was interrupted while making it.
            Ok(()) | Err(Errno::EINVAL) => fs::remove_file(&path).map_err(refused),
            Err(errno) => Err(refused(errno.into())),
        }
    }

    /// Whether a namespace of this name is there: a file alone, without a namespace mounted on it, is not.
    #[must_use]
    pub fn exists(name: &str) -> bool {
        let Ok(path) = path_of(name) else {
            return false;
        };
        let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
        match (device(&path), device(Path::new(THREAD_NETNS))) {
            (Ok(of_file), Ok(of_namespaces)) => of_file == of_namespaces,
            _ => false,
        }
    }

    /// The name it was made or opened by.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The inode number, by which two descriptors of one namespace are known to be the same.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Makes the calling process the one that looks after this namespace's filters, for as long as the value lives; none
    /// if another one does. It is a hint between honest processes: any user of the namespace could take it.
    ///
    /// # Errors
    /// When the file that stands for the namespace cannot be opened again.
    pub fn claim(&self) -> io::Result<Option<Claim>> {
        // The lock belongs to an open file, so one of our own is needed.
        let file = File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Claim { _lock: lock })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }

    /// Moves the calling thread into this namespace, for good: for a process about to `exec`, or a thread
    /// about to end. Anything else wants [`NetNs::run`].
    ///
    /// # Errors
    /// When the kernel refuses (no root).
    pub fn enter(&self) -> Result<(), NetNsError> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| NetNsError::Enter {
            namespace: self.to_string(),
            cause: errno.into(),
        })
    }

    /// Executes `work` in this namespace, in a thread that ends afterwards, and waits for it. Sockets made
    /// there stay in this namespace wherever they are used later.
    ///
    /// # Errors
    /// When the thread cannot be started or the kernel refuses (no root); `work` did not run then.
    ///
    /// # Panics
    /// When `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetNsError> {
        in_own_thread(|| {
            self.enter()?;
            Ok(work())
        })
    }

    /// As [`NetNs::run`], for asynchronous work: the thread has a tokio runtime of its own.
    ///
    /// # Errors
    /// As [`NetNs::run`], and when the runtime cannot be built.
    pub fn run_async<T, F>(&self, work: impl FnOnce() -> F + Send) -> Result<T, NetNsError>
    where
        T: Send,
        F: Future<Output = T>,
    {
        in_own_thread(|| {
            self.enter()?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(NetNsError::Thread)?;
            Ok(runtime.block_on(work()))
        })
    }
}

/// See [`NetNs::claim`].
#[derive(Debug)]
pub struct Claim {
    _lock: Flock<File>,
}

/// The kernel's number for the network namespace of the calling thread: no other has it or ever will, until the machine
/// starts anew (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// # Errors
/// When the kernel has no such number.
pub fn cookie() -> io::Result<u64> {
    // Any socket belongs to the namespace that it was made in.
    let socket = UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))
        .or_else(|_| UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)))?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of_val(&cookie)).map_err(io::Error::other)?;
    #[expect(unsafe_code, reason = "no crate in use wraps this socket option")]
    // SAFETY: the descriptor is open, the option writes a u64 at the first pointer and its length at the second, and both
    // live through the call.
    let code = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if code < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl std::fmt::Display for NetNs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.name {
            Some(name) => f.write_str(name),
            None => write!(f, "net:[{}]", self.inode),
        }
    }
}

/// What can go wrong with a namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetNsError {
    /// The name would not be a file in [`NETNS_DIR`].
    #[error(
        "`{name}` is no name for a network namespace: use 1 to 255 bytes without `/`, neither `.` nor `..`"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// There is no namespace of this name.
    #[error("no network namespace `{name}` (see `ip netns`)")]
    Missing {
        /// What was asked for.
        name: String,
    },
    /// There is one of this name already.
    #[error(
        "network namespace `{name}` exists already (remove it with `ip netns delete {name}` if it is not in use)"
    )]
    Taken {
        /// What was asked for.
        name: String,
    },
    /// [`NETNS_DIR`] could not be made a shared mount.
    #[error("prepare {NETNS_DIR} for network namespaces")]
    Directory(#[source] io::Error),
    /// The kernel made none, or it could not be given its name.
    #[error("create network namespace `{name}`")]
    Create {
        /// What it was to be called.
        name: String,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The name could not be removed.
    #[error("delete network namespace `{name}`")]
    Delete {
        /// What it is called.
        name: String,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The file that stands for it could not be opened.
    #[error("open network namespace {}", path.display())]
    Open {
        /// That file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// A thread could not move into it.
    #[error("enter network namespace {namespace}")]
    Enter {
        /// Its name or inode.
        namespace: String,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// No thread or no runtime for work inside it.
    #[error("start a thread for a network namespace")]
    Thread(#[source] io::Error),
}

fn path_of(name: &str) -> Result<PathBuf, NetNsError> {
    if name.is_empty()
        || name.len() > NAME_BYTES_MAX
        || name == "."
        || name == ".."
        || name.contains(['/', '\0'])
    {
        return Err(NetNsError::Name {
            name: name.to_owned(),
        });
    }
    Ok(Path::new(NETNS_DIR).join(name))
}

/// Makes [`NETNS_DIR`] a shared mount, so that a name mounted there is seen in other mount namespaces, and one
/// removed does not live on in them. Under a lock, as iproute2 does: two at once would mount it upon itself twice.
fn prepare_netns_dir() -> Result<(), NetNsError> {
    let prepare = || {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(NETNS_DIR)?;
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(NETNS_DIR)?;
        let _lock = Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
        match make_shared() {
            // Not a mount point yet.
            Err(Errno::EINVAL) => {
                mount(
                    Some(NETNS_DIR),
                    NETNS_DIR,
                    None::<&str>,
                    MsFlags::MS_BIND | MsFlags::MS_REC,
                    None::<&str>,
                )?;
                make_shared()?;
            }
            other => other?,
        }
        Ok(())
    };
    prepare().map_err(NetNsError::Directory)
}

fn make_shared() -> nix::Result<()> {
    mount(
        None::<&str>,
        NETNS_DIR,
        None::<&str>,
        MsFlags::MS_SHARED | MsFlags::MS_REC,
        None::<&str>,
    )
}

/// Makes the file that the namespace is mounted on; that it did not exist is what makes the name ours.
fn reserve_name(name: &str, path: &Path) -> Result<(), NetNsError> {
    match OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(path)
    {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(NetNsError::Taken {
            name: name.to_owned(),
        }),
        Err(cause) => Err(NetNsError::Create {
            name: name.to_owned(),
            cause,
        }),
    }
}

fn mount_new_namespace(name: &str, path: &Path) -> Result<(), NetNsError> {
    in_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)
            .and_then(|()| bind(Path::new(THREAD_NETNS), path))
            .map_err(|errno| NetNsError::Create {
                name: name.to_owned(),
                cause: errno.into(),
            })
    })
}

fn bind(namespace: &Path, path: &Path) -> nix::Result<()> {
    mount(
        Some(namespace),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
}

fn in_own_thread<T: Send>(
    work: impl FnOnce() -> Result<T, NetNsError> + Send,
) -> Result<T, NetNsError> {
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .map_err(NetNsError::Thread)?;
        worker
            .join()
            .unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    })
}

#[cfg(test)]
pub(crate) mod for_test {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::NetNs;

    /// A namespace of a name that nobody else uses, deleted on drop.
    pub(crate) struct Scratch(pub(crate) NetNs);

    impl Scratch {
        /// `None`, with a printed line, without root.
        pub(crate) fn new() -> Option<Self> {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            if !nix::unistd::geteuid().is_root() {
                eprintln!("skipped: network namespaces need root");
                return None;
            }
            let name = format!(
                "imds-test-{}-{}",
                std::process::id(),
                COUNT.fetch_add(1, Ordering::Relaxed)
            );
            Some(Self(NetNs::create(&name).expect("a new namespace")))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let name = self.0.name().expect("made with a name");
            if NetNs::exists(name) {
                NetNs::delete(name).expect("deletable");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::for_test::Scratch;
    use super::*;

    #[test]
    fn a_name_is_one_file_name() {
        for name in ["web", "imds-lab", "a b", ".hidden", &"x".repeat(255)] {
            assert!(path_of(name).is_ok(), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "/etc/passwd",
            "a\0b",
            &"x".repeat(256),
        ] {
            assert!(
                matches!(path_of(name), Err(NetNsError::Name { .. })),
                "{name:?}"
            );
        }
    }

    #[test]
    fn work_runs_inside_and_the_caller_stays_outside() {
        let Some(scratch) = Scratch::new() else {
            return;
        };
        let outside = NetNs::current().unwrap().inode();
        let inside = scratch.0.run(|| NetNs::current().unwrap().inode()).unwrap();
        assert_eq!(inside, scratch.0.inode());
        assert_ne!(inside, outside);
        assert_eq!(NetNs::current().unwrap().inode(), outside);
        assert_eq!(
            scratch
                .0
                .run_async(|| async { NetNs::current().unwrap().inode() })
                .unwrap(),
            inside
        );
    }

    #[test]
    fn a_name_is_taken_once_and_gone_after_its_deletion() {
        let Some(scratch) = Scratch::new() else {
            return;
        };
        let name = scratch.0.name().unwrap();
        assert!(NetNs::exists(name));
        assert!(matches!(NetNs::create(name), Err(NetNsError::Taken { .. })));
        assert_eq!(NetNs::open(name).unwrap().inode(), scratch.0.inode());
        NetNs::delete(name).unwrap();
        assert!(!NetNs::exists(name));
        assert!(matches!(NetNs::open(name), Err(NetNsError::Missing { .. })));
        assert!(matches!(
            NetNs::delete(name),
            Err(NetNsError::Missing { .. })
        ));
    }

    #[test]
    fn a_file_left_by_an_interrupted_creation_is_no_namespace_and_can_be_deleted() {
        let Some(scratch) = Scratch::new() else {
            return;
        };
        let name = scratch.0.name().unwrap();
        umount2(&path_of(name).unwrap(), MntFlags::MNT_DETACH).unwrap();
        assert!(!NetNs::exists(name));
        NetNs::delete(name).unwrap();
        assert!(!path_of(name).unwrap().exists());
    }

    #[test]
    fn a_cookie_is_one_namespaces_alone() {
        let Some(scratch) = Scratch::new() else {
            return;
        };
        let inside = || scratch.0.run(|| cookie().unwrap()).unwrap();
        assert_eq!(inside(), inside());
        assert_ne!(inside(), cookie().unwrap());
    }

    #[test]
    fn a_namespace_is_claimed_by_one_at_a_time() {
        let Some(scratch) = Scratch::new() else {
            return;
        };
        let claim = scratch.0.claim().unwrap();
        assert!(claim.is_some());
        let other = NetNs::open(scratch.0.name().unwrap()).unwrap();
        assert!(other.claim().unwrap().is_none());
        drop(claim);
        assert!(other.claim().unwrap().is_some());
    }

    #[test]
    #[should_panic(expected = "inside")]
    fn a_panic_inside_reaches_the_caller() {
        let Some(scratch) = Scratch::new() else {
            panic!("inside is not reached without root")
        };
        scratch.0.run(|| panic!("inside")).unwrap();
    }
}
