//! Loading the programs and maps into the kernel.

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    programs::{ProgramFd, SchedClassifier},
};

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
/// All of them.
pub const PROGRAMS: [&str; 4] = [
    PORT_INGRESS,
    RESPONDER_INGRESS,
    UPLINK_EGRESS,
    UPLINK_EGRESS_IP,
];

/// Loads all programs with fresh maps. `responder_ifindex` is the host's end of the veth pair into the responder's
/// namespace.
///
/// # Errors
/// When the kernel refuses a map (memory, permission) or a program (verifier).
pub fn load(responder_ifindex: u32, log: KernelLog) -> Result<Ebpf, DataPlaneError> {
    let mut ebpf = EbpfLoader::new()
        .override_global("RESPONDER_IFINDEX", &responder_ifindex, true)
        .override_global("AYA_LOG_LEVEL", &log.level(), true)
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
