//! The certificate of a key, signed with the key itself (X.509, RFC 5280).
//!
//! It is all that a verifier gets and must stay as it is for as long as the key: a signature names its signer by the
//! certificate's issuer and number. Nothing in it is particular to an installation but key, number and signature.

use std::time::Duration;

use der::{
    Any, Decode, Document, Encode, Sequence, ValueOrd,
    asn1::{
        BitString, GeneralizedTime, ObjectIdentifier, OctetString, PrintableStringRef, SetOfVec,
        Uint, UtcTime,
    },
    pem::LineEnding,
};
use rsa::pkcs8::spki::AlgorithmIdentifierOwned;
use sha2::{Digest, Sha256};

use super::{CryptoError, SignatureKind};

/// What a certificate begins with in PEM.
pub(super) const CERTIFICATE_PEM: &str = "-----BEGIN CERTIFICATE-----";
const LABEL: &str = "CERTIFICATE";

/// 1 January 2000 and 31 December 2199. A clock of a host or of a guest may be wrong, and nobody renews what a verifier
/// has built in: EC2's certificates too hold for centuries.
const NOT_BEFORE_SECONDS: u64 = 946_684_800;
const NOT_AFTER_SECONDS: u64 = 7_258_118_399;

/// Length of the certificate's number, as most of EC2's have it.
const SERIAL_BYTES: usize = 8;

/// A certificate, and what of it signatures are made with.
pub(super) struct Certificate {
    pem: String,
    to_be_signed: ToBeSigned,
}

#[derive(Sequence)]
struct Signed {
    to_be_signed: ToBeSigned,
    algorithm: AlgorithmIdentifierOwned,
    signature: BitString,
}

#[derive(Sequence)]
struct ToBeSigned {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    version: u8,
    serial: Uint,
    algorithm: AlgorithmIdentifierOwned,
    issuer: Any,
    validity: Validity,
    subject: Any,
    public_key: Any,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT")]
    extensions: Vec<Extension>,
}

/// Times before 2050 have two digits of the year, later ones four (RFC 5280, 4.1.2.5).
#[derive(Sequence)]
struct Validity {
    not_before: UtcTime,
    not_after: GeneralizedTime,
}

#[derive(Sequence)]
struct Extension {
    id: ObjectIdentifier,
    is_critical: bool,
    value: OctetString,
}

#[derive(Sequence, ValueOrd)]
struct NamePart {
    id: ObjectIdentifier,
    value: Any,
}

impl Certificate {
    /// The certificate of a public key; `sign` signs with its private half.
    pub(super) fn make(
        kind: SignatureKind,
        public_der: &[u8],
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, CryptoError>,
    ) -> Result<Self, CryptoError> {
        let failed = |error: der::Error| CryptoError::of("make a certificate")(error);
        let to_be_signed = ToBeSigned::of(kind, public_der).map_err(failed)?;
        let signature = sign(&to_be_signed.to_der().map_err(failed)?)?;
        let signed = Signed {
            algorithm: kind.signature_algorithm(),
            signature: BitString::from_bytes(&signature).map_err(failed)?,
            to_be_signed,
        };
        let pem = Document::encode_msg(&signed)
            .and_then(|document| document.to_pem(LABEL, LineEnding::LF));
        Ok(Self {
            pem: pem.map_err(failed)?,
            to_be_signed: signed.to_be_signed,
        })
    }

    /// Reads a certificate that [`Self::make`] made.
    pub(super) fn from_pem(pem: &str) -> Result<Self, CryptoError> {
        let failed = |error: der::Error| CryptoError::of("read the certificate")(error);
        let (label, document) = Document::from_pem(pem).map_err(failed)?;
        if label != LABEL {
            return Err(CryptoError::of("read the certificate")(format!(
                "it is a {label}"
            )));
        }
        let signed: Signed = document.decode_msg().map_err(failed)?;
        Ok(Self {
            pem: pem.to_owned(),
            to_be_signed: signed.to_be_signed,
        })
    }

    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    pub(super) fn issuer(&self) -> &Any {
        &self.to_be_signed.issuer
    }

    pub(super) fn serial(&self) -> &Uint {
        &self.to_be_signed.serial
    }

    /// The public key, a SubjectPublicKeyInfo.
    pub(super) fn public_der(&self) -> Result<Vec<u8>, CryptoError> {
        let der = self.to_be_signed.public_key.to_der();
        der.map_err(CryptoError::of("read the certificate"))
    }
}

impl ToBeSigned {
    fn of(kind: SignatureKind, public_der: &[u8]) -> der::Result<Self> {
        let name = name(kind)?;
        let validity = Validity {
            not_before: UtcTime::from_unix_duration(Duration::from_secs(NOT_BEFORE_SECONDS))?,
            not_after: GeneralizedTime::from_unix_duration(Duration::from_secs(NOT_AFTER_SECONDS))?,
        };
        Ok(Self {
            // The third version is written as 2.
            version: 2,
            serial: serial(public_der)?,
            algorithm: kind.signature_algorithm(),
            issuer: name.clone(),
            validity,
            subject: name,
            public_key: Any::from_der(public_der)?,
            extensions: vec![Extension::basic_constraints()?],
        })
    }
}

impl Extension {
    /// basicConstraints: its own issuer (RFC 5280, 4.2.1.9), as in EC2's RSA certificates.
    fn basic_constraints() -> der::Result<Self> {
        let is_authority = Vec::from([true]).to_der()?;
        Ok(Self {
            id: ObjectIdentifier::new_unwrap("2.5.29.19"),
            is_critical: true,
            value: OctetString::new(is_authority)?,
        })
    }
}

/// Issuer and subject. The first three lines are those of EC2's certificates; the organisation is not Amazon.
fn name(kind: SignatureKind) -> der::Result<Any> {
    let parts = [
        ("2.5.4.6", "US"),
        ("2.5.4.8", "Washington State"),
        ("2.5.4.7", "Seattle"),
        ("2.5.4.10", "imds"),
        ("2.5.4.3", kind.name()),
    ];
    let part = |(id, value)| {
        SetOfVec::try_from([NamePart {
            id: ObjectIdentifier::new_unwrap(id),
            value: Any::encode_from(&PrintableStringRef::new(value)?)?,
        }])
    };
    let parts: der::Result<Vec<_>> = parts.into_iter().map(part).collect();
    Any::encode_from(&parts?)
}

/// A number that no other key's certificate has: of the key's digest, positive and without a leading zero.
fn serial(public_der: &[u8]) -> der::Result<Uint> {
    let mut digest = Sha256::digest(public_der);
    digest[0] = digest[0] & 0x7f | 0x40;
    Uint::new(&digest[..SERIAL_BYTES])
}
