//! Discovery: which interfaces are guests' ports, whose each one is, and what follows when they come and go.
//!
//! [`plan`] is the pure middle: from the interfaces there are, the guests there are and the operator's patterns to what is
//! to be done. It looks at everything every time, so that a notification that was lost costs nothing but a moment.
//!
//! A guest is known from the configuration, from a person's `imds admit`, or from a [`source`]: a module that watches
//! something on the host in which guests are made and tells, after every change, of all guests there and of the numbers
//! of their interfaces. Docker is one ([`docker`]). Another one (libvirt, CNI) is another such module and a line in
//! [`source::Sources::start`].
//!
//! Nothing here reads what a guest sends. See [`crate::config::PortBy`] for what an interface is known by.

pub mod admitted;
pub mod docker;
pub mod plan;
pub mod source;
