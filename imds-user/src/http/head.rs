//! The head of a request, as far as the rules look at it.

use hyper::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header};

/// Session token of IMDSv2, on requests for metadata.
pub const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
/// Life of a session token in seconds: asked for on PUT, told on answers.
pub const TOKEN_TTL_SECONDS: HeaderName =
    HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
/// Added by proxies.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The head of a request, borrowed from what hyper parsed. Cheap to make and to copy.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// The request target: origin form, or the absolute form that proxies send.
    pub target: &'a Uri,
    /// HTTP/1.0 or 1.1.
    pub version: Version,
    /// All header fields.
    pub headers: &'a HeaderMap,
}

impl<'a> RequestHead<'a> {
    /// The head of a request that hyper read.
    #[must_use]
    pub fn of<B>(request: &'a hyper::Request<B>) -> Self {
        Self {
            method: request.method(),
            target: request.uri(),
            version: request.version(),
            headers: request.headers(),
        }
    }

    /// Whether a header field of this name is there, with whatever value.
    pub(super) fn has(&self, name: &HeaderName) -> bool {
        self.headers.contains_key(name)
    }

    /// All values of a header field.
    pub(super) fn values(
        &self,
        name: &HeaderName,
    ) -> impl Iterator<Item = &'a HeaderValue> + use<'a> {
        self.headers.get_all(name).iter()
    }

    /// Whether the connection is to be kept: only if an HTTP/1.1 request says so itself, as on EC2, where HTTP/1.1's
    /// default is not followed.
    pub(super) fn keeps_alive(&self) -> bool {
        self.version >= Version::HTTP_11
            && self.connection_says("keep-alive")
            && !self.connection_says("close")
    }

    fn connection_says(&self, word: &str) -> bool {
        let mut options = self
            .values(&header::CONNECTION)
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
    }
}
