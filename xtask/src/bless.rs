//! `cargo xtask bless`: what is answered now becomes what is right, for people to review.

use std::process::{Command, ExitCode};

use crate::{
    command, integration_test, report,
    setup::{self, Extent},
    test::{self, Environment},
    workspace,
};

/// The integration tests that hold what they see against `tests/fixtures`.
const TESTS: &[&str] = &["vectors"];

/// Rewrite the fixtures of the tests with what the tests see now
///
/// For a change that is meant: look at what `git diff tests/fixtures` shows before it is committed.
#[derive(Debug, clap::Args)]
pub(crate) struct Bless {}

impl Bless {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let found = setup::ensure(Extent::Tests)?;
        integration_test::need_root()?;
        test::build()?;
        let tests: Vec<String> = TESTS.iter().map(ToString::to_string).collect();
        let mut blessing = integration_test::command(&tests);
        blessing.env("IMDS_BLESS", "1");
        let tally = test::run(&mut blessing, &Environment::new(found)?)?;
        let mut diff = Command::new("git");
        diff.current_dir(workspace::root());
        let changes = command::output(diff.args(["diff", "--stat", "--", "tests/fixtures"]))?;
        match changes.trim_end() {
            "" => report::line("the fixtures are as they were"),
            changes => report::line(format_args!(
                "{changes}\nlook at it with: git diff tests/fixtures"
            )),
        }
        Ok(tally.conclude())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_that_reads_fixtures_is_blessed() {
        let folder = workspace::root().join("tests/tests");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let name = path.file_stem().unwrap().to_str().unwrap();
            let is_checked = text.contains("fixture::check(") || text.contains("check_vectors(");
            assert_eq!(is_checked, TESTS.contains(&name), "{name}");
        }
    }
}
