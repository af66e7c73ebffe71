//! Frames that a guest sends, made by etherparse, and what comes back taken apart.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

/// A TCP segment of a guest, to be varied field by field.
#[derive(Clone, Debug)]
pub struct TcpFrame {
    /// Sender's hardware address.
    pub source_mac: [u8; 6],
    /// Receiver's hardware address.
    pub destination_mac: [u8; 6],
    /// VLAN tag, if any.
    pub vlan: Option<u16>,
    /// Source and destination address, of one family.
    pub addresses: (IpAddr, IpAddr),
    /// Source and destination port.
    pub ports: (u16, u16),
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number; sets the flag ACK.
    pub acknowledge: Option<u32>,
    /// The flag SYN.
    pub syn: bool,
    /// What is sent; sets the flag PSH.
    pub payload: Vec<u8>,
}

impl TcpFrame {
    /// A SYN to port 80 of the service's address of the source's family.
    #[must_use]
    pub fn syn(
        source_mac: [u8; 6],
        destination_mac: [u8; 6],
        source: IpAddr,
        source_port: u16,
    ) -> Self {
        let destination = match source {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
        };
        Self {
            source_mac,
            destination_mac,
            vlan: None,
            addresses: (source, destination),
            ports: (source_port, 80),
            sequence: 1000,
            acknowledge: None,
            syn: true,
            payload: Vec::new(),
        }
    }

    /// The bytes of the frame, with right lengths and checksums.
    ///
    /// # Panics
    /// When the two addresses are of different families.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2(self.source_mac, self.destination_mac);
        let ip = |step: PacketBuilderFor| match (step, self.addresses) {
            (PacketBuilderFor::Plain(step), (IpAddr::V4(from), IpAddr::V4(to))) => {
                step.ipv4(from.octets(), to.octets(), 64)
            }
            (PacketBuilderFor::Plain(step), (IpAddr::V6(from), IpAddr::V6(to))) => {
                step.ipv6(from.octets(), to.octets(), 64)
            }
            (PacketBuilderFor::Tagged(step), (IpAddr::V4(from), IpAddr::V4(to))) => {
                step.ipv4(from.octets(), to.octets(), 64)
            }
            (PacketBuilderFor::Tagged(step), (IpAddr::V6(from), IpAddr::V6(to))) => {
                step.ipv6(from.octets(), to.octets(), 64)
            }
            (_, addresses) => panic!("{addresses:?} are of two families"),
        };
        let step = match self.vlan {
            None => ip(PacketBuilderFor::Plain(ethernet)),
            Some(tag) => ip(PacketBuilderFor::Tagged(
                ethernet.single_vlan(tag.try_into().expect("a VLAN tag has 12 bits")),
            )),
        };
        let mut tcp = step.tcp(self.ports.0, self.ports.1, self.sequence, 64_000);
        if self.syn {
            tcp = tcp.syn();
        }
        if let Some(number) = self.acknowledge {
            tcp = tcp.ack(number);
        }
        if !self.payload.is_empty() {
            tcp = tcp.psh();
        }
        let mut bytes = Vec::new();
        tcp.write(&mut bytes, &self.payload)
            .expect("a vector takes any number of bytes");
        bytes
    }
}

/// etherparse's steps have a type each; both of these take an IP header next.
enum PacketBuilderFor {
    Plain(etherparse::PacketBuilderStep<etherparse::Ethernet2Header>),
    Tagged(etherparse::PacketBuilderStep<etherparse::VlanHeader>),
}

/// A TCP segment that came from the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sender's hardware address.
    pub source_mac: [u8; 6],
    /// Receiver's hardware address.
    pub destination_mac: [u8; 6],
    /// VLAN tag, if any.
    pub vlan: Option<u16>,
    /// Source and destination address.
    pub addresses: (IpAddr, IpAddr),
    /// Source and destination port.
    pub ports: (u16, u16),
    /// The flags SYN, ACK, RST and FIN.
    pub flags: (bool, bool, bool, bool),
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledge: u32,
    /// TTL or hop limit.
    pub hops: u8,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// Takes a frame apart; `None` when it is no TCP segment.
///
/// # Panics
/// When it is one and its IP or TCP checksum is wrong.
#[must_use]
pub fn parse_tcp(frame: &[u8]) -> Option<Segment> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let TransportSlice::Tcp(tcp) = packet.transport.as_ref()? else {
        return None;
    };
    let (source, destination, hops, sum) = match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            assert_eq!(
                header.header_checksum(),
                header.to_header().calc_header_checksum(),
                "IPv4 checksum of {frame:02x?}"
            );
            let sum = tcp.calc_checksum_ipv4(header.source(), header.destination());
            (
                IpAddr::V4(header.source_addr()),
                IpAddr::V4(header.destination_addr()),
                header.ttl(),
                sum,
            )
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let sum = tcp.calc_checksum_ipv6(header.source(), header.destination());
            (
                IpAddr::V6(header.source_addr()),
                IpAddr::V6(header.destination_addr()),
                header.hop_limit(),
                sum,
            )
        }
        NetSlice::Arp(_) => return None,
    };
    assert_eq!(
        tcp.checksum(),
        sum.expect("a frame is no longer than a checksum covers"),
        "TCP checksum of {frame:02x?}"
    );
    Some(Segment {
        source_mac: frame[6..12].try_into().expect("six bytes"),
        destination_mac: frame[..6].try_into().expect("six bytes"),
        vlan: packet.vlan_ids().first().map(|id| id.value()),
        addresses: (source, destination),
        ports: (tcp.source_port(), tcp.destination_port()),
        flags: (tcp.syn(), tcp.ack(), tcp.rst(), tcp.fin()),
        sequence: tcp.sequence_number(),
        acknowledge: tcp.acknowledgment_number(),
        hops,
        payload: tcp.payload().to_vec(),
    })
}

/// An ARP answer that came from the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Receiver's hardware address in the Ethernet header.
    pub destination_mac: [u8; 6],
    /// VLAN tag, if any.
    pub vlan: Option<u16>,
    /// 1 request, 2 reply.
    pub operation: u16,
    /// Who speaks: hardware and protocol address.
    pub sender: ([u8; 6], Ipv4Addr),
    /// Who is spoken to: hardware and protocol address.
    pub target: ([u8; 6], Ipv4Addr),
}

/// An ARP frame of 28 bytes after its Ethernet header and VLAN tag, as RFC 826 draws it.
impl Arp {
    /// The bytes of the frame; the sender's hardware address is the frame's too.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = [self.destination_mac, self.sender.0].concat();
        if let Some(tag) = self.vlan {
            bytes.extend([[0x81, 0x00], tag.to_be_bytes()].concat());
        }
        bytes.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4]);
        bytes.extend(self.operation.to_be_bytes());
        for (mac, address) in [self.sender, self.target] {
            bytes.extend(mac);
            bytes.extend(address.octets());
        }
        bytes
    }
}

/// Takes an ARP frame apart; `None` when it is none.
///
/// # Panics
/// Never: lengths are looked at first.
#[must_use]
pub fn parse_arp(frame: &[u8]) -> Option<Arp> {
    let (vlan, body) = match frame.get(12..14)? {
        [0x08, 0x06] => (None, frame.get(14..42)?),
        [0x81, 0x00] if frame.get(16..18)? == [0x08, 0x06] => (
            Some(u16::from_be_bytes([frame[14], frame[15]]) & 0x0fff),
            frame.get(18..46)?,
        ),
        _ => return None,
    };
    let party = |at: usize| {
        let mac: [u8; 6] = body[at..at + 6].try_into().expect("six bytes");
        let address: [u8; 4] = body[at + 6..at + 10].try_into().expect("four bytes");
        (mac, Ipv4Addr::from(address))
    };
    let destination_mac = frame[..6].try_into().expect("six bytes");
    Some(Arp {
        destination_mac,
        vlan,
        operation: u16::from_be_bytes([body[6], body[7]]),
        sender: party(8),
        target: party(18),
    })
}
