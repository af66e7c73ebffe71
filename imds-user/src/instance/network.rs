//! Network interfaces, as `network/interfaces/macs/` describes them.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{AccountId, NetworkInterfaceId, SecurityGroupId, SubnetId, VpcId};

/// One elastic network interface of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInterface {
    /// `eni-…`
    pub id: NetworkInterfaceId,
    /// Its MAC address, which names its directory.
    pub mac: MacAddress,
    /// Position on its network card.
    pub device_number: u8,
    /// Network card; card 0 is not written down.
    pub network_card: u8,
    /// The account that owns it, if not the instance's.
    pub owner_id: Option<AccountId>,
    /// IPv4 addresses, the primary one first. None on an IPv6-only interface.
    pub private_ipv4s: Box<[PrivateIpv4]>,
    /// IPv6 addresses, the primary one first.
    pub ipv6s: Box<[Ipv6Addr]>,
    /// Delegated IPv4 prefixes.
    pub ipv4_prefixes: Box<[Ipv4Cidr]>,
    /// Delegated IPv6 prefixes.
    pub ipv6_prefixes: Box<[Ipv6Cidr]>,
    /// Security groups.
    pub security_groups: Arc<[SecurityGroup]>,
    /// The subnet that it is in.
    pub subnet: Arc<Subnet>,
}

impl NetworkInterface {
    /// The primary private IPv4 address.
    #[must_use]
    pub fn private_ipv4(&self) -> Option<Ipv4Addr> {
        self.private_ipv4s.first().map(|private| private.address)
    }

    /// Public IPv4 addresses, in the order of the private ones that they belong to.
    pub fn public_ipv4s(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.private_ipv4s
            .iter()
            .filter_map(|private| private.public)
    }
}

/// A private IPv4 address and the public one that is mapped to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateIpv4 {
    /// The address that the guest has.
    pub address: Ipv4Addr,
    /// The public or Elastic IP address that is associated with it.
    pub public: Option<Ipv4Addr>,
}

/// A security group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SecurityGroup {
    /// `sg-…`
    pub id: SecurityGroupId,
    /// Its name.
    pub name: Box<str>,
}

/// A subnet and what matters of the VPC around it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Subnet {
    /// `subnet-…`
    pub id: SubnetId,
    /// Its IPv4 range; none for an IPv6-only subnet.
    pub ipv4_cidr: Option<Ipv4Cidr>,
    /// Its IPv6 ranges.
    pub ipv6_cidrs: Box<[Ipv6Cidr]>,
    /// `vpc-…`
    pub vpc_id: VpcId,
    /// The VPC's IPv4 ranges, the primary one first.
    pub vpc_ipv4_cidrs: Box<[Ipv4Cidr]>,
    /// The VPC's IPv6 ranges.
    pub vpc_ipv6_cidrs: Box<[Ipv6Cidr]>,
    /// The VPC's attribute `enableDnsHostnames`: whether public addresses have names.
    pub dns_hostnames: bool,
}

/// A MAC address, written in lower case with colons.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MacAddress(pub [u8; 6]);

/// A text that is no MAC address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a MAC address: write six pairs of hexadecimal digits, such as `06:17:04:d7:26:09`"
)]
pub struct MacAddressError(String);

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, MacAddressError> {
        let error = || MacAddressError(text.to_owned());
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().filter(|pair| {
                pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit())
            });
            *byte = pair
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                .ok_or_else(error)?;
        }
        if pairs.next().is_some() {
            return Err(error());
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, last] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{last:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An IPv4 range, with no bits set beyond its prefix.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ipv4Cidr {
    network: Ipv4Addr,
    prefix_bits: u8,
}

impl Ipv4Cidr {
    /// The range of `prefix_bits` (at most 32) that `address` lies in.
    #[must_use]
    pub fn around(address: Ipv4Addr, prefix_bits: u8) -> Self {
        let prefix_bits = prefix_bits.min(32);
        let mask = u32::MAX
            .checked_shl(32 - u32::from(prefix_bits))
            .unwrap_or(0);
        Self {
            network: Ipv4Addr::from_bits(address.to_bits() & mask),
            prefix_bits,
        }
    }

    /// Whether `address` lies in it.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        Self::around(address, self.prefix_bits) == *self
    }

    /// Its first address.
    #[must_use]
    pub fn network(&self) -> Ipv4Addr {
        self.network
    }

    /// Length of its prefix in bits.
    #[must_use]
    pub fn prefix_bits(&self) -> u8 {
        self.prefix_bits
    }
}

/// An IPv6 range, with no bits set beyond its prefix.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ipv6Cidr {
    network: Ipv6Addr,
    prefix_bits: u8,
}

impl Ipv6Cidr {
    /// The range of `prefix_bits` (at most 128) that `address` lies in.
    #[must_use]
    pub fn around(address: Ipv6Addr, prefix_bits: u8) -> Self {
        let prefix_bits = prefix_bits.min(128);
        let mask = u128::MAX
            .checked_shl(128 - u32::from(prefix_bits))
            .unwrap_or(0);
        Self {
            network: Ipv6Addr::from_bits(address.to_bits() & mask),
            prefix_bits,
        }
    }

    /// Whether `address` lies in it.
    #[must_use]
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        Self::around(address, self.prefix_bits) == *self
    }
}

/// A text that is no range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not of the form.
    #[error("`{text}` is not a range of addresses: write one such as `{example}`")]
    Form {
        /// What was given.
        text: String,
        /// One that would be right.
        example: &'static str,
    },
    /// The address has bits beyond the prefix.
    #[error("`{text}` has bits set beyond its prefix: write `{right}`")]
    HostBits {
        /// What was given.
        text: String,
        /// The range that it lies in.
        right: String,
    },
}

/// Both families parse and print alike.
macro_rules! cidr_text {
    ($name:ident, $address:ty, $bits:literal, $example:literal) => {
        impl FromStr for $name {
            type Err = CidrError;

            fn from_str(text: &str) -> Result<Self, CidrError> {
                let form = || CidrError::Form {
                    text: text.to_owned(),
                    example: $example,
                };
                let (address, bits) = text.split_once('/').ok_or_else(form)?;
                let address: $address = address.parse().map_err(|_| form())?;
                let bits: u8 = bits
                    .parse()
                    .ok()
                    .filter(|bits| *bits <= $bits)
                    .ok_or_else(form)?;
                let range = Self::around(address, bits);
                if range.network != address {
                    return Err(CidrError::HostBits {
                        text: text.to_owned(),
                        right: range.to_string(),
                    });
                }
                Ok(range)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.network, self.prefix_bits)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

cidr_text!(Ipv4Cidr, Ipv4Addr, 32, "172.31.16.0/20");
cidr_text!(Ipv6Cidr, Ipv6Addr, 128, "2001:db8::/64");

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: FromStr + fmt::Display>(text: &str, is_right: bool) {
        let printed = text.parse::<T>().ok().map(|value| value.to_string());
        assert_eq!(printed.as_deref() == Some(text), is_right, "{text}");
    }

    #[test]
    fn mac_addresses_are_six_pairs() {
        check::<MacAddress>("06:17:04:d7:26:09", true);
        for wrong in [
            "06:17:04:d7:26",
            "06:17:04:d7:26:09:01",
            "06-17-04-d7-26-09",
            "6:17:4:d7:26:9",
            "+6:17:04:d7:26:09",
            "",
        ] {
            check::<MacAddress>(wrong, false);
        }
        assert_eq!(
            "06:17:04:D7:26:09"
                .parse::<MacAddress>()
                .unwrap()
                .to_string(),
            "06:17:04:d7:26:09"
        );
    }

    #[test]
    fn ranges_have_no_bits_beyond_their_prefix() {
        check::<Ipv4Cidr>("172.31.16.0/20", true);
        check::<Ipv4Cidr>("0.0.0.0/0", true);
        check::<Ipv4Cidr>("10.0.0.1/32", true);
        check::<Ipv6Cidr>("2001:db8::/64", true);
        check::<Ipv6Cidr>("::/0", true);
        for wrong in [
            "172.31.17.0/20",
            "172.31.16.0",
            "172.31.16.0/33",
            "172.31.16/20",
            "/20",
            "x/20",
        ] {
            check::<Ipv4Cidr>(wrong, false);
        }
        for wrong in ["2001:db8::1/64", "2001:db8::/129", "10.0.0.0/8"] {
            check::<Ipv6Cidr>(wrong, false);
        }
        let error = "172.31.17.9/20".parse::<Ipv4Cidr>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "`172.31.17.9/20` has bits set beyond its prefix: write `172.31.16.0/20`"
        );
    }

    #[test]
    fn a_range_contains_its_addresses_and_no_others() {
        let range: Ipv4Cidr = "172.31.16.0/20".parse().unwrap();
        assert!(range.contains(Ipv4Addr::new(172, 31, 31, 255)));
        assert!(!range.contains(Ipv4Addr::new(172, 31, 32, 0)));
        assert!(Ipv4Cidr::around(Ipv4Addr::BROADCAST, 0).contains(Ipv4Addr::LOCALHOST));
    }
}
