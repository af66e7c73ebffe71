//! How the tree is made of rows, walked and listed. It is never built: a lookup goes down the static tables with the
//! instance at hand and makes the one value that was asked for.
//!
//! Invariant: what a listing names can be fetched, for both ask the same function of the row. (cloud-init discards
//! everything if one listed entry is missing.)

use std::borrow::Cow;
use std::fmt::Display;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::Found;
use super::versions::ApiVersion;
use crate::identity::SignatureKind;
use crate::instance::{AccountId, Details, Host, Instance, NetworkInterface, UnixSeconds, Zone};

/// What a row may look at.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) host: &'a Host,
    pub(super) instance: &'a Instance,
    /// The interface that is spoken of: the primary one outside `network/interfaces/macs/<mac>/`.
    pub(super) interface: &'a NetworkInterface,
    pub(super) version: ApiVersion,
    pub(super) now: UnixSeconds,
}

impl<'a> View<'a> {
    pub(super) fn details(&self) -> &'a Details {
        self.instance.details()
    }

    pub(super) fn zone(&self) -> &'a Zone {
        self.details().zone.as_ref().unwrap_or(&self.host.zone)
    }

    pub(super) fn account_id(&self) -> &'a AccountId {
        self.details()
            .account_id
            .as_ref()
            .unwrap_or(&self.host.account_id)
    }
}

/// One row of the tree: all there is to know about a category.
pub(super) struct Entry {
    /// Its name, without the slash that directories are listed with.
    name: &'static str,
    /// The first version that has it. A table of rows is there as soon as one of them is.
    since: ApiVersion,
    node: Node,
}

enum Node {
    Leaf(LeafFn),
    Signature(SignatureKind),
    Table(&'static [Entry]),
    Named(&'static Named),
}

/// Makes a value; `None` means absent: not listed, and 404.
type LeafFn = for<'a> fn(View<'a>) -> Option<Value<'a>>;

/// A directory whose entries have names of the instance's.
pub(super) struct Named {
    /// Whether it is there.
    pub(super) is_present: fn(View<'_>) -> bool,
    /// Names its entries, as they are listed.
    pub(super) list: fn(View<'_>, &mut Listing),
    /// The entry of that name.
    pub(super) find: for<'a> fn(View<'a>, &str) -> Option<Place<'a>>,
}

/// Where a walk has come to.
pub(super) enum Place<'a> {
    Leaf(Value<'a>),
    Signature(SignatureKind),
    Table(&'static [Entry], View<'a>),
    Named(&'static Named, View<'a>),
    /// A directory with one leaf.
    Single(&'static str, Value<'a>),
}

/// A row with a value.
pub(super) const fn leaf(name: &'static str, since: &str, value: LeafFn) -> Entry {
    Entry {
        name,
        since: ApiVersion::since(since),
        node: Node::Leaf(value),
    }
}

/// A row with a signature of the identity document, which is not made here.
pub(super) const fn signature(kind: SignatureKind, since: &str) -> Entry {
    Entry {
        name: kind.name(),
        since: ApiVersion::since(since),
        node: Node::Signature(kind),
    }
}

/// A row that is a directory of further rows, there if one of them is.
pub(super) const fn table(name: &'static str, entries: &'static [Entry]) -> Entry {
    Entry {
        name,
        since: ApiVersion::since("1.0"),
        node: Node::Table(entries),
    }
}

/// A row that is a directory with names of the instance's.
pub(super) const fn named(name: &'static str, since: &str, directory: &'static Named) -> Entry {
    Entry {
        name,
        since: ApiVersion::since(since),
        node: Node::Named(directory),
    }
}

/// What a leaf holds. No line end is added to it, ever.
pub(super) enum Value<'a> {
    Text(Cow<'a, str>),
    /// Wiped once it was sent.
    Secret(Zeroizing<String>),
}

impl<'a> Value<'a> {
    /// Anything that prints.
    pub(super) fn of(value: impl Display) -> Self {
        Self::Text(Cow::Owned(value.to_string()))
    }

    /// One item a line, without an end of the last one; `None` if there is no item.
    pub(super) fn lines<T: Display>(items: impl IntoIterator<Item = T>) -> Option<Self> {
        let mut listing = Listing::default();
        for item in items {
            listing.push(item);
        }
        (!listing.0.is_empty()).then_some(Self::Text(Cow::Owned(listing.0)))
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::Text(Cow::Borrowed(text)) => Bytes::copy_from_slice(text.as_bytes()),
            Self::Text(Cow::Owned(text)) => Bytes::from(text),
            Self::Secret(text) => Bytes::from_owner(text),
        }
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<Zeroizing<String>> for Value<'_> {
    fn from(text: Zeroizing<String>) -> Self {
        Self::Secret(text)
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

/// Lines that a directory is listed with.
#[derive(Default)]
pub(super) struct Listing(String);

impl Listing {
    /// Adds a line.
    pub(super) fn push(&mut self, line: impl Display) {
        use std::fmt::Write;
        let separator = if self.0.is_empty() { "" } else { "\n" };
        write!(self.0, "{separator}{line}").expect("writing to a string does not fail");
    }
}

impl Entry {
    /// Where the row leads, if it is there under the view's version.
    fn open<'a>(&self, view: View<'a>) -> Option<Place<'a>> {
        if self.since > view.version {
            return None;
        }
        match self.node {
            Node::Leaf(value) => value(view).map(Place::Leaf),
            Node::Signature(kind) => Some(Place::Signature(kind)),
            Node::Table(entries) => entries
                .iter()
                .any(|entry| entry.is_present(view))
                .then_some(Place::Table(entries, view)),
            Node::Named(directory) => {
                (directory.is_present)(view).then_some(Place::Named(directory, view))
            }
        }
    }

    fn is_present(&self, view: View<'_>) -> bool {
        self.open(view).is_some()
    }
}

impl<'a> Place<'a> {
    /// Goes down `segments` and makes what is there: a value, or a listing.
    pub(super) fn fetch<'p>(self, mut segments: impl Iterator<Item = &'p str>) -> Option<Found> {
        let mut place = self;
        for segment in segments.by_ref() {
            place = place.child(segment)?;
        }
        Some(place.content())
    }

    fn child(self, name: &str) -> Option<Self> {
        match self {
            Self::Leaf(_) | Self::Signature(_) => None,
            Self::Table(entries, view) => {
                entries.iter().find(|entry| entry.name == name)?.open(view)
            }
            Self::Named(directory, view) => (directory.find)(view, name),
            Self::Single(only, value) => (only == name).then_some(Self::Leaf(value)),
        }
    }

    fn content(self) -> Found {
        let text = match self {
            Self::Signature(kind) => return Found::Signature(kind),
            Self::Leaf(value) => value.into_bytes(),
            Self::Table(entries, view) => Bytes::from(list_table(entries, view).0),
            Self::Named(directory, view) => {
                let mut listing = Listing::default();
                (directory.list)(view, &mut listing);
                Bytes::from(listing.0)
            }
            Self::Single(only, _) => Bytes::from_static(only.as_bytes()),
        };
        Found::Text(text)
    }
}

fn list_table(entries: &[Entry], view: View<'_>) -> Listing {
    let mut listing = Listing(String::with_capacity(512));
    for entry in entries.iter().filter(|entry| entry.is_present(view)) {
        listing.push(entry.name);
        match entry.node {
            Node::Leaf(_) | Node::Signature(_) => {}
            Node::Table(_) | Node::Named(_) => listing.0.push('/'),
        }
    }
    listing
}

/// Whether the rows of a table, and of those below, stand in the order of their listing, which is bytewise.
#[cfg(test)]
pub(super) fn is_sorted(entries: &[Entry]) -> bool {
    let listed = |entry: &Entry| match entry.node {
        Node::Leaf(_) | Node::Signature(_) => entry.name.to_owned(),
        Node::Table(_) | Node::Named(_) => format!("{}/", entry.name),
    };
    entries.iter().is_sorted_by_key(listed)
        && entries.iter().all(|entry| match entry.node {
            Node::Table(entries) => is_sorted(entries),
            Node::Leaf(_) | Node::Signature(_) | Node::Named(_) => true,
        })
}
