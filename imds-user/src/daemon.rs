//! `imds run`: builds everything, wires it, serves until it is told to stop, and takes it down again.
//!
//! What the operator wrote is checked as a whole before anything is touched, at start and at every reload. What commands
//! did to an instance ([`crate::life`]) is laid over it.

mod admit;
mod commands;
mod control_api;
mod error;
mod follow;
mod following;
mod host_access;
mod machines;
mod orders;
mod records;
mod report;
mod served;
mod uplinks;

use std::{
    collections::BTreeMap,
    io,
    net::TcpListener,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};
use zeroize::Zeroizing;

use crate::{
    capabilities,
    config::{Guard, Guest, Settings, ground::ImageAlias},
    control::{self, server::Question},
    credentials::{CredentialSource, Keeper},
    dataplane::{DataPlane, DataPlaneError, Port, load::KernelLog, pins::Pins},
    discovery::{
        plan::Plan,
        source::{Snapshot, Sources},
    },
    identity::signer::Signer,
    instance::{Host, UnixMillis, UnixSeconds},
    life::{Lives, State},
    memory,
    netns::{
        self, NetNs,
        link::Links,
        watch::{Change, Watch},
    },
    responder::{
        self,
        found::{self, Found},
        listeners,
        namespace::ResponderNamespace,
        supervisor::{Responder, ResponderError, Start, Started, Update},
    },
    service_manager::{self, Watchdog},
    state::StateDir,
    store::{self, Store, View},
    teardown,
};
use control_api::ControlApi;
pub use control_api::{ApiPlace, USUAL_ADDRESS};
pub use error::DaemonError;
use following::Following;
use host_access::Restriction;
pub use machines::LaunchMode;
use records::Pending;
use served::Served;

/// What `imds run` was told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file; without one, what the store has.
    pub config: Option<PathBuf>,
    /// Where keys and the control socket live.
    pub state_dir: PathBuf,
    /// Threads of the responder; as many as there are CPUs, but no more than four, when none is given.
    pub workers: Option<u16>,
    /// What the programs in the kernel log.
    pub kernel_log: KernelLog,
    /// Whether an interface that the configuration names must be there.
    pub is_strict: bool,
    /// Room in bytes for what the kernel tells of interfaces, where a test wants little.
    pub notification_bytes: Option<usize>,
    /// Where AWS's tools reach the control API.
    pub api: ApiPlace,
    /// Whether instances that it runs have guests launched.
    pub launch: LaunchMode,
    /// What the image of the host's programs is called besides.
    pub images: Vec<ImageAlias>,
}

/// Where the kernel shows its type information. The programs carry theirs, and a kernel that cannot read it is older or
/// barer than anything that this was tried on.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// The least time between two looks at interfaces and routes. A rest is as long as the look before it at least, so that a
/// storm of changes leaves the daemon time for all else. The first change after a rest is seen at once.
const REST_BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// Runs until SIGTERM or SIGINT; SIGHUP reloads the configuration. What is in the kernel stays when it ends, and the
/// responder serves on with what it was told, until the next daemon goes on with both.
///
/// # Errors
/// When something that is needed is wrong or missing. A first start that fails leaves nothing; a later one leaves what was
/// there.
pub async fn run(options: Options) -> Result<(), DaemonError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(DaemonError::NotRoot);
    }
    if !std::path::Path::new(BTF).exists() {
        return Err(DaemonError::NoBtf);
    }
    capabilities::keep_needed().map_err(|cause| DaemonError::System {
        what: "give up capabilities",
        cause,
    })?;
    // Before anything is started that would inherit them.
    let kept = service_manager::kept_listeners().map_err(|cause| DaemonError::System {
        what: "take what the service manager has kept",
        cause,
    })?;
    let signals = Signals::install()?;
    let state = StateDir::open(&options.state_dir)?;
    let (store, lives, admitted) = records::open(&state).await?;
    let note = records::of_the_daemon(&options);
    let reading = records::read(&state, &store, options.config.as_deref(), note)?;
    let Settings {
        host,
        guard,
        host_access,
        guests,
        discovery,
    } = reading.settings;
    let restriction = Restriction::prepare(host_access)?;
    let cookie = netns::cookie().map_err(|cause| DaemonError::System {
        what: "ask which network namespace this is",
        cause,
    })?;
    let mut following = Following::begin(discovery, admitted, cookie, store.clone())?;
    let mut sources = following.start_sources();
    following.hear_first(&mut sources).await;
    let wanted = following.settle(guests, &BTreeMap::new()).await?;
    if let Some(obstacle) = following.obstacle(&wanted.0, options.is_strict) {
        return Err(obstacle);
    }
    following.warn(&wanted.0).await;
    let is_file_kept = reading.pending.keep(&store).await?;
    let records = store.watch(store.read(View::revision));
    // Nothing that is called for from now on is overlooked.
    let control_api = ControlApi::open(&state, &store, &host, &options).await?;
    let is_first = teardown::is_nothing_left(&state, cookie).unwrap_or(false);

    let mut is_ready = false;
    let start = StartOf {
        options,
        state: &state,
        store,
        control_api,
        records,
        is_file_kept,
        kept,
        cookie,
        host,
        guard,
        restriction,
        lives,
        following,
        sources,
        wanted,
    };
    let served = serve(start, signals, &mut is_ready).await;
    if served.is_err() && is_first && !is_ready {
        // The first error is the one to report.
        if let Err(error) = teardown::remove(&state, cookie).await {
            tracing::error!("remove what was made: {}", whole(&error));
        }
    }
    served
}

/// What a daemon starts from.
struct StartOf<'a> {
    options: Options,
    state: &'a StateDir,
    /// What is kept of instances.
    store: Store,
    /// How AWS's tools reach it.
    control_api: ControlApi,
    /// What changes of it from now on.
    records: store::Watch,
    /// Whether it has what the configuration file says.
    is_file_kept: bool,
    /// The listening sockets that the service manager has kept.
    kept: Option<[TcpListener; 2]>,
    /// The kernel's number for the host's namespace.
    cookie: u64,
    host: Host,
    guard: Guard,
    restriction: Option<Restriction>,
    lives: Lives,
    following: Following,
    sources: Sources,
    wanted: (Wanted, Plan),
}

async fn serve(
    start: StartOf<'_>,
    signals: Signals,
    is_ready: &mut bool,
) -> Result<(), DaemonError> {
    let state = start.state;
    let mut daemon = Daemon::build(start).await?;
    let outcome = daemon.serve(state, signals, is_ready).await;
    daemon.control_api.keep_counts().await;
    daemon.responder.leave().await;
    outcome
}

/// Guests by the name of their port, with the interface behind it. What a guest waits for stands in for the name.
type Wanted = BTreeMap<String, (Guest, Port)>;

/// The credential sources among them, each with the name of the guest.
fn sources(wanted: &Wanted) -> impl Iterator<Item = (&str, &CredentialSource)> {
    wanted
        .values()
        .filter_map(|(guest, _)| Some((&*guest.name, guest.credential_source.as_ref()?)))
}

struct Daemon {
    options: Options,
    /// What is kept of instances. The state directory has it.
    store: Store,
    /// How AWS's tools reach it.
    control_api: ControlApi,
    /// Tells who else changes it.
    records: store::Watch,
    /// Whether it has what the configuration file says. A full disk does not keep a file from being served.
    is_file_kept: bool,
    started: UnixSeconds,
    workers: u16,
    dataplane: DataPlane,
    /// The host's end of the veth pair into the responder's namespace.
    host_end: Port,
    responder: Responder,
    watch: Watch,
    links: Links,
    host: Host,
    guard: Guard,
    /// Of the host's processes, if there is to be one.
    restriction: Option<Restriction>,
    /// The kernel's number for the host's namespace.
    cookie: u64,
    /// What commands did to instances. The state directory holds the same.
    lives: Lives,
    credentials: Keeper,
    /// The host and what is known of guests on it.
    following: Following,
    /// What tells of guests.
    sources: Sources,
    /// By the name of the port, or by what stands in for it while there is none.
    served: BTreeMap<String, Served>,
    /// What keeps other daemons' hands off this namespace's filters, if they had not been there first.
    claim: Option<netns::Claim>,
}

impl Daemon {
    /// Goes on with what an earlier daemon has left in the kernel, or begins anew, and serves every port.
    ///
    /// The order keeps guests where they belong at every moment: what is not wanted any more is closed before there is
    /// anybody to answer, and whoever answers knows all guests before the first call. Maps that nobody here understands
    /// are cut off before their successors are filled, so that no slot of theirs is taken for one of ours.
    async fn build(start: StartOf<'_>) -> Result<Self, DaemonError> {
        let StartOf {
            options,
            state,
            store,
            control_api,
            records,
            is_file_kept,
            kept,
            cookie,
            host,
            guard,
            mut restriction,
            mut lives,
            following,
            sources: told_by,
            wanted: (wanted, mut plan),
        } = start;
        // Sources are asked while everything else is built.
        let mut credentials = Keeper::default();
        credentials.want(sources(&wanted));
        let name = state.namespace_name();
        let mut pins = Pins::open(state.path(), &name, cookie)?;
        if !pins.is_adopted() {
            // Responders first, so that guests hear of the end of their connections while there is a way for it.
            responder::remove(&state.responders())
                .await
                .map_err(responder_error("end"))?;
            ResponderNamespace::remove(&name).await?;
        }
        let namespace = ResponderNamespace::ensure(&name).await?;
        let mut dataplane = DataPlane::open(&mut pins, options.kernel_log)?;
        if options.kernel_log != KernelLog::Off {
            dataplane.forward_log()?;
        }
        dataplane.set_responder(&namespace.host_end)?;
        // Before the first look, so that nothing changes unseen after it.
        let watch = open_watch(&options)?;
        let links = following.links.clone();
        uplinks::guard_exactly(&mut dataplane, &links, &guard).await?;
        host_access::enforce(&mut dataplane, &mut restriction, cookie)?;

        let mut update = Update {
            host: Some(host.clone()),
            ..Update::default()
        };
        commands::catch_up(&mut lives, &store).await;
        let mut guests = admit(&mut dataplane, &credentials, &lives, wanted, &mut update)?;
        update.remove = dataplane.close_unclaimed()?;
        let released = update.remove.clone();
        let workers = options.workers.unwrap_or_else(default_workers);
        let mut found = found::find(&state.responders())
            .await
            .map_err(responder_error("find"))?;
        let inode = namespace.netns.inode();
        if !found.iter().any(|one| one.is_in(inode)) {
            // Whoever is started counts at nothing, also if this daemon is killed before it can say so.
            control_api.counts_begin_anew().await;
        }
        let listeners = listeners_of(&namespace, kept, &mut found).await?;
        service_manager::keep_listeners(&listeners);
        let start = Start {
            listeners,
            netns: namespace.netns,
            token_key: Zeroizing::new(state.token_key()?),
            workers,
            doors: state.responders(),
            meter: control_api.meter().clone(),
        };
        let signer = Signer::start(state.identity()).map_err(|cause| DaemonError::System {
            what: "start the signing thread",
            cause,
        })?;
        let Started {
            responder,
            in_force,
        } = Responder::start(start, update, signer, found).await?;
        for guest in &mut guests {
            if let Some(state) = guest.slot.and_then(|slot| in_force.get(&slot)) {
                guest.state = Arc::clone(state);
            }
        }
        control_api.ask_of_counts(responder.sampler());
        let mut daemon = Self {
            options,
            store,
            control_api,
            records,
            is_file_kept,
            started: now(),
            workers,
            dataplane,
            host_end: namespace.host_end,
            responder,
            watch,
            links,
            host,
            guard,
            restriction,
            cookie,
            lives,
            credentials,
            following,
            sources: told_by,
            served: BTreeMap::new(),
            claim: claim_filters()?,
        };
        daemon.release(released)?;
        daemon.keep_former(&guests, &mut plan).await?;
        daemon.shut(&plan.closed);
        for guest in guests {
            daemon.put_on(guest).await?;
        }
        daemon.following.closed = plan.closed;
        memory::give_back();
        if daemon.claim.is_some() {
            daemon.dataplane.reap_filters(daemon.host_end.ifindex)?;
        }
        pins.reap()?;
        daemon.keep_turned_up().await;
        daemon.note_applied().await;
        memory::give_back();
        Ok(daemon)
    }

    async fn serve(
        &mut self,
        state: &StateDir,
        mut signals: Signals,
        is_ready: &mut bool,
    ) -> Result<(), DaemonError> {
        let mut questions =
            control::server::listen(&state.socket()).map_err(|cause| DaemonError::System {
                what: "listen on the control socket",
                cause,
            })?;
        *is_ready = true;
        notify(&[sd_notify::NotifyState::Ready]);
        tracing::info!("serving {} guests", self.served.len());
        let mut watchdog = Watchdog::asked_for();
        // What changed between the first look and the subscription is seen now.
        let mut rested = Instant::now();
        let mut look_due = Some(rested);
        let mut may_be_anything = false;
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
                _ = signals.reload.recv() => self.reload(state).await,
                Some(question) = questions.recv() => self.answer(state, question).await,
                () = commands::due(self.lives.next_due()) => {
                    if let Err(error) = self.fall_due().await {
                        tracing::error!("planned changes: {}", whole(&error));
                    }
                }
                () = watchdog.sign() => {}
                changes = records::heard(&mut self.records) => {
                    if let Err(error) = self.hear_of_records(state, changes).await {
                        tracing::error!("instances that others changed: {}", whole(&error));
                    }
                }
                () = host_access::changed(&mut self.restriction) => {
                    if let Err(error) = self.follow_cgroups() {
                        tracing::error!("follow cgroups: {error}");
                    }
                }
                () = self.responder.drained() => self.note_applied().await,
                () = self.credentials.changed() => self.renew_credentials().await?,
                changes = self.watch.next() => {
                    let changes = match changes {
                        Ok(changes) => changes,
                        Err(error) => {
                            tracing::error!("follow interfaces and routes: {}", whole(&error));
                            self.watch = open_watch(&self.options)?;
                            vec![Change::Anything]
                        }
                    };
                    if changes.contains(&Change::Anything) {
                        self.following.n_lost += 1;
                        may_be_anything = true;
                    }
                    if let Err(error) = self.note(&changes).await {
                        tracing::error!("follow interfaces and routes: {}", whole(&error));
                        // The next look makes up for it.
                        may_be_anything = true;
                    }
                    look_due = Some(look_due.map_or(rested, |due: Instant| due.min(rested)));
                }
                snapshot = self.sources.next() => {
                    if let Err(error) = self.hear(snapshot).await {
                        tracing::error!("guests that turned up: {}", whole(&error));
                    }
                }
                () = until(look_due) => {
                    let begin = Instant::now();
                    match self.follow(may_be_anything).await {
                        Ok(()) => may_be_anything = false,
                        Err(error) => {
                            tracing::error!("follow interfaces and routes: {}", whole(&error));
                            self.following.is_unsettled = true;
                        }
                    }
                    let looked = Instant::now();
                    rested = looked + REST_BETWEEN_LOOKS.max(looked - begin);
                    let again = self.following.look_again(self.served.values());
                    look_due = again.map(|again| looked + again);
                }
            }
        }
        notify(&[sd_notify::NotifyState::Stopping]);
        tracing::info!("stopping");
        Ok(())
    }

    /// Reads the configuration again. A wrong one changes nothing.
    async fn reload(&mut self, state: &StateDir) {
        notify(&[sd_notify::NotifyState::Reloading]);
        match self.try_reload(state).await {
            Ok(()) => tracing::info!("reloaded: serving {} guests", self.served.len()),
            Err(error) => tracing::error!("reload: {}", whole(&error)),
        }
        notify(&[sd_notify::NotifyState::Ready]);
    }

    async fn try_reload(&mut self, state: &StateDir) -> Result<(), DaemonError> {
        let note = records::of_the_daemon(&self.options);
        let file = self.options.config.as_deref();
        let reading = records::read(state, &self.store, file, note)?;
        self.take_on(reading.settings, reading.pending, false).await
    }

    /// Keeps what a file says, and puts it in force. A wrong one changes nothing.
    async fn take_on(
        &mut self,
        settings: Settings,
        pending: Pending,
        must_be_kept: bool,
    ) -> Result<(), DaemonError> {
        let mut restriction = Restriction::prepare(settings.host_access)?;
        let is_other_docker = settings.discovery.docker != self.following.discovery.docker;
        let snapshot = if is_other_docker {
            Snapshot::default()
        } else {
            self.following.snapshot.clone()
        };
        let former = (
            std::mem::replace(&mut self.following.discovery, settings.discovery),
            std::mem::replace(&mut self.following.snapshot, snapshot),
        );
        let settled = self.following.settle(settings.guests, &self.served).await;
        let settled = settled.and_then(|wanted| {
            let obstacle = self.following.obstacle(&wanted.0, self.options.is_strict);
            obstacle.map_or(Ok(wanted), Err)
        });
        let settled = match settled {
            Ok(wanted) => {
                let kept = if must_be_kept {
                    pending.keep_or_fail(&self.store).await
                } else {
                    pending.keep(&self.store).await
                };
                kept.map(|is_kept| {
                    self.is_file_kept = is_kept;
                    wanted
                })
            }
            Err(error) => Err(error),
        };
        let wanted = match settled {
            Ok(wanted) => wanted,
            Err(error) => {
                let (discovery, snapshot) = former;
                self.following.discovery = discovery;
                self.hear(snapshot).await?;
                return Err(error);
            }
        };
        self.following.warn(&wanted.0).await;
        if is_other_docker {
            self.sources = self.following.start_sources();
        }
        uplinks::guard_exactly(&mut self.dataplane, &self.links, &settings.guard).await?;
        self.guard = settings.guard;
        host_access::enforce(&mut self.dataplane, &mut restriction, self.cookie)?;
        self.restriction = restriction;
        self.apply(settings.host, wanted).await?;
        self.note_applied().await;
        Ok(())
    }

    /// Makes what is served what is wanted. Guests that did not change notice nothing.
    async fn apply(
        &mut self,
        host: Host,
        (wanted, plan): (Wanted, Plan),
    ) -> Result<(), DaemonError> {
        self.rename(&plan.renames, Vec::new());
        let guests = wanted.iter().map(|(port, (guest, _))| (port, guest));
        self.note_user_data(guests).await;
        let mut update = Update::default();
        if host != self.host {
            update.host = Some(host.clone());
            self.host = host;
        }
        self.credentials.want(sources(&wanted));
        self.shut(&plan.closed);
        let unwanted = self.stop_unwanted(&wanted, &mut update)?;
        let kept = plan.closed.values().map(|closed| closed.port.ifindex);
        let ports = wanted.values().map(|(_, port)| port.ifindex);
        let kept = kept.chain(ports).collect();
        let fresh = self.publish(wanted, &mut update)?;
        let released = update.remove.clone();
        self.responder.update(update).await?;
        self.leave(unwanted, &kept);
        self.release(released)?;
        for guest in fresh {
            self.put_on(guest).await?;
        }
        self.let_go(&plan.closed, |_| false);
        self.following.closed = plan.closed;
        self.keep_turned_up().await;
        memory::give_back();
        Ok(())
    }

    /// Takes slots back. The responder ended their connections, so no packet and no socket carries them any more.
    fn release(&mut self, slots: Vec<u32>) -> Result<(), DaemonError> {
        for slot in slots {
            self.dataplane.release(slot)?;
        }
        Ok(())
    }

    /// Takes nothing in from ports that are not wanted any more, or whose guest is another one now.
    fn stop_unwanted(
        &mut self,
        wanted: &Wanted,
        update: &mut Update,
    ) -> Result<Vec<Port>, DaemonError> {
        let is_unwanted = |(name, guest): &(&String, &Served)| {
            !wanted
                .get(*name)
                .is_some_and(|wanted| guest.is_still(wanted))
        };
        let unwanted: Vec<String> = self
            .served
            .iter()
            .filter(is_unwanted)
            .map(|(name, _)| name.clone())
            .collect();
        let mut left = Vec::new();
        for key in &unwanted {
            // Its own name, unless it stepped aside for another guest, whose port that is now.
            let is_aside = self
                .served
                .get(key)
                .is_some_and(|guest| guest.port.name != *key);
            if !is_aside {
                self.dataplane.stop_port(key)?;
            }
            if let Some(guest) = self.served.remove(key) {
                update.remove.extend(guest.slot);
                if !is_aside {
                    left.push(guest.port);
                }
            }
        }
        Ok(left)
    }

    /// Notes new states of guests that are served, and gives slots to new ones, whose ports are still to be opened.
    fn publish(&mut self, wanted: Wanted, update: &mut Update) -> Result<Vec<Served>, DaemonError> {
        let at = now();
        // What all share is part of what each is told.
        let is_host_new = update.host.is_some();
        let mut fresh = Wanted::new();
        for (port_name, (guest, port)) in wanted {
            if self.served.contains_key(&port_name) {
                self.retell(&port_name, guest, at, is_host_new, update)?;
            } else {
                fresh.insert(port_name, (guest, port));
            }
        }
        admit(
            &mut self.dataplane,
            &self.credentials,
            &self.lives,
            fresh,
            update,
        )
    }

    /// Makes a guest that is served what is now said of it, and notes what is new to it.
    fn retell(
        &mut self,
        port_name: &str,
        guest: Guest,
        at: UnixSeconds,
        is_host_new: bool,
        update: &mut Update,
    ) -> Result<(), DaemonError> {
        if let Some(known) = self.served.get_mut(port_name) {
            let Guest {
                name,
                port: by,
                origin,
                limits,
                credential_source,
                mut instance,
                said: _,
            } = guest;
            if let Some(source) = &credential_source {
                self.credentials.fill(&mut instance, source);
            }
            let life = self.lives.of(instance.id);
            known.name = name;
            known.by = by;
            known.origin = origin;
            known.credential_source = credential_source;
            if let Some(slot) = known.slot.filter(|_| known.state.limits != limits) {
                self.dataplane.limit(slot, limits.packets_per_second)?;
            }
            let is_new = known.renew(instance, life, limits, at) || is_host_new;
            if is_host_new {
                known.republish(at);
            }
            if let Some(slot) = known.slot.filter(|_| is_new) {
                update.upsert.push((slot, Arc::clone(&known.state)));
            }
        }
        Ok(())
    }

    /// Lets a guest's packets in; those of a stopped one are dropped. One whose interface is not there sends none.
    fn open(&mut self, guest: &Served) -> Result<(), DataPlaneError> {
        let packets_per_second = guest.state.limits.packets_per_second;
        match guest.slot {
            Some(slot) => self
                .dataplane
                .open_port(&guest.port, slot, packets_per_second)?,
            None if is_absent(&guest.port) => {}
            None => self.dataplane.silence_port(&guest.port)?,
        }
        Ok(())
    }

    /// Publishes the credentials that changed by themselves.
    async fn renew_credentials(&mut self) -> Result<(), DaemonError> {
        let at = now();
        let mut update = Update::default();
        for guest in self.served.values_mut() {
            let Some(source) = &guest.credential_source else {
                continue;
            };
            if !self.credentials.has_news_for(guest.configured(), source) {
                continue;
            }
            let mut configured = guest.configured().clone();
            self.credentials.fill(&mut configured, source);
            let (life, limits) = (self.lives.of(configured.id), guest.state.limits);
            guest.renew(configured, life, limits, at);
            if let Some(slot) = guest.slot {
                update.upsert.push((slot, Arc::clone(&guest.state)));
            }
        }
        if !update.upsert.is_empty() {
            self.responder.update(update).await?;
        }
        Ok(())
    }

    async fn answer(&mut self, state: &StateDir, question: Question) {
        let answer = self.obey(state, question.request, question.uid).await;
        // The client may have gone.
        question.answer.send(answer).ok();
    }
}

/// The listening sockets that earlier daemons have handed on, or new ones.
async fn listeners_of(
    namespace: &ResponderNamespace,
    kept: Option<[TcpListener; 2]>,
    found: &mut Vec<Found>,
) -> Result<[TcpListener; 2], DaemonError> {
    let inode = namespace.netns.inode();
    // Better than what a responder hands over: nobody could touch it who parses what guests send.
    let kept = kept.filter(|kept| listeners::namespace_of(kept) == Some(inode));
    if kept.is_none() {
        // Those of a namespace that is gone, which would be handed out instead of ours the next time.
        service_manager::forget_listeners();
    }
    let handed_on = kept.or_else(|| found.iter_mut().find_map(|one| one.take_listeners(inode)));
    if let Some(listeners) = handed_on {
        return Ok(listeners);
    }
    // Whoever runs listens elsewhere, or says nothing and is in the way.
    for one in found.drain(..) {
        one.end().await;
    }
    Ok(namespace.listen().await?)
}

/// Makes guests ready to be served, each with the slot that it has already if an earlier daemon served it, and notes what
/// the responder must know of them. Those of stopped machines have none.
fn admit(
    dataplane: &mut DataPlane,
    credentials: &Keeper,
    lives: &Lives,
    wanted: Wanted,
    update: &mut Update,
) -> Result<Vec<Served>, DaemonError> {
    let at = now();
    let mut guests = Vec::new();
    for (guest, port) in wanted.into_values() {
        let mut guest = guest;
        if let Some(source) = &guest.credential_source {
            credentials.fill(&mut guest.instance, source);
        }
        let life = lives.of(guest.instance.id);
        let mut guest = Served::new(guest, port, life, at);
        if life.state() == State::Running && !is_absent(&guest.port) {
            let id = guest.state.instance.id;
            let slot = dataplane.slot_for(id.as_str(), &guest.port)?;
            guest.slot = Some(slot);
            update.upsert.push((slot, Arc::clone(&guest.state)));
        }
        guests.push(guest);
    }
    Ok(guests)
}

/// Makes this daemon the one that looks after the filters of its namespace. Another one, with another state directory, is
/// let be, and so are its filters.
fn claim_filters() -> Result<Option<netns::Claim>, DaemonError> {
    let system = |cause| DaemonError::System {
        what: "claim this network namespace",
        cause,
    };
    let here = NetNs::current().map_err(|error| DaemonError::Links(error.into()))?;
    let claim = here.claim().map_err(system)?;
    if claim.is_none() {
        tracing::warn!(
            "another process looks after the filters of this network namespace: what earlier daemons left on interfaces \
             is let be"
        );
    }
    Ok(claim)
}

/// An error and its causes, in one line.
fn whole(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let causes: Vec<String> = causes.map(ToString::to_string).collect();
    causes.join(": ")
}

/// The port of a guest whose interface is not there: no interface has index 0.
fn absent(name: String) -> Port {
    Port {
        name,
        ifindex: 0,
        has_peer_elsewhere: false,
    }
}

fn is_absent(port: &Port) -> bool {
    port.ifindex == 0
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
}

impl Signals {
    fn install() -> Result<Self, DaemonError> {
        let on = |kind| {
            signal(kind).map_err(|cause| DaemonError::System {
                what: "install a signal handler",
                cause,
            })
        };
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            reload: on(SignalKind::hangup())?,
        })
    }
}

fn responder_error(what: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |cause| ResponderError::Io { what, cause }.into()
}

/// Subscribes to changes of interfaces and routes.
fn open_watch(options: &Options) -> Result<Watch, DaemonError> {
    let watch = match options.notification_bytes {
        Some(bytes) => Watch::with_buffer(bytes),
        None => Watch::open(),
    };
    watch.map_err(|cause| DaemonError::System {
        what: "follow interfaces and routes",
        cause,
    })
}

/// Waits for a moment, or for ever if there is none.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn default_workers() -> u16 {
    const WORKERS_MAX: usize = 4;
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(cpus.min(WORKERS_MAX)).unwrap_or(1)
}

fn now() -> UnixSeconds {
    now_millis().seconds()
}

fn now_millis() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Tells the service manager, if one started us and waits for it.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("tell the service manager: {error}");
    }
}
