//! What passed, what failed and what was skipped, and the line that says so.

use std::process::ExitCode;

use crate::report;

/// The sum of a task's outcomes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) n_passed: u64,
    /// Names of what failed.
    pub(crate) failures: Vec<String>,
    /// Why something was not done, a reason each.
    pub(crate) skips: Vec<String>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.n_passed += other.n_passed;
        self.failures.extend(other.failures);
        self.skips.extend(other.skips);
    }

    /// Prints failures, skips and, as the very last line, `N passed, N failed, N skipped`.
    pub(crate) fn conclude(&self) -> ExitCode {
        for failure in &self.failures {
            report::outcome("FAILED", failure);
        }
        for skip in &self.skips {
            report::outcome("SKIPPED", skip);
        }
        report::line(self.summary());
        if self.failures.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    /// The counts in words.
    pub(crate) fn summary(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.n_passed,
            self.failures.len(),
            self.skips.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_said_in_one_line() {
        let mut tally = Tally {
            n_passed: 3,
            ..Tally::default()
        };
        tally.add(Tally {
            n_passed: 4,
            failures: vec!["isolation".into()],
            skips: vec!["no QEMU".into(), "no boto3".into()],
        });
        assert_eq!(tally.summary(), "7 passed, 1 failed, 2 skipped");
    }
}
