//! What the guard counts for each interface.

/// Capacity of the map of counts by ingress interface. When it is full the interface that was counted longest ago gives
/// way: a count is lost then (the sum in [`super::counter::Counter::Guarded`] is not), never a packet let through.
pub const GUARDED_MAX: u32 = 4096;
