//! From what was typed to what is true: checked, completed, and the same every time.

mod guard;
mod host_access;
mod newcomers;
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
    ActiveKeysEntry, FileConfig, HostEntry, InstanceEntry, LimitsEntry, ManagedSshKeysEntry,
    MetadataOptionsEntry, NetworkInterfaceEntry, PublicKeyEntry, RoleEntry, SubnetEntry, Text,
};
use super::made_up::{MadeUp, MadeUpInterface};
use super::mould::Newcomer;
use super::nearest::nearest;
use super::{Files, Guest, Installation, Origin, PortBy, Problem, Said, Settings};
use crate::instance::credentials::{InstanceProfile, Role};
use crate::instance::details::{
    ActiveKeys, Architecture, BlockDevice, DEFAULT_ROOT_DEVICE, Details, InstanceAction, LifeCycle,
    ManagedSshKeys, System, TargetLifecycleState,
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
pub const TAGS_MAX: usize = 50;
/// Characters of a tag's key.
pub const TAG_KEY_MAX: usize = 128;
/// Characters of a tag's value.
pub const TAG_VALUE_MAX: usize = 256;
/// Where instances are if nothing is said.
const DEFAULT_REGION: &str = "us-east-1";
/// What instances are if nothing is said.
pub(crate) const DEFAULT_TYPE: &str = "t3.micro";
/// Longest name that commands have to deal with, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 128;

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
    let host = host(&file.host, MadeUp::of(installation))?;
    let mut resolver = Resolver::of(&file.host, &host, installation, directory, files)?;
    let guests = file
        .instance
        .iter()
        .map(|entry| resolver.guest(entry))
        .collect::<Result<Vec<_>, _>>()?;
    refuse_duplicates(&file.instance, &guests)?;
    let guard = guard::guard(&file.host, &guests)?;
    let host_access = host_access::host_access(&file.host)?;
    let discovery = newcomers::discovery(file, &mut resolver, installation)?;
    Ok(Settings {
        host,
        guard,
        host_access,
        guests,
        discovery,
    })
}

pub(super) fn host(entry: &HostEntry, made_up: MadeUp<'_>) -> Result<Host, Problem> {
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
pub(super) struct Resolver<'a> {
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

impl<'a> Resolver<'a> {
    /// For instances of a host.
    pub(super) fn of(
        entry: &HostEntry,
        host: &'a Host,
        installation: &'a Installation,
        directory: &'a Path,
        files: &'a dyn Files,
    ) -> Result<Self, Problem> {
        Ok(Self {
            made_up: MadeUp::of(installation),
            created: installation.created,
            dns_hostnames: entry.dns_hostnames.unwrap_or(true),
            limits: limits(&entry.limits, Limits::DEFAULT)?,
            directory,
            files,
            zone: &host.zone,
            subnets: HashMap::new(),
            security_groups: HashMap::new(),
        })
    }

    /// An instance that turned up: the file does not say where its port is.
    pub(super) fn newcomer(
        &mut self,
        entry: &InstanceEntry,
        newcomer: &Newcomer<'_>,
    ) -> Result<Guest, Problem> {
        let name = match &entry.name {
            Some(name) => guest_name(name)?.into(),
            None => newcomer.name.into(),
        };
        let instance = self.instance(entry, newcomer.seed)?;
        let credential_source = match &entry.role {
            Some(role) => self.credential_source(role, &instance)?,
            None => None,
        };
        Ok(Guest {
            name,
            port: newcomer.port.clone(),
            origin: newcomer.origin,
            limits: limits(&entry.limits, self.limits)?,
            credential_source,
            instance,
            said: Said::of(entry),
        })
    }
}

impl Resolver<'_> {
    fn guest(&mut self, spanned: &Spanned<InstanceEntry>) -> Result<Guest, Problem> {
        let entry = spanned.get_ref();
        let (port, otherwise_called) = newcomers::port_by(spanned)?;
        let name = match &entry.name {
            Some(name) => guest_name(name)?.into(),
            None => otherwise_called.into(),
        };
        let limits = limits(&entry.limits, self.limits)?;
        let instance = self.instance(entry, &port.to_string())?;
        let credential_source = match &entry.role {
            Some(role) => self.credential_source(role, &instance)?,
            None => None,
        };
        Ok(Guest {
            name,
            port,
            origin: Origin::Configuration,
            limits,
            credential_source,
            instance,
            said: Said::of(entry),
        })
    }

    fn instance(&mut self, entry: &InstanceEntry, seed: &str) -> Result<Instance, Problem> {
        let details = details(entry, self.zone)?;
        let zone = details.zone.clone().unwrap_or_else(|| self.zone.clone());
        let options = metadata_options(&entry.metadata_options)?;
        let primary = self.primary_interface(entry, seed, &zone)?;
        let secondary = entry.network_interface.iter().enumerate();
        let secondary: Box<[_]> = secondary
            .map(|(index, other)| self.secondary_interface(other.get_ref(), seed, index + 1, &zone))
            .collect::<Result<_, _>>()?;
        refuse_same_mac(entry, &primary, &secondary)?;
        Ok(Instance {
            id: parsed_or(&entry.id, || self.made_up.instance_id(seed))?,
            image_id: parsed_or(&entry.image_id, || self.made_up.image_id())?,
            instance_type: optional_line(&entry.r#type)?.unwrap_or_else(|| DEFAULT_TYPE.into()),
            reservation_id: parsed_or(&entry.reservation_id, || self.made_up.reservation_id(seed))?,
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
        seed: &str,
        zone: &Zone,
    ) -> Result<NetworkInterface, Problem> {
        let facts = InterfaceFacts {
            id: &entry.interface_id,
            mac: &entry.mac,
            private_ipv4: &entry.private_ipv4,
            secondary_private_ipv4s: &entry.secondary_private_ipv4s,
            public_ipv4: &entry.public_ipv4,
            ipv4_associations: &entry.ipv4_associations,
            ipv6s: &entry.ipv6s,
            ipv4_prefixes: &entry.ipv4_prefixes,
            ipv6_prefixes: &entry.ipv6_prefixes,
            security_groups: &entry.security_groups,
            security_group_ids: &entry.security_group_ids,
            subnet: &entry.subnet,
        };
        self.interface(&facts, &self.made_up.interface(seed, 0), zone)
    }

    fn secondary_interface(
        &mut self,
        entry: &NetworkInterfaceEntry,
        seed: &str,
        number: usize,
        zone: &Zone,
    ) -> Result<NetworkInterface, Problem> {
        let facts = InterfaceFacts {
            id: &entry.id,
            mac: &entry.mac,
            private_ipv4: &entry.private_ipv4,
            secondary_private_ipv4s: &entry.secondary_private_ipv4s,
            public_ipv4: &entry.public_ipv4,
            ipv4_associations: &entry.ipv4_associations,
            ipv6s: &entry.ipv6s,
            ipv4_prefixes: &entry.ipv4_prefixes,
            ipv6_prefixes: &entry.ipv6_prefixes,
            security_groups: &entry.security_groups,
            security_group_ids: &entry.security_group_ids,
            subnet: &entry.subnet,
        };
        let interface = self.interface(&facts, &self.made_up.interface(seed, number), zone)?;
        let next_number = u8::try_from(number).unwrap_or(u8::MAX);
        Ok(NetworkInterface {
            device_number: entry.device_number.unwrap_or(next_number),
            network_card: entry.network_card.unwrap_or(0),
            owner_id: entry.owner_id.as_ref().map(parsed).transpose()?,
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
            private_ipv4s: private_ipv4s(facts, address)?,
            ipv6s: facts.ipv6s.iter().map(ipv6).collect::<Result<_, _>>()?,
            ipv4_prefixes: all_parsed(facts.ipv4_prefixes)?,
            ipv6_prefixes: all_parsed(facts.ipv6_prefixes)?,
            security_groups: self.security_groups(facts, &subnet)?,
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
        if let Some(native) = entry
            .ipv6_native
            .as_ref()
            .filter(|native| *native.get_ref())
        {
            if address.is_some() || entry.ipv4_cidr.is_some() {
                return Err(problem(
                    native,
                    "an IPv6-native subnet has no IPv4 addresses: leave private-ipv4 and ipv4-cidr away",
                ));
            }
            subnet.id = self.made_up.subnet_id(&format!("{zone:?} IPv6"));
            subnet.ipv4_cidr = None;
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

    /// What was typed, with ids made up where they were not.
    fn security_groups(
        &mut self,
        facts: &InterfaceFacts<'_>,
        subnet: &Subnet,
    ) -> Result<Arc<[SecurityGroup]>, Problem> {
        let names = match facts.security_groups {
            None => vec!["default"],
            Some(names) => names.iter().map(line).collect::<Result<_, _>>()?,
        };
        let ids = facts.security_group_ids.as_ref();
        if let Some(ids) = ids.filter(|ids| ids.get_ref().len() != names.len()) {
            let (n_ids, n_names) = (ids.get_ref().len(), names.len());
            let message = format!("{n_ids} ids for {n_names} security groups: give as many");
            return Err(problem(ids, message));
        }
        let group = |(index, name): (usize, &str)| {
            let id = match ids.and_then(|ids| ids.get_ref().get(index)) {
                Some(id) => parsed(id)?,
                None => self.made_up.security_group_id(subnet.vpc_id, name),
            };
            let name = name.into();
            Ok(SecurityGroup { id, name })
        };
        let groups: Vec<_> = names
            .into_iter()
            .enumerate()
            .map(group)
            .collect::<Result<_, _>>()?;
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
        // EC2 knows no empty user data: there is none then.
        UserData::try_from(Bytes::from(bytes))
            .map(|user_data| Some(user_data).filter(|user_data| !user_data.bytes().is_empty()))
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
    ipv4_associations: &'a BTreeMap<Text, Text>,
    ipv6s: &'a [Text],
    ipv4_prefixes: &'a [Text],
    ipv6_prefixes: &'a [Text],
    security_groups: &'a Option<Vec<Text>>,
    security_group_ids: &'a Option<Spanned<Vec<Text>>>,
    subnet: &'a SubnetEntry,
}

/// The private addresses of an interface, the primary one first, each with its public one.
fn private_ipv4s(
    facts: &InterfaceFacts<'_>,
    primary: Option<Ipv4Addr>,
) -> Result<Box<[PrivateIpv4]>, Problem> {
    let mut privates: Vec<PrivateIpv4> = Vec::new();
    let mut add = |address, place: Option<&Text>| match place {
        Some(text) if privates.iter().any(|known| known.address == address) => Err(problem(
            text,
            format!("the interface has `{address}` already"),
        )),
        _ => {
            privates.push(PrivateIpv4 {
                address,
                public: None,
            });
            Ok(())
        }
    };
    if let Some(address) = primary {
        add(address, None)?;
    }
    for other in facts.secondary_private_ipv4s {
        if primary.is_none() {
            return Err(problem(other, NO_IPV4));
        }
        add(ipv4(other)?, Some(other))?;
    }
    if let Some(text) = facts.public_ipv4 {
        let primary = privates.first_mut().ok_or_else(|| problem(text, NO_IPV4))?;
        primary.public = Some(ipv4(text)?);
    }
    for (public, private) in facts.ipv4_associations {
        associate(&mut privates, public, private)?;
    }
    Ok(privates.into())
}

const NO_IPV4: &str = "the interface has no private IPv4 address: its subnet is IPv6-native";

/// Gives one of the private addresses a public one.
fn associate(privates: &mut [PrivateIpv4], public: &Text, private: &Text) -> Result<(), Problem> {
    let (public_address, address) = (ipv4(public)?, ipv4(private)?);
    if privates
        .iter()
        .any(|known| known.public == Some(public_address))
    {
        return Err(problem(
            public,
            format!("`{public_address}` belongs to another private address already"),
        ));
    }
    let known = privates.iter_mut().find(|known| known.address == address);
    match known {
        None => Err(problem(
            private,
            format!(
                "`{address}` is not an address of this interface: name it in private-ipv4 or secondary-private-ipv4s"
            ),
        )),
        Some(PrivateIpv4 {
            public: Some(other),
            ..
        }) => Err(problem(
            private,
            format!("`{address}` has the public address `{other}` already"),
        )),
        Some(known) => {
            known.public = Some(public_address);
            Ok(())
        }
    }
}

/// Interfaces are told apart by their MAC address, which names their directory.
fn refuse_same_mac(
    entry: &InstanceEntry,
    primary: &NetworkInterface,
    secondary: &[NetworkInterface],
) -> Result<(), Problem> {
    let mut known = vec![primary.mac];
    for (interface, entry) in secondary.iter().zip(&entry.network_interface) {
        if known.contains(&interface.mac) {
            let message = format!(
                "another interface of this instance has the MAC address `{}`",
                interface.mac
            );
            return Err(match &entry.get_ref().mac {
                Some(mac) => problem(mac, message),
                None => problem(entry, message),
            });
        }
        known.push(interface.mac);
    }
    Ok(())
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
        connections_per_second: rate(
            &entry.connections_per_second,
            "new connections a second",
            otherwise.connections_per_second,
        )?,
        connections: bounded(
            &entry.connections,
            "connections",
            1,
            Limits::CONNECTIONS_MAX,
            otherwise.connections,
        )?,
        requests_in_flight: bounded(
            &entry.requests_in_flight,
            "requests in flight",
            1,
            Limits::CONNECTIONS_MAX,
            otherwise.requests_in_flight,
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

fn details(entry: &InstanceEntry, host_zone: &Zone) -> Result<Details, Problem> {
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
        zone: own_zone(entry, host_zone)?,
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
        managed_ssh_keys: managed_ssh_keys(&entry.managed_ssh_keys)?,
        ..Details::NONE
    })
}

/// The zone of an instance that differs from its host's, be it in the id alone.
fn own_zone(entry: &InstanceEntry, host_zone: &Zone) -> Result<Option<Zone>, Problem> {
    let named = entry.availability_zone.as_ref().map(zone).transpose()?;
    match &entry.availability_zone_id {
        Some(id) => Ok(Some(
            named
                .unwrap_or_else(|| host_zone.clone())
                .with_id(line(id)?),
        )),
        None => Ok(named),
    }
}

fn zone(text: &Text) -> Result<Zone, Problem> {
    Zone::from_name(text.get_ref()).map_err(|error| problem(text, error))
}

/// What was typed, sorted by name. Every instance has a root, and what its image calls it.
fn block_devices(entry: &BTreeMap<Text, Text>) -> Result<Vec<BlockDevice>, Problem> {
    if entry.is_empty() {
        return Ok(Vec::new());
    }
    let mut devices = BTreeMap::new();
    for (name, device) in entry {
        devices.insert(virtual_name(name)?, line(device)?);
    }
    let root = *devices.entry("root").or_insert(DEFAULT_ROOT_DEVICE);
    devices.entry("ami").or_insert(root);
    let device = |(name, device): (&str, &str)| BlockDevice {
        virtual_name: name.into(),
        device: device.into(),
    };
    Ok(devices.into_iter().map(device).collect())
}

fn virtual_name(text: &Text) -> Result<&str, Problem> {
    let name = text.get_ref().as_str();
    let is_number = |digits: &str| {
        let is_plain = digits == "0" || !digits.starts_with('0');
        is_plain && !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit())
    };
    let ebs = name.strip_prefix("ebs").filter(|number| *number != "0");
    let numbered = ebs.or_else(|| name.strip_prefix("ephemeral"));
    if matches!(name, "ami" | "root" | "swap") || numbered.is_some_and(is_number) {
        return Ok(name);
    }
    Err(problem(
        text,
        format!(
            "`{name}` is no virtual name: write ami, root, swap, ebs1 and so on, or ephemeral0 and so on"
        ),
    ))
}

fn managed_ssh_keys(entry: &ManagedSshKeysEntry) -> Result<Option<ManagedSshKeys>, Problem> {
    let staple =
        |(name, staple): (&Text, &Text)| Ok((path_segment(name)?.into(), lines(staple)?.into()));
    let mut active_keys = entry
        .active_keys
        .iter()
        .map(active_keys)
        .collect::<Result<Vec<_>, _>>()?;
    active_keys.sort_by(|one, other| one.os_user.cmp(&other.os_user));
    let keys = ManagedSshKeys {
        active_keys,
        signer_cert: entry
            .signer_cert
            .as_ref()
            .map(|cert| lines(cert).map(Box::from))
            .transpose()?,
        signer_ocsp: entry
            .signer_ocsp
            .iter()
            .map(staple)
            .collect::<Result<_, _>>()?,
    };
    Ok((keys != ManagedSshKeys::default()).then_some(keys))
}

fn active_keys(entry: &ActiveKeysEntry) -> Result<ActiveKeys, Problem> {
    Ok(ActiveKeys {
        os_user: path_segment(&entry.os_user)?.into(),
        blob: lines(&entry.blob)?.into(),
        expiration: time(&entry.expiration)?,
    })
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

/// Whether a tag with this key can be served under `tags/instance` (EC2 User Guide, "View tags for your EC2 instances using
/// instance metadata").
#[must_use]
pub fn is_servable_tag_key(key: &str) -> bool {
    let is_fit = |c: char| c.is_ascii_alphanumeric() || "+-=.,_:@".contains(c);
    !matches!(key, "." | ".." | "_index") && key.chars().all(is_fit)
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
    if in_metadata.is_enabled() && !is_servable_tag_key(key.get_ref()) {
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
    let name = line(&entry.name)?;
    let mut words = line(&entry.openssh)?.split_ascii_whitespace();
    let (Some(kind), Some(key)) = (words.next(), words.next()) else {
        return Err(problem(
            &entry.openssh,
            "not a public key of OpenSSH: write a line such as `ssh-ed25519 AAAA… comment`",
        ));
    };
    Ok(PublicKey {
        name: name.into(),
        // EC2 has the name of the key pair for a comment, whatever was imported.
        openssh: format!("{kind} {key} {name}").into(),
    })
}

fn guest_name(text: &Text) -> Result<&str, Problem> {
    let name = text.get_ref().as_str();
    if !is_guest_name(name) {
        return Err(problem(
            text,
            format!("a name has 1 to {NAME_BYTES_MAX} bytes, no space and no `/`"),
        ));
    }
    Ok(name)
}

/// Whether commands can call an instance so.
pub(crate) fn is_guest_name(name: &str) -> bool {
    let is_bad = |c: char| c.is_whitespace() || c.is_control() || c == '/';
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.contains(is_bad)
}

/// Names, ports and ids must each be nobody else's.
fn refuse_duplicates(entries: &[Spanned<InstanceEntry>], guests: &[Guest]) -> Result<(), Problem> {
    let mut by_port: HashMap<&PortBy, &Guest> = HashMap::with_capacity(guests.len());
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
            let port = [&entry.port, &entry.port_mac, &entry.netns];
            let place = port.into_iter().find(|text| text.is_some());
            return refuse(at(place.unwrap_or(&entry.port)), message);
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

/// Text that is served as lines, without the end of the last one: not empty, no control characters but line ends.
fn lines(text: &Text) -> Result<&str, Problem> {
    let lines = text.get_ref().trim_end_matches('\n');
    if lines.is_empty() || lines.contains(|c: char| c.is_control() && c != '\n') {
        return Err(problem(text, "must be lines that end in LF, and not empty"));
    }
    Ok(lines)
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
    use std::io;

    use super::*;
    use crate::config::file;

    struct NoFiles;

    impl Files for NoFiles {
        fn read(&self, _: &Path, _: usize) -> io::Result<Vec<u8>> {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    fn resolved(keys: &str) -> Result<Instance, Problem> {
        let file = file::parse(&format!("[[instance]]\nport = \"x\"\n{keys}")).unwrap();
        let installation = Installation {
            seed: [1; 16],
            created: UnixSeconds(1_700_000_000),
        };
        let settings = resolve(&file, &installation, Path::new(""), &NoFiles)?;
        Ok(settings.guests.into_iter().next().unwrap().instance)
    }

    fn instance(keys: &str) -> Instance {
        resolved(keys).unwrap_or_else(|problem| panic!("{keys}: {}", problem.message))
    }

    fn check_refused(keys: &str, message: &str) {
        let problem = resolved(keys).expect_err(keys);
        assert_eq!(problem.message, message, "{keys}");
    }

    #[test]
    fn every_private_address_may_have_a_public_one() {
        const SECONDARY: &str = "private-ipv4 = \"10.0.0.10\"\nsecondary-private-ipv4s = [\"10.0.0.11\", \"10.0.0.12\"]";
        let check = |keys: &str, publics: [Option<&str>; 3]| {
            let instance = instance(&format!("{SECONDARY}\n{keys}"));
            let privates = instance.primary.private_ipv4s.iter();
            let found: Vec<_> = privates.map(|private| private.public).collect();
            let expected = publics.map(|text| text.map(|text| text.parse().unwrap()));
            assert_eq!(found, expected, "{keys}");
        };
        check("", [None; 3]);
        check(
            "public-ipv4 = \"203.0.113.1\"",
            [Some("203.0.113.1"), None, None],
        );
        check(
            "public-ipv4 = \"203.0.113.1\"\nipv4-associations.\"203.0.113.9\" = \"10.0.0.12\"",
            [Some("203.0.113.1"), None, Some("203.0.113.9")],
        );
        check(
            "ipv4-associations = { \"203.0.113.9\" = \"10.0.0.10\", \"203.0.113.8\" = \"10.0.0.11\" }",
            [Some("203.0.113.9"), Some("203.0.113.8"), None],
        );
        let refused = |keys: &str, message: &str| {
            check_refused(&format!("{SECONDARY}\n{keys}"), message);
        };
        refused(
            "ipv4-associations.\"203.0.113.9\" = \"10.0.0.13\"",
            "`10.0.0.13` is not an address of this interface: name it in private-ipv4 or secondary-private-ipv4s",
        );
        refused(
            "public-ipv4 = \"203.0.113.1\"\nipv4-associations.\"203.0.113.9\" = \"10.0.0.10\"",
            "`10.0.0.10` has the public address `203.0.113.1` already",
        );
        refused(
            "public-ipv4 = \"203.0.113.1\"\nipv4-associations.\"203.0.113.1\" = \"10.0.0.11\"",
            "`203.0.113.1` belongs to another private address already",
        );
        check_refused(
            "private-ipv4 = \"10.0.0.10\"\nsecondary-private-ipv4s = [\"10.0.0.10\"]",
            "the interface has `10.0.0.10` already",
        );
    }

    #[test]
    fn an_ipv6_native_subnet_has_no_ipv4_addresses() {
        let native = instance("ipv6s = [\"2001:db8::10\"]\nsubnet.ipv6-native = true");
        assert_eq!(native.primary.private_ipv4(), None);
        assert_eq!(native.primary.subnet.ipv4_cidr, None);
        assert_ne!(native.primary.subnet.id, instance("").primary.subnet.id);
        let refused = |keys: &str, message: &str| {
            check_refused(&format!("{keys}\nsubnet.ipv6-native = true"), message);
        };
        let addresses =
            "an IPv6-native subnet has no IPv4 addresses: leave private-ipv4 and ipv4-cidr away";
        refused("private-ipv4 = \"10.0.0.10\"", addresses);
        refused("subnet.ipv4-cidr = \"10.0.0.0/24\"", addresses);
        refused("public-ipv4 = \"203.0.113.1\"", NO_IPV4);
        refused("secondary-private-ipv4s = [\"10.0.0.10\"]", NO_IPV4);
    }

    #[test]
    fn block_devices_always_have_a_root_and_an_image() {
        let check = |keys: &str, expected: &[(&str, &str)]| {
            let instance = instance(keys);
            let devices = instance.details().block_devices.iter();
            let found: Vec<_> = devices
                .map(|device| (&*device.virtual_name, &*device.device))
                .collect();
            assert_eq!(found, expected, "{keys}");
        };
        check("", &[]);
        check(
            "block-device-mapping = { ebs1 = \"sdb\", ephemeral0 = \"sdc\", swap = \"sda3\" }",
            &[
                ("ami", "/dev/xvda"),
                ("ebs1", "sdb"),
                ("ephemeral0", "sdc"),
                ("root", "/dev/xvda"),
                ("swap", "sda3"),
            ],
        );
        check(
            "block-device-mapping.root = \"/dev/sda1\"",
            &[("ami", "/dev/sda1"), ("root", "/dev/sda1")],
        );
        check(
            "block-device-mapping.ami = \"xvda\"",
            &[("ami", "xvda"), ("root", "/dev/xvda")],
        );
        for name in ["ebs0", "ebs", "ebs01", "ebs1x", "ephemeral", "disk"] {
            check_refused(
                &format!("block-device-mapping.{name} = \"sdb\""),
                &format!(
                    "`{name}` is no virtual name: write ami, root, swap, ebs1 and so on, or ephemeral0 and so on"
                ),
            );
        }
    }

    #[test]
    fn an_instance_may_differ_from_its_host_in_the_id_of_the_zone_alone() {
        let zone = |keys: &str| {
            let zone = instance(keys).details().zone.clone().unwrap();
            (zone.name().to_owned(), zone.id().to_owned())
        };
        let pair = |name: &str, id: &str| (name.to_owned(), id.to_owned());
        assert_eq!(instance("").details().zone, None);
        assert_eq!(
            zone("availability-zone-id = \"use1-az4\""),
            pair("us-east-1a", "use1-az4")
        );
        assert_eq!(
            zone("availability-zone = \"us-west-2-lax-1a\""),
            pair("us-west-2-lax-1a", "usw2-lax1-az1")
        );
        assert_eq!(
            zone("availability-zone = \"us-west-2b\"\navailability-zone-id = \"usw2-az4\""),
            pair("us-west-2b", "usw2-az4")
        );
    }

    #[test]
    fn security_groups_may_have_ids() {
        let groups = |keys: &str| {
            let instance = instance(keys);
            let groups = instance.primary.security_groups.iter();
            groups
                .map(|group| (group.name.to_string(), group.id.to_string()))
                .collect::<Vec<_>>()
        };
        const ID: &str = "sg-0123456789abcdef0";
        assert_eq!(
            groups(&format!("security-group-ids = [\"{ID}\"]")),
            [("default".to_owned(), ID.to_owned())]
        );
        let two = groups("security-groups = [\"a\", \"b\"]");
        assert_ne!(two[0].1, two[1].1);
        check_refused(
            &format!("security-groups = [\"a\", \"b\"]\nsecurity-group-ids = [\"{ID}\"]"),
            "1 ids for 2 security groups: give as many",
        );
        check_refused(
            &format!("security-group-ids = [\"{ID}\", \"{ID}\"]"),
            "2 ids for 1 security groups: give as many",
        );
    }

    #[test]
    fn interfaces_have_different_mac_addresses() {
        check_refused(
            "mac = \"06:00:00:00:00:01\"\n[[instance.network-interface]]\nmac = \"06:00:00:00:00:01\"",
            "another interface of this instance has the MAC address `06:00:00:00:00:01`",
        );
        let instance = instance("[[instance.network-interface]]\n[[instance.network-interface]]");
        let macs: std::collections::HashSet<_> = instance
            .interfaces()
            .map(|interface| interface.mac)
            .collect();
        assert_eq!(macs.len(), 3);
    }

    #[test]
    fn managed_ssh_keys_are_lines_sorted_by_user() {
        const KEYS: &str = "
            [instance.managed-ssh-keys]
            signer-cert = \"\"\"
-----BEGIN CERTIFICATE-----
MIIB
-----END CERTIFICATE-----
\"\"\"
            signer-ocsp = { 0123 = \"MIIC\" }
            [[instance.managed-ssh-keys.active-keys]]
            os-user = \"ubuntu\"
            blob = \"b\\nc\\n\"
            expiration = \"2030-01-31T12:00:00Z\"
            [[instance.managed-ssh-keys.active-keys]]
            os-user = \"ec2-user\"
            blob = \"a\"
            expiration = \"2030-01-31T12:00:00Z\"
        ";
        let instance = instance(KEYS);
        let keys = instance.details().managed_ssh_keys.as_ref().unwrap();
        let blobs: Vec<_> = keys
            .active_keys
            .iter()
            .map(|keys| (&*keys.os_user, &*keys.blob))
            .collect();
        assert_eq!(blobs, [("ec2-user", "a"), ("ubuntu", "b\nc")]);
        assert_eq!(
            keys.signer_cert.as_deref(),
            Some("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----")
        );
        assert_eq!(keys.signer_ocsp, [("0123".into(), "MIIC".into())]);
        check_refused(
            "managed-ssh-keys.signer-cert = \"\"",
            "must be lines that end in LF, and not empty",
        );
    }

    #[test]
    fn a_public_key_is_commented_with_its_name_and_empty_user_data_is_none() {
        let instance = instance(
            "user-data = \"\"\n[[instance.public-key]]\nname = \"my key\"\nopenssh = \"ssh-rsa AAAA me@home\"",
        );
        assert_eq!(&*instance.public_keys[0].openssh, "ssh-rsa AAAA my key");
        assert_eq!(instance.user_data, None);
    }
}
