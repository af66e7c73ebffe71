//! The daemon under test: started, watched and ended.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use imds_user::control::client::status;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::jail::Jail;
use crate::namespace::Namespace;
use crate::patience::patience;
use crate::process::{eventually, is_alive};
use crate::service_manager::{FdStore, receive};

/// Bound on a start or a reload: loading programs takes a good part of a second on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Bound on a clean stop.
const STOPPED_WITHIN: Duration = Duration::from_secs(15);

/// A running `imds run`. Dropping it ends it; its responder ends with the host.
pub struct Daemon {
    child: Child,
    log: PathBuf,
    notify: UnixDatagram,
    state_dir: PathBuf,
    store: Option<FdStore>,
    ready_after: Duration,
}

/// What a daemon is started with.
#[derive(Clone)]
pub(crate) struct Start {
    pub(crate) binary: PathBuf,
    /// None to start without one.
    pub(crate) config: Option<PathBuf>,
    pub(crate) state_dir: PathBuf,
    pub(crate) notify: PathBuf,
    pub(crate) environment: Vec<(String, String)>,
    /// More options of `imds run`.
    pub(crate) options: Vec<String>,
    /// Where it lives, if not where the tests do.
    pub(crate) jail: Option<Arc<Jail>>,
    pub(crate) store: Option<FdStore>,
}

impl Daemon {
    pub(crate) fn start(namespace: &Namespace, start: Start) -> Self {
        let started = Self::try_start(namespace, start);
        started.unwrap_or_else(|why| panic!("{why}"))
    }

    /// Starts it, or ends it and says why it did not become ready.
    pub(crate) fn try_start(namespace: &Namespace, start: Start) -> Result<Self, String> {
        let notify_path = start.notify.as_path();
        let log = notify_path.with_extension("log");
        if notify_path.exists() {
            fs::remove_file(notify_path).expect("a former notification socket can be removed");
        }
        let notify = UnixDatagram::bind(notify_path).expect("a notification socket");
        let started = Instant::now();
        let child = namespace
            .enter(|| {
                if let Some(jail) = &start.jail {
                    jail.enter();
                }
                start.spawn()
            })
            .expect("the binary under test starts");
        let mut daemon = Self {
            child,
            log,
            notify,
            state_dir: start.state_dir,
            store: start.store,
            ready_after: Duration::ZERO,
        };
        daemon.try_wait_for("READY=1")?;
        daemon.ready_after = started.elapsed();
        Ok(daemon)
    }

    pub(crate) fn start_and_kill(namespace: &Namespace, start: &Start, after: Duration) {
        let mut child = namespace
            .enter(|| start.spawn())
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
    /// When there is none within ten seconds.
    #[must_use]
    pub fn responder_pid(&self) -> Pid {
        eventually("a responder", Duration::from_secs(10), || {
            self.responder_now()
        })
    }

    /// The same; none while there is none.
    #[must_use]
    pub fn responder_now(&self) -> Option<Pid> {
        let status = status(&self.state_dir).ok()?;
        let pid = status.responder.pid?;
        Some(Pid::from_raw(i32::try_from(pid).ok()?)).filter(|pid| is_alive(*pid))
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

    /// Ends it as a crash does.
    pub fn crash(&mut self) {
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
        if let Err(why) = self.try_wait_for(message) {
            panic!("{why}");
        }
    }

    fn try_wait_for(&mut self, message: &str) -> Result<(), String> {
        let within = patience(READY_WITHIN);
        let deadline = Instant::now() + within;
        self.notify
            .set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a socket takes a time-out");
        while Instant::now() < deadline {
            match receive(&self.notify, self.store.as_ref()) {
                Ok(text) if text.lines().any(|line| line == message) => return Ok(()),
                Ok(_) => {}
                Err(error) if crate::http::is_timeout(&error) => {
                    if let Some(status) = self.ended() {
                        let log = self.log();
                        return Err(format!("the daemon ended with {status}; its log:\n{log}"));
                    }
                }
                Err(error) => panic!("notification socket: {error}"),
            }
        }
        Err(format!(
            "no {message} within {within:?}; the daemon's log:\n{}",
            self.log()
        ))
    }

    /// How it ended, if it did.
    ///
    /// # Panics
    /// Never: a child can be waited for.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    fn wait(&mut self, within: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience(within);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() {
            report(&self.log());
        }
        let ended = self.child.try_wait().ok().flatten().is_some();
        if !ended {
            self.signal(Signal::SIGTERM);
            if self.wait(STOPPED_WITHIN).is_none() {
                self.signal(Signal::SIGKILL);
                self.wait(STOPPED_WITHIN);
            }
        }
    }
}

impl Start {
    fn spawn(&self) -> io::Result<Child> {
        let log = self.notify.with_extension("log");
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = match &self.store {
            Some(store) => store.command(&self.binary),
            None => {
                let mut command = Command::new(&self.binary);
                command.stdin(Stdio::null()).stdout(log.try_clone()?);
                command
            }
        };
        command
            .arg("run")
            .args(
                self.config
                    .iter()
                    .flat_map(|config| [std::ffi::OsStr::new("--config"), config.as_os_str()]),
            )
            .arg("--state-dir")
            .arg(&self.state_dir)
            .args(&self.options)
            .env("NOTIFY_SOCKET", &self.notify)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stderr(log)
            .spawn()
    }
}

#[expect(
    clippy::print_stderr,
    reason = "a failed test shows what the daemon said"
)]
fn report(log: &str) {
    eprintln!("--- the daemon's log ---\n{log}--- end of the log ---");
}
