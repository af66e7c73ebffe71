//! Reviewed text: what outsiders see, in files under `tests/fixtures/`, each with its origin at its top.
//!
//! A test writes down what it saw and holds it against the file. With `IMDS_BLESS` in the environment (`cargo xtask bless`)
//! the file becomes what was seen, and `git diff` shows a reviewer what changed.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines around the first difference that a failure shows.
const CONTEXT_LINES: usize = 6;

/// The text of a fixture.
///
/// # Panics
/// When there is none of that name.
#[must_use]
pub fn read(name: &str) -> String {
    let path = path(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The comment at the top of a fixture: its origin, and what it is for.
///
/// # Panics
/// When there is no fixture of that name, or none at its top.
#[must_use]
pub fn origin(name: &str) -> String {
    let text = read(name);
    let comment: String = text
        .lines()
        .take_while(|line| line.starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(!comment.is_empty(), "{name} does not begin with its origin");
    comment
}

/// Holds what was seen against the fixture, or makes it the fixture.
///
/// # Panics
/// When they differ, with the place; when the file cannot be read or written.
pub fn check(name: &str, seen: &str) {
    if std::env::var_os("IMDS_BLESS").is_some() {
        let path = path(name);
        return fs::write(&path, seen)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let expected = read(name);
    if let Some(difference) = difference(&expected, seen) {
        panic!(
            "not as in tests/fixtures/{name} (`cargo xtask bless` accepts a change):\n{difference}"
        );
    }
}

/// The first line that differs, with those around it; none where both are the same.
fn difference(expected: &str, seen: &str) -> Option<String> {
    if expected == seen {
        return None;
    }
    let (wanted, got): (Vec<_>, Vec<_>) =
        (expected.split('\n').collect(), seen.split('\n').collect());
    let at = wanted
        .iter()
        .zip(&got)
        .position(|(one, other)| one != other)
        .unwrap_or(wanted.len().min(got.len()));
    let start = at.saturating_sub(CONTEXT_LINES);
    let part = |lines: &[&str], sign: &str| {
        let end = lines.len().min(at + CONTEXT_LINES);
        let lines = lines.get(at..end).unwrap_or_default();
        lines
            .iter()
            .map(|line| format!("{sign}{line}\n"))
            .collect::<String>()
    };
    let before: String = wanted[start..at]
        .iter()
        .map(|line| format!("  {line}\n"))
        .collect();
    Some(format!(
        "line {}:\n{before}{}{}",
        at + 1,
        part(&wanted, "- "),
        part(&got, "+ ")
    ))
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_shown_with_its_place() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        let shown = difference("a\nb\nc", "a\nx\nc").expect("they differ");
        assert_eq!(shown, "line 2:\n  a\n- b\n- c\n+ x\n+ c\n");
        assert!(difference("a", "a\n").is_some());
        assert!(difference("a\n", "a").is_some());
    }
}
