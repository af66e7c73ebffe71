//! Records as people know them: in the words of the configuration file, as a tree whose leaves are values of TOML and JSON.
//! The history tells changes in these words, and `imds export` writes them. Pure.
//!
//! What may be a secret is marked, and shown only to who asks for it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Map, Value};

use super::record::{
    AccessKey, AccountDefaults, Attributes, InstanceRecord, KeyPair, Launch, Machine, Record,
    StateReason, Transition,
};
use crate::config::PortBy;
use crate::credentials::CredentialSource;
use crate::discovery::admitted::Admission;
use crate::instance::credentials::{Role, RoleCredentials};
use crate::instance::details::{Details, ManagedSshKeys};
use crate::instance::{
    Instance, Limits, MetadataOptions, NetworkInterface, PublicKey, Subnet, Switch, Tag, TokenUse,
    UserData,
};
use crate::launch::plan::Image;
use crate::life::Life;

/// A table: names, and what they have. It never holds what says nothing: empty lists, tables and texts of nobody.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tree(pub BTreeMap<String, Node>);

/// What a name has.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// A text, number or truth value, or a list of such.
    Value(Value),
    /// One that may be a secret, and what is shown in its place.
    Secret {
        /// The secret.
        value: Value,
        /// What anybody may see.
        shown: String,
        /// How secret it is.
        secrecy: Secrecy,
    },
    /// A table.
    Table(Tree),
    /// Tables in an order.
    List(Vec<Tree>),
}

/// How secret something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrecy {
    /// People may have put a secret there: user data, arguments of commands. Who may see the configuration may see it.
    Private,
    /// It is one: the secret half of credentials.
    Credential,
}

/// What stands for a secret.
const HIDDEN: &str = "(secret)";

impl Record {
    /// It in people's words.
    #[must_use]
    pub fn shown(&self) -> Tree {
        match self {
            Self::Instance(instance) => of_instance(instance),
            Self::Life(_, life) => of_life(life),
            Self::Admission(admission) => of_admission(admission),
            Self::Defaults(defaults) => of_defaults(defaults),
            Self::AccessKey(key) => of_access_key(key),
            Self::KeyPair(pair) => of_key_pair(pair),
            Self::Rest(rest) => of_written(&rest.0),
        }
    }
}

impl Tree {
    fn value(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), Node::Value(value.into()));
    }

    fn text(&mut self, name: &str, text: impl ToString) {
        self.value(name, text.to_string());
    }

    fn some_text(&mut self, name: &str, text: Option<impl ToString>) {
        if let Some(text) = text {
            self.text(name, text);
        }
    }

    fn texts<T: ToString>(&mut self, name: &str, texts: impl IntoIterator<Item = T>) {
        let texts: Vec<Value> = texts
            .into_iter()
            .map(|text| text.to_string().into())
            .collect();
        if !texts.is_empty() {
            self.value(name, texts);
        }
    }

    fn private(&mut self, name: &str, value: impl Into<Value>, shown: &str) {
        let node = Node::Secret {
            value: value.into(),
            shown: shown.to_owned(),
            secrecy: Secrecy::Private,
        };
        self.0.insert(name.to_owned(), node);
    }

    fn credential(&mut self, name: &str, value: impl Into<Value>) {
        let node = Node::Secret {
            value: value.into(),
            shown: HIDDEN.to_owned(),
            secrecy: Secrecy::Credential,
        };
        self.0.insert(name.to_owned(), node);
    }

    fn table(&mut self, name: &str, table: Self) {
        if !table.0.is_empty() {
            self.0.insert(name.to_owned(), Node::Table(table));
        }
    }

    fn list(&mut self, name: &str, tables: Vec<Self>) {
        if !tables.is_empty() {
            self.0.insert(name.to_owned(), Node::List(tables));
        }
    }

    /// A value in the words that it is kept in.
    fn serialized(&mut self, name: &str, value: &impl Serialize) {
        // Nothing that is kept refuses to be written down.
        if let Ok(value) = serde_json::to_value(value) {
            self.value(name, value);
        }
    }
}

fn of_instance(record: &InstanceRecord) -> Tree {
    let mut tree = Tree::default();
    tree.text("name", &record.name);
    tree.text("owner", record.owner.as_str());
    if let Some(port) = &record.port {
        of_port(&mut tree, port);
    }
    if record.limits != Limits::DEFAULT {
        tree.table("limits", of_limits(record.limits));
    }
    of_spec(&mut tree, &record.spec);
    if let Some(role) = &record.spec.role {
        tree.table("role", of_role(role, record));
    }
    tree.some_text("transition", record.transition.as_ref().map(transition));
    tree.table("launch", of_launch(&record.launch));
    tree.some_text("key-name", record.key_name.as_ref());
    tree.some_text("profile-association", record.profile_association);
    tree.table("attributes", of_attributes(&record.attributes));
    if let Some(machine) = &record.machine {
        tree.table("machine", of_machine(machine));
    }
    tree.some_text(
        "state-reason",
        record.state_reason.map(StateReason::message),
    );
    tree
}

fn of_machine(machine: &Machine) -> Tree {
    let mut tree = Tree::default();
    match &machine.image {
        Image::Host => tree.text("image", "host"),
        Image::Docker(image) => tree.text("docker-image", image),
    }
    if machine.reboot {
        tree.value("reboot", true);
    }
    tree
}

fn of_port(tree: &mut Tree, port: &PortBy) {
    match port {
        PortBy::Name(name) => tree.text("port", name),
        PortBy::Mac(mac) => tree.text("port-mac", mac),
        PortBy::Netns(name) => tree.text("netns", name.as_str()),
        PortBy::Index(index) => tree.value("interface-index", *index),
    }
}

/// What the guest sees, but for the role.
fn of_spec(tree: &mut Tree, spec: &Instance) {
    let Instance {
        id,
        image_id,
        instance_type,
        reservation_id,
        launch_index,
        pending_time,
        options,
        primary,
        secondary,
        public_keys,
        role: _,
        tags,
        user_data,
        details: _,
    } = spec;
    tree.text("id", id);
    tree.text("image-id", image_id);
    tree.text("type", instance_type);
    tree.text("reservation-id", reservation_id);
    tree.value("launch-index", *launch_index);
    tree.text("launch-time", pending_time.iso());
    tree.table("metadata-options", of_options(options));
    of_interface(tree, "interface-id", primary);
    let secondary = secondary.iter().map(|interface| {
        let mut tree = Tree::default();
        of_interface(&mut tree, "id", interface);
        tree.value("device-number", interface.device_number);
        tree.value("network-card", interface.network_card);
        tree.some_text("owner-id", interface.owner_id);
        tree
    });
    tree.list("network-interface", secondary.collect());
    tree.list(
        "public-key",
        public_keys.iter().map(of_public_key).collect(),
    );
    tree.table("tags", of_tags(tags));
    if let Some(user_data) = user_data {
        of_user_data(tree, user_data);
    }
    of_details(tree, spec.details());
}

fn of_limits(limits: Limits) -> Tree {
    let mut tree = Tree::default();
    tree.value("packets-per-second", limits.packets_per_second);
    tree.value("requests-per-second", limits.requests_per_second);
    tree.value("connections", limits.connections);
    tree
}

fn of_options(options: &MetadataOptions) -> Tree {
    let MetadataOptions {
        http_tokens,
        http_endpoint,
        http_put_response_hop_limit,
        http_protocol_ipv6,
        instance_metadata_tags,
    } = options;
    let mut tree = Tree::default();
    tree.text("http-tokens", token_use(*http_tokens));
    tree.text("http-endpoint", switch(*http_endpoint));
    let hop_limit = http_put_response_hop_limit.get();
    tree.value("http-put-response-hop-limit", hop_limit);
    tree.text("http-protocol-ipv6", switch(*http_protocol_ipv6));
    tree.text("instance-metadata-tags", switch(*instance_metadata_tags));
    tree
}

fn token_use(token_use: TokenUse) -> &'static str {
    token_use.as_str()
}

fn switch(switch: Switch) -> &'static str {
    switch.as_str()
}

fn of_interface(tree: &mut Tree, id_name: &str, interface: &NetworkInterface) {
    tree.text(id_name, interface.id);
    tree.text("mac", interface.mac);
    of_private_ipv4s(tree, interface);
    tree.texts("ipv6s", &interface.ipv6s);
    tree.texts("ipv4-prefixes", &interface.ipv4_prefixes);
    tree.texts("ipv6-prefixes", &interface.ipv6_prefixes);
    let groups = &interface.security_groups;
    // No groups at all is something else than none spoken of.
    let names: Vec<Value> = groups
        .iter()
        .map(|group| group.name.to_string().into())
        .collect();
    let ids: Vec<Value> = groups
        .iter()
        .map(|group| group.id.to_string().into())
        .collect();
    tree.value("security-groups", names);
    tree.value("security-group-ids", ids);
    tree.table("subnet", of_subnet(&interface.subnet));
}

fn of_private_ipv4s(tree: &mut Tree, interface: &NetworkInterface) {
    let mut addresses = interface.private_ipv4s.iter();
    let primary = addresses.next();
    tree.some_text("private-ipv4", primary.map(|primary| primary.address));
    tree.some_text("public-ipv4", primary.and_then(|primary| primary.public));
    let rest: Vec<_> = addresses.collect();
    tree.texts(
        "secondary-private-ipv4s",
        rest.iter().map(|other| other.address),
    );
    let mut associations = Tree::default();
    for other in rest {
        if let Some(public) = other.public {
            let (public, private): (Ipv4Addr, Ipv4Addr) = (public, other.address);
            associations.text(&public.to_string(), private);
        }
    }
    tree.table("ipv4-associations", associations);
}

fn of_subnet(subnet: &Subnet) -> Tree {
    let mut tree = Tree::default();
    tree.text("id", subnet.id);
    match subnet.ipv4_cidr {
        Some(range) => tree.text("ipv4-cidr", range),
        None => tree.value("ipv6-native", true),
    }
    tree.texts("ipv6-cidrs", &subnet.ipv6_cidrs);
    tree.text("vpc-id", subnet.vpc_id);
    tree.texts("vpc-ipv4-cidrs", &subnet.vpc_ipv4_cidrs);
    tree.texts("vpc-ipv6-cidrs", &subnet.vpc_ipv6_cidrs);
    tree
}

fn of_public_key(key: &PublicKey) -> Tree {
    let mut tree = Tree::default();
    tree.text("name", &key.name);
    tree.text("openssh", &key.openssh);
    tree
}

fn of_tags(tags: &[Tag]) -> Tree {
    let mut tree = Tree::default();
    for tag in tags {
        tree.text(&tag.key, &tag.value);
    }
    tree
}

/// By its length: people put passwords there.
fn of_user_data(tree: &mut Tree, user_data: &UserData) {
    let bytes = user_data.bytes();
    let shown = format!("({} bytes)", bytes.len());
    tree.private("user-data-base64", STANDARD.encode(bytes), &shown);
}

fn of_details(tree: &mut Tree, details: &Details) {
    let Details {
        account_id,
        zone,
        hostname,
        architecture,
        system,
        profile,
        life_cycle,
        instance_action,
        manifest_path,
        ancestor_ami_ids,
        kernel_id,
        ramdisk_id,
        product_codes,
        billing_products,
        block_devices,
        monitoring,
        hibernation_configured,
        target_lifecycle_state,
        placement_group,
        partition_number,
        dedicated_host_id,
        // These are never configured: they happen to an instance (`Life`).
        maintenance_events: _,
        rebalance_notice: _,
        spot_interruption: _,
        managed_ssh_keys,
    } = details;
    tree.some_text("account-id", *account_id);
    tree.some_text("availability-zone", zone.as_ref().map(|zone| zone.name()));
    tree.some_text("availability-zone-id", zone.as_ref().map(|zone| zone.id()));
    tree.some_text("hostname", hostname.as_ref());
    tree.some_text("architecture", architecture.map(|value| value.as_str()));
    tree.some_text("system", system.map(|value| value.as_str()));
    tree.some_text("profile", profile.as_ref());
    tree.text("life-cycle", life_cycle.as_str());
    tree.text("instance-action", instance_action.as_str());
    tree.some_text("manifest-path", manifest_path.as_ref());
    tree.texts("ancestor-ami-ids", ancestor_ami_ids);
    tree.some_text("kernel-id", *kernel_id);
    tree.some_text("ramdisk-id", *ramdisk_id);
    tree.texts("product-codes", product_codes);
    tree.texts("billing-products", billing_products);
    let mut devices = Tree::default();
    for device in block_devices {
        devices.text(&device.virtual_name, &device.device);
    }
    tree.table("block-device-mapping", devices);
    tree.some_text("monitoring", monitoring.map(switch));
    if let Some(is_configured) = hibernation_configured {
        tree.value("hibernation-configured", *is_configured);
    }
    tree.some_text(
        "target-lifecycle-state",
        target_lifecycle_state.map(|state| state.as_str()),
    );
    tree.some_text("placement-group", placement_group.as_ref());
    if let Some(number) = partition_number {
        tree.value("partition-number", *number);
    }
    tree.some_text("dedicated-host-id", *dedicated_host_id);
    if let Some(keys) = managed_ssh_keys {
        tree.table("managed-ssh-keys", of_managed_ssh_keys(keys));
    }
}

fn of_managed_ssh_keys(keys: &ManagedSshKeys) -> Tree {
    let mut tree = Tree::default();
    let active = keys.active_keys.iter().map(|keys| {
        let mut tree = Tree::default();
        tree.text("os-user", &keys.os_user);
        tree.text("blob", &keys.blob);
        tree.text("expiration", keys.expiration.iso());
        tree
    });
    tree.list("active-keys", active.collect());
    tree.some_text("signer-cert", keys.signer_cert.as_ref());
    let mut staples = Tree::default();
    for (name, staple) in &keys.signer_ocsp {
        staples.text(name, staple);
    }
    tree.table("signer-ocsp", staples);
    tree
}

fn of_role(role: &Role, record: &InstanceRecord) -> Tree {
    let mut tree = Tree::default();
    tree.text("name", &role.name);
    tree.text("instance-profile", &role.profile.name);
    tree.text("instance-profile-id", &role.profile.id);
    match (&record.credential_source, &role.credentials) {
        (Some(source), _) => of_source(&mut tree, source),
        (None, RoleCredentials::Given(credentials)) => {
            tree.text("access-key-id", &credentials.access_key_id);
            tree.credential("secret-access-key", credentials.secret_access_key.expose());
            tree.credential("token", credentials.token.expose());
            let validity = credentials.validity.as_ref();
            tree.some_text(
                "expiration",
                validity.map(|validity| validity.expiration.iso()),
            );
        }
        (None, RoleCredentials::Generated | RoleCredentials::Unavailable(_)) => {}
    }
    tree
}

fn of_source(tree: &mut Tree, source: &CredentialSource) {
    match source {
        CredentialSource::Process(process) => {
            let words = std::iter::once(&process.program).chain(&process.arguments);
            let words: Vec<Value> = words.map(|word| word.to_string().into()).collect();
            // Arguments may be secret.
            let shown = match process.arguments.len() {
                0 => process.program.to_string(),
                n => format!("{} ({n} arguments)", process.program),
            };
            tree.private("credential-process", words, &shown);
            tree.texts("credential-process-environment", &process.environment);
        }
        CredentialSource::AssumeRole(role) => {
            tree.text("assume-role-arn", &role.role_arn);
            tree.text("session-name", &role.session_name);
            tree.some_text("external-id", role.external_id.as_ref());
            tree.value("session-duration-seconds", role.duration_seconds);
            tree.some_text("endpoint-url", role.endpoint_url.as_ref());
        }
    }
}

fn transition(transition: &Transition) -> &'static str {
    match transition {
        Transition::Pending => "pending",
        Transition::Stopping => "stopping",
        Transition::ShuttingDown => "shutting-down",
        Transition::Terminated { .. } => "terminated",
    }
}

fn of_launch(launch: &Launch) -> Tree {
    let mut tree = Tree::default();
    tree.some_text("client-token", launch.client_token.as_ref());
    tree.some_text("parameters", launch.parameters);
    tree
}

fn of_attributes(attributes: &Attributes) -> Tree {
    let usual = Attributes::default();
    let mut tree = Tree::default();
    let mut flag = |name, value: bool, usual| {
        if value != usual {
            tree.value(name, value);
        }
    };
    flag(
        "disable-api-termination",
        attributes.disable_api_termination,
        usual.disable_api_termination,
    );
    flag(
        "disable-api-stop",
        attributes.disable_api_stop,
        usual.disable_api_stop,
    );
    flag(
        "source-dest-check",
        attributes.source_dest_check,
        usual.source_dest_check,
    );
    flag(
        "ebs-optimized",
        attributes.ebs_optimized,
        usual.ebs_optimized,
    );
    let behavior = &attributes.instance_initiated_shutdown_behavior;
    if *behavior != usual.instance_initiated_shutdown_behavior {
        tree.serialized("instance-initiated-shutdown-behavior", behavior);
    }
    if let Some(credits) = &attributes.cpu_credits {
        tree.serialized("cpu-credits", credits);
    }
    tree
}

/// As it is kept, but for the user data.
fn of_life(life: &Life) -> Tree {
    let mut tree = Tree::default();
    if let Some(at) = life.stopped {
        tree.text("stopped", at.iso());
    }
    if let Some(at) = life.started {
        tree.text("started", at.iso());
    }
    if let Some(runs_with) = &life.runs_with {
        let mut held = Tree::default();
        match &runs_with.user_data {
            Some(user_data) => of_user_data(&mut held, user_data),
            None => held.text("user-data-base64", "(none)"),
        }
        tree.table("runs-with", held);
    }
    if let Some(interruption) = &life.spot_interruption {
        tree.text(
            "spot-interruption",
            format_args!(
                "{} at {}",
                interruption.action.as_str(),
                interruption.time.iso()
            ),
        );
    }
    tree.some_text(
        "rebalance-notice",
        life.rebalance_notice.map(|at| at.iso().to_string()),
    );
    let events = life.maintenance_events.iter();
    let event = |event: &crate::instance::details::MaintenanceEvent| {
        format!(
            "{} {} {}",
            event.event_id,
            event.code.as_str(),
            event.state.as_str()
        )
    };
    tree.texts("maintenance-events", events.map(event));
    tree.some_text(
        "target-lifecycle-state",
        life.target_lifecycle_state.map(|state| state.as_str()),
    );
    if let Some(is_configured) = life.hibernation_configured {
        tree.value("hibernation-configured", is_configured);
    }
    let planned = life.planned.iter();
    tree.texts(
        "planned",
        planned.map(|planned| format!("{} {}", planned.at.iso(), planned.change)),
    );
    tree
}

/// Keys whose values may be secret are shown by name alone.
fn of_admission(admission: &Admission) -> Tree {
    let mut tree = Tree::default();
    tree.text("port", &admission.port);
    tree.value("by-name", admission.to.is_none());
    tree.some_text("name", admission.name.as_ref());
    let mut keys = Tree::default();
    for (key, value) in &admission.keys {
        if key.starts_with("user-data") {
            keys.private(key, value.as_str(), &format!("({} bytes)", value.len()));
        } else {
            keys.text(key, value);
        }
    }
    tree.table("keys", keys);
    tree
}

fn of_defaults(defaults: &AccountDefaults) -> Tree {
    let AccountDefaults {
        http_tokens,
        http_put_response_hop_limit,
        http_endpoint,
        instance_metadata_tags,
        http_tokens_enforced,
    } = defaults;
    let mut tree = Tree::default();
    tree.some_text("http-tokens", http_tokens.map(token_use));
    if let Some(limit) = http_put_response_hop_limit {
        tree.value("http-put-response-hop-limit", limit.get());
    }
    tree.some_text("http-endpoint", http_endpoint.map(switch));
    tree.some_text("instance-metadata-tags", instance_metadata_tags.map(switch));
    tree.some_text("http-tokens-enforced", http_tokens_enforced.map(switch));
    tree
}

fn of_access_key(key: &AccessKey) -> Tree {
    let AccessKey {
        id,
        secret,
        role,
        created,
    } = key;
    let mut tree = Tree::default();
    tree.text("id", id);
    tree.credential("secret", secret.expose());
    tree.serialized("role", role);
    tree.text("created", created.iso());
    tree
}

fn of_key_pair(pair: &KeyPair) -> Tree {
    let KeyPair {
        name,
        id,
        openssh,
        fingerprint,
        created,
        tags,
    } = pair;
    let mut tree = Tree::default();
    tree.text("name", name);
    tree.text("id", id);
    tree.text("openssh", openssh);
    tree.text("fingerprint", fingerprint);
    tree.text("created", created.iso());
    tree.table("tags", of_tags(tags));
    tree
}

/// Tables as they are written in a file.
fn of_written(tables: &Map<String, Value>) -> Tree {
    let mut tree = Tree::default();
    for (name, value) in tables {
        match value {
            Value::Object(table) => tree.table(name, of_written(table)),
            Value::Array(list) if !list.is_empty() && list.iter().all(Value::is_object) => {
                let tables = list.iter().filter_map(Value::as_object);
                tree.list(name, tables.map(of_written).collect());
            }
            value => of_written_value(&mut tree, name, value),
        }
    }
    tree
}

fn of_written_value(tree: &mut Tree, name: &str, value: &Value) {
    match name {
        "secret-access-key" | "token" => tree.credential(name, value.clone()),
        "user-data" | "user-data-base64" | "credential-process" => {
            tree.private(name, value.clone(), "(not shown)");
        }
        _ => tree.value(name, value.clone()),
    }
}
