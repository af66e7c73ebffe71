//! Credential documents: those of a role and those of the instance's own identity.
//!
//! Credentials that EC2 would obtain from elsewhere and nobody gave us are made up here: the same within an hour, others
//! in the next, computed from the host's seed, the instance and the hour, so that nothing has to be kept or refreshed.
//! They look right to clients and open nothing.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::json::Object;
use super::tree::View;
use crate::instance::UnixSeconds;
use crate::instance::credentials::{Credentials, Role, RoleCredentials, Secret, Validity};

/// Name of the role-like leaf below `identity-credentials/`.
pub(super) const INSTANCE_IDENTITY: &str = "ec2-instance";

/// Credentials are renewed hourly and live six hours and up to 35 minutes more (captures of real instances). So whoever
/// fetches them has more than five hours left: no client considers them stale.
const RENEWAL_SECONDS: u64 = 3600;
const LIFE_SECONDS: u64 = 6 * 3600;
const JITTER_SECONDS: u64 = 35 * 60;

/// What `iam/security-credentials/<role>` serves: always with status 200, also when there are none to be had.
pub(super) fn of_role(view: View<'_>, role: &Role) -> Zeroizing<String> {
    match &role.credentials {
        RoleCredentials::Given(credentials) => document(
            credentials,
            credentials
                .validity
                .unwrap_or_else(|| rolling(view, &role.name)),
        ),
        RoleCredentials::Generated => generated(view, &role.name),
        // In the order of real documents, which is not that of a success.
        RoleCredentials::Unavailable(problem) => Object::new()
            .string("Code", &problem.code)
            .string("Message", &problem.message)
            .string("LastUpdated", problem.last_updated.iso())
            .finish()
            .into(),
    }
}

/// What `identity-credentials/ec2/security-credentials/ec2-instance` serves.
pub(super) fn of_instance_identity(view: View<'_>) -> Zeroizing<String> {
    generated(view, INSTANCE_IDENTITY)
}

/// When a role's credentials were last obtained.
pub(super) fn last_updated(view: View<'_>, role: &Role) -> UnixSeconds {
    match &role.credentials {
        RoleCredentials::Given(Credentials {
            validity: Some(validity),
            ..
        }) => validity.last_updated,
        RoleCredentials::Unavailable(problem) => problem.last_updated,
        RoleCredentials::Given(_) | RoleCredentials::Generated => {
            rolling(view, &role.name).last_updated
        }
    }
}

/// The present hour of credentials that are renewed by themselves. Hours begin at another moment for each instance.
pub(super) fn rolling(view: View<'_>, purpose: &str) -> Validity {
    let [a, b, c, d, ..] = digest(view, purpose, "hours", 0);
    let offset = u64::from(u16::from_be_bytes([a, b])) % RENEWAL_SECONDS;
    let jitter = u64::from(u16::from_be_bytes([c, d])) % JITTER_SECONDS;
    let last_updated = view
        .now
        .0
        .saturating_sub((view.now.0 + offset) % RENEWAL_SECONDS);
    Validity {
        last_updated: UnixSeconds(last_updated),
        expiration: UnixSeconds(last_updated + LIFE_SECONDS + jitter),
    }
}

fn generated(view: View<'_>, purpose: &str) -> Zeroizing<String> {
    let validity = rolling(view, purpose);
    let hour = validity.last_updated.0;
    let credentials = Credentials {
        access_key_id: access_key_id(&digest(view, purpose, "access key", hour)).into(),
        secret_access_key: Secret::from(
            STANDARD.encode(&digest(view, purpose, "secret", hour)[..30]),
        ),
        token: Secret::from(session_token(&digest(view, purpose, "token", hour))),
        validity: Some(validity),
    };
    document(&credentials, validity)
}

fn document(credentials: &Credentials, validity: Validity) -> Zeroizing<String> {
    // All else together stays below 512 bytes, so the text never moves and leaves no copy; only secrets with characters
    // that must be escaped, which AWS's have not, could make it.
    let secret_bytes = credentials.access_key_id.len()
        + credentials.secret_access_key.expose().len()
        + credentials.token.expose().len();
    Object::with_capacity(512 + secret_bytes)
        .string("Code", "Success")
        .string("LastUpdated", validity.last_updated.iso())
        .string("Type", "AWS-HMAC")
        .string("AccessKeyId", &credentials.access_key_id)
        .string("SecretAccessKey", credentials.secret_access_key.expose())
        .string("Token", credentials.token.expose())
        .string("Expiration", validity.expiration.iso())
        .finish()
        .into()
}

/// `ASIA`, as all temporary keys have it, and 16 characters of base32.
fn access_key_id(digest: &[u8; 32]) -> String {
    const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let characters = digest[..16]
        .iter()
        .map(|byte| char::from(BASE32[usize::from(byte & 31)]));
    "ASIA".chars().chain(characters).collect()
}

/// 896 characters that begin as session tokens of STS do.
fn session_token(digest: &[u8; 32]) -> String {
    const BEGINNING: &[u8; 12] = b"!\n\torigin_ec";
    const BYTES: usize = 672;
    let mut bytes = BEGINNING.to_vec();
    let mut block = *digest;
    while bytes.len() < BYTES {
        block = Sha256::digest(block).into();
        bytes.extend_from_slice(&block);
    }
    bytes.truncate(BYTES);
    STANDARD.encode(bytes)
}

fn digest(view: View<'_>, purpose: &str, part: &str, hour: u64) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(view.host.credential_seed.0.as_slice());
    for text in [view.instance.id.as_str(), purpose, part] {
        hash.update(text.as_bytes());
        hash.update([0]);
    }
    hash.update(hour.to_be_bytes());
    hash.finalize().into()
}
