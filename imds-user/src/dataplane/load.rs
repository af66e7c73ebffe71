//! Loading the programs and maps into the kernel.

use std::path::Path;

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{MapData, MapError, MapType},
    programs::{ProgramFd, SchedClassifier},
};
use imds_ebpf::abi::{
    REVISION,
    counter::COUNTERS_MAX,
    device::{DEVICE_BYTES, RESPONDER_DEVICES_MAX},
    guard::GUARDED_MAX,
    host_access::{ALLOWED_MAX, REFUSED_MAX},
    link_header::LinkMemory,
    owner::Owner,
    port::{PORTS_MAX, SlotEntry},
    rate::Rate,
    slot::INSTANCES_MAX,
};
use sha2::{Digest, Sha256};

use super::DataPlaneError;

/// The compiled programs (package imds-ebpf), built into the binary so that the two halves always match.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/imds-ebpf"));

/// What the programs log through aya-log. Off is free: the kernel removes the branches when it loads the programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelLog {
    /// Nothing.
    #[default]
    Off,
    /// Every dropped packet.
    Debug,
}

impl KernelLog {
    /// The level as the programs compare it (aya-log's numbers: error 1 … trace 5; 0 lets nothing through).
    const fn level(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Debug => 4,
        }
    }
}

/// The name of the program for ports, in the object and in `bpftool prog`.
pub const PORT_INGRESS: &str = "port_ingress";
/// The name of the program for the responder's end.
pub const RESPONDER_INGRESS: &str = "responder_ingress";
/// The name of the program for uplinks with Ethernet.
pub const UPLINK_EGRESS: &str = "uplink_egress";
/// The name of the program for uplinks whose packets have no frame.
pub const UPLINK_EGRESS_IP: &str = "uplink_egress_ip";
/// All that every daemon loads. Those of [`super::host_access`] are loaded where they are asked for.
pub const PROGRAMS: [&str; 4] = [
    PORT_INGRESS,
    RESPONDER_INGRESS,
    UPLINK_EGRESS,
    UPLINK_EGRESS_IP,
];

/// What a map looks like from outside.
#[derive(Debug)]
pub struct Shape {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: MapType,
    /// Of a key.
    pub key_bytes: usize,
    /// Of a value.
    pub value_bytes: usize,
    /// How many entries it has room for.
    pub entries: u32,
}

/// The maps that outlive the daemon.
pub const MAPS: [Shape; 12] = [
    shape::<u32, u32>("PORTS", MapType::Hash, PORTS_MAX),
    shape::<u32, SlotEntry>("SLOTS", MapType::Array, INSTANCES_MAX),
    shape::<u32, [u8; DEVICE_BYTES as usize]>("DEVICES", MapType::DevMap, INSTANCES_MAX),
    shape::<u32, Owner>("OWNERS", MapType::Array, INSTANCES_MAX),
    shape::<u32, LinkMemory>("LINKS", MapType::Array, INSTANCES_MAX),
    shape::<u32, Rate>("RATES", MapType::Array, INSTANCES_MAX),
    shape::<u32, [u8; DEVICE_BYTES as usize]>("RESPONDER", MapType::DevMap, RESPONDER_DEVICES_MAX),
    shape::<u32, u64>("COUNTERS", MapType::PerCpuArray, COUNTERS_MAX),
    shape::<u32, u64>("GUARDED", MapType::LruPerCpuHash, GUARDED_MAX),
    shape::<u32, u64>("HOST", MapType::Array, 1),
    shape::<u64, u32>("ALLOWED", MapType::Hash, ALLOWED_MAX),
    shape::<u64, u64>("REFUSED", MapType::LruPerCpuHash, REFUSED_MAX),
];

const fn shape<K, V>(name: &'static str, kind: MapType, entries: u32) -> Shape {
    Shape {
        name,
        kind,
        key_bytes: size_of::<K>(),
        value_bytes: size_of::<V>(),
        entries,
    }
}

impl Shape {
    /// Whether a map looks so.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn fits(&self, map: &MapData) -> Result<bool, MapError> {
        let info = map.info()?;
        Ok(info.map_type()? == self.kind
            && info.key_size() as usize == self.key_bytes
            && info.value_size() as usize == self.value_bytes
            && info.max_entries() == self.entries)
    }
}

/// What tells maps that this daemon's programs understand from those of another version: their shapes, and the number
/// that is counted up when a meaning changes.
#[must_use]
pub fn stamp() -> String {
    stamp_of(REVISION, &MAPS)
}

fn stamp_of(revision: u32, maps: &[Shape]) -> String {
    let mut text = format!("{revision}");
    for Shape {
        name,
        kind,
        key_bytes,
        value_bytes,
        entries,
    } in maps
    {
        text += &format!(";{name}:{kind:?}:{key_bytes}:{value_bytes}:{entries}");
    }
    let digest = Sha256::digest(text);
    let digits = digest.iter().take(4).map(|byte| format!("{byte:02x}"));
    digits.collect()
}

/// Loads [`PROGRAMS`]. With a folder of pins, the maps are those that are pinned there, and those that are not yet are
/// made and pinned.
///
/// # Errors
/// When the kernel refuses a map (memory, permission) or a program (verifier).
pub fn load(pins: Option<&Path>, log: KernelLog) -> Result<Ebpf, DataPlaneError> {
    let mut loader = EbpfLoader::new();
    let level = log.level();
    loader.override_global("AYA_LOG_LEVEL", &level, true);
    if let Some(pins) = pins {
        for map in &MAPS {
            loader.map_pin_path(map.name, pins.join(map.name));
        }
    }
    let mut ebpf = loader
        .load(OBJECT)
        .map_err(|cause| DataPlaneError::Load(Box::new(cause)))?;
    for name in PROGRAMS {
        classifier(&mut ebpf, name)?
            .load()
            .map_err(|cause| DataPlaneError::Program {
                name,
                cause: Box::new(cause),
            })?;
    }
    Ok(ebpf)
}

/// One of the programs of the object.
///
/// # Errors
/// When the object does not hold it.
pub fn classifier<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, DataPlaneError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(DataPlaneError::Missing(name))
}

/// The descriptor of a loaded program.
///
/// # Errors
/// When the object does not hold it.
pub fn descriptor<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a ProgramFd, DataPlaneError> {
    classifier(ebpf, name)?
        .fd()
        .map_err(|cause| DataPlaneError::Program {
            name,
            cause: Box::new(cause),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A change of this value makes a new daemon leave the maps of an older one alone: connections of guests end once
    /// when it comes. Change it knowingly.
    #[test]
    fn the_stamp_is_known() {
        assert_eq!(stamp(), "4dd4461f");
    }

    #[test]
    fn another_shape_or_meaning_is_another_stamp() {
        let maps = || [shape::<u32, u32>("PORTS", MapType::Hash, 7)];
        let stamp = stamp_of(1, &maps());
        assert_eq!(stamp, stamp_of(1, &maps()));
        let mut others = vec![stamp_of(2, &maps())];
        for other in [
            shape::<u32, u32>("OTHER", MapType::Hash, 7),
            shape::<u32, u32>("PORTS", MapType::Array, 7),
            shape::<u64, u32>("PORTS", MapType::Hash, 7),
            shape::<u32, u64>("PORTS", MapType::Hash, 7),
            shape::<u32, u32>("PORTS", MapType::Hash, 8),
        ] {
            others.push(stamp_of(1, &[other]));
        }
        assert!(!others.contains(&stamp), "{stamp} is among {others:?}");
    }
}
