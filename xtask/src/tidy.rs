//! `cargo xtask tidy`: the invariants that a grep can hold. The list is in `rules`, how one is looked for is here.

mod rules;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use rules::{Forbidden, RULES, Rule};

use crate::{report, tally::Tally, workspace};

/// Look for breaches of the rules that a grep can hold
///
/// The rules are listed, each with its why, in `xtask/src/tidy/rules.rs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Tidy {}

impl Tidy {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        Ok(tally()?.conclude())
    }
}

/// Holds every rule against every file; a rule counts as one test.
pub(crate) fn tally() -> anyhow::Result<Tally> {
    let files = read_files(&workspace::root())?;
    let mut tally = Tally::default();
    for rule in RULES {
        let breaches: Vec<_> = files.iter().flat_map(|file| breaches(rule, file)).collect();
        for breach in &breaches {
            report::line(breach);
        }
        if breaches.is_empty() {
            tally.n_passed += 1;
        } else {
            tally
                .failures
                .push(format!("tidy: {} ({})", rule.name, rule.why));
        }
    }
    Ok(tally)
}

/// A file of the checkout.
struct File {
    /// Relative to the checkout's top, with `/`.
    path: String,
    text: String,
}

/// A place where a rule is broken.
#[derive(Debug, PartialEq, Eq)]
struct Breach {
    path: String,
    line: usize,
    rule: &'static str,
    found: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            line,
            rule,
            found,
        } = self;
        write!(f, "{path}:{line}: {rule}: {found}")
    }
}

/// Every place of the file that breaks the rule.
fn breaches(rule: &Rule, file: &File) -> Vec<Breach> {
    if !rule.covers(&file.path) {
        return Vec::new();
    }
    let text = if rule.spares_tests {
        without_tests(&file.text)
    } else {
        &file.text
    };
    let found = match rule.forbidden {
        Forbidden::Words(words) => lines_with_words(text.lines().map(without_comment), words),
        Forbidden::Marks(words) => lines_with_words(text.lines(), words),
        Forbidden::Attribute { start, without } => attributes_without(text, start, without),
        Forbidden::Absence(wanted) => absence(text, wanted),
    };
    let breach = |(line, found)| Breach {
        path: file.path.clone(),
        line,
        rule: rule.name,
        found,
    };
    found.into_iter().map(breach).collect()
}

/// A file's unit tests come last in it.
fn without_tests(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod ")
        .map_or(text, |start| &text[..start])
}

fn lines_with_words<'a>(
    lines: impl Iterator<Item = &'a str>,
    words: &[&str],
) -> Vec<(usize, String)> {
    let offending = lines
        .enumerate()
        .filter(|(_, line)| words.iter().any(|word| has_word(line, word)));
    offending
        .map(|(index, line)| (index + 1, line.trim().to_owned()))
        .collect()
}

/// What is said about a thing is not a use of it. A `//` inside a word, as in a URL, starts no comment.
fn without_comment(line: &str) -> &str {
    let start = line
        .match_indices("//")
        .map(|(start, _)| start)
        .find(|start| {
            line[..*start]
                .chars()
                .next_back()
                .is_none_or(char::is_whitespace)
        });
    start.map_or(line, |start| &line[..start])
}

/// Whether the word stands in the line with no letter, digit or `_` beside its own.
fn has_word(line: &str, word: &str) -> bool {
    let continues = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        let after = line[start + word.len()..].chars().next();
        let starts = !word.starts_with(continues) || !before.is_some_and(continues);
        let ends = !word.ends_with(continues) || !after.is_some_and(continues);
        starts && ends
    })
}

/// Attributes may be spread over lines, up to the `]` that closes them.
fn attributes_without(text: &str, start: &str, without: &str) -> Vec<(usize, String)> {
    let squeezed = |attribute: &str| attribute.split_whitespace().collect::<String>();
    let mut found = Vec::new();
    for (at, _) in text.match_indices("#[").chain(text.match_indices("#![")) {
        let attribute = &text[at..];
        let end = attribute.find(")]").map_or(attribute.len(), |end| end + 2);
        let attribute = &attribute[..end];
        let is_meant = squeezed(attribute)
            .trim_start_matches(['#', '!', '['])
            .starts_with(start);
        if is_meant && !attribute.contains(without) {
            let line = text[..at].matches('\n').count() + 1;
            found.push((line, squeezed(attribute)));
        }
    }
    found
}

fn absence(text: &str, wanted: &str) -> Vec<(usize, String)> {
    if text.contains(wanted) {
        return Vec::new();
    }
    vec![(1, format!("{wanted:?} is not there"))]
}

/// The checkout's sources: what is built and what is hidden is left out.
fn read_files(root: &Path) -> anyhow::Result<Vec<File>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in entries(&folder)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if name.ends_with(".rs") || name == "Cargo.toml" {
                files.push(read_file(root, &path)?);
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let list = || {
        fs::read_dir(folder)?
            .map(|entry| Ok(entry?.path()))
            .collect()
    };
    let listed: std::io::Result<_> = list();
    listed.with_context(|| format!("list the folder {}", folder.display()))
}

fn read_file(root: &Path, path: &Path) -> anyhow::Result<File> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let path = path.strip_prefix(root).unwrap_or(path);
    Ok(File {
        path: path.to_string_lossy().into_owned(),
        text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(rule: &Rule, text: &str) -> File {
        File {
            path: rule.sample_path.to_owned(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn every_rule_finds_its_bad_sample_and_lets_its_good_one_be() {
        for rule in RULES {
            let bad = breaches(rule, &sample(rule, rule.bad));
            assert!(!bad.is_empty(), "{}: {}", rule.name, rule.bad);
            let good = breaches(rule, &sample(rule, rule.good));
            assert_eq!(good, [], "{}: {}", rule.name, rule.good);
        }
    }

    #[test]
    fn a_breach_says_where() {
        let rule = &RULES[0];
        let file = sample(rule, "\n\nuse aya::maps::HashMap;\n");
        let said = breaches(rule, &file)[0].to_string();
        let start = format!("{}:3: {}", rule.sample_path, rule.name);
        assert!(said.starts_with(&start), "{said}");
    }

    #[test]
    fn words_are_whole() {
        let check = |line: &str, word: &str, expected| {
            assert_eq!(has_word(line, word), expected, "{word} in {line}");
        };
        check("use aya::maps;", "aya", true);
        check("let ayax = 1;", "aya", false);
        check("let my_aya = 1;", "aya", false);
        check("todo!(\"later\")", "todo!", true);
        check("std::fs::read(path)", "std::fs", true);
    }

    #[test]
    fn comments_are_not_looked_at_and_addresses_are_no_comments() {
        let check = |line: &str, expected: &str| assert_eq!(without_comment(line), expected);
        check("// all of it", "");
        check("    /// all of it", "    ");
        check("code(); // why", "code(); ");
        check(
            "get(\"http://169.254.169.254/\")",
            "get(\"http://169.254.169.254/\")",
        );
    }

    #[test]
    fn tests_at_the_end_are_spared_where_the_rule_says_so() {
        assert_eq!(without_tests("code\n#[cfg(test)]\nmod tests {"), "code\n");
        assert_eq!(
            without_tests("#[cfg(test)]\nuse x;\n"),
            "#[cfg(test)]\nuse x;\n"
        );
    }
}
