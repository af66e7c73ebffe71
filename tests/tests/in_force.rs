//! Once the API says that options are applied they are in force: at the guest's very next request, on a connection that is
//! open and on a new one, whatever else changes or dies at the time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use imds_tests::{
    Api, Connection, Daemon, Guest, Host, INSTANCE_ID, Random, Tracee, eventually, patience,
};
use nix::sys::signal::{Signal, kill};

/// A responder that makes way has 20 s to finish, and a disk that others use takes its time.
const APPLIED_WITHIN: Duration = Duration::from_secs(60);
const KEEP: [(&str, &str); 1] = [("Connection", "keep-alive")];

fn host_and_web() -> Option<(Host, Guest)> {
    let mut host = Host::new()?;
    let web = host.guest("web").routed("10.0.0.10").up();
    Some((host, web))
}

fn modify(api: &mut Api, web: &Guest, options: &str) {
    let said = api.call(&format!(
        "Action=ModifyInstanceMetadataOptions&InstanceId={}&{options}",
        web.id()
    ));
    assert_eq!(said.element("state"), Some("pending"), "{said:?}");
}

/// Asks until the API says that all is applied.
fn await_applied(api: &mut Api, web: &Guest) {
    let describe = format!("Action=DescribeInstances&InstanceId.1={}", web.id());
    let begun = Instant::now();
    while !api.call(&describe).body.contains("<state>applied</state>") {
        assert!(
            begun.elapsed() < patience(APPLIED_WITHIN),
            "it is not applied"
        );
        // Whoever is to apply it needs a CPU, too.
        thread::sleep(Duration::from_millis(1));
    }
}

/// What a call without a token is answered, first on an open connection, then on a new one.
fn check_next(open: &mut Connection, web: &Guest, status: u16, when: &str) {
    let found = open.get(INSTANCE_ID, &KEEP).status();
    assert_eq!(found, status, "{when}, on an open connection");
    let found = web.get(INSTANCE_ID).status();
    assert_eq!(found, status, "{when}, on a new connection");
}

#[test]
fn once_it_is_applied_the_call_that_worked_is_refused_at_the_next_request() {
    const ROUNDS: u32 = 20;
    let Some((host, web)) = host_and_web() else {
        return;
    };
    let _daemon = host.start();
    let mut api = host.api();
    for _ in 0..ROUNDS {
        let mut open = web.connect();
        check_next(&mut open, &web, 200, "while tokens are optional");
        modify(&mut api, &web, "HttpTokens=required");
        await_applied(&mut api, &web);
        check_next(&mut open, &web, 401, "after `required` is applied");
        modify(&mut api, &web, "HttpTokens=optional");
        await_applied(&mut api, &web);
    }
}

/// A guest that asks without a pause on one connection, while its options change: how long after the API's answer the first
/// call is refused.
#[test]
fn a_change_is_in_force_within_milliseconds_of_its_answer() {
    const FLIPS: usize = 30;
    let Some((host, web)) = host_and_web() else {
        return;
    };
    let _daemon = host.start();
    let mut api = host.api();
    let mut delays = Vec::new();
    for _ in 0..FLIPS {
        let mut open = web.connect();
        let is_asking = AtomicBool::new(false);
        let (refused, answered) = thread::scope(|scope| {
            let refused = scope.spawn(|| {
                let begun = Instant::now();
                loop {
                    match open.get(INSTANCE_ID, &KEEP).status() {
                        200 => is_asking.store(true, Ordering::Relaxed),
                        401 => return Instant::now(),
                        other => panic!("{other}"),
                    }
                    assert!(
                        begun.elapsed() < patience(APPLIED_WITHIN),
                        "it is never refused"
                    );
                }
            });
            eventually("an answer", Duration::from_secs(10), || {
                is_asking.load(Ordering::Relaxed).then_some(())
            });
            modify(&mut api, &web, "HttpTokens=required");
            let answered = Instant::now();
            (refused.join().expect("it asks"), answered)
        });
        delays.push(refused.saturating_duration_since(answered));
        modify(&mut api, &web, "HttpTokens=optional");
        await_applied(&mut api, &web);
    }
    delays.sort_unstable();
    println!(
        "from the API's answer to the guest's first refusal: median {:?}, at most {:?}, in {FLIPS} flips",
        delays[FLIPS / 2],
        delays[FLIPS - 1]
    );
}

/// The second change is kept while the first is put in force: that the first is says nothing of the second.
#[test]
fn a_change_in_quick_succession_is_not_called_applied_by_the_one_before() {
    const ROUNDS: u32 = 150;
    let Some((host, web)) = host_and_web() else {
        return;
    };
    let _daemon = host.start();
    let mut api = host.api();
    for round in 0..ROUNDS {
        let mut open = web.connect();
        let hops = 2 + round % 2;
        modify(&mut api, &web, &format!("HttpPutResponseHopLimit={hops}"));
        // At any moment of what the daemon does about the first.
        thread::sleep(Duration::from_micros(u64::from(round) * 20));
        modify(&mut api, &web, "HttpTokens=required");
        await_applied(&mut api, &web);
        check_next(&mut open, &web, 401, "after the second is applied");
        modify(&mut api, &web, "HttpTokens=optional");
        await_applied(&mut api, &web);
        check_next(&mut open, &web, 200, "after it is taken back");
    }
}

/// Flips the options while `disturb` does its work now and then, and holds the guest's next request to what is called
/// applied, each time. How often it was disturbed.
fn check_disturbed(
    (host, web): &(Host, Guest),
    daemon: &mut Daemon,
    rounds: u32,
    disturb: impl Fn(&Host, &mut Daemon),
) {
    let random = Random::new();
    for round in 0..rounds {
        let (tokens, status) = if round % 2 == 0 {
            ("required", 401)
        } else {
            ("optional", 200)
        };
        let mut api = host.api();
        modify(&mut api, web, &format!("HttpTokens={tokens}"));
        drop(api);
        thread::sleep(Duration::from_micros(random.below(3000) as u64));
        disturb(host, daemon);
        await_applied(&mut host.api(), web);
        let found = web.get(INSTANCE_ID).status();
        assert_eq!(found, status, "round {round}: `{tokens}` is applied");
    }
}

#[test]
fn what_is_applied_is_in_force_though_responders_die_at_any_moment() {
    let Some(both) = host_and_web() else {
        return;
    };
    let mut daemon = both.0.start();
    check_disturbed(&both, &mut daemon, 40, |_, daemon| {
        if let Some(responder) = daemon.responder_now() {
            kill(responder, Signal::SIGKILL).ok();
        }
    });
}

#[test]
fn what_is_applied_is_in_force_though_the_daemon_dies_at_any_moment() {
    let Some(both) = host_and_web() else {
        return;
    };
    let mut daemon = both.0.start();
    check_disturbed(&both, &mut daemon, 16, |host, daemon| {
        daemon.crash();
        *daemon = host.start();
    });
}

/// A responder leaves while it still has an open connection, which it may give one more answer: that one is not by options
/// that were replaced before they were called applied.
fn check_leaving(leave: impl FnOnce(&Host, Daemon) -> Daemon) {
    let Some((host, web)) = host_and_web() else {
        return;
    };
    let daemon = host.start();
    let mut open = web.connect();
    assert_eq!(open.get(INSTANCE_ID, &KEEP).status(), 200);
    let _daemon = leave(&host, daemon);
    let mut api = host.api();
    modify(&mut api, &web, "HttpTokens=required");
    await_applied(&mut api, &web);
    let last = open.exchange("GET", INSTANCE_ID, &KEEP);
    if let Ok(last) = last {
        assert_eq!(last.status(), 401, "by the responder that leaves");
    }
    assert_eq!(web.get(INSTANCE_ID).status(), 401, "by its successor");
}

#[test]
fn a_responder_that_makes_way_in_an_upgrade_gives_no_answer_of_before() {
    check_leaving(|host, daemon| {
        daemon.stop();
        host.start_version(&host.another_version("next"))
    });
}

#[test]
fn a_responder_that_does_not_listen_any_more_gives_no_answer_of_before() {
    check_leaving(|_, daemon| {
        Tracee::seize(daemon.responder_pid(), "imds-respond").loop_forever();
        daemon
    });
}
