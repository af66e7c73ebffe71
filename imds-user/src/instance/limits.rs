//! What one guest may take of the service.

use serde::{Deserialize, Serialize};

/// Bounds of one guest. What is beyond them is dropped (packets), answered with 503 (requests), or makes its longest
/// idle connection give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Limits {
    /// Packets to the service a second; 0 is no limit. EC2 grants 1024 to each network interface (EC2 User Guide,
    /// "Packets per second (PPS) limits for link-local services").
    pub packets_per_second: u32,
    /// Requests a second; 0 is no limit. EC2 throttles too and does not say at which rate: this is more than 1024
    /// packets carry unless a client pipelines.
    pub requests_per_second: u32,
    /// Connections at the same time. EC2 limits them too and does not say how many.
    pub connections: u32,
}

impl Limits {
    /// What a guest gets unless the configuration says otherwise.
    pub const DEFAULT: Self = Self {
        packets_per_second: 1024,
        requests_per_second: 1000,
        connections: 1024,
    };
    /// The most connections that a configuration may grant one guest.
    pub const CONNECTIONS_MAX: u32 = 8192;
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
