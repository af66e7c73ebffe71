//! `cargo xtask`: the one door to every task of this repository. One file per task; CI says the same words.

mod aws_test;
mod bench;
mod bless;
mod chaos;
mod check;
mod command;
mod demo;
mod fuzz;
mod integration_test;
mod report;
mod setup;
mod tally;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The tasks of the imds repository
///
/// On a fresh Debian or Ubuntu machine with rustup, as root, `cargo xtask demo` and `cargo xtask test` need
/// nothing before them: what is missing is set up first.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    Setup(setup::Setup),
    Check(check::Check),
    Tidy(tidy::Tidy),
    Test(test::Test),
    IntegrationTest(integration_test::IntegrationTest),
    AwsTest(aws_test::AwsTest),
    Demo(demo::Demo),
    Fuzz(fuzz::Fuzz),
    Bless(bless::Bless),
    Bench(bench::Bench),
    Chaos(chaos::Chaos),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Setup(task) => task.run(),
        Task::Check(task) => task.run(),
        Task::Tidy(task) => task.run(),
        Task::Test(task) => task.run(),
        Task::IntegrationTest(task) => task.run(),
        Task::AwsTest(task) => task.run(),
        Task::Demo(task) => task.run(),
        Task::Fuzz(task) => task.run(),
        Task::Bless(task) => task.run(),
        Task::Bench(task) => task.run(),
        Task::Chaos(task) => task.run(),
    };
    match outcome {
        Ok(code) => code,
        Err(cause) => {
            report::error(&cause);
            ExitCode::FAILURE
        }
    }
}
