//! How an error is told, and with which exit code.
//!
//! The one place where an error becomes a line for people and a number for scripts.

use std::io::{self, Write};
use std::process::ExitCode;

use imds_user::config::ConfigError;
use imds_user::control::client::ClientError;
use imds_user::daemon::DaemonError;
use imds_user::dataplane::DataPlaneError;
use imds_user::identity::disk::IdentityError;
use imds_user::lab::LabError;
use imds_user::lab::daemon::DaemonError as StartError;
use imds_user::lab::inside::InsideError;
use imds_user::launch::LaunchError;
use imds_user::launch::client::OrderError;
use imds_user::launch::inside::InsideError as InGuestError;
use imds_user::netns::NetNsError;
use imds_user::netns::link::LinkError;
use imds_user::netns::sysctl::SysctlError;
use imds_user::state::StateError;
use imds_user::store::StoreError;
use nix::errno::Errno;

use super::BAD;

pub(super) const EXIT_FINE: u8 = 0;
/// Anything that has no code of its own.
pub(super) const EXIT_OTHER: u8 = 1;
/// `EX_USAGE` of sysexits(3): the command line or the configuration.
pub(super) const EXIT_USAGE: u8 = 64;
/// `EX_UNAVAILABLE`: something that is needed is missing: a kernel feature, an interface, a daemon.
pub(super) const EXIT_MISSING: u8 = 69;
/// `EX_NOPERM`.
pub(super) const EXIT_PERMISSION: u8 = 77;
/// As shells say that a command was found and could not be executed, and that there is none.
pub(super) const EXIT_NOT_EXECUTABLE: u8 = 126;
pub(super) const EXIT_NOT_FOUND: u8 = 127;

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
    error
        .chain()
        .map(seen_through)
        .find_map(|cause| {
            of_the_command_line(cause)
                .or_else(|| of_the_daemon(cause))
                .or_else(|| of_the_lab(cause))
                .or_else(|| of_a_guest(cause))
                .or_else(|| of_the_system(cause))
        })
        .unwrap_or(EXIT_OTHER)
}

/// An error as [`anyhow::Error::chain`] hands it out.
type Cause<'a> = &'a (dyn std::error::Error + 'static);

/// The error itself, where an enum only passes it on: a transparent variant is no link of the chain.
fn seen_through(cause: Cause<'_>) -> Cause<'_> {
    let of_lab = cause
        .downcast_ref()
        .and_then(|error: &LabError| match error {
            LabError::NetNs(inner) => Some(inner as Cause<'_>),
            LabError::Link(inner) => Some(inner),
            LabError::Sysctl(inner) => Some(inner),
            LabError::Daemon(inner) => Some(inner),
            LabError::Record(inner) => Some(inner),
            LabError::Inside(inner) => Some(inner),
            LabError::Down(inner) => Some(inner),
            LabError::Half { .. }
            | LabError::NotUp { .. }
            | LabError::Interrupted
            | LabError::Undo { .. }
            | LabError::File { .. } => None,
        });
    let of_daemon = cause
        .downcast_ref()
        .and_then(|error: &DaemonError| match error {
            DaemonError::Links(inner) => Some(inner as Cause<'_>),
            DaemonError::Namespace(inner) => Some(inner),
            _ => None,
        });
    let of_identity = cause.downcast_ref().and_then(|error| match error {
        IdentityError::State(inner) => Some(inner as Cause<'_>),
        IdentityError::Damaged { .. } => None,
    });
    let of_launch = cause.downcast_ref().and_then(|error| match error {
        LaunchError::Inside(inner) => Some(inner as Cause<'_>),
        LaunchError::Record(inner) => Some(inner),
        LaunchError::Cgroup(inner) => Some(inner),
        LaunchError::Console(inner) => Some(inner),
        _ => None,
    });
    let cause = of_lab
        .or(of_daemon)
        .or(of_identity)
        .or(of_launch)
        .unwrap_or(cause);
    match (cause.downcast_ref(), cause.downcast_ref()) {
        (Some(LinkError::NetNs(inner)), _) => inner,
        (_, Some(SysctlError::NetNs(inner))) => inner,
        _ => cause,
    }
}

fn of_the_command_line(cause: Cause<'_>) -> Option<u8> {
    if let Some(Refusal { code, .. }) = cause.downcast_ref() {
        return Some(*code);
    }
    if cause.is::<ConfigError>() {
        return Some(EXIT_USAGE);
    }
    match cause.downcast_ref()? {
        ClientError::NoDaemon { .. } => Some(EXIT_MISSING),
        ClientError::Unfit { .. } => Some(EXIT_USAGE),
        _ => None,
    }
}

fn of_the_daemon(cause: Cause<'_>) -> Option<u8> {
    match cause.downcast_ref()? {
        DaemonError::NotRoot => Some(EXIT_PERMISSION),
        DaemonError::Config(_) => Some(EXIT_USAGE),
        DaemonError::NoBtf
        | DaemonError::NoInterface { .. }
        | DaemonError::NotAPort { .. }
        | DaemonError::Cgroups(_) => Some(EXIT_MISSING),
        DaemonError::DataPlane(
            DataPlaneError::Load(_)
            | DataPlaneError::Program { .. }
            | DataPlaneError::Attach { .. }
            | DataPlaneError::Cgroup { .. },
        ) => Some(EXIT_MISSING),
        _ => None,
    }
}

fn of_the_lab(cause: Cause<'_>) -> Option<u8> {
    if let Some(LabError::NotUp { .. }) = cause.downcast_ref() {
        return Some(EXIT_MISSING);
    }
    if let Some(InsideError::Command { cause, .. }) = cause.downcast_ref() {
        return Some(of_a_command(cause));
    }
    // The daemon is this program too, so its exit code means the same.
    match cause.downcast_ref()? {
        StartError::Ended { status, .. } => u8::try_from(status.code()?)
            .ok()
            .filter(|code| *code != EXIT_FINE),
        _ => None,
    }
}

fn of_a_guest(cause: Cause<'_>) -> Option<u8> {
    if let Some(InGuestError::Command { cause, .. }) = cause.downcast_ref() {
        return Some(of_a_command(cause));
    }
    if let Some(OrderError::NoLauncher { .. }) = cause.downcast_ref() {
        return Some(EXIT_MISSING);
    }
    match cause.downcast_ref()? {
        LaunchError::Stopped(_) | LaunchError::Absent(_) => Some(EXIT_MISSING),
        _ => None,
    }
}

fn of_a_command(cause: &io::Error) -> u8 {
    if cause.kind() == io::ErrorKind::NotFound {
        EXIT_NOT_FOUND
    } else {
        EXIT_NOT_EXECUTABLE
    }
}

fn of_the_system(cause: Cause<'_>) -> Option<u8> {
    let is_missing = matches!(cause.downcast_ref(), Some(NetNsError::Missing { .. }))
        || matches!(cause.downcast_ref(), Some(LinkError::Missing { .. }));
    if is_missing {
        return Some(EXIT_MISSING);
    }
    is_refused_permission(cause).then_some(EXIT_PERMISSION)
}

fn is_refused_permission(cause: Cause<'_>) -> bool {
    let by_io = cause
        .downcast_ref()
        .is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied);
    let by_state = matches!(
        cause.downcast_ref(),
        Some(StateError::Io { cause, .. }) if cause.kind() == io::ErrorKind::PermissionDenied
    );
    let by_store = matches!(
        cause.downcast_ref(),
        Some(StoreError::Io { cause, .. }) if cause.kind() == io::ErrorKind::PermissionDenied
    );
    by_io
        || by_state
        || by_store
        || matches!(cause.downcast_ref(), Some(Errno::EPERM | Errno::EACCES))
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
            return Some("start one with `imds run`, or name its directory with --state-dir");
        }
        let is_of_a_command = matches!(cause.downcast_ref(), Some(InsideError::Command { .. }))
            || matches!(cause.downcast_ref(), Some(InGuestError::Command { .. }));
        if is_of_a_command {
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
pub(super) struct Refusal {
    pub(super) code: u8,
    pub(super) text: String,
}

/// For commands that could only fail half-way without root.
pub(super) fn require_root(what: &str) -> Result<(), Refusal> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Refusal {
        code: EXIT_PERMISSION,
        text: format!("{what} needs root: run this as root"),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use imds_user::cgroups::CgroupsError;

    use super::*;

    #[test]
    fn errors_lead_to_their_exit_codes() {
        let state_dir = std::path::PathBuf::from("/nowhere");
        let name: imds_user::lab::LabName = "lab".parse().unwrap();
        let missing = || LinkError::Missing {
            name: "veth-web".into(),
        };
        let command = |kind: io::ErrorKind| InsideError::Command {
            program: "curl".into(),
            cause: kind.into(),
        };
        let unreadable = || StateError::Io {
            what: "read",
            path: "/var/lib/imds/identity/rsa2048.key".into(),
            cause: io::ErrorKind::PermissionDenied.into(),
        };
        let no_interface = || DaemonError::NoInterface {
            port: "veth-web".into(),
            instance: "web".into(),
        };
        let unfit = || ClientError::Unfit {
            refused: "no instance is called `wbe`".into(),
        };
        // A wait status has the exit code in its second byte.
        let ended = |code: i32| StartError::Ended {
            status: ExitStatus::from_raw(code << 8),
            log: String::new(),
        };
        for (error, code) in [
            (anyhow::anyhow!("something"), EXIT_OTHER),
            (ClientError::NoDaemon { state_dir }.into(), EXIT_MISSING),
            (unfit().into(), EXIT_USAGE),
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
                LaunchError::from(InGuestError::Command {
                    program: "curl".into(),
                    cause: io::ErrorKind::NotFound.into(),
                })
                .into(),
                EXIT_NOT_FOUND,
            ),
            (
                LaunchError::Stopped("i-0123456789abcdef0".parse().unwrap()).into(),
                EXIT_MISSING,
            ),
            (
                LabError::from(command(io::ErrorKind::NotFound)).into(),
                EXIT_NOT_FOUND,
            ),
            (
                LabError::from(command(io::ErrorKind::PermissionDenied)).into(),
                EXIT_NOT_EXECUTABLE,
            ),
            (DaemonError::NotRoot.into(), EXIT_PERMISSION),
            (unreadable().into(), EXIT_PERMISSION),
            (IdentityError::from(unreadable()).into(), EXIT_PERMISSION),
            (no_interface().into(), EXIT_MISSING),
            (
                DaemonError::Cgroups(CgroupsError::NotMounted).into(),
                EXIT_MISSING,
            ),
            (DaemonError::Links(missing()).into(), EXIT_MISSING),
            (
                DaemonError::DataPlane(DataPlaneError::Missing("map")).into(),
                EXIT_OTHER,
            ),
            (ended(64).into(), EXIT_USAGE),
            (LabError::from(ended(69)).into(), EXIT_MISSING),
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
                "no daemon runs with state directory /nowhere; start one with `imds run`, \
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
