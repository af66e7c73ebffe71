//! The tables, and how those of an older version become these. A step is never altered once it was in a release: what is there is
//! changed by another step.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::told;
use crate::store::backend::StoreError;

/// Says that a file of SQLite's is ours (`application_id`): "imds".
const APPLICATION: i32 = i32::from_be_bytes(*b"imds");

/// What makes schema 1 of nothing, schema 2 of schema 1, and so on.
pub(super) const STEPS: &[&str] = &[
    // `value` is NULL where a key was deleted, so that whoever follows hears of it; up to revision `forgotten` such rows are
    // gone.
    "CREATE TABLE state (
         one INTEGER PRIMARY KEY CHECK (one = 1),
         revision INTEGER NOT NULL,
         forgotten INTEGER NOT NULL
     ) STRICT;
     INSERT INTO state VALUES (1, 0, 0);
     CREATE TABLE record (
         kind TEXT NOT NULL,
         name TEXT NOT NULL,
         value BLOB,
         revision INTEGER NOT NULL,
         PRIMARY KEY (kind, name)
     ) STRICT;
     CREATE INDEX record_by_revision ON record (revision);
     CREATE TABLE history (
         number INTEGER PRIMARY KEY AUTOINCREMENT,
         revision INTEGER NOT NULL,
         at INTEGER NOT NULL,
         who TEXT NOT NULL,
         what TEXT NOT NULL,
         about TEXT,
         changes TEXT NOT NULL,
         refused TEXT
     ) STRICT;
     CREATE INDEX history_by_about ON history (about, number) WHERE about IS NOT NULL;",
    // What was counted of instances, an hour in a row (`metrics::hour`), and up to where slots' counters are in there. The hour comes
    // first: what is new stands together, and so does what goes.
    "CREATE TABLE metered (
         hour INTEGER NOT NULL,
         instance TEXT NOT NULL,
         minutes BLOB NOT NULL,
         PRIMARY KEY (hour, instance)
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE base (
         slot INTEGER PRIMARY KEY,
         instance TEXT NOT NULL,
         no_token INTEGER NOT NULL,
         no_token_rejected INTEGER NOT NULL
     ) STRICT;",
];

/// Brings a file up to the latest schema: all steps or none.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    if schema_of(connection, path)? == latest() {
        return Ok(());
    }
    let error = |error| told(path, error);
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(error)?;
    // Another process may have been faster.
    let from = schema_of(&transaction, path)?;
    let steps = STEPS.get(from as usize..).unwrap_or_default();
    for step in steps {
        transaction.execute_batch(step).map_err(error)?;
    }
    if !steps.is_empty() {
        transaction
            .pragma_update(None, "application_id", APPLICATION)
            .and_then(|()| transaction.pragma_update(None, "user_version", latest()))
            .and_then(|()| transaction.commit())
            .map_err(error)?;
    }
    Ok(())
}

fn latest() -> u32 {
    u32::try_from(STEPS.len()).unwrap_or(u32::MAX)
}

/// The schema of a file; 0 if there is nothing in it.
fn schema_of(connection: &Connection, path: &Path) -> Result<u32, StoreError> {
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let tables = "SELECT count(*) FROM sqlite_schema";
    let facts = number("user_version").and_then(|version| {
        let n_tables: i64 = connection.query_row(tables, [], |row| row.get(0))?;
        Ok((version, number("application_id")?, n_tables))
    });
    let (version, application, n_tables) = facts.map_err(|error| told(path, error))?;
    let found = u32::try_from(version).unwrap_or(0);
    match (application, n_tables) {
        (_, 0) => Ok(0),
        (APPLICATION, _) if found > latest() => Err(StoreError::Newer {
            path: path.to_owned(),
            found,
            known: latest(),
        }),
        (APPLICATION, _) => Ok(found),
        _ => Err(StoreError::Damaged {
            path: path.to_owned(),
            cause: "it is the database of another program".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::backend::{Backend, Revision};
    use crate::store::{Key, Sqlite};

    fn tables(connection: &Connection) -> Vec<(String, Option<String>)> {
        let mut statement = connection
            .prepare("SELECT name, sql FROM sqlite_schema ORDER BY name")
            .unwrap();
        let rows = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    /// A file as the version with this schema left it, with a record in it.
    fn file_of_schema(version: usize, path: &Path) {
        let connection = Connection::open(path).unwrap();
        for step in &STEPS[..version] {
            connection.execute_batch(step).unwrap();
        }
        if version > 0 {
            connection
                .pragma_update(None, "application_id", APPLICATION)
                .unwrap();
            connection
                .pragma_update(None, "user_version", u32::try_from(version).unwrap())
                .unwrap();
            connection
                .execute_batch(
                    "INSERT INTO record VALUES ('key-pair', 'me', x'7b7d', 3); UPDATE state SET revision = 3;",
                )
                .unwrap();
        }
    }

    #[test]
    fn every_older_schema_becomes_the_latest_and_keeps_what_it_has() {
        let directory = tempfile::tempdir().unwrap();
        let fresh = Sqlite::open(&directory.path().join("fresh.db")).unwrap();
        for version in 0..=STEPS.len() {
            let path = directory.path().join(format!("{version}.db"));
            file_of_schema(version, &path);
            let mut store = Sqlite::open(&path).unwrap();
            assert_eq!(
                tables(&store.connection),
                tables(&fresh.connection),
                "{version}"
            );
            assert_eq!(schema_of(&store.connection, &path).unwrap(), latest());
            let state = store.load().unwrap();
            let keys: Vec<Key> = state.items.into_iter().map(|item| item.key).collect();
            let expected = match version {
                0 => (Revision(0), vec![]),
                _ => (Revision(3), vec![Key::key_pair("me")]),
            };
            assert_eq!((state.revision, keys), expected, "{version}");
        }
    }
}
