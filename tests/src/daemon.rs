//! The daemon under test: started, watched and ended.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::binary::imds_path;
use crate::jail::Jail;
use crate::namespace::Namespace;
use crate::process::{children_of, eventually, is_alive};

/// Bound on a start or a reload: loading programs takes a good part of a second on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Bound on a clean stop.
const STOPPED_WITHIN: Duration = Duration::from_secs(15);

/// A running `imds run`. Dropping it ends it, and its responder with it.
pub struct Daemon {
    child: Child,
    log: PathBuf,
    notify: UnixDatagram,
    responders: Vec<Pid>,
    ready_after: Duration,
}

/// How it is started.
#[derive(Clone, Copy, Default)]
pub(crate) struct Way<'a> {
    /// Environment variables.
    pub(crate) environment: &'a [(String, String)],
    /// More options of `imds run`.
    pub(crate) options: &'a [String],
    /// Where it lives, if not where the tests do.
    pub(crate) jail: Option<&'a Jail>,
}

impl Daemon {
    pub(crate) fn start(
        namespace: &Namespace,
        config: &Path,
        state_dir: &Path,
        notify_path: &Path,
        way: Way<'_>,
    ) -> Self {
        let log = notify_path.with_extension("log");
        if notify_path.exists() {
            fs::remove_file(notify_path).expect("a former notification socket can be removed");
        }
        let notify = UnixDatagram::bind(notify_path).expect("a notification socket");
        let started = Instant::now();
        let child = namespace
            .enter(|| {
                if let Some(jail) = way.jail {
                    jail.enter();
                }
                spawn(config, state_dir, notify_path, &log, way)
            })
            .expect("the binary under test starts");
        let mut daemon = Self {
            child,
            log,
            notify,
            responders: Vec::new(),
            ready_after: Duration::ZERO,
        };
        daemon.wait_for("READY=1");
        daemon.ready_after = started.elapsed();
        daemon.responders = children_of(daemon.pid());
        daemon
    }

    pub(crate) fn start_and_kill(
        namespace: &Namespace,
        config: &Path,
        state_dir: &Path,
        notify_path: &Path,
        after: Duration,
    ) {
        let log = notify_path.with_extension("log");
        let mut child = namespace
            .enter(|| spawn(config, state_dir, notify_path, &log, Way::default()))
            .expect("the binary under test starts");
        // The moment is what is tried, so nothing can be waited for.
        thread::sleep(after);
        child.kill().expect("a child can be killed");
        child.wait().expect("a killed child can be waited for");
    }

    /// Its process.
    ///
    /// # Panics
    /// Never: a process number fits.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process number is positive"))
    }

    /// How long it took from its start until every port was served.
    #[must_use]
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// The process of the responder that serves now.
    ///
    /// # Panics
    /// When there is none within five seconds.
    #[must_use]
    pub fn responder_pid(&self) -> Pid {
        eventually("a responder", Duration::from_secs(5), || {
            children_of(self.pid())
                .into_iter()
                .find(|child| is_alive(*child) && runs_respond(*child))
        })
    }

    /// Everything it and the responder have said.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| format!("(no log: {error})"))
    }

    /// Makes it read its configuration again, and waits until it has, for good or ill.
    ///
    /// # Panics
    /// When it says nothing in time.
    pub fn reload(&mut self) {
        self.signal(Signal::SIGHUP);
        self.wait_for("READY=1");
    }

    /// Ends it as a supervisor does, and waits for it.
    ///
    /// # Panics
    /// When it does not end in time, or not with success.
    pub fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let Some(status) = self.wait(STOPPED_WITHIN) else {
            panic!(
                "the daemon runs {STOPPED_WITHIN:?} after SIGTERM; its log:\n{}",
                self.log()
            );
        };
        assert!(
            status.success(),
            "a clean stop is a success, not {status}; its log:\n{}",
            self.log()
        );
    }

    /// Ends it as a crash does. The responder is left to itself.
    pub fn crash(&mut self) {
        self.remember_responders();
        self.signal(Signal::SIGKILL);
        self.wait(STOPPED_WITHIN);
    }

    /// Holds it up, with everything in it, until [`Daemon::resume`].
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("a child that was not waited for takes a signal");
    }

    fn wait_for(&mut self, message: &str) {
        let deadline = Instant::now() + READY_WITHIN;
        self.notify
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a socket takes a time-out");
        let mut buffer = [0; 4096];
        while Instant::now() < deadline {
            match self.notify.recv(&mut buffer) {
                Ok(length)
                    if String::from_utf8_lossy(&buffer[..length])
                        .lines()
                        .any(|line| line == message) =>
                {
                    return;
                }
                Ok(_) => {}
                Err(error) if crate::http::is_timeout(&error) => self.assert_running(),
                Err(error) => panic!("notification socket: {error}"),
            }
        }
        panic!(
            "no {message} within {READY_WITHIN:?}; the daemon's log:\n{}",
            self.log()
        );
    }

    fn assert_running(&mut self) {
        let ended = self.child.try_wait().expect("a child can be waited for");
        if let Some(status) = ended {
            panic!("the daemon ended with {status}; its log:\n{}", self.log());
        }
    }

    fn wait(&mut self, within: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        None
    }

    fn remember_responders(&mut self) {
        self.responders.extend(children_of(self.pid()));
    }

    /// Ends a responder that a daemon which did not stop cleanly has left. What is in the kernel is the host's to remove.
    fn sweep(&mut self) {
        for responder in self.responders.iter().filter(|pid| runs_respond(**pid)) {
            kill(*responder, Signal::SIGKILL).ok();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() {
            report(&self.log());
        }
        let ended = self.child.try_wait().ok().flatten().is_some();
        if !ended {
            self.remember_responders();
            self.signal(Signal::SIGTERM);
            if self.wait(STOPPED_WITHIN).is_none() {
                self.signal(Signal::SIGKILL);
                self.wait(STOPPED_WITHIN);
            }
        }
        self.sweep();
    }
}

fn spawn(
    config: &Path,
    state_dir: &Path,
    notify: &Path,
    log: &Path,
    way: Way<'_>,
) -> io::Result<Child> {
    let log = File::options().create(true).append(true).open(log)?;
    Command::new(imds_path())
        .arg("run")
        .arg("--config")
        .arg(config)
        .arg("--state-dir")
        .arg(state_dir)
        .args(way.options)
        .env("NOTIFY_SOCKET", notify)
        .envs(way.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

fn runs_respond(pid: Pid) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0)
        .any(|argument| argument == b"respond")
}

#[expect(
    clippy::print_stderr,
    reason = "a failed test shows what the daemon said"
)]
fn report(log: &str) {
    eprintln!("--- the daemon's log ---\n{log}--- end of the log ---");
}
