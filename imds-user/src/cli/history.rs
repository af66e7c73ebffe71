//! `imds history`: who changed what, and when.

use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, SystemTime};

use imds_user::control::find::{Known, find};
use imds_user::instance::{InstanceId, UnixMillis};
use imds_user::life::When;
use imds_user::store::{Backend, Entry, HistoryQuery, Key, Sqlite, StoreError, View};

use super::apply::{existing, view_of};
use super::failure::Refusal;
use super::table::{Align, Cell, Table};
use super::{BAD, BOLD, EXIT_FINE, EXIT_USAGE, StateDir};

const EXAMPLES: &str = "\
Examples:
  imds history                               what changed last, and who did it
  imds history web                           the same of one instance, by its name, its id, or how its id begins
  imds history --since 1h --action options   whose options were changed in the last hour
  imds history --who daemon --limit 1000
  imds history --follow                      go on with what comes
  imds history --json | jq 'select(.refused)'

Secrets are never in it: that one changed is told, not from what to what.";

/// How many entries are read at a time.
const PAGE: usize = 1000;
/// How often it is looked for more.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Show who changed what, the latest first
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct History {
    /// Of one instance alone; one that is gone is named by its whole id
    #[arg(conflicts_with = "of")]
    instance: Option<String>,

    /// The same
    #[arg(long = "instance", value_name = "INSTANCE", hide = true)]
    of: Option<String>,

    /// Not what is older: a time (2026-01-31T12:00:00Z), or how long ago (90s, 2h, 7d)
    #[arg(long, value_name = "WHEN")]
    since: Option<When>,

    /// What one has done: `daemon`, `uid 0`, `key AKIA…`, or a part of that
    #[arg(long, value_name = "WHO")]
    who: Option<String>,

    /// Actions and commands with this in their names, in any case
    #[arg(long, value_name = "TEXT")]
    action: Option<String>,

    /// No more than so many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,

    /// Go on with what comes, the latest last
    #[arg(long, short)]
    follow: bool,

    /// Print JSON, an entry a line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    state_dir: StateDir,
}

/// Which entries are asked for.
struct Wanted {
    about: Vec<Key>,
    since: Option<UnixMillis>,
    who: Option<String>,
    action: Option<String>,
}

impl History {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let mut store = existing(&self.state_dir.state_dir)?;
        let view = view_of(&mut store)?;
        let about = match self.instance.as_ref().or(self.of.as_ref()) {
            Some(written) => {
                let id = meant(&view, written)?;
                vec![Key::instance(id), Key::life(id)]
            }
            None => Vec::new(),
        };
        let wanted = Wanted {
            about,
            since: self.since.map(|since| ago(since, now())),
            who: self.who,
            action: self.action.map(|action| action.to_lowercase()),
        };
        let mut entries = latest(&mut store, &wanted, 0, self.limit)?;
        let seen = last_number(&mut store)?;
        if self.follow {
            entries.reverse();
        }
        if self.json {
            write_lines(out, &entries)?;
        } else {
            write_history(out, &view, &entries)?;
        }
        if self.follow {
            follow(out, &mut store, &wanted, seen, self.json)?;
        }
        Ok(ExitCode::from(EXIT_FINE))
    }
}

/// Prints what comes until nobody reads it.
fn follow(
    out: &mut dyn Write,
    store: &mut Sqlite,
    wanted: &Wanted,
    mut seen: u64,
    json: bool,
) -> anyhow::Result<()> {
    loop {
        out.flush()?;
        thread::sleep(LOOK_EVERY);
        let last = last_number(store)?;
        if last == seen {
            continue;
        }
        let mut entries = latest(store, wanted, seen, usize::MAX)?;
        // One that came in between is told with the next.
        entries.retain(|entry| entry.number <= last);
        entries.reverse();
        seen = last;
        if json {
            write_lines(out, &entries)?;
        } else if !entries.is_empty() {
            let view = view_of(store)?;
            rows(&view, &entries, ["", "", "", "", ""]).write(out)?;
        }
    }
}

impl Wanted {
    fn is(&self, entry: &Entry) -> bool {
        let is_whose = |who: &String| entry.who.contains(who.as_str());
        let is_what = |action: &String| entry.what.to_lowercase().contains(action.as_str());
        self.who.as_ref().is_none_or(is_whose) && self.action.as_ref().is_none_or(is_what)
    }
}

/// The latest that are wanted, with larger numbers than that.
fn latest(
    store: &mut Sqlite,
    wanted: &Wanted,
    after: u64,
    limit: usize,
) -> Result<Vec<Entry>, StoreError> {
    let mut found = Vec::new();
    let mut before = None;
    loop {
        let page = store.history(&HistoryQuery {
            about: wanted.about.clone(),
            before,
            limit: PAGE,
        })?;
        let Some(last) = page.last() else {
            return Ok(found);
        };
        before = Some(last.number);
        for entry in page {
            let is_early = wanted.since.is_some_and(|since| entry.at < since);
            if found.len() == limit || is_early || entry.number <= after {
                return Ok(found);
            }
            if wanted.is(&entry) {
                found.push(entry);
            }
        }
    }
}

fn last_number(store: &mut Sqlite) -> Result<u64, StoreError> {
    let last = store.history(&HistoryQuery {
        about: Vec::new(),
        before: None,
        limit: 1,
    })?;
    Ok(last.first().map_or(0, |entry| entry.number))
}

fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let millis = since.unwrap_or_default().as_millis();
    UnixMillis(u64::try_from(millis).unwrap_or(u64::MAX))
}

/// A time from now is meant backwards here.
fn ago(when: When, now: UnixMillis) -> UnixMillis {
    match when {
        When::In(seconds) => UnixMillis(now.0.saturating_sub(seconds.saturating_mul(1000))),
        When::At(_) => when.after_millis(now),
    }
}

fn meant(view: &View, written: &str) -> anyhow::Result<InstanceId> {
    if let Ok(id) = written.parse() {
        return Ok(id);
    }
    let instances = view.instances().iter();
    let instances: Vec<Known<'_>> = instances
        .map(|(id, versioned)| Known::of(&versioned.value, view.life(*id)))
        .collect();
    match find(written, &instances) {
        Ok(at) => Ok(instances[at].id),
        Err(error) => Err(Refusal {
            code: EXIT_USAGE,
            text: error.to_string(),
        }
        .into()),
    }
}

fn write_lines(out: &mut dyn Write, entries: &[Entry]) -> anyhow::Result<()> {
    for entry in entries {
        serde_json::to_writer(&mut *out, entry)?;
        writeln!(out)?;
    }
    Ok(())
}

fn write_history(out: &mut dyn Write, view: &View, entries: &[Entry]) -> io::Result<()> {
    if entries.is_empty() {
        return writeln!(out, "  nothing");
    }
    rows(view, entries, ["WHEN", "WHO", "WHAT", "ABOUT", "CHANGES"]).write(out)
}

fn rows(view: &View, entries: &[Entry], heads: [&'static str; 5]) -> Table<5> {
    let mut table = Table::new(heads.map(|head| (head, Align::Left)));
    for entry in entries {
        let about = entry.about.as_deref().map(|about| called(view, about));
        let mut lines = entry.changes.iter().map(ToString::to_string);
        let first = match &entry.refused {
            Some(code) => Cell::styled(format!("refused: {code}"), BAD),
            None => lines.next().unwrap_or_default().into(),
        };
        table.row([
            entry.at.iso().into(),
            (&entry.who).into(),
            (&entry.what).into(),
            Cell::styled(about.unwrap_or_default(), BOLD),
            first,
        ]);
        for line in lines {
            table.row(["".into(), "".into(), "".into(), "".into(), line.into()]);
        }
    }
    table
}

/// An instance by its name, if it has one still; anything else by its key.
fn called(view: &View, about: &str) -> String {
    let id = about
        .split_once('/')
        .and_then(|(kind, name)| matches!(kind, "instance" | "life").then(|| name.parse().ok())?);
    match id {
        Some(id) => match view.instance(id) {
            Some(record) => record.name.to_string(),
            None => id.to_string(),
        },
        None => match about {
            "defaults/account" => "account defaults".to_owned(),
            "rest/file" => "[host] and the like".to_owned(),
            about => about.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use imds_user::store::Revision;
    use imds_user::store::history::FieldChange;

    use super::*;

    fn entry(number: u64, who: &str, what: &str) -> Entry {
        Entry {
            number,
            revision: Revision(number),
            at: UnixMillis(1_700_000_000_000 + number),
            who: who.into(),
            what: what.into(),
            about: Some("instance/i-0123456789abcdef0".into()),
            changes: Vec::new(),
            refused: None,
        }
    }

    #[test]
    fn an_entry_is_a_row_and_each_further_change_a_line() {
        let change = |field: &str| FieldChange {
            field: field.into(),
            old: Some(1.into()),
            new: Some(2.into()),
        };
        let mut changed = entry(2, "uid 0", "imds options set web");
        changed.changes = vec![change("a"), change("b")];
        let mut refused = entry(1, "key AKIA", "ec2:RunInstances");
        refused.refused = Some("InvalidParameterValue".into());
        refused.about = None;
        let mut out = anstream::StripStream::new(Vec::new());
        write_history(&mut out, &View::default(), &[changed, refused]).unwrap();
        let expected = "  \
  WHEN                      WHO       WHAT                  ABOUT                CHANGES
  2023-11-14T22:13:20.002Z  uid 0     imds options set web  i-0123456789abcdef0  a: 1 → 2
                                                                                 b: 1 → 2
  2023-11-14T22:13:20.001Z  key AKIA  ec2:RunInstances                           refused: InvalidParameterValue
";
        assert_eq!(String::from_utf8(out.into_inner()).unwrap(), expected);
    }

    #[test]
    fn entries_are_chosen_by_who_and_what() {
        let check = |who: Option<&str>, action: Option<&str>, expected: bool| {
            let wanted = Wanted {
                about: Vec::new(),
                since: None,
                who: who.map(str::to_owned),
                action: action.map(str::to_owned),
            };
            let is = wanted.is(&entry(1, "uid 0", "ec2:RunInstances"));
            assert_eq!(is, expected, "{who:?} {action:?}");
        };
        check(None, None, true);
        check(Some("uid 0"), Some("runinstances"), true);
        check(Some("uid 1"), None, false);
        check(None, Some("terminate"), false);
    }

    #[test]
    fn a_duration_is_meant_backwards() {
        let now = UnixMillis(10_000_000);
        assert_eq!(ago(When::In(60), now), UnixMillis(9_940_000));
        let at = "1970-01-01T00:01:00Z".parse().unwrap();
        assert_eq!(ago(at, now), UnixMillis(60_000));
    }
}
