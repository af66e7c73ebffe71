//! What the daemon knows of the host and of the guests on it, beyond what it serves: the interfaces there are, who waits
//! for one, which are closed, and what sources and people said.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::commands::owner_of;
use super::{DaemonError, Served, Wanted, absent, is_absent};
use crate::config::disk::Disk;
use crate::config::mould::Newcomer;
use crate::config::nearest::nearest;
use crate::config::{Discovery, Guest, Origin, PortBy};
use crate::control::discovery::{ClosedStatus, DiscoveryStatus, SourceStatus, WaitingStatus};
use crate::dataplane::Port;
use crate::discovery::admitted::{Admission, Admitted, Interface};
use crate::discovery::plan::{self, Absence, Closed, Plan, Rules, Scene, Why};
use crate::discovery::source::{Sighting, Snapshot, Sources};
use crate::instance::InstanceId;
use crate::launch::plan::PORT_PREFIX;
use crate::netns::NetNs;
use crate::netns::link::{Link, Links};
use crate::netns::uplink::{Way, defaults};
use crate::state::USUAL_DIR;
use crate::store::apply::turned_up;
use crate::store::{InstanceRecord, Owner, Store};

/// When what could not be done is tried again, and names of namespaces are looked up again: nobody tells of those.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a start waits for what sources know.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many guests without a port get a line in the log, and a suggestion.
const NAMED_MAX: usize = 20;
/// Where the kernel has its number for this boot of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// See the module.
pub(super) struct Following {
    pub(super) links: Links,
    pub(super) discovery: Discovery,
    /// Why guests have no port, by their key among those that are served.
    pub(super) waits: BTreeMap<String, Absence>,
    /// Interfaces that are closed.
    pub(super) closed: BTreeMap<String, Closed>,
    /// Interfaces of guests that cannot be served, with the reason.
    pub(super) refused: BTreeMap<u32, String>,
    /// What the source said last.
    pub(super) snapshot: Snapshot,
    pub(super) admitted: Admitted,
    /// Whether a source has still to tell for the first time.
    pub(super) awaits_source: bool,
    /// Whether something went wrong that may go right a moment later.
    pub(super) is_unsettled: bool,
    /// How often notifications were lost.
    pub(super) n_lost: u64,
    /// What is kept of instances.
    store: Store,
    /// Guests that turned up and whose records are still to be kept, as they say it themselves.
    unkept: RefCell<BTreeMap<InstanceId, Guest>>,
    /// Where we are: what tells an interface from every other that there ever was.
    here: Interface,
}

/// What there is on the host.
pub(super) struct Surroundings {
    pub(super) links: Vec<Link>,
    pub(super) ways: Vec<Way>,
    uplinks: BTreeSet<u32>,
    namespaces: BTreeMap<String, i32>,
}

impl Following {
    /// Must be called in the host's namespace, within a tokio runtime.
    ///
    /// `cookie` is the kernel's number for that namespace.
    pub(super) fn begin(
        discovery: Discovery,
        admitted: Admitted,
        cookie: u64,
        store: Store,
    ) -> Result<Self, DaemonError> {
        let boot = fs::read_to_string(BOOT_ID).map_err(|cause| DaemonError::System {
            what: "read the number of this boot",
            cause,
        })?;
        let here = Interface {
            boot: boot.trim().to_owned(),
            namespace: cookie,
            ifindex: 0,
            mac: None,
        };
        Ok(Self {
            links: Links::open()?,
            discovery,
            waits: BTreeMap::new(),
            closed: BTreeMap::new(),
            refused: BTreeMap::new(),
            snapshot: Snapshot::default(),
            admitted: still_there(admitted, &here),
            awaits_source: false,
            is_unsettled: false,
            n_lost: 0,
            store,
            unkept: RefCell::default(),
            here,
        })
    }

    /// Starts the sources that the configuration asks for.
    pub(super) fn start_sources(&self) -> Sources {
        Sources::start(self.discovery.docker.as_deref(), &self.links)
    }

    /// Waits for what the sources know, so that a start goes on with their guests as with all others. Not for long: a source
    /// that is not there is no reason not to serve.
    pub(super) async fn hear_first(&mut self, sources: &mut Sources) {
        if sources.is_empty() {
            return;
        }
        let first = tokio::time::timeout(PATIENCE, sources.next()).await;
        self.snapshot = first.unwrap_or_default();
        self.awaits_source =
            self.snapshot.trouble.is_some() || self.snapshot == Snapshot::default();
    }

    /// An interface of this host, and no other that there ever was.
    pub(super) fn interface(&self, link: &Link) -> Interface {
        Interface {
            ifindex: link.index,
            mac: link.mac,
            ..self.here.clone()
        }
    }

    /// When to look again though nothing was told.
    pub(super) fn look_again<'a>(
        &self,
        mut guests: impl Iterator<Item = &'a Served>,
    ) -> Option<Duration> {
        let waits_for_name =
            |guest: &Served| is_absent(&guest.port) && matches!(guest.by, PortBy::Netns(_));
        (self.is_unsettled || guests.any(waits_for_name)).then_some(AGAIN)
    }

    /// Asks the kernel what there is. What is `held` is looked at twice: a list that was made while interfaces went may
    /// have missed one that did not (older kernels go by position in a table), and nobody is let go of because of that.
    ///
    /// The names of namespaces come last: what is paired with a number that was given away meanwhile is an interface whose
    /// namespace is gone, never another guest's.
    pub(super) async fn surroundings(
        &self,
        held: impl Iterator<Item = &Port>,
        wanted: impl Iterator<Item = &PortBy>,
    ) -> Result<Surroundings, DaemonError> {
        let mut links = self.links.list().await?;
        let listed: BTreeSet<u32> = links.iter().map(|link| link.index).collect();
        for port in held.filter(|port| !is_absent(port) && !listed.contains(&port.ifindex)) {
            links.extend(self.links.by_index(port.ifindex).await?);
        }
        let ways = self.links.ways().await?;
        let mut namespaces = BTreeMap::new();
        for by in wanted {
            let PortBy::Netns(name) = by else { continue };
            let Ok(namespace) = NetNs::open(name.as_str()) else {
                continue;
            };
            if let Some(number) = self.links.number_of(&namespace).await? {
                namespaces.insert(name.as_str().to_owned(), number);
            }
        }
        Ok(Surroundings {
            links,
            uplinks: defaults(&ways),
            ways,
            namespaces,
        })
    }

    /// What is to be done about these guests.
    pub(super) fn plan(
        &self,
        surroundings: &Surroundings,
        guests: &[plan::Guest<'_>],
        keeps_former: bool,
    ) -> Plan {
        let is_templated = |name: &str| self.discovery.mould.template_for(name).is_some();
        let rules = Rules {
            patterns: &self.discovery.ports,
            is_templated: &is_templated,
            refused: &self.refused,
            keeps_former,
        };
        let scene = Scene {
            links: &surroundings.links,
            uplinks: &surroundings.uplinks,
            namespaces: &surroundings.namespaces,
        };
        plan::plan(scene, guests, &self.closed, &rules)
    }

    /// The port that a guest which is not there yet would have.
    pub(super) async fn place(
        &self,
        name: &str,
        by: &PortBy,
    ) -> Result<Option<Result<Port, Absence>>, DaemonError> {
        let surroundings = self
            .surroundings(std::iter::empty(), std::iter::once(by))
            .await?;
        let guest = plan::Guest {
            name,
            by,
            has: None,
        };
        Ok(self.plan(&surroundings, &[guest], false).places.pop())
    }

    /// Finds the ports of the guests of a new configuration, and with them of all that are known from elsewhere. What is
    /// served so far keeps its port where nothing speaks against it.
    pub(super) async fn settle(
        &mut self,
        configured: Vec<Guest>,
        served: &BTreeMap<String, Served>,
    ) -> Result<(Wanted, Plan), DaemonError> {
        let mut guests = configured;
        if served.is_empty() {
            self.forget_replaced().await?;
        }
        self.add_admitted(&mut guests);
        self.add_seen(&mut guests);
        guests.sort_by_key(|guest| precedence(&guest.port));
        let held = served.values().map(|served| &served.port);
        let held = held.chain(self.closed.values().map(|closed| &closed.port));
        let wanted = guests.iter().map(|guest| &guest.port);
        let surroundings = self.surroundings(held, wanted).await?;
        let has: HashMap<InstanceId, &Port> = served
            .values()
            .filter(|served| !is_absent(&served.port))
            .map(|served| (served.state.instance.id, &served.port))
            .collect();
        let placed: Vec<plan::Guest<'_>> = guests
            .iter()
            .map(|guest| plan::Guest {
                name: &guest.name,
                by: &guest.port,
                has: has.get(&guest.instance.id).copied(),
            })
            .collect();
        let mut plan = self.plan(&surroundings, &placed, false);
        for port in std::mem::take(&mut plan.newcomers) {
            let made = self.made(&port).and_then(|guest| free(guest, &guests));
            match made {
                Ok(guest) => {
                    guests.push(guest);
                    plan.places.push(Ok(port));
                }
                Err(why) => plan.refuse(port, why),
            }
        }
        let wanted = self.wanted(guests, std::mem::take(&mut plan.places));
        Ok((wanted, plan))
    }

    fn wanted(&mut self, guests: Vec<Guest>, places: Vec<Result<Port, Absence>>) -> Wanted {
        self.waits.clear();
        let mut wanted = Wanted::new();
        for (guest, place) in guests.into_iter().zip(places) {
            let port = match place {
                Ok(port) => port,
                Err(_) if !guest.port.outlives_its_interface() => continue,
                Err(absence) => {
                    let key = guest.port.to_string();
                    self.waits.insert(key.clone(), absence);
                    absent(key)
                }
            };
            wanted.insert(port.name.clone(), (guest, port));
        }
        wanted
    }

    /// Says in the log who waits, and for what.
    pub(super) async fn warn(&self, wanted: &Wanted) {
        let links = self.links.list().await.unwrap_or_default();
        let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        // Those of a launcher's guests come and go with them.
        let is_odd = |(key, absence): &(&String, &Absence)| {
            !(key.starts_with(PORT_PREFIX) && matches!(absence, Absence::Missing(_)))
        };
        for (key, absence) in self.waits.iter().filter(is_odd).take(NAMED_MAX) {
            let name = wanted.get(key).map_or("", |(guest, _)| &guest.name);
            tracing::warn!("instance {name} waits: {absence}{}", near(key, &names));
        }
        let n_odd = self.waits.iter().filter(is_odd).count();
        let n_more = n_odd.saturating_sub(NAMED_MAX);
        if n_more > 0 {
            tracing::warn!("{n_more} more instances wait for their interfaces");
        }
    }

    /// What stands in the way of the first guest of the configuration whose port cannot be had: an interface that cannot be
    /// one, or, if that is asked for, one that is not there yet.
    pub(super) fn obstacle(&self, wanted: &Wanted, is_strict: bool) -> Option<DaemonError> {
        let mut waiting = self.waits.iter().filter_map(|(key, absence)| {
            let (guest, _) = wanted.get(key)?;
            (guest.origin == Origin::Configuration).then_some((guest, absence))
        });
        waiting.find_map(|(guest, absence)| {
            let instance = guest.name.to_string();
            match absence {
                Absence::Unfit { interface, why } => Some(DaemonError::NotAPort {
                    port: interface.clone(),
                    instance,
                    why: why.clone(),
                }),
                Absence::Missing(_) if is_strict => Some(DaemonError::NoInterface {
                    port: guest.port.to_string(),
                    instance,
                }),
                Absence::Missing(_) | Absence::Taken { .. } => None,
            }
        })
    }

    /// The instance that a template makes for an interface.
    pub(super) fn made(&self, port: &Port) -> Result<Guest, String> {
        let mould = &self.discovery.mould;
        let template = mould.template_for(&port.name);
        let template = template.ok_or("no template is for it any more")?;
        let newcomer = Newcomer {
            name: &port.name,
            port: &PortBy::Index(port.ifindex),
            seed: &Interface {
                ifindex: port.ifindex,
                ..self.here.clone()
            }
            .seed(),
            origin: Origin::Template,
        };
        let guest = mould.from_template(template, &newcomer, &Disk)?;
        Ok(self.as_kept(guest))
    }

    /// The guest that was admitted.
    pub(super) fn admit(&self, admission: &Admission) -> Result<Guest, String> {
        let by = match &admission.to {
            Some(interface) => PortBy::Index(interface.ifindex),
            None => {
                let name = admission.port.parse();
                PortBy::Name(name.map_err(|error: crate::config::PortNameError| error.to_string())?)
            }
        };
        let newcomer = Newcomer {
            name: admission.name.as_deref().unwrap_or(&admission.port),
            port: &by,
            seed: &admission.seed(),
            origin: Origin::Admission,
        };
        let mould = &self.discovery.mould;
        let guest = mould.from_pairs(&admission.pairs(), &newcomer, &Disk);
        let guest = guest.map_err(|error| error.to_string())?;
        Ok(self.as_kept(guest))
    }

    /// A guest that turned up, as its record has it, if it has one: calls of the API may have changed it since.
    fn as_kept(&self, guest: Guest) -> Guest {
        let owner = owner_of(guest.origin);
        let record = self.store.read(|view| turned_up(view, &guest, owner));
        let Some(record) = record else {
            return guest;
        };
        let kept = Guest {
            credential_source: record.credential_source,
            instance: record.spec,
            ..guest.clone()
        };
        self.unkept.borrow_mut().insert(guest.instance.id, guest);
        kept
    }

    /// Those whose records are still to be kept.
    pub(super) fn take_unkept(&self) -> BTreeMap<InstanceId, Guest> {
        self.unkept.take()
    }

    /// Whether a record of a guest that is not served may be forgotten: nobody will tell of it again.
    pub(super) fn is_forgotten(&self, record: &InstanceRecord) -> bool {
        match record.owner {
            Owner::Admitted => {
                let mut admissions = self.admitted.admissions.iter();
                !admissions.any(|admission| *admission.called() == *record.name)
            }
            // A source that is not there for a while says nothing of its guests.
            Owner::Discovered => !self.awaits_source && self.snapshot.trouble.is_none(),
            Owner::File | Owner::Api => false,
        }
    }

    /// Forgets admissions whose interfaces went while no daemon ran, be it that others have their numbers now.
    async fn forget_replaced(&mut self) -> Result<(), DaemonError> {
        for admission in std::mem::take(&mut self.admitted.admissions) {
            let is_there = match &admission.to {
                None => true,
                Some(to) => {
                    let link = self.links.by_index(to.ifindex).await?;
                    link.is_some_and(|link| link.mac == to.mac)
                }
            };
            if is_there {
                self.admitted.admissions.push(admission);
            }
        }
        Ok(())
    }

    fn add_admitted(&self, guests: &mut Vec<Guest>) {
        for admission in &self.admitted.admissions {
            match self.admit(admission).and_then(|guest| free(guest, guests)) {
                Ok(guest) => guests.push(guest),
                Err(why) => tracing::warn!(
                    "{} was admitted and is not served: {why}",
                    admission.called()
                ),
            }
        }
    }

    /// Adds the guests that a source has seen, and notes those that cannot be served.
    pub(super) fn add_seen(&mut self, guests: &mut Vec<Guest>) {
        self.refused.clear();
        for sighting in &self.snapshot.guests {
            let seen = seen(&self.discovery, sighting).map(|guest| self.as_kept(guest));
            let mut ports = sighting.ports.iter();
            let mut refuse = |port: &u32, why: &str| {
                let why = format!("{}: {why}", sighting.what);
                self.refused.insert(*port, why);
            };
            let seen = seen.and_then(|guest| free(guest, guests));
            match seen {
                Ok(guest) => {
                    guests.push(guest);
                    ports.next();
                    ports
                        .for_each(|port| refuse(port, "it is served on another of its interfaces"));
                }
                Err(why) => ports.for_each(|port| refuse(port, &why)),
            }
        }
    }

    /// What `imds status` shows.
    pub(super) async fn report(
        &self,
        served: &BTreeMap<String, Served>,
        state_dir: &Path,
    ) -> Result<DiscoveryStatus, DaemonError> {
        let links = self.links.list().await?;
        let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        let waiting = self.waits.iter().enumerate().map(|(at, (key, absence))| {
            // To look for what was meant takes its time.
            let near = if at < NAMED_MAX {
                near(key, &names)
            } else {
                String::new()
            };
            WaitingStatus {
                name: served.get(key).map_or("", |guest| &guest.name).to_owned(),
                port: key.clone(),
                why: format!("{absence}{near}"),
            }
        });
        let closed = self.closed.values();
        let docker = self.discovery.docker.as_ref().map(|socket| SourceStatus {
            source: "docker".to_owned(),
            place: socket.display().to_string(),
            trouble: self.snapshot.trouble.clone(),
            refused: without_port(&self.snapshot),
        });
        Ok(DiscoveryStatus {
            waiting: waiting.collect(),
            closed: closed
                .map(|closed| closed_status(closed, state_dir))
                .collect(),
            sources: docker.into_iter().collect(),
            lost_notifications: self.n_lost,
        })
    }
}

/// The guest that a source has seen.
fn seen(discovery: &Discovery, sighting: &Sighting) -> Result<Guest, String> {
    let pairs = sighting.says.as_ref().map_err(Clone::clone)?;
    let port = sighting.ports.first().ok_or("it has no interface")?;
    let newcomer = Newcomer {
        name: &sighting.name,
        port: &PortBy::Index(*port),
        seed: &sighting.seed,
        origin: Origin::Source,
    };
    let guest = discovery.mould.from_pairs(pairs, &newcomer, &Disk);
    guest.map_err(|error| error.to_string())
}

/// Guests that cannot be served and have no interface to be shown at.
fn without_port(snapshot: &Snapshot) -> Vec<String> {
    let guests = snapshot.guests.iter();
    guests
        .filter(|sighting| sighting.ports.is_empty())
        .filter_map(|sighting| {
            let why = sighting.says.as_ref().err()?;
            Some(format!("{}: {why}", sighting.what))
        })
        .collect()
}

fn closed_status(closed: &Closed, state_dir: &Path) -> ClosedStatus {
    let port = &closed.port;
    let admit = admit_command(&port.name, state_dir);
    let (why, admit) = match &closed.why {
        Why::Unknown => ("who is behind it is not known".to_owned(), Some(admit)),
        Why::Former => {
            let why = "it was a guest's; whose it is now is not known";
            (why.to_owned(), Some(admit))
        }
        Why::Refused(why) => (why.clone(), None),
    };
    ClosedStatus {
        port: port.name.clone(),
        ifindex: port.ifindex,
        why,
        admit,
    }
}

fn admit_command(port: &str, state_dir: &Path) -> String {
    let elsewhere = if state_dir == Path::new(USUAL_DIR) {
        String::new()
    } else {
        format!(" --state-dir {}", state_dir.display())
    };
    format!("imds admit --port {port}{elsewhere}")
}

/// Guests whose port an operator named come first, then those that are found by more roundabout ways.
pub(super) fn precedence(by: &PortBy) -> u8 {
    match by {
        PortBy::Name(_) => 0,
        PortBy::Mac(_) => 1,
        PortBy::Netns(_) => 2,
        PortBy::Index(_) => 3,
    }
}

/// A guest that turned up, if it has nothing that another one has and must be one's own.
fn free(guest: Guest, others: &[Guest]) -> Result<Guest, String> {
    let taken = others.iter().find_map(|other| {
        let same_port = other.port == guest.port;
        taken(&guest, &other.name, other.instance.id).or_else(|| {
            same_port.then(|| format!("{} is the port of instance {}", guest.port, other.name))
        })
    });
    taken.map_or(Ok(guest), Err)
}

/// What a guest has that another one of this name and id has already.
pub(super) fn taken(guest: &Guest, name: &str, id: InstanceId) -> Option<String> {
    if *guest.name == *name {
        Some(format!("the name `{name}` is another instance's"))
    } else if guest.instance.id == id {
        Some(format!("the id `{id}` is that of instance {name}"))
    } else {
        None
    }
}

/// What was probably meant, if something else is there.
fn near(key: &str, names: &[&str]) -> String {
    match nearest(key, names) {
        Some(near) if near != key => format!(" (`{near}` is)"),
        _ => String::new(),
    }
}

/// Without those that were admitted on another boot or in another namespace: their interfaces are gone.
fn still_there(admitted: Admitted, here: &Interface) -> Admitted {
    let is_here = |admission: &Admission| {
        let to = admission.to.as_ref();
        to.is_none_or(|to| to.boot == here.boot && to.namespace == here.namespace)
    };
    let admissions = admitted.admissions.into_iter().filter(is_here);
    Admitted {
        admissions: admissions.collect(),
    }
}
