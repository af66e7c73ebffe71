//! The launcher's end of its socket: takes orders, one at a time for a guest.

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::launchers::Launchers;
use super::order::{Answer, ORDER_BYTES_MAX, Order, socket_in};
use super::{LaunchError, Launcher, State};
use crate::instance::InstanceId;

/// How long whoever orders may take to say it.
const ASK_WITHIN: Duration = Duration::from_secs(10);

/// Listens for orders of a state directory. The socket is replaced if an earlier launcher left one: the caller holds its
/// lock.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen(state_dir: &Path) -> io::Result<UnixListener> {
    let path = socket_in(state_dir);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Takes orders for ever.
pub async fn serve(listener: UnixListener, launcher: Launchers) {
    let office = Arc::new(Office {
        launcher,
        busy: Mutex::default(),
    });
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let office = Arc::clone(&office);
                tokio::spawn(async move {
                    if let Err(error) = office.converse(stream).await {
                        tracing::debug!("launcher's client: {error}");
                    }
                });
            }
            Err(error) => {
                tracing::warn!("accept a launcher's client: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

struct Office {
    launcher: Launchers,
    /// Guests about which something is being done, and who waits for its end.
    busy: Mutex<HashMap<InstanceId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Office {
    async fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        let uid = stream.peer_cred()?.uid();
        let answer = if uid == 0 || uid == nix::unistd::geteuid().as_raw() {
            let mut line = Vec::new();
            let mut reader = BufReader::new(&mut stream).take(ORDER_BYTES_MAX as u64);
            timeout(ASK_WITHIN, reader.read_until(b'\n', &mut line)).await??;
            match serde_json::from_slice(&line) {
                Ok(order) => self.carry_out(order).await,
                Err(error) => Answer::Failed(format!("not an order: {error}")),
            }
        } else {
            Answer::Failed("only root may order".to_owned())
        };
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        stream.write_all(&line).await
    }

    async fn carry_out(&self, order: Order) -> Answer {
        let outcome = match order {
            Order::List {} => self.list().await,
            Order::Images {} => Ok(Answer::Images(self.launcher.images().await)),
            Order::State { id } => self.launcher.state(id).await.map(Answer::State),
            Order::Launch { spec } => {
                let _turn = self.turn(spec.id).await;
                self.launcher.start(&spec).await.map(Answer::Running)
            }
            Order::Start { id } => {
                let _turn = self.turn(id).await;
                self.launcher.start_again(id).await.map(Answer::Running)
            }
            Order::Stop { id } => {
                let _turn = self.turn(id).await;
                self.launcher.stop(id).await.map(|()| Answer::Done)
            }
            Order::Reboot { id } => {
                let _turn = self.turn(id).await;
                self.reboot(id).await
            }
            Order::Terminate { id } => {
                let turn = self.turn(id).await;
                let outcome = self.launcher.terminate(id).await;
                drop(turn);
                self.forget(id);
                outcome.map(|()| Answer::Done)
            }
        };
        outcome.unwrap_or_else(|error| {
            let text = whole(&error);
            tracing::warn!("{text}");
            Answer::Failed(text)
        })
    }

    async fn reboot(&self, id: InstanceId) -> Result<Answer, LaunchError> {
        match self.launcher.state(id).await? {
            State::Running(_) => {}
            State::Stopped => return Err(LaunchError::Stopped(id)),
            State::Absent => return Err(LaunchError::Absent(id)),
        }
        self.launcher.stop(id).await?;
        self.launcher.start_again(id).await.map(Answer::Running)
    }

    async fn list(&self) -> Result<Answer, LaunchError> {
        let mut guests = Vec::new();
        for id in self.launcher.guests()? {
            guests.push((id, self.launcher.state(id).await?));
        }
        Ok(Answer::Guests(guests))
    }

    /// Waits until nothing else is being done about a guest.
    async fn turn(&self, id: InstanceId) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(busy.entry(id).or_default())
        };
        lock.lock_owned().await
    }

    /// Lets go of the lock of a guest that is no more, unless somebody waits for it.
    fn forget(&self, id: InstanceId) {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if busy
            .get(&id)
            .is_some_and(|lock| Arc::strong_count(lock) == 1)
        {
            busy.remove(&id);
        }
    }
}

/// An error with its causes, in one line.
fn whole(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
