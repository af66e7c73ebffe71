//! The store of one host: SQLite, compiled in, one file in the state directory.
//!
//! What is acknowledged is on the disk (a write-ahead log, `synchronous = FULL`), and a process that is killed in between leaves the
//! state of before. Several processes may have the file open; who writes has it for himself for a moment, and others wait.
//! <https://sqlite.org/wal.html>, <https://sqlite.org/pragma.html>

mod metered;
mod schema;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, params};

use super::backend::{
    Backend, CommitError, HistoryQuery, Item, Revision, State, StoreError, Transaction,
};
use super::history::{Entry, FieldChange, NewEntry};
use super::record::{Key, Kind};
use crate::instance::{InstanceId, UnixMillis};
use crate::metrics::{Base, Batch, Counts, Minute};

/// How long another process that writes is waited for. A write takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// How much of the write-ahead log stays when it was worked off: else it stays as large as it ever was.
const LOG_BYTES_MAX: u32 = 4 << 20;
/// Bytes in one transaction after which the log is cut at once.
const LARGE_BYTES: usize = 1 << 20;
/// How long what is past is kept.
#[derive(Clone, Copy, Debug)]
struct Keeping {
    /// For how many revisions it can be told what was deleted since.
    deletions: u64,
    /// How many entries the history has. The oldest go.
    history: u64,
    /// Every so many revisions what is too old is removed.
    sweep_every: u64,
}

impl Keeping {
    /// The history takes some 30 MB at most, then.
    const USUAL: Self = Self {
        deletions: 10_000,
        history: 100_000,
        sweep_every: 256,
    };
}

/// The file, opened.
#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    connection: Connection,
    keeping: Keeping,
}

impl Sqlite {
    /// Opens the store in this file, and makes it if it is not there, readable by its owner alone. One of an older version
    /// is brought up to this one's.
    ///
    /// On a file system without room the file can be read and nothing else; other processes are kept out then.
    ///
    /// # Errors
    /// When it cannot be opened or is none of ours.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path);
        file.and_then(|file| file.set_permissions(Permissions::from_mode(0o600)))
            .map_err(|cause| StoreError::Io {
                what: "open the store",
                path: path.to_owned(),
                cause,
            })?;
        match Self::connect(path, Sharing::WithOthers) {
            // What processes share is a file of its own, which has to be made.
            Err(StoreError::Full(_)) => Self::connect(path, Sharing::Alone),
            opened => opened,
        }
    }

    fn connect(path: &Path, sharing: Sharing) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)
            .and_then(|connection| {
                connection.busy_timeout(PATIENCE)?;
                Ok(connection)
            })
            .map_err(|error| told(path, error))?;
        let mut this = Self {
            path: path.to_owned(),
            connection,
            keeping: Keeping::USUAL,
        };
        this.set_up(sharing).map_err(|error| told(path, error))?;
        schema::migrate(&mut this.connection, path)?;
        Ok(this)
    }

    fn set_up(&self, sharing: Sharing) -> rusqlite::Result<()> {
        let connection = &self.connection;
        if sharing == Sharing::Alone {
            connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        }
        connection.pragma_update(None, "trusted_schema", false)?;
        // A fresh file is no log yet, and whoever turns it into one is not waited for by itself.
        let began = Instant::now();
        loop {
            let mode = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| {
                row.get::<_, String>(0)
            });
            match mode {
                Err(error) if is(&error, ErrorCode::DatabaseBusy) && began.elapsed() < PATIENCE => {
                    thread::sleep(Duration::from_millis(10));
                }
                mode => {
                    mode?;
                    break;
                }
            }
        }
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update_and_check(None, "journal_size_limit", LOG_BYTES_MAX, |_| Ok(()))
    }

    /// Bytes of the file and of its log.
    ///
    /// # Errors
    /// They cannot be asked for.
    pub fn size(&self) -> io::Result<u64> {
        let log = self.path.with_extension("db-wal");
        let of_log = fs::metadata(log).map_or(0, |log| log.len());
        Ok(fs::metadata(&self.path)?.len() + of_log)
    }

    /// Works off the log and gives its room back. Where it cannot be done now, because others read it, it is done by a later
    /// write.
    fn cut_log(&self) {
        let cut = self
            .connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        if let Err(error) = cut {
            tracing::debug!("{}: cut the log: {error}", self.path.display());
        }
    }

    fn told(&self, error: rusqlite::Error) -> StoreError {
        told(&self.path, error)
    }
}

/// Who else may have the file open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    WithOthers,
    Alone,
}

impl Backend for Sqlite {
    fn load(&mut self) -> Result<State, StoreError> {
        let state = load(&mut self.connection);
        state.map_err(|error| self.told(error))
    }

    fn changes_after(&mut self, revision: Revision) -> Result<Option<State>, StoreError> {
        let state = changes_after(&mut self.connection, revision);
        state.map_err(|error| self.told(error))
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<Revision, CommitError> {
        let outcome = commit(&mut self.connection, transaction, self.keeping);
        let values = transaction.writes.iter().flat_map(|(_, value)| value);
        if outcome.is_ok() && values.map(Vec::len).sum::<usize>() > LARGE_BYTES {
            self.cut_log();
        }
        outcome.map_err(|error| match error {
            Trouble::Conflict(key) => CommitError::Conflict(key),
            Trouble::Sqlite(error) => self.told(error).into(),
        })
    }

    fn history(&mut self, query: &HistoryQuery) -> Result<Vec<Entry>, StoreError> {
        let entries = history(&self.connection, query);
        entries.map_err(|error| self.told(error))
    }

    fn meter(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let done = metered::add(&mut self.connection, batch);
        done.map_err(|error| self.told(error))
    }

    fn metered(
        &mut self,
        id: InstanceId,
        minutes: &RangeInclusive<Minute>,
    ) -> Result<BTreeMap<Minute, Counts>, StoreError> {
        let counts = metered::of(&self.connection, id, minutes);
        counts.map_err(|error| self.told(error))
    }

    fn metered_instances(&mut self, from: Minute) -> Result<BTreeMap<InstanceId, u64>, StoreError> {
        let instances = metered::instances(&self.connection, from);
        instances.map_err(|error| self.told(error))
    }

    fn bases(&mut self) -> Result<BTreeMap<u32, Base>, StoreError> {
        let bases = metered::bases(&self.connection);
        bases.map_err(|error| self.told(error))
    }
}

enum Trouble {
    Conflict(Key),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn load(connection: &mut Connection) -> rusqlite::Result<State> {
    // One transaction: revision and records belong together.
    let transaction = connection.transaction()?;
    let (revision, _) = numbers(&transaction)?;
    let items = items(
        &transaction,
        "SELECT kind, name, value, revision FROM record WHERE value IS NOT NULL AND revision > ?1",
        Revision(0),
    )?;
    Ok(State { revision, items })
}

fn changes_after(connection: &mut Connection, after: Revision) -> rusqlite::Result<Option<State>> {
    let transaction = connection.transaction()?;
    let (revision, forgotten) = numbers(&transaction)?;
    if after < forgotten || after > revision {
        return Ok(None);
    }
    let items = if after == revision {
        Vec::new()
    } else {
        items(
            &transaction,
            "SELECT kind, name, value, revision FROM record WHERE revision > ?1",
            after,
        )?
    };
    Ok(Some(State { revision, items }))
}

/// The revision, and up to which one it cannot be told any more what was deleted.
fn numbers(connection: &Connection) -> rusqlite::Result<(Revision, Revision)> {
    connection.query_row("SELECT revision, forgotten FROM state", [], |row| {
        Ok((number(row, 0)?, number(row, 1)?))
    })
}

fn number(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Revision> {
    row.get::<_, i64>(column)
        .map(|number| Revision(number.unsigned_abs()))
}

/// SQLite's numbers have a sign. Nobody gets to the end of them.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn items(connection: &Connection, sql: &str, after: Revision) -> rusqlite::Result<Vec<Item>> {
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([signed(after.0)], |row| {
        Ok(Item {
            key: Key::new(kind(row)?, &row.get::<_, Box<str>>(1)?),
            value: row.get(2)?,
            revision: number(row, 3)?,
        })
    })?;
    rows.collect()
}

fn kind(row: &rusqlite::Row<'_>) -> rusqlite::Result<Kind> {
    let written: Box<str> = row.get(0)?;
    let mut kinds = Kind::ALL.iter();
    let kind = kinds.find(|kind| kind.as_str() == &*written);
    kind.copied().ok_or_else(|| {
        let text = format!("`{written}` is no kind of record");
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, text.into())
    })
}

fn commit(
    connection: &mut Connection,
    wanted: &Transaction,
    keeping: Keeping,
) -> Result<Revision, Trouble> {
    // At once the one who writes: a condition that was read before others wrote would be none.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    check(&transaction, &wanted.expected)?;
    check_all(&transaction, &wanted.expected_of_all)?;
    let (last, _) = numbers(&transaction)?;
    let revision = if wanted.writes.is_empty() {
        last
    } else {
        Revision(last.0 + 1)
    };
    write(&transaction, &wanted.writes, revision)?;
    append(&transaction, &wanted.history, revision)?;
    if revision > last && revision.0.is_multiple_of(keeping.sweep_every) {
        sweep(&transaction, revision, keeping)?;
    }
    transaction.commit()?;
    Ok(revision)
}

fn check(connection: &Connection, expected: &[(Key, Option<Revision>)]) -> Result<(), Trouble> {
    let mut statement = connection.prepare(
        "SELECT revision FROM record WHERE kind = ?1 AND name = ?2 AND value IS NOT NULL",
    )?;
    for (key, expected) in expected {
        let found = statement
            .query_row(params![key.kind.as_str(), key.name], |row| number(row, 0))
            .optional()?;
        if found != *expected {
            return Err(Trouble::Conflict(key.clone()));
        }
    }
    Ok(())
}

fn check_all(connection: &Connection, expected: &[(Kind, Revision)]) -> Result<(), Trouble> {
    // By the index of revisions: there are few later ones, if any.
    let mut statement =
        connection.prepare("SELECT name FROM record WHERE revision > ?1 AND kind = ?2 LIMIT 1")?;
    for (kind, revision) in expected {
        let later: Option<Box<str>> = statement
            .query_row(params![signed(revision.0), kind.as_str()], |row| row.get(0))
            .optional()?;
        if let Some(name) = later {
            return Err(Trouble::Conflict(Key::new(*kind, &name)));
        }
    }
    Ok(())
}

fn write(
    connection: &Connection,
    writes: &[(Key, Option<Vec<u8>>)],
    revision: Revision,
) -> rusqlite::Result<()> {
    if writes.is_empty() {
        return Ok(());
    }
    connection.execute("UPDATE state SET revision = ?1", [signed(revision.0)])?;
    let mut statement = connection.prepare(
        "INSERT INTO record (kind, name, value, revision) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (kind, name) DO UPDATE SET value = excluded.value, revision = excluded.revision",
    )?;
    for (key, value) in writes {
        statement.execute(params![
            key.kind.as_str(),
            key.name,
            value,
            signed(revision.0)
        ])?;
    }
    Ok(())
}

fn append(
    connection: &Connection,
    entries: &[NewEntry],
    revision: Revision,
) -> rusqlite::Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let mut statement = connection.prepare(
        "INSERT INTO history (revision, at, who, what, about, changes, refused) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    for entry in entries {
        let changes = serde_json::to_string(&entry.changes)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        statement.execute(params![
            signed(revision.0),
            signed(entry.note.at.0),
            entry.note.who.to_string(),
            entry.note.what,
            entry.about.as_ref().map(ToString::to_string),
            changes,
            entry.refused,
        ])?;
    }
    Ok(())
}

/// Removes what is too old to be kept.
fn sweep(connection: &Connection, revision: Revision, keeping: Keeping) -> rusqlite::Result<()> {
    let forgotten = signed(revision.0.saturating_sub(keeping.deletions));
    let n_forgotten = connection.execute(
        "DELETE FROM record WHERE value IS NULL AND revision <= ?1",
        [forgotten],
    )?;
    if n_forgotten > 0 {
        connection.execute("UPDATE state SET forgotten = ?1", [forgotten])?;
    }
    connection.execute(
        "DELETE FROM history WHERE number <= (SELECT max(number) FROM history) - ?1",
        [signed(keeping.history)],
    )?;
    Ok(())
}

fn history(connection: &Connection, query: &HistoryQuery) -> rusqlite::Result<Vec<Entry>> {
    let about: Vec<String> = query.about.iter().map(ToString::to_string).collect();
    let before = query.before.map_or(i64::MAX, signed);
    let limit = i64::try_from(query.limit).unwrap_or(i64::MAX);
    // A list is handed over as JSON: statements have a fixed number of values.
    let about = match &about[..] {
        [] => None,
        about => Some(serde_json::Value::from(about).to_string()),
    };
    let mut statement = connection.prepare(
        "SELECT number, revision, at, who, what, about, changes, refused FROM history \
         WHERE number < ?1 AND (?2 IS NULL OR about IN (SELECT value FROM json_each(?2))) \
         ORDER BY number DESC LIMIT ?3",
    )?;
    let rows = statement.query_map(params![before, about, limit], entry)?;
    rows.collect()
}

fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    let changes: String = row.get(6)?;
    let changes: Vec<FieldChange> = serde_json::from_str(&changes).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(6, rusqlite::types::Type::Text, error.into())
    })?;
    Ok(Entry {
        number: number(row, 0)?.0,
        revision: number(row, 1)?,
        at: UnixMillis(number(row, 2)?.0),
        who: row.get(3)?,
        what: row.get(4)?,
        about: row.get(5)?,
        changes,
        refused: row.get(7)?,
    })
}

fn is(error: &rusqlite::Error, code: ErrorCode) -> bool {
    error.sqlite_error_code() == Some(code)
}

/// What an error of SQLite's is to whoever must act.
fn told(path: &Path, error: rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full(path),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy(path),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Damaged {
            path,
            cause: error.to_string(),
        },
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) if is_full(&path) => {
            // What is lengthened by writing to its end fails with an I/O error, whatever the reason.
            StoreError::Full(path)
        }
        Some(_) => StoreError::Io {
            what: "use the store",
            path,
            cause: io::Error::other(error.to_string()),
        },
        None => StoreError::Damaged {
            path,
            cause: error.to_string(),
        },
    }
}

/// Whether the file system of a file has no room: less than SQLite asks for at once, for what processes share.
fn is_full(path: &Path) -> bool {
    const ASKED_FOR_AT_ONCE: u64 = 64 << 10;
    let room = nix::sys::statvfs::statvfs(path).map(|system| {
        system
            .blocks_available()
            .saturating_mul(system.fragment_size())
    });
    room.is_ok_and(|bytes| bytes < ASKED_FOR_AT_ONCE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Note, Who};

    /// Writes or deletes a key, whatever was there.
    fn write(store: &mut Sqlite, name: &str, value: Option<&str>) -> Revision {
        let note = Note {
            at: UnixMillis(0),
            who: Who::Daemon,
            what: "write".into(),
        };
        let key = Key::key_pair(name);
        let transaction = Transaction {
            writes: vec![(key.clone(), value.map(|text| text.as_bytes().to_vec()))],
            history: vec![note.of_call(Some(key), None)],
            ..Transaction::default()
        };
        store.commit(&transaction).unwrap()
    }

    #[test]
    fn what_is_past_is_kept_for_a_while() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Sqlite::open(&directory.path().join("store.db")).unwrap();
        store.keeping = Keeping {
            deletions: 10,
            history: 5,
            sweep_every: 4,
        };
        write(&mut store, "stays", Some("1"));
        write(&mut store, "goes", Some("2"));
        let deleted = write(&mut store, "goes", None);
        for _ in 0..13 {
            write(&mut store, "stays", Some("3"));
        }
        // Revision 16: what was deleted up to 6 is forgotten.
        assert_eq!(deleted, Revision(3));
        assert_eq!(store.changes_after(Revision(5)).unwrap(), None);
        let changes = store.changes_after(Revision(6)).unwrap().unwrap();
        assert_eq!(changes.items.len(), 1);
        let query = HistoryQuery {
            limit: usize::MAX,
            ..HistoryQuery::default()
        };
        let numbers = |store: &mut Sqlite| -> Vec<u64> {
            let entries = store.history(&query).unwrap();
            entries.iter().map(|entry| entry.number).collect()
        };
        assert_eq!(numbers(&mut store), [16, 15, 14, 13, 12]);
        // Numbers are never given twice.
        write(&mut store, "stays", Some("4"));
        assert_eq!(numbers(&mut store)[0], 17);
    }
}
