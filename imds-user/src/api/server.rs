//! Connections in, replies out. By hyper: unlike guests' clients, those of AWS use all of HTTP/1.1 (bodies in chunks,
//! `Expect`, connections that are kept), and what is answered has nothing of EC2's metadata service to imitate.
//!
//! Three doors. The TCP listener takes connections of this machine alone: it is bound to a loopback address and to the
//! interface `lo`, and does not talk to a peer with another address. The Unix socket takes root and the daemon's own user, of
//! whom it knows by the kernel who they are. A listener with TLS may be anywhere.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::call::Caller;
use super::fault::{Code, Refusal, Reply, Service};
use super::query::BYTES_MAX;
use super::service::Api;
use super::sigv4;
use super::tls::Tls;
use crate::store::{KeyRole, Who};

/// How many connections there are at the same time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// How long a client may take to send a head, and a connection be idle.
const HEAD_WITHIN: Duration = Duration::from_secs(20);
/// How long a client may take to send a body, and we to answer it.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// The largest head in bytes: a presigned call has all of its parameters in there.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// The most header fields. SDKs send about ten.
const FIELDS_MAX: usize = 64;
/// Pause after the kernel could not give us a connection, so that the wait is not a busy one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// Where clients of JSON services look for it.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
/// Where those of services that spoke another protocol once look for the code of an error.
const QUERY_ERROR: HeaderName = HeaderName::from_static("x-amzn-query-error");

/// Why there is no door.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// Anybody could listen in, and anybody try.
    #[error(
        "{0} is not a loopback address: the control API is offered to the network with TLS alone; use 127.0.0.1 or ::1, or give it a certificate"
    )]
    NotLoopback(IpAddr),
    /// The system refused.
    #[error("listen at {at}: {cause}")]
    Refused {
        /// Where.
        at: String,
        /// What it said.
        cause: io::Error,
    },
}

/// Listens at a loopback address of this machine; port 0 is any. To be called in a runtime.
///
/// # Errors
/// The address is another, or taken.
pub fn listen(address: SocketAddr) -> Result<TcpListener, DoorError> {
    if !address.ip().is_loopback() {
        return Err(DoorError::NotLoopback(address.ip()));
    }
    let listener = || -> io::Result<TcpListener> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        // A host that routes 127.0.0.0/8 in from elsewhere (`route_localnet`) does not route it to us.
        setsockopt(&socket, sockopt::BindToDevice, &"lo".into()).map_err(io::Error::from)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listener().map_err(|cause| DoorError::Refused {
        at: address.to_string(),
        cause,
    })
}

/// Listens at any address, for [`serve_tls`]; port 0 is any. To be called in a runtime.
///
/// # Errors
/// It is taken, or not this machine's.
pub fn listen_anywhere(address: SocketAddr) -> Result<TcpListener, DoorError> {
    let listener = || -> io::Result<TcpListener> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listener().map_err(|cause| DoorError::Refused {
        at: address.to_string(),
        cause,
    })
}

/// Listens at a path, in place of whoever did before. To be called in a runtime.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen_unix(path: &Path) -> Result<UnixListener, DoorError> {
    let listener = || -> io::Result<UnixListener> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    listener().map_err(|cause| DoorError::Refused {
        at: path.display().to_string(),
        cause,
    })
}

/// Serves connections of this machine until it is dropped. Who calls is known by the signature.
pub async fn serve(api: Arc<Api>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Some(permit) = place(&room).await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, peer)) if peer.ip().to_canonical().is_loopback() => {
                tokio::spawn(converse(Arc::clone(&api), stream, None, permit));
            }
            Ok((_, peer)) => tracing::warn!("a connection of {peer} to the control API is refused"),
            Err(error) => pause("the control API", &error).await,
        }
    }
}

/// Serves connections from anywhere, by TLS, until it is dropped. Who calls is known by the signature.
pub async fn serve_tls(api: Arc<Api>, listener: TcpListener, tls: Tls) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Some(permit) = place(&room).await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (api, tls) = (Arc::clone(&api), tls.clone());
                tokio::spawn(async move {
                    // Whoever does not agree in time has nothing to say here.
                    if let Ok(Ok(stream)) = timeout(HEAD_WITHIN, tls.accept(stream)).await {
                        converse(api, stream, None, permit).await;
                    }
                });
            }
            Err(error) => pause("the control API", &error).await,
        }
    }
}

/// Serves the Unix socket until it is dropped. Root and the daemon's own user may do everything.
pub async fn serve_unix(api: Arc<Api>, listener: UnixListener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Some(permit) = place(&room).await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => match user_of(&stream) {
                Some(caller) => {
                    tokio::spawn(converse(Arc::clone(&api), stream, Some(caller), permit));
                }
                None => tracing::warn!("another user at the socket of the control API is refused"),
            },
            Err(error) => pause("the socket of the control API", &error).await,
        }
    }
}

async fn place(room: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    Arc::clone(room).acquire_owned().await.ok()
}

async fn pause(at: &str, error: &io::Error) {
    tracing::warn!("accept a connection of {at}: {error}");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

fn user_of(stream: &UnixStream) -> Option<Caller> {
    let uid = stream.peer_cred().ok()?.uid();
    let may = uid == 0 || uid == nix::unistd::geteuid().as_raw();
    may.then_some(Caller {
        who: Who::User(uid),
        role: KeyRole::Admin,
    })
}

async fn converse<S>(api: Arc<Api>, stream: S, peer: Option<Caller>, _place: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answer = service_fn(move |request: Request<Incoming>| {
        let (api, peer) = (Arc::clone(&api), peer.clone());
        async move { Ok::<_, std::convert::Infallible>(respond(&api, request, peer).await) }
    });
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(FIELDS_MAX)
        .serve_connection(TokioIo::new(stream), answer);
    if let Err(error) = conversation.await {
        tracing::debug!("a client of the control API: {error}");
    }
}

async fn respond(
    api: &Api,
    request: Request<Incoming>,
    peer: Option<Caller>,
) -> Response<Full<Bytes>> {
    match timeout(ANSWER_WITHIN, answer(api, request, peer)).await {
        Ok(Ok(reply)) => response(reply, false),
        Ok(Err(refusal)) => response(Reply::refusal(Service::Ec2, &refusal, ""), true),
        Err(_elapsed) => {
            let refusal = Refusal::new(
                Code::MalformedQueryString,
                "The request did not arrive in time",
            );
            response(Reply::refusal(Service::Ec2, &refusal, ""), true)
        }
    }
}

/// Refusals of this function are of requests that did not come whole.
async fn answer(
    api: &Api,
    request: Request<Incoming>,
    peer: Option<Caller>,
) -> Result<Reply, Refusal> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BYTES_MAX).collect().await;
    let body = body.map_err(|error| {
        if error.is::<LengthLimitError>() {
            let message = format!("A request has at most {BYTES_MAX} bytes");
            Refusal::new(Code::RequestEntityTooLarge, message)
        } else {
            Refusal::new(Code::MalformedQueryString, "The request did not come whole")
        }
    })?;
    let body = body.to_bytes();
    let headers: Vec<_> = head
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    let request = sigv4::Request {
        method: head.method.as_str(),
        path: head.uri.path(),
        query: head.uri.query().unwrap_or_default(),
        headers: &headers,
        body: &body,
    };
    if request.path != "/" {
        let message = format!("There is nothing at {}", request.path);
        return Err(Refusal::new(Code::InvalidAction, message));
    }
    Ok(api.answer(&request, peer).await)
}

fn response(reply: Reply, is_last: bool) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(reply.body)));
    *response.status_mut() =
        StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    if let Ok(id) = HeaderValue::from_str(&reply.request_id) {
        headers.insert(REQUEST_ID, id);
    }
    if let Some(Ok(error)) = reply.query_error.map(HeaderValue::try_from) {
        headers.insert(QUERY_ERROR, error);
    }
    if is_last {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
