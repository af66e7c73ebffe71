//! The questions that Docker is asked, and as much of HTTP as they take.
//!
//! They are asked in HTTP/1.0, each on a connection of its own: an answer ends with its connection, and so does the stream
//! of events.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::BytesMut;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::container::{Container, LABEL};

/// How long Docker may take to answer. It waits for a container that is being started, and a first start may be slow.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer that is read: a thousand containers with sixteen kilobytes of labels each.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// The longest head of an answer, and as many fields as it may have.
const HEAD_BYTES_MAX: usize = 16 << 10;
const FIELDS_MAX: usize = 64;
/// HTTP's words for "here it is" and "there is none".
const OK: u16 = 200;
const NOT_FOUND: u16 = 404;
/// What has a bearing on who is a guest. Health checks, for example, have none, and there are many of them.
const EVENTS: &str = r#"{"type":["container","network"],"event":["start","restart","die","destroy","rename","connect","disconnect"]}"#;
/// Containers that have a network, or are about to.
const STATES: &str = r#"{"status":["created","restarting","running","paused"]}"#;

/// Why Docker could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// Nobody listens, or the socket is not there.
    #[error("docker at {}: {cause}", socket.display())]
    Connect {
        /// Its socket.
        socket: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The conversation broke off.
    #[error("docker: {path}: {cause}")]
    Talk {
        /// What was asked for.
        path: String,
        /// What the kernel said.
        cause: io::Error,
    },
    /// It took too long.
    #[error("docker: {path}: no answer within {} s", PATIENCE.as_secs())]
    Late {
        /// What was asked for.
        path: String,
    },
    /// It refused.
    #[error("docker: {path}: status {status}")]
    Refused {
        /// What was asked for.
        path: String,
        /// Its answer.
        status: u16,
    },
    /// What it said is no HTTP.
    #[error("docker: {path}: {cause}")]
    Head {
        /// What was asked for.
        path: String,
        /// What is wrong with it.
        cause: httparse::Error,
    },
    /// Its answer is not what is understood here.
    #[error("docker: {path}: {cause}")]
    Answer {
        /// What was asked for.
        path: String,
        /// Where it differs.
        cause: serde_json::Error,
    },
    /// Its answer is longer than any should be.
    #[error("docker: {path}: more than {ANSWER_BYTES_MAX} bytes")]
    Long {
        /// What was asked for.
        path: String,
    },
    /// It ended, or closed its stream of events.
    #[error("docker went away")]
    Away,
    /// Not Docker's fault: the interfaces of the host.
    #[error("docker's containers: {0}")]
    Host(String),
}

/// A Docker daemon.
#[derive(Debug)]
pub(crate) struct Api {
    socket: PathBuf,
}

/// What happens there.
pub(super) struct Events {
    answer: Answer,
}

/// An answer whose head was read.
struct Answer {
    status: u16,
    /// What came of the body with the head.
    body: BytesMut,
    stream: UnixStream,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    #[serde(default)]
    config: Option<ImageConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ImageConfig {
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

impl Api {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// What happens from now on.
    pub(super) async fn events(&self) -> Result<Events, ApiError> {
        let path = format!("/events?filters={}", encoded(EVENTS));
        let late = |_| ApiError::Late { path: path.clone() };
        let answer = tokio::time::timeout(PATIENCE, self.ask("GET", &path, &[])).await;
        let answer = answer.map_err(late)??;
        match answer.status {
            OK => Ok(Events { answer }),
            status => Err(ApiError::Refused { path, status }),
        }
    }

    /// The ids of the containers with a label of ours.
    pub(super) async fn labelled(&self) -> Result<Vec<String>, ApiError> {
        let path = format!("/containers/json?all=1&filters={}", encoded(STATES));
        let listed: Vec<Listed> = self.get(&path).await?.unwrap_or_default();
        let is_labelled = |container: &Listed| {
            let mut keys = container.labels.iter().flat_map(BTreeMap::keys);
            keys.any(|key| key.starts_with(LABEL))
        };
        let labelled = listed.into_iter().filter(is_labelled);
        Ok(labelled.map(|container| container.id).collect())
    }

    /// A container; none if it is gone by now.
    pub(super) async fn container(&self, id: &str) -> Result<Option<Container>, ApiError> {
        self.get(&format!("/containers/{}/json", encoded(id))).await
    }

    /// The labels of an image; none if it is gone.
    pub(super) async fn image(
        &self,
        id: &str,
    ) -> Result<Option<BTreeMap<String, String>>, ApiError> {
        let image: Option<Image> = self.get(&format!("/images/{}/json", encoded(id))).await?;
        let labels = |image: Image| image.config.and_then(|config| config.labels);
        Ok(image.map(|image| labels(image).unwrap_or_default()))
    }

    /// What is at a path; none if nothing is.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, ApiError> {
        let (status, body) = self.answer("GET", path, &[]).await?;
        match status {
            OK => serde_json::from_slice(&body)
                .map(Some)
                .map_err(|cause| ApiError::Answer {
                    path: path.to_owned(),
                    cause,
                }),
            NOT_FOUND => Ok(None),
            status => Err(ApiError::Refused {
                path: path.to_owned(),
                status,
            }),
        }
    }

    /// Has something done, with so much JSON; the status of the answer.
    pub(crate) async fn order(
        &self,
        method: &str,
        path: &str,
        json: &[u8],
    ) -> Result<u16, ApiError> {
        Ok(self.answer(method, path, json).await?.0)
    }

    async fn answer(
        &self,
        method: &str,
        path: &str,
        json: &[u8],
    ) -> Result<(u16, BytesMut), ApiError> {
        let late = |_| ApiError::Late {
            path: path.to_owned(),
        };
        let whole = async { self.ask(method, path, json).await?.whole(path).await };
        tokio::time::timeout(PATIENCE, whole).await.map_err(late)?
    }

    /// Asks, and reads the head of the answer.
    async fn ask(&self, method: &str, path: &str, json: &[u8]) -> Result<Answer, ApiError> {
        let mut stream =
            UnixStream::connect(&self.socket)
                .await
                .map_err(|cause| ApiError::Connect {
                    socket: self.socket.clone(),
                    cause,
                })?;
        let question = [question(method, path, json.len()).as_bytes(), json].concat();
        stream.write_all(&question).await.map_err(talk(path))?;
        let mut bytes = BytesMut::new();
        loop {
            if stream.read_buf(&mut bytes).await.map_err(talk(path))? == 0 {
                return Err(ApiError::Away);
            }
            let head = head_of(&bytes).map_err(|cause| ApiError::Head {
                path: path.to_owned(),
                cause,
            })?;
            if let Some((status, length)) = head {
                let body = bytes.split_off(length);
                return Ok(Answer {
                    status,
                    body,
                    stream,
                });
            }
            if bytes.len() > HEAD_BYTES_MAX {
                return Err(long(path));
            }
        }
    }
}

impl Answer {
    async fn whole(mut self, path: &str) -> Result<(u16, BytesMut), ApiError> {
        while self
            .stream
            .read_buf(&mut self.body)
            .await
            .map_err(talk(path))?
            > 0
        {
            if self.body.len() > ANSWER_BYTES_MAX {
                return Err(long(path));
            }
        }
        Ok((self.status, self.body))
    }
}

impl Events {
    /// Waits until something happened; what, is for the next list to say. Cancelling the wait loses nothing.
    pub(super) async fn next(&mut self) -> Result<(), ApiError> {
        let Answer { body, stream, .. } = &mut self.answer;
        if body.is_empty() && stream.read_buf(body).await.map_err(talk("/events"))? == 0 {
            return Err(ApiError::Away);
        }
        body.clear();
        Ok(())
    }
}

/// The head of a question.
fn question(method: &str, path: &str, json_bytes: usize) -> String {
    let body = match json_bytes {
        0 => String::new(),
        length => format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"),
    };
    format!("{method} {path} HTTP/1.0\r\nHost: docker\r\n{body}\r\n")
}

/// The status of an answer and how long its head is, once it is there.
fn head_of(bytes: &[u8]) -> Result<Option<(u16, usize)>, httparse::Error> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut fields);
    Ok(match head.parse(bytes)? {
        httparse::Status::Complete(length) => Some((head.code.unwrap_or_default(), length)),
        httparse::Status::Partial => None,
    })
}

fn talk(path: &str) -> impl FnOnce(io::Error) -> ApiError + '_ {
    move |cause| ApiError::Talk {
        path: path.to_owned(),
        cause,
    }
}

fn long(path: &str) -> ApiError {
    ApiError::Long {
        path: path.to_owned(),
    }
}

/// A part of a path or query, all but the plainest characters as `%XX`.
pub(crate) fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_known_when_it_is_whole() {
        for (text, expected) in [
            (
                "HTTP/1.0 200 OK\r\nServer: Docker\r\n\r\n{}",
                Some((200, 35)),
            ),
            ("HTTP/1.0 404 Not Found\r\n\r\n", Some((404, 26))),
            ("HTTP/1.0 200 OK\r\nServer: Do", None),
            ("", None),
        ] {
            assert_eq!(head_of(text.as_bytes()).unwrap(), expected, "{text}");
        }
        assert!(head_of(b"SSH-2.0-OpenSSH\r\n\r\n").is_err());
    }

    #[test]
    fn a_question_says_how_long_its_body_is_if_it_has_one() {
        assert_eq!(
            question("GET", "/info", 0),
            "GET /info HTTP/1.0\r\nHost: docker\r\n\r\n"
        );
        assert_eq!(
            question("POST", "/containers/create", 2),
            "POST /containers/create HTTP/1.0\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
        );
    }

    #[test]
    fn what_is_asked_for_is_one_word() {
        for (text, expected) in [
            ("sha256:0af9", "sha256:0af9"),
            (r#"{"a":["b"]}"#, "%7B%22a%22:%5B%22b%22%5D%7D"),
            ("../x?y z", "..%2Fx%3Fy%20z"),
        ] {
            assert_eq!(encoded(text), expected);
        }
    }
}
