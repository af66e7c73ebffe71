//! How much memory guests can make this host hold, worked out from the limits. What is bounded elsewhere is put together
//! here, and nowhere else; `tests/tests/fair.rs` holds the service to it.
//!
//! | what | bound |
//! |---|---|
//! | a connection without a request in flight | [`IDLE_BYTES`], 30 KiB |
//! | a connection with one | [`IN_FLIGHT_BYTES`], 170 KiB |
//! | a guest | [`guest_bytes_max`], 65 MiB with the usual limits |
//! | all connections of all guests | [`CONNECTIONS_BYTES_MAX`], 760 MiB |
//! | what the kernel keeps of connections that nobody has accepted, or that are over | [`QUEUES_BYTES_MAX`], 300 MiB |
//!
//! The last two take sixteen guests or more that do all they can at once, and the last one a responder besides that does
//! not come to accepting.

use super::head::HEAD_BYTES_MAX;
use crate::instance::{Limits, USER_DATA_BYTES_MAX};

/// Connections in all. Above it the guest with the most gives way.
pub const CONNECTIONS_MAX: usize = 16_384;
/// Requests in flight in all. Above it the guest with the most gives way.
pub const IN_FLIGHT_MAX: usize = 2048;

/// The kernel's own for a TCP socket: `tcp_sock` (2.5 KB), its file and inode, its place in the lists.
pub const SOCKET_BYTES: usize = 4 << 10;
/// The kernel's for what is sent and not acknowledged (`tcp_wmem`) …
pub const SEND_BYTES_MAX: usize = 32 << 10;
/// … and for what came and was not read (`tcp_rmem`). A little of either is kept for what comes next.
pub const RECEIVE_BYTES_MAX: usize = 32 << 10;
/// How much of [`SEND_BYTES_MAX`] a connection may have that is not a request in flight: what is on its way to any guest.
pub const UNTAKEN_BYTES_MAX: usize = 8 << 10;
/// The kernel counts in pages what it sets aside for a socket.
const KEPT_BY_KERNEL_BYTES: usize = 8 << 10;
/// Our own: the task of a connection, its place in the lists, and the room it keeps for the next head.
const TASK_BYTES: usize = 10 << 10;
/// The longest answer: user data, and a head.
const ANSWER_BYTES_MAX: usize = USER_DATA_BYTES_MAX + (2 << 10);

/// A connection without a request in flight, here and in the kernel.
pub const IDLE_BYTES: usize = SOCKET_BYTES + UNTAKEN_BYTES_MAX + KEPT_BY_KERNEL_BYTES + TASK_BYTES;
/// A connection with one: both of the kernel's buffers full and a packet beyond each, since it looks only before it adds
/// one; half a head, in a vector that doubles; an answer.
pub const IN_FLIGHT_BYTES: usize = SOCKET_BYTES
    + SEND_BYTES_MAX
    + ANSWER_BYTES_MAX
    + RECEIVE_BYTES_MAX
    + HEAD_BYTES_MAX
    + KEPT_BY_KERNEL_BYTES
    + TASK_BYTES
    + 2 * HEAD_BYTES_MAX
    + ANSWER_BYTES_MAX;

/// What all connections of all guests take at most.
pub const CONNECTIONS_BYTES_MAX: usize =
    CONNECTIONS_MAX * IDLE_BYTES + IN_FLIGHT_MAX * (IN_FLIGHT_BYTES - IDLE_BYTES);

/// Connections that wait to be accepted, of either family; the listeners' backlog, and `somaxconn`.
pub const BACKLOG: u16 = 4096;
/// Connections that are over, and whose number the kernel keeps from use for a minute (`tcp_max_tw_buckets`).
pub const OVER_MAX: usize = 16_384;
/// The kernel's for a connection that is not open yet, or is over.
const SHADE_BYTES: usize = 512;
/// What the kernel keeps at most that no guest is charged for: connections that wait, with what came on them, those that are
/// half open, and those that are over.
pub const QUEUES_BYTES_MAX: usize =
    2 * (BACKLOG as usize) * (SOCKET_BYTES + RECEIVE_BYTES_MAX + SHADE_BYTES)
        + OVER_MAX * SHADE_BYTES;

/// What one guest can have held at most.
#[must_use]
pub const fn guest_bytes_max(limits: &Limits) -> usize {
    let connections = limits.connections as usize;
    let in_flight = if limits.requests_in_flight < limits.connections {
        limits.requests_in_flight as usize
    } else {
        connections
    };
    connections * IDLE_BYTES + in_flight * (IN_FLIGHT_BYTES - IDLE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: usize, stated_kib: usize) {
        assert_eq!(bytes, stated_kib << 10);
    }

    #[test]
    fn the_figures_above_are_right() {
        check(IDLE_BYTES, 30);
        check(IN_FLIGHT_BYTES, 170);
        check(guest_bytes_max(&Limits::DEFAULT), 65 << 10);
        check(CONNECTIONS_BYTES_MAX, 760 << 10);
        check(QUEUES_BYTES_MAX, 300 << 10);
    }

    #[test]
    fn no_more_requests_are_in_flight_than_there_are_connections() {
        let limits = Limits {
            connections: 10,
            ..Limits::DEFAULT
        };
        assert_eq!(guest_bytes_max(&limits), 10 * IN_FLIGHT_BYTES);
    }
}
