//! What all instances of a host share, and what EC2 derives from a region or a zone: partition, service domain, zone
//! id, host names.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::AccountId;

/// Facts of the host: sent to the responder once, referred to by every instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Where instances are, unless their details say otherwise.
    pub zone: Zone,
    /// The account that owns them, unless their details say otherwise.
    pub account_id: AccountId,
    /// Domain of private host names, if DHCP options replace EC2's.
    pub domain_name: Option<Box<str>>,
    /// What made-up credentials are derived from. They open nothing.
    pub credential_seed: CredentialSeed,
}

/// 32 bytes that made-up credentials are derived from. `Debug` does not show them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialSeed(pub Zeroizing<[u8; 32]>);

impl fmt::Debug for CredentialSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CredentialSeed(…)")
    }
}

/// An Availability Zone, Local Zone or Wavelength Zone, and the region that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    region: Box<str>,
    name: Box<str>,
    id: Box<str>,
}

/// Why a zone is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// No name of a region.
    #[error("`{0}` is not a region: write one such as `eu-central-1`")]
    Region(String),
    /// No name of a zone.
    #[error(
        "`{0}` is not an availability zone: write a region and a letter, such as `eu-central-1a`"
    )]
    Name(String),
    /// Zone of another region.
    #[error("zone `{name}` is not in region `{region}`: write one such as `{region}a`")]
    Elsewhere {
        /// The zone.
        name: String,
        /// The region.
        region: String,
    },
}

impl Zone {
    /// A zone by its name, which begins with its region's: `us-east-2b`, `us-west-2-lax-1a`. Its id is made up as EC2
    /// makes them, with the letter counted: `use2-az2`, `usw2-lax1-az1`. (On EC2 letters are shuffled per account.)
    ///
    /// # Errors
    /// The name is not of that form.
    pub fn from_name(name: &str) -> Result<Self, ZoneError> {
        let region_len = region_len(name).filter(|len| zone_letter(&name[*len..]).is_some());
        let Some(region_len) = region_len else {
            return Err(ZoneError::Name(name.to_owned()));
        };
        Ok(Self {
            region: name[..region_len].into(),
            name: name.into(),
            id: zone_id(name, region_len).into(),
        })
    }

    /// The first zone of a region.
    ///
    /// # Errors
    /// `region` does not have the form of a region's name.
    pub fn first_of(region: &str) -> Result<Self, ZoneError> {
        if region_len(region) != Some(region.len()) {
            return Err(ZoneError::Region(region.to_owned()));
        }
        Self::from_name(&format!("{region}a"))
    }

    /// The zone `name` of `region`.
    ///
    /// # Errors
    /// Either is not of its form, or the zone is another region's.
    pub fn in_region(region: &str, name: &str) -> Result<Self, ZoneError> {
        Self::first_of(region)?;
        let zone = Self::from_name(name)?;
        if &*zone.region != region {
            return Err(ZoneError::Elsewhere {
                name: name.to_owned(),
                region: region.to_owned(),
            });
        }
        Ok(zone)
    }

    /// The same zone under another id.
    #[must_use]
    pub fn with_id(self, id: &str) -> Self {
        Self {
            id: id.into(),
            ..self
        }
    }

    /// For example `us-east-2`.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// For example `us-east-2b`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// For example `use2-az2`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its place among the zones of its region, from 0: `a` is 0.
    #[must_use]
    pub fn ordinal(&self) -> u8 {
        self.name
            .bytes()
            .last()
            .map_or(0, |letter| letter.wrapping_sub(b'a') % 26)
    }

    /// For example `aws`.
    #[must_use]
    pub fn partition(&self) -> &'static str {
        self.partition_entry().name
    }

    /// The partition's domain for services, for example `amazonaws.com`.
    #[must_use]
    pub fn services_domain(&self) -> &'static str {
        self.partition_entry().services_domain
    }

    fn partition_entry(&self) -> &'static Partition {
        PARTITIONS
            .iter()
            .find(|partition| self.region.starts_with(partition.region_prefix))
            .unwrap_or(&COMMERCIAL)
    }

    /// Domain of private host names, as EC2's own DNS has it.
    pub fn private_domain(&self) -> impl fmt::Display {
        fmt::from_fn(|f| match &*self.region {
            US_EAST_1 => f.write_str("ec2.internal"),
            region => write!(f, "{region}.compute.internal"),
        })
    }

    /// The public DNS name of a public IPv4 address.
    pub fn public_hostname(&self, address: Ipv4Addr) -> impl fmt::Display {
        fmt::from_fn(move |f| {
            let [a, b, c, d] = address.octets();
            let domain = self.services_domain();
            match &*self.region {
                US_EAST_1 => write!(f, "ec2-{a}-{b}-{c}-{d}.compute-1.{domain}"),
                region => write!(f, "ec2-{a}-{b}-{c}-{d}.{region}.compute.{domain}"),
            }
        })
    }
}

/// The region whose host names are of an older form.
const US_EAST_1: &str = "us-east-1";

struct Partition {
    region_prefix: &'static str,
    name: &'static str,
    services_domain: &'static str,
}

const COMMERCIAL: Partition = Partition {
    region_prefix: "",
    name: "aws",
    services_domain: "amazonaws.com",
};

/// Partitions other than the commercial one, by the regions' prefixes (botocore, `partitions.json`).
const PARTITIONS: [Partition; 7] = [
    Partition {
        region_prefix: "cn-",
        name: "aws-cn",
        services_domain: "amazonaws.com.cn",
    },
    Partition {
        region_prefix: "us-gov-",
        name: "aws-us-gov",
        services_domain: "amazonaws.com",
    },
    Partition {
        region_prefix: "us-iso-",
        name: "aws-iso",
        services_domain: "c2s.ic.gov",
    },
    Partition {
        region_prefix: "us-isob-",
        name: "aws-iso-b",
        services_domain: "sc2s.sgov.gov",
    },
    Partition {
        region_prefix: "eu-isoe-",
        name: "aws-iso-e",
        services_domain: "cloud.adc-e.uk",
    },
    Partition {
        region_prefix: "us-isof-",
        name: "aws-iso-f",
        services_domain: "csp.hci.ic.gov",
    },
    Partition {
        region_prefix: "eusc-",
        name: "aws-eusc",
        services_domain: "amazonaws.eu",
    },
];

/// Length of the region's name that `name` begins with: words, and a number at the end (`us-gov-west-1`).
fn region_len(name: &str) -> Option<usize> {
    let mut at = 0;
    for (n_words, part) in name.split('-').enumerate() {
        let n_digits = part.bytes().take_while(u8::is_ascii_digit).count();
        if n_digits > 0 {
            return (n_words >= 2).then_some(at + n_digits);
        }
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_lowercase()) {
            return None;
        }
        at += part.len() + 1;
    }
    None
}

/// The letter of a zone, from what follows its region: `b`, `-lax-1a`, `-wl1-bos-wlz-1` (which has none: `a`).
fn zone_letter(suffix: &str) -> Option<char> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if suffix.is_empty() || !suffix.bytes().all(is_plain) {
        return None;
    }
    let last = suffix.chars().next_back()?;
    match (suffix.len(), suffix.starts_with('-')) {
        (1, false) => last.is_ascii_lowercase().then_some(last),
        (_, false) => None,
        (_, true) if last.is_ascii_lowercase() => Some(last),
        (_, true) if last.is_ascii_digit() => Some('a'),
        (_, true) => None,
    }
}

fn zone_id(name: &str, region_len: usize) -> String {
    let (region, suffix) = name.split_at(region_len);
    let mut id = String::new();
    for word in region.split('-') {
        id.push_str(short_word(word));
    }
    let letter = zone_letter(suffix).unwrap_or('a');
    let group = suffix
        .trim_start_matches('-')
        .trim_end_matches(|last: char| last == letter && suffix.len() > 1);
    if suffix.len() > 1 {
        // `lax-1` becomes `lax1`; Wavelength's `wl1-bos-wlz-1` becomes `wl1-bos-wlz1`.
        match group.rsplit_once('-') {
            Some((place, number)) => id.push_str(&format!("-{place}{number}")),
            None => id.push_str(&format!("-{group}")),
        }
        if group.contains("wlz") {
            return id;
        }
    }
    let ordinal = u32::from(letter) - u32::from('a') + 1;
    id.push_str(&format!("-az{ordinal}"));
    id
}

/// How zone ids abbreviate the words of a region: `us-east-2` is `use2`, `ap-southeast-1` is `apse1`.
fn short_word(word: &str) -> &str {
    match word {
        "north" => "n",
        "south" => "s",
        "east" => "e",
        "west" => "w",
        "central" => "c",
        "northeast" => "ne",
        "northwest" => "nw",
        "southeast" => "se",
        "southwest" => "sw",
        "gov" => "g",
        "iso" => "i",
        "isob" => "ib",
        "isoe" => "ie",
        "isof" => "if",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, region: &str, id: &str, partition: &str, domain: &str) {
        let zone = Zone::from_name(name).unwrap();
        assert_eq!((zone.region(), zone.id()), (region, id), "{name}");
        assert_eq!(
            (zone.partition(), zone.services_domain()),
            (partition, domain),
            "{name}"
        );
        assert_eq!(Zone::in_region(region, name), Ok(zone));
    }

    #[test]
    fn a_zone_says_region_id_partition_and_domain() {
        check(
            "us-east-2b",
            "us-east-2",
            "use2-az2",
            "aws",
            "amazonaws.com",
        );
        check(
            "eu-central-1a",
            "eu-central-1",
            "euc1-az1",
            "aws",
            "amazonaws.com",
        );
        check(
            "ap-southeast-1c",
            "ap-southeast-1",
            "apse1-az3",
            "aws",
            "amazonaws.com",
        );
        check(
            "us-west-2-lax-1a",
            "us-west-2",
            "usw2-lax1-az1",
            "aws",
            "amazonaws.com",
        );
        check(
            "us-west-2-lax-1b",
            "us-west-2",
            "usw2-lax1-az2",
            "aws",
            "amazonaws.com",
        );
        check(
            "us-east-1-wl1-bos-wlz-1",
            "us-east-1",
            "use1-wl1-bos-wlz1",
            "aws",
            "amazonaws.com",
        );
        check(
            "cn-northwest-1b",
            "cn-northwest-1",
            "cnnw1-az2",
            "aws-cn",
            "amazonaws.com.cn",
        );
        check(
            "us-gov-west-1a",
            "us-gov-west-1",
            "usgw1-az1",
            "aws-us-gov",
            "amazonaws.com",
        );
        check(
            "us-iso-east-1a",
            "us-iso-east-1",
            "usie1-az1",
            "aws-iso",
            "c2s.ic.gov",
        );
        check(
            "us-isob-east-1a",
            "us-isob-east-1",
            "usibe1-az1",
            "aws-iso-b",
            "sc2s.sgov.gov",
        );
        check(
            "eusc-de-east-1a",
            "eusc-de-east-1",
            "euscdee1-az1",
            "aws-eusc",
            "amazonaws.eu",
        );
    }

    #[test]
    fn what_is_no_zone_is_refused() {
        for name in [
            "",
            "a",
            "us-east-1",
            "us-east-1A",
            "us-east-1ab",
            "us-1a",
            "useast1a",
            "us-east-1-",
            "us--1a",
            "us-east-1 ",
        ] {
            assert_eq!(
                Zone::from_name(name),
                Err(ZoneError::Name(name.into())),
                "{name}"
            );
        }
        for region in ["us-east-1a", "us-east", "moon"] {
            assert_eq!(
                Zone::first_of(region),
                Err(ZoneError::Region(region.into())),
                "{region}"
            );
        }
        assert_eq!(
            Zone::in_region("us-east-1", "us-east-2a")
                .unwrap_err()
                .to_string(),
            "zone `us-east-2a` is not in region `us-east-1`: write one such as `us-east-1a`"
        );
    }

    #[test]
    fn host_names_have_their_regions_form() {
        let check = |zone: &str, private: &str, public: &str| {
            let zone = Zone::from_name(zone).unwrap();
            assert_eq!(zone.private_domain().to_string(), private);
            assert_eq!(
                zone.public_hostname(Ipv4Addr::new(203, 0, 113, 25))
                    .to_string(),
                public
            );
        };
        check(
            "us-east-1a",
            "ec2.internal",
            "ec2-203-0-113-25.compute-1.amazonaws.com",
        );
        check(
            "us-east-2a",
            "us-east-2.compute.internal",
            "ec2-203-0-113-25.us-east-2.compute.amazonaws.com",
        );
        check(
            "cn-north-1a",
            "cn-north-1.compute.internal",
            "ec2-203-0-113-25.cn-north-1.compute.amazonaws.com.cn",
        );
    }
}
