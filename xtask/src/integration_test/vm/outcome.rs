//! Follows what a machine does, tells of it and adds it up.

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::{
    FILE_SECONDS_MAX,
    machine::{Running, Said},
    transcript::{Event, FileEnd, Transcript},
};
use crate::{report, tally::Tally};

/// Bound on whatever the machine does beside running a file's tests: it boots in a few seconds.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Bound on a file's tests, behind the one in the machine.
const FILE_MAX: Duration = Duration::from_secs(FILE_SECONDS_MAX + 60);

/// What came of a machine so far.
pub(super) struct Outcome {
    tally: Tally,
    transcript: Transcript,
    ended: Vec<String>,
    /// Everything that was said, as it came.
    log: File,
}

/// How a machine ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By itself, when everything was done.
    Done,
    Early,
    Stuck,
}

impl End {
    /// Why not everything was done.
    pub(super) fn cause(&self) -> Option<&'static str> {
        match self {
            Self::Done => None,
            Self::Early => Some("the machine went off"),
            Self::Stuck => Some("the machine got stuck"),
        }
    }
}

impl Outcome {
    pub(super) fn new(log: &Path) -> anyhow::Result<Self> {
        let file = File::create(log).with_context(|| format!("make {}", log.display()))?;
        Ok(Self {
            tally: Tally::default(),
            transcript: Transcript::default(),
            ended: Vec::new(),
            log: file,
        })
    }

    /// Reads and tells until the machine is off, or takes longer than it may.
    pub(super) fn follow(&mut self, running: &Running) -> anyhow::Result<End> {
        let mut deadline = Instant::now() + SILENCE_MAX;
        let mut is_over = false;
        loop {
            let line = match running.next(deadline) {
                Said::Line(line) => line,
                Said::Off if is_over => return Ok(End::Done),
                Said::Off => return Ok(End::Early),
                Said::Nothing => return Ok(End::Stuck),
            };
            writeln!(self.log, "{}", line.trim_end()).context("write the tests' log")?;
            let Some(event) = self.transcript.read(&line) else {
                continue;
            };
            let bound = match event {
                Event::Begin => FILE_MAX,
                _ => SILENCE_MAX,
            };
            deadline = Instant::now() + bound;
            is_over |= event == Event::Over;
            self.tell(event);
        }
    }

    /// Counts what the machine did not come to.
    pub(super) fn break_off<'a>(&mut self, why: &str, names: impl Iterator<Item = &'a str>) {
        let unfinished = self.transcript.unfinished();
        if let Some((_, output)) = unfinished {
            report::line(output);
        }
        for name in names {
            if self.ended.iter().any(|ended| ended == name) {
                continue;
            }
            let when = match unfinished {
                Some((unfinished, _)) if unfinished == name => "while its tests ran",
                _ => "before its tests",
            };
            self.tally.failures.push(format!("vm {name}: {why} {when}"));
        }
    }

    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    pub(super) fn into_tally(self) -> Tally {
        self.tally
    }

    fn tell(&mut self, event: Event) {
        match event {
            Event::Kernel(version) => report::outcome("booted", format_args!("Linux {version}")),
            Event::End(end) => self.end(end),
            Event::Begin | Event::Over => {}
        }
    }

    fn end(&mut self, end: FileEnd) {
        let is_ok = end.tally.failures.is_empty();
        if !is_ok {
            report::line(&end.output);
        }
        let seconds = end.took.as_secs();
        let summary = end.tally.summary();
        report::outcome(
            if is_ok { "ok" } else { "FAILED" },
            format_args!("vm {}: {summary} ({seconds} s)", end.name),
        );
        self.ended.push(end.name);
        self.tally.add(end.tally);
    }
}
