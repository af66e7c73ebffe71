//! What the API answered is kept: the daemon may be killed at any moment, or its disk be full.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use imds_tests::{Api, Guest, Host, INSTANCE_ID, Random};
use imds_user::store::{Backend as _, HistoryQuery, Sqlite};

fn host_and_web() -> Option<(Host, Guest)> {
    let mut host = Host::new()?;
    let web = host.guest("web").routed("10.0.0.10").up();
    Some((host, web))
}

/// The number that a tag of an instance has; 0 while there is none.
fn count_of(described: &str, key: &str) -> u32 {
    let Some((_, rest)) = described.split_once(&format!("<key>{key}</key>")) else {
        return 0;
    };
    let (_, rest) = rest.split_once("<value>").expect("a tag has a value");
    let (value, _) = rest.split_once("</value>").expect("a tag has a value");
    value.parse().expect("the test writes numbers")
}

/// Clients that count up, each in a tag of its own, as fast as they are answered, until there is nobody to answer.
#[test]
fn every_call_that_was_answered_is_there_after_the_daemon_is_killed_in_the_middle_of_many() {
    const CLIENTS: usize = 4;
    const ROUNDS: usize = 12;
    let Some((host, web)) = host_and_web() else {
        return;
    };
    let random = Random::new();
    let mut daemon = host.start();
    let mut answered = [0_u32; CLIENTS];
    for round in 0..ROUNDS {
        let counting = AtomicBool::new(true);
        thread::scope(|scope| {
            let clients = answered.iter_mut().enumerate().map(|(number, answered)| {
                let (mut api, web, counting) = (host.api(), &web, &counting);
                scope.spawn(move || {
                    while counting.load(Ordering::Relaxed) {
                        let next = *answered + 1;
                        let call = format!(
                            "Action=CreateTags&ResourceId.1={}&Tag.1.Key=count-{number}&Tag.1.Value={next}",
                            web.id()
                        );
                        match api.try_call(&call) {
                            Ok(said) => {
                                assert_eq!(said.status, 200, "{said:?}");
                                *answered = next;
                            }
                            Err(_) => return,
                        }
                    }
                })
            });
            let clients: Vec<_> = clients.collect();
            thread::sleep(Duration::from_millis(30 + random.below(120) as u64));
            daemon.crash();
            counting.store(false, Ordering::Relaxed);
            for client in clients {
                client.join().expect("a client ends when nobody answers");
            }
        });
        daemon = host.start();
        let describe = format!("Action=DescribeInstances&InstanceId.1={}", web.id());
        let described = host.api().call(&describe).body;
        for (number, answered) in answered.iter_mut().enumerate() {
            let found = count_of(&described, &format!("count-{number}"));
            // One more may have been kept and not answered any more.
            assert!(
                found == *answered || found == *answered + 1,
                "round {round}, client {number}: answered {answered}, found {found}"
            );
            *answered = found;
        }
        assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    }
    daemon.stop();
    // Change and history are one.
    let mut store = Sqlite::open(&host.state_dir().join("store.db")).expect("it opens");
    let query = HistoryQuery {
        limit: usize::MAX,
        ..HistoryQuery::default()
    };
    let history = store.history(&query).expect("it can be read");
    let n_noted = history
        .iter()
        .filter(|entry| &*entry.what == "ec2:CreateTags")
        .count();
    let n_answered: u32 = answered.iter().sum();
    assert_eq!(n_noted, n_answered as usize);
    assert!(n_answered > 5 * ROUNDS as u32, "{n_answered}");
    println!(
        "killed {ROUNDS} times: all of {n_answered} calls are there, each once in the history"
    );
}

#[test]
fn a_call_that_a_full_disk_cannot_keep_is_refused_and_changes_nothing() {
    let Some(mut host) = Host::new() else {
        return;
    };
    host.small_state_disk();
    let web = host.guest("web").routed("10.0.0.10").up();
    let _daemon = host.start();
    let mut api = host.api();
    let options = |api: &mut Api| {
        let said = api.call(&format!(
            "Action=DescribeInstances&InstanceId.1={}",
            web.id()
        ));
        let options = said.element("metadataOptions").expect("it has options");
        options.to_owned()
    };
    let before = options(&mut api);
    let modify = format!(
        "Action=ModifyInstanceMetadataOptions&InstanceId={}",
        web.id()
    );
    host.state_disk().fill();
    // The log that is there may have room for a few more.
    let refused = (2..60).find_map(|hops| {
        let said = api.try_call(&format!("{modify}&HttpPutResponseHopLimit={hops}"));
        let said = said.expect("it is answered");
        (said.status != 200).then_some(said)
    });
    let refused = refused.expect("a full disk keeps nothing");
    assert_eq!(refused.status, 500, "{refused:?}");
    assert_eq!(
        refused.element("Code"),
        Some("InternalError"),
        "{refused:?}"
    );
    let last = options(&mut api);
    let modify = format!("{modify}&HttpTokens=required");
    let said = api.try_call(&modify).expect("it is answered");
    assert_ne!(said.status, 200, "{said:?}");
    assert_eq!(options(&mut api), last);
    assert_eq!(
        web.get(INSTANCE_ID).status(),
        200,
        "tokens are not required"
    );
    host.state_disk().empty();
    api.call(&modify);
    assert_ne!(options(&mut api), before);
}
