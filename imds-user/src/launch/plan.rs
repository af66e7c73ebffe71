//! What belongs to a launched guest, and what it is called: names, addresses, user ids, bounds. Pure.
//!
//! Everything is made of the state directory and the instance's id, so it is found again without a note of it, and
//! two daemons of one machine never share a name.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::instance::{InstanceId, Ipv4Cidr, MacAddress};
use crate::state;

/// What a guest calls its interface.
pub const GUEST_INTERFACE: &str = "eth0";

/// How the names of guests' ports begin.
pub const PORT_PREFIX: &str = "imdsg";

/// User ids that a guest has: 0 to 65535, as a system expects.
pub const UIDS_PER_GUEST: u32 = 1 << 16;

/// The first user id on the host that guests' ids stand for. systemd's list of who uses which ids (UIDS-GIDS.md) has
/// nobody from here to the end of the range, which is what fits in 31 bits.
const UID_FIRST: u32 = 0x7000_0000;

/// How many ranges there are.
const UID_RANGES: u32 = (0x8000_0000 - UID_FIRST) / UIDS_PER_GUEST;

/// Addresses at the start of a subnet that EC2 keeps (network, router, DNS, future use); the last one is kept too.
const RESERVED_ADDRESSES: u32 = 4;

/// What to launch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The instance that the guest is.
    pub id: InstanceId,
    /// What it runs.
    pub image: Image,
    /// Its host name.
    pub hostname: String,
    /// Its address.
    pub ipv4: Ipv4Addr,
    /// The subnet that it is in. The gateway is the first address of it.
    pub subnet: Ipv4Cidr,
    /// The hardware address of its interface, as its metadata has it.
    pub mac: MacAddress,
    /// What it may use of the machine.
    #[serde(default)]
    pub bounds: Bounds,
}

/// What a guest runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Image {
    /// The host's own programs, read-only, in namespaces.
    Host,
    /// A local image of Docker's, by name or id.
    Docker(String),
}

/// What a guest may use of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bounds {
    /// Memory, with what it keeps in files in memory.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
    /// What fits in its file system, in memory.
    pub volume_bytes: u64,
}

impl Default for Bounds {
    /// Enough for the AWS CLI and a small service; twenty such guests fit on a laptop.
    fn default() -> Self {
        Self {
            memory_bytes: 512 << 20,
            pids: 512,
            volume_bytes: 256 << 20,
        }
    }
}

impl Spec {
    /// The gateway: the first address of the subnet, as in EC2.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet.network().to_bits().saturating_add(1))
    }
}

/// What a guest of a state directory is called by the kernel and the file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Its network namespace.
    pub netns: String,
    /// Its port: the host's end of its cable.
    pub port: String,
    /// Its control group, below a mount of control groups.
    pub cgroup: PathBuf,
    /// Its directory.
    pub dir: PathBuf,
}

impl Names {
    /// Those of one guest. The state directory's path must be canonical.
    #[must_use]
    pub fn of(state_dir: &Path, id: InstanceId) -> Self {
        let home = state::namespace_name_in(state_dir);
        let digest = digest(state_dir, id);
        let digits: String = digest[..5]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self {
            netns: format!("{home}-{id}"),
            // Fifteen characters, which is what an interface's name may have.
            port: format!("{PORT_PREFIX}{digits}"),
            cgroup: Path::new(&home).join(id.as_str()),
            dir: guests_in(state_dir).join(id.as_str()),
        }
    }

    /// Where its file system is mounted.
    #[must_use]
    pub fn volume(&self) -> PathBuf {
        self.dir.join("volume")
    }

    /// What it printed.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.dir.join("console")
    }
}

/// Where the guests of a state directory have their directories.
#[must_use]
pub fn guests_in(state_dir: &Path) -> PathBuf {
    state_dir.join("guests")
}

/// A range of user ids for a guest: one that no other guest of the state directory has. None if all are taken.
#[must_use]
pub fn uid_base(state_dir: &Path, id: InstanceId, is_taken: impl Fn(u32) -> bool) -> Option<u32> {
    let start = number(&digest(state_dir, id)) % UID_RANGES;
    (0..UID_RANGES)
        .map(|step| UID_FIRST + (start + step) % UID_RANGES * UIDS_PER_GUEST)
        .find(|base| !is_taken(*base))
}

/// An address of a subnet for an instance: the same each time unless it is taken. None if all are.
#[must_use]
pub fn address(
    subnet: Ipv4Cidr,
    id: InstanceId,
    is_taken: impl Fn(Ipv4Addr) -> bool,
) -> Option<Ipv4Addr> {
    let size = 1_u64 << (32 - u32::from(subnet.prefix_bits()));
    let usable = u32::try_from(size.saturating_sub(u64::from(RESERVED_ADDRESSES) + 1)).ok()?;
    if usable == 0 {
        return None;
    }
    let first = subnet.network().to_bits() + RESERVED_ADDRESSES;
    let start = number(&Sha256::digest(id.as_str()).into()) % usable;
    (0..usable)
        .map(|step| {
            let offset = (u64::from(start) + u64::from(step)) % u64::from(usable);
            Ipv4Addr::from_bits(first + u32::try_from(offset).unwrap_or(0))
        })
        .find(|address| !is_taken(*address))
}

/// The host name that EC2 gives an instance of an address, where nobody chose another.
#[must_use]
pub fn hostname(ipv4: Ipv4Addr) -> String {
    let [a, b, c, d] = ipv4.octets();
    format!("ip-{a}-{b}-{c}-{d}")
}

fn digest(state_dir: &Path, id: InstanceId) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(state_dir.as_os_str().as_encoded_bytes());
    hash.update([0]);
    hash.update(id.as_str());
    hash.finalize().into()
}

fn number(digest: &[u8; 32]) -> u32 {
    u32::from_be_bytes([digest[28], digest[29], digest[30], digest[31]])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn id(number: u64) -> InstanceId {
        format!("i-{number:017x}").parse().unwrap()
    }

    fn some_dir() -> &'static Path {
        Path::new("/var/lib/imds")
    }

    #[test]
    fn names_differ_between_guests_and_between_daemons() {
        let ids: Vec<InstanceId> = (0..500).map(id).collect();
        let names: Vec<Names> = [some_dir(), Path::new("/var/lib/other")]
            .iter()
            .flat_map(|dir| ids.iter().map(|id| Names::of(dir, *id)))
            .collect();
        let distinct = |of: fn(&Names) -> String| names.iter().map(of).collect::<BTreeSet<_>>();
        assert_eq!(distinct(|names| names.netns.clone()).len(), names.len());
        assert_eq!(distinct(|names| names.port.clone()).len(), names.len());
        assert_eq!(
            distinct(|names| names.cgroup.display().to_string()).len(),
            names.len()
        );
        assert!(names.iter().all(|names| names.port.len() <= 15));
    }

    #[test]
    fn names_say_whose_they_are() {
        let names = Names::of(some_dir(), id(1));
        let home = state::namespace_name_in(some_dir());
        assert_eq!(names.netns, format!("{home}-i-00000000000000001"));
        assert_eq!(
            names.dir,
            Path::new("/var/lib/imds/guests/i-00000000000000001")
        );
        assert!(names.port.starts_with("imdsg"), "{}", names.port);
    }

    #[test]
    fn a_range_of_user_ids_is_free_whole_and_the_same_each_time() {
        let taken: BTreeSet<u32> = (0..400)
            .scan(BTreeSet::new(), |taken, number| {
                let base = uid_base(some_dir(), id(number), |base| taken.contains(&base))?;
                taken.insert(base);
                Some(base)
            })
            .collect();
        assert_eq!(taken.len(), 400);
        for base in &taken {
            assert_eq!(base % UIDS_PER_GUEST, 0);
            assert!(*base >= UID_FIRST && base.checked_add(UIDS_PER_GUEST).is_some());
            assert!(i32::try_from(base + (UIDS_PER_GUEST - 1)).is_ok(), "{base}");
        }
        let free = |_| false;
        assert_eq!(
            uid_base(some_dir(), id(7), free),
            uid_base(some_dir(), id(7), free)
        );
        assert_eq!(uid_base(some_dir(), id(7), |_| true), None);
    }

    #[test]
    fn an_address_is_one_that_ec2_could_give() {
        let check = |subnet: &str, usable: usize| {
            let subnet: Ipv4Cidr = subnet.parse().unwrap();
            let mut taken = BTreeSet::new();
            while let Some(address) =
                address(subnet, id(taken.len() as u64), |one| taken.contains(&one))
            {
                assert!(subnet.contains(address), "{address}");
                assert!(taken.insert(address), "{address} twice");
            }
            assert_eq!(taken.len(), usable, "{subnet}");
            let first = subnet.network().to_bits() + RESERVED_ADDRESSES;
            assert!(taken.iter().all(|address| address.to_bits() >= first));
            let last = Ipv4Addr::from_bits(subnet.network().to_bits() + usable as u32 + 4);
            assert!(!taken.contains(&last), "{last} is the last of {subnet}");
        };
        check("172.31.16.0/28", 11);
        check("10.1.2.0/24", 251);
        check("10.1.2.0/29", 3);
        check("10.1.2.0/30", 0);
        check("10.1.2.3/32", 0);
    }

    #[test]
    fn the_gateway_is_the_first_address() {
        let spec = Spec {
            id: id(1),
            image: Image::Host,
            hostname: hostname(Ipv4Addr::new(172, 31, 17, 9)),
            ipv4: Ipv4Addr::new(172, 31, 17, 9),
            subnet: "172.31.16.0/20".parse().unwrap(),
            mac: MacAddress([6, 0, 0, 0, 0, 1]),
            bounds: Bounds::default(),
        };
        assert_eq!(spec.gateway(), Ipv4Addr::new(172, 31, 16, 1));
        assert_eq!(spec.hostname, "ip-172-31-17-9");
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
    }
}
