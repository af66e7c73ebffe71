//! Attributes of instances: `DescribeInstanceAttribute`, `ModifyInstanceAttribute`, `ModifyNetworkInterfaceAttribute`,
//! `DescribeInstanceCreditSpecifications`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::instance::{Known, all, named, the_one, the_one_to_change};
use super::{launch, places, types};
use crate::api::call::{Call, Outcome};
use crate::api::fault::{Code, Refusal};
use crate::api::query::Params;
use crate::api::xml::Xml;
use crate::instance::details::DEFAULT_ROOT_DEVICE;
use crate::store::record::{CpuCredits, ShutdownBehavior};
use crate::store::{InstanceRecord, InstanceState, Key, Record};

/// An attribute, as calls name it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attribute {
    BlockDeviceMapping,
    DisableApiStop,
    DisableApiTermination,
    EbsOptimized,
    EnaSupport,
    EnclaveOptions,
    GroupSet,
    InstanceInitiatedShutdownBehavior,
    InstanceType,
    Kernel,
    ProductCodes,
    Ramdisk,
    RootDeviceName,
    SourceDestCheck,
    SriovNetSupport,
    UserData,
}

const ATTRIBUTES: &[(&str, Attribute)] = &[
    ("instanceType", Attribute::InstanceType),
    ("kernel", Attribute::Kernel),
    ("ramdisk", Attribute::Ramdisk),
    ("userData", Attribute::UserData),
    ("disableApiTermination", Attribute::DisableApiTermination),
    (
        "instanceInitiatedShutdownBehavior",
        Attribute::InstanceInitiatedShutdownBehavior,
    ),
    ("rootDeviceName", Attribute::RootDeviceName),
    ("blockDeviceMapping", Attribute::BlockDeviceMapping),
    ("productCodes", Attribute::ProductCodes),
    ("sourceDestCheck", Attribute::SourceDestCheck),
    ("groupSet", Attribute::GroupSet),
    ("ebsOptimized", Attribute::EbsOptimized),
    ("sriovNetSupport", Attribute::SriovNetSupport),
    ("enaSupport", Attribute::EnaSupport),
    ("enclaveOptions", Attribute::EnclaveOptions),
    ("disableApiStop", Attribute::DisableApiStop),
];

pub(super) fn describe(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let known = the_one(call)?;
    let name = call.params.required("Attribute")?;
    let attribute = attribute_named(name)?;
    Ok(call.ec2_reply(|xml| {
        xml.el("instanceId", known.id());
        write(xml, name, attribute, &known);
    }))
}

/// The attribute of this name, which is the same in every letter.
fn attribute_named(name: &str) -> Result<Attribute, Refusal> {
    let found = ATTRIBUTES.iter().find(|(known, _)| *known == name);
    let found = found.map(|(_, attribute)| *attribute);
    found.ok_or_else(|| Refusal::invalid_value(name, "attribute", "Unknown attribute."))
}

/// One element, named after the attribute.
fn write(xml: &mut Xml, name: &str, attribute: Attribute, known: &Known<'_>) {
    let attributes = &known.record.attributes;
    let value = match attribute {
        Attribute::GroupSet => {
            let groups = known.spec().primary.security_groups.iter();
            xml.list(name, groups, |xml, group| {
                xml.el("groupId", group.id).el("groupName", &group.name);
            });
            return;
        }
        Attribute::EnclaveOptions => {
            xml.within(name, |xml| {
                xml.el("enabled", false);
            });
            return;
        }
        Attribute::BlockDeviceMapping | Attribute::ProductCodes => None,
        Attribute::Kernel | Attribute::Ramdisk | Attribute::SriovNetSupport => None,
        Attribute::DisableApiStop => Some(attributes.disable_api_stop.to_string()),
        Attribute::DisableApiTermination => Some(attributes.disable_api_termination.to_string()),
        Attribute::EbsOptimized => Some(attributes.ebs_optimized.to_string()),
        Attribute::EnaSupport => Some(true.to_string()),
        Attribute::SourceDestCheck => Some(attributes.source_dest_check.to_string()),
        Attribute::InstanceInitiatedShutdownBehavior => {
            Some(shutdown_behavior(attributes.instance_initiated_shutdown_behavior).to_owned())
        }
        Attribute::InstanceType => Some(known.spec().instance_type.to_string()),
        Attribute::RootDeviceName => Some(DEFAULT_ROOT_DEVICE.to_owned()),
        Attribute::UserData => {
            let user_data = known.spec().user_data.as_ref();
            user_data.map(|data| STANDARD.encode(data.bytes()))
        }
    };
    // Without a value the element is there, and empty.
    xml.within(name, |xml| {
        xml.el_if("value", value);
    });
}

fn shutdown_behavior(behavior: ShutdownBehavior) -> &'static str {
    match behavior {
        ShutdownBehavior::Stop => "stop",
        ShutdownBehavior::Terminate => "terminate",
    }
}

/// What `instanceInitiatedShutdownBehavior` may be.
pub(super) const SHUTDOWN_BEHAVIORS: &[(&str, ShutdownBehavior)] = &[
    ("stop", ShutdownBehavior::Stop),
    ("terminate", ShutdownBehavior::Terminate),
];

/// Where the value of an attribute stands: below its own name, or beside `Attribute`.
struct Given<'a> {
    attribute: Attribute,
    place: Params<'a>,
}

pub(super) fn modify(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let known = the_one_to_change(call)?;
    let given = given(&call.params)?;
    let mut record = known.record.clone();
    change(call, &known, &given, &mut record)?;
    Ok(changed(call, &known, record))
}

fn changed(call: &Call<'_>, known: &Known<'_>, record: InstanceRecord) -> Outcome {
    let mut outcome = call.ec2_done();
    outcome.about = Some(Key::instance(known.id()));
    if record == *known.record {
        outcome
    } else {
        outcome.put(Record::Instance(Box::new(record)))
    }
}

/// The one attribute that a call changes.
fn given<'a>(params: &Params<'a>) -> Result<Given<'a>, Refusal> {
    let mut all = Vec::new();
    if let Some(name) = params.text("Attribute") {
        let attribute = attribute_named(name)?;
        let place = params.clone();
        all.push(Given { attribute, place });
    }
    for (name, attribute) in ATTRIBUTES {
        let place = match attribute {
            Attribute::GroupSet => params.at("GroupId"),
            _ => params.at(&capitalised(name)),
        };
        // Empty user data is user data that is taken away.
        let is_given = place.is_given() || place.literal("Value").is_some();
        if is_given {
            let attribute = *attribute;
            all.push(Given { attribute, place });
        }
    }
    let one = all.pop();
    match (one, all.is_empty()) {
        (Some(one), true) => Ok(one),
        (Some(_), false) => Err(Refusal::new(
            Code::InvalidParameterCombination,
            "Fields for multiple attribute types specified. Only one attribute can be modified at a time",
        )),
        (None, _) => Err(Refusal::new(
            Code::InvalidParameterCombination,
            "No attributes specified.",
        )),
    }
}

fn capitalised(name: &str) -> String {
    let mut characters = name.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(characters).collect()
}

fn change(
    call: &Call<'_>,
    known: &Known<'_>,
    given: &Given<'_>,
    record: &mut InstanceRecord,
) -> Result<(), Refusal> {
    let place = &given.place;
    let missing = || Refusal::missing(place.at("Value").path());
    let flag = || place.flag("Value")?.ok_or_else(missing);
    let attributes = &mut record.attributes;
    match given.attribute {
        Attribute::DisableApiStop => attributes.disable_api_stop = flag()?,
        Attribute::DisableApiTermination => attributes.disable_api_termination = flag()?,
        Attribute::SourceDestCheck => attributes.source_dest_check = flag()?,
        Attribute::EbsOptimized => {
            must_be_stopped(known)?;
            attributes.ebs_optimized = flag()?;
        }
        Attribute::InstanceInitiatedShutdownBehavior => {
            let behavior = place.word("Value", SHUTDOWN_BEHAVIORS)?;
            attributes.instance_initiated_shutdown_behavior = behavior.ok_or_else(missing)?;
        }
        Attribute::InstanceType => {
            let instance_type = place.required("Value")?;
            types::check(instance_type)?;
            must_be_stopped(known)?;
            record.spec.instance_type = instance_type.into();
        }
        Attribute::UserData => {
            must_be_stopped(known)?;
            record.spec.user_data = launch::user_data(place, "Value")?;
        }
        Attribute::GroupSet => {
            let ids = call.params.texts("GroupId")?;
            record.spec.primary.security_groups = places::groups_by_id(call, &ids)?;
        }
        Attribute::BlockDeviceMapping
        | Attribute::EnaSupport
        | Attribute::EnclaveOptions
        | Attribute::Kernel
        | Attribute::ProductCodes
        | Attribute::Ramdisk
        | Attribute::RootDeviceName
        | Attribute::SriovNetSupport => {
            return Err(Refusal::unsupported(
                "This attribute cannot be changed here",
            ));
        }
    }
    Ok(())
}

fn must_be_stopped(known: &Known<'_>) -> Result<(), Refusal> {
    if known.state() == InstanceState::Stopped {
        return Ok(());
    }
    Err(Refusal::new(
        Code::IncorrectInstanceState,
        format!(
            "The instance '{}' is not in the 'stopped' state.",
            known.id()
        ),
    ))
}

/// The way in which Terraform changes security groups: those of the primary interface are the instance's.
pub(super) fn modify_interface(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let id = call.params.required("NetworkInterfaceId")?;
    let has_it = |known: &Known<'_>| known.spec().primary.id.as_str() == id;
    let known = all(call).find(has_it).ok_or_else(|| {
        let message = format!("The networkInterface ID '{id}' does not exist");
        Refusal::new(Code::InvalidNetworkInterfaceIdNotFound, message)
    })?;
    let mut record = known.record.clone();
    let groups = call.params.texts("SecurityGroupId")?;
    if !groups.is_empty() {
        record.spec.primary.security_groups = places::groups_by_id(call, &groups)?;
    }
    if let Some(check) = call.params.at("SourceDestCheck").flag("Value")? {
        record.attributes.source_dest_check = check;
    }
    Ok(changed(call, &known, record))
}

/// What `CpuCredits` may be.
pub(super) const CPU_CREDITS: &[(&str, CpuCredits)] = &[
    ("standard", CpuCredits::Standard),
    ("unlimited", CpuCredits::Unlimited),
];

pub(super) fn describe_credits(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let mut known = named(call)?;
    if known.is_empty() {
        known = all(call).collect();
    }
    known.retain(|known| types::is_burstable(&known.spec().instance_type));
    Ok(call.ec2_reply(|xml| {
        xml.list("instanceCreditSpecificationSet", &known, |xml, known| {
            let credits = known.record.attributes.cpu_credits;
            let credits = credits.unwrap_or(usual_credits(&known.spec().instance_type));
            let said = CPU_CREDITS.iter().find(|(_, value)| *value == credits);
            xml.el("instanceId", known.id())
                .el_if("cpuCredits", said.map(|(word, _)| word));
        });
    }))
}

/// T2 is the only family that begins with standard credits (EC2 User Guide, "Unlimited mode concepts").
fn usual_credits(instance_type: &str) -> CpuCredits {
    if instance_type.starts_with("t2.") {
        CpuCredits::Standard
    } else {
        CpuCredits::Unlimited
    }
}
