//! A way out of the host, and at its end a stand-in for the metadata service that a cloud keeps for the host itself.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::SockRef;

use crate::frames::Frames;
use crate::namespace::Namespace;
use crate::patience::patience;

/// What the stand-in answers, whoever asks for whatever: the host's own credentials, so to speak.
pub const STAND_IN_ANSWER: &str = "the host's own secret";

/// How often the stand-in's threads look whether they are still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// An uplink of the host with a stand-in behind it. Clones of the namespace aside, all of it goes with this value.
pub struct Uplink {
    interface: String,
    gateway_v4: Ipv4Addr,
    gateway_v6: Ipv6Addr,
    namespace: Namespace,
    /// Every frame that arrives, in front of anything that could drop it.
    frames: Frames,
    seen: AtomicU64,
    /// Those among them that the host did not send itself.
    forwarded: AtomicU64,
    is_over: Arc<AtomicBool>,
    servers: Vec<JoinHandle<()>>,
    answers: Arc<AtomicU64>,
}

impl Uplink {
    /// Plugs the cable in; the host has addresses on it and no default route yet.
    pub(crate) fn new(host: &Namespace, interface: &str, number: u8) -> Self {
        let namespace = Namespace::new();
        host.ip(&format!(
            "link add {interface} type veth peer name eth0 netns {}\nlink set {interface} up",
            namespace.path()
        ));
        namespace.ip("link set eth0 up");
        let uplink = Self::at(namespace, interface, number);
        let (v4, v6) = uplink.host_addresses();
        host.ip(&format!(
            "address add {v4}/24 dev {interface}\naddress add {v6}/64 dev {interface} nodad"
        ));
        uplink
    }

    /// Plugs the cable into a bridge, which gets the addresses.
    pub(crate) fn on_bridge(host: &Namespace, bridge: &str, interface: &str, number: u8) -> Self {
        let namespace = Namespace::new();
        host.ip(&format!(
            "link add {interface} type veth peer name eth0 netns {}\nlink set {interface} master {bridge}\n\
             link set {interface} up",
            namespace.path()
        ));
        namespace.ip("link set eth0 up");
        let uplink = Self::at(namespace, interface, number);
        let (v4, v6) = uplink.host_addresses();
        host.ip(&format!(
            "address add {v4}/24 dev {bridge}\naddress add {v6}/64 dev {bridge} nodad"
        ));
        uplink
    }

    fn at(namespace: Namespace, interface: &str, number: u8) -> Self {
        let gateway_v4 = Ipv4Addr::new(198, 18, number, 1);
        let gateway_v6 = Ipv6Addr::new(0x2001, 0xdb8, number.into(), 0, 0, 0, 0, 1);
        namespace.sysctl("net/ipv4/conf/all/rp_filter", "0");
        namespace.sysctl("net/ipv4/conf/eth0/rp_filter", "0");
        namespace.ip(&format!(
            "address add {gateway_v4}/24 dev eth0\n\
             address add {gateway_v6}/64 dev eth0 nodad\n\
             address add 169.254.169.254/32 dev lo\n\
             address add fd00:ec2::254/128 dev lo nodad\n\
             route add default via 198.18.{number}.2\n\
             route add default via 2001:db8:{number:x}::2"
        ));
        let frames = namespace.enter(Frames::new);
        let (is_over, answers) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let addresses = [
            SocketAddr::from((Ipv4Addr::new(169, 254, 169, 254), 80)),
            SocketAddr::from((Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 80)),
        ];
        let servers = addresses
            .map(|address| {
                let listener = namespace.enter(|| TcpListener::bind(address));
                let listener = listener.unwrap_or_else(|error| panic!("{address}: {error}"));
                let (is_over, answers) = (Arc::clone(&is_over), Arc::clone(&answers));
                thread::spawn(move || serve(&listener, &is_over, &answers))
            })
            .into();
        Self {
            interface: interface.to_owned(),
            gateway_v4,
            gateway_v6,
            namespace,
            frames,
            seen: AtomicU64::new(0),
            forwarded: AtomicU64::new(0),
            is_over,
            servers,
            answers,
        }
    }

    /// The host's interface.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The next hop of the host's default route by this uplink.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway_v4
    }

    /// The same for IPv6.
    #[must_use]
    pub fn gateway_v6(&self) -> Ipv6Addr {
        self.gateway_v6
    }

    /// The namespace of the stand-in.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Makes the host's default routes leave by this uplink, whatever they left by before.
    pub fn take_default_routes(&self, host: &Namespace) {
        host.ip(&format!(
            "route replace default via {}\nroute replace default via {}",
            self.gateway_v4, self.gateway_v6
        ));
    }

    /// Pulls the cable, with which the routes go, and puts it back after a while, with everything as it was.
    pub fn flap(&self, host: &Namespace, down_for: Duration) {
        let (interface, (v4, v6)) = (&self.interface, self.host_addresses());
        host.ip(&format!("link set {interface} down"));
        thread::sleep(down_for);
        host.ip(&format!(
            "link set {interface} up\n\
             address replace {v4}/24 dev {interface}\n\
             address replace {v6}/64 dev {interface} nodad"
        ));
        self.take_default_routes(host);
    }

    /// How many packets for the metadata addresses have reached the stand-in so far, of whatever protocol and form.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.look();
        self.seen.load(Ordering::Relaxed)
    }

    /// How many of them came from anybody but the host itself.
    #[must_use]
    pub fn forwarded(&self) -> u64 {
        self.look();
        self.forwarded.load(Ordering::Relaxed)
    }

    fn look(&self) {
        let (v4, v6) = self.host_addresses();
        let own = [IpAddr::from(v4), IpAddr::from(v6)];
        for frame in self.frames.take() {
            let Some(source) = source_of_call(&frame) else {
                continue;
            };
            self.seen.fetch_add(1, Ordering::Relaxed);
            if !own.contains(&source) {
                self.forwarded.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// How many requests the stand-in has answered.
    #[must_use]
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    fn host_addresses(&self) -> (Ipv4Addr, Ipv6Addr) {
        let [a, b, c, _] = self.gateway_v4.octets();
        let v6 = u128::from(self.gateway_v6) + 1;
        (Ipv4Addr::new(a, b, c, 2), v6.into())
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for server in self.servers.drain(..) {
            // A panic in a server is shown by its thread; the test fails for want of an answer.
            drop(server.join());
        }
    }
}

/// Who sent a frame that names a metadata address as its destination, behind up to two VLAN tags. What the stand-in sends
/// itself has one as its source.
fn source_of_call(frame: &[u8]) -> Option<IpAddr> {
    let mut at = 12;
    while frame.len() >= at + 2 && matches!(frame[at..at + 2], [0x81, 0] | [0x88, 0xa8]) {
        at += 4;
    }
    let address = |from: usize, length: usize| frame.get(at + 2 + from..at + 2 + from + length);
    let v4 = |from| Some(IpAddr::from(<[u8; 4]>::try_from(address(from, 4)?).ok()?));
    let v6 = |from| Some(IpAddr::from(<[u8; 16]>::try_from(address(from, 16)?).ok()?));
    let (source, destination) = match frame.get(at..at + 2)? {
        [0x08, 0x00] => (v4(12)?, v4(16)?),
        [0x86, 0xdd] => (v6(8)?, v6(24)?),
        _ => return None,
    };
    let is_metadata = destination == IpAddr::from([169, 254, 169, 254])
        || destination == IpAddr::from([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]);
    is_metadata.then_some(source)
}

fn serve(listener: &TcpListener, is_over: &AtomicBool, answers: &AtomicU64) {
    SockRef::from(listener)
        .set_read_timeout(Some(LOOK_EVERY))
        .expect("a socket takes a time-out");
    while !is_over.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            continue;
        };
        // A caller that went away is none that was answered.
        answer(stream, answers).ok();
    }
}

fn answer(mut stream: TcpStream, answers: &AtomicU64) -> std::io::Result<()> {
    stream.set_read_timeout(Some(patience(Duration::from_secs(5))))?;
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? > 0 {
        request.push(byte[0]);
    }
    // Counted first, so that whoever has an answer finds it counted.
    answers.fetch_add(1, Ordering::Relaxed);
    let length = STAND_IN_ANSWER.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{STAND_IN_ANSWER}"
    )
}
