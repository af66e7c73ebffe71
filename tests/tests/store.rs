//! The store loses nothing that it acknowledged: not to writers that race, not to kill -9, not to a full disk.
//!
//! Some writers are threads, some are processes, which can be killed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use imds_tests::SmallDisk;
use imds_tests::records::{count_up, put, view_of};
use imds_user::config::{self, Files, Installation};
use imds_user::instance::{Instance, InstanceId, UnixSeconds};
use imds_user::store::{
    Backend, CommitError, HistoryQuery, InstanceRecord, Key, Owner, Sqlite, StoreError, View,
};

/// Counts to so many in the one record that all race for.
const COUNTS: u32 = 50;

/// Instances as the configuration makes them.
fn instances(count: usize) -> Vec<Instance> {
    struct OneFile(String);
    impl Files for OneFile {
        fn read(&self, _path: &Path, _bytes_max: usize) -> std::io::Result<Vec<u8>> {
            Ok(self.0.clone().into())
        }
    }
    let table = |number: usize| {
        format!(
            "[[instance]]\nname = \"web-{number}\"\nport = \"vnet{number}\"\ntags = {{ Name = \"web-{number}\", Stage = \"test\" }}\n\
             user-data = \"#!/bin/sh\\necho {number}\\n\"\nmetadata-options = {{ http-tokens = \"required\" }}\n"
        )
    };
    let text: String = (0..count).map(table).collect();
    let installation = Installation {
        seed: [7; 16],
        created: UnixSeconds(1_700_000_000),
    };
    let settings = config::load(Path::new("imds.toml"), &installation, &OneFile(text));
    let guests = settings.expect("it is right").guests;
    guests.into_iter().map(|guest| guest.instance).collect()
}

fn record(spec: Instance) -> InstanceRecord {
    InstanceRecord::new("web", Owner::Api, spec)
}

/// A process that writes: `tests/src/bin/store-writer.rs`.
fn writer(count: &str, path: &Path, id: InstanceId) -> Child {
    Command::new(env!("CARGO_BIN_EXE_store-writer"))
        .arg(path)
        .args([id.as_str(), count])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts")
}

fn store_with_one(directory: &Path) -> (PathBuf, InstanceId) {
    let path = directory.join("store.db");
    let mut store = Sqlite::open(&path).expect("it opens");
    let spec = instances(1).remove(0);
    let id = spec.id;
    let first = put(&View::default(), [record(spec)]);
    store.commit(&first).expect("it is kept");
    (path, id)
}

#[test]
fn threads_and_processes_that_race_lose_no_update() {
    const THREADS: u32 = 4;
    const PROCESSES: u32 = 3;
    let directory = tempfile::tempdir().expect("a directory");
    let (path, id) = store_with_one(directory.path());
    let processes: Vec<Child> = (0..PROCESSES)
        .map(|_| writer(&COUNTS.to_string(), &path, id))
        .collect();
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let path = path.clone();
            thread::spawn(move || {
                let mut store = Sqlite::open(&path).expect("it opens");
                (0..COUNTS).map(|_| count_up(&mut store, id).1).sum::<u32>()
            })
        })
        .collect();
    let n_late: u32 = threads
        .into_iter()
        .map(|thread| thread.join().expect("no thread panics"))
        .sum();
    for process in processes {
        let output = process.wait_with_output().expect("it ends");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let mut store = Sqlite::open(&path).expect("it opens");
    let view = view_of(&mut store);
    let expected = COUNTS * (THREADS + PROCESSES);
    assert_eq!(
        view.instance(id).expect("it is there").spec.launch_index,
        expected
    );
    assert_eq!(view.revision().0, u64::from(expected) + 1);
    let query = HistoryQuery {
        about: vec![Key::instance(id)],
        before: None,
        limit: usize::MAX,
    };
    let entries = store.history(&query).expect("it can be read");
    assert_eq!(entries.len(), expected as usize + 1);
    assert!(n_late > 0, "nobody was ever too late: they did not race");
    println!(
        "{expected} updates by {THREADS} threads and {PROCESSES} processes; threads were too late {n_late} times"
    );
}

#[test]
fn what_was_acknowledged_is_there_after_kill_9() {
    const ROUNDS: u32 = 15;
    let directory = tempfile::tempdir().expect("a directory");
    let (path, id) = store_with_one(directory.path());
    let mut n_acknowledged = 0;
    for round in 0..ROUNDS {
        let mut process = writer(&u32::MAX.to_string(), &path, id);
        let said = process.stdout.take().expect("it is piped");
        let reader = thread::spawn(move || {
            let lines = BufReader::new(said).lines().map_while(Result::ok);
            lines.filter_map(|line| line.parse().ok()).last()
        });
        // At whatever point of a write that is: writes take a millisecond or so.
        let began = Instant::now();
        let pause = Duration::from_micros(80_000 + u64::from(round) * 13_337);
        thread::sleep(pause.saturating_sub(began.elapsed()));
        process.kill().expect("it is our child");
        process.wait().expect("it ends");
        let acknowledged: Option<u32> = reader.join().expect("no thread panics");
        let mut store = Sqlite::open(&path).expect("it opens after a kill");
        let view = view_of(&mut store);
        let found = view.instance(id).expect("it is there").spec.launch_index;
        if let Some(acknowledged) = acknowledged {
            // One more may have been kept and not said any more.
            assert!(
                found == acknowledged || found == acknowledged + 1,
                "acknowledged {acknowledged}, found {found}"
            );
            n_acknowledged = acknowledged;
        }
        // Change and history are one.
        let entries = store.history(&HistoryQuery {
            limit: usize::MAX,
            ..HistoryQuery::default()
        });
        assert_eq!(entries.expect("it can be read").len(), found as usize + 1);
    }
    assert!(n_acknowledged > ROUNDS, "{n_acknowledged}");
    println!("killed {ROUNDS} times: all of {n_acknowledged} acknowledged updates are there");
}

#[test]
fn a_full_disk_is_told_and_nothing_is_lost() {
    let Some(small) = SmallDisk::mount("4m") else {
        return;
    };
    let (path, id) = store_with_one(small.path());
    let mut store = Sqlite::open(&path).expect("it opens");
    let ballast = small.fill("ballast");
    let mut expected = 0;
    let refused = loop {
        let view = view_of(&mut store);
        let mut record = view.instance(id).expect("it is there").clone();
        record.spec.launch_index += 1;
        match store.commit(&put(&view, [record])) {
            Ok(_) => expected += 1,
            Err(error) => break error,
        }
        assert!(expected < 10_000, "the disk is never full");
    };
    let CommitError::Store(refused @ StoreError::Full(_)) = refused else {
        panic!("{refused}");
    };
    let text = refused.to_string();
    assert!(
        text.contains("no room") && text.contains(&*path.to_string_lossy()),
        "{text}"
    );
    // Readable, as it was.
    let count = |store: &mut Sqlite| {
        view_of(store)
            .instance(id)
            .expect("it is there")
            .spec
            .launch_index
    };
    assert_eq!(count(&mut store), expected);
    // Also by a daemon that starts now.
    drop(store);
    let more = small.fill("more");
    let mut store = Sqlite::open(&path).expect("it opens without room");
    assert_eq!(count(&mut store), expected);
    let view = view_of(&mut store);
    let mut large = view.instance(id).expect("it is there").clone();
    large.name = "x".repeat(1 << 20).into();
    let outcome = store.commit(&put(&view, [large]));
    assert!(
        matches!(outcome, Err(CommitError::Store(StoreError::Full(_)))),
        "{outcome:?}"
    );
    fs::remove_file(ballast).expect("it was there");
    fs::remove_file(more).expect("it was there");
    assert_eq!(count_up(&mut store, id), (expected + 1, 0));
    drop(store);
    let mut store = Sqlite::open(&path).expect("it opens");
    assert_eq!(count(&mut store), expected + 1);
    println!("{expected} updates fitted on the full disk; the next was refused: {text}");
}

#[test]
fn nobody_else_can_read_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store.db");
    // As a careless copy leaves it.
    File::create(&path).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let (path, _) = {
        let mut store = Sqlite::open(&path).expect("it opens");
        store.load().expect("it can be read");
        let spec = instances(1).remove(0);
        store
            .commit(&put(&View::default(), [record(spec)]))
            .expect("it is kept");
        // The log is there while it is open.
        for name in ["store.db", "store.db-wal", "store.db-shm"] {
            let file = fs::metadata(directory.path().join(name)).expect("it is there");
            let mode = file.permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{name}: {mode:o}");
        }
        (path, ())
    };
    assert!(path.exists());
}

#[test]
fn ten_thousand_instances_are_small_and_read_fast() {
    const COUNT: usize = 10_000;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store.db");
    let mut store = Sqlite::open(&path).expect("it opens");
    let records: Vec<_> = instances(COUNT).into_iter().map(record).collect();
    let began = Instant::now();
    store
        .commit(&put(&View::default(), records))
        .expect("it is kept");
    let written = began.elapsed();
    let bytes = store.size().expect("it is there");
    drop(store);
    let began = Instant::now();
    let mut store = Sqlite::open(&path).expect("it opens");
    let view = view_of(&mut store);
    let loaded = began.elapsed();
    assert_eq!(view.instances().len(), COUNT);
    let id = *view.instances().keys().next().expect("there are many");
    let began = Instant::now();
    count_up(&mut store, id);
    println!(
        "10,000 instances: {:.1} MB, written in {} ms, loaded in {} ms; one more change by a new view: {} ms",
        bytes as f64 / 1e6,
        written.as_millis(),
        loaded.as_millis(),
        began.elapsed().as_millis()
    );
    assert!(bytes < 50_000_000, "{bytes} bytes");
    let changed = put(&view_of(&mut store), []);
    let began = Instant::now();
    for _ in 0..20 {
        store.commit(&changed).expect("it is kept");
    }
    println!("a commit: {} µs", began.elapsed().as_micros() / 20);
}
