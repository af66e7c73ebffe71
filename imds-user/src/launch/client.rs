//! The client of the launcher's socket: an order, an answer.
//!
//! This is what RunInstances calls. The daemon learns the instance before or meanwhile: the launcher waits at its door
//! until the guest's port, whose name [`super::plan::Names`] tells, is served.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::order::{Answer, LocalImage, Order, socket_in};
use super::plan::Spec;
use super::{Running, State};
use crate::instance::InstanceId;

/// Longer than a guest's end, its start and its wait for the daemon together.
const PATIENCE: Duration = Duration::from_secs(120);

/// The longest answer: a list of 10,000 guests.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// Nobody listens.
    #[error("no launcher runs with state directory {} (start one with `imds launcher`)", state_dir.display())]
    NoLauncher {
        /// Where its socket would be.
        state_dir: PathBuf,
    },
    /// The connection broke, or the launcher took too long.
    #[error("talk to the launcher at {}", socket.display())]
    Talk {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// The launcher could not.
    #[error("{0}")]
    Failed(String),
    /// The launcher answered something else.
    #[error("the launcher answered something else than it was asked (is it of another version?)")]
    Astray,
}

/// Launches a guest. When this returns its port is served and it runs.
///
/// # Errors
/// When it does not; nothing of it is there then.
pub async fn launch(state_dir: &Path, spec: Spec) -> Result<Running, OrderError> {
    running(order(state_dir, &Order::Launch { spec }).await?)
}

/// Starts a guest that was stopped.
///
/// # Errors
/// When it does not run afterwards.
pub async fn start(state_dir: &Path, id: InstanceId) -> Result<Running, OrderError> {
    running(order(state_dir, &Order::Start { id }).await?)
}

/// Stops a guest; one that does not run is let be.
///
/// # Errors
/// When it runs afterwards.
pub async fn stop(state_dir: &Path, id: InstanceId) -> Result<(), OrderError> {
    done(order(state_dir, &Order::Stop { id }).await?)
}

/// Stops a guest and starts it.
///
/// # Errors
/// When it did not run, or does not afterwards.
pub async fn reboot(state_dir: &Path, id: InstanceId) -> Result<Running, OrderError> {
    running(order(state_dir, &Order::Reboot { id }).await?)
}

/// Ends a guest and takes away all of it; one that is not there is let be.
///
/// # Errors
/// When something of it stays.
pub async fn terminate(state_dir: &Path, id: InstanceId) -> Result<(), OrderError> {
    done(order(state_dir, &Order::Terminate { id }).await?)
}

/// What a guest is doing.
///
/// # Errors
/// When the launcher cannot tell.
pub async fn state(state_dir: &Path, id: InstanceId) -> Result<State, OrderError> {
    match order(state_dir, &Order::State { id }).await? {
        Answer::State(state) => Ok(state),
        other => Err(other.into()),
    }
}

/// Every guest.
///
/// # Errors
/// When the launcher cannot tell.
pub async fn guests(state_dir: &Path) -> Result<Vec<(InstanceId, State)>, OrderError> {
    match order(state_dir, &Order::List {}).await? {
        Answer::Guests(guests) => Ok(guests),
        other => Err(other.into()),
    }
}

/// Every image that a guest can be made of, besides the host's own programs.
///
/// # Errors
/// When the launcher cannot tell.
pub async fn images(state_dir: &Path) -> Result<Vec<LocalImage>, OrderError> {
    match order(state_dir, &Order::Images {}).await? {
        Answer::Images(images) => Ok(images),
        other => Err(other.into()),
    }
}

fn running(answer: Answer) -> Result<Running, OrderError> {
    match answer {
        Answer::Running(running) => Ok(running),
        other => Err(other.into()),
    }
}

fn done(answer: Answer) -> Result<(), OrderError> {
    match answer {
        Answer::Done => Ok(()),
        other => Err(other.into()),
    }
}

async fn order(state_dir: &Path, order: &Order) -> Result<Answer, OrderError> {
    let socket = socket_in(state_dir);
    let talk = async {
        let mut stream = UnixStream::connect(&socket).await?;
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = Vec::new();
        let mut reader = BufReader::new(stream).take(ANSWER_BYTES_MAX);
        reader.read_until(b'\n', &mut answer).await?;
        if !answer.ends_with(b"\n") {
            // It ended, or there is no end of it.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(answer)
    };
    let talked = timeout(PATIENCE, talk).await;
    let answer = talked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let answer = answer.map_err(|cause: io::Error| match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => OrderError::NoLauncher {
            state_dir: state_dir.to_owned(),
        },
        _ => OrderError::Talk { socket, cause },
    })?;
    serde_json::from_slice(&answer).map_err(|_| OrderError::Astray)
}

/// Answers that are not what was hoped for.
impl From<Answer> for OrderError {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Failed(why) => Self::Failed(why),
            Answer::Done
            | Answer::Running(_)
            | Answer::State(_)
            | Answer::Guests(_)
            | Answer::Images(_) => Self::Astray,
        }
    }
}
