//! The parameters of a call: a form or a query string, read into a tree by the dots of the names, and asked for by type.
//!
//! `Filter.2.Value.1=running` is the first value of the second filter. Lists count from 1, and neither gaps nor order
//! matter. A parameter with an empty value is not given, unless it is asked for with [`Params::literal`]: clients in Go
//! send many of those.
//!
//! Everything is bounded, any bytes may come, and what is asked for but is not there or not right is refused in EC2's words.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::fault::{Code, Refusal};

/// The largest form or query string in bytes. Fifty tags of the largest size on a launch with the most user data take less
/// than half.
pub const BYTES_MAX: usize = 1 << 20;
/// The most parameters. An action on a thousand instances has little more than a thousand.
pub const FIELDS_MAX: usize = 4096;
/// The most values in a JSON document. Five hundred queries of CloudWatch's have a dozen each.
pub const VALUES_MAX: usize = 8192;
/// The deepest name. EC2's deepest has seven parts.
pub const DEPTH_MAX: usize = 10;
/// The longest list, however its items are numbered.
pub const ITEMS_MAX: usize = 1000;

/// The parameters of one call.
#[derive(Debug, Default)]
pub struct Query {
    root: Node,
}

/// A name, or a part of it.
#[derive(Debug, Default)]
struct Node {
    value: Option<String>,
    children: BTreeMap<Segment, Node>,
    /// Whether somebody asked for it.
    is_known: AtomicBool,
}

/// A part of a name between dots. Numbers come in the order of numbers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Segment {
    Index(u32),
    Name(String),
}

impl Segment {
    /// A number is an index only as it is written normally: `01` would be a second name of `1`.
    fn of(text: &str) -> Self {
        match text.parse() {
            Ok(index) if index > 0 && !text.starts_with(['0', '+']) => Self::Index(index),
            _ => Self::Name(text.to_owned()),
        }
    }
}

impl std::fmt::Display for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl Query {
    /// Reads the parameters of a request: those of the target's query and those of the form in the body. Both are signed,
    /// and a parameter that is given twice is refused, so it does not matter where one stands. What belongs to the
    /// signature (`X-Amz-…`) is left out.
    ///
    /// # Errors
    /// When it is too large, is not encoded as a form, or says something twice.
    pub fn read(query: &[u8], body: &[u8]) -> Result<Self, Refusal> {
        let mut read = Self::default();
        let mut n_fields = 0;
        for part in [query, body] {
            if part.len() > BYTES_MAX {
                return Err(malformed("it is too long"));
            }
            for field in part.split(|byte| *byte == b'&') {
                if field.is_empty() {
                    continue;
                }
                n_fields += 1;
                if n_fields > FIELDS_MAX {
                    return Err(malformed("it has too many parameters"));
                }
                read.add(field)?;
            }
        }
        Ok(read)
    }

    /// The parameters of a call that is made here.
    ///
    /// # Errors
    /// When a name is none, or is there twice.
    pub fn of(fields: impl IntoIterator<Item = (String, String)>) -> Result<Self, Refusal> {
        let mut read = Self::default();
        for (name, value) in fields {
            read.add_field(&name, value)?;
        }
        Ok(read)
    }

    fn add(&mut self, field: &[u8]) -> Result<(), Refusal> {
        let mut halves = field.splitn(2, |byte| *byte == b'=');
        let name = decode(halves.next().unwrap_or_default())?;
        let value = decode(halves.next().unwrap_or_default())?;
        if is_of_signature(&name) {
            return Ok(());
        }
        self.add_field(&name, value)
    }

    fn add_field(&mut self, name: &str, value: String) -> Result<(), Refusal> {
        if name.split('.').count() > DEPTH_MAX {
            return Err(malformed("a parameter has too many parts"));
        }
        let mut node = &mut self.root;
        for segment in name.split('.') {
            if segment.is_empty() {
                return Err(malformed("a parameter has an empty part"));
            }
            node = node.children.entry(Segment::of(segment)).or_default();
        }
        match node.value.replace(value) {
            None => Ok(()),
            Some(_) => Err(malformed(&format!("the parameter {name} is given twice"))),
        }
    }

    /// Reads a JSON document as the form that a query service would have been sent in its place: the items of a list are `member.1`,
    /// `member.2` and so on. Null is not given.
    ///
    /// # Errors
    /// When it is too large or too deep, or is no JSON object.
    pub fn of_json(document: &[u8]) -> Result<Self, Refusal> {
        if document.len() > BYTES_MAX {
            return Err(no_document("it is too long"));
        }
        let value = serde_json::from_slice(document).map_err(|_| no_document("it is no JSON"))?;
        let Value::Object(_) = &value else {
            return Err(no_document("it is no object"));
        };
        let mut read = Self::default();
        let mut room = VALUES_MAX;
        fill(&mut read.root, value, DEPTH_MAX, &mut room)?;
        Ok(read)
    }

    /// The parameters.
    #[must_use]
    pub fn params(&self) -> Params<'_> {
        Params {
            node: Some(&self.root),
            path: String::new(),
        }
    }

    /// Names that have a value and that nobody asked for.
    #[must_use]
    pub fn unknown(&self) -> Vec<String> {
        let mut names = Vec::new();
        collect_unknown(&self.root, "", &mut names);
        names
    }

    /// Every name and its value, in order. Values may be secrets: not for a log.
    #[must_use]
    pub fn fields(&self) -> Vec<(String, String)> {
        self.params().fields()
    }
}

/// Puts a value of JSON at a place.
fn fill(node: &mut Node, value: Value, depth: usize, room: &mut usize) -> Result<(), Refusal> {
    let text = match value {
        Value::Object(fields) => {
            let depth = depth
                .checked_sub(1)
                .ok_or_else(|| no_document("it is too deep"))?;
            for (name, value) in fields {
                let child = node.children.entry(Segment::of(&name)).or_default();
                fill(child, value, depth, room)?;
            }
            return Ok(());
        }
        Value::Array(items) => {
            let depth = depth
                .checked_sub(2)
                .ok_or_else(|| no_document("it is too deep"))?;
            let members = node.children.entry(Segment::of("member")).or_default();
            for (item, number) in items.into_iter().zip(1..) {
                let child = members.children.entry(Segment::Index(number)).or_default();
                fill(child, item, depth, room)?;
            }
            return Ok(());
        }
        Value::Null => return Ok(()),
        Value::String(text) => text,
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
    };
    *room = room
        .checked_sub(1)
        .ok_or_else(|| no_document("it has too many values"))?;
    node.value = Some(text);
    Ok(())
}

fn no_document(why: &str) -> Refusal {
    Refusal::new(
        Code::MalformedQueryString,
        format!("The document cannot be read: {why}."),
    )
}

/// Presigned requests have their signature in the query.
fn is_of_signature(name: &str) -> bool {
    name.get(..6)
        .is_some_and(|start| start.eq_ignore_ascii_case("x-amz-"))
}

fn collect_unknown(root: &Node, path: &str, names: &mut Vec<String>) {
    collect(root, path, &mut |name, node| {
        if node.value.as_deref().is_some_and(|value| !value.is_empty())
            && !node.is_known.load(Ordering::Relaxed)
        {
            names.push(name.to_owned());
        }
    });
}

/// Shows every node and its whole name. As deep as names are, which is bounded.
fn collect(node: &Node, path: &str, show: &mut impl FnMut(&str, &Node)) {
    show(path, node);
    for (segment, child) in &node.children {
        collect(child, &join(path, segment), show);
    }
}

fn join(path: &str, segment: impl std::fmt::Display) -> String {
    if path.is_empty() {
        segment.to_string()
    } else {
        format!("{path}.{segment}")
    }
}

/// `application/x-www-form-urlencoded` (WHATWG URL, 5.1), but for what that standard forgives: a `%` that begins nothing, and
/// what is no UTF-8.
fn decode(text: &[u8]) -> Result<String, Refusal> {
    let bytes = percent_decoded(text).ok_or_else(|| malformed("a `%` begins no byte"))?;
    String::from_utf8(bytes).map_err(|_| malformed("it is not UTF-8"))
}

/// The bytes that `%41` and `+` stand for. `None` if a `%` begins no byte.
pub(super) fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let (high, low) = (hex_digit(*rest.next()?)?, hex_digit(*rest.next()?)?);
                high << 4 | low
            }
            byte => *byte,
        });
    }
    Some(decoded)
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

fn malformed(why: &str) -> Refusal {
    Refusal::new(
        Code::MalformedQueryString,
        format!("The query string is malformed: {why}."),
    )
}

/// A place in the tree, which may be empty, and its name.
#[derive(Clone, Debug)]
pub struct Params<'a> {
    node: Option<&'a Node>,
    path: String,
}

impl<'a> Params<'a> {
    /// What is below a name.
    #[must_use]
    pub fn at(&self, name: &str) -> Self {
        let mut place = self.clone();
        for segment in name.split('.') {
            let child = |node: &'a Node| node.children.get(&Segment::of(segment));
            place.node = place.node.and_then(child);
            place.path = join(&place.path, segment);
        }
        place
    }

    /// Every name from here on and its value, in order: what two calls are compared by. Values may be secrets: not for a log.
    #[must_use]
    pub fn fields(&self) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        if let Some(node) = self.node {
            collect(node, "", &mut |name, node| {
                if let Some(value) = &node.value {
                    fields.push((name.to_owned(), value.clone()));
                }
            });
        }
        fields
    }

    /// The whole name, as messages have it.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether anything here or below is given.
    #[must_use]
    pub fn is_given(&self) -> bool {
        let mut is_given = false;
        if let Some(node) = self.node {
            collect(node, "", &mut |_, node| {
                is_given |= node.value.as_deref().is_some_and(|value| !value.is_empty());
            });
        }
        is_given
    }

    /// The value of this very place; an empty one too.
    #[must_use]
    pub fn own_literal(&self) -> Option<&'a str> {
        let node = self.node?;
        node.is_known.store(true, Ordering::Relaxed);
        node.value.as_deref()
    }

    /// The value of this very place.
    #[must_use]
    pub fn own(&self) -> Option<&'a str> {
        self.own_literal().filter(|value| !value.is_empty())
    }

    /// A text.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&'a str> {
        self.at(name).own()
    }

    /// A text that may be empty: the value of a tag.
    #[must_use]
    pub fn literal(&self, name: &str) -> Option<&'a str> {
        self.at(name).own_literal()
    }

    /// A text that must be given.
    ///
    /// # Errors
    /// `MissingParameter`.
    pub fn required(&self, name: &str) -> Result<&'a str, Refusal> {
        let place = self.at(name);
        place.own().ok_or_else(|| Refusal::missing(&place.path))
    }

    /// A value that is made of the text.
    ///
    /// # Errors
    /// `InvalidParameterValue`, with what would be right.
    pub fn parsed<T>(
        &self,
        name: &str,
        right: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let place = self.at(name);
        let Some(text) = place.own() else {
            return Ok(None);
        };
        match parse(text) {
            Some(value) => Ok(Some(value)),
            None => Err(Refusal::invalid_value(text, &place.path, right)),
        }
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// `InvalidParameterValue`.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, Refusal> {
        self.parsed(name, "Valid values are true, false.", |text| match text {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        })
    }

    /// A number in a range.
    ///
    /// # Errors
    /// `InvalidParameterValue`.
    pub fn number(&self, name: &str, range: RangeInclusive<i32>) -> Result<Option<i32>, Refusal> {
        let right = format!("Valid values are {} to {}.", range.start(), range.end());
        self.parsed(name, &right, |text| {
            text.parse().ok().filter(|number| range.contains(number))
        })
    }

    /// One of some words.
    ///
    /// # Errors
    /// `InvalidParameterValue`.
    pub fn word<T: Copy>(&self, name: &str, words: &[(&str, T)]) -> Result<Option<T>, Refusal> {
        let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let right = format!("Valid values are {}.", names.join(", "));
        self.parsed(name, &right, |text| {
            let found = words.iter().find(|(word, _)| *word == text);
            found.map(|(_, value)| *value)
        })
    }

    /// Bytes in base64.
    ///
    /// # Errors
    /// `InvalidParameterValue`.
    pub fn blob(&self, name: &str) -> Result<Option<Vec<u8>>, Refusal> {
        let place = self.at(name);
        let decoded = place.own().map(|text| STANDARD.decode(text.as_bytes()));
        // The value is not repeated: it may be a secret.
        decoded.transpose().map_err(|_| {
            Refusal::new(
                Code::InvalidParameterValue,
                format!(
                    "The value of the parameter {} is not in base64.",
                    place.path
                ),
            )
        })
    }

    /// The items of a list, in the order of their numbers. An item that is nothing but an empty text is none.
    ///
    /// # Errors
    /// When something that is no number stands for one, or there are too many.
    pub fn list(&self, name: &str) -> Result<Vec<Self>, Refusal> {
        let mut items = self.items(name)?;
        items.retain(Self::has_something);
        Ok(items)
    }

    fn items(&self, name: &str) -> Result<Vec<Self>, Refusal> {
        let place = self.at(name);
        let Some(node) = place.node else {
            return Ok(Vec::new());
        };
        if node.children.len() > ITEMS_MAX {
            let message = format!(
                "The parameter {} has more than {ITEMS_MAX} items.",
                place.path
            );
            return Err(Refusal::new(Code::InvalidParameterValue, message));
        }
        let items = node.children.iter();
        let items = items.map(|(segment, child)| {
            let path = join(&place.path, segment);
            match segment {
                Segment::Index(_) => Ok(Self {
                    node: Some(child),
                    path,
                }),
                Segment::Name(_) => {
                    let message = format!("The parameter {path} is not recognized");
                    Err(Refusal::new(Code::UnknownParameter, message))
                }
            }
        });
        items.collect()
    }

    /// Whether a client said anything here, be it that a value is empty.
    fn has_something(&self) -> bool {
        let is_empty_text = |node: &Node| {
            node.children.is_empty() && node.value.as_deref().is_none_or(str::is_empty)
        };
        self.node.is_some_and(|node| !is_empty_text(node))
    }

    /// The texts of a list that may be empty: the values of a filter.
    ///
    /// # Errors
    /// As [`Params::list`].
    pub fn literals(&self, name: &str) -> Result<Vec<&'a str>, Refusal> {
        let items = self.items(name)?;
        Ok(items.iter().filter_map(Self::own_literal).collect())
    }

    /// The texts of a list, in the order of their numbers.
    ///
    /// # Errors
    /// As [`Params::list`].
    pub fn texts(&self, name: &str) -> Result<Vec<&'a str>, Refusal> {
        Ok(self.list(name)?.iter().filter_map(Self::own).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::read(b"", text.as_bytes()).unwrap()
    }

    /// Reads a form and says what it is, or why not.
    fn check(form: &[u8], expected: &str) {
        let shown = match Query::read(b"", form) {
            Ok(query) => {
                let fields = query.fields();
                let fields: Vec<_> = fields.iter().map(|(k, v)| format!("{k}={v}")).collect();
                fields.join(";")
            }
            Err(refusal) => refusal.message.into_owned(),
        };
        assert_eq!(shown, expected, "{}", String::from_utf8_lossy(form));
    }

    #[test]
    fn a_form_is_decoded() {
        check(b"", "");
        check(b"&&", "");
        check(
            b"Action=RunInstances&Version=2016-11-15",
            "Action=RunInstances;Version=2016-11-15",
        );
        check(b"A=b+c%20d%2B%3d=", "A=b c d+==");
        check(b"A", "A=");
        check(b"A=%C3%A9", "A=é");
        check(b"F.2.N=b&F.10.N=c&F.1.N=a", "F.1.N=a;F.2.N=b;F.10.N=c");
        check(b"X-Amz-Signature=ab&x-amz-date=c&A=1", "A=1");
    }

    #[test]
    fn what_is_no_form_is_refused() {
        let malformed = |why: &str| format!("The query string is malformed: {why}.");
        check(b"A=%", &malformed("a `%` begins no byte"));
        check(b"A=%4", &malformed("a `%` begins no byte"));
        check(b"A=%4g", &malformed("a `%` begins no byte"));
        check(b"A=%ff", &malformed("it is not UTF-8"));
        check(b"A=\xff", &malformed("it is not UTF-8"));
        check(b"A=1&A=2", &malformed("the parameter A is given twice"));
        check(b"=1", &malformed("a parameter has an empty part"));
        check(b"A..B=1", &malformed("a parameter has an empty part"));
        check(b"A.=1", &malformed("a parameter has an empty part"));
    }

    #[test]
    fn a_form_is_bounded() {
        let name = |depth: usize| vec!["A"; depth].join(".").into_bytes();
        assert!(Query::read(b"", &name(DEPTH_MAX)).is_ok());
        assert!(Query::read(b"", &name(DEPTH_MAX + 1)).is_err());
        let fields = |n: usize| (0..n).map(|i| format!("A{i}&")).collect::<String>();
        assert!(Query::read(b"", fields(FIELDS_MAX).as_bytes()).is_ok());
        assert!(Query::read(b"", fields(FIELDS_MAX + 1).as_bytes()).is_err());
        assert!(Query::read(b"B", fields(FIELDS_MAX).as_bytes()).is_err());
        let long = |n: usize| format!("A={}", "a".repeat(n - 2)).into_bytes();
        assert!(Query::read(b"", &long(BYTES_MAX)).is_ok());
        assert!(Query::read(b"", &long(BYTES_MAX + 1)).is_err());
        let items = |n: usize| (1..=n).map(|i| format!("I.{i}=a&")).collect::<String>();
        let n_items = |n| query(&items(n)).params().texts("I").map(|list| list.len());
        assert_eq!(n_items(ITEMS_MAX), Ok(ITEMS_MAX));
        assert!(n_items(ITEMS_MAX + 1).is_err());
    }

    #[test]
    fn a_parameter_may_stand_in_the_query_or_in_the_body_but_not_in_both() {
        let both = Query::read(b"A=1", b"B=2").unwrap();
        assert_eq!(both.params().text("A"), Some("1"));
        assert_eq!(both.params().text("B"), Some("2"));
        assert!(Query::read(b"A=1", b"A=1").is_err());
    }

    #[test]
    fn lists_tolerate_gaps_and_any_order() {
        let query = query("I.10=c&I.2=b&I.1=a&F.3.Value.7=y&F.3.Value.2=x&F.3.Name=n&E.1=");
        let params = query.params();
        assert_eq!(params.texts("I").unwrap(), ["a", "b", "c"]);
        let filters = params.list("F").unwrap();
        assert_eq!(filters.len(), 1);
        assert_eq!(filters[0].required("Name").unwrap(), "n");
        assert_eq!(filters[0].texts("Value").unwrap(), ["x", "y"]);
        assert_eq!(params.texts("E").unwrap(), [""; 0]);
        assert_eq!(params.literals("E").unwrap(), [""]);
        assert_eq!(params.texts("None").unwrap(), [""; 0]);
    }

    #[test]
    fn what_is_no_number_is_no_item() {
        for form in ["I.0=a", "I.x=a", "I.01=a", "I.+1=a", "I.4294967296=a"] {
            let refusal = query(form).params().texts("I").unwrap_err();
            assert_eq!(refusal.code, Code::UnknownParameter, "{form}");
        }
    }

    #[test]
    fn an_empty_value_is_not_given_but_may_be_asked_for() {
        let query = query("A=&P.Z=&T.1.Key=k&T.1.Value=");
        let params = query.params();
        assert_eq!(params.text("A"), None);
        assert_eq!(params.literal("A"), Some(""));
        assert!(!params.at("P").is_given());
        let tags = params.list("T").unwrap();
        assert_eq!(tags[0].literal("Value"), Some(""));
        assert_eq!(params.required("A"), Err(Refusal::missing("A")));
    }

    #[test]
    fn values_are_asked_for_by_type() {
        let query = query("T=true&B=maybe&N=64&M=65&W=on&D=aGk=&E=%21&P.Q=x");
        let params = query.params();
        let words = &[("on", 1), ("off", 0)];
        assert_eq!(params.flag("T"), Ok(Some(true)));
        assert_eq!(params.flag("None"), Ok(None));
        assert_eq!(params.number("N", 1..=64), Ok(Some(64)));
        assert_eq!(params.word("W", words), Ok(Some(1)));
        assert_eq!(params.blob("D"), Ok(Some(b"hi".to_vec())));
        for (refusal, message) in [
            (
                params.flag("B").unwrap_err(),
                "Value (maybe) for parameter B is invalid. Valid values are true, false.",
            ),
            (
                params.number("M", 1..=64).unwrap_err(),
                "Value (65) for parameter M is invalid. Valid values are 1 to 64.",
            ),
            (
                params.at("P").word("Q", words).unwrap_err(),
                "Value (x) for parameter P.Q is invalid. Valid values are on, off.",
            ),
            (
                params.blob("E").unwrap_err(),
                "The value of the parameter E is not in base64.",
            ),
        ] {
            assert_eq!(refusal, Refusal::new(Code::InvalidParameterValue, message));
        }
    }

    #[test]
    fn a_json_document_is_the_form_that_says_the_same() {
        let check = |document: &str, form: &str| {
            let read = Query::of_json(document.as_bytes()).unwrap();
            assert_eq!(read.fields(), query(form).fields(), "{document}");
        };
        check("{}", "");
        check(
            r#"{"A": "x", "B": 60, "C": 1.5, "D": true, "E": null, "F": "", "G": []}"#,
            "A=x&B=60&C=1.5&D=true&F=",
        );
        check(
            r#"{"L": [{"N": "a"}, {"N": "b", "M": {"O": ["c"]}}]}"#,
            "L.member.1.N=a&L.member.2.N=b&L.member.2.M.O.member.1=c",
        );
        for document in [
            &b""[..],
            b"[]",
            b"1",
            b"{",
            b"{\"A\": \xff}",
            b"{\"A\": 1} x",
        ] {
            let refusal = Query::of_json(document).unwrap_err();
            assert_eq!(refusal.code, Code::MalformedQueryString);
        }
        let deep = |n: usize| format!("{}1{}", "{\"A\":".repeat(n), "}".repeat(n));
        assert!(Query::of_json(deep(DEPTH_MAX).as_bytes()).is_ok());
        assert!(Query::of_json(deep(DEPTH_MAX + 1).as_bytes()).is_err());
        let many = |n: usize| format!("{{\"A\":[{}1]}}", "1,".repeat(n - 1));
        assert!(Query::of_json(many(VALUES_MAX).as_bytes()).is_ok());
        assert!(Query::of_json(many(VALUES_MAX + 1).as_bytes()).is_err());
        let long = format!("{{\"A\":\"{}\"}}", "a".repeat(BYTES_MAX));
        assert!(Query::of_json(long.as_bytes()).is_err());
    }

    #[test]
    fn what_nobody_asked_for_is_known() {
        let query = query("A=1&B.1=2&B.2=3&C=&D.E=4");
        let params = query.params();
        assert_eq!(params.text("A"), Some("1"));
        assert_eq!(params.texts("B").unwrap(), ["2", "3"]);
        assert_eq!(query.unknown(), ["D.E"]);
    }
}
