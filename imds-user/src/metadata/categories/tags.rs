//! `tags/`

use super::super::tree::{Entry, Named, Place, named};

/// There while `InstanceMetadataTags` is enabled.
pub(super) static TAGS: &[Entry] = &[named("instance", "2021-03-23", &INSTANCE)];

/// Keys are listed bare. Without tags the listing is empty, not absent.
static INSTANCE: Named = Named {
    is_present: |view| view.instance.options.instance_metadata_tags.is_enabled(),
    list: |view, listing| {
        view.instance
            .tags
            .iter()
            .for_each(|tag| listing.push(&tag.key));
    },
    find: |view, name| {
        let tag = view.instance.tags.iter().find(|tag| &*tag.key == name)?;
        Some(Place::Leaf((&*tag.value).into()))
    },
};
