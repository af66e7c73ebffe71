//! Every rule of the service: what a request gets, given the instance, the services and the time.

use super::head::RequestHead;
use super::response::Response;
use super::status::Status;
use crate::instance::{Host, Instance, UnixMillis, UnixSeconds};
use crate::token::TokenKeys;

/// What answers need besides the instance.
#[derive(Clone, Copy)]
pub struct Services<'a> {
    /// What the instances of this host share.
    pub host: &'a Host,
    /// The keys of session tokens.
    pub token_keys: &'a TokenKeys,
    /// Twelve random bytes; asked only when a token is minted.
    pub nonce: &'a dyn Fn() -> [u8; 12],
    /// When the instance's metadata was last published: at start, and at each change of it or of its credentials.
    pub published: UnixSeconds,
}

/// Answers a request.
#[must_use]
pub fn respond(
    _head: &RequestHead<'_>,
    _instance: &Instance,
    _services: &Services<'_>,
    now: UnixMillis,
) -> Response {
    Response::of_page(Status::NotFound, None, now.seconds(), true)
}
