//! Every map, and the verbs that the programs use instead of the maps themselves.

use aya_ebpf::{
    macros::map,
    maps::{Array, DevMap, HashMap, LruPerCpuHashMap, PerCpuArray},
};
use imds_ebpf::abi::{
    counter::{COUNTERS_MAX, Counter},
    device::RESPONDER_DEVICES_MAX,
    guard::GUARDED_MAX,
    host_access::{ALLOWED_MAX, REFUSED_MAX},
    link_header::{LinkHeader, LinkMemory},
    owner::Owner,
    port::{PORTS_MAX, SlotEntry},
    rate::Rate,
    slot::{INSTANCES_MAX, index_of},
};

/// The host's end of the veth pair into the responder's namespace, at 0. Written by the daemon; the kernel empties it
/// when the device goes (see [`imds_ebpf::abi::device`]).
#[map]
static RESPONDER: DevMap = DevMap::with_max_entries(RESPONDER_DEVICES_MAX, 0);

/// Interface index of a port → slot. Written by the daemon. A port that is not here has no instance and drops what
/// is addressed to the service. When it is full the daemon refuses the next instance.
#[map]
static PORTS: HashMap<u32, u32> = HashMap::with_max_entries(PORTS_MAX, 0);

/// Index of a slot → where its answers go. Written by the daemon, after [`LINKS`] was cleared for it.
#[map]
static SLOTS: Array<SlotEntry> = Array::with_max_entries(INSTANCES_MAX, 0);

/// Index of a slot → the device of its port. Written by the daemon; the kernel empties it when the device goes.
#[map]
static DEVICES: DevMap = DevMap::with_max_entries(INSTANCES_MAX, 0);

/// Index of a slot → whose it is. Written and read by the daemon alone; it is kept here because it must live exactly as
/// long as the packets and sockets that carry slots.
#[map]
static OWNERS: Array<Owner> = Array::with_max_entries(INSTANCES_MAX, 0);

/// Index of a slot → the link headers of its guest. Written by `port_ingress`, cleared by the daemon.
#[map]
static LINKS: Array<LinkMemory> = Array::with_max_entries(INSTANCES_MAX, 0);

/// Index of a slot → how many packets its port may still send. Set by the daemon, counted down by `port_ingress`.
#[map]
static RATES: Array<Rate> = Array::with_max_entries(INSTANCES_MAX, 0);

/// Packet counts by [`Counter`]. Written by the programs, read by the daemon.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS_MAX, 0);

/// Interface index by which packets came in → how many of them the guard dropped. Written by `uplink_egress`, read by
/// the daemon, which removes interfaces that are gone.
#[map]
static GUARDED: LruPerCpuHashMap<u32, u64> = LruPerCpuHashMap::with_max_entries(GUARDED_MAX, 0);

/// The kernel's cookie of the host's network namespace, at 0: `host_access` is attached where processes of other hosts and
/// of guests are seen, too. Written by the daemon before it attaches; 0 is no namespace's.
#[map]
static HOST: Array<u64> = Array::with_max_entries(1, 0);

/// Id of a cgroup whose processes, and those of the cgroups below, may call the host's own metadata service. Written by the
/// daemon. When it is full a further cgroup is refused.
#[map]
static ALLOWED: HashMap<u64, u32> = HashMap::with_max_entries(ALLOWED_MAX, 0);

/// Id of a cgroup → how many calls of its processes were refused. Written by `host_access`, read by the daemon.
#[map]
static REFUSED: LruPerCpuHashMap<u64, u64> = LruPerCpuHashMap::with_max_entries(REFUSED_MAX, 0);

/// The host's end of the veth pair into the responder's namespace, while there is one.
#[inline(always)]
pub(crate) fn responder_ifindex() -> Option<u32> {
    RESPONDER.get_ifindex(0)
}

/// The slot of the instance behind a port.
#[inline(always)]
pub(crate) fn slot_of_port(ifindex: u32) -> Option<u32> {
    // SAFETY: the value is one aligned u32, so a concurrent update by the daemon is seen before or after, not half.
    unsafe { PORTS.get(ifindex) }.copied()
}

/// Where answers of this slot go; none if the slot, generation included, is nobody's, or its port is gone. Another
/// interface may have the port's number by then, but not its place in [`DEVICES`].
#[inline(always)]
pub(crate) fn entry_of_slot(slot: u32) -> Option<SlotEntry> {
    let entry = SLOTS.get(index_of(slot))?;
    if entry.slot != slot || DEVICES.get_ifindex(index_of(slot)) != Some(entry.ifindex) {
        return None;
    }
    Some(*entry)
}

/// Remembers the link header of a packet that came in.
#[inline(always)]
pub(crate) fn remember_link(slot: u32, header: &LinkHeader) {
    let Some(memory) = LINKS.get_ptr_mut(index_of(slot)) else {
        return;
    };
    // SAFETY: the pointer is to a live array element, which the kernel never frees while the program runs. Other CPUs
    // may write it too; `LinkHeader` says why a mixture does no harm.
    unsafe { &mut *memory }.remember(header);
}

/// Takes packets off the port's allowance; false when it is used up.
#[inline(always)]
pub(crate) fn may_send(slot: u32, packets: u32, now_nanoseconds: u64) -> bool {
    let Some(rate) = RATES.get_ptr_mut(index_of(slot)) else {
        return false;
    };
    // SAFETY: the pointer is to a live array element. Other CPUs may write it too; `Rate` says what that costs.
    let rate = unsafe { &mut *rate };
    let Some(even) = rate.admits(now_nanoseconds) else {
        return false;
    };
    rate.even_nanoseconds = even + u64::from(packets) * rate.packet_nanoseconds;
    true
}

/// The link header for an answer to the guest's address.
#[inline(always)]
pub(crate) fn link_for(slot: u32, address: &[u16; 8]) -> Option<LinkHeader> {
    LINKS.get(index_of(slot))?.header_for(address)
}

/// Counts one packet.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    let Some(count) = COUNTERS.get_ptr_mut(counter as u32) else {
        return;
    };
    // SAFETY: the element is this CPU's own, and a program on packets is not preempted by another on one CPU; one on
    // system calls is, which may cost a count and nothing else.
    unsafe { *count += 1 };
}

/// Counts one packet that the guard dropped, by the interface that it came in by.
#[inline(always)]
pub(crate) fn count_guarded(ingress_ifindex: u32) {
    if let Some(count) = GUARDED.get_ptr_mut(ingress_ifindex) {
        // SAFETY: the element is this CPU's own, and the map keeps it while the program runs.
        unsafe { *count += 1 };
        return;
    }
    // Refused only where the kernel has no memory: the packet is dropped all the same.
    GUARDED.insert(ingress_ifindex, 1, 0).ok();
}

/// Whether a network namespace is the host's.
#[inline(always)]
pub(crate) fn is_host(netns_cookie: u64) -> bool {
    HOST.get(0).is_some_and(|host| *host == netns_cookie)
}

/// Whether the operator named this cgroup as one that may call the host's own metadata service.
#[inline(always)]
pub(crate) fn is_allowed(cgroup: u64) -> bool {
    // SAFETY: only whether there is a value is of interest, not the value.
    unsafe { ALLOWED.get(cgroup) }.is_some()
}

/// Counts one call that was refused, by the cgroup of the caller. Programs on system calls can be preempted, unlike those
/// on packets, and the language has no atomic addition for this target: where a refused caller interrupts another in the
/// midst of this, one of the two may go uncounted.
#[inline(always)]
pub(crate) fn count_refused(cgroup: u64) {
    count(Counter::HostRefused);
    if let Some(count) = REFUSED.get_ptr_mut(cgroup) {
        // SAFETY: the element is this CPU's own, and the map keeps it while the program runs.
        unsafe { *count += 1 };
        return;
    }
    // Refused only where the kernel has no memory: the call is refused all the same.
    REFUSED.insert(cgroup, 1, 0).ok();
}
