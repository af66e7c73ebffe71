//! `dynamic/`

use super::super::json::Object;
use super::super::tree::{Entry, View, leaf, signature, table};
use crate::identity::SignatureKind;
use crate::instance::instance_type;

/// `version` of the identity document, unchanged for years.
const DOCUMENT_VERSION: &str = "2017-09-30";

pub(in super::super) static DYNAMIC: &[Entry] = &[
    table("fws", FWS),
    table("instance-identity", INSTANCE_IDENTITY),
];

/// Only if monitoring is spoken of at all: many current instances lack it.
static FWS: &[Entry] = &[leaf("instance-monitoring", "2009-04-04", |view| {
    view.details().monitoring.map(|monitoring| {
        if monitoring.is_enabled() {
            "enabled"
        } else {
            "disabled"
        }
        .into()
    })
})];

/// In the guide's order, which is the one listing that is not sorted. From which version on the two that came later are
/// there is not known: whoever asks for one by an old version is better served than refused.
static INSTANCE_IDENTITY: &[Entry] = &[
    signature(SignatureKind::Rsa2048, "2009-04-04"),
    signature(SignatureKind::Pkcs7, "2009-04-04"),
    leaf("document", "2009-04-04", |view| {
        Some(identity_document(view).into())
    }),
    signature(SignatureKind::Signature, "2009-04-04"),
    signature(SignatureKind::Dsa2048, "2009-04-04"),
];

/// The instance identity document.
pub(in super::super) fn identity_document(view: View<'_>) -> String {
    let (instance, details) = (view.instance, view.details());
    let architecture = details
        .architecture
        .unwrap_or_else(|| instance_type::architecture(&instance.instance_type));
    Object::new()
        .string("accountId", view.account_id())
        .string("architecture", architecture.as_str())
        .string("availabilityZone", view.zone().name())
        .strings("billingProducts", &details.billing_products)
        .optional("devpayProductCodes", None::<&str>)
        .strings("marketplaceProductCodes", &details.product_codes)
        .string("imageId", instance.image_id)
        .string("instanceId", instance.id)
        .string("instanceType", &instance.instance_type)
        .optional("kernelId", details.kernel_id)
        .string("pendingTime", instance.pending_time.iso())
        .optional("privateIp", instance.primary.private_ipv4())
        .optional("ramdiskId", details.ramdisk_id)
        .string("region", view.zone().region())
        .string("version", DOCUMENT_VERSION)
        .finish()
}
