//! `imds identity`: what verifiers of signed identity documents need.

use std::io::Write;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::{Subcommand, ValueEnum};
use imds_user::identity::{Keys, SignatureKind};
use imds_user::state::{self, StateError};

use super::{EXIT_FINE, StateDir};

const EXAMPLES: &str = "\
Examples:
  imds identity certificate                                all four, each with what it verifies
  imds identity certificate --kind rsa2048 > certificate   one, for `openssl smime`

docs/identity.md says how a document is verified with them.";

/// How long a daemon may take to make its keys: a good part of a second on a small machine, and disks can be slow.
const KEYS_WITHIN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// Show what verifies signed identity documents
///
/// Guests prove who they are with `dynamic/instance-identity/`: a document, signed in four ways with keys of this
/// installation. A verifier that was written for EC2 needs these certificates in place of Amazon's.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, disable_help_subcommand = true)]
pub(crate) struct Identity {
    #[command(subcommand)]
    command: IdentityCommand,
}

#[derive(Debug, Subcommand)]
enum IdentityCommand {
    Certificate(Certificate),
}

/// Print certificates in PEM; the keys are made if there are none yet
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
struct Certificate {
    /// Only the one that verifies dynamic/instance-identity/KIND
    #[arg(long)]
    kind: Option<Kind>,

    #[command(flatten)]
    state_dir: StateDir,
}

/// [`SignatureKind`], as it is typed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Rsa2048,
    Pkcs7,
    Signature,
    Dsa2048,
}

impl From<Kind> for SignatureKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Rsa2048 => Self::Rsa2048,
            Kind::Pkcs7 => Self::Pkcs7,
            Kind::Signature => Self::Signature,
            Kind::Dsa2048 => Self::Dsa2048,
        }
    }
}

impl Identity {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        match self.command {
            IdentityCommand::Certificate(certificate) => certificate.run(out),
        }
    }
}

impl Certificate {
    fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let keys = keys_of(&self.state_dir)?;
        if let Some(kind) = self.kind {
            out.write_all(keys.certificate(kind.into()).as_bytes())?;
            return Ok(ExitCode::from(EXIT_FINE));
        }
        for (number, kind) in SignatureKind::ALL.into_iter().enumerate() {
            if number > 0 {
                writeln!(out)?;
            }
            // Readers of PEM skip what stands outside of its armour.
            let algorithms = kind.algorithms();
            writeln!(
                out,
                "# verifies dynamic/instance-identity/{kind} ({algorithms})"
            )?;
            out.write_all(keys.certificate(kind).as_bytes())?;
        }
        Ok(ExitCode::from(EXIT_FINE))
    }
}

/// Reads the keys. Where there are none they are made by whoever holds the state directory: a daemon if one runs, which is
/// then waited for, or else this command.
fn keys_of(StateDir { state_dir }: &StateDir) -> anyhow::Result<Keys> {
    let directory = state::identity_in(state_dir);
    let deadline = Instant::now() + KEYS_WITHIN;
    loop {
        if let Some(keys) = Keys::load(&directory)? {
            return Ok(keys);
        }
        match state::StateDir::open(state_dir) {
            Ok(state) => return Ok(Keys::load_or_make(&state)?),
            Err(StateError::Locked(_)) if Instant::now() < deadline => thread::sleep(PAUSE),
            Err(StateError::Locked(_)) => bail!(
                "the daemon with the state directory {} has no keys: its log says why",
                state_dir.display()
            ),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_signature_can_be_typed_by_the_name_of_its_leaf() {
        let typed: Vec<_> = Kind::value_variants()
            .iter()
            .filter_map(|kind| Some(kind.to_possible_value()?.get_name().to_owned()))
            .collect();
        assert_eq!(typed, SignatureKind::ALL.map(SignatureKind::name));
    }
}
