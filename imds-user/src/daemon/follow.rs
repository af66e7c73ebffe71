//! Follows the host's interfaces and routes while the daemon serves.

use super::{Daemon, DaemonError, Served, absent, uplinks};
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
            let is_port = |guest: &&Served| guest.port.ifindex == *ifindex;
            let port = self.served.values().find(is_port);
            if let Some(name) = port.map(|guest| guest.port.name.clone()) {
                self.close_if_gone(&name).await?;
            }
        }
        Ok(())
    }

    /// What has become an uplink is guarded. Where notifications were lost, everything else that they would have told is
    /// looked at as well.
    pub(super) async fn look(&mut self, may_be_anything: bool) -> Result<(), DaemonError> {
        if may_be_anything {
            self.dataplane.recheck_guard()?;
            if !self.dataplane.has_responder()? {
                self.mend_cable().await?;
            }
            for port in self.served.keys().cloned().collect::<Vec<_>>() {
                self.close_if_gone(&port).await?;
            }
        }
        match uplinks::find(&self.links, &self.guard).await {
            Ok(uplinks) => self.dataplane.guard(uplinks),
            // The next change is another occasion.
            Err(error) => tracing::error!("look for uplinks: {error}"),
        }
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

    /// Ends what was served on an interface that is no more, whatever interface has its name or number by now. A stopped
    /// machine may take its interface along.
    async fn close_if_gone(&mut self, port: &str) -> Result<(), DaemonError> {
        if self.dataplane.has_port(port)? {
            return Ok(());
        }
        let Some(guest) = self.served.get_mut(port) else {
            return Ok(());
        };
        guest.port = absent(port.to_owned());
        self.dataplane.close_port(port)?;
        let Some(slot) = guest.slot.take() else {
            return Ok(());
        };
        tracing::warn!(
            "interface {port}, the port of instance {}, is gone: whoever comes there next is not served before the \
             configuration is read again",
            guest.name
        );
        let update = Update {
            remove: vec![slot],
            ..Update::default()
        };
        self.responder.update(update).await?;
        self.release(vec![slot])
    }
}
