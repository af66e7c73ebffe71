//! Configuration: what was typed, and what is true.
//!
//! [`FileConfig`](file::FileConfig) mirrors the TOML file and touches nothing. [`resolve`](resolve::resolve) checks it
//! and makes up what was not given, always the same for the same installation and port. The rest of the service sees
//! [`Settings`] alone. `docs/configuration.md` describes every key.

pub mod disk;
pub mod facet;
pub mod file;
pub mod ground;
pub mod host_access;
mod made_up;
pub mod mould;
pub mod nearest;
pub mod pairs;
pub mod pattern;
pub mod port_by;
pub mod resolve;
pub mod rest;

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use facet::{Facet, Said};
pub use ground::Ground;
pub use host_access::{CgroupPath, HostAccess};
pub use pattern::Pattern;
pub use port_by::{Origin, PortBy};
pub use rest::Rest;

use crate::credentials::CredentialSource;
use crate::instance::{Host, Instance, Limits, UnixSeconds};

/// Largest configuration file in bytes: 65,536 instances with a kilobyte each.
const FILE_BYTES_MAX: usize = 64 << 20;

/// What is to be served, checked and complete.
#[derive(Debug)]
pub struct Settings {
    /// What all instances share.
    pub host: Host,
    /// Where the host's own metadata service is kept from guests.
    pub guard: Guard,
    /// Which processes of the host may reach the host's own metadata service.
    pub host_access: HostAccess,
    /// The guests, in the order of the file.
    pub guests: Vec<Guest>,
    /// Who else may turn up.
    pub discovery: Discovery,
}

/// Which guests may turn up that the file does not name.
#[derive(Debug)]
pub struct Discovery {
    /// Interfaces that are guests': closed until it is known whose.
    pub ports: Vec<Pattern>,
    /// The socket of a Docker daemon whose containers say by their labels what they are.
    pub docker: Option<PathBuf>,
    /// What instances that turn up are made with.
    pub mould: mould::Mould,
}

/// On which interfaces packets that the host forwards to the metadata addresses are dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Guard {
    /// On every interface by which the host itself would reach them, as routes come and go.
    #[default]
    Found,
    /// On these.
    Named(Vec<PortName>),
    /// On none: the operator sees to it.
    Off,
}

/// One guest: a port and the instance behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// What commands call it.
    pub name: Box<str>,
    /// The interface of the host by which its packets come in.
    pub port: PortBy,
    /// From where it is known.
    pub origin: Origin,
    /// What it may take of the service.
    pub limits: Limits,
    /// Where the credentials of its role come from, if from elsewhere: they are not in the instance then.
    pub credential_source: Option<CredentialSource>,
    /// What it is to the service.
    pub instance: Instance,
    /// What is said of it where it is written, of what others may change too.
    pub said: Said,
}

/// What is made once, at the first start, and what everything made up follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    /// Random.
    pub seed: [u8; 16],
    /// When it was made: the launch time of instances that do not say theirs.
    pub created: UnixSeconds,
}

/// Name of a network interface, as Linux allows them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "Box<str>")]
pub struct PortName(Box<str>);

/// A text that is no name of a network interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not the name of a network interface: they have 1 to {max} bytes, no space, `/` or `:`",
    max = PortName::BYTES_MAX
)]
pub struct PortNameError(String);

impl PortName {
    /// Longest name in bytes: `IFNAMSIZ` without the terminating zero (`linux/if.h`).
    pub const BYTES_MAX: usize = 15;

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PortName {
    type Err = PortNameError;

    /// What `dev_valid_name` of the kernel admits (`net/core/dev.c`), and no control characters.
    fn from_str(text: &str) -> Result<Self, PortNameError> {
        let is_bad = |c: char| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control();
        let has_bad_length = text.is_empty() || text.len() > Self::BYTES_MAX;
        if has_bad_length || matches!(text, "." | "..") || text.contains(is_bad) {
            return Err(PortNameError(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for PortName {
    type Error = PortNameError;

    fn try_from(text: String) -> Result<Self, PortNameError> {
        text.parse()
    }
}

impl From<PortName> for Box<str> {
    fn from(name: PortName) -> Self {
        name.0
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Where configuration is read from. Tests pass a map.
pub trait Files {
    /// At most the first `bytes_max` bytes of a file.
    ///
    /// # Errors
    /// It cannot be read.
    fn read(&self, path: &Path, bytes_max: usize) -> io::Result<Vec<u8>>;
}

/// Why a configuration is refused: one line that says where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file itself cannot be read.
    #[error("{}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Something in it is wrong.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong, and what would be right.
        message: String,
    },
}

/// Reads, checks and completes a configuration file. Nothing else is touched.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn load(
    path: &Path,
    installation: &Installation,
    files: &dyn Files,
) -> Result<Settings, ConfigError> {
    read(path, installation, files).map(|(settings, _)| settings)
}

/// As [`load`], and with what it says besides instances.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn load_with_rest(
    path: &Path,
    installation: &Installation,
    files: &dyn Files,
) -> Result<(Settings, Rest), ConfigError> {
    let (settings, text) = read(path, installation, files)?;
    let rest = Rest::of(&text, &settings, directory_of(path));
    Ok((settings, rest))
}

fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// What a file makes true, and its text.
fn read(
    path: &Path,
    installation: &Installation,
    files: &dyn Files,
) -> Result<(Settings, Zeroizing<String>), ConfigError> {
    let unreadable = |reason: String| ConfigError::Unreadable {
        path: path.to_owned(),
        reason,
    };
    let bytes = files
        .read(path, FILE_BYTES_MAX + 1)
        .map_err(|cause| unreadable(cause.to_string()))?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(unreadable(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    // It may hold credentials. What the parser copied of them is wiped with the entry of the role.
    let text = String::from_utf8(bytes)
        .map(Zeroizing::new)
        .map_err(|_| unreadable("not UTF-8".to_owned()))?;
    let settings = file::parse(&text)
        .and_then(|file| resolve::resolve(&file, installation, directory_of(path), files))
        .map_err(|problem| problem.located(path, &text))?;
    Ok((settings, text))
}

/// Something wrong, and where in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Bytes of the text that it is about.
    pub span: Range<usize>,
    /// One line.
    pub message: String,
}

impl Problem {
    /// With line, column, and the key whose value it is about.
    fn located(self, path: &Path, text: &str) -> ConfigError {
        let before = text.get(..self.span.start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let message = match key_before(&before[line_start..]) {
            Some(key) => format!("{key}: {}", self.message),
            None => self.message,
        };
        ConfigError::Wrong {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message,
        }
    }
}

/// The key whose value begins where `line` ends, or in whose list on this line it stands.
fn key_before(line: &str) -> Option<&str> {
    let (before, _) = line.rsplit_once('=')?;
    let before = before.trim_end();
    let is_outside = |c: char| c.is_whitespace() || matches!(c, '{' | ',' | '[');
    let start = before.rfind(is_outside).map_or(0, |at| at + 1);
    Some(&before[start..]).filter(|key| !key.is_empty())
}
