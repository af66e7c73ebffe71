//! A caller of a daemon's control API, by its Unix socket: the kernel says who calls, so that nothing is signed. The
//! connection is kept, as AWS's clients keep theirs.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::patience::patience;

/// Bound on one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The status of HTTP.
    pub status: u16,
    /// The document.
    pub body: String,
}

impl Said {
    /// What the first element of this name has in it.
    #[must_use]
    pub fn element(&self, name: &str) -> Option<&str> {
        let (_, rest) = self.body.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>"))
            .map(|(inside, _)| inside)
    }
}

/// A connection to the API.
pub struct Api {
    stream: UnixStream,
}

impl Api {
    /// Connects to the daemon with this state directory.
    ///
    /// # Errors
    /// When no daemon listens.
    pub fn connect(state_dir: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(state_dir.join("api.sock"))?;
        stream.set_read_timeout(Some(patience(ANSWER_WITHIN)))?;
        Ok(Self { stream })
    }

    /// Calls an action of EC2, given as a form without its version.
    ///
    /// # Errors
    /// When the connection ends before all is answered: then nobody knows whether it was done.
    pub fn try_call(&mut self, form: &str) -> io::Result<Said> {
        let body = format!("{form}&Version=2016-11-15");
        let request = format!(
            "POST / HTTP/1.1\r\nHost: api\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(request.as_bytes())?;
        receive(&mut self.stream)
    }

    /// Calls an action that is to be done.
    ///
    /// # Panics
    /// When it is refused, or not answered.
    pub fn call(&mut self, form: &str) -> Said {
        let said = self.try_call(form);
        let said = said.unwrap_or_else(|error| panic!("{form}: {error}"));
        assert_eq!(said.status, 200, "{form}: {}", said.body);
        said
    }
}

fn receive(stream: &mut impl Read) -> io::Result<Said> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidData);
    let mut bytes = Vec::new();
    let head = loop {
        let mut more = [0; 16384];
        let n = stream.read(&mut more)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&more[..n]);
        if let Some(end) = bytes.windows(4).position(|part| part == b"\r\n\r\n") {
            break String::from_utf8(bytes.drain(..end + 4).collect()).map_err(|_| wrong())?;
        }
    };
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = lengths
        .next()
        .and_then(|(_, value)| value.trim().parse().ok());
    let (status, length) = status.zip(length).ok_or_else(wrong)?;
    let n_read: usize = bytes.len();
    bytes.resize(length, 0);
    stream.read_exact(&mut bytes[n_read.min(length)..])?;
    let body = String::from_utf8(bytes).map_err(|_| wrong())?;
    Ok(Said { status, body })
}
