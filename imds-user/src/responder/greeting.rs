//! The first words between a running responder and a daemon that finds it. They stay as they are for ever: whichever
//! versions meet, the daemon learns what it has found, gets the listening sockets, and can end it without a lost request.
//!
//! The responder greets with [`Greeting`], the listening sockets beside it. The daemon gives [`Order`]s. After
//! [`Order::Attach`], which only a daemon of the same build gives, both speak [`super::protocol`]. The others are answered
//! with a [`Tally`]. Numbers are little endian.

use std::{
    fs, io,
    net::TcpListener,
    os::{fd::AsFd, unix::fs::MetadataExt},
};

use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest},
    net::UnixStream,
};

use super::{protocol::Counters, rights};

/// The magic word, the build, whether it drains, and the version padded with zeros.
const GREETING_BYTES: usize = 8 + BUILD_BYTES + 1 + VERSION_BYTES;
const MAGIC: &[u8; 8] = b"imdsresp";
const BUILD_BYTES: usize = 16;
const VERSION_BYTES: usize = 39;

const ATTACH: u32 = 1;
const COUNT: u32 = 2;
const DRAIN: u32 = 3;

/// Bounds of what is believed: every instance that a host can have, and more counters than any version has.
const TALLY_ENTRIES_MAX: u32 = 1 << 16;
const TALLY_WORDS_MAX: u32 = 64;

/// The file that a process was started from. A responder speaks the language of that file's messages and no other, so a
/// daemon of another file does not try to understand it, even if it was built from the same sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Build([u8; BUILD_BYTES]);

impl Build {
    /// Of the calling process.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn own() -> io::Result<Self> {
        // The inode is in use as long as a process runs from it, so no other file can have its number meanwhile.
        let file = fs::metadata("/proc/self/exe")?;
        let text = format!(
            "{} {}:{} {} {}.{}",
            env!("CARGO_PKG_VERSION"),
            file.dev(),
            file.ino(),
            file.size(),
            file.mtime(),
            file.mtime_nsec()
        );
        let mut build = [0; BUILD_BYTES];
        build.copy_from_slice(&Sha256::digest(text)[..BUILD_BYTES]);
        Ok(Self(build))
    }
}

/// What a responder says to whoever is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// What it runs.
    pub build: Build,
    /// Whether it accepts no connection any more, and will end by itself.
    pub drains: bool,
    /// What people call what it runs.
    pub version: String,
}

impl Greeting {
    /// Of the calling process.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn own() -> io::Result<Self> {
        Ok(Self {
            build: Build::own()?,
            drains: false,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    fn to_bytes(&self) -> [u8; GREETING_BYTES] {
        let mut bytes = [0; GREETING_BYTES];
        let (magic, rest) = bytes.split_at_mut(MAGIC.len());
        let (build, rest) = rest.split_at_mut(BUILD_BYTES);
        let (drains, version) = rest.split_at_mut(1);
        magic.copy_from_slice(MAGIC);
        build.copy_from_slice(&self.build.0);
        drains[0] = self.drains.into();
        for (byte, of_text) in version.iter_mut().zip(self.version.bytes()) {
            *byte = of_text;
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; GREETING_BYTES]) -> Option<Self> {
        let (build, rest) = bytes
            .strip_prefix(MAGIC)?
            .split_first_chunk::<BUILD_BYTES>()?;
        let (drains, version) = rest.split_first()?;
        let version = String::from_utf8_lossy(version);
        Some(Self {
            build: Build(*build),
            drains: *drains != 0,
            version: version.trim_end_matches('\0').to_owned(),
        })
    }

    /// Greets a daemon, and hands it the listening sockets.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub fn send(&self, to: &UnixStream, [v4, v6]: &[TcpListener; 2]) -> io::Result<()> {
        rights::send(to, &self.to_bytes(), [v4.as_fd(), v6.as_fd()])
    }

    /// Waits for a responder's greeting.
    ///
    /// # Errors
    /// When the responder is gone, or is none.
    pub async fn receive(from: &UnixStream) -> io::Result<(Self, [TcpListener; 2])> {
        let mut bytes = [0; GREETING_BYTES];
        let sockets = from
            .async_io(Interest::READABLE, || rights::receive(from, &mut bytes))
            .await?;
        let greeting = Self::from_bytes(&bytes).ok_or_else(|| io::Error::other("no greeting"))?;
        Ok((greeting, sockets.map(TcpListener::from)))
    }
}

/// What a daemon wants of a responder that it has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// From now on, do what I say.
    Attach,
    /// Say what you have counted.
    Count,
    /// Accept no connection any more, and say what you have counted; finish the connections there are, within this time; then
    /// say again what you have counted, and end.
    Drain {
        /// What is open after that is cut.
        seconds: u32,
    },
}

impl Order {
    fn to_bytes(self) -> [u8; 8] {
        let (verb, argument) = match self {
            Self::Attach => (ATTACH, 0),
            Self::Count => (COUNT, 0),
            Self::Drain { seconds } => (DRAIN, seconds),
        };
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&verb.to_le_bytes());
        bytes[4..].copy_from_slice(&argument.to_le_bytes());
        bytes
    }

    fn from_bytes([a, b, c, d, argument @ ..]: [u8; 8]) -> Option<Self> {
        match u32::from_le_bytes([a, b, c, d]) {
            ATTACH => Some(Self::Attach),
            COUNT => Some(Self::Count),
            DRAIN => Some(Self::Drain {
                seconds: u32::from_le_bytes(argument),
            }),
            _ => None,
        }
    }

    /// Gives it.
    ///
    /// # Errors
    /// When the responder is gone.
    pub async fn send(self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        to.write_all(&self.to_bytes()).await
    }

    /// Waits for one; none when the daemon left.
    ///
    /// # Errors
    /// When the line breaks inside an order, or it is none that is known.
    pub async fn receive(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let mut bytes = [0; 8];
        match from.read_exact(&mut bytes).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        Self::from_bytes(bytes)
            .map(Some)
            .ok_or_else(|| io::Error::other("an order of a later version"))
    }
}

/// What was counted, by slot: the number of entries and of words in each (32 bit), then for each entry the slot (32 bit) and
/// the words (64 bit). A later version may have more words, behind those that are known now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(pub Vec<(u32, Counters)>);

impl Tally {
    fn to_bytes(&self) -> Vec<u8> {
        const WORDS: u32 = Counters::WORDS as u32;
        let mut bytes = Vec::with_capacity(8 + self.0.len() * (4 + 8 * Counters::WORDS));
        // There are fewer slots than 32 bits can count.
        bytes.extend((self.0.len() as u32).to_le_bytes());
        bytes.extend(WORDS.to_le_bytes());
        for (slot, counters) in &self.0 {
            bytes.extend(slot.to_le_bytes());
            bytes.extend(counters.to_words().into_iter().flat_map(u64::to_le_bytes));
        }
        bytes
    }

    /// Sends it.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub async fn send(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        to.write_all(&self.to_bytes()).await
    }

    /// Waits for one.
    ///
    /// # Errors
    /// When the responder is gone, or says more than there can be.
    pub async fn receive(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let entries = from.read_u32_le().await?;
        let words = from.read_u32_le().await?;
        if entries > TALLY_ENTRIES_MAX || words > TALLY_WORDS_MAX {
            return Err(io::Error::other(format!(
                "a tally of {entries} times {words} counters"
            )));
        }
        let mut tally = Vec::new();
        for _ in 0..entries {
            let slot = from.read_u32_le().await?;
            let mut counted = Vec::new();
            for _ in 0..words {
                counted.push(from.read_u64_le().await?);
            }
            tally.push((slot, Counters::from_words(&counted)));
        }
        Ok(Self(tally))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(requests: u64) -> Counters {
        Counters {
            requests,
            tokens_issued: 2,
            no_token: 3,
            no_token_rejected: 4,
            throttled: 5,
            connections: 0,
        }
    }

    /// A daemon of any other version must read these bytes as they are.
    #[test]
    fn the_first_words_are_these_bytes_for_ever() {
        let greeting = Greeting {
            build: Build(*b"0123456789abcdef"),
            drains: true,
            version: "1.2.3".into(),
        };
        let mut expected = b"imdsresp0123456789abcdef\x011.2.3".to_vec();
        expected.resize(64, 0);
        assert_eq!(greeting.to_bytes().as_slice(), expected);
        for (order, expected) in [
            (Order::Attach, [1, 0, 0, 0, 0, 0, 0, 0]),
            (Order::Count, [2, 0, 0, 0, 0, 0, 0, 0]),
            (Order::Drain { seconds: 20 }, [3, 0, 0, 0, 20, 0, 0, 0]),
        ] {
            assert_eq!(order.to_bytes(), expected, "{order:?}");
            assert_eq!(Order::from_bytes(expected), Some(order));
        }
        let mut tally = vec![1, 0, 0, 0, 5, 0, 0, 0, 7, 0, 0, 0];
        for word in 1..=5_u8 {
            tally.extend([word, 0, 0, 0, 0, 0, 0, 0]);
        }
        assert_eq!(Tally(vec![(7, counters(1))]).to_bytes(), tally);
    }

    #[test]
    fn what_is_no_greeting_and_no_order_is_refused() {
        let greeting = Greeting {
            build: Build([7; 16]),
            drains: false,
            version: "9".into(),
        };
        let mut bytes = greeting.to_bytes();
        assert_eq!(Greeting::from_bytes(&bytes), Some(greeting));
        bytes[0] = b'x';
        assert_eq!(Greeting::from_bytes(&bytes), None);
        assert_eq!(Order::from_bytes([0; 8]), None);
        assert_eq!(Order::from_bytes([9, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    fn received(bytes: &[u8]) -> io::Result<Tally> {
        let mut bytes = bytes;
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(Tally::receive(&mut bytes))
    }

    #[test]
    fn a_tally_of_a_later_version_is_understood_as_far_as_it_is_known() {
        let tally = Tally(vec![(1, counters(10)), (2, counters(20))]);
        assert_eq!(received(&tally.to_bytes()).unwrap(), tally);
        let mut later = vec![1, 0, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0];
        for word in 1..=6_u8 {
            later.extend([word, 0, 0, 0, 0, 0, 0, 0]);
        }
        assert_eq!(received(&later).unwrap(), Tally(vec![(7, counters(1))]));
        let mut earlier = vec![1, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0];
        earlier.extend([9, 0, 0, 0, 0, 0, 0, 0]);
        let requests = Counters {
            requests: 9,
            ..Counters::default()
        };
        assert_eq!(received(&earlier).unwrap(), Tally(vec![(7, requests)]));
    }

    #[test]
    fn a_tally_has_bounds() {
        for bytes in [
            &[0xff; 8][..],
            &[1, 0, 0, 0, 65, 0, 0, 0],
            &[1, 0, 0, 0, 5, 0],
        ] {
            assert!(received(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_build_is_the_same_for_the_same_file() {
        assert_eq!(Build::own().unwrap(), Build::own().unwrap());
    }
}
