//! What a chaos run found: a table for people, JSON for programs, and whether it is as it has to be.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::Incident;
use super::ledger::{Account, Kind, Times};
use super::{Plan, Stage, tail};

/// The aim for the time from a kill of the daemon until the next one is ready, its supervisor's pause included.
const RECOVERY_AIM: Duration = Duration::from_secs(1);
/// How many examples are shown of what went wrong.
const EXAMPLES: usize = 5;

/// What one kind of disturbance did.
#[derive(Clone, Debug)]
pub struct Row {
    /// None for what met no disturbance.
    pub kind: Account,
    /// How often it happened.
    pub times: u64,
    /// Requests that were lost.
    pub lost: u64,
    /// Some of them, those first that waited longest.
    pub examples: Vec<String>,
    /// Answers that named somebody else.
    pub wrong: u64,
    /// The longest wait for an answer, as far as it is worth being told.
    pub longest: Option<Duration>,
    /// How long it took until all was well.
    pub recovery: Times,
}

/// The figures of a run.
#[derive(Clone, Debug)]
pub struct Report {
    seed: u64,
    guests: usize,
    elapsed: Duration,
    answered: u64,
    rows: Vec<Row>,
    /// Packets of guests that reached the stand-in, and what it answered to anybody but the host.
    leaked: u64,
    leaked_answers: u64,
    /// How often strangers tried.
    knocks: u64,
    /// How often the host asked its own service, and was not answered.
    own: u64,
    own_failed: u64,
    /// Starts of the daemon that failed for a reason.
    failed_starts: u64,
    /// What is not as it has to be.
    violations: Vec<String>,
    log: String,
}

impl Report {
    pub(super) fn of(stage: &Stage<'_>, plan: &Plan, elapsed: Duration, log: &str) -> Self {
        let seen = &stage.seen;
        let list = |list: &Mutex<Vec<Incident>>| list.lock().expect("it is over").clone();
        let (failed, wrong, slow) = (list(&seen.failed), list(&seen.wrong), list(&seen.slow));
        let account = |one: &Incident| stage.ledger.account(one.guest, one.since, one.until);
        let counts = stage.ledger.counts();
        let recoveries = stage.recoveries.lock().expect("it is over");
        let row = |kind: Account| {
            let mine = |all: &'_ [Incident]| -> Vec<Incident> {
                let mine = all.iter().filter(|one| account(one) == kind);
                mine.cloned().collect()
            };
            let count = |all| u64::try_from(mine(all).len()).unwrap_or(u64::MAX);
            let slow = mine(&slow);
            let mut lost = mine(&failed);
            lost.sort_by_key(|one| std::cmp::Reverse(one.until - one.since));
            Row {
                kind,
                times: kind.map_or(0, |kind| counts.get(&kind).copied().unwrap_or_default()),
                lost: count(&failed),
                examples: lost
                    .into_iter()
                    .take(EXAMPLES)
                    .map(|one| one.what)
                    .collect(),
                wrong: count(&wrong),
                longest: slow.iter().map(|one| one.until - one.since).max(),
                recovery: kind
                    .and_then(|kind| recoveries.get(&kind).cloned())
                    .unwrap_or_default(),
            }
        };
        let kinds = Kind::ALL.into_iter().map(Some).chain([None]);
        let rows: Vec<Row> = kinds.map(row).collect();
        let own = seen.own.load(Ordering::Relaxed);
        let all_own_failed = list(&seen.own_failed);
        let meets_flap = |one: &&Incident| {
            let (since, until) = (one.since, one.until);
            stage
                .ledger
                .meets(Kind::UplinkFlaps, one.guest, since, until)
        };
        let own_failed: Vec<Incident> = all_own_failed
            .iter()
            .filter(|one| !meets_flap(one))
            .cloned()
            .collect();
        let leaks = seen.leaks.lock().expect("it is over").clone();
        let answers = stage.uplink.answers() - stage.answered_before;
        let mut report = Self {
            seed: plan.seed,
            guests: stage.machines.len(),
            elapsed,
            answered: seen.answered.load(Ordering::Relaxed),
            leaked: stage.leaked(),
            // The host's last question may have been answered without being counted by who asked.
            leaked_answers: answers.saturating_sub(own + all_own_failed.len() as u64),
            knocks: seen.knocks.load(Ordering::Relaxed),
            own,
            own_failed: own_failed.len() as u64,
            failed_starts: stage.failed_starts.load(Ordering::Relaxed),
            violations: stage.violations.lock().expect("it is over").clone(),
            log: tail(log, 60),
            rows,
        };
        let in_vain: Vec<Incident> = failed
            .into_iter()
            .filter(|one| account(one).is_none_or(|kind| !kind.may_cost()))
            .collect();
        report.judge("a wrong identity", &wrong);
        report.judge("a request lost", &in_vain);
        report.blame("a stranger was answered", &leaks);
        report.judge("the host was not answered", &own_failed);
        if report.leaked > 0 {
            report
                .violations
                .push(format!("{} packets leaked", report.leaked));
        }
        if report.leaked_answers > 0 {
            let n = report.leaked_answers;
            report
                .violations
                .push(format!("{n} answers of the stand-in leaked"));
        }
        if report.answered == 0 || report.knocks == 0 || report.own == 0 {
            report.violations.push("nobody asked anything".to_owned());
        }
        report
    }

    /// What is not as it has to be: nothing, if all is well.
    #[must_use]
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// A row for every kind of disturbance, and one for what met none.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The figures for programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(Row::to_json).collect();
        json!({
            "seed": self.seed,
            "guests": self.guests,
            "seconds": self.elapsed.as_secs_f64(),
            "answered": self.answered,
            "wrong_identities": self.sum(|row| row.wrong),
            "packets_at_the_stand_in": self.leaked,
            "lost_where_nothing_may_be": self.sum(Row::lost_in_vain),
            "lost_where_it_may_be": self.sum(|row| row.lost - row.lost_in_vain()),
            "strangers_attempts": self.knocks,
            "hosts_own_requests": self.own,
            "hosts_own_requests_failed": self.own_failed,
            "starts_failed_for_a_reason": self.failed_starts,
            "disturbances": rows,
            "violations": self.violations,
        })
    }

    fn sum(&self, of: impl Fn(&Row) -> u64) -> u64 {
        self.rows.iter().map(of).sum()
    }

    fn judge(&mut self, what: &str, incidents: &[Incident]) {
        let said: Vec<String> = incidents.iter().map(|one| one.what.clone()).collect();
        self.blame(what, &said);
    }

    fn blame(&mut self, what: &str, said: &[String]) {
        let shown = said.iter().take(EXAMPLES);
        self.violations
            .extend(shown.map(|said| format!("{what}: {said}")));
        if said.len() > EXAMPLES {
            let more = said.len() - EXAMPLES;
            self.violations.push(format!("{what}: {more} more"));
        }
    }
}

impl Row {
    /// Requests that were lost although nothing happened that may cost one.
    fn lost_in_vain(&self) -> u64 {
        match self.kind {
            Some(kind) if kind.may_cost() => 0,
            _ => self.lost,
        }
    }

    fn to_json(&self) -> Value {
        let millis = |time: Option<Duration>| time.map(|time| time.as_secs_f64() * 1000.0);
        json!({
            "disturbance": self.name(),
            "times": self.times,
            "may_cost": self.kind.is_some_and(Kind::may_cost),
            "lost": self.lost,
            "examples": self.examples,
            "wrong": self.wrong,
            "longest_wait_ms": millis(self.longest),
            "recovery_median_ms": millis(self.recovery.median()),
            "recovery_longest_ms": millis(self.recovery.longest()),
        })
    }

    fn name(&self) -> &'static str {
        self.kind.map_or("nothing", Kind::name)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} guests, {:.0?}, seed {}\n",
            self.guests, self.elapsed, self.seed
        )?;
        writeln!(
            f,
            "{:<31} {:>5} {:>9} {:>6} {:>6} {:>13}  recovery: median, longest",
            "what happened", "times", "may lose", "lost", "wrong", "longest wait"
        )?;
        for row in &self.rows {
            row.fmt(f)?;
        }
        let total = |f: &mut fmt::Formatter<'_>, what: &str, count: u64, aim: &str| {
            writeln!(f, "{what:<57} {count:>9}  {aim}")
        };
        writeln!(f)?;
        total(f, "requests answered", self.answered, "")?;
        let wrong = self.sum(|row| row.wrong);
        total(f, "answers with a wrong identity", wrong, "must be 0")?;
        total(
            f,
            "packets that reached the stand-in",
            self.leaked,
            "must be 0",
        )?;
        let in_vain = self.sum(Row::lost_in_vain);
        total(f, "requests lost where none may be", in_vain, "must be 0")?;
        let lost = self.sum(|row| row.lost) - in_vain;
        total(
            f,
            "requests lost where the disturbance may cost some",
            lost,
            "",
        )?;
        total(
            f,
            "attempts of strangers to reach the stand-in",
            self.knocks,
            "",
        )?;
        total(f, "requests of the host to its own service", self.own, "")?;
        total(
            f,
            "  not answered while its uplink was up",
            self.own_failed,
            "must be 0",
        )?;
        total(
            f,
            "starts that failed: disk full, responder killed meanwhile",
            self.failed_starts,
            "",
        )?;
        let killed = self
            .rows
            .iter()
            .find(|row| row.kind == Some(Kind::DaemonKilled));
        if let Some(longest) = killed.and_then(|row| row.recovery.longest()) {
            writeln!(
                f,
                "{:<57} {:>9}  aim: under {RECOVERY_AIM:.0?}",
                "ready after SIGKILL of the daemon, at most",
                format!("{longest:.0?}")
            )?;
        }
        for violation in &self.violations {
            writeln!(f, "WRONG: {violation}")?;
        }
        if !self.violations.is_empty() {
            writeln!(f, "--- the end of the daemons' log ---\n{}", self.log)?;
        }
        Ok(())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time =
            |time: Option<Duration>| time.map_or("-".to_owned(), |time| format!("{time:.0?}"));
        let may_lose = match self.kind {
            Some(kind) if kind.may_cost() => "yes",
            _ => "no",
        };
        writeln!(
            f,
            "{:<31} {:>5} {:>9} {:>6} {:>6} {:>13}  {}, {}",
            self.name(),
            self.times,
            may_lose,
            self.lost,
            self.wrong,
            time(self.longest),
            time(self.recovery.median()),
            time(self.recovery.longest())
        )
    }
}
