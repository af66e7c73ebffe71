//! A guest as the daemon has it: what it is told, by which port, and what the configuration says of it.

use std::sync::Arc;

use crate::{
    config::{Guest, Origin, PortBy},
    credentials::CredentialSource,
    dataplane::Port,
    instance::{Instance, Limits, Published, UnixSeconds},
    life::Life,
};

/// A guest that is served, or would be if its machine were not stopped and its interface were there.
pub(super) struct Served {
    pub(super) name: Box<str>,
    /// How its port is found.
    pub(super) by: PortBy,
    pub(super) origin: Origin,
    pub(super) port: Port,
    /// None while it is stopped: its port drops then; and while it has none.
    pub(super) slot: Option<u32>,
    /// Where its credentials come from, if from elsewhere.
    pub(super) credential_source: Option<CredentialSource>,
    pub(super) state: Arc<Published>,
    /// What the configuration says of it, where its life made it another.
    pub(super) configured: Option<Box<Instance>>,
}

impl Served {
    /// A guest without a slot.
    pub(super) fn new(guest: Guest, port: Port, life: &Life, at: UnixSeconds) -> Self {
        let Guest {
            name,
            port: by,
            origin,
            limits,
            credential_source,
            instance: configured,
            said: _,
        } = guest;
        let instance = life.over(&configured);
        let is_other = instance != configured;
        Self {
            name,
            by,
            origin,
            port,
            slot: None,
            credential_source,
            state: Arc::new(Published {
                at,
                limits,
                instance,
            }),
            configured: is_other.then(|| Box::new(configured)),
        }
    }

    /// Takes on what the configuration and its life now make of it; whether that is anything new.
    pub(super) fn renew(
        &mut self,
        configured: Instance,
        life: &Life,
        limits: Limits,
        at: UnixSeconds,
    ) -> bool {
        let instance = life.over(&configured);
        let is_new = self.state.limits != limits || self.state.instance != instance;
        self.configured = (instance != configured).then(|| Box::new(configured));
        if is_new {
            self.state = Arc::new(Published {
                at,
                limits,
                instance,
            });
        }
        is_new
    }

    /// Tells it the same again, as something new.
    pub(super) fn republish(&mut self, at: UnixSeconds) {
        let same = Published::clone(&self.state);
        self.state = Arc::new(Published { at, ..same });
    }

    /// What the configuration says of it.
    pub(super) fn configured(&self) -> &Instance {
        self.configured.as_deref().unwrap_or(&self.state.instance)
    }

    /// Whether this is the same guest on the same interface, whatever changed in its metadata. An interface that was made
    /// anew under the old name is another one.
    pub(super) fn is_still(&self, (guest, port): &(Guest, Port)) -> bool {
        self.port == *port && self.state.instance.id == guest.instance.id
    }
}
