//! Instances: what a guest is to the service.
//!
//! An [`Instance`] keeps only what is particular to it; what all instances of a host share is in [`Host`], and what
//! follows from either (host names, the identity document, listings) is rendered when it is asked for. Both processes
//! hold every instance, so an unremarkable one must stay far below 2 KB: optional parts are boxed, and parts that few
//! instances have are together behind one pointer ([`Details`]).
//!
//! Everything here is plain data: it serialises (postcard between the processes), compares, and its `Debug` shows no
//! secret. Words are those of the EC2 API.

pub mod credentials;
pub mod details;
pub mod host;
pub mod id;
pub mod instance_type;
pub mod limits;
pub mod network;
pub mod options;
pub mod published;
pub mod slot;
pub mod time;

use std::fmt;

use base64::Engine;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use credentials::{Credentials, InstanceProfile, Role, Secret};
pub use details::Details;
pub use host::{Host, Zone};
pub use id::{
    AccountId, ImageId, InstanceId, KeyPairId, NetworkInterfaceId, ProfileAssociationId,
    ReservationId, SecurityGroupId, SubnetId, VpcId,
};
pub use limits::Limits;
pub use network::{Ipv4Cidr, Ipv6Cidr, MacAddress, NetworkInterface, SecurityGroup, Subnet};
pub use options::{AddressFamily, MetadataOptions, Switch, TokenUse};
pub use published::Published;
pub use slot::Slot;
pub use time::{UnixMillis, UnixSeconds};

/// Largest user data in bytes, raw (EC2 User Guide, "Work with instance user data": 16 KB before base64).
pub const USER_DATA_BYTES_MAX: usize = 16_384;

/// One instance, as it is at one moment. Immutable: a change makes a new one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// `i-` and 17 hexadecimal digits.
    pub id: InstanceId,
    /// The image that it was launched from.
    pub image_id: ImageId,
    /// For example `t3.micro`. Architecture and hypervisor follow from it unless [`Details`] says otherwise.
    pub instance_type: Box<str>,
    /// The launch request that it belongs to.
    pub reservation_id: ReservationId,
    /// Index within that launch request.
    pub launch_index: u32,
    /// When it was last launched or started (`pendingTime` of the identity document). Session tokens are bound to it:
    /// a stop and start invalidates them.
    pub pending_time: UnixSeconds,
    /// EC2's instance metadata options.
    pub options: MetadataOptions,
    /// The primary network interface: source of the address, MAC and security groups of the top level.
    pub primary: NetworkInterface,
    /// Further network interfaces.
    pub secondary: Box<[NetworkInterface]>,
    /// Public keys given at launch, in the order of their index. EC2 only ever has one.
    pub public_keys: Box<[PublicKey]>,
    /// The IAM role of its instance profile.
    pub role: Option<Box<Role>>,
    /// Tags, sorted bytewise by key.
    pub tags: Box<[Tag]>,
    /// User data, verbatim.
    pub user_data: Option<UserData>,
    /// What few instances have. `None` says what [`Details::default`] says.
    pub details: Option<Box<Details>>,
}

impl Instance {
    /// What few instances have, or the defaults.
    #[must_use]
    pub fn details(&self) -> &Details {
        static NONE: Details = Details::NONE;
        self.details.as_deref().unwrap_or(&NONE)
    }

    /// Says whether detailed monitoring is on, or takes back that it was spoken of.
    pub fn set_monitoring(&mut self, monitoring: Option<Switch>) {
        let mut details = self.details().clone();
        details.monitoring = monitoring;
        self.details = (details != Details::NONE).then(|| Box::new(details));
    }

    /// Whether the service answers this instance over `family`. A connection over one that it does not answer is to
    /// be closed without an answer: on EC2 nothing is there at that address.
    #[must_use]
    pub fn accepts(&self, family: AddressFamily) -> bool {
        match family {
            AddressFamily::Ipv4 => true,
            AddressFamily::Ipv6 => self.options.http_protocol_ipv6.is_enabled(),
        }
    }

    /// All network interfaces, the primary one first.
    pub fn interfaces(&self) -> impl Iterator<Item = &NetworkInterface> {
        std::iter::once(&self.primary).chain(&self.secondary)
    }
}

/// A key pair's public half, as `public-keys/` serves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey {
    /// Name of the key pair.
    pub name: Box<str>,
    /// The OpenSSH line, without line end.
    pub openssh: Box<str>,
}

/// One tag of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    /// Key, not empty.
    pub key: Box<str>,
    /// Value; may be empty.
    pub value: Box<str>,
}

/// User data: at most [`USER_DATA_BYTES_MAX`] bytes, shared with the answers that carry it. `Debug` shows the length
/// only, for people put passwords there.
#[derive(Clone, PartialEq, Eq)]
pub struct UserData(Bytes);

/// User data over the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("user data has {bytes} bytes: at most {USER_DATA_BYTES_MAX} are allowed")]
pub struct UserDataTooLong {
    /// Its length.
    pub bytes: usize,
}

impl UserData {
    /// The bytes, ready to be sent without a copy.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }
}

impl TryFrom<Bytes> for UserData {
    type Error = UserDataTooLong;

    fn try_from(bytes: Bytes) -> Result<Self, Self::Error> {
        if bytes.len() > USER_DATA_BYTES_MAX {
            return Err(UserDataTooLong { bytes: bytes.len() });
        }
        Ok(Self(bytes))
    }
}

/// In base64 where people may read it.
impl Serialize for UserData {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(&Base64Display::new(&self.0, &STANDARD))
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for UserData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            STANDARD.decode(text).map_err(de::Error::custom)?.into()
        } else {
            Bytes::deserialize(deserializer)?
        };
        Self::try_from(bytes).map_err(de::Error::custom)
    }
}

impl fmt::Debug for UserData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserData({} bytes)", self.0.len())
    }
}
