//! cgroup v2, at the root: calls of the host's own processes to the metadata address, connected (`connect4`, `connect6`) or
//! not (`sendmsg4`, `sendmsg6`, for UDP). While the operator allows some cgroups alone (`host-access = "allow-list"`),
//! all others are refused: the caller gets EPERM.
//!
//! At the root every process of the machine is seen. Sockets of other network namespaces are none of our business: they
//! are guests', or another host's. A caller is known by the cgroup that it is in when it calls, which no process
//! changes without the right to write into another cgroup. What is connected already stays so.
//!
//! 1 lets the call go on to what else is attached, 0 refuses it (`bpf_prog_run_array_cg`, kernel/bpf/cgroup.c, runs all).
//! The later rewriting of calls into tag addresses has a file of its own beside this one.
//!
//! Needs Linux 5.7 (`bpf_get_netns_cookie` and ids of ancestors in these programs); tested on 6.1 and 6.18.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_netns_cookie,
    },
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use aya_log_ebpf::debug;
use imds_ebpf::{abi::host_access::CGROUP_LEVELS_MAX, decide};

use crate::maps;

/// The call goes on.
const GO_ON: i32 = 1;
/// The call fails with EPERM.
const REFUSE: i32 = 0;

#[cgroup_sock_addr(connect4)]
pub(crate) fn host_connect4(ctx: SockAddrContext) -> i32 {
    act(&ctx, decide::is_call_for_metadata_v4(address_v4(&ctx)))
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn host_connect6(ctx: SockAddrContext) -> i32 {
    act(&ctx, decide::is_call_for_metadata_v6(&address_v6(&ctx)))
}

#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn host_sendmsg4(ctx: SockAddrContext) -> i32 {
    act(&ctx, decide::is_call_for_metadata_v4(address_v4(&ctx)))
}

#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn host_sendmsg6(ctx: SockAddrContext) -> i32 {
    act(&ctx, decide::is_call_for_metadata_v6(&address_v6(&ctx)))
}

#[inline(always)]
fn act(ctx: &SockAddrContext, is_for_metadata: bool) -> i32 {
    if !is_for_metadata || !maps::is_host(netns_cookie(ctx)) || is_caller_allowed() {
        return GO_ON;
    }
    let cgroup = cgroup();
    maps::count_refused(cgroup);
    debug!(ctx, "refused: a call of the host's cgroup {}", cgroup);
    REFUSE
}

/// Whether the caller is in a cgroup that was named, or below one.
#[inline(always)]
fn is_caller_allowed() -> bool {
    // The root, level 0, cannot be named.
    for level in 1..=CGROUP_LEVELS_MAX as i32 {
        let ancestor = ancestor(level);
        if ancestor == 0 {
            return false;
        }
        if maps::is_allowed(ancestor) {
            return true;
        }
    }
    false
}

/// The id of the caller's cgroup or of one above it; 0 below the caller's own.
#[inline(always)]
fn ancestor(level: i32) -> u64 {
    // SAFETY: the helper takes any number.
    unsafe { bpf_get_current_ancestor_cgroup_id(level) }
}

#[inline(always)]
fn cgroup() -> u64 {
    // SAFETY: the helper takes nothing, and a program on a system call has a caller.
    unsafe { bpf_get_current_cgroup_id() }
}

/// Of the socket's network namespace, by which the call would leave, wherever the caller lives.
#[inline(always)]
fn netns_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is valid while the program runs.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The address that is called, as it lies in the caller's `sockaddr_in`. For programs on IPv4 alone.
#[inline(always)]
fn address_v4(ctx: &SockAddrContext) -> u32 {
    // SAFETY: the context is valid while the program runs, and these programs may read this field.
    unsafe { (*ctx.sock_addr).user_ip4 }
}

/// The same of a `sockaddr_in6`. For programs on IPv6 alone.
#[inline(always)]
fn address_v6(ctx: &SockAddrContext) -> [u32; 4] {
    // SAFETY: as above.
    unsafe { (*ctx.sock_addr).user_ip6 }
}
