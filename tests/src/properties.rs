//! What holds whatever a guest sends. The fuzz targets ask it of what the fuzzer makes up; `tests/properties.rs` of seeded
//! randomness, and of what the fuzzer found worth keeping.
//!
//! Nothing here has a socket or a clock: bytes go in, and answers come out of the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use imds_ebpf::decide::{self, Verdict};
use imds_ebpf::wire::{
    METADATA_V4, arp::Arp, groups, ipv4::Ipv4, ipv6::Ipv6, is_metadata_v6, neighbour::Neighbour,
};
use imds_user::config::{Files, Installation, load};
use imds_user::http::head::{self, HEAD_BYTES_MAX, Method, Reading, RequestHead, Room};
use imds_user::http::respond::{Services, respond};
use imds_user::http::response::Response;
use imds_user::identity::Signatures;
use imds_user::instance::{Host, Instance, TokenUse, UnixMillis, UnixSeconds};
use imds_user::metadata::identity_document;
use imds_user::token::{TokenKey, TokenKeys};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::walk::walk;

const NOW: UnixMillis = UnixMillis(1_800_000_000_123);
const PUBLISHED: UnixSeconds = UnixSeconds(1_799_999_000);
/// Everything there is to say of two instances, with no value in common that could be taken for the other's.
const INSTANCES: [&str; 2] = [
    include_str!("../fixtures/instances/rich.toml"),
    include_str!("../fixtures/instances/other.toml"),
];
/// Shorter values, such as `1` and `eth0`, prove nothing when they turn up.
const TELLING_BYTES_MIN: usize = 6;
/// Requests on one connection that are looked at.
const REQUESTS_MAX: usize = 16;

/// A host with two instances.
pub struct World {
    host: Host,
    keys: TokenKeys,
    subjects: [Subject; 2],
}

/// One instance, and what is known of it.
struct Subject {
    /// Requests without a token are served.
    open: Instance,
    /// They are not.
    strict: Instance,
    token: String,
    signatures: Signatures,
    /// Every path and what is at it, as a walk through all versions found it.
    places: BTreeMap<String, Vec<u8>>,
    /// Values of this instance that nobody else may see.
    own: Vec<Vec<u8>>,
}

/// A file system with one file.
struct OneFile(String);

impl Files for OneFile {
    fn read(&self, _: &Path, _: usize) -> io::Result<Vec<u8>> {
        Ok(self.0.clone().into_bytes())
    }
}

impl World {
    /// Makes it, and finds out what is where.
    ///
    /// # Panics
    /// When the fixtures are no configuration.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "it takes its time, and may panic"
    )]
    pub fn new() -> Self {
        let installation = Installation {
            seed: [3; 16],
            created: UnixSeconds(1_700_000_000),
        };
        let instances = INSTANCES.iter().enumerate();
        let toml: String = instances
            .map(|(index, keys)| format!("[[instance]]\nport = \"port{index}\"\n{keys}\n"))
            .collect();
        let settings = load(Path::new("world.toml"), &installation, &OneFile(toml))
            .unwrap_or_else(|error| panic!("{error}"));
        let keys = TokenKeys {
            current: TokenKey::new([7; TokenKey::BYTES]),
            previous: None,
        };
        let mut guests = settings.guests.into_iter().map(|guest| guest.instance);
        let mut subject = || {
            let open = guests.next().expect("two instances");
            Subject::new(&settings.host, &keys, open)
        };
        let mut subjects = [subject(), subject()];
        let [one, other] = &mut subjects;
        let all = |subject: &Subject| subject.places.values().cloned().collect::<BTreeSet<_>>();
        one.keep_what_tells(&all(other));
        other.keep_what_tells(&all(one));
        Self {
            host: settings.host,
            keys,
            subjects,
        }
    }

    /// Every path that something is at, for one instance or the other.
    #[must_use]
    pub fn paths(&self) -> Vec<&str> {
        let paths = self
            .subjects
            .iter()
            .flat_map(|subject| subject.places.keys());
        paths.map(String::as_str).collect()
    }

    /// A connection on which these bytes come: never a panic, every answer one of ours, nothing of the other instance.
    pub fn check_connection(&self, bytes: &[u8]) {
        for (index, subject) in self.subjects.iter().enumerate() {
            for instance in [&subject.open, &subject.strict] {
                let mut rest = bytes;
                for _ in 0..REQUESTS_MAX {
                    let Some(n_bytes) = self.check_request(subject, instance, 1 - index, rest)
                    else {
                        break;
                    };
                    rest = &rest[n_bytes..];
                }
            }
        }
    }

    /// A request of one instance; the length of its head, if another can follow it.
    fn check_request(
        &self,
        subject: &Subject,
        instance: &Instance,
        other: usize,
        bytes: &[u8],
    ) -> Option<usize> {
        let mut room = Room::new();
        let (head, n_bytes) = match head::read(bytes, 0, &mut room) {
            Reading::Partial => {
                assert!(bytes.len() <= HEAD_BYTES_MAX, "waits for ever more");
                return None;
            }
            Reading::Malformed => {
                check_answer(&Response::malformed(NOW.seconds()), None);
                return None;
            }
            Reading::Whole(head, n_bytes) => (head, n_bytes),
        };
        assert!(n_bytes > 0 && n_bytes <= bytes.len().min(HEAD_BYTES_MAX));
        check_drips(bytes, n_bytes);
        let answer = self.respond(&head, subject, instance);
        check_answer(&answer, Some(&head));
        self.check_keeps_to_itself(other, &answer, bytes);
        (!answer.close).then_some(n_bytes)
    }

    /// A request for this path: what is answered is what a walk finds there, for who may have it, and nothing otherwise.
    pub fn check_path(&self, path: &str) {
        for (index, subject) in self.subjects.iter().enumerate() {
            let other = &self.subjects[1 - index];
            let ask =
                |instance: &Instance, token: Option<&str>| self.get(subject, instance, path, token);
            let Some(answer) = ask(&subject.open, None) else {
                return;
            };
            self.check_keeps_to_itself(1 - index, &answer, path.as_bytes());
            let found = (answer.status.code() == 200).then_some(&*answer.body);
            match subject.expect_at(path) {
                Expected::Place(body) => assert_eq!(found, Some(body), "{path:?}"),
                Expected::Nothing => assert_eq!(found, None, "{path:?}"),
                Expected::Unknown if answer.status.code() != 405 => {}
                Expected::Unknown | Expected::Token => {
                    assert_eq!(answer.status.code(), 405, "{path:?}");
                    return;
                }
            }
            let status = |instance: &Instance, token: Option<&str>| {
                ask(instance, token).map(|answer| answer.status.code())
            };
            assert_eq!(status(&subject.strict, None), Some(401), "{path:?}");
            for stranger in [other.token.as_str(), "AQAEA", ""] {
                assert_eq!(status(&subject.open, Some(stranger)), Some(401), "{path:?}");
            }
            let with_token = ask(&subject.strict, Some(&subject.token)).expect("a head as before");
            assert_eq!(with_token.status, answer.status, "{path:?}");
            assert!(
                with_token.body == answer.body,
                "{path:?} differs with a token"
            );
        }
    }

    /// The answer to GET, if the path is such as stands in a head.
    fn get(
        &self,
        subject: &Subject,
        instance: &Instance,
        path: &str,
        token: Option<&str>,
    ) -> Option<Response> {
        let field = token.map(|token| format!("X-aws-ec2-metadata-token: {token}\r\n"));
        let request = format!("GET {path} HTTP/1.1\r\n{}\r\n", field.unwrap_or_default());
        let is_target = |byte: u8| byte > b' ' && byte != 0x7f;
        if path.is_empty() || !path.bytes().all(is_target) {
            return None;
        }
        let mut room = Room::new();
        match head::read(request.as_bytes(), 0, &mut room) {
            Reading::Whole(head, _) => Some(self.respond(&head, subject, instance)),
            Reading::Partial | Reading::Malformed => {
                assert!(request.len() > HEAD_BYTES_MAX, "{request:?} is a request");
                None
            }
        }
    }

    fn respond(&self, head: &RequestHead<'_>, subject: &Subject, instance: &Instance) -> Response {
        respond_with(&self.host, &self.keys, &subject.signatures, head, instance)
    }

    fn check_keeps_to_itself(&self, other: usize, answer: &Response, asked: &[u8]) {
        if answer.status.code() != 200 {
            // A page of its status or nothing, whoever asks.
            let page = answer.status.page().unwrap_or_default();
            return assert!(answer.body.is_empty() || answer.body == page.as_bytes());
        }
        for value in &self.subjects[other].own {
            assert!(
                !contains(&answer.body, value),
                "{} answers with the other instance's {}",
                asked.escape_ascii(),
                value.escape_ascii()
            );
        }
    }
}

impl Subject {
    fn new(host: &Host, keys: &TokenKeys, instance: Instance) -> Self {
        let mut subject = Self {
            signatures: signatures_of(host, &instance),
            strict: instance.clone(),
            open: instance,
            token: String::new(),
            places: BTreeMap::new(),
            own: Vec::new(),
        };
        subject.open.options.http_tokens = TokenUse::Optional;
        subject.strict.options.http_tokens = TokenUse::Required;
        let ask = |request: String| {
            let mut room = Room::new();
            match head::read(request.as_bytes(), 0, &mut room) {
                Reading::Whole(head, _) => {
                    respond_with(host, keys, &subject.signatures, &head, &subject.open)
                }
                other => panic!("{request:?} is {other:?}"),
            }
        };
        let get = |path: &str| {
            let answer = ask(format!("GET {path} HTTP/1.1\r\n\r\n"));
            (answer.status.code() == 200).then(|| answer.body.to_vec())
        };
        let listing = get("/").expect("the versions");
        let mut places = BTreeMap::from([(String::new(), listing.clone())]);
        for version in String::from_utf8(listing)
            .expect("versions are text")
            .lines()
        {
            let found = walk(version, get).into_iter();
            places.extend(found.map(|place| (place.path, place.body)));
        }
        let minted = ask(
            "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n"
                .to_owned(),
        );
        subject.token = String::from_utf8(minted.body.to_vec()).expect("tokens are text");
        subject.places = places;
        subject
    }

    /// Keeps as its own the lines that it shows and the other does not.
    fn keep_what_tells(&mut self, others: &BTreeSet<Vec<u8>>) {
        let bodies = self.places.values();
        let lines: BTreeSet<&[u8]> = bodies
            .flat_map(|body| body.split(|byte| *byte == b'\n'))
            .filter(|line| line.len() >= TELLING_BYTES_MIN)
            .collect();
        let own = lines
            .into_iter()
            .filter(|line| !others.iter().any(|other| contains(other, line)));
        self.own = own.map(<[u8]>::to_vec).collect();
        assert!(
            self.own.len() > 50,
            "only {} values tell them apart",
            self.own.len()
        );
    }

    /// What is at a path by rules of its own: the oracle.
    fn expect_at(&self, path: &str) -> Expected<'_> {
        if !path.starts_with('/') {
            return Expected::Unknown;
        }
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let Some(decoded) = percent_decoded(path) else {
            return Expected::Nothing;
        };
        let parts: Vec<&str> = decoded.split('/').filter(|part| !part.is_empty()).collect();
        if parts == ["latest", "api", "token"] && !decoded.ends_with('/') {
            return Expected::Token;
        }
        let key: String = parts.iter().map(|part| format!("/{part}")).collect();
        match self.places.get(&key) {
            Some(body) => Expected::Place(body),
            None => Expected::Nothing,
        }
    }
}

/// What the oracle says of a path.
enum Expected<'a> {
    /// This is there.
    Place(&'a [u8]),
    /// Nothing is there.
    Nothing,
    /// Tokens are minted there, and nothing else is done.
    Token,
    /// It does not judge this form.
    Unknown,
}

fn respond_with(
    host: &Host,
    keys: &TokenKeys,
    signatures: &Signatures,
    head: &RequestHead<'_>,
    instance: &Instance,
) -> Response {
    let services = Services {
        host,
        token_keys: keys,
        nonce: &|| [9; 12],
        published: PUBLISHED,
        signatures: Some(signatures),
    };
    respond(head, instance, &services, NOW)
}

/// Signatures by nobody, each its instance's own: the rules hand them out as they are.
fn signatures_of(host: &Host, instance: &Instance) -> Signatures {
    let document: [u8; 32] = Sha256::digest(identity_document(host, instance)).into();
    let bodies = ["rsa2048", "pkcs7", "signature", "dsa2048"]
        .map(|kind| format!("{kind} of {}", instance.id).into_bytes());
    serde_json::from_value(json!({ "document": document, "bodies": bodies }))
        .expect("a digest and four bodies")
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut parts = text.split('%');
    bytes.extend(parts.next()?.bytes());
    for part in parts {
        let code = part
            .get(..2)
            .filter(|code| code.bytes().all(|digit| digit.is_ascii_hexdigit()));
        bytes.push(u8::from_str_radix(code?, 16).ok()?);
        bytes.extend(part[2..].bytes());
    }
    String::from_utf8(bytes).ok()
}

/// A head that was whole at once is the same head when it comes in two pieces.
fn check_drips(bytes: &[u8], n_bytes: usize) {
    for cut in [1, n_bytes / 2, n_bytes - 1] {
        let is_early = !matches!(
            head::read(&bytes[..cut], 0, &mut Room::new()),
            Reading::Partial
        );
        assert!(
            !is_early,
            "decided after {cut} of {n_bytes} bytes: {}",
            bytes.escape_ascii()
        );
        let mut room = Room::new();
        let Reading::Whole(_, again) = head::read(bytes, cut, &mut room) else {
            panic!("no head any more, cut at {cut}: {}", bytes.escape_ascii());
        };
        assert_eq!(again, n_bytes, "cut at {cut}: {}", bytes.escape_ascii());
    }
}

/// Whether an answer is one that EC2 could have given.
fn check_answer(answer: &Response, head: Option<&RequestHead<'_>>) {
    let wire = [&answer.wire_head()[..], &answer.body].concat();
    let text = wire.escape_ascii();
    let end = position(&wire, b"\r\n\r\n").unwrap_or_else(|| panic!("no head: {text}"));
    let lines = std::str::from_utf8(&wire[..end]).expect("heads are text");
    let body = &wire[end + 4..];
    let mut lines = lines.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    assert!(STATUS_LINES.contains(&status_line), "{text}");
    let mut fields = BTreeMap::new();
    for line in lines {
        let (name, value) = line
            .split_once(": ")
            .unwrap_or_else(|| panic!("{line:?} in {text}"));
        assert!(FIELDS.contains(&name), "{name} in {text}");
        assert_eq!(fields.insert(name, value), None, "{name} twice in {text}");
    }
    assert_eq!(fields.get("Server"), Some(&"EC2ws"), "{text}");
    assert!(fields.contains_key("Date"), "{text}");
    assert_eq!(fields.contains_key("Connection"), answer.close, "{text}");
    let method = head.map(RequestHead::method);
    let length = fields["Content-Length"].parse::<usize>();
    match method {
        Some(Method::Head) => assert!(body.is_empty() && length.is_ok(), "{text}"),
        _ => assert_eq!(length, Ok(body.len()), "{text}"),
    }
    assert_eq!(
        answer.hop_limit.is_some(),
        method == Some(Method::Put),
        "{text}"
    );
    let is_token = method == Some(Method::Put) && answer.status.code() == 200;
    let has_ttl = fields.contains_key("X-Aws-Ec2-Metadata-Token-Ttl-Seconds");
    if is_token {
        assert!(has_ttl && body.len() == 56, "{text}");
    } else if has_ttl {
        assert!(matches!(answer.status.code(), 200 | 404), "{text}");
    }
}

const STATUS_LINES: [&str; 7] = [
    "HTTP/1.1 200 OK",
    "HTTP/1.1 400 Bad Request",
    "HTTP/1.1 401 Unauthorized",
    "HTTP/1.1 403 Forbidden",
    "HTTP/1.1 404 Not Found",
    "HTTP/1.1 405 Not Allowed",
    "HTTP/1.1 417 Expectation Failed",
];

const FIELDS: [&str; 9] = [
    "Accept-Ranges",
    "Allow",
    "Connection",
    "Content-Length",
    "Content-Type",
    "Date",
    "Last-Modified",
    "Server",
    "X-Aws-Ec2-Metadata-Token-Ttl-Seconds",
];

/// A guest's packet, from its IP header or ARP message on: what names the service is never let by, what does not is never
/// taken, and what the first look lets go no closer one would have kept.
pub fn check_packet(bytes: &[u8]) {
    let n_bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    if let Some(header) = groups::<10>(bytes) {
        check_ipv4(&Ipv4(header), n_bytes);
    }
    if let Some(header) = groups::<20>(bytes) {
        let ip = Ipv6(header);
        check_ipv6(&ip, n_bytes);
        if let Some(message) = groups::<12>(bytes.get(40..).unwrap_or_default()) {
            check_neighbour(&ip, &Neighbour(message));
        }
    }
    if let Some(message) = groups::<14>(bytes) {
        check_arp(&Arp(message));
    }
}

fn check_ipv4(ip: &Ipv4, n_bytes: u32) {
    let shown = ip.0;
    let (from_us, to_us) = (ip.source() == METADATA_V4, ip.destination() == METADATA_V4);
    let verdict = decide::ipv4(ip, n_bytes);
    match verdict {
        Verdict::Foreign => assert!(!from_us && !to_us, "passed {shown:x?}"),
        Verdict::Deliver => assert!(to_us && !from_us && ip.source() >> 24 != 127, "{shown:x?}"),
        Verdict::Drop(_) => assert!(from_us || to_us, "dropped {shown:x?}"),
        Verdict::Answer => panic!("answered {shown:x?}"),
    }
    let [.., a, b, c, d] = ip.0;
    let looks_ours = decide::names_metadata_v4(&[a, b, c, d]);
    assert_eq!(looks_ours, verdict != Verdict::Foreign, "{shown:x?}");
}

fn check_ipv6(ip: &Ipv6, n_bytes: u32) {
    let shown = ip.0;
    let (from_us, to_us) = (
        is_metadata_v6(&ip.source()),
        is_metadata_v6(&ip.destination()),
    );
    let verdict = decide::ipv6(ip, n_bytes);
    match verdict {
        Verdict::Foreign => assert!(!from_us && !to_us, "passed {shown:x?}"),
        Verdict::Deliver => assert!(to_us && !from_us, "{shown:x?}"),
        Verdict::Drop(_) => assert!(from_us || to_us, "dropped {shown:x?}"),
        // ICMPv6, which names what it is about further on.
        Verdict::Answer => {}
    }
    if verdict != Verdict::Foreign {
        assert!(decide::may_name_metadata_v6(ip), "{shown:x?}");
    }
}

fn check_neighbour(ip: &Ipv6, message: &Neighbour) {
    let shown = (ip.0, message.0);
    let is_about_us = is_metadata_v6(&message.target());
    match decide::neighbour(ip, message) {
        Verdict::Answer => assert!(is_about_us, "answered {shown:x?}"),
        Verdict::Deliver => panic!("delivered {shown:x?}"),
        Verdict::Drop(_) => assert!(is_about_us || is_metadata_v6(&ip.destination())),
        Verdict::Foreign => assert!(!is_metadata_v6(&ip.destination())),
    }
}

fn check_arp(message: &Arp) {
    let shown = message.0;
    let (sender, target) = (
        message.sender() == METADATA_V4,
        message.target() == METADATA_V4,
    );
    let verdict = decide::arp(message);
    match verdict {
        Verdict::Answer => assert!(target && !sender && message.is_request(), "{shown:x?}"),
        Verdict::Deliver => panic!("delivered {shown:x?}"),
        Verdict::Drop(_) => assert!(sender || target, "dropped {shown:x?}"),
        Verdict::Foreign => {
            let is_ours = (sender || target) && message.is_ipv4_over_ethernet();
            assert!(!is_ours, "passed {shown:x?}");
        }
    }
    if verdict != Verdict::Foreign {
        assert!(decide::arp_names_metadata(message), "{shown:x?}");
    }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    position(bytes, wanted).is_some()
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}
