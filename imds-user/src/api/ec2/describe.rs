//! `DescribeInstances` and `DescribeInstanceStatus`.

use super::filter::{Column, Columns, Filters, Tags};
use super::instance::{self, Known, all, named, write_state};
use super::page::{Page, Part};
use crate::api::call::{Call, Outcome};
use crate::api::fault::{Code, Refusal};
use crate::api::xml::Xml;
use crate::instance::details::DEFAULT_ROOT_DEVICE;
use crate::instance::{MetadataOptions, UnixMillis};
use crate::store::InstanceState;

/// What instances can be filtered by. The model has about a hundred and twenty names; these are those of which something is
/// known here.
fn filters<'a>(call: &Call<'a>) -> Result<Filters<Known<'a>>, Refusal> {
    let by_name: &[(&'static str, Column<Known<'a>>)] = &[
        ("architecture", |i| one(i.architecture())),
        ("availability-zone", |i| one(i.zone().name())),
        ("client-token", |i| {
            some(i.record.launch.client_token.as_deref())
        }),
        ("dns-name", |i| one(i.public_dns_name())),
        ("group-id", |i| groups(i, false)),
        ("group-name", |i| groups(i, true)),
        ("iam-instance-profile.arn", |i| some(i.profile_arn())),
        ("iam-instance-profile.id", |i| {
            some(i.spec().role.as_ref().map(|role| &role.profile.id))
        }),
        ("image-id", |i| one(i.spec().image_id)),
        ("instance-id", |i| one(i.id())),
        ("instance-state-code", |i| one(i.state().code())),
        ("instance-state-name", |i| one(i.state().as_str())),
        ("instance-type", |i| one(&i.spec().instance_type)),
        ("instance.group-id", |i| groups(i, false)),
        ("instance.group-name", |i| groups(i, true)),
        ("ip-address", |i| {
            some(i.spec().primary.public_ipv4s().next())
        }),
        ("key-name", |i| some(i.record.key_name.as_deref())),
        ("launch-index", |i| one(i.spec().launch_index)),
        ("launch-time", |i| {
            one(UnixMillis(i.launch_time().0.saturating_mul(1000)).iso())
        }),
        ("metadata-options.http-endpoint", |i| {
            one(instance::switch(options(i).http_endpoint))
        }),
        // There is no such option: where the endpoint is on, IPv4 is.
        ("metadata-options.http-protocol-ipv4", |i| {
            one(instance::switch(options(i).http_endpoint))
        }),
        ("metadata-options.http-protocol-ipv6", |i| {
            one(instance::switch(options(i).http_protocol_ipv6))
        }),
        ("metadata-options.http-put-response-hop-limit", |i| {
            one(options(i).http_put_response_hop_limit)
        }),
        ("metadata-options.http-tokens", |i| {
            one(instance::token_use(options(i).http_tokens))
        }),
        ("metadata-options.instance-metadata-tags", |i| {
            one(instance::switch(options(i).instance_metadata_tags))
        }),
        ("metadata-options.state", |i| one(i.record.options.state())),
        ("monitoring-state", |i| one(i.monitoring_state())),
        ("network-interface.mac-address", |i| {
            i.spec()
                .interfaces()
                .map(|interface| interface.mac.to_string())
                .collect()
        }),
        ("network-interface.network-interface-id", |i| {
            i.spec()
                .interfaces()
                .map(|interface| interface.id.to_string())
                .collect()
        }),
        ("network-interface.private-ip-address", private_addresses),
        ("network-interface.subnet-id", |i| {
            i.spec()
                .interfaces()
                .map(|interface| interface.subnet.id.to_string())
                .collect()
        }),
        ("network-interface.vpc-id", |i| {
            i.spec()
                .interfaces()
                .map(|interface| interface.subnet.vpc_id.to_string())
                .collect()
        }),
        ("owner-id", |i| one(i.owner_id())),
        ("private-dns-name", |i| one(i.private_dns_name())),
        ("private-ip-address", private_addresses),
        ("reservation-id", |i| one(i.spec().reservation_id)),
        ("root-device-name", |_| one(DEFAULT_ROOT_DEVICE)),
        ("root-device-type", |_| one("ebs")),
        ("source-dest-check", |i| {
            one(i.record.attributes.source_dest_check)
        }),
        ("subnet-id", |i| one(i.spec().primary.subnet.id)),
        ("tenancy", |_| one("default")),
        ("virtualization-type", |_| one("hvm")),
        ("vpc-id", |i| one(i.spec().primary.subnet.vpc_id)),
    ];
    let tags: Option<Tags<Known<'a>>> = Some(|i| i.tags());
    Filters::read(&call.params, &Columns { by_name, tags })
}

fn one(value: impl ToString) -> Vec<String> {
    vec![value.to_string()]
}

fn some(value: Option<impl ToString>) -> Vec<String> {
    value.iter().map(ToString::to_string).collect()
}

fn options<'a>(known: &Known<'a>) -> &'a MetadataOptions {
    &known.spec().options
}

fn groups(known: &Known<'_>, by_name: bool) -> Vec<String> {
    let groups = known.spec().primary.security_groups.iter();
    let text = |group: &crate::instance::SecurityGroup| match by_name {
        true => group.name.to_string(),
        false => group.id.to_string(),
    };
    groups.map(text).collect()
}

fn private_addresses(known: &Known<'_>) -> Vec<String> {
    let interfaces = known.spec().interfaces();
    let addresses = interfaces.flat_map(|interface| &interface.private_ipv4s);
    addresses
        .map(|private| private.address.to_string())
        .collect()
}

/// The instances that a call asks for: by their ids or all, in pages, those that its filters want.
fn wanted<'a>(
    call: &Call<'a>,
    is_shown: impl Fn(&Known<'a>) -> bool,
) -> Result<Part<Known<'a>>, Refusal> {
    let filters = filters(call)?;
    let by_id = named(call)?;
    let page = page(call, !by_id.is_empty())?;
    let is_wanted = |known: &Known<'a>| is_shown(known) && filters.hold(known);
    // By launches, so that what was launched together is shown together.
    let name = |known: &Known<'a>| {
        let spec = known.spec();
        format!(
            "{} {:08x} {}",
            spec.reservation_id, spec.launch_index, spec.id
        )
    };
    Ok(if by_id.is_empty() {
        page.cut(all(call).filter(is_wanted), name)
    } else {
        page.cut(by_id.into_iter().filter(is_wanted), name)
    })
}

/// Pages are for those who ask for all.
fn page(call: &Call<'_>, has_ids: bool) -> Result<Page, Refusal> {
    let asks = call.params.at("MaxResults").is_given();
    if has_ids && asks {
        return Err(Refusal::new(
            Code::InvalidParameterCombination,
            "The parameter instancesSet cannot be used with the parameter maxResults",
        ));
    }
    if has_ids {
        return Ok(Page::all());
    }
    let page = Page::read(&call.params, 5..=1000)?;
    Ok(if asks || call.params.at("NextToken").is_given() {
        page
    } else {
        // Who does not ask for pages expects none.
        Page::all()
    })
}

pub(super) fn instances(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let part = wanted(call, |_| true)?;
    let launches = part
        .items
        .chunk_by(|one, next| one.spec().reservation_id == next.spec().reservation_id);
    Ok(call.ec2_reply(|xml| {
        xml.list("reservationSet", launches, |xml, launch| {
            write_reservation(xml, launch);
        });
        xml.el_if("nextToken", part.next_token.as_deref());
    }))
}

/// The members of a launch.
pub(super) fn write_reservation(xml: &mut Xml, launch: &[Known<'_>]) {
    if let Some(first) = launch.first() {
        xml.el("reservationId", first.spec().reservation_id)
            .el("ownerId", first.owner_id());
    }
    xml.within("groupSet", |_| {});
    xml.list("instancesSet", launch, instance::write);
}

pub(super) fn status(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let shows_all = call.params.flag("IncludeAllInstances")?.unwrap_or(false);
    let part = wanted(call, |known| {
        shows_all || known.state() == InstanceState::Running
    })?;
    Ok(call.ec2_reply(|xml| {
        xml.list("instanceStatusSet", &part.items, write_status);
        xml.el_if("nextToken", part.next_token.as_deref());
    }))
}

fn write_status(xml: &mut Xml, known: &Known<'_>) {
    xml.el("instanceId", known.id())
        .el("availabilityZone", known.zone().name());
    write_state(xml, "instanceState", known.state());
    for check in ["systemStatus", "instanceStatus"] {
        xml.within(check, |xml| {
            if known.state() != InstanceState::Running {
                xml.el("status", "not-applicable");
                return;
            }
            xml.el("status", "ok");
            xml.list("details", ["reachability"], |xml, name| {
                xml.el("name", name).el("status", "passed");
            });
        });
    }
    let events = known.life.maintenance_events.iter();
    let active = events
        .filter(|event| event.state == crate::instance::details::MaintenanceState::Active)
        .collect::<Vec<_>>();
    xml.list("eventsSet", active, |xml, event| {
        xml.el("instanceEventId", &event.event_id)
            .el("code", event.code.as_str())
            .el("description", &event.description)
            .time("notBefore", event.not_before)
            .time("notAfter", event.not_after);
        if let Some(deadline) = event.not_before_deadline {
            xml.time("notBeforeDeadline", deadline);
        }
    });
}
