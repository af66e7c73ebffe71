//! The document in a PKCS#7 SignedData (RFC 2315, which RFC 5652 calls CMS), laid out as EC2 lays it out: outside in BER of
//! indefinite length, as a program writes that does not know yet how long the content is; the signer's part in DER.

use std::time::Duration;

use der::{
    Any, Decode, Encode, Sequence, ValueOrd,
    asn1::{GeneralizedTime, ObjectIdentifier, OctetString, SetOfVec, Uint, UtcTime},
};
use rsa::{pkcs8::spki::AlgorithmIdentifierOwned, rand_core::TryCryptoRng};

use super::{
    CryptoError, SignatureKind,
    certificate::Certificate,
    key::{Hash, Key},
};
use crate::instance::UnixSeconds;

const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const CONTENT_TYPE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.3");
const MESSAGE_DIGEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");
const SIGNING_TIME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.5");
/// RFC 6211: names the algorithms among what is signed.
const ALGORITHM_PROTECTION: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.52");

/// The content is written in pieces of this many bytes, as the library does whose layout EC2's signatures have.
const PIECE_BYTES: usize = 1000;

/// `document`, signed with `key`.
pub(super) fn signed_data<R: TryCryptoRng>(
    document: &[u8],
    key: &Key,
    at: UnixSeconds,
    random: &mut R,
) -> Result<Vec<u8>, CryptoError> {
    let failed = |error: der::Error| CryptoError::of("lay out a signature")(error);
    let form = Form::of(key.kind());
    let attributes = form.attributes(document, at).map_err(failed)?;
    let signature = key.sign(&attributes.to_der().map_err(failed)?, random)?;
    let signer = form
        .signer_info(key.certificate(), attributes, &signature)
        .map_err(failed)?;
    form.envelop(document, &signer).map_err(failed)
}

/// What of the layout depends on the kind of signature.
struct Form {
    hash: Hash,
    signature_algorithm: AlgorithmIdentifierOwned,
    /// The older of EC2's signers does not name the algorithms among what is signed.
    protects_algorithms: bool,
}

#[derive(Sequence)]
struct SignerInfo {
    version: u8,
    certificate: IssuerAndSerial,
    hash_algorithm: AlgorithmIdentifierOwned,
    #[asn1(context_specific = "0", tag_mode = "IMPLICIT", constructed = "true")]
    attributes: SetOfVec<Attribute>,
    signature_algorithm: AlgorithmIdentifierOwned,
    signature: OctetString,
}

#[derive(Sequence)]
struct IssuerAndSerial {
    issuer: Any,
    serial: Uint,
}

#[derive(Sequence, ValueOrd)]
struct Attribute {
    id: ObjectIdentifier,
    values: SetOfVec<Any>,
}

#[derive(Sequence)]
struct AlgorithmProtection {
    hash_algorithm: AlgorithmIdentifierOwned,
    #[asn1(context_specific = "1", tag_mode = "IMPLICIT", constructed = "true")]
    signature_algorithm: AlgorithmIdentifierOwned,
}

impl Form {
    fn of(kind: SignatureKind) -> Self {
        Self {
            hash: kind.hash(),
            signature_algorithm: kind.signature_algorithm(),
            protects_algorithms: matches!(kind, SignatureKind::Rsa2048 | SignatureKind::Dsa2048),
        }
    }

    /// What is signed: type and digest of the content, and when. The set sorts itself.
    fn attributes(&self, document: &[u8], at: UnixSeconds) -> der::Result<SetOfVec<Attribute>> {
        let digest = OctetString::new(self.hash.digest(document))?;
        let mut attributes = vec![
            Attribute::of(CONTENT_TYPE, &DATA)?,
            Attribute::signing_time(at)?,
            Attribute::of(MESSAGE_DIGEST, &digest)?,
        ];
        if self.protects_algorithms {
            let protection = AlgorithmProtection {
                hash_algorithm: self.hash.algorithm(),
                signature_algorithm: self.signature_algorithm.clone(),
            };
            attributes.push(Attribute::of(ALGORITHM_PROTECTION, &protection)?);
        }
        SetOfVec::try_from(attributes)
    }

    fn signer_info(
        &self,
        certificate: &Certificate,
        attributes: SetOfVec<Attribute>,
        signature: &[u8],
    ) -> der::Result<Vec<u8>> {
        let signer = SignerInfo {
            version: 1,
            certificate: IssuerAndSerial {
                issuer: certificate.issuer().clone(),
                serial: certificate.serial().clone(),
            },
            hash_algorithm: self.hash.algorithm(),
            attributes,
            signature_algorithm: self.signature_algorithm.clone(),
            signature: OctetString::new(signature)?,
        };
        signer.to_der()
    }

    /// Puts the document and its signer into the outer layers. No certificate is in it, as in EC2's.
    fn envelop(&self, document: &[u8], signer: &[u8]) -> der::Result<Vec<u8>> {
        let hashes = SetOfVec::try_from([self.hash.algorithm()])?;
        let signers = SetOfVec::try_from([Any::from_der(signer)?])?;
        let mut out = Vec::with_capacity(document.len() + signer.len() + 128);
        out.extend(SEQUENCE_OPEN);
        out.extend(SIGNED_DATA.to_der()?);
        out.extend(CONTENT_OPEN);
        out.extend(SEQUENCE_OPEN);
        out.extend(1u8.to_der()?);
        out.extend(hashes.to_der()?);
        out.extend(SEQUENCE_OPEN);
        out.extend(DATA.to_der()?);
        out.extend(CONTENT_OPEN);
        out.extend(OCTETS_OPEN);
        for piece in document.chunks(PIECE_BYTES) {
            out.extend(OctetString::new(piece)?.to_der()?);
        }
        out.extend([CLOSE; 3].as_flattened());
        out.extend(signers.to_der()?);
        out.extend([CLOSE; 3].as_flattened());
        Ok(out)
    }
}

/// Beginnings of indefinite length: a sequence, a `[0]`, an octet string in pieces; and the end of any of them.
const SEQUENCE_OPEN: [u8; 2] = [0x30, 0x80];
const CONTENT_OPEN: [u8; 2] = [0xa0, 0x80];
const OCTETS_OPEN: [u8; 2] = [0x24, 0x80];
const CLOSE: [u8; 2] = [0, 0];

impl Attribute {
    fn of(
        id: ObjectIdentifier,
        value: &(impl der::Tagged + der::EncodeValue),
    ) -> der::Result<Self> {
        Ok(Self {
            id,
            values: SetOfVec::try_from([Any::encode_from(value)?])?,
        })
    }

    /// Two digits of the year before 2050, four from then on (RFC 5652, 11.3).
    fn signing_time(at: UnixSeconds) -> der::Result<Self> {
        let since_1970 = Duration::from_secs(at.0);
        match UtcTime::from_unix_duration(since_1970) {
            Ok(time) => Self::of(SIGNING_TIME, &time),
            Err(_) => Self::of(
                SIGNING_TIME,
                &GeneralizedTime::from_unix_duration(since_1970)?,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::disk::SystemRandom;

    const DOCUMENT: &[u8] = b"{}";
    const AT: UnixSeconds = UnixSeconds(1_630_704_347);

    fn bytes(hexadecimal: &str) -> Vec<u8> {
        let digits: Vec<u8> = hexadecimal
            .bytes()
            .filter(|byte| !byte.is_ascii_whitespace())
            .collect();
        let byte =
            |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    /// A tag, the length of what follows in DER, and what follows.
    fn within(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let mut out = vec![tag];
        match u16::try_from(content.len()).unwrap().to_be_bytes() {
            [0, short @ 0..0x80] => out.push(short),
            [0, long] => out.extend([0x81, long]),
            [high, low] => out.extend([0x82, high, low]),
        }
        out.extend(content);
        out
    }

    /// Compares with the layout of published signatures, but for what is particular to a key: issuer, number, and the
    /// signature, which stands last before the three layers are closed.
    fn check(kind: SignatureKind, hash: &str, attributes: &str, algorithm: &str) {
        let key = Key::make(kind, &mut SystemRandom).unwrap();
        let made = signed_data(DOCUMENT, &key, AT, &mut SystemRandom).unwrap();

        let hash = bytes(hash);
        let before = [
            bytes("3080 0609 2a864886f70d010702 a080 3080 020101"),
            within(0x31, &[&hash]),
            bytes("3080 0609 2a864886f70d010701 a080 2480 0402 7b7d 0000 0000 0000"),
        ]
        .concat();
        let issuer = key.certificate().issuer().to_der().unwrap();
        let serial = key.certificate().serial().to_der().unwrap();
        let start = [
            bytes("020101"),
            within(0x30, &[&issuer, &serial]),
            hash,
            within(0xa0, &[&bytes(attributes)]),
            bytes(algorithm),
        ]
        .concat();
        let signature = made
            .strip_suffix(&[0; 6])
            .and_then(|made| {
                let at = made.windows(start.len()).position(|part| part == start)?;
                Some(&made[at + start.len()..])
            })
            .expect("the signer's part");
        let signer = within(0x30, &[&start, signature]);
        let expected = [before, within(0x31, &[&signer]), vec![0; 6]].concat();
        assert_eq!(made, expected, "{kind}");
        let signature = OctetString::from_der(signature).unwrap();
        assert!(!signature.as_bytes().is_empty());
    }

    const SHA_1: &str = "3009 0605 2b0e03021a 0500";
    const SHA_256: &str = "300d 0609 608648016503040201 0500";
    const TYPE_AND_TIME: &str = "
        3018 0609 2a864886f70d010903 310b 0609 2a864886f70d010701
        301c 0609 2a864886f70d010905 310f 170d 3231303930333231323534375a";
    const DIGEST_SHA_1: &str = "
        3023 0609 2a864886f70d010904 3116 0414 bf21a9e8fbc5a3846fb05b4fa0859e0917b2202f";
    const DIGEST_SHA_256: &str = "
        302f 0609 2a864886f70d010904 3122 0420
        44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    /// As instances had it in 2021.
    #[test]
    fn rsa2048_has_the_layout_of_ec2s() {
        let protection = "
            302d 0609 2a864886f70d010934 3120 301e
                300d 0609 608648016503040201 0500  a10d 0609 2a864886f70d01010b 0500";
        check(
            SignatureKind::Rsa2048,
            SHA_256,
            &[TYPE_AND_TIME, protection, DIGEST_SHA_256].concat(),
            "300d 0609 2a864886f70d01010b 0500",
        );
    }

    /// As instances had it from 2016 to 2021.
    #[test]
    fn pkcs7_has_the_layout_of_ec2s() {
        check(
            SignatureKind::Pkcs7,
            SHA_1,
            &[TYPE_AND_TIME, DIGEST_SHA_1].concat(),
            "3009 0607 2a8648ce380403",
        );
    }

    #[test]
    fn dsa2048_has_the_layout_of_rsa2048() {
        let protection = "
            302b 0609 2a864886f70d010934 311e 301c
                300d 0609 608648016503040201 0500  a10b 0609 608648016503040302";
        check(
            SignatureKind::Dsa2048,
            SHA_256,
            &[TYPE_AND_TIME, protection, DIGEST_SHA_256].concat(),
            "300b 0609 608648016503040302",
        );
    }

    #[test]
    fn a_long_document_is_written_in_pieces() {
        let key = Key::make(SignatureKind::Pkcs7, &mut SystemRandom).unwrap();
        let made = signed_data(&[b'x'; 2001], &key, AT, &mut SystemRandom).unwrap();
        let pieces = [
            bytes("2480"),
            within(0x04, &[&[b'x'; 1000]]),
            within(0x04, &[&[b'x'; 1000]]),
            within(0x04, &[b"x"]),
            bytes("0000"),
        ]
        .concat();
        assert!(made.windows(pieces.len()).any(|part| part == pieces));
    }

    #[test]
    fn the_year_has_four_digits_from_2050_on() {
        let check = |at: u64, expected: &[u8]| {
            let time = Attribute::signing_time(UnixSeconds(at)).unwrap();
            assert_eq!(time.values.get(0).unwrap().value(), expected);
        };
        check(2_524_607_999, b"491231235959Z");
        check(2_524_608_000, b"20500101000000Z");
    }
}
