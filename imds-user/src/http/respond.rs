//! Every rule of the service: what a request gets, given the instance, the services and the time.
//!
//! Obeys the EC2 User Guide ("Use the Instance Metadata Service to access instance metadata") and captures of current
//! instances. Checks come in EC2's order: expectation, endpoint, method and path, proxy, then time to live or token, and
//! only then whether anything is there. So nobody without a token learns which paths exist.

use std::num::NonZeroU8;

use bytes::Bytes;

use super::head::{EXPECT, Method, RequestHead, TOKEN, TOKEN_TTL_SECONDS, X_FORWARDED_FOR};
use super::response::{Accounting, ContentType, Header, Response};
use super::status::{Refusal, Status};
use crate::identity::{SignatureKind, Signatures};
use crate::instance::{Host, Instance, TokenUse, UnixMillis, UnixSeconds};
use crate::metadata::{self, Found, LATEST, Path};
use crate::token::{Binding, NONCE_BYTES, RemainingSeconds, TokenError, TokenKeys, TtlSeconds};

/// What answers need besides the instance.
#[derive(Clone, Copy)]
pub struct Services<'a> {
    /// What the instances of this host share.
    pub host: &'a Host,
    /// The keys of session tokens.
    pub token_keys: &'a TokenKeys,
    /// Twelve random bytes; asked only when a token is minted.
    pub nonce: &'a dyn Fn() -> [u8; NONCE_BYTES],
    /// When the instance's metadata was last published: at start, and at each change of it or of its credentials.
    pub published: UnixSeconds,
    /// The signatures of the instance's identity document, if it was signed since anything changed. Asked only when one
    /// is wanted.
    pub signatures: Option<&'a Signatures>,
}

/// Answers a request of `instance`.
#[must_use]
pub fn respond(
    head: &RequestHead<'_>,
    instance: &Instance,
    services: &Services<'_>,
    now: UnixMillis,
) -> Response {
    let exchange = Exchange {
        head,
        instance,
        services,
        now,
    };
    let response = exchange.answer();
    let response = if head.method() == Method::Head {
        response.without_body()
    } else {
        response
    };
    Response {
        hop_limit: exchange.hop_limit(),
        ..response
    }
}

/// A request and all that its answer follows from.
struct Exchange<'a> {
    head: &'a RequestHead<'a>,
    instance: &'a Instance,
    services: &'a Services<'a>,
    now: UnixMillis,
}

/// Where a request goes.
enum Target<'a> {
    /// Exactly `/latest/api/token`.
    Token,
    /// What looks like it: under another version, with a slash or more behind it.
    TokenLike(Path<'a>),
    /// Anything else.
    Metadata(Path<'a>),
    /// Nowhere: no path that something could be at.
    Nowhere,
}

impl Exchange<'_> {
    fn answer(&self) -> Response {
        if self.head.has(EXPECT) {
            return self.refuse(Refusal::Expectation);
        }
        if !self.instance.options.http_endpoint.is_enabled() {
            return self.refuse(Refusal::EndpointDisabled);
        }
        let target = self.target();
        match (self.head.method(), target) {
            (Method::Put, Target::Token) => self.mint(),
            (Method::Options, Target::Token) => self.allow(Status::Ok, ALLOWED_FOR_TOKEN),
            (_, Target::Token) => self.allow(Refusal::Method.status(), ALLOWED_FOR_TOKEN),
            (Method::Put, Target::TokenLike(_)) => self.refuse(Refusal::TokenPath),
            (Method::Get | Method::Head, Target::TokenLike(path) | Target::Metadata(path)) => {
                self.fetch(Some(&path))
            }
            (Method::Get | Method::Head, Target::Nowhere) => self.fetch(None),
            (Method::Options, _) => self.allow(Status::Ok, ALLOWED_FOR_METADATA),
            (_, _) => self.allow(Refusal::Method.status(), ALLOWED_FOR_METADATA),
        }
    }

    fn target(&self) -> Target<'_> {
        let Some(path) = self.head.path().and_then(Path::parse) else {
            return Target::Nowhere;
        };
        let mut segments = path.segments();
        let (version, api, token, rest) = (
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
        );
        let is_token_like =
            api == Some("api") && token.is_some_and(|token| token.starts_with("token"));
        let is_exact = version == Some(LATEST)
            && token == Some("token")
            && rest.is_none()
            && !path.ends_in_slash();
        drop(segments);
        match (is_token_like, is_exact) {
            (true, true) => Target::Token,
            (true, false) => Target::TokenLike(path),
            (false, _) => Target::Metadata(path),
        }
    }

    /// A request for a token. A token that comes with it is not looked at.
    fn mint(&self) -> Response {
        if self.head.has(X_FORWARDED_FOR) {
            return self.refuse(Refusal::Forwarded);
        }
        let Some(ttl) = granted_ttl(self.head.values(TOKEN_TTL_SECONDS)) else {
            return self.refuse(Refusal::Ttl);
        };
        let nonce = (self.services.nonce)();
        let token = self.services.token_keys.current.mint(
            &Binding::of(self.instance),
            ttl,
            self.now,
            nonce,
        );
        let body = Bytes::copy_from_slice(token.as_str().as_bytes());
        let close = self.closes();
        let headers = [
            Some(Header::TokenTtlSeconds(ttl.get())),
            Some(Header::ContentLength(body.len())),
            Some(Header::Date(self.now.seconds())),
            Some(Header::Server),
            close.then_some(Header::ConnectionClose),
            Some(Header::ContentType(ContentType::Text)),
        ];
        Response::new(Status::Ok, headers, body, close).counted(Accounting::TokenIssued)
    }

    /// A request for metadata.
    fn fetch(&self, path: Option<&Path<'_>>) -> Response {
        let (caller, accounting) = match self.authorise() {
            Ok(Caller::WithToken(remaining)) => (Some(remaining), Accounting::Token),
            Ok(Caller::WithoutToken) => (None, Accounting::NoToken),
            Err(refusal) => {
                let accounting = match refusal {
                    Refusal::TokenMissing => Accounting::NoTokenRejected,
                    _ => Accounting::TokenRejected,
                };
                return self.refuse(refusal).counted(accounting);
            }
        };
        let ttl_seconds = caller.map(|RemainingSeconds(seconds)| seconds);
        let now = self.now.seconds();
        let found =
            path.and_then(|path| metadata::lookup(self.services.host, self.instance, path, now));
        match found {
            Some(Found::Text(text)) => self.serve(ContentType::Text, text, ttl_seconds),
            Some(Found::UserData(bytes)) => self.serve(ContentType::Bytes, bytes, ttl_seconds),
            Some(Found::Signature(kind)) => self.serve_signature(kind, ttl_seconds),
            None => Response::of_page(Refusal::NotFound.status(), ttl_seconds, now, self.closes()),
        }
        .counted(accounting)
    }

    /// A signature of exactly the document that is served, or the answer that there is none yet.
    fn serve_signature(&self, kind: SignatureKind, ttl_seconds: Option<u32>) -> Response {
        let document = metadata::identity_document(self.services.host, self.instance);
        let signatures = self
            .services
            .signatures
            .filter(|signatures| signatures.are_of(document.as_bytes()));
        match signatures {
            Some(signatures) => self.serve(
                ContentType::Text,
                signatures.body(kind).clone(),
                ttl_seconds,
            ),
            None => Response {
                lacks_signatures: true,
                ..Response::of_page(
                    Status::ServiceUnavailable,
                    ttl_seconds,
                    self.now.seconds(),
                    self.closes(),
                )
            },
        }
    }

    /// Whether the caller may read metadata. The presence of a token's header alone declares a request of IMDSv2, even
    /// where tokens are optional.
    fn authorise(&self) -> Result<Caller, Refusal> {
        let mut tokens = self.head.values(TOKEN);
        let Some(token) = tokens.next() else {
            return match self.instance.options.http_tokens {
                TokenUse::Optional => Ok(Caller::WithoutToken),
                TokenUse::Required => Err(Refusal::TokenMissing),
            };
        };
        if self.head.has(X_FORWARDED_FOR) {
            return Err(Refusal::Forwarded);
        }
        if tokens.next().is_some() {
            return Err(Refusal::Token(TokenError::Malformed));
        }
        let binding = Binding::of(self.instance);
        let remaining = self.services.token_keys.verify(&binding, token, self.now)?;
        Ok(Caller::WithToken(remaining))
    }

    fn serve(&self, kind: ContentType, body: Bytes, ttl_seconds: Option<u32>) -> Response {
        let close = self.closes();
        let headers = [
            ttl_seconds.map(Header::TokenTtlSeconds),
            Some(Header::ContentType(kind)),
            Some(Header::AcceptRangesNone),
            Some(Header::LastModified(self.services.published)),
            Some(Header::ContentLength(body.len())),
            Some(Header::Date(self.now.seconds())),
            Some(Header::Server),
            close.then_some(Header::ConnectionClose),
        ];
        Response::new(Status::Ok, headers, body, close)
    }

    /// The methods of a path: the answer to OPTIONS, and to a method that is not among them.
    fn allow(&self, status: Status, methods: &'static str) -> Response {
        let close = self.closes();
        let headers = [
            Some(Header::Allow(methods)),
            Some(Header::ContentLength(0)),
            Some(Header::Date(self.now.seconds())),
            Some(Header::Server),
            close.then_some(Header::ConnectionClose),
            Some(Header::ContentType(ContentType::Text)),
        ];
        Response::new(status, headers, Bytes::new(), close)
    }

    fn refuse(&self, refusal: Refusal) -> Response {
        let (status, now) = (refusal.status(), self.now.seconds());
        // Whether a body follows a refused expectation is up to the client: what comes next cannot be told from it.
        let close = self.closes() || refusal == Refusal::Expectation;
        match status {
            Status::Forbidden => {
                let headers = [
                    Some(Header::ContentLength(0)),
                    Some(Header::ContentType(ContentType::Text)),
                    Some(Header::Date(now)),
                    Some(Header::Server),
                    close.then_some(Header::ConnectionClose),
                ];
                Response::new(status, headers, Bytes::new(), close)
            }
            Status::Unauthorized => {
                let headers = [
                    Some(Header::ContentLength(0)),
                    Some(Header::Date(now)),
                    Some(Header::Server),
                    close.then_some(Header::ConnectionClose),
                    Some(Header::ContentType(ContentType::Text)),
                ];
                Response::new(status, headers, Bytes::new(), close)
            }
            page => Response::of_page(page, None, now, close),
        }
    }

    fn closes(&self) -> bool {
        !self.head.keeps_alive()
    }

    /// The option is about answers to PUT, and applies to refusals too.
    fn hop_limit(&self) -> Option<NonZeroU8> {
        (self.head.method() == Method::Put)
            .then_some(self.instance.options.http_put_response_hop_limit)
    }
}

const ALLOWED_FOR_TOKEN: &str = "OPTIONS, PUT";
const ALLOWED_FOR_METADATA: &str = "GET, HEAD, OPTIONS";

enum Caller {
    WithToken(RemainingSeconds),
    WithoutToken,
}

/// The life that was asked for: one decimal number of 1 to 21600, said once or several times the same.
fn granted_ttl<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Option<TtlSeconds> {
    let ttl = ttl_of(values.next()?)?;
    values
        .all(|value| ttl_of(value) == Some(ttl))
        .then_some(ttl)
}

fn ttl_of(value: &[u8]) -> Option<TtlSeconds> {
    let digits = std::str::from_utf8(value).ok()?.trim_matches([' ', '\t']);
    // `parse` would take a sign.
    let is_decimal = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    is_decimal
        .then(|| digits.parse().ok())
        .flatten()
        .and_then(TtlSeconds::new)
}
