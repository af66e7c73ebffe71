//! Patterns of interface names: `tap*`, `veth-??`. Pure.

use std::fmt;
use std::str::FromStr;

use super::PortName;

/// A pattern in which `*` stands for any text, also none, and `?` for one character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Box<str>);

/// A text that no interface name could match.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no pattern of interface names: write one such as `tap*`")]
pub struct PatternError(String);

impl Pattern {
    /// Whether an interface of this name is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        matches(self.0.as_bytes(), name.as_bytes())
    }
}

/// Interface names are bytes, fifteen at most, so that trying every length for a `*` is short.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|taken| matches(rest, &name[taken..])),
        ([b'?', pattern @ ..], [_, name @ ..]) => matches(pattern, name),
        ([one, pattern @ ..], [other, name @ ..]) => one == other && matches(pattern, name),
        _ => false,
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let refused = || PatternError(text.to_owned());
        // What stands for itself has to fit into a name. Several `*` in a row are one.
        let mut plain = String::new();
        let mut pattern = String::new();
        for character in text.chars() {
            if character != '*' {
                plain.push(character);
            } else if pattern.ends_with('*') {
                continue;
            }
            pattern.push(character);
        }
        if !plain.is_empty() && plain.parse::<PortName>().is_err() || text.is_empty() {
            return Err(refused());
        }
        Ok(Self(pattern.into()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, matching: &[&str], others: &[&str]) {
        let parsed: Pattern = pattern.parse().unwrap();
        for name in matching {
            assert!(parsed.matches(name), "{pattern} and {name}");
        }
        for name in others {
            assert!(!parsed.matches(name), "{pattern} and {name}");
        }
    }

    #[test]
    fn a_star_is_any_text_and_a_question_mark_one_character() {
        check(
            "tap*",
            &["tap", "tap0", "tap-web"],
            &["ta", "atap0", "Tap0"],
        );
        check("tap?", &["tap0", "tap-"], &["tap", "tap10"]);
        check("*-guest", &["a-guest", "-guest"], &["guest", "a-guest1"]);
        check("v*t*0", &["vnet0", "veth10", "vt0"], &["vnet1", "v0"]);
        check("a**b", &["ab", "a-b"], &["a", "ba"]);
        check("*", &["lo", "x"], &[]);
        check("vnet0", &["vnet0"], &["vnet01", "vnet"]);
    }

    #[test]
    fn what_no_interface_can_be_called_is_refused() {
        for pattern in ["", "a b*", "a/b*", "eth0:1", "sixteen-letters-*", ".."] {
            let error = pattern.parse::<Pattern>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{pattern}`")), "{error}");
        }
    }
}
