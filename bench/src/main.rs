//! What the service costs, measured on this machine against what it could cost at best: `cargo xtask bench`.
//!
//! Everything runs in network namespaces of its own, made with the harness of the integration tests; the machine's own
//! network is not touched, and nothing is left behind.

mod control_api;
mod cpu;
mod foreign;
mod growth;
mod kernel;
mod load;
mod options;
mod plain;
mod requests;
mod results;
mod statistics;

use std::{
    fmt::Display,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Parser;

use cpu::Cpus;
use options::{Figure, Options};
use plain::FixedAnswer;
use results::{Machine, Results, Row};

/// Measure requests, foreign packets, memory, start and the control API; `cargo xtask bench` builds and starts this
#[derive(Debug, Parser)]
#[command(name = "imds-bench", args_conflicts_with_subcommands = true, after_help = options::EXAMPLES)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, clap::Subcommand)]
enum Part {
    /// The plain server of figure b, started by the bench
    #[command(hide = true)]
    PlainServer {
        #[arg(long)]
        cpu: usize,
        #[arg(long)]
        body_bytes: usize,
        #[arg(long = "field")]
        fields: Vec<String>,
    },
}

fn main() -> ExitCode {
    let Cli { options, part } = Cli::parse();
    let outcome = match part {
        Some(Part::PlainServer {
            cpu,
            body_bytes,
            fields,
        }) => plain::serve(cpu, &FixedAnswer { fields, body_bytes }).map(|()| ExitCode::SUCCESS),
        None => measure(&options),
    };
    outcome.unwrap_or_else(|cause| {
        tell(format_args!("error: {cause:#}"));
        ExitCode::FAILURE
    })
}

/// How much is measured.
struct Extent {
    requests: requests::Extent,
    foreign: foreign::Extent,
    growth: growth::Extent,
    control_api: control_api::Extent,
}

const FULL: Extent = Extent {
    requests: requests::Extent {
        // Many short turns: what disturbs the machine lasts longer than one and so meets all contestants.
        rounds: 51,
        turn: Duration::from_millis(150),
    },
    foreign: foreign::Extent {
        runs: 9,
        repeats: 1_000_000,
    },
    growth: growth::Extent {
        counts: [1, 100, 10_000],
        starts: 3,
    },
    control_api: control_api::Extent {
        count: 10_000,
        page: 1000,
        calls: 51,
        starts: 3,
    },
};

const QUICK: Extent = Extent {
    requests: requests::Extent {
        rounds: 3,
        turn: Duration::from_millis(60),
    },
    foreign: foreign::Extent {
        runs: 3,
        repeats: 10_000,
    },
    growth: growth::Extent {
        counts: [1, 20, 200],
        starts: 1,
    },
    control_api: control_api::Extent {
        count: 100,
        page: 20,
        calls: 5,
        starts: 1,
    },
};

fn measure(options: &Options) -> anyhow::Result<ExitCode> {
    let mut extent = if options.quick { QUICK } else { FULL };
    if let Some(rounds) = options.rounds {
        extent.requests.rounds = rounds;
    }
    let cpus = Cpus::choose()?;
    let mut results = Results {
        machine: machine(&cpus)?,
        rows: rows(options, &extent, &cpus)?,
    };
    if let Some(nonsense) = results.rows.iter().find_map(Row::nonsense) {
        bail!("this cannot be: {nonsense}");
    }
    if options.quick {
        results = results.without_verdicts();
    }
    let json = json_path(options);
    write_json(&json, &results)?;
    tell(format_args!(
        "\n{}\nThe same as JSON: {}",
        results.table(),
        json.display()
    ));
    if results.has_failed() {
        tell("FAILED: the whole path is slower than the bench lets pass");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn rows(options: &Options, extent: &Extent, cpus: &Cpus) -> anyhow::Result<Vec<Row>> {
    let wanted = |figure: &Figure| options.only.is_empty() || options.only.contains(figure);
    let requests: Vec<Figure> = [Figure::A, Figure::B].into_iter().filter(wanted).collect();
    let mut rows = Vec::new();
    if !requests.is_empty() {
        let words = options.case.as_deref().unwrap_or_default();
        rows.extend(requests::measure(&requests, words, extent.requests, cpus)?);
    }
    if wanted(&Figure::C) {
        rows.extend(foreign::measure(extent.foreign, cpus)?);
    }
    // Last, because the kernel takes a while to remove ten thousand interfaces.
    if wanted(&Figure::D) {
        rows.extend(growth::measure(extent.growth)?);
    }
    if wanted(&Figure::E) {
        rows.extend(control_api::measure(extent.control_api)?);
    }
    Ok(rows)
}

fn machine(cpus: &Cpus) -> anyhow::Result<Machine> {
    let kernel =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("ask for the kernel's release")?;
    // Without the builder's own suffix.
    let kernel = kernel
        .trim()
        .split('-')
        .next()
        .unwrap_or_default()
        .to_owned();
    Ok(Machine {
        commit: commit().unwrap_or_else(|| "unknown".to_owned()),
        kernel,
        cpus: cpus.count,
        build: if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        },
        limits: "off (packets-per-second, requests-per-second, connections-per-second = 0)",
    })
}

fn checkout() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// What is measured, if git knows.
fn commit() -> Option<String> {
    let output = Command::new("git")
        .args([
            "describe",
            "--always",
            "--abbrev=9",
            "--exclude=*",
            "--dirty=+",
        ])
        .current_dir(checkout())
        .output()
        .ok()?;
    let commit = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !commit.is_empty()).then_some(commit)
}

fn json_path(options: &Options) -> PathBuf {
    let name = if options.quick {
        "bench-quick.json"
    } else {
        "bench.json"
    };
    let usual = || checkout().join("target").join(name);
    options.json.clone().unwrap_or_else(usual)
}

fn write_json(path: &Path, results: &Results) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(results).context("write the figures as JSON")?;
    fs::write(path, json + "\n").with_context(|| format!("write {}", path.display()))
}

/// A line for whoever waits.
fn tell(line: impl Display) {
    let mut stdout = std::io::stdout().lock();
    // Whoever stops reading does not stop the run.
    writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .ok();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn figures_are_chosen_by_letter() {
        let only = |words: &[&str]| {
            let words = ["imds-bench"].iter().chain(words);
            Cli::try_parse_from(words).map(|cli| cli.options.only).ok()
        };
        assert_eq!(only(&[]), Some(vec![]));
        assert_eq!(only(&["--only", "a,c"]), Some(vec![Figure::A, Figure::C]));
        assert_eq!(only(&["--only", "d", "--quick"]), Some(vec![Figure::D]));
        assert_eq!(only(&["--only", "e"]), Some(vec![Figure::E]));
        assert_eq!(only(&["--only", "f"]), None);
        assert_eq!(only(&["--rounds", "2"]), None);
    }

    #[test]
    fn a_quick_run_leaves_the_figures_of_a_full_one_alone() {
        let path = |words: &[&str]| {
            let words = ["imds-bench"].iter().chain(words);
            let cli = Cli::try_parse_from(words).expect("good arguments");
            json_path(&cli.options)
        };
        assert_eq!(path(&[]), checkout().join("target/bench.json"));
        assert_eq!(
            path(&["--quick"]),
            checkout().join("target/bench-quick.json")
        );
        assert_eq!(path(&["--json", "/tmp/x.json"]), Path::new("/tmp/x.json"));
    }
}
