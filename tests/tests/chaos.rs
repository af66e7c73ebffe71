//! Everything goes wrong at once, and nobody is taken for somebody else, nothing leaks, and only who is touched loses anything.
//! `cargo xtask chaos` plays the same for as long as is wanted.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use imds_tests::chaos::{self, Plan};
use imds_tests::{Address, Host, INSTANCE_ID, eventually, has_command};
use nix::sys::signal::{Signal, kill};

/// How soon something is mended that can be.
const WITHIN: Duration = Duration::from_secs(20);

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
            said.contains("no room on its file system") && said.contains("state"),
            "{line}: {said}"
        );
        assert!(
            daemon.log().contains("no room on its file system"),
            "{}",
            daemon.log()
        );
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

/// A daemon that may open nothing more follows what it can, lives, and makes up for the rest once it may.
#[test]
fn a_daemon_without_descriptors_makes_up_for_what_it_could_not_follow() {
    if !has_command("prlimit") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let db = host.guest("db").routed("10.0.0.10").up();
    let mut daemon = host.start();
    let network = host.namespace().handle();
    let limit = |soft: &str| {
        let (pid, soft) = (daemon.pid().to_string(), format!("--nofile={soft}:"));
        let output = network.run(&["prlimit", "--pid", &pid, &soft]);
        assert!(output.status.success(), "{output:?}");
    };
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid()));
    limit(&descriptors.expect("it runs").count().to_string());
    // The way to the responder goes with them, so that there is most to mend.
    let name = imds_user::state::namespace_name_in(&host.state_dir());
    host.namespace()
        .ip(&format!("link delete veth-web\nlink delete {name}"));
    let heir = host.guest("web").routed("10.0.0.10").unregistered().up();
    eventually("what cannot be mended is told", WITHIN, || {
        daemon.log().contains("Too many open files").then_some(())
    });
    limit("1024");
    for guest in [&heir, &db] {
        eventually("it is served", WITHIN, || {
            let connection = guest.try_connect(Address::V4);
            let answer = connection.ok()?.exchange("GET", INSTANCE_ID, &[]).ok()?;
            (answer.text() == guest.id()).then_some(())
        });
    }
    let ended = daemon.ended();
    assert!(ended.is_none(), "{ended:?}: {}", daemon.log());
    drop(web);
}
