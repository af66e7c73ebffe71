//! `imds run`: builds everything, wires it, serves until it is told to stop, and takes it down again.
//!
//! What the operator wrote is checked as a whole before anything is touched, at start and at every reload. What commands
//! did to an instance ([`crate::life`]) is laid over it.

mod commands;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
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
    config::{self, ConfigError, Guard, Guest, Settings, disk::Disk},
    control::{
        self, CredentialStatus, DaemonStatus, GuardStatus, PortStatus, ResponderStatus,
        StatusReport, UplinkStatus, server::Question,
    },
    credentials::{CredentialSource, Keeper},
    dataplane::{
        DataPlane, DataPlaneError, Port,
        guard::Uplink,
        load::KernelLog,
        slots::{SlotAllocator, SlotsExhausted},
    },
    identity::signer::Signer,
    instance::{Host, Instance, Limits, Published, TokenUse, UnixMillis, UnixSeconds},
    life::{Life, Lives, State},
    memory,
    netns::{
        link::{Link, LinkError, Links},
        uplink::{self, Way},
        watch::{Change, Watch},
    },
    responder::{
        namespace::{NamespaceError, ResponderNamespace},
        protocol::Counters,
        supervisor::{Responder, ResponderError, Start, Update},
    },
    state::{StateDir, StateError},
};

/// What `imds run` was told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// Where keys and the control socket live.
    pub state_dir: PathBuf,
    /// Threads of the responder; as many as there are CPUs, but no more than four, when none is given.
    pub workers: Option<u16>,
    /// What the programs in the kernel log.
    pub kernel_log: KernelLog,
}

/// Why the daemon did not start or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Not root.
    #[error("only root can load programs and make namespaces: run it with sudo")]
    NotRoot,
    /// The kernel was built without type information.
    #[error(
        "this kernel has no BTF ({BTF}): boot one with CONFIG_DEBUG_INFO_BTF=y, as every current distribution has it"
    )]
    NoBtf,
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A port's interface is not there.
    #[error(
        "interface {port} of instance {instance} is not there: make it first, or correct `port` in the configuration (`ip -br link` lists what is there)"
    )]
    NoInterface {
        /// The interface.
        port: String,
        /// The instance's name.
        instance: String,
    },
    /// A port's interface cannot be a port.
    #[error("interface {port} cannot be the port of instance {instance}: {why}")]
    NotAPort {
        /// The interface.
        port: String,
        /// The instance's name.
        instance: String,
        /// What is in the way.
        why: &'static str,
    },
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// Programs, maps or filters.
    #[error(transparent)]
    DataPlane(#[from] DataPlaneError),
    /// No slot is left.
    #[error(transparent)]
    Slots(#[from] SlotsExhausted),
    /// The responder's namespace.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The responder.
    #[error(transparent)]
    Responder(#[from] ResponderError),
    /// The interfaces could not be listed.
    #[error(transparent)]
    Links(#[from] LinkError),
    /// Something else of the system.
    #[error("{what}: {cause}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// Where the kernel shows its type information. The programs carry theirs, and a kernel that cannot read it is older or
/// barer than anything that this was tried on.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// The least time between two looks at interfaces and routes, so that a storm of changes does not keep the daemon from
/// everything else. The first change after a rest is seen at once.
const REST_BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// Serves until SIGTERM or SIGINT; SIGHUP reloads the configuration. Nothing is left behind.
///
/// # Errors
/// When something that is needed is wrong or missing; whatever was made is removed again.
pub async fn run(options: Options) -> Result<(), DaemonError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(DaemonError::NotRoot);
    }
    if !std::path::Path::new(BTF).exists() {
        return Err(DaemonError::NoBtf);
    }
    let signals = Signals::install()?;
    let state = StateDir::open(&options.state_dir)?;
    let mut settings = config::load(&options.config, &state.installation()?, &Disk)?;
    let lives = state.lives()?;
    let wanted = find_ports(std::mem::take(&mut settings.guests), &lives).await?;

    let name = state.namespace_name();
    let served = serve(options, &state, settings, lives, wanted, signals).await;
    let removed = ResponderNamespace::remove(&name).await;
    served.and(removed.map_err(DaemonError::from))
}

/// Builds, serves and dismantles all but the namespace, which is removed last.
async fn serve(
    options: Options,
    state: &StateDir,
    settings: Settings,
    lives: Lives,
    wanted: Wanted,
    signals: Signals,
) -> Result<(), DaemonError> {
    // Sources are asked while everything else is built.
    let mut credentials = Keeper::default();
    credentials.want(sources(&wanted));
    let mut daemon = Daemon::build(options, state, settings, lives, credentials).await?;
    let outcome = daemon.serve(state, wanted, signals).await;
    daemon.dismantle().await;
    outcome
}

/// Guests by the name of their port, with the interface behind it.
type Wanted = BTreeMap<String, (Guest, Port)>;

/// The credential sources among them, each with the name of the guest.
fn sources(wanted: &Wanted) -> impl Iterator<Item = (&str, &CredentialSource)> {
    wanted
        .values()
        .filter_map(|(guest, _)| Some((&*guest.name, guest.credential_source.as_ref()?)))
}

struct Daemon {
    options: Options,
    started: UnixSeconds,
    workers: u16,
    dataplane: DataPlane,
    slots: SlotAllocator,
    responder: Responder,
    links: Links,
    host: Host,
    guard: Guard,
    /// What commands did to instances. The state directory holds the same.
    lives: Lives,
    credentials: Keeper,
    /// By the name of the port.
    served: BTreeMap<String, Served>,
}

/// A guest that is served, or would be if its machine were not stopped.
struct Served {
    name: Box<str>,
    port: Port,
    /// None while it is stopped: its port drops then.
    slot: Option<u32>,
    /// Where its credentials come from, if from elsewhere.
    credential_source: Option<CredentialSource>,
    state: Arc<Published>,
    /// What the configuration says of it, where its life made it another.
    configured: Option<Box<Instance>>,
}

impl Daemon {
    async fn build(
        options: Options,
        state: &StateDir,
        settings: Settings,
        lives: Lives,
        credentials: Keeper,
    ) -> Result<Self, DaemonError> {
        let Settings { host, guard, .. } = settings;
        let ResponderNamespace {
            netns,
            host_end,
            listeners,
        } = ResponderNamespace::create(&state.namespace_name()).await?;
        let mut dataplane = DataPlane::load(&host_end, options.kernel_log)?;
        if options.kernel_log != KernelLog::Off {
            dataplane.forward_log()?;
        }
        let workers = options.workers.unwrap_or_else(default_workers);
        let token_key = Zeroizing::new(state.token_key()?);
        let start = Start {
            netns,
            listeners,
            token_key,
            workers,
        };
        let initial = Update {
            host: Some(host.clone()),
            ..Update::default()
        };
        let signer = Signer::start(state.identity()).map_err(|cause| DaemonError::System {
            what: "start the signing thread",
            cause,
        })?;
        let responder = Responder::start(start, initial, signer).await?;
        Ok(Self {
            options,
            started: now(),
            workers,
            dataplane,
            slots: SlotAllocator::default(),
            responder,
            links: Links::open()?,
            host,
            guard,
            lives,
            credentials,
            served: BTreeMap::new(),
        })
    }

    async fn serve(
        &mut self,
        state: &StateDir,
        wanted: Wanted,
        mut signals: Signals,
    ) -> Result<(), DaemonError> {
        // Before the first look, so that nothing changes unseen after it.
        let mut watch = Watch::open().map_err(watch_error)?;
        self.guard_exactly(self.guard.clone()).await?;
        self.fall_due(state).await?;
        self.apply(state, self.host.clone(), wanted).await?;
        let mut questions =
            control::server::listen(&state.socket()).map_err(|cause| DaemonError::System {
                what: "listen on the control socket",
                cause,
            })?;
        notify(&[sd_notify::NotifyState::Ready]);
        tracing::info!("serving {} guests", self.served.len());
        let mut looked = Instant::now();
        let mut look_due = None;
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
                _ = signals.reload.recv() => self.reload(state).await,
                Some(question) = questions.recv() => self.answer(state, question).await,
                () = commands::due(self.lives.next_due()) => {
                    if let Err(error) = self.fall_due(state).await {
                        tracing::error!("planned changes: {error}");
                    }
                }
                () = self.credentials.changed() => self.renew_credentials().await?,
                changes = watch.next() => {
                    match changes {
                        Ok(changes) => self.note(&changes),
                        Err(error) => {
                            tracing::error!("follow interfaces and routes: {error}");
                            watch = Watch::open().map_err(watch_error)?;
                        }
                    }
                    look_due.get_or_insert(looked + REST_BETWEEN_LOOKS);
                }
                () = until(look_due) => {
                    self.look().await;
                    looked = Instant::now();
                    look_due = None;
                }
            }
        }
        notify(&[sd_notify::NotifyState::Stopping]);
        tracing::info!("stopping");
        Ok(())
    }

    /// Deals with what cannot wait for a look.
    fn note(&mut self, changes: &[Change]) {
        for change in changes {
            let Change::Gone(ifindex) = change else {
                continue;
            };
            if let Err(error) = self.dataplane.forget_interface(*ifindex) {
                tracing::error!("{error}");
            }
        }
    }

    /// Follows interfaces and routes: what has become an uplink is guarded.
    async fn look(&mut self) {
        match self.uplinks(&self.guard).await {
            Ok(uplinks) => self.dataplane.guard(uplinks),
            Err(error) => tracing::error!("look for uplinks: {error}"),
        }
    }

    /// Guards what is to be guarded now, and nothing else.
    async fn guard_exactly(&mut self, guard: Guard) -> Result<(), DaemonError> {
        let uplinks = self.uplinks(&guard).await?;
        if guard == Guard::Off {
            tracing::warn!(
                "the guard is off (guard = false): guests that are not served, or not yet, may reach this host's own \
                 metadata service by its uplinks"
            );
        }
        if let Guard::Named(names) = &guard {
            let is_missing = |name: &&config::PortName| {
                uplinks.iter().all(|uplink| uplink.name != name.as_str())
            };
            for name in names.iter().filter(is_missing) {
                tracing::warn!("uplink {name} is not there: it is guarded once it is");
            }
        }
        let kept: Vec<u32> = uplinks.iter().map(|uplink| uplink.ifindex).collect();
        self.guard = guard;
        self.dataplane.guard(uplinks);
        Ok(self.dataplane.unguard_all_but(&kept)?)
    }

    /// The uplinks there are.
    async fn uplinks(&self, guard: &Guard) -> Result<Vec<Uplink>, DaemonError> {
        let links = self.links.list().await?;
        let found: Vec<&Link> = match guard {
            Guard::Off => Vec::new(),
            Guard::Found => uplink::uplinks(&links, &self.links.ways().await?),
            Guard::Named(names) => links
                .iter()
                .filter(|link| names.iter().any(|name| name.as_str() == link.name))
                .collect(),
        };
        let uplinks = found.into_iter().map(|link| Uplink {
            name: link.name.clone(),
            ifindex: link.index,
            is_ethernet: link.is_ethernet,
        });
        Ok(uplinks.collect())
    }

    /// Takes everything down; an error is logged and the rest goes on.
    async fn dismantle(mut self) {
        let ports: Vec<String> = self.served.keys().cloned().collect();
        for port in ports {
            if let Err(error) = self.dataplane.close_port(&port) {
                tracing::error!("{error}");
            }
        }
        self.responder.stop().await;
        if let Err(error) = self.dataplane.unguard_all_but(&[]) {
            tracing::error!("{error}");
        }
    }

    /// Reads the configuration again. A wrong one changes nothing.
    async fn reload(&mut self, state: &StateDir) {
        notify(&[sd_notify::NotifyState::Reloading]);
        match self.try_reload(state).await {
            Ok(()) => tracing::info!("reloaded: serving {} guests", self.served.len()),
            Err(error) => tracing::error!("reload: {error}"),
        }
        notify(&[sd_notify::NotifyState::Ready]);
    }

    async fn try_reload(&mut self, state: &StateDir) -> Result<(), DaemonError> {
        let settings: Settings = config::load(&self.options.config, &state.installation()?, &Disk)?;
        let wanted = find_ports(settings.guests, &self.lives).await?;
        self.guard_exactly(settings.guard).await?;
        self.apply(state, settings.host, wanted).await
    }

    /// Makes what is served what is wanted. Guests that did not change notice nothing.
    async fn apply(
        &mut self,
        state: &StateDir,
        host: Host,
        wanted: Wanted,
    ) -> Result<(), DaemonError> {
        self.note_user_data(state, &wanted)?;
        let mut update = Update::default();
        if host != self.host {
            update.host = Some(host.clone());
            self.host = host;
        }
        self.credentials.want(sources(&wanted));
        self.close_unwanted(&wanted, &mut update)?;
        let fresh = self.publish(wanted, &mut update)?;
        let released = update.remove.clone();
        self.responder.update(update).await?;
        // The responder ended their connections, so no packet and no socket carries these slots any more.
        for slot in released {
            self.slots.release(slot);
        }
        for guest in fresh {
            self.open(&guest)?;
            self.served.insert(guest.port.name.clone(), guest);
        }
        memory::give_back();
        Ok(())
    }

    fn close_unwanted(&mut self, wanted: &Wanted, update: &mut Update) -> Result<(), DaemonError> {
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
        for port in unwanted {
            self.dataplane.close_port(&port)?;
            if let Some(guest) = self.served.remove(&port) {
                update.remove.extend(guest.slot);
            }
        }
        Ok(())
    }

    /// Notes new states of guests that are served, and gives slots to new ones, whose ports are still to be opened.
    fn publish(&mut self, wanted: Wanted, update: &mut Update) -> Result<Vec<Served>, DaemonError> {
        let at = now();
        // What all share is part of what each is told.
        let is_host_new = update.host.is_some();
        let mut fresh = Vec::new();
        for (port_name, (guest, port)) in wanted {
            let Guest {
                name,
                limits,
                credential_source,
                mut instance,
                ..
            } = guest;
            if let Some(source) = &credential_source {
                self.credentials.fill(&mut instance, source);
            }
            let life = self.lives.of(instance.id);
            if let Some(known) = self.served.get_mut(&port_name) {
                known.name = name;
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
                continue;
            }
            let mut guest = Served::new(name, port, instance, life, limits, at);
            guest.credential_source = credential_source;
            if life.state() == State::Running {
                let slot = self.slots.allocate()?;
                guest.slot = Some(slot);
                update.upsert.push((slot, Arc::clone(&guest.state)));
            }
            fresh.push(guest);
        }
        Ok(fresh)
    }

    /// Lets a guest's packets in; those of a stopped one are dropped. One whose interface is not there sends none.
    fn open(&mut self, guest: &Served) -> Result<(), DaemonError> {
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
        let answer = self.obey(state, question.request).await;
        // The client may have gone.
        question.answer.send(answer).ok();
    }

    async fn report(&self) -> Result<StatusReport, DaemonError> {
        let counters = self.responder.counters().await?;
        let packets = self.dataplane.counters()?;
        let (drops, packets) = packets
            .into_iter()
            .partition::<Vec<_>, _>(|(counter, _)| counter.is_drop());
        let named = |counted: Vec<(crate::dataplane::Counter, u64)>| {
            counted
                .into_iter()
                .map(|(counter, count)| (counter.name().to_owned(), count))
                .collect()
        };
        let responder = self.responder.status();
        Ok(StatusReport {
            daemon: DaemonStatus {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                started_unix_seconds: self.started.0,
                config: self.options.config.display().to_string(),
            },
            responder: ResponderStatus {
                pid: responder.pid,
                restarts: responder.restarts,
                workers: self.workers.into(),
            },
            ports: self
                .served
                .values()
                .map(|guest| {
                    let counters = guest.slot.and_then(|slot| counters.get(&slot));
                    guest.report(counters, &self.credentials)
                })
                .collect(),
            guard: self.guard_report().await?,
            drops: named(drops),
            packets: named(packets),
        })
    }

    async fn guard_report(&self) -> Result<GuardStatus, DaemonError> {
        let links = self.links.list().await?;
        let name_of = |ifindex: u32| {
            let link = links.iter().find(|link| link.index == ifindex);
            link.map_or_else(|| format!("interface {ifindex}"), |link| link.name.clone())
        };
        let guarded = self.dataplane.guarded();
        let missing = match &self.guard {
            Guard::Named(names) => names.as_slice(),
            Guard::Found | Guard::Off => &[],
        };
        let missing = missing
            .iter()
            .filter(|name| guarded.iter().all(|uplink| uplink.name != name.as_str()))
            .map(|name| UplinkStatus {
                interface: name.to_string(),
                is_guarded: false,
                why_not: Some("there is no such interface".to_owned()),
            });
        let uplinks = guarded.iter().map(|uplink| UplinkStatus {
            interface: uplink.name.clone(),
            is_guarded: uplink.refusal.is_none(),
            why_not: uplink.refusal.clone(),
        });
        let dropped = self.dataplane.guarded_from()?;
        Ok(GuardStatus {
            is_on: self.guard != Guard::Off,
            uplinks: uplinks.chain(missing).collect(),
            dropped: dropped
                .into_iter()
                .map(|(ifindex, count)| (name_of(ifindex), count))
                .collect(),
        })
    }
}

impl Served {
    /// A guest without a slot.
    fn new(
        name: Box<str>,
        port: Port,
        configured: Instance,
        life: &Life,
        limits: Limits,
        at: UnixSeconds,
    ) -> Self {
        let instance = life.over(&configured);
        let is_other = instance != configured;
        Self {
            name,
            port,
            slot: None,
            credential_source: None,
            state: Arc::new(Published {
                at,
                limits,
                instance,
            }),
            configured: is_other.then(|| Box::new(configured)),
        }
    }

    /// Takes on what the configuration and its life now make of it; whether that is anything new.
    fn renew(
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
    fn republish(&mut self, at: UnixSeconds) {
        let same = Published::clone(&self.state);
        self.state = Arc::new(Published { at, ..same });
    }

    /// What the configuration says of it.
    fn configured(&self) -> &Instance {
        self.configured.as_deref().unwrap_or(&self.state.instance)
    }

    /// Whether this is the same guest on the same interface, whatever changed in its metadata. An interface that was made
    /// anew under the old name is another one.
    fn is_still(&self, (guest, port): &(Guest, Port)) -> bool {
        self.port == *port && self.state.instance.id == guest.instance.id
    }

    fn report(&self, counters: Option<&Counters>, credentials: &Keeper) -> PortStatus {
        let counters = counters.copied().unwrap_or_default();
        let instance = &self.state.instance;
        PortStatus {
            port: self.port.name.clone(),
            ifindex: self.port.ifindex,
            slot: self.slot,
            state: match self.slot {
                Some(_) => State::Running,
                None => State::Stopped,
            }
            .as_str()
            .to_owned(),
            instance_id: instance.id.as_str().to_owned(),
            name: self.name.to_string(),
            http_tokens: match instance.options.http_tokens {
                TokenUse::Optional => "optional",
                TokenUse::Required => "required",
            }
            .to_owned(),
            requests: counters.requests,
            tokens_issued: counters.tokens_issued,
            no_token: counters.no_token,
            no_token_rejected: counters.no_token_rejected,
            throttled: counters.throttled,
            connections: counters.connections,
            credentials: self.credential_status(credentials),
        }
    }

    fn credential_status(&self, credentials: &Keeper) -> Option<CredentialStatus> {
        let role = self.state.instance.role.as_deref()?;
        let Some(source) = &self.credential_source else {
            return Some(CredentialStatus::of_given(role));
        };
        let status = credentials.status(source)?;
        Some(CredentialStatus {
            role: role.name.to_string(),
            kind: source.kind().to_owned(),
            source: Some(source.to_string()),
            state: status.state.to_owned(),
            expires_unix_seconds: status.expiration.map(|at| at.0),
            last_error: status.error.as_deref().map(str::to_owned),
        })
    }
}

/// Finds the interface of every guest. Where a machine is stopped, its interface may be gone with it.
async fn find_ports(guests: Vec<Guest>, lives: &Lives) -> Result<Wanted, DaemonError> {
    let found = |guest: &Guest, port| match port {
        Err(DaemonError::NoInterface { port, .. })
            if lives.of(guest.instance.id).state() == State::Stopped =>
        {
            Ok(absent(port))
        }
        found => found,
    };
    let handle = Links::open()?;
    let ways: Vec<Way> = handle.ways().await?;
    let uplinks = uplink::defaults(&ways);
    let links = handle.list().await?;
    let links: BTreeMap<&str, &Link> = links
        .iter()
        .map(|link| (link.name.as_str(), link))
        .collect();
    guests
        .into_iter()
        .map(|guest| {
            let port = found(&guest, port_of(&guest, &links, &uplinks))?;
            Ok((port.name.clone(), (guest, port)))
        })
        .collect()
}

/// The port of a stopped machine whose interface is not there: no interface has index 0.
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

fn port_of(
    guest: &Guest,
    links: &BTreeMap<&str, &Link>,
    uplinks: &BTreeSet<u32>,
) -> Result<Port, DaemonError> {
    let (port, instance) = (guest.port.to_string(), guest.name.to_string());
    let Some(link) = links.get(port.as_str()) else {
        return Err(DaemonError::NoInterface { port, instance });
    };
    let why = if !link.is_ethernet {
        "it carries no Ethernet frames"
    } else if uplinks.contains(&link.index) {
        "a default route of the host leaves by it, so it is an uplink: what comes in there is no guest's"
    } else if link.kind == "bridge" {
        "it is a bridge: name the interfaces of its guests instead, each of which is a port of its own"
    } else {
        let has_peer_elsewhere = link.kind == "veth" && link.peer_netnsid.is_some();
        return Ok(Port {
            name: port,
            ifindex: link.index,
            has_peer_elsewhere,
        });
    };
    Err(DaemonError::NotAPort {
        port,
        instance,
        why,
    })
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

fn watch_error(cause: io::Error) -> DaemonError {
    DaemonError::System {
        what: "follow interfaces and routes",
        cause,
    }
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
