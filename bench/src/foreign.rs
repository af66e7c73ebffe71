//! Figure c: what a packet that is none of our business costs at a port, over a program that does nothing at all.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, ensure};
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, PacketBuilder, VlanId,
};
use imds_user::dataplane::load::{self, KernelLog, PORT_INGRESS};

use crate::{
    cpu::{self, Cpus},
    kernel,
    options::Figure,
    results::{Aim, Row, Unit},
    statistics::{differences, median},
    tell,
};

const AIM: Aim = Aim::Below { aim: 15.0 };
/// TC_ACT_UNSPEC: on to the next program.
const PASS: u32 = u32::MAX;
const GUEST_MAC: [u8; 6] = [6, 1, 2, 3, 4, 5];
const OTHER_MAC: [u8; 6] = [2, 9, 8, 7, 6, 5];
const GUEST: [u8; 4] = [10, 0, 0, 10];
const OTHER: [u8; 4] = [10, 0, 0, 20];
const GUEST_V6: [u8; 16] = [0xfd, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
const OTHER_V6: [u8; 16] = [0xfd, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x20];

/// How long it takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) runs: u32,
    pub(crate) repeats: u32,
}

/// Measures.
pub(crate) fn measure(extent: Extent, cpus: &Cpus) -> anyhow::Result<Vec<Row>> {
    cpu::pin(cpus.server)?;
    let mut ebpf = load::load(None, KernelLog::Off)?;
    let ours = load::classifier(&mut ebpf, PORT_INGRESS)?.fd()?;
    let empty = kernel::load_empty().context("load an empty program")?;
    let mut rows = Vec::new();
    for (what, frame) in frames()? {
        tell(format_args!(
            "c: {what} ({} runs of {} repeats)",
            extent.runs, extent.repeats
        ));
        let (mut with_ours, mut with_empty) = (Vec::new(), Vec::new());
        for _ in 0..extent.runs {
            with_ours.push(nanoseconds(ours.as_fd(), &frame, extent.repeats)?);
            with_empty.push(nanoseconds(empty.as_fd(), &frame, extent.repeats)?);
        }
        let rounds = differences(&with_ours, &with_empty);
        rows.push(
            Row::of_rounds(Figure::C, what.to_owned(), &rounds, Unit::Nanoseconds)
                .aimed(AIM)
                .with("port_ingress", &[("nanoseconds", median(&with_ours))])
                .with("empty program", &[("nanoseconds", median(&with_empty))]),
        );
    }
    cpus.release()?;
    Ok(rows)
}

fn nanoseconds(program: impl std::os::fd::AsFd, frame: &[u8], repeats: u32) -> anyhow::Result<f64> {
    let ran = kernel::run(program, frame, repeats).context("run a program")?;
    ensure!(
        ran.action == PASS,
        "a foreign packet got the action {}",
        ran.action
    );
    Ok(ran.nanoseconds)
}

/// Packets between two machines that are not the metadata service.
fn frames() -> anyhow::Result<Vec<(&'static str, Vec<u8>)>> {
    let ethernet = || PacketBuilder::ethernet2(GUEST_MAC, OTHER_MAC);
    let mut frames = Vec::new();
    let mut add = |what, step: etherparse::PacketBuilderStep<etherparse::TcpHeader>| {
        let mut frame = Vec::new();
        step.write(&mut frame, &[0; 64])
            .map(|()| frames.push((what, frame)))
    };
    let tcp_v4 = ethernet().ipv4(GUEST, OTHER, 64).tcp(40_000, 80, 1, 64_000);
    add("IPv4", tcp_v4)?;
    let tcp_v6 = ethernet()
        .ipv6(GUEST_V6, OTHER_V6, 64)
        .tcp(40_000, 80, 1, 64_000);
    add("IPv6", tcp_v6)?;
    let in_vlan = ethernet()
        .single_vlan(VlanId::try_new(42).context("a VLAN's number")?)
        .ipv4(GUEST, OTHER, 64)
        .tcp(40_000, 80, 1, 64_000);
    add("IPv4 in a VLAN", in_vlan)?;
    frames.insert(2, ("ARP", arp_request()?));
    Ok(frames)
}

fn arp_request() -> anyhow::Result<Vec<u8>> {
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &GUEST_MAC,
        &GUEST,
        &[0; 6],
        &OTHER,
    )
    .context("an ARP packet")?;
    let header = Ethernet2Header {
        source: GUEST_MAC,
        destination: [0xff; 6],
        ether_type: EtherType::ARP,
    };
    let mut frame = header.to_bytes().to_vec();
    frame.extend_from_slice(&packet.to_bytes());
    Ok(frame)
}
