//! An answer before it is written: as JSON, or as XML of the query protocol.

use serde_json::{Map, Value};

use crate::api::xml::Xml;
use crate::instance::UnixSeconds;

/// CloudWatch's name space.
const NAMESPACE: &str = "http://monitoring.amazonaws.com/doc/2010-08-01/";

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// Named parts. Those that are not there are left out.
    Fields(Vec<(&'static str, Self)>),
    /// Parts in order.
    List(Vec<Self>),
    /// A text.
    Text(String),
    /// A number.
    Number(f64),
    /// A point in time.
    Time(UnixSeconds),
}

impl Document {
    /// A text.
    pub(super) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    /// As JSON: a point in time is its seconds since 1970.
    #[must_use]
    pub fn json(self) -> Value {
        match self {
            Self::Fields(fields) => {
                let fields = fields.into_iter();
                let fields = fields.map(|(name, value)| (name.to_owned(), value.json()));
                Value::Object(Map::from_iter(fields))
            }
            Self::List(items) => items.into_iter().map(Self::json).collect(),
            Self::Text(text) => text.into(),
            Self::Number(number) => number.into(),
            Self::Time(at) => at.0.into(),
        }
    }

    /// As the reply to an operation of the query protocol: the items of a list are called `member`.
    #[must_use]
    pub fn xml(&self, operation: &str, request_id: &str) -> Vec<u8> {
        Xml::reply(operation, NAMESPACE, |xml| {
            xml.within(&format!("{operation}Result"), |xml| self.inside(xml))
                .within("ResponseMetadata", |xml| {
                    xml.el("RequestId", request_id);
                });
        })
    }

    fn inside(&self, xml: &mut Xml) {
        match self {
            Self::Fields(fields) => fields
                .iter()
                .for_each(|(name, value)| value.element(name, xml)),
            Self::List(items) => items.iter().for_each(|item| item.element("member", xml)),
            Self::Text(_) | Self::Number(_) | Self::Time(_) => self.element("member", xml),
        }
    }

    fn element(&self, name: &str, xml: &mut Xml) {
        match self {
            Self::Fields(_) | Self::List(_) => xml.within(name, |xml| self.inside(xml)),
            Self::Text(text) => xml.el(name, text),
            // As CloudWatch does: always with a fraction.
            Self::Number(number) => xml.el(name, format_args!("{number:?}")),
            Self::Time(at) => xml.el(name, at.iso()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_the_same_in_both_protocols() {
        let document = Document::Fields(vec![
            ("Label", Document::text("a<b")),
            (
                "Values",
                Document::List(vec![Document::Number(3.0), Document::Number(0.5)]),
            ),
            (
                "Points",
                Document::List(vec![Document::Fields(vec![(
                    "At",
                    Document::Time(UnixSeconds(60)),
                )])]),
            ),
            ("None", Document::List(Vec::new())),
        ]);
        let xml = String::from_utf8(document.xml("Do", "4a")).unwrap();
        assert_eq!(
            xml,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <DoResponse xmlns=\"http://monitoring.amazonaws.com/doc/2010-08-01/\"><DoResult><Label>a&lt;b</Label>\
             <Values><member>3.0</member><member>0.5</member></Values>\
             <Points><member><At>1970-01-01T00:01:00Z</At></member></Points><None></None></DoResult>\
             <ResponseMetadata><RequestId>4a</RequestId></ResponseMetadata></DoResponse>"
        );
        assert_eq!(
            document.json(),
            serde_json::json!({"Label": "a<b", "Values": [3.0, 0.5], "Points": [{"At": 60}], "None": []})
        );
    }
}
