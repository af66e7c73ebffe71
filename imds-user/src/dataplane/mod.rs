//! The kernel side as the daemon sees it: programs, maps, ports. The only code that knows aya and the map layouts.
//!
//! All of it outlives the daemon. Maps and programs are pinned ([`pins`]), filters stay on their interfaces, and a later
//! daemon goes on with the maps, loads its own programs against them and puts those into the place of the old ones.
//!
//! The order of writes keeps every moment closed, also for a daemon that is killed in between. A port's entries are
//! written first and its filter comes last; before, its packets are the guard's business. It is closed the other way
//! round. A slot has its owner written down before it is used, and until nothing carries it any more.

pub mod ahead;
pub mod filter;
pub mod guard;
pub mod host_access;
pub mod load;
pub mod pins;
pub mod slots;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;

use std::path::PathBuf;

use aya::{
    Ebpf,
    maps::{
        Array, HashMap, MapData, MapError, PerCpuArray, PerCpuHashMap,
        xdp::{DevMap, XdpMapError},
    },
    programs::ProgramError,
};
pub use imds_ebpf::abi::counter::Counter;
use imds_ebpf::abi::{
    link_header::LinkMemory,
    owner::{INSTANCE_ID_BYTES, Owner},
    port::{REPLY_TO_PEER, SlotEntry},
    rate::Rate,
    slot::{INSTANCES_MAX, index_of},
};

use tokio::io::{Interest, unix::AsyncFd};

use filter::{Direction, Filters};
use guard::Guarded;
use host_access::HostAccess;
use load::{KernelLog, PORT_INGRESS, RESPONDER_INGRESS, UPLINK_EGRESS, UPLINK_EGRESS_IP};
use pins::Pins;
use slots::{Past, SlotAllocator, SlotsExhausted};

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
        cause: MapError,
    },
    /// An interface could not be put into a map of devices.
    #[error("put interface {ifindex} into map {name}: {cause}")]
    Device {
        /// The map's name.
        name: &'static str,
        /// The interface.
        ifindex: u32,
        /// What the kernel said.
        cause: XdpMapError,
    },
    /// The BPF file system refused.
    #[error("{what} {}: {cause} (`imds doctor` says which BPF file system there is)", path.display())]
    Pins {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// No slot is left.
    #[error(transparent)]
    Slots(#[from] SlotsExhausted),
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
    /// A program could not be put on the root of the cgroups.
    #[error(
        "attach {program} to the root of the cgroups: {cause} (`bpftool cgroup tree` shows who else is there)"
    )]
    Cgroup {
        /// The program's name.
        program: &'static str,
        /// What the kernel said.
        cause: String,
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

impl DataPlaneError {
    /// Whether an interface that something was to be done with is not there any more.
    #[must_use]
    pub fn is_about_a_gone_interface(&self) -> bool {
        match self {
            Self::Attach { cause, .. } | Self::Detach { cause, .. } => {
                cause.raw_os_error() == Some(libc::ENODEV)
            }
            _ => false,
        }
    }
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

/// The loaded programs, their maps, and the ports that they serve. Dropping it changes nothing in the kernel.
pub struct DataPlane {
    ebpf: Ebpf,
    filters: Filters,
    ports: HashMap<MapData, u32, u32>,
    slots: Array<MapData, SlotEntry>,
    devices: DevMap<MapData>,
    owners: Array<MapData, Owner>,
    links: Array<MapData, LinkMemory>,
    rates: Array<MapData, Rate>,
    responder: DevMap<MapData>,
    counters: PerCpuArray<MapData, u64>,
    /// What the guard dropped, by the interface that it came in by.
    guarded_from: PerCpuHashMap<MapData, u32, u64>,
    /// The interfaces that have the guard.
    guarded: Guarded,
    host_access: HostAccess,
    allocator: SlotAllocator,
    /// What an earlier daemon served and nobody has claimed yet.
    former: Vec<Former>,
    /// By interface name, since that is what the operator calls it.
    open: BTreeMap<String, OpenPort>,
}

#[derive(Debug)]
struct OpenPort {
    ifindex: u32,
    /// None while it drops everything.
    slot: Option<u32>,
}

/// A slot that is somebody's since before this daemon.
#[derive(Debug)]
struct Former {
    slot: u32,
    ifindex: u32,
    instance: String,
    /// Whether the interface is the one that it was given for, and not another of the same number.
    is_live: bool,
}

impl DataPlane {
    /// Loads the programs, against the maps that an earlier daemon has left if they fit. Ports that it served are as it
    /// left them until they are claimed or closed.
    ///
    /// # Errors
    /// When the kernel refuses maps or programs.
    pub fn open(pins: &mut Pins, log: KernelLog) -> Result<Self, DataPlaneError> {
        let mut ebpf = load::load(Some(&pins.folder()), log)?;
        pins.commit()?;
        pins.pin_programs(&mut ebpf)?;
        let ports = HashMap::try_from(take(&mut ebpf, "PORTS")?).map_err(map_error("PORTS"))?;
        let slots = Array::try_from(take(&mut ebpf, "SLOTS")?).map_err(map_error("SLOTS"))?;
        let devices =
            DevMap::try_from(take(&mut ebpf, "DEVICES")?).map_err(map_error("DEVICES"))?;
        let owners = Array::try_from(take(&mut ebpf, "OWNERS")?).map_err(map_error("OWNERS"))?;
        let links = Array::try_from(take(&mut ebpf, "LINKS")?).map_err(map_error("LINKS"))?;
        let rates = Array::try_from(take(&mut ebpf, "RATES")?).map_err(map_error("RATES"))?;
        let responder =
            DevMap::try_from(take(&mut ebpf, "RESPONDER")?).map_err(map_error("RESPONDER"))?;
        let counters =
            PerCpuArray::try_from(take(&mut ebpf, "COUNTERS")?).map_err(map_error("COUNTERS"))?;
        let guarded_from =
            PerCpuHashMap::try_from(take(&mut ebpf, "GUARDED")?).map_err(map_error("GUARDED"))?;
        let host_access = HostAccess::take(&mut ebpf, pins.folder())?;
        let filters = Filters::open().map_err(DataPlaneError::Filters)?;
        let mut plane = Self {
            ebpf,
            filters,
            ports,
            slots,
            devices,
            owners,
            links,
            rates,
            responder,
            counters,
            guarded_from,
            guarded: Guarded::default(),
            host_access,
            allocator: SlotAllocator::default(),
            former: Vec::new(),
            open: BTreeMap::new(),
        };
        plane.recover()?;
        Ok(plane)
    }

    /// Reads the table of owners, and closes whatever it does not account for.
    fn recover(&mut self) -> Result<(), DataPlaneError> {
        let mut past = Vec::new();
        for index in 0..INSTANCES_MAX {
            let owner = self.owners.get(&index, 0).map_err(map_error("OWNERS"))?;
            // Indices are used in their order, so nothing comes behind the first that never was.
            if owner.slot == 0 {
                break;
            }
            let is_somebodys = owner.ifindex != 0;
            past.push(Past {
                slot: owner.slot,
                returned: (!is_somebodys).then_some(owner.returned),
            });
            if is_somebodys {
                self.former.push(Former {
                    slot: owner.slot,
                    ifindex: owner.ifindex,
                    instance: text_of(&owner.instance),
                    is_live: self.is_live(owner.slot, owner.ifindex)?,
                });
            }
        }
        self.allocator = SlotAllocator::recover(&past);
        let entries: Vec<(u32, u32)> = self
            .ports
            .iter()
            .collect::<Result<_, _>>()
            .map_err(map_error("PORTS"))?;
        for (ifindex, slot) in entries {
            let is_formers = |former: &Former| {
                former.is_live && (former.ifindex, former.slot) == (ifindex, slot)
            };
            if !self.former.iter().any(is_formers) {
                self.unmap_port(ifindex)?;
            }
        }
        Ok(())
    }

    /// Whether the slot's interface is still the one that it was given for.
    fn is_live(&self, slot: u32, ifindex: u32) -> Result<bool, DataPlaneError> {
        match self.devices.get(index_of(slot), 0) {
            Ok(device) => Ok(device.if_index == ifindex),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(cause) => Err(map_error("DEVICES")(cause)),
        }
    }

    /// The slot of an instance on a port: the one that it has since before this daemon, or a new one, which is written
    /// down at once. Not yet open in either case.
    ///
    /// # Errors
    /// When all slots are taken or the map refuses.
    pub fn slot_for(&mut self, instance: &str, port: &Port) -> Result<u32, DataPlaneError> {
        let is_it = |former: &Former| {
            former.is_live && former.ifindex == port.ifindex && former.instance == instance
        };
        if let Some(at) = self.former.iter().position(is_it) {
            return Ok(self.former.swap_remove(at).slot);
        }
        let slot = self.allocator.allocate()?;
        let owner = Owner {
            slot,
            ifindex: port.ifindex,
            returned: 0,
            instance: bytes_of(instance),
        };
        // The allowance of the index's last user is not the new one's.
        self.rates
            .set(index_of(slot), Rate::default(), 0)
            .map_err(map_error("RATES"))?;
        self.owners
            .set(index_of(slot), owner, 0)
            .map_err(map_error("OWNERS"))?;
        Ok(slot)
    }

    /// Closes every port that an earlier daemon served and nobody has claimed. Their slots stay taken until
    /// [`DataPlane::release`].
    ///
    /// # Errors
    /// When a map refuses.
    pub fn close_unclaimed(&mut self) -> Result<Vec<u32>, DataPlaneError> {
        let former = std::mem::take(&mut self.former);
        for Former { slot, ifindex, .. } in &former {
            if matches!(self.ports.get(ifindex, 0), Ok(current) if current == *slot) {
                self.unmap_port(*ifindex)?;
            }
            self.clear_slot(*slot)?;
        }
        Ok(former.into_iter().map(|former| former.slot).collect())
    }

    /// Takes back a slot that no packet and no connection carries any more.
    ///
    /// # Errors
    /// When the map refuses.
    pub fn release(&mut self, slot: u32) -> Result<(), DataPlaneError> {
        let owner = Owner {
            slot,
            returned: self.allocator.release(slot),
            ..Owner::default()
        };
        self.owners
            .set(index_of(slot), owner, 0)
            .map_err(map_error("OWNERS"))
    }

    /// Makes this the way to the responder's namespace: puts the program for answers on the host's end of the veth pair,
    /// and has ports deliver to it.
    ///
    /// # Errors
    /// When the filter or the map entry is refused.
    pub fn set_responder(&mut self, host_end: &Port) -> Result<(), DataPlaneError> {
        let interface = (host_end.name.as_str(), host_end.ifindex);
        self.attach(RESPONDER_INGRESS, Direction::Ingress, interface)?;
        self.responder
            .set(0, host_end.ifindex, None, 0)
            .map_err(device_error("RESPONDER", host_end.ifindex))
    }

    /// Starts serving a port, or goes on with it: what its guest sends to the metadata address belongs to `slot` from now
    /// on. The port may have been silent until now.
    ///
    /// # Errors
    /// When the filter or a map entry is refused; the port is closed again then.
    pub fn open_port(
        &mut self,
        port: &Port,
        slot: u32,
        packets_per_second: u32,
    ) -> Result<(), DataPlaneError> {
        self.close_another(port)?;
        let open = OpenPort {
            ifindex: port.ifindex,
            slot: Some(slot),
        };
        self.open.insert(port.name.clone(), open);
        let interface = (port.name.as_str(), port.ifindex);
        let served = self
            .limit(slot, packets_per_second)
            .and_then(|()| self.assign(port, slot))
            .and_then(|()| self.attach(PORT_INGRESS, Direction::Ingress, interface));
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
        self.close_another(port)?;
        if let Some(held) = self.open.get_mut(&port.name) {
            return match held.slot.take() {
                Some(slot) => self.unassign(port.ifindex, slot),
                None => Ok(()),
            };
        }
        let interface = (port.name.as_str(), port.ifindex);
        self.attach(PORT_INGRESS, Direction::Ingress, interface)?;
        let held = OpenPort {
            ifindex: port.ifindex,
            slot: None,
        };
        self.open.insert(port.name.clone(), held);
        Ok(())
    }

    /// Closes the port of the same name that is another interface, if there was one.
    fn close_another(&mut self, port: &Port) -> Result<(), DataPlaneError> {
        let is_another = |held: &OpenPort| held.ifindex != port.ifindex;
        if self.open.get(&port.name).is_some_and(is_another) {
            self.close_port(&port.name)?;
        }
        Ok(())
    }

    /// Notes what interfaces are called now: their former names and their new ones. Filters and maps go by number.
    pub fn rename_ports(&mut self, renames: &[(String, String)]) {
        // Two may have exchanged their names.
        let renamed: Vec<_> = renames
            .iter()
            .filter_map(|(old, new)| Some((new.clone(), self.open.remove(old)?)))
            .collect();
        self.open.extend(renamed);
    }

    /// No way in, then no way out.
    fn unassign(&mut self, ifindex: u32, slot: u32) -> Result<(), DataPlaneError> {
        self.unmap_port(ifindex).and(self.clear_slot(slot))
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
        let current = self.slots.get(&index, 0).map_err(map_error("SLOTS"))?;
        if current.slot != slot {
            self.links
                .set(index, LinkMemory::default(), 0)
                .map_err(map_error("LINKS"))?;
        }
        // The device first: its number in the table of slots counts for nothing without it.
        self.devices
            .set(index, port.ifindex, None, 0)
            .map_err(device_error("DEVICES", port.ifindex))?;
        self.slots
            .set(index, entry, 0)
            .map_err(map_error("SLOTS"))?;
        self.ports
            .insert(port.ifindex, slot, 0)
            .map_err(map_error("PORTS"))
    }

    fn clear_slot(&mut self, slot: u32) -> Result<(), DataPlaneError> {
        self.slots
            .set(index_of(slot), SlotEntry::default(), 0)
            .map_err(map_error("SLOTS"))
    }

    fn unmap_port(&mut self, ifindex: u32) -> Result<(), DataPlaneError> {
        removed(self.ports.remove(&ifindex)).map_err(map_error("PORTS"))
    }

    /// Sets how many packets a second a slot's guest may send to the service; 0 is no limit. Where that is a change, it
    /// starts with a full allowance.
    ///
    /// # Errors
    /// When the map entry is refused.
    pub fn limit(&mut self, slot: u32, packets_per_second: u32) -> Result<(), DataPlaneError> {
        let index = index_of(slot);
        let rate = Rate::per_second(packets_per_second);
        let current = self.rates.get(&index, 0).map_err(map_error("RATES"))?;
        if current.packet_nanoseconds == rate.packet_nanoseconds {
            return Ok(());
        }
        self.rates.set(index, rate, 0).map_err(map_error("RATES"))
    }

    /// Takes nothing in from a port any more; what goes out to its guest still does, until it is closed.
    ///
    /// # Errors
    /// When the map refuses.
    pub fn stop_port(&mut self, name: &str) -> Result<(), DataPlaneError> {
        match self.open.get(name) {
            Some(port) => self.unmap_port(port.ifindex),
            None => Ok(()),
        }
    }

    /// Whether a port is there, as the same interface that it was when it was opened or silenced.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn has_port(&mut self, name: &str) -> Result<bool, DataPlaneError> {
        let Some(OpenPort { ifindex, slot }) = self.open.get(name) else {
            return Ok(false);
        };
        if let Some(slot) = slot {
            return self.is_live(*slot, *ifindex);
        }
        // A silent one has no place in the table of devices. But its filter is part of it.
        let on = self.filters.on(*ifindex).map_err(DataPlaneError::Filters)?;
        Ok(on.iter().any(|one| one.direction == Direction::Ingress))
    }

    /// The numbers of the interfaces that have the filter of a port, whoever put it there.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn filtered_ports(&mut self) -> Result<Vec<u32>, DataPlaneError> {
        let all = self.filters.all().map_err(DataPlaneError::Filters)?;
        let ports = all
            .into_iter()
            .filter(|one| one.direction == Direction::Ingress && one.program == PORT_INGRESS);
        Ok(ports.map(|one| one.ifindex).collect())
    }

    /// Whether the responder's end of the veth pair is there.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn has_responder(&self) -> Result<bool, DataPlaneError> {
        match self.responder.get(0, 0) {
            Ok(_) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(cause) => Err(map_error("RESPONDER")(cause)),
        }
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

    /// Takes every filter of ours off that nothing here accounts for: those of ports and uplinks that earlier daemons
    /// had. `responder` is the host's end of the veth pair.
    ///
    /// # Errors
    /// When the kernel refuses; the others were tried.
    pub fn reap_filters(&mut self, responder: u32) -> Result<(), DataPlaneError> {
        let mut outcome = Ok(());
        for filter in self.filters.all().map_err(DataPlaneError::Filters)? {
            let is_open = || {
                let mut open = self.open.values();
                open.any(|port| port.ifindex == filter.ifindex)
            };
            let is_wanted = match (filter.direction, filter.program.as_str()) {
                (Direction::Ingress, PORT_INGRESS) => is_open(),
                (Direction::Ingress, RESPONDER_INGRESS) => filter.ifindex == responder,
                (Direction::Egress, UPLINK_EGRESS | UPLINK_EGRESS_IP) => {
                    self.guarded.contains_key(&filter.ifindex)
                }
                _ => false,
            };
            if is_wanted {
                continue;
            }
            let detached = self.filters.detach(filter.ifindex, filter.direction);
            outcome = outcome.and(detached.map_err(|cause| DataPlaneError::Detach {
                interface: format!("{} ({})", filter.ifindex, filter.program),
                cause,
            }));
        }
        outcome
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

    /// Puts a program on an interface, or into the place of an earlier one of ours.
    fn attach(
        &mut self,
        program: &'static str,
        direction: Direction,
        interface: (&str, u32),
    ) -> Result<(), DataPlaneError> {
        let (name, ifindex) = interface;
        let descriptor = load::descriptor(&mut self.ebpf, program)?;
        self.filters
            .attach(ifindex, direction, descriptor.as_fd(), program)
            .map_err(|cause| DataPlaneError::Attach {
                program,
                interface: name.to_owned(),
                cause,
            })
    }

    /// The loaded object, for `BPF_PROG_TEST_RUN` and the logger.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, DataPlaneError> {
    ebpf.take_map(name).ok_or(DataPlaneError::Missing(name))
}

fn map_error(name: &'static str) -> impl Fn(MapError) -> DataPlaneError {
    move |cause| DataPlaneError::Map { name, cause }
}

/// The outcome of removing an entry that need not be there.
fn removed(outcome: Result<(), MapError>) -> Result<(), MapError> {
    match outcome {
        Err(MapError::SyscallError(cause)) if cause.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        outcome => outcome,
    }
}

fn device_error(name: &'static str, ifindex: u32) -> impl Fn(XdpMapError) -> DataPlaneError {
    move |cause| DataPlaneError::Device {
        name,
        ifindex,
        cause,
    }
}

/// An instance's id as the table of owners has it. Ids are shorter than the field; what is not would be told apart by its
/// beginning.
fn bytes_of(instance: &str) -> [u8; INSTANCE_ID_BYTES] {
    let mut bytes = [0; INSTANCE_ID_BYTES];
    for (to, from) in bytes.iter_mut().zip(instance.bytes()) {
        *to = from;
    }
    bytes
}

fn text_of(instance: &[u8; INSTANCE_ID_BYTES]) -> String {
    let text = instance.iter().take_while(|byte| **byte != 0);
    text.map(|byte| char::from(*byte)).collect()
}

/// The IPv6 prefix that holds all tag addresses, local to the responder's namespace.
#[must_use]
pub fn tag_prefix_v6() -> (std::net::Ipv6Addr, u8) {
    let [a, b, c, d] = imds_ebpf::abi::slot::TAG_V6_PREFIX;
    (std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0), 64)
}
