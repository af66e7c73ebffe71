//! Which instance a person means: by name, by id, or by how an id alone begins. Pure.

use crate::config::nearest::nearest;
use crate::instance::InstanceId;

/// How many instances an error names.
const NAMED_MAX: usize = 5;

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
}

/// The instance that `written` means, as its place among `instances`, which are names and ids.
///
/// # Errors
/// When none or several could be meant.
pub fn find(written: &str, instances: &[(&str, InstanceId)]) -> Result<usize, FindError> {
    let position = |is_it: &dyn Fn(&(&str, InstanceId)) -> bool| instances.iter().position(is_it);
    if let Some(at) = position(&|(name, _)| *name == written)
        .or_else(|| position(&|(_, id)| id.as_str() == written))
    {
        return Ok(at);
    }
    let is_begun = |id: InstanceId| {
        written.len() > InstanceId::PREFIX.len() && id.as_str().starts_with(written)
    };
    let mut begun = instances
        .iter()
        .enumerate()
        .filter(|(_, (_, id))| is_begun(*id));
    match (begun.next(), begun.next()) {
        (Some((at, _)), None) => Ok(at),
        (Some((_, first)), Some((_, second))) => {
            let others = begun.map(|(_, other)| other);
            let names = [first, second].into_iter().chain(others);
            Err(FindError::Ambiguous {
                written: written.into(),
                names: names
                    .take(NAMED_MAX)
                    .map(|(name, _)| (*name).into())
                    .collect(),
            })
        }
        (None, _) => Err(unknown(written, instances)),
    }
}

fn unknown(written: &str, instances: &[(&str, InstanceId)]) -> FindError {
    let names: Vec<&str> = instances.iter().map(|(name, _)| *name).collect();
    if let Some(meant) = nearest(written, &names) {
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

    fn check(written: &str, expected: Result<&str, &str>) {
        let instances: Vec<(&str, InstanceId)> = [
            ("web", "i-0aaaaaaaaaaaaaaa1"),
            ("db", "i-0aaaaaaaaaaaaaaa2"),
            ("legacy", "i-0bbbbbbbbbbbbbbbb"),
            ("i-0b", "i-0cccccccccccccccc"),
        ]
        .map(|(name, id)| (name, id.parse().unwrap()))
        .into();
        let found = find(written, &instances)
            .map(|at| instances[at].0)
            .map_err(|error| error.to_string());
        assert_eq!(found, expected.map_err(str::to_owned), "{written}");
    }

    #[test]
    fn an_instance_is_found_by_name_id_or_the_beginning_of_its_id() {
        check("web", Ok("web"));
        check("i-0aaaaaaaaaaaaaaa2", Ok("db"));
        check("i-0bb", Ok("legacy"));
        // A name comes first, should it look like an id.
        check("i-0b", Ok("i-0b"));
    }

    #[test]
    fn what_is_no_instance_is_answered_with_those_that_are() {
        check(
            "i-0a",
            Err("`i-0a` begins the ids of several instances (web, db): write more of it"),
        );
        check(
            "wbe",
            Err("no instance is called `wbe`: did you mean `web`?"),
        );
        check(
            "Legacy",
            Err("no instance is called `Legacy`: did you mean `legacy`?"),
        );
        for written in ["", "i-", "something-else"] {
            let error =
                format!("no instance is called `{written}`: there are web, db, legacy, i-0b");
            check(written, Err(&error));
        }
    }

    #[test]
    fn a_long_list_is_cut() {
        let names: Vec<String> = (0..9).map(|number| format!("guest-{number}")).collect();
        let id: InstanceId = "i-0aaaaaaaaaaaaaaa1".parse().unwrap();
        let instances: Vec<_> = names.iter().map(|name| (name.as_str(), id)).collect();
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
