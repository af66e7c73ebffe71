//! Resource ids: a prefix and 17 (of old 8) lower-case hexadecimal digits, parsed once and impossible to mix up.
//!
//! EC2 User Guide, "Resource IDs": ids have 8 or 17 characters after the hyphen.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Digits of an id since 2016.
const DIGITS: usize = 17;
/// Digits of an id made before.
const DIGITS_OLD: usize = 8;

/// A text that is not an id of the kind wanted. The message says what would be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not {what} id: write `{prefix}` and {DIGITS} hexadecimal digits in lower case, \
     such as `{prefix}0123456789abcdef0`"
)]
pub struct IdError {
    /// What was given.
    pub text: String,
    /// The kind wanted, with its article.
    pub what: &'static str,
    /// Its prefix, with the hyphen.
    pub prefix: &'static str,
}

/// The text of an id, inline: no allocation, cheap to copy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct IdText<const N: usize> {
    bytes: [u8; N],
    len: u8,
}

impl<const N: usize> IdText<N> {
    fn parse(prefix: &str, text: &str) -> Option<Self> {
        let digits = text.strip_prefix(prefix)?.as_bytes();
        if digits.len() != DIGITS && digits.len() != DIGITS_OLD {
            return None;
        }
        if !digits
            .iter()
            .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
        {
            return None;
        }
        let mut bytes = [0; N];
        bytes
            .get_mut(..text.len())?
            .copy_from_slice(text.as_bytes());
        Some(Self {
            bytes,
            len: u8::try_from(text.len()).ok()?,
        })
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).expect("parse admits ASCII only")
    }
}

/// Defines one kind of id. `$len` is the length of the prefix plus 17.
macro_rules! resource_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(IdText<{ $prefix.len() + DIGITS }>);

        impl $name {
            /// What every such id begins with.
            pub const PREFIX: &'static str = $prefix;

            /// The id as EC2 writes it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }

            /// The id whose digits are the first 17 of `bytes` in hexadecimal.
            #[must_use]
            pub fn from_digest(bytes: &[u8; 9]) -> Self {
                let mut text = String::with_capacity($prefix.len() + 2 * bytes.len());
                text.push_str($prefix);
                for byte in bytes {
                    text.push(char::from(HEX[usize::from(byte >> 4)]));
                    text.push(char::from(HEX[usize::from(byte & 15)]));
                }
                text.truncate($prefix.len() + DIGITS);
                text.parse().expect("prefix and 17 lower-case digits")
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                IdText::parse($prefix, text).map(Self).ok_or_else(|| IdError {
                    text: text.to_owned(),
                    what: $what,
                    prefix: $prefix,
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(FromText::new())
            }
        }
    };
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Deserialises what parses, from borrowed text where the format has it.
pub(super) struct FromText<T>(std::marker::PhantomData<T>);

impl<T> FromText<T> {
    pub(super) fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<T: FromStr<Err: fmt::Display>> serde::de::Visitor<'_> for FromText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

resource_id!(
    /// Id of an instance.
    InstanceId, "i-", "an instance"
);
resource_id!(
    /// Id of a machine image.
    ImageId, "ami-", "an image"
);
resource_id!(
    /// Id of a kernel image, for paravirtual instances.
    KernelId, "aki-", "a kernel"
);
resource_id!(
    /// Id of a RAM disk image, for paravirtual instances.
    RamdiskId, "ari-", "a RAM disk"
);
resource_id!(
    /// Id of a launch request.
    ReservationId, "r-", "a reservation"
);
resource_id!(
    /// Id of a network interface.
    NetworkInterfaceId, "eni-", "a network interface"
);
resource_id!(
    /// Id of a security group.
    SecurityGroupId, "sg-", "a security group"
);
resource_id!(
    /// Id of a subnet.
    SubnetId, "subnet-", "a subnet"
);
resource_id!(
    /// Id of a VPC.
    VpcId, "vpc-", "a VPC"
);
resource_id!(
    /// Id of a Dedicated Host.
    DedicatedHostId, "h-", "a dedicated host"
);
resource_id!(
    /// Id of a key pair.
    KeyPairId, "key-", "a key pair"
);
resource_id!(
    /// Id of the association of an instance with an instance profile.
    ProfileAssociationId, "iip-assoc-", "an instance profile association"
);

/// Id of an account: 12 decimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId([u8; 12]);

/// A text that is not an account id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an account id: write 12 decimal digits in quotes, such as \"123456789012\"")]
pub struct AccountIdError(String);

impl AccountId {
    /// The twelve digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("parse admits decimal digits only")
    }
}

impl FromStr for AccountId {
    type Err = AccountIdError;

    fn from_str(text: &str) -> Result<Self, AccountIdError> {
        match <[u8; 12]>::try_from(text.as_bytes()) {
            Ok(digits) if digits.iter().all(u8::is_ascii_digit) => Ok(Self(digits)),
            _ => Err(AccountIdError(text.to_owned())),
        }
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for AccountId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for AccountId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(FromText::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, is_id: bool) {
        assert_eq!(
            text.parse::<InstanceId>()
                .map(|id| id.to_string() == text)
                .unwrap_or(false),
            is_id,
            "{text}"
        );
    }

    #[test]
    fn an_instance_id_has_17_digits_or_the_old_8() {
        check("i-0123456789abcdef0", true);
        check("i-1234abcd", true);
        check("i-12345", false);
        check("i-0123456789ABCDEF0", false);
        check("i-0123456789abcdef", false);
        check("i-0123456789abcdef01", false);
        check("ami-0123456789abcdef0", false);
        check("i-", false);
        check("", false);
        check("i-0123456789abcdéf", false);
    }

    #[test]
    fn a_wrong_id_is_refused_with_the_form_that_is_right() {
        let error = "i-12345".parse::<InstanceId>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "`i-12345` is not an instance id: write `i-` and 17 hexadecimal digits in lower case, such as \
             `i-0123456789abcdef0`"
        );
    }

    #[test]
    fn an_id_is_made_from_17_digits_of_a_digest() {
        let id = SubnetId::from_digest(&[0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x9f]);
        assert_eq!(id.as_str(), "subnet-0123456789abcdef9");
    }

    #[test]
    fn ids_travel_as_text() {
        let id: VpcId = "vpc-0123456789abcdef0".parse().unwrap();
        let bytes = postcard::to_stdvec(&id).unwrap();
        assert_eq!(postcard::from_bytes::<VpcId>(&bytes), Ok(id));
        assert!(postcard::from_bytes::<ImageId>(&bytes).is_err());
    }

    #[test]
    fn an_account_id_has_12_digits() {
        assert_eq!(
            "123456789012".parse::<AccountId>().unwrap().as_str(),
            "123456789012"
        );
        for wrong in ["12345678901", "1234567890123", "12345678901a", ""] {
            assert!(wrong.parse::<AccountId>().is_err(), "{wrong}");
        }
    }
}
