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
use http_body_util::Full;
use hyper::{
    HeaderMap, Response,
    header::{HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use nix::sys::{prctl, signal::Signal, socket::setsockopt, socket::sockopt};

use crate::cpu;

/// What the rival always answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FixedAnswer {
    /// Header fields as lines; none of them: those that hyper writes by itself.
    pub(crate) fields: Vec<String>,
    pub(crate) body_bytes: usize,
}

impl FixedAnswer {
    /// As hyper gives it, filled up to so many bytes.
    pub(crate) fn filled_up(answer_bytes: usize) -> Self {
        Self {
            fields: Vec::new(),
            body_bytes: body_bytes(answer_bytes),
        }
    }

    /// With the header fields of this answer, in their order and spelling.
    pub(crate) fn like(answer: &[u8]) -> Self {
        let text = String::from_utf8_lossy(answer);
        let (head, _) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let fields = head
            .lines()
            .skip(1)
            .filter(|line| !line.starts_with("Connection:"));
        Self {
            fields: fields.map(str::to_owned).collect(),
            body_bytes: answer.len().saturating_sub(head.len() + 4),
        }
    }

    fn head(&self) -> anyhow::Result<HeaderMap> {
        let mut head = HeaderMap::new();
        for field in &self.fields {
            let (name, value) = field
                .split_once(": ")
                .context("a field has a name and a value")?;
            head.append(
                HeaderName::from_bytes(name.as_bytes())?,
                HeaderValue::from_str(value)?,
            );
        }
        Ok(head)
    }
}

/// The rival's process. Dropping it ends it.
pub(crate) struct PlainServer(Child);

impl PlainServer {
    /// Starts it on a CPU, behind this listener, with this answer.
    pub(crate) fn start(
        listener: TcpListener,
        cpu: usize,
        answer: &FixedAnswer,
    ) -> anyhow::Result<Self> {
        // As the responder's: inherited by every connection.
        setsockopt(&listener, sockopt::TcpNoDelay, &true).context("set TCP_NODELAY")?;
        let own = std::env::current_exe().context("find this program")?;
        let child = Command::new(own)
            .arg("plain-server")
            .args(["--cpu", &cpu.to_string()])
            .args(["--body-bytes", &answer.body_bytes.to_string()])
            .args(answer.fields.iter().flat_map(|field| ["--field", field]))
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
pub(crate) fn serve(cpu: usize, answer: &FixedAnswer) -> anyhow::Result<()> {
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
    let body = Bytes::from(vec![b'x'; answer.body_bytes]);
    runtime.block_on(accept(listener, answer.head()?, body))
}

async fn accept(listener: TcpListener, head: HeaderMap, body: Bytes) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener).context("listen")?;
    let is_hypers_own = head.is_empty();
    loop {
        let (stream, _) = listener.accept().await.context("accept a connection")?;
        let (head, body) = (head.clone(), body.clone());
        tokio::spawn(async move {
            let answer = service_fn(|_| {
                let mut response = Response::new(Full::new(body.clone()));
                if !is_hypers_own {
                    *response.headers_mut() = head.clone();
                }
                std::future::ready(Ok::<_, Infallible>(response))
            });
            // What ends a connection early is the client's business.
            http1::Builder::new()
                .auto_date_header(is_hypers_own)
                .title_case_headers(!is_hypers_own)
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
    fn an_answer_is_imitated_but_for_what_hyper_adds() {
        let answer = b"HTTP/1.1 200 OK\r\nServer: EC2ws\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
        let expected = FixedAnswer {
            fields: vec!["Server: EC2ws".into(), "Content-Length: 3".into()],
            body_bytes: 3,
        };
        assert_eq!(FixedAnswer::like(answer), expected);
    }

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
