//! The control API: what AWS's own clients (the CLI, the SDKs, Terraform) say to EC2 and its neighbours, answered here.
//!
//! From the wire inwards: [`query`] reads a form into parameters, [`sigv4`] tells whether who signed a request is who they
//! say, [`gate`] for which service it is and what they may, [`fault`] and [`xml`] write answers. An action ([`ec2`], [`sts`]) is a
//! function from a [`call::Call`], which has the records as they are, to an [`call::Outcome`], which says what is to be written.
//! [`monitoring`] (CloudWatch) answers from what was counted, in both of its protocols. None of this has a clock, a socket or a
//! file, and everything a client can send is bounded.
//!
//! Around it, [`service`] looks into the store, commits, and tries again when somebody was faster; [`order`] does so for the
//! command line, without XML; [`server`] has the sockets; [`attend`] brings instances to where they were told to go,
//! [`machines`] says how for those whose guests a launcher runs.

pub mod attend;
pub mod call;
pub mod ec2;
pub mod fault;
pub mod gate;
pub mod machines;
pub mod monitoring;
pub mod order;
pub mod query;
pub mod server;
pub mod service;
pub mod sigv4;
pub mod sts;
pub mod tls;
pub mod xml;
