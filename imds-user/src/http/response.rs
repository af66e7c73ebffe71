//! An answer: its head in the order and spelling of the wire, its body, and what the edge must do besides.

use std::cell::RefCell;
use std::io::{self, Write};
use std::num::NonZeroU8;

use bytes::Bytes;

use super::head::TOKEN_TTL_SECONDS;
use super::status::{Refusal, Status};
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
    /// Writes name, value and the end of the line as they stand on the wire.
    fn write_to(self, wire: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::TokenTtlSeconds(seconds) => write!(wire, "{TOKEN_TTL_SECONDS}: {seconds}")?,
            Self::ContentType(kind) => {
                wire.extend_from_slice(b"Content-Type: ");
                wire.extend_from_slice(kind.as_str().as_bytes());
            }
            Self::AcceptRangesNone => wire.extend_from_slice(b"Accept-Ranges: none"),
            Self::LastModified(at) => {
                wire.extend_from_slice(b"Last-Modified: ");
                LAST_MODIFIED.with(|kept| write_date(at, kept, wire))?;
            }
            Self::ContentLength(length) => write!(wire, "Content-Length: {length}")?,
            Self::Date(at) => {
                wire.extend_from_slice(b"Date: ");
                DATE.with(|kept| write_date(at, kept, wire))?;
            }
            Self::Server => wire.extend_from_slice(b"Server: EC2ws"),
            Self::ConnectionClose => wire.extend_from_slice(b"Connection: close"),
            Self::Allow(methods) => {
                wire.extend_from_slice(b"Allow: ");
                wire.extend_from_slice(methods.as_bytes());
            }
        }
        wire.extend_from_slice(b"\r\n");
        Ok(())
    }
}

/// A date as it was written last.
type KeptDate = RefCell<(UnixSeconds, Vec<u8>)>;

thread_local! {
    /// All answers of a second have the same date, and nearly all of a daemon's life the same time of publication.
    static DATE: KeptDate = const { RefCell::new((UnixSeconds(0), Vec::new())) };
    static LAST_MODIFIED: KeptDate = const { RefCell::new((UnixSeconds(0), Vec::new())) };
}

fn write_date(at: UnixSeconds, kept: &KeptDate, wire: &mut Vec<u8>) -> io::Result<()> {
    let mut kept = kept.borrow_mut();
    let (kept_at, text) = &mut *kept;
    if *kept_at != at || text.is_empty() {
        text.clear();
        write!(text, "{}", at.imf_fixdate())?;
        *kept_at = at;
    }
    wire.extend_from_slice(text);
    Ok(())
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

    /// The answer to what is no request. Nobody captured EC2's; the page is what its other refusals have. The connection
    /// ends with it, as nobody knows where the next request would begin.
    #[must_use]
    pub fn malformed(now: UnixSeconds) -> Self {
        Self::of_page(Refusal::Malformed.status(), None, now, true)
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

    /// The same answer, the last on its connection.
    #[must_use]
    pub fn and_close(mut self) -> Self {
        if !self.close {
            self.close = true;
            self.headers.push(Header::ConnectionClose);
        }
        self
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
        let mut head = Vec::with_capacity(HEAD_BYTES_ROOM);
        self.write_head(&mut head)
            .expect("writing to a vector does not fail");
        head
    }

    fn write_head(&self, wire: &mut Vec<u8>) -> io::Result<()> {
        let (code, reason) = (self.status.code(), self.status.reason());
        write!(wire, "HTTP/1.1 {code} {reason}\r\n")?;
        for header in &self.headers {
            header.write_to(wire)?;
        }
        wire.write_all(b"\r\n")
    }
}

/// More than any head of ours has.
const HEAD_BYTES_ROOM: usize = 384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_date_is_not_taken_for_another() {
        let check = |header: Header, expected: &str| {
            let mut wire = Vec::new();
            header.write_to(&mut wire).unwrap();
            assert_eq!(String::from_utf8(wire).unwrap(), expected, "{header:?}");
        };
        let (first, second) = (UnixSeconds(784_111_777), UnixSeconds(784_111_778));
        let date = |at| Header::Date(at);
        check(
            date(UnixSeconds(0)),
            "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n",
        );
        check(date(first), "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n");
        check(date(first), "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n");
        check(
            Header::LastModified(second),
            "Last-Modified: Sun, 06 Nov 1994 08:49:38 GMT\r\n",
        );
        check(date(second), "Date: Sun, 06 Nov 1994 08:49:38 GMT\r\n");
        check(date(first), "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n");
    }
}
