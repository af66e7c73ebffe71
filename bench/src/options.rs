//! What a run of the bench can be told. Also compiled into `xtask`: its help must be there before anything is built.

use std::path::PathBuf;

pub(crate) const EXAMPLES: &str = "\
Examples:
  cargo xtask bench                            all of it, about eight minutes
  cargo xtask bench --only c                   what foreign packets cost
  cargo xtask bench --only a,b --rounds 101    requests, with more rounds than usual
  cargo xtask bench --quick                    does everything run? its figures mean nothing

Nothing else should run on the machine meanwhile. docs/performance.md explains the figures.";

/// Options of a run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only these figures: a, b, c, d, e
    #[arg(long, value_name = "FIGURES", value_delimiter = ',')]
    pub(crate) only: Vec<Figure>,
    /// Only the cases of a and b whose names contain this, such as `16 connections`
    #[arg(long, value_name = "WORDS")]
    pub(crate) case: Option<String>,
    /// How often each contestant has its turn in a and b [default: 51]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(3..=10_000))]
    pub(crate) rounds: Option<u32>,
    /// A short run of the debug build: shows that everything runs, judges nothing
    #[arg(long)]
    pub(crate) quick: bool,
    /// Where the figures go as JSON [default: target/bench.json, with --quick target/bench-quick.json]
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Figure {
    /// Requests through the whole path over the same responder on a bare veth pair
    A,
    /// Requests through the whole path over a plain hyper server on that pair
    B,
    /// What a foreign packet costs
    C,
    /// Memory and start with many instances
    D,
    /// The control API with many instances
    E,
}
