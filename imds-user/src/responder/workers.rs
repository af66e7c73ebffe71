//! The threads of a responder that serve guests.

use std::{
    future::pending,
    io,
    net::TcpListener,
    process,
    sync::{Arc, Barrier, OnceLock},
    thread,
};

use tokio::{
    runtime,
    sync::{mpsc, oneshot},
};

use super::listeners;
use crate::http::server::{self, Server};

/// The threads. They serve from [`Workers::let_go`] until the end of the process.
pub struct Workers {
    /// Opened when the daemon said everything. Before, the connections that waited for this responder would be taken for
    /// strangers' and refused.
    gate: Arc<OnceLock<()>>,
    pulses: Vec<mpsc::UnboundedSender<oneshot::Sender<()>>>,
}

impl Workers {
    /// Starts them. All of them wait at the gate, with everything they need, when this returns, so that the system calls
    /// of a thread's start need not be allowed.
    ///
    /// # Errors
    /// When a thread, its runtime or a descriptor is refused.
    pub fn start(server: &Arc<Server>, sockets: &[TcpListener; 2], count: u16) -> io::Result<Self> {
        let ready = Arc::new(Barrier::new(usize::from(count) + 1));
        let gate = Arc::new(OnceLock::new());
        let mut pulses = Vec::new();
        for number in 0..count {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let sockets = listeners::clone(sockets)?;
            let (pulse, asked) = mpsc::unbounded_channel();
            pulses.push(pulse);
            let (server, gate, ready) = (Arc::clone(server), Arc::clone(&gate), Arc::clone(&ready));
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || {
                    let _guard = AllOrNone;
                    ready.wait();
                    gate.wait();
                    runtime.block_on(async {
                        tokio::spawn(answer(asked));
                        server::serve(server, sockets).await;
                        // Connections that are open are served on until the process ends.
                        pending::<()>().await;
                    });
                })?;
        }
        ready.wait();
        Ok(Self { gate, pulses })
    }

    /// Lets them serve.
    pub fn let_go(&self) {
        self.gate.get_or_init(|| ());
    }

    /// Whether they may serve.
    #[must_use]
    pub fn serve(&self) -> bool {
        self.gate.get().is_some()
    }

    /// Ends when every one of them has given a sign of life; never, if one does not any more.
    pub fn pulse(&self) -> impl Future<Output = ()> + use<> {
        let signs: Vec<_> = self
            .pulses
            .iter()
            .map(|pulse| {
                let (answer, sign) = oneshot::channel();
                // A worker that ended took the process along.
                drop(pulse.send(answer));
                sign
            })
            .collect();
        async move {
            for sign in signs {
                if sign.await.is_err() {
                    pending::<()>().await;
                }
            }
        }
    }
}

async fn answer(mut asked: mpsc::UnboundedReceiver<oneshot::Sender<()>>) {
    while let Some(answer) = asked.recv().await {
        // Whoever asked may have gone.
        answer.send(()).ok();
    }
}

/// A panic in a request ends that request; one in the thread itself would leave a process that serves with fewer threads
/// and has lost connections. It ends the process instead, and the daemon starts another at once.
struct AllOrNone;

impl Drop for AllOrNone {
    fn drop(&mut self) {
        if thread::panicking() {
            process::abort();
        }
    }
}
