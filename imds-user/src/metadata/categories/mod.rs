//! The categories, a file for each directory of note.

mod block_devices;
mod dynamic;
mod events;
mod iam;
mod meta_data;
mod network;
mod placement;
mod ssh_keys;
mod tags;

pub(super) use dynamic::{DYNAMIC, identity_document};
pub(super) use meta_data::META_DATA;
