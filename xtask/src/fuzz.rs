//! `cargo xtask fuzz`: what guests send, made up by machines, for a bounded time.
//!
//! The targets are the files of `fuzz/targets`, what is to hold is in `tests/src/properties.rs`. They begin with the corpus
//! in the checkout and keep what they find below `target/fuzz`; only people put it into the checkout.

use std::process::ExitCode;

use anyhow::{Context as _, ensure};

use crate::{
    command, report,
    setup::{self, Extent},
    tally::Tally,
    workspace,
};

/// Time of each target in `cargo xtask test`: a look, not a search.
pub(crate) const LOOK_SECONDS: u32 = 10;

/// Let the fuzzers look for inputs that break a promise
///
/// The first run compiles everything once more with a fuzzer's flags, which takes two to three minutes. An input that
/// breaks something is left in `fuzz/artifacts`, and the failure says how to run it again.
#[derive(Debug, clap::Args)]
pub(crate) struct Fuzz {
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only these: files of `fuzz/targets` without the `.rs`
    targets: Vec<String>,
}

impl Fuzz {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        setup::ensure(Extent::Tests)?;
        let known = targets()?;
        for target in &self.targets {
            ensure!(
                known.contains(target),
                "no target {target}: there are {}",
                known.join(", ")
            );
        }
        let chosen = if self.targets.is_empty() {
            known
        } else {
            self.targets
        };
        Ok(tally_of(&chosen, self.seconds)?.conclude())
    }
}

/// Runs every target for so long. A target counts as one test.
pub(crate) fn tally(seconds: u32) -> anyhow::Result<Tally> {
    tally_of(&targets()?, seconds)
}

fn tally_of(targets: &[String], seconds: u32) -> anyhow::Result<Tally> {
    let mut tally = Tally::default();
    if workspace::program("cargo-fuzz").is_none() {
        let skip = |target: &String| format!("fuzz {target}: cargo-fuzz could not be installed");
        tally.skips = targets.iter().map(skip).collect();
        return Ok(tally);
    }
    report::line("building the fuzz targets (two to three minutes the first time)");
    if let Err(cause) = command::quietly(&mut cargo_fuzz("build")) {
        report::error(&cause);
        tally.failures.push("fuzz: build of the targets".into());
        return Ok(tally);
    }
    for target in targets {
        tally.add(run(target, seconds)?);
    }
    Ok(tally)
}

fn run(target: &str, seconds: u32) -> anyhow::Result<Tally> {
    let found = workspace::target_dir(&format!("fuzz/corpus/{target}"))?;
    let mut fuzz = cargo_fuzz("run");
    fuzz.arg(target)
        // Where new inputs are put; then what is only read.
        .arg(found)
        .arg(workspace::root().join("fuzz/corpus").join(target))
        .args(["--", "-print_final_stats=1"])
        .arg(format!("-max_total_time={seconds}"));
    let output = command::finish(&mut fuzz)?;
    let said = command::said(&output);
    let mut tally = Tally::default();
    if output.status.success() {
        let n_runs = statistic(&said, "number_of_executed_units");
        report::outcome(
            "ok",
            format_args!("fuzz {target}: {n_runs} inputs in {seconds} s"),
        );
        tally.n_passed = 1;
    } else {
        report::line(format_args!("$ {}\n{said}", command::shown(&fuzz)));
        tally.failures.push(format!("fuzz {target}"));
    }
    Ok(tally)
}

/// cargo-fuzz without a sanitizer: the code is safe Rust, the stable compiler has none, and without it is much faster.
fn cargo_fuzz(verb: &str) -> std::process::Command {
    let mut cargo = command::cargo();
    cargo.args(["fuzz", verb, "--fuzz-dir", "fuzz"]);
    cargo.args(["--sanitizer", "none", "--target-dir", "target/fuzz"]);
    cargo
}

/// The names of all targets, sorted.
fn targets() -> anyhow::Result<Vec<String>> {
    let folder = workspace::root().join("fuzz/targets");
    let list = || {
        std::fs::read_dir(&folder)?
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<Vec<_>>>()
    };
    let paths = list().with_context(|| format!("list the folder {}", folder.display()))?;
    let mut names: Vec<String> = paths
        .iter()
        .filter_map(|path| path.file_stem())
        .map(|stem| stem.to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// A number of libFuzzer's closing statistics: `stat::number_of_executed_units: 302900`.
fn statistic<'s>(said: &'s str, name: &str) -> &'s str {
    let mut lines = said.lines().filter_map(|line| line.strip_prefix("stat::"));
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.map_or("some", str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_inputs_is_read_from_the_fuzzers_own_words() {
        let said =
            "Done 7 runs in 1 second(s)\nstat::number_of_executed_units: 7\nstat::x:     9\n";
        assert_eq!(statistic(said, "number_of_executed_units"), "7");
        assert_eq!(statistic(said, "x"), "9");
        assert_eq!(statistic("", "x"), "some");
    }

    #[test]
    fn every_target_has_a_corpus_and_is_built() {
        let manifest = std::fs::read_to_string(workspace::root().join("fuzz/Cargo.toml")).unwrap();
        for target in targets().unwrap() {
            let corpus = workspace::root().join("fuzz/corpus").join(&target);
            assert!(corpus.is_dir(), "{} is missing", corpus.display());
            let path = format!("path = \"targets/{target}.rs\"");
            assert!(manifest.contains(&path), "{target} is not in the manifest");
        }
    }
}
