//! What a task tells the person who started it, a line at a time.
#![expect(
    clippy::print_stderr,
    reason = "telling what happens is a task's business, and this is the one place that prints"
)]

use std::{
    fmt::Display,
    io::Write as _,
    time::{Duration, Instant},
};

/// A line of output.
pub(crate) fn line(text: impl Display) {
    let mut stdout = std::io::stdout().lock();
    // Whoever stops reading, as `head` does, does not stop the task. Flushed, since a task's lines and those of the
    // programs that it starts stay in order then, also in a pipe.
    writeln!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .ok();
}

/// The outcome of a step, its word in a column of its own: `ok          bpf-linker 0.13.0`.
pub(crate) fn outcome(word: &str, text: impl Display) {
    line(format_args!("{word:<11} {text}"));
}

/// Why the task ends early, with the chain of causes.
pub(crate) fn error(cause: &anyhow::Error) {
    eprintln!("error: {cause:#}");
}

/// The headings of a task of several steps: which of how many, and the time since the task began.
pub(crate) struct Progress {
    started: Instant,
    n_steps: usize,
    step: usize,
}

impl Progress {
    pub(crate) fn new(n_steps: usize) -> Self {
        Self {
            started: Instant::now(),
            n_steps,
            step: 0,
        }
    }

    /// Announces the next step.
    pub(crate) fn next(&mut self, name: &str) {
        self.step += 1;
        let elapsed = minutes(self.started.elapsed());
        line(format_args!(
            "\n==> [{}/{}] {elapsed} {name}",
            self.step, self.n_steps
        ));
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// `03:27`: minutes and seconds.
pub(crate) fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{:02}:{:02}", seconds / 60, seconds % 60)
}
