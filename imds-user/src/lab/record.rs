//! What a lab notes down about itself, `lab.json` in its state directory: so far, which process its daemon is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use crate::process::Process;

/// The notes.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Record {
    /// The daemon, once started.
    pub daemon: Option<Process>,
    /// Whether it has said that it serves every port.
    pub is_ready: bool,
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
