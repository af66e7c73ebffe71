//! The thread that signs: it makes the keys when there are none, holds them, and signs one document after the other.
//!
//! Signing takes milliseconds, making keys a good part of a second on a small machine: neither may hold up the daemon's
//! one event loop, and neither does a start wait for it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::SystemTime,
};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Keys, Signatures, disk::SystemRandom};
use crate::instance::UnixSeconds;

/// The thread, from outside. It ends when this is dropped.
#[derive(Debug)]
pub struct Signer {
    jobs: mpsc::Sender<Job>,
    signed: UnboundedReceiver<Signed>,
}

/// A document to be signed.
struct Job {
    slot: u32,
    document: String,
}

/// What became of a job.
#[derive(Debug)]
pub struct Signed {
    /// The slot that it was for.
    pub slot: u32,
    /// The signatures; none when there are no keys or signing failed, and the log says why.
    pub signatures: Option<Signatures>,
}

impl Signer {
    /// Starts the thread. `directory` is where the keys are, in a state directory whose lock the caller holds for as long
    /// as the process lives.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(directory: PathBuf) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let (finished, signed) = unbounded_channel();
        thread::Builder::new()
            .name("signer".to_owned())
            .spawn(move || work(&directory, &queue, &finished))?;
        Ok(Self { jobs, signed })
    }

    /// Has a document signed. The answer comes from [`Self::next`].
    pub fn sign(&self, slot: u32, document: String) {
        // It fails when the thread has panicked, which is in the log; who waits is told by the clock then.
        self.jobs.send(Job { slot, document }).ok();
    }

    /// What was signed next.
    pub async fn next(&mut self) -> Signed {
        match self.signed.recv().await {
            Some(signed) => signed,
            // The thread has panicked: nothing comes any more.
            None => std::future::pending().await,
        }
    }
}

fn work(directory: &Path, queue: &mpsc::Receiver<Job>, finished: &UnboundedSender<Signed>) {
    let keys = match Keys::load_or_make_in(directory) {
        Ok(keys) => Some(keys),
        Err(error) => {
            tracing::error!(
                "keys of the instance identity: {error}; no guest gets signatures until the daemon is started again"
            );
            None
        }
    };
    for Job { slot, document } in queue {
        let signatures = keys.as_ref().and_then(|keys| sign(keys, &document));
        if finished.send(Signed { slot, signatures }).is_err() {
            return;
        }
    }
}

fn sign(keys: &Keys, document: &str) -> Option<Signatures> {
    keys.sign(document.as_bytes(), now(), &mut SystemRandom)
        .inspect_err(|error| tracing::error!("sign an identity document: {error}"))
        .ok()
}

fn now() -> UnixSeconds {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    UnixSeconds(since.as_secs())
}
