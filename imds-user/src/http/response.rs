//! An answer: its head in the order and spelling of the wire, its body, and what the edge must do besides.

use std::cell::Cell;
use std::num::NonZeroU8;

use bytes::Bytes;
use hyper::ext::ReasonPhrase;
use hyper::http::{HeaderName, HeaderValue, StatusCode, header};

use super::head;
use super::status::Status;
use crate::instance::UnixSeconds;

/// One header field of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// What is left of the token's life, or what was granted.
    TokenTtlSeconds(u32),
    /// Kind of the body.
    ContentType(ContentType),
    /// Ranges are not served.
    AcceptRangesNone,
    /// When the instance's metadata was last published.
    LastModified(UnixSeconds),
    /// Length of the body; to HEAD, the length that GET's would have.
    ContentLength(usize),
    /// When the answer was made.
    Date(UnixSeconds),
    /// `EC2ws`, on every answer: clients tell EC2 by it.
    Server,
    /// The connection ends after this answer.
    ConnectionClose,
    /// The methods that are allowed.
    Allow(&'static str),
}

/// Kinds of bodies. JSON documents are plain text, as on EC2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ContentType {
    /// Values, listings, documents, and empty bodies.
    Text,
    /// Error pages.
    Html,
    /// User data.
    Bytes,
}

impl ContentType {
    /// As the header has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text/plain",
            Self::Html => "text/html",
            Self::Bytes => "application/octet-stream",
        }
    }
}

impl Header {
    /// Its name, spelled as EC2 spells it on the wire.
    #[must_use]
    pub fn wire_name(&self) -> &'static str {
        match self {
            Self::TokenTtlSeconds(_) => "X-Aws-Ec2-Metadata-Token-Ttl-Seconds",
            Self::ContentType(_) => "Content-Type",
            Self::AcceptRangesNone => "Accept-Ranges",
            Self::LastModified(_) => "Last-Modified",
            Self::ContentLength(_) => "Content-Length",
            Self::Date(_) => "Date",
            Self::Server => "Server",
            Self::ConnectionClose => "Connection",
            Self::Allow(_) => "Allow",
        }
    }

    /// Its name for hyper, which must be told to spell names in title case.
    #[must_use]
    pub fn name(&self) -> HeaderName {
        match self {
            Self::TokenTtlSeconds(_) => head::TOKEN_TTL_SECONDS,
            Self::ContentType(_) => header::CONTENT_TYPE,
            Self::AcceptRangesNone => header::ACCEPT_RANGES,
            Self::LastModified(_) => header::LAST_MODIFIED,
            Self::ContentLength(_) => header::CONTENT_LENGTH,
            Self::Date(_) => header::DATE,
            Self::Server => header::SERVER,
            Self::ConnectionClose => header::CONNECTION,
            Self::Allow(_) => header::ALLOW,
        }
    }

    /// Its value.
    #[must_use]
    pub fn value(&self) -> HeaderValue {
        match *self {
            Self::TokenTtlSeconds(seconds) => HeaderValue::from(seconds),
            Self::ContentType(kind) => HeaderValue::from_static(kind.as_str()),
            Self::AcceptRangesNone => HeaderValue::from_static("none"),
            Self::ContentLength(length) => HeaderValue::from(length),
            Self::LastModified(at) => LAST_MODIFIED.with(|kept| fixdate(at, kept)),
            Self::Date(at) => DATE.with(|kept| fixdate(at, kept)),
            Self::Server => HeaderValue::from_static("EC2ws"),
            Self::ConnectionClose => HeaderValue::from_static("close"),
            Self::Allow(methods) => HeaderValue::from_static(methods),
        }
    }
}

/// A date as it was written last.
type KeptDate = Cell<Option<(UnixSeconds, HeaderValue)>>;

thread_local! {
    /// All answers of a second have the same date, and nearly all of a daemon's life the same time of publication.
    static DATE: KeptDate = const { Cell::new(None) };
    static LAST_MODIFIED: KeptDate = const { Cell::new(None) };
}

fn fixdate(at: UnixSeconds, kept: &KeptDate) -> HeaderValue {
    let value = match kept.take() {
        Some((kept_at, value)) if kept_at == at => value,
        _ => {
            HeaderValue::try_from(at.imf_fixdate().to_string()).expect("a date is printable ASCII")
        }
    };
    kept.set(Some((at, value.clone())));
    value
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status and reason phrase.
    pub status: Status,
    /// Header fields in the order of the wire.
    pub headers: Vec<Header>,
    /// What is sent after the head. Empty to HEAD, whatever the length in the head.
    pub body: Bytes,
    /// The connection is to be closed after it. The head says so too.
    pub close: bool,
    /// The TTL that packets of this answer are to have, and that must not be raised again on this connection.
    pub hop_limit: Option<NonZeroU8>,
    /// What is to be counted.
    pub accounting: Accounting,
    /// It says that the service cannot answer now, and only because the instance's document is not signed: who has it
    /// signed may ask the rules again.
    pub lacks_signatures: bool,
}

/// What a request counts as, in the words of EC2's metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accounting {
    /// Nothing of note.
    Nothing,
    /// A token was minted.
    TokenIssued,
    /// A request with a valid token.
    Token,
    /// A request with a token that was refused.
    TokenRejected,
    /// A request without token, which is IMDSv1, was served (`MetadataNoToken`).
    NoToken,
    /// A request without token was refused as tokens are required (`MetadataNoTokenRejected`).
    NoTokenRejected,
}

impl Response {
    /// The answer to a request that cannot be served now: too many, or the service is not ready.
    #[must_use]
    pub fn unavailable(now: UnixSeconds, close: bool) -> Self {
        Self::of_page(Status::ServiceUnavailable, None, now, close)
    }

    /// An answer whose body is the page of its status, empty for a status without one.
    pub(super) fn of_page(
        status: Status,
        ttl_seconds: Option<u32>,
        now: UnixSeconds,
        close: bool,
    ) -> Self {
        let page = Bytes::from(status.page().unwrap_or_default());
        let headers = [
            ttl_seconds.map(Header::TokenTtlSeconds),
            Some(Header::ContentType(ContentType::Html)),
            Some(Header::ContentLength(page.len())),
            Some(Header::Date(now)),
            Some(Header::Server),
            close.then_some(Header::ConnectionClose),
        ];
        Self::new(status, headers, page, close)
    }

    pub(super) fn new<const N: usize>(
        status: Status,
        headers: [Option<Header>; N],
        body: Bytes,
        close: bool,
    ) -> Self {
        Self {
            status,
            headers: headers.into_iter().flatten().collect(),
            body,
            close,
            hop_limit: None,
            accounting: Accounting::Nothing,
            lacks_signatures: false,
        }
    }

    /// The same answer, counted as this.
    pub(super) fn counted(self, accounting: Accounting) -> Self {
        Self { accounting, ..self }
    }

    /// The same answer without body, as HEAD wants it.
    pub(super) fn without_body(self) -> Self {
        Self {
            body: Bytes::new(),
            ..self
        }
    }

    /// The head as it stands on the wire, up to and including the empty line.
    #[must_use]
    pub fn wire_head(&self) -> Vec<u8> {
        let mut head = format!(
            "HTTP/1.1 {} {}\r\n",
            self.status.code(),
            self.status.reason()
        )
        .into_bytes();
        for header in &self.headers {
            head.extend_from_slice(header.wire_name().as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(header.value().as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        head
    }

    /// The answer in hyper's types, with `body` around its bytes. hyper keeps the order of the fields, and is to be told
    /// to spell them in title case.
    #[must_use]
    pub fn into_hyper<B>(self, body: impl FnOnce(Bytes) -> B) -> hyper::Response<B> {
        let mut response = hyper::Response::new(body(self.body));
        *response.status_mut() =
            StatusCode::from_u16(self.status.code()).expect("our codes are of three digits");
        if self.status == Status::NotAllowed {
            // The one phrase that is not the standard's.
            response
                .extensions_mut()
                .insert(ReasonPhrase::from_static(b"Not Allowed"));
        }
        let fields = response.headers_mut();
        fields.reserve(self.headers.len());
        for header in &self.headers {
            fields.insert(header.name(), header.value());
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_date_is_not_taken_for_another() {
        let check = |header: Header, expected: &str| {
            assert_eq!(header.value(), expected, "{header:?}");
        };
        let (first, second) = (UnixSeconds(784_111_777), UnixSeconds(784_111_778));
        check(Header::Date(first), "Sun, 06 Nov 1994 08:49:37 GMT");
        check(Header::Date(first), "Sun, 06 Nov 1994 08:49:37 GMT");
        check(
            Header::LastModified(second),
            "Sun, 06 Nov 1994 08:49:38 GMT",
        );
        check(Header::Date(second), "Sun, 06 Nov 1994 08:49:38 GMT");
        check(Header::LastModified(first), "Sun, 06 Nov 1994 08:49:37 GMT");
        check(Header::Date(first), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
