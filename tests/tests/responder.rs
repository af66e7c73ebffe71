//! The process that parses what guests send can do nothing else, and its death is no outage.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use imds_tests::{
    Address, Connection, Guest, Host, INSTANCE_ID, ProcessStatus, eventually, network_of,
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn the_responder_has_no_privileges() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let daemon = host.start();
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    let status = ProcessStatus::of(daemon.responder_pid());
    for ids in ["Uid", "Gid"] {
        let root = status.field(ids).split_whitespace().any(|id| id == "0");
        assert!(!root, "{ids}: {}", status.field(ids));
    }
    assert_eq!(status.field("Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status.field(set), "0000000000000000", "{set}");
    }
    assert_eq!(status.field("NoNewPrivs"), "1");
    assert_eq!(status.field("Seccomp"), "2");
}

#[test]
fn the_responder_lives_in_a_network_of_its_own() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let daemon = host.start();
    let inode = network_of(daemon.responder_pid());
    let others = BTreeSet::from([host.namespace().inode(), web.namespace().inode()]);
    assert!(!others.contains(&inode));
    let own = network_of(Pid::this());
    assert_ne!(own, inode);
}

#[test]
fn the_responder_holds_no_file_of_the_host() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    // Whoever starts the daemon may have left something open for its children.
    let left_open = fs::File::open("/proc/self/status").expect("a file");
    fcntl(&left_open, FcntlArg::F_SETFD(FdFlag::empty())).expect("a descriptor takes a flag");
    let daemon = host.start();
    drop(left_open);
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
    let descriptors =
        fs::read_dir(format!("/proc/{}/fd", daemon.responder_pid())).expect("root may look");
    let targets = descriptors.filter_map(|entry| Some((entry.ok()?.file_name(), ())));
    for (number, ()) in targets {
        let path = format!(
            "/proc/{}/fd/{}",
            daemon.responder_pid(),
            number.to_string_lossy()
        );
        let Ok(target) = fs::read_link(&path) else {
            continue;
        };
        let target = target.to_string_lossy().into_owned();
        // Standard output and error are the daemon's own, here the test's log.
        let harmless = ["socket:", "anon_inode:", "pipe:", "/dev/null"]
            .iter()
            .any(|kind| target.starts_with(kind));
        assert!(
            harmless || matches!(number.to_str(), Some("1" | "2")),
            "descriptor {number:?} is {target}"
        );
    }
}

#[test]
fn killing_the_responder_under_load_refuses_no_connection() {
    const KILLS: usize = 5;
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let db = host.guest("db").routed("10.0.0.10").up();
    let daemon = host.start();
    let done = AtomicBool::new(false);
    let answered = AtomicU64::new(0);
    thread::scope(|scope| {
        for guest in [&web, &web, &db, &db] {
            scope.spawn(|| {
                guest
                    .namespace()
                    .enter(|| keep_asking(guest, &done, &answered));
            });
        }
        for _ in 0..KILLS {
            let responder = daemon.responder_pid();
            kill(responder, Signal::SIGKILL).expect("the responder runs");
            eventually("another responder", Duration::from_secs(10), || {
                (daemon.responder_pid() != responder).then_some(())
            });
            let before = answered.load(Ordering::Relaxed);
            eventually(
                "answers by the next responder",
                Duration::from_secs(10),
                || (answered.load(Ordering::Relaxed) > before + 20).then_some(()),
            );
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// Every connect has to succeed. A request may be lost with the process that had accepted it, and nothing worse.
fn keep_asking(guest: &Guest, done: &AtomicBool, answered: &AtomicU64) {
    while !done.load(Ordering::Relaxed) {
        let mut connection = Connection::open(Address::V4).expect("a connect is never refused");
        let answer: io::Result<_> = connection.exchange("GET", INSTANCE_ID, &[]);
        if let Ok(answer) = answer {
            assert_eq!(answer.text(), guest.id());
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_token_outlives_the_responder_that_minted_it() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").tokens_required().up();
    let daemon = host.start();
    let token = web.put_token(600);
    let responder = daemon.responder_pid();
    kill(responder, Signal::SIGKILL).expect("the responder runs");
    eventually("another responder", Duration::from_secs(10), || {
        (daemon.responder_pid() != responder).then_some(())
    });
    assert_eq!(web.get_with_token(INSTANCE_ID, &token).text(), web.id());
}
