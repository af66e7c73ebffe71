//! A host to try things on: `imds lab`.
//!
//! The host is a network namespace, so the machine's own network is untouched, and so are its guests: `web`
//! and `db` behind routed veth pairs with the same IP address, `legacy` behind a bridge. The daemon in it is the
//! ordinary one. Everything that a lab makes bears its name and is found by it again:
//!
//! | what | where |
//! |---|---|
//! | host | network namespace `imds-NAME` |
//! | guests | network namespaces `imds-NAME-web` … |
//! | configuration, log, state of the daemon | `/run/imds-NAME/` |
//!
//! [`plan`] says what a lab consists of and is pure; [`wire`], [`daemon`] and [`inside`] do it.

pub mod daemon;
pub mod inside;
pub mod plan;
pub mod record;
pub mod wire;

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Serialize;

use crate::instance::UnixSeconds;
use crate::netns::link::LinkError;
use crate::netns::sysctl::SysctlError;
use crate::netns::{NetNs, NetNsError};
use crate::state;
use crate::teardown::{self, DownError};
use daemon::DaemonError;
use plan::Guest;
use record::Record;

/// What a lab is called when nobody says otherwise.
pub const DEFAULT_NAME: &str = "lab";

/// The longest name: the path of a socket in the state directory must fit into 108 bytes, with room.
pub const NAME_BYTES_MAX: usize = 32;

/// The name of a lab: lower-case letters, digits and hyphens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LabName(String);

impl LabName {
    /// The namespace that is the host.
    #[must_use]
    pub fn host_netns(&self) -> String {
        format!("imds-{}", self.0)
    }

    /// The namespace that is a guest.
    #[must_use]
    pub fn guest_netns(&self, guest: Guest) -> String {
        format!("imds-{}-{guest}", self.0)
    }

    /// All of them, the host first.
    #[must_use]
    pub fn all_netns(&self) -> Vec<String> {
        let guests = Guest::ALL.map(|guest| self.guest_netns(guest));
        [self.host_netns()].into_iter().chain(guests).collect()
    }

    /// Everything that a lab keeps in files. `/run` is empty after a boot, as are the namespaces.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        PathBuf::from(format!("/run/imds-{}", self.0))
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.state_dir().join("imds.toml")
    }

    /// What the daemon says.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.state_dir().join("imds.log")
    }
}

impl FromStr for LabName {
    type Err = LabNameError;

    fn from_str(text: &str) -> Result<Self, LabNameError> {
        let is_plain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(is_plain) {
            return Err(LabNameError::Form);
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(LabNameError::Form);
        }
        let looks_like =
            |guest: &Guest| text == guest.name() || text.ends_with(&format!("-{guest}"));
        match Guest::ALL.iter().find(|guest| looks_like(guest)) {
            Some(guest) => Err(LabNameError::LikeGuest { guest: *guest }),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no name for a lab.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum LabNameError {
    /// Characters or length.
    #[error(
        "use 1 to {NAME_BYTES_MAX} lower-case letters, digits and hyphens, with no hyphen at either end"
    )]
    Form,
    /// Its host would have the name of another lab's guest.
    #[error("a name that ends in `{guest}` is kept for guests of that name")]
    LikeGuest {
        /// That guest.
        guest: Guest,
    },
}

/// What [`up`] is doing now, for whoever watches.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Namespaces, interfaces, addresses.
    Wiring,
    /// The configuration file.
    Configuring,
    /// The daemon was started and is not ready yet.
    Starting,
}

/// How [`up`] ended well.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Up {
    /// It was made.
    Made,
    /// It was there, daemon and all, and nothing was touched.
    Already,
}

/// Builds a lab and starts its daemon, `program run`. When anything fails, what was made is removed again.
/// Must be called within a tokio runtime.
///
/// # Errors
/// When half a lab of this name is there, something cannot be made, or the daemon does not become ready.
pub async fn up(
    name: &LabName,
    program: &Path,
    now: UnixSeconds,
    progress: impl FnMut(Step),
) -> Result<Up, LabError> {
    let status = status(name)?;
    if status.is_complete() {
        return Ok(Up::Already);
    }
    if let Some(left) = status.left_over() {
        return Err(LabError::Half {
            name: name.clone(),
            left,
        });
    }
    // Whoever makes the directory owns the name: of two at once, one goes on.
    make_state_dir(name)?;
    let built = tokio::select! {
        built = build(name, program, now, progress) => built,
        () = interruption() => Err(LabError::Interrupted),
    };
    match built {
        Ok(()) => Ok(Up::Made),
        Err(error) => Err(undo(name, error).await),
    }
}

async fn build(
    name: &LabName,
    program: &Path,
    now: UnixSeconds,
    mut progress: impl FnMut(Step),
) -> Result<(), LabError> {
    progress(Step::Wiring);
    wire::build(name).await?;
    progress(Step::Configuring);
    write(&name.config_path(), &plan::config(name, now))?;
    write(&inside::bashrc_path(name), &inside::bashrc(name))?;
    progress(Step::Starting);
    daemon::start(name, program).await?;
    Ok(())
}

async fn undo(name: &LabName, error: LabError) -> LabError {
    match down(name).await {
        Ok(_) => error,
        Err(second) => LabError::Undo {
            name: name.clone(),
            first: Box::new(error),
            cause: Box::new(second),
        },
    }
}

async fn interruption() {
    use tokio::signal::unix::{SignalKind, signal};
    match (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        }
        // Then a signal ends us as it ends any program, and `lab down` removes what is left.
        _ => std::future::pending().await,
    }
}

/// Removes a lab, whole or half; says whether there was anything.
///
/// # Errors
/// When something of it cannot be removed; what comes after was tried nevertheless.
pub async fn down(name: &LabName) -> Result<bool, LabError> {
    let state_dir = name.state_dir();
    let mut first_error = None;
    let mut note = |result: Result<(), LabError>| {
        if let Err(error) = result {
            first_error.get_or_insert(error);
        }
    };
    let record = Record::read(&state_dir);
    let mut was_there = state_dir.exists();
    if let Ok(Some(record)) = &record {
        note(daemon::stop(record).await.map_err(LabError::from));
    }
    note(record.map(drop).map_err(LabError::from));
    let netns: Vec<String> = name
        .all_netns()
        .into_iter()
        .chain(responder_netns(&state_dir))
        .filter(|netns| NetNs::exists(netns))
        .collect();
    was_there |= !netns.is_empty();
    for netns in &netns {
        note(inside::end_processes(netns).await);
    }
    // What outlives a daemon, so that the next goes on with it. Its filters go with the host's namespace.
    note(
        teardown::remove_all_but_filters(&state_dir)
            .await
            .map_err(LabError::from),
    );
    for netns in netns.iter().filter(|netns| NetNs::exists(netns)) {
        note(NetNs::delete(netns).map_err(LabError::from));
    }
    if state_dir.exists() {
        note(remove_state_dir(&state_dir));
    }
    first_error.map_or(Ok(was_there), Err)
}

/// What `imds lab status` shows.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct LabStatus {
    /// The lab's name.
    pub name: String,
    /// Whether anything of it is there.
    pub is_up: bool,
    /// The daemon's process, if it runs.
    pub daemon_pid: Option<u32>,
    /// Whether the daemon serves every port.
    pub is_ready: bool,
    /// Where the daemon keeps its state, for `imds status --state-dir`.
    pub state_dir: PathBuf,
    /// The guests.
    pub guests: Vec<GuestStatus>,
}

impl LabStatus {
    /// Whether nothing is missing.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_up && self.is_ready && self.guests.iter().all(|guest| guest.is_up)
    }

    /// What is there of a lab that is not complete, if anything is.
    fn left_over(&self) -> Option<String> {
        let guest = self.guests.iter().find(|guest| guest.is_up);
        match self.daemon_pid {
            Some(pid) => Some(format!("daemon {pid} is not ready yet")),
            None if self.is_up => Some("its daemon does not run".to_owned()),
            None => guest.map(|guest| format!("network namespace {}", guest.netns)),
        }
    }
}

/// One guest of a lab.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct GuestStatus {
    /// What `lab exec` calls it.
    pub name: Guest,
    /// Its network namespace.
    pub netns: String,
    /// Whether that is there.
    pub is_up: bool,
    /// `i-…`
    pub instance_id: String,
    /// Its IPv4 address.
    pub ipv4: String,
    /// Its IPv6 address.
    pub ipv6: String,
    /// EC2's `HttpTokens`.
    pub http_tokens: &'static str,
}

/// Looks at a lab.
///
/// # Errors
/// When its state cannot be read.
pub fn status(name: &LabName) -> Result<LabStatus, LabError> {
    let record = Record::read(&name.state_dir())?.unwrap_or_default();
    let daemon = record.daemon.filter(record::Process::is_alive);
    let guests = Guest::ALL.map(|guest| GuestStatus {
        name: guest,
        netns: name.guest_netns(guest),
        is_up: NetNs::exists(&name.guest_netns(guest)),
        instance_id: plan::instance_id(name, guest),
        ipv4: guest.ipv4().to_string(),
        ipv6: guest.ipv6().to_string(),
        http_tokens: guest.http_tokens(),
    });
    Ok(LabStatus {
        name: name.to_string(),
        is_up: NetNs::exists(&name.host_netns()),
        daemon_pid: daemon.map(|process| process.pid),
        is_ready: record.is_ready && daemon.is_some(),
        state_dir: name.state_dir(),
        guests: guests.into(),
    })
}

/// What a daemon that was killed could not remove.
fn responder_netns(state_dir: &Path) -> Option<String> {
    let path = state_dir.canonicalize().ok()?;
    Some(state::namespace_name_in(&path))
}

fn make_state_dir(name: &LabName) -> Result<(), LabError> {
    let path = name.state_dir();
    match DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(LabError::Half {
            name: name.clone(),
            left: format!("directory {}", path.display()),
        }),
        Err(cause) => Err(LabError::File {
            action: "create",
            path,
            cause,
        }),
    }
}

fn remove_state_dir(state_dir: &Path) -> Result<(), LabError> {
    unmount_below(state_dir)?;
    fs::remove_dir_all(state_dir).map_err(|cause| LabError::File {
        action: "remove",
        path: state_dir.to_owned(),
        cause,
    })
}

/// What a daemon that was killed left mounted in its state directory.
fn unmount_below(state_dir: &Path) -> Result<(), LabError> {
    let error = |cause| LabError::File {
        action: "unmount what is in",
        path: state_dir.to_owned(),
        cause,
    };
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(error)?;
    // The kernel lists mounts in their order; the last is on top.
    for target in mounts
        .lines()
        .rev()
        .filter_map(|line| line.split(' ').nth(1))
    {
        if Path::new(target).starts_with(state_dir) {
            nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH)
                .map_err(|errno| error(errno.into()))?;
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), LabError> {
    fs::write(path, text).map_err(|cause| LabError::File {
        action: "write",
        path: path.to_owned(),
        cause,
    })
}

/// What can go wrong with a lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Something of this name is there, but no whole lab.
    #[error("lab `{name}` is there by halves ({left}): remove it with `imds lab down{}`", name.option())]
    Half {
        /// The lab's name.
        name: LabName,
        /// What was found.
        left: String,
    },
    /// There is no such lab to go into.
    #[error("lab `{name}` is not up: start it with `imds lab up{}`", name.option())]
    NotUp {
        /// The lab's name.
        name: LabName,
    },
    /// A signal came while it was built.
    #[error("interrupted; what was made is removed again")]
    Interrupted,
    /// Building failed, and so did removing what was made.
    #[error("{first}; and removing what was made failed, see `imds lab status{}`", name.option())]
    Undo {
        /// The lab's name.
        name: LabName,
        /// Why it was to be removed.
        first: Box<LabError>,
        /// Why it could not be.
        #[source]
        cause: Box<LabError>,
    },
    /// A file or directory.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// A namespace.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// An interface, address or route.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A kernel setting.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The daemon.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The lab's own notes.
    #[error(transparent)]
    Record(#[from] record::RecordError),
    /// A command for a guest.
    #[error(transparent)]
    Inside(#[from] inside::InsideError),
    /// What the daemon has left in the kernel.
    #[error(transparent)]
    Down(#[from] DownError),
}

impl LabName {
    /// What a command line needs after `imds lab …` to mean this lab.
    #[must_use]
    pub fn option(&self) -> String {
        if self.0 == DEFAULT_NAME {
            String::new()
        } else {
            format!(" --name {}", self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_labs() {
        let longest = "x".repeat(NAME_BYTES_MAX);
        let too_long = "x".repeat(NAME_BYTES_MAX + 1);
        let like = |guest| Err(LabNameError::LikeGuest { guest });
        for (text, expected) in [
            ("lab", Ok(())),
            ("test-17", Ok(())),
            ("7", Ok(())),
            ("cobweb", Ok(())),
            (&longest, Ok(())),
            (&too_long, Err(LabNameError::Form)),
            ("", Err(LabNameError::Form)),
            ("-lab", Err(LabNameError::Form)),
            ("lab-", Err(LabNameError::Form)),
            ("Lab", Err(LabNameError::Form)),
            ("a/b", Err(LabNameError::Form)),
            ("a b", Err(LabNameError::Form)),
            ("..", Err(LabNameError::Form)),
            ("lab-web", like(Guest::Web)),
            ("legacy", like(Guest::Legacy)),
        ] {
            assert_eq!(text.parse::<LabName>().map(drop), expected, "{text:?}");
        }
    }

    #[test]
    fn everything_bears_the_name() {
        let name: LabName = "test-17".parse().unwrap();
        let netns = [
            "imds-test-17",
            "imds-test-17-web",
            "imds-test-17-db",
            "imds-test-17-legacy",
        ];
        assert_eq!(name.all_netns(), netns);
        assert_eq!(name.state_dir(), Path::new("/run/imds-test-17"));
        assert_eq!(name.option(), " --name test-17");
        assert_eq!(DEFAULT_NAME.parse::<LabName>().unwrap().option(), "");
    }

    /// Whether the lab could not come up, and for which reason.
    fn check_nothing_stays(name: &str, program: &str, expected: &str) {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: a lab needs root");
            return;
        }
        let name: LabName = format!("{name}-{}", std::process::id()).parse().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let mut steps = Vec::new();
        let up = up(&name, Path::new(program), UnixSeconds(0), |step| {
            steps.push(step);
        });
        let error = runtime.block_on(up).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(steps, [Step::Wiring, Step::Configuring, Step::Starting]);
        for netns in name.all_netns() {
            assert!(!NetNs::exists(&netns), "{netns} is left");
        }
        assert!(!name.state_dir().exists(), "the state directory is left");
        assert!(
            !runtime.block_on(down(&name)).unwrap(),
            "down finds something"
        );
    }

    #[test]
    fn nothing_stays_when_the_daemon_ends_at_once() {
        let expected = "the daemon ended before it was ready (exit status: 1); it said: nothing";
        check_nothing_stays("ends", "/bin/false", expected);
    }

    #[test]
    fn nothing_stays_when_there_is_no_daemon_to_start() {
        check_nothing_stays("none", "/nonexistent/imds", "start /nonexistent/imds");
    }
}
