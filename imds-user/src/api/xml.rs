//! XML of replies: elements with text, escaped, one after the other. Replies are never read here, so this is all there is.

use std::fmt::{Display, Write as _};

use crate::instance::{UnixMillis, UnixSeconds};

/// A document that grows.
#[derive(Debug)]
pub struct Xml(String);

impl Xml {
    /// A document with nothing but its declaration.
    #[must_use]
    pub fn document() -> Self {
        Self("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned())
    }

    /// The reply to an action: its root, in that name space.
    #[must_use]
    pub fn reply(action: &str, namespace: &str, inside: impl FnOnce(&mut Self)) -> Vec<u8> {
        let mut xml = Self::document();
        let attributed = format!("{action}Response xmlns=\"{namespace}\"");
        let _infallible = write!(xml.0, "<{attributed}>");
        inside(&mut xml);
        xml.close(&format!("{action}Response"));
        xml.into_bytes()
    }

    /// An element with text.
    pub fn el(&mut self, name: &str, text: impl Display) -> &mut Self {
        self.open(name);
        let mut escaped = Escaped(&mut self.0);
        let _infallible = write!(escaped, "{text}");
        self.close(name);
        self
    }

    /// An element with text, if there is any.
    pub fn el_if(&mut self, name: &str, text: Option<impl Display>) -> &mut Self {
        if let Some(text) = text {
            self.el(name, text);
        }
        self
    }

    /// An element with a point in time, as EC2 writes it: with milliseconds.
    pub fn time(&mut self, name: &str, at: UnixSeconds) -> &mut Self {
        self.el(name, UnixMillis(at.0.saturating_mul(1000)).iso())
    }

    /// An element with elements.
    pub fn within(&mut self, name: &str, inside: impl FnOnce(&mut Self)) -> &mut Self {
        self.open(name);
        inside(self);
        self.close(name);
        self
    }

    /// A list: a wrapper with an `item` for each, also if there is none.
    pub fn list<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        mut item: impl FnMut(&mut Self, T),
    ) -> &mut Self {
        self.within(name, |xml| {
            for each in items {
                xml.within("item", |xml| item(xml, each));
            }
        })
    }

    /// A list of plain texts.
    pub fn texts<T: Display>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
    ) -> &mut Self {
        self.within(name, |xml| {
            for text in items {
                xml.el("item", text);
            }
        })
    }

    /// The document.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0.into_bytes()
    }

    fn open(&mut self, name: &str) {
        let _infallible = write!(self.0, "<{name}>");
    }

    fn close(&mut self, name: &str) {
        let _infallible = write!(self.0, "</{name}>");
    }
}

/// Writes text so that it is text. Characters that XML 1.0 cannot hold at all, not even escaped, become U+FFFD: one of
/// them in a tag would otherwise make the list of all instances unreadable.
struct Escaped<'a>(&'a mut String);

impl std::fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                // Parsers make a line feed of a bare one.
                '\r' => self.0.push_str("&#13;"),
                '\t' | '\n' => self.0.push(c),
                '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => self.0.push('\u{fffd}'),
                _ => self.0.push(c),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(build: impl FnOnce(&mut Xml), expected: &str) {
        let document = String::from_utf8(Xml::reply("Do", "urn:x", build)).unwrap();
        let start = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<DoResponse xmlns=\"urn:x\">";
        let inside = document
            .strip_prefix(start)
            .and_then(|rest| rest.strip_suffix("</DoResponse>"));
        assert_eq!(inside, Some(expected), "{document}");
    }

    #[test]
    fn elements_lists_and_times_are_written_as_ec2_does() {
        check(|_| {}, "");
        check(
            |xml| _ = xml.el("a", 1).el("b", true),
            "<a>1</a><b>true</b>",
        );
        check(
            |xml| _ = xml.el_if("a", None::<u8>).el_if("b", Some("")),
            "<b></b>",
        );
        check(
            |xml| _ = xml.time("at", UnixSeconds(784_111_777)),
            "<at>1994-11-06T08:49:37.000Z</at>",
        );
        check(
            |xml| {
                xml.list("set", ["x", "y"], |xml, text| _ = xml.el("k", text));
            },
            "<set><item><k>x</k></item><item><k>y</k></item></set>",
        );
        check(|xml| _ = xml.texts("set", [0; 0]), "<set></set>");
        check(
            |xml| _ = xml.texts("set", [1, 2]),
            "<set><item>1</item><item>2</item></set>",
        );
    }

    #[test]
    fn text_stays_text() {
        check(
            |xml| _ = xml.el("a", "<b>&\"']]>"),
            "<a>&lt;b&gt;&amp;&quot;']]&gt;</a>",
        );
        check(|xml| _ = xml.el("a", "é\r\n\t"), "<a>é&#13;\n\t</a>");
        check(
            |xml| _ = xml.el("a", "\0\u{1b}\u{ffff}"),
            "<a>\u{fffd}\u{fffd}\u{fffd}</a>",
        );
    }
}
