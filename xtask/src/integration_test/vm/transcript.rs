//! What the machine says on its second serial port: the tests' own output, file by file, between lines of the script
//! that runs them (`run.sh`).

use std::time::Duration;

use crate::{tally::Tally, test::Results};

/// How a line of the script begins.
const MARK: &str = "#imds ";
/// What `timeout` ends with when it had to end a program, and when that took SIGKILL.
const CODES_OF_TIMEOUT: [i32; 2] = [124, 137];
/// What libtest ends with when all tests passed, and when some failed.
const CODES_OF_LIBTEST: [i32; 2] = [0, 101];

/// Something that a line tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The machine has booted this kernel.
    Kernel(String),
    /// A file's tests are begun.
    Begin,
    /// They are over.
    End(FileEnd),
    /// All are; the machine switches itself off.
    Over,
}

/// How the tests of a file went.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FileEnd {
    pub(super) name: String,
    pub(super) took: Duration,
    pub(super) tally: Tally,
    /// All that was printed.
    pub(super) output: String,
}

/// The reader of these lines.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    file: Option<File>,
}

#[derive(Debug)]
struct File {
    name: String,
    results: Results,
    skips: String,
    output: String,
}

impl Transcript {
    /// Reads a line, with or without its end.
    pub(super) fn read(&mut self, line: &str) -> Option<Event> {
        let line = line.trim_end_matches(['\r', '\n']);
        let Some(told) = line.strip_prefix(MARK) else {
            if let Some(file) = &mut self.file {
                file.results.read(line);
                file.output.push_str(line);
                file.output.push('\n');
            }
            return None;
        };
        let (word, rest) = told.split_once(' ').unwrap_or((told, ""));
        match word {
            "kernel" => return Some(Event::Kernel(rest.to_owned())),
            "begin" => {
                self.file = Some(File::new(rest));
                return Some(Event::Begin);
            }
            "skip" => {
                if let Some(file) = &mut self.file {
                    file.skips.push_str(rest);
                    file.skips.push('\n');
                }
            }
            "end" => {
                let (code, seconds) = rest.split_once(' ')?;
                let file = self.file.take()?;
                return Some(Event::End(
                    file.end(code.parse().ok()?, seconds.parse().ok()?),
                ));
            }
            "over" => return Some(Event::Over),
            _ => {}
        }
        None
    }

    /// The file whose tests run, and what they have printed so far.
    pub(super) fn unfinished(&self) -> Option<(&str, &str)> {
        let file = self.file.as_ref()?;
        Some((&file.name, &file.output))
    }
}

impl File {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            results: Results::default(),
            skips: String::new(),
            output: String::new(),
        }
    }

    fn end(self, code: i32, seconds: u64) -> FileEnd {
        let mut tally = self
            .results
            .conclude(&self.skips, CODES_OF_LIBTEST.contains(&code));
        if CODES_OF_TIMEOUT.contains(&code) {
            tally.failures = vec![format!("its tests were not over after {seconds} s")];
        }
        for text in tally.failures.iter_mut().chain(&mut tally.skips) {
            *text = format!("vm {}: {text}", self.name);
        }
        FileEnd {
            name: self.name,
            took: Duration::from_secs(seconds),
            tally,
            output: self.output,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUM: &str = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";

    fn events(lines: &[&str]) -> Vec<Event> {
        let mut transcript = Transcript::default();
        lines
            .iter()
            .filter_map(|line| transcript.read(line))
            .collect()
    }

    fn check(lines: &[&str], n_passed: u64, failures: &[&str], skips: &[&str]) {
        let events = events(lines);
        let [Event::Begin, Event::End(end)] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(end.tally.n_passed, n_passed);
        assert_eq!(end.tally.failures, failures);
        assert_eq!(end.tally.skips, skips);
    }

    #[test]
    fn the_tests_of_a_file_are_added_up() {
        check(
            &["#imds begin guard\r\n", SUM, "#imds end 0 12\r\n"],
            2,
            &[],
            &[],
        );
    }

    #[test]
    fn skips_and_failures_name_the_file() {
        check(
            &[
                "#imds begin guard",
                "test one ... FAILED",
                "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
                "#imds skip SKIP: two: needs a tool",
                "#imds end 101 3",
            ],
            0,
            &["vm guard: one"],
            &["vm guard: two: needs a tool"],
        );
    }

    #[test]
    fn a_file_that_is_killed_fails() {
        check(
            &["#imds begin guard", "#imds end 124 600"],
            0,
            &["vm guard: its tests were not over after 600 s"],
            &[],
        );
        check(
            &["#imds begin guard", "#imds end 139 6"],
            0,
            &["vm guard: cargo test, before its end"],
            &[],
        );
    }

    #[test]
    fn what_is_printed_is_kept_until_the_file_ends() {
        let mut transcript = Transcript::default();
        assert_eq!(transcript.read("noise"), None);
        assert_eq!(transcript.read("#imds begin guard"), Some(Event::Begin));
        assert_eq!(transcript.read("thread 'one' panicked"), None);
        assert_eq!(
            transcript.unfinished(),
            Some(("guard", "thread 'one' panicked\n"))
        );
        assert!(transcript.read("#imds end 0 1").is_some());
        assert_eq!(transcript.unfinished(), None);
    }

    #[test]
    fn the_machine_tells_its_kernel_and_its_end() {
        assert_eq!(
            events(&["#imds kernel 6.1.0-56-cloud-amd64\r", "#imds over"]),
            [Event::Kernel("6.1.0-56-cloud-amd64".into()), Event::Over]
        );
    }
}
