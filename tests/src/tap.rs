//! A tap device as a port: the test is the guest, down to the last byte of its frames.
//!
//! Frames that the host sends arrive as a network card would show them: checksums filled in, one segment each, the
//! VLAN tag inline.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::frame::{Segment, TcpFrame, parse_tcp};
use crate::namespace::Namespace;

/// The hardware address of the guest behind every tap.
const MAC: [u8; 6] = [0x06, 0x17, 0x04, 0xd7, 0x26, 0x09];

/// An open tap device; it is gone when dropped.
pub struct Tap {
    file: File,
    port: String,
    port_mac: [u8; 6],
    id: String,
}

impl Tap {
    pub(crate) fn new(host: &Namespace, port: &str, mtu: u32, id: &str) -> Self {
        let file = host
            .enter(|| open(port, libc::IFF_TAP))
            .unwrap_or_else(|error| panic!("tap device {port}: {error}"));
        host.ip(&format!("link set {port} mtu {mtu}\nlink set {port} up"));
        let port_mac = parse_mac(&host.mac(port));
        Self {
            file,
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
        (&self.file).write(frame).map(drop)
    }

    /// The first frame from the host for which `wanted` has an answer, within a time; others are thrown away.
    pub fn receive<T>(
        &self,
        within: Duration,
        mut wanted: impl FnMut(&[u8]) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + within;
        loop {
            let frame = next(&self.file, deadline)?;
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
        let within = Duration::from_secs(5);
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
        while let Some(segment) = self.receive(within, |bytes| {
            ours(bytes).filter(|segment| segment.sequence == expected)
        }) {
            expected = expected
                .wrapping_add(u32::try_from(segment.payload.len()).expect("a segment is short"));
            frame.acknowledge = Some(expected);
            let ended = segment.flags.3;
            if !segment.payload.is_empty() {
                self.send(&frame.bytes());
                segments.push(segment);
            }
            if ended {
                return segments;
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
            let packet = next(&self.file, deadline)?;
            if let Some(answer) = wanted(&packet) {
                return Some(answer);
            }
        }
    }
}

fn next(file: &File, deadline: Instant) -> Option<Vec<u8>> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).expect("a test waits for seconds, not weeks");
    let mut waiting = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    if poll(&mut waiting, timeout).expect("a tap device can be polled") == 0 {
        return None;
    }
    let mut frame = vec![0; 65_536];
    let length = (&mut &*file)
        .read(&mut frame)
        .expect("a readable tap device has a frame");
    frame.truncate(length);
    Some(frame)
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
