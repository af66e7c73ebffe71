//! Filters: `Filter.1.Name=tag:stage`, `Filter.1.Value.1=prod*`. Values of a filter are alternatives, filters must all hold.

use crate::api::fault::{Code, Refusal};
use crate::api::query::Params;
use crate::instance::Tag;

/// The most filters of a call, and the most values of one (EC2 API Reference, `Filter`).
const FILTERS_MAX: usize = 50;
const VALUES_MAX: usize = 200;

/// The values that a thing has under a name.
pub(super) type Column<T> = fn(&T) -> Vec<String>;

/// What things of one kind can be filtered by.
pub(super) struct Columns<'c, T: ?Sized> {
    pub(super) by_name: &'c [(&'static str, Column<T>)],
    /// For `tag:KEY`, `tag-key` and `tag-value`, of things that have tags.
    pub(super) tags: Option<Tags<T>>,
}

pub(super) type Tags<T> = fn(&T) -> &[Tag];

/// Filters that were understood.
pub(super) struct Filters<T: ?Sized>(Vec<Filter<T>>);

struct Filter<T: ?Sized> {
    by: By<T>,
    values: Vec<Wildcard>,
}

enum By<T: ?Sized> {
    Column(Column<T>),
    TagValue { key: String, tags: Tags<T> },
    TagKey(Tags<T>),
    AnyTagValue(Tags<T>),
}

impl<T: ?Sized> Filters<T> {
    /// Reads the filters of a call.
    pub(super) fn read(params: &Params<'_>, columns: &Columns<'_, T>) -> Result<Self, Refusal> {
        let items = params.list("Filter")?;
        if items.len() > FILTERS_MAX {
            return Err(too_many(FILTERS_MAX, "filters"));
        }
        let filters = items.iter().map(|item| {
            let name = item.required("Name")?;
            let values = item.literals("Value")?;
            if values.is_empty() {
                return Err(Refusal::missing(item.at("Value").path()));
            }
            if values.len() > VALUES_MAX {
                return Err(too_many(VALUES_MAX, "values of a filter"));
            }
            Ok(Filter {
                by: columns.find(name).ok_or_else(|| invalid(name))?,
                values: values.into_iter().map(Wildcard::of).collect(),
            })
        });
        filters.collect::<Result<_, _>>().map(Self)
    }

    /// Whether all of them hold.
    pub(super) fn hold(&self, thing: &T) -> bool {
        self.0.iter().all(|filter| filter.holds(thing))
    }
}

fn too_many(max: usize, what: &str) -> Refusal {
    Refusal::new(
        Code::InvalidParameterValue,
        format!("At most {max} {what} are allowed"),
    )
}

/// A filter of that name is not known here. AWS uses these words.
fn invalid(name: &str) -> Refusal {
    Refusal::new(
        Code::InvalidParameterValue,
        format!("The filter '{name}' is invalid"),
    )
}

impl<T: ?Sized> Columns<'_, T> {
    fn find(&self, name: &str) -> Option<By<T>> {
        let column = self.by_name.iter().find(|(known, _)| *known == name);
        if let Some((_, column)) = column {
            return Some(By::Column(*column));
        }
        let tags = self.tags?;
        match name {
            "tag-key" => Some(By::TagKey(tags)),
            "tag-value" => Some(By::AnyTagValue(tags)),
            _ => {
                let key = name.strip_prefix("tag:")?.to_owned();
                Some(By::TagValue { key, tags })
            }
        }
    }
}

impl<T: ?Sized> Filter<T> {
    fn holds(&self, thing: &T) -> bool {
        let is_wanted = |text: &str| self.values.iter().any(|value| value.matches(text));
        match &self.by {
            By::Column(column) => column(thing).iter().any(|text| is_wanted(text)),
            By::TagKey(tags) => tags(thing).iter().any(|tag| is_wanted(&tag.key)),
            By::AnyTagValue(tags) => tags(thing).iter().any(|tag| is_wanted(&tag.value)),
            By::TagValue { key, tags } => {
                let mut tags = tags(thing).iter();
                tags.any(|tag| *tag.key == **key && is_wanted(&tag.value))
            }
        }
    }
}

/// A value in which `*` is any text, `?` one character, and `\` takes its meaning from the next.
struct Wildcard(Vec<Part>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Character(char),
    AnyCharacter,
    AnyText,
}

impl Wildcard {
    fn of(value: &str) -> Self {
        let mut parts = Vec::new();
        let mut rest = value.chars();
        while let Some(character) = rest.next() {
            parts.push(match character {
                '*' => Part::AnyText,
                '?' => Part::AnyCharacter,
                // One at the end stands for itself.
                '\\' => Part::Character(rest.next().unwrap_or('\\')),
                character => Part::Character(character),
            });
        }
        Self(parts)
    }

    /// Tries the shortest text for a `*` first and comes back to the last one alone, so it takes no longer than both lengths
    /// multiplied.
    fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let (mut at, mut part) = (0, 0);
        let mut last_star: Option<(usize, usize)> = None;
        while at < text.len() {
            match self.0.get(part) {
                Some(Part::AnyText) => {
                    last_star = Some((at, part));
                    part += 1;
                }
                Some(Part::AnyCharacter) => (at, part) = (at + 1, part + 1),
                Some(Part::Character(wanted)) if *wanted == text[at] => {
                    (at, part) = (at + 1, part + 1);
                }
                _ => match &mut last_star {
                    None => return false,
                    Some((taken, star)) => {
                        *taken += 1;
                        (at, part) = (*taken, *star + 1);
                    }
                },
            }
        }
        self.0[part..].iter().all(|part| *part == Part::AnyText)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::query::Query;

    fn check(value: &str, text: &str, expected: bool) {
        assert_eq!(
            Wildcard::of(value).matches(text),
            expected,
            "{value} {text}"
        );
    }

    #[test]
    fn a_value_may_have_wildcards() {
        check("", "", true);
        check("", "a", false);
        check("abc", "abc", true);
        check("abc", "ABC", false);
        check("*", "", true);
        check("*", "anything", true);
        check("a*", "a", true);
        check("*a", "ba", true);
        check("*a", "ab", false);
        check("a*b*c", "a1b2b3c", true);
        check("a*b*c", "a1b2b3", false);
        check("?", "", false);
        check("?", "é", true);
        check("??", "a", false);
        check("a?c", "abc", true);
        check(r"a\*", "a*", true);
        check(r"a\*", "ab", false);
        check(r"a\?", "ab", false);
        check(r"a\\", r"a\", true);
        check(r"a\", r"a\", true);
    }

    #[test]
    fn a_hostile_value_takes_no_longer_than_it_is_long() {
        let value = "*a".repeat(100);
        check(&value, &"a".repeat(5_000), true);
        check(&(value + "b"), &"a".repeat(5_000), false);
    }

    const WORDS: Columns<'static, str> = Columns {
        by_name: &[
            ("word", |word| vec![word.to_owned()]),
            ("length", |word| vec![word.len().to_string()]),
        ],
        tags: None,
    };

    fn check_filters(form: &str, expected: Result<&[&str], &str>) {
        let query = Query::read(form.as_bytes(), b"").unwrap();
        let words = Filters::read(&query.params(), &WORDS).map(|filters| {
            let words = ["ape", "bee", "ant", "snake"].into_iter();
            words.filter(|word| filters.hold(word)).collect::<Vec<_>>()
        });
        let words = words.map_err(|refusal| refusal.message);
        assert_eq!(words.as_deref().map_err(AsRef::as_ref), expected, "{form}");
    }

    #[test]
    fn values_are_alternatives_and_filters_add_up() {
        check_filters("", Ok(&["ape", "bee", "ant", "snake"]));
        check_filters(
            "Filter.1.Name=word&Filter.1.Value.1=a*",
            Ok(&["ape", "ant"]),
        );
        check_filters(
            "Filter.1.Name=word&Filter.1.Value.1=b*&Filter.1.Value.2=snake",
            Ok(&["bee", "snake"]),
        );
        check_filters(
            "Filter.1.Name=length&Filter.1.Value.1=3&Filter.7.Name=word&Filter.7.Value.9=*e",
            Ok(&["ape", "bee"]),
        );
        check_filters("Filter.1.Name=word&Filter.1.Value.1=", Ok(&[]));
    }

    #[test]
    fn a_filter_that_nobody_knows_is_refused() {
        check_filters(
            "Filter.1.Name=colour&Filter.1.Value.1=red",
            Err("The filter 'colour' is invalid"),
        );
        check_filters(
            "Filter.1.Name=tag:a&Filter.1.Value.1=red",
            Err("The filter 'tag:a' is invalid"),
        );
        check_filters(
            "Filter.1.Name=word",
            Err("The request must contain the parameter Filter.1.Value"),
        );
        check_filters(
            "Filter.1.Value.1=a",
            Err("The request must contain the parameter Filter.1.Name"),
        );
    }
}
