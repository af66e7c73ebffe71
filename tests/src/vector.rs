//! Vectors: requests as text, and the bytes that they get as text, one file each way of looking.
//!
//! A vector is what a client sends on one connection, and all that it gets until the connection ends:
//!
//! ```text
//! @ web                                    whose connection; until the next one
//! > GET /latest/meta-data/ HTTP/1.1        sent, with CRLF
//! >
//! < HTTP/1.1 200 OK                        received, a line of a head each
//! < Content-Length: 9
//! | ami-id                                 received, a line of a body each; a body that ends in LF has an empty one last
//! | …
//! ```
//!
//! `>-` sends a line without its end. In what is sent, `{token}` and other names stand for what the test gives, `{a*9}`
//! for nine times `a`, and `\xff` for a byte. In what is received, times and secrets that differ from run to run are
//! checked for their form and shown as `<…>`. An error page that was in the file before is shown by its title. All else is
//! there to the byte.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use imds_user::instance::UnixSeconds;

use crate::fixture;
use crate::guest::Guest;

/// Bound on one whole conversation.
const ENDED_WITHIN: Duration = Duration::from_secs(10);
/// Oldest time that counts as this run's.
const RECENT_SECONDS: u64 = 300;
/// What every answer begins with.
const ANSWER: &[u8] = b"HTTP/1.1 ";

/// Sends every vector of a fixture and holds what comes against it.
///
/// # Panics
/// When an answer differs, a connection does not end, or the file is none of vectors.
pub fn check_vectors(name: &str, guests: &[&Guest], words: &BTreeMap<&str, String>) {
    let mut seen = String::new();
    let mut guest = None;
    let mut sent: Vec<u8> = Vec::new();
    let mut pages = Pages::default();
    let text = fixture::read(name);
    // An empty line at the end, so that the last vector ends like the others.
    for line in text.lines().chain([""]) {
        let is_answer = line.starts_with(['<', '|']);
        if !sent.is_empty() && !line.starts_with('>') {
            let to: &Guest = guest.unwrap_or_else(|| panic!("{name}: nobody sends {sent:?}"));
            seen.push_str(&converse(to, &std::mem::take(&mut sent), &mut pages));
        }
        if is_answer {
            continue;
        }
        seen.push_str(line);
        seen.push('\n');
        if let Some(wanted) = line.strip_prefix("@ ") {
            let mut all = guests.iter();
            let found = all.find(|guest| guest.name() == wanted);
            guest = Some(*found.unwrap_or_else(|| panic!("{name}: no guest {wanted}")));
        } else if let Some(part) = line.strip_prefix(">-") {
            sent.extend(expand(part.strip_prefix(' ').unwrap_or(part), words));
        } else if let Some(part) = line.strip_prefix('>') {
            sent.extend(expand(part.strip_prefix(' ').unwrap_or(part), words));
            sent.extend(b"\r\n");
        } else {
            let is_other = line.is_empty() || line.starts_with('#');
            assert!(is_other, "{name}: what is {line:?}?");
        }
    }
    fixture::check(name, seen.strip_suffix('\n').unwrap_or(&seen));
}

/// What a text of a fixture stands for.
fn expand(text: &str, words: &BTreeMap<&str, String>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '\\']) {
        bytes.extend(rest[..at].bytes());
        rest = &rest[at..];
        if let Some(hex) = rest.strip_prefix("\\x") {
            bytes.push(u8::from_str_radix(&hex[..2], 16).expect("two hexadecimal digits"));
            rest = &hex[2..];
            continue;
        }
        let (word, after) = rest[1..].split_once('}').expect("a closing brace");
        let meant = match word.split_once('*') {
            Some((unit, times)) => unit.repeat(times.parse().expect("a number")),
            None => words
                .get(word)
                .unwrap_or_else(|| panic!("no {word}"))
                .clone(),
        };
        bytes.extend(meant.bytes());
        rest = after;
    }
    bytes.extend(rest.bytes());
    bytes
}

/// Sends bytes on a connection of its own, and shows what comes until it ends.
fn converse(guest: &Guest, sent: &[u8], pages: &mut Pages) -> String {
    let mut connection = guest.connect();
    connection.send(sent).expect("the request goes out");
    let (received, is_closed) = connection.receive_raw(ENDED_WITHIN);
    assert!(
        is_closed,
        "{} keeps the connection open after {}, having sent {}",
        guest.name(),
        sent.escape_ascii(),
        received.escape_ascii()
    );
    shown(&received, sent.starts_with(b"PUT "), pages)
}

/// Shows answers, one after the other.
fn shown(mut received: &[u8], is_put: bool, pages: &mut Pages) -> String {
    let mut text = String::new();
    while !received.is_empty() {
        let end = position(received, b"\r\n\r\n").unwrap_or(received.len());
        let head = &received[..end];
        received = received.get(end + 4..).unwrap_or_default();
        for line in head.split(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            writeln!(
                text,
                "< {}",
                shown_field(&line.escape_ascii().to_string(), is_put)
            )
            .expect("writing to a string does not fail");
        }
        // The answer to HEAD has a length and no body.
        let length = if received.starts_with(ANSWER) {
            0
        } else {
            content_length(head)
        };
        let (body, rest) = received.split_at(length.min(received.len()));
        match pages.title_of_known(body) {
            Some(title) => writeln!(text, "| <page: {title}>").expect("a string takes a line"),
            None => text.push_str(&shown_body(body)),
        }
        received = rest;
    }
    text
}

/// Error pages that were shown whole.
#[derive(Default)]
struct Pages(BTreeSet<Vec<u8>>);

impl Pages {
    /// The title of a page that was seen before, to the byte.
    fn title_of_known<'b>(&mut self, body: &'b [u8]) -> Option<&'b str> {
        let text = std::str::from_utf8(body).ok()?;
        let (_, rest) = text.split_once("<title>")?;
        let (title, _) = rest.split_once("</title>")?;
        let is_new = self.0.insert(body.to_vec());
        (!is_new).then_some(title)
    }
}

/// A field of a head, with what differs from run to run checked and taken out.
fn shown_field(line: &str, is_put: bool) -> String {
    let (name, value) = line.split_once(": ").unwrap_or((line, ""));
    let mask = match name {
        "Date" if is_recent(value) => "<now>",
        "Last-Modified" if is_recent(value) => "<published>",
        "X-Aws-Ec2-Metadata-Token-Ttl-Seconds" if !is_put => match value.parse() {
            Ok(21_500..=21_600) => "<left of 21600>",
            _ => value,
        },
        _ => value,
    };
    match mask {
        "" => line.to_owned(),
        mask => format!("{name}: {mask}"),
    }
}

/// A body line by line, with what differs from run to run checked and taken out.
#[must_use]
pub fn shown_body(body: &[u8]) -> String {
    if body.is_empty() {
        return String::new();
    }
    let text = String::from_utf8(body.to_vec()).expect("vectors are of text");
    let text = match &*text {
        token if is_token(token) => "<token>",
        signature if is_base64_in_lines(signature) => "<base64 in lines of 76 characters>",
        text => text,
    };
    let is_generated = text
        .lines()
        .any(|line| shown_member(line, true).contains("<this hour>"));
    text.split('\n')
        .map(|line| format!("| {}\n", shown_member(line, is_generated)).replace("| \n", "|\n"))
        .collect()
}

/// A member of a document of made-up credentials, which are new every hour.
fn shown_member(line: &str, is_generated: bool) -> String {
    let value = || line.split('"').nth(3).unwrap_or_default();
    let is_random = |length: usize| value().len() == length;
    let ahead = || {
        let at = UnixSeconds::from_iso(value()).map_or(0, |at| at.0);
        at.saturating_sub(now())
    };
    let name = line.trim_start().split('"').nth(1).unwrap_or_default();
    let mask = match name {
        "noticeTime" if ahead() == 0 => "<now>",
        _ if !is_generated => return line.to_owned(),
        "LastUpdated" if UnixSeconds::from_iso(value()).is_some_and(|at| now() - at.0 <= 3600) => {
            "<this hour>"
        }
        "Expiration" if (5 * 3600..7 * 3600).contains(&ahead()) => "<in about six hours>",
        "AccessKeyId" if is_random(20) && value().starts_with("ASIA") => "<ASIA and 16 characters>",
        "SecretAccessKey" if is_random(40) => "<40 characters>",
        "Token" if is_random(896) => "<896 characters>",
        _ => return line.to_owned(),
    };
    line.replace(value(), mask)
}

fn is_base64_in_lines(body: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    let mut lines = body.split('\n');
    let has_form = lines
        .next_back()
        .is_some_and(|last| last.chars().all(is_plain) && last.len() <= 76);
    let n_full = lines.clone().count();
    has_form && n_full > 0 && lines.all(|line| line.len() == 76 && line.chars().all(is_plain))
}

fn is_token(body: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=".contains(c);
    let has_form = body.starts_with("AQAEA") && body.ends_with("==");
    body.len() == 56 && has_form && body.chars().all(is_plain)
}

fn is_recent(date: &str) -> bool {
    let now = now();
    (now - RECENT_SECONDS..=now + 1).any(|at| UnixSeconds(at).imf_fixdate().to_string() == date)
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.expect("the clock is past 1970").as_secs()
}

fn content_length(head: &[u8]) -> usize {
    let head = String::from_utf8_lossy(head);
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    length.map_or(0, |length| length.parse().expect("a number"))
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}
