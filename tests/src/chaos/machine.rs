//! The guests of a chaos run: namespaces whose cable is pulled, renamed and made anew while they ask.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::ledger::Expected;
use crate::guest::id_of;
use crate::host::Host;
use crate::instance::InstanceText;
use crate::namespace::Namespace;

/// The one address of all guests behind a gateway, so that only the port can tell them apart.
const IPV4: &str = "10.0.0.10";
const IPV6: &str = "fd00:1::10";
const GATEWAY_V4: &str = "192.0.2.1";
const GATEWAY_V6: &str = "fe80::1";
/// Every fifth guest sits behind this bridge.
const BRIDGE: &str = "br0";
const BRIDGE_EVERY: usize = 5;

/// A guest, and what its clients have seen of the service.
pub(super) struct Machine {
    pub(super) number: usize,
    /// What the configuration calls the instance that it is at the start.
    pub(super) name: String,
    pub(super) id: String,
    pub(super) namespace: Namespace,
    pub(super) expected: Expected,
    is_bridged: bool,
    /// Of each client, when its last answered request began, in microseconds since `epoch`.
    served: [AtomicU64; 2],
    epoch: Instant,
}

impl Machine {
    /// Makes a guest without a cable.
    pub(super) fn new(number: usize, name: &str) -> Self {
        let (id, epoch) = (id_of(name), Instant::now());
        Self {
            number,
            name: name.to_owned(),
            namespace: Namespace::new(),
            expected: Expected::new(&id, epoch),
            id,
            is_bridged: number % BRIDGE_EVERY == BRIDGE_EVERY - 1,
            served: Default::default(),
            epoch,
        }
    }

    /// The host's interface that the configuration says it is behind.
    pub(super) fn port(&self) -> String {
        format!("veth-{}", self.name)
    }

    /// What the configuration says of it. Every other one requires tokens.
    pub(super) fn instance(&self) -> InstanceText {
        let mut text = InstanceText::new(&self.name, &self.port(), &self.id);
        if self.number.is_multiple_of(2) {
            text.option("http-tokens", "\"required\"");
        }
        // Whoever comes to be behind its port may ask over IPv6.
        text.option("http-protocol-ipv6", "\"enabled\"");
        text
    }

    pub(super) fn has_ipv6(&self) -> bool {
        !self.is_bridged
    }

    /// Plugs a cable in, at the host under this name.
    pub(super) fn plug(&self, host: &Namespace, port: &str) {
        let (peer, number) = (self.namespace.path(), self.number);
        let mac = format!("02:69:6d:00:01:{number:02x}");
        host.ip(&format!(
            "link add {port} address {mac} type veth peer name eth0 netns {peer}"
        ));
        if self.is_bridged {
            host.ip(&format!("link set {port} master {BRIDGE}"));
            self.namespace.ip(&format!(
                "link set eth0 up\naddress add 10.0.1.{}/24 dev eth0\nroute add default via 10.0.1.1",
                number + 10
            ));
        } else {
            self.namespace.ip(&format!(
                "link set eth0 up\n\
                 address add {IPV4}/32 dev eth0\n\
                 neighbour add {GATEWAY_V4} lladdr {mac} dev eth0 nud permanent\n\
                 route add default via {GATEWAY_V4} dev eth0 onlink src {IPV4}\n\
                 address add {IPV6}/128 dev eth0 nodad\n\
                 neighbour add {GATEWAY_V6} lladdr {mac} dev eth0 nud permanent\n\
                 route add default via {GATEWAY_V6} dev eth0"
            ));
        }
        // Last, so that the guest's first packet finds everything as it is to be.
        host.ip(&format!("link set {port} up"));
    }

    /// Notes that a client was answered. `client` is 0 or 1.
    pub(super) fn note_served(&self, client: usize, began: Instant) {
        self.served[client].store(self.micros(began), Ordering::Relaxed);
    }

    /// Whether each of its clients had a request answered that it began later than this.
    pub(super) fn is_served_since(&self, moment: Instant) -> bool {
        let moment = self.micros(moment);
        let mut served = self.served.iter();
        served.all(|client| client.load(Ordering::Relaxed) > moment)
    }

    fn micros(&self, moment: Instant) -> u64 {
        let since = moment.saturating_duration_since(self.epoch);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }
}

/// The bridge of those that are behind one.
pub(super) fn make_bridge(host: &mut Host) {
    host.bridge(BRIDGE);
    host.namespace()
        .ip(&format!("address replace 10.0.1.1/24 dev {BRIDGE}"));
}

/// Waits until these are served by requests that began after `moment`; those that are not in time, or not by the moment that
/// waiting is in vain, are named.
pub(super) fn await_served(
    machines: &[&Machine],
    moment: Instant,
    within: Duration,
    is_in_vain: &AtomicBool,
) -> Result<(), String> {
    let deadline = Instant::now() + within;
    loop {
        let mut late = machines.iter().filter(|one| !one.is_served_since(moment));
        let Some(first) = late.next() else {
            return Ok(());
        };
        if Instant::now() >= deadline || is_in_vain.load(Ordering::Relaxed) {
            let names: Vec<&str> = [first]
                .into_iter()
                .chain(late)
                .map(|one| &*one.name)
                .collect();
            return Err(format!(
                "not served within {within:?}: {}",
                names.join(", ")
            ));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
