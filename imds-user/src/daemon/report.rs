//! What `imds status` is told.

use super::{Daemon, DaemonError, served::Served};
use crate::{
    control::{CredentialStatus, DaemonStatus, PortStatus, ResponderStatus, StatusReport},
    credentials::Keeper,
    instance::TokenUse,
    life::{Life, State},
    responder::protocol::Counters,
};

/// The state of an instance that runs and has no interface.
const WAITING: &str = "waiting";

impl Daemon {
    pub(super) async fn report(&self) -> Result<StatusReport, DaemonError> {
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
                config: match &self.options.config {
                    Some(file) => file.display().to_string(),
                    None => String::new(),
                },
            },
            responder: ResponderStatus {
                pid: responder.pid,
                restarts: responder.restarts,
                failed_starts: responder.failed_starts,
                workers: self.workers.into(),
            },
            ports: self
                .served
                .values()
                .map(|guest| {
                    let counters = guest.slot.and_then(|slot| counters.get(&slot));
                    let life = self.lives.of(guest.state.instance.id);
                    guest.report(counters, life, &self.credentials)
                })
                .collect(),
            guard: self.guard_report().await?,
            host_access: self.host_access_report()?,
            discovery: self
                .following
                .report(&self.served, &self.options.state_dir)
                .await?,
            drops: named(drops),
            packets: named(packets),
        })
    }
}

impl Served {
    fn report(&self, counters: Option<&Counters>, life: &Life, credentials: &Keeper) -> PortStatus {
        let counters = counters.copied().unwrap_or_default();
        let instance = &self.state.instance;
        PortStatus {
            port: self.port.name.clone(),
            ifindex: self.port.ifindex,
            slot: self.slot,
            state: match (self.slot, life.state()) {
                (Some(_), _) => State::Running.as_str(),
                (None, State::Stopped) => State::Stopped.as_str(),
                (None, State::Running) => WAITING,
            }
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
