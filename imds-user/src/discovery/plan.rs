//! From what is there to what is to be done. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::config::{Pattern, PortBy};
use crate::dataplane::Port;
use crate::netns::link::{Link, Mac};

/// What the host has.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// Its interfaces.
    pub links: &'a [Link],
    /// The numbers of those by which a default route leaves.
    pub uplinks: &'a BTreeSet<u32>,
    /// The host's numbers for the network namespaces that have a name and a number.
    pub namespaces: &'a BTreeMap<String, i32>,
}

/// A guest that is known.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// What it is called.
    pub name: &'a str,
    /// How its port is found.
    pub by: &'a PortBy,
    /// The port that it has; none while it waits for one.
    pub has: Option<&'a Port>,
}

/// What the operator and the sources say of interfaces that are nobody's.
pub struct Rules<'a> {
    /// Interfaces that are guests'.
    pub patterns: &'a [Pattern],
    /// Whether an interface of this name gets an instance made for it.
    pub is_templated: &'a dyn Fn(&str) -> bool,
    /// Interfaces of guests that cannot be served, with the reason.
    pub refused: &'a BTreeMap<u32, String>,
    /// Whether an interface that was a guest's, and still is there, stays closed when nothing speaks for it any more.
    /// Not when the operator has just said that it is a guest's no more.
    pub keeps_former: bool,
}

/// An interface that is closed: what its guest sends to the metadata addresses is dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Which.
    pub port: Port,
    /// Why.
    pub why: Why,
}

/// Why an interface is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It matches a pattern, and who is behind it is not known.
    Unknown,
    /// Its guest cannot be served.
    Refused(String),
    /// It was a guest's, and whose it is now is not known.
    Former,
}

/// Why a guest has no port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Absence {
    /// There is no such interface. It may come.
    #[error("{0}")]
    Missing(String),
    /// There is, and it cannot be a port.
    #[error("interface {interface} cannot be a port: {why}")]
    Unfit {
        /// The interface.
        interface: String,
        /// What is in the way.
        why: String,
    },
    /// It is another guest's.
    #[error("interface {interface} is the port of instance {owner}")]
    Taken {
        /// The interface.
        interface: String,
        /// Its guest.
        owner: String,
    },
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Interfaces in our hands that are called otherwise now: their former names and their new ones. First.
    pub renames: Vec<(String, String)>,
    /// The port of every guest, in the order of the guests.
    pub places: Vec<Result<Port, Absence>>,
    /// Interfaces for which an instance is to be made.
    pub newcomers: Vec<Port>,
    /// Every interface that is to be closed, by its name.
    pub closed: BTreeMap<String, Closed>,
}

impl Plan {
    /// Closes an interface, since no instance can be made for it.
    pub fn refuse(&mut self, port: Port, why: String) {
        let why = Why::Refused(why);
        let name = port.name.clone();
        self.closed.insert(name, Closed { port, why });
    }
}

/// Decides. Guests come in the order of precedence: of two that would have the same port, the first gets it. `closed` is
/// what is closed so far.
#[must_use]
pub fn plan(
    scene: Scene<'_>,
    guests: &[Guest<'_>],
    closed: &BTreeMap<String, Closed>,
    rules: &Rules<'_>,
) -> Plan {
    let held = guests.iter().filter_map(|guest| guest.has);
    let held: BTreeMap<u32, &Port> = held
        .chain(closed.values().map(|closed| &closed.port))
        .map(|port| (port.ifindex, port))
        .collect();
    let renames = scene.links.iter().filter_map(|link| {
        let port = held.get(&link.index)?;
        (port.name != link.name).then(|| (port.name.clone(), link.name.clone()))
    });
    let mut plan = Plan {
        renames: renames.collect(),
        ..Plan::default()
    };
    let index = Index::of(scene);
    let mut owners: BTreeMap<u32, &str> = BTreeMap::new();
    for guest in guests {
        let place = place_of(guest, &index, &owners);
        if let Ok(port) = &place {
            owners.insert(port.ifindex, guest.name);
        }
        plan.places.push(place);
    }
    for link in scene.links {
        if owners.contains_key(&link.index) {
            continue;
        }
        let is_held = held.contains_key(&link.index);
        let is_fit = is_held || whole_why_not(link, scene).is_none();
        if is_fit && (rules.is_templated)(&link.name) && !rules.refused.contains_key(&link.index) {
            plan.newcomers.push(port_of(link));
        } else if let Some(why) = why_closed(link, is_held, is_fit, rules) {
            let port = port_of(link);
            plan.closed.insert(link.name.clone(), Closed { port, why });
        }
    }
    plan
}

fn why_closed(link: &Link, is_held: bool, is_fit: bool, rules: &Rules<'_>) -> Option<Why> {
    if let Some(reason) = rules.refused.get(&link.index).filter(|_| is_fit) {
        return Some(Why::Refused(reason.clone()));
    }
    let is_guests = rules
        .patterns
        .iter()
        .any(|pattern| pattern.matches(&link.name));
    if is_guests && is_fit {
        return Some(Why::Unknown);
    }
    (is_held && rules.keeps_former).then_some(Why::Former)
}

/// A scene with its interfaces by name and number: there may be ten thousand, and as many guests.
struct Index<'a> {
    scene: Scene<'a>,
    by_name: HashMap<&'a str, &'a Link>,
    by_number: HashMap<u32, &'a Link>,
}

impl<'a> Index<'a> {
    fn of(scene: Scene<'a>) -> Self {
        let links = scene.links.iter();
        Self {
            scene,
            by_name: links
                .clone()
                .map(|link| (link.name.as_str(), link))
                .collect(),
            by_number: links.map(|link| (link.index, link)).collect(),
        }
    }

    fn fit_with_address(&self, address: Mac) -> impl Iterator<Item = &'a Link> {
        let scene = self.scene;
        scene
            .links
            .iter()
            .filter(move |link| has_address(link, address) && whole_why_not(link, scene).is_none())
    }

    /// The ends of veth pairs whose other ends are in the namespace of this number.
    fn leading_to(&self, number: i32) -> impl Iterator<Item = &'a Link> {
        let links = self.scene.links.iter();
        links.filter(move |link| link.kind == "veth" && link.peer_netnsid == Some(number))
    }
}

/// The port of a guest.
fn place_of(
    guest: &Guest<'_>,
    index: &Index<'_>,
    owners: &BTreeMap<u32, &str>,
) -> Result<Port, Absence> {
    let link = find(guest.by, index)?;
    // What came to be an uplink while it was served stays served: to let go of it would open it.
    let is_held = guest.has.is_some_and(|port| port.ifindex == link.index);
    if let Some(why) = why_not(link, index.scene).filter(|_| !is_held) {
        return Err(Absence::Unfit {
            interface: link.name.clone(),
            why: why.to_owned(),
        });
    }
    if let Some(other) = owners.get(&link.index) {
        return Err(Absence::Taken {
            interface: link.name.clone(),
            owner: (*other).to_owned(),
        });
    }
    Ok(port_of(link))
}

fn find<'a>(by: &PortBy, index: &Index<'a>) -> Result<&'a Link, Absence> {
    let missing = |text: String| Absence::Missing(text);
    match by {
        PortBy::Name(name) => index
            .by_name
            .get(name.as_str())
            .copied()
            .ok_or_else(|| missing(format!("interface {name} is not there"))),
        PortBy::Index(number) => index
            .by_number
            .get(number)
            .copied()
            .ok_or_else(|| missing("its interface is gone".to_owned())),
        PortBy::Mac(mac) => {
            let mut found = index.fit_with_address(mac.0);
            match (found.next(), found.next()) {
                (Some(link), None) => Ok(link),
                (Some(one), Some(other)) => Err(Absence::Unfit {
                    interface: one.name.clone(),
                    why: format!(
                        "it and {} both have the address {mac}: name the port instead",
                        other.name
                    ),
                }),
                (None, _) => Err(missing(format!("no interface has the address {mac}"))),
            }
        }
        PortBy::Netns(name) => {
            let name = name.as_str();
            let number = index.scene.namespaces.get(name).ok_or_else(|| {
                missing(format!(
                    "no veth pair leads to a network namespace `{name}`"
                ))
            })?;
            // Of several pairs the oldest counts.
            let oldest = index.leading_to(*number).min_by_key(|link| link.index);
            oldest
                .ok_or_else(|| missing(format!("no veth pair leads to network namespace `{name}`")))
        }
    }
}

/// libvirt gives a tap its guest's address with `fe` in front.
fn has_address(link: &Link, address: Mac) -> bool {
    let [_, rest @ ..] = address;
    let [a, b, c, d, e] = rest;
    link.mac == Some(address) || link.mac == Some([0xfe, a, b, c, d, e])
}

/// Why an interface cannot be a port, even if an operator names it.
fn why_not(link: &Link, scene: Scene<'_>) -> Option<&'static str> {
    if !link.is_ethernet {
        Some("it carries no Ethernet frames")
    } else if scene.uplinks.contains(&link.index) {
        Some(
            "a default route of the host leaves by it, so it is an uplink: what comes in there is no guest's",
        )
    } else if link.kind == "bridge" {
        Some(
            "it is a bridge: name the interfaces of its guests instead, each of which is a port of its own",
        )
    } else if is_responders(&link.name) {
        Some("it leads to a responder's namespace")
    } else {
        None
    }
}

/// Why an interface cannot be a port that nobody named: a pattern is wider than who wrote it may have thought. What has
/// no kind is a physical device, and what lies over another one carries that one's guests.
fn whole_why_not(link: &Link, scene: Scene<'_>) -> Option<&'static str> {
    let is_device_of_guests = matches!(link.kind.as_str(), "veth" | "tun");
    why_not(link, scene).or((!is_device_of_guests).then_some("it is no device of a guest"))
}

/// The names that [`crate::state::namespace_name_in`] gives: those of other daemons of this host too.
fn is_responders(name: &str) -> bool {
    let Some(digits) = name.strip_prefix("imds-") else {
        return false;
    };
    digits.len() == 8 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
}

/// An interface as a port.
#[must_use]
pub fn port_of(link: &Link) -> Port {
    Port {
        name: link.name.clone(),
        ifindex: link.index,
        has_peer_elsewhere: link.kind == "veth" && link.peer_netnsid.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: &str) -> Link {
        Link {
            name: name.into(),
            index,
            kind: kind.into(),
            mtu: 1500,
            mac: Some([2, 0, 0, 0, 0, u8::try_from(index).unwrap()]),
            is_ethernet: true,
            is_up: true,
            carrier: true,
            controller: None,
            lower: None,
            peer_netnsid: None,
        }
    }

    /// `2 vnet0`, `3 eth0 -`, `4 br0 bridge`, `5 veth0 veth 1`: number, name, kind (a tap unless it says something else),
    /// the number of the namespace at the other end.
    fn links(text: &str) -> Vec<Link> {
        let link = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let kind = match words.get(2) {
                None => "tun",
                Some(&"-") => "",
                Some(kind) => kind,
            };
            let number = words.get(3).map(|number| number.parse().unwrap());
            let mut link = link(words[0].parse().unwrap(), words[1], kind);
            link.peer_netnsid = number;
            link.is_ethernet = words[1] != "lo" && kind != "wireguard";
            link
        };
        text.split(',')
            .filter(|line| !line.trim().is_empty())
            .map(link)
            .collect()
    }

    /// A host as it is after a plan was carried out.
    struct Host {
        guests: Vec<(&'static str, PortBy, Option<Port>)>,
        closed: BTreeMap<String, Closed>,
        patterns: Vec<Pattern>,
        templates: Vec<Pattern>,
        refused: BTreeMap<u32, String>,
        uplinks: BTreeSet<u32>,
        namespaces: BTreeMap<String, i32>,
        keeps_former: bool,
    }

    impl Host {
        fn new(guests: &[(&'static str, PortBy)], patterns: &[&str]) -> Self {
            let guests = guests.iter();
            Self {
                guests: guests.map(|(name, by)| (*name, by.clone(), None)).collect(),
                closed: BTreeMap::new(),
                patterns: patterns.iter().map(|text| text.parse().unwrap()).collect(),
                templates: Vec::new(),
                refused: BTreeMap::new(),
                uplinks: BTreeSet::from([2]),
                namespaces: BTreeMap::new(),
                keeps_former: true,
            }
        }

        /// Plans for these interfaces, carries it out, and tells what was done, a word for each kind of action.
        fn see(&mut self, text: &str) -> Vec<String> {
            let links = links(text);
            let scene = Scene {
                links: &links,
                uplinks: &self.uplinks,
                namespaces: &self.namespaces,
            };
            let guests: Vec<Guest<'_>> = self
                .guests
                .iter()
                .map(|(name, by, has)| Guest {
                    name,
                    by,
                    has: has.as_ref(),
                })
                .collect();
            let is_templated = |name: &str| self.templates.iter().any(|one| one.matches(name));
            let rules = Rules {
                patterns: &self.patterns,
                is_templated: &is_templated,
                refused: &self.refused,
                keeps_former: self.keeps_former,
            };
            let plan = plan(scene, &guests, &self.closed, &rules);
            self.carry_out(plan)
        }

        fn carry_out(&mut self, plan: Plan) -> Vec<String> {
            let mut done = Vec::new();
            for (old, new) in &plan.renames {
                done.push(format!("rename {old} {new}"));
            }
            for ((name, _, has), place) in self.guests.iter_mut().zip(plan.places) {
                match place {
                    Ok(port) if has.as_ref() == Some(&port) => {}
                    Ok(port) => {
                        done.push(format!("{name} on {} ({})", port.name, port.ifindex));
                        *has = Some(port);
                    }
                    Err(absence) => {
                        if has.take().is_some() {
                            done.push(format!("{name} off"));
                        }
                        done.push(format!("{name} waits: {absence}"));
                    }
                }
            }
            for port in plan.newcomers {
                done.push(format!("new {} ({})", port.name, port.ifindex));
            }
            for (name, closed) in &plan.closed {
                if self.closed.get(name) != Some(closed) {
                    done.push(format!(
                        "close {name} ({}): {:?}",
                        closed.port.ifindex, closed.why
                    ));
                }
            }
            for name in self
                .closed
                .keys()
                .filter(|name| !plan.closed.contains_key(*name))
            {
                done.push(format!("release {name}"));
            }
            self.closed = plan.closed;
            done
        }
    }

    fn named(name: &str) -> PortBy {
        PortBy::Name(name.parse().unwrap())
    }

    fn check(host: &mut Host, links: &str, expected: &[&str]) {
        assert_eq!(host.see(links), expected, "{links}");
    }

    #[test]
    fn a_guest_is_served_when_its_interface_comes_and_not_when_it_goes() {
        let mut host = Host::new(&[("web", named("vnet0"))], &[]);
        let waits = "web waits: interface vnet0 is not there";
        check(&mut host, "1 lo -", &[waits]);
        check(&mut host, "1 lo -, 7 vnet0", &["web on vnet0 (7)"]);
        check(&mut host, "1 lo -, 7 vnet0, 8 vnet1", &[]);
        check(&mut host, "1 lo -, 8 vnet1", &["web off", waits]);
    }

    #[test]
    fn an_interface_that_was_made_anew_is_another_port() {
        let mut host = Host::new(&[("web", named("vnet0"))], &[]);
        check(&mut host, "7 vnet0", &["web on vnet0 (7)"]);
        check(&mut host, "9 vnet0", &["web on vnet0 (9)"]);
    }

    #[test]
    fn what_matches_a_pattern_is_closed_until_it_is_somebodys() {
        let mut host = Host::new(&[("web", named("vnet0"))], &["vnet*", "veth*"]);
        check(
            &mut host,
            "7 vnet0, 8 vnet1, 9 tap0, 10 veth9 veth 3",
            &[
                "web on vnet0 (7)",
                "close veth9 (10): Unknown",
                "close vnet1 (8): Unknown",
            ],
        );
        host.guests.push(("db", named("vnet1"), None));
        check(
            &mut host,
            "7 vnet0, 8 vnet1, 9 tap0",
            &["db on vnet1 (8)", "release veth9", "release vnet1"],
        );
        host.guests.pop();
        check(
            &mut host,
            "7 vnet0, 8 vnet1, 9 tap0",
            &["close vnet1 (8): Unknown"],
        );
    }

    #[test]
    fn a_pattern_takes_nothing_but_devices_of_guests() {
        let mut host = Host::new(&[], &["*"]);
        check(
            &mut host,
            "1 lo -, 2 eth0 -, 3 eth1 -, 4 br0 bridge, 5 eth1.7 vlan, 6 imds-0123abcd veth 0, 7 wg0 wireguard, \
             8 bond0 bond, 9 ovs0 openvswitch, 10 tap0, 11 imds-web veth 1",
            &["close imds-web (11): Unknown", "close tap0 (10): Unknown"],
        );
    }

    #[test]
    fn what_cannot_be_a_port_is_none_even_by_name() {
        let guests = [
            ("up", named("eth0")),
            ("switch", named("br0")),
            ("loop", named("lo")),
            ("card", named("eth1")),
        ];
        let mut host = Host::new(&guests, &[]);
        let done = host.see("1 lo -, 2 eth0 -, 3 eth1 -, 4 br0 bridge");
        assert_eq!(done[3], "card on eth1 (3)");
        for (line, words) in done.iter().zip(["an uplink", "a bridge", "no Ethernet"]) {
            assert!(line.contains("waits") && line.contains(words), "{line}");
        }
    }

    #[test]
    fn a_port_that_becomes_an_uplink_stays_served() {
        let mut host = Host::new(&[("router", named("vnet0"))], &["vnet*"]);
        check(
            &mut host,
            "7 vnet0, 8 vnet1",
            &["router on vnet0 (7)", "close vnet1 (8): Unknown"],
        );
        host.uplinks.extend([7, 8]);
        check(&mut host, "7 vnet0, 8 vnet1", &[]);
    }

    #[test]
    fn an_interface_stays_closed_when_its_guest_goes_and_it_does_not() {
        let by_number = [("redis", PortBy::Index(7))];
        let mut host = Host::new(&by_number, &[]);
        check(&mut host, "7 veth1 veth 1", &["redis on veth1 (7)"]);
        // The container's labels cannot be read any more, say. The daemon tells of it once more as closed.
        let port = host.guests.pop().unwrap().2.unwrap();
        let why = Why::Unknown;
        host.closed.insert("veth1".into(), Closed { port, why });
        check(&mut host, "7 veth1 veth 1", &["close veth1 (7): Former"]);
        check(&mut host, "", &["release veth1"]);
    }

    #[test]
    fn what_the_operator_takes_away_is_let_go() {
        let mut host = Host::new(&[("web", named("tap0"))], &["vnet*"]);
        check(&mut host, "7 tap0", &["web on tap0 (7)"]);
        let port = host.guests.pop().unwrap().2.unwrap();
        let why = Why::Former;
        host.closed.insert("tap0".into(), Closed { port, why });
        host.keeps_former = false;
        check(&mut host, "7 tap0", &["release tap0"]);
    }

    #[test]
    fn a_rename_takes_the_interface_from_who_is_known_by_name_alone() {
        let guests = [("web", named("vnet0")), ("redis", PortBy::Index(8))];
        let mut host = Host::new(&guests, &[]);
        check(
            &mut host,
            "7 vnet0, 8 vnet1",
            &["web on vnet0 (7)", "redis on vnet1 (8)"],
        );
        check(
            &mut host,
            "7 old0, 8 old1",
            &[
                "rename vnet0 old0",
                "rename vnet1 old1",
                "web off",
                "web waits: interface vnet0 is not there",
                "redis on old1 (8)",
                "close old0 (7): Former",
            ],
        );
    }

    #[test]
    fn an_address_is_that_of_the_hosts_own_interface() {
        let by = |text: &str| PortBy::Mac(text.parse().unwrap());
        let guests = [
            ("same", by("02:00:00:00:00:07")),
            ("libvirt", by("52:54:00:aa:bb:cc")),
            ("nobody", by("52:54:00:00:00:00")),
        ];
        let mut host = Host::new(&guests, &[]);
        let mut links = links("7 tap7, 8 vnet0, 9 br0 bridge");
        links[1].mac = Some([0xfe, 0x54, 0, 0xaa, 0xbb, 0xcc]);
        // A bridge borrows the address of one of its ports.
        links[2].mac = links[0].mac;
        let none = BTreeMap::new();
        let scene = Scene {
            links: &links,
            uplinks: &host.uplinks,
            namespaces: &none,
        };
        let known: Vec<Guest<'_>> = host
            .guests
            .iter()
            .map(|(name, by, _)| Guest {
                name,
                by,
                has: None,
            })
            .collect();
        let rules = Rules {
            patterns: &[],
            is_templated: &|_| false,
            refused: &BTreeMap::new(),
            keeps_former: true,
        };
        let plan = plan(scene, &known, &BTreeMap::new(), &rules);
        assert_eq!(
            host.carry_out(plan),
            [
                "same on tap7 (7)",
                "libvirt on vnet0 (8)",
                "nobody waits: no interface has the address 52:54:00:00:00:00"
            ]
        );
    }

    #[test]
    fn a_namespaces_port_is_the_oldest_pair_that_leads_to_it() {
        let blue = PortBy::Netns("blue".parse().unwrap());
        let mut host = Host::new(&[("blue", blue)], &["veth*"]);
        let none = "blue waits: no veth pair leads to a network namespace `blue`";
        check(
            &mut host,
            "7 veth7 veth 4",
            &[none, "close veth7 (7): Unknown"],
        );
        host.namespaces = BTreeMap::from([("blue".into(), 4), ("red".into(), 5)]);
        check(
            &mut host,
            "9 veth9 veth 4, 7 veth7 veth 4, 8 veth8 veth 5",
            &[
                "blue on veth7 (7)",
                "close veth8 (8): Unknown",
                "close veth9 (9): Unknown",
                "release veth7",
            ],
        );
        // Its other end is somewhere else now.
        check(
            &mut host,
            "9 veth9 veth 4, 7 veth7 veth 5, 8 veth8 veth 5",
            &[
                "blue on veth9 (9)",
                "close veth7 (7): Unknown",
                "release veth9",
            ],
        );
    }

    #[test]
    fn the_first_of_two_guests_gets_the_port() {
        let guests = [("web", named("vnet0")), ("other", PortBy::Index(7))];
        let mut host = Host::new(&guests, &[]);
        check(
            &mut host,
            "7 vnet0",
            &[
                "web on vnet0 (7)",
                "other waits: interface vnet0 is the port of instance web",
            ],
        );
    }

    #[test]
    fn a_template_makes_a_newcomer_of_what_is_nobodys() {
        let mut host = Host::new(&[("web", named("vnet0"))], &["tap*"]);
        host.templates = vec!["*net*".parse().unwrap()];
        host.refused = BTreeMap::from([(9, "why not".to_owned())]);
        check(
            &mut host,
            "7 vnet0, 8 vnet1, 9 vnet2, 10 tap0, 11 net0 bridge",
            &[
                "web on vnet0 (7)",
                "new vnet1 (8)",
                "close tap0 (10): Unknown",
                "close vnet2 (9): Refused(\"why not\")",
            ],
        );
    }

    #[test]
    fn the_end_of_a_pair_that_moves_elsewhere_is_seen() {
        let mut host = Host::new(&[("web", named("veth0"))], &[]);
        host.see("7 veth0 veth");
        let before = host.guests[0].2.clone().unwrap();
        check(&mut host, "7 veth0 veth 2", &["web on veth0 (7)"]);
        let after = host.guests[0].2.clone().unwrap();
        assert_eq!(
            (before.has_peer_elsewhere, after.has_peer_elsewhere),
            (false, true)
        );
    }
}
