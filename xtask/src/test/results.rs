//! Reads what test programs print, a line at a time.

use crate::tally::Tally;

/// What a line of a test program's output tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// A test's name, when it failed.
    Failed(&'a str),
    /// A test's name, when it was left out by its own attribute.
    Ignored(&'a str),
    /// The end of one test program.
    Sum {
        n_passed: u64,
        n_failed: u64,
    },
    Other,
}

impl<'a> Line<'a> {
    /// Reads a line of libtest's output.
    pub(super) fn parse(line: &'a str) -> Self {
        if let Some(sum) = line.strip_prefix("test result: ") {
            return Self::parse_sum(sum).unwrap_or(Self::Other);
        }
        let Some((name, outcome)) = line
            .strip_prefix("test ")
            .and_then(|test| test.rsplit_once(" ... "))
        else {
            return Self::Other;
        };
        match outcome.split([',', ' ']).next() {
            Some("FAILED") => Self::Failed(name),
            Some("ignored") => Self::Ignored(name),
            _ => Self::Other,
        }
    }

    /// `ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s`
    fn parse_sum(sum: &str) -> Option<Self> {
        let (_, counts) = sum.split_once(". ")?;
        let count = |kind: &str| {
            let mut counts = counts.split("; ");
            counts.find_map(|count| count.strip_suffix(kind)?.trim().parse().ok())
        };
        Some(Self::Sum {
            n_passed: count("passed")?,
            n_failed: count("failed")?,
        })
    }
}

/// What one `cargo test` said, line by line.
#[derive(Debug, Default)]
pub(crate) struct Results {
    tally: Tally,
    n_failed: u64,
}

impl Results {
    pub(crate) fn read(&mut self, line: &str) {
        match Line::parse(line) {
            Line::Failed(name) => self.tally.failures.push(name.to_owned()),
            Line::Ignored(name) => self
                .tally
                .skips
                .push(format!("{name} is marked to be ignored")),
            Line::Sum { n_passed, n_failed } => {
                self.tally.n_passed += n_passed;
                self.n_failed += n_failed;
            }
            Line::Other => {}
        }
    }

    /// The sum. `skips` is what tests wrote into the skip log: libtest knows no skipping, such a test counts itself as
    /// passed. `ended_well` is the exit status of `cargo test`.
    pub(crate) fn conclude(mut self, skips: &str, ended_well: bool) -> Tally {
        let skips = skips.lines().map(str::trim).filter(|line| !line.is_empty());
        for skip in skips {
            let reason = skip.strip_prefix("SKIP:").unwrap_or(skip).trim();
            self.tally.skips.push(reason.to_owned());
            self.tally.n_passed = self.tally.n_passed.saturating_sub(1);
        }
        let n_named = self.tally.failures.len() as u64;
        for _ in n_named..self.n_failed {
            self.tally
                .failures
                .push("a test whose name was not printed".into());
        }
        if !ended_well && self.tally.failures.is_empty() {
            // It did not compile, or a test program was killed before its sum.
            self.tally
                .failures
                .push("cargo test, before its end".into());
        }
        self.tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_libtest_are_told_apart() {
        let check = |line: &str, expected| assert_eq!(Line::parse(line), expected, "{line}");
        check("test token::expires_at_its_ttl ... ok", Line::Other);
        check(
            "test token::expires ... FAILED",
            Line::Failed("token::expires"),
        );
        check(
            "test token::slow ... ignored, takes long",
            Line::Ignored("token::slow"),
        );
        check(
            "test src/lib.rs - wire (line 3) ... FAILED",
            Line::Failed("src/lib.rs - wire (line 3)"),
        );
        check(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            Line::Sum {
                n_passed: 12,
                n_failed: 0,
            },
        );
        check(
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 3 filtered out; finished in 9.55s",
            Line::Sum {
                n_passed: 1,
                n_failed: 2,
            },
        );
        check("test result: who knows", Line::Other);
        check("running 3 tests", Line::Other);
    }

    fn conclude(lines: &[&str], skips: &str, ended_well: bool) -> Tally {
        let mut results = Results::default();
        for line in lines {
            results.read(line);
        }
        results.conclude(skips, ended_well)
    }

    #[test]
    fn sums_of_several_programs_are_added() {
        let sum = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        let tally = conclude(&[sum, "noise", sum], "", true);
        assert_eq!(
            tally,
            Tally {
                n_passed: 4,
                ..Tally::default()
            }
        );
    }

    #[test]
    fn a_skipped_test_is_not_a_passed_one() {
        let sum = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        let tally = conclude(&[sum], "SKIP: no QEMU\n\n", true);
        assert_eq!(tally.n_passed, 1);
        assert_eq!(tally.skips, ["no QEMU"]);
    }

    #[test]
    fn failures_are_named_once() {
        let sum = "test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        let tally = conclude(&["test isolation ... FAILED", sum], "", false);
        assert_eq!(tally.failures, ["isolation"]);
    }

    #[test]
    fn a_run_without_a_sum_is_a_failure() {
        assert_eq!(conclude(&[], "", false).failures.len(), 1);
        assert_eq!(
            conclude(
                &["test result: FAILED. 0 passed; 1 failed; 0 ignored"],
                "",
                false
            )
            .failures
            .len(),
            1
        );
    }
}
