//! JSON as EC2's front end lays it out: two spaces, ` : ` between key and value, no line end at the end.

use std::fmt::{Display, Write};

/// An object whose members stand on lines of their own.
pub(super) struct Object(String);

impl Object {
    pub(super) fn new() -> Self {
        Self::with_capacity(512)
    }

    /// One that does not move in memory until its text has `bytes` bytes.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        let mut text = String::with_capacity(bytes);
        text.push('{');
        Self(text)
    }

    /// A member whose value is a string. It is written in place: nothing of it is left elsewhere in memory.
    pub(super) fn string(mut self, key: &str, value: impl Display) -> Self {
        self.key(key);
        quote(&mut self.0, value);
        self
    }

    /// A member whose value is a string, or `null`.
    pub(super) fn optional(self, key: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.string(key, value),
            None => self.member(key, "null"),
        }
    }

    /// A member whose value is a list of strings on one line, with a space inside each bracket; `null` if it is empty.
    pub(super) fn strings(self, key: &str, values: &[impl Display]) -> Self {
        if values.is_empty() {
            return self.member(key, "null");
        }
        let mut list = String::from("[ ");
        for (at, value) in values.iter().enumerate() {
            list.push_str(if at == 0 { "" } else { ", " });
            quote(&mut list, value);
        }
        list.push_str(" ]");
        self.member(key, &list)
    }

    fn member(mut self, key: &str, value: &str) -> Self {
        self.key(key);
        self.0.push_str(value);
        self
    }

    fn key(&mut self, key: &str) {
        let separator = if self.0.len() > 1 { "," } else { "" };
        for part in [separator, "\n  \"", key, "\" : "] {
            self.0.push_str(part);
        }
    }

    pub(super) fn finish(mut self) -> String {
        self.0.push_str("\n}");
        self.0
    }
}

/// Objects in a list: `[ {`, members, `},`, `{`, members, `} ]`; `[]` if there are none.
pub(super) fn list(objects: impl IntoIterator<Item = Object>) -> String {
    let objects: Vec<_> = objects.into_iter().map(Object::finish).collect();
    if objects.is_empty() {
        "[]".to_owned()
    } else {
        format!("[ {} ]", objects.join(",\n"))
    }
}

/// Appends a string in quotes.
fn quote(text: &mut String, value: impl Display) {
    text.push('"');
    write!(Escaping(text), "{value}").expect("writing to a string does not fail");
    text.push('"');
}

/// Escapes what is written through it.
struct Escaping<'a>(&'a mut String);

impl Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for c in text.chars() {
            match c {
                '"' | '\\' => self.0.extend(['\\', c]),
                '\n' => self.0.push_str("\\n"),
                '\r' => self.0.push_str("\\r"),
                '\t' => self.0.push_str("\\t"),
                control if control < ' ' => write!(self.0, "\\u{:04x}", u32::from(control))?,
                other => self.0.push(other),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_laid_out_as_ec2_does() {
        let object = Object::new()
            .string("Code", "Success")
            .optional("kernelId", None::<&str>)
            .strings("billingProducts", &["bp-1", "bp-2"])
            .strings("none", &[] as &[&str]);
        let expected = "{\n  \"Code\" : \"Success\",\n  \"kernelId\" : null,\n  \"billingProducts\" : [ \"bp-1\", \"bp-2\" ],\n  \"none\" : null\n}";
        assert_eq!(object.finish(), expected);
    }

    #[test]
    fn lists_of_objects_are_laid_out_as_ec2_does() {
        let object = |value: &str| Object::new().string("a", value);
        assert_eq!(list([]), "[]");
        assert_eq!(list([object("1")]), "[ {\n  \"a\" : \"1\"\n} ]");
        assert_eq!(
            list([object("1"), object("2")]),
            "[ {\n  \"a\" : \"1\"\n},\n{\n  \"a\" : \"2\"\n} ]"
        );
    }

    #[test]
    fn strings_survive_their_quotes() {
        let text = "a\"b\\c\nd\re\tf\u{1}gé/";
        let document = Object::new().string("text", text).finish();
        let parsed: serde_json::Value = serde_json::from_str(&document).unwrap();
        assert_eq!(parsed["text"], text);
    }
}
