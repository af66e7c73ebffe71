//! `imds apply` and `imds export`: what is kept of instances, from a file and as one.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use imds_user::config::{self, disk::Disk};
use imds_user::control::Applied;
use imds_user::control::client::{self, ClientError};
use imds_user::instance::UnixMillis;
use imds_user::state;
use imds_user::store::apply::{Action, ApplyError, Change, Precedence, plan};
use imds_user::store::backend::State;
use imds_user::store::export::{Secrets, export};
use imds_user::store::{Backend, CommitError, Note, Sqlite, View, Who};

use super::failure::Refusal;
use super::{
    BAD, BOLD, DIM, EXIT_FINE, EXIT_MISSING, EXIT_USAGE, GOOD, StateDir, WARNING, require_root,
};

const APPLY_EXAMPLES: &str = "\
Examples:
  imds apply -f /etc/imds.toml --dry-run     what would change?
  imds apply -f /etc/imds.toml               a second time it changes nothing
  imds apply -f /etc/imds.toml --json | jq -r '.changes[].name'

The file has the last word on its own instances: what calls of the API changed is as the file says again, where it says
something. Instances that it does not have any more are removed; those of others (the API, `imds admit`) stay. When
a daemon starts or is told to read its file again (SIGHUP), only what was edited in the file counts.";

/// Make instances what a configuration file says
///
/// A running daemon has it in force when this returns. When none runs it is kept, and the next daemon finds it so.
#[derive(Debug, clap::Args)]
#[command(after_help = APPLY_EXAMPLES)]
pub(crate) struct Apply {
    /// The configuration file (TOML; see docs/configuration.md)
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,

    /// Only say what would change
    #[arg(long)]
    dry_run: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    state_dir: StateDir,
}

impl Apply {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        require_root("applying a configuration")?;
        let state_dir = &self.state_dir.state_dir;
        // The daemon has a working directory of its own.
        let file = std::path::absolute(&self.file).context("find the working directory")?;
        let applied = match client::apply(state_dir, file, self.dry_run) {
            Err(ClientError::NoDaemon { .. }) => keep(state_dir, &self.file, self.dry_run)?,
            applied => applied?,
        };
        if self.json {
            serde_json::to_writer_pretty(&mut *out, &applied)?;
            writeln!(out)?;
        } else {
            write_applied(out, &applied)?;
        }
        Ok(ExitCode::from(EXIT_FINE))
    }
}

/// Applies a file while no daemon runs. None can start meanwhile.
fn keep(state_dir: &Path, file: &Path, is_dry_run: bool) -> anyhow::Result<Applied> {
    let state = state::StateDir::open(state_dir)?;
    let (settings, rest) = config::load_with_rest(file, &state.installation()?, &Disk)?;
    let mut store = Sqlite::open(&state.store())?;
    loop {
        let view = view_of(&mut store)?;
        let plan = plan(&view, &settings.guests, &rest, Precedence::File).map_err(refused)?;
        if !is_dry_run && !plan.is_nothing() {
            let note = note(format!("imds apply -f {}", file.display()));
            match store.commit(&plan.transaction(&view, note)?) {
                Err(CommitError::Conflict(_)) => continue,
                outcome => outcome?,
            };
        }
        return Ok(Applied {
            dry_run: is_dry_run,
            in_force: false,
            changes: plan.changes,
        });
    }
}

fn refused(error: ApplyError) -> Refusal {
    Refusal {
        code: EXIT_USAGE,
        text: error.to_string(),
    }
}

fn note(what: String) -> Note {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Note {
        at: UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
        who: Who::User(nix::unistd::getuid().as_raw()),
        what: what.into(),
    }
}

pub(super) fn view_of(store: &mut Sqlite) -> anyhow::Result<View> {
    let State { revision, items } = store.load()?;
    let mut view = View::default();
    view.take(revision, items)?;
    Ok(view)
}

fn write_applied(out: &mut dyn Write, applied: &Applied) -> io::Result<()> {
    for change in &applied.changes {
        write_change(out, change)?;
    }
    let count = |action| {
        let changes = applied.changes.iter();
        changes.filter(|change| change.action == action).count()
    };
    if applied.changes.is_empty() {
        return writeln!(out, "nothing to change");
    }
    let would = if applied.dry_run { "would be " } else { "" };
    let (added, changed, removed) = (
        count(Action::Add),
        count(Action::Change),
        count(Action::Remove),
    );
    writeln!(
        out,
        "\n{would}added: {added}, changed: {changed}, removed: {removed}"
    )?;
    if !applied.dry_run && !applied.in_force {
        writeln!(
            out,
            "{WARNING}kept:{WARNING:#} no daemon runs; the next one serves it"
        )?;
    }
    Ok(())
}

pub(super) fn write_change(out: &mut dyn Write, change: &Change) -> io::Result<()> {
    let (sign, style) = match change.action {
        Action::Add => ('+', GOOD),
        Action::Change => ('~', WARNING),
        Action::Remove => ('-', BAD),
    };
    write!(out, "{style}{sign}{style:#} {BOLD}{}{BOLD:#}", change.name)?;
    if let Some(id) = change.instance_id {
        write!(out, " {DIM}{id}{DIM:#}")?;
    }
    writeln!(out)?;
    for field in &change.fields {
        writeln!(out, "    {field}")?;
    }
    Ok(())
}

const EXPORT_EXAMPLES: &str = "\
Examples:
  imds export > imds.toml                 all that is kept, as a configuration file
  imds export --secrets > imds.toml       with the secret half of credentials, for another host

Everything that was made up stands in it, so that another host makes the same instances of it.";

/// Print what is kept of instances as a configuration file
#[derive(Debug, clap::Args)]
#[command(after_help = EXPORT_EXAMPLES)]
pub(crate) struct Export {
    /// Print the secret half of credentials too
    #[arg(long)]
    secrets: bool,

    #[command(flatten)]
    state_dir: StateDir,
}

impl Export {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let mut store = existing(&self.state_dir.state_dir)?;
        let secrets = if self.secrets {
            Secrets::Written
        } else {
            Secrets::LeftOut
        };
        let text = export(&view_of(&mut store)?, secrets);
        out.write_all(text.trim_start().as_bytes())?;
        Ok(ExitCode::from(EXIT_FINE))
    }
}

/// The store of a state directory, which must be there.
pub(super) fn existing(state_dir: &Path) -> anyhow::Result<Sqlite> {
    let path = state::store_in(state_dir);
    if let Err(error) = std::fs::metadata(&path)
        && error.kind() == io::ErrorKind::NotFound
    {
        let text = format!(
            "nothing was ever kept in {}: start a daemon, `imds apply -f FILE`, or name another directory with --state-dir",
            state_dir.display()
        );
        return Err(Refusal {
            code: EXIT_MISSING,
            text,
        }
        .into());
    }
    Ok(Sqlite::open(&path)?)
}

#[cfg(test)]
mod tests {
    use imds_user::store::history::FieldChange;

    use super::*;

    /// What a person sees, without colours.
    #[track_caller]
    fn check(applied: &Applied, expected: &str) {
        let mut out = anstream::StripStream::new(Vec::new());
        write_applied(&mut out, applied).unwrap();
        assert_eq!(String::from_utf8(out.into_inner()).unwrap(), expected);
    }

    #[test]
    fn what_changes_is_told_line_by_line() {
        let change = |action, name: &str, fields| Change {
            instance_id: Some("i-0123456789abcdef0".parse().unwrap()),
            name: name.into(),
            action,
            fields,
        };
        let tokens = FieldChange {
            field: "metadata-options.http-tokens".into(),
            old: Some("optional".into()),
            new: Some("required".into()),
        };
        let mut applied = Applied {
            dry_run: true,
            in_force: false,
            changes: vec![
                change(Action::Add, "web", Vec::new()),
                change(Action::Change, "db", vec![tokens]),
                Change {
                    instance_id: None,
                    ..change(Action::Remove, "old", Vec::new())
                },
            ],
        };
        let lines = "+ web i-0123456789abcdef0\n\
                     ~ db i-0123456789abcdef0\n    metadata-options.http-tokens: optional → required\n\
                     - old\n\n";
        check(
            &applied,
            &format!("{lines}would be added: 1, changed: 1, removed: 1\n"),
        );
        applied.dry_run = false;
        check(
            &applied,
            &format!(
                "{lines}added: 1, changed: 1, removed: 1\nkept: no daemon runs; the next one serves it\n"
            ),
        );
        applied.in_force = true;
        check(
            &applied,
            &format!("{lines}added: 1, changed: 1, removed: 1\n"),
        );
        applied.changes.clear();
        check(&applied, "nothing to change\n");
    }
}
