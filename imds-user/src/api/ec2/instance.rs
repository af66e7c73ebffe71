//! One instance as calls see it: found by its id, and written as EC2 writes it.

use std::collections::BTreeSet;

use crate::api::call::Call;
use crate::api::fault::{Code, Refusal};
use crate::api::xml::Xml;
use crate::config::Ground;
use crate::instance::details::{DEFAULT_ROOT_DEVICE, LifeCycle};
use crate::instance::{
    AccountId, Instance, InstanceId, MetadataOptions, NetworkInterface, SecurityGroup, Tag,
    TokenUse, UnixSeconds, Zone, instance_type,
};
use crate::life::Life;
use crate::metadata;
use crate::store::record::StateReason;
use crate::store::{InstanceRecord, InstanceState};

/// An instance and all that is known of it.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) record: &'a InstanceRecord,
    pub(super) life: &'a Life,
    pub(super) ground: &'a Ground,
}

impl<'a> Known<'a> {
    pub(super) fn spec(&self) -> &'a Instance {
        &self.record.spec
    }

    pub(super) fn id(&self) -> InstanceId {
        self.record.spec.id
    }

    pub(super) fn state(&self) -> InstanceState {
        self.record.state(self.life)
    }

    pub(super) fn zone(&self) -> &'a Zone {
        let own = self.record.spec.details().zone.as_ref();
        own.unwrap_or(&self.ground.host.zone)
    }

    pub(super) fn owner_id(&self) -> AccountId {
        let own = self.record.spec.details().account_id;
        own.unwrap_or(self.ground.host.account_id)
    }

    pub(super) fn launch_time(&self) -> UnixSeconds {
        self.record.launch_time(self.life)
    }

    pub(super) fn profile_arn(&self) -> Option<String> {
        let role = self.record.spec.role.as_deref()?;
        let partition = self.zone().partition();
        let (account, name) = (self.owner_id(), &role.profile.name);
        Some(format!(
            "arn:{partition}:iam::{account}:instance-profile/{name}"
        ))
    }

    pub(super) fn monitoring_state(&self) -> &'static str {
        if self.record.is_monitored() {
            "enabled"
        } else {
            "disabled"
        }
    }

    pub(super) fn tags(&self) -> &'a [Tag] {
        &self.record.spec.tags
    }

    pub(super) fn private_dns_name(&self) -> String {
        metadata::private_hostname(&self.ground.host, self.spec())
    }

    pub(super) fn public_dns_name(&self) -> String {
        metadata::public_hostname(&self.ground.host, self.spec())
    }

    pub(super) fn architecture(&self) -> &'static str {
        let own = self.spec().details().architecture;
        own.unwrap_or_else(|| instance_type::architecture(&self.spec().instance_type))
            .as_str()
    }
}

/// All instances.
pub(super) fn all<'a>(call: &Call<'a>) -> impl Iterator<Item = Known<'a>> {
    let (view, ground) = (call.view, call.ground);
    let records = view.instances().iter();
    records.map(move |(id, versioned)| Known {
        record: &versioned.value,
        life: view.life(*id),
        ground,
    })
}

/// The id that a text should be.
pub(super) fn id(text: &str) -> Result<InstanceId, Refusal> {
    text.parse().map_err(|_| {
        Refusal::new(
            Code::InvalidInstanceIdMalformed,
            format!("Invalid id: \"{text}\" (expecting \"i-...\")"),
        )
    })
}

/// The instances that a call names in `InstanceId.N`, each once, in order. All or none: one that is not there refuses the call.
pub(super) fn named<'a>(call: &Call<'a>) -> Result<Vec<Known<'a>>, Refusal> {
    let ids = call.params.texts("InstanceId")?;
    let ids: Vec<_> = ids.into_iter().map(id).collect::<Result<_, _>>()?;
    let missing: Vec<_> = ids
        .iter()
        .filter(|id| call.view.instance(**id).is_none())
        .map(InstanceId::as_str)
        .collect();
    match missing[..] {
        [] => {}
        [one] => return Err(not_found(format!("The instance ID '{one}' does not exist"))),
        _ => {
            let all = missing.join(", ");
            return Err(not_found(format!("The instance IDs '{all}' do not exist")));
        }
    }
    let mut seen = BTreeSet::new();
    let once = ids.into_iter().filter(|id| seen.insert(*id));
    Ok(once.filter_map(|id| find(call, id)).collect())
}

/// As [`named`], and at least one.
pub(super) fn some_named<'a>(call: &Call<'a>) -> Result<Vec<Known<'a>>, Refusal> {
    let known = named(call)?;
    if known.is_empty() {
        return Err(Refusal::new(
            Code::InvalidParameterCombination,
            "No instances specified",
        ));
    }
    Ok(known)
}

/// The one instance that a call is about, in `InstanceId`.
pub(super) fn the_one<'a>(call: &Call<'a>) -> Result<Known<'a>, Refusal> {
    let id = id(call.params.required("InstanceId")?)?;
    find(call, id).ok_or_else(|| not_found(format!("The instance ID '{id}' does not exist")))
}

/// As [`the_one`], and not gone for good: nothing can be changed of one that is.
pub(super) fn the_one_to_change<'a>(call: &Call<'a>) -> Result<Known<'a>, Refusal> {
    let known = the_one(call)?;
    if matches!(
        known.state(),
        InstanceState::ShuttingDown | InstanceState::Terminated
    ) {
        return Err(incorrect_state(&known));
    }
    Ok(known)
}

pub(super) fn find<'a>(call: &Call<'a>, id: InstanceId) -> Option<Known<'a>> {
    Some(Known {
        record: call.view.instance(id)?,
        life: call.view.life(id),
        ground: call.ground,
    })
}

fn not_found(message: String) -> Refusal {
    Refusal::new(Code::InvalidInstanceIdNotFound, message)
}

/// It cannot be done in the state that the instance is in.
pub(super) fn incorrect_state(known: &Known<'_>) -> Refusal {
    let (id, state) = (known.id(), known.state().as_str());
    Refusal::new(
        Code::IncorrectInstanceState,
        format!(
            "The instance '{id}' is not in a state from which this can be done: it is {state}."
        ),
    )
}

/// `instanceState`, or another element that says a state.
pub(super) fn write_state(xml: &mut Xml, name: &str, state: InstanceState) {
    xml.within(name, |xml| {
        xml.el("code", state.code()).el("name", state.as_str());
    });
}

/// The list of tags, if there are any.
pub(super) fn write_tags(xml: &mut Xml, tags: &[Tag]) {
    if !tags.is_empty() {
        xml.list("tagSet", tags, |xml, tag| {
            xml.el("key", &tag.key).el("value", &tag.value);
        });
    }
}

/// The six facts of the metadata options: Terraform sees a change where one lacks.
pub(super) fn write_options(xml: &mut Xml, name: &str, state: &str, options: &MetadataOptions) {
    xml.within(name, |xml| {
        xml.el("state", state)
            .el("httpTokens", token_use(options.http_tokens))
            .el(
                "httpPutResponseHopLimit",
                options.http_put_response_hop_limit,
            )
            .el("httpEndpoint", switch(options.http_endpoint))
            .el("httpProtocolIpv6", switch(options.http_protocol_ipv6))
            .el(
                "instanceMetadataTags",
                switch(options.instance_metadata_tags),
            );
    });
}

pub(super) fn token_use(tokens: TokenUse) -> &'static str {
    tokens.as_str()
}

pub(super) fn switch(switch: crate::instance::Switch) -> &'static str {
    switch.as_str()
}

fn write_groups<'a>(xml: &mut Xml, groups: impl IntoIterator<Item = &'a SecurityGroup>) {
    xml.list("groupSet", groups, |xml, group| {
        xml.el("groupId", group.id).el("groupName", &group.name);
    });
}

/// One instance (EC2 API, `Instance`).
pub(super) fn write(xml: &mut Xml, known: &Known<'_>) {
    let (record, spec, details) = (known.record, known.spec(), known.spec().details());
    let is_gone = known.state() == InstanceState::Terminated;
    xml.el("instanceId", spec.id).el("imageId", spec.image_id);
    write_state(xml, "instanceState", known.state());
    let private_name = (!is_gone).then(|| known.private_dns_name());
    let public_name = (!is_gone).then(|| known.public_dns_name());
    xml.el("privateDnsName", private_name.unwrap_or_default())
        .el("dnsName", public_name.unwrap_or_default())
        .el("reason", "")
        .el_if("keyName", record.key_name.as_deref())
        .el("amiLaunchIndex", spec.launch_index)
        .within("productCodes", |_| {})
        .el("instanceType", &spec.instance_type)
        .time("launchTime", known.launch_time());
    xml.within("placement", |xml| {
        xml.el("availabilityZone", known.zone().name())
            .el(
                "groupName",
                details.placement_group.as_deref().unwrap_or_default(),
            )
            .el("tenancy", "default");
    });
    xml.within("monitoring", |xml| {
        xml.el("state", known.monitoring_state());
    });
    if !is_gone {
        write_addresses(xml, known);
    }
    let by_user = ("Client.UserInitiatedShutdown", "User initiated shutdown");
    let reason = record
        .state_reason
        .filter(|reason| !is_gone || *reason != StateReason::NoGuest)
        .map(|reason| (reason.code(), reason.message()));
    if let Some((code, message)) = reason.or(is_gone.then_some(by_user)) {
        xml.within("stateReason", |xml| {
            xml.el("code", code)
                .el("message", format_args!("{code}: {message}"));
        });
    }
    xml.el("architecture", known.architecture())
        .el("rootDeviceType", "ebs")
        .el("rootDeviceName", DEFAULT_ROOT_DEVICE)
        .within("blockDeviceMapping", |_| {})
        .el("virtualizationType", "hvm")
        .el(
            "clientToken",
            record.launch.client_token.as_deref().unwrap_or_default(),
        );
    if details.life_cycle != LifeCycle::OnDemand {
        xml.el("instanceLifecycle", details.life_cycle.as_str());
    }
    write_tags(xml, &spec.tags);
    // The API says `xen` of Nitro too (`HypervisorType`).
    xml.el("hypervisor", "xen");
    if !is_gone {
        xml.list(
            "networkInterfaceSet",
            spec.interfaces(),
            |xml, interface| {
                write_interface(xml, known, interface);
            },
        );
    }
    if let (Some(role), Some(arn)) = (&spec.role, known.profile_arn()) {
        xml.within("iamInstanceProfile", |xml| {
            xml.el("arn", arn).el("id", &role.profile.id);
        });
    }
    xml.el("ebsOptimized", record.attributes.ebs_optimized)
        .el("enaSupport", true);
    write_options(
        xml,
        "metadataOptions",
        record.options.state(),
        &spec.options,
    );
    xml.within("hibernationOptions", |xml| {
        xml.el(
            "configured",
            details.hibernation_configured.unwrap_or(false),
        );
    });
    xml.within("enclaveOptions", |xml| {
        xml.el("enabled", false);
    });
    xml.within("maintenanceOptions", |xml| {
        xml.el("autoRecovery", "default");
    });
    xml.within("privateDnsNameOptions", |xml| {
        xml.el("hostnameType", "ip-name")
            .el("enableResourceNameDnsARecord", false)
            .el("enableResourceNameDnsAAAARecord", false);
    });
}

fn write_addresses(xml: &mut Xml, known: &Known<'_>) {
    let primary = &known.spec().primary;
    xml.el("subnetId", primary.subnet.id)
        .el("vpcId", primary.subnet.vpc_id)
        .el_if("privateIpAddress", primary.private_ipv4())
        .el_if("ipAddress", primary.public_ipv4s().next())
        .el_if("ipv6Address", primary.ipv6s.first())
        .el("sourceDestCheck", known.record.attributes.source_dest_check);
    write_groups(xml, primary.security_groups.iter());
}

fn write_interface(xml: &mut Xml, known: &Known<'_>, interface: &NetworkInterface) {
    let subnet = &interface.subnet;
    xml.el("networkInterfaceId", interface.id)
        .el("subnetId", subnet.id)
        .el("vpcId", subnet.vpc_id)
        .el("description", "")
        .el("ownerId", interface.owner_id.unwrap_or(known.owner_id()))
        .el("status", "in-use")
        .el("macAddress", interface.mac)
        .el_if("privateIpAddress", interface.private_ipv4())
        .el("sourceDestCheck", known.record.attributes.source_dest_check)
        .el("interfaceType", "interface");
    write_groups(xml, interface.security_groups.iter());
    xml.within("attachment", |xml| {
        let id = interface.id.as_str().replacen("eni-", "eni-attach-", 1);
        xml.el("attachmentId", id)
            .el("deviceIndex", interface.device_number)
            .el("networkCardIndex", interface.network_card)
            .el("status", "attached")
            .time("attachTime", known.spec().pending_time)
            .el("deleteOnTermination", true);
    });
    let addresses = interface.private_ipv4s.iter().enumerate();
    xml.list(
        "privateIpAddressesSet",
        addresses,
        |xml, (index, private)| {
            xml.el("privateIpAddress", private.address)
                .el("primary", index == 0);
            if let Some(public) = private.public {
                xml.within("association", |xml| {
                    xml.el("publicIp", public).el("ipOwnerId", "amazon");
                });
            }
        },
    );
    xml.list("ipv6AddressesSet", &interface.ipv6s, |xml, address| {
        xml.el("ipv6Address", address);
    });
}
