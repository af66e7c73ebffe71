//! TC ingress of the host's end of the veth pair into the responder's namespace: every packet that the responder's
//! network stack sends. TCP from a tag address goes to the port of its slot, in the metadata service's name; nothing
//! else leaves (`TC_ACT_SHOT`), so the host's stack never sees a packet of the responder.
//!
//! Needs Linux 5.10 (`bpf_redirect_peer`); tested on 6.1 and 6.18.

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
use aya_log_ebpf::debug;
use imds_ebpf::{
    abi::{
        counter::Counter,
        port::{REPLY_TO_PEER, SlotEntry},
        slot,
    },
    decide,
    wire::{
        METADATA_V4, METADATA_V6,
        ethernet::{self, Ethernet},
        ipv4::{self, Ipv4},
        ipv6::{self, Ipv6},
        network_order,
    },
};

use crate::{
    maps,
    packet::{self, Refused, Tag},
};

const AT: usize = ethernet::BYTES;

#[classifier]
pub(crate) fn responder_ingress(ctx: TcContext) -> i32 {
    match handle(&ctx) {
        Ok(entry) => {
            maps::count(Counter::Replied);
            send(&entry)
        }
        Err(reason) => {
            maps::count(reason);
            debug!(&ctx, "responder: dropped: {}", reason as u32);
            TC_ACT_SHOT
        }
    }
}

#[inline(always)]
fn send(entry: &SlotEntry) -> i32 {
    if entry.flags & REPLY_TO_PEER != 0 {
        return packet::hand_to_peer(entry.ifindex);
    }
    packet::send_out(entry.ifindex)
}

#[inline(always)]
fn handle(ctx: &TcContext) -> Result<SlotEntry, Counter> {
    let ethernet = packet::read::<Ethernet>(ctx, 0).ok_or(Counter::ReplyForeign)?;
    match ethernet.ethertype() {
        ethernet::IPV4 => handle_ipv4(ctx),
        ethernet::IPV6 => handle_ipv6(ctx),
        _ => Err(Counter::ReplyForeign),
    }
}

#[inline(always)]
fn handle_ipv4(ctx: &TcContext) -> Result<SlotEntry, Counter> {
    let ip = packet::read::<Ipv4>(ctx, AT).ok_or(Counter::ReplyForeign)?;
    let slot = decide::reply_v4(&ip).ok_or(Counter::ReplyForeign)?;
    reply(ctx, slot, &ip.destination_mapped(), || {
        packet::replace_v4(ctx, ipv4::SOURCE, ip.source(), METADATA_V4)
    })
}

#[inline(always)]
fn handle_ipv6(ctx: &TcContext) -> Result<SlotEntry, Counter> {
    let ip = packet::read::<Ipv6>(ctx, AT).ok_or(Counter::ReplyForeign)?;
    let slot = decide::reply_v6(&ip).ok_or(Counter::ReplyForeign)?;
    reply(ctx, slot, &ip.destination(), || {
        packet::replace_v6(
            ctx,
            ipv6::SOURCE,
            network_order(slot::tag_v6(slot)),
            network_order(METADATA_V6),
        )
    })
}

#[inline(always)]
fn reply(
    ctx: &TcContext,
    slot: u32,
    guest: &[u16; 8],
    name_service: impl FnOnce() -> Result<(), Refused>,
) -> Result<SlotEntry, Counter> {
    let entry = maps::entry_of_slot(slot).ok_or(Counter::ReplyStale)?;
    let link = maps::link_for(slot, guest).ok_or(Counter::ReplyUnknownLink)?;
    let tag = Tag {
        protocol: link.vlan_protocol,
        tci: link.vlan_tci,
    };
    name_service()
        .and_then(|()| packet::write_macs(ctx, &link.macs))
        .and_then(|()| packet::push_tag(ctx, tag))
        .and_then(|()| packet::address_to_host(ctx))
        .map_err(|Refused| Counter::RewriteFailed)?;
    Ok(entry)
}
