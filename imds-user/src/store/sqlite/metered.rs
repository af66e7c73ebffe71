//! What was counted, in two tables of its own.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};

use super::signed;
use crate::instance::InstanceId;
use crate::metrics::{Base, Batch, Counts, Minute, hour};

/// Adds counts, moves bases and removes what is too old.
pub(super) fn add(connection: &mut Connection, batch: &Batch) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let first_hour = signed(batch.first_kept.hour());
    transaction.execute("DELETE FROM metered WHERE hour < ?1", [first_hour])?;
    let mut hours: BTreeMap<(u64, InstanceId), Vec<(Minute, Counts)>> = BTreeMap::new();
    for (id, minute, counts) in &batch.counts {
        let of_hour = hours.entry((minute.hour(), *id)).or_default();
        of_hour.push((*minute, *counts));
    }
    add_to_hours(&transaction, hours)?;
    move_bases(&transaction, &batch.bases)?;
    transaction.commit()
}

fn add_to_hours(
    connection: &Connection,
    hours: BTreeMap<(u64, InstanceId), Vec<(Minute, Counts)>>,
) -> rusqlite::Result<()> {
    let mut find = connection
        .prepare("SELECT hour, minutes FROM metered WHERE hour = ?1 AND instance = ?2")?;
    let mut put = connection
        .prepare("INSERT OR REPLACE INTO metered (hour, instance, minutes) VALUES (?1, ?2, ?3)")?;
    for ((number, id), more) in hours {
        let key = (signed(number), id.as_str());
        let found = find.query_row(key, of_hour).optional()?;
        let mut counts = found.unwrap_or_default();
        for (minute, more) in more {
            *counts.entry(minute).or_default() += more;
        }
        put.execute(params![key.0, key.1, hour::encode(number, &counts)])?;
    }
    Ok(())
}

fn move_bases(connection: &Connection, bases: &[(u32, Option<Base>)]) -> rusqlite::Result<()> {
    let mut remove = connection.prepare("DELETE FROM base WHERE slot = ?1")?;
    let mut put = connection.prepare(
        "INSERT OR REPLACE INTO base (slot, instance, no_token, no_token_rejected) \
         VALUES (?1, ?2, ?3, ?4)",
    )?;
    for (slot, base) in bases {
        let Some(Base { id, counts }) = base else {
            remove.execute([slot])?;
            continue;
        };
        put.execute(params![
            slot,
            id.as_str(),
            signed(counts.no_token),
            signed(counts.no_token_rejected)
        ])?;
    }
    Ok(())
}

/// What was counted of an instance in these minutes.
pub(super) fn of(
    connection: &Connection,
    id: InstanceId,
    minutes: &RangeInclusive<Minute>,
) -> rusqlite::Result<BTreeMap<Minute, Counts>> {
    // An hour is found at once and an instance is not, so every hour is looked for.
    let mut hours = connection.prepare(
        "WITH RECURSIVE wanted (hour) AS \
         (SELECT ?1 UNION ALL SELECT hour + 1 FROM wanted WHERE hour < ?2) \
         SELECT metered.hour, minutes FROM wanted CROSS JOIN metered \
         ON metered.hour = wanted.hour AND instance = ?3",
    )?;
    let (first, last) = (minutes.start().hour(), minutes.end().hour());
    let mut rows = hours.query(params![signed(first), signed(last), id.as_str()])?;
    let mut counts = BTreeMap::new();
    while let Some(row) = rows.next()? {
        counts.extend(of_hour(row)?);
    }
    counts.retain(|minute, _| minutes.contains(minute));
    Ok(counts)
}

/// Of whom something was counted from this minute's hour on, and the last such hour.
pub(super) fn instances(
    connection: &Connection,
    from: Minute,
) -> rusqlite::Result<BTreeMap<InstanceId, u64>> {
    let mut statement = connection
        .prepare("SELECT instance, max(hour) FROM metered WHERE hour >= ?1 GROUP BY instance")?;
    let rows = statement.query_map([signed(from.hour())], |row| {
        Ok((id(row, 0)?, unsigned(row, 1)?))
    })?;
    rows.collect()
}

/// The bases, by slot.
pub(super) fn bases(connection: &Connection) -> rusqlite::Result<BTreeMap<u32, Base>> {
    let mut statement =
        connection.prepare("SELECT slot, instance, no_token, no_token_rejected FROM base")?;
    let rows = statement.query_map([], |row| {
        let base = Base {
            id: id(row, 1)?,
            counts: Counts {
                no_token: unsigned(row, 2)?,
                no_token_rejected: unsigned(row, 3)?,
            },
        };
        Ok((row.get(0)?, base))
    })?;
    rows.collect()
}

fn of_hour(row: &Row<'_>) -> rusqlite::Result<BTreeMap<Minute, Counts>> {
    let number = unsigned(row, 0)?;
    let bytes: Vec<u8> = row.get(1)?;
    hour::decode(number, &bytes).ok_or_else(|| {
        let text = format!("hour {number} has counts that are none");
        rusqlite::Error::FromSqlConversionFailure(1, Type::Blob, text.into())
    })
}

fn id(row: &Row<'_>, column: usize) -> rusqlite::Result<InstanceId> {
    let text: Box<str> = row.get(column)?;
    text.parse().map_err(|error: crate::instance::id::IdError| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into())
    })
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(i64::unsigned_abs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::KEPT_MINUTES;
    use crate::store::memory::Memory;
    use crate::store::{Backend, HistoryQuery, Revision, Sqlite};

    fn id(number: u8) -> InstanceId {
        InstanceId::from_digest(&[number; 9])
    }

    fn counts(no_token: u64, no_token_rejected: u64) -> Counts {
        Counts {
            no_token,
            no_token_rejected,
        }
    }

    fn batch(now: u64, of: &[(u8, u64, Counts)], bases: &[(u32, Option<(u8, u64)>)]) -> Batch {
        let base = |(number, no_token)| Base {
            id: id(number),
            counts: counts(no_token, 0),
        };
        Batch {
            counts: of
                .iter()
                .map(|(number, minute, counts)| (id(*number), Minute(*minute), *counts))
                .collect(),
            bases: bases
                .iter()
                .map(|(slot, one)| (*slot, one.map(base)))
                .collect(),
            first_kept: Minute(now).first_kept(),
        }
    }

    /// All there is, as text.
    fn shown(store: &mut dyn Backend, minutes: RangeInclusive<Minute>) -> Vec<String> {
        let mut lines = Vec::new();
        for (id, hour) in store.metered_instances(*minutes.start()).unwrap() {
            let counts = store.metered(id, &minutes).unwrap();
            lines.push(format!("{id} {hour} {counts:?}"));
        }
        lines.push(format!("{:?}", store.bases().unwrap()));
        lines
    }

    #[test]
    fn counts_add_up_and_are_there_when_the_file_is_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store.db");
        let mut memory = Memory::default();
        const NOW: u64 = 30_000_000;
        let batches = [
            batch(
                NOW,
                &[(1, NOW, counts(2, 0)), (2, NOW, counts(0, 3))],
                &[(1, Some((1, 2)))],
            ),
            batch(
                NOW,
                &[(1, NOW, counts(1, 1)), (1, NOW - 1, counts(1, 0))],
                &[(1, Some((1, 4)))],
            ),
            batch(
                NOW,
                &[(1, NOW + 70, counts(5, 0))],
                &[(1, None), (2, Some((2, 3)))],
            ),
            batch(NOW, &[], &[(9, None)]),
        ];
        for batch in &batches {
            // Opened anew each time.
            let mut store = Sqlite::open(&path).unwrap();
            store.meter(batch).unwrap();
            memory.meter(batch).unwrap();
            for minutes in [NOW - 100..=NOW + 100, NOW..=NOW, NOW + 70..=NOW + 71] {
                let minutes = Minute(*minutes.start())..=Minute(*minutes.end());
                assert_eq!(
                    shown(&mut store, minutes.clone()),
                    shown(&mut memory, minutes)
                );
            }
        }
        let mut store = Sqlite::open(&path).unwrap();
        let found = store
            .metered(id(1), &(Minute(NOW)..=Minute(NOW + 100)))
            .unwrap();
        let expected = [
            (Minute(NOW), counts(3, 1)),
            (Minute(NOW + 70), counts(5, 0)),
        ];
        assert_eq!(found, BTreeMap::from(expected));
        // Nobody who follows the records hears of it, and the history is none the longer.
        let query = HistoryQuery {
            limit: 10,
            ..HistoryQuery::default()
        };
        assert_eq!(store.load().unwrap().revision, Revision(0));
        assert_eq!(store.history(&query).unwrap(), []);
    }

    #[test]
    fn what_is_older_than_fifteen_days_goes() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Sqlite::open(&directory.path().join("store.db")).unwrap();
        const NOW: u64 = 30_000_000;
        let old = NOW - KEPT_MINUTES - 60;
        store
            .meter(&batch(
                old,
                &[(1, old, counts(1, 0)), (2, NOW, counts(1, 0))],
                &[],
            ))
            .unwrap();
        let all = Minute(0);
        assert_eq!(store.metered_instances(all).unwrap().len(), 2);
        store.meter(&batch(NOW, &[], &[(1, None)])).unwrap();
        let left = store.metered_instances(all).unwrap();
        assert_eq!(left, BTreeMap::from([(id(2), NOW / 60)]));
    }

    /// The bound that the module promises.
    #[test]
    fn an_instance_that_calls_in_every_minute_takes_less_than_a_hundred_kilobytes() {
        const INSTANCES: u8 = 4;
        let directory = tempfile::tempdir().unwrap();
        let mut store = Sqlite::open(&directory.path().join("store.db")).unwrap();
        let now = KEPT_MINUTES;
        for hour in 0..KEPT_MINUTES / 60 {
            let minutes = hour * 60..hour * 60 + 60;
            let of: Vec<_> = minutes
                .flat_map(|minute| (0..INSTANCES).map(move |id| (id, minute, counts(100, 100))))
                .collect();
            store.meter(&batch(now, &of, &[])).unwrap();
        }
        let bytes = store.size().unwrap();
        let log = u64::from(super::super::LOG_BYTES_MAX);
        let each = bytes.saturating_sub(log) / u64::from(INSTANCES);
        assert!(each < 100_000, "{each} bytes each");
    }
}
