//! Descriptors over Unix sockets (SCM_RIGHTS): how listening sockets get from the daemon to a responder and back.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    cmsg_space,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};

/// Sends bytes, and descriptors with the first of them.
///
/// # Errors
/// When the other side is gone, or takes only a part (it has room for any that is sent here, unless it never reads).
pub fn send<const N: usize>(
    to: impl AsFd,
    bytes: &[u8],
    descriptors: [BorrowedFd<'_>; N],
) -> io::Result<()> {
    let raw = descriptors.map(|descriptor| descriptor.as_raw_fd());
    let rights = [ControlMessage::ScmRights(&raw)];
    let sent = sendmsg::<()>(
        to.as_fd().as_raw_fd(),
        &[IoSlice::new(bytes)],
        &rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::WriteZero,
            "the other side takes no more",
        ))
    }
}

/// Receives what [`send`] sent: as many bytes as the buffer has, and exactly this many descriptors.
///
/// # Errors
/// When anything else comes, or the other side is gone.
pub fn receive<const N: usize>(from: impl AsFd, bytes: &mut [u8]) -> io::Result<[OwnedFd; N]> {
    let expected = bytes.len();
    let mut space = cmsg_space!([RawFd; N]);
    let mut parts = [IoSliceMut::new(bytes)];
    let message = recvmsg::<()>(
        from.as_fd().as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut received = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            received.extend(descriptors.into_iter().map(own));
        }
    }
    if message.bytes < expected {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    received
        .try_into()
        .map_err(|_| io::Error::other("the descriptors are not all there"))
}

#[expect(unsafe_code, reason = "the kernel hands over descriptors as numbers")]
fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: it was just received by SCM_RIGHTS, is open, and nobody else in this process knows it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use super::*;

    #[test]
    fn descriptors_arrive_with_their_bytes() {
        let (one, other) = UnixStream::pair().unwrap();
        let (read, write) = io::pipe().unwrap();
        send(&one, b"abc", [read.as_fd(), write.as_fd()]).unwrap();
        drop((read, write));
        let mut bytes = [0; 3];
        let [read, write] = receive(&other, &mut bytes).unwrap();
        assert_eq!(&bytes, b"abc");
        File::from(write).write_all(b"through").unwrap();
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn fewer_descriptors_or_bytes_are_refused() {
        let (one, other) = UnixStream::pair().unwrap();
        let (read, _write) = io::pipe().unwrap();
        send(&one, b"abc", [read.as_fd()]).unwrap();
        assert!(receive::<2>(&other, &mut [0; 3]).is_err());
        send(&one, b"ab", [read.as_fd()]).unwrap();
        assert!(receive::<1>(&other, &mut [0; 3]).is_err());
        drop(one);
        assert!(receive::<1>(&other, &mut [0; 3]).is_err());
    }
}
