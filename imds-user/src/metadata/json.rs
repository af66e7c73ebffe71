//! JSON as EC2's front end lays it out: two spaces, ` : ` between key and value, no line end at the end.

use std::fmt::{Display, Write};

/// An object whose members stand on lines of their own.
pub(super) struct Object(String);

impl Object {
    pub(super) fn new() -> Self {
        let mut text = String::with_capacity(512);
        text.push('{');
        Self(text)
    }

    /// A member whose value is a string.
    pub(super) fn string(self, key: &str, value: impl Display) -> Self {
        let value = Quoted::of(value);
        self.member(key, value)
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
        let values: Vec<_> = values.iter().map(|value| Quoted::of(value).0).collect();
        self.member(key, format_args!("[ {} ]", values.join(", ")))
    }

    fn member(mut self, key: &str, value: impl Display) -> Self {
        let separator = if self.0.len() > 1 { "," } else { "" };
        write!(self.0, "{separator}\n  \"{key}\" : {value}")
            .expect("writing to a string does not fail");
        self
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

/// A string in quotes.
struct Quoted(String);

impl Quoted {
    fn of(value: impl Display) -> Self {
        let mut quoted = Self(String::from('"'));
        write!(quoted, "{value}").expect("writing to a string does not fail");
        quoted.0.push('"');
        quoted
    }
}

impl Write for Quoted {
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

impl Display for Quoted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
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
