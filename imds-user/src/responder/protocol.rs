//! What the daemon and the responder say to each other over their Unix socket: frames of a length (32 bit, little
//! endian) and a postcard message. Both ends are the same binary, so there is no version to negotiate.
//!
//! Frames hold credentials and keys, so their buffers are wiped. The kernel's, between the two ends, cannot be.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    sync::Arc,
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

use crate::{
    identity::Signatures,
    instance::{Host, Published},
};

/// A frame's bound: a chunk of instances, each with the largest user data that there is, stays below it.
const FRAME_BYTES_MAX: u32 = 64 << 20;
/// What a frame begins with.
const LENGTH_BYTES: usize = size_of::<u32>();
/// Instances in one [`ToResponder::Upsert`], so that neither side holds all of them encoded at once.
pub const CHUNK_INSTANCES: usize = 256;
/// The listening sockets and the namespace.
pub const DESCRIPTORS: usize = 3;

/// From the daemon.
#[derive(Serialize, Deserialize)]
pub enum ToResponder {
    /// First, with the descriptors of [`send_descriptors`] before it.
    Hello {
        /// The key that tokens are minted with. Lives as long as the installation.
        token_key: [u8; 32],
        /// Threads that serve.
        workers: u16,
    },
    /// What all instances share.
    Host(Host),
    /// New instances and new states of known ones, by slot. Each state is seen whole by the next request.
    Upsert(Vec<(u32, Arc<Published>)>),
    /// These are gone: their connections are closed.
    Remove(Vec<u32>),
    /// When everything before is in force, say [`FromResponder::Applied`] with this number.
    Apply(u64),
    /// Answer with [`FromResponder::Counters`].
    Count,
    /// To [`FromResponder::Sign`].
    Signed {
        /// The slot that was asked for.
        slot: u32,
        /// Of the document of the state that the daemon had when it was asked; none when it cannot sign.
        signatures: Option<Signatures>,
    },
}

/// From the responder.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromResponder {
    /// Everything before [`ToResponder::Apply`] of this number is in force.
    Applied(u64),
    /// What was counted since the responder started, by slot.
    Counters(Vec<(u32, Counters)>),
    /// Sign the identity document of this slot, whatever it is: no more than its number is taken from a process that guests
    /// may have broken into. Answered by [`ToResponder::Signed`].
    Sign(u32),
}

/// What a responder counts for one instance. Resets with the responder; the daemon adds up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Answered requests of any kind.
    pub requests: u64,
    /// Tokens given out.
    pub tokens_issued: u64,
    /// EC2's MetadataNoToken: requests without a token that were served.
    pub no_token: u64,
    /// EC2's MetadataNoTokenRejected: requests without a token that were refused.
    pub no_token_rejected: u64,
    /// Requests that were answered with 503 because of their rate.
    pub throttled: u64,
    /// Connections that are open now.
    pub connections: u64,
}

/// Sends one message.
///
/// # Errors
/// When the other side is gone, or the message is too long.
pub async fn send<M: Serialize>(to: &mut (impl AsyncWrite + Unpin), message: &M) -> io::Result<()> {
    let size = postcard::experimental::serialized_size(message).map_err(io::Error::other)?;
    let length = u32::try_from(size)
        .ok()
        .filter(|bytes| *bytes <= FRAME_BYTES_MAX);
    let length =
        length.ok_or_else(|| io::Error::other(format!("a message of {size} bytes is too long")))?;
    // Of the right size from the start: one that grew would leave copies of credentials where nobody wipes them.
    let mut frame = Zeroizing::new(vec![0; LENGTH_BYTES + size]);
    let (head, body) = frame.split_at_mut(LENGTH_BYTES);
    head.copy_from_slice(&length.to_le_bytes());
    postcard::to_slice(message, body).map_err(io::Error::other)?;
    to.write_all(&frame).await
}

/// Receives one message; none when the other side closed.
///
/// # Errors
/// When the connection breaks inside a message, or it cannot be decoded.
pub async fn receive<M: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<M>> {
    let mut length = [0; LENGTH_BYTES];
    match from.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_le_bytes(length);
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::other(format!(
            "a message of {length} bytes is too long"
        )));
    }
    let mut body = Zeroizing::new(vec![0; length as usize]);
    from.read_exact(&mut body).await?;
    postcard::from_bytes(&body)
        .map(Some)
        .map_err(io::Error::other)
}

/// Sends the descriptors that a responder starts with (SCM_RIGHTS), before any message.
///
/// # Errors
/// When the other side is gone.
pub fn send_descriptors(
    to: &StdUnixStream,
    descriptors: [BorrowedFd<'_>; DESCRIPTORS],
) -> io::Result<()> {
    let raw = descriptors.map(|descriptor| descriptor.as_raw_fd());
    let rights = [ControlMessage::ScmRights(&raw)];
    // Rights travel with at least one byte.
    let byte = [IoSlice::new(&[0])];
    sendmsg::<()>(to.as_raw_fd(), &byte, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives them.
///
/// # Errors
/// When they are not all there.
pub fn receive_descriptors(from: &StdUnixStream) -> io::Result<[OwnedFd; DESCRIPTORS]> {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; DESCRIPTORS]);
    let message = recvmsg::<()>(
        from.as_raw_fd(),
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
    received
        .try_into()
        .map_err(|_| io::Error::other("the daemon did not send its sockets"))
}

#[expect(unsafe_code, reason = "the kernel hands over descriptors as numbers")]
fn own(descriptor: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: it was just received by SCM_RIGHTS, is open, and nobody else in this process knows it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
