//! `public-keys/` (key pairs given at launch) and `managed-ssh-keys/` (EC2 Instance Connect)

use super::super::tree::{Entry, Named, Place, Value, View, leaf, named};
use crate::instance::PublicKey;
use crate::instance::details::{ActiveKeys, ManagedSshKeys};

/// Listed as `0=my-key`, yet a directory `0` with one leaf.
pub(super) static PUBLIC_KEYS: Named = Named {
    is_present: |view| !view.instance.public_keys.is_empty(),
    list: |view, listing| {
        for (index, PublicKey { name, .. }) in view.instance.public_keys.iter().enumerate() {
            listing.push(format_args!("{index}={name}"));
        }
    },
    find: |view, name| {
        let mut keys = view.instance.public_keys.iter().enumerate();
        let (_, key) = keys.find(|(index, _)| index.to_string() == name)?;
        // The one value of the tree that ends its line.
        Some(Place::Single(
            "openssh-key",
            Value::of(format_args!("{}\n", key.openssh)),
        ))
    },
};

/// Not in the guide; EC2 Instance Connect came in June 2019.
pub(super) static MANAGED_SSH_KEYS: &[Entry] = &[
    named("active-keys", "2019-10-01", &ACTIVE_KEYS),
    leaf("signer-cert", "2019-10-01", |view| {
        managed(view)?.signer_cert.as_deref().map(Value::from)
    }),
    named("signer-ocsp", "2019-10-01", &SIGNER_OCSP),
];

static ACTIVE_KEYS: Named = Named {
    is_present: |view| active_keys(view).next().is_some(),
    list: |view, listing| active_keys(view).for_each(|keys| listing.push(&keys.os_user)),
    find: |view, name| {
        let keys = active_keys(view).find(|keys| &*keys.os_user == name)?;
        Some(Place::Leaf((&*keys.blob).into()))
    },
};

static SIGNER_OCSP: Named = Named {
    is_present: |view| managed(view).is_some_and(|managed| !managed.signer_ocsp.is_empty()),
    list: |view, listing| {
        managed(view)
            .iter()
            .flat_map(|managed| &managed.signer_ocsp)
            .for_each(|(name, _)| listing.push(name));
    },
    find: |view, name| {
        let (_, staple) = managed(view)?
            .signer_ocsp
            .iter()
            .find(|(staple, _)| &**staple == name)?;
        Some(Place::Leaf((&**staple).into()))
    },
};

fn managed(view: View<'_>) -> Option<&ManagedSshKeys> {
    view.details().managed_ssh_keys.as_ref()
}

/// The keys that were pushed within the last minute.
fn active_keys(view: View<'_>) -> impl Iterator<Item = &ActiveKeys> {
    let pushed = managed(view)
        .into_iter()
        .flat_map(|managed| &managed.active_keys);
    pushed.filter(move |keys| view.now < keys.expiration)
}
