//! Where instances are and what they are made of: regions, zones, networks, security groups, images. There is one default
//! network, and whatever else the instances here say they are in.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::filter::{Column, Columns, Filters};
use super::instance::all;
use super::page::Page;
use crate::api::call::{Call, Outcome};
use crate::api::fault::{Code, Refusal};
use crate::api::xml::Xml;
use crate::config::ground::Image;
use crate::instance::details::DEFAULT_ROOT_DEVICE;
use crate::instance::{ImageId, Ipv4Cidr, SecurityGroup, Subnet, VpcId, Zone};

pub(super) fn regions(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let region = call.ground.host.zone.region();
    let endpoint = endpoint(&call.ground.host.zone);
    let _all = call.params.flag("AllRegions")?;
    let names = call.params.texts("RegionName")?;
    if let Some(other) = names.iter().find(|name| **name != region) {
        let message = format!("Invalid region provided: {other}");
        return Err(Refusal::new(Code::InvalidParameterValue, message));
    }
    let by_name: &[(&'static str, Column<Zone>)] = &[
        ("region-name", |zone| vec![zone.region().to_owned()]),
        ("endpoint", |zone| vec![self::endpoint(zone)]),
        ("opt-in-status", |_| vec![NO_OPT_IN.to_owned()]),
    ];
    let tags = None;
    let filters = Filters::read(&call.params, &Columns { by_name, tags })?;
    let shown = filters.hold(&call.ground.host.zone).then_some(region);
    Ok(call.ec2_reply(|xml| {
        xml.list("regionInfo", shown, |xml, region| {
            xml.el("regionName", region)
                .el("regionEndpoint", &endpoint)
                .el("optInStatus", NO_OPT_IN);
        });
    }))
}

const NO_OPT_IN: &str = "opt-in-not-required";

fn endpoint(zone: &Zone) -> String {
    format!("ec2.{}.{}", zone.region(), zone.services_domain())
}

pub(super) fn zones(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let _all = call.params.flag("AllAvailabilityZones")?;
    let home = &call.ground.host.zone;
    let mut zones: BTreeMap<&str, &Zone> = BTreeMap::from([(home.name(), home)]);
    let known: Vec<_> = all(call).collect();
    zones.extend(
        known
            .iter()
            .map(|known| (known.zone().name(), known.zone())),
    );
    let ids = call.params.texts("ZoneId")?;
    let names = call.params.texts("ZoneName")?;
    for name in &names {
        if !zones.contains_key(name) {
            return Err(no_zone(name));
        }
    }
    let by_name: &[(&'static str, Column<Zone>)] = &[
        ("group-name", |zone| vec![zone.region().to_owned()]),
        ("opt-in-status", |_| vec![NO_OPT_IN.to_owned()]),
        ("region-name", |zone| vec![zone.region().to_owned()]),
        ("state", |_| vec!["available".to_owned()]),
        ("zone-id", |zone| vec![zone.id().to_owned()]),
        ("zone-name", |zone| vec![zone.name().to_owned()]),
        ("zone-type", |zone| vec![zone_type(zone).to_owned()]),
    ];
    let tags = None;
    let filters = Filters::read(&call.params, &Columns { by_name, tags })?;
    let wanted = zones.into_values().filter(|zone| {
        let is_named = names.is_empty() || names.contains(&zone.name());
        let has_id = ids.is_empty() || ids.contains(&zone.id());
        is_named && has_id && filters.hold(zone)
    });
    Ok(call.ec2_reply(|xml| {
        xml.list("availabilityZoneInfo", wanted, |xml, zone| {
            xml.el("zoneName", zone.name())
                .el("zoneState", "available")
                .el("regionName", zone.region())
                .el("zoneId", zone.id())
                .el("zoneType", zone_type(zone))
                .el("optInStatus", NO_OPT_IN)
                .el("groupName", zone.region())
                .el("networkBorderGroup", zone.region())
                .within("messageSet", |_| {});
        });
    }))
}

/// Zones beyond a region's own have more than a letter behind its name.
fn zone_type(zone: &Zone) -> &'static str {
    match zone.name().len() - zone.region().len() {
        1 => "availability-zone",
        _ if zone.name().contains("wlz") => "wavelength-zone",
        _ => "local-zone",
    }
}

/// The zone of that name.
pub(super) fn zone(name: &str) -> Result<Zone, Refusal> {
    Zone::from_name(name).map_err(|_| no_zone(name))
}

fn no_zone(name: &str) -> Refusal {
    Refusal::new(
        Code::InvalidParameterValue,
        format!("Invalid availability zone: [{name}]"),
    )
}

/// Every subnet that something is in, and the default one.
fn all_subnets(call: &Call<'_>) -> BTreeMap<String, Arc<Subnet>> {
    let home = Arc::clone(&call.ground.subnet);
    let mut subnets = BTreeMap::from([(home.id.to_string(), home)]);
    for known in all(call) {
        for interface in known.spec().interfaces() {
            let subnet = Arc::clone(&interface.subnet);
            subnets.entry(subnet.id.to_string()).or_insert(subnet);
        }
    }
    subnets
}

pub(super) fn subnet(call: &Call<'_>, id: &str) -> Result<Arc<Subnet>, Refusal> {
    all_subnets(call).remove(id).ok_or_else(|| {
        Refusal::new(
            Code::InvalidSubnetIdNotFound,
            format!("The subnet ID '{id}' does not exist"),
        )
    })
}

/// A VPC, as its subnets know it.
pub(super) struct Vpc {
    pub(super) id: VpcId,
    pub(super) cidrs: Vec<Ipv4Cidr>,
    pub(super) is_default: bool,
    pub(super) has_dns_hostnames: bool,
}

/// Every VPC that something is in, and the default one.
pub(super) fn all_vpcs(call: &Call<'_>) -> BTreeMap<String, Vpc> {
    let mut vpcs = BTreeMap::new();
    for subnet in all_subnets(call).into_values() {
        vpcs.entry(subnet.vpc_id.to_string())
            .or_insert_with(|| Vpc {
                id: subnet.vpc_id,
                cidrs: subnet.vpc_ipv4_cidrs.to_vec(),
                is_default: subnet.vpc_id == call.ground.subnet.vpc_id,
                has_dns_hostnames: subnet.dns_hostnames,
            });
    }
    vpcs
}

pub(super) fn no_vpc(id: &str) -> Refusal {
    let message = format!("The vpc ID '{id}' does not exist");
    Refusal::new(Code::InvalidVpcIdNotFound, message)
}

pub(super) fn vpcs(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let vpcs = all_vpcs(call);
    let ids = call.params.texts("VpcId")?;
    if let Some(missing) = ids.iter().find(|id| !vpcs.contains_key(**id)) {
        return Err(no_vpc(missing));
    }
    let by_name: &[(&'static str, Column<Vpc>)] = &[
        ("cidr", |vpc| texts(vpc.cidrs.first())),
        ("cidr-block-association.cidr-block", |vpc| texts(&vpc.cidrs)),
        ("is-default", |vpc| vec![vpc.is_default.to_string()]),
        ("isDefault", |vpc| vec![vpc.is_default.to_string()]),
        ("state", |_| vec!["available".to_owned()]),
        ("vpc-id", |vpc| vec![vpc.id.to_string()]),
    ];
    let tags = None;
    let filters = Filters::read(&call.params, &Columns { by_name, tags })?;
    let page = Page::read(&call.params, 5..=1000)?;
    let wanted = vpcs.into_values().filter(|vpc| {
        let is_named = ids.is_empty() || ids.contains(&vpc.id.as_str());
        is_named && filters.hold(vpc)
    });
    let part = page.cut(wanted, |vpc| vpc.id.to_string());
    Ok(call.ec2_reply(|xml| {
        xml.list("vpcSet", &part.items, |xml, vpc| {
            xml.el("vpcId", vpc.id)
                .el("ownerId", call.account())
                .el("state", "available")
                .el_if("cidrBlock", vpc.cidrs.first());
            write_vpc_ranges(xml, vpc);
            xml.el("dhcpOptionsId", "default")
                .el("instanceTenancy", "default")
                .el("isDefault", vpc.is_default);
        });
        xml.el_if("nextToken", part.next_token.as_deref());
    }))
}

fn write_vpc_ranges(xml: &mut Xml, vpc: &Vpc) {
    let digits = vpc.id.as_str().trim_start_matches("vpc-");
    xml.list("cidrBlockAssociationSet", &vpc.cidrs, |xml, cidr| {
        xml.el("associationId", format_args!("vpc-cidr-assoc-{digits}"))
            .el("cidrBlock", cidr);
        xml.within("cidrBlockState", |xml| {
            xml.el("state", "associated");
        });
    });
}

fn texts<'a, T: ToString + 'a>(values: impl IntoIterator<Item = &'a T>) -> Vec<String> {
    values.into_iter().map(ToString::to_string).collect()
}

/// A subnet, and what it does not know of itself.
struct Place<'c> {
    subnet: Arc<Subnet>,
    zone: &'c Zone,
    is_default: bool,
}

pub(super) fn subnets(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let zone = &call.ground.host.zone;
    let subnets = all_subnets(call).into_values().map(|subnet| Place {
        is_default: subnet.id == call.ground.subnet.id,
        zone,
        subnet,
    });
    let ids = call.params.texts("SubnetId")?;
    for id in &ids {
        subnet(call, id)?;
    }
    let by_name: &[(&'static str, Column<Place<'_>>)] = &[
        ("availability-zone", |it| vec![it.zone.name().to_owned()]),
        ("availability-zone-id", |it| vec![it.zone.id().to_owned()]),
        ("availabilityZone", |it| vec![it.zone.name().to_owned()]),
        ("availabilityZoneId", |it| vec![it.zone.id().to_owned()]),
        ("cidr", |it| texts(&it.subnet.ipv4_cidr)),
        ("cidr-block", |it| texts(&it.subnet.ipv4_cidr)),
        ("cidrBlock", |it| texts(&it.subnet.ipv4_cidr)),
        ("default-for-az", |it| vec![it.is_default.to_string()]),
        ("defaultForAz", |it| vec![it.is_default.to_string()]),
        ("map-public-ip-on-launch", |_| vec![false.to_string()]),
        ("state", |_| vec!["available".to_owned()]),
        ("subnet-id", |it| vec![it.subnet.id.to_string()]),
        ("vpc-id", |it| vec![it.subnet.vpc_id.to_string()]),
    ];
    let tags = None;
    let filters = Filters::read(&call.params, &Columns { by_name, tags })?;
    let page = Page::read(&call.params, 5..=1000)?;
    let wanted = subnets.filter(|it| {
        let is_named = ids.is_empty() || ids.contains(&it.subnet.id.as_str());
        is_named && filters.hold(it)
    });
    let part = page.cut(wanted, |it| it.subnet.id.to_string());
    let used: Vec<_> = all(call)
        .flat_map(|known| {
            let interfaces = known.spec().interfaces();
            interfaces
                .map(|interface| (interface.subnet.id, interface.private_ipv4s.len()))
                .collect::<Vec<_>>()
        })
        .collect();
    Ok(call.ec2_reply(|xml| {
        xml.list("subnetSet", &part.items, |xml, it| {
            let subnet = &it.subnet;
            let in_use = used.iter().filter(|(id, _)| *id == subnet.id);
            let n_used: usize = in_use.map(|(_, n)| n).sum();
            xml.el("subnetId", subnet.id)
                .el("state", "available")
                .el("ownerId", call.account())
                .el("vpcId", subnet.vpc_id)
                .el_if("cidrBlock", subnet.ipv4_cidr)
                .el("availableIpAddressCount", n_free(subnet, n_used))
                .el("availabilityZone", zone.name())
                .el("availabilityZoneId", zone.id())
                .el("defaultForAz", it.is_default)
                .el("mapPublicIpOnLaunch", false)
                .el("assignIpv6AddressOnCreation", false);
        });
        xml.el_if("nextToken", part.next_token.as_deref());
    }))
}

/// Five addresses of a subnet are EC2's.
fn n_free(subnet: &Subnet, n_used: usize) -> u64 {
    let size = subnet
        .ipv4_cidr
        .map_or(0, |range| 1_u64 << (32 - range.prefix_bits()));
    size.saturating_sub(5).saturating_sub(n_used as u64)
}

/// A security group, and the VPC that it is in.
struct Group {
    group: SecurityGroup,
    vpc: VpcId,
}

/// Every security group that something is in, and the default one of each VPC.
fn all_groups(call: &Call<'_>) -> BTreeMap<String, Group> {
    let mut groups = BTreeMap::new();
    let mut add = |group: SecurityGroup, vpc| {
        let id = group.id.to_string();
        groups.entry(id).or_insert(Group { group, vpc });
    };
    for subnet in all_subnets(call).into_values() {
        let name = &call.ground.group.name;
        add(
            call.ground.security_group(subnet.vpc_id, name),
            subnet.vpc_id,
        );
    }
    for known in all(call) {
        for interface in known.spec().interfaces() {
            for group in interface.security_groups.iter() {
                add(group.clone(), interface.subnet.vpc_id);
            }
        }
    }
    groups
}

pub(super) fn groups_by_id(call: &Call<'_>, ids: &[&str]) -> Result<Arc<[SecurityGroup]>, Refusal> {
    let known = all_groups(call);
    let found = ids.iter().map(|id| {
        let group = known.get(*id).map(|found| found.group.clone());
        group.ok_or_else(|| no_group(id))
    });
    found.collect()
}

pub(super) fn groups_by_name(
    call: &Call<'_>,
    names: &[&str],
) -> Result<Arc<[SecurityGroup]>, Refusal> {
    let known = all_groups(call);
    let home = call.ground.subnet.vpc_id;
    let found = names.iter().map(|name| {
        let mut groups = known.values();
        let group = groups.find(|found| &*found.group.name == *name && found.vpc == home);
        let group = group.map(|found| found.group.clone());
        group.ok_or_else(|| no_group(name))
    });
    found.collect()
}

fn no_group(what: &str) -> Refusal {
    Refusal::new(
        Code::InvalidGroupNotFound,
        format!("The security group '{what}' does not exist"),
    )
}

pub(super) fn security_groups(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let groups = all_groups(call);
    let ids = call.params.texts("GroupId")?;
    let names = call.params.texts("GroupName")?;
    if let Some(missing) = ids.iter().find(|id| !groups.contains_key(**id)) {
        return Err(no_group(missing));
    }
    groups_by_name(call, &names)?;
    let by_name: &[(&'static str, Column<Group>)] = &[
        ("description", |_| vec![DESCRIPTION.to_owned()]),
        ("group-id", |group| vec![group.group.id.to_string()]),
        ("group-name", |group| vec![group.group.name.to_string()]),
        ("vpc-id", |group| vec![group.vpc.to_string()]),
    ];
    let tags = None;
    let filters = Filters::read(&call.params, &Columns { by_name, tags })?;
    let page = Page::read(&call.params, 5..=1000)?;
    let wanted = groups.into_values().filter(|group| {
        let has_id = ids.is_empty() || ids.contains(&group.group.id.as_str());
        let is_named = names.is_empty() || names.contains(&&*group.group.name);
        has_id && is_named && filters.hold(group)
    });
    let part = page.cut(wanted, |group| group.group.id.to_string());
    Ok(call.ec2_reply(|xml| {
        xml.list("securityGroupInfo", &part.items, |xml, group| {
            xml.el("ownerId", call.account())
                .el("groupId", group.group.id)
                .el("groupName", &group.group.name)
                .el("groupDescription", DESCRIPTION)
                .el("vpcId", group.vpc)
                .within("ipPermissions", |_| {})
                .within("ipPermissionsEgress", |_| {});
        });
        xml.el_if("nextToken", part.next_token.as_deref());
    }))
}

/// Groups are names here: no rules of theirs are kept or enforced.
const DESCRIPTION: &str = "A security group without rules";

/// The id that a text should be.
pub(super) fn image_id(text: &str) -> Result<ImageId, Refusal> {
    text.parse().map_err(|_| {
        Refusal::new(
            Code::InvalidAmiIdMalformed,
            format!("Invalid id: \"{text}\" (expecting \"ami-...\")"),
        )
    })
}

pub(super) fn no_image(id: &str) -> Refusal {
    Refusal::new(
        Code::InvalidAmiIdNotFound,
        format!("The image id '[{id}]' does not exist"),
    )
}

/// What can be launched here, in the words of images.
pub(super) fn images(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let images = &call.ground.images;
    let ids = call.params.texts("ImageId")?;
    for text in &ids {
        let id = image_id(text)?;
        if !images.iter().any(|image| image.id == id) {
            return Err(no_image(text));
        }
    }
    let account = call.account().to_string();
    let owners = call.params.texts("Owner")?;
    let is_owned = owners.is_empty()
        || owners
            .iter()
            .any(|owner| *owner == "self" || *owner == account);
    let _shown = (
        call.params.flag("IncludeDeprecated")?,
        call.params.flag("IncludeDisabled")?,
        call.params.texts("ExecutableBy")?,
    );
    let by_name: &[(&'static str, Column<Image>)] = &[
        ("architecture", |_| vec![ARCHITECTURE.to_owned()]),
        ("image-id", |image| vec![image.id.to_string()]),
        ("image-type", |_| vec!["machine".to_owned()]),
        ("is-public", |_| vec!["false".to_owned()]),
        ("name", |image| vec![image.name.to_string()]),
        ("root-device-type", |_| vec!["ebs".to_owned()]),
        ("state", |_| vec!["available".to_owned()]),
        ("virtualization-type", |_| vec!["hvm".to_owned()]),
    ];
    let tags = None;
    let filters = Filters::read(&call.params, &Columns { by_name, tags })?;
    let page = Page::read(&call.params, 1..=1000)?;
    let wanted = images.iter().filter(|image| {
        let is_named = ids.is_empty() || ids.contains(&image.id.as_str());
        is_owned && is_named && filters.hold(image)
    });
    let part = page.cut(wanted, |image| image.id.to_string());
    Ok(call.ec2_reply(|xml| {
        xml.list("imagesSet", &part.items, |xml, image| {
            xml.el("imageId", image.id)
                .el("imageLocation", format_args!("{account}/{}", image.name))
                .el("imageState", "available")
                .el("imageOwnerId", &account)
                .el("isPublic", false)
                .el("architecture", ARCHITECTURE)
                .el("imageType", "machine")
                .el("name", &image.name)
                .el("rootDeviceType", "ebs")
                .el("rootDeviceName", DEFAULT_ROOT_DEVICE)
                .within("blockDeviceMapping", |_| {})
                .el("virtualizationType", "hvm")
                .el("hypervisor", "xen");
            if image.has_imds_v2 {
                xml.el("imdsSupport", "v2.0");
            }
        });
        xml.el_if("nextToken", part.next_token.as_deref());
    }))
}

/// Guests run on this host's processor.
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "x86_64"
};

/// Instances have no volumes here.
pub(super) fn volumes(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let ids = call.params.texts("VolumeId")?;
    if let Some(id) = ids.first() {
        return Err(Refusal::new(
            Code::InvalidVolumeNotFound,
            format!("The volume '{id}' does not exist."),
        ));
    }
    Ok(call.ec2_reply(|xml| {
        xml.within("volumeSet", |_| {});
    }))
}
