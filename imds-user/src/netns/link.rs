//! Interfaces, addresses and routes of one network namespace, by rtnetlink.
//!
//! A [`Links`] is a netlink socket, which belongs to the namespace that it was made in however its user moves
//! about. Interfaces are named, not numbered: a number is only ever looked up and used at once. Answers from the
//! kernel become errors that name the interface.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use futures_util::{StreamExt, TryStreamExt};
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use rtnetlink::packet_route::link::{
    InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

use super::uplink::Way;
use super::{NetNs, NetNsError};
use crate::memory;

/// The hardware address of an Ethernet interface.
pub type Mac = [u8; 6];

/// Bit of `RTAX_MTU` (2) in `RTAX_LOCK`: the kernel then takes no path MTU it is told of instead.
/// linux/rtnetlink.h.
const LOCK_MTU: u32 = 1 << 2;

/// A connection to the kernel's link, address and route tables of one namespace.
#[derive(Clone, Debug)]
pub struct Links {
    handle: Handle,
}

/// Two interfaces, each the other's far end.
#[derive(Debug)]
pub struct VethPair<'a> {
    /// The end that stays in the namespace of the [`Links`].
    pub name: &'a str,
    /// Its hardware address; the kernel makes one up otherwise.
    pub mac: Option<Mac>,
    /// The other end's name.
    pub peer_name: &'a str,
    /// Its hardware address; the kernel makes one up otherwise.
    pub peer_mac: Option<Mac>,
    /// Where the other end goes; the same namespace otherwise.
    pub peer_netns: Option<&'a NetNs>,
    /// MTU in bytes of both ends; the kernel's 1500 otherwise.
    pub mtu: Option<u32>,
}

/// What the kernel says about an interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its number in this namespace.
    pub index: u32,
    /// `veth`, `bridge`, `tun`, `macvtap` …; empty for what has no rtnetlink kind: loopback, physical devices.
    pub kind: String,
    /// Bytes.
    pub mtu: u32,
    /// Hardware address, if it is an Ethernet address.
    pub mac: Option<Mac>,
    /// Whether its frames start with an Ethernet header (`ARPHRD_ETHER`).
    pub is_ethernet: bool,
    /// Whether it was set up (`IFF_UP`).
    pub is_up: bool,
    /// Whether its other end is up.
    pub carrier: bool,
    /// The bridge (or bond, VRF) that it belongs to, by number.
    pub controller: Option<u32>,
    /// The interface beneath it or at its other end, by number in the namespace [`Link::peer_netnsid`].
    pub lower: Option<u32>,
    /// This namespace's number for the namespace that the other end is in, if that is another one.
    pub peer_netnsid: Option<i32>,
}

/// A route: what, by which way. Made with [`Route::to`] and the like, refined by its methods.
#[derive(Clone, Debug)]
pub struct Route {
    destination: IpAddr,
    prefix_bits: u8,
    gateway: Option<IpAddr>,
    interface: Option<String>,
    kind: RouteKind,
    is_onlink: bool,
    mtu_locked_bytes: Option<u32>,
    advmss_bytes: Option<u32>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum RouteKind {
    Unicast,
    Local,
}

/// So many interfaces that listing them takes megabytes.
const MANY: usize = 1000;

impl Links {
    /// Connects to the namespace of the calling thread. Must be called within a tokio runtime, which drives the
    /// connection until the last clone is dropped.
    ///
    /// # Errors
    /// When there is no netlink.
    pub fn open() -> Result<Self, LinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(LinkError::Connect)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Connects to another namespace; the connection is then used and driven from where we are. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// When the namespace cannot be entered or has no netlink.
    pub fn open_in(namespace: &NetNs) -> Result<Self, LinkError> {
        let runtime = tokio::runtime::Handle::current();
        namespace.run(|| {
            let _guard = runtime.enter();
            Self::open()
        })?
    }

    /// Makes a pair of veth interfaces; both are down.
    ///
    /// # Errors
    /// When a name is taken or not good, or the kernel refuses.
    pub async fn add_veth(&self, pair: &VethPair<'_>) -> Result<(), LinkError> {
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new().name(pair.peer_name);
        let mut end = LinkVeth::new(pair.name, pair.peer_name);
        if let Some(mac) = pair.mac {
            end = end.address(mac.to_vec());
        }
        if let Some(mac) = pair.peer_mac {
            peer = peer.address(mac.to_vec());
        }
        if let Some(mtu) = pair.mtu {
            end = end.mtu(mtu);
            peer = peer.mtu(mtu);
        }
        if let Some(namespace) = pair.peer_netns {
            peer = peer.setns_by_fd(namespace.as_fd().as_raw_fd());
        }
        let message = end
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
            .build();
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .map_err(refused("create the veth pair of", pair.name))
    }

    /// Makes a bridge; it is down.
    ///
    /// # Errors
    /// When the name is taken or not good, or the kernel refuses.
    pub async fn add_bridge(&self, name: &str, mac: Option<Mac>) -> Result<(), LinkError> {
        let mut bridge = LinkBridge::new(name);
        if let Some(mac) = mac {
            bridge = bridge.address(mac.to_vec());
        }
        self.handle
            .link()
            .add(bridge.build())
            .execute()
            .await
            .map_err(refused("create bridge", name))
    }

    /// Makes an interface a port of a bridge.
    ///
    /// # Errors
    /// When one of them is missing or the kernel refuses.
    pub async fn enslave(&self, name: &str, bridge: &str) -> Result<(), LinkError> {
        let index = self.index(bridge).await?;
        self.change(
            "put into a bridge",
            LinkUnspec::new_with_name(name).controller(index),
            name,
        )
        .await
    }

    /// Sets an interface up.
    ///
    /// # Errors
    /// When it is missing or the kernel refuses.
    pub async fn set_up(&self, name: &str) -> Result<(), LinkError> {
        self.change("set up", LinkUnspec::new_with_name(name).up(), name)
            .await
    }

    /// Sets an interface down.
    ///
    /// # Errors
    /// When it is missing or the kernel refuses.
    pub async fn set_down(&self, name: &str) -> Result<(), LinkError> {
        self.change("set down", LinkUnspec::new_with_name(name).down(), name)
            .await
    }

    /// Sets the MTU, bytes.
    ///
    /// # Errors
    /// When the interface is missing or takes no such MTU.
    pub async fn set_mtu(&self, name: &str, mtu: u32) -> Result<(), LinkError> {
        self.change(
            "set the MTU of",
            LinkUnspec::new_with_name(name).mtu(mtu),
            name,
        )
        .await
    }

    /// Sets the hardware address.
    ///
    /// # Errors
    /// When the interface is missing or takes no such address.
    pub async fn set_mac(&self, name: &str, mac: Mac) -> Result<(), LinkError> {
        self.change(
            "set the MAC of",
            LinkUnspec::new_with_name(name).address(mac.to_vec()),
            name,
        )
        .await
    }

    /// Switches ARP (and with it IPv6's neighbour discovery) off on an interface.
    ///
    /// # Errors
    /// When it is missing or the kernel refuses.
    pub async fn set_noarp(&self, name: &str) -> Result<(), LinkError> {
        self.change(
            "switch ARP off on",
            LinkUnspec::new_with_name(name).arp(false),
            name,
        )
        .await
    }

    /// Moves an interface to another namespace, where it is down and has no addresses.
    ///
    /// # Errors
    /// When it is missing, its name is taken there, or the kernel refuses.
    pub async fn move_to(&self, name: &str, namespace: &NetNs) -> Result<(), LinkError> {
        let fd = namespace.as_fd().as_raw_fd();
        self.change(
            "move",
            LinkUnspec::new_with_name(name).setns_by_fd(fd),
            name,
        )
        .await
    }

    /// Deletes an interface; of a veth pair both ends.
    ///
    /// # Errors
    /// [`LinkError::Missing`] when there is none of this name; when the kernel refuses.
    pub async fn delete(&self, name: &str) -> Result<(), LinkError> {
        let message = LinkUnspec::new_with_name(name).build();
        self.handle
            .link()
            .del_with_message(message)
            .execute()
            .await
            .map_err(refused("delete", name))
    }

    /// Gives an interface an address. An IPv6 address is usable at once: it is not probed for duplicates, since
    /// these addresses are given, not guessed.
    ///
    /// # Errors
    /// When the interface is missing or has this address.
    pub async fn add_address(
        &self,
        name: &str,
        address: IpAddr,
        prefix_bits: u8,
    ) -> Result<(), LinkError> {
        let index = self.index(name).await?;
        let mut request = self.handle.address().add(index, address, prefix_bits);
        if address.is_ipv6() {
            let message = request.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request
            .execute()
            .await
            .map_err(refused("add an address to", name))
    }

    /// Adds a route.
    ///
    /// # Errors
    /// When its interface is missing, its gateway out of reach, or it is there.
    pub async fn add_route(&self, route: &Route) -> Result<(), LinkError> {
        let index = match &route.interface {
            Some(name) => Some(self.index(name).await?),
            None => None,
        };
        let message = route.message(index).map_err(|cause| route.refused(cause))?;
        self.handle
            .route()
            .add(message)
            .execute()
            .await
            .map_err(|error| route.refused(io_error(&error)))
    }

    /// Every unicast route of every table, an element for each interface that it may leave by.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn ways(&self) -> Result<Vec<Way>, LinkError> {
        let mut ways = Vec::new();
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        for question in [v4, v6] {
            let answers = self.handle.route().get(question).execute();
            let routes = answers
                .try_collect::<Vec<_>>()
                .await
                .map_err(refused("list the routes of", "all"))?;
            ways.extend(routes.iter().flat_map(ways_of));
        }
        // A kernel without IPv6 answers the second question with all that it has.
        ways.sort_unstable();
        ways.dedup();
        Ok(ways)
    }

    /// What the kernel says about an interface, if there is one of this name.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn get(&self, name: &str) -> Result<Option<Link>, LinkError> {
        let answers = self.handle.link().get().match_name(name).execute();
        match answers.try_collect::<Vec<_>>().await {
            Ok(messages) => Ok(messages.first().map(Link::from)),
            Err(error) => match refused("look up", name)(error) {
                LinkError::Missing { .. } => Ok(None),
                other => Err(other),
            },
        }
    }

    /// What the kernel says about the interface of this number, if there is one.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn by_index(&self, index: u32) -> Result<Option<Link>, LinkError> {
        let answers = self.handle.link().get().match_index(index).execute();
        match answers.try_collect::<Vec<_>>().await {
            Ok(messages) => Ok(messages.first().map(Link::from)),
            Err(error) => match refused("look up", "")(error) {
                LinkError::Missing { .. } => Ok(None),
                other => Err(other),
            },
        }
    }

    /// Every interface of the namespace.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn list(&self) -> Result<Vec<Link>, LinkError> {
        let answers = self.handle.link().get().execute();
        let links: Vec<Link> = answers
            // At once: a message holds all that the kernel knows of an interface, several kilobytes.
            .map_ok(|message| Link::from(&message))
            .try_collect()
            .await
            .map_err(refused("list", "all"))?;
        if links.len() > MANY {
            // Messages come faster than they are looked at, and wait in memory meanwhile.
            memory::give_back();
        }
        Ok(links)
    }

    /// The number of an interface.
    ///
    /// # Errors
    /// [`LinkError::Missing`] when there is none of this name.
    pub async fn index(&self, name: &str) -> Result<u32, LinkError> {
        let link = self.get(name).await?;
        link.map(|link| link.index)
            .ok_or_else(|| LinkError::Missing {
                name: name.to_owned(),
            })
    }

    /// This namespace's number for another one, as [`Link::peer_netnsid`] has it; none while it has not given it one.
    /// The kernel gives a number when it first tells of an interface whose other end is there.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn number_of(&self, namespace: &NetNs) -> Result<Option<i32>, LinkError> {
        let refused = |cause: io::Error| LinkError::Number {
            namespace: namespace.to_string(),
            cause,
        };
        let fd = u32::try_from(namespace.as_fd().as_raw_fd())
            .map_err(|error| refused(invalid(error)))?;
        let mut question = NsidMessage::default();
        question.attributes.push(NsidAttribute::Fd(fd));
        let mut question = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(question));
        question.header.flags = NLM_F_REQUEST;
        let mut answers = self
            .handle
            .clone()
            .request(question)
            .map_err(|error| refused(io_error(&error)))?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer)) => {
                    let number = answer
                        .attributes
                        .iter()
                        .find_map(|attribute| match attribute {
                            NsidAttribute::Id(number) => Some(*number),
                            _ => None,
                        });
                    return Ok(number.filter(|number| *number >= 0));
                }
                NetlinkPayload::Error(error) => return Err(refused(error.to_io())),
                _ => {}
            }
        }
        Ok(None)
    }

    async fn change(
        &self,
        action: &'static str,
        change: LinkMessageBuilder<LinkUnspec>,
        name: &str,
    ) -> Result<(), LinkError> {
        self.handle
            .link()
            .set(change.build())
            .execute()
            .await
            .map_err(refused(action, name))
    }
}

impl VethPair<'_> {
    /// A pair of these names, both here, the rest as the kernel does it; for struct update syntax.
    #[must_use]
    pub fn new<'a>(name: &'a str, peer_name: &'a str) -> VethPair<'a> {
        VethPair {
            name,
            mac: None,
            peer_name,
            peer_mac: None,
            peer_netns: None,
            mtu: None,
        }
    }
}

impl Route {
    /// To a prefix.
    #[must_use]
    pub fn to(destination: IpAddr, prefix_bits: u8) -> Self {
        Self {
            destination,
            prefix_bits,
            gateway: None,
            interface: None,
            kind: RouteKind::Unicast,
            is_onlink: false,
            mtu_locked_bytes: None,
            advmss_bytes: None,
        }
    }

    /// To one address.
    #[must_use]
    pub fn to_host(destination: IpAddr) -> Self {
        Self::to(destination, if destination.is_ipv4() { 32 } else { 128 })
    }

    /// To everywhere, IPv4.
    #[must_use]
    pub fn default_v4() -> Self {
        Self::to(Ipv4Addr::UNSPECIFIED.into(), 0)
    }

    /// To everywhere, IPv6.
    #[must_use]
    pub fn default_v6() -> Self {
        Self::to(Ipv6Addr::UNSPECIFIED.into(), 0)
    }

    /// The prefix is this host's own (`ip route add local PREFIX dev lo`).
    #[must_use]
    pub fn local(destination: IpAddr, prefix_bits: u8) -> Self {
        Self {
            kind: RouteKind::Local,
            ..Self::to(destination, prefix_bits).dev("lo")
        }
    }

    /// By a gateway.
    #[must_use]
    pub fn via(self, gateway: IpAddr) -> Self {
        Self {
            gateway: Some(gateway),
            ..self
        }
    }

    /// By an interface; without a gateway, the destination is on its link.
    #[must_use]
    pub fn dev(self, interface: impl Into<String>) -> Self {
        Self {
            interface: Some(interface.into()),
            ..self
        }
    }

    /// The gateway is on the link even if no route says so.
    #[must_use]
    pub fn onlink(self) -> Self {
        Self {
            is_onlink: true,
            ..self
        }
    }

    /// The path's MTU in bytes, which no ICMP message changes.
    #[must_use]
    pub fn mtu_locked(self, bytes: u32) -> Self {
        Self {
            mtu_locked_bytes: Some(bytes),
            ..self
        }
    }

    /// The segment size in bytes that TCP offers its peers on this route.
    #[must_use]
    pub fn advmss(self, bytes: u32) -> Self {
        Self {
            advmss_bytes: Some(bytes),
            ..self
        }
    }

    /// Whether it is a route for IPv4; else it is one for IPv6.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.destination.is_ipv4()
    }

    fn message(&self, index: Option<u32>) -> io::Result<RouteMessage> {
        let mut builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(self.destination, self.prefix_bits)
            .map_err(invalid)?
            .scope(self.scope());
        if let Some(gateway) = self.gateway {
            builder = builder.gateway(gateway).map_err(invalid)?;
        }
        if let Some(index) = index {
            builder = builder.output_interface(index);
        }
        if self.kind == RouteKind::Local {
            builder = builder
                .kind(RouteType::Local)
                .table_id(libc::RT_TABLE_LOCAL.into());
        }
        if self.is_onlink {
            builder = builder.onlink();
        }
        let mut message = builder.build();
        let metrics = self.metrics();
        if !metrics.is_empty() {
            message.attributes.push(RouteAttribute::Metrics(metrics));
        }
        Ok(message)
    }

    /// As `ip route` chooses it: without a gateway the destination is on the link.
    fn scope(&self) -> RouteScope {
        match (self.kind, self.gateway) {
            (RouteKind::Local, _) => RouteScope::Host,
            (RouteKind::Unicast, None) if self.destination.is_ipv4() => RouteScope::Link,
            (RouteKind::Unicast, _) => RouteScope::Universe,
        }
    }

    fn metrics(&self) -> Vec<RouteMetric> {
        let mtu = self
            .mtu_locked_bytes
            .map(|bytes| [RouteMetric::Lock(LOCK_MTU), RouteMetric::Mtu(bytes)]);
        let advmss = self.advmss_bytes.map(RouteMetric::Advmss);
        mtu.into_iter().flatten().chain(advmss).collect()
    }

    fn refused(&self, cause: io::Error) -> LinkError {
        LinkError::Route {
            route: self.to_string(),
            cause,
        }
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.destination, self.prefix_bits)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(interface) = &self.interface {
            write!(f, " dev {interface}")?;
        }
        Ok(())
    }
}

fn ways_of(route: &RouteMessage) -> Vec<Way> {
    let mut destination = match route.header.address_family {
        AddressFamily::Inet => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        _ => return Vec::new(),
    };
    if route.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let mut table = u32::from(route.header.table);
    let mut interfaces = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                destination = IpAddr::from(*address);
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                destination = IpAddr::from(*address);
            }
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Oif(index) => interfaces.push(*index),
            RouteAttribute::MultiPath(hops) => {
                interfaces.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    let way = |ifindex| Way {
        destination,
        prefix_bits: route.header.destination_prefix_length,
        table,
        ifindex,
    };
    interfaces.into_iter().map(way).collect()
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Self {
        let is_ethernet = message.header.link_layer_type == LinkLayerType::Ether;
        let mut link = Self {
            name: String::new(),
            index: message.header.index,
            kind: String::new(),
            mtu: 0,
            mac: None,
            is_ethernet,
            is_up: message.header.flags.contains(LinkFlags::Up),
            carrier: false,
            controller: None,
            lower: None,
            peer_netnsid: None,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(address) if is_ethernet => {
                    link.mac = address.as_slice().try_into().ok();
                }
                LinkAttribute::Carrier(carrier) => link.carrier = *carrier != 0,
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::Link(index) => link.lower = Some(*index),
                LinkAttribute::LinkNetNsId(id) => link.peer_netnsid = Some(*id),
                LinkAttribute::LinkInfo(infos) => {
                    let kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                    link.kind = kind.unwrap_or_default();
                }
                _ => {}
            }
        }
        link
    }
}

/// What can go wrong with an interface.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The namespace could not be entered.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// No netlink socket.
    #[error("open a netlink socket")]
    Connect(#[source] io::Error),
    /// There is no interface of this name.
    #[error("no interface `{name}` in this network namespace (see `ip link`)")]
    Missing {
        /// What was asked for.
        name: String,
    },
    /// The kernel refused a change of an interface.
    #[error("{action} interface `{name}`")]
    Interface {
        /// What was tried.
        action: &'static str,
        /// On which.
        name: String,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The kernel did not say which number it has for another namespace.
    #[error("ask for the number of network namespace {namespace}")]
    Number {
        /// Its name or inode.
        namespace: String,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The kernel refused a route.
    #[error("add route {route}")]
    Route {
        /// As `ip route` would print it.
        route: String,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
}

fn refused<'a>(
    action: &'static str,
    name: &'a str,
) -> impl FnOnce(rtnetlink::Error) -> LinkError + 'a {
    move |error| {
        let cause = io_error(&error);
        // Creating says ENODEV of a namespace or kind, but those have no name of an interface that is missing.
        if cause.raw_os_error() == Some(Errno::ENODEV as i32) {
            return LinkError::Missing {
                name: name.to_owned(),
            };
        }
        LinkError::Interface {
            action,
            name: name.to_owned(),
            cause,
        }
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

fn io_error(error: &rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::super::for_test::Scratch;
    use super::super::sysctl;
    use super::*;

    const MAC: Mac = [0x06, 0x17, 0x04, 0xd7, 0x26, 0x09];
    const PEER_MAC: Mac = [0x06, 0x17, 0x04, 0xd7, 0x26, 0x0a];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn with_links(test: impl AsyncFnOnce(&NetNs, Links)) {
        let Some(scratch) = Scratch::new() else {
            return;
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let links = Links::open_in(&scratch.0).unwrap();
            test(&scratch.0, links).await;
        });
    }

    #[test]
    fn a_veth_pair_has_the_names_addresses_and_namespaces_asked_for() {
        let Some(guest) = Scratch::new() else { return };
        with_links(async |host, links| {
            let pair = VethPair {
                mac: Some(MAC),
                peer_mac: Some(PEER_MAC),
                peer_netns: Some(&guest.0),
                mtu: Some(9000),
                ..VethPair::new("veth-web", "eth0")
            };
            links.add_veth(&pair).await.unwrap();
            let inside = Links::open_in(&guest.0).unwrap();
            let end = links.get("veth-web").await.unwrap().unwrap();
            let peer = inside.get("eth0").await.unwrap().unwrap();
            assert_eq!(
                (end.kind.as_str(), end.mtu, end.mac, end.is_ethernet),
                ("veth", 9000, Some(MAC), true)
            );
            assert_eq!(
                (peer.mac, peer.mtu, peer.is_up, peer.carrier),
                (Some(PEER_MAC), 9000, false, false)
            );
            assert_eq!(end.lower, Some(peer.index));
            assert!(end.peer_netnsid.is_some() && peer.peer_netnsid.is_some());

            links.set_up("veth-web").await.unwrap();
            inside.set_up("eth0").await.unwrap();
            let end = links.get("veth-web").await.unwrap().unwrap();
            assert!(end.is_up && end.carrier);
            assert_ne!(host.inode(), guest.0.inode());
        });
    }

    #[test]
    fn a_bridge_takes_ports() {
        with_links(async |_, links| {
            links.add_bridge("br0", Some(MAC)).await.unwrap();
            links.add_veth(&VethPair::new("a", "b")).await.unwrap();
            links.enslave("a", "br0").await.unwrap();
            let bridge = links.get("br0").await.unwrap().unwrap();
            assert_eq!((bridge.kind.as_str(), bridge.mac), ("bridge", Some(MAC)));
            assert_eq!(
                links.get("a").await.unwrap().unwrap().controller,
                Some(bridge.index)
            );
            let mut names: Vec<_> = links
                .list()
                .await
                .unwrap()
                .into_iter()
                .map(|link| link.name)
                .collect();
            names.sort();
            assert_eq!(names, ["a", "b", "br0", "lo"]);
        });
    }

    #[test]
    fn an_interface_can_be_changed_moved_and_deleted() {
        let Some(elsewhere) = Scratch::new() else {
            return;
        };
        with_links(async |_, links| {
            links.add_veth(&VethPair::new("a", "b")).await.unwrap();
            links.set_mtu("a", 1280).await.unwrap();
            links.set_mac("a", MAC).await.unwrap();
            links.set_noarp("a").await.unwrap();
            links.set_up("a").await.unwrap();
            links.set_down("a").await.unwrap();
            let a = links.get("a").await.unwrap().unwrap();
            assert_eq!(
                (a.mtu, a.mac, a.is_up, a.peer_netnsid),
                (1280, Some(MAC), false, None)
            );
            links.move_to("b", &elsewhere.0).await.unwrap();
            assert_eq!(links.get("b").await.unwrap(), None);
            links.delete("a").await.unwrap();
            assert_eq!(links.get("a").await.unwrap(), None);
        });
    }

    #[test]
    fn addresses_and_routes_are_usable_at_once() {
        with_links(async |host, links| {
            sysctl::set(host, "net/ipv6/conf/all/disable_ipv6", "0").unwrap();
            links.add_veth(&VethPair::new("a", "b")).await.unwrap();
            for name in ["a", "b", "lo"] {
                links.set_up(name).await.unwrap();
            }
            links.add_address("a", ip("10.0.0.10"), 24).await.unwrap();
            links.add_address("a", ip("fd00:10::10"), 64).await.unwrap();
            links
                .add_route(&Route::default_v4().via(ip("10.0.0.1")))
                .await
                .unwrap();
            links
                .add_route(&Route::default_v6().via(ip("fd00:10::1")).dev("a"))
                .await
                .unwrap();
            links
                .add_route(&Route::to_host(ip("169.254.169.254")).dev("a"))
                .await
                .unwrap();
            links
                .add_route(
                    &Route::to(ip("192.0.2.0"), 24)
                        .via(ip("198.51.100.1"))
                        .dev("a")
                        .onlink(),
                )
                .await
                .unwrap();
            links
                .add_route(
                    &Route::to(ip("203.0.113.0"), 24)
                        .dev("b")
                        .mtu_locked(1280)
                        .advmss(500),
                )
                .await
                .unwrap();
            links
                .add_route(&Route::local(ip("127.128.0.0"), 9))
                .await
                .unwrap();
            links
                .add_route(&Route::local(ip("fd49:4d44:5300::"), 64))
                .await
                .unwrap();
            // An address that is still probed for duplicates cannot be bound; a local route makes
            // the whole prefix ours.
            host.run(|| {
                UdpSocket::bind("[fd00:10::10]:0").unwrap();
                for tag in ["127.128.0.7", "fd49:4d44:5300::7"] {
                    let listener = TcpListener::bind("[::]:0").unwrap();
                    let port = listener.local_addr().unwrap().port();
                    TcpStream::connect((tag, port)).unwrap();
                    let accepted = listener.accept().unwrap().0.local_addr().unwrap();
                    assert_eq!(accepted.ip().to_canonical(), ip(tag));
                }
            })
            .unwrap();
        });
    }

    #[test]
    fn routes_of_every_table_are_listed_by_their_interfaces() {
        with_links(async |host, links| {
            sysctl::set(host, "net/ipv6/conf/all/disable_ipv6", "0").unwrap();
            links.add_veth(&VethPair::new("a", "b")).await.unwrap();
            for name in ["a", "b"] {
                links.set_up(name).await.unwrap();
            }
            let (a, b) = (
                links.index("a").await.unwrap(),
                links.index("b").await.unwrap(),
            );
            for route in [
                Route::default_v4().dev("a"),
                Route::default_v6().dev("b"),
                Route::to(ip("169.254.0.0"), 16).dev("b"),
            ] {
                links.add_route(&route).await.unwrap();
            }
            let add = |line: &str| {
                let argv: Vec<String> = line.split(' ').map(str::to_owned).collect();
                let added = host
                    .run(move || std::process::Command::new("ip").args(argv).status())
                    .unwrap();
                added.unwrap().success()
            };
            assert!(add(
                "route add 0.0.0.0/0 table 777 nexthop dev a nexthop dev b"
            ));
            assert!(add("route add blackhole 192.0.2.0/24"));
            let ways = links.ways().await.unwrap();
            let of = |destination: &str, prefix_bits, table| -> Vec<u32> {
                let is_it = |way: &&Way| {
                    (way.destination, way.prefix_bits, way.table)
                        == (ip(destination), prefix_bits, table)
                };
                ways.iter().filter(is_it).map(|way| way.ifindex).collect()
            };
            assert_eq!(of("0.0.0.0", 0, 254), [a]);
            assert_eq!(of("::", 0, 254), [b]);
            assert_eq!(of("169.254.0.0", 16, 254), [b]);
            assert_eq!(of("0.0.0.0", 0, 777).len(), 2);
            assert!(of("192.0.2.0", 24, 254).is_empty());
        });
    }

    #[test]
    fn a_namespace_is_known_by_the_number_that_interfaces_have_for_it() {
        let (Some(guest), Some(other)) = (Scratch::new(), Scratch::new()) else {
            return;
        };
        with_links(async |host, links| {
            assert_eq!(links.number_of(&guest.0).await.unwrap(), None);
            for (end, netns) in [("a", &guest), ("b", &other)] {
                let pair = VethPair {
                    peer_netns: Some(&netns.0),
                    ..VethPair::new(end, "eth0")
                };
                links.add_veth(&pair).await.unwrap();
            }
            for (end, netns) in [("a", &guest), ("b", &other)] {
                let link = links.get(end).await.unwrap().unwrap();
                assert!(link.peer_netnsid.is_some());
                let number = links.number_of(&netns.0).await.unwrap();
                assert_eq!(number, link.peer_netnsid, "{end}");
            }
            assert_eq!(links.number_of(host).await.unwrap(), None);
        });
    }

    #[test]
    fn errors_name_what_they_are_about() {
        with_links(async |_, links| {
            let text = |error: LinkError| error.to_string();
            let missing = "no interface `eth7` in this network namespace (see `ip link`)";
            assert_eq!(text(links.set_up("eth7").await.unwrap_err()), missing);
            assert_eq!(text(links.delete("eth7").await.unwrap_err()), missing);
            assert_eq!(
                text(
                    links
                        .add_address("eth7", ip("10.0.0.1"), 8)
                        .await
                        .unwrap_err()
                ),
                missing
            );
            assert_eq!(
                text(links.add_bridge("lo", None).await.unwrap_err()),
                "create bridge interface `lo`"
            );
            let route = Route::to(ip("10.9.0.0"), 16).via(ip("10.0.0.1"));
            assert_eq!(
                text(links.add_route(&route).await.unwrap_err()),
                "add route 10.9.0.0/16 via 10.0.0.1"
            );
        });
    }
}
