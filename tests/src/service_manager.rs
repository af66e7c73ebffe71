//! What a service manager does for the daemon, in the test's hands: hears what it says, and keeps sockets for it.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::stat::fstat;

/// A file descriptor store, as systemd has one for each unit: full or empty, for one daemon after the other.
#[derive(Clone, Default)]
pub struct FdStore(Arc<Mutex<Vec<(String, OwnedFd)>>>);

impl FdStore {
    /// Closes everything, as systemd does when it gives a unit up.
    ///
    /// # Panics
    /// When a test did while it used the store.
    pub fn discard(&self) {
        self.0.lock().expect("no test panics with it").clear();
    }

    /// How many sockets it has.
    ///
    /// # Panics
    /// As [`FdStore::discard`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.lock().expect("no test panics with it").len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it has already it does not keep twice; what has the same name and is another it does.
    fn keep(&self, name: &str, descriptor: OwnedFd) {
        let inode = |socket: &OwnedFd| fstat(socket).expect("it is open").st_ino;
        let mut kept = self.0.lock().expect("no test panics with it");
        if !kept
            .iter()
            .any(|(_, other)| inode(other) == inode(&descriptor))
        {
            kept.push((name.to_owned(), descriptor));
        }
    }

    fn remove(&self, name: &str) {
        let mut kept = self.0.lock().expect("no test panics with it");
        kept.retain(|(other, _)| other != name);
    }

    /// The command that runs `binary` with what is kept, as sd_listen_fds(3) says. A shell moves the sockets to their
    /// numbers, so that the test itself never holds any that other children would inherit.
    pub(crate) fn command(&self, binary: &Path) -> Command {
        let kept = self.0.lock().expect("no test panics with it");
        let [(first, v4), (second, v6)] = kept.as_slice() else {
            assert!(kept.is_empty(), "two sockets or none, not {}", kept.len());
            return Command::new(binary);
        };
        let script = "exec 3<&0 4<&1 0</dev/null 1>/dev/null; LISTEN_PID=$$ exec \"$0\" \"$@\"";
        let clone = |socket: &OwnedFd| Stdio::from(socket.try_clone().expect("a descriptor"));
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .arg(binary)
            .env("LISTEN_FDS", "2")
            .env("LISTEN_FDNAMES", format!("{first}:{second}"))
            .stdin(clone(v4))
            .stdout(clone(v6));
        command
    }
}

/// The next message to the service manager. Descriptors in it go to the store, or nowhere.
pub(crate) fn receive(socket: &UnixDatagram, store: Option<&FdStore>) -> io::Result<String> {
    let mut buffer = [0; 4096];
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            descriptors.extend(received.into_iter().map(own));
        }
    }
    let length = message.bytes;
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let says = |line: &str| text.lines().any(|said| said == line);
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
    if let (Some(store), Some(name)) = (store, name) {
        if says("FDSTORE=1") {
            for descriptor in descriptors {
                store.keep(name, descriptor);
            }
        }
        if says("FDSTOREREMOVE=1") {
            store.remove(name);
        }
    }
    Ok(text)
}

#[expect(unsafe_code, reason = "the kernel hands over descriptors as numbers")]
fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: it was just received by SCM_RIGHTS, is open, and nobody else in this process knows it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
