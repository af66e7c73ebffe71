//! Session tokens of IMDSv2: minted and verified without keeping any.
//!
//! A token is 40 bytes in base64url, as EC2's are: four fixed bytes, a nonce, and the encrypted expiry with its tag
//! (AES-256-GCM-SIV, RFC 8452). The instance and its launch are authenticated with it, so a token of another instance,
//! or from before a stop and start, is as wrong as a forged one. A guest cannot make the host remember anything by
//! asking for tokens, and a restart invalidates none, as the key is kept.
//!
//! Nothing here reads a clock or makes randomness: time and nonce are arguments.

use std::fmt;

use aes_gcm_siv::aead::AeadInOut;
use aes_gcm_siv::{Aes256GcmSiv, KeyInit, Nonce, Tag};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use zeroize::Zeroizing;

use crate::instance::{Instance, InstanceId, UnixMillis, UnixSeconds};

/// Length of a token in characters.
pub const TOKEN_CHARACTERS: usize = 56;
/// Longest life of a token in seconds: six hours (EC2 User Guide, "Use IMDSv2").
pub const TTL_SECONDS_MAX: u32 = 21_600;

/// What tokens of EC2's current generation begin with; it makes them begin with `AQAEA`.
const HEADER: [u8; 4] = [1, 0, 4, 0];
/// Length of a nonce in bytes.
pub const NONCE_BYTES: usize = 12;
const EXPIRY_BYTES: usize = 8;
const TAG_BYTES: usize = 16;
const TOKEN_BYTES: usize = HEADER.len() + NONCE_BYTES + EXPIRY_BYTES + TAG_BYTES;

/// A life that may be asked for: 1 to [`TTL_SECONDS_MAX`] seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TtlSeconds(u32);

impl TtlSeconds {
    /// The life, if it is within the range.
    #[must_use]
    pub fn new(seconds: u32) -> Option<Self> {
        (1..=TTL_SECONDS_MAX)
            .contains(&seconds)
            .then_some(Self(seconds))
    }

    /// In seconds.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

/// What is left of a token's life, rounded up to whole seconds: at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RemainingSeconds(pub u32);

/// What a token is good for: one launch of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The instance.
    pub instance: InstanceId,
    /// When it was last launched or started.
    pub pending_time: UnixSeconds,
}

impl Binding {
    /// The binding of tokens of `instance` as it runs now.
    #[must_use]
    pub fn of(instance: &Instance) -> Self {
        Self {
            instance: instance.id,
            pending_time: instance.pending_time,
        }
    }

    /// The bytes that are authenticated: the launch, whose length is fixed, and the id.
    fn associated_data(&self) -> ([u8; Self::DATA_BYTES_MAX], usize) {
        let mut data = [0; Self::DATA_BYTES_MAX];
        let id = self.instance.as_str().as_bytes();
        let len = 8 + id.len();
        data[..8].copy_from_slice(&self.pending_time.0.to_be_bytes());
        data[8..len].copy_from_slice(id);
        (data, len)
    }

    /// The launch and the longest instance id.
    const DATA_BYTES_MAX: usize = 8 + 19;
}

/// A token, as it is sent. `Debug` does not show it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SessionToken([u8; TOKEN_CHARACTERS]);

impl SessionToken {
    /// The text that the guest gets.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("base64 is ASCII")
    }
}

impl fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionToken(…)")
    }
}

/// Why a token is refused. Guests see no difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not the form of a token: wrong length, alphabet or beginning.
    #[error("not the form of a session token")]
    Malformed,
    /// Not minted with this key for this launch of this instance.
    #[error("not a session token of this instance")]
    Foreign,
    /// Its life is over.
    #[error("session token expired")]
    Expired,
}

/// A key that tokens are minted with, ready for use. Its bytes are wiped when it is dropped; `Debug` does not show them.
#[derive(Clone)]
pub struct TokenKey {
    bytes: Zeroizing<[u8; Self::BYTES]>,
    /// The expanded key, so that a request does not pay for the key schedule.
    cipher: Aes256GcmSiv,
}

impl TokenKey {
    /// Length of a key in bytes.
    pub const BYTES: usize = 32;

    /// The key of these bytes, which must come from a source of cryptographic randomness.
    #[must_use]
    pub fn new(bytes: [u8; Self::BYTES]) -> Self {
        let bytes = Zeroizing::new(bytes);
        let cipher = Aes256GcmSiv::new((&*bytes).into());
        Self { bytes, cipher }
    }

    /// The bytes, for keeping them and for handing them to the responder.
    #[must_use]
    pub fn expose(&self) -> &[u8; Self::BYTES] {
        &self.bytes
    }

    /// Makes a token that holds for `ttl` from `now` on. A nonce that comes twice reveals no more than that two tokens
    /// are the same (RFC 8452), but should be random nevertheless.
    #[must_use]
    pub fn mint(
        &self,
        binding: &Binding,
        ttl: TtlSeconds,
        now: UnixMillis,
        nonce: [u8; NONCE_BYTES],
    ) -> SessionToken {
        let expiry = now.0.saturating_add(u64::from(ttl.0) * 1000);
        let mut sealed = expiry.to_be_bytes();
        let (data, len) = binding.associated_data();
        let tag = self
            .cipher
            .encrypt_inout_detached(
                &Nonce::from(nonce),
                &data[..len],
                sealed.as_mut_slice().into(),
            )
            .expect("a few bytes are below the cipher's limit of 64 GiB");

        let mut token = [0; TOKEN_BYTES];
        let parts = [&HEADER[..], &nonce, &sealed, &tag];
        for (at, byte) in token.iter_mut().zip(parts.into_iter().flatten()) {
            *at = *byte;
        }
        let mut text = [0; TOKEN_CHARACTERS];
        URL_SAFE
            .encode_slice(token, &mut text)
            .expect("40 bytes are 56 characters");
        SessionToken(text)
    }

    /// What is left of a token's life at `now`.
    ///
    /// # Errors
    /// Not a token of this key and binding, or no longer. It holds in `[mint, mint + ttl)`.
    pub fn verify(
        &self,
        binding: &Binding,
        text: &[u8],
        now: UnixMillis,
    ) -> Result<RemainingSeconds, TokenError> {
        let (nonce, mut sealed, tag) = dissect(text)?;
        let (data, len) = binding.associated_data();
        self.cipher
            .decrypt_inout_detached(&nonce, &data[..len], sealed.as_mut_slice().into(), &tag)
            .map_err(|_| TokenError::Foreign)?;
        let left_millis = u64::from_be_bytes(sealed).saturating_sub(now.0);
        if left_millis == 0 {
            return Err(TokenError::Expired);
        }
        // More than the longest life is left only if the clock was set back since.
        let left = u32::try_from(left_millis.div_ceil(1000)).unwrap_or(u32::MAX);
        Ok(RemainingSeconds(left.min(TTL_SECONDS_MAX)))
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(…)")
    }
}

/// The key that tokens are minted with, and the one before it, whose tokens still hold.
#[derive(Clone, Debug)]
pub struct TokenKeys {
    /// Mints and verifies.
    pub current: TokenKey,
    /// Verifies only.
    pub previous: Option<TokenKey>,
}

impl TokenKeys {
    /// What is left of a token's life at `now`, whichever key it was minted with.
    ///
    /// # Errors
    /// As [`TokenKey::verify`].
    pub fn verify(
        &self,
        binding: &Binding,
        text: &[u8],
        now: UnixMillis,
    ) -> Result<RemainingSeconds, TokenError> {
        match (self.current.verify(binding, text, now), &self.previous) {
            (Err(TokenError::Foreign), Some(previous)) => previous.verify(binding, text, now),
            (result, _) => result,
        }
    }
}

/// Takes a token's text apart. Its length is checked before anything else is done with it.
fn dissect(text: &[u8]) -> Result<(Nonce, [u8; EXPIRY_BYTES], Tag), TokenError> {
    if text.len() != TOKEN_CHARACTERS {
        return Err(TokenError::Malformed);
    }
    // The decoder wants room for 56 characters without padding, two bytes more than it will write.
    let mut token = [0; TOKEN_BYTES + 2];
    match URL_SAFE.decode_slice(text, &mut token) {
        Ok(TOKEN_BYTES) => {}
        Ok(_) | Err(_) => return Err(TokenError::Malformed),
    }
    let rest = token.strip_prefix(&HEADER).ok_or(TokenError::Malformed)?;
    let (nonce, rest) = rest
        .split_first_chunk::<NONCE_BYTES>()
        .ok_or(TokenError::Malformed)?;
    let (sealed, rest) = rest
        .split_first_chunk::<EXPIRY_BYTES>()
        .ok_or(TokenError::Malformed)?;
    let tag = rest
        .first_chunk::<TAG_BYTES>()
        .ok_or(TokenError::Malformed)?;
    Ok((Nonce::from(*nonce), *sealed, Tag::from(*tag)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINTED: UnixMillis = UnixMillis(1_700_000_000_123);

    fn key() -> TokenKey {
        TokenKey::new([7; 32])
    }

    fn binding(id: &str, pending_time: u64) -> Binding {
        Binding {
            instance: id.parse().unwrap(),
            pending_time: UnixSeconds(pending_time),
        }
    }

    fn web() -> Binding {
        binding("i-0123456789abcdef0", 1_699_999_999)
    }

    fn mint(ttl: u32) -> SessionToken {
        key().mint(&web(), TtlSeconds::new(ttl).unwrap(), MINTED, [9; 12])
    }

    fn check_age(ttl: u32, age_millis: u64, expected: Result<u32, TokenError>) {
        let now = UnixMillis(MINTED.0 + age_millis);
        let left = key().verify(&web(), mint(ttl).as_str().as_bytes(), now);
        assert_eq!(
            left,
            expected.map(RemainingSeconds),
            "ttl {ttl}, age {age_millis} ms"
        );
    }

    #[test]
    fn a_token_has_ec2s_form() {
        let token = mint(21_600);
        assert_eq!(token.as_str().len(), 56);
        assert!(token.as_str().starts_with("AQAEA") && token.as_str().ends_with("=="));
        assert_ne!(
            token,
            key().mint(&web(), TtlSeconds(21_600), MINTED, [8; 12])
        );
    }

    #[test]
    fn a_token_expires_at_its_ttl() {
        check_age(1, 0, Ok(1));
        check_age(1, 999, Ok(1));
        check_age(1, 1000, Err(TokenError::Expired));
        check_age(1, 1001, Err(TokenError::Expired));
        check_age(21_600, 0, Ok(21_600));
        check_age(21_600, 1, Ok(21_600));
        check_age(21_600, 1000, Ok(21_599));
        check_age(21_600, 17_001, Ok(21_583));
        check_age(21_600, 21_599_999, Ok(1));
        check_age(21_600, 21_600_000, Err(TokenError::Expired));
        check_age(21_600, 21_600_001, Err(TokenError::Expired));
    }

    #[test]
    fn a_clock_set_back_lengthens_no_token_beyond_six_hours() {
        let left = key().verify(&web(), mint(60).as_str().as_bytes(), UnixMillis(0));
        assert_eq!(left, Ok(RemainingSeconds(TTL_SECONDS_MAX)));
    }

    #[test]
    fn a_ttl_is_1_second_to_6_hours() {
        assert_eq!(
            [0, 1, 21_600, 21_601].map(|ttl| TtlSeconds::new(ttl).is_some()),
            [false, true, true, false]
        );
    }

    #[test]
    fn a_token_of_another_instance_launch_or_key_is_refused() {
        let token = mint(60);
        let check = |key: &TokenKey, binding: Binding| {
            key.verify(&binding, token.as_str().as_bytes(), MINTED)
        };
        assert_eq!(check(&key(), web()), Ok(RemainingSeconds(60)));
        assert_eq!(
            check(&key(), binding("i-0123456789abcdef1", 1_699_999_999)),
            Err(TokenError::Foreign)
        );
        assert_eq!(
            check(&key(), binding("i-12345678", 1_699_999_999)),
            Err(TokenError::Foreign)
        );
        assert_eq!(
            check(&key(), binding("i-0123456789abcdef0", 1_700_000_000)),
            Err(TokenError::Foreign)
        );
        assert_eq!(
            check(&TokenKey::new([8; 32]), web()),
            Err(TokenError::Foreign)
        );
    }

    #[test]
    fn a_change_of_any_character_is_refused() {
        let token = mint(60);
        for at in 0..TOKEN_CHARACTERS {
            let mut text = token.0;
            text[at] = if text[at] == b'A' { b'B' } else { b'A' };
            assert!(
                key().verify(&web(), &text, MINTED).is_err(),
                "character {at}"
            );
        }
    }

    #[test]
    fn what_has_not_the_form_of_a_token_is_refused() {
        let token = mint(60).as_str().to_owned();
        let check = |text: &str| {
            assert_eq!(
                key().verify(&web(), text.as_bytes(), MINTED),
                Err(TokenError::Malformed),
                "{text}"
            );
        };
        check("");
        check("AQAEA");
        check(&token[..55]);
        check(&format!("{token}="));
        check(&format!("{} ==", &token[..53]));
        check(&"A".repeat(56));
        check(&"=".repeat(56));
        check(&token.replace("AQAEA", "AQAAA"));
        check(&"é".repeat(28));
    }

    #[test]
    fn tokens_of_the_previous_key_still_hold() {
        let token = mint(60);
        let mut keys = TokenKeys {
            current: TokenKey::new([8; 32]),
            previous: Some(key()),
        };
        let verify = |keys: &TokenKeys, now| keys.verify(&web(), token.as_str().as_bytes(), now);
        assert_eq!(verify(&keys, MINTED), Ok(RemainingSeconds(60)));
        assert_eq!(
            verify(&keys, UnixMillis(MINTED.0 + 60_000)),
            Err(TokenError::Expired)
        );
        keys.previous = None;
        assert_eq!(verify(&keys, MINTED), Err(TokenError::Foreign));
    }

    #[test]
    fn debug_shows_neither_key_nor_token() {
        let shown = format!("{:?} {:?}", key(), mint(60));
        assert_eq!(shown, "TokenKey(…) SessionToken(…)");
    }
}
