//! `block-device-mapping/`

use super::super::tree::{Named, Place};

use crate::instance::details::DEFAULT_ROOT_DEVICE;

/// What every instance has.
const DEFAULTS: [(&str, &str); 2] = [("ami", DEFAULT_ROOT_DEVICE), ("root", DEFAULT_ROOT_DEVICE)];

/// Names are listed in their order, each a leaf with the device.
pub(super) static BLOCK_DEVICE_MAPPING: Named = Named {
    is_present: |_| true,
    list: |view, listing| {
        let devices = &view.details().block_devices;
        if devices.is_empty() {
            DEFAULTS.iter().for_each(|(name, _)| listing.push(name));
        }
        devices
            .iter()
            .for_each(|device| listing.push(&device.virtual_name));
    },
    find: |view, name| {
        let devices = &view.details().block_devices;
        if devices.is_empty() {
            let (_, device) = DEFAULTS.iter().find(|(default, _)| *default == name)?;
            return Some(Place::Leaf((*device).into()));
        }
        let device = devices
            .iter()
            .find(|device| &*device.virtual_name == name)?;
        Some(Place::Leaf((&*device.device).into()))
    },
};
