//! Everything goes wrong at once, and nobody is taken for somebody else, nothing leaks, and only who is touched loses anything.
//! `cargo xtask chaos` plays the same for as long as is wanted.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use imds_tests::chaos::{self, Plan};
use imds_tests::{Host, INSTANCE_ID, eventually};
use nix::sys::signal::{Signal, kill};

/// Twenty seconds of it. The seed is printed and can be given by `IMDS_TEST_SEED`.
#[test]
fn guests_keep_their_identity_whatever_happens() {
    let plan = Plan {
        seed: imds_tests::Random::by_time().seed(),
        guests: 20,
        time: Duration::from_secs(20),
        progress_every: Duration::from_secs(5),
    };
    println!("seed {}", plan.seed);
    let report = chaos::run(&plan, &AtomicBool::new(false), |line| println!("{line}"));
    let Some(report) = report else { return };
    println!("{report}");
    assert!(report.violations().is_empty(), "{report}");
}

/// What has to be kept and cannot be is refused, with the reason, and is not in force. All else goes on: guests are served, a
/// responder is replaced, a daemon starts again, also one of another version.
#[test]
fn guests_are_served_and_the_operator_is_told_when_the_state_disk_is_full() {
    let Some(mut host) = Host::new() else { return };
    host.small_state_disk();
    host.tables("[discovery]\nports = [\"veth-*\"]");
    let web = host.guest("web").routed("10.0.0.10").up();
    let _other = host.guest("other").routed("10.0.0.11").unregistered().up();
    let mut daemon = host.start();
    let check_served = || {
        let token = web.put_token(60);
        assert_eq!(web.get_with_token(INSTANCE_ID, &token).text(), web.id());
    };
    check_served();
    host.state_disk().fill();
    for line in [
        "instance stop web",
        "event web autoscaling Terminated",
        "admit --port veth-other --name other",
    ] {
        let refused = host.command(line);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success(), "{line}");
        assert!(
            said.contains("No space left") && said.contains("state"),
            "{line}: {said}"
        );
        assert!(daemon.log().contains("No space left"), "{}", daemon.log());
        check_served();
    }
    let responder = daemon.responder_pid();
    kill(responder, Signal::SIGKILL).expect("it runs");
    eventually("another responder", Duration::from_secs(10), || {
        daemon.responder_now().filter(|now| *now != responder)
    });
    check_served();
    daemon.crash();
    check_served();
    let daemon = host.start();
    check_served();
    daemon.stop();
    let daemon = host.start_version(&host.another_version("imds-next"));
    check_served();
    host.state_disk().empty();
    assert!(host.command("instance stop web").status.success());
    drop(daemon);
}
