//! TC egress of every uplink: the guard. A packet that the host forwards to the metadata address is a guest's that
//! meant *its* metadata service and would reach the host's own; it is dropped and counted by the interface that it
//! came in by. What the host sends itself passes, and so does everything else (`TC_ACT_UNSPEC`).
//!
//! It covers guests that nobody registered, and each guest until its port is attached. Destinations alone count: a
//! fragment, a packet with options or a header that lies is dropped like any other, and what was translated (NAT) is
//! seen as it leaves.
//!
//! Two entry points, because devices without Ethernet (tunnels, WireGuard, PPP) hand over bare IP packets.
//!
//! Needs Linux 5.4; tested on 6.1 and 6.18.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use aya_log_ebpf::debug;
use imds_ebpf::{
    abi::counter::Counter,
    decide,
    wire::{
        ethernet::{self, is_tag},
        ipv4, ipv6,
    },
};

use crate::{maps, packet};

#[classifier]
pub(crate) fn uplink_egress(ctx: TcContext) -> i32 {
    if !decide::is_forwarded(packet::ingress_ifindex(&ctx)) || !may_leave_for_metadata(&ctx) {
        return TC_ACT_UNSPEC;
    }
    judge_frame(ctx.skb.skb)
}

#[classifier]
pub(crate) fn uplink_egress_ip(ctx: TcContext) -> i32 {
    if !decide::is_forwarded(packet::ingress_ifindex(&ctx)) {
        return TC_ACT_UNSPEC;
    }
    let ethertype = packet::protocol(&ctx);
    act(&ctx, leaves_for_metadata::<0>(&ctx, ethertype))
}

/// A first look, at linear packets without pulling. Errs towards yes.
#[inline(always)]
fn may_leave_for_metadata(ctx: &TcContext) -> bool {
    const AT: usize = ethernet::BYTES;
    let Some([ethertype]) = packet::read_linear::<[u16; 1]>(ctx, ethernet::ETHERTYPE) else {
        return true;
    };
    match u16::from_be(ethertype) {
        ethernet::IPV4 => packet::read_linear::<[u16; 2]>(ctx, AT + ipv4::DESTINATION)
            .is_none_or(|destination| decide::is_for_metadata_v4(&destination)),
        ethernet::IPV6 => packet::read_linear::<[u16; 8]>(ctx, AT + ipv6::DESTINATION)
            .is_none_or(|destination| decide::is_for_metadata_v6(&destination)),
        other => is_tag(other),
    }
}

/// Its own function in the program, so that the registers it needs are not saved for every packet.
#[inline(never)]
fn judge_frame(skb: *mut __sk_buff) -> i32 {
    let ctx = TcContext::new(skb);
    act(&ctx, frame_leaves_for_metadata(&ctx))
}

/// Looks behind as many tags as `port_ingress` does. One tag may be outside of the frame, where it hides nothing.
#[inline(always)]
fn frame_leaves_for_metadata(ctx: &TcContext) -> bool {
    const ONE: usize = ethernet::BYTES + ethernet::TAG_BYTES;
    const TWO: usize = ONE + ethernet::TAG_BYTES;
    let Some([ethertype]) = packet::read::<[u16; 1]>(ctx, ethernet::ETHERTYPE) else {
        return packet::reaches(ctx, ethernet::BYTES);
    };
    let ethertype = u16::from_be(ethertype);
    if !is_tag(ethertype) {
        return leaves_for_metadata::<{ ethernet::BYTES }>(ctx, ethertype);
    }
    let Some((_, ethertype)) = packet::tag_at(ctx, ethertype, ethernet::BYTES) else {
        return packet::reaches(ctx, ONE);
    };
    if !is_tag(ethertype) {
        return leaves_for_metadata::<ONE>(ctx, ethertype);
    }
    let Some((_, ethertype)) = packet::tag_at(ctx, ethertype, ONE) else {
        return packet::reaches(ctx, TWO);
    };
    // Closed rather than open: nobody can tell what is behind a third.
    is_tag(ethertype) || leaves_for_metadata::<TWO>(ctx, ethertype)
}

/// Whether the packet whose network header starts at `AT` goes to the metadata address. One that is long enough to say
/// so and cannot be read counts as going there.
#[inline(always)]
fn leaves_for_metadata<const AT: usize>(ctx: &TcContext, ethertype: u16) -> bool {
    match ethertype {
        ethernet::IPV4 => packet::read::<[u16; 2]>(ctx, AT + ipv4::DESTINATION).map_or_else(
            || packet::reaches(ctx, AT + ipv4::BYTES),
            |destination| decide::is_for_metadata_v4(&destination),
        ),
        ethernet::IPV6 => packet::read::<[u16; 8]>(ctx, AT + ipv6::DESTINATION).map_or_else(
            || packet::reaches(ctx, AT + ipv6::BYTES),
            |destination| decide::is_for_metadata_v6(&destination),
        ),
        _ => false,
    }
}

#[inline(always)]
fn act(ctx: &TcContext, is_for_metadata: bool) -> i32 {
    if !is_for_metadata {
        return TC_ACT_UNSPEC;
    }
    let ingress = packet::ingress_ifindex(ctx);
    maps::count(Counter::Guarded);
    maps::count_guarded(ingress);
    debug!(
        ctx,
        "uplink {}: dropped: forwarded from {}",
        packet::ifindex(ctx),
        ingress
    );
    TC_ACT_SHOT
}
