//! What holds of every store, and of what it is made of.

use std::path::Path;
use std::sync::Arc;

use super::backend::State;
use super::handle::Changes;
use super::history::FieldChange;
use super::memory::Memory;
use super::record::{Launch, Transition};
use super::*;
use crate::config::{Facet, PortBy, Rest};
use crate::credentials::{AssumeRole, CredentialProcess, CredentialSource};
use crate::discovery::admitted::Admission;
use crate::instance::{Switch, Tag, TokenUse, UnixMillis, UnixSeconds};
use crate::life::Life;
use crate::life::tests::configured;

fn note(what: &str) -> Note {
    Note {
        at: UnixMillis(1_000),
        who: Who::User(0),
        what: what.into(),
    }
}

fn instance(name: &str) -> InstanceRecord {
    let spec = configured(&format!(
        "name = \"{name}\"\nid = \"i-{:017x}\"\nuser-data = \"hunter2\"\ntags = {{ Name = \"{name}\" }}",
        name.len()
    ));
    InstanceRecord::new(name, Owner::Api, spec)
}

fn record(instance: InstanceRecord) -> Record {
    Record::Instance(Box::new(instance))
}

/// A record of every kind, with everything in it that a record of that kind can have.
fn everything() -> Vec<Record> {
    let spec = configured(
        r#"
            name = "full"
            role = { name = "reader", access-key-id = "ASIA1", secret-access-key = "hunter2", token = "hunter3", expiration = "2030-01-31T12:00:00Z" }
            user-data = "hunter4"
            secondary-private-ipv4s = ["10.0.0.11"]
            private-ipv4 = "10.0.0.10"
            public-ipv4 = "203.0.113.10"
            ipv6s = ["2001:db8::1"]
            tags = { Name = "full", "aws:x" = "y" }
            monitoring = "enabled"
            [[instance.public-key]]
            name = "me"
            openssh = "ssh-ed25519 AAAA me"
            [[instance.network-interface]]
            private-ipv4 = "10.0.1.10"
        "#,
    );
    let id = spec.id;
    let mut full = InstanceRecord::new("full", Owner::File, spec);
    full.port = Some(PortBy::Name("vnet0".parse().unwrap()));
    full.credential_source = Some(CredentialSource::Process(CredentialProcess {
        program: "/usr/bin/vault".into(),
        arguments: Box::new(["--token=hunter5".into()]),
        environment: Box::new(["HOME".into()]),
    }));
    full.options.change();
    full.said.insert(Facet::Tags, Digest::of(b"x"));
    full.transition = Some(Transition::Terminated { at: UnixSeconds(9) });
    full.launch = Launch {
        client_token: Some("once".into()),
        parameters: Some(Digest::of(b"y")),
    };
    full.key_name = Some("me".into());
    full.profile_association = Some("iip-assoc-0123456789abcdef0".parse().unwrap());
    full.attributes.disable_api_stop = true;
    full.attributes.cpu_credits = Some(record::CpuCredits::Unlimited);
    let mut other = instance("other");
    other.port = Some(PortBy::Mac("52:54:00:12:34:56".parse().unwrap()));
    other.credential_source = Some(CredentialSource::AssumeRole(AssumeRole {
        role_arn: "arn:aws:iam::123456789012:role/x".into(),
        session_name: "x".into(),
        external_id: Some("known to both".into()),
        duration_seconds: 3600,
        endpoint_url: None,
        region: "us-east-1".into(),
    }));
    vec![
        record(full),
        record(other),
        Record::Life(
            id,
            Box::new(Life {
                stopped: Some(UnixSeconds(1)),
                started: Some(UnixSeconds(0)),
                runs_with: Some(crate::life::RunsWith {
                    user_data: instance("x").spec.user_data,
                }),
                ..Life::NOTHING
            }),
        ),
        Record::Admission(Box::new(Admission {
            port: "tap0".to_owned(),
            to: None,
            name: Some("db".to_owned()),
            keys: vec![("user-data".to_owned(), "hunter7".to_owned())],
        })),
        Record::Defaults(AccountDefaults {
            http_tokens: Some(TokenUse::Required),
            http_put_response_hop_limit: std::num::NonZeroU8::new(2),
            http_endpoint: Some(Switch::Enabled),
            instance_metadata_tags: Some(Switch::Disabled),
            http_tokens_enforced: Some(Switch::Disabled),
        }),
        Record::AccessKey(AccessKey {
            id: "AKIA1".into(),
            secret: "hunter8".into(),
            role: KeyRole::ReadOnly,
            created: UnixSeconds(5),
        }),
        Record::KeyPair(Box::new(KeyPair {
            name: "me".into(),
            id: "key-0123456789abcdef0".parse().unwrap(),
            openssh: "ssh-ed25519 AAAA me".into(),
            fingerprint: "aa:bb".into(),
            created: UnixSeconds(5),
            tags: vec![Tag {
                key: "a".into(),
                value: "b".into(),
            }],
        })),
        Record::Rest(Rest(
            serde_json::json!({
                "host": { "region": "us-east-1" },
                "template": [{ "role": { "token": "hunter9" }, "user-data": "hunter10" }],
            })
            .as_object()
            .unwrap()
            .clone(),
        )),
    ]
}

#[test]
fn every_record_is_read_as_it_was_written() {
    for record in everything() {
        let key = record.key();
        let text = record.encode().unwrap();
        assert_eq!(Record::decode(&key, &text).unwrap(), record, "{key}");
    }
}

#[test]
fn an_unremarkable_instance_is_short_to_write_down() {
    let spec = configured("");
    let record = record(InstanceRecord::new("web", Owner::File, spec));
    let text = record.encode().unwrap();
    assert!(text.len() < 1536, "{}", String::from_utf8_lossy(&text));
}

#[test]
fn what_is_another_records_is_refused() {
    let key = Key::instance("i-0123456789abcdef0".parse().unwrap());
    let text = record(instance("web")).encode().unwrap();
    for (key, text) in [(&key, &text[..]), (&key, b"{}"), (&Key::defaults(), b"7")] {
        let error = Record::decode(key, text).unwrap_err().to_string();
        assert!(error.contains(&key.to_string()), "{error}");
    }
}

#[test]
fn no_secret_is_in_the_history_or_in_debug() {
    let view = View::default();
    let mut draft = view.draft(note("add"));
    for record in everything() {
        draft.put(&record).unwrap();
        assert!(!format!("{record:?}").contains("hunter"), "{record:?}");
    }
    let mut memory = Memory::default();
    memory.commit(&draft.finish()).unwrap();
    let entries = memory
        .history(&HistoryQuery {
            limit: 100,
            ..HistoryQuery::default()
        })
        .unwrap();
    let text = serde_json::to_string(&entries).unwrap();
    assert_eq!(entries.len(), everything().len());
    assert!(!text.contains("hunter"), "{text}");
    use base64::Engine;
    let user_data = base64::engine::general_purpose::STANDARD.encode("hunter2");
    assert!(!text.contains(&user_data), "{text}");
}

/// What the history says of a change of one record, each line a field.
#[track_caller]
fn check_difference(change: impl Fn(&mut InstanceRecord), expected: &[&str]) {
    let before = instance("web");
    let mut after = before.clone();
    change(&mut after);
    let changes = history::difference(Some(&record(before).shown()), Some(&record(after).shown()));
    let lines: Vec<String> = changes.iter().map(FieldChange::to_string).collect();
    assert_eq!(lines, expected);
}

#[test]
fn a_change_is_told_in_the_words_of_the_configuration() {
    check_difference(|_| {}, &[]);
    check_difference(
        |record| record.spec.options.http_tokens = TokenUse::Required,
        &["metadata-options.http-tokens: optional → required"],
    );
    check_difference(
        |record| record.spec.instance_type = "m5.large".into(),
        &["type: t3.micro → m5.large"],
    );
    check_difference(
        |record| record.spec.tags = Box::default(),
        &["tags.Name: web → (nothing)"],
    );
    check_difference(
        |record| record.spec.user_data = configured("user-data = \"hunter3\"").user_data,
        &["user-data-base64: (7 bytes) → (7 bytes)"],
    );
    check_difference(
        |record| record.attributes.disable_api_stop = true,
        &["attributes.disable-api-stop: true"],
    );
    check_difference(|record| record.options.change(), &[]);
    let web = record(instance("web")).shown();
    for (old, new, expected) in [(None, Some(&web), "added"), (Some(&web), None, "removed")] {
        let changes = history::difference(old, new);
        let lines: Vec<String> = changes.iter().map(FieldChange::to_string).collect();
        assert_eq!(lines, [expected]);
        let value = changes[0].old.as_ref().or(changes[0].new.as_ref()).unwrap();
        assert_eq!(value["tags"]["Name"], "web");
    }
}

#[test]
fn the_state_of_an_instance_follows_from_its_life_and_what_it_is_on_the_way_to() {
    let mut stopped = Life::NOTHING;
    stopped.stop(UnixSeconds(7));
    let at = UnixSeconds(9);
    for (transition, life, code, word) in [
        (None, &Life::NOTHING, 16, "running"),
        (None, &stopped, 80, "stopped"),
        (Some(Transition::Pending), &Life::NOTHING, 0, "pending"),
        (Some(Transition::Pending), &stopped, 0, "pending"),
        (Some(Transition::Stopping), &Life::NOTHING, 64, "stopping"),
        (
            Some(Transition::ShuttingDown),
            &stopped,
            32,
            "shutting-down",
        ),
        (
            Some(Transition::Terminated { at }),
            &stopped,
            48,
            "terminated",
        ),
    ] {
        let mut record = instance("web");
        record.transition = transition;
        let state = record.state(life);
        assert_eq!(
            (state.code(), state.as_str()),
            (code, word),
            "{transition:?}"
        );
        assert_eq!(record.is_terminated(), code == 48);
    }
}

#[test]
fn options_are_pending_until_they_are_applied() {
    let mut progress = record::OptionsProgress::default();
    assert_eq!(progress.state(), "applied");
    progress.change();
    progress.change();
    assert_eq!(progress.state(), "pending");
    progress.apply();
    assert_eq!(progress.state(), "applied");
}

fn put(view: &View, records: &[Record]) -> Transaction {
    let mut draft = view.draft(note("put"));
    for record in records {
        draft.put(record).unwrap();
    }
    draft.finish()
}

fn view_of(backend: &mut dyn Backend) -> View {
    let State { revision, items } = backend.load().unwrap();
    let mut view = View::default();
    view.take(revision, items).unwrap();
    view
}

/// Runs a check on each kind of store.
fn on_each(check: impl Fn(&mut dyn Backend)) {
    check(&mut Memory::default());
    let directory = tempfile::tempdir().unwrap();
    check(&mut Sqlite::open(&directory.path().join("store.db")).unwrap());
}

#[test]
fn what_was_written_is_there_at_its_revision() {
    on_each(|store| {
        assert_eq!(store.load().unwrap(), State::default());
        let records = everything();
        let made = store.commit(&put(&View::default(), &records)).unwrap();
        let view = view_of(store);
        assert_eq!((made, view.revision()), (Revision(1), Revision(1)));
        for record in records {
            let found = view.record(&record.key());
            assert_eq!(found, Some((Revision(1), record)));
        }
    });
}

#[test]
fn instances_share_what_they_have_in_common() {
    let mut memory = Memory::default();
    let records = [record(instance("web")), record(instance("data"))];
    memory.commit(&put(&View::default(), &records)).unwrap();
    let view = view_of(&mut memory);
    let mut interfaces = view
        .instances()
        .values()
        .map(|versioned| &versioned.value.spec.primary);
    let (one, other) = (interfaces.next().unwrap(), interfaces.next().unwrap());
    assert!(Arc::ptr_eq(&one.subnet, &other.subnet));
    assert!(Arc::ptr_eq(&one.security_groups, &other.security_groups));
}

#[test]
fn whoever_was_too_late_changes_nothing() {
    on_each(|store| {
        let web = instance("web");
        let first = put(&View::default(), &[record(web.clone())]);
        store.commit(&first).unwrap();
        let view = view_of(store);
        let changed = |kind: &str| {
            let mut web = web.clone();
            web.spec.instance_type = kind.into();
            put(&view, &[record(web)])
        };
        store.commit(&changed("m5.large")).unwrap();
        let before = store.load().unwrap();
        let mut gone = view.draft(note("remove"));
        gone.remove(&Key::instance(web.spec.id));
        let mut relying = view.draft(note("rely"));
        relying
            .put(&Record::Defaults(AccountDefaults::default()))
            .unwrap();
        relying.rely_on(Key::instance(web.spec.id));
        for late in [first, changed("m5.xlarge"), gone.finish(), relying.finish()] {
            let error = store.commit(&late).unwrap_err();
            assert!(
                matches!(&error, CommitError::Conflict(key) if *key == Key::instance(web.spec.id)),
                "{error}"
            );
        }
        assert_eq!(store.load().unwrap(), before);
        assert_eq!(entries(store, &[]).len(), 2);
    });
}

fn entries(store: &mut dyn Backend, about: &[Key]) -> Vec<Entry> {
    let about = about.to_vec();
    let query = HistoryQuery {
        about,
        before: None,
        limit: 100,
    };
    store.history(&query).unwrap()
}

#[test]
fn followers_hear_of_each_key_once_with_its_latest_value() {
    on_each(|store| {
        let (web, db) = (instance("web"), instance("data"));
        store
            .commit(&put(&View::default(), &[record(web.clone())]))
            .unwrap();
        let at = store
            .commit(&put(&View::default(), &[record(db.clone())]))
            .unwrap();
        let changes = store.changes_after(Revision(1)).unwrap().unwrap();
        let keys: Vec<&Key> = changes.items.iter().map(|item| &item.key).collect();
        assert_eq!(
            (changes.revision, keys),
            (at, vec![&Key::instance(db.spec.id)])
        );
        let mut draft = view_of(store);
        let mut gone = draft.draft(note("remove"));
        gone.remove(&Key::instance(web.spec.id));
        let at = store.commit(&gone.finish()).unwrap();
        let changes = store.changes_after(Revision(1)).unwrap().unwrap();
        assert_eq!((changes.revision, changes.items.len()), (at, 2));
        draft.take(changes.revision, changes.items).unwrap();
        assert_eq!(draft, view_of(store));
        assert_eq!(draft.instance(web.spec.id), None);
        // A revision that there never was: another store's, perhaps.
        assert_eq!(store.changes_after(Revision(99)).unwrap(), None);
    });
}

#[test]
fn a_key_that_was_deleted_can_be_made_anew() {
    on_each(|store| {
        let web = record(instance("web"));
        store
            .commit(&put(&View::default(), std::slice::from_ref(&web)))
            .unwrap();
        let view = view_of(store);
        let mut gone = view.draft(note("remove"));
        gone.remove(&web.key());
        store.commit(&gone.finish()).unwrap();
        let again = put(&view_of(store), std::slice::from_ref(&web));
        assert_eq!(store.commit(&again).unwrap(), Revision(3));
        assert_eq!(view_of(store).record(&web.key()), Some((Revision(3), web)));
    });
}

#[test]
fn the_history_tells_the_latest_first_and_of_whom_one_asks() {
    on_each(|store| {
        for name in ["a", "bb", "ccc"] {
            let transaction = put(&view_of(store), &[record(instance(name))]);
            store.commit(&transaction).unwrap();
        }
        let mut changed = instance("bb");
        changed.spec.options.http_tokens = TokenUse::Required;
        let transaction = put(&view_of(store), &[record(changed.clone())]);
        store.commit(&transaction).unwrap();
        let only_noted = Transaction {
            history: vec![note("DescribeInstances").of_call(None, Some("AuthFailure"))],
            ..Transaction::default()
        };
        assert_eq!(store.commit(&only_noted).unwrap(), Revision(4));
        let all = entries(store, &[]);
        let numbers: Vec<u64> = all.iter().map(|entry| entry.number).collect();
        assert_eq!(numbers, [5, 4, 3, 2, 1]);
        assert_eq!(all[0].refused.as_deref(), Some("AuthFailure"));
        let about = entries(store, &[Key::instance(changed.spec.id)]);
        let numbers: Vec<u64> = about.iter().map(|entry| entry.number).collect();
        assert_eq!(numbers, [4, 2]);
        assert_eq!(
            about[0].changes[0].to_string(),
            "metadata-options.http-tokens: optional → required"
        );
        assert_eq!((&*about[0].who, &*about[0].what), ("uid 0", "put"));
        let query = HistoryQuery {
            before: Some(4),
            limit: 2,
            ..HistoryQuery::default()
        };
        let page = store.history(&query).unwrap();
        let numbers: Vec<u64> = page.iter().map(|entry| entry.number).collect();
        assert_eq!(numbers, [3, 2]);
    });
}

/// splitmix64, so that a failure can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Whatever is done in whatever order, from views of whatever age: both stores say the same.
#[test]
fn sqlite_is_what_the_model_is() {
    let directory = tempfile::tempdir().unwrap();
    let mut sqlite = Sqlite::open(&directory.path().join("store.db")).unwrap();
    let mut memory = Memory::default();
    let mut views = vec![View::default()];
    let mut random = Random(7);
    let mut n_conflicts = 0;
    for round in 0..400 {
        let age = random.below(3).min(views.len() as u64 - 1) as usize;
        let view = &views[views.len() - 1 - age];
        let mut draft = view.draft(note("anything"));
        let mut names = vec!["a", "bb", "ccc", "dddd"];
        for _ in 0..random.below(3) {
            let name = names.remove(random.below(names.len() as u64) as usize);
            let mut web = instance(name);
            if random.below(3) == 0 {
                draft.remove(&Key::instance(web.spec.id));
            } else {
                web.spec.launch_index = round;
                draft.put(&record(web)).unwrap();
            }
        }
        if random.below(4) == 0 {
            draft.rely_on_all(Kind::Instance);
        }
        let transaction = draft.finish();
        let (one, other) = (sqlite.commit(&transaction), memory.commit(&transaction));
        assert_eq!(one.as_ref().ok(), other.as_ref().ok(), "round {round}");
        n_conflicts += u32::from(one.is_err());
        let after = Revision(random.below(u64::from(round) + 1));
        let sorted = |state: Option<State>| {
            state.map(|mut state| {
                state.items.sort_by(|one, other| one.key.cmp(&other.key));
                state
            })
        };
        assert_eq!(
            sorted(sqlite.changes_after(after).unwrap()),
            sorted(memory.changes_after(after).unwrap()),
            "round {round}"
        );
        views.push(view_of(&mut sqlite));
    }
    assert_eq!(entries(&mut sqlite, &[]), entries(&mut memory, &[]));
    assert!((20..380).contains(&n_conflicts), "{n_conflicts}");
}

#[tokio::test]
async fn a_handle_shows_what_was_written_and_tells_its_followers() {
    let store = Store::start(Memory::default()).unwrap();
    let mut watch = store.watch(Revision(0));
    let web = instance("web");
    let transaction = store.read(|view| put(view, &[record(web.clone())]));
    let revision = store.commit(transaction).await.unwrap();
    assert_eq!(
        store.read(|view| view.instance(web.spec.id).cloned()),
        Some(web.clone())
    );
    let expected = Changes {
        revision,
        keys: Some(vec![Key::instance(web.spec.id)]),
    };
    assert_eq!(watch.next().await.unwrap(), expected);
    assert_eq!(
        store.commit(Transaction::default()).await.unwrap(),
        revision
    );
    let clone = store.clone();
    store.close().await;
    assert!(matches!(watch.next().await, Err(StoreError::Closed)));
    let transaction = clone.read(|view| put(view, &[record(instance("late"))]));
    let outcome = clone.commit(transaction).await;
    assert!(matches!(
        outcome,
        Err(CommitError::Store(StoreError::Closed))
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn updates_that_race_are_all_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    // Two handles on one file, as two processes have them.
    let stores = [(); 2].map(|()| Store::start(Sqlite::open(&path).unwrap()).unwrap());
    let web = Arc::new(instance("web"));
    let first = stores[0].read(|view| put(view, &[record(InstanceRecord::clone(&web))]));
    stores[0].commit(first).await.unwrap();
    let mut tasks = Vec::new();
    for store in stores.iter().cycle().take(8) {
        let (store, id) = (store.clone(), web.spec.id);
        tasks.push(tokio::spawn(async move {
            for _ in 0..25 {
                let more = |view: &View| {
                    let Some(mut web) = view.instance(id).cloned() else {
                        return Ok::<_, StoreError>((Transaction::default(), false));
                    };
                    web.spec.launch_index += 1;
                    Ok((put(view, &[record(web)]), true))
                };
                while !store.update(more).await.unwrap().1 {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let view = view_of(&mut Sqlite::open(&path).unwrap());
    assert_eq!(view.instance(web.spec.id).unwrap().spec.launch_index, 200);
    assert_eq!(view.revision(), Revision(201));
}

#[test]
fn a_file_that_is_none_of_ours_is_let_be() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let check = |path: &Path, expected: &str| {
        let error = Sqlite::open(path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    std::fs::write(
        &path,
        "no database at all, and longer than one hundred bytes".repeat(9),
    )
    .unwrap();
    check(&path, "is damaged");
    std::fs::remove_file(&path).unwrap();
    rusqlite::Connection::open(&path)
        .and_then(|other| other.execute_batch("CREATE TABLE theirs (x)"))
        .unwrap();
    check(&path, "the database of another program");
    std::fs::remove_file(&path).unwrap();
    drop(Sqlite::open(&path).unwrap());
    rusqlite::Connection::open(&path)
        .and_then(|other| other.pragma_update(None, "user_version", 99))
        .unwrap();
    check(
        &path,
        "was written by a newer imds (its schema is 99, this one knows up to 2)",
    );
}

#[test]
fn who_looked_at_all_of_a_kind_is_too_late_when_another_is_there() {
    on_each(|store| {
        let launch = |view: &View, name: &str| {
            let mut draft = view.draft(note("launch"));
            draft.put(&record(instance(name))).unwrap();
            draft.rely_on_all(Kind::Instance);
            draft.finish()
        };
        let early = launch(&view_of(store), "bb");
        let first = launch(&view_of(store), "a");
        store.commit(&first).unwrap();
        let outcome = store.commit(&early);
        assert!(
            matches!(&outcome, Err(CommitError::Conflict(key)) if key.kind == Kind::Instance),
            "{outcome:?}"
        );
        // What is written of another kind is nothing to it.
        let now = launch(&view_of(store), "bb");
        let defaults = Record::Defaults(AccountDefaults::default());
        let other = put(&view_of(store), &[defaults]);
        store.commit(&other).unwrap();
        store.commit(&now).unwrap();
    });
}
