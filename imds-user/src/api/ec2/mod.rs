//! EC2: an action is a row here and a function in the file of its subject. All are pure (see [`super::call`]).
//!
//! What is missing is refused as `InvalidAction`, and what is there but cannot be had on this host as
//! `UnsupportedOperation`: never in a way that clients repeat.

mod attributes;
mod defaults;
mod describe;
mod filter;
mod instance;
mod key_pairs;
mod launch;
mod options;
mod page;
mod places;
mod power;
mod profiles;
mod register;
pub mod settle;
mod tags;
pub mod types;
mod vpc;

#[cfg(test)]
mod tests;

use super::call::Action;
use super::fault::{Code, Refusal};
use super::query::Params;
use crate::config::Ground;

/// Registers an instance whose guest somebody else runs. It is for the command line: EC2 has nothing like it.
pub const REGISTER: Action = Action::writes("RegisterInstance", register::register);

/// What was probably meant by a value that was refused: for people, whom a list of all types would not help.
#[must_use]
pub fn meant(refusal: &Refusal, parameters: &Params<'_>, ground: &Ground) -> Option<String> {
    let meant = match refusal.code {
        Code::InvalidInstanceType => types::near(parameters.text("InstanceType")?)?.to_owned(),
        Code::InvalidAmiIdNotFound | Code::InvalidAmiIdMalformed => {
            ground.images.first()?.id.to_string()
        }
        _ => return None,
    };
    Some(format!("did you mean `{meant}`?"))
}

/// The action of that name.
#[must_use]
pub fn action(name: &str) -> Option<&'static Action> {
    ACTIONS.iter().find(|action| action.name == name)
}

/// What may be called.
pub const ACTIONS: &[Action] = &[
    Action::writes("AssociateIamInstanceProfile", profiles::associate),
    Action::writes("CreateKeyPair", key_pairs::create).taking_long(),
    Action::writes("CreateTags", tags::create),
    Action::writes("DeleteKeyPair", key_pairs::delete),
    Action::writes("DeleteTags", tags::delete),
    Action::reads("DescribeAvailabilityZones", places::zones),
    Action::reads("DescribeIamInstanceProfileAssociations", profiles::describe),
    Action::reads("DescribeImages", places::images).looking_around(),
    Action::reads("DescribeInstanceAttribute", attributes::describe),
    Action::reads(
        "DescribeInstanceCreditSpecifications",
        attributes::describe_credits,
    ),
    Action::reads("DescribeInstanceStatus", describe::status),
    Action::reads("DescribeInstanceTypes", types::describe),
    Action::reads("DescribeInstances", describe::instances),
    Action::reads("DescribeKeyPairs", key_pairs::describe),
    Action::reads("DescribeRegions", places::regions),
    Action::reads("DescribeRouteTables", vpc::route_tables),
    Action::reads("DescribeSecurityGroups", places::security_groups),
    Action::reads("DescribeSubnets", places::subnets),
    Action::reads("DescribeTags", tags::describe),
    Action::reads("DescribeVolumes", places::volumes),
    Action::reads("DescribeVpcAttribute", vpc::attribute),
    Action::reads("DescribeVpcs", places::vpcs),
    Action::writes("DisassociateIamInstanceProfile", profiles::disassociate),
    Action::reads("GetInstanceMetadataDefaults", defaults::get),
    Action::writes("ImportKeyPair", key_pairs::import),
    Action::writes("ModifyInstanceAttribute", attributes::modify),
    Action::writes("ModifyInstanceMetadataDefaults", defaults::modify),
    Action::writes("ModifyInstanceMetadataOptions", options::modify),
    Action::writes(
        "ModifyNetworkInterfaceAttribute",
        attributes::modify_interface,
    ),
    Action::writes("MonitorInstances", power::monitor),
    Action::writes("RebootInstances", power::reboot),
    Action::writes("ReplaceIamInstanceProfileAssociation", profiles::replace),
    Action::writes("RunInstances", launch::run).looking_around(),
    Action::writes("StartInstances", power::start),
    Action::writes("StopInstances", power::stop),
    Action::writes("TerminateInstances", power::terminate),
    Action::writes("UnmonitorInstances", power::unmonitor),
];
