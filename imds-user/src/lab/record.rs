//! What a lab notes down about itself, `lab.json` in its state directory: so far, which process its daemon is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The notes.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Record {
    /// The daemon, once started.
    pub daemon: Option<Process>,
    /// Whether it has said that it serves every port.
    pub is_ready: bool,
}

/// A process, told from a later one of the same number by when it started.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Clock ticks between the machine's boot and its start: field 22 of `/proc/PID/stat`, proc_pid_stat(5).
    pub start_ticks: u64,
}

impl Record {
    /// Reads the notes; `None` if there are none.
    ///
    /// # Errors
    /// When they are there and cannot be read or understood.
    pub fn read(state_dir: &Path) -> Result<Option<Self>, RecordError> {
        let path = path_in(state_dir);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(RecordError { path, cause }),
        };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| RecordError {
                path,
                cause: error.into(),
            })
    }

    /// Writes the notes, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, state_dir: &Path) -> Result<(), RecordError> {
        let path = path_in(state_dir);
        let new = path.with_extension("new");
        let write = || {
            fs::write(&new, serde_json::to_string(self)?)?;
            fs::rename(&new, &path)
        };
        write().map_err(|cause| RecordError {
            path: path.clone(),
            cause,
        })
    }
}

impl Process {
    /// The process that has this number now.
    #[must_use]
    pub fn now(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self {
            pid,
            start_ticks: Stat::parse(&stat)?.start_ticks,
        })
    }

    /// Whether it still runs; one that ended and was not waited for does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok();
        let stat = stat.as_deref().and_then(Stat::parse);
        stat.is_some_and(|stat| stat.start_ticks == self.start_ticks && !stat.is_over)
    }
}

/// What is used of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stat {
    is_over: bool,
    start_ticks: u64,
}

impl Stat {
    /// The second field is the command's name in parentheses, which may hold anything, parentheses too.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        let state = fields.next()?;
        // The state is field 3, the start time field 22.
        let start_ticks = fields.nth(18)?.parse().ok()?;
        Some(Self {
            is_over: matches!(state, "Z" | "X"),
            start_ticks,
        })
    }
}

/// The notes could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("the lab's notes in {}", path.display())]
pub struct RecordError {
    path: PathBuf,
    #[source]
    cause: io::Error,
}

fn path_in(state_dir: &Path) -> PathBuf {
    state_dir.join("lab.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: &str = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18";

    #[test]
    fn the_start_time_is_found_whatever_the_command_is_called() {
        let alive = Some(Stat {
            is_over: false,
            start_ticks: 4711,
        });
        for (text, expected) in [
            (format!("7 (imds) S {REST} 4711 0"), alive),
            (format!("7 (a) R (b) S {REST} 4711 0"), alive),
            (
                format!("7 (imds) Z {REST} 4711 0"),
                Some(Stat {
                    is_over: true,
                    start_ticks: 4711,
                }),
            ),
            (format!("7 (imds) S {REST}"), None),
            ("7".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(Stat::parse(&text), expected, "{text}");
        }
    }

    #[test]
    fn a_process_is_itself_and_no_other_of_the_same_number() {
        let this = Process::now(std::process::id()).unwrap();
        assert!(this.is_alive());
        assert!(
            !Process {
                start_ticks: this.start_ticks + 1,
                ..this
            }
            .is_alive()
        );
        assert_eq!(Process::now(u32::MAX), None);
    }

    #[test]
    fn notes_come_back_as_written() {
        let state_dir = std::env::temp_dir().join(format!("imds-record-{}", std::process::id()));
        fs::create_dir(&state_dir).unwrap();
        assert_eq!(Record::read(&state_dir).unwrap(), None);
        let record = Record {
            daemon: Some(Process {
                pid: 7,
                start_ticks: 8,
            }),
            is_ready: true,
        };
        record.write(&state_dir).unwrap();
        assert_eq!(Record::read(&state_dir).unwrap(), Some(record));
        fs::write(path_in(&state_dir), "{").unwrap();
        assert!(Record::read(&state_dir).is_err());
        fs::remove_dir_all(state_dir).unwrap();
    }
}
