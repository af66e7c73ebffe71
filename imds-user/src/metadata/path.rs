//! Paths: percent signs decoded once, empty segments skipped, dot segments refused.

use std::borrow::Cow;

/// A path that something could be at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path<'a>(Cow<'a, str>);

impl<'a> Path<'a> {
    /// Reads the path of a request target. `None` if nothing can be there: percent signs that encode nothing, bytes that
    /// are not UTF-8, dot segments.
    #[must_use]
    pub fn parse(raw: &'a str) -> Option<Self> {
        let path = Self(decode(raw)?);
        let has_dots = path.segments().any(|segment| matches!(segment, "." | ".."));
        (!has_dots).then_some(path)
    }

    /// Its segments. Repeated slashes count as one, and one at the end as none.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|segment| !segment.is_empty())
    }

    /// Whether it ends in a slash.
    #[must_use]
    pub fn ends_in_slash(&self) -> bool {
        self.0.ends_with('/')
    }
}

fn decode(raw: &str) -> Option<Cow<'_, str>> {
    if !raw.contains('%') {
        return Some(Cow::Borrowed(raw));
    }
    let mut bytes = raw.bytes();
    let mut decoded = Vec::with_capacity(raw.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => hex_digit(bytes.next()?)? << 4 | hex_digit(bytes.next()?)?,
            other => other,
        });
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(raw: &str, segments: Option<&[&str]>) {
        let path = Path::parse(raw);
        let found = path
            .as_ref()
            .map(|path| path.segments().collect::<Vec<_>>());
        assert_eq!(found.as_deref(), segments, "{raw}");
    }

    #[test]
    fn slashes_separate_and_do_not_count() {
        check("/", Some(&[]));
        check("", Some(&[]));
        check("/latest//meta-data/", Some(&["latest", "meta-data"]));
        check("//latest", Some(&["latest"]));
    }

    #[test]
    fn percent_signs_are_decoded_once() {
        check("/a%20b/%C3%A9", Some(&["a b", "é"]));
        check("/%6Ca%74est", Some(&["latest"]));
        check("/a%2Fb", Some(&["a", "b"]));
        check("/a%252Fb", Some(&["a%2Fb"]));
        check("/100%", None);
        check("/%2", None);
        check("/%zz", None);
        check("/%+1", None);
        check("/%ff", None);
    }

    #[test]
    fn nothing_is_at_dot_segments() {
        check("/latest/./meta-data", None);
        check("/latest/../meta-data", None);
        check("/latest/%2e%2e/meta-data", None);
        check("/latest/.../a.b", Some(&["latest", "...", "a.b"]));
    }
}
