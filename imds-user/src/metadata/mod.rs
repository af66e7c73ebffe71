//! The tree that guests see: versions, categories, paths, lookup. Pure.
//!
//! A category is one row in one place: its name, the version that first has it, and a function that makes its value or
//! says that it is absent. Rows stand in tables under `categories`, in the order in which they are listed; how tables are
//! walked and listed is in `tree`. Obeys the EC2 User Guide, "Instance metadata categories", and captures of real
//! instances where the guide is silent.

mod categories;
mod credentials;
mod json;
mod path;
mod tree;
mod versions;

use std::sync::LazyLock;

use bytes::Bytes;

pub use path::Path;
pub use versions::{ApiVersion, LATEST, VERSIONS};

use crate::identity::SignatureKind;
use crate::instance::{Host, Instance, UnixSeconds};
use tree::{Place, View};

/// What is at a path: the bytes, exactly, or what they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Values, listings and documents.
    Text(Bytes),
    /// User data, which may be anything.
    UserData(Bytes),
    /// A signature of [`identity_document`], which takes a key to make.
    Signature(SignatureKind),
}

/// What `instance` has at `path`, if anything.
#[must_use]
pub fn lookup(
    host: &Host,
    instance: &Instance,
    path: &Path<'_>,
    now: UnixSeconds,
) -> Option<Found> {
    static VERSION_LISTING: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(versions::listing()));

    let mut segments = path.segments();
    let Some(version) = segments.next() else {
        return Some(Found::Text(VERSION_LISTING.clone()));
    };
    let version = ApiVersion::parse(version)?;
    let view = View {
        host,
        instance,
        interface: &instance.primary,
        version,
        now,
    };
    match segments.next() {
        None => Some(Found::Text(version_root(version))),
        Some("meta-data") => Place::Table(categories::META_DATA, view).fetch(segments),
        Some("dynamic") if version >= DYNAMIC_SINCE => {
            Place::Table(categories::DYNAMIC, view).fetch(segments)
        }
        Some("user-data") if segments.next().is_none() => user_data(instance),
        Some(_) => None,
    }
}

/// The instance identity document, byte for byte as `dynamic/instance-identity/document` serves it under every version
/// and at any time: what the signatures beside it are of.
#[must_use]
pub fn identity_document(host: &Host, instance: &Instance) -> String {
    let view = View {
        host,
        instance,
        interface: &instance.primary,
        // The document looks at neither.
        version: DYNAMIC_SINCE,
        now: UnixSeconds(0),
    };
    categories::identity_document(view)
}

/// What the instance is called in its VPC: `local-hostname`.
#[must_use]
pub fn private_hostname(host: &Host, instance: &Instance) -> String {
    text_at(host, instance, "/latest/meta-data/local-hostname")
}

/// What the instance is called outside: `public-hostname`, empty where there is none.
#[must_use]
pub fn public_hostname(host: &Host, instance: &Instance) -> String {
    text_at(host, instance, "/latest/meta-data/public-hostname")
}

fn text_at(host: &Host, instance: &Instance, path: &str) -> String {
    let found = Path::parse(path).and_then(|path| lookup(host, instance, &path, UnixSeconds(0)));
    match found {
        Some(Found::Text(text)) => String::from_utf8_lossy(&text).into_owned(),
        _ => String::new(),
    }
}

const DYNAMIC_SINCE: ApiVersion = ApiVersion::since("2009-04-04");

/// What a version is listed with: directories without a slash here, and user data even when there is none.
fn version_root(version: ApiVersion) -> Bytes {
    if version >= DYNAMIC_SINCE {
        Bytes::from_static(b"dynamic\nmeta-data\nuser-data")
    } else {
        Bytes::from_static(b"meta-data\nuser-data")
    }
}

fn user_data(instance: &Instance) -> Option<Found> {
    let user_data = instance.user_data.as_ref()?;
    Some(Found::UserData(user_data.bytes().clone()))
}
