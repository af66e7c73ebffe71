//! What the daemon tells about one instance: the form in which commands print it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::instance::details::{Details, MaintenanceEvent};
use crate::instance::{Instance, MetadataOptions, UnixMillis, UnixSeconds};
use crate::life::{Life, State};
use crate::store::InstanceRecord;

/// One instance, as `imds instance show --json` prints it. Times are `2026-01-31T12:00:00Z`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct InstanceReport {
    /// What commands call it.
    pub name: String,
    /// `i-…`
    pub instance_id: String,
    /// Who brought it here: `file`, `api`, `admitted` or `discovered`.
    #[serde(default)]
    pub owner: String,
    /// The interface of the host by which its packets come in, or what is waited for; empty if it has none.
    pub port: String,
    /// Why its guest is not served though it runs: its interface is not there.
    #[serde(default)]
    pub waits: Option<String>,
    /// EC2's word for it: `running`, `stopped`, `terminated` …
    pub state: String,
    /// For example `t3.micro`.
    pub instance_type: String,
    /// `on-demand`, `spot` …
    pub life_cycle: String,
    /// When it was last launched or started: `pendingTime`.
    pub launched: String,
    /// When what it is told last changed (`Last-Modified`); none while it is stopped.
    pub published: Option<String>,
    /// Private IPv4 address.
    pub private_ipv4: Option<String>,
    /// Public IPv4 address.
    pub public_ipv4: Option<String>,
    /// Names of the security groups.
    pub security_groups: Vec<String>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Name of the IAM role.
    pub role: Option<String>,
    /// Its metadata options; none from a daemon that does not tell them.
    #[serde(default)]
    pub metadata_options: Option<OptionsReport>,
    /// Its user data.
    pub user_data: UserDataReport,
    /// What it is told of things to come.
    pub notices: Notices,
    /// What it will be told, in its order.
    pub planned: Vec<PlannedReport>,
    /// Whether RunInstances launched its guest: then the daemon has done to it what is done to the instance.
    #[serde(default)]
    pub has_machine: bool,
}

/// Metadata options, in EC2's words.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct OptionsReport {
    /// `applied`, or `pending` while its guest does not see them yet.
    pub state: String,
    /// `optional` or `required`.
    pub http_tokens: String,
    /// `enabled` or `disabled`.
    pub http_endpoint: String,
    /// 1 to 64.
    pub http_put_response_hop_limit: u8,
    /// `enabled` or `disabled`.
    pub http_protocol_ipv6: String,
    /// `enabled` or `disabled`.
    pub instance_metadata_tags: String,
}

impl OptionsReport {
    fn of(options: &MetadataOptions, state: &str) -> Self {
        Self {
            state: state.to_owned(),
            http_tokens: options.http_tokens.as_str().to_owned(),
            http_endpoint: options.http_endpoint.as_str().to_owned(),
            http_put_response_hop_limit: options.http_put_response_hop_limit.get(),
            http_protocol_ipv6: options.http_protocol_ipv6.as_str().to_owned(),
            instance_metadata_tags: options.instance_metadata_tags.as_str().to_owned(),
        }
    }
}

/// User data, by length only: people put passwords there.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct UserDataReport {
    /// Bytes of it; none if there is none.
    pub bytes: Option<usize>,
    /// Whether the configuration has other user data, which is taken over when the instance is next started.
    pub is_pending: bool,
    /// Bytes of what the configuration has.
    pub configured_bytes: Option<usize>,
}

/// What an instance is told of things to come.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Notices {
    /// The announced interruption.
    pub spot_interruption: Option<SpotReport>,
    /// When a rebalance recommendation was issued.
    pub rebalance: Option<String>,
    /// Scheduled and past maintenance.
    pub maintenance: Vec<MaintenanceReport>,
    /// `autoscaling/target-lifecycle-state`
    pub target_lifecycle_state: Option<String>,
    /// `hibernation/configured`
    pub hibernation_configured: Option<bool>,
}

/// An announced interruption.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SpotReport {
    /// `terminate`, `stop` or `hibernate`.
    pub action: String,
    /// When.
    pub time: String,
}

/// A maintenance event.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct MaintenanceReport {
    /// `instance-event-…`
    pub event_id: String,
    /// What kind.
    pub code: String,
    /// `active`, `completed` or `canceled`.
    pub state: String,
    /// For people.
    pub description: String,
    /// The earliest start.
    pub not_before: String,
    /// The latest end.
    pub not_after: String,
    /// Until when it may be put off.
    pub not_before_deadline: Option<String>,
}

/// A change that is still to come.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PlannedReport {
    /// When, to the millisecond.
    pub at: String,
    /// What, for people.
    pub change: String,
}

/// What a command did, as `--json` prints it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Done {
    /// What, for people.
    pub done: String,
    /// Whether anything is other than before.
    pub is_changed: bool,
    /// The moment, to the millisecond, from which on every request of the guest sees it; none if that is to come.
    pub in_force: Option<String>,
    /// The moment at which it will show, if that is to come.
    pub appears: Option<String>,
    /// The id of the maintenance event that it is about.
    pub event_id: Option<String>,
    /// The instance as it is now.
    pub instance: InstanceReport,
}

/// Where an instance is, which is no fact of the instance itself.
#[derive(Clone, Debug)]
pub struct Whereabouts<'a> {
    /// What commands call it.
    pub name: &'a str,
    /// Who brought it here.
    pub owner: &'a str,
    /// Its interface.
    pub port: &'a str,
    /// Why it has none, where it waits for one.
    pub waits: Option<String>,
    /// When it was last published; none if it is not served.
    pub published: Option<UnixSeconds>,
}

impl InstanceReport {
    /// Describes an instance that is as `instance` says, was configured as `configured` says, and has this life.
    #[must_use]
    pub fn of(
        whereabouts: Whereabouts<'_>,
        instance: &Instance,
        configured: &Instance,
        life: &Life,
    ) -> Self {
        let text = |text: &str| text.to_owned();
        let primary = &instance.primary;
        let is_running = life.state() == State::Running;
        let published = whereabouts.published.filter(|_| is_running);
        Self {
            name: text(whereabouts.name),
            instance_id: instance.id.to_string(),
            owner: text(whereabouts.owner),
            port: text(whereabouts.port),
            waits: whereabouts.waits,
            state: text(life.state().as_str()),
            instance_type: text(&instance.instance_type),
            life_cycle: text(instance.details().life_cycle.as_str()),
            launched: instance.pending_time.iso().to_string(),
            published: published.map(|at| at.iso().to_string()),
            private_ipv4: primary.private_ipv4().map(|address| address.to_string()),
            public_ipv4: primary
                .public_ipv4s()
                .next()
                .map(|address| address.to_string()),
            security_groups: primary
                .security_groups
                .iter()
                .map(|group| text(&group.name))
                .collect(),
            tags: instance
                .tags
                .iter()
                .map(|tag| (text(&tag.key), text(&tag.value)))
                .collect(),
            role: instance.role.as_ref().map(|role| text(&role.name)),
            metadata_options: Some(OptionsReport::of(&configured.options, "applied")),
            user_data: UserDataReport::of(instance, configured),
            notices: Notices::of(instance.details()),
            planned: planned(life),
            has_machine: false,
        }
    }
}

impl InstanceReport {
    /// Describes an instance that nobody is served of: one without a port, or that is gone.
    #[must_use]
    pub fn of_record(record: &InstanceRecord, life: &Life) -> Self {
        let port = record.port.as_ref().map(ToString::to_string);
        let whereabouts = Whereabouts {
            name: &record.name,
            owner: record.owner.as_str(),
            port: port.as_deref().unwrap_or_default(),
            waits: None,
            published: None,
        };
        let instance = life.over(&record.spec);
        Self::of(whereabouts, &instance, &record.spec, life).with_record(record, life)
    }

    /// The same, with what the record knows that the guest's metadata does not say: EC2's state, and how far its options
    /// are in force.
    #[must_use]
    pub fn with_record(mut self, record: &InstanceRecord, life: &Life) -> Self {
        record.state(life).as_str().clone_into(&mut self.state);
        record.owner.as_str().clone_into(&mut self.owner);
        let options = OptionsReport::of(&record.spec.options, record.options.state());
        self.metadata_options = Some(options);
        self
    }
}

impl UserDataReport {
    fn of(instance: &Instance, configured: &Instance) -> Self {
        let bytes = |of: &Instance| of.user_data.as_ref().map(|data| data.bytes().len());
        Self {
            bytes: bytes(instance),
            is_pending: instance.user_data != configured.user_data,
            configured_bytes: bytes(configured),
        }
    }
}

impl Notices {
    fn of(details: &Details) -> Self {
        Self {
            spot_interruption: details.spot_interruption.map(|interruption| SpotReport {
                action: interruption.action.as_str().to_owned(),
                time: interruption.time.iso().to_string(),
            }),
            rebalance: details.rebalance_notice.map(|time| time.iso().to_string()),
            maintenance: details
                .maintenance_events
                .iter()
                .map(MaintenanceReport::of)
                .collect(),
            target_lifecycle_state: details
                .target_lifecycle_state
                .map(|state| state.as_str().to_owned()),
            hibernation_configured: details.hibernation_configured,
        }
    }
}

impl MaintenanceReport {
    fn of(event: &MaintenanceEvent) -> Self {
        Self {
            event_id: event.event_id.to_string(),
            code: event.code.as_str().to_owned(),
            state: event.state.as_str().to_owned(),
            description: event.description.to_string(),
            not_before: event.not_before.iso().to_string(),
            not_after: event.not_after.iso().to_string(),
            not_before_deadline: event
                .not_before_deadline
                .map(|deadline| deadline.iso().to_string()),
        }
    }
}

fn planned(life: &Life) -> Vec<PlannedReport> {
    let mut planned: Vec<_> = life.planned.iter().collect();
    planned.sort_by_key(|planned| planned.at);
    planned
        .into_iter()
        .map(|planned| PlannedReport {
            at: moment(planned.at),
            change: planned.change.to_string(),
        })
        .collect()
}

/// A moment to the millisecond, as [`Done`] has it.
#[must_use]
pub fn moment(at: UnixMillis) -> String {
    at.iso().to_string()
}
