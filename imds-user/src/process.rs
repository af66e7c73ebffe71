//! A process that is another's: named so that a later one of the same number is not taken for it.

use std::fs;

use serde::{Deserialize, Serialize};

/// A process, told from a later one of the same number by when it started.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Clock ticks between the machine's boot and its start: field 22 of `/proc/PID/stat`, proc_pid_stat(5).
    pub start_ticks: u64,
}

impl Process {
    /// The process that has this number now.
    #[must_use]
    pub fn now(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self {
            pid,
            start_ticks: Stat::parse(&stat)?.start_ticks,
        })
    }

    /// Whether it still runs; one that ended and was not waited for does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok();
        let stat = stat.as_deref().and_then(Stat::parse);
        stat.is_some_and(|stat| stat.start_ticks == self.start_ticks && !stat.is_over)
    }
}

/// What is used of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stat {
    is_over: bool,
    start_ticks: u64,
}

impl Stat {
    /// The second field is the command's name in parentheses, which may hold anything, parentheses too.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        let state = fields.next()?;
        // The state is field 3, the start time field 22.
        let start_ticks = fields.nth(18)?.parse().ok()?;
        Some(Self {
            is_over: matches!(state, "Z" | "X"),
            start_ticks,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: &str = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18";

    #[test]
    fn the_start_time_is_found_whatever_the_command_is_called() {
        let alive = Some(Stat {
            is_over: false,
            start_ticks: 4711,
        });
        for (text, expected) in [
            (format!("7 (imds) S {REST} 4711 0"), alive),
            (format!("7 (a) R (b) S {REST} 4711 0"), alive),
            (
                format!("7 (imds) Z {REST} 4711 0"),
                Some(Stat {
                    is_over: true,
                    start_ticks: 4711,
                }),
            ),
            (format!("7 (imds) S {REST}"), None),
            ("7".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(Stat::parse(&text), expected, "{text}");
        }
    }

    #[test]
    fn a_process_is_itself_and_no_other_of_the_same_number() {
        let this = Process::now(std::process::id()).unwrap();
        assert!(this.is_alive());
        assert!(
            !Process {
                start_ticks: this.start_ticks + 1,
                ..this
            }
            .is_alive()
        );
        assert_eq!(Process::now(u32::MAX), None);
    }
}
