//! `imds wait`: for whoever makes a guest's interface and may start the guest only when its port is in our hands.

use std::io::Write;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use imds_user::control::client::ClientError;
use imds_user::control::{self, PortReport, PortState};

use super::failure::Refusal;
use super::{EXIT_FINE, EXIT_MISSING, StateDir};

const EXAMPLES: &str = "\
Examples:
  imds wait --port vnet0                        until its guest would be answered
  imds wait --port vnet0 --closed --timeout 2s  until what its guest sends cannot get past this host
  ip link set tap0 up && imds wait --port tap0 && exec qemu-system-x86_64 …

Exit codes: 0 it is; 69 not in time, or no daemon runs, and the message says what is in the way;
64 wrong command line.";

/// How long the daemon is left alone between two questions. A question costs it some ten microseconds.
const BETWEEN_QUESTIONS: Duration = Duration::from_millis(10);

/// Wait until an interface is a port that is served, or at least closed
///
/// Returns at once if it is. The interface may not be there yet, and the daemon may be about to start. Start the guest
/// after this, and not one packet of it for the metadata addresses passes this host.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Wait {
    /// The interface
    #[arg(long, value_name = "NAME")]
    port: imds_user::config::PortName,

    /// Be content when it is closed: who is behind it need not be known
    #[arg(long)]
    closed: bool,

    /// How long to wait: 10s, 500ms, 1m
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    timeout: Duration,

    #[command(flatten)]
    state_dir: StateDir,
}

impl Wait {
    pub(super) fn run(self, _out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let answer = control::client::port(&self.state_dir.state_dir, self.port.to_string());
            let state = match &answer {
                Ok(report) => Some(report.state),
                // It may be about to start, or just be replaced by its successor.
                Err(ClientError::NoDaemon { .. } | ClientError::Talk { .. }) => None,
                Err(_) => return Err(self.too_late(answer)),
            };
            if state.is_some_and(|state| self.is_content_with(state)) {
                return Ok(ExitCode::from(EXIT_FINE));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.too_late(answer));
            }
            thread::sleep(BETWEEN_QUESTIONS.min(left));
        }
    }

    fn is_content_with(&self, state: PortState) -> bool {
        match state {
            PortState::Served => true,
            PortState::Closed => self.closed,
            PortState::Open | PortState::Missing => false,
        }
    }

    fn too_late(&self, answer: Result<PortReport, ClientError>) -> anyhow::Error {
        let report = match answer {
            Ok(report) => report,
            Err(error) => return error.into(),
        };
        let PortReport { interface, why, .. } = report;
        let wanted = if self.closed { "closed" } else { "served" };
        let text = format!(
            "interface {interface} is not {wanted} after {:?}: {why}",
            self.timeout
        );
        Refusal {
            code: EXIT_MISSING,
            text,
        }
        .into()
    }
}

/// `500ms`, `10s`, `1m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: Option<u64> = digits.parse().ok();
    let millis = match &text[digits.len()..] {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        _ => None,
    };
    let millis = number.zip(millis).and_then(|(n, unit)| n.checked_mul(unit));
    millis
        .map(Duration::from_millis)
        .ok_or_else(|| "write a number and ms, s or m, such as 10s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        for (text, millis) in [("0s", 0), ("500ms", 500), ("10s", 10_000), ("2m", 120_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "10",
            "s",
            "-1s",
            "1h",
            "1.5s",
            "1sm",
            "99999999999999999999s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
