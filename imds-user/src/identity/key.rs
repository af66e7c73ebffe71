//! One key: made, kept as text, and what is signed with it.

use std::fmt;

use der::pem::LineEnding;
use rsa::{
    PrivateKey as RsaPrivateKey,
    pkcs1v15::SigningKey as RsaSigningKey,
    pkcs8::{
        DecodePrivateKey, EncodePrivateKey, EncodePublicKey, ObjectIdentifier,
        spki::AlgorithmIdentifierOwned,
    },
    rand_core::TryCryptoRng,
    signature::{DigestSigner, Keypair, RandomizedSigner, SignatureEncoding},
    traits::PublicKeyParts,
};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{
    CryptoError, SignatureKind,
    certificate::{CERTIFICATE_PEM, Certificate},
    parameters::{BITS_1024, BITS_2048, Parameters},
};

/// A key and its certificate.
pub(super) struct Key {
    kind: SignatureKind,
    private: PrivateKey,
    certificate: Certificate,
}

/// The private half. Both crates wipe it from memory when it is dropped.
enum PrivateKey {
    /// Signs by SHA-256.
    Rsa(Box<RsaSigningKey<Sha256>>),
    Dsa(Box<dsa::SigningKey>, Hash),
}

/// A hash, as signatures name it.
#[derive(Clone, Copy)]
pub(super) enum Hash {
    Sha1,
    Sha256,
}

/// What sort of key a kind of signature is made with.
enum Sort {
    Rsa { bits: u32 },
    Dsa(Parameters, Hash),
}

impl SignatureKind {
    fn sort(self) -> Sort {
        match self {
            Self::Rsa2048 => Sort::Rsa { bits: 2048 },
            Self::Signature => Sort::Rsa { bits: 1024 },
            Self::Pkcs7 => Sort::Dsa(BITS_1024, Hash::Sha1),
            Self::Dsa2048 => Sort::Dsa(BITS_2048, Hash::Sha256),
        }
    }

    pub(super) fn hash(self) -> Hash {
        match self.sort() {
            Sort::Rsa { .. } => Hash::Sha256,
            Sort::Dsa(_, hash) => hash,
        }
    }

    /// What signatures and certificates name as the algorithm of a signature. Those of RSA have parameters, which are
    /// nothing (RFC 4055, 5); those of DSA have none (RFC 3370, 3.1; RFC 5758, 3.1).
    pub(super) fn signature_algorithm(self) -> AlgorithmIdentifierOwned {
        let (oid, has_parameters) = match self {
            // sha256WithRSAEncryption
            Self::Rsa2048 | Self::Signature => ("1.2.840.113549.1.1.11", true),
            // id-dsa-with-sha1
            Self::Pkcs7 => ("1.2.840.10040.4.3", false),
            // id-dsa-with-sha256
            Self::Dsa2048 => ("2.16.840.1.101.3.4.3.2", false),
        };
        AlgorithmIdentifierOwned {
            oid: ObjectIdentifier::new_unwrap(oid),
            parameters: has_parameters.then(der::Any::null),
        }
    }
}

impl Hash {
    /// What signatures name as the algorithm of the hash, with parameters that are nothing, as EC2's have it.
    pub(super) fn algorithm(self) -> AlgorithmIdentifierOwned {
        let oid = match self {
            Self::Sha1 => "1.3.14.3.2.26",
            Self::Sha256 => "2.16.840.1.101.3.4.2.1",
        };
        AlgorithmIdentifierOwned {
            oid: ObjectIdentifier::new_unwrap(oid),
            parameters: Some(der::Any::null()),
        }
    }

    pub(super) fn digest(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha1 => Sha1::digest(bytes).to_vec(),
            Self::Sha256 => Sha256::digest(bytes).to_vec(),
        }
    }
}

impl Key {
    /// Makes a key and its certificate.
    pub(super) fn make<R: TryCryptoRng>(
        kind: SignatureKind,
        random: &mut R,
    ) -> Result<Self, CryptoError> {
        let private = PrivateKey::make(&kind.sort(), random)?;
        let public = private.public_der()?;
        let certificate = Certificate::make(kind, &public, |signed| private.sign(signed, random))?;
        Ok(Self {
            kind,
            private,
            certificate,
        })
    }

    /// The key as PKCS#8 and the certificate, both in PEM.
    pub(super) fn to_text(&self) -> Result<Zeroizing<String>, CryptoError> {
        let private = self.private.to_pem()?;
        let certificate = self.certificate.pem();
        // All of its room at once: growing would leave copies behind that nobody wipes.
        let mut text = Zeroizing::new(String::with_capacity(private.len() + certificate.len()));
        text.push_str(&private);
        text.push_str(certificate);
        Ok(text)
    }

    /// Reads what [`Self::to_text`] wrote.
    pub(super) fn from_text(kind: SignatureKind, text: &str) -> Result<Self, CryptoError> {
        let wrong = |cause: &'static str| CryptoError::of("read the key")(cause);
        let end = text
            .find(CERTIFICATE_PEM)
            .ok_or_else(|| wrong("no certificate behind it"))?;
        let (private, certificate) = text.split_at(end);
        let private = PrivateKey::from_pem(&kind.sort(), private)?;
        let certificate = Certificate::from_pem(certificate)?;
        if certificate.public_der()? != private.public_der()? {
            return Err(wrong("the certificate behind it is another key's"));
        }
        Ok(Self {
            kind,
            private,
            certificate,
        })
    }

    pub(super) fn kind(&self) -> SignatureKind {
        self.kind
    }

    pub(super) fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The signature of a message: of RSA a number, of DSA the DER of two.
    pub(super) fn sign<R: TryCryptoRng>(
        &self,
        message: &[u8],
        random: &mut R,
    ) -> Result<Vec<u8>, CryptoError> {
        self.private.sign(message, random)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({}, …)", self.kind)
    }
}

impl PrivateKey {
    fn make<R: TryCryptoRng>(sort: &Sort, random: &mut R) -> Result<Self, CryptoError> {
        match sort {
            Sort::Rsa { bits } => {
                let key = RsaPrivateKey::new(random, *bits as usize)
                    .map_err(CryptoError::of("make an RSA key"))?;
                Ok(Self::Rsa(Box::new(RsaSigningKey::new(key))))
            }
            Sort::Dsa(parameters, hash) => {
                let key = dsa::SigningKey::try_generate_from_rng_with_components(
                    random,
                    parameters.components(),
                )
                .map_err(|error| CryptoError::of("make a DSA key")(error.to_string()))?;
                Ok(Self::Dsa(Box::new(key), *hash))
            }
        }
    }

    fn from_pem(sort: &Sort, pem: &str) -> Result<Self, CryptoError> {
        let failed = |error: rsa::pkcs8::Error| CryptoError::of("read the key")(error);
        let other = || CryptoError::of("read the key")("it is one of another length");
        match sort {
            Sort::Rsa { bits } => {
                let key = RsaPrivateKey::from_pkcs8_pem(pem).map_err(failed)?;
                let is_right = key.n().bit_width() == *bits;
                is_right
                    .then(|| Self::Rsa(Box::new(RsaSigningKey::new(key))))
                    .ok_or_else(other)
            }
            Sort::Dsa(parameters, hash) => {
                let key = dsa::SigningKey::from_pkcs8_pem(pem).map_err(failed)?;
                let is_right = *key.verifying_key().components() == parameters.components();
                is_right
                    .then(|| Self::Dsa(Box::new(key), *hash))
                    .ok_or_else(other)
            }
        }
    }

    fn to_pem(&self) -> Result<Zeroizing<String>, CryptoError> {
        let pem = match self {
            Self::Rsa(key) => key.to_pkcs8_pem(LineEnding::LF),
            Self::Dsa(key, _) => key.to_pkcs8_pem(LineEnding::LF),
        };
        pem.map_err(CryptoError::of("write the key"))
    }

    /// The public half as a SubjectPublicKeyInfo.
    fn public_der(&self) -> Result<Vec<u8>, CryptoError> {
        let public = match self {
            Self::Rsa(key) => key.verifying_key().to_public_key_der(),
            Self::Dsa(key, _) => key.verifying_key().to_public_key_der(),
        };
        let public = public.map_err(CryptoError::of("write the public key"))?;
        Ok(public.into_vec())
    }

    fn sign<R: TryCryptoRng>(
        &self,
        message: &[u8],
        random: &mut R,
    ) -> Result<Vec<u8>, CryptoError> {
        let failed = CryptoError::of("sign");
        match self {
            Self::Rsa(key) => {
                let signature = key.try_sign_with_rng(random, message);
                signature.map(|signature| signature.to_vec())
            }
            Self::Dsa(key, hash) => {
                let signature: Result<dsa::Signature, _> = match hash {
                    Hash::Sha1 => key.try_sign_digest(|state: &mut Sha1| {
                        state.update(message);
                        Ok(())
                    }),
                    Hash::Sha256 => key.try_sign_digest(|state: &mut Sha256| {
                        state.update(message);
                        Ok(())
                    }),
                };
                signature.map(|signature| signature.to_vec())
            }
        }
        .map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use rsa::{
        pkcs1v15,
        pkcs8::DecodePublicKey,
        signature::{DigestVerifier, Verifier},
    };

    use super::*;
    use crate::identity::disk::SystemRandom;

    fn make(kind: SignatureKind) -> Key {
        Key::make(kind, &mut SystemRandom).unwrap()
    }

    /// Verifies with what the certificate says.
    fn is_verified(key: &Key, message: &[u8], signature: &[u8]) -> bool {
        let public = key.certificate().public_der().unwrap();
        match key.kind().sort() {
            Sort::Rsa { .. } => pkcs1v15::VerifyingKey::<Sha256>::from_public_key_der(&public)
                .unwrap()
                .verify(message, &signature.try_into().unwrap())
                .is_ok(),
            Sort::Dsa(_, hash) => {
                let public = dsa::VerifyingKey::from_public_key_der(&public).unwrap();
                let signature = dsa::Signature::try_from(signature).unwrap();
                match hash {
                    Hash::Sha1 => public.verify_digest(
                        |state: &mut Sha1| {
                            state.update(message);
                            Ok(())
                        },
                        &signature,
                    ),
                    Hash::Sha256 => public.verify_digest(
                        |state: &mut Sha256| {
                            state.update(message);
                            Ok(())
                        },
                        &signature,
                    ),
                }
                .is_ok()
            }
        }
    }

    #[test]
    fn a_key_signs_what_its_certificate_verifies() {
        for kind in SignatureKind::ALL {
            let key = make(kind);
            let signature = key.sign(b"document", &mut SystemRandom).unwrap();
            assert!(is_verified(&key, b"document", &signature), "{kind}");
            assert!(!is_verified(&key, b"Document", &signature), "{kind}");
            let again = key.sign(b"document", &mut SystemRandom).unwrap();
            assert_eq!(signature, again, "{kind}");
        }
    }

    #[test]
    fn a_key_comes_back_from_its_text() {
        for kind in SignatureKind::ALL {
            let key = make(kind);
            let text = key.to_text().unwrap();
            let back = Key::from_text(kind, &text).unwrap();
            assert_eq!(*back.to_text().unwrap(), *text, "{kind}");
            assert_eq!(back.certificate().pem(), key.certificate().pem(), "{kind}");
            let signature = back.sign(b"document", &mut SystemRandom).unwrap();
            assert!(is_verified(&key, b"document", &signature), "{kind}");
        }
    }

    #[test]
    fn what_is_not_the_text_of_such_a_key_is_refused() {
        let [key, other] = [(); 2].map(|()| make(SignatureKind::Signature));
        let text = key.to_text().unwrap();
        let end = text.find(CERTIFICATE_PEM).unwrap();
        let check = |kind, text: &str, expected: &str| {
            let error = Key::from_text(kind, text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            // Not a line of it may be told.
            assert!(
                !text
                    .lines()
                    .any(|line| !line.is_empty() && error.contains(line))
            );
        };
        check(SignatureKind::Signature, "", "no certificate");
        check(SignatureKind::Signature, &text[..end], "no certificate");
        check(SignatureKind::Signature, &text[end..], "read the key");
        check(SignatureKind::Signature, &text[1..], "read the key");
        check(
            SignatureKind::Signature,
            &text[..text.len() - 40],
            "read the certificate",
        );
        check(SignatureKind::Rsa2048, &text, "another length");
        check(SignatureKind::Pkcs7, &text, "read the key");
        let mixed = [&text[..end], other.certificate().pem()].concat();
        check(SignatureKind::Signature, &mixed, "another key's");
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", make(SignatureKind::Pkcs7)), "Key(pkcs7, …)");
    }
}
