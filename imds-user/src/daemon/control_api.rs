//! The control API beside the daemon: on a thread of its own, so that guests and the kernel wait for no client of it. What a
//! call writes the daemon hears from the store, like anybody's changes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, Runtime};

use super::machines::{self, Launchers};
use super::{DaemonError, Options, now_millis};
use crate::api::attend::attend;
use crate::api::ec2::settle::Others;
use crate::api::server::{self, DoorError};
use crate::api::service::Api;
use crate::api::tls::Tls;
use crate::config::Ground;
use crate::control::AwsEnv;
use crate::instance::{Host, InstanceId};
use crate::metrics::{Keeper, Meter};
use crate::responder::supervisor::Sampler;
use crate::state::StateDir;
use crate::store::{InstanceRecord, KeyRole, Store, View};

/// How long after an error instances are attended to again.
const PAUSE: Duration = Duration::from_secs(1);

/// Where it is when nothing else is said.
pub const USUAL_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4566);

/// Where AWS's tools are to reach it, besides the Unix socket.
#[derive(Clone, Debug)]
pub enum ApiPlace {
    /// At [`USUAL_ADDRESS`], or at another port of loopback if somebody else has that. A host whose loopback interface is down
    /// serves its guests all the same.
    Usual,
    /// At this address or not at all.
    At {
        /// The address.
        address: SocketAddr,
        /// A certificate and its key, both in PEM: with them, any address may be given; without, one of loopback.
        tls: Option<(PathBuf, PathBuf)>,
    },
    /// By the Unix socket alone.
    Nowhere,
}

/// A control API that is open. It ends when this is dropped.
pub(super) struct ControlApi {
    runtime: Option<Runtime>,
    store: Store,
    /// What it tells of what was counted.
    counts: Keeper,
    /// None where it stays closed.
    api: Option<Arc<Api>>,
    region: String,
    endpoint: Option<String>,
}

/// Its doors, before anybody is let in.
struct Doors {
    tcp: Option<(TcpListener, Option<Tls>)>,
    unix: tokio::net::UnixListener,
}

impl ControlApi {
    /// Opens it. An address that cannot be had is an error; keys that cannot be made for want of room are not, for guests are to
    /// be served all the same.
    pub(super) async fn open(
        state: &StateDir,
        store: &Store,
        host: &Host,
        options: &Options,
    ) -> Result<Self, DaemonError> {
        let counts = Keeper::open(store.clone(), now_millis).await?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("control-api")
            .enable_all()
            .build()
            .map_err(|cause| DaemonError::System {
                what: "start the thread of the control API",
                cause,
            })?;
        let handle = runtime.handle().clone();
        // At once: what is dropped ends without waiting, also where this goes wrong further on.
        let mut open = Self {
            runtime: Some(runtime),
            store: store.clone(),
            counts: counts.clone(),
            api: None,
            region: host.zone.region().to_owned(),
            endpoint: None,
        };
        let doors = {
            let _entered = handle.enter();
            Doors::open(state, &options.api)?
        };
        if let Some((listener, tls)) = &doors.tcp {
            let scheme = if tls.is_some() { "https" } else { "http" };
            let address = listener.local_addr().map_err(|cause| DoorError::Refused {
                at: "the address of the control API".to_owned(),
                cause,
            })?;
            tracing::info!("the control API is at {scheme}://{address}");
            open.endpoint = Some(format!("{scheme}://{address}"));
        }
        let ground = Ground::of(host.clone(), state.installation()?).known_as(&options.images);
        handle.spawn(counts.clone().run());
        let launchers = Launchers::of(state.path(), options.launch);
        let surroundings = Box::new(launchers.clone());
        match Api::start_in(store.clone(), ground, counts, Some(surroundings)).await {
            Ok(api) => {
                open.api = Some(Arc::clone(&api));
                doors.serve(&handle, api);
            }
            Err(error) => {
                tracing::error!("the control API stays closed: {error}");
                open.endpoint = None;
            }
        }
        handle.spawn(attend_always(store.clone()));
        handle.spawn(machines::attend(
            store.clone(),
            host.clone(),
            launchers.state_dir().to_owned(),
        ));
        Ok(open)
    }

    /// Where it is entered what responders count.
    pub(super) fn meter(&self) -> &Meter {
        self.counts.meter()
    }

    /// Asks this supervisor what is counted, from now on.
    pub(super) fn ask_of_counts(&self, sampler: Sampler) {
        self.counts.ask(sampler);
    }

    /// No responder is left that could count on. Where that cannot be kept, a daemon that is killed at once is all that could make
    /// a difference.
    pub(super) async fn counts_begin_anew(&self) {
        if let Err(error) = self.counts.begin_anew().await {
            tracing::error!("counts begin anew: {error}");
        }
    }

    /// Keeps what is counted until now: of the minutes in which it was counted.
    pub(super) async fn keep_counts(&self) {
        self.counts.look().await;
    }

    /// What carries out its actions.
    pub(super) fn api(&self) -> Option<Arc<Api>> {
        self.api.clone()
    }

    /// What AWS's tools need to be told to come here.
    pub(super) fn environment(&self, role: KeyRole) -> Option<AwsEnv> {
        let endpoint = self.endpoint.clone()?;
        let key = self.store.read(|view| {
            let mut keys = view.access_keys().values();
            let key = keys.find(|key| key.value.role == role)?;
            Some(Arc::clone(&key.value))
        })?;
        Some(AwsEnv {
            endpoint,
            region: self.region.clone(),
            access_key_id: key.id.to_string(),
            secret_access_key: key.secret.clone(),
        })
    }
}

impl Drop for ControlApi {
    fn drop(&mut self) {
        // Nothing waits for a client: what was answered is kept.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Doors {
    fn open(state: &StateDir, place: &ApiPlace) -> Result<Self, DaemonError> {
        let tcp = match place {
            ApiPlace::Nowhere => None,
            ApiPlace::Usual => listen_as_usual().map(|listener| (listener, None)),
            ApiPlace::At { address, tls: None } => Some((server::listen(*address)?, None)),
            ApiPlace::At {
                address,
                tls: Some((certificate, key)),
            } => {
                let tls = Tls::read(certificate, key)?;
                Some((server::listen_anywhere(*address)?, Some(tls)))
            }
        };
        let unix = server::listen_unix(&state.api_socket())?;
        Ok(Self { tcp, unix })
    }

    fn serve(self, runtime: &Handle, api: Arc<Api>) {
        runtime.spawn(server::serve_unix(Arc::clone(&api), self.unix));
        match self.tcp {
            None => {}
            Some((listener, None)) => drop(runtime.spawn(server::serve(api, listener))),
            Some((listener, Some(tls))) => {
                drop(runtime.spawn(server::serve_tls(api, listener, tls)));
            }
        }
    }
}

fn listen_as_usual() -> Option<TcpListener> {
    let any_port = SocketAddr::new(USUAL_ADDRESS.ip(), 0);
    let listener = server::listen(USUAL_ADDRESS).or_else(|taken| {
        let other = server::listen(any_port);
        if other.is_ok() {
            tracing::warn!(
                "{taken}: the control API takes another port, which `imds aws-env` tells"
            );
        }
        other
    });
    listener
        .inspect_err(|error| tracing::warn!("no control API for AWS's tools: {error}"))
        .ok()
}

/// Whose machines a launcher runs their records say, and which options are in force the daemon notes itself.
struct DaemonKnows;

impl Others for DaemonKnows {
    fn has_machine(&self, _: InstanceId) -> bool {
        false
    }

    fn serves(&self, _: &InstanceRecord) -> bool {
        false
    }
}

async fn attend_always(store: Store) {
    while let Err(error) = attend(store.clone(), DaemonKnows, now_millis).await {
        tracing::error!(
            "attend to instances at {:?}: {error}",
            store.read(View::revision)
        );
        tokio::time::sleep(PAUSE).await;
    }
}
