//! The command line: what may be typed, and how an error is told.
//!
//! A command is a file: its clap struct, which is its help too, and `run`, which writes to what it is handed.
//! Escape sequences for colours are always written; the writer drops them where nobody would see colours
//! (no terminal, `NO_COLOR`).

mod completions;
mod doctor;
mod lab;
mod respond;
mod run;
mod status;
mod table;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::{Parser, Subcommand};
use imds_user::control::client::ClientError;
use imds_user::lab::LabError;
use imds_user::lab::daemon::DaemonError;
use imds_user::lab::inside::InsideError;
use imds_user::netns::NetNsError;
use imds_user::netns::link::LinkError;
use nix::errno::Errno;

/// Where a daemon keeps its state unless told otherwise.
const STATE_DIR: &str = "/var/lib/imds";

const EXIT_FINE: u8 = 0;
/// Anything that has no code of its own.
const EXIT_OTHER: u8 = 1;
/// `EX_USAGE` of sysexits(3): the command line or the configuration.
const EXIT_USAGE: u8 = 64;
/// `EX_UNAVAILABLE`: something that is needed is missing: a kernel feature, an interface, a daemon.
const EXIT_MISSING: u8 = 69;
/// `EX_NOPERM`.
const EXIT_PERMISSION: u8 = 77;
/// As shells say that a command was found and could not be executed, and that there is none.
const EXIT_NOT_EXECUTABLE: u8 = 126;
const EXIT_NOT_FOUND: u8 = 127;

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
    Lab(lab::Lab),
    Status(status::Status),
    Doctor(doctor::Doctor),
    Completions(completions::Completions),
}

impl Command {
    /// Does it.
    pub(crate) fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        match self {
            Self::Run(run) => run.run(out),
            Self::Respond(respond) => respond.run(out),
            Self::Lab(lab) => lab.run(out),
            Self::Status(status) => status.run(out),
            Self::Doctor(doctor) => doctor.run(out),
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
        .init();
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

/// Tells of an error, in one line, and chooses the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::from(EXIT_FINE);
    }
    let line = line_of(error);
    // With nobody to read it there is nobody to tell.
    writeln!(anstream::stderr(), "{BAD}imds:{BAD:#} {line}").ok();
    ExitCode::from(exit_code(error))
}

fn line_of(error: &anyhow::Error) -> String {
    let text = format!("{error:#}").replace('\n', " ");
    match hint(error) {
        Some(hint) => format!("{text}; {hint}"),
        None => text,
    }
}

/// Every exit code that an error leads to.
fn exit_code(error: &anyhow::Error) -> u8 {
    for cause in error.chain().map(seen_through) {
        if let Some(Refusal { code, .. }) = cause.downcast_ref() {
            return *code;
        }
        if let Some(InsideError::Command { cause, .. }) = cause.downcast_ref() {
            return if cause.kind() == io::ErrorKind::NotFound {
                EXIT_NOT_FOUND
            } else {
                EXIT_NOT_EXECUTABLE
            };
        }
        if is_missing(cause) {
            return EXIT_MISSING;
        }
        if is_refused_permission(cause) {
            return EXIT_PERMISSION;
        }
    }
    EXIT_OTHER
}

/// The error itself, where an enum only passes it on: a transparent variant is no link of the chain.
fn seen_through<'a>(
    cause: &'a (dyn std::error::Error + 'static),
) -> &'a (dyn std::error::Error + 'static) {
    let inner: Option<&'a (dyn std::error::Error + 'static)> = match cause.downcast_ref() {
        Some(LabError::NetNs(inner) | LabError::Link(LinkError::NetNs(inner))) => Some(inner),
        Some(LabError::Daemon(DaemonError::NetNs(inner))) => Some(inner),
        Some(LabError::Link(inner)) => Some(inner),
        Some(LabError::Inside(inner)) => Some(inner),
        _ => None,
    };
    inner.unwrap_or(cause)
}

fn is_missing(cause: &(dyn std::error::Error + 'static)) -> bool {
    matches!(cause.downcast_ref(), Some(ClientError::NoDaemon { .. }))
        || matches!(cause.downcast_ref(), Some(LabError::NotUp { .. }))
        || matches!(cause.downcast_ref(), Some(NetNsError::Missing { .. }))
        || matches!(cause.downcast_ref(), Some(LinkError::Missing { .. }))
}

fn is_refused_permission(cause: &(dyn std::error::Error + 'static)) -> bool {
    let by_io = cause
        .downcast_ref()
        .is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied);
    by_io || matches!(cause.downcast_ref(), Some(Errno::EPERM | Errno::EACCES))
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .root_cause()
        .downcast_ref()
        .is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// What to do about it, where the error itself cannot know.
fn hint(error: &anyhow::Error) -> Option<&'static str> {
    for cause in error.chain().map(seen_through) {
        if let Some(ClientError::NoDaemon { .. }) = cause.downcast_ref() {
            return Some(
                "start one with `imds run --config FILE`, or name its directory with --state-dir",
            );
        }
        if let Some(InsideError::Command { .. }) = cause.downcast_ref() {
            return None;
        }
        if is_refused_permission(cause) {
            return Some("run this as root");
        }
    }
    None
}

/// A command that is not done, said in full by its text.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Refusal {
    code: u8,
    text: String,
}

/// For commands that could only fail half-way without root.
fn require_root(what: &str) -> Result<(), Refusal> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Refusal {
        code: EXIT_PERMISSION,
        text: format!("{what} needs root: run this as root"),
    })
}

/// `--state-dir`, for the commands that talk to a daemon.
#[derive(Debug, clap::Args)]
struct StateDir {
    /// Where the daemon keeps its state
    #[arg(long, value_name = "DIR", default_value = STATE_DIR, value_hint = clap::ValueHint::DirPath)]
    state_dir: PathBuf,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        for command in Cli::command().get_subcommands() {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(help.starts_with("Examples:"), "imds {}", command.get_name());
        }
    }

    #[test]
    fn errors_lead_to_their_exit_codes() {
        let state_dir = PathBuf::from("/nowhere");
        let name: imds_user::lab::LabName = "lab".parse().unwrap();
        let missing = || LinkError::Missing {
            name: "veth-web".into(),
        };
        let command = |kind: io::ErrorKind| InsideError::Command {
            program: "curl".into(),
            cause: kind.into(),
        };
        for (error, code) in [
            (anyhow::anyhow!("something"), EXIT_OTHER),
            (ClientError::NoDaemon { state_dir }.into(), EXIT_MISSING),
            (LabError::NotUp { name }.into(), EXIT_MISSING),
            (missing().into(), EXIT_MISSING),
            (LabError::from(missing()).into(), EXIT_MISSING),
            (
                anyhow::Error::from(missing()).context("prepare port"),
                EXIT_MISSING,
            ),
            (
                NetNsError::Directory(io::ErrorKind::PermissionDenied.into()).into(),
                EXIT_PERMISSION,
            ),
            (
                NetNsError::Directory(io::Error::from_raw_os_error(1)).into(),
                EXIT_PERMISSION,
            ),
            (
                LabError::from(command(io::ErrorKind::NotFound)).into(),
                EXIT_NOT_FOUND,
            ),
            (
                LabError::from(command(io::ErrorKind::PermissionDenied)).into(),
                EXIT_NOT_EXECUTABLE,
            ),
            (
                Refusal {
                    code: EXIT_USAGE,
                    text: String::new(),
                }
                .into(),
                EXIT_USAGE,
            ),
        ] {
            assert_eq!(exit_code(&error), code, "{error:?}");
        }
    }

    #[test]
    fn an_error_is_one_line_that_says_what_to_do() {
        let no_daemon = ClientError::NoDaemon {
            state_dir: "/nowhere".into(),
        };
        let refused = NetNsError::Directory(io::Error::from_raw_os_error(1));
        for (error, expected) in [
            (
                no_daemon.into(),
                "no daemon runs with state directory /nowhere; start one with `imds run --config FILE`, \
                 or name its directory with --state-dir",
            ),
            (
                refused.into(),
                "prepare /run/netns for network namespaces: Operation not permitted (os error 1); run this as root",
            ),
            (anyhow::anyhow!("two\nlines"), "two lines"),
        ] {
            assert_eq!(line_of(&error), expected);
        }
    }

    #[test]
    fn a_reader_that_left_is_no_error() {
        let error =
            anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("print");
        assert!(is_broken_pipe(&error));
    }
}
