//! The guests' HTTP: the head of a request, the rules, and the answer.
//!
//! [`respond::respond`] holds every rule of the service and does no I/O; the edge around it reads, calls and writes.

pub mod bounds;
pub mod guests;
pub mod head;
pub mod respond;
pub mod response;
pub mod server;
pub mod signing;
pub mod status;
pub mod throttle;
mod untaken;
