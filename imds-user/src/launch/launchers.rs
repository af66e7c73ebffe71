//! Every launcher of a host behind one: whose a guest is says its order, or the note of it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use super::cgroup::Groups;
use super::docker::{self, Containers};
use super::door::Door;
use super::namespaces::{self, Namespaces};
use super::order::{LocalImage, socket_in};
use super::plan::{Image, Names, Spec};
use super::record::{self, Record};
use super::{LaunchError, Launcher, Running, State, console, system};
use crate::instance::InstanceId;

/// Where Docker is, if nobody says otherwise.
pub const DOCKER_SOCKET: &str = "/run/docker.sock";

/// Whoever launches for a state directory: one process at a time.
#[derive(Debug)]
pub struct Launchers {
    state_dir: PathBuf,
    door: Door,
    namespaces: Namespaces,
    docker: Containers,
    _lock: Flock<File>,
}

impl Launchers {
    /// For guests of this state directory. The first process of those that are made of namespaces is this program; those
    /// that are containers are had of the Docker daemon behind this socket. The directory must be there.
    ///
    /// # Errors
    /// [`LaunchError::Locked`] when another process does that; when there are no control groups, without which no guest could be.
    pub fn open(
        state_dir: &Path,
        program: PathBuf,
        docker_socket: PathBuf,
        patience: Duration,
    ) -> Result<Self, LaunchError> {
        let state_dir = state_dir
            .canonicalize()
            .map_err(system("find the state directory"))?;
        let lock = lock(&state_dir)?;
        Groups::named(Path::new("imds"))?;
        let door = Door {
            state_dir: state_dir.clone(),
            patience,
        };
        Ok(Self {
            namespaces: Namespaces::new(state_dir.clone(), program, door.clone()),
            docker: Containers::new(state_dir.clone(), docker_socket, door.clone()),
            state_dir,
            door,
            _lock: lock,
        })
    }

    /// Every guest, running or not.
    ///
    /// # Errors
    /// When the state directory cannot be read.
    pub fn guests(&self) -> Result<Vec<InstanceId>, LaunchError> {
        Ok(record::guests(&self.state_dir)?)
    }

    /// Starts a guest that was stopped as it was ordered.
    ///
    /// # Errors
    /// [`LaunchError::Absent`] when it was never there, and as [`Launcher::start`].
    pub async fn start_again(&self, id: InstanceId) -> Result<Running, LaunchError> {
        let record = self.record(id)?.ok_or(LaunchError::Absent(id))?;
        self.start(&record.spec).await
    }

    /// Every local image of Docker's that has a name; none where there is no Docker.
    pub async fn images(&self) -> Vec<LocalImage> {
        self.docker.images().await
    }

    fn record(&self, id: InstanceId) -> Result<Option<Record>, LaunchError> {
        Ok(Record::read(&Names::of(&self.state_dir, id))?)
    }

    /// The Docker that a guest was had of, if it is a container.
    fn docker_of(&self, id: InstanceId) -> Result<Option<Containers>, LaunchError> {
        let record = self.record(id)?;
        let socket = record.and_then(|record| record.docker_socket);
        let of = |socket| Containers::new(self.state_dir.clone(), socket, self.door.clone());
        Ok(socket.map(of))
    }
}

impl Launcher for Launchers {
    async fn start(&self, spec: &Spec) -> Result<Running, LaunchError> {
        let is_container = matches!(spec.image, Image::Docker(_));
        let former = self.record(spec.id)?;
        if former.is_some_and(|former| former.docker_socket.is_some() != is_container) {
            return Err(LaunchError::OtherKind(spec.id));
        }
        match spec.image {
            Image::Host => self.namespaces.start(spec).await,
            Image::Docker(_) => self.docker.start(spec).await,
        }
    }

    async fn stop(&self, id: InstanceId) -> Result<(), LaunchError> {
        match self.docker_of(id)? {
            Some(docker) => docker.stop(id).await,
            None => self.namespaces.stop(id).await,
        }
    }

    async fn terminate(&self, id: InstanceId) -> Result<(), LaunchError> {
        match self.docker_of(id)? {
            Some(docker) => docker.terminate(id).await,
            None => self.namespaces.terminate(id).await,
        }
    }

    async fn state(&self, id: InstanceId) -> Result<State, LaunchError> {
        match self.docker_of(id)? {
            Some(docker) => docker.state(id).await,
            None => self.namespaces.state(id).await,
        }
    }

    fn exec(
        &self,
        id: InstanceId,
        program: OsString,
        args: Vec<OsString>,
    ) -> Result<u8, LaunchError> {
        exec(&self.state_dir, id, program, args)
    }
}

/// As [`Launcher::exec`], for whoever does not launch. The state directory's path must be canonical.
///
/// # Errors
/// When the guest does not run, or the command cannot be executed.
pub fn exec(
    state_dir: &Path,
    id: InstanceId,
    program: OsString,
    args: Vec<OsString>,
) -> Result<u8, LaunchError> {
    let names = Names::of(state_dir, id);
    let record = Record::read(&names)?.ok_or(LaunchError::Absent(id))?;
    match record.docker_socket {
        Some(socket) => docker::exec(&socket, &names, program, args),
        None => namespaces::exec(&names, id, program, args),
    }
}

/// Shows what a guest printed, and what it prints from now on if it is to be followed. The state directory's path must be
/// canonical.
///
/// # Errors
/// When there is no such guest, or it cannot be shown.
pub fn show_console(
    state_dir: &Path,
    id: InstanceId,
    follow: bool,
    out: &mut dyn Write,
) -> Result<u8, LaunchError> {
    let names = Names::of(state_dir, id);
    let record = Record::read(&names)?.ok_or(LaunchError::Absent(id))?;
    match record.docker_socket {
        Some(socket) => return docker::logs(&socket, &names, follow),
        None if follow => console::follow(&names.console(), out)?,
        None => console::show(&names.console(), out)?,
    }
    Ok(0)
}

/// Terminates every guest of a state directory that no launcher has, and takes away what launchers left there.
///
/// # Errors
/// [`LaunchError::Locked`] when a launcher runs, or when something of a guest stays.
pub async fn remove_all(state_dir: &Path) -> Result<(), LaunchError> {
    if !lock_in(state_dir).exists() {
        return Ok(());
    }
    let nothing = PathBuf::new();
    let launcher = Launchers::open(state_dir, nothing.clone(), nothing, Duration::ZERO)?;
    for id in launcher.guests()? {
        launcher.terminate(id).await?;
    }
    for path in [socket_in(state_dir), lock_in(state_dir)] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(system("remove the launcher's files")(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn lock(state_dir: &Path) -> Result<Flock<File>, LaunchError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(lock_in(state_dir))
        .map_err(system("open the launcher's lock"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        if errno == nix::errno::Errno::EWOULDBLOCK {
            LaunchError::Locked
        } else {
            system("lock the state directory for launching")(errno)
        }
    })
}

fn lock_in(state_dir: &Path) -> PathBuf {
    state_dir.join("launcher.lock")
}
