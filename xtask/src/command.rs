//! Other programs: started, their failure turned into an error that says what was run.

use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, bail};

/// How much of a failed program's output an error repeats.
const TAIL_LINES: usize = 30;

/// Runs the program on our own standard streams.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| format!("start {}", shown(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs the program and returns its standard output. What it said on either stream is in the error.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = finish(command)?;
    if !output.status.success() {
        let said = tail(&output);
        bail!("{} ended with {}\n{said}", shown(command), output.status);
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} printed what is not UTF-8", shown(command)))
}

/// Runs the program, which says nothing unless it fails.
pub(crate) fn quietly(command: &mut Command) -> anyhow::Result<()> {
    output(command).map(drop)
}

/// Whether the program can be run and ends well.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    finish(command).is_ok_and(|output| output.status.success())
}

/// The program and its arguments as one would type them.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// `cargo` in the checkout, as typed in a shell there.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(crate::workspace::root())
        // The cargo that started us set it from `.cargo/config.toml`, as the next one does for what it starts. Seen in
        // its own environment, it would make build scripts that watch it run again.
        .env_remove("RUSTC_BOOTSTRAP");
    cargo
}

/// Runs the program to its end, whatever that is, and keeps what it says.
pub(crate) fn finish(command: &mut Command) -> anyhow::Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", shown(command)))
}

/// What the program said on both streams.
pub(crate) fn said(output: &Output) -> String {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&said).into_owned()
}

fn tail(output: &Output) -> String {
    let said = said(output);
    let lines: Vec<_> = said.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
