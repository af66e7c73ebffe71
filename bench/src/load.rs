//! The client of the bench: sends the same bytes again and again, as fast as the answers come, from one thread.
//!
//! It does as little as it can, so that what is measured is the server: fixed bytes out, as many bytes as the first
//! answer had in, and one look at the clock for each answer.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Bound on a single read, and on the silence of all connections.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// More than the longest answer.
const BUFFER_BYTES: usize = 64 << 10;
const GOOD: &[u8] = b"HTTP/1.1 200";

/// What is sent, where, and what comes back.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) to: SocketAddr,
    pub(crate) request: Vec<u8>,
    /// Length of an answer, head and body.
    pub(crate) answer_bytes: usize,
}

/// How requests share connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connections {
    /// So many, each with one request under way.
    Kept(usize),
    /// A new one for every request, one after the other.
    OneARequest,
}

/// What one turn of a contestant gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    pub(crate) requests_per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// Makes one request and returns the whole answer.
pub(crate) fn first_answer(to: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&to, SILENCE_MAX)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    let mut chunk = vec![0; BUFFER_BYTES];
    loop {
        if let Some(bytes) = answer_bytes(&answer)
            && answer.len() >= bytes
        {
            return Ok(answer);
        }
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Err(unexpected(&answer));
        }
        answer.extend_from_slice(&chunk[..count]);
    }
}

/// Makes requests for this long, after a tenth of it to warm up. On the calling thread, in its network namespace.
pub(crate) fn turn(call: &Call, connections: Connections, time: Duration) -> io::Result<Turn> {
    let mut record = Record::new(time);
    match connections {
        Connections::Kept(1) => keep_one(call, &mut record)?,
        Connections::Kept(count) => keep_many(call, count, &mut record)?,
        Connections::OneARequest => renew(call, &mut record)?,
    }
    record.turn()
}

fn keep_one(call: &Call, record: &mut Record) -> io::Result<()> {
    let mut stream = connect(call.to)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut sent = Instant::now();
    loop {
        stream.write_all(&call.request)?;
        let mut received = 0;
        while received < call.answer_bytes {
            received += read(&mut stream, &mut buffer[received..], received == 0)?;
        }
        let now = Instant::now();
        if record.note(sent, now).is_over() {
            return Ok(());
        }
        sent = now;
    }
}

fn renew(call: &Call, record: &mut Record) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut sent = Instant::now();
    loop {
        let mut stream = connect(call.to)?;
        stream.write_all(&call.request)?;
        let mut received = 0;
        while received < call.answer_bytes {
            received += read(&mut stream, &mut buffer[received..], received == 0)?;
        }
        // The answer said that the connection ends, so the end is part of it.
        if stream.read(&mut buffer)? != 0 {
            return Err(unexpected(&buffer));
        }
        drop(stream);
        let now = Instant::now();
        if record.note(sent, now).is_over() {
            return Ok(());
        }
        sent = now;
    }
}

/// A connection of several.
struct Peer {
    stream: TcpStream,
    sent: Instant,
    received: usize,
}

fn keep_many(call: &Call, count: usize, record: &mut Record) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut peers = Vec::with_capacity(count);
    for number in 0..count {
        let mut stream = connect(call.to)?;
        stream.set_nonblocking(true)?;
        epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?;
        let sent = Instant::now();
        stream.write_all(&call.request)?;
        peers.push(Peer {
            stream,
            sent,
            received: 0,
        });
    }
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut events = vec![EpollEvent::empty(); count];
    let silence = EpollTimeout::try_from(SILENCE_MAX).map_err(io::Error::other)?;
    loop {
        let ready = epoll.wait(&mut events, silence)?;
        if ready == 0 {
            return Err(io::Error::new(
                ErrorKind::TimedOut,
                "no connection is answered",
            ));
        }
        for event in &events[..ready] {
            let peer = &mut peers[event.data() as usize];
            peer.received += read(&mut peer.stream, &mut buffer, peer.received == 0)?;
            if peer.received < call.answer_bytes {
                continue;
            }
            let now = Instant::now();
            if record.note(peer.sent, now).is_over() {
                return Ok(());
            }
            peer.sent = now;
            peer.received = 0;
            peer.stream.write_all(&call.request)?;
        }
    }
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    Ok(stream)
}

/// Reads what is there; an answer must begin well.
fn read(stream: &mut TcpStream, buffer: &mut [u8], is_first: bool) -> io::Result<usize> {
    let count = stream.read(buffer)?;
    if count == 0 || is_first && !buffer[..count].starts_with(GOOD) {
        return Err(unexpected(&buffer[..count]));
    }
    Ok(count)
}

fn unexpected(answer: &[u8]) -> io::Error {
    let start = String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned();
    io::Error::new(
        ErrorKind::InvalidData,
        format!("not the expected answer: {start:?}"),
    )
}

/// Length of the answer that starts here, once its head is whole.
fn answer_bytes(answer: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(answer);
    let (head, _) = text.split_once("\r\n\r\n")?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then_some(value)
    })?;
    let length: usize = length.trim().parse().ok()?;
    Some(head.len() + 4 + length)
}

/// The answers of a turn and how long each took.
struct Record {
    begin: Instant,
    end: Instant,
    nanoseconds: Vec<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Noted {
    GoOn,
    Over,
}

impl Noted {
    fn is_over(self) -> bool {
        self == Self::Over
    }
}

impl Record {
    fn new(time: Duration) -> Self {
        let begin = Instant::now() + time / 10;
        Self {
            begin,
            end: begin + time,
            nanoseconds: Vec::with_capacity(1 << 16),
        }
    }

    fn note(&mut self, sent: Instant, now: Instant) -> Noted {
        if now >= self.end {
            return Noted::Over;
        }
        if now >= self.begin {
            let took = u32::try_from((now - sent).as_nanos());
            self.nanoseconds.push(took.unwrap_or(u32::MAX));
        }
        Noted::GoOn
    }

    fn turn(mut self) -> io::Result<Turn> {
        if self.nanoseconds.is_empty() {
            return Err(io::Error::new(
                ErrorKind::TimedOut,
                "not one answer in a whole turn",
            ));
        }
        let count = self.nanoseconds.len();
        self.nanoseconds.sort_unstable();
        let at = |share: f64| {
            let place = (share * (count - 1) as f64).round() as usize;
            f64::from(self.nanoseconds[place]) / 1000.0
        };
        Ok(Turn {
            requests_per_second: count as f64 / (self.end - self.begin).as_secs_f64(),
            p50_us: at(0.5),
            p99_us: at(0.99),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_as_long_as_its_head_says() {
        let check = |answer: &str, expected| {
            assert_eq!(answer_bytes(answer.as_bytes()), expected, "{answer:?}");
        };
        check("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", Some(41));
        check("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n", Some(49));
        check("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n", None);
        check("HTTP/1.1 200 OK\r\n\r\nabc", None);
    }

    #[test]
    fn a_turn_counts_what_was_answered_in_its_time() {
        let mut record = Record::new(Duration::from_secs(10));
        let at = |seconds| record.begin + Duration::from_secs(seconds);
        let (warm, times) = (
            record.begin - Duration::from_nanos(1),
            [at(1), at(2), at(9), at(10)],
        );
        assert!(!record.note(warm - Duration::from_micros(5), warm).is_over());
        for (time, micros) in times.into_iter().zip([10, 20, 30, 40]) {
            let noted = record.note(time - Duration::from_micros(micros), time);
            assert_eq!(noted.is_over(), micros == 40);
        }
        let turn = record.turn().expect("three answers");
        assert_eq!(
            (turn.requests_per_second, turn.p50_us, turn.p99_us),
            (0.3, 20.0, 30.0)
        );
    }

    #[test]
    fn a_turn_without_an_answer_is_an_error() {
        assert!(Record::new(Duration::from_secs(1)).turn().is_err());
    }
}
