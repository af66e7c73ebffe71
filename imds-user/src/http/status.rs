//! What guests see of a refusal: status, reason phrase, page. The only place that turns a reason into a status.

use std::fmt::Write;

use crate::token::TokenError;

/// A status of the service, with the reason phrase that EC2 sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// 200
    Ok,
    /// 400
    BadRequest,
    /// 401
    Unauthorized,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 405, which EC2 calls `Not Allowed`.
    NotAllowed,
    /// 417
    ExpectationFailed,
    /// 503
    ServiceUnavailable,
}

impl Status {
    /// Its number.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Ok => 200,
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::NotAllowed => 405,
            Self::ExpectationFailed => 417,
            Self::ServiceUnavailable => 503,
        }
    }

    /// Its reason phrase.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::BadRequest => "Bad Request",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "Not Found",
            Self::NotAllowed => "Not Allowed",
            Self::ExpectationFailed => "Expectation Failed",
            Self::ServiceUnavailable => "Service Unavailable",
        }
    }

    /// The page that goes with it, if one does: eleven lines of XHTML. Line 3 is indented by two tabs and a space.
    #[must_use]
    pub fn page(self) -> Option<String> {
        match self {
            Self::BadRequest
            | Self::NotFound
            | Self::ExpectationFailed
            | Self::ServiceUnavailable => {}
            Self::Ok | Self::Unauthorized | Self::Forbidden | Self::NotAllowed => return None,
        }
        let (code, reason) = (self.code(), self.reason());
        let mut page = String::with_capacity(400);
        write!(
            page,
            "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n\
             <!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 Transitional//EN\"\n\
             \t\t \"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd\">\n\
             <html xmlns=\"http://www.w3.org/1999/xhtml\" xml:lang=\"en\" lang=\"en\">\n \
             <head>\n  <title>{code} - {reason}</title>\n </head>\n \
             <body>\n  <h1>{code} - {reason}</h1>\n </body>\n</html>\n"
        )
        .expect("writing to a string does not fail");
        Some(page)
    }
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is no request of HTTP/1, or its head is too large.
    #[error("not a request")]
    Malformed,
    /// It expects something of us.
    #[error("expectations are not supported")]
    Expectation,
    /// `HttpEndpoint` is disabled.
    #[error("the endpoint is disabled")]
    EndpointDisabled,
    /// The method is not for this path.
    #[error("method not allowed")]
    Method,
    /// PUT to something that looks like the token path and is not.
    #[error("tokens are minted at /latest/api/token alone")]
    TokenPath,
    /// It came through a proxy.
    #[error("forwarded by a proxy")]
    Forwarded,
    /// The life asked for is missing or out of range.
    #[error("the ttl is missing or not within 1 to 21600")]
    Ttl,
    /// Tokens are required and there is none.
    #[error("a session token is required")]
    TokenMissing,
    /// The token is wrong.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Nothing is there.
    #[error("no such path")]
    NotFound,
}

impl Refusal {
    /// What the guest sees.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Self::Expectation => Status::ExpectationFailed,
            Self::EndpointDisabled | Self::TokenPath | Self::Forwarded => Status::Forbidden,
            Self::Method => Status::NotAllowed,
            Self::Malformed | Self::Ttl => Status::BadRequest,
            Self::TokenMissing => Status::Unauthorized,
            Self::Token(TokenError::Malformed | TokenError::Foreign | TokenError::Expired) => {
                Status::Unauthorized
            }
            Self::NotFound => Status::NotFound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference's own lengths: 339 and 359 were recorded, the others follow.
    #[test]
    fn pages_have_their_recorded_lengths() {
        let length = |status: Status| status.page().map(|page| page.len());
        assert_eq!(length(Status::NotFound), Some(339));
        assert_eq!(length(Status::ServiceUnavailable), Some(359));
        assert_eq!(length(Status::BadRequest), Some(343));
        assert_eq!(length(Status::ExpectationFailed), Some(357));
        for empty in [
            Status::Ok,
            Status::Unauthorized,
            Status::Forbidden,
            Status::NotAllowed,
        ] {
            assert_eq!(length(empty), None);
        }
    }

    #[test]
    fn the_page_is_eleven_lines_of_xhtml() {
        let expected = concat!(
            "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n",
            "<!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 Transitional//EN\"\n",
            "\t\t \"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd\">\n",
            "<html xmlns=\"http://www.w3.org/1999/xhtml\" xml:lang=\"en\" lang=\"en\">\n",
            " <head>\n",
            "  <title>404 - Not Found</title>\n",
            " </head>\n",
            " <body>\n",
            "  <h1>404 - Not Found</h1>\n",
            " </body>\n",
            "</html>\n",
        );
        assert_eq!(Status::NotFound.page().as_deref(), Some(expected));
    }
}
