//! What `imds admit`, `imds forget` and `imds wait` ask for.

use super::records::{self, by_itself, user};
use super::{Daemon, DaemonError, Served, absent};
use crate::config::Origin;
use crate::control::discovery::{PortReport, PortState};
use crate::discovery::admitted::{Admission, Admitted};
use crate::instance::InstanceId;
use crate::store::Note;

impl Daemon {
    /// Admits a guest: to the interface that has the port's name now, or by name to whichever has it. The key that it has
    /// among those that are served then; the inner error is for the person who asks.
    pub(super) async fn admit(
        &mut self,
        uid: u32,
        mut admission: Admission,
        is_by_name: bool,
    ) -> Result<Result<String, String>, DaemonError> {
        let port = admission.port.clone();
        if !is_by_name {
            let Some(link) = self.following.links.get(&port).await? else {
                return Ok(Err(format!(
                    "interface {port} is not there: admit its guest when it is, or --by-name whoever has an interface of that name"
                )));
            };
            admission.to = Some(self.following.interface(&link));
        }
        if let Some(guest) = self.served.get(&port) {
            return Ok(Err(format!(
                "{port} is the port of instance {} already",
                guest.name
            )));
        }
        let guest = self.following.admit(&admission);
        let guest = match guest.and_then(|guest| self.free(guest)) {
            Ok(guest) => guest,
            Err(why) => return Ok(Err(why)),
        };
        let mut admitted = self.following.admitted.clone();
        let what = format!("imds admit {}", admission.called());
        admitted.admissions.push(admission);
        self.keep(admitted, user(uid, what)).await?;
        let id = guest.instance.id;
        let waiting = absent(guest.port.to_string());
        let served = self.meet(guest, waiting);
        self.served.insert(served.port.name.clone(), served);
        self.look().await?;
        self.keep_turned_up().await;
        let gone = || format!("interface {port} is gone, and the admission with it");
        Ok(self.key_of(id).ok_or_else(gone))
    }

    pub(super) fn key_of(&self, id: InstanceId) -> Option<String> {
        let has_id = |(_, served): &(&String, &Served)| served.state.instance.id == id;
        self.served.iter().find(has_id).map(|(key, _)| key.clone())
    }

    async fn keep(&mut self, admitted: Admitted, note: Note) -> Result<(), DaemonError> {
        records::keep_admitted(&self.store, &admitted, note).await?;
        self.following.admitted = admitted;
        Ok(())
    }

    /// Forgets a guest that was admitted. Its interface is closed if a pattern says so, or else let go. The inner error is
    /// for the person who asks.
    pub(super) async fn forget(
        &mut self,
        uid: u32,
        key: &str,
    ) -> Result<Result<(), String>, DaemonError> {
        let guest = &self.served[key];
        let name = guest.name.to_string();
        let what_to_do = match guest.origin {
            Origin::Admission => None,
            Origin::Configuration => Some("take it out of the configuration and reload"),
            Origin::Api => Some("`imds instance remove` takes it away"),
            Origin::Source => Some("take its labels away, or end its container"),
            Origin::Template => Some("a template makes it; change that and reload"),
        };
        if let Some(what_to_do) = what_to_do {
            return Ok(Err(format!(
                "{name} was not admitted by command: {what_to_do}"
            )));
        }
        let mut admitted = self.following.admitted.clone();
        admitted.remove(&name);
        self.keep(admitted, user(uid, format!("imds forget {name}")))
            .await?;
        self.part_with(key).await?;
        self.look_and_let_go().await?;
        self.keep_turned_up().await;
        Ok(Ok(()))
    }

    /// Forgets whom a person admitted to an interface that is gone: the next one of its name is another guest's.
    pub(super) async fn forget_gone(&mut self) -> Result<(), DaemonError> {
        let admitted = &self.following.admitted;
        let mut kept = Admitted::default();
        for admission in &admitted.admissions {
            let is_gone = match &admission.to {
                Some(to) => self.following.links.by_index(to.ifindex).await?.is_none(),
                None => false,
            };
            if is_gone {
                tracing::info!(
                    "{}: the interface that it was admitted at is gone, and the admission with it",
                    admission.called()
                );
            } else {
                kept.admissions.push(admission.clone());
            }
        }
        if kept != *admitted {
            let note = by_itself("its interface is gone");
            self.keep(kept, note).await?;
        }
        Ok(())
    }

    /// What became of a port. Where what is known does not fit the interface that is there now, it is looked at first.
    pub(super) async fn port_report(&mut self, port: &str) -> Result<PortReport, DaemonError> {
        let report = |state, why: &str| PortReport {
            interface: port.to_owned(),
            state,
            why: why.to_owned(),
        };
        let Some(link) = self.following.links.get(port).await? else {
            return Ok(report(PortState::Missing, "it is not there"));
        };
        let is_known = |daemon: &Self| {
            let served = daemon.served.get(port).map(|served| served.port.ifindex);
            let closed = &daemon.following.closed;
            let closed = closed.get(port).map(|closed| closed.port.ifindex);
            served.or(closed) == Some(link.index)
        };
        if !is_known(self) {
            self.look().await?;
        }
        if !is_known(self) {
            let why = "no instance has it, and no pattern of [discovery] matches it";
            return Ok(report(PortState::Open, why));
        }
        let Some(guest) = self.served.get(port) else {
            return Ok(report(PortState::Closed, "who is behind it is not known"));
        };
        Ok(match guest.slot {
            Some(_) => report(PortState::Served, ""),
            None => report(
                PortState::Closed,
                &format!("instance {} is stopped", guest.name),
            ),
        })
    }
}
