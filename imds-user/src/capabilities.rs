//! The daemon's rights: of root's it keeps those that it needs, and gives up the others before it does anything.
//!
//! This is no wall against the daemon itself, which may load programs and enter namespaces. It keeps out of reach what
//! nobody expects the daemon to do: kernel modules, raw disks and ports, other processes' memory, raw packets, the clock.

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
};

/// A capability that the daemon keeps.
#[derive(Clone, Copy, Debug)]
pub struct Needed {
    set: CapabilitySet,
    /// Its name in capabilities(7).
    pub name: &'static str,
    /// Whether nothing works without it.
    pub is_vital: bool,
}

impl Needed {
    /// Whether it is among these, one bit each.
    #[must_use]
    pub fn is_in(&self, capabilities: u64) -> bool {
        capabilities & self.set.bits() != 0
    }
}

/// What the daemon keeps.
pub const NEEDED: [Needed; 9] = [
    // Makes and enters network namespaces, mounts their names and bpffs; loads programs and makes maps, for which CAP_BPF
    // and CAP_PERFMON would do if this were not needed anyway.
    vital(CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
    // Interfaces, routes, filters, settings of namespaces; programs on calls of processes.
    vital(CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    // Listens on port 80 in the responder's namespace.
    vital(CapabilitySet::NET_BIND_SERVICE, "CAP_NET_BIND_SERVICE"),
    // Ends a responder, which is another user's process.
    vital(CapabilitySet::KILL, "CAP_KILL"),
    // The responder becomes another user and group, and empties its bounding set.
    vital(CapabilitySet::SETUID, "CAP_SETUID"),
    vital(CapabilitySet::SETGID, "CAP_SETGID"),
    vital(CapabilitySet::SETPCAP, "CAP_SETPCAP"),
    // The responder holds more descriptors than a host allows by default.
    useful(CapabilitySet::SYS_RESOURCE, "CAP_SYS_RESOURCE"),
    // What the configuration names is read, whoever owns it.
    useful(CapabilitySet::DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH"),
];

/// What the launcher keeps. A guest gets none of it: what its root may do it may do as a user of its own namespaces, which
/// begin with every right over themselves (`set_cred_user_ns` in the kernel's kernel/user_namespace.c).
pub const NEEDED_TO_LAUNCH: [Needed; 13] = [
    // Makes namespaces, mounts a guest's file system, names its network.
    vital(CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
    // A guest's cable.
    vital(CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    // Says which users of the host a guest's users are.
    vital(CapabilitySet::SETUID, "CAP_SETUID"),
    vital(CapabilitySet::SETGID, "CAP_SETGID"),
    // Opens the namespaces of a guest's first process, which says that nobody may look into it.
    vital(CapabilitySet::SYS_PTRACE, "CAP_SYS_PTRACE"),
    // Ends it: it is another user's process.
    vital(CapabilitySet::KILL, "CAP_KILL"),
    // Gives up the others.
    vital(CapabilitySet::SETPCAP, "CAP_SETPCAP"),
    // Fills a guest's file system with files that are the guest's.
    vital(CapabilitySet::CHOWN, "CAP_CHOWN"),
    vital(CapabilitySet::FOWNER, "CAP_FOWNER"),
    vital(CapabilitySet::FSETID, "CAP_FSETID"),
    vital(CapabilitySet::DAC_OVERRIDE, "CAP_DAC_OVERRIDE"),
    // Enters mount namespaces.
    vital(CapabilitySet::SYS_CHROOT, "CAP_SYS_CHROOT"),
    // Has a guest's first process be the last to go when memory is short.
    useful(CapabilitySet::SYS_RESOURCE, "CAP_SYS_RESOURCE"),
];

const fn vital(set: CapabilitySet, name: &'static str) -> Needed {
    Needed {
        set,
        name,
        is_vital: true,
    }
}

const fn useful(set: CapabilitySet, name: &'static str) -> Needed {
    Needed {
        is_vital: false,
        ..vital(set, name)
    }
}

/// Gives up every capability that the daemon does not need, for good: no program that it starts gets one back. For the only
/// thread there is: threads inherit it.
///
/// # Errors
/// When the kernel refuses.
pub fn keep_needed() -> std::io::Result<()> {
    keep(&NEEDED)
}

/// As [`keep_needed`], for the launcher.
///
/// # Errors
/// When the kernel refuses.
pub fn keep_needed_to_launch() -> std::io::Result<()> {
    keep(&NEEDED_TO_LAUNCH)
}

fn keep(needed: &[Needed]) -> std::io::Result<()> {
    let needed = needed
        .iter()
        .fold(CapabilitySet::empty(), |all, one| all | one.set);
    clear_ambient_capability_set()?;
    limit_bounding_set(needed)?;
    let had = capabilities(None)?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: had.effective & needed,
            permitted: had.permitted & needed,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}

/// Leaves these alone in the calling thread's bounding set, so that not even a set-uid program can get others back.
///
/// # Errors
/// When the kernel refuses.
pub fn limit_bounding_set(keep: CapabilitySet) -> std::io::Result<()> {
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if keep.contains(one) {
            continue;
        }
        match capability_is_in_bounding_set(one) {
            Ok(true) => remove_capability_from_bounding_set(one)?,
            Ok(false) => {}
            // The kernel refuses the first number that is no capability.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
