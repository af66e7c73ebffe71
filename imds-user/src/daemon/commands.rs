//! What commands do to instances, and what becomes due of what they planned.
//!
//! The rules are [`crate::life`]'s. Here is the order: a change is checked, kept in the state directory, put in force, and
//! only then answered. So whoever has an answer can rely on it: the guest's next request sees the change, and a daemon
//! that is killed a moment later knows it again when it starts.

use std::collections::BTreeSet;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::records::{self, by_itself, user};
use super::{Daemon, DaemonError, Served, is_absent, now, now_millis, whole};
use crate::config::{Guest, Origin};
use crate::control::find::{FindError, Known, find, name_in};
use crate::control::instance::{Whereabouts, moment};
use crate::control::{Answer, Done, InstanceReport, PowerAction, Request};
use crate::discovery::admitted::Admission;
use crate::instance::{InstanceId, UnixMillis};
use crate::life::{Change, Event, Life, Lives, Refusal, State, When};
use crate::responder::supervisor::Update;
use crate::state::StateDir;
use crate::store::{Note, Owner, Store, View};

/// The longest sleep until something is due: the clock may be set meanwhile.
const SLEEP_MAX: Duration = Duration::from_secs(10);

/// Why a request is not fulfilled.
pub(super) enum Trouble {
    /// It does not fit what is there.
    Unfit(String),
    /// Something broke.
    Broken(DaemonError),
}

impl From<FindError> for Trouble {
    fn from(error: FindError) -> Self {
        Self::Unfit(error.to_string())
    }
}

impl<E: Into<DaemonError>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Broken(error.into())
    }
}

impl Daemon {
    pub(super) async fn obey(&mut self, state: &StateDir, request: Request, uid: u32) -> Answer {
        match self.try_to_obey(state, request, uid).await {
            Ok(answer) => answer,
            Err(Trouble::Unfit(refused)) => Answer::Refused { refused },
            Err(Trouble::Broken(error)) => {
                let error = whole(&error);
                tracing::error!("a command: {error}");
                Answer::Error { error }
            }
        }
    }

    async fn try_to_obey(
        &mut self,
        state: &StateDir,
        request: Request,
        uid: u32,
    ) -> Result<Answer, Trouble> {
        Ok(match request {
            Request::Status {} => Answer::Status(Box::new(self.report().await?)),
            Request::Instances {} => Answer::Instances {
                instances: self.describe_all(),
            },
            Request::Instance { instance } => {
                let instances = vec![self.describe_id(self.meant(&instance)?)];
                Answer::Instances {
                    instances: instances.into_iter().flatten().collect(),
                }
            }
            Request::Power { instance, action } => {
                let id = self.meant(&instance)?;
                let port = self.key_of(id).filter(|_| !self.has_machine(id));
                let Some(port) = port else {
                    return self.power_kept(state, uid, id, action).await;
                };
                Answer::Done(Box::new(self.power(uid, &port, action).await?))
            }
            Request::Event {
                instance,
                event,
                after,
            } => {
                let port = self.find(&instance)?;
                Answer::Done(Box::new(self.event(uid, &port, event, after).await?))
            }
            Request::Admit {
                port,
                name,
                by_name,
                keys,
            } => {
                let admission = Admission {
                    port,
                    to: None,
                    name,
                    keys,
                };
                let admitted = self.admit(uid, admission, by_name).await?;
                let key = admitted.map_err(Trouble::Unfit)?;
                let done = format!("admitted at {key}");
                Answer::Done(Box::new(self.done(&key, done, true, None)))
            }
            Request::Forget { instance } => {
                let key = self.find(&instance)?;
                let forgotten = self.describe(&self.served[&key]);
                let outcome = self.forget(uid, &key).await?;
                outcome.map_err(Trouble::Unfit)?;
                Answer::Done(Box::new(Done {
                    done: format!("forgotten; it was at {key}"),
                    is_changed: true,
                    in_force: Some(moment(now_millis())),
                    appears: None,
                    event_id: None,
                    instance: forgotten,
                }))
            }
            Request::Apply { file, dry_run } => {
                let applied = self.apply_file(state, file, dry_run, uid).await?;
                Answer::Applied(applied.map_err(Trouble::Unfit)?)
            }
            Request::AddInstance {
                name,
                port,
                parameters,
                dry_run,
            } => Answer::Ordered(
                self.add_instance(state, uid, (name, port), parameters, dry_run)
                    .await?,
            ),
            Request::RemoveInstance { instance } => {
                Answer::Ordered(self.remove_instance(state, uid, &instance).await?)
            }
            Request::ModifyOptions {
                instances,
                all,
                parameters,
                dry_run,
            } => {
                let ids = self.of_whom(&instances, all)?;
                let names = if all {
                    vec!["--all".to_owned()]
                } else {
                    instances
                };
                Answer::Ordered(
                    self.modify_options(state, uid, (ids, names), parameters, dry_run)
                        .await?,
                )
            }
            Request::ModifyDefaults {
                parameters,
                dry_run,
            } => Answer::Ordered(
                self.modify_defaults(state, uid, parameters, dry_run)
                    .await?,
            ),
            Request::Defaults {} => Answer::Defaults {
                defaults: self.store.read(View::defaults),
            },
            Request::AwsEnv { role } => {
                let found = self.control_api.environment(role);
                Answer::AwsEnv(found.ok_or_else(|| {
                    Trouble::Unfit(
                        "the daemon offers no control API to AWS's tools: start it without `--api none`"
                            .to_owned(),
                    )
                })?)
            }
            Request::Port { port } => Answer::Port(self.port_report(&port).await?),
        })
    }

    /// The key among those that are served of the instance that is meant.
    fn find(&self, written: &str) -> Result<String, Trouble> {
        let id = self.meant(written)?;
        let unserved = || {
            Trouble::Unfit(format!(
                "{written} ({id}) has no guest here: `imds instance show {written}` says what is known of it"
            ))
        };
        self.key_of(id).ok_or_else(unserved)
    }

    /// The instance that is meant: of those that are served, and those that are only kept.
    pub(super) fn meant(&self, written: &str) -> Result<InstanceId, FindError> {
        self.store.read(|view| {
            let served = self.served.values().map(|guest| Known {
                name: &guest.name,
                tag: name_in(&guest.state.instance.tags),
                id: guest.state.instance.id,
                is_gone: false,
            });
            let ids = self.ids_served();
            let kept = view.instances().iter();
            let kept = kept.filter(|(id, _)| !ids.contains(id));
            let kept = kept.map(|(id, versioned)| Known::of(&versioned.value, view.life(*id)));
            let instances: Vec<_> = served.chain(kept).collect();
            find(written, &instances).map(|at| instances[at].id)
        })
    }

    fn ids_served(&self) -> BTreeSet<InstanceId> {
        let served = self.served.values();
        served.map(|guest| guest.state.instance.id).collect()
    }

    /// Those that are served, in the order of their ports; then those that are kept alone, what is gone last.
    pub(super) fn describe_all(&self) -> Vec<InstanceReport> {
        let served = self.served.values().map(|guest| self.describe(guest));
        let ids = self.ids_served();
        let kept = self.store.read(|view| {
            let kept = view.instances().iter();
            let kept = kept.filter(|(id, _)| !ids.contains(id));
            let mut kept: Vec<_> = kept
                .map(|(id, versioned)| (&versioned.value, view.life(*id)))
                .collect();
            kept.sort_by_key(|(record, _)| (record.is_terminated(), &record.name));
            let kept = kept.into_iter();
            kept.map(|(record, life)| InstanceReport::of_record(record, life))
                .collect::<Vec<_>>()
        });
        served.chain(kept).collect()
    }

    pub(super) fn describe_id(&self, id: InstanceId) -> Option<InstanceReport> {
        let mut served = self.served.values();
        if let Some(guest) = served.find(|guest| guest.has_id(id)) {
            return Some(self.describe(guest));
        }
        self.store.read(|view| {
            let record = view.instance(id)?;
            Some(InstanceReport::of_record(record, view.life(id)))
        })
    }

    fn describe(&self, guest: &Served) -> InstanceReport {
        let whereabouts = Whereabouts {
            name: &guest.name,
            owner: owner_of(guest.origin).as_str(),
            port: &guest.port.name,
            waits: is_absent(&guest.port)
                .then(|| self.following.waits.get(&guest.port.name))
                .flatten()
                .map(ToString::to_string),
            published: Some(guest.state.at),
        };
        let instance = &guest.state.instance;
        let life = self.lives.of(instance.id);
        let report = InstanceReport::of(whereabouts, instance, guest.configured(), life);
        let report = InstanceReport {
            has_machine: self.has_machine(instance.id),
            ..report
        };
        self.store.read(|view| match view.instance(instance.id) {
            Some(record) => report.with_record(record, life),
            None => report,
        })
    }

    async fn power(&mut self, uid: u32, port: &str, action: PowerAction) -> Result<Done, Trouble> {
        let guest = &self.served[port];
        let pending_time = guest.state.instance.pending_time;
        let mut life = self.lives.of(guest.state.instance.id).clone();
        match action {
            PowerAction::Stop => life.stop(now()),
            PowerAction::Start => life.start(pending_time, now()),
            PowerAction::Reboot => life.reboot().map_err(|refusal| unfit(guest, &refusal))?,
        }
        let verb = match action {
            PowerAction::Stop => "stop",
            PowerAction::Start => "start",
            PowerAction::Reboot => "reboot",
        };
        let note = user(uid, format!("imds instance {verb} {}", guest.name));
        let is_changed = self.commit(note, port, life).await?;
        let done = match (action, is_changed) {
            (PowerAction::Stop, true) => "stopped".to_owned(),
            (PowerAction::Stop, false) => "stopped already".to_owned(),
            (PowerAction::Start, true) => {
                let guest = &self.served[port];
                let launched = guest.state.instance.pending_time.iso();
                let waits = if is_absent(&guest.port) {
                    ", waits for its interface"
                } else {
                    ""
                };
                format!("started: launched at {launched}{waits}")
            }
            (PowerAction::Start, false) => "running already".to_owned(),
            (PowerAction::Reboot, _) => "rebooted".to_owned(),
        };
        tracing::info!("{}: {done}", self.served[port].name);
        Ok(self.done(port, done, is_changed, None))
    }

    /// Whether a launcher runs its guest.
    pub(super) fn has_machine(&self, id: InstanceId) -> bool {
        let has_machine = |view: &View| {
            let record = view.instance(id);
            record.is_some_and(|record| record.machine.is_some())
        };
        self.store.read(has_machine)
    }

    async fn event(
        &mut self,
        uid: u32,
        port: &str,
        event: Event,
        after: Option<When>,
    ) -> Result<Done, Trouble> {
        let asked = now_millis();
        let appears = after
            .map(|when| when.after_millis(asked))
            .filter(|at| *at > asked);
        let guest = &self.served[port];
        let mut life = self.lives.of(guest.state.instance.id).clone();
        let change = change_of(event, guest, &mut life, asked, appears, &random()?)
            .map_err(|refusal| unfit(guest, &refusal))?;
        let note = user(uid, format!("imds event {}: {change}", guest.name));
        let is_changed = self.commit(note, port, life).await?;
        let name = &self.served[port].name;
        match appears {
            Some(at) => tracing::info!("{name}: planned for {}: {change}", at.iso()),
            None => tracing::info!("{name}: {change}"),
        }
        let event_id = match &change {
            Change::Maintenance(event) => Some(event.event_id.to_string()),
            Change::MaintenanceOver { event_id, .. } => Some(event_id.to_string()),
            _ => None,
        };
        Ok(Done {
            event_id,
            ..self.done(port, change.to_string(), is_changed, appears)
        })
    }

    /// What a client is told, after it is done.
    fn done(
        &self,
        port: &str,
        done: String,
        is_changed: bool,
        appears: Option<UnixMillis>,
    ) -> Done {
        Done {
            done,
            is_changed,
            in_force: appears.is_none().then(|| moment(now_millis())),
            appears: appears.map(moment),
            event_id: None,
            instance: self.describe(&self.served[port]),
        }
    }

    /// Keeps the new life of an instance and puts it in force; whether it is another one. Where it cannot be kept, nothing
    /// changes.
    async fn commit(&mut self, note: Note, port: &str, life: Life) -> Result<bool, DaemonError> {
        let id = self.served[port].state.instance.id;
        if *self.lives.of(id) == life {
            return Ok(false);
        }
        let mut lives = self.lives.clone();
        lives.replace(id, life);
        records::keep_lives(&self.store, &self.lives, &lives, note).await?;
        self.lives = lives;
        self.enforce(port).await?;
        // Options that were changed while it was stopped.
        self.note_applied().await;
        Ok(true)
    }

    /// Makes a guest what its life says. When this returns its next request sees it.
    pub(super) async fn enforce(&mut self, port: &str) -> Result<(), DaemonError> {
        let Some(guest) = self.served.get_mut(port) else {
            return Ok(());
        };
        let life = self.lives.of(guest.state.instance.id);
        let (configured, limits) = (guest.configured().clone(), guest.state.limits);
        let is_new = guest.renew(configured, life, limits, now());
        match (life.state(), guest.slot) {
            (State::Running, Some(slot)) if is_new => {
                let upsert = vec![(slot, Arc::clone(&guest.state))];
                let update = Update {
                    upsert,
                    ..Update::default()
                };
                self.responder.update(update).await?;
            }
            (State::Running, Some(_)) | (State::Stopped, None) => {}
            // It is switched on when its interface comes.
            (State::Running, None) if is_absent(&guest.port) => {}
            (State::Running, None) => self.switch_on(port).await?,
            (State::Stopped, Some(slot)) => self.switch_off(port, slot).await?,
        }
        Ok(())
    }

    /// Closes the port first, so that nothing of the end of its connections gets out: the machine is off.
    async fn switch_off(&mut self, port: &str, slot: u32) -> Result<(), DaemonError> {
        if let Some(guest) = self.served.get_mut(port) {
            self.dataplane.silence_port(&guest.port)?;
            guest.slot = None;
        }
        self.give_back(slot).await
    }

    /// Lets the responder know the guest before its port opens.
    async fn switch_on(&mut self, port: &str) -> Result<(), DaemonError> {
        let Some(guest) = self.served.get_mut(port) else {
            return Ok(());
        };
        let id = guest.state.instance.id;
        let slot = self.dataplane.slot_for(id.as_str(), &guest.port)?;
        let update = Update {
            upsert: vec![(slot, Arc::clone(&guest.state))],
            ..Update::default()
        };
        self.responder.update(update).await?;
        let packets_per_second = guest.state.limits.packets_per_second;
        let opened = self
            .dataplane
            .open_port(&guest.port, slot, packets_per_second);
        if let Err(error) = opened {
            // Still off, then: its port drops, if it can be made to.
            self.dataplane.silence_port(&guest.port).ok();
            self.give_back(slot).await?;
            return Err(error.into());
        }
        guest.slot = Some(slot);
        Ok(())
    }

    /// Ends what the responder has of a slot that has no way in or out any more.
    pub(super) async fn give_back(&mut self, slot: u32) -> Result<(), DaemonError> {
        let update = Update {
            remove: vec![slot],
            ..Update::default()
        };
        self.responder.update(update).await?;
        self.release(vec![slot])
    }

    /// Lets what was planned for until now happen.
    pub(super) async fn fall_due(&mut self) -> Result<(), DaemonError> {
        let before = self.lives.clone();
        let happened = self.lives.fall_due(now_millis());
        if happened.is_empty() {
            return Ok(());
        }
        keep_what_fell_due(&self.store, &before, &self.lives).await;
        let mut ports = BTreeSet::new();
        for (id, change) in happened {
            if let Some(guest) = self.served.values().find(|guest| guest.has_id(id)) {
                tracing::info!("{}: {change}, as planned", guest.name);
                ports.insert(guest.port.name.clone());
            }
        }
        for port in ports {
            self.enforce(&port).await?;
        }
        Ok(())
    }

    /// Notes where a new configuration has other user data than an instance runs with: it keeps what it has until it is
    /// stopped and started.
    ///
    /// Where that cannot be kept it is so nevertheless, as long as this daemon runs.
    pub(super) async fn note_user_data<'a>(
        &mut self,
        wanted: impl Iterator<Item = (&'a String, &'a Guest)>,
    ) {
        let mut lives = self.lives.clone();
        for (port, guest) in wanted {
            let id = guest.instance.id;
            let Some(known) = self.served.get(port).filter(|known| known.has_id(id)) else {
                continue;
            };
            let configured = &guest.instance.user_data;
            let mut life = lives.of(id).clone();
            life.reconfigured(&known.state.instance.user_data, configured);
            let is_held_back = life.state() == State::Running && life.runs_with.is_some();
            if is_held_back && known.configured().user_data != *configured {
                tracing::warn!(
                    "{}: its user data changed; it keeps what it was started with until `imds instance stop` and `start`",
                    guest.name
                );
            }
            lives.replace(id, life);
        }
        if lives != self.lives {
            let note = by_itself("user data waits for the next start");
            if let Err(error) = records::keep_lives(&self.store, &self.lives, &lives, note).await {
                tracing::error!("user data that waits for the next start: {error}");
            }
            self.lives = lives;
        }
    }
}

/// Whose an instance is that became known so.
pub(super) fn owner_of(origin: Origin) -> Owner {
    match origin {
        Origin::Configuration => Owner::File,
        Origin::Api => Owner::Api,
        Origin::Admission => Owner::Admitted,
        Origin::Source | Origin::Template => Owner::Discovered,
    }
}

impl Served {
    pub(super) fn has_id(&self, id: InstanceId) -> bool {
        self.state.instance.id == id
    }
}

/// Lets happen what was planned for a time at which no daemon ran, before anybody is served.
pub(super) async fn catch_up(lives: &mut Lives, store: &Store) {
    let before = lives.clone();
    if !lives.fall_due(now_millis()).is_empty() {
        keep_what_fell_due(store, &before, lives).await;
    }
}

/// It was planned for now. Where it cannot be kept, the store still has it as a plan, and a later daemon makes the same of it.
async fn keep_what_fell_due(store: &Store, before: &Lives, after: &Lives) {
    let note = by_itself("it was planned for now");
    if let Err(error) = records::keep_lives(store, before, after, note).await {
        tracing::error!("{error}");
    }
}

/// Ends when the next planned change is due, or somewhat earlier.
pub(super) async fn due(at: Option<UnixMillis>) {
    let Some(at) = at else {
        return pending().await;
    };
    let left = Duration::from_millis(at.0.saturating_sub(now_millis().0));
    tokio::time::sleep(left.min(SLEEP_MAX)).await;
}

/// Checks an event and lets it happen to `life`, at once or as a plan; the change that it is.
fn change_of(
    event: Event,
    guest: &Served,
    life: &mut Life,
    asked: UnixMillis,
    appears: Option<UnixMillis>,
    random: &[u8; 9],
) -> Result<Change, Refusal> {
    event.check(&guest.state.instance, life, appears.is_some())?;
    let at = appears.unwrap_or(asked).seconds();
    let change = event.resolve(life, at, random)?;
    match appears {
        Some(at) => life.plan(at, change.clone())?,
        None => life.apply(&change)?,
    }
    Ok(change)
}

fn random() -> Result<[u8; 9], DaemonError> {
    let mut bytes = [0; 9];
    getrandom::fill(&mut bytes).map_err(|cause| DaemonError::System {
        what: "make an id",
        cause: io::Error::other(cause.to_string()),
    })?;
    Ok(bytes)
}

fn unfit(guest: &Served, refusal: &Refusal) -> Trouble {
    Trouble::Unfit(format!("{}: {refusal}", guest.name))
}
