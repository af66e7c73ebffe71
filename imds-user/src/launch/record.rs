//! What is noted down of a guest, in its directory: what was ordered and which user ids it has. Whether it runs is not:
//! that is asked of the kernel.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan::{self, Names, Spec};
use crate::instance::InstanceId;

/// The notes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What was ordered.
    pub spec: Spec,
    /// The user id of the host that its root is.
    pub uid: u32,
    /// Where the Docker is that has it, if it is a container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub docker_socket: Option<PathBuf>,
}

/// Notes that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A file or folder.
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
    /// Every range of user ids is taken.
    #[error("no user ids are left for another guest")]
    NoIds,
}

impl Record {
    /// The notes of a guest; none if there is no such guest.
    ///
    /// # Errors
    /// When they are there and cannot be read or understood.
    pub fn read(names: &Names) -> Result<Option<Self>, RecordError> {
        let path = path_in(&names.dir);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(failed("read", &path))?,
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|error| failed("understand", &path)(error.into()))
    }

    /// Notes an order down; a guest that was there before keeps its user ids.
    ///
    /// # Errors
    /// When the file system refuses, or nothing is left to give.
    pub fn note(
        state_dir: &Path,
        names: &Names,
        spec: &Spec,
        docker_socket: Option<&Path>,
    ) -> Result<Self, RecordError> {
        let uid = match Self::read(names)? {
            Some(former) => former.uid,
            None => {
                let taken = ids_taken(state_dir)?;
                plan::uid_base(state_dir, spec.id, |base| taken.contains(&base))
                    .ok_or(RecordError::NoIds)?
            }
        };
        let record = Self {
            spec: spec.clone(),
            uid,
            docker_socket: docker_socket.map(Path::to_owned),
        };
        record.write(names)?;
        Ok(record)
    }

    /// Whole or not at all.
    fn write(&self, names: &Names) -> Result<(), RecordError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&names.dir)
            .map_err(failed("make", &names.dir))?;
        let path = path_in(&names.dir);
        let part = path.with_extension("part");
        let write = || {
            fs::write(&part, serde_json::to_vec(self)?)?;
            fs::rename(&part, &path)
        };
        write().map_err(failed("write", &path))
    }

    /// Forgets a guest: its directory, whose volume must be unmounted.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn remove(state_dir: &Path, names: &Names) -> Result<(), RecordError> {
        // Files one by one, and never what is below: a volume that is mounted still is not to be emptied by this.
        for path in [names.console(), path_in(&names.dir)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &path)(error));
                }
                _ => {}
            }
        }
        for path in [names.volume(), names.dir.clone()] {
            match fs::remove_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &path)(error));
                }
                _ => {}
            }
        }
        // The last guest's end leaves nothing; others may be there.
        fs::remove_dir(plan::guests_in(state_dir)).ok();
        Ok(())
    }
}

/// The guests of a state directory, running or not.
///
/// # Errors
/// When the directory cannot be read.
pub fn guests(state_dir: &Path) -> Result<Vec<InstanceId>, RecordError> {
    let path = plan::guests_in(state_dir);
    let entries = match fs::read_dir(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("list", &path))?,
    };
    let mut ids: Vec<InstanceId> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

fn ids_taken(state_dir: &Path) -> Result<Vec<u32>, RecordError> {
    let mut taken = Vec::new();
    for id in guests(state_dir)? {
        taken.extend(Record::read(&Names::of(state_dir, id))?.map(|record| record.uid));
    }
    Ok(taken)
}

fn path_in(dir: &Path) -> PathBuf {
    dir.join("guest.json")
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    let path = path.to_owned();
    move |cause| RecordError::File {
        action,
        path,
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::MacAddress;
    use crate::launch::plan::{Bounds, Image};

    fn spec(number: u8) -> Spec {
        Spec {
            id: format!("i-{number:017x}").parse().unwrap(),
            image: Image::Host,
            hostname: "web".into(),
            ipv4: [172, 31, 16, number].into(),
            subnet: "172.31.16.0/20".parse().unwrap(),
            mac: MacAddress([6, 0, 0, 0, 0, number]),
            bounds: Bounds::default(),
        }
    }

    #[test]
    fn notes_come_back_and_go() {
        let state_dir = std::env::temp_dir().join(format!("imds-guests-{}", std::process::id()));
        fs::create_dir(&state_dir).unwrap();
        let names = |spec: &Spec| Names::of(&state_dir, spec.id);
        let (one, other) = (spec(1), spec(2));
        assert_eq!(guests(&state_dir).unwrap(), []);
        assert_eq!(Record::read(&names(&one)).unwrap(), None);
        let first = Record::note(&state_dir, &names(&one), &one, None).unwrap();
        let second = Record::note(&state_dir, &names(&other), &other, None).unwrap();
        assert_ne!(first.uid, second.uid);
        assert_eq!(guests(&state_dir).unwrap(), [one.id, other.id]);

        let renamed = Spec {
            hostname: "renamed".into(),
            ..one.clone()
        };
        let again = Record::note(&state_dir, &names(&one), &renamed, None).unwrap();
        assert_eq!(again.uid, first.uid, "files keep their owner");
        assert_eq!(Record::read(&names(&one)).unwrap(), Some(again));

        for spec in [&one, &other] {
            Record::remove(&state_dir, &names(spec)).unwrap();
            Record::remove(&state_dir, &names(spec)).unwrap();
        }
        assert_eq!(fs::read_dir(&state_dir).unwrap().count(), 0);
        fs::remove_dir(state_dir).unwrap();
    }
}
