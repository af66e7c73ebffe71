//! A long chaos run: `cargo xtask chaos` builds and starts this. Everything happens in network namespaces of its own.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that tells what it does"
)]

mod options;

use std::fs;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use imds_tests::Random;
use imds_tests::chaos::{self, GUESTS_MAX, GUESTS_MIN, Plan};
use libc::c_int;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use options::Options;

const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Disturb the service in every way while guests ask; `cargo xtask chaos` builds and starts this
#[derive(Debug, Parser)]
#[command(name = "imds-chaos", after_help = options::EXAMPLES)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

static IS_INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let Options {
        minutes,
        guests,
        seed,
        json,
    } = Cli::parse().options;
    if let Err(error) = end_early_when_told() {
        eprintln!("error: handle signals: {error}");
        return ExitCode::FAILURE;
    }
    let plan = Plan {
        seed: seed.unwrap_or_else(|| Random::by_time().seed()),
        guests: (guests as usize).clamp(GUESTS_MIN, GUESTS_MAX),
        time: Duration::from_secs(u64::from(minutes) * 60),
        progress_every: PROGRESS_EVERY,
    };
    println!(
        "{} guests for {minutes} min; to have the same again: --seed {}",
        plan.guests, plan.seed
    );
    let report = chaos::run(&plan, &IS_INTERRUPTED, |line| println!("{line}"));
    let Some(report) = report else {
        return ExitCode::FAILURE;
    };
    println!("\n{report}");
    if let Some(path) = json
        && let Err(error) = fs::write(&path, format!("{:#}\n", report.to_json()))
    {
        eprintln!("error: write {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    match report.violations() {
        [] => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

extern "C" fn note(_signal: c_int) {
    IS_INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Has Ctrl-C and a supervisor's SIGTERM end the run early instead of the process.
#[expect(unsafe_code, reason = "a signal handler is set")]
fn end_early_when_told() -> nix::Result<()> {
    let action = SigAction::new(
        SigHandler::Handler(note),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler does nothing but store into an atomic, which a signal handler may.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}
