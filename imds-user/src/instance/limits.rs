//! What one guest may take of the service.

use serde::{Deserialize, Serialize};

/// Bounds of one guest. What is beyond them is dropped (packets), reset (new
/// connections), answered with 503 (requests), or makes its longest
/// idle connection, or the one that waits for longest, give way. What they come to in bytes is worked out in
/// [`crate::http::bounds`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Limits {
    /// Packets to the service a second; 0 is no limit. EC2 grants 1024 to each network interface (EC2 User Guide,
    /// "Packets per second (PPS) limits for link-local services").
    pub packets_per_second: u32,
    /// Requests a second; 0 is no limit. EC2 throttles too and does not say at which rate: this is more than 1024
    /// packets carry unless a client pipelines.
    pub requests_per_second: u32,
    /// New connections a second; 0 is no limit. What is beyond it is reset at once, before it costs more than being
    /// accepted: all guests' connections wait in one queue for that. As 1024 packets make fewer, this counts where their
    /// limit is raised.
    pub connections_per_second: u32,
    /// Connections at the same time. EC2 limits them too and does not say how many.
    pub connections: u32,
    /// Requests at the same time that are not over at once: half a head that came, an answer that the guest does not take.
    /// No client of EC2's has more than a few.
    pub requests_in_flight: u32,
}

impl Limits {
    /// What a guest gets unless the configuration says otherwise.
    pub const DEFAULT: Self = Self {
        packets_per_second: 1024,
        requests_per_second: 1000,
        connections_per_second: 1024,
        connections: 1024,
        requests_in_flight: 256,
    };
    /// The most connections that a configuration may grant one guest.
    pub const CONNECTIONS_MAX: u32 = 8192;
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
