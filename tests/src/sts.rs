//! A stand-in for AWS's Security Token Service: it tells a client who it is by the credentials that the client signs with
//! (Signature Version 4, as the IAM User Guide has it), and remembers what came.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::guest::Guest;
use crate::http::Address;
use crate::patience::patience;

/// Bound on a request: clients send theirs at once.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);

/// Whom it knows.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Sign with these…
    pub access_key_id: String,
    /// …by this…
    pub secret_access_key: String,
    /// …and show this…
    pub session_token: String,
    /// …to be in this account…
    pub account: String,
    /// …under this name.
    pub arn: String,
}

/// One call as it came.
#[derive(Clone, Debug)]
pub struct StsCall {
    /// Whether key, signature and session token were those of the identity.
    pub is_known: bool,
    /// The region that it was signed for.
    pub region: String,
}

/// A running stand-in, on the loopback interface of a guest. Dropping it ends it.
pub struct Sts {
    guest: Guest,
    address: SocketAddr,
    calls: Arc<Mutex<Vec<StsCall>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sts {
    /// Starts one beside a guest's programs.
    ///
    /// # Panics
    /// When the guest's loopback interface takes no listener.
    #[must_use]
    pub fn start(guest: &Guest, identity: Identity) -> Self {
        let listener = guest
            .namespace()
            .enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .expect("a port of the guest's loopback interface");
        let address = listener.local_addr().expect("a listener has an address");
        let calls = Arc::new(Mutex::new(Vec::new()));
        let is_over = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (calls, is_over) = (Arc::clone(&calls), Arc::clone(&is_over));
            move || serve(&listener, &identity, &calls, &is_over)
        });
        Self {
            guest: guest.clone(),
            address,
            calls,
            is_over,
            thread: Some(thread),
        }
    }

    /// The endpoint that a client in the guest is to be told.
    #[must_use]
    pub fn url(&self) -> String {
        Address::Other(self.address).url()
    }

    /// What came so far.
    #[must_use]
    pub fn calls(&self) -> Vec<StsCall> {
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Sts {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        // Wakes the thread from its accept; it ends by itself with the test if that fails.
        let woken = self.guest.try_connect(Address::Other(self.address));
        if let (Ok(_), Some(thread)) = (woken, self.thread.take()) {
            // Its panic has been printed.
            drop(thread.join());
        }
    }
}

fn serve(
    listener: &TcpListener,
    identity: &Identity,
    calls: &Mutex<Vec<StsCall>>,
    is_over: &AtomicBool,
) {
    for stream in listener.incoming() {
        if is_over.load(Ordering::Acquire) {
            return;
        }
        // A client that goes away in the middle has failed for its own test to see.
        let Some(call) = stream.ok().and_then(|stream| answer(stream, identity).ok()) else {
            continue;
        };
        calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(call);
    }
}

fn answer(stream: TcpStream, identity: &Identity) -> io::Result<StsCall> {
    stream.set_read_timeout(Some(patience(REQUEST_WITHIN)))?;
    let mut reader = BufReader::new(stream);
    let request = Request::read(&mut reader)?;
    let signature = Signature::of(&request).unwrap_or_default();
    let is_known = request.body.contains("Action=GetCallerIdentity")
        && request.header("x-amz-security-token") == identity.session_token
        && signature.access_key_id == identity.access_key_id
        && signature.value == signature.made_with(&request, &identity.secret_access_key);
    let (status, body) = match is_known {
        true => ("200 OK", known(identity)),
        false => ("403 Forbidden", UNKNOWN.to_owned()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/xml\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    let mut stream = reader.into_inner();
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    Ok(StsCall {
        is_known,
        region: signature.region,
    })
}

/// A request: a form.
struct Request {
    method: String,
    path: String,
    /// By their names in small letters.
    headers: BTreeMap<String, String>,
    body: String,
}

impl Request {
    fn read(reader: &mut impl BufRead) -> io::Result<Self> {
        let first = read_line(reader)?;
        let mut words = first.split(' ').map(str::to_owned);
        let (Some(method), Some(path)) = (words.next(), words.next()) else {
            return Err(io::Error::other(format!("no request line: {first:?}")));
        };
        let mut headers = BTreeMap::new();
        loop {
            let line = read_line(reader)?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length");
        let length = length.map_or(Ok(0), |length| length.parse());
        let mut body = String::new();
        reader
            .take(length.map_err(io::Error::other)?)
            .read_to_string(&mut body)?;
        Ok(Self {
            method,
            path,
            headers,
            body,
        })
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// What the header `Authorization` says.
#[derive(Default)]
struct Signature {
    access_key_id: String,
    date: String,
    region: String,
    /// Separated by semicolons, in the order in which they are signed.
    signed_headers: String,
    value: String,
}

impl Signature {
    /// `AWS4-HMAC-SHA256 Credential=ID/DATE/REGION/sts/aws4_request, SignedHeaders=…, Signature=…`
    fn of(request: &Request) -> Option<Self> {
        let fields = request
            .header("authorization")
            .strip_prefix("AWS4-HMAC-SHA256 ")?;
        let field = |name: &str| {
            let mut fields = fields.split(',').map(str::trim);
            fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        let credential: Vec<&str> = field("Credential")?.split('/').collect();
        let [access_key_id, date, region, "sts", "aws4_request"] = credential[..] else {
            return None;
        };
        Some(Self {
            access_key_id: access_key_id.to_owned(),
            date: date.to_owned(),
            region: region.to_owned(),
            signed_headers: field("SignedHeaders")?.to_owned(),
            value: field("Signature")?.to_owned(),
        })
    }

    /// The value that it has if it was made with this key.
    fn made_with(&self, request: &Request, secret_access_key: &str) -> String {
        let Self {
            date,
            region,
            signed_headers,
            ..
        } = self;
        let headers: String = signed_headers
            .split(';')
            .map(|name| format!("{name}:{}\n", request.header(name)))
            .collect();
        let Request { method, path, .. } = request;
        let body = hex(&Sha256::digest(&request.body));
        let canonical = format!("{method}\n{path}\n\n{headers}\n{signed_headers}\n{body}");
        let time = request.header("x-amz-date");
        let canonical = hex(&Sha256::digest(canonical));
        let text =
            format!("AWS4-HMAC-SHA256\n{time}\n{date}/{region}/sts/aws4_request\n{canonical}");
        let key = format!("AWS4{secret_access_key}").into_bytes();
        let scope = [date, region, "sts", "aws4_request"];
        let key = scope
            .into_iter()
            .fold(key, |key, part| hmac(&key, part.as_bytes()));
        hex(&hmac(&key, text.as_bytes()))
    }
}

/// HMAC-SHA256 of RFC 2104, for keys of a block at most.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 64;
    assert!(key.len() <= BLOCK, "a longer key is to be hashed first");
    let padded = |with: u8| -> Vec<u8> {
        let zeros = std::iter::repeat_n(&0, BLOCK - key.len());
        key.iter().chain(zeros).map(|byte| byte ^ with).collect()
    };
    let inner = Sha256::digest([&padded(0x36), text].concat());
    Sha256::digest([&padded(0x5c), &inner[..]].concat()).to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As the API reference prints the answer to GetCallerIdentity.
fn known(identity: &Identity) -> String {
    let Identity { account, arn, .. } = identity;
    format!(
        r#"<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<GetCallerIdentityResult><Arn>{arn}</Arn><UserId>AROA123EXAMPLE:i</UserId><Account>{account}</Account></GetCallerIdentityResult>
<ResponseMetadata><RequestId>01234567-89ab-cdef-0123-456789abcdef</RequestId></ResponseMetadata>
</GetCallerIdentityResponse>"#
    )
}

const UNKNOWN: &str = r#"<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<Error><Type>Sender</Type><Code>InvalidClientTokenId</Code><Message>The security token included in the request is invalid.</Message></Error>
<RequestId>01234567-89ab-cdef-0123-456789abcdef</RequestId></ErrorResponse>"#;
