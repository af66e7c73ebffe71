//! What the responder gives up before it reads a guest's first byte: the host's network, root, capabilities, files,
//! new privileges, and every system call that serving does not need. A full break of it reaches nothing.

use std::{collections::BTreeMap, os::fd::AsFd};

use crate::{capabilities::limit_bounding_set, http::bounds::CONNECTIONS_MAX};
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus,
    Scope,
};
use nix::{
    sched::{CloneFlags, setns},
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
    },
    unistd::{Gid, Uid, User, setgroups, setresgid, setresuid},
};
use rustix::thread::CapabilitySet;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// The account whose rights the responder keeps, if the host has it.
const USER: &str = "imds";
/// Otherwise a user id that nobody has: it needs no account, and no other service shares it as `nobody` is shared.
const UID_FALLBACK: u32 = 169_254;
/// Descriptors beside those of connections: the process's own few, and connections that were told to end and have not yet.
const OWN_DESCRIPTORS: u64 = 256;
/// Descriptors that the process may hold: every connection that it accepts at most, and those.
const DESCRIPTORS_MAX: u64 = CONNECTIONS_MAX as u64 + OWN_DESCRIPTORS;

/// A step that failed; the responder must not serve then.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A system call of the host's own libraries.
    #[error("{what}: {cause}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        cause: nix::errno::Errno,
    },
    /// The capability bounding set could not be emptied.
    #[error("drop the bounding set: {0}")]
    BoundingSet(#[source] std::io::Error),
    /// Capabilities remained.
    #[error("capabilities remain after they were dropped: {0}")]
    Capabilities(String),
    /// The kernel's account of this thread could not be read.
    #[error("read /proc/thread-self/status: {0}")]
    Status(#[source] std::io::Error),
    /// Landlock refused.
    #[error("landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// The filter could not be built or installed.
    #[error("seccomp: {0}")]
    Seccomp(String),
}

/// Closes whatever whoever started the daemon had left open for its children: all but the standard streams, the first of
/// which is the line to the daemon. For the very start, when this process has opened nothing of its own.
///
/// # Errors
/// When the kernel refuses.
pub fn close_inherited_descriptors() -> Result<(), ConfineError> {
    const FIRST: libc::c_uint = libc::STDERR_FILENO as libc::c_uint + 1;
    #[expect(unsafe_code, reason = "no crate in use wraps this call")]
    // SAFETY: it takes numbers, and nothing in this process owns a descriptor above the standard ones yet.
    let code = unsafe { libc::close_range(FIRST, libc::c_uint::MAX, 0) };
    if code == 0 {
        return Ok(());
    }
    Err(ConfineError::System {
        what: "close what was inherited",
        cause: nix::errno::Errno::last(),
    })
}

/// Moves into the responder's namespace and gives up root. For the only thread there is: threads inherit all of it.
///
/// # Errors
/// When a step fails.
pub fn drop_privileges(netns: impl AsFd) -> Result<(), ConfineError> {
    let failed = |what| move |cause| ConfineError::System { what, cause };
    setns(netns, CloneFlags::CLONE_NEWNET).map_err(failed("enter the responder's namespace"))?;
    limit_descriptors().map_err(failed("set the descriptor limit"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(failed("switch core dumps off"))?;
    let (uid, gid) = account();
    // The other sets empty themselves when the user changes from root.
    limit_bounding_set(CapabilitySet::empty()).map_err(ConfineError::BoundingSet)?;
    setgroups(&[]).map_err(failed("drop the groups"))?;
    setresgid(gid, gid, gid).map_err(failed("change the group"))?;
    setresuid(uid, uid, uid).map_err(failed("change the user"))?;
    // After the change of user, which would clear it: nobody of the same user may trace the process or read its memory.
    prctl::set_dumpable(false).map_err(failed("switch tracing off"))?;
    prctl::set_no_new_privs().map_err(failed("refuse new privileges"))?;
    let status =
        std::fs::read_to_string("/proc/thread-self/status").map_err(ConfineError::Status)?;
    check_no_capabilities(&status)?;
    restrict_files()
}

/// Allows only the system calls that serving needs, for every thread of the process. Anything else ends the process: it
/// is a break-in or a defect, and the daemon starts another.
///
/// # Errors
/// When the filter is refused.
pub fn restrict_system_calls() -> Result<(), ConfineError> {
    let failed = |error: &dyn std::fmt::Display| ConfineError::Seccomp(error.to_string());
    let apply = |calls: &[libc::c_long], listed, others| -> Result<(), ConfineError> {
        let rules: BTreeMap<_, _> = calls.iter().map(|call| (*call, Vec::new())).collect();
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| failed(&error))?;
        let filter =
            SeccompFilter::new(rules, others, listed, arch).map_err(|error| failed(&error))?;
        let program = BpfProgram::try_from(filter).map_err(|error| failed(&error))?;
        seccompiler::apply_filter_all_threads(&program).map_err(|error| failed(&error))
    };
    // Of two filters the stricter answer counts, so what is refused has to be allowed here.
    let tolerated = [SYSTEM_CALLS, REFUSED_CALLS].concat();
    apply(
        REFUSED_CALLS,
        SeccompAction::Errno(EACCES),
        SeccompAction::Allow,
    )?;
    apply(&tolerated, SeccompAction::Allow, SeccompAction::KillProcess)
}

/// What tokio, the allocator and the Rust runtime call while connections are served. No `socket`, `connect`,
/// `bind`, `open`, `execve`, `clone`, `ptrace`, `bpf` …
const SYSTEM_CALLS: &[libc::c_long] = &[
    // connections
    libc::SYS_accept4,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_fcntl,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_shutdown,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    // waiting
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    // memory
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    // nonces of tokens
    libc::SYS_getrandom,
    // the end: exit, panics (gettid for the thread's name, sigaltstack of a thread that ends), abort
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rseq,
    // glibc's allocator, to see how many arenas are enough, once it has more than eight threads
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
];

/// What is answered with "permission denied" instead of the end of the process: glibc's allocator looks into
/// /proc/sys/vm/overcommit_memory when it gives much memory back (`check_may_shrink_heap`), and does without.
const REFUSED_CALLS: &[libc::c_long] = &[libc::SYS_openat];

/// As an unsigned number, as seccomp wants it.
const EACCES: u32 = libc::EACCES as u32;

/// As many as the service wants, or as the host allows. Beyond it a connection waits until another one ends.
fn limit_descriptors() -> Result<(), nix::errno::Errno> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS_MAX, DESCRIPTORS_MAX).is_ok() {
        return Ok(());
    }
    // More than the hard limit takes a capability that the daemon may not have.
    let allowed = hard.min(DESCRIPTORS_MAX);
    tracing::warn!(
        "this host allows a process {allowed} descriptors: the responder can hold no more connections"
    );
    setrlimit(Resource::RLIMIT_NOFILE, allowed, allowed)
}

/// How many connections this process has descriptors for. Never none: where there are hardly any, a connection waits until
/// another one ends.
#[must_use]
pub fn connections_max() -> usize {
    let allowed = getrlimit(Resource::RLIMIT_NOFILE).map_or(DESCRIPTORS_MAX, |(soft, _)| soft);
    let left = allowed.saturating_sub(OWN_DESCRIPTORS).max(allowed / 2);
    usize::try_from(left).unwrap_or(CONNECTIONS_MAX)
}

fn account() -> (Uid, Gid) {
    match User::from_name(USER) {
        Ok(Some(user)) if !user.uid.is_root() => (user.uid, user.gid),
        // A host without the account, or one whose account database cannot be read.
        Ok(_) | Err(_) => (Uid::from_raw(UID_FALLBACK), Gid::from_raw(UID_FALLBACK)),
    }
}

/// No file, no new TCP socket, no abstract socket or signal outside, as far as the kernel knows landlock (none of it
/// before 5.13, the network from 6.7, scopes from 6.12). What it does not know, seccomp refuses all the same.
fn restrict_files() -> Result<(), ConfineError> {
    let abi = ABI::V6;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced {
        tracing::warn!(
            "this kernel has no landlock: the responder is confined by its user, namespace and seccomp alone"
        );
    }
    Ok(())
}

/// Makes sure that no capability is left, in the kernel's own words (`/proc/self/status`).
fn check_no_capabilities(status: &str) -> Result<(), ConfineError> {
    for name in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        let value = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map_or("missing", str::trim);
        if !value.chars().all(|digit| digit == '0') {
            return Err(ConfineError::Capabilities(format!("{name} {value}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remaining_capability_is_noticed() {
        let none = "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
                    CapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\n";
        assert!(check_no_capabilities(none).is_ok());
        let one = none.replace("CapBnd:\t0000000000000000", "CapBnd:\t0000000000000400");
        assert!(matches!(
            check_no_capabilities(&one),
            Err(ConfineError::Capabilities(_))
        ));
        assert!(check_no_capabilities("").is_err());
    }
}
