//! What commands change of what is kept, by the rules of the control API ([`crate::api::order`]): instances that are added and
//! removed, metadata options, account defaults.
//!
//! The order is that of all commands: decided, kept, put in force, and only then answered.

use std::collections::BTreeSet;

use super::commands::Trouble;
use super::{Daemon, now_millis};
use crate::api::ec2::{self, REGISTER};
use crate::api::order::{Order, OrderError, Orderer};
use crate::config::PortBy;
use crate::control::instance::moment;
use crate::control::{Answer, Done, Ordered, Parameters, PowerAction};
use crate::discovery::plan::Absence;
use crate::instance::InstanceId;
use crate::state::StateDir;
use crate::store::apply::Change;
use crate::store::{Changes, Key, Owner, View};

impl From<OrderError> for Trouble {
    fn from(error: OrderError) -> Self {
        match error {
            refused @ OrderError::Refused(..) => Self::Unfit(refused.to_string()),
            OrderError::Store(error) => Self::Broken(error.into()),
        }
    }
}

impl Daemon {
    /// Registers an instance whose guest somebody else runs.
    pub(super) async fn add_instance(
        &mut self,
        state: &StateDir,
        uid: u32,
        (name, port): (String, PortBy),
        mut parameters: Parameters,
        is_dry_run: bool,
    ) -> Result<Ordered, Trouble> {
        self.refuse_what_is_served(&name, &port).await?;
        let by = Orderer {
            uid,
            what: format!("imds instance add {name}"),
        };
        let (way, text) = match &port {
            PortBy::Name(name) => ("Port.Name", name.to_string()),
            PortBy::Mac(mac) => ("Port.Mac", mac.to_string()),
            PortBy::Netns(netns) => ("Port.Netns", netns.as_str().to_owned()),
            PortBy::Index(_) => {
                let why = "a port is named by its interface, its hardware address or its namespace";
                return Err(Trouble::Unfit(why.to_owned()));
            }
        };
        parameters.push((way.to_owned(), text));
        parameters.push(("InstanceName".to_owned(), name));
        let order = Order {
            action: &REGISTER,
            parameters,
        };
        let changes = self.order(state, by, &[order], is_dry_run).await?;
        Ok(self.ordered(is_dry_run, changes, &[]))
    }

    /// Guests that are served without a record have names and ports too.
    async fn refuse_what_is_served(&self, name: &str, port: &PortBy) -> Result<(), Trouble> {
        let place = match self.following.place(name, port).await? {
            // To wait for it would be in vain.
            Some(Err(absence @ Absence::Unfit { .. })) => {
                return Err(Trouble::Unfit(absence.to_string()));
            }
            Some(Ok(place)) => place.ifindex,
            Some(Err(_)) | None => 0,
        };
        for guest in self.served.values() {
            let id = guest.state.instance.id;
            if *guest.name == *name {
                let why = format!("the name `{name}` is that of {id}");
                return Err(Trouble::Unfit(why));
            }
            let has_place = place != 0 && guest.port.ifindex == place;
            if has_place || guest.by == *port {
                let (port, other) = (&guest.port.name, &guest.name);
                let why = format!("{port} is the port of instance {other} ({id})");
                return Err(Trouble::Unfit(why));
            }
        }
        Ok(())
    }

    /// Ends an instance for good. It is gone when this returns, or on the way to it, where its guest has to end first.
    pub(super) async fn remove_instance(
        &mut self,
        state: &StateDir,
        uid: u32,
        written: &str,
    ) -> Result<Ordered, Trouble> {
        let id = self.meant(written)?;
        let name = self.name_of(id);
        let owner = self.store.read(|view| Some(view.instance(id)?.owner));
        let by = Orderer {
            uid,
            what: format!("imds instance remove {name}"),
        };
        match owner {
            Some(Owner::File) => Err(Trouble::Unfit(format!(
                "{name} is the configuration file's: take it out there and `imds apply -f FILE`"
            ))),
            Some(Owner::Api) => {
                let order = order("TerminateInstances", [("InstanceId.1", id.to_string())])?;
                let changes = self.order(state, by, &[order], false).await?;
                Ok(self.ordered(false, changes, &[id]))
            }
            Some(Owner::Admitted | Owner::Discovered) | None => {
                let Some(key) = self.key_of(id) else {
                    return Err(Trouble::Unfit(format!("{name} has no guest here")));
                };
                let former = self.describe_id(id);
                self.forget(uid, &key).await?.map_err(Trouble::Unfit)?;
                Ok(Ordered {
                    dry_run: false,
                    changes: vec![Change {
                        instance_id: Some(id),
                        name: name.into(),
                        action: crate::store::apply::Action::Remove,
                        fields: Vec::new(),
                    }],
                    instances: former.into_iter().collect(),
                })
            }
        }
    }

    /// The instances that are meant, each once.
    pub(super) fn of_whom(
        &self,
        written: &[String],
        is_all: bool,
    ) -> Result<Vec<InstanceId>, Trouble> {
        let mut ids = Vec::new();
        for one in written {
            let id = self.meant(one)?;
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        if is_all {
            ids = self.store.read(|view| {
                let records = view.instances().iter();
                let there = records.filter(|(id, versioned)| {
                    let state = versioned.value.state(view.life(**id));
                    state.is_to_stay()
                });
                there.map(|(id, _)| *id).collect()
            });
        }
        if ids.is_empty() {
            return Err(Trouble::Unfit("there is no instance".to_owned()));
        }
        Ok(ids)
    }

    /// Changes metadata options, of all that are meant or of none.
    pub(super) async fn modify_options(
        &mut self,
        state: &StateDir,
        uid: u32,
        (ids, names): (Vec<InstanceId>, Vec<String>),
        parameters: Parameters,
        is_dry_run: bool,
    ) -> Result<Ordered, Trouble> {
        let by = Orderer {
            uid,
            what: format!("imds options set {}", some_of(&names)),
        };
        let mut orders = Vec::new();
        for id in &ids {
            let of = ("InstanceId".to_owned(), id.to_string());
            orders.push(Order {
                action: action("ModifyInstanceMetadataOptions")?,
                parameters: parameters.iter().cloned().chain([of]).collect(),
            });
        }
        let changes = self.order(state, by, &orders, is_dry_run).await?;
        Ok(self.ordered(is_dry_run, changes, &ids))
    }

    /// Changes what new instances get.
    pub(super) async fn modify_defaults(
        &mut self,
        state: &StateDir,
        uid: u32,
        parameters: Parameters,
        is_dry_run: bool,
    ) -> Result<Ordered, Trouble> {
        let by = Orderer {
            uid,
            what: "imds defaults set".to_owned(),
        };
        let order = Order {
            action: action("ModifyInstanceMetadataDefaults")?,
            parameters,
        };
        let changes = self.order(state, by, &[order], is_dry_run).await?;
        Ok(self.ordered(is_dry_run, changes, &[]))
    }

    /// The power switch of an instance that nobody is served of, or whose guest was launched: that is begun when this returns.
    pub(super) async fn power_kept(
        &mut self,
        state: &StateDir,
        uid: u32,
        id: InstanceId,
        turn: PowerAction,
    ) -> Result<Answer, Trouble> {
        let (verb, action, done) = match turn {
            PowerAction::Start => ("start", "StartInstances", "started"),
            PowerAction::Stop => ("stop", "StopInstances", "stopped"),
            PowerAction::Reboot => ("reboot", "RebootInstances", "rebooted"),
        };
        let by = Orderer {
            uid,
            what: format!("imds instance {verb} {}", self.name_of(id)),
        };
        let order = order(action, [("InstanceId.1", id.to_string())])?;
        let is_changed = !self.order(state, by, &[order], false).await?.is_empty();
        let instance = self
            .describe_id(id)
            .ok_or_else(|| Trouble::Unfit(format!("{id} went meanwhile")))?;
        let is_begun = is_changed && self.has_machine(id);
        Ok(Answer::Done(Box::new(Done {
            done: if is_begun {
                format!("is being {done}")
            } else if is_changed || turn == PowerAction::Reboot {
                done.to_owned()
            } else {
                format!("{done} already")
            },
            is_changed,
            in_force: (!is_begun).then(|| moment(now_millis())),
            appears: None,
            event_id: None,
            instance,
        })))
    }

    fn name_of(&self, id: InstanceId) -> String {
        let report = self.describe_id(id);
        report.map_or_else(|| id.to_string(), |report| report.name)
    }

    async fn order(
        &mut self,
        state: &StateDir,
        by: Orderer,
        orders: &[Order],
        is_dry_run: bool,
    ) -> Result<Vec<Change>, Trouble> {
        let api = self.control_api.api().ok_or_else(|| {
            Trouble::Unfit("nothing can be changed: there was no room to keep access keys when the daemon started".to_owned())
        })?;
        let changes = api.carry_out(by, orders, is_dry_run).await?;
        let ids = changes.iter().filter_map(|change| change.instance_id);
        let ids: BTreeSet<InstanceId> = ids.collect();
        if !is_dry_run && !ids.is_empty() {
            let keys = ids
                .iter()
                .flat_map(|id| [Key::instance(*id), Key::life(*id)]);
            let told = Changes {
                revision: self.store.read(View::revision),
                keys: Some(keys.collect()),
            };
            self.hear_of_records(state, told).await?;
        }
        Ok(changes)
    }

    /// What a client is told, after it is done: with the instances that it is about, which are those that changed at least.
    fn ordered(&self, dry_run: bool, changes: Vec<Change>, about: &[InstanceId]) -> Ordered {
        let changed = changes.iter().filter_map(|change| change.instance_id);
        let ids: BTreeSet<InstanceId> = about.iter().copied().chain(changed).collect();
        let instances = match ids.len() {
            // To look for each takes longer than to describe all.
            0..10 => ids.iter().filter_map(|id| self.describe_id(*id)).collect(),
            _ => {
                let mut all = self.describe_all();
                let ids: BTreeSet<&str> = ids.iter().map(InstanceId::as_str).collect();
                all.retain(|instance| ids.contains(&*instance.instance_id));
                all
            }
        };
        Ordered {
            dry_run,
            changes,
            instances,
        }
    }
}

/// Names for the history, which need not have thousands.
fn some_of(names: &[String]) -> String {
    const NAMED_MAX: usize = 5;
    let some = names.iter().take(NAMED_MAX).map(String::as_str);
    let some = some.collect::<Vec<_>>().join(" ");
    match names.len().saturating_sub(NAMED_MAX) {
        0 => some,
        more => format!("{some} and {more} more"),
    }
}

fn action(name: &str) -> Result<&'static crate::api::call::Action, Trouble> {
    let unknown = || Trouble::Unfit(format!("there is no {name} here"));
    ec2::action(name).ok_or_else(unknown)
}

fn order<const N: usize>(name: &str, parameters: [(&str, String); N]) -> Result<Order, Trouble> {
    let parameters = parameters.into_iter();
    Ok(Order {
        action: action(name)?,
        parameters: parameters
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    })
}
