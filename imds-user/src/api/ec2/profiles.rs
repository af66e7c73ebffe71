//! Instance profiles: which one an instance has. There is no IAM here, so any name is that of a profile with a role of the
//! same name, whose credentials are made up; where real ones come from is the configuration file's business.

use sha2::{Digest as _, Sha256};

use super::filter::{Column, Columns, Filters};
use super::instance::{Known, all, the_one_to_change};
use super::page::Page;
use crate::api::call::{Call, Outcome};
use crate::api::fault::{Code, Refusal};
use crate::api::query::Params;
use crate::api::xml::Xml;
use crate::instance::credentials::RoleCredentials;
use crate::instance::{InstanceProfile, ProfileAssociationId, Role};
use crate::store::{InstanceRecord, Key, Record};

/// Longest name of a profile, with its path.
const NAME_MAX: usize = 512 + 128;

/// The profile that a call names, by its name or its ARN.
pub(super) fn given(call: &Call<'_>, place: &Params<'_>) -> Result<Option<Role>, Refusal> {
    let (name, arn) = (place.text("Name"), place.text("Arn"));
    let name = match (name, arn) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return Err(Refusal::new(
                Code::InvalidParameterCombination,
                "The parameter 'iamInstanceProfile.name' may not be used in combination with 'iamInstanceProfile.arn'",
            ));
        }
        (Some(name), None) => name,
        (None, Some(arn)) => name_in(call, arn)?,
    };
    let is_fit = |c: char| c.is_ascii_alphanumeric() || "+=,.@_-/".contains(c);
    let role = name.rsplit('/').next().unwrap_or_default();
    if role.is_empty() || name.len() > NAME_MAX || !name.chars().all(is_fit) {
        return Err(Refusal::invalid_value(
            name,
            place.at("Name").path(),
            "Invalid IAM Instance Profile name",
        ));
    }
    Ok(Some(Role {
        name: role.into(),
        profile: InstanceProfile {
            name: name.into(),
            id: call.ground.instance_profile_id(name),
        },
        credentials: RoleCredentials::Generated,
    }))
}

/// What stands behind `instance-profile/` in an ARN of this account.
fn name_in<'a>(call: &Call<'_>, arn: &'a str) -> Result<&'a str, Refusal> {
    let prefix = call.arn("iam", "", "instance-profile/");
    arn.strip_prefix(&*prefix).ok_or_else(|| {
        Refusal::new(
            Code::InvalidIamInstanceProfile,
            format!("The IAM instance profile ARN '{arn}' is not valid: those of this account begin with {prefix}"),
        )
    })
}

fn required(call: &Call<'_>) -> Result<Role, Refusal> {
    let place = call.params.at("IamInstanceProfile");
    given(call, &place)?.ok_or_else(|| Refusal::missing("IamInstanceProfile"))
}

/// An id for an association that a call makes.
pub(super) fn new_association(call: &Call<'_>, number: u64) -> ProfileAssociationId {
    ProfileAssociationId::from_digest(&call.entropy.bytes("association", number))
}

/// The id of an instance's association. Those whose role the file gave have none of their own, and get one that follows from
/// theirs.
fn association_id(known: &Known<'_>) -> ProfileAssociationId {
    known.record.profile_association.unwrap_or_else(|| {
        let digest: [u8; 32] = Sha256::digest(known.id().as_str()).into();
        ProfileAssociationId::from_digest(&std::array::from_fn(|at| digest[at]))
    })
}

pub(super) fn associate(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let known = the_one_to_change(call)?;
    let role = required(call)?;
    if known.spec().role.is_some() {
        return Err(Refusal::new(
            Code::IncorrectState,
            format!(
                "There is an existing association for instance {}",
                known.id()
            ),
        ));
    }
    Ok(change(call, &known, Some(role), "associating"))
}

pub(super) fn replace(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let role = required(call)?;
    let known = associated(call)?;
    Ok(change(call, &known, Some(role), "associating"))
}

pub(super) fn disassociate(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let known = associated(call)?;
    Ok(change(call, &known, None, "disassociating"))
}

/// The instance with the association that a call names.
fn associated<'a>(call: &Call<'a>) -> Result<Known<'a>, Refusal> {
    let id = call.params.required("AssociationId")?;
    let has_it =
        |known: &Known<'_>| known.spec().role.is_some() && association_id(known).as_str() == id;
    let found = all(call).find(has_it);
    found.ok_or_else(|| {
        Refusal::new(
            Code::InvalidAssociationIdNotFound,
            format!("An invalid association-id of '{id}' was given"),
        )
    })
}

/// Writes the new role; none ends the association, and is told of as it was.
fn change(call: &Call<'_>, known: &Known<'_>, role: Option<Role>, state: &str) -> Outcome {
    let mut record: InstanceRecord = known.record.clone();
    let ends = role.is_none();
    record.spec.role = role.map(Box::new);
    // Credentials of the former role are none of this one's.
    record.credential_source = None;
    record.profile_association = (!ends).then(|| new_association(call, 0));
    let new = Known {
        record: &record,
        ..*known
    };
    let shown = if ends { known } else { &new };
    let mut outcome = call.ec2_reply(|xml| {
        xml.within("iamInstanceProfileAssociation", |xml| {
            write(xml, shown, state);
        });
    });
    outcome.about = Some(Key::instance(known.id()));
    outcome.put(Record::Instance(Box::new(record)))
}

fn write(xml: &mut Xml, known: &Known<'_>, state: &str) {
    xml.el("associationId", association_id(known))
        .el("instanceId", known.id());
    if let (Some(role), Some(arn)) = (&known.spec().role, known.profile_arn()) {
        xml.within("iamInstanceProfile", |xml| {
            xml.el("arn", arn).el("id", &role.profile.id);
        });
    }
    xml.el("state", state);
}

pub(super) fn describe(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let ids = call.params.texts("AssociationId")?;
    let filters = filters(call)?;
    let page = Page::read(&call.params, 5..=1000)?;
    let wanted = all(call).filter(|known| {
        let is_named = ids.is_empty() || ids.contains(&association_id(known).as_str());
        known.spec().role.is_some()
            && !known.record.is_terminated()
            && is_named
            && filters.hold(known)
    });
    let part = page.cut(wanted, |known| known.id().to_string());
    Ok(call.ec2_reply(|xml| {
        xml.list(
            "iamInstanceProfileAssociationSet",
            &part.items,
            |xml, known| write(xml, known, "associated"),
        );
        xml.el_if("nextToken", part.next_token.as_deref());
    }))
}

fn filters<'a>(call: &Call<'a>) -> Result<Filters<Known<'a>>, Refusal> {
    let by_name: &[(&'static str, Column<Known<'a>>)] = &[
        ("instance-id", |known| vec![known.id().to_string()]),
        ("state", |_| vec!["associated".to_owned()]),
    ];
    let tags = None;
    Filters::read(&call.params, &Columns { by_name, tags })
}
