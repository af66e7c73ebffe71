//! The kernel side as the daemon sees it: programs, maps, ports. The only code that knows aya and the map layouts.
//!
//! The order of writes keeps every moment closed. A port is opened filter first (it drops, since no instance belongs to
//! the port yet), map entry last; it is closed the other way round.

pub mod filter;
pub mod guard;
pub mod load;
pub mod slots;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, PerCpuArray, PerCpuHashMap},
    programs::ProgramError,
};
pub use imds_ebpf::abi::counter::Counter;
use imds_ebpf::abi::{
    link_header::LinkMemory,
    port::{REPLY_TO_PEER, SlotEntry},
    rate::Rate,
    slot::index_of,
};

use tokio::io::{Interest, unix::AsyncFd};

use filter::{Direction, Filters};
use guard::Guarded;
use load::{KernelLog, PORT_INGRESS, RESPONDER_INGRESS};

/// What can go wrong between the daemon and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum DataPlaneError {
    /// The maps could not be made.
    #[error("load the eBPF object: {0} (`imds doctor` shows what this kernel lacks)")]
    Load(Box<aya::EbpfError>),
    /// The kernel refused a program.
    #[error("load program {name}: {cause} (`imds doctor` shows what this kernel lacks)")]
    Program {
        /// The program's name.
        name: &'static str,
        /// What the kernel said.
        cause: Box<ProgramError>,
    },
    /// The object lacks a program or map.
    #[error("the eBPF object has no {0}: the build is broken, build again")]
    Missing(&'static str),
    /// A map refused a read or a write.
    #[error("map {name}: {cause}")]
    Map {
        /// The map's name.
        name: &'static str,
        /// What the kernel said.
        cause: aya::maps::MapError,
    },
    /// The programs' log could not be opened.
    #[error("open the programs' log: {0}")]
    Log(String),
    /// No filter can be put anywhere.
    #[error("open a netlink socket for filters: {0}")]
    Filters(io::Error),
    /// A filter could not be put on an interface.
    #[error(
        "attach {program} to interface {interface}: {cause} (`tc filter show dev {interface} ingress` and `egress` show who else is there)"
    )]
    Attach {
        /// The program's name.
        program: &'static str,
        /// The interface.
        interface: String,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A filter could not be taken off an interface.
    #[error("detach from interface {interface}: {cause}")]
    Detach {
        /// The interface.
        interface: String,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// An interface by which a guest's packets enter the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The interface's name in the host's namespace.
    pub name: String,
    /// Its index there. Names come back with new interfaces; an index tells them apart.
    pub ifindex: u32,
    /// Whether it is one end of a veth pair whose other end is in another namespace; see [`REPLY_TO_PEER`].
    pub has_peer_elsewhere: bool,
}

/// The loaded programs, their maps, and the ports that they serve.
pub struct DataPlane {
    ebpf: Ebpf,
    filters: Filters,
    ports: HashMap<MapData, u32, u32>,
    slots: Array<MapData, SlotEntry>,
    links: Array<MapData, LinkMemory>,
    rates: Array<MapData, Rate>,
    counters: PerCpuArray<MapData, u64>,
    /// What the guard dropped, by the interface that it came in by.
    guarded_from: PerCpuHashMap<MapData, u32, u64>,
    /// The interfaces that have the guard.
    guarded: Guarded,
    /// By interface name, since that is what the operator calls it.
    open: BTreeMap<String, OpenPort>,
}

#[derive(Debug)]
struct OpenPort {
    ifindex: u32,
    /// None while it drops everything.
    slot: Option<u32>,
}

impl DataPlane {
    /// Loads the programs and puts the one for answers on the host's end of the veth pair into the responder's
    /// namespace. No port is served yet.
    ///
    /// # Errors
    /// When the kernel refuses maps, programs or the filter.
    pub fn load(responder: &Port, log: KernelLog) -> Result<Self, DataPlaneError> {
        let mut ebpf = load::load(responder.ifindex, log)?;
        let ports = HashMap::try_from(take(&mut ebpf, "PORTS")?).map_err(map_error("PORTS"))?;
        let slots = Array::try_from(take(&mut ebpf, "SLOTS")?).map_err(map_error("SLOTS"))?;
        let links = Array::try_from(take(&mut ebpf, "LINKS")?).map_err(map_error("LINKS"))?;
        let rates = Array::try_from(take(&mut ebpf, "RATES")?).map_err(map_error("RATES"))?;
        let counters =
            PerCpuArray::try_from(take(&mut ebpf, "COUNTERS")?).map_err(map_error("COUNTERS"))?;
        let guarded_from =
            PerCpuHashMap::try_from(take(&mut ebpf, "GUARDED")?).map_err(map_error("GUARDED"))?;
        let mut filters = Filters::open().map_err(DataPlaneError::Filters)?;
        let (name, ifindex) = (&responder.name, responder.ifindex);
        attach(
            &mut ebpf,
            &mut filters,
            RESPONDER_INGRESS,
            Direction::Ingress,
            (name, ifindex),
        )?;
        Ok(Self {
            ebpf,
            filters,
            ports,
            slots,
            links,
            rates,
            counters,
            guarded_from,
            guarded: Guarded::default(),
            open: BTreeMap::new(),
        })
    }

    /// Starts serving a port: what its guest sends to the metadata address belongs to `slot` from now on. The port may
    /// have been silent until now.
    ///
    /// # Errors
    /// When the filter or a map entry is refused; the port is closed again then.
    pub fn open_port(
        &mut self,
        port: &Port,
        slot: u32,
        packets_per_second: u32,
    ) -> Result<(), DataPlaneError> {
        self.hold_port(port)?.slot = Some(slot);
        let served = self
            .limit(slot, packets_per_second)
            .and_then(|()| self.assign(port, slot));
        if served.is_err() {
            // The first error is the one to report.
            drop(self.close_port(&port.name));
        }
        served
    }

    /// Makes a port drop whatever its guest sends to the metadata address, as nobody's port does: its filter is there, its
    /// slot has no way in or out.
    ///
    /// # Errors
    /// When the filter or a map entry is refused.
    pub fn silence_port(&mut self, port: &Port) -> Result<(), DataPlaneError> {
        match self.hold_port(port)?.slot.take() {
            Some(slot) => self.unassign(port.ifindex, slot),
            None => Ok(()),
        }
    }

    /// Makes sure of a port's filter, which drops until a slot is assigned.
    fn hold_port(&mut self, port: &Port) -> Result<&mut OpenPort, DataPlaneError> {
        let is_other = |held: &OpenPort| held.ifindex != port.ifindex;
        if self.open.get(&port.name).is_some_and(is_other) {
            self.close_port(&port.name)?;
        }
        if !self.open.contains_key(&port.name) {
            self.attach(PORT_INGRESS, Direction::Ingress, (&port.name, port.ifindex))?;
        }
        let held = OpenPort {
            ifindex: port.ifindex,
            slot: None,
        };
        Ok(self.open.entry(port.name.clone()).or_insert(held))
    }

    /// No way in, then no way out.
    fn unassign(&mut self, ifindex: u32, slot: u32) -> Result<(), DataPlaneError> {
        let unmapped = match self.ports.remove(&ifindex) {
            Err(aya::maps::MapError::KeyNotFound) | Ok(()) => Ok(()),
            Err(cause) => Err(map_error("PORTS")(cause)),
        };
        let cleared = self
            .slots
            .set(index_of(slot), SlotEntry::default(), 0)
            .map_err(map_error("SLOTS"));
        unmapped.and(cleared)
    }

    fn assign(&mut self, port: &Port, slot: u32) -> Result<(), DataPlaneError> {
        let index = index_of(slot);
        let flags = if port.has_peer_elsewhere {
            REPLY_TO_PEER
        } else {
            0
        };
        let entry = SlotEntry {
            slot,
            ifindex: port.ifindex,
            flags,
        };
        self.links
            .set(index, LinkMemory::default(), 0)
            .map_err(map_error("LINKS"))?;
        self.slots
            .set(index, entry, 0)
            .map_err(map_error("SLOTS"))?;
        self.ports
            .insert(port.ifindex, slot, 0)
            .map_err(map_error("PORTS"))
    }

    /// Sets how many packets a second a slot's guest may send to the service; 0 is no limit. It starts with a full
    /// allowance.
    ///
    /// # Errors
    /// When the map entry is refused.
    pub fn limit(&mut self, slot: u32, packets_per_second: u32) -> Result<(), DataPlaneError> {
        self.rates
            .set(index_of(slot), Rate::per_second(packets_per_second), 0)
            .map_err(map_error("RATES"))
    }

    /// Stops serving a port; its slot has no way in or out any more. An interface that is gone took its filter along.
    ///
    /// # Errors
    /// When the kernel refuses; whatever could be undone is.
    pub fn close_port(&mut self, name: &str) -> Result<(), DataPlaneError> {
        let Some(OpenPort { ifindex, slot }) = self.open.remove(name) else {
            return Ok(());
        };
        let unassigned = slot.map_or(Ok(()), |slot| self.unassign(ifindex, slot));
        let detached = self
            .filters
            .detach(ifindex, Direction::Ingress)
            .map_err(|cause| DataPlaneError::Detach {
                interface: name.to_owned(),
                cause,
            });
        unassigned.and(detached)
    }

    /// Every counter with its sum over the CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, DataPlaneError> {
        Counter::ALL
            .iter()
            .map(|counter| {
                let values = self
                    .counters
                    .get(&(*counter as u32), 0)
                    .map_err(map_error("COUNTERS"))?;
                Ok((*counter, values.iter().sum()))
            })
            .collect()
    }

    /// Passes what the programs log on to the daemon's log, from a task of its own.
    ///
    /// # Errors
    /// When the log's map is not there.
    pub fn forward_log(&mut self) -> Result<(), DataPlaneError> {
        let logger = aya_log::EbpfLogger::init(&mut self.ebpf)
            .map_err(|cause| DataPlaneError::Log(cause.to_string()))?;
        #[expect(unsafe_code, reason = "tokio asks for a promise about the descriptor")]
        // SAFETY: the logger owns its ring buffer's descriptor, names the same one every time, and closes it on drop.
        let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }
            .map_err(|cause| DataPlaneError::Log(cause.to_string()))?;
        tokio::spawn(async move {
            while let Ok(mut ready) = logger.readable_mut().await {
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
        });
        Ok(())
    }

    fn attach(
        &mut self,
        program: &'static str,
        direction: Direction,
        interface: (&str, u32),
    ) -> Result<(), DataPlaneError> {
        attach(
            &mut self.ebpf,
            &mut self.filters,
            program,
            direction,
            interface,
        )
    }

    /// The loaded object, for `BPF_PROG_TEST_RUN` and the logger.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, DataPlaneError> {
    ebpf.take_map(name).ok_or(DataPlaneError::Missing(name))
}

fn map_error(name: &'static str) -> impl Fn(aya::maps::MapError) -> DataPlaneError {
    move |cause| DataPlaneError::Map { name, cause }
}

/// Puts a program on an interface, or into the place of an earlier one of ours.
fn attach(
    ebpf: &mut Ebpf,
    filters: &mut Filters,
    program: &'static str,
    direction: Direction,
    (interface, ifindex): (&str, u32),
) -> Result<(), DataPlaneError> {
    let descriptor = load::descriptor(ebpf, program)?;
    filters
        .attach(ifindex, direction, descriptor.as_fd(), program)
        .map_err(|cause| DataPlaneError::Attach {
            program,
            interface: interface.to_owned(),
            cause,
        })
}

/// The IPv6 prefix that holds all tag addresses, local to the responder's namespace.
#[must_use]
pub fn tag_prefix_v6() -> (std::net::Ipv6Addr, u8) {
    let [a, b, c, d] = imds_ebpf::abi::slot::TAG_V6_PREFIX;
    (std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0), 64)
}
