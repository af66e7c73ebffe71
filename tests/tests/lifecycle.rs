//! Starting, reloading and stopping: what changes is seen at once, and what does not change notices nothing. What outlives
//! a daemon is in `lasting.rs`.

use imds_tests::{Host, INSTANCE_ID, TOKEN_FIELD, is_alive, users_of_network};
use nix::unistd::Pid;

const HOSTNAME: &str = "/latest/meta-data/hostname";

#[test]
fn changed_options_are_seen_by_the_next_request_of_an_open_connection() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let mut daemon = host.start();
    let mut connection = web.connect();
    assert_eq!(connection.get(INSTANCE_ID, &[]).status(), 200);

    host.instance("web").option("http-tokens", "\"required\"");
    host.write_config();
    daemon.reload();
    assert_eq!(connection.get(INSTANCE_ID, &[]).status(), 401);
    let token = web.put_token(60);
    assert_eq!(
        connection.get(INSTANCE_ID, &[(TOKEN_FIELD, &token)]).text(),
        web.id()
    );

    host.instance("web").option("http-endpoint", "\"disabled\"");
    host.write_config();
    daemon.reload();
    assert_eq!(
        connection
            .get(INSTANCE_ID, &[(TOKEN_FIELD, &token)])
            .status(),
        403
    );
}

/// User data is the exception; see `life.rs`.
#[test]
fn changed_metadata_is_seen_by_the_next_request() {
    let Some(mut host) = Host::new() else { return };
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .key("hostname", "\"before\"")
        .up();
    let mut daemon = host.start();
    let mut connection = web.connect();
    assert_eq!(connection.get(HOSTNAME, &[]).text(), "before");
    host.instance("web").key("hostname", "\"after\"");
    host.write_config();
    daemon.reload();
    assert_eq!(connection.get(HOSTNAME, &[]).text(), "after");
}

#[test]
fn an_instance_that_did_not_change_notices_no_reload() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let db = host.guest("db").routed("10.0.0.10").up();
    let mut daemon = host.start();
    let responder = daemon.responder_pid();
    let mut connection = web.connect();
    let token = connection.put_token(600);
    assert_eq!(db.get(INSTANCE_ID).text(), db.id());

    let late = host.guest("late").routed("10.0.0.10").up();
    host.forget("db");
    host.write_config();
    daemon.reload();

    assert_eq!(
        connection.get(INSTANCE_ID, &[(TOKEN_FIELD, &token)]).text(),
        web.id()
    );
    assert_eq!(late.get(INSTANCE_ID).text(), late.id());
    assert_eq!(
        daemon.responder_pid(),
        responder,
        "a reload is no reason for another responder"
    );
}

#[test]
fn a_wrong_new_configuration_is_refused_and_the_old_one_stays() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let mut daemon = host.start();
    let mut connection = web.connect();
    for wrong in [
        "[host]\nregoin = \"eu-central-1\"\n",
        "not toml",
        "[[instance]]\nname = \"web\"\nport = \"lo\"\n",
    ] {
        host.write_raw_config(wrong);
        daemon.reload();
        assert_eq!(
            connection.get(INSTANCE_ID, &[]).text(),
            web.id(),
            "after {wrong:?}"
        );
        assert_eq!(web.get(INSTANCE_ID).text(), web.id(), "after {wrong:?}");
    }
    assert!(
        daemon.log().contains("regoin"),
        "the log names what is wrong:\n{}",
        daemon.log()
    );
    host.instance("web").key("hostname", "\"good-again\"");
    host.write_config();
    daemon.reload();
    assert_eq!(web.get(HOSTNAME).text(), "good-again");
}

#[test]
fn tokens_survive_a_restart_of_the_daemon() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").tokens_required().up();
    let daemon = host.start();
    let token = web.put_token(600);
    daemon.stop();
    let _daemon = host.start();
    assert_eq!(web.get_with_token(INSTANCE_ID, &token).text(), web.id());
}

/// What is made up for an instance is made up once: a restart changes no answer.
#[test]
fn made_up_values_survive_a_restart_of_the_daemon() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let paths = [
        "reservation-id",
        "mac",
        "hostname",
        "local-ipv4",
        "ami-id",
        "security-groups",
    ];
    let tell = || {
        paths.map(|path| {
            web.get(&format!("/latest/meta-data/{path}"))
                .text()
                .to_owned()
        })
    };
    let daemon = host.start();
    let before = tell();
    assert!(before.iter().all(|value| !value.is_empty()), "{before:?}");
    daemon.stop();
    let _daemon = host.start();
    assert_eq!(tell(), before);
}

#[test]
fn a_daemon_that_crashed_can_be_started_again() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").tokens_required().up();
    let mut crashed = host.start();
    let token = web.put_token(600);
    crashed.crash();
    let _daemon = host.start();
    assert_eq!(web.get_with_token(INSTANCE_ID, &token).text(), web.id());
}

/// Hosts on one machine know nothing of each other.
#[test]
fn two_hosts_run_beside_each_other() {
    let (Some(mut one), Some(mut two)) = (Host::new(), Host::new()) else {
        return;
    };
    let first = one
        .guest("web")
        .routed("10.0.0.10")
        .id("i-0aaaaaaaaaaaaaaaa")
        .up();
    let second = two
        .guest("web")
        .routed("10.0.0.10")
        .id("i-0bbbbbbbbbbbbbbbb")
        .up();
    let first_daemon = one.start();
    let _second_daemon = two.start();
    assert_eq!(first.get(INSTANCE_ID).text(), first.id());
    assert_eq!(second.get(INSTANCE_ID).text(), second.id());
    first_daemon.stop();
    assert_eq!(second.get(INSTANCE_ID).text(), second.id());
}

#[test]
fn a_host_that_is_dropped_leaves_no_process() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let pids: Vec<Pid> = {
        let daemon = host.start();
        assert_eq!(web.get(INSTANCE_ID).text(), web.id());
        vec![daemon.pid(), daemon.responder_pid()]
    };
    let inodes = [host.namespace().inode(), web.namespace().inode()];
    let dir = host.dir().to_owned();
    drop((host, web));
    assert!(!pids.iter().any(|pid| is_alive(*pid)), "{pids:?}");
    assert!(!dir.exists(), "{}", dir.display());
    for inode in inodes {
        assert_eq!(users_of_network(inode), Vec::<String>::new());
    }
}
