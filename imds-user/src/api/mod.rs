//! The control API: what AWS's own clients (the CLI, the SDKs, Terraform) say to EC2 and its neighbours, answered here.
//!
//! From the wire inwards: [`query`] reads a form into parameters, [`sigv4`] tells whether who signed a request is who they
//! say, [`fault`] and [`xml`] write answers. None of it has a clock, a socket or a file, and everything a client can send is
//! bounded.

pub mod attend;
pub mod call;
pub mod ec2;
pub mod fault;
pub mod gate;
pub mod query;
pub mod server;
pub mod service;
pub mod sigv4;
pub mod sts;
pub mod xml;
