//! The top level of `meta-data/`.

use super::super::tree::{Entry, Value, View, leaf, named, table};
use super::network::{local_hostname, public_hostname};
use super::{block_devices, events, iam, network, placement, ssh_keys, tags};
use crate::instance::instance_type;

/// What EC2 shows for images that have no manifest. The guide says `unknown`, captures have parentheses.
const NO_MANIFEST: &str = "(unknown)";

/// All that is left of a withdrawn service: an XML declaration.
const VHOSTMD: &str = r#"<?xml version="1.0" encoding="UTF-8"?>"#;

/// Rows in the order of their listing, which is bytewise.
pub(in super::super) static META_DATA: &[Entry] = &[
    leaf("ami-id", "1.0", |view| {
        Some(view.instance.image_id.as_str().into())
    }),
    leaf("ami-launch-index", "1.0", |view| {
        Some(Value::of(view.instance.launch_index))
    }),
    leaf("ami-manifest-path", "1.0", |view| {
        Some(
            view.details()
                .manifest_path
                .as_deref()
                .unwrap_or(NO_MANIFEST)
                .into(),
        )
    }),
    leaf("ancestor-ami-ids", "2007-10-10", |view| {
        Value::lines(&view.details().ancestor_ami_ids)
    }),
    table("autoscaling", AUTOSCALING),
    named(
        "block-device-mapping",
        "2007-12-15",
        &block_devices::BLOCK_DEVICE_MAPPING,
    ),
    table("events", events::EVENTS),
    table("hibernation", HIBERNATION),
    leaf("hostname", "1.0", |view| Some(local_hostname(view))),
    table("iam", iam::IAM),
    table("identity-credentials", iam::IDENTITY_CREDENTIALS),
    leaf("instance-action", "2008-09-01", |view| {
        Some(view.details().instance_action.as_str().into())
    }),
    leaf("instance-id", "1.0", |view| {
        Some(view.instance.id.as_str().into())
    }),
    leaf("instance-life-cycle", "2019-10-01", |view| {
        Some(view.details().life_cycle.as_str().into())
    }),
    leaf("instance-type", "2007-08-29", |view| {
        Some((&*view.instance.instance_type).into())
    }),
    leaf("ipv6", "2021-01-03", |view| {
        view.interface.ipv6s.first().map(Value::of)
    }),
    leaf("kernel-id", "2008-02-01", |view| {
        view.details()
            .kernel_id
            .as_ref()
            .map(|id| id.as_str().into())
    }),
    leaf("local-hostname", "2007-01-19", |view| {
        Some(local_hostname(view))
    }),
    leaf("local-ipv4", "1.0", |view| {
        view.interface.private_ipv4().map(Value::of)
    }),
    leaf("mac", "2011-01-01", |view| {
        Some(Value::of(view.interface.mac))
    }),
    table("managed-ssh-keys", ssh_keys::MANAGED_SSH_KEYS),
    table("metrics", METRICS),
    table("network", network::NETWORK),
    table("placement", placement::PLACEMENT),
    leaf("product-codes", "2007-03-01", |view| {
        Value::lines(&view.details().product_codes)
    }),
    leaf("profile", "2011-05-01", |view| Some(profile(view).into())),
    leaf("public-hostname", "2007-01-19", public_hostname),
    leaf("public-ipv4", "2007-01-19", |view| {
        view.interface.public_ipv4s().next().map(Value::of)
    }),
    named("public-keys", "1.0", &ssh_keys::PUBLIC_KEYS),
    leaf("ramdisk-id", "2007-10-10", |view| {
        view.details()
            .ramdisk_id
            .as_ref()
            .map(|id| id.as_str().into())
    }),
    leaf("reservation-id", "1.0", |view| {
        Some(view.instance.reservation_id.as_str().into())
    }),
    leaf("security-groups", "1.0", network::security_groups),
    table("services", SERVICES),
    table("spot", events::SPOT),
    leaf("system", "2022-09-24", |view| Some(system(view).into())),
    table("tags", tags::TAGS),
];

static AUTOSCALING: &[Entry] = &[leaf("target-lifecycle-state", "2021-07-15", |view| {
    view.details()
        .target_lifecycle_state
        .map(|state| state.as_str().into())
})];

/// Not documented; about that version.
static HIBERNATION: &[Entry] = &[leaf("configured", "2018-09-24", |view| {
    view.details()
        .hibernation_configured
        .map(|is_configured| if is_configured { "true" } else { "false" }.into())
})];

static METRICS: &[Entry] = &[leaf("vhostmd", "2011-05-01", |_| Some(VHOSTMD.into()))];

static SERVICES: &[Entry] = &[
    leaf("domain", "2014-02-25", |view| {
        Some(view.zone().services_domain().into())
    }),
    leaf("partition", "2015-10-20", |view| {
        Some(view.zone().partition().into())
    }),
];

fn profile(view: View<'_>) -> &str {
    let details = view.details();
    // Only paravirtual images have a kernel of their own.
    let default = match details.kernel_id {
        Some(_) => "default-paravirtual",
        None => "default-hvm",
    };
    details.profile.as_deref().unwrap_or(default)
}

fn system(view: View<'_>) -> &'static str {
    view.details()
        .system
        .unwrap_or_else(|| instance_type::system(&view.instance.instance_type))
        .as_str()
}

#[cfg(test)]
mod tests {
    use super::super::super::tree::is_sorted;
    use super::*;

    #[test]
    fn rows_stand_in_the_order_of_their_listing() {
        assert!(is_sorted(META_DATA));
    }
}
