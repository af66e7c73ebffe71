//! What the daemon and the responder say to each other over their Unix socket: frames of a length (32 bit, little
//! endian) and a postcard message. Both ends are the same binary ([`super::greeting`] sees to that), so there is no version
//! to negotiate.
//!
//! Frames hold credentials and keys, so their buffers are wiped. The kernel's, between the two ends, cannot be.

use std::{fmt, io, sync::Arc};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

use crate::{
    identity::Signatures,
    instance::{Host, InstanceId, Published, UnixSeconds},
};

/// A frame's bound: a chunk of instances, each with the largest user data that there is, stays below it.
const FRAME_BYTES_MAX: u32 = 64 << 20;
/// What a frame begins with.
const LENGTH_BYTES: usize = size_of::<u32>();
/// Instances in one [`ToResponder::Upsert`], so that neither side holds all of them encoded at once.
pub const CHUNK_INSTANCES: usize = 256;

/// What a responder is started with, and cannot be told anew: a daemon that wants one of these otherwise starts another
/// responder.
#[derive(Serialize, Deserialize)]
pub struct Hello {
    /// The key that tokens are minted with. Lives as long as the installation.
    pub token_key: Zeroizing<[u8; 32]>,
    /// Threads that serve.
    pub workers: u16,
}

/// From the daemon.
#[derive(Serialize, Deserialize)]
pub enum ToResponder {
    /// What all instances share.
    Host(Host),
    /// New instances and new states of known ones, by slot. Each state is seen whole by the next request.
    Upsert(Vec<(u32, Arc<Published>)>),
    /// These are gone: their connections are closed.
    Remove(Vec<u32>),
    /// What other responders counted for these; counted on from there.
    Add(Vec<(u32, Counters)>),
    /// When everything before is in force, say [`FromResponder::Applied`] with this number.
    Apply(u64),
    /// Answer with [`FromResponder::Counters`].
    Count,
    /// Answer with [`FromResponder::Changed`].
    CountChanged,
    /// When every worker has given a sign of life, say [`FromResponder::Alive`] with this number.
    Ping(u64),
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
    /// First: what there is already.
    Attached(Attached),
    /// Everything before [`ToResponder::Apply`] of this number is in force.
    Applied(u64),
    /// What was counted for all.
    Counters(Vec<Counted>),
    /// What was counted for those of whom something was, since this was last said on this line.
    Changed(Vec<Counted>),
    /// What was counted, at last, for those that were removed. Said before the [`FromResponder::Applied`] that tells of it.
    Gone(Vec<Counted>),
    /// Every worker has given a sign of life since [`ToResponder::Ping`] of this number.
    Alive(u64),
    /// Sign the identity document of this slot, whatever it is: no more than its number is taken from a process that guests
    /// may have broken into. Answered by [`ToResponder::Signed`].
    Sign(u32),
}

/// What a responder was told by earlier daemons.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Attached {
    /// Of its [`Hello`].
    pub hello: Digest,
    /// Of what all instances share, if it was told.
    pub host: Option<Digest>,
    /// What it serves.
    pub instances: Vec<Known>,
}

/// An instance that a responder serves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Known {
    /// Its slot.
    pub slot: u32,
    /// Who it is.
    pub id: InstanceId,
    /// Since when this state is in force.
    pub at: UnixSeconds,
    /// Of the state, but for when it was made known ([`digest_of_state`]).
    pub state: Digest,
    /// What was counted for it.
    pub counters: Counters,
}

/// What was counted for an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Its slot.
    pub slot: u32,
    /// Who it is: by the time that this is heard, the slot may be another's.
    pub id: InstanceId,
    /// All that was ever counted for it in this slot.
    pub counters: Counters,
}

/// Stands for what may be too long, or too secret, to be said.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest([u8; 16]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self([first, second, ..]) = self;
        write!(f, "Digest({first:02x}{second:02x}…)")
    }
}

/// The digest of a part of a message.
///
/// # Errors
/// When it cannot be encoded, and so could not be sent either.
pub fn digest(part: &impl Serialize) -> io::Result<Digest> {
    let encoded = encode(part, 0)?;
    let mut digest = [0; 16];
    let length = digest.len();
    digest.copy_from_slice(&Sha256::digest(&*encoded)[..length]);
    Ok(Digest(digest))
}

/// The digest of what a guest can see of its instance, whenever that was made known.
///
/// # Errors
/// As [`digest`].
pub fn digest_of_state(state: &Published) -> io::Result<Digest> {
    let Published {
        at: _,
        limits,
        instance,
    } = state;
    digest(&(limits, instance))
}

/// What is counted for one instance.
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

impl Counters {
    /// How many of them only ever grow.
    pub const WORDS: usize = 5;

    /// Those that only ever grow, in an order that stays: a new one comes last.
    #[must_use]
    pub fn to_words(self) -> [u64; Self::WORDS] {
        let Self {
            requests,
            tokens_issued,
            no_token,
            no_token_rejected,
            throttled,
            connections: _,
        } = self;
        [
            requests,
            tokens_issued,
            no_token,
            no_token_rejected,
            throttled,
        ]
    }

    /// From these; those that are missing are 0.
    #[must_use]
    pub fn from_words(words: &[u64]) -> Self {
        let word = |index| words.get(index).copied().unwrap_or_default();
        Self {
            requests: word(0),
            tokens_issued: word(1),
            no_token: word(2),
            no_token_rejected: word(3),
            throttled: word(4),
            connections: 0,
        }
    }

    /// This and what was counted elsewhere. What is open stays as it is here.
    #[must_use]
    pub fn plus(self, more: Self) -> Self {
        let (mut words, more) = (self.to_words(), more.to_words());
        for (word, more) in words.iter_mut().zip(more) {
            *word += more;
        }
        Self {
            connections: self.connections,
            ..Self::from_words(&words)
        }
    }

    /// What was counted since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        let (mut words, before) = (self.to_words(), before.to_words());
        for (word, before) in words.iter_mut().zip(before) {
            *word = word.saturating_sub(before);
        }
        Self::from_words(&words)
    }
}

/// Sends one message.
///
/// # Errors
/// When the other side is gone, or the message is too long.
pub async fn send<M: Serialize>(to: &mut (impl AsyncWrite + Unpin), message: &M) -> io::Result<()> {
    let mut frame = encode(message, LENGTH_BYTES)?;
    let size = frame.len() - LENGTH_BYTES;
    let length = u32::try_from(size)
        .ok()
        .filter(|bytes| *bytes <= FRAME_BYTES_MAX);
    let length =
        length.ok_or_else(|| io::Error::other(format!("a message of {size} bytes is too long")))?;
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    to.write_all(&frame).await
}

/// Encodes a message behind room for so many bytes. Of the right size from the start: a buffer that grew would leave copies
/// of credentials where nobody wipes them.
fn encode(message: &impl Serialize, room_bytes: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let size = postcard::experimental::serialized_size(message).map_err(io::Error::other)?;
    let mut encoded = Zeroizing::new(vec![0; room_bytes + size]);
    postcard::to_slice(message, &mut encoded[room_bytes..]).map_err(io::Error::other)?;
    Ok(encoded)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_their_words() {
        let counters = Counters::from_words(&[1, 2, 3, 4, 5]);
        assert_eq!(counters.to_words(), [1, 2, 3, 4, 5]);
        let later = Counters::from_words(&[2, 4, 6, 8, 4]);
        assert_eq!(later.since(counters).to_words(), [1, 2, 3, 4, 0]);
        assert_eq!(Counters::from_words(&[7, 8]).to_words(), [7, 8, 0, 0, 0]);
    }

    #[test]
    fn a_digest_tells_what_differs_and_nothing_else() {
        let of = |text: &str| digest(&text).unwrap();
        assert_eq!(of("one"), of("one"));
        assert_ne!(of("one"), of("two"));
        assert!(format!("{:?}", of("one")).len() < 20);
    }
}
