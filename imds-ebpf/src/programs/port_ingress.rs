//! TC ingress of every port, before any bridge or the host's IP layer sees the packet. What is not about the metadata
//! service goes on to the next program (`TC_ACT_UNSPEC`); what is, is answered, handed to the responder, or dropped.
//!
//! Two steps, because nearly every packet is foreign: [`may_concern_us`] looks at a few groups of linear packets and lets
//! go of what cannot be ours; [`handle`] reads properly, pulls what is not linear, and decides.
//!
//! Needs Linux 5.10 (`bpf_redirect_peer`); tested on 6.1 and 6.18.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use aya_log_ebpf::debug;
use imds_ebpf::{
    abi::{counter::Counter, link_header::LinkHeader, slot},
    decide::{self, Verdict},
    wire::{
        METADATA_MAC, METADATA_V4, METADATA_V6,
        arp::{self, Arp},
        ethernet::{self, Ethernet, is_tag},
        ipv4::{self, Ipv4},
        ipv6::{self, Ipv6},
        neighbour::{self, Neighbour},
        network_order,
    },
};

use crate::{
    maps,
    packet::{self, Refused, Tag},
};

/// What was done with a packet; each becomes one action of the hook. One number wide (only one variant carries data):
/// the verifier refuses the copies of unset bytes that a wider type brings.
enum Outcome {
    Foreign,
    Dropped(Counter),
    ArpAnswered,
    NeighbourAnswered,
    Delivered,
}

/// The frame around a packet.
struct Frame {
    ethernet: Ethernet,
    /// The outermost tag.
    tag: Tag,
    /// How many tags there are, in the frame and stripped from it.
    tags: u32,
}

#[classifier]
pub(crate) fn port_ingress(ctx: TcContext) -> i32 {
    if !may_concern_us(&ctx) {
        return TC_ACT_UNSPEC;
    }
    act(ctx.skb.skb)
}

/// Whether the packet can be about the metadata service. Errs towards yes.
#[inline(always)]
fn may_concern_us(ctx: &TcContext) -> bool {
    let Some([ethertype]) = packet::read_linear::<[u16; 1]>(ctx, ethernet::ETHERTYPE) else {
        return true;
    };
    match u16::from_be(ethertype) {
        tag if is_tag(tag) => {
            const INNER: usize = ethernet::ETHERTYPE + ethernet::TAG_BYTES;
            let Some([ethertype]) = packet::read_linear::<[u16; 1]>(ctx, INNER) else {
                return true;
            };
            network_may_concern_us::<{ ethernet::BYTES + ethernet::TAG_BYTES }>(
                ctx,
                u16::from_be(ethertype),
            )
        }
        ethertype => network_may_concern_us::<{ ethernet::BYTES }>(ctx, ethertype),
    }
}

#[inline(always)]
fn network_may_concern_us<const AT: usize>(ctx: &TcContext, ethertype: u16) -> bool {
    match ethertype {
        ethernet::IPV4 => packet::read_linear::<[u16; 4]>(ctx, AT + ipv4::SOURCE)
            .is_none_or(|pair| decide::names_metadata_v4(&pair)),
        ethernet::IPV6 => {
            packet::read_linear::<Ipv6>(ctx, AT).is_none_or(|ip| decide::may_name_metadata_v6(&ip))
        }
        ethernet::ARP => {
            packet::read_linear::<Arp>(ctx, AT).is_none_or(|arp| decide::arp_names_metadata(&arp))
        }
        other => is_tag(other),
    }
}

/// Its own function in the program, so that the registers it needs are not saved for every foreign packet.
#[inline(never)]
fn act(skb: *mut __sk_buff) -> i32 {
    let ctx = TcContext::new(skb);
    match handle(&ctx) {
        Outcome::Foreign => TC_ACT_UNSPEC,
        Outcome::Dropped(reason) => {
            maps::count(reason);
            debug!(
                &ctx,
                "port {}: dropped: {}",
                packet::ifindex(&ctx),
                reason as u32
            );
            TC_ACT_SHOT
        }
        Outcome::ArpAnswered => {
            maps::count(Counter::ArpAnswered);
            packet::send_out(packet::ifindex(&ctx))
        }
        Outcome::NeighbourAnswered => {
            maps::count(Counter::NeighbourAnswered);
            packet::send_out(packet::ifindex(&ctx))
        }
        Outcome::Delivered => {
            let Some(responder) = maps::responder_ifindex() else {
                maps::count(Counter::NoResponder);
                return TC_ACT_SHOT;
            };
            maps::count(Counter::Delivered);
            packet::hand_to_peer(responder)
        }
    }
}

#[inline(always)]
fn handle(ctx: &TcContext) -> Outcome {
    let Some(ethernet) = packet::read::<Ethernet>(ctx, 0) else {
        return Outcome::Foreign;
    };
    let tag = packet::stripped_tag(ctx);
    let tags = u32::from(tag.protocol != 0);
    let ethertype = ethernet.ethertype();
    let frame = Frame {
        ethernet,
        tag,
        tags,
    };
    if is_tag(ethertype) {
        return handle_tagged(ctx, frame, ethertype);
    }
    handle_network::<{ ethernet::BYTES }>(ctx, &frame, ethertype)
}

/// A frame with a tag inside. The kernel strips the outermost one on real interfaces, so this is the second there;
/// looking behind both is enough to know whether it is about us, and three are beyond anybody's reading.
#[inline(always)]
fn handle_tagged(ctx: &TcContext, mut frame: Frame, protocol: u16) -> Outcome {
    const ONE: usize = ethernet::BYTES + ethernet::TAG_BYTES;
    const TWO: usize = ONE + ethernet::TAG_BYTES;
    let Some((tag, ethertype)) = packet::tag_at(ctx, protocol, ethernet::BYTES) else {
        return Outcome::Foreign;
    };
    if frame.tags == 0 {
        frame.tag = tag;
    }
    frame.tags += 1;
    if !is_tag(ethertype) {
        return handle_network::<ONE>(ctx, &frame, ethertype);
    }
    let Some((_, ethertype)) = packet::tag_at(ctx, ethertype, ONE) else {
        return Outcome::Foreign;
    };
    frame.tags += 1;
    if is_tag(ethertype) {
        // Closed rather than open: nobody can tell what is behind it, and no network of guests uses four tags.
        return Outcome::Dropped(Counter::TagsTooDeep);
    }
    handle_network::<TWO>(ctx, &frame, ethertype)
}

/// A packet whose network header starts at `AT`.
#[inline(always)]
fn handle_network<const AT: usize>(ctx: &TcContext, frame: &Frame, ethertype: u16) -> Outcome {
    match ethertype {
        ethernet::IPV4 => handle_ipv4::<AT>(ctx, frame),
        ethernet::IPV6 => handle_ipv6::<AT>(ctx, frame),
        ethernet::ARP => handle_arp::<AT>(ctx, frame),
        _ => Outcome::Foreign,
    }
}

#[inline(always)]
fn handle_ipv4<const AT: usize>(ctx: &TcContext, frame: &Frame) -> Outcome {
    let Some(ip) = packet::read::<Ipv4>(ctx, AT) else {
        return Outcome::Foreign;
    };
    match decide::ipv4(&ip, ctx.len() - AT as u32) {
        Verdict::Deliver => {}
        verdict => return refuse(frame, verdict),
    }
    deliver(ctx, frame, ip.source_mapped(), |slot| {
        packet::replace_v4(ctx, ipv4::DESTINATION, METADATA_V4, slot::tag_v4(slot))
    })
}

#[inline(always)]
fn handle_ipv6<const AT: usize>(ctx: &TcContext, frame: &Frame) -> Outcome {
    let Some(ip) = packet::read::<Ipv6>(ctx, AT) else {
        return Outcome::Foreign;
    };
    match decide::ipv6(&ip, ctx.len() - AT as u32) {
        Verdict::Deliver => {}
        Verdict::Answer => return handle_neighbour::<AT>(ctx, frame, &ip),
        verdict => return refuse(frame, verdict),
    }
    deliver(ctx, frame, ip.source(), |slot| {
        let (from, to) = (
            network_order(METADATA_V6),
            network_order(slot::tag_v6(slot)),
        );
        packet::replace_v6(ctx, ipv6::DESTINATION, from, to)
    })
}

#[inline(always)]
fn handle_neighbour<const AT: usize>(ctx: &TcContext, frame: &Frame, ip: &Ipv6) -> Outcome {
    let Some(message) = packet::read::<Neighbour>(ctx, AT + ipv6::BYTES) else {
        return refuse(frame, decide::icmpv6(ip));
    };
    match decide::neighbour(ip, &message) {
        Verdict::Answer => {}
        verdict => return refuse(frame, verdict),
    }
    answer(ctx, frame, Outcome::NeighbourAnswered, || {
        let advertisement = neighbour::advertisement(ip);
        // Any options of the solicitation give way to our one.
        packet::set_length(ctx, (AT + neighbour::ANSWER_BYTES) as u32)?;
        ctx.store(AT, &advertisement, 0).map_err(|_| Refused)
    })
}

#[inline(always)]
fn handle_arp<const AT: usize>(ctx: &TcContext, frame: &Frame) -> Outcome {
    let Some(request) = packet::read::<Arp>(ctx, AT) else {
        return Outcome::Foreign;
    };
    match decide::arp(&request) {
        Verdict::Answer => {}
        verdict => return refuse(frame, verdict),
    }
    answer(ctx, frame, Outcome::ArpAnswered, || {
        ctx.store(AT, &request.reply(own_mac()), 0)
            .map_err(|_| Refused)
    })
}

/// The outcome of a verdict that ends here.
#[inline(always)]
fn refuse(frame: &Frame, verdict: Verdict) -> Outcome {
    match verdict {
        Verdict::Foreign => Outcome::Foreign,
        Verdict::Drop(_) if frame.tags > 1 => Outcome::Dropped(Counter::DoubleTagged),
        Verdict::Drop(reason) => Outcome::Dropped(reason),
        // Only the arms above get here; closed if that ever changes.
        Verdict::Deliver | Verdict::Answer => Outcome::Dropped(Counter::Malformed),
    }
}

/// Turns the frame into its own answer; it leaves by the port that it came from, tag and all.
#[inline(always)]
fn answer(
    ctx: &TcContext,
    frame: &Frame,
    answered: Outcome,
    write: impl FnOnce() -> Result<(), Refused>,
) -> Outcome {
    if let Some(reason) = unanswerable(frame) {
        return Outcome::Dropped(reason);
    }
    if let Err(reason) = admitted(ctx) {
        return Outcome::Dropped(reason);
    }
    let [a, b, c] = frame.ethernet.source();
    let [x, y, z] = own_mac();
    let macs = [a, b, c, x, y, z];
    match write().and_then(|()| packet::write_macs(ctx, &macs)) {
        Ok(()) => answered,
        Err(Refused) => Outcome::Dropped(Counter::RewriteFailed),
    }
}

/// Tags the packet's destination with the port's slot.
#[inline(always)]
fn deliver(
    ctx: &TcContext,
    frame: &Frame,
    guest: [u16; 8],
    tag_destination: impl FnOnce(u32) -> Result<(), Refused>,
) -> Outcome {
    if let Some(reason) = unanswerable(frame) {
        return Outcome::Dropped(reason);
    }
    let slot = match admitted(ctx) {
        Ok(slot) => slot,
        Err(reason) => return Outcome::Dropped(reason),
    };
    let header = LinkHeader {
        address: guest,
        macs: packet::answer_macs(&frame.ethernet, own_mac()),
        vlan_protocol: frame.tag.protocol,
        vlan_tci: frame.tag.tci,
    };
    maps::remember_link(slot, &header);
    match untag(ctx, frame)
        .and_then(|()| tag_destination(slot))
        .and_then(|()| packet::address_to_host(ctx))
    {
        Ok(()) => Outcome::Delivered,
        Err(Refused) => Outcome::Dropped(Counter::RewriteFailed),
    }
}

/// The slot of the port's instance, which may still send this second.
#[inline(always)]
fn admitted(ctx: &TcContext) -> Result<u32, Counter> {
    let slot = maps::slot_of_port(packet::ifindex(ctx)).ok_or(Counter::NoInstance)?;
    if !maps::may_send(slot, packet::wire_packets(ctx), packet::now_nanoseconds()) {
        return Err(Counter::RateLimited);
    }
    Ok(slot)
}

#[inline(always)]
fn untag(ctx: &TcContext, frame: &Frame) -> Result<(), Refused> {
    if frame.tags == 0 {
        return Ok(());
    }
    packet::pop_tag(ctx)
}

/// Why no answer could find its way back through this frame's header.
#[inline(always)]
fn unanswerable(frame: &Frame) -> Option<Counter> {
    if frame.tags > 1 {
        return Some(Counter::DoubleTagged);
    }
    if !ethernet::is_station(frame.ethernet.source()) {
        return Some(Counter::Malformed);
    }
    None
}

#[inline(always)]
fn own_mac() -> [u16; 3] {
    [
        METADATA_MAC[0].to_be(),
        METADATA_MAC[1].to_be(),
        METADATA_MAC[2].to_be(),
    ]
}

const _: () = assert!(size_of::<Arp>() == arp::BYTES);
const _: () = assert!(size_of::<Ipv4>() == ipv4::BYTES);
const _: () = assert!(size_of::<Ipv6>() == ipv6::BYTES);
