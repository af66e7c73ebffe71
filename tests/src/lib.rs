//! Harness of the integration tests: a host and its guests as network namespaces, and the real binary between them.
//!
//! A test reads like a story:
//!
//! ```no_run
//! use imds_tests::Host;
//!
//! let Some(mut host) = Host::new() else { return };
//! let web = host.guest("web").routed("10.0.0.10").tokens_required().up();
//! let _daemon = host.start();
//! let token = web.put_token(60);
//! assert_eq!(web.get_with_token("/latest/meta-data/instance-id", &token).text(), web.id());
//! ```
//!
//! Everything belongs to the value that made it and is undone when that value is dropped, also by a panic. Namespaces
//! have no name: they live as long as a handle on them, so that even a killed test leaves none behind. No namespace
//! has a way out to the machine's own network, where a metadata service that is not ours may answer.
//!
//! What the machine lacks is a skip with a printed reason, never a silent success: see [`skip`].

mod api;
mod binary;
mod cgroup;
pub mod chaos;
mod daemon;
mod dhcp;
mod disk;
mod docker;
pub mod fixture;
mod frame;
mod frames;
mod guest;
mod guest_system;
mod host;
mod http;
mod instance;
mod jail;
mod launcher;
mod load;
mod namespace;
mod patience;
mod process;
mod program;
pub mod properties;
mod random;
pub mod records;
mod service_manager;
mod skip;
mod small;
mod sts;
mod tap;
mod trace;
mod uplink;
mod vector;
mod vm;
mod walk;

pub use api::{Api, Said};
pub use binary::{imds, imds_path};
pub use cgroup::Cgroup;
pub use daemon::Daemon;
pub use dhcp::Dhcp;
pub use disk::Disk;
pub use docker::Docker;
pub use frame::{Arp, Segment, TcpFrame, parse_arp, parse_tcp};
pub use frames::Frames;
pub use guest::{Guest, GuestBuilder, PersistentTap};
pub use guest_system::GuestSystem;
pub use host::Host;
pub use http::{Address, Connection, Response};
pub use instance::InstanceText;
pub use jail::Jail;
pub use launcher::{Launched, Launcher, cgroup_mounts, traces};
pub use load::{Figures, Load};
pub use namespace::Namespace;
pub use patience::patience;
pub use process::{
    ProcessStatus, allow_open_files, children_of, eventually, is_alive, memory_contains,
    network_of, program_exists, programs_of, responders_of, run, users_of_network,
};
pub use program::{ForeignProgram, TC_ACT_OK, TC_ACT_UNSPEC};
pub use random::Random;
pub use service_manager::FdStore;
pub use skip::{has_command, needs_root, path_of, skip};
pub use small::SmallDisk;
pub use sts::{Identity, Sts, StsCall};
pub use tap::{Tap, Tun};
pub use trace::{Outcome, Tracee};
pub use uplink::{STAND_IN_ANSWER, Uplink};
pub use vector::{check_vectors, shown_body};
pub use vm::Machine;
pub use walk::{Place, walk};

/// Where a guest asks who it is.
pub const INSTANCE_ID: &str = "/latest/meta-data/instance-id";
/// Where it mints tokens.
pub const TOKEN: &str = "/latest/api/token";
/// The header field with which it asks for one.
pub const TTL_FIELD: &str = "X-aws-ec2-metadata-token-ttl-seconds";
/// The header field with which it shows one.
pub const TOKEN_FIELD: &str = "X-aws-ec2-metadata-token";
