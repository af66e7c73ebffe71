//! Guests made of namespaces: the host's own programs, in a network, a file system, process numbers, a host name and
//! users of their own.
//!
//! | what | where |
//! |---|---|
//! | directory: notes, console, volume | `STATE_DIR/guests/i-…/` |
//! | network namespace | `imds-XXXXXXXX-i-…` (`ip netns`) |
//! | port | `imdsgXXXXXXXXXX` |
//! | control group | `imds-XXXXXXXX/i-…` |
//!
//! Its root is a user of the host that nobody is. What it may do, it may do to its own namespaces; to the host it is a
//! stranger without rights. It shares the host's kernel all the same, so it is no wall as a virtual machine is.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::timeout;

use super::cgroup::Groups;
use super::door::Door;
use super::first::{Blueprint, GO, Report, SHUTDOWN_WITHIN};
use super::found::First;
use super::plan::{Image, Names, Spec, UIDS_PER_GUEST};
use super::record::Record;
use super::{LaunchError, Launcher, Running, State, cable, inside, root, system};
use crate::instance::InstanceId;
use crate::netns::NetNs;

/// How long the first process may take for each of its steps.
const STEP_WITHIN: Duration = Duration::from_secs(20);

/// How much longer than its processes the first one may take to end.
const END_WITHIN: Duration = Duration::from_secs(2);

/// The longest line that the first process says.
const REPORT_BYTES_MAX: usize = 4096;

/// Whoever launches them for a state directory.
#[derive(Debug)]
pub struct Namespaces {
    state_dir: PathBuf,
    program: PathBuf,
    door: Door,
}

impl Namespaces {
    /// For guests whose first process is this program. The state directory's path must be canonical, and nobody else may
    /// launch for it.
    #[must_use]
    pub fn new(state_dir: PathBuf, program: PathBuf, door: Door) -> Self {
        Self {
            state_dir,
            program,
            door,
        }
    }

    fn names(&self, id: InstanceId) -> Names {
        Names::of(&self.state_dir, id)
    }

    async fn make(&self, names: &Names, record: &Record) -> Result<Running, LaunchError> {
        let spec = &record.spec;
        let groups = Groups::named(&names.cgroup)?;
        for controller in groups.make(spec.bounds)? {
            tracing::warn!(
                "this host does not bound {controller}: guest {} may use all",
                spec.id
            );
        }
        root::mount_volume(&names.volume(), spec.bounds.volume_bytes, record.uid)?;
        let (mut line, first) = self.bear(names, record, &groups).await?;
        give_users(first.pid, record.uid).map_err(system("give the guest its users"))?;
        let netns = PathBuf::from(format!("/proc/{}/ns/net", first.pid));
        NetNs::name_path(&netns, &names.netns)?;
        cable::lay(names, spec).await?;
        self.door.served(&names.port).await?;
        cable::open(names, spec).await?;
        line.say(GO).await?;
        match line.hear().await? {
            Report::Up => Ok(Running {
                port: names.port.clone(),
                pid: first.pid,
            }),
            other => Err(astray(other)),
        }
    }

    /// Has the first process born, in these groups, and waiting.
    async fn bear(
        &self,
        names: &Names,
        record: &Record,
        groups: &Groups,
    ) -> Result<(Line, First), LaunchError> {
        let console = open_console(&names.console()).map_err(system("open the console"))?;
        let errors = console.try_clone().map_err(system("open the console"))?;
        let (ours, theirs) = StdUnixStream::pair().map_err(system("make a line to the guest"))?;
        let mut child = Command::new(&self.program)
            .arg0("imds")
            .arg("guest")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(console)
            .stderr(errors)
            .spawn()
            .map_err(system("start the guest's first process"))?;
        // It waits for its first line, so all that it will be is in there.
        if let Some(pid) = child.id() {
            groups.join(pid)?;
        }
        let mut line = Line::new(ours).map_err(system("make a line to the guest"))?;
        let blueprint = Blueprint {
            id: record.spec.id,
            hostname: record.spec.hostname.clone(),
            volume: names.volume(),
            uid: record.uid,
        };
        let mut text = serde_json::to_vec(&blueprint)
            .map_err(|error| system("describe the guest")(io::Error::from(error)))?;
        text.push(b'\n');
        line.say(&text).await?;
        let pid = match line.hear().await? {
            Report::Born(pid) => pid,
            other => return Err(astray(other)),
        };
        timeout(STEP_WITHIN, child.wait())
            .await
            .map_err(|_| io::ErrorKind::TimedOut.into())
            .and_then(|status| status)
            .map_err(system("see the guest's first process born"))?;
        let first = First::of(pid).map_err(system("find the guest's first process"))?;
        let first = first.ok_or_else(|| LaunchError::First("it ended at once".to_owned()))?;
        Ok((line, first))
    }

    /// Ends whatever lives in a guest, and takes away what it had of the kernel but for its volume.
    async fn end(&self, names: &Names) -> Result<(), LaunchError> {
        let groups = Groups::named(&names.cgroup)?;
        if let Some(first) = First::in_groups(&groups) {
            first
                .end(SHUTDOWN_WITHIN + END_WITHIN)
                .await
                .map_err(system("end the guest's first process"))?;
        }
        cable::remove(names).await?;
        Ok(groups.remove().await?)
    }
}

impl Launcher for Namespaces {
    async fn start(&self, spec: &Spec) -> Result<Running, LaunchError> {
        if let Image::Docker(image) = &spec.image {
            return Err(LaunchError::Image(image.clone()));
        }
        let names = self.names(spec.id);
        let was_there = match self.state(spec.id).await? {
            State::Running(_) => return Err(LaunchError::Runs(spec.id)),
            State::Stopped => true,
            State::Absent => false,
        };
        let record = Record::note(&self.state_dir, &names, spec, None)?;
        // Something may be left of a start or an end that was interrupted.
        self.end(&names).await?;
        match self.make(&names, &record).await {
            Ok(running) => Ok(running),
            Err(error) => {
                let undone = if was_there {
                    self.end(&names).await
                } else {
                    self.terminate(spec.id).await
                };
                if let Err(second) = undone {
                    tracing::warn!("guest {}: {second}", spec.id);
                }
                Err(error)
            }
        }
    }

    async fn stop(&self, id: InstanceId) -> Result<(), LaunchError> {
        self.end(&self.names(id)).await
    }

    async fn terminate(&self, id: InstanceId) -> Result<(), LaunchError> {
        let names = self.names(id);
        self.end(&names).await?;
        root::unmount_volume(&names.volume())?;
        Ok(Record::remove(&self.state_dir, &names)?)
    }

    async fn state(&self, id: InstanceId) -> Result<State, LaunchError> {
        let names = self.names(id);
        if Record::read(&names)?.is_none() {
            return Ok(State::Absent);
        }
        let groups = Groups::named(&names.cgroup)?;
        Ok(match First::in_groups(&groups) {
            Some(first) => State::Running(Running {
                port: names.port,
                pid: first.pid,
            }),
            None => State::Stopped,
        })
    }

    fn exec(
        &self,
        id: InstanceId,
        program: OsString,
        args: Vec<OsString>,
    ) -> Result<u8, LaunchError> {
        exec(&self.names(id), id, program, args)
    }
}

/// Runs a command in a guest, for whoever does not launch.
pub(super) fn exec(
    names: &Names,
    id: InstanceId,
    program: OsString,
    args: Vec<OsString>,
) -> Result<u8, LaunchError> {
    let groups = Groups::named(&names.cgroup)?;
    let first = First::in_groups(&groups).ok_or(LaunchError::Stopped(id))?;
    Ok(inside::run(first, &groups, program, args)?)
}

/// The line to a first process.
struct Line(BufReader<UnixStream>);

impl Line {
    fn new(stream: StdUnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self(BufReader::new(UnixStream::from_std(stream)?)))
    }

    async fn say(&mut self, bytes: &[u8]) -> Result<(), LaunchError> {
        let said = self.0.get_mut().write_all(bytes).await;
        said.map_err(system("tell the guest's first process"))
    }

    async fn hear(&mut self) -> Result<Report, LaunchError> {
        let mut line = Vec::new();
        let heard = timeout(STEP_WITHIN, self.0.read_until(b'\n', &mut line)).await;
        heard
            .map_err(|_| io::ErrorKind::TimedOut.into())
            .and_then(|read| read)
            .map_err(system("hear the guest's first process"))?;
        if line.is_empty() || line.len() > REPORT_BYTES_MAX {
            return Err(LaunchError::First("it ended without a word".to_owned()));
        }
        serde_json::from_slice(&line).map_err(|error| LaunchError::First(error.to_string()))
    }
}

fn astray(report: Report) -> LaunchError {
    LaunchError::First(match report {
        Report::Failed(why) => why,
        Report::Born(_) | Report::Up => "it is confused".to_owned(),
    })
}

/// Says which users of the host the guest's users are. Written once for a namespace; nothing in it has run yet.
fn give_users(pid: u32, base: u32) -> io::Result<()> {
    let map = format!("0 {base} {UIDS_PER_GUEST}\n");
    for file in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{file}"), &map)?;
    }
    Ok(())
}

fn open_console(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}
