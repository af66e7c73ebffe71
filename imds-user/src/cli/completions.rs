//! `imds completions`: what a shell needs to complete `imds …`.

use std::io::Write;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, EXIT_FINE};

const EXAMPLES: &str = "\
Examples:
  source <(imds completions bash)                                        this shell
  imds completions bash > /etc/bash_completion.d/imds                    every bash
  imds completions zsh  > /usr/local/share/zsh/site-functions/_imds      every zsh
  imds completions fish > /etc/fish/completions/imds.fish                every fish";

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "imds", &mut script);
        out.write_all(&script)?;
        Ok(ExitCode::from(EXIT_FINE))
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_shell_learns_of_every_command() {
        for shell in Shell::value_variants() {
            let mut out = Vec::new();
            Completions { shell: *shell }.run(&mut out).unwrap();
            let script = String::from_utf8(out).unwrap();
            for command in Cli::command()
                .get_subcommands()
                .filter(|command| !command.is_hide_set())
            {
                assert!(
                    script.contains(command.get_name()),
                    "{shell}: {}",
                    command.get_name()
                );
            }
        }
    }
}
