//! Reading and rewriting packets: the only home of pointer arithmetic and of the helpers that change a packet.

use aya_ebpf::{
    bindings::BPF_F_PSEUDO_HDR,
    helpers::{
        bpf_csum_diff, bpf_ktime_get_ns, bpf_redirect, bpf_redirect_peer, bpf_skb_change_tail,
        bpf_skb_vlan_pop, bpf_skb_vlan_push,
    },
    programs::TcContext,
};
use imds_ebpf::wire::{
    ethernet::{self, Ethernet, is_tag},
    ipv4, ipv6,
};

/// The kernel refused to change the packet.
pub(crate) struct Refused;

/// A VLAN tag.
#[derive(Clone, Copy)]
pub(crate) struct Tag {
    /// 0x8100 or 0x88a8, host order; 0 means that there is no tag.
    pub(crate) protocol: u16,
    /// Tag control information, host order.
    pub(crate) tci: u16,
}

/// Reads a header by value. If the packet is long enough but not linear that far, it is pulled first
/// (`bpf_skb_pull_data`; a forged or header-split packet must not pass for a short one).
#[inline(always)]
pub(crate) fn read<T: Copy>(ctx: &TcContext, offset: usize) -> Option<T> {
    if let Some(header) = read_linear(ctx, offset) {
        return Some(header);
    }
    let end = (offset + size_of::<T>()) as u32;
    if end > ctx.len() {
        return None;
    }
    ctx.pull_data(end).ok()?;
    read_linear(ctx, offset)
}

/// Reads a header by value from the linear part of the packet; none if it is not all there.
#[inline(always)]
pub(crate) fn read_linear<T: Copy>(ctx: &TcContext, offset: usize) -> Option<T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: the verifier sees the same bound; headers are arrays of u16, valid for any bits, and packet data and
    // every offset that is used are even.
    Some(unsafe { (start as *const T).read() })
}

/// The tag that the kernel or the device took out of the frame before we saw it.
#[inline(always)]
pub(crate) fn stripped_tag(ctx: &TcContext) -> Tag {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid while the program runs, and a classifier may read this field; so below.
    let present = unsafe { (*skb).vlan_present };
    // SAFETY: as above.
    let tci = unsafe { (*skb).vlan_tci };
    // SAFETY: as above.
    let protocol = unsafe { (*skb).vlan_proto };
    if present == 0 {
        return Tag {
            protocol: 0,
            tci: 0,
        };
    }
    Tag {
        protocol: u16::from_be(protocol as u16),
        tci: tci as u16,
    }
}

/// The tag in the frame at `offset`, and the EtherType behind it.
#[inline(always)]
pub(crate) fn tag_at(ctx: &TcContext, protocol: u16, offset: usize) -> Option<(Tag, u16)> {
    let [tci, ethertype] = read::<[u16; 2]>(ctx, offset)?;
    let tag = Tag {
        protocol,
        tci: u16::from_be(tci),
    };
    Some((tag, u16::from_be(ethertype)))
}

/// The interface that the packet came in by.
#[inline(always)]
pub(crate) fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid while the program runs.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// The interface that the packet came in by, on a hook where it leaves; 0 for what the host sends itself.
#[inline(always)]
pub(crate) fn ingress_ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid while the program runs.
    unsafe { (*ctx.skb.skb).ingress_ifindex }
}

/// The EtherType that the kernel noted for the packet, for devices whose packets carry none.
#[inline(always)]
pub(crate) fn protocol(ctx: &TcContext) -> u16 {
    // SAFETY: the context is valid while the program runs.
    let protocol = unsafe { (*ctx.skb.skb).protocol };
    u16::from_be(protocol as u16)
}

/// Whether the packet has so many bytes, wherever they are.
#[inline(always)]
pub(crate) fn reaches(ctx: &TcContext, bytes: usize) -> bool {
    ctx.len() >= bytes as u32
}

/// How many packets the wire would carry for this one: large segments stand for several.
#[inline(always)]
pub(crate) fn wire_packets(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid while the program runs.
    let segments = unsafe { (*ctx.skb.skb).gso_segs };
    if segments == 0 { 1 } else { segments }
}

/// The kernel's monotonic clock.
#[inline(always)]
pub(crate) fn now_nanoseconds() -> u64 {
    // SAFETY: takes nothing.
    unsafe { bpf_ktime_get_ns() }
}

/// Takes the outermost tag off, wherever the kernel keeps it.
#[inline(always)]
pub(crate) fn pop_tag(ctx: &TcContext) -> Result<(), Refused> {
    // SAFETY: the context is valid while the program runs.
    done(unsafe { bpf_skb_vlan_pop(ctx.skb.skb) })
}

/// Puts a tag on, if there is one to put on.
#[inline(always)]
pub(crate) fn push_tag(ctx: &TcContext, tag: Tag) -> Result<(), Refused> {
    if !is_tag(tag.protocol) {
        return Ok(());
    }
    // SAFETY: the context is valid while the program runs.
    done(unsafe { bpf_skb_vlan_push(ctx.skb.skb, tag.protocol.to_be(), tag.tci) })
}

/// Replaces an IPv4 address of an untagged TCP packet and mends both checksums. Addresses in host order; `field` is
/// the address's offset in the IPv4 header. Partial checksums (offload) are handled by the helper, which is why the
/// sums are not computed here.
#[inline(always)]
pub(crate) fn replace_v4(ctx: &TcContext, field: usize, from: u32, to: u32) -> Result<(), Refused> {
    const IP: usize = ethernet::BYTES;
    let (from_be, to_be) = (u64::from(from.to_be()), u64::from(to.to_be()));
    ctx.l3_csum_replace(IP + ipv4::CHECKSUM, from_be, to_be, 4)
        .map_err(|_| Refused)?;
    ctx.l4_csum_replace(
        IP + ipv4::TCP_CHECKSUM,
        from_be,
        to_be,
        u64::from(BPF_F_PSEUDO_HDR) | 4,
    )
    .map_err(|_| Refused)?;
    ctx.store(IP + field, &to.to_be(), 0).map_err(|_| Refused)
}

/// As [`replace_v4`] for IPv6; addresses in network order.
#[inline(always)]
pub(crate) fn replace_v6(
    ctx: &TcContext,
    field: usize,
    mut from_be: [u16; 8],
    mut to_be: [u16; 8],
) -> Result<(), Refused> {
    const IP: usize = ethernet::BYTES;
    // SAFETY: both buffers are 16 bytes on the stack and live through the call, which only reads them.
    let difference = unsafe {
        bpf_csum_diff(
            from_be.as_mut_ptr().cast(),
            16,
            to_be.as_mut_ptr().cast(),
            16,
            0,
        )
    };
    if difference < 0 {
        return Err(Refused);
    }
    ctx.l4_csum_replace(
        IP + ipv6::TCP_CHECKSUM,
        0,
        difference as u64,
        u64::from(BPF_F_PSEUDO_HDR),
    )
    .map_err(|_| Refused)?;
    ctx.store(IP + field, &to_be, 0).map_err(|_| Refused)
}

/// Cuts or extends the packet at its end.
#[inline(always)]
pub(crate) fn set_length(ctx: &TcContext, bytes: u32) -> Result<(), Refused> {
    // SAFETY: the context is valid while the program runs.
    done(unsafe { bpf_skb_change_tail(ctx.skb.skb, bytes, 0) })
}

/// Writes destination and source MAC.
#[inline(always)]
pub(crate) fn write_macs(ctx: &TcContext, macs: &[u16; 6]) -> Result<(), Refused> {
    ctx.store(ethernet::MACS, macs, 0).map_err(|_| Refused)
}

/// Marks the frame as addressed to the host that receives it: a bridged guest's is addressed to a bridge, an
/// answer's to nobody in particular, and the IP layer drops what it takes for somebody else's.
#[inline(always)]
pub(crate) fn address_to_host(ctx: &TcContext) -> Result<(), Refused> {
    const PACKET_HOST: u32 = 0;
    ctx.change_type(PACKET_HOST).map_err(|_| Refused)
}

/// Both MACs of the answer to a frame; a group address is never a source.
#[inline(always)]
pub(crate) fn answer_macs(frame: &Ethernet, own: [u16; 3]) -> [u16; 6] {
    let [a, b, c] = frame.source();
    let [x, y, z] = if ethernet::is_station(frame.destination()) {
        frame.destination()
    } else {
        own
    };
    [a, b, c, x, y, z]
}

/// Sends the packet out of an interface.
#[inline(always)]
pub(crate) fn send_out(ifindex: u32) -> i32 {
    // SAFETY: takes numbers only.
    (unsafe { bpf_redirect(ifindex, 0) }) as i32
}

/// Hands the packet to the other end of a veth pair, in its namespace, as if it had just arrived there.
#[inline(always)]
pub(crate) fn hand_to_peer(ifindex: u32) -> i32 {
    // SAFETY: takes numbers only.
    (unsafe { bpf_redirect_peer(ifindex, 0) }) as i32
}

#[inline(always)]
fn done(code: i64) -> Result<(), Refused> {
    if code < 0 { Err(Refused) } else { Ok(()) }
}
