//! Instance metadata options, with the names and values of the EC2 API (`InstanceMetadataOptions`).

use std::num::NonZeroU8;

use serde::{Deserialize, Serialize};

/// Largest `HttpPutResponseHopLimit` (EC2 API).
pub const HOP_LIMIT_MAX: u8 = 64;

/// What an instance's metadata service does. The defaults are those of the EC2 API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MetadataOptions {
    /// `HttpTokens`.
    pub http_tokens: TokenUse,
    /// `HttpEndpoint`: disabled refuses every request with 403.
    pub http_endpoint: Switch,
    /// `HttpPutResponseHopLimit`, 1 to [`HOP_LIMIT_MAX`]: IPv4 TTL and IPv6 hop limit of answers to PUT.
    pub http_put_response_hop_limit: NonZeroU8,
    /// `HttpProtocolIpv6`: whether fd00:ec2::254 answers.
    pub http_protocol_ipv6: Switch,
    /// `InstanceMetadataTags`: whether `tags/` is served.
    pub instance_metadata_tags: Switch,
}

impl Default for MetadataOptions {
    fn default() -> Self {
        Self {
            http_tokens: TokenUse::Optional,
            http_endpoint: Switch::Enabled,
            http_put_response_hop_limit: NonZeroU8::MIN,
            http_protocol_ipv6: Switch::Disabled,
            instance_metadata_tags: Switch::Disabled,
        }
    }
}

/// Whether a request needs a session token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenUse {
    /// IMDSv1 and IMDSv2.
    Optional,
    /// IMDSv2 only.
    Required,
}

impl TokenUse {
    /// Every value.
    pub const ALL: &'static [Self] = &[Self::Optional, Self::Required];

    /// EC2's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Optional => "optional",
            Self::Required => "required",
        }
    }
}

/// EC2's `enabled` and `disabled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Switch {
    /// `disabled`.
    Disabled,
    /// `enabled`.
    Enabled,
}

impl Switch {
    /// Every value.
    pub const ALL: &'static [Self] = &[Self::Enabled, Self::Disabled];

    /// EC2's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Disabled => "disabled",
        }
    }

    /// Whether it is `enabled`.
    #[must_use]
    pub fn is_enabled(self) -> bool {
        self == Self::Enabled
    }
}

/// The address family that a connection came by: 169.254.169.254 or fd00:ec2::254.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressFamily {
    /// 169.254.169.254
    Ipv4,
    /// fd00:ec2::254
    Ipv6,
}
