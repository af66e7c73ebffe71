//! A guest: a network namespace behind a port of the host.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Output;
use std::sync::Arc;

use crate::frames::Frames;
use crate::host::Host;
use crate::http::{Address, Connection, Response};
use crate::instance::{InstanceText, quoted};
use crate::namespace::Namespace;
use crate::tap::{Card, Tap};

/// The gateway of routed guests. The guest knows its hardware address from the start, so that a host which filters
/// by reverse path, or has two guests with one address, need not answer for it.
const GATEWAY_V4: &str = "192.0.2.1";
const GATEWAY_V6: &str = "fe80::1";

/// How a guest finds the way to the service.
enum Way {
    /// By a gateway behind the port, as cloud and Calico hosts have it.
    Routed,
    /// Straight on the link: the guest asks by ARP or neighbour discovery for the service's address.
    OnLink,
    /// By a bridge of the host, whose address is the gateway's.
    Bridged(String),
}

/// A guest that is being described.
pub struct GuestBuilder<'host> {
    host: &'host mut Host,
    name: String,
    id: String,
    text: InstanceText,
    way: Way,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
    mac: Option<String>,
    mtu: u32,
    index: Option<u32>,
    card: Card,
    registered: bool,
}

impl<'host> GuestBuilder<'host> {
    pub(crate) fn new(host: &'host mut Host, name: &str) -> Self {
        assert!(name.len() <= 10, "{name} makes too long an interface name");
        let id = id_of(name);
        let text = InstanceText::new(name, &format!("veth-{name}"), &id);
        let name = name.to_owned();
        Self {
            host,
            name,
            id,
            text,
            way: Way::Routed,
            ipv4: None,
            ipv6: None,
            mac: None,
            mtu: 1500,
            index: None,
            card: Card {
                queues: 1,
                offloads: false,
            },
            registered: true,
        }
    }

    /// Reaches the service by a gateway.
    #[must_use]
    pub fn routed(mut self, ipv4: &str) -> Self {
        self.way = Way::Routed;
        self.ipv4 = Some(parse(ipv4));
        self
    }

    /// Reaches the service on its own link.
    #[must_use]
    pub fn on_link(mut self, ipv4: &str) -> Self {
        self.way = Way::OnLink;
        self.ipv4 = Some(parse(ipv4));
        self
    }

    /// Has no IPv4 address, and what the kernel gives it of itself as IPv6 address; the service is on its link.
    #[must_use]
    pub fn on_link_without_address(mut self) -> Self {
        self.way = Way::OnLink;
        self
    }

    /// Sits behind a bridge of the host, in the /24 of its address; the bridge is `.1` in it.
    #[must_use]
    pub fn bridged(mut self, bridge: &str, ipv4: &str) -> Self {
        self.way = Way::Bridged(bridge.to_owned());
        self.ipv4 = Some(parse(ipv4));
        self
    }

    /// Has an IPv6 address as well, and the service's IPv6 endpoint is enabled.
    #[must_use]
    pub fn ipv6(mut self, ipv6: &str) -> Self {
        self.ipv6 = Some(parse(ipv6));
        self.ipv6_enabled()
    }

    /// The service's IPv6 endpoint is enabled.
    #[must_use]
    pub fn ipv6_enabled(self) -> Self {
        self.option("http-protocol-ipv6", "\"enabled\"")
    }

    /// Its network card has the hardware address that its instance is said to have.
    #[must_use]
    pub fn mac(mut self, mac: &str) -> Self {
        self.mac = Some(mac.to_owned());
        self.key("mac", &quoted(mac))
    }

    /// The MTU of both ends of its cable.
    #[must_use]
    pub fn mtu(mut self, bytes: u32) -> Self {
        self.mtu = bytes;
        self
    }

    /// The number of the host's interface, which another one may have had before.
    #[must_use]
    pub fn index(mut self, number: u32) -> Self {
        self.index = Some(number);
        self
    }

    /// The card of a tap has so many queues, which it uses in turn.
    #[must_use]
    pub fn queues(mut self, count: usize) -> Self {
        self.card.queues = count;
        self
    }

    /// The card of a tap leaves checksums and cutting to the host, and has the host's left to it.
    #[must_use]
    pub fn offloads(mut self) -> Self {
        self.card.offloads = true;
        self
    }

    /// Has an id of the test's choice; else one made from the name.
    #[must_use]
    pub fn id(mut self, id: &str) -> Self {
        id.clone_into(&mut self.id);
        self.key("id", &quoted(id))
    }

    /// A key of the instance, its value as TOML.
    #[must_use]
    pub fn key(mut self, key: &str, toml: &str) -> Self {
        self.text.key(key, toml);
        self
    }

    /// A metadata option, its value as TOML.
    #[must_use]
    pub fn option(mut self, key: &str, toml: &str) -> Self {
        self.text.option(key, toml);
        self
    }

    /// Tables of the instance, as TOML.
    #[must_use]
    pub fn tables(mut self, toml: &str) -> Self {
        self.text.tables(toml);
        self
    }

    /// Keys and tables of the instance, in this order, as TOML.
    #[must_use]
    pub fn toml(mut self, toml: &str) -> Self {
        self.text.toml(toml);
        self
    }

    /// Requests without a token are refused.
    #[must_use]
    pub fn tokens_required(self) -> Self {
        self.option("http-tokens", "\"required\"")
    }

    /// How many hops a token's answer travels.
    #[must_use]
    pub fn hop_limit(self, hops: u8) -> Self {
        self.option("http-put-response-hop-limit", &hops.to_string())
    }

    /// Has this user data.
    #[must_use]
    pub fn user_data(mut self, bytes: &[u8]) -> Self {
        self.text.user_data(bytes);
        self
    }

    /// Is no instance: the configuration does not mention it.
    #[must_use]
    pub fn unregistered(mut self) -> Self {
        self.registered = false;
        self
    }

    /// Plugs the guest in.
    ///
    /// # Panics
    /// When it has neither an IPv4 address nor a way that needs none.
    pub fn up(self) -> Guest {
        let namespace = Namespace::new();
        let port = format!("veth-{}", self.name);
        let (mtu, peer) = (self.mtu, namespace.path());
        let host = &self.host.namespace();
        let index = self.index.map(|number| format!("index {number} "));
        let index = index.unwrap_or_default();
        host.ip(&format!("link add {port} {index}mtu {mtu} type veth peer name eth0 mtu {mtu} netns {peer}\nlink set {port} up"));
        if let Some(mac) = &self.mac {
            namespace.ip(&format!("link set eth0 address {mac}"));
        }
        namespace.ip("link set eth0 up");
        match &self.way {
            Way::Routed => route(&namespace, &host.mac(&port), self.ipv4, self.ipv6),
            Way::OnLink => stay_on_link(&namespace, self.ipv4, self.ipv6),
            Way::Bridged(bridge) => {
                self.host.bridge(bridge);
                put_behind_bridge(
                    self.host.namespace(),
                    &namespace,
                    bridge,
                    &port,
                    self.ipv4,
                    self.ipv6,
                );
            }
        }
        if self.registered {
            self.host.add_instance(self.text);
        }
        Guest(Arc::new(Inner {
            namespace,
            name: self.name,
            id: self.id,
            port,
        }))
    }

    /// Plugs in a tap device that another process will open.
    #[must_use]
    pub fn persistent_tap(mut self) -> PersistentTap {
        let name = format!("tap-{}", self.name);
        self.text.key("port", &quoted(&name));
        let mtu = self.mtu;
        self.host.namespace().ip(&format!(
            "tuntap add dev {name} mode tap\nlink set {name} mtu {mtu}\nlink set {name} up"
        ));
        self.host.add_instance(self.text);
        PersistentTap { name, id: self.id }
    }

    /// Plugs the guest in as a tap device, at which the test itself is the guest and sends frames of its making.
    #[must_use]
    pub fn tap(mut self) -> Tap {
        let port = format!("tap-{}", self.name);
        self.text.key("port", &quoted(&port));
        let tap = Tap::new(self.host.namespace(), &port, self.mtu, &self.id, self.card);
        if self.registered {
            self.host.add_instance(self.text);
        }
        tap
    }
}

/// A tap device that waits for somebody, such as QEMU, to be the guest behind it. It goes with the host's namespace.
pub struct PersistentTap {
    /// The host's interface.
    pub name: String,
    /// The instance id of the guest.
    pub id: String,
}

/// A guest that is plugged in. Clones are the same guest.
#[derive(Clone)]
pub struct Guest(Arc<Inner>);

struct Inner {
    namespace: Namespace,
    name: String,
    id: String,
    port: String,
}

impl Guest {
    /// Its instance id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// Its name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The host's interface by which its packets come in.
    #[must_use]
    pub fn port(&self) -> &str {
        &self.0.port
    }

    /// Its network namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.0.namespace
    }

    /// Every frame that arrives at the guest from now on.
    #[must_use]
    pub fn frames(&self) -> Frames {
        self.0.namespace.enter(Frames::new)
    }

    /// Runs a command inside, 30 seconds at most.
    #[must_use]
    pub fn run(&self, argv: &[&str]) -> Output {
        self.0.namespace.run(argv)
    }

    /// Connects to the service.
    ///
    /// # Panics
    /// When the connection is refused or nothing answers.
    #[must_use]
    pub fn connect(&self) -> Connection {
        self.connect_to(Address::V4)
    }

    /// Connects to one of its addresses.
    ///
    /// # Panics
    /// When the connection is refused or nothing answers.
    #[must_use]
    pub fn connect_to(&self, to: Address) -> Connection {
        self.try_connect(to)
            .unwrap_or_else(|error| panic!("{} cannot connect to {to:?}: {error}", self.name()))
    }

    /// Tries to connect to something.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn try_connect(&self, to: Address) -> io::Result<Connection> {
        self.0.namespace.enter(|| Connection::open(to))
    }

    /// Connects from one of its addresses.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn try_connect_from(&self, from: IpAddr, to: Address) -> io::Result<Connection> {
        self.0.namespace.enter(|| Connection::open_from(from, to))
    }

    /// A GET without a token on a connection of its own.
    ///
    /// # Panics
    /// When it is not answered.
    #[must_use]
    pub fn get(&self, path: &str) -> Response {
        self.get_from(Address::V4, path)
    }

    /// A GET without a token from one of the service's addresses.
    ///
    /// # Panics
    /// When it is not answered.
    #[must_use]
    pub fn get_from(&self, from: Address, path: &str) -> Response {
        self.connect_to(from).get(path, &[])
    }

    /// A GET with a token on a connection of its own.
    ///
    /// # Panics
    /// When it is not answered.
    #[must_use]
    pub fn get_with_token(&self, path: &str, token: &str) -> Response {
        self.connect()
            .get(path, &[("X-aws-ec2-metadata-token", token)])
    }

    /// Any request on a connection of its own.
    ///
    /// # Panics
    /// When it is not answered.
    #[must_use]
    pub fn request(&self, method: &str, path: &str, fields: &[(&str, &str)]) -> Response {
        self.connect()
            .exchange(method, path, fields)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// Mints a token.
    ///
    /// # Panics
    /// When none is granted.
    #[must_use]
    pub fn put_token(&self, ttl_seconds: u32) -> String {
        self.connect().put_token(ttl_seconds)
    }

    /// A machine behind the guest, for which it forwards packets in both directions without translating addresses:
    /// a container on a bridge of the guest, say. The cable between them has an MTU of its own.
    ///
    /// # Panics
    /// When the guest is not connected by `eth0`.
    #[must_use]
    pub fn behind(&self, name: &str, ipv4: &str, mtu: u32) -> Guest {
        let namespace = Namespace::new();
        let outer = &self.0.namespace;
        let (cable, peer, net) = (format!("to-{name}"), namespace.path(), network(parse(ipv4)));
        outer.sysctl("net/ipv4/ip_forward", "1");
        outer.ip(&format!(
            "link add {cable} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {peer}\n\
             link set {cable} up\n\
             address add {net}.1/24 dev {cable}"
        ));
        namespace.ip(&format!(
            "link set eth0 up\naddress add {ipv4}/24 dev eth0\nroute add default via {net}.1"
        ));
        let inner = Inner {
            namespace,
            name: name.to_owned(),
            id: self.0.id.clone(),
            port: self.0.port.clone(),
        };
        Guest(Arc::new(inner))
    }

    /// IPv6 between the guest and the machine of that name behind it: `prefix::1` and `prefix::2`.
    pub fn forward_ipv6_to(&self, inner: &Guest, name: &str, prefix: &str) {
        self.0.namespace.sysctl("net/ipv6/conf/all/forwarding", "1");
        self.0
            .namespace
            .ip(&format!("address add {prefix}::1/64 dev to-{name} nodad"));
        let own = format!(
            "address add {prefix}::2/64 dev eth0 nodad\nroute add default via {prefix}::1 dev eth0"
        );
        inner.0.namespace.ip(&own);
    }
}

/// An instance id made from a name: the same on every run, different for different names.
pub(crate) fn id_of(name: &str) -> String {
    // FNV-1a; an id has 17 hexadecimal digits, one more than 64 bits.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("i-0{hash:016x}")
}

fn route(guest: &Namespace, port_mac: &str, ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>) {
    if let Some(address) = ipv4 {
        guest.ip(&format!(
            "address add {address}/32 dev eth0\n\
             neighbour add {GATEWAY_V4} lladdr {port_mac} dev eth0 nud permanent\n\
             route add default via {GATEWAY_V4} dev eth0 onlink src {address}"
        ));
    }
    if let Some(address) = ipv6 {
        guest.ip(&format!(
            "address add {address}/128 dev eth0 nodad\n\
             neighbour add {GATEWAY_V6} lladdr {port_mac} dev eth0 nud permanent\n\
             route add default via {GATEWAY_V6} dev eth0"
        ));
    }
}

fn stay_on_link(guest: &Namespace, ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>) {
    if let Some(address) = ipv4 {
        guest.ip(&format!(
            "address add {address}/32 dev eth0\nroute add 169.254.169.254/32 dev eth0 src {address}"
        ));
    }
    if let Some(address) = ipv6 {
        guest.ip(&format!("address add {address}/128 dev eth0 nodad"));
    }
    // Without any address of its own the guest asks from its link-local one; below 1280 bytes there is no IPv6.
    if ipv6.is_some() || ipv4.is_none() {
        guest.ip("route add fd00:ec2::254/128 dev eth0");
    }
}

fn put_behind_bridge(
    host: &Namespace,
    guest: &Namespace,
    bridge: &str,
    port: &str,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
) {
    host.ip(&format!("link set {port} master {bridge}"));
    if let Some(address) = ipv4 {
        let net = network(address);
        host.ip(&format!("address replace {net}.1/24 dev {bridge}"));
        guest.ip(&format!(
            "address add {address}/24 dev eth0\nroute add default via {net}.1"
        ));
    }
    if let Some(address) = ipv6 {
        let gateway = Ipv6Addr::from(u128::from(address) >> 64 << 64 | 1);
        host.ip(&format!("address replace {gateway}/64 dev {bridge} nodad"));
        guest.ip(&format!(
            "address add {address}/64 dev eth0 nodad\nroute add default via {gateway} dev eth0"
        ));
    }
}

/// The first three numbers of an address.
fn network(address: Ipv4Addr) -> String {
    let [a, b, c, _] = address.octets();
    format!("{a}.{b}.{c}")
}

fn parse<T: std::str::FromStr>(address: &str) -> T {
    address
        .parse()
        .unwrap_or_else(|_| panic!("{address} is not an address"))
}
