//! Waits until a port is in the daemon's hands, as `imds wait` does. Nothing of a guest runs before.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::control::client::{self, ClientError};
use crate::control::discovery::PortState;

/// How long the daemon is left alone between two questions. A question costs it some ten microseconds.
const BETWEEN_QUESTIONS: Duration = Duration::from_millis(10);

/// Whom to ask, and how long.
#[derive(Clone, Debug)]
pub struct Door {
    /// The state directory of the daemon.
    pub state_dir: PathBuf,
    /// How long a port may be without an instance.
    pub patience: Duration,
}

/// A port that was not served in time.
#[derive(Debug, thiserror::Error)]
#[error("port {port} is not served after {} s: {why}", patience.as_secs())]
pub struct DoorError {
    port: String,
    patience: Duration,
    why: String,
}

impl Door {
    /// Returns when the daemon serves the port. It may be about to start, or to be told of the instance.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn served(&self, port: &str) -> Result<(), DoorError> {
        let deadline = Instant::now() + self.patience;
        loop {
            let why = match ask(&self.state_dir, port).await {
                Ok(None) => return Ok(()),
                Ok(Some(why)) => why,
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                return Err(DoorError {
                    port: port.to_owned(),
                    patience: self.patience,
                    why,
                });
            }
            tokio::time::sleep(BETWEEN_QUESTIONS).await;
        }
    }
}

/// Nothing if it is served, else why not.
async fn ask(state_dir: &Path, port: &str) -> Result<Option<String>, ClientError> {
    let (state_dir, port) = (state_dir.to_owned(), port.to_owned());
    let asked = tokio::task::spawn_blocking(move || client::port(&state_dir, port)).await;
    // The thread ends early only with the whole runtime.
    let report = asked.map_err(|_| ClientError::Astray)??;
    Ok((report.state != PortState::Served).then_some(report.why))
}
