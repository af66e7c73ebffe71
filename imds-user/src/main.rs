//! `imds`, the command: reads the command line, does what it says, exits with the code that tells how it went.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(code) => return code,
    };
    match command.run(&mut anstream::stdout().lock()) {
        Ok(code) => code,
        Err(error) => cli::report(&error),
    }
}
