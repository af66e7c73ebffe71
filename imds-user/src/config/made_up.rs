//! What is made up when the file does not say it: plausible, and the same every time for the same installation and port.

use std::net::Ipv4Addr;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::Installation;
use crate::instance::host::CredentialSeed;
use crate::instance::network::Subnet;
use crate::instance::{
    AccountId, ImageId, InstanceId, Ipv4Cidr, MacAddress, NetworkInterfaceId, ReservationId,
    SecurityGroupId, SubnetId, VpcId, Zone,
};

/// The VPC that EC2 makes by default.
const VPC: (Ipv4Addr, u8) = (Ipv4Addr::new(172, 31, 0, 0), 16);
/// The subnets in it, one a zone.
const SUBNET_PREFIX_BITS: u8 = 20;
/// Addresses at the start of a subnet that EC2 keeps (network, router, DNS, future use); the last one is kept too.
const RESERVED_ADDRESSES: u32 = 4;

/// Makes facts of an installation up.
#[derive(Clone, Copy)]
pub(super) struct MadeUp<'a> {
    installation: &'a Installation,
}

impl<'a> MadeUp<'a> {
    pub(super) fn of(installation: &'a Installation) -> Self {
        Self { installation }
    }

    pub(super) fn account_id(&self) -> AccountId {
        let number = u64::from_be_bytes(prefix(&self.digest("account", ""))) % 1_000_000_000_000;
        format!("{number:012}").parse().expect("twelve digits")
    }

    pub(super) fn image_id(&self) -> ImageId {
        ImageId::from_digest(&prefix(&self.digest("image", "")))
    }

    /// Of the security group with this name in this VPC.
    pub(super) fn security_group_id(&self, vpc: VpcId, name: &str) -> SecurityGroupId {
        SecurityGroupId::from_digest(&prefix(&self.digest(vpc.as_str(), name)))
    }

    pub(super) fn credential_seed(&self) -> CredentialSeed {
        CredentialSeed(Zeroizing::new(self.digest("credentials", "")))
    }

    /// The subnet of a zone in the default VPC.
    pub(super) fn default_subnet(&self, zone: &Zone, dns_hostnames: bool) -> Subnet {
        let [a, b, ..] = VPC.0.octets();
        let address = Ipv4Addr::new(a, b, zone.ordinal() % 16 * 16, 0);
        self.subnet_of(address, SUBNET_PREFIX_BITS, dns_hostnames)
    }

    /// The subnet that an address could be in: a /20 in the /16 around it.
    pub(super) fn subnet_around(&self, address: Ipv4Addr, dns_hostnames: bool) -> Subnet {
        self.subnet_of(address, SUBNET_PREFIX_BITS, dns_hostnames)
    }

    fn subnet_of(&self, address: Ipv4Addr, prefix_bits: u8, dns_hostnames: bool) -> Subnet {
        let subnet = Ipv4Cidr::around(address, prefix_bits);
        let vpc = Ipv4Cidr::around(address, VPC.1);
        Subnet {
            id: self.subnet_id(&subnet.to_string()),
            ipv4_cidr: Some(subnet),
            ipv6_cidrs: Box::default(),
            vpc_id: self.vpc_id(&vpc.to_string()),
            vpc_ipv4_cidrs: Box::new([vpc]),
            vpc_ipv6_cidrs: Box::default(),
            dns_hostnames,
        }
    }

    /// Of the subnet with this range.
    pub(super) fn subnet_id(&self, range: &str) -> SubnetId {
        SubnetId::from_digest(&prefix(&self.digest("subnet", range)))
    }

    /// Of the VPC with this primary range.
    pub(super) fn vpc_id(&self, range: &str) -> VpcId {
        VpcId::from_digest(&prefix(&self.digest("vpc", range)))
    }

    /// Of the instance that `seed` is about: its port, or what else nobody else has.
    pub(super) fn instance_id(&self, seed: &str) -> InstanceId {
        InstanceId::from_digest(&prefix(&self.digest("instance", seed)))
    }

    pub(super) fn reservation_id(&self, seed: &str) -> ReservationId {
        ReservationId::from_digest(&prefix(&self.digest("reservation", seed)))
    }

    /// Of an interface of that instance, which is its `number`th.
    pub(super) fn interface(&self, seed: &str, number: usize) -> MadeUpInterface {
        MadeUpInterface {
            digest: self.digest("interface", &format!("{seed} {number}")),
        }
    }

    /// `AIPA` and 17 characters.
    pub(super) fn instance_profile_id(&self, name: &str) -> String {
        const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let digest = self.digest("instance profile", name);
        let characters = digest[..17]
            .iter()
            .map(|byte| char::from(BASE32[usize::from(byte & 31)]));
        "AIPA".chars().chain(characters).collect()
    }

    fn digest(&self, what: &str, whose: &str) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.installation.seed);
        hash.update(what.as_bytes());
        hash.update([0]);
        hash.update(whose.as_bytes());
        hash.finalize().into()
    }
}

/// What is made up of one interface.
pub(super) struct MadeUpInterface {
    digest: [u8; 32],
}

impl MadeUpInterface {
    pub(super) fn id(&self) -> NetworkInterfaceId {
        NetworkInterfaceId::from_digest(&prefix(&self.digest))
    }

    /// Locally administered and unicast, beginning as most of EC2's do.
    pub(super) fn mac(&self) -> MacAddress {
        let [a, b, c, d, e]: [u8; 5] = prefix(&self.digest[9..]);
        MacAddress([0x06, a, b, c, d, e])
    }

    /// An address of `range` that EC2 could have given.
    pub(super) fn address_in(&self, range: Ipv4Cidr) -> Ipv4Addr {
        let number = u32::from_be_bytes(prefix(&self.digest[14..]));
        let size = 1u64 << (32 - u32::from(range.prefix_bits()));
        let usable = size
            .saturating_sub(u64::from(RESERVED_ADDRESSES) + 1)
            .max(1);
        let offset = (u64::from(number) % usable + u64::from(RESERVED_ADDRESSES)).min(size - 1);
        Ipv4Addr::from_bits(range.network().to_bits() + offset as u32)
    }
}

/// The first `N` bytes of a digest.
fn prefix<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes
        .first_chunk()
        .expect("digests are longer than what is made of them")
}
