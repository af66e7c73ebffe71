//! Which of the host's own processes may reach the host's own metadata service.

/// Capacity of the map of cgroups that may. When it is full the daemon refuses the next one: it stays refused.
pub const ALLOWED_MAX: u32 = 1024;

/// How deep below the root a named cgroup can be: as many ancestors of a caller are looked at. systemd's trees are five
/// or six levels deep, those of Kubernetes seven.
pub const CGROUP_LEVELS_MAX: u32 = 32;

/// Capacity of the map of counts by cgroup. When it is full the cgroup that was counted longest ago gives way: a count
/// is lost then (the sum in [`super::counter::Counter::HostRefused`] is not), never a call let through.
pub const REFUSED_MAX: u32 = 1024;
