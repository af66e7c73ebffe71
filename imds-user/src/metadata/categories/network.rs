//! `network/interfaces/macs/<mac>/`, and what the top level takes from the primary interface.

use std::fmt::{self, Display};

use super::super::tree::{Entry, Named, Place, Value, View, leaf, named, table};
use crate::instance::{MacAddress, SecurityGroup};

pub(super) static NETWORK: &[Entry] = &[table("interfaces", INTERFACES)];

static INTERFACES: &[Entry] = &[named("macs", "2011-01-01", &MACS)];

static MACS: Named = Named {
    is_present: |_| true,
    list: |view, listing| {
        let mut macs: Vec<MacAddress> = view
            .instance
            .interfaces()
            .map(|interface| interface.mac)
            .collect();
        macs.sort_unstable();
        macs.iter()
            .for_each(|mac| listing.push(format_args!("{mac}/")));
    },
    find: |view, name| {
        // Paths are case sensitive: only the form that is listed names it.
        let mac = name
            .parse::<MacAddress>()
            .ok()
            .filter(|mac| mac.to_string() == name)?;
        let interface = view
            .instance
            .interfaces()
            .find(|interface| interface.mac == mac)?;
        Some(Place::Table(MAC, View { interface, ..view }))
    },
};

/// The guide's label 2020-11-01 of `network-card` is not served: it appears with the next version that is. The prefix
/// leaves are in no table of the guide; clients read them under `latest`, and did so long before 2024-04-11.
static MAC: &[Entry] = &[
    leaf("device-number", "2011-01-01", |view| {
        Some(Value::of(view.interface.device_number))
    }),
    leaf("interface-id", "2011-01-01", |view| {
        Some(view.interface.id.as_str().into())
    }),
    named("ipv4-associations", "2011-01-01", &IPV4_ASSOCIATIONS),
    leaf("ipv4-prefix", "2021-07-15", |view| {
        Value::lines(&view.interface.ipv4_prefixes)
    }),
    leaf("ipv6-prefix", "2021-07-15", |view| {
        Value::lines(&view.interface.ipv6_prefixes)
    }),
    leaf("ipv6s", "2016-06-30", |view| {
        Value::lines(&view.interface.ipv6s)
    }),
    leaf("local-hostname", "2011-01-01", |view| {
        Some(local_hostname(view))
    }),
    leaf("local-ipv4s", "2011-01-01", |view| {
        Value::lines(
            view.interface
                .private_ipv4s
                .iter()
                .map(|private| private.address),
        )
    }),
    leaf("mac", "2011-01-01", |view| {
        Some(Value::of(view.interface.mac))
    }),
    leaf("network-card", "2021-01-03", |view| {
        Some(view.interface.network_card)
            .filter(|card| *card > 0)
            .map(Value::of)
    }),
    leaf("owner-id", "2011-01-01", |view| {
        Some(
            view.interface
                .owner_id
                .as_ref()
                .unwrap_or(view.account_id())
                .as_str()
                .into(),
        )
    }),
    leaf("public-hostname", "2011-01-01", public_hostname),
    leaf("public-ipv4s", "2011-01-01", |view| {
        Value::lines(view.interface.public_ipv4s())
    }),
    leaf("security-group-ids", "2011-01-01", |view| {
        Value::lines(view.interface.security_groups.iter().map(|group| group.id))
    }),
    leaf("security-groups", "2011-01-01", security_groups),
    leaf("subnet-id", "2011-01-01", |view| {
        Some(view.interface.subnet.id.as_str().into())
    }),
    leaf("subnet-ipv4-cidr-block", "2011-01-01", |view| {
        view.interface.subnet.ipv4_cidr.map(Value::of)
    }),
    leaf("subnet-ipv6-cidr-blocks", "2016-06-30", |view| {
        Value::lines(&view.interface.subnet.ipv6_cidrs)
    }),
    leaf("vpc-id", "2011-01-01", |view| {
        Some(view.interface.subnet.vpc_id.as_str().into())
    }),
    leaf("vpc-ipv4-cidr-block", "2011-01-01", |view| {
        view.interface.subnet.vpc_ipv4_cidrs.first().map(Value::of)
    }),
    leaf("vpc-ipv4-cidr-blocks", "2016-06-30", |view| {
        Value::lines(&view.interface.subnet.vpc_ipv4_cidrs)
    }),
    leaf("vpc-ipv6-cidr-blocks", "2016-06-30", |view| {
        Value::lines(&view.interface.subnet.vpc_ipv6_cidrs)
    }),
];

/// Each public address is a leaf with the private addresses that it is mapped to.
static IPV4_ASSOCIATIONS: Named = Named {
    is_present: |view| view.interface.public_ipv4s().next().is_some(),
    list: |view, listing| {
        let addresses = view.interface.public_ipv4s();
        let mut addresses: Vec<_> = addresses.map(|address| address.to_string()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.iter().for_each(|address| listing.push(address));
    },
    find: |view, name| {
        let public = name.parse().ok()?;
        let privates = view
            .interface
            .private_ipv4s
            .iter()
            .filter(|private| private.public == Some(public));
        Value::lines(privates.map(|private| private.address)).map(Place::Leaf)
    },
};

/// Names of the security groups; shown empty, not absent, should there be none.
pub(super) fn security_groups(view: View<'_>) -> Option<Value<'_>> {
    let names = view
        .interface
        .security_groups
        .iter()
        .map(|SecurityGroup { name, .. }| name);
    Some(Value::lines(names).unwrap_or_else(|| "".into()))
}

/// `ip-10-0-1-6.ec2.internal`, or by the instance's id if it has no IPv4 address, or what the instance says: of itself, and
/// so of its primary interface.
pub(super) fn local_hostname(view: View<'_>) -> Value<'_> {
    let is_primary = std::ptr::eq(view.interface, &view.instance.primary);
    if let Some(hostname) = view.details().hostname.as_deref().filter(|_| is_primary) {
        return hostname.into();
    }
    let domain = private_domain(view);
    match view
        .interface
        .private_ipv4()
        .map(|address| address.octets())
    {
        Some([a, b, c, d]) => Value::of(format_args!("ip-{a}-{b}-{c}-{d}.{domain}")),
        None => Value::of(format_args!("{}.{domain}", view.instance.id)),
    }
}

fn private_domain(view: View<'_>) -> impl Display {
    fmt::from_fn(move |f| match &view.host.domain_name {
        Some(domain) => f.write_str(domain),
        None => view.zone().private_domain().fmt(f),
    })
}

/// Absent without a public address, and where the VPC gives public addresses no names.
pub(super) fn public_hostname(view: View<'_>) -> Option<Value<'_>> {
    let address = view
        .interface
        .public_ipv4s()
        .next()
        .filter(|_| view.interface.subnet.dns_hostnames)?;
    Some(Value::of(view.zone().public_hostname(address)))
}
