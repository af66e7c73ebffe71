//! The programs in the kernel, packet by packet (`BPF_PROG_TEST_RUN`): bytes, checksums, verdicts and counters.

#![expect(
    clippy::unwrap_used,
    reason = "a test says what failed by failing there"
)]

use std::net::{Ipv4Addr, Ipv6Addr};

use aya::{
    Ebpf, TestRun, TestRunOptions,
    maps::{Array, HashMap, PerCpuArray, PerCpuHashMap, xdp::DevMap},
    programs::SchedClassifier,
};
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, Icmpv6Header, IpNumber,
    Ipv4Header, Ipv6Header, PacketBuilder, SingleVlanHeader, SlicedPacket, TcpHeaderSlice, VlanId,
};
use imds_ebpf::abi::{
    counter::Counter, link_header::LinkMemory, port::SlotEntry, rate::Rate, slot,
};
use imds_tests::{Random, needs_root};
use imds_user::dataplane::load::{self, KernelLog, PORT_INGRESS, RESPONDER_INGRESS, UPLINK_EGRESS};

const PASS: u32 = u32::MAX; // TC_ACT_UNSPEC
const DROP: u32 = 2; // TC_ACT_SHOT
const REDIRECT: u32 = 7; // TC_ACT_REDIRECT

const METADATA: [u8; 4] = [169, 254, 169, 254];
const METADATA_V6: [u8; 16] = [0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x54];
const SERVICE_MAC: [u8; 6] = [2, 0x49, 0x4d, 0x44, 0x53, 1];
const GUEST: [u8; 4] = [10, 0, 0, 10];
const GUEST_V6: [u8; 16] = [0xfd, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
const GUEST_MAC: [u8; 6] = [6, 1, 2, 3, 4, 5];
const GATEWAY_MAC: [u8; 6] = [2, 9, 8, 7, 6, 5];
const VLAN: u16 = 42;
/// An index with a generation, so that both halves are seen.
const SLOT: u32 = 0x3_0007;
/// Test runs come in by the loopback device of the namespace.
const IFINDEX: u32 = 1;

/// The programs as the daemon loads them, with one guest.
struct Programs {
    ebpf: Ebpf,
    counters: PerCpuArray<aya::maps::MapData, u64>,
}

/// What became of a packet.
struct Ran {
    action: u32,
    frame: Vec<u8>,
    counted: Vec<Counter>,
}

impl Programs {
    fn load() -> Option<Self> {
        if !needs_root() {
            return None;
        }
        let mut ebpf = load::load(None, KernelLog::Off).unwrap();
        let counters = PerCpuArray::try_from(ebpf.take_map("COUNTERS").unwrap()).unwrap();
        let mut programs = Self { ebpf, counters };
        programs.set_device("RESPONDER", 0);
        programs.assign(IFINDEX, SLOT);
        Some(programs)
    }

    fn assign(&mut self, ifindex: u32, slot: u32) {
        let mut ports: HashMap<_, u32, u32> =
            HashMap::try_from(self.ebpf.map_mut("PORTS").unwrap()).unwrap();
        ports.insert(ifindex, slot, 0).unwrap();
        let mut slots: Array<_, SlotEntry> =
            Array::try_from(self.ebpf.map_mut("SLOTS").unwrap()).unwrap();
        slots
            .set(
                slot::index_of(slot),
                SlotEntry {
                    slot,
                    ifindex,
                    flags: 0,
                },
                0,
            )
            .unwrap();
        self.set_device("DEVICES", slot::index_of(slot));
    }

    /// Puts the only device that a test run knows into a map.
    fn set_device(&mut self, map: &str, index: u32) {
        let mut devices = DevMap::try_from(self.ebpf.map_mut(map).unwrap()).unwrap();
        devices.set(index, IFINDEX, None, 0).unwrap();
    }

    fn forget_port(&mut self) {
        let mut ports: HashMap<_, u32, u32> =
            HashMap::try_from(self.ebpf.map_mut("PORTS").unwrap()).unwrap();
        ports.remove(&IFINDEX).unwrap();
    }

    fn links(&mut self) -> LinkMemory {
        let links: Array<_, LinkMemory> =
            Array::try_from(self.ebpf.map_mut("LINKS").unwrap()).unwrap();
        links.get(&slot::index_of(SLOT), 0).unwrap()
    }

    /// So many packets a second, and not yet one sent.
    fn limit(&mut self, packets_per_second: u32) {
        let mut rates: Array<_, Rate> =
            Array::try_from(self.ebpf.map_mut("RATES").unwrap()).unwrap();
        let rate = Rate::per_second(packets_per_second);
        rates.set(slot::index_of(SLOT), rate, 0).unwrap();
    }

    fn rate(&mut self) -> Rate {
        let rates: Array<_, Rate> = Array::try_from(self.ebpf.map_mut("RATES").unwrap()).unwrap();
        rates.get(&slot::index_of(SLOT), 0).unwrap()
    }

    /// Runs the program for ports on a frame that stands for several segments.
    fn run_segments(&mut self, frame: &[u8], segments: u32) -> Ran {
        // `struct __sk_buff` (linux/bpf.h): 192 bytes; gso_segs at 164, gso_size at 176.
        let mut context = [0; 192];
        context[164..168].copy_from_slice(&segments.to_ne_bytes());
        context[176..180].copy_from_slice(&300_u32.to_ne_bytes());
        self.run_with(PORT_INGRESS, frame, Some(&context))
    }

    fn run_port(&mut self, frame: &[u8]) -> Ran {
        self.run(PORT_INGRESS, frame)
    }

    fn run_responder(&mut self, frame: &[u8]) -> Ran {
        self.run(RESPONDER_INGRESS, frame)
    }

    /// Runs the guard on a frame that came in by an interface; by none if the host sends it itself.
    fn run_uplink(&mut self, frame: &[u8], ingress_ifindex: u32) -> Ran {
        // `struct __sk_buff` (linux/bpf.h): ingress_ifindex at 36.
        let mut context = [0; 192];
        context[36..40].copy_from_slice(&ingress_ifindex.to_ne_bytes());
        self.run_with(UPLINK_EGRESS, frame, Some(&context))
    }

    fn guarded_from(&mut self, ingress_ifindex: u32) -> u64 {
        let guarded: PerCpuHashMap<_, u32, u64> =
            PerCpuHashMap::try_from(self.ebpf.map_mut("GUARDED").unwrap()).unwrap();
        guarded
            .get(&ingress_ifindex, 0)
            .map_or(0, |counts| counts.iter().sum())
    }

    fn run(&mut self, program: &'static str, frame: &[u8]) -> Ran {
        self.run_with(program, frame, None)
    }

    fn run_with(&mut self, program: &'static str, frame: &[u8], context: Option<&[u8]>) -> Ran {
        let before = self.counts();
        let mut out = vec![0; frame.len() + 256];
        let program: &mut SchedClassifier = load::classifier(&mut self.ebpf, program).unwrap();
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: context,
            ..TestRunOptions::new()
        };
        let result = program.test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        let after = self.counts();
        let counted = Counter::ALL
            .iter()
            .copied()
            .filter(|one| after[*one as usize] != before[*one as usize])
            .collect();
        Ran {
            action: result.return_value,
            frame: out,
            counted,
        }
    }

    fn counts(&self) -> Vec<u64> {
        let sum = |counter: &Counter| {
            self.counters
                .get(&(*counter as u32), 0)
                .unwrap()
                .iter()
                .sum()
        };
        Counter::ALL.iter().map(sum).collect()
    }
}

fn check_passes(programs: &mut Programs, what: &str, frame: &[u8]) {
    let ran = programs.run_port(frame);
    assert_eq!(ran.action, PASS, "{what}");
    assert_eq!(ran.frame, frame, "{what}: changed");
    assert_eq!(ran.counted, [], "{what}");
}

fn check_dropped(programs: &mut Programs, what: &str, frame: &[u8], reason: Counter) {
    let ran = programs.run_port(frame);
    assert_eq!((ran.action, ran.counted), (DROP, vec![reason]), "{what}");
}

fn check_delivered(programs: &mut Programs, what: &str, frame: &[u8]) -> Vec<u8> {
    let ran = programs.run_port(frame);
    assert_eq!(
        (ran.action, ran.counted),
        (REDIRECT, vec![Counter::Delivered]),
        "{what}"
    );
    check_checksums(what, &ran.frame);
    ran.frame
}

/// Every checksum of a TCP packet, as the receiver would compute it.
fn check_checksums(what: &str, frame: &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(etherparse::TransportSlice::Tcp(tcp)) = &packet.transport else {
        panic!("{what}: no TCP")
    };
    let header = TcpHeaderSlice::from_slice(tcp.header_slice()).unwrap();
    let sum = match packet.net.as_ref().unwrap() {
        etherparse::NetSlice::Ipv4(ip) => {
            let header_checksum = ip.header().to_header().calc_header_checksum();
            assert_eq!(
                ip.header().header_checksum(),
                header_checksum,
                "{what}: IPv4 checksum"
            );
            header
                .calc_checksum_ipv4(&ip.header(), tcp.payload())
                .unwrap()
        }
        etherparse::NetSlice::Ipv6(ip) => header
            .calc_checksum_ipv6(&ip.header(), tcp.payload())
            .unwrap(),
        etherparse::NetSlice::Arp(_) => panic!("{what}: ARP"),
    };
    assert_eq!(header.checksum(), sum, "{what}: TCP checksum");
}

fn tcp_v4(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(GUEST_MAC, GATEWAY_MAC).ipv4(source, destination, 64);
    written(builder.tcp(40_000, 80, 1, 64_000).syn())
}

fn tcp_v6(source: [u8; 16], destination: [u8; 16]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(GUEST_MAC, GATEWAY_MAC).ipv6(source, destination, 64);
    written(builder.tcp(40_000, 80, 1, 64_000).syn())
}

fn written(step: etherparse::PacketBuilderStep<etherparse::TcpHeader>) -> Vec<u8> {
    let mut frame = Vec::new();
    step.write(&mut frame, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    frame
}

/// The same frame inside a tag.
fn tagged(frame: &[u8], id: u16, protocol: EtherType) -> Vec<u8> {
    let inner = EtherType(u16::from_be_bytes([frame[12], frame[13]]));
    let tag = SingleVlanHeader {
        pcp: etherparse::VlanPcp::try_new(3).unwrap(),
        vlan_id: VlanId::try_new(id).unwrap(),
        ether_type: inner,
        ..SingleVlanHeader::default()
    };
    [
        &frame[..12],
        &protocol.0.to_be_bytes(),
        &tag.to_bytes(),
        &frame[14..],
    ]
    .concat()
}

fn in_vlan(frame: &[u8]) -> Vec<u8> {
    tagged(frame, VLAN, EtherType::VLAN_TAGGED_FRAME)
}

/// An IPv4 packet with a header of the caller's making.
fn ipv4(change: impl FnOnce(&mut Ipv4Header), payload: &[u8]) -> Vec<u8> {
    let mut header =
        Ipv4Header::new(payload.len() as u16, 64, IpNumber::TCP, GUEST, METADATA).unwrap();
    change(&mut header);
    header.header_checksum = header.calc_header_checksum();
    let mut frame = ethernet(EtherType::IPV4);
    header.write(&mut frame).unwrap();
    frame.extend_from_slice(payload);
    frame
}

/// An IPv6 packet with a header of the caller's making.
fn ipv6(change: impl FnOnce(&mut Ipv6Header), payload: &[u8]) -> Vec<u8> {
    let mut header = Ipv6Header {
        payload_length: payload.len() as u16,
        next_header: IpNumber::TCP,
        hop_limit: 255,
        source: GUEST_V6,
        destination: METADATA_V6,
        ..Ipv6Header::default()
    };
    change(&mut header);
    let mut frame = ethernet(EtherType::IPV6);
    header.write(&mut frame).unwrap();
    frame.extend_from_slice(payload);
    frame
}

fn ethernet(ether_type: EtherType) -> Vec<u8> {
    Ethernet2Header {
        source: GUEST_MAC,
        destination: GATEWAY_MAC,
        ether_type,
    }
    .to_bytes()
    .to_vec()
}

fn tag_v4() -> [u8; 4] {
    Ipv4Addr::from(slot::tag_v4(SLOT)).octets()
}

fn tag_v6() -> [u8; 16] {
    Ipv6Addr::from(slot::tag_v6(SLOT)).octets()
}

const IP: usize = 14;

#[test]
fn tcp_to_the_service_is_tagged_and_handed_over() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    let frame = tcp_v4(GUEST, METADATA);
    for (what, sent) in [("IPv4", frame.clone()), ("IPv4 in a VLAN", in_vlan(&frame))] {
        let got = check_delivered(&mut programs, what, &sent);
        assert_eq!(
            got[..IP + 10],
            frame[..IP + 10],
            "{what}: before the checksum"
        );
        assert_eq!(got[IP + 12..IP + 16], GUEST, "{what}: the source stays");
        assert_eq!(got[IP + 16..IP + 20], tag_v4(), "{what}");
        assert_eq!(
            got[IP + 20..IP + 36],
            frame[IP + 20..IP + 36],
            "{what}: TCP up to its checksum"
        );
        assert_eq!(
            got[IP + 38..],
            frame[IP + 38..],
            "{what}: behind the checksum"
        );
    }
    let frame = tcp_v6(GUEST_V6, METADATA_V6);
    for (what, sent) in [("IPv6", frame.clone()), ("IPv6 in a VLAN", in_vlan(&frame))] {
        let got = check_delivered(&mut programs, what, &sent);
        assert_eq!(
            got[..IP + 24],
            frame[..IP + 24],
            "{what}: before the destination"
        );
        assert_eq!(got[IP + 24..IP + 40], tag_v6(), "{what}");
        assert_eq!(
            got[IP + 58..],
            frame[IP + 58..],
            "{what}: behind the checksum"
        );
    }
}

#[test]
fn the_link_header_is_remembered_for_the_answer() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    check_delivered(&mut programs, "tagged", &in_vlan(&tcp_v4(GUEST, METADATA)));
    let header = programs.links().recent;
    let macs: Vec<u8> = header
        .macs
        .iter()
        .flat_map(|group| group.to_ne_bytes())
        .collect();
    assert_eq!(macs, [GUEST_MAC, GATEWAY_MAC].concat());
    assert_eq!(
        (header.vlan_protocol, header.vlan_tci),
        (0x8100, 3 << 13 | VLAN)
    );

    let mut broadcast = tcp_v4(GUEST, METADATA);
    broadcast[..6].fill(0xff);
    check_delivered(&mut programs, "to everybody", &broadcast);
    let macs: Vec<u8> = programs
        .links()
        .recent
        .macs
        .iter()
        .flat_map(|group| group.to_ne_bytes())
        .collect();
    assert_eq!(
        macs,
        [GUEST_MAC, SERVICE_MAC].concat(),
        "an answer never comes from a group address"
    );
}

#[test]
fn a_packet_cut_anywhere_is_never_passed_once_it_names_the_service() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    // The shortest headers that are accepted: Ethernet, tag if any, IP, TCP.
    for (what, frame, address_ends, whole) in [
        ("IPv4", tcp_v4(GUEST, METADATA), 34, 54),
        ("IPv4 in a VLAN", in_vlan(&tcp_v4(GUEST, METADATA)), 38, 58),
        ("IPv6", tcp_v6(GUEST_V6, METADATA_V6), 54, 74),
        (
            "IPv6 in a VLAN",
            in_vlan(&tcp_v6(GUEST_V6, METADATA_V6)),
            58,
            78,
        ),
    ] {
        // The kernel's test runs take nothing shorter than the headers that the EtherType promises.
        let shortest = if frame[12] == 0x81 { 14 } else { address_ends };
        for length in shortest..frame.len() {
            let ran = programs.run_port(&frame[..length]);
            let expected = match length {
                _ if length < address_ends => PASS,
                _ if length < whole => DROP,
                _ => REDIRECT,
            };
            assert_eq!(ran.action, expected, "{what} cut at {length}");
        }
    }
}

#[test]
fn what_is_not_about_the_service_passes_untouched() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    for (what, frame) in [
        ("IPv4", tcp_v4(GUEST, [10, 0, 0, 1])),
        (
            "a neighbour of the address",
            tcp_v4(GUEST, [169, 254, 169, 253]),
        ),
        ("IPv4 to a tag", tcp_v4(GUEST, tag_v4())),
        ("IPv6", tcp_v6(GUEST_V6, GUEST_V6)),
        (
            "a neighbour of the IPv6 address",
            tcp_v6(
                GUEST_V6,
                [0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x53],
            ),
        ),
        (
            "an address of the same prefix",
            tcp_v6(
                GUEST_V6,
                [0xfd, 0, 0x0e, 0xc2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x54],
            ),
        ),
        ("ARP", arp(ArpOperation::REQUEST, GUEST, [10, 0, 0, 1])),
        (
            "neighbour solicitation",
            solicitation(GUEST_V6, GUEST_V6, GUEST_V6, 255, &[]),
        ),
        (
            "ICMPv6",
            ipv6(
                |ip| {
                    ip.destination = GUEST_V6;
                    ip.next_header = IpNumber::IPV6_ICMP;
                },
                &[128, 0, 0, 0],
            ),
        ),
        ("another EtherType", ethernet(EtherType(0x88cc))),
    ] {
        check_passes(&mut programs, what, &frame);
        check_passes(&mut programs, what, &in_vlan(&frame));
        check_passes(&mut programs, what, &in_vlan(&in_vlan(&frame)));
    }
}

#[test]
fn what_cannot_be_handled_is_dropped_and_counted() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    let tcp = &tcp_v4(GUEST, METADATA)[34..];
    let cases = [
        (
            "more fragments",
            ipv4(|ip| ip.more_fragments = true, tcp),
            Counter::Fragment,
        ),
        (
            "a later fragment",
            ipv4(|ip| ip.fragment_offset = 8.try_into().unwrap(), tcp),
            Counter::Fragment,
        ),
        (
            "options",
            ipv4(
                |ip| {
                    ip.options = [1, 1, 1, 0].into();
                    ip.total_len += 4;
                },
                tcp,
            ),
            Counter::IpOptions,
        ),
        (
            "UDP",
            ipv4(|ip| ip.protocol = IpNumber::UDP, tcp),
            Counter::Udp,
        ),
        (
            "ICMP",
            ipv4(|ip| ip.protocol = IpNumber::ICMP, tcp),
            Counter::Icmp,
        ),
        (
            "SCTP",
            ipv4(|ip| ip.protocol = IpNumber::SCTP, tcp),
            Counter::OtherProtocol,
        ),
        (
            "half a TCP header",
            ipv4(|_| {}, &tcp[..10]),
            Counter::Truncated,
        ),
        (
            "a length that denies its TCP header",
            ipv4(|ip| ip.total_len = 30, tcp),
            Counter::Malformed,
        ),
        (
            "UDP over IPv6",
            ipv6(|ip| ip.next_header = IpNumber::UDP, tcp),
            Counter::Udp,
        ),
        (
            "SCTP over IPv6",
            ipv6(|ip| ip.next_header = IpNumber::SCTP, tcp),
            Counter::OtherProtocol,
        ),
        (
            "echo over IPv6",
            ipv6(
                |ip| ip.next_header = IpNumber::IPV6_ICMP,
                &[128, 0, 0, 0, 0, 0, 0, 0],
            ),
            Counter::Icmp,
        ),
        (
            "an IPv6 fragment",
            ipv6(
                |ip| ip.next_header = IpNumber::IPV6_FRAGMENTATION_HEADER,
                tcp,
            ),
            Counter::Fragment,
        ),
        (
            "hop-by-hop options",
            ipv6(|ip| ip.next_header = IpNumber::IPV6_HEADER_HOP_BY_HOP, tcp),
            Counter::ExtensionHeader,
        ),
        (
            "destination options",
            ipv6(
                |ip| ip.next_header = IpNumber::IPV6_DESTINATION_OPTIONS,
                tcp,
            ),
            Counter::ExtensionHeader,
        ),
        (
            "a routing header",
            ipv6(|ip| ip.next_header = IpNumber::IPV6_ROUTE_HEADER, tcp),
            Counter::ExtensionHeader,
        ),
        (
            "half a TCP header over IPv6",
            ipv6(|_| {}, &tcp[..10]),
            Counter::Truncated,
        ),
    ];
    for (what, frame, reason) in cases {
        check_dropped(&mut programs, what, &frame, reason);
        check_dropped(&mut programs, what, &in_vlan(&frame), reason);
        check_dropped(
            &mut programs,
            what,
            &in_vlan(&in_vlan(&frame)),
            Counter::DoubleTagged,
        );
    }
    let mut version = ipv4(|_| {}, tcp);
    version[IP] = 0x65;
    check_dropped(
        &mut programs,
        "a wrong version",
        &version,
        Counter::Malformed,
    );
    let mut short = ipv4(|_| {}, tcp);
    short[IP] = 0x44;
    check_dropped(
        &mut programs,
        "a header of 16 bytes",
        &short,
        Counter::Malformed,
    );
}

#[test]
fn sources_that_cannot_be_answered_are_refused() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    for source in [
        [0, 0, 0, 0],
        [0, 1, 2, 3],
        [127, 0, 0, 1],
        [127, 128, 0, 7],
        [127, 255, 255, 254],
        [224, 0, 0, 1],
        [239, 9, 9, 9],
        [255; 4],
    ] {
        check_dropped(
            &mut programs,
            &format!("{source:?}"),
            &tcp_v4(source, METADATA),
            Counter::BadSource,
        );
    }
    for source in [
        [10, 1, 1, 1],
        [126, 255, 255, 254],
        [128, 0, 0, 1],
        [169, 254, 1, 2],
        [223, 255, 255, 255],
        [240, 0, 0, 5],
        [255, 255, 255, 254],
    ] {
        check_delivered(
            &mut programs,
            &format!("{source:?}"),
            &tcp_v4(source, METADATA),
        );
    }
    let v6 = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
    for source in [
        "::",
        "::1",
        "::10.0.0.1",
        "::ffff:10.0.0.1",
        "ff02::1",
        "fd49:4d44:5300::7",
        "fd49:4d44:5300::ffff:0:1",
    ] {
        check_dropped(
            &mut programs,
            source,
            &tcp_v6(v6(source), METADATA_V6),
            Counter::BadSource,
        );
    }
    for source in [
        "fe80::1",
        "2001:db8::1",
        "fd00:ec2::1",
        "fd49:4d44:5301::7",
        "64:ff9b::1",
    ] {
        check_delivered(&mut programs, source, &tcp_v6(v6(source), METADATA_V6));
    }
    for (what, frame) in [
        ("to a neighbour", tcp_v4(METADATA, GUEST)),
        ("to itself", tcp_v4(METADATA, METADATA)),
        ("over IPv6", tcp_v6(METADATA_V6, GUEST_V6)),
    ] {
        check_dropped(&mut programs, what, &frame, Counter::SpoofedSource);
    }
    let mut group = tcp_v4(GUEST, METADATA);
    group[6] = 0x01;
    check_dropped(
        &mut programs,
        "a source MAC of a group",
        &group,
        Counter::Malformed,
    );
    let mut zero = tcp_v4(GUEST, METADATA);
    zero[6..12].fill(0);
    check_dropped(&mut programs, "no source MAC", &zero, Counter::Malformed);
}

#[test]
fn tags_in_tags_are_refused() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    let frame = tcp_v4(GUEST, METADATA);
    let double = tagged(&in_vlan(&frame), 7, EtherType::PROVIDER_BRIDGING);
    check_dropped(&mut programs, "two tags", &double, Counter::DoubleTagged);
    check_dropped(
        &mut programs,
        "two tags, ARP",
        &in_vlan(&in_vlan(&arp(ArpOperation::REQUEST, GUEST, METADATA))),
        Counter::DoubleTagged,
    );
    check_dropped(
        &mut programs,
        "three tags",
        &in_vlan(&double),
        Counter::TagsTooDeep,
    );
    check_delivered(
        &mut programs,
        "one service tag",
        &tagged(&frame, 7, EtherType::PROVIDER_BRIDGING),
    );
}

#[test]
fn a_port_without_an_instance_drops() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    programs.forget_port();
    for (what, frame) in [
        ("IPv4", tcp_v4(GUEST, METADATA)),
        ("IPv6", tcp_v6(GUEST_V6, METADATA_V6)),
        ("ARP", arp(ArpOperation::REQUEST, GUEST, METADATA)),
        (
            "neighbour solicitation",
            solicitation(GUEST_V6, METADATA_V6, METADATA_V6, 255, &[]),
        ),
    ] {
        check_dropped(&mut programs, what, &frame, Counter::NoInstance);
    }
    check_passes(&mut programs, "foreign", &tcp_v4(GUEST, GUEST));
}

fn arp(operation: ArpOperation, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let hardware = ArpHardwareId::ETHERNET;
    let packet = ArpPacket::new(
        hardware,
        EtherType::IPV4,
        operation,
        &GUEST_MAC,
        &sender,
        &[0; 6],
        &target,
    )
    .unwrap();
    let mut frame = ethernet(EtherType::ARP);
    frame[..6].fill(0xff);
    frame.extend_from_slice(&packet.to_bytes());
    frame
}

#[test]
fn arp_for_the_address_is_answered_in_place() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    let plain = arp(ArpOperation::REQUEST, GUEST, METADATA);
    let padded = [plain.as_slice(), &[0; 18]].concat();
    let probe = arp(ArpOperation::REQUEST, [0; 4], METADATA);
    for (what, frame, at, sender) in [
        ("request", plain.clone(), 14, GUEST),
        ("padded request", padded, 14, GUEST),
        ("in a VLAN", in_vlan(&plain), 18, GUEST),
        ("probe", probe, 14, [0; 4]),
    ] {
        let ran = programs.run_port(&frame);
        assert_eq!(
            (ran.action, ran.counted),
            (REDIRECT, vec![Counter::ArpAnswered]),
            "{what}"
        );
        assert_eq!(ran.frame.len(), frame.len(), "{what}");
        assert_eq!(
            ran.frame[..12],
            [GUEST_MAC, SERVICE_MAC].concat(),
            "{what}: MACs"
        );
        assert_eq!(ran.frame[12..at], frame[12..at], "{what}: tag and type");
        let reply = [
            &[0, 1, 8, 0, 6, 4, 0, 2][..],
            &SERVICE_MAC,
            &METADATA,
            &GUEST_MAC,
            &sender,
        ]
        .concat();
        assert_eq!(ran.frame[at..at + 28], reply, "{what}");
    }
}

#[test]
fn other_arp_about_the_address_is_refused() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    for (what, frame) in [
        ("a reply to it", arp(ArpOperation::REPLY, GUEST, METADATA)),
        ("a claim", arp(ArpOperation::REQUEST, METADATA, METADATA)),
        (
            "a claim to a neighbour",
            arp(ArpOperation::REQUEST, METADATA, [10, 0, 0, 9]),
        ),
        (
            "a forged reply",
            arp(ArpOperation::REPLY, METADATA, [10, 0, 0, 9]),
        ),
    ] {
        check_dropped(&mut programs, what, &frame, Counter::ArpRefused);
        check_dropped(&mut programs, what, &in_vlan(&frame), Counter::ArpRefused);
    }
    let whole = arp(ArpOperation::REQUEST, GUEST, METADATA);
    for length in 14..whole.len() {
        check_passes(
            &mut programs,
            &format!("ARP cut at {length}"),
            &whole[..length],
        );
    }
}

fn solicitation(
    source: [u8; 16],
    destination: [u8; 16],
    target: [u8; 16],
    hop_limit: u8,
    options: &[u8],
) -> Vec<u8> {
    let body = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target, options].concat();
    ipv6(
        |ip| {
            ip.next_header = IpNumber::IPV6_ICMP;
            ip.source = source;
            ip.destination = destination;
            ip.hop_limit = hop_limit;
        },
        &body,
    )
}

/// The multicast group of everybody whose address ends like the service's.
const SOLICITED_NODE: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 2, 0x54];

#[test]
fn neighbour_solicitations_for_the_address_are_answered_in_place() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    let link_layer = [&[1, 1][..], &GUEST_MAC].concat();
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    let many = [link_layer.as_slice(), &nonce].concat();
    let link_local = "fe80::401:2ff:fe03:405"
        .parse::<Ipv6Addr>()
        .unwrap()
        .octets();
    for (what, source, destination, options) in [
        ("to the group", GUEST_V6, SOLICITED_NODE, &link_layer[..]),
        ("to the address", GUEST_V6, METADATA_V6, &[]),
        ("with a nonce", GUEST_V6, SOLICITED_NODE, &many),
        (
            "from a link-local address",
            link_local,
            SOLICITED_NODE,
            &link_layer,
        ),
    ] {
        let plain = solicitation(source, destination, METADATA_V6, 255, options);
        for (frame, at) in [(plain.clone(), 14), (in_vlan(&plain), 18)] {
            let ran = programs.run_port(&frame);
            assert_eq!(
                (ran.action, ran.counted),
                (REDIRECT, vec![Counter::NeighbourAnswered]),
                "{what}"
            );
            assert_eq!(
                ran.frame[..12],
                [GUEST_MAC, SERVICE_MAC].concat(),
                "{what}: MACs"
            );
            assert_eq!(ran.frame[12..at], frame[12..at], "{what}: tag and type");
            let (ip, body) = Ipv6Header::from_slice(&ran.frame[at..]).unwrap();
            assert_eq!(
                (ip.source, ip.destination, ip.hop_limit),
                (METADATA_V6, source, 255),
                "{what}"
            );
            assert_eq!((ip.payload_length, body.len()), (32, 32), "{what}");
            let expected = [
                &[136, 0][..],
                &body[2..4],
                &[0x60, 0, 0, 0],
                &METADATA_V6,
                &[2, 1],
                &SERVICE_MAC,
            ]
            .concat();
            assert_eq!(body, expected, "{what}");
            let (header, rest) = Icmpv6Header::from_slice(body).unwrap();
            let sum = header
                .icmp_type
                .calc_checksum(ip.source, ip.destination, rest)
                .unwrap();
            assert_eq!(header.checksum, sum, "{what}: checksum");
        }
    }
}

#[test]
fn other_neighbour_discovery_about_the_address_is_refused() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    let good =
        |source, hop_limit| solicitation(source, SOLICITED_NODE, METADATA_V6, hop_limit, &[]);
    let mut advertisement = good(GUEST_V6, 255);
    advertisement[IP + 40] = 136;
    let mut code = good(GUEST_V6, 255);
    code[IP + 41] = 1;
    for (what, frame) in [
        ("duplicate address detection", good([0; 16], 255)),
        ("from behind a router", good(GUEST_V6, 254)),
        ("an advertisement", advertisement),
        ("a code", code),
    ] {
        check_dropped(&mut programs, what, &frame, Counter::NeighbourRefused);
        check_dropped(
            &mut programs,
            what,
            &in_vlan(&frame),
            Counter::NeighbourRefused,
        );
    }
    check_dropped(
        &mut programs,
        "in its name",
        &good(METADATA_V6, 255),
        Counter::SpoofedSource,
    );
    let unicast = solicitation(GUEST_V6, METADATA_V6, METADATA_V6, 255, &[]);
    for length in 54..unicast.len() {
        check_dropped(
            &mut programs,
            &format!("cut at {length}"),
            &unicast[..length],
            Counter::Icmp,
        );
    }
}

#[test]
fn a_port_sends_its_packets_of_a_second_and_no_more() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    programs.limit(3);
    let frame = tcp_v4(GUEST, METADATA);
    let request = arp(ArpOperation::REQUEST, GUEST, METADATA);
    check_delivered(&mut programs, "the first", &frame);
    assert_eq!(
        programs.run_port(&request).counted,
        [Counter::ArpAnswered],
        "the second"
    );
    check_delivered(&mut programs, "the third", &frame);
    for (what, frame) in [("IPv4", &frame), ("ARP", &request)] {
        check_dropped(&mut programs, what, frame, Counter::RateLimited);
    }
    check_passes(&mut programs, "foreign", &tcp_v4(GUEST, GUEST));
}

#[test]
fn a_large_segment_counts_for_what_the_wire_would_carry() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    programs.limit(1000);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(GUEST_MAC, GATEWAY_MAC)
        .ipv4(GUEST, METADATA, 64)
        .tcp(40_000, 80, 1, 64_000)
        .write(&mut frame, &[b'x'; 2_100])
        .unwrap();
    let cost = programs.rate().packet_nanoseconds;
    check_delivered(&mut programs, "one packet", &tcp_v4(GUEST, METADATA));
    let before = programs.rate().even_nanoseconds;
    let ran = programs.run_segments(&frame, 7);
    assert_eq!(ran.counted, [Counter::Delivered]);
    let after = programs.rate().even_nanoseconds;
    // The clock may have passed the even moment between the two.
    assert!(
        after - before >= 7 * cost,
        "{} for seven of {cost}",
        after - before
    );
}

/// What the responder's stack sends: its own MACs mean nothing.
fn reply(frame: Vec<u8>) -> Vec<u8> {
    let mut frame = frame;
    frame[..12].fill(0xee);
    frame
}

#[test]
fn an_answer_leaves_in_the_services_name_by_the_guests_port() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    check_delivered(&mut programs, "IPv4", &tcp_v4(GUEST, METADATA));
    check_delivered(&mut programs, "IPv6", &tcp_v6(GUEST_V6, METADATA_V6));
    for (what, sent, source) in [
        ("IPv4", reply(tcp_v4(tag_v4(), GUEST)), IP + 12..IP + 16),
        ("IPv6", reply(tcp_v6(tag_v6(), GUEST_V6)), IP + 8..IP + 24),
    ] {
        let ran = programs.run_responder(&sent);
        assert_eq!(
            (ran.action, ran.counted),
            (REDIRECT, vec![Counter::Replied]),
            "{what}"
        );
        check_checksums(what, &ran.frame);
        assert_eq!(ran.frame[..12], [GUEST_MAC, GATEWAY_MAC].concat(), "{what}");
        let service: &[u8] = if source.len() == 4 {
            &METADATA
        } else {
            &METADATA_V6
        };
        assert_eq!(&ran.frame[source.clone()], service, "{what}");
        assert_eq!(
            ran.frame[source.end..source.end + source.len()],
            sent[source.end..source.end + source.len()],
            "{what}"
        );
        assert_eq!(ran.frame.len(), sent.len(), "{what}");
    }
}

#[test]
fn nothing_else_leaves_the_responders_namespace() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    check_delivered(
        &mut programs,
        "the guest is known",
        &tcp_v4(GUEST, METADATA),
    );
    let other_generation = Ipv4Addr::from(slot::tag_v4(0x2_0007)).octets();
    let nobodys = Ipv4Addr::from(slot::tag_v4(0x1_0009)).octets();
    let v6_stale = Ipv6Addr::from(slot::tag_v6(0x2_0007)).octets();
    let mut udp = tcp_v4(tag_v4(), GUEST);
    udp[IP + 9] = 17;
    for (what, frame, reason) in [
        (
            "an earlier generation",
            tcp_v4(other_generation, GUEST),
            Counter::ReplyStale,
        ),
        (
            "an earlier generation over IPv6",
            tcp_v6(v6_stale, GUEST_V6),
            Counter::ReplyStale,
        ),
        (
            "a slot of nobody",
            tcp_v4(nobodys, GUEST),
            Counter::ReplyStale,
        ),
        (
            "no tag",
            tcp_v4([127, 0, 0, 1], GUEST),
            Counter::ReplyForeign,
        ),
        (
            "no tag over IPv6",
            tcp_v6(GUEST_V6, GUEST_V6),
            Counter::ReplyForeign,
        ),
        ("UDP", udp, Counter::ReplyForeign),
        (
            "ARP",
            arp(ArpOperation::REQUEST, GUEST, GUEST),
            Counter::ReplyForeign,
        ),
        (
            "router solicitation",
            ipv6(
                |ip| {
                    ip.next_header = IpNumber::IPV6_ICMP;
                    ip.source = tag_v6();
                },
                &[133, 0, 0, 0],
            ),
            Counter::ReplyForeign,
        ),
    ] {
        let ran = programs.run_responder(&reply(frame));
        assert_eq!((ran.action, ran.counted), (DROP, vec![reason]), "{what}");
    }
}

#[test]
fn an_answer_to_a_guest_that_never_spoke_goes_nowhere() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    let ran = programs.run_responder(&reply(tcp_v4(tag_v4(), GUEST)));
    assert_eq!(
        (ran.action, ran.counted),
        (DROP, vec![Counter::ReplyUnknownLink])
    );
}

#[test]
fn random_bytes_never_reach_the_responder_unless_they_are_a_call() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    let random = Random::new();
    let templates = [
        tcp_v4(GUEST, METADATA),
        tcp_v6(GUEST_V6, METADATA_V6),
        arp(ArpOperation::REQUEST, GUEST, METADATA),
        solicitation(GUEST_V6, SOLICITED_NODE, METADATA_V6, 255, &[]),
    ];
    for _ in 0..2_000 {
        let mut frame = templates[random.below(templates.len())].clone();
        for _ in 0..=random.below(4) {
            let at = random.below(frame.len());
            frame[at] = random.next() as u8;
        }
        let ran = programs.run_port(&frame);
        assert!(
            [PASS, DROP, REDIRECT].contains(&ran.action),
            "seed {}: {frame:02x?}",
            random.seed()
        );
        if ran.counted == [Counter::Delivered] {
            let to = &ran.frame[IP..];
            assert!(
                to[16..20] == tag_v4() || to[24..40] == tag_v6(),
                "seed {}: {frame:02x?}",
                random.seed()
            );
        } else if ran.action == PASS {
            assert_eq!(
                ran.frame,
                frame,
                "seed {}: a foreign packet was changed",
                random.seed()
            );
            assert!(
                !(frame[12..14] == [8, 0] && frame[30..34] == METADATA),
                "seed {}: passed {frame:02x?}",
                random.seed()
            );
        }
    }
}

/// An interface that forwarded packets came in by.
const INGRESS: u32 = 1234;

/// Frames to the service that no port would take as they are; the guard looks at the destination alone.
fn bound_for_metadata() -> Vec<(&'static str, Vec<u8>)> {
    let tcp = tcp_v4(GUEST, METADATA)[34..].to_vec();
    let more = |ip: &mut Ipv4Header| ip.more_fragments = true;
    let later = |ip: &mut Ipv4Header| ip.fragment_offset = 8.try_into().unwrap();
    let options = |ip: &mut Ipv4Header| {
        ip.options = [1, 1, 1, 0].into();
        ip.total_len += 4;
    };
    let header = |next: IpNumber| ipv6(|ip| ip.next_header = next, &tcp);
    let mut lie = tcp_v4(GUEST, METADATA);
    lie[14] = 0x6f;
    vec![
        ("TCP", tcp_v4(GUEST, METADATA)),
        ("TCP over IPv6", tcp_v6(GUEST_V6, METADATA_V6)),
        ("more fragments", ipv4(more, &tcp)),
        ("a later fragment", ipv4(later, &tcp)),
        ("options", ipv4(options, &tcp)),
        ("UDP", ipv4(|ip| ip.protocol = IpNumber::UDP, &tcp)),
        ("nothing behind the header", ipv4(|_| {}, &[])),
        ("a header that lies", lie),
        ("from the service's address", tcp_v4(METADATA, METADATA)),
        ("from loopback", tcp_v4([127, 0, 0, 1], METADATA)),
        ("an IPv6 fragment", header(IpNumber(44))),
        ("an extension header", header(IpNumber(0))),
        ("a routing header", header(IpNumber(43))),
        ("no IPv6 payload", ipv6(|_| {}, &[])),
    ]
}

#[test]
fn the_guard_drops_what_is_forwarded_to_the_service_in_whatever_form() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    let service_tagged = |frame: &[u8]| tagged(frame, 7, EtherType::PROVIDER_BRIDGING);
    let mut expected = 0;
    for (what, frame) in bound_for_metadata() {
        for frame in [
            frame.clone(),
            in_vlan(&frame),
            service_tagged(&frame),
            service_tagged(&in_vlan(&frame)),
        ] {
            let ran = programs.run_uplink(&frame, INGRESS);
            assert_eq!(
                (ran.action, ran.counted),
                (DROP, vec![Counter::Guarded]),
                "{what}: {frame:02x?}"
            );
            expected += 1;
        }
    }
    assert_eq!(programs.guarded_from(INGRESS), expected);
    assert_eq!(programs.guarded_from(INGRESS + 1), 0);
    let other = programs.run_uplink(&tcp_v4(GUEST, METADATA), INGRESS + 1);
    assert_eq!(other.action, DROP);
    assert_eq!(programs.guarded_from(INGRESS + 1), 1);
}

#[test]
fn the_guard_lets_the_host_itself_pass() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    // Not received at all, or received by `lo`.
    for ingress_ifindex in [0, 1] {
        for (what, frame) in bound_for_metadata() {
            let ran = programs.run_uplink(&frame, ingress_ifindex);
            assert_eq!((ran.action, ran.counted), (PASS, vec![]), "{what}");
            assert_eq!(ran.frame, frame, "{what}: changed");
        }
    }
}

#[test]
fn the_guard_lets_everything_else_pass() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    let mut neighbour_v6 = METADATA_V6;
    neighbour_v6[15] ^= 1;
    for (what, frame) in [
        ("IPv4", tcp_v4(GUEST, [10, 0, 0, 1])),
        ("a neighbour", tcp_v4(GUEST, [169, 254, 169, 253])),
        ("from the service", tcp_v4(METADATA, GUEST)),
        ("IPv6", tcp_v6(GUEST_V6, GUEST_V6)),
        ("a neighbour over IPv6", tcp_v6(GUEST_V6, neighbour_v6)),
        ("from the service over IPv6", tcp_v6(METADATA_V6, GUEST_V6)),
        ("ARP", arp(ArpOperation::REQUEST, GUEST, METADATA)),
        ("another EtherType", ethernet(EtherType(0x88cc))),
    ] {
        for frame in [frame.clone(), in_vlan(&frame), in_vlan(&in_vlan(&frame))] {
            let ran = programs.run_uplink(&frame, INGRESS);
            assert_eq!((ran.action, ran.counted), (PASS, vec![]), "{what}");
            assert_eq!(ran.frame, frame, "{what}: changed");
        }
    }
}

#[test]
fn the_guard_is_closed_where_nobody_can_look() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    for (what, frame, address_ends) in [
        ("IPv4", tcp_v4(GUEST, METADATA), 34),
        ("IPv4 in a VLAN", in_vlan(&tcp_v4(GUEST, METADATA)), 38),
        ("IPv6", tcp_v6(GUEST_V6, METADATA_V6), 54),
        (
            "IPv6 in a VLAN",
            in_vlan(&tcp_v6(GUEST_V6, METADATA_V6)),
            58,
        ),
    ] {
        // The kernel's test runs take nothing shorter than the headers that the EtherType promises.
        let shortest = if frame[12] == 0x81 { 14 } else { address_ends };
        for length in shortest..frame.len() {
            let ran = programs.run_uplink(&frame[..length], INGRESS);
            let expected = if length < address_ends { PASS } else { DROP };
            assert_eq!(ran.action, expected, "{what} cut at {length}");
        }
    }
    let foreign = in_vlan(&in_vlan(&in_vlan(&tcp_v4(GUEST, [10, 0, 0, 1]))));
    let ran = programs.run_uplink(&foreign, INGRESS);
    assert_eq!((ran.action, ran.counted), (DROP, vec![Counter::Guarded]));
}

#[test]
fn random_bytes_never_pass_the_guard_to_the_service() {
    let Some(mut programs) = Programs::load() else {
        return;
    };
    let random = Random::new();
    let templates = [
        tcp_v4(GUEST, METADATA),
        tcp_v6(GUEST_V6, METADATA_V6),
        in_vlan(&tcp_v4(GUEST, METADATA)),
        in_vlan(&tcp_v6(GUEST_V6, METADATA_V6)),
    ];
    for _ in 0..2_000 {
        let mut frame = templates[random.below(templates.len())].clone();
        for _ in 0..=random.below(4) {
            let at = random.below(frame.len());
            frame[at] = random.next() as u8;
        }
        let ran = programs.run_uplink(&frame, INGRESS);
        let behind = if frame[12..14] == [0x81, 0] { 4 } else { 0 };
        let at = |from: usize, to: usize| &frame[behind + from..behind + to];
        let names_it = match at(12, 14) {
            [8, 0] => *at(30, 34) == METADATA,
            [0x86, 0xdd] => *at(38, 54) == METADATA_V6,
            _ => continue,
        };
        let expected = if names_it { DROP } else { PASS };
        assert_eq!(ran.action, expected, "seed {}: {frame:02x?}", random.seed());
    }
}
