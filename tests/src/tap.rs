//! A tap device as a port: the test is the guest, down to the last byte of its frames.
//!
//! Frames that the host sends arrive as a network card would show them: checksums filled in, one segment each, the
//! VLAN tag inline.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::frame::{Segment, TcpFrame, parse_tcp};
use crate::namespace::Namespace;
use crate::patience::patience;

/// The hardware address of the guest behind every tap.
const MAC: [u8; 6] = [0x06, 0x17, 0x04, 0xd7, 0x26, 0x09];

/// What stands before each frame of a card that leaves work to the other side: `struct virtio_net_hdr`, linux/virtio_net.h.
const CARD_HEADER_BYTES: usize = 10;
/// The headers of a TCP segment over IPv4 without options; where its checksum is filled in.
const HEADERS_BYTES: usize = 14 + 20 + 20;
const TCP_AT: usize = 14 + 20;
/// Segments of a frame that is left to the other side to cut.
const SEGMENT_BYTES: u16 = 1200;

/// A flag of such a header: the checksum is only begun.
const NEEDS_CHECKSUM: u8 = 1;

/// What kind of network card the guest has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Card {
    /// How many queues, each used in turn.
    pub(crate) queues: usize,
    /// It leaves checksums and the cutting of segments to the other side, and has both left to it.
    pub(crate) offloads: bool,
}

/// An open tap device; it is gone when dropped.
pub struct Tap {
    queues: Vec<File>,
    sent: AtomicUsize,
    offloads: bool,
    port: String,
    port_mac: [u8; 6],
    id: String,
}

impl Tap {
    pub(crate) fn new(host: &Namespace, port: &str, mtu: u32, id: &str, card: Card) -> Self {
        let mut kind = libc::IFF_TAP;
        if card.queues > 1 {
            kind |= libc::IFF_MULTI_QUEUE;
        }
        if card.offloads {
            kind |= libc::IFF_VNET_HDR;
        }
        let open = || (0..card.queues).map(|_| open(port, kind)).collect();
        let queues: io::Result<Vec<File>> = host.enter(open);
        let queues = queues.unwrap_or_else(|error| panic!("tap device {port}: {error}"));
        if card.offloads {
            take_offloads(&queues[0]).expect("a tap device leaves work to its guest");
        }
        host.ip(&format!("link set {port} mtu {mtu}\nlink set {port} up"));
        let port_mac = parse_mac(&host.mac(port));
        Self {
            queues,
            sent: AtomicUsize::new(0),
            offloads: card.offloads,
            port: port.to_owned(),
            port_mac,
            id: id.to_owned(),
        }
    }

    /// The host's interface.
    #[must_use]
    pub fn port(&self) -> &str {
        &self.port
    }

    /// The instance id of the guest.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The guest's hardware address.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        MAC
    }

    /// The host's hardware address on this port.
    #[must_use]
    pub fn port_mac(&self) -> [u8; 6] {
        self.port_mac
    }

    /// Sends a frame to the host.
    ///
    /// # Panics
    /// When the device does not take it.
    pub fn send(&self, frame: &[u8]) {
        self.try_send(frame)
            .unwrap_or_else(|error| panic!("send {} bytes to {}: {error}", frame.len(), self.port));
    }

    /// Sends a frame that the device itself may refuse, such as one too short for an Ethernet header.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn try_send(&self, frame: &[u8]) -> io::Result<()> {
        let turn = self.sent.fetch_add(1, Ordering::Relaxed);
        let mut queue = &self.queues[turn % self.queues.len()];
        if self.offloads {
            return queue.write(&left_to_others(frame)).map(drop);
        }
        queue.write(frame).map(drop)
    }

    /// The first frame from the host for which `wanted` has an answer, within a time; others are thrown away.
    pub fn receive<T>(
        &self,
        within: Duration,
        mut wanted: impl FnMut(&[u8]) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + within;
        loop {
            let mut frame = next(&self.queues, deadline)?;
            if self.offloads {
                frame = with_checksum(&frame);
            }
            if let Some(answer) = wanted(&frame) {
                return Some(answer);
            }
        }
    }

    /// A whole exchange by hand: `syn` opens the connection, then goes `request`, and everything up to the end of the
    /// answer comes back: the SYN-ACK first, then what carries data, in order of sequence.
    ///
    /// # Panics
    /// When there is no SYN-ACK or no end of the answer within five seconds.
    #[must_use]
    pub fn fetch(&self, syn: &TcpFrame, request: &[u8]) -> Vec<Segment> {
        let within = patience(Duration::from_secs(5));
        let ours = |frame: &[u8]| {
            parse_tcp(frame).filter(|segment| segment.ports == (syn.ports.1, syn.ports.0))
        };
        self.send(&syn.bytes());
        let synack = self
            .receive(within, |frame| {
                ours(frame).filter(|segment| segment.flags.0)
            })
            .expect("a SYN-ACK");
        let first = synack.sequence.wrapping_add(1);
        let mut frame = TcpFrame {
            syn: false,
            sequence: syn.sequence.wrapping_add(1),
            acknowledge: Some(first),
            ..syn.clone()
        };
        frame.payload = request.to_vec();
        self.send(&frame.bytes());
        frame.sequence = frame
            .sequence
            .wrapping_add(u32::try_from(request.len()).expect("a request is short"));
        frame.payload.clear();
        let mut segments = vec![synack];
        let mut expected = first;
        // Of several queues the one that is read first may have the later ones.
        let mut early = HashMap::new();
        while let Some(segment) = self.receive(within, ours) {
            early.insert(segment.sequence, segment);
            while let Some(segment) = early.remove(&expected) {
                let length = u32::try_from(segment.payload.len()).expect("a segment is short");
                expected = expected.wrapping_add(length);
                frame.acknowledge = Some(expected);
                let ended = segment.flags.3;
                if length > 0 {
                    self.send(&frame.bytes());
                    segments.push(segment);
                }
                if ended {
                    return segments;
                }
            }
        }
        panic!("no end of the answer: {segments:?}");
    }
}

/// An open tun device, whose packets have no frame; it is gone when dropped.
pub struct Tun {
    file: File,
}

impl Tun {
    pub(crate) fn new(host: &Namespace, name: &str) -> Self {
        let file = host
            .enter(|| open(name, libc::IFF_TUN))
            .unwrap_or_else(|error| panic!("tun device {name}: {error}"));
        host.ip(&format!("link set {name} up"));
        Self { file }
    }

    /// The first packet that leaves by the device for which `wanted` has an answer, within a time.
    pub fn receive<T>(
        &self,
        within: Duration,
        mut wanted: impl FnMut(&[u8]) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + within;
        loop {
            let packet = next(std::slice::from_ref(&self.file), deadline)?;
            if let Some(answer) = wanted(&packet) {
                return Some(answer);
            }
        }
    }
}

fn next(queues: &[File], deadline: Instant) -> Option<Vec<u8>> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).expect("a test waits for seconds, not weeks");
    let mut waiting: Vec<_> = queues
        .iter()
        .map(|queue| PollFd::new(queue.as_fd(), PollFlags::POLLIN))
        .collect();
    poll(&mut waiting, timeout).expect("a tap device can be polled");
    let mut ready = queues.iter().zip(&waiting);
    let (mut file, _) = ready.find(|(_, waiting)| waiting.any().unwrap_or_default())?;
    let mut frame = vec![0; CARD_HEADER_BYTES + 65_536];
    let length = file
        .read(&mut frame)
        .expect("a readable tap device has a frame");
    frame.truncate(length);
    Some(frame)
}

/// A frame as a card hands it over that leaves the checksum to the other side and, if there is more than one, the cutting
/// of its segments. Frames that are no TCP over IPv4 are as they are.
fn left_to_others(frame: &[u8]) -> Vec<u8> {
    const IS_TCP_V4: u8 = 1;
    const CHECKSUM_AT: u16 = 16;
    let mut card = [0; CARD_HEADER_BYTES];
    let mut frame = frame.to_vec();
    if parse_tcp(&frame).is_some() && frame.get(12..15) == Some(&[8, 0, 0x45]) {
        let put = |card: &mut [u8; CARD_HEADER_BYTES], at: usize, number: u16| {
            card[at..at + 2].copy_from_slice(&number.to_ne_bytes());
        };
        card[0] = NEEDS_CHECKSUM;
        put(&mut card, 6, u16::try_from(TCP_AT).expect("it is 34"));
        put(&mut card, 8, CHECKSUM_AT);
        if frame.len() > HEADERS_BYTES + usize::from(SEGMENT_BYTES) {
            card[1] = IS_TCP_V4;
            put(
                &mut card,
                2,
                u16::try_from(HEADERS_BYTES).expect("it is 54"),
            );
            put(&mut card, 4, SEGMENT_BYTES);
        }
        let checksum = pseudo_header_sum(&frame).to_be_bytes();
        let at = TCP_AT + usize::from(CHECKSUM_AT);
        frame[at..at + 2].copy_from_slice(&checksum);
    }
    [&card, frame.as_slice()].concat()
}

/// The frame that such a card got, with the checksum that was left to it.
fn with_checksum(got: &[u8]) -> Vec<u8> {
    let (card, frame) = got.split_at(CARD_HEADER_BYTES);
    let mut frame = frame.to_vec();
    if card[0] & NEEDS_CHECKSUM != 0 {
        let number = |at: usize| usize::from(u16::from_ne_bytes([card[at], card[at + 1]]));
        let (start, at) = (number(6), number(6) + number(8));
        let sum = !folded(words(&frame[start..]));
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

/// What the sender has to fill in where somebody else ends the sum: both addresses, the protocol and the length.
fn pseudo_header_sum(frame: &[u8]) -> u16 {
    const TCP: u32 = 6;
    let length = u32::try_from(frame.len() - TCP_AT).expect("a frame is short");
    folded(words(&frame[26..TCP_AT]) + TCP + length)
}

/// The sum of the 16-bit words; an odd byte at the end is the first of a word.
fn words(bytes: &[u8]) -> u32 {
    let word = |word: &[u8]| {
        let second = word.get(1).copied().unwrap_or_default();
        u32::from(u16::from_be_bytes([word[0], second]))
    };
    bytes.chunks(2).map(word).sum()
}

fn folded(mut sum: u32) -> u16 {
    while sum > u32::from(u16::MAX) {
        sum = (sum >> 16) + (sum & u32::from(u16::MAX));
    }
    u16::try_from(sum).expect("it was folded")
}

/// Makes a device of a kind in the namespace of the calling thread.
fn open(name: &str, kind: libc::c_int) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = [0_u8; size_of::<libc::ifreq>()];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = kind | libc::IFF_NO_PI;
    let flags = i16::try_from(flags).expect("these flags fit, see linux/if_tun.h");
    request[libc::IFNAMSIZ..libc::IFNAMSIZ + 2].copy_from_slice(&flags.to_ne_bytes());
    attach(&file, &mut request)?;
    Ok(file)
}

/// Has the host leave checksums and cutting to the guest, for both families.
#[expect(
    unsafe_code,
    reason = "no safe wrapper for TUNSETOFFLOAD among our dependencies"
)]
fn take_offloads(file: &File) -> io::Result<()> {
    // TUN_F_CSUM, TUN_F_TSO4 and TUN_F_TSO6, linux/if_tun.h.
    const OFFLOADS: libc::c_ulong = 1 | 2 | 4;
    // SAFETY: the descriptor is open for the time of the call, and TUNSETOFFLOAD takes a number.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, OFFLOADS) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[expect(
    unsafe_code,
    reason = "no safe wrapper for TUNSETIFF among our dependencies"
)]
fn attach(file: &File, request: &mut [u8; size_of::<libc::ifreq>()]) -> io::Result<()> {
    // SAFETY: the descriptor is open for the time of the call, and TUNSETIFF reads and writes one `struct ifreq` at the
    // pointer (the kernel writes back the name that it chose), which is what the array holds and as large as it is.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn parse_mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).expect("ip prints hexadecimal bytes"))
        .collect();
    bytes.try_into().expect("a hardware address has six bytes")
}
