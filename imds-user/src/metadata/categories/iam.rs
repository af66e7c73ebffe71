//! `iam/` and `identity-credentials/`

use super::super::credentials::{self, INSTANCE_IDENTITY};
use super::super::json::Object;
use super::super::tree::{Entry, Named, Place, leaf, named, table};

/// There with an instance profile, and with all below gone without.
pub(super) static IAM: &[Entry] = &[
    leaf("info", "2012-01-12", |view| {
        let role = view.instance.role.as_deref()?;
        let (partition, account) = (view.zone().partition(), view.account_id());
        let profile = &role.profile;
        let document = Object::new()
            .string("Code", "Success")
            .string("LastUpdated", credentials::last_updated(view, role).iso())
            .string(
                "InstanceProfileArn",
                format_args!(
                    "arn:{partition}:iam::{account}:instance-profile/{}",
                    profile.name
                ),
            )
            .string("InstanceProfileId", &profile.id);
        Some(document.finish().into())
    }),
    named("security-credentials", "2012-01-12", &ROLE),
];

/// The name of the role, and its credentials below.
static ROLE: Named = Named {
    is_present: |view| view.instance.role.is_some(),
    list: |view, listing| {
        if let Some(role) = &view.instance.role {
            listing.push(&role.name);
        }
    },
    find: |view, name| {
        let role = view
            .instance
            .role
            .as_deref()
            .filter(|role| &*role.name == name)?;
        Some(Place::Leaf(credentials::of_role(view, role).into()))
    },
};

/// There without an instance profile too. The guide's label 2018-05-23 is not served; captures have it from 2018-08-17.
pub(super) static IDENTITY_CREDENTIALS: &[Entry] = &[table("ec2", EC2)];

static EC2: &[Entry] = &[
    leaf("info", "2018-08-17", |view| {
        let document = Object::new()
            .string("Code", "Success")
            .string(
                "LastUpdated",
                credentials::rolling(view, INSTANCE_IDENTITY)
                    .last_updated
                    .iso(),
            )
            .string("AccountId", view.account_id());
        Some(document.finish().into())
    }),
    named("security-credentials", "2018-08-17", &EC2_INSTANCE),
];

static EC2_INSTANCE: Named = Named {
    is_present: |_| true,
    list: |_, listing| listing.push(INSTANCE_IDENTITY),
    find: |view, name| {
        (name == INSTANCE_IDENTITY)
            .then(|| Place::Leaf(credentials::of_instance_identity(view).into()))
    },
};
