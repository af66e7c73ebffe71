//! `imds doctor`: is this host fit, and what to do if not.

use std::io::{self, Write};
use std::process::ExitCode;

use anstyle::Style;
use anyhow::Context;
use imds_user::doctor::{self, Finding, Level};

use super::{BAD, BOLD, DIM, EXIT_FINE, EXIT_MISSING, EXIT_PERMISSION, GOOD, WARNING};

const EXAMPLES: &str = "\
Examples:
  imds doctor
  imds doctor --json | jq '.[] | select(.level != \"ok\")'

Each line is ok, warn (works, with a limit worth knowing) or FAIL. Exit code 69 when something that is
needed is missing, 77 without root. Nothing is changed and nothing is sent.";

/// Check whether this host has what imds needs
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start a runtime")?;
        let facts = runtime.block_on(doctor::gather::facts())?;
        let findings = doctor::examine(&facts);
        if self.json {
            serde_json::to_writer_pretty(&mut *out, &findings)?;
            writeln!(out)?;
        } else {
            write_findings(out, &findings)?;
        }
        Ok(ExitCode::from(exit_code(facts.is_root, &findings)))
    }
}

fn exit_code(is_root: bool, findings: &[Finding]) -> u8 {
    match findings.iter().map(|finding| finding.level).max() {
        _ if !is_root => EXIT_PERMISSION,
        Some(Level::Fail) => EXIT_MISSING,
        Some(Level::Ok | Level::Warn) | None => EXIT_FINE,
    }
}

fn write_findings(out: &mut dyn Write, findings: &[Finding]) -> io::Result<()> {
    for finding in findings {
        let (word, style) = word(finding.level);
        write!(
            out,
            "{style}{word:<4}{style:#}  {BOLD}{}{BOLD:#}: {}",
            finding.subject, finding.found
        )?;
        if let Some(advice) = &finding.advice {
            write!(out, " {DIM}—{DIM:#} {advice}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn word(level: Level) -> (&'static str, Style) {
    match level {
        Level::Ok => ("ok", GOOD),
        Level::Warn => ("warn", WARNING),
        Level::Fail => ("FAIL", BAD),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(level: Level, advice: Option<&str>) -> Finding {
        Finding {
            level,
            subject: "bpffs",
            found: "not mounted".into(),
            advice: advice.map(str::to_owned),
        }
    }

    #[test]
    fn each_finding_is_a_line() {
        let mut out = Vec::new();
        let findings = [
            finding(Level::Ok, None),
            finding(Level::Warn, Some("a")),
            finding(Level::Fail, Some("b")),
        ];
        write_findings(&mut out, &findings).unwrap();
        let text = anstream::adapter::strip_str(std::str::from_utf8(&out).unwrap()).to_string();
        let expected = "\
ok    bpffs: not mounted
warn  bpffs: not mounted — a
FAIL  bpffs: not mounted — b
";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_exit_code_is_that_of_the_worst() {
        for (is_root, levels, code) in [
            (true, vec![Level::Ok], EXIT_FINE),
            (true, vec![Level::Ok, Level::Warn], EXIT_FINE),
            (true, vec![Level::Fail, Level::Warn], EXIT_MISSING),
            (false, vec![Level::Fail], EXIT_PERMISSION),
        ] {
            let findings: Vec<_> = levels
                .into_iter()
                .map(|level| finding(level, None))
                .collect();
            assert_eq!(exit_code(is_root, &findings), code);
        }
    }
}
