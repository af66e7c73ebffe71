//! From what was typed to what is true: checked, completed, and the same every time.

mod role;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU8;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use toml::Spanned;

use super::file::{
    FileConfig, HostEntry, InstanceEntry, LimitsEntry, MetadataOptionsEntry, NetworkInterfaceEntry,
    PublicKeyEntry, RoleEntry, SubnetEntry, Text,
};
use super::made_up::{MadeUp, MadeUpInterface};
use super::nearest::nearest;
use super::{Files, Guard, Guest, Installation, PortName, Problem, Settings};
use crate::instance::credentials::{InstanceProfile, Role};
use crate::instance::details::{
    Architecture, BlockDevice, Details, InstanceAction, LifeCycle, System, TargetLifecycleState,
};
use crate::instance::network::{Ipv4Cidr, NetworkInterface, PrivateIpv4, SecurityGroup, Subnet};
use crate::instance::options::{HOP_LIMIT_MAX, MetadataOptions, Switch, TokenUse};
use crate::instance::{
    Host, Instance, InstanceId, Limits, PublicKey, Tag, USER_DATA_BYTES_MAX, UnixSeconds, UserData,
    Zone,
};

/// As many as there are slots.
const INSTANCES_MAX: usize = 1 << 16;
/// Tags of an instance, not counting `aws:` ones (EC2 User Guide, "Tag restrictions").
const TAGS_MAX: usize = 50;
/// Characters of a tag's key.
const TAG_KEY_MAX: usize = 128;
/// Characters of a tag's value.
const TAG_VALUE_MAX: usize = 256;
/// Where instances are if nothing is said.
const DEFAULT_REGION: &str = "us-east-1";
/// What instances are if nothing is said.
const DEFAULT_TYPE: &str = "t3.micro";
/// Longest name that commands have to deal with, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// Checks what was typed and completes it. Paths are relative to `directory`.
///
/// # Errors
/// The first thing that is wrong.
pub fn resolve(
    file: &FileConfig,
    installation: &Installation,
    directory: &Path,
    files: &dyn Files,
) -> Result<Settings, Problem> {
    if let Some(one_too_many) = file.instance.get(INSTANCES_MAX) {
        return Err(problem(
            one_too_many,
            format!("more than {INSTANCES_MAX} instances"),
        ));
    }
    let made_up = MadeUp::of(installation);
    let host = host(&file.host, made_up)?;
    let mut resolver = Resolver {
        made_up,
        created: installation.created,
        dns_hostnames: file.host.dns_hostnames.unwrap_or(true),
        limits: limits(&file.host.limits, Limits::DEFAULT)?,
        directory,
        files,
        zone: &host.zone,
        subnets: HashMap::new(),
        security_groups: HashMap::new(),
    };
    let guests = file
        .instance
        .iter()
        .map(|entry| resolver.guest(entry))
        .collect::<Result<Vec<_>, _>>()?;
    refuse_duplicates(&file.instance, &guests)?;
    let guard = guard(&file.host, &guests)?;
    Ok(Settings {
        host,
        guard,
        guests,
    })
}

/// Where the guard is. An uplink is no port: what comes in there is no guest's.
fn guard(entry: &HostEntry, guests: &[Guest]) -> Result<Guard, Problem> {
    let Some(uplinks) = &entry.uplinks else {
        return Ok(match entry.guard {
            Some(false) => Guard::Off,
            Some(true) | None => Guard::Found,
        });
    };
    if entry.guard == Some(false) {
        return Err(problem(
            uplinks,
            "the guard is off, so no uplink has one: remove `uplinks`, or `guard = false`",
        ));
    }
    if uplinks.get_ref().is_empty() {
        return Err(problem(
            uplinks,
            "no uplink is named: leave it out to have them found, or write `guard = false` if there shall be no guard",
        ));
    }
    let named = uplinks.get_ref().iter().map(|text| {
        let name: PortName = parsed(text)?;
        match guests.iter().find(|guest| guest.port == name) {
            Some(guest) => Err(problem(
                text,
                format!(
                    "{name} is the port of instance {}, and an uplink is no port",
                    guest.name
                ),
            )),
            None => Ok(name),
        }
    });
    Ok(Guard::Named(named.collect::<Result<_, _>>()?))
}

fn host(entry: &HostEntry, made_up: MadeUp<'_>) -> Result<Host, Problem> {
    let zone = match (&entry.region, &entry.availability_zone) {
        (Some(region), Some(name)) => {
            // Which of the two is wrong is said by checking the region alone first.
            Zone::first_of(region.get_ref()).map_err(|error| problem(region, error))?;
            Zone::in_region(region.get_ref(), name.get_ref())
                .map_err(|error| problem(name, error))?
        }
        (Some(region), None) => {
            Zone::first_of(region.get_ref()).map_err(|error| problem(region, error))?
        }
        (None, Some(name)) => {
            Zone::from_name(name.get_ref()).map_err(|error| problem(name, error))?
        }
        (None, None) => Zone::first_of(DEFAULT_REGION).expect("the default is a region"),
    };
    let zone = match &entry.availability_zone_id {
        Some(id) => zone.with_id(line(id)?),
        None => zone,
    };
    Ok(Host {
        zone,
        account_id: parsed_or(&entry.account_id, || made_up.account_id())?,
        domain_name: optional_line(&entry.domain_name)?,
        credential_seed: made_up.credential_seed(),
    })
}

/// What is the same for every instance, and what they share.
struct Resolver<'a> {
    made_up: MadeUp<'a>,
    created: UnixSeconds,
    dns_hostnames: bool,
    limits: Limits,
    directory: &'a Path,
    files: &'a dyn Files,
    zone: &'a Zone,
    subnets: HashMap<Subnet, Arc<Subnet>>,
    security_groups: HashMap<Vec<SecurityGroup>, Arc<[SecurityGroup]>>,
}

impl Resolver<'_> {
    fn guest(&mut self, spanned: &Spanned<InstanceEntry>) -> Result<Guest, Problem> {
        let entry = spanned.get_ref();
        let Some(port) = &entry.port else {
            let message = "this instance has no port: write `port = \"…\"`, the interface of the host by which its packets come in";
            return Err(problem(spanned, message));
        };
        let port_name: PortName = parsed(port)?;
        let name = match &entry.name {
            Some(name) => guest_name(name)?.into(),
            None => port_name.as_str().into(),
        };
        let limits = limits(&entry.limits, self.limits)?;
        let instance = self.instance(entry, &port_name)?;
        let credential_source = match &entry.role {
            Some(role) => self.credential_source(role, &instance)?,
            None => None,
        };
        Ok(Guest {
            name,
            port: port_name,
            limits,
            credential_source,
            instance,
        })
    }

    fn instance(&mut self, entry: &InstanceEntry, port: &PortName) -> Result<Instance, Problem> {
        let details = details(entry)?;
        let zone = details.zone.clone().unwrap_or_else(|| self.zone.clone());
        let options = metadata_options(&entry.metadata_options)?;
        let primary = self.primary_interface(entry, port, &zone)?;
        let secondary = entry.network_interface.iter().enumerate();
        let secondary: Box<[_]> = secondary
            .map(|(index, other)| self.secondary_interface(other.get_ref(), port, index + 1, &zone))
            .collect::<Result<_, _>>()?;
        Ok(Instance {
            id: parsed_or(&entry.id, || self.made_up.instance_id(port))?,
            image_id: parsed_or(&entry.image_id, || self.made_up.image_id())?,
            instance_type: optional_line(&entry.r#type)?.unwrap_or_else(|| DEFAULT_TYPE.into()),
            reservation_id: parsed_or(&entry.reservation_id, || self.made_up.reservation_id(port))?,
            launch_index: entry.launch_index.unwrap_or(0),
            pending_time: entry
                .launch_time
                .as_ref()
                .map(time)
                .transpose()?
                .unwrap_or(self.created),
            options,
            primary,
            secondary,
            public_keys: entry
                .public_key
                .iter()
                .map(public_key)
                .collect::<Result<_, _>>()?,
            role: entry
                .role
                .as_ref()
                .map(|role| self.role(role))
                .transpose()?
                .map(Box::new),
            tags: tags(&entry.tags, options.instance_metadata_tags)?,
            user_data: self.user_data(entry)?,
            details: (details != Details::NONE).then(|| Box::new(details)),
        })
    }

    fn primary_interface(
        &mut self,
        entry: &InstanceEntry,
        port: &PortName,
        zone: &Zone,
    ) -> Result<NetworkInterface, Problem> {
        let facts = InterfaceFacts {
            id: &entry.interface_id,
            mac: &entry.mac,
            private_ipv4: &entry.private_ipv4,
            secondary_private_ipv4s: &entry.secondary_private_ipv4s,
            public_ipv4: &entry.public_ipv4,
            ipv6s: &entry.ipv6s,
            security_groups: &entry.security_groups,
            subnet: &entry.subnet,
        };
        self.interface(&facts, &self.made_up.interface(port, 0), zone)
    }

    fn secondary_interface(
        &mut self,
        entry: &NetworkInterfaceEntry,
        port: &PortName,
        number: usize,
        zone: &Zone,
    ) -> Result<NetworkInterface, Problem> {
        let facts = InterfaceFacts {
            id: &entry.id,
            mac: &entry.mac,
            private_ipv4: &entry.private_ipv4,
            secondary_private_ipv4s: &entry.secondary_private_ipv4s,
            public_ipv4: &entry.public_ipv4,
            ipv6s: &entry.ipv6s,
            security_groups: &entry.security_groups,
            subnet: &entry.subnet,
        };
        let interface = self.interface(&facts, &self.made_up.interface(port, number), zone)?;
        let next_number = u8::try_from(number).unwrap_or(u8::MAX);
        Ok(NetworkInterface {
            device_number: entry.device_number.unwrap_or(next_number),
            network_card: entry.network_card.unwrap_or(0),
            owner_id: entry.owner_id.as_ref().map(parsed).transpose()?,
            ipv4_prefixes: all_parsed(&entry.ipv4_prefixes)?,
            ipv6_prefixes: all_parsed(&entry.ipv6_prefixes)?,
            ..interface
        })
    }

    fn interface(
        &mut self,
        facts: &InterfaceFacts<'_>,
        made_up: &MadeUpInterface,
        zone: &Zone,
    ) -> Result<NetworkInterface, Problem> {
        let given = facts.private_ipv4.as_ref().map(ipv4).transpose()?;
        let subnet = self.subnet(facts.subnet, given, zone)?;
        let address = given.or_else(|| subnet.ipv4_cidr.map(|range| made_up.address_in(range)));
        let public = facts.public_ipv4.as_ref().map(ipv4).transpose()?;
        let others = facts.secondary_private_ipv4s.iter().map(|other| {
            Ok(PrivateIpv4 {
                address: ipv4(other)?,
                public: None,
            })
        });
        let private_ipv4s = address
            .map(|address| Ok(PrivateIpv4 { address, public }))
            .into_iter()
            .chain(others);
        Ok(NetworkInterface {
            id: parsed_or(facts.id, || made_up.id())?,
            mac: facts
                .mac
                .as_ref()
                .map(mac)
                .transpose()?
                .unwrap_or_else(|| made_up.mac()),
            device_number: 0,
            network_card: 0,
            owner_id: None,
            private_ipv4s: private_ipv4s.collect::<Result<_, _>>()?,
            ipv6s: facts.ipv6s.iter().map(ipv6).collect::<Result<_, _>>()?,
            ipv4_prefixes: Box::default(),
            ipv6_prefixes: Box::default(),
            security_groups: self.security_groups(facts.security_groups.as_deref(), &subnet)?,
            subnet,
        })
    }

    /// The subnet of an interface: what is said of it, and for the rest the default one of the zone, or one around the
    /// interface's address if that lies elsewhere.
    fn subnet(
        &mut self,
        entry: &SubnetEntry,
        address: Option<Ipv4Addr>,
        zone: &Zone,
    ) -> Result<Arc<Subnet>, Problem> {
        let default = self.made_up.default_subnet(zone, self.dns_hostnames);
        let mut subnet = match address {
            Some(address)
                if !default
                    .ipv4_cidr
                    .is_some_and(|range| range.contains(address)) =>
            {
                self.made_up.subnet_around(address, self.dns_hostnames)
            }
            _ => default,
        };
        if let Some(text) = &entry.ipv4_cidr {
            let range: Ipv4Cidr = parsed(text)?;
            if let Some(outside) = address.filter(|address| !range.contains(*address)) {
                return Err(problem(
                    text,
                    format!("`{range}` does not contain the interface's address `{outside}`"),
                ));
            }
            let vpc = Ipv4Cidr::around(range.network(), range.prefix_bits().min(16));
            subnet.ipv4_cidr = Some(range);
            subnet.id = self.made_up.subnet_id(&range.to_string());
            subnet.vpc_ipv4_cidrs = Box::new([vpc]);
            subnet.vpc_id = self.made_up.vpc_id(&vpc.to_string());
        }
        if !entry.vpc_ipv4_cidrs.is_empty() {
            subnet.vpc_ipv4_cidrs = all_parsed(&entry.vpc_ipv4_cidrs)?;
            subnet.vpc_id = self.made_up.vpc_id(&subnet.vpc_ipv4_cidrs[0].to_string());
        }
        subnet.ipv6_cidrs = all_parsed(&entry.ipv6_cidrs)?;
        subnet.vpc_ipv6_cidrs = all_parsed(&entry.vpc_ipv6_cidrs)?;
        subnet.id = parsed_or(&entry.id, || subnet.id)?;
        subnet.vpc_id = parsed_or(&entry.vpc_id, || subnet.vpc_id)?;
        Ok(Arc::clone(
            self.subnets
                .entry(subnet)
                .or_insert_with_key(|subnet| Arc::new(subnet.clone())),
        ))
    }

    fn security_groups(
        &mut self,
        names: Option<&[Text]>,
        subnet: &Subnet,
    ) -> Result<Arc<[SecurityGroup]>, Problem> {
        let group = |name: &str| SecurityGroup {
            id: self.made_up.security_group_id(subnet.vpc_id, name),
            name: name.into(),
        };
        let groups = match names {
            None => vec![group("default")],
            Some(names) => names
                .iter()
                .map(|name| Ok(group(line(name)?)))
                .collect::<Result<_, _>>()?,
        };
        Ok(Arc::clone(
            self.security_groups
                .entry(groups)
                .or_insert_with_key(|groups| groups.clone().into()),
        ))
    }

    fn role(&self, entry: &RoleEntry) -> Result<Role, Problem> {
        let name = path_segment(&entry.name)?;
        let profile = optional_line(&entry.instance_profile)?.unwrap_or_else(|| name.into());
        let id = match &entry.instance_profile_id {
            Some(id) => line(id)?.into(),
            None => self.made_up.instance_profile_id(&profile).into(),
        };
        Ok(Role {
            name: name.into(),
            profile: InstanceProfile { name: profile, id },
            credentials: self.credentials(entry)?,
        })
    }

    fn user_data(&self, entry: &InstanceEntry) -> Result<Option<UserData>, Problem> {
        let (place, bytes) = match (
            &entry.user_data,
            &entry.user_data_file,
            &entry.user_data_base64,
        ) {
            (None, None, None) => return Ok(None),
            (Some(text), None, None) => (text, text.get_ref().clone().into_bytes()),
            (None, Some(path), None) => (path, self.user_data_file(path)?),
            (None, None, Some(text)) => (text, decoded(text)?),
            (Some(text), _, _) | (_, Some(text), _) => {
                return Err(problem(
                    text,
                    "user-data, user-data-file and user-data-base64 exclude each other: keep one",
                ));
            }
        };
        UserData::try_from(Bytes::from(bytes))
            .map(Some)
            .map_err(|error| problem(place, error))
    }

    fn user_data_file(&self, text: &Text) -> Result<Vec<u8>, Problem> {
        let path = self.directory.join(text.get_ref());
        // One byte more than allowed shows that it is too much without reading all of it.
        let bytes = self.files.read(&path, USER_DATA_BYTES_MAX + 1);
        let bytes =
            bytes.map_err(|cause| problem(text, format!("`{}`: {cause}", path.display())))?;
        if bytes.len() > USER_DATA_BYTES_MAX {
            let message = format!(
                "`{}` has more than {USER_DATA_BYTES_MAX} bytes, the most that user data may have",
                path.display()
            );
            return Err(problem(text, message));
        }
        Ok(bytes)
    }
}

/// What the file says of an interface, whichever table it stands in.
struct InterfaceFacts<'a> {
    id: &'a Option<Text>,
    mac: &'a Option<Text>,
    private_ipv4: &'a Option<Text>,
    secondary_private_ipv4s: &'a [Text],
    public_ipv4: &'a Option<Text>,
    ipv6s: &'a [Text],
    security_groups: &'a Option<Vec<Text>>,
    subnet: &'a SubnetEntry,
}

fn metadata_options(entry: &MetadataOptionsEntry) -> Result<MetadataOptions, Problem> {
    let default = MetadataOptions::default();
    let switch = |text: &Option<Text>, default| match text {
        Some(text) => word(
            text,
            &[("disabled", Switch::Disabled), ("enabled", Switch::Enabled)],
        ),
        None => Ok(default),
    };
    Ok(MetadataOptions {
        http_tokens: match &entry.http_tokens {
            Some(text) => word(
                text,
                &[
                    ("optional", TokenUse::Optional),
                    ("required", TokenUse::Required),
                ],
            )?,
            None => default.http_tokens,
        },
        http_endpoint: switch(&entry.http_endpoint, default.http_endpoint)?,
        http_put_response_hop_limit: match &entry.http_put_response_hop_limit {
            Some(limit) => hop_limit(limit)?,
            None => default.http_put_response_hop_limit,
        },
        http_protocol_ipv6: switch(&entry.http_protocol_ipv6, default.http_protocol_ipv6)?,
        instance_metadata_tags: switch(
            &entry.instance_metadata_tags,
            default.instance_metadata_tags,
        )?,
    })
}

/// What was typed, and `otherwise` for what was not.
fn limits(entry: &LimitsEntry, otherwise: Limits) -> Result<Limits, Problem> {
    const RATE_MAX: u32 = 1_000_000;
    let rate = |typed, what, otherwise| bounded(typed, what, 0, RATE_MAX, otherwise);
    let per_second = &entry.packets_per_second;
    Ok(Limits {
        packets_per_second: rate(per_second, "packets a second", otherwise.packets_per_second)?,
        requests_per_second: rate(
            &entry.requests_per_second,
            "requests a second",
            otherwise.requests_per_second,
        )?,
        connections: bounded(
            &entry.connections,
            "connections",
            1,
            Limits::CONNECTIONS_MAX,
            otherwise.connections,
        )?,
    })
}

fn bounded(
    typed: &Option<Spanned<i64>>,
    what: &str,
    min: u32,
    max: u32,
    otherwise: u32,
) -> Result<u32, Problem> {
    let Some(typed) = typed else {
        return Ok(otherwise);
    };
    let number = *typed.get_ref();
    u32::try_from(number)
        .ok()
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| {
            let no_limit = if min == 0 { ", 0 for no limit" } else { "" };
            problem(
                typed,
                format!("{number} is out of range: {what} are {min} to {max}{no_limit}"),
            )
        })
}

fn hop_limit(limit: &Spanned<i64>) -> Result<NonZeroU8, Problem> {
    let number = u8::try_from(*limit.get_ref())
        .ok()
        .filter(|number| *number <= HOP_LIMIT_MAX);
    number.and_then(NonZeroU8::new).ok_or_else(|| {
        problem(
            limit,
            format!(
                "{} is out of range: the hop limit is 1 to {HOP_LIMIT_MAX}",
                limit.get_ref()
            ),
        )
    })
}

fn details(entry: &InstanceEntry) -> Result<Details, Problem> {
    let words = |text: &Option<Text>| {
        text.as_ref()
            .map(|text| line(text).map(Box::from))
            .transpose()
    };
    let codes = |texts: &[Text]| {
        texts
            .iter()
            .map(|text| line(text).map(Box::from))
            .collect::<Result<Vec<_>, _>>()
    };
    Ok(Details {
        account_id: entry.account_id.as_ref().map(parsed).transpose()?,
        zone: entry.availability_zone.as_ref().map(zone).transpose()?,
        hostname: words(&entry.hostname)?,
        architecture: one_of(&entry.architecture, Architecture::ALL, Architecture::as_str)?,
        system: one_of(&entry.system, System::ALL, System::as_str)?,
        profile: words(&entry.profile)?,
        life_cycle: one_of(&entry.life_cycle, LifeCycle::ALL, LifeCycle::as_str)?
            .unwrap_or_default(),
        instance_action: one_of(
            &entry.instance_action,
            InstanceAction::ALL,
            InstanceAction::as_str,
        )?
        .unwrap_or_default(),
        manifest_path: words(&entry.manifest_path)?,
        ancestor_ami_ids: all_parsed(&entry.ancestor_ami_ids)?.into_vec(),
        kernel_id: entry.kernel_id.as_ref().map(parsed).transpose()?,
        ramdisk_id: entry.ramdisk_id.as_ref().map(parsed).transpose()?,
        product_codes: codes(&entry.product_codes)?,
        billing_products: codes(&entry.billing_products)?,
        block_devices: block_devices(&entry.block_device_mapping)?,
        monitoring: entry
            .monitoring
            .as_ref()
            .map(|text| {
                word(
                    text,
                    &[("disabled", Switch::Disabled), ("enabled", Switch::Enabled)],
                )
            })
            .transpose()?,
        hibernation_configured: entry.hibernation_configured,
        target_lifecycle_state: one_of(
            &entry.target_lifecycle_state,
            TargetLifecycleState::ALL,
            TargetLifecycleState::as_str,
        )?,
        placement_group: words(&entry.placement_group)?,
        partition_number: entry.partition_number,
        dedicated_host_id: entry.dedicated_host_id.as_ref().map(parsed).transpose()?,
        ..Details::NONE
    })
}

fn zone(text: &Text) -> Result<Zone, Problem> {
    Zone::from_name(text.get_ref()).map_err(|error| problem(text, error))
}

fn block_devices(entry: &BTreeMap<Text, Text>) -> Result<Vec<BlockDevice>, Problem> {
    let device = |(name, device): (&Text, &Text)| {
        Ok(BlockDevice {
            virtual_name: path_segment(name)?.into(),
            device: line(device)?.into(),
        })
    };
    entry.iter().map(device).collect()
}

/// Tags, sorted by key. Keys must be fit for paths if they are served there.
fn tags(entry: &BTreeMap<Text, Text>, in_metadata: Switch) -> Result<Box<[Tag]>, Problem> {
    let n_own = entry
        .keys()
        .filter(|key| !key.get_ref().starts_with("aws:"))
        .count();
    if n_own > TAGS_MAX {
        let (key, _) = entry.last_key_value().expect("there are more than fifty");
        return Err(problem(
            key,
            format!("{n_own} tags: at most {TAGS_MAX} are allowed"),
        ));
    }
    entry
        .iter()
        .map(|(key, value)| tag(key, value, in_metadata))
        .collect()
}

fn tag(key: &Text, value: &Text, in_metadata: Switch) -> Result<Tag, Problem> {
    let n_characters = key.get_ref().chars().count();
    if n_characters == 0 || n_characters > TAG_KEY_MAX {
        return Err(problem(
            key,
            format!("a tag's key has 1 to {TAG_KEY_MAX} characters"),
        ));
    }
    if value.get_ref().chars().count() > TAG_VALUE_MAX {
        return Err(problem(
            value,
            format!("a tag's value has at most {TAG_VALUE_MAX} characters"),
        ));
    }
    let is_fit = |c: char| c.is_ascii_alphanumeric() || "+-=.,_:@".contains(c);
    let is_reserved = matches!(key.get_ref().as_str(), "." | ".." | "_index");
    if in_metadata.is_enabled() && (is_reserved || !key.get_ref().chars().all(is_fit)) {
        let message = format!(
            "`{}` cannot be served under tags/instance: use letters, digits and + - = . , _ : @ in keys, or \
             disable instance-metadata-tags",
            key.get_ref()
        );
        return Err(problem(key, message));
    }
    Ok(Tag {
        key: key.get_ref().as_str().into(),
        value: value.get_ref().as_str().into(),
    })
}

fn public_key(entry: &PublicKeyEntry) -> Result<PublicKey, Problem> {
    let openssh = line(&entry.openssh)?.trim();
    if openssh.split_ascii_whitespace().count() < 2 {
        return Err(problem(
            &entry.openssh,
            "not a public key of OpenSSH: write a line such as `ssh-ed25519 AAAA… comment`",
        ));
    }
    Ok(PublicKey {
        name: line(&entry.name)?.into(),
        openssh: openssh.into(),
    })
}

fn guest_name(text: &Text) -> Result<&str, Problem> {
    let name = text.get_ref().as_str();
    let is_bad = |c: char| c.is_whitespace() || c.is_control() || c == '/';
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(is_bad) {
        return Err(problem(
            text,
            format!("a name has 1 to {NAME_BYTES_MAX} bytes, no space and no `/`"),
        ));
    }
    Ok(name)
}

/// Names, ports and ids must each be nobody else's.
fn refuse_duplicates(entries: &[Spanned<InstanceEntry>], guests: &[Guest]) -> Result<(), Problem> {
    let mut by_port: HashMap<&PortName, &Guest> = HashMap::with_capacity(guests.len());
    let mut by_name: HashMap<&str, &Guest> = HashMap::with_capacity(guests.len());
    let mut by_id: HashMap<InstanceId, &Guest> = HashMap::with_capacity(guests.len());
    for (spanned, guest) in entries.iter().zip(guests) {
        let entry = spanned.get_ref();
        let at = |text: &Option<Text>| text.as_ref().map_or(spanned.span(), Spanned::span);
        let refuse = |span, message| Err(Problem { span, message });
        if let Some(other) = by_port.insert(&guest.port, guest) {
            let message = format!(
                "port `{}` is taken by instance `{}`: give `{}` another, since a port belongs to one instance",
                guest.port, other.name, guest.name
            );
            return refuse(at(&entry.port), message);
        }
        if let Some(other) = by_name.insert(&guest.name, guest) {
            let place = entry
                .name
                .as_ref()
                .or(entry.port.as_ref())
                .map_or(spanned.span(), Spanned::span);
            return refuse(
                place,
                format!(
                    "the name `{}` is taken by the instance on port `{}`",
                    guest.name, other.port
                ),
            );
        }
        if let Some(other) = by_id.insert(guest.instance.id, guest) {
            return refuse(
                at(&entry.id),
                format!(
                    "id `{}` is taken by instance `{}`",
                    guest.instance.id, other.name
                ),
            );
        }
    }
    Ok(())
}

// === values ===

fn problem<T>(place: &Spanned<T>, message: impl Display) -> Problem {
    Problem {
        span: place.span(),
        message: message.to_string(),
    }
}

fn parsed<T: FromStr<Err: Display>>(text: &Text) -> Result<T, Problem> {
    text.get_ref().parse().map_err(|error| problem(text, error))
}

fn parsed_or<T: FromStr<Err: Display>>(
    text: &Option<Text>,
    otherwise: impl FnOnce() -> T,
) -> Result<T, Problem> {
    text.as_ref().map_or_else(|| Ok(otherwise()), parsed)
}

fn all_parsed<T: FromStr<Err: Display>>(texts: &[Text]) -> Result<Box<[T]>, Problem> {
    texts.iter().map(parsed).collect()
}

fn ipv4(text: &Text) -> Result<Ipv4Addr, Problem> {
    let address = text.get_ref();
    address.parse().map_err(|_| {
        problem(
            text,
            format!("`{address}` is not an IPv4 address: write one such as `10.0.0.10`"),
        )
    })
}

fn ipv6(text: &Text) -> Result<Ipv6Addr, Problem> {
    let address = text.get_ref();
    address.parse().map_err(|_| {
        problem(
            text,
            format!("`{address}` is not an IPv6 address: write one such as `2001:db8::10`"),
        )
    })
}

fn mac(text: &Text) -> Result<crate::instance::MacAddress, Problem> {
    let mac: crate::instance::MacAddress = parsed(text)?;
    if mac.0[0] & 1 == 1 {
        return Err(problem(
            text,
            format!("`{mac}` is a group address: an interface's first pair is even, such as `06`"),
        ));
    }
    Ok(mac)
}

fn time(text: &Text) -> Result<UnixSeconds, Problem> {
    let message = || {
        format!(
            "`{}` is not a time: write one such as `2030-01-31T12:00:00Z`",
            text.get_ref()
        )
    };
    UnixSeconds::from_iso(text.get_ref()).ok_or_else(|| problem(text, message()))
}

fn decoded(text: &Text) -> Result<Vec<u8>, Problem> {
    // Such text is often wrapped, as base64(1) does.
    let unwrapped: String = text.get_ref().split_ascii_whitespace().collect();
    STANDARD.decode(unwrapped).map_err(|error| {
        problem(
            text,
            format!("not base64: {}", error.to_string().to_lowercase()),
        )
    })
}

/// Text that is served as a line: not empty, no control characters.
fn line(text: &Text) -> Result<&str, Problem> {
    let line = text.get_ref();
    if line.is_empty() || line.contains(char::is_control) {
        return Err(problem(text, "must be one line, and not empty"));
    }
    Ok(line)
}

fn optional_line(text: &Option<Text>) -> Result<Option<Box<str>>, Problem> {
    text.as_ref()
        .map(|text| line(text).map(Box::from))
        .transpose()
}

/// Text that is served as a part of a path.
fn path_segment(text: &Text) -> Result<&str, Problem> {
    let segment = line(text)?;
    if segment.contains('/') || matches!(segment, "." | "..") {
        return Err(problem(
            text,
            format!("`{segment}` cannot be part of a path"),
        ));
    }
    Ok(segment)
}

/// One of a few words.
fn word<T: Copy>(text: &Text, words: &[(&str, T)]) -> Result<T, Problem> {
    let written = text.get_ref();
    if let Some((_, value)) = words.iter().find(|(word, _)| word == written) {
        return Ok(*value);
    }
    let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    let message = match nearest(written, &known) {
        Some(meant) => format!("`{written}` is unknown: did you mean `{meant}`?"),
        None => format!("`{written}` is unknown: write one of {}", known.join(", ")),
    };
    Err(problem(text, message))
}

fn one_of<T: Copy>(
    text: &Option<Text>,
    all: &[T],
    as_str: fn(T) -> &'static str,
) -> Result<Option<T>, Problem> {
    let words: Vec<(&str, T)> = all.iter().map(|value| (as_str(*value), *value)).collect();
    text.as_ref().map(|text| word(text, &words)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConfigError, load};

    struct One(&'static str);

    impl Files for One {
        fn read(&self, _path: &Path, _bytes_max: usize) -> std::io::Result<Vec<u8>> {
            Ok(self.0.as_bytes().to_vec())
        }
    }

    fn check(toml: &'static str, expected: Result<Guard, &str>) {
        let installation = Installation {
            seed: [7; 16],
            created: UnixSeconds(0),
        };
        let settings = load(Path::new("imds.toml"), &installation, &One(toml));
        let guard = settings.map(|settings| settings.guard);
        match (guard, expected) {
            (Ok(guard), Ok(expected)) => assert_eq!(guard, expected, "{toml}"),
            (Err(ConfigError::Wrong { message, .. }), Err(words)) => {
                assert!(message.contains(words), "{toml}: {message}");
            }
            (guard, expected) => panic!("{toml}: {guard:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn the_guard_is_on_unless_it_is_off() {
        let named = |names: &[&str]| {
            Ok(Guard::Named(
                names.iter().map(|name| name.parse().unwrap()).collect(),
            ))
        };
        check("", Ok(Guard::Found));
        check("[host]\nguard = true", Ok(Guard::Found));
        check("[host]\nguard = false", Ok(Guard::Off));
        check(
            "[host]\nuplinks = [\"eth0\", \"wg0\"]",
            named(&["eth0", "wg0"]),
        );
        check(
            "[host]\nguard = true\nuplinks = [\"eth0\"]",
            named(&["eth0"]),
        );
        check("[host]\nuplinks = []", Err("guard = false"));
        check(
            "[host]\nguard = false\nuplinks = [\"eth0\"]",
            Err("the guard is off"),
        );
        check("[host]\nuplinks = [\"eth 0\"]", Err("not the name"));
        check(
            "[host]\nuplinks = [\"tap0\"]\n[[instance]]\nname = \"web\"\nport = \"tap0\"",
            Err("tap0 is the port of instance web"),
        );
    }
}
