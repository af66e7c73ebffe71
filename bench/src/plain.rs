//! The rival: a plain hyper server that gives one fixed answer, a process of its own as the responder is one.

use std::{
    convert::Infallible,
    io,
    net::TcpListener,
    os::fd::{AsFd as _, OwnedFd},
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;
use bytes::Bytes;
use hyper::{Response, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use imds_user::http::body::WholeBody;
use nix::sys::{prctl, signal::Signal, socket::setsockopt, socket::sockopt};

use crate::cpu;

/// The rival's process. Dropping it ends it.
pub(crate) struct PlainServer(Child);

impl PlainServer {
    /// Starts it on a CPU, behind this listener, with an answer of so many bytes.
    pub(crate) fn start(
        listener: TcpListener,
        cpu: usize,
        answer_bytes: usize,
    ) -> anyhow::Result<Self> {
        // As the responder's: inherited by every connection.
        setsockopt(&listener, sockopt::TcpNoDelay, &true).context("set TCP_NODELAY")?;
        let own = std::env::current_exe().context("find this program")?;
        let child = Command::new(own)
            .arg("plain-server")
            .args(["--cpu", &cpu.to_string()])
            .args(["--body-bytes", &body_bytes(answer_bytes).to_string()])
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .spawn()
            .context("start the plain server")?;
        Ok(Self(child))
    }
}

impl Drop for PlainServer {
    fn drop(&mut self) {
        // It may have ended by itself; nothing else of it is left then either.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// How long the body must be for an answer of so many bytes, given the head that hyper writes by itself.
fn body_bytes(answer_bytes: usize) -> usize {
    const HEAD_BYTES: usize = "HTTP/1.1 200 OK\r\n".len()
        + "content-length: \r\n".len()
        + "date: Thu, 01 Jan 1970 00:00:00 GMT\r\n".len()
        + "\r\n".len();
    let rest = answer_bytes.saturating_sub(HEAD_BYTES);
    // The length is part of itself: as many digits as leave a number with as many digits.
    (1..=rest.to_string().len())
        .map(|digits| (digits, rest.saturating_sub(digits)))
        .find(|(digits, body)| body.to_string().len() == *digits)
        .map_or(rest, |(_, body)| body)
}

/// Serves the listener on standard input until the process that started it ends.
pub(crate) fn serve(cpu: usize, body_bytes: usize) -> anyhow::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("follow the bench into its end")?;
    cpu::pin(cpu)?;
    let listener = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .context("take the listener")?;
    let listener = TcpListener::from(listener);
    listener
        .set_nonblocking(true)
        .context("take the listener")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("start the runtime")?;
    runtime.block_on(accept(listener, Bytes::from(vec![b'x'; body_bytes])))
}

async fn accept(listener: TcpListener, body: Bytes) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener).context("listen")?;
    loop {
        let (stream, _) = listener.accept().await.context("accept a connection")?;
        let body = body.clone();
        tokio::spawn(async move {
            let answer = service_fn(|_| {
                let response = Response::new(WholeBody::new(body.clone()));
                std::future::ready(Ok::<_, Infallible>(response))
            });
            // What ends a connection early is the client's business.
            http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await
                .ok();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_fills_the_answer_up() {
        let answer = |body: usize| {
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {body}\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n"
            );
            head.len() + body
        };
        for body in [1, 9, 10, 99, 100, 253, 999, 1000, 16_384] {
            assert_eq!(body_bytes(answer(body)), body);
        }
    }
}
