//! The responder: a process of its own that answers guests and can do nothing else.
//!
//! [`namespace`] is the network namespace that it lives in, [`confine`] what it gives up before it reads a guest's first
//! byte, [`protocol`] what the daemon and it say to each other, [`process`] its own main function, [`supervisor`] the
//! daemon's side: it starts the process, feeds it and replaces it when it dies. [`orphan`] is for those of earlier daemons.

pub mod confine;
pub mod namespace;
pub mod orphan;
pub mod process;
pub mod protocol;
mod signing;
pub mod supervisor;
