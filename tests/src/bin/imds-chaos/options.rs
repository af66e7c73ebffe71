//! What a chaos run can be told. Also compiled into `xtask`: its help must be there before anything is built.

use std::path::PathBuf;

pub(crate) const EXAMPLES: &str = "\
Examples:
  cargo xtask chaos                       two minutes, twenty guests
  cargo xtask chaos --minutes 10          five times as long
  cargo xtask chaos --seed 1795578094     the same order of events as in the run that printed this seed
  cargo xtask chaos --json chaos.json     the figures for a program, too

Ends with failure if a guest was told another's identity, a packet reached the stand-in, or a request was lost where
none may be. Ctrl-C ends it early, with the figures so far and everything cleaned up.";

/// Options of a run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How long it goes on
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1440))]
    pub(crate) minutes: u32,
    /// How many guests ask
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(6..=200))]
    pub(crate) guests: u32,
    /// What is left to chance, as a number [default: another one every time]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Where the figures go as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}
