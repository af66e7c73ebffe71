//! Devices by reference.
//!
//! An interface's number can come again with another interface (`ip link add … index N`), so a number that was written
//! down says nothing once its interface is gone. Maps of devices (`BPF_MAP_TYPE_DEVMAP`) hold the device itself, and the
//! kernel takes it out when it is unregistered or leaves its namespace (`dev_map_notification`, kernel/bpf/devmap.c):
//! what is found there is the interface that was meant, or nothing. Programs of traffic control may look, which is all
//! they need.

/// Capacity of the map of the responder's device.
pub const RESPONDER_DEVICES_MAX: u32 = 1;

/// Size of a value as user space sees it: the number, and a program that we never set (`struct bpf_devmap_val`).
pub const DEVICE_BYTES: u32 = 8;
