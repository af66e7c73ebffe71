//! The signatures of the instance identity document: what makes `dynamic/instance-identity/` worth believing.
//!
//! On EC2 Amazon signs the document in four ways, and whoever verifies one has Amazon's certificate for it. Here the
//! installation signs, with keys of its own, in the same four ways and to the byte the same form; a verifier that was
//! written for EC2 needs nothing but the installation's certificate in place of Amazon's (`imds identity certificate`).
//! Obeys the EC2 User Guide, "Verify the instance identity document for an Amazon EC2 instance", and where that is silent
//! the layout of signatures of real instances that were published (2016 and 2021).
//!
//! The daemon alone holds keys: the responder, which reads what guests send, gets finished [`Signatures`] and asks for
//! them by slot, so that nothing but a document that the daemon rendered itself is ever signed. Everything here is pure
//! (randomness and time are arguments) but [`disk`], where keys are kept, and [`signer`], the thread that uses them.

mod certificate;
mod cms;
pub mod disk;
mod key;
mod parameters;
pub mod signer;

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use rsa::rand_core::TryCryptoRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::instance::UnixSeconds;
use key::Key;

/// The ways in which the document is signed, named as their leaves are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignatureKind {
    /// The document and a signature of it in a PKCS#7 SignedData: SHA-256, RSA with 2048 bits.
    Rsa2048,
    /// The same by SHA-1 and DSA with 1024 bits: the oldest way.
    Pkcs7,
    /// The bare signature: SHA-256, RSA with 1024 bits.
    Signature,
    /// As [`Self::Pkcs7`] by SHA-256 and DSA with 2048 bits. EC2's guide lists the leaf and does not describe it: hash and
    /// layout are taken to be those of its contemporary [`Self::Rsa2048`].
    Dsa2048,
}

impl SignatureKind {
    /// All of them, in the order of [`Signatures`].
    pub const ALL: [Self; 4] = [Self::Rsa2048, Self::Pkcs7, Self::Signature, Self::Dsa2048];

    /// Its name in `dynamic/instance-identity/`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rsa2048 => "rsa2048",
            Self::Pkcs7 => "pkcs7",
            Self::Signature => "signature",
            Self::Dsa2048 => "dsa2048",
        }
    }

    /// Hash and key, for people.
    #[must_use]
    pub const fn algorithms(self) -> &'static str {
        match self {
            Self::Rsa2048 => "SHA-256 and RSA, 2048 bits",
            Self::Pkcs7 => "SHA-1 and DSA, 1024 bits",
            Self::Signature => "SHA-256 and RSA, 1024 bits",
            Self::Dsa2048 => "SHA-256 and DSA, 2048 bits",
        }
    }

    fn place(self) -> usize {
        self as usize
    }
}

impl fmt::Display for SignatureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The four signatures of one document, as they are served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signatures {
    document: [u8; 32],
    bodies: [Bytes; 4],
}

impl Signatures {
    /// Whether they are of this document. Instance and host may have changed since they were asked for.
    #[must_use]
    pub fn are_of(&self, document: &[u8]) -> bool {
        self.document == digest(document)
    }

    /// What the leaf of this kind serves.
    #[must_use]
    pub fn body(&self, kind: SignatureKind) -> &Bytes {
        &self.bodies[kind.place()]
    }
}

fn digest(document: &[u8]) -> [u8; 32] {
    Sha256::digest(document).into()
}

/// A step of making a key, a certificate or a signature that did not work.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct CryptoError {
    what: &'static str,
    cause: Box<dyn std::error::Error + Send + Sync>,
}

impl CryptoError {
    fn of<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        what: &'static str,
    ) -> impl FnOnce(E) -> Self {
        move |cause| Self {
            what,
            cause: cause.into(),
        }
    }
}

/// The keys of an installation, one for each [`SignatureKind`]. `Debug` shows none.
#[derive(Debug)]
pub struct Keys([Key; 4]);

impl Keys {
    /// The certificate of a key, in PEM: all that a verifier needs.
    #[must_use]
    pub fn certificate(&self, kind: SignatureKind) -> &str {
        self.0[kind.place()].certificate().pem()
    }

    /// Signs `document` in every way. Only the time goes into the signatures besides: the same document signed twice in one
    /// second is signed the same, by RSA as PKCS #1 v1.5 has it and by DSA with the secret numbers of RFC 6979.
    ///
    /// # Errors
    /// When there is no randomness (RSA is blinded with it).
    pub fn sign<R: TryCryptoRng>(
        &self,
        document: &[u8],
        at: UnixSeconds,
        random: &mut R,
    ) -> Result<Signatures, CryptoError> {
        let mut bodies = [const { Bytes::new() }; 4];
        for key in &self.0 {
            let signature = match key.kind() {
                SignatureKind::Signature => key.sign(document, random)?,
                SignatureKind::Rsa2048 | SignatureKind::Pkcs7 | SignatureKind::Dsa2048 => {
                    cms::signed_data(document, key, at, random)?
                }
            };
            bodies[key.kind().place()] = Bytes::from(lines(&signature));
        }
        Ok(Signatures {
            document: digest(document),
            bodies,
        })
    }
}

/// Base64 in lines of 76 characters, as MIME has it, without an end of the last one.
fn lines(bytes: &[u8]) -> String {
    const LINE_BYTES: usize = 57;
    let lines: Vec<String> = bytes
        .chunks(LINE_BYTES)
        .map(|line| STANDARD.encode(line))
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_76_characters_and_the_last_no_end() {
        let check = |bytes: usize, expected: &[usize]| {
            let text = lines(&vec![0xff; bytes]);
            let lengths: Vec<usize> = text.split('\n').map(str::len).collect();
            assert_eq!(lengths, expected, "{bytes} bytes");
        };
        check(0, &[0]);
        check(1, &[4]);
        check(57, &[76]);
        check(58, &[76, 4]);
        check(114, &[76, 76]);
        // A signature by RSA with 1024 bits.
        check(128, &[76, 76, 20]);
    }

    #[test]
    fn kinds_stand_at_their_places() {
        for (place, kind) in SignatureKind::ALL.into_iter().enumerate() {
            assert_eq!(kind.place(), place);
        }
    }

    #[test]
    fn signatures_know_their_document_and_outlive_the_way_to_the_responder() {
        let keys =
            Keys(SignatureKind::ALL.map(|kind| Key::make(kind, &mut disk::SystemRandom).unwrap()));
        let sign = |document: &[u8], at| {
            let at = UnixSeconds(at);
            keys.sign(document, at, &mut disk::SystemRandom).unwrap()
        };
        let signatures = sign(b"{}", 1_700_000_000);
        assert!(signatures.are_of(b"{}") && !signatures.are_of(b"{ }"));
        assert_eq!(sign(b"{}", 1_700_000_000), signatures);
        assert_ne!(sign(b"{}", 1_700_000_001), signatures);
        let sent = postcard::to_stdvec(&signatures).unwrap();
        assert_eq!(postcard::from_bytes(&sent), Ok(signatures));
    }
}
