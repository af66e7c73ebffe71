//! The daemon's end of the control socket.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};

use super::{Answer, REQUEST_BYTES_MAX, Request};

/// How long a client may take to ask, and the daemon to answer.
const CONVERSATION_MAX: Duration = Duration::from_secs(10);

/// A client's request, to be answered by the daemon.
#[derive(Debug)]
pub struct Question {
    /// What is asked.
    pub request: Request,
    /// The user who asks.
    pub uid: u32,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Answer>,
}

/// Listens for clients; their questions come out of the channel. The socket is replaced if an earlier daemon left one:
/// the caller holds the state directory's lock.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen(path: &Path) -> io::Result<mpsc::Receiver<Question>> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // The directory lets nobody else in; this is the second lock on the door.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let (questions, asked) = mpsc::channel(16);
    tokio::spawn(accept(listener, questions));
    Ok(asked)
}

async fn accept(listener: UnixListener, questions: mpsc::Sender<Question>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let questions = questions.clone();
                tokio::spawn(async move {
                    let conversation =
                        tokio::time::timeout(CONVERSATION_MAX, converse(stream, questions));
                    match conversation.await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!("control client: {error}"),
                        Err(_) => tracing::debug!("control client: too slow"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!("accept a control client: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(mut stream: UnixStream, questions: mpsc::Sender<Question>) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let answer = if may_ask(uid) {
        ask(&mut stream, &questions, uid).await?
    } else {
        refusal("only root may ask")
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

/// Root and the daemon's own user.
fn may_ask(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

async fn ask(
    stream: &mut UnixStream,
    questions: &mpsc::Sender<Question>,
    uid: u32,
) -> io::Result<Answer> {
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream).take(REQUEST_BYTES_MAX as u64);
    reader.read_until(b'\n', &mut line).await?;
    let request = match serde_json::from_slice(&line) {
        Ok(request) => request,
        Err(error) => return Ok(refusal(&format!("not a request: {error}"))),
    };
    let (answer, answered) = oneshot::channel();
    let question = Question {
        request,
        uid,
        answer,
    };
    if questions.send(question).await.is_err() {
        return Ok(refusal("the daemon is stopping"));
    }
    Ok(answered
        .await
        .unwrap_or_else(|_| refusal("the daemon is stopping")))
}

fn refusal(error: &str) -> Answer {
    Answer::Error {
        error: error.to_owned(),
    }
}
