//! The client of the control socket, as the command line uses it: one request, one answer, bounded waits.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{
    Answer, Applied, AwsEnv, Done, InstanceReport, Ordered, PortReport, PowerAction, Request,
    SOCKET_NAME, StatusReport,
};
use crate::life::{Event, When};
use crate::store::{AccountDefaults, KeyRole};

/// How long the daemon may take to read or to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest answer that is read: 65,536 ports at some 300 bytes each, and room.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Asks the daemon of this state directory what it is doing.
///
/// # Errors
/// [`ClientError::NoDaemon`] when none runs.
pub fn status(state_dir: &Path) -> Result<StatusReport, ClientError> {
    match ask(state_dir, Request::Status {})? {
        Answer::Status(report) => Ok(*report),
        other => Err(other.into()),
    }
}

/// Every instance that the daemon serves, or one of them.
///
/// # Errors
/// [`ClientError::Unfit`] when that one is not known.
pub fn instances(
    state_dir: &Path,
    which: Option<String>,
) -> Result<Vec<InstanceReport>, ClientError> {
    let request = match which {
        Some(instance) => Request::Instance { instance },
        None => Request::Instances {},
    };
    match ask(state_dir, request)? {
        Answer::Instances { instances } => Ok(instances),
        other => Err(other.into()),
    }
}

/// Switches an instance on or off, or reboots it. When this returns it is done.
///
/// # Errors
/// [`ClientError::Unfit`] when it is not known, or not in a state for that.
pub fn power(state_dir: &Path, instance: String, action: PowerAction) -> Result<Done, ClientError> {
    done(ask(state_dir, Request::Power { instance, action })?)
}

/// Lets something happen to an instance, at once or later. When this returns its next request sees it, or it is planned.
///
/// # Errors
/// [`ClientError::Unfit`] when it is not known, or that cannot happen to it.
pub fn event(
    state_dir: &Path,
    instance: String,
    event: Event,
    after: Option<When>,
) -> Result<Done, ClientError> {
    let request = Request::Event {
        instance,
        event,
        after,
    };
    done(ask(state_dir, request)?)
}

/// Makes an interface the port of an instance.
///
/// # Errors
/// [`ClientError::Unfit`] when that cannot be.
pub fn admit(
    state_dir: &Path,
    port: String,
    name: Option<String>,
    by_name: bool,
    keys: Vec<(String, String)>,
) -> Result<Done, ClientError> {
    let request = Request::Admit {
        port,
        name,
        by_name,
        keys,
    };
    done(ask(state_dir, request)?)
}

/// Takes back that a guest was admitted.
///
/// # Errors
/// [`ClientError::Unfit`] when it was not.
pub fn forget(state_dir: &Path, instance: String) -> Result<Done, ClientError> {
    done(ask(state_dir, Request::Forget { instance })?)
}

/// Makes instances what a configuration file says, or only says what would change. When this returns it is in force.
///
/// # Errors
/// [`ClientError::Unfit`] when the file is wrong or does not fit what is there.
pub fn apply(state_dir: &Path, file: PathBuf, dry_run: bool) -> Result<Applied, ClientError> {
    match ask(state_dir, Request::Apply { file, dry_run })? {
        Answer::Applied(applied) => Ok(applied),
        other => Err(other.into()),
    }
}

/// Has the daemon do something to what is kept: one of the requests that [`Answer::Ordered`] answers. When this returns it is
/// in force.
///
/// # Errors
/// [`ClientError::Unfit`] when that cannot be.
pub fn order(state_dir: &Path, request: Request) -> Result<Ordered, ClientError> {
    match ask(state_dir, request)? {
        Answer::Ordered(ordered) => Ok(ordered),
        other => Err(other.into()),
    }
}

/// What new instances get.
///
/// # Errors
/// [`ClientError::NoDaemon`] when none runs.
pub fn defaults(state_dir: &Path) -> Result<AccountDefaults, ClientError> {
    match ask(state_dir, Request::Defaults {})? {
        Answer::Defaults { defaults } => Ok(defaults),
        other => Err(other.into()),
    }
}

/// What AWS's tools need to reach the control API with a key of this role.
///
/// # Errors
/// [`ClientError::Unfit`] when the daemon offers none.
pub fn aws_env(state_dir: &Path, role: KeyRole) -> Result<AwsEnv, ClientError> {
    match ask(state_dir, Request::AwsEnv { role })? {
        Answer::AwsEnv(environment) => Ok(environment),
        other => Err(other.into()),
    }
}

/// What became of an interface.
///
/// # Errors
/// [`ClientError::NoDaemon`] when none runs.
pub fn port(state_dir: &Path, port: String) -> Result<PortReport, ClientError> {
    match ask(state_dir, Request::Port { port })? {
        Answer::Port(report) => Ok(report),
        other => Err(other.into()),
    }
}

fn done(answer: Answer) -> Result<Done, ClientError> {
    match answer {
        Answer::Done(done) => Ok(*done),
        other => Err(other.into()),
    }
}

fn ask(state_dir: &Path, request: Request) -> Result<Answer, ClientError> {
    let socket = state_dir.join(SOCKET_NAME);
    let stream = connect(state_dir, &socket)?;
    let line = exchange(&stream, request).map_err(|cause| ClientError::Talk {
        socket: socket.clone(),
        cause,
    })?;
    serde_json::from_str(&line).map_err(|cause| ClientError::Answer { socket, cause })
}

fn connect(state_dir: &Path, socket: &Path) -> Result<UnixStream, ClientError> {
    UnixStream::connect(socket).map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoDaemon {
            state_dir: state_dir.to_owned(),
        },
        _ => ClientError::Connect {
            socket: socket.to_owned(),
            cause,
        },
    })
}

fn exchange(mut stream: &UnixStream, request: Request) -> io::Result<String> {
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_string(&request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut answer)?;
    Ok(answer)
}

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket, or it is not there.
    #[error("no daemon runs with state directory {}", state_dir.display())]
    NoDaemon {
        /// Where its socket would be.
        state_dir: PathBuf,
    },
    /// The socket is there and could not be used.
    #[error("connect to the daemon at {}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The connection broke, or the daemon took too long.
    #[error("talk to the daemon at {}", socket.display())]
    Talk {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The daemon's answer is not what this version understands.
    #[error("understand the daemon at {} (is it of another version?)", socket.display())]
    Answer {
        /// The socket.
        socket: PathBuf,
        /// Where the answer differs.
        #[source]
        cause: serde_json::Error,
    },
    /// The daemon said no.
    #[error("the daemon answered: {error}")]
    Refused {
        /// Its words.
        error: String,
    },
    /// What was asked does not fit what is there.
    #[error("{refused}")]
    Unfit {
        /// The daemon's words.
        refused: String,
    },
    /// The daemon answered another question.
    #[error("the daemon answered something else than it was asked (is it of another version?)")]
    Astray,
}

/// Answers that are not what was hoped for.
impl From<Answer> for ClientError {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Error { error } => Self::Refused { error },
            Answer::Refused { refused } => Self::Unfit { refused },
            Answer::Applied(_)
            | Answer::AwsEnv(_)
            | Answer::Defaults { .. }
            | Answer::Done(_)
            | Answer::Instances { .. }
            | Answer::Ordered(_)
            | Answer::Port(_)
            | Answer::Status(_) => Self::Astray,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::{env, fs, process, thread};

    use super::*;

    /// A state directory with a daemon in it that gives one answer, whatever it is asked.
    fn with_daemon(answer: &'static str, test: impl FnOnce(&Path)) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let state_dir = env::temp_dir().join(format!("imds-client-{}-{count}", process::id()));
        fs::create_dir(&state_dir).unwrap();
        let listener = UnixListener::bind(state_dir.join(SOCKET_NAME)).unwrap();
        let daemon = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            (&stream).write_all(answer.as_bytes()).unwrap();
            request
        });
        test(&state_dir);
        assert_eq!(daemon.join().unwrap(), "{\"command\":\"status\"}\n");
        fs::remove_dir_all(state_dir).unwrap();
    }

    #[test]
    fn the_report_arrives() {
        let answer = concat!(
            r#"{"daemon":{"pid":1,"version":"0.1.0","started_unix_seconds":2,"config":"c"},"#,
            r#""responder":{"pid":null,"restarts":3,"workers":4},"ports":[],"guard":{"is_on":true,"uplinks":[],"dropped":{}},"drops":{},"packets":{"replied":5}}"#,
            "\n"
        );
        with_daemon(answer, |state_dir| {
            let report = status(state_dir).unwrap();
            assert_eq!(
                (report.responder.restarts, report.packets["replied"]),
                (3, 5)
            );
        });
    }

    #[test]
    fn a_refusal_and_nonsense_are_errors() {
        with_daemon("{\"error\":\"not now\"}\n", |state_dir| {
            assert_eq!(
                status(state_dir).unwrap_err().to_string(),
                "the daemon answered: not now"
            );
        });
        with_daemon("", |state_dir| {
            assert!(matches!(status(state_dir), Err(ClientError::Answer { .. })));
        });
    }

    #[test]
    fn without_a_daemon_the_error_says_so() {
        let error = status(Path::new("/nonexistent/imds")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no daemon runs with state directory /nonexistent/imds"
        );
    }
}
