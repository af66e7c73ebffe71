//! A raw HTTP client: what it sends is what the test wrote, what it returns is what came, in order.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::patience::patience;

/// Bound on a connect. A connect that succeeds takes milliseconds; a lost SYN is sent again after one second.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Bound on one whole answer. Generous, because path MTU probing sits out several retransmissions.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// The two addresses of the service, and any other that a test wants to knock at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// 169.254.169.254, port 80.
    V4,
    /// fd00:ec2::254, port 80.
    V6,
    /// Something else.
    Other(SocketAddr),
}

impl Address {
    /// The socket address to connect to.
    #[must_use]
    pub fn socket(self) -> SocketAddr {
        match self {
            Self::V4 => SocketAddr::from((Ipv4Addr::new(169, 254, 169, 254), 80)),
            Self::V6 => SocketAddr::from((Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 80)),
            Self::Other(address) => address,
        }
    }

    /// How a URL writes it.
    #[must_use]
    pub fn url(self) -> String {
        match self {
            Self::V4 => "http://169.254.169.254".to_owned(),
            Self::V6 => "http://[fd00:ec2::254]".to_owned(),
            Self::Other(address) => format!("http://{address}"),
        }
    }
}

/// An answer as it came over the wire.
#[derive(Clone)]
pub struct Response {
    /// The first line, such as `HTTP/1.1 200 OK`.
    pub status_line: String,
    /// Names and values in the order and spelling of the wire.
    pub headers: Vec<(String, String)>,
    /// The body: as long as Content-Length says, or up to the end of the connection.
    pub body: Vec<u8>,
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = String::from_utf8_lossy(&self.body[..self.body.len().min(400)]);
        write!(f, "{} {:?} {body:?}", self.status_line, self.headers)
    }
}

impl Response {
    /// The number in the status line.
    ///
    /// # Panics
    /// When the line has none.
    #[must_use]
    pub fn status(&self) -> u16 {
        let number = self
            .status_line
            .split(' ')
            .nth(1)
            .and_then(|number| number.parse().ok());
        number.unwrap_or_else(|| panic!("no status in {:?}", self.status_line))
    }

    /// The value of a header, its name in any case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(given, _)| given.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The body as text.
    ///
    /// # Panics
    /// When it is not UTF-8.
    #[must_use]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body)
            .unwrap_or_else(|_| panic!("the body is not text: {:?}", self.body))
    }
}

/// An open connection. It stays in the namespace that it was made in, whichever thread uses it.
pub struct Connection {
    stream: TcpStream,
    /// Bytes that came after the answers returned so far.
    unread: Vec<u8>,
}

impl Connection {
    /// Connects from the namespace of the calling thread.
    ///
    /// # Errors
    /// Those of connect(2), and `TimedOut` after five seconds.
    pub fn open(to: Address) -> io::Result<Self> {
        Self::open_within(to, patience(CONNECT_WITHIN))
    }

    /// As [`Connection::open`] with a bound of its own, for connects that are expected to fail.
    ///
    /// # Errors
    /// Those of connect(2), and `TimedOut`.
    pub fn open_within(to: Address, within: Duration) -> io::Result<Self> {
        Self::of(TcpStream::connect_timeout(&to.socket(), within)?)
    }

    /// Connects from one of several addresses of the caller.
    ///
    /// # Errors
    /// Those of bind(2) and connect(2).
    pub fn open_from(from: IpAddr, to: Address) -> io::Result<Self> {
        Self::open_from_port(SocketAddr::new(from, 0), to)
    }

    /// Connects from an address and port of the caller's choice.
    ///
    /// # Errors
    /// Those of bind(2) and connect(2).
    pub fn open_from_port(from: SocketAddr, to: Address) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(to.socket()), Type::STREAM, None)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.socket().into(), patience(CONNECT_WITHIN))?;
        Self::of(socket.into())
    }

    fn of(stream: TcpStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(patience(ANSWER_WITHIN)))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            unread: Vec::new(),
        })
    }

    /// Sends a request without a body, with the header fields given and nothing else but Host, and reads the answer.
    ///
    /// # Errors
    /// When the connection ends or nothing comes in time.
    pub fn exchange(
        &mut self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
    ) -> io::Result<Response> {
        self.exchange_within(method, path, fields, ANSWER_WITHIN)
    }

    /// As [`Connection::exchange`] with a bound of its own on the answer.
    ///
    /// # Errors
    /// When the connection ends or nothing comes in time.
    pub fn exchange_within(
        &mut self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        within: Duration,
    ) -> io::Result<Response> {
        self.send(&request(method, path, fields))?;
        self.receive_for(method, within)
    }

    /// As [`Connection::exchange`] for a request that has to be answered; keeps the connection open.
    ///
    /// # Panics
    /// When it is not answered.
    pub fn get(&mut self, path: &str, fields: &[(&str, &str)]) -> Response {
        let mut all = vec![("Connection", "keep-alive")];
        all.extend_from_slice(fields);
        self.exchange("GET", path, &all)
            .unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// Mints a token and keeps the connection open.
    ///
    /// # Panics
    /// When no token is granted.
    pub fn put_token(&mut self, ttl_seconds: u32) -> String {
        let ttl = ttl_seconds.to_string();
        let fields = [
            ("Connection", "keep-alive"),
            ("X-aws-ec2-metadata-token-ttl-seconds", ttl.as_str()),
        ];
        let response = self
            .exchange("PUT", "/latest/api/token", &fields)
            .unwrap_or_else(|error| panic!("PUT token: {error}"));
        assert_eq!(response.status(), 200, "PUT token: {response:?}");
        response.text().to_owned()
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    /// Those of shutdown(2).
    pub fn finish_sending(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Reads the answer to a request whose answer has a body.
    ///
    /// # Errors
    /// When the connection ends or nothing comes in time.
    pub fn receive(&mut self) -> io::Result<Response> {
        self.receive_for("GET", ANSWER_WITHIN)
    }

    /// Reads whatever comes within a time, for connections on which nothing is expected.
    ///
    /// Returns the bytes, and whether the other end closed or reset the connection.
    pub fn receive_raw(&mut self, within: Duration) -> (Vec<u8>, bool) {
        let deadline = Instant::now() + within;
        loop {
            match self.fill(deadline) {
                Ok(0) => return (std::mem::take(&mut self.unread), true),
                Ok(_) => {}
                Err(error) if is_timeout(&error) => {
                    return (std::mem::take(&mut self.unread), false);
                }
                Err(_) => return (std::mem::take(&mut self.unread), true),
            }
        }
    }

    /// The port that this end has.
    ///
    /// # Panics
    /// Never for a connected socket.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.stream
            .local_addr()
            .expect("a connected socket has an address")
    }

    fn receive_for(&mut self, method: &str, within: Duration) -> io::Result<Response> {
        let deadline = Instant::now() + patience(within);
        let head_bytes = loop {
            if let Some(end) = find(&self.unread, b"\r\n\r\n") {
                break end + 4;
            }
            self.need_more(deadline)?;
        };
        let head: Vec<u8> = self.unread.drain(..head_bytes).collect();
        let mut response = parse_head(&head)?;
        if method != "HEAD" {
            response.body = self.receive_body(&response, deadline)?;
        }
        Ok(response)
    }

    fn receive_body(&mut self, head: &Response, deadline: Instant) -> io::Result<Vec<u8>> {
        let Some(length) = head.header("content-length") else {
            while self.fill(deadline)? > 0 {}
            return Ok(std::mem::take(&mut self.unread));
        };
        let length: usize = length
            .parse()
            .map_err(|_| malformed("Content-Length is not a number"))?;
        while self.unread.len() < length {
            self.need_more(deadline)?;
        }
        Ok(self.unread.drain(..length).collect())
    }

    fn need_more(&mut self, deadline: Instant) -> io::Result<()> {
        if self.fill(deadline)? == 0 {
            let got = String::from_utf8_lossy(&self.unread).into_owned();
            return Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                format!("closed after {got:?}"),
            ));
        }
        Ok(())
    }

    fn fill(&mut self, deadline: Instant) -> io::Result<usize> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(
                ErrorKind::TimedOut,
                "no whole answer in time",
            ));
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut chunk = [0; 16 * 1024];
        let count = self.stream.read(&mut chunk)?;
        self.unread.extend_from_slice(&chunk[..count]);
        Ok(count)
    }
}

/// A request head as it goes over the wire.
#[must_use]
pub(crate) fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n");
    for (name, value) in fields {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// Whether a read or connect ended because nothing came.
pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

fn parse_head(head: &[u8]) -> io::Result<Response> {
    let text = std::str::from_utf8(head).map_err(|_| malformed("the head is not text"))?;
    let mut lines = text.trim_end().split("\r\n");
    let status_line = lines.next().unwrap_or_default().to_owned();
    if !status_line.starts_with("HTTP/1.") {
        return Err(malformed(&format!("not a status line: {status_line:?}")));
    }
    let headers: Option<Vec<_>> = lines.map(parse_field).collect();
    let headers = headers.ok_or_else(|| malformed("a header line without a colon"))?;
    Ok(Response {
        status_line,
        headers,
        body: Vec::new(),
    })
}

fn parse_field(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    Some((name.to_owned(), value.trim().to_owned()))
}

fn malformed(why: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why.to_owned())
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}
