//! Which instance a person means: by name, by id, by how an id alone begins, or by its tag `Name`. Pure.

use crate::config::nearest::nearest;
use crate::instance::{InstanceId, Tag};
use crate::life::Life;
use crate::store::{InstanceRecord, InstanceState};

/// How many instances an error names.
const NAMED_MAX: usize = 5;

/// An instance that may be meant.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// What commands call it.
    pub name: &'a str,
    /// Its tag `Name`: what EC2's tools call it.
    pub tag: Option<&'a str>,
    /// Its id.
    pub id: InstanceId,
    /// Whether it is gone, and only still remembered. Whoever names one that is not gone means that.
    pub is_gone: bool,
}

impl<'a> Known<'a> {
    /// The instance of a record.
    #[must_use]
    pub fn of(record: &'a InstanceRecord, life: &Life) -> Self {
        let state = record.state(life);
        Self {
            name: &record.name,
            tag: name_in(&record.spec.tags),
            id: record.spec.id,
            is_gone: state == InstanceState::Terminated,
        }
    }
}

/// The tag `Name`.
#[must_use]
pub fn name_in(tags: &[Tag]) -> Option<&str> {
    let tag = tags.iter().find(|tag| &*tag.key == "Name")?;
    Some(&tag.value)
        .filter(|value| !value.is_empty())
        .map(|value| &**value)
}

/// Why no instance is meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// None is called so, but one nearly.
    #[error("no instance is called `{written}`: did you mean `{meant}`?")]
    Nearly {
        /// What was written.
        written: Box<str>,
        /// A name.
        meant: Box<str>,
    },
    /// None is called so, nor nearly.
    #[error("no instance is called `{written}`: {there_are}")]
    Unknown {
        /// What was written.
        written: Box<str>,
        /// Which there are.
        there_are: Box<str>,
    },
    /// Several ids begin so.
    #[error("`{written}` begins the ids of several instances ({}): write more of it", .names.join(", "))]
    Ambiguous {
        /// What was written.
        written: Box<str>,
        /// Some of them.
        names: Vec<Box<str>>,
    },
    /// Several have that name.
    #[error("several instances are called `{written}` ({}): write an id", .ids.join(", "))]
    Namesakes {
        /// What was written.
        written: Box<str>,
        /// Some of their ids.
        ids: Vec<Box<str>>,
    },
}

/// The instance that `written` means, as its place among `instances`.
///
/// # Errors
/// When none or several could be meant.
pub fn find(written: &str, instances: &[Known<'_>]) -> Result<usize, FindError> {
    let places = |is_it: &dyn Fn(&Known<'_>) -> bool| -> Vec<usize> {
        let all = instances.iter().enumerate();
        all.filter(|(_, known)| is_it(known))
            .map(|(at, _)| at)
            .collect()
    };
    let is_begun = |known: &Known<'_>| {
        written.len() > InstanceId::PREFIX.len() && known.id.as_str().starts_with(written)
    };
    for meant in [
        places(&|known| !known.is_gone && known.name == written),
        places(&|known| known.id.as_str() == written),
        places(&|known| !known.is_gone && known.tag == Some(written)),
    ] {
        match meant[..] {
            [] => {}
            [at] => return Ok(at),
            _ => return Err(namesakes(written, instances, &meant)),
        }
    }
    let begun = places(&is_begun);
    match begun[..] {
        [] => {}
        [at] => return Ok(at),
        _ => {
            let names = begun.iter().map(|at| instances[*at].name.into());
            return Err(FindError::Ambiguous {
                written: written.into(),
                names: names.take(NAMED_MAX).collect(),
            });
        }
    }
    let gone = places(&|known| known.name == written || known.tag == Some(written));
    match gone[..] {
        [] => Err(unknown(written, instances)),
        [at] => Ok(at),
        _ => Err(namesakes(written, instances, &gone)),
    }
}

fn namesakes(written: &str, instances: &[Known<'_>], places: &[usize]) -> FindError {
    let ids = places.iter().map(|at| instances[*at].id.as_str().into());
    FindError::Namesakes {
        written: written.into(),
        ids: ids.take(NAMED_MAX).collect(),
    }
}

fn unknown(written: &str, instances: &[Known<'_>]) -> FindError {
    let there = instances.iter().filter(|known| !known.is_gone);
    let names: Vec<&str> = there.clone().map(|known| known.name).collect();
    let tags = there.filter_map(|known| known.tag);
    let all: Vec<&str> = names.iter().copied().chain(tags).collect();
    if let Some(meant) = nearest(written, &all) {
        return FindError::Nearly {
            written: written.into(),
            meant: meant.into(),
        };
    }
    let there_are = match &names[..] {
        [] => "there is none".to_owned(),
        names if names.len() <= NAMED_MAX => format!("there are {}", names.join(", ")),
        names => format!(
            "there are {} and {} more (`imds instance list` shows all)",
            names[..NAMED_MAX].join(", "),
            names.len() - NAMED_MAX
        ),
    };
    FindError::Unknown {
        written: written.into(),
        there_are: there_are.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(
        name: &'static str,
        tag: Option<&'static str>,
        id: &str,
        is_gone: bool,
    ) -> Known<'static> {
        Known {
            name,
            tag,
            id: id.parse().unwrap(),
            is_gone,
        }
    }

    /// What is found, by how its id ends.
    fn check(written: &str, expected: Result<&str, &str>) {
        let instances = [
            known("web", None, "i-0aaaaaaaaaaaaaaa1", false),
            known("db", Some("store"), "i-0aaaaaaaaaaaaaaa2", false),
            known("legacy", Some("web"), "i-0bbbbbbbbbbbbbbb3", false),
            known("i-0b", Some("twin"), "i-0ccccccccccccccc4", false),
            known("other", Some("twin"), "i-0ddddddddddddddd5", false),
            known("web", None, "i-0eeeeeeeeeeeeeee6", true),
            known("old", None, "i-0eeeeeeeeeeeeeee7", true),
            known("older", None, "i-0eeeeeeeeeeeeeee8", true),
            known("older", None, "i-0eeeeeeeeeeeeeee9", true),
        ];
        let found = find(written, &instances).map(|at| instances[at].id.to_string());
        let found = found.map_err(|error| error.to_string());
        let end = |id: &String| id[id.len() - 1..].to_owned();
        assert_eq!(
            found.as_ref().map(end).map_err(String::as_str),
            expected.map(str::to_owned),
            "{written}"
        );
    }

    #[test]
    fn an_instance_is_found_by_name_id_tag_or_the_beginning_of_its_id() {
        check("web", Ok("1"));
        check("i-0aaaaaaaaaaaaaaa2", Ok("2"));
        check("i-0bb", Ok("3"));
        check("store", Ok("2"));
        // A name comes first, should it look like an id.
        check("i-0b", Ok("4"));
    }

    #[test]
    fn one_that_is_gone_is_found_where_no_other_is_meant() {
        check("old", Ok("7"));
        check("i-0eeeeeeeeeeeeeee6", Ok("6"));
        check(
            "i-0eeeeeeeeeeeeeee",
            Err(
                "`i-0eeeeeeeeeeeeeee` begins the ids of several instances (web, old, older, older): write more of it",
            ),
        );
        check(
            "older",
            Err(
                "several instances are called `older` (i-0eeeeeeeeeeeeeee8, i-0eeeeeeeeeeeeeee9): write an id",
            ),
        );
    }

    #[test]
    fn what_is_no_instance_is_answered_with_those_that_are() {
        check(
            "i-0a",
            Err("`i-0a` begins the ids of several instances (web, db): write more of it"),
        );
        check(
            "twin",
            Err(
                "several instances are called `twin` (i-0ccccccccccccccc4, i-0ddddddddddddddd5): write an id",
            ),
        );
        for (written, meant) in [("wbe", "web"), ("Legacy", "legacy"), ("stroe", "store")] {
            let error = format!("no instance is called `{written}`: did you mean `{meant}`?");
            check(written, Err(&error));
        }
        for written in ["", "i-", "something-else"] {
            let error = format!(
                "no instance is called `{written}`: there are web, db, legacy, i-0b, other"
            );
            check(written, Err(&error));
        }
    }

    #[test]
    fn a_long_list_is_cut() {
        let names: Vec<String> = (0..9).map(|number| format!("guest-{number}")).collect();
        let instances: Vec<_> = names
            .iter()
            .map(|name| Known {
                name,
                tag: None,
                id: "i-0aaaaaaaaaaaaaaa1".parse().unwrap(),
                is_gone: false,
            })
            .collect();
        assert_eq!(
            find("x", &instances).unwrap_err().to_string(),
            "no instance is called `x`: there are guest-0, guest-1, guest-2, guest-3, guest-4 and 4 more (`imds \
             instance list` shows all)"
        );
        assert_eq!(
            find("x", &[]).unwrap_err().to_string(),
            "no instance is called `x`: there is none"
        );
    }
}
