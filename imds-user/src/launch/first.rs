//! The first process of a guest: `imds guest`, started by the launcher with a socket for standard input and the console
//! for output.
//!
//! It makes the namespaces, has itself born again as their process 1, and waits until the launcher says that the port
//! is in safe hands. Then it enters its own file system, gives up the machine's rights, runs user data, and stays:
//! it reaps what is left to it, writes down what is printed, and ends when told to, all others with it.
//!
//! It stays the program that it began as: a process that executes nothing more is out of reach of a debugger in the
//! guest, root's too, because its memory belongs to the host's users (`mm->user_ns`, `__ptrace_may_access` in the
//! kernel's kernel/ptrace.c) and it says that it must not be dumped. So the console's file is out of reach as well.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{
    ForkResult, Gid, Pid, Uid, fork, setgroups, sethostname, setresgid, setresuid, setsid,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use serde::{Deserialize, Serialize};

use super::console::Console;
use super::{root, user_data};
use crate::capabilities::limit_bounding_set;
use crate::instance::InstanceId;
use crate::responder::confine;

/// How long a guest's processes have to end by themselves, as a shutdown gives them.
pub const SHUTDOWN_WITHIN: Duration = Duration::from_secs(5);

/// What is read of the pipe at once.
const PIPE_BYTES: usize = 16 << 10;

/// What a guest's root may do, to its own namespaces: everything but what only ever means the machine (modules, raw
/// disks, the clock, its log, its programs in the kernel). None of it holds outside.
pub const RIGHTS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::IPC_OWNER)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_NICE)
    .union(CapabilitySet::SYS_TTY_CONFIG);

/// What the launcher tells it first, as a line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blueprint {
    /// The instance.
    pub id: InstanceId,
    /// Its host name.
    pub hostname: String,
    /// Where its file system is mounted.
    pub volume: PathBuf,
    /// The user id of the host that its root is.
    pub uid: u32,
}

/// What it says to the launcher, a line of JSON each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// Its number on the host, before it does anything.
    Born(u32),
    /// It is what it shall be; what runs in it begins now.
    Up,
    /// It is not, and ends.
    Failed(String),
}

/// What the launcher says when the port is served, and nothing before it.
pub const GO: &[u8] = b"go\n";

/// A step towards a guest that failed.
#[derive(Debug, thiserror::Error)]
pub enum FirstError {
    /// A system call.
    #[error("{what}: {cause}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The guest's file system.
    #[error("{error}: {}", std::error::Error::source(.error).map(ToString::to_string).unwrap_or_default())]
    Root {
        /// What went wrong.
        error: root::RootError,
    },
    /// What the launcher said is no blueprint.
    #[error("understand the launcher: {0}")]
    Blueprint(#[source] serde_json::Error),
}

/// Becomes the first process of a guest. For the only thread of a process that the launcher started.
///
/// # Errors
/// When it could not, after the launcher was told so.
pub fn run() -> Result<(), FirstError> {
    confine::close_inherited_descriptors().map_err(|error| FirstError::System {
        what: "close what was inherited",
        cause: io::Error::other(error),
    })?;
    let own = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned();
    let line = own(&io::stdin()).map_err(system("take over the line to the launcher"))?;
    let console = own(&io::stdout()).map_err(system("take over the console"))?;
    let mut line = UnixStream::from(line);
    let console = Console::new(File::from(console));
    let outcome = begin(&mut line);
    match outcome {
        Ok(Begun::Parent { first }) => {
            report(&mut line, &Report::Born(first)).map_err(system("tell the launcher"))
        }
        Ok(Begun::First(blueprint)) => be_first(&blueprint, line, console),
        Err(error) => {
            report(&mut line, &Report::Failed(error.to_string())).ok();
            Err(error)
        }
    }
}

enum Begun {
    /// This process has nothing more to do.
    Parent { first: u32 },
    /// This process is process 1.
    First(Blueprint),
}

fn begin(line: &mut UnixStream) -> Result<Begun, FirstError> {
    let text = read_line(line).map_err(system("listen to the launcher"))?;
    let blueprint: Blueprint = serde_json::from_str(&text).map_err(FirstError::Blueprint)?;
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    setsid().map_err(system("leave the launcher's session"))?;
    // Of all in the guest this is the last to go when memory is short. What it starts says otherwise of itself.
    fs::write("/proc/self/oom_score_adj", "-900").ok();
    unshare(CloneFlags::CLONE_NEWNS).map_err(system("make a mount namespace"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(system("keep mounts to this namespace"))?;
    root::build(&blueprint.volume, blueprint.uid).map_err(|error| FirstError::Root { error })?;
    // The namespaces belong to the guest's own users, and so does every right over them.
    unshare(
        CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .map_err(system("make the guest's namespaces"))?;
    // Before there is a process of the guest: nobody in there may look into this one.
    prctl::set_dumpable(false).map_err(system("switch tracing off"))?;
    match fork_here().map_err(system("be born as process 1"))? {
        ForkResult::Parent { child } => Ok(Begun::Parent {
            first: child.as_raw().cast_unsigned(),
        }),
        ForkResult::Child => Ok(Begun::First(blueprint)),
    }
}

fn be_first(
    blueprint: &Blueprint,
    mut line: UnixStream,
    mut console: Console,
) -> Result<(), FirstError> {
    let mut said = [0; GO.len()];
    if line.read_exact(&mut said).is_err() || said != *GO {
        // The launcher gave up, or is gone; nothing of this guest has run.
        return Ok(());
    }
    let outcome = settle(blueprint, &mut console);
    let told = match &outcome {
        Ok(()) => Report::Up,
        Err(error) => Report::Failed(error.to_string()),
    };
    report(&mut line, &told).map_err(system("tell the launcher"))?;
    drop(line);
    outcome?;
    stay(blueprint.id, &mut console)
}

/// From a process of the host in new namespaces to one of the guest.
fn settle(blueprint: &Blueprint, console: &mut Console) -> Result<(), FirstError> {
    become_root()?;
    sethostname(&blueprint.hostname).map_err(system("take the host name"))?;
    let trouble = root::enter().map_err(|error| FirstError::Root { error })?;
    if let Some(trouble) = trouble {
        console.note(&trouble);
    }
    // A guest that has made something else of its /etc boots all the same.
    if let Err(error) = write_names(&blueprint.hostname) {
        console.note(&format!("the host name is not written down: {error}"));
    }
    // Standard input is the line still.
    let null = File::open("/dev/null").map_err(system("open /dev/null"))?;
    nix::unistd::dup2_stdin(&null).map_err(system("let go of the line"))?;
    drop_rights()
}

/// Becomes root of the guest, in the user namespace that the process is in already.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn become_root() -> Result<(), FirstError> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[]).map_err(system("drop the groups"))?;
    setresgid(gid, gid, gid).map_err(system("become the guest's root"))?;
    setresuid(uid, uid, uid).map_err(system("become the guest's root"))?;
    // The change of user has reset it.
    prctl::set_dumpable(false).map_err(system("switch tracing off"))
}

/// Gives up every right but [`RIGHTS`], for good.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn drop_rights() -> Result<(), FirstError> {
    limit_bounding_set(RIGHTS).map_err(system("limit the rights"))?;
    let sets = CapabilitySets {
        effective: RIGHTS,
        permitted: RIGHTS,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).map_err(system("give rights up"))?;
    prctl::set_no_new_privs().map_err(system("refuse new privileges"))
}

/// Into files of the guest: whatever they lead to is the guest's.
fn write_names(hostname: &str) -> io::Result<()> {
    fs::write("/etc/hostname", format!("{hostname}\n"))?;
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    if hosts.split_whitespace().any(|word| word == hostname) {
        return Ok(());
    }
    fs::write("/etc/hosts", format!("{hosts}127.0.1.1 {hostname}\n"))
}

/// The life of process 1.
fn stay(id: InstanceId, console: &mut Console) -> Result<(), FirstError> {
    let signals = blocked_signals()?;
    let (output, input) = io::pipe().map_err(system("make a pipe"))?;
    console.note(&format!("instance {id} starts"));
    let (no_script, script) = io::pipe().map_err(system("make a pipe"))?;
    let user_data = start_user_data(id, &input, script)?;
    drop(input);
    let mut life = Life {
        console,
        signals,
        output: Some(output),
        user_data,
        no_script,
        ends: None,
    };
    while !life.is_over() {
        life.wait()?;
    }
    life.console.note(&format!("instance {id} stops"));
    // The kernel ends whoever is left.
    Ok(())
}

struct Life<'a> {
    console: &'a mut Console,
    signals: SignalFd,
    /// What the guest's programs print; none when nobody can any more.
    output: Option<PipeReader>,
    user_data: Pid,
    /// Has a byte if that process had nothing to execute.
    no_script: PipeReader,
    /// When it ends at the latest, once it was told to.
    ends: Option<Instant>,
}

impl Life<'_> {
    fn is_over(&self) -> bool {
        let Some(ends) = self.ends else { return false };
        Instant::now() >= ends || !has_children()
    }

    fn wait(&mut self) -> Result<(), FirstError> {
        let timeout = match self.ends {
            Some(ends) => ends.saturating_duration_since(Instant::now()),
            None => Duration::MAX,
        };
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::NONE);
        let mut watched = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if let Some(output) = &self.output {
            watched.push(PollFd::new(output.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut watched, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(system("wait")(errno)),
        }
        let has = |at: usize| watched.get(at).is_some_and(|one| one.any() == Some(true));
        let (has_signal, has_output) = (has(0), has(1));
        if has_output {
            self.write_down();
        }
        if has_signal {
            self.heed()?;
        }
        Ok(())
    }

    fn write_down(&mut self) {
        let mut bytes = [0; PIPE_BYTES];
        let Some(output) = &mut self.output else {
            return;
        };
        match output.read(&mut bytes) {
            Ok(0) => self.output = None,
            Ok(length) => self.console.append(&bytes[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.output = None,
        }
    }

    fn heed(&mut self) -> Result<(), FirstError> {
        while let Some(signal) = self
            .signals
            .read_signal()
            .map_err(system("read a signal"))?
        {
            if signal.ssi_signo == Signal::SIGCHLD as u32 {
                self.reap();
            } else if self.ends.is_none() {
                self.ends = Some(Instant::now() + SHUTDOWN_WITHIN);
                // Everybody but this process, kill(2). There may be nobody.
                kill(Pid::from_raw(-1), Signal::SIGTERM).ok();
            }
        }
        Ok(())
    }

    fn reap(&mut self) {
        loop {
            let (pid, how) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, 0)) => (pid, "ended well".to_owned()),
                Ok(WaitStatus::Exited(pid, code)) => (pid, format!("ended with exit code {code}")),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("was ended by {signal}")),
                Err(Errno::EINTR) => continue,
                // Nobody has ended, or nobody is there.
                Ok(_) | Err(_) => return,
            };
            // What it printed before its end comes before this line.
            self.drain();
            if pid == self.user_data && self.had_script() {
                self.console.note(&format!("user data {how}"));
            }
        }
    }

    /// Whether user data was executed, asked after its process has ended.
    fn had_script(&mut self) -> bool {
        matches!(self.no_script.read(&mut [0]), Ok(0))
    }

    /// Takes what is in the pipe and does not wait for more.
    fn drain(&mut self) {
        while let Some(output) = &self.output {
            let mut watched = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
            if poll(&mut watched, PollTimeout::ZERO) != Ok(1) {
                return;
            }
            self.write_down();
        }
    }
}

fn has_children() -> bool {
    // What has ended and was not waited for is there no more, but for the kernel.
    let flags = WaitPidFlag::WNOHANG;
    !matches!(waitpid(None, Some(flags)), Err(Errno::ECHILD))
}

/// The signals that process 1 heeds, as a descriptor.
fn blocked_signals() -> Result<SignalFd, FirstError> {
    let mut heeded = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGPWR,
    ] {
        heeded.add(signal);
    }
    heeded
        .thread_block()
        .and_then(|()| {
            SignalFd::with_flags(&heeded, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        })
        .map_err(system("listen for signals"))
}

/// A process that runs user data, its output into the pipe. If there is nothing to run it says so on the other one, which
/// is closed without a word when something is.
fn start_user_data(
    id: InstanceId,
    output: &impl AsFd,
    mut no_script: PipeWriter,
) -> Result<Pid, FirstError> {
    if let ForkResult::Parent { child } = fork_here().map_err(system("start user data"))? {
        return Ok(child);
    }
    let said = match begin_user_data(output) {
        Ok(()) => user_data::run(id),
        Err(error) => format!("user data is not run: {error}"),
    };
    writeln!(io::stdout(), "imds: {said}").ok();
    no_script.write_all(b"-").ok();
    std::process::exit(0);
}

fn begin_user_data(output: &impl AsFd) -> Result<(), FirstError> {
    SigSet::all()
        .thread_unblock()
        .map_err(system("heed signals"))?;
    setsid().map_err(system("begin a session"))?;
    nix::unistd::dup2_stdout(output).map_err(system("redirect output"))?;
    nix::unistd::dup2_stderr(output).map_err(system("redirect output"))?;
    be_ordinary();
    Ok(())
}

/// Takes back what makes the first process last, for a process that is about to execute something.
pub(super) fn be_ordinary() {
    // It can be higher than that already, where the launcher itself has been made to go first.
    fs::write("/proc/self/oom_score_adj", "0").ok();
}

fn has_one_thread() -> bool {
    fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}

#[expect(unsafe_code, reason = "no crate in use offers a safe way to fork")]
fn fork_here() -> Result<ForkResult, Errno> {
    if !has_one_thread() {
        return Err(Errno::EDEADLK);
    }
    // SAFETY: after a fork of a process with several threads, only async-signal-safe functions may be called in the
    // child; this process has one thread, as was just seen, and nobody else could start another.
    unsafe { fork() }
}

fn report(line: &mut UnixStream, report: &Report) -> io::Result<()> {
    let mut text = serde_json::to_vec(report)?;
    text.push(b'\n');
    line.write_all(&text)
}

/// A line, and nothing after it: the launcher says one at a time.
fn read_line(line: &mut UnixStream) -> io::Result<String> {
    const BYTES_MAX: u64 = 16 << 10;
    let mut text = String::new();
    BufReader::new(line.take(BYTES_MAX)).read_line(&mut text)?;
    Ok(text)
}

fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> FirstError {
    move |cause| FirstError::System {
        what,
        cause: cause.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_launcher_and_guest_say_is_a_line_each() {
        let blueprint = Blueprint {
            id: "i-0123456789abcdef0".parse().unwrap(),
            hostname: "web".into(),
            volume: "/var/lib/imds/guests/i-0123456789abcdef0/volume".into(),
            uid: 0x7000_0000,
        };
        let (mut one, mut other) = UnixStream::pair().unwrap();
        writeln!(one, "{}", serde_json::to_string(&blueprint).unwrap()).unwrap();
        let text = read_line(&mut other).unwrap();
        assert_eq!(serde_json::from_str::<Blueprint>(&text).unwrap(), blueprint);
        for (said, expected) in [
            (Report::Born(7), r#"{"born":7}"#),
            (Report::Up, r#""up""#),
            (Report::Failed("no".into()), r#"{"failed":"no"}"#),
        ] {
            assert_eq!(serde_json::to_string(&said).unwrap(), expected);
            report(&mut other, &said).unwrap();
            assert_eq!(read_line(&mut one).unwrap(), format!("{expected}\n"));
        }
    }

    #[test]
    fn the_machines_own_rights_are_no_guests() {
        for right in [
            CapabilitySet::SYS_MODULE,
            CapabilitySet::SYS_RAWIO,
            CapabilitySet::SYS_TIME,
            CapabilitySet::SYSLOG,
            CapabilitySet::BPF,
            CapabilitySet::PERFMON,
            CapabilitySet::MKNOD,
            CapabilitySet::SYS_RESOURCE,
            CapabilitySet::MAC_ADMIN,
        ] {
            assert!(!RIGHTS.contains(right), "{right:?}");
        }
    }
}
