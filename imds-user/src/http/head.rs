//! The head of a request: read from the bytes of a connection, as far as the rules look at it.
//!
//! The grammar is httparse's (RFC 9112): lines may end in LF alone, a field's name is a token followed by a colon at once,
//! folded lines and control characters are refused. Whatever is refused is answered like any other request, with EC2's
//! page and headers, which is why heads are read here and not by a framework.

use std::mem::MaybeUninit;

/// Session token of IMDSv2, on requests for metadata.
pub const TOKEN: &str = "X-Aws-Ec2-Metadata-Token";
/// Life of a session token in seconds: asked for on PUT, told on answers.
pub const TOKEN_TTL_SECONDS: &str = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds";
/// Added by proxies.
pub const X_FORWARDED_FOR: &str = "X-Forwarded-For";
/// Asks whether a body would be taken.
pub const EXPECT: &str = "Expect";
const CONNECTION: &str = "Connection";
const CONTENT_LENGTH: &str = "Content-Length";
const TRANSFER_ENCODING: &str = "Transfer-Encoding";

/// The largest request head, bytes. SDKs send a few hundred.
pub const HEAD_BYTES_MAX: usize = 16 << 10;
/// The most header fields of a request. SDKs send about ten.
pub const FIELDS_MAX: usize = 100;

/// Methods, as far as any path has a use for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `GET`
    Get,
    /// `HEAD`
    Head,
    /// `PUT`
    Put,
    /// `OPTIONS`
    Options,
    /// Any other word.
    Other,
}

/// The head of a request, borrowed from the bytes that came. Cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    method: Method,
    target: &'a str,
    minor_version: u8,
    fields: &'a [httparse::Header<'a>],
}

/// Where the fields of a head are put while it is looked at.
pub struct Room<'a>([MaybeUninit<httparse::Header<'a>>; FIELDS_MAX]);

/// What bytes begin with.
#[derive(Clone, Copy, Debug)]
pub enum Reading<'a> {
    /// A head, and its length in bytes with the empty line that ends it.
    Whole(RequestHead<'a>, usize),
    /// What may become one.
    Partial,
    /// What is none and will not become one: bytes that no head has, or too many of them.
    Malformed,
}

impl Room<'_> {
    /// An empty room.
    #[must_use]
    pub const fn new() -> Self {
        Self([const { MaybeUninit::uninit() }; FIELDS_MAX])
    }
}

impl Default for Room<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads the head that `bytes` begin with, if it is whole. `n_known` of them were looked at before, in vain: what is
/// partial is parsed again only once its end may have come, so that a head in drips costs no more than one at once.
pub fn read<'h, 'b: 'h>(bytes: &'b [u8], n_known: usize, room: &'h mut Room<'b>) -> Reading<'h> {
    let partial = if bytes.len() > HEAD_BYTES_MAX {
        Reading::Malformed
    } else {
        Reading::Partial
    };
    if n_known > 0 && !has_empty_line(&bytes[n_known.saturating_sub(3).min(bytes.len())..]) {
        return partial;
    }
    let mut request = httparse::Request::new(&mut []);
    let n_bytes = match request.parse_with_uninit_headers(bytes, &mut room.0) {
        Ok(httparse::Status::Complete(n_bytes)) if n_bytes <= HEAD_BYTES_MAX => n_bytes,
        Ok(httparse::Status::Partial) => return partial,
        Ok(httparse::Status::Complete(_)) | Err(_) => return Reading::Malformed,
    };
    let head = RequestHead {
        method: Method::of(request.method.unwrap_or_default()),
        target: request.path.unwrap_or_default(),
        minor_version: request.version.unwrap_or_default(),
        fields: request.headers,
    };
    Reading::Whole(head, n_bytes)
}

fn has_empty_line(bytes: &[u8]) -> bool {
    let mut line_ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    line_ends.any(|(at, _)| matches!(&bytes[at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]))
}

impl Method {
    /// Methods are case-sensitive (RFC 9110, 9.1).
    fn of(word: &str) -> Self {
        match word {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "PUT" => Self::Put,
            "OPTIONS" => Self::Options,
            _ => Self::Other,
        }
    }
}

impl<'a> RequestHead<'a> {
    /// The method.
    #[must_use]
    pub fn method(&self) -> Method {
        self.method
    }

    /// The path of the request target as it was sent: the origin form, or the absolute form that proxies send. `None` for
    /// what has none. The query is no part of it.
    #[must_use]
    pub fn path(&self) -> Option<&'a str> {
        let rest = if self.target.starts_with('/') {
            self.target
        } else {
            let (scheme, rest) = self.target.split_once("://")?;
            let is_http =
                scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
            let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            if !is_http || authority == 0 {
                return None;
            }
            &rest[authority..]
        };
        let path = &rest[..rest.find(['?', '#']).unwrap_or(rest.len())];
        Some(if path.is_empty() { "/" } else { path })
    }

    /// Whether a header field of this name is there, with whatever value.
    pub(super) fn has(&self, name: &'static str) -> bool {
        self.values(name).next().is_some()
    }

    /// All values of a header field, in the order in which they were sent.
    pub(super) fn values(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.fields
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name))
            .map(|field| field.value)
    }

    /// Whether the connection is to be kept: only if an HTTP/1.1 request says so itself, as on EC2, where HTTP/1.1's
    /// default is not followed. Never behind a body: no path has a use for one, so none is read, and where the next request
    /// would begin is not known.
    pub(super) fn keeps_alive(&self) -> bool {
        self.minor_version >= 1
            && self.connection_says("keep-alive")
            && !self.connection_says("close")
            && !self.announces_body()
    }

    /// Whether more than the head is to be expected of this request.
    #[must_use]
    pub fn announces_body(&self) -> bool {
        let is_zero =
            |length: &[u8]| !length.is_empty() && length.iter().all(|digit| *digit == b'0');
        self.has(TRANSFER_ENCODING) || !self.values(CONTENT_LENGTH).all(is_zero)
    }

    fn connection_says(&self, word: &str) -> bool {
        let mut options = self
            .values(CONNECTION)
            .flat_map(|value| value.split(|byte| *byte == b','));
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `bytes` and shows what they begin with in a few words.
    fn reading(bytes: &[u8]) -> String {
        match read(bytes, 0, &mut Room::new()) {
            Reading::Whole(head, n_bytes) => {
                format!(
                    "{:?} {} {n_bytes}",
                    head.method(),
                    head.path().unwrap_or("nowhere")
                )
            }
            Reading::Partial => "partial".to_owned(),
            Reading::Malformed => "malformed".to_owned(),
        }
    }

    fn check(text: &str, expected: &str) {
        assert_eq!(reading(text.as_bytes()), expected, "{text:?}");
    }

    #[test]
    fn a_head_is_whole_with_its_empty_line() {
        check("", "partial");
        check("GET", "partial");
        check("GET / HTTP/1.1\r\n", "partial");
        check("GET / HTTP/1.1\r\nHost: x\r\n", "partial");
        check("GET / HTTP/1.1\r\n\r\n", "Get / 18");
        check("GET / HTTP/1.0\n\n", "Get / 16");
        check("\r\nGET / HTTP/1.1\r\n\r\nGET", "Get / 20");
        check("PUT / HTTP/1.1\r\nA: \u{e9}\r\n\r\nbody", "Put / 25");
    }

    #[test]
    fn methods_are_case_sensitive_and_any_word_is_one() {
        check("HEAD / HTTP/1.1\r\n\r\n", "Head / 19");
        check("OPTIONS * HTTP/1.1\r\n\r\n", "Options nowhere 22");
        check("get / HTTP/1.1\r\n\r\n", "Other / 18");
        check("BREW / HTTP/1.1\r\n\r\n", "Other / 19");
    }

    #[test]
    fn what_no_head_has_is_refused_at_once() {
        for text in [
            "GET  HTTP/1.1\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "GET /\r\n\r\n",
            "GET /\0 HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nno colon\r\n\r\n",
            "GET / HTTP/1.1\r\n: no name\r\n\r\n",
            "GET / HTTP/1.1\r\nA : b\r\n\r\n",
            "GET / HTTP/1.1\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\r\nA: \0\r\n\r\n",
            "\x16\x03\x01\x02",
        ] {
            check(text, "malformed");
        }
    }

    #[test]
    fn a_head_has_a_bound() {
        let head = |n_bytes: usize| {
            let rest = n_bytes - "GET / HTTP/1.1\r\nA: \r\n\r\n".len();
            format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(rest))
        };
        check(&head(HEAD_BYTES_MAX), "Get / 16384");
        check(&head(HEAD_BYTES_MAX + 1), "malformed");
        check(&head(HEAD_BYTES_MAX + 3)[..HEAD_BYTES_MAX], "partial");
        check(&head(HEAD_BYTES_MAX + 3)[..=HEAD_BYTES_MAX], "malformed");
        let fields = |n: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(n));
        check(&fields(FIELDS_MAX), "Get / 618");
        check(&fields(FIELDS_MAX + 1), "malformed");
    }

    /// However a head is cut into pieces, the last of them makes it whole and none before it.
    #[test]
    fn a_head_in_drips_is_read_like_one_at_once() {
        for text in [
            "GET / HTTP/1.1\r\nA: b\r\n\r\n",
            "GET / HTTP/1.1\nA: b\n\n",
            "GET / HTTP/1.1\nA: b\n\r\n",
        ] {
            let bytes = text.as_bytes();
            for n_known in 0..bytes.len() {
                for n_bytes in n_known..=bytes.len() {
                    let is_whole = matches!(
                        read(&bytes[..n_bytes], n_known, &mut Room::new()),
                        Reading::Whole(..)
                    );
                    assert_eq!(
                        is_whole,
                        n_bytes == bytes.len(),
                        "{n_known} {n_bytes} {text:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_target_has_a_path_in_either_form() {
        for (target, path) in [
            ("/", Some("/")),
            ("/latest?a=/b", Some("/latest")),
            ("/latest#a", Some("/latest")),
            ("//latest", Some("//latest")),
            ("http://169.254.169.254/latest/?a", Some("/latest/")),
            ("HTTP://[fd00:ec2::254]:80/latest", Some("/latest")),
            ("http://x", Some("/")),
            ("http://x?a", Some("/")),
            ("http://", None),
            ("http:///latest", None),
            ("ftp://x/latest", None),
            ("*", None),
            ("latest", None),
            ("169.254.169.254:80", None),
        ] {
            let expected = path.unwrap_or("nowhere");
            let text = format!("GET {target} HTTP/1.1\r\n\r\n");
            check(&text, &format!("Get {expected} {}", text.len()));
        }
    }

    #[test]
    fn a_connection_is_kept_only_on_request() {
        let check = |version: &str, fields: &str, expected: bool| {
            let text = format!("GET / HTTP/1.{version}\r\n{fields}\r\n");
            let mut room = Room::new();
            let Reading::Whole(head, _) = read(text.as_bytes(), 0, &mut room) else {
                panic!("{text:?} is a head");
            };
            assert_eq!(head.keeps_alive(), expected, "{text:?}");
        };
        check("1", "", false);
        check("1", "Connection: keep-alive\r\n", true);
        check("1", "connection: TE, Keep-Alive\r\n", true);
        check(
            "1",
            "Connection: keep-alive\r\nConnection: close\r\n",
            false,
        );
        check("1", "Connection: keep-alive-not\r\n", false);
        check("0", "Connection: keep-alive\r\n", false);
        let keep = |length: &str| format!("Connection: keep-alive\r\n{length}\r\n");
        check("1", &keep("Content-Length: 0"), true);
        check("1", &keep("Content-Length: 00"), true);
        check("1", &keep("Content-Length: 1"), false);
        check("1", &keep("Content-Length: "), false);
        check("1", &keep("Content-Length: -0"), false);
        check("1", &keep("Content-Length: 0\r\nContent-Length: 1"), false);
        check("1", &keep("Transfer-Encoding: chunked"), false);
    }
}
