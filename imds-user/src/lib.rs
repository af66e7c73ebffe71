//! EC2-style instance metadata for every guest of a Linux host: the library behind the command `imds`.
//!
//! It has a pure middle and thin edges. The middle knows what is answered and why, and touches neither clock, nor
//! randomness, nor sockets, nor the kernel: [`instance`] (who is asking), [`life`] (what happens to it), [`metadata`] (the
//! tree), [`metrics`] (what is counted of it, by the minute), [`token`] (IMDSv2 session tokens), [`identity`] (signatures of the identity document; its keys have an edge),
//! [`http`] (the rules of the service: one function, [`http::respond::respond`]) and [`config`] (what the operator wrote,
//! made true). So is most of [`api`], the control API: what AWS's clients say and what becomes of it, over the records of the
//! [`store`]. Everything else is an edge that hands these their arguments.

pub mod api;
pub mod capabilities;
pub mod cgroups;
pub mod config;
pub mod control;
pub mod credentials;
pub mod daemon;
pub mod dataplane;
pub mod discovery;
pub mod doctor;
pub mod http;
pub mod identity;
pub mod instance;
pub mod lab;
pub mod launch;
pub mod life;
pub mod memory;
pub mod metadata;
pub mod metrics;
pub mod netns;
pub mod process;
pub mod responder;
pub mod service_manager;
pub mod state;
pub mod store;
pub mod teardown;
pub mod token;
