//! Where keys are kept: a file for each in `STATE_DIR/identity`, PKCS#8 and the certificate in PEM, for root alone.
//!
//! Files come into being whole, so that anyone may read them at any time; only who holds the state directory's lock makes
//! them. A certificate is in one file with its key for the same reason: one never is another key's.

use std::{
    fs::{DirBuilder, read},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use rsa::rand_core::{TryCryptoRng, TryRng};
use zeroize::Zeroizing;

use super::{CryptoError, Keys, SignatureKind, key::Key};
use crate::state::{StateDir, StateError, read_or_make};

/// Keys that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file system refused.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file does not hold what it should.
    #[error("{} is damaged ({cause}): restore it, or remove it to have a new key made (verifiers need its certificate then)", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        cause: CryptoError,
    },
}

impl Keys {
    /// The keys of an installation. Those that are not there are made.
    ///
    /// # Errors
    /// When a file cannot be read, written or understood.
    pub fn load_or_make(state: &StateDir) -> Result<Self, IdentityError> {
        Self::load_or_make_in(&state.identity())
    }

    /// As [`Self::load_or_make`], for who holds the lock elsewhere.
    pub(super) fn load_or_make_in(directory: &Path) -> Result<Self, IdentityError> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory);
        made.map_err(|cause| StateError::Io {
            what: "make the directory",
            path: directory.to_owned(),
            cause,
        })?;
        let load = |kind| {
            let path = file_of(directory, kind);
            let text = read_or_make(&path, || make(kind))?;
            parse(path, kind, text)
        };
        let [a, b, c, d] = SignatureKind::ALL;
        Ok(Self([load(a)?, load(b)?, load(c)?, load(d)?]))
    }

    /// The keys of an installation; none when not all of them were made yet.
    ///
    /// # Errors
    /// When a file cannot be read or understood.
    pub fn load(directory: &Path) -> Result<Option<Self>, IdentityError> {
        let load = |kind| {
            let path = file_of(directory, kind);
            match read(&path) {
                Ok(text) => parse(path, kind, text).map(Some),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(cause) => Err(StateError::Io {
                    what: "read",
                    path,
                    cause,
                }
                .into()),
            }
        };
        let mut keys = Vec::new();
        for kind in SignatureKind::ALL {
            let Some(key) = load(kind)? else {
                return Ok(None);
            };
            keys.push(key);
        }
        Ok(keys.try_into().ok().map(Self))
    }
}

fn file_of(directory: &Path, kind: SignatureKind) -> PathBuf {
    directory.join(kind.name()).with_extension("key")
}

fn make(kind: SignatureKind) -> io::Result<Vec<u8>> {
    let text = Key::make(kind, &mut SystemRandom).and_then(|key| key.to_text());
    text.map(|text| text.as_bytes().to_vec())
        .map_err(io::Error::other)
}

fn parse(path: PathBuf, kind: SignatureKind, text: Vec<u8>) -> Result<Key, IdentityError> {
    let text = Zeroizing::new(text);
    let key = std::str::from_utf8(&text)
        .map_err(CryptoError::of("read the key"))
        .and_then(|text| Key::from_text(kind, text));
    key.map_err(|cause| IdentityError::Damaged { path, cause })
}

/// The kernel's randomness.
pub(super) struct SystemRandom;

impl TryRng for SystemRandom {
    type Error = io::Error;

    fn try_next_u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_ne_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        getrandom::fill(bytes).map_err(|error| io::Error::other(error.to_string()))
    }
}

impl TryCryptoRng for SystemRandom {}
