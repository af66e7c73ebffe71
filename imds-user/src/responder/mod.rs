//! The responder: a process of its own that answers guests and can do nothing else.
//!
//! It outlives the daemon that started it, and serves on with what it was told; the next daemon finds it and goes on, or
//! starts another that takes over while the first finishes what is under way.
//!
//! | part | about |
//! |---|---|
//! | [`namespace`], [`listeners`] | where it lives, and the sockets that are handed from one to the next |
//! | [`process`], [`workers`] | its own main function, and the threads that serve |
//! | [`confine`] | what it gives up before it reads a guest's first byte |
//! | [`door`], [`greeting`] | how a daemon reaches one that runs, and what both say first, for ever the same |
//! | [`protocol`] | what they say to each other then |
//! | [`found`], [`handle`] | those that run already, and their processes |
//! | [`orphan`] | those that nobody can reach any more |
//! | [`supervisor`] | the daemon's side: it starts the process, feeds it, and replaces it when it dies or hangs |
//! | [`desired`], `line`, `signing` | parts of that: what is to be served, what is said, what is signed |
//! | [`rights`] | descriptors over sockets |

pub mod confine;
pub mod desired;
pub mod door;
pub mod found;
pub mod greeting;
pub mod handle;
mod line;
pub mod listeners;
pub mod namespace;
pub mod orphan;
pub mod process;
pub mod protocol;
pub mod rights;
mod signing;
pub mod supervisor;
pub mod workers;

pub use found::remove;
