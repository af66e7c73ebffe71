//! Key pairs: made, imported, shown, forgotten. A private half is given away once and never kept.

use std::convert::Infallible;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::Md5;
use rsa::BoxedUint;
use rsa::pkcs1::EncodeRsaPrivateKey as _;
use rsa::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _, LineEnding};
use rsa::rand_core::{TryCryptoRng, TryRng};
use rsa::traits::PublicKeyParts as _;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::filter::{Column, Columns, Filters, Tags};
use super::tags;
use crate::api::call::{Call, Change, Entropy, Outcome};
use crate::api::fault::{Code, Refusal};
use crate::api::xml::Xml;
use crate::instance::KeyPairId;
use crate::store::{Key, KeyPair, Record};

/// Longest name of a key pair (EC2 API, `CreateKeyPair`).
const NAME_MAX: usize = 255;
/// EC2's size of RSA keys.
const RSA_BITS: usize = 2048;

pub(super) fn create(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let name = new_name(call)?;
    let kind = call
        .params
        .word("KeyType", &[("rsa", true), ("ed25519", false)])?;
    let format = call
        .params
        .word("KeyFormat", &[("pem", true), ("ppk", false)])?;
    if kind == Some(false) || format == Some(false) {
        return Err(Refusal::unsupported(
            "Key pairs are made as RSA in PEM here: make others yourself and import them",
        ));
    }
    let made = Made::with(&call.entropy)?;
    let pair = pair(call, name, &made.openssh(), made.fingerprint.clone())?;
    let mut outcome = call.ec2_reply(|xml| {
        write_new(xml, &pair);
        xml.el("keyMaterial", made.pem.as_str());
    });
    outcome
        .changes
        .push(Change::Put(Record::KeyPair(Box::new(pair))));
    Ok(outcome)
}

pub(super) fn import(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let name = new_name(call)?;
    let place = "PublicKeyMaterial";
    let material = call
        .params
        .blob(place)?
        .ok_or_else(|| Refusal::missing(place))?;
    let key = PublicKey::read(&material).ok_or_else(|| {
        Refusal::new(
            Code::InvalidKeyFormat,
            "Key is not in valid OpenSSH public key format",
        )
    })?;
    let pair = pair(call, name, &key.line, key.fingerprint.into())?;
    let outcome = call.ec2_reply(|xml| write_new(xml, &pair));
    Ok(outcome.put(Record::KeyPair(Box::new(pair))))
}

fn new_name<'a>(call: &Call<'a>) -> Result<&'a str, Refusal> {
    let name = call.params.required("KeyName")?;
    if name.chars().count() > NAME_MAX || name.chars().any(char::is_control) {
        let right = format!("A name has at most {NAME_MAX} characters.");
        return Err(Refusal::invalid_value(name, "KeyName", right));
    }
    if call.view.key_pair(name).is_some() {
        return Err(Refusal::new(
            Code::InvalidKeyPairDuplicate,
            format!("The keypair '{name}' already exists."),
        ));
    }
    Ok(name)
}

fn pair(
    call: &Call<'_>,
    name: &str,
    line: &str,
    fingerprint: Box<str>,
) -> Result<KeyPair, Refusal> {
    // A name may have spaces, which a comment may have too; a line break it has not.
    Ok(KeyPair {
        name: name.into(),
        id: KeyPairId::from_digest(&call.entropy.bytes("key pair", 0)),
        openssh: format!("{line} {name}").into(),
        fingerprint,
        created: call.now(),
        tags: tags::specified(&call.params, "key-pair", &[])?,
    })
}

fn write_new(xml: &mut Xml, pair: &KeyPair) {
    xml.el("keyName", &pair.name)
        .el("keyFingerprint", &pair.fingerprint)
        .el("keyPairId", pair.id);
    super::instance::write_tags(xml, &pair.tags);
}

/// Deleting what is not there is no error.
pub(super) fn delete(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let (name, id) = (call.params.text("KeyName"), call.params.text("KeyPairId"));
    if name.is_none() && id.is_none() {
        return Err(Refusal::missing("KeyName"));
    }
    let mut pairs = call.view.key_pairs().values();
    let found = pairs.find(|pair| {
        let has_name = name.is_none_or(|name| &*pair.value.name == name);
        has_name && id.is_none_or(|id| pair.value.id.as_str() == id)
    });
    let mut outcome = call.ec2_reply(|xml| {
        xml.el("return", true);
        xml.el_if("keyPairId", found.map(|pair| pair.value.id));
    });
    let key = found.map(|pair| Key::key_pair(&pair.value.name));
    outcome.changes.extend(key.map(Change::Remove));
    Ok(outcome)
}

pub(super) fn describe(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let names = call.params.texts("KeyName")?;
    let ids = call.params.texts("KeyPairId")?;
    let shows_key = call.params.flag("IncludePublicKey")?.unwrap_or(false);
    let pairs = call.view.key_pairs();
    let has_id = |id: &str| pairs.values().any(|pair| pair.value.id.as_str() == id);
    let missing_name = names.iter().find(|name| !pairs.contains_key(**name));
    let missing_id = ids.iter().find(|id| !has_id(id));
    if let Some(missing) = missing_name.or(missing_id) {
        return Err(Refusal::new(
            Code::InvalidKeyPairNotFound,
            format!("The key pair '{missing}' does not exist"),
        ));
    }
    let by_name: &[(&'static str, Column<KeyPair>)] = &[
        ("fingerprint", |pair| vec![pair.fingerprint.to_string()]),
        ("key-name", |pair| vec![pair.name.to_string()]),
        ("key-pair-id", |pair| vec![pair.id.to_string()]),
    ];
    let of_pair: Tags<KeyPair> = |pair| &pair.tags;
    let tags = Some(of_pair);
    let filters = Filters::read(&call.params, &Columns { by_name, tags })?;
    let wanted = pairs.values().map(|pair| &*pair.value).filter(|pair| {
        let is_named = names.is_empty() || names.contains(&&*pair.name);
        let has_id = ids.is_empty() || ids.contains(&pair.id.as_str());
        is_named && has_id && filters.hold(pair)
    });
    Ok(call.ec2_reply(|xml| {
        xml.list("keySet", wanted, |xml, pair| {
            write_new(xml, pair);
            let kind = if pair.openssh.starts_with(SSH_RSA) {
                "rsa"
            } else {
                "ed25519"
            };
            xml.el("keyType", kind).time("createTime", pair.created);
            xml.el_if("publicKey", shows_key.then_some(&pair.openssh));
        });
    }))
}

const SSH_RSA: &str = "ssh-rsa";
const SSH_ED25519: &str = "ssh-ed25519";

/// A public key that somebody brought: kind and key as one line has them, without comment.
struct PublicKey {
    line: String,
    fingerprint: String,
}

impl PublicKey {
    /// Reads the first line of a file in the format of OpenSSH (RFC 4253, 6.6).
    fn read(material: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(material).ok()?.lines().next()?;
        let mut words = line.split_ascii_whitespace();
        let (kind, key) = (words.next()?, words.next()?);
        let blob = STANDARD.decode(key).ok()?;
        let mut rest = &blob[..];
        if field(&mut rest)? != kind.as_bytes() {
            return None;
        }
        let fingerprint = match kind {
            SSH_RSA => {
                let (e, n) = (field(&mut rest)?, field(&mut rest)?);
                rsa_fingerprint(e, n)?
            }
            SSH_ED25519 => {
                let _key: &[u8; 32] = field(&mut rest)?.try_into().ok()?;
                STANDARD.encode(Sha256::digest(&blob))
            }
            _ => return None,
        };
        rest.is_empty().then(|| Self {
            line: format!("{kind} {key}"),
            fingerprint,
        })
    }
}

/// Takes a text off that is preceded by its length.
fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (text, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(text)
}

/// What EC2 computes of imported RSA keys: MD5 of the public key in DER.
fn rsa_fingerprint(e: &[u8], n: &[u8]) -> Option<String> {
    let number = |bytes: &[u8]| BoxedUint::from_be_slice_vartime(bytes);
    let key = rsa::PublicKey::new(number(n), number(e)).ok()?;
    let der = key.to_public_key_der().ok()?;
    Some(colons(&Md5::digest(der.as_bytes())))
}

fn colons(digest: &[u8]) -> String {
    let pairs: Vec<_> = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    pairs.join(":")
}

/// A key that was made here.
struct Made {
    public: rsa::PublicKey,
    pem: zeroize::Zeroizing<String>,
    fingerprint: Box<str>,
}

impl Made {
    fn with(entropy: &Entropy) -> Result<Self, Refusal> {
        let failed = || Refusal::new(Code::InternalError, "The key could not be made");
        let mut random = Stream { entropy, next: 0 };
        let key = rsa::PrivateKey::new(&mut random, RSA_BITS).map_err(|_| failed())?;
        let pkcs8 = key.to_pkcs8_der().map_err(|_| failed())?;
        Ok(Self {
            public: key.to_public_key(),
            pem: key.to_pkcs1_pem(LineEnding::LF).map_err(|_| failed())?,
            // What EC2 computes of its own keys: SHA-1 of the private key in DER.
            fingerprint: colons(&Sha1::digest(pkcs8.as_bytes())).into(),
        })
    }

    /// `ssh-rsa` and the key.
    fn openssh(&self) -> String {
        let mut blob = Vec::new();
        let e = positive(&self.public.e().to_be_bytes());
        let n = positive(&self.public.n().to_be_bytes());
        for part in [SSH_RSA.as_bytes(), &e, &n] {
            let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
            blob.extend_from_slice(&length.to_be_bytes());
            blob.extend_from_slice(part);
        }
        format!("{SSH_RSA} {}", STANDARD.encode(blob))
    }
}

/// A number as SSH writes it (RFC 4251, 5, `mpint`): no more zeros at its start than it needs not to be negative.
fn positive(bytes: &[u8]) -> Vec<u8> {
    let start = bytes.iter().take_while(|byte| **byte == 0).count();
    let digits = &bytes[start..];
    let sign = digits.first().is_some_and(|first| first & 0x80 != 0);
    sign.then_some(0)
        .into_iter()
        .chain(digits.iter().copied())
        .collect()
}

/// The call's entropy as a stream: SHA-256 of it and a counter.
struct Stream<'a> {
    entropy: &'a Entropy,
    next: u64,
}

impl TryRng for Stream<'_> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(32) {
            let block: [u8; 32] = self.entropy.bytes("key material", self.next);
            self.next += 1;
            chunk.copy_from_slice(&block[..chunk.len()]);
        }
        Ok(())
    }
}

impl TryCryptoRng for Stream<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ssh-keygen -t ed25519` and its fingerprint by `ssh-keygen -l`, which leaves the padding away.
    #[test]
    fn a_key_of_openssh_is_read() {
        let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKzzTnV1zAJkwYhrqKSpyOpw2tsfNB9DLxMQV3ZhBoE2 me@here";
        let key = PublicKey::read(line.as_bytes()).unwrap();
        assert_eq!(Some(key.line.as_str()), line.strip_suffix(" me@here"));
        assert_eq!(key.fingerprint.len(), 44);
    }

    #[test]
    fn what_is_no_key_is_not_read() {
        for text in [
            "",
            "ssh-rsa",
            "ssh-rsa !",
            "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIKzzTnV1zAJkwYhrqKSpyOpw2tsfNB9DLxMQV3ZhBoE2",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKzzTnV1zAJkwYhrqKSpyOpw2tsfNB9DLxMQV3ZhBoE2AAAA",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKzzTnV1zAJk",
            "ssh-ed25519 //////////8=",
            "-----BEGIN PUBLIC KEY-----",
        ] {
            assert!(PublicKey::read(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn what_is_made_can_be_read_again() {
        let made = Made::with(&Entropy::new([7; 32])).unwrap();
        let read = PublicKey::read(made.openssh().as_bytes()).unwrap();
        assert_eq!(read.line, made.openssh());
        assert!(made.pem.starts_with("-----BEGIN RSA PRIVATE KEY-----\n"));
        // 20 bytes of a private key's, 16 of a public one's.
        assert_eq!((made.fingerprint.len(), read.fingerprint.len()), (59, 47));
    }
}
