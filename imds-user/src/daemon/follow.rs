//! Follows the host: interfaces come and go, guests turn up, and what is served is made to fit.
//!
//! What is to be done is [`plan`](crate::discovery::plan)'s to say, from everything there is; here it is done. The order
//! keeps every moment closed: what is to be closed is closed first, the responder knows a guest before its port opens, and
//! forgets it before its slot is given to another.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::following::{precedence, taken};
use super::{Daemon, DaemonError, Served, absent, is_absent, now, uplinks};
use crate::config::{Guest, Origin, PortBy};
use crate::dataplane::{DataPlaneError, Port};
use crate::discovery::plan::{self, Absence, Closed, Plan, Why};
use crate::discovery::source::Snapshot;
use crate::instance::InstanceId;
use crate::life::State;
use crate::netns::watch::Change;
use crate::responder::namespace::ResponderNamespace;
use crate::responder::supervisor::Update;

impl Daemon {
    /// Deals with what cannot wait for a look: interfaces that are gone.
    pub(super) async fn note(&mut self, changes: &[Change]) -> Result<(), DaemonError> {
        for change in changes {
            let Change::Gone(ifindex) = change else {
                continue;
            };
            self.dataplane.forget_interface(*ifindex)?;
            if *ifindex == self.host_end.ifindex {
                self.mend_cable().await?;
            }
            let is_it = |port: &&Port| port.ifindex == *ifindex;
            let held = self.held().find(is_it).map(|port| port.name.clone());
            if let Some(name) = held {
                self.close_if_gone(&name).await?;
            }
        }
        Ok(())
    }

    /// Looks at what there is. Where notifications were lost, or could not be dealt with, everything that they told is looked at
    /// as well.
    pub(super) async fn follow(&mut self, may_be_anything: bool) -> Result<(), DaemonError> {
        if may_be_anything {
            self.dataplane.recheck_guard()?;
            if !self.dataplane.has_responder()? {
                self.mend_cable().await?;
            }
            let held: Vec<String> = self.held().map(|port| port.name.clone()).collect();
            for port in held {
                self.close_if_gone(&port).await?;
            }
        }
        self.look().await?;
        self.forget_gone().await?;
        self.keep_turned_up().await;
        Ok(())
    }

    /// Puts the veth pair into the responder's namespace back. Sockets inside have noticed nothing.
    async fn mend_cable(&mut self) -> Result<(), DaemonError> {
        let name = self.host_end.name.clone();
        tracing::warn!("interface {name}, the way to the responder, is gone: it is put back");
        let ResponderNamespace { host_end, .. } = ResponderNamespace::ensure(&name).await?;
        self.dataplane.set_responder(&host_end)?;
        self.host_end = host_end;
        Ok(())
    }

    /// The interfaces in our hands: those of guests and those that are closed.
    fn held(&self) -> impl Iterator<Item = &Port> {
        let served = self.served.values().map(|guest| &guest.port);
        let closed = self.following.closed.values().map(|closed| &closed.port);
        served.chain(closed).filter(|port| !is_absent(port))
    }

    /// Ends what was served on an interface that is no more, whatever interface has its name or number by now. The next look
    /// finds another for a guest that is known by more than this one.
    async fn close_if_gone(&mut self, name: &str) -> Result<(), DaemonError> {
        if self.dataplane.has_port(name)? {
            return Ok(());
        }
        self.dataplane.close_port(name)?;
        self.following.closed.remove(name);
        let Some(mut guest) = self.served.remove(name) else {
            return Ok(());
        };
        let slot = guest.slot.take();
        if guest.by.outlives_its_interface() {
            tracing::info!("{} waits: interface {name} is gone", guest.name);
            let key = guest.by.to_string();
            let why = format!("interface {name} is gone");
            let absence = Absence::Missing(why);
            self.following.waits.insert(key.clone(), absence);
            guest.port = absent(key.clone());
            self.served.insert(key, guest);
        } else {
            tracing::info!("{} is gone with its interface {name}", guest.name);
        }
        match slot {
            Some(slot) => self.give_back(slot).await,
            None => Ok(()),
        }
    }

    /// Looks at everything, and makes what is served fit. What goes wrong with one port leaves the others alone, and is
    /// tried again. An interface that was a guest's stays closed while it is there.
    pub(super) async fn look(&mut self) -> Result<(), DaemonError> {
        self.look_and(true).await
    }

    /// The same, but lets go of interfaces that were a guest's and for which nothing speaks any more.
    pub(super) async fn look_and_let_go(&mut self) -> Result<(), DaemonError> {
        self.look_and(false).await
    }

    async fn look_and(&mut self, keeps_former: bool) -> Result<(), DaemonError> {
        self.following.is_unsettled = false;
        self.come_back();
        let wanted = self.served.values().map(|served| &served.by);
        let surroundings = self.following.surroundings(self.held(), wanted).await?;
        let uplinks = uplinks::among(&surroundings.links, &surroundings.ways, &self.guard);
        self.dataplane.guard(uplinks);
        let mut known: Vec<(&String, &Served)> = self.served.iter().collect();
        known.sort_by_key(|(_, served)| precedence(&served.by));
        let guests: Vec<plan::Guest<'_>> = known
            .iter()
            .map(|(_, served)| plan::Guest {
                name: &served.name,
                by: &served.by,
                has: Some(&served.port).filter(|port| !is_absent(port)),
            })
            .collect();
        let plan = self.following.plan(&surroundings, &guests, keeps_former);
        let keys = known.into_iter().map(|(key, _)| key.clone()).collect();
        self.carry_out(plan, keys).await
    }

    async fn carry_out(&mut self, mut plan: Plan, keys: Vec<String>) -> Result<(), DaemonError> {
        let keys = self.rename(&plan.renames, keys);
        let newcomers = self.newcomers(&mut plan);
        self.shut(&plan.closed);
        let places = std::mem::take(&mut plan.places);
        let kept = plan.closed.values().map(|closed| closed.port.ifindex);
        let ports = places.iter().flatten().map(|port| port.ifindex);
        let kept: HashSet<u32> = kept.chain(ports).collect();
        let mut update = Update::default();
        let (mut moved, left) = self.take_off(keys, places, &mut update)?;
        moved.extend(newcomers);
        let coming: HashSet<&str> = moved.iter().map(|guest| guest.port.name.as_str()).collect();
        self.let_go(&plan.closed, |name| coming.contains(name));
        self.following.closed = plan.closed;
        if moved.is_empty() && left.is_empty() {
            return Ok(());
        }
        let ready = self.make_ready(moved, &mut update);
        let released = update.remove.clone();
        self.responder.update(update).await?;
        self.leave(left, &kept);
        self.release(released)?;
        for guest in ready {
            self.put_on(guest).await?;
        }
        // Those that came may want credentials that nobody wanted before.
        self.want_credentials();
        self.renew_credentials().await
    }

    /// Gives slots to guests who have a port now, for the responder to know them by.
    fn make_ready(&mut self, guests: Vec<Served>, update: &mut Update) -> Vec<Served> {
        let mut ready = Vec::new();
        for mut guest in guests {
            let id = guest.state.instance.id;
            if self.lives.of(id).state() == State::Running && !is_absent(&guest.port) {
                match self.dataplane.slot_for(id.as_str(), &guest.port) {
                    Ok(slot) => {
                        guest.slot = Some(slot);
                        update.upsert.push((slot, Arc::clone(&guest.state)));
                    }
                    Err(error) => {
                        self.hold_back(guest, &error);
                        continue;
                    }
                }
            }
            ready.push(guest);
        }
        ready
    }

    /// Has the credentials of those asked for who are served, and of nobody else.
    fn want_credentials(&mut self) {
        let guests = self.served.values();
        let sources =
            guests.filter_map(|guest| Some((&*guest.name, guest.credential_source.as_ref()?)));
        self.credentials.want(sources);
    }

    /// Calls interfaces what they are called now. The guests' keys, in their order, as they are then.
    pub(super) fn rename(
        &mut self,
        renames: &[(String, String)],
        mut keys: Vec<String>,
    ) -> Vec<String> {
        if renames.is_empty() {
            return keys;
        }
        self.make_way(renames, &mut keys);
        self.dataplane.rename_ports(renames);
        // Two may have exchanged their names: all go before any comes back.
        let taken: Vec<(Option<Served>, Option<Closed>, &String)> = renames
            .iter()
            .map(|(old, new)| {
                (
                    self.served.remove(old),
                    self.following.closed.remove(old),
                    new,
                )
            })
            .collect();
        for (served, closed, new) in taken {
            if let Some(mut served) = served {
                served.port.name.clone_from(new);
                self.served.insert(new.clone(), served);
            }
            if let Some(mut closed) = closed {
                closed.port.name.clone_from(new);
                self.following.closed.insert(new.clone(), closed);
            }
        }
        let new: HashMap<&String, &String> = renames.iter().map(|(old, new)| (old, new)).collect();
        for key in &mut keys {
            if let Some(new) = new.get(&*key) {
                key.clone_from(new);
            }
        }
        keys
    }

    /// Has those step aside who are known by what other interfaces are called from now on: guests that wait for an interface of
    /// this name, and such whose interface went so lately that nobody was told. They are known by a name that no interface has,
    /// until the next look.
    fn make_way(&mut self, renames: &[(String, String)], keys: &mut [String]) {
        for (_, new) in renames {
            if renames.iter().any(|(old, _)| old == new) {
                continue;
            }
            let Some(mut guest) = self.served.remove(new) else {
                continue;
            };
            if !is_absent(&guest.port) {
                if let Err(error) = self.dataplane.close_port(new) {
                    self.note_trouble(&guest.port, &error);
                }
                guest.port = absent(guest.by.to_string());
            }
            let aside = format!("{new} {}", guest.state.instance.id);
            if let Some(key) = keys.iter_mut().find(|key| *key == new) {
                key.clone_from(&aside);
            }
            self.served.insert(aside, guest);
            self.following.is_unsettled = true;
        }
    }

    /// Has those who stepped aside known by their own names again, where nobody else is.
    fn come_back(&mut self) {
        let aside: Vec<String> = self
            .served
            .iter()
            .filter(|(key, guest)| **key != guest.port.name)
            .map(|(key, _)| key.clone())
            .collect();
        for key in aside {
            let Some(guest) = self.served.remove(&key) else {
                continue;
            };
            let name = guest.port.name.clone();
            let key = if self.served.contains_key(&name) {
                key
            } else {
                name
            };
            self.served.insert(key, guest);
        }
    }

    /// The guests that templates make, without slots.
    fn newcomers(&mut self, plan: &mut Plan) -> Vec<Served> {
        let mut newcomers = Vec::new();
        for port in std::mem::take(&mut plan.newcomers) {
            let made = self
                .following
                .made(&port)
                .and_then(|guest| self.free(guest));
            match made {
                Ok(guest) => newcomers.push(self.meet(guest, port)),
                Err(why) => plan.refuse(port, why),
            }
        }
        newcomers
    }

    /// A guest that turns up, without a slot.
    pub(super) fn meet(&self, guest: Guest, port: Port) -> Served {
        tracing::info!("{} turned up at {}", guest.name, guest.port);
        let life = self.lives.of(guest.instance.id);
        Served::new(guest, port, life, now())
    }

    /// A guest that turns up, if it has nothing that another one has and must be one's own.
    pub(super) fn free(&self, guest: Guest) -> Result<Guest, String> {
        let mut others = self.served.values();
        let taken = others.find_map(|other| taken(&guest, &other.name, other.state.instance.id));
        taken.map_or(Ok(guest), Err)
    }

    /// Closes what is to be closed and is not. What was a guest's until now is closed when it has left: its connections are
    /// told of their end before.
    pub(super) fn shut(&mut self, closed: &BTreeMap<String, Closed>) {
        let is_new = |(name, one): &(&String, &Closed)| {
            let is_it = |port: &Port| port.ifindex == one.port.ifindex;
            let so_far = self.following.closed.get(*name);
            let is_closed = so_far.is_some_and(|so_far| is_it(&so_far.port));
            let is_served = self
                .served
                .get(*name)
                .is_some_and(|guest| is_it(&guest.port));
            !is_closed && !is_served
        };
        let new: Vec<&Closed> = closed.iter().filter(is_new).map(|(_, one)| one).collect();
        let Some(first) = new.first() else {
            return;
        };
        let name = &first.port.name;
        match new.len() - 1 {
            0 => tracing::info!("{name} is closed"),
            n_more => tracing::info!("{name} and {n_more} more interfaces are closed"),
        }
        for one in new {
            if let Err(error) = self.dataplane.silence_port(&one.port) {
                self.note_trouble(&one.port, &error);
            }
        }
        self.sources.look();
    }

    /// Lets go of what was closed and is not to be any more, unless it is a guest's now.
    pub(super) fn let_go(
        &mut self,
        closed: &BTreeMap<String, Closed>,
        is_guests: impl Fn(&str) -> bool,
    ) {
        let is_over = |name: &str| {
            !closed.contains_key(name) && !self.served.contains_key(name) && !is_guests(name)
        };
        let over: Vec<Port> = self
            .following
            .closed
            .iter()
            .filter(|(name, _)| is_over(name))
            .map(|(_, former)| former.port.clone())
            .collect();
        for port in over {
            if let Err(error) = self.dataplane.close_port(&port.name) {
                self.note_trouble(&port, &error);
            }
        }
    }

    /// Something could not be done with an interface, most likely because it is gone by now: the next look shows.
    fn note_trouble(&mut self, port: &Port, error: &DataPlaneError) {
        self.following.is_unsettled = true;
        let Port { name, ifindex, .. } = port;
        if error.is_about_a_gone_interface() {
            tracing::debug!("interface {name} ({ifindex}) is gone by now: {error}");
        } else {
            tracing::warn!("interface {name} ({ifindex}): {error}");
        }
    }

    /// Takes guests off the ports that are theirs no more, from which nothing is taken in then. What is returned are those
    /// that have another one now, or wait for one, without a slot; and the ports that they leave.
    fn take_off(
        &mut self,
        keys: Vec<String>,
        places: Vec<Result<Port, Absence>>,
        update: &mut Update,
    ) -> Result<(Vec<Served>, Vec<Port>), DaemonError> {
        let (mut moved, mut left) = (Vec::new(), Vec::new());
        self.following.waits.clear();
        for (key, place) in keys.into_iter().zip(places) {
            let Some(guest) = self.served.get(&key) else {
                continue;
            };
            let is_over = place.is_err() && !guest.by.outlives_its_interface();
            let port = match place {
                Ok(port) => port,
                Err(absence) => {
                    let key = guest.by.to_string();
                    if !is_over {
                        self.following.waits.insert(key.clone(), absence);
                    }
                    absent(key)
                }
            };
            // Who stepped aside from an interface that went has a slot still.
            let has_left = is_absent(&guest.port) && guest.slot.is_some();
            if guest.port == port && !is_over && !has_left {
                continue;
            }
            let is_same = guest.port.ifindex == port.ifindex && guest.port.name == port.name;
            if is_same && !is_over && !has_left {
                self.refit(&key, port);
                continue;
            }
            let Some(mut guest) = self.served.remove(&key) else {
                continue;
            };
            if !is_absent(&guest.port) {
                self.dataplane.stop_port(&key)?;
                left.push(guest.port.clone());
            }
            update.remove.extend(guest.slot.take());
            if is_over {
                tracing::info!("{} is gone with its interface", guest.name);
                continue;
            }
            if is_absent(&port) {
                tracing::info!("{} waits: its interface is gone", guest.name);
            } else {
                tracing::info!("{}: interface {} is there", guest.name, port.name);
            }
            guest.port = port;
            moved.push(guest);
        }
        Ok((moved, left))
    }

    /// Closes ports that guests have left. What is to be kept, being another guest's now or closed, is not opened in between.
    pub(super) fn leave(&mut self, left: Vec<Port>, kept: &HashSet<u32>) {
        for port in left {
            let left = if kept.contains(&port.ifindex) {
                self.dataplane.silence_port(&port)
            } else {
                self.dataplane.close_port(&port.name)
            };
            if let Err(error) = left {
                self.note_trouble(&port, &error);
            }
        }
    }

    /// The other end of the same interface went elsewhere: answers take another way to it.
    fn refit(&mut self, key: &str, port: Port) {
        let Some(guest) = self.served.get_mut(key) else {
            return;
        };
        guest.port = port.clone();
        let Some(slot) = guest.slot else { return };
        let packets_per_second = guest.state.limits.packets_per_second;
        if let Err(error) = self.dataplane.open_port(&port, slot, packets_per_second) {
            self.note_trouble(&port, &error);
        }
    }

    /// Opens a guest's port, or closes it if its machine is stopped. A guest whose port cannot be opened waits, if only for
    /// the next look.
    pub(super) async fn put_on(&mut self, mut guest: Served) -> Result<(), DaemonError> {
        let Err(error) = self.open(&guest) else {
            self.served.insert(guest.port.name.clone(), guest);
            return Ok(());
        };
        let slot = guest.slot.take();
        self.hold_back(guest, &error);
        match slot {
            Some(slot) => self.give_back(slot).await,
            None => Ok(()),
        }
    }

    /// Has a guest wait whose port cannot be served. The port drops, if it can be made to.
    fn hold_back(&mut self, mut guest: Served, error: &DataPlaneError) {
        self.note_trouble(&guest.port, error);
        // The first error is the one to report.
        drop(self.dataplane.silence_port(&guest.port));
        if !guest.by.outlives_its_interface() {
            // It is met again by the next look, or when the source that told of it is asked.
            self.sources.look();
            return;
        }
        let key = guest.by.to_string();
        let absence = Absence::Unfit {
            interface: guest.port.name.clone(),
            why: error.to_string(),
        };
        self.following.waits.insert(key.clone(), absence);
        guest.port = absent(key.clone());
        self.served.insert(key, guest);
    }

    /// Takes in what a source tells: guests that turned up, guests that went, guests that say something else now.
    pub(super) async fn hear(&mut self, snapshot: Snapshot) -> Result<(), DaemonError> {
        let is_first = self.following.awaits_source && snapshot.trouble.is_none();
        self.following.awaits_source &= !is_first;
        self.following.snapshot = snapshot;
        let mut seen = Vec::new();
        self.following.add_seen(&mut seen);
        self.part_with_unseen(&seen).await?;
        let mut update = Update::default();
        for guest in seen {
            let id = guest.instance.id;
            let has_id = |served: &&mut Served| served.state.instance.id == id;
            match self.served.values_mut().find(has_id) {
                Some(known) if known.origin == Origin::Source => {
                    let life = self.lives.of(id);
                    known.name = guest.name;
                    let is_new = known.renew(guest.instance, life, guest.limits, now());
                    if let Some(slot) = known.slot.filter(|_| is_new) {
                        update.upsert.push((slot, Arc::clone(&known.state)));
                    }
                }
                _ => self.welcome(guest),
            }
        }
        self.responder.update(update).await?;
        // What was kept closed because a source had not spoken is let go of now that it has.
        if is_first {
            self.look_and_let_go().await?;
        } else {
            self.look().await?;
        }
        self.keep_turned_up().await;
        Ok(())
    }

    /// Keeps interfaces closed that an earlier daemon held and this one knows nothing of, where a source that may know has
    /// not spoken yet.
    pub(super) async fn keep_former(
        &mut self,
        guests: &[Served],
        plan: &mut Plan,
    ) -> Result<(), DaemonError> {
        if !self.following.awaits_source || self.claim.is_none() {
            return Ok(());
        }
        for ifindex in self.dataplane.filtered_ports()? {
            let is_guests = guests.iter().any(|guest| guest.port.ifindex == ifindex);
            let mut closed = plan.closed.values();
            if is_guests || closed.any(|closed| closed.port.ifindex == ifindex) {
                continue;
            }
            if let Some(link) = self.links.by_index(ifindex).await? {
                let (port, why) = (plan::port_of(&link), Why::Former);
                plan.closed.insert(link.name, Closed { port, why });
            }
        }
        Ok(())
    }

    /// Adds a guest that a source sees for the first time, for the next look to find its port.
    fn welcome(&mut self, guest: Guest) {
        let by = guest.port.clone();
        match self.free(guest) {
            Ok(guest) => {
                let port = absent(by.to_string());
                let served = self.meet(guest, port);
                self.served.insert(served.port.name.clone(), served);
            }
            Err(why) => {
                let PortBy::Index(ifindex) = by else { return };
                let sightings = &self.following.snapshot.guests;
                let mut sightings = sightings.iter();
                let seen = sightings.find(|one| one.ports.first() == Some(&ifindex));
                let what = seen.map_or("", |sighting| sighting.what.as_str());
                self.following
                    .refused
                    .insert(ifindex, format!("{what}: {why}"));
            }
        }
    }

    /// Takes guests of a source off that it sees no more, or elsewhere. Their interfaces stay closed while they are there.
    async fn part_with_unseen(&mut self, seen: &[Guest]) -> Result<(), DaemonError> {
        let places: HashMap<InstanceId, &PortBy> = seen
            .iter()
            .map(|guest| (guest.instance.id, &guest.port))
            .collect();
        let is_unseen = |(_, served): &(&String, &Served)| {
            let is_here = places.get(&served.state.instance.id) == Some(&&served.by);
            served.origin == Origin::Source && !is_here
        };
        let unseen = self.served.iter().filter(is_unseen);
        let unseen: Vec<String> = unseen.map(|(key, _)| key.clone()).collect();
        for key in unseen {
            self.part_with(&key).await?;
        }
        Ok(())
    }

    /// Forgets a guest; its interface is closed, until the next look has a say in that.
    pub(super) async fn part_with(&mut self, key: &str) -> Result<(), DaemonError> {
        let Some(guest) = self.served.remove(key) else {
            return Ok(());
        };
        tracing::info!("{} is a guest no more", guest.name);
        self.following.waits.remove(key);
        self.want_credentials();
        let port = guest.port;
        if !is_absent(&port) {
            if let Err(error) = self.dataplane.silence_port(&port) {
                self.note_trouble(&port, &error);
            }
            let why = Why::Former;
            let closed = Closed { port, why };
            self.following.closed.insert(key.to_owned(), closed);
        }
        match guest.slot {
            Some(slot) => self.give_back(slot).await,
            None => Ok(()),
        }
    }
}
