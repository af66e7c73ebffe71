//! The command line: what may be typed, and how an error is told.
//!
//! A command is a file: its clap struct, which is its help too, and `run`, which writes to what it is handed.
//! Escape sequences for colours are always written; the writer drops them where nobody would see colours
//! (no terminal, `NO_COLOR`).

mod added;
mod admit;
mod apply;
mod aws_env;
mod check;
mod completions;
mod defaults;
mod doctor;
mod down;
mod event;
mod failure;
mod guest;
mod history;
mod identity;
mod inside;
mod instance;
mod lab;
mod launcher;
mod options;
mod respond;
mod run;
mod status;
mod table;
mod wait;
mod words;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::{Parser, Subcommand};
use failure::{EXIT_FINE, EXIT_MISSING, EXIT_PERMISSION, EXIT_USAGE, require_root};
use tracing_subscriber::{filter::filter_fn, prelude::*};

pub(crate) use failure::report;

/// Where a daemon keeps its state unless told otherwise.
const STATE_DIR: &str = imds_user::state::USUAL_DIR;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default();
const WARNING: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

const EXAMPLES: &str = "\
Examples:
  imds lab up                        try it out, without touching this host's network
  imds doctor                        does this host have what is needed?
  imds run --config /etc/imds.toml   serve this host's guests
  imds status                        what is the daemon doing?
  imds event web spot-interruption   rehearse: tell a Spot Instance that its end is near

Exit codes: 0 fine, 64 wrong command line or configuration, 69 something needed is missing,
77 no permission, 1 anything else.";

/// EC2-style instance metadata for every guest of a Linux host
///
/// Each guest (VM, container, network namespace) that calls 169.254.169.254 is answered with the metadata of
/// the instance that it is.
#[derive(Debug, Parser)]
#[command(name = "imds", version, after_help = EXAMPLES, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What can be typed after `imds`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(run::Run),
    #[command(hide = true)]
    Respond(respond::Respond),
    #[command(hide = true)]
    Guest(guest::Guest),
    Lab(lab::Lab),
    Status(status::Status),
    Instance(instance::Instance),
    Options(options::Options),
    Defaults(defaults::Defaults),
    Event(event::Event),
    Admit(admit::Admit),
    Forget(admit::Forget),
    Wait(wait::Wait),
    Launcher(launcher::Launcher),
    Doctor(doctor::Doctor),
    Down(down::Down),
    Check(check::Check),
    Apply(apply::Apply),
    Export(apply::Export),
    History(history::History),
    AwsEnv(aws_env::AwsEnv),
    Identity(identity::Identity),
    Completions(completions::Completions),
}

impl Command {
    /// Does it.
    pub(crate) fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        match self {
            Self::Run(run) => run.run(out),
            Self::Respond(respond) => respond.run(out),
            Self::Guest(guest) => guest.run(out),
            Self::Lab(lab) => lab.run(out),
            Self::Status(status) => status.run(out),
            Self::Instance(instance) => instance.run(out),
            Self::Options(options) => options.run(out),
            Self::Defaults(defaults) => defaults.run(out),
            Self::Event(event) => event.run(out),
            Self::Admit(admit) => admit.run(out),
            Self::Forget(forget) => forget.run(out),
            Self::Wait(wait) => wait.run(out),
            Self::Launcher(launcher) => launcher.run(out),
            Self::Doctor(doctor) => doctor.run(out),
            Self::Down(down) => down.run(out),
            Self::Check(check) => check.run(out),
            Self::Apply(apply) => apply.run(out),
            Self::Export(export) => export.run(out),
            Self::History(history) => history.run(out),
            Self::AwsEnv(aws_env) => aws_env.run(out),
            Self::Identity(identity) => identity.run(out),
            Self::Completions(completions) => completions.run(out),
        }
    }
}

/// The log of the long-running commands: standard error, for journald or a terminal.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .with_target(false)
        // A log that nobody takes any more is no reason to panic: the responder outlives the reader of the daemon's log.
        .log_internal_errors(false)
        .finish()
        .with(filter_fn(|event| {
            may_be_logged(event.target(), *event.level())
        }))
        .init();
}

/// Whether something may be logged at all, whatever RUST_LOG asks for: below information, the AWS SDK and what it stands
/// on repeat what they send and receive, signatures and tokens included.
fn may_be_logged(target: &str, level: tracing::Level) -> bool {
    const TALKATIVE: &[&str] = &["aws_", "h2", "hyper", "rustls", "tower"];
    let is_talkative = TALKATIVE.iter().any(|start| target.starts_with(start));
    !is_talkative || level <= tracing::Level::INFO
}

/// Understands a command line. Help and version are printed here; so is what is wrong.
pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Command, ExitCode> {
    Cli::try_parse_from(args)
        .map(|cli| cli.command)
        .map_err(|error| {
            // With nobody to read it there is nobody to tell.
            error.print().ok();
            ExitCode::from(if error.use_stderr() {
                EXIT_USAGE
            } else {
                EXIT_FINE
            })
        })
}

/// `--state-dir`, for the commands that talk to a daemon.
#[derive(Debug, clap::Args)]
struct StateDir {
    /// Where the daemon keeps its state
    #[arg(long, global = true, value_name = "DIR", default_value = STATE_DIR, value_hint = clap::ValueHint::DirPath)]
    state_dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_the_aws_sdk_sends_is_never_logged() {
        use tracing::Level;
        for (target, level, expected) in [
            ("imds_user::daemon", Level::TRACE, true),
            ("aws_smithy_runtime::client", Level::TRACE, false),
            ("aws_config::profile", Level::DEBUG, false),
            ("aws_config::profile", Level::INFO, true),
            ("aws_config::profile", Level::ERROR, true),
            ("hyper_util::client::legacy", Level::TRACE, false),
        ] {
            assert_eq!(may_be_logged(target, level), expected, "{target} {level}");
        }
    }

    #[test]
    fn every_command_has_examples() {
        for command in Cli::command()
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
        {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(help.starts_with("Examples:"), "imds {}", command.get_name());
        }
    }
}
