//! Launched guests: they run when they are served and not before, keep what is theirs, see nothing of the host, and leave
//! nothing behind.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use imds_tests::{
    Docker, Host, INSTANCE_ID, Launched, Launcher, ProcessStatus, cgroup_mounts, eventually,
    has_command, imds_path, is_alive, patience, run, traces, users_of_network,
};
use imds_user::capabilities::NEEDED_TO_LAUNCH;
use imds_user::launch::console::KEPT_BYTES;
use imds_user::launch::order::{Answer, Order};
use imds_user::launch::plan::{Image, Spec};
use imds_user::launch::{Running, State};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A launcher that gives up soon, for ports that are not going to be served.
const HASTY: [&str; 2] = ["--patience", "300ms"];

/// User data that counts how often it is run.
const COUNTS: &[u8] =
    b"#!/bin/sh\necho run >>/root/runs\necho user data of $(hostname) as $(id -u)\n";

/// Asks the service as a program of the guest does.
fn ask(path: &str) -> String {
    format!("curl -sS http://169.254.169.254{path}")
}

fn pid_of(running: &Running) -> Pid {
    Pid::from_raw(running.pid.cast_signed())
}

fn host() -> Option<Host> {
    if !has_command("curl") {
        return None;
    }
    Host::new()
}

#[test]
fn a_guest_is_its_own_instance_as_soon_as_it_runs() {
    let Some(mut host) = host() else { return };
    let web = Launched::new(&mut host, "web", 1, |instance| {
        instance
            .user_data(COUNTS)
            .option("http-tokens", "\"required\"");
    });
    let db = Launched::new(&mut host, "db", 2, |_| {});
    let _daemon = host.start();
    let launcher = Launcher::start(&host);
    for guest in [&web, &db] {
        let running = launcher.launch(guest);
        assert_eq!(running.port, guest.names.port);
        assert_eq!(guest.sh(&host, "hostname"), guest.spec.hostname);
        assert_eq!(guest.sh(&host, "cat /etc/hostname"), guest.spec.hostname);
        let address = guest.spec.ipv4.to_string();
        assert!(
            guest
                .sh(&host, "ip -4 -oneline address show eth0")
                .contains(&address)
        );
        assert_eq!(
            guest.sh(&host, "cat /sys/class/net/eth0/address"),
            guest.spec.mac.to_string()
        );
        assert!(
            guest
                .sh(&host, "ip route")
                .contains("default via 172.31.16.1 dev eth0")
        );
    }
    let token = "-H \"X-aws-ec2-metadata-token: $(curl -sS -X PUT http://169.254.169.254/latest/api/token \
                 -H 'X-aws-ec2-metadata-token-ttl-seconds: 60')\"";
    let with_token = format!("{} {token}", ask(INSTANCE_ID));
    assert_eq!(web.sh(&host, &with_token), web.id().as_str());
    assert_eq!(db.sh(&host, &ask(INSTANCE_ID)), db.id().as_str());
    assert_eq!(
        db.sh(&host, &ask("/latest/meta-data/mac")),
        db.spec.mac.to_string()
    );
    web.await_console(&host, "user data of ip-172-31-17-1 as 0", 1);
    web.await_console(&host, "user data ended well", 1);
    db.await_console(&host, "there is no user data", 1);
}

#[test]
fn user_data_runs_once_and_files_stay_over_reboot_stop_and_start() {
    let Some(mut host) = host() else { return };
    let web = Launched::new(&mut host, "web", 1, |instance| {
        instance.user_data(COUNTS);
    });
    let _daemon = host.start();
    let launcher = Launcher::start(&host);
    let id = web.id();
    let first = launcher.launch(&web);
    web.await_console(&host, "user data ended well", 1);
    assert_eq!(
        web.sh(
            &host,
            "echo kept >/var/lib/kept; touch /tmp/gone; cat /root/runs"
        ),
        "run"
    );

    let second = launcher.running(&Order::Reboot { id });
    assert_ne!(first.pid, second.pid);
    assert!(!is_alive(pid_of(&first)));
    web.await_console(&host, "user data was run at the first boot", 1);

    launcher.done(&Order::Stop { id });
    assert_eq!(launcher.state(&web), State::Stopped);
    assert!(!is_alive(pid_of(&second)));
    launcher.done(&Order::Stop { id });
    launcher.running(&Order::Start { id });
    web.await_console(&host, "user data was run at the first boot", 2);
    assert_eq!(web.sh(&host, "cat /root/runs"), "run");
    assert_eq!(web.sh(&host, "cat /var/lib/kept; ls /tmp"), "kept");
    assert_eq!(web.sh(&host, &ask(INSTANCE_ID)), id.as_str());

    // A terminated instance of the same id is another guest.
    launcher.done(&Order::Terminate { id });
    launcher.launch(&web);
    web.await_console(&host, "user data ended well", 1);
    assert_eq!(
        web.sh(&host, "cat /root/runs; ls /var/lib/kept 2>/dev/null; true"),
        "run"
    );
}

#[test]
fn an_instances_switch_is_its_guests() {
    let Some(mut host) = host() else { return };
    let web = Launched::new(&mut host, "web", 1, |instance| {
        // It is stopped while it still has its metadata, as an instance of EC2 is.
        instance.user_data(
            b"#!/bin/sh\ntrap 'curl -sS http://169.254.169.254/latest/meta-data/instance-id; echo; exit' TERM\n\
              echo ready\nwhile :; do sleep 0.1; done\n",
        );
    });
    let _daemon = host.start();
    let launcher = Launcher::start(&host);
    let first = launcher.launch(&web);
    web.await_console(&host, "ready\n", 1);
    let switch = |what: &str| {
        let output = host.command(&format!("instance {what} web"));
        assert!(output.status.success(), "{what}: {output:?}");
        launcher.state(&web)
    };
    assert_eq!(switch("stop"), State::Stopped);
    web.await_console(&host, &format!("{}\n", web.id()), 1);
    assert_eq!(switch("stop"), State::Stopped);
    assert!(matches!(switch("start"), State::Running(_)));
    let State::Running(second) = switch("start") else {
        panic!("it runs")
    };
    let State::Running(third) = switch("reboot") else {
        panic!("it runs")
    };
    assert!(first.pid != second.pid && second.pid != third.pid);
    assert_eq!(web.sh(&host, &ask(INSTANCE_ID)), web.id().as_str());
    drop(launcher);
    let output = host.command("instance reboot web");
    assert_eq!(output.status.code(), Some(69), "{output:?}");
}

#[test]
fn user_data_that_is_no_script_is_not_run_and_one_that_fails_is_told_of() {
    let Some(mut host) = host() else { return };
    let config = Launched::new(&mut host, "config", 1, |instance| {
        instance.user_data(b"#cloud-config\nruncmd: [touch /root/ran]\n");
    });
    let fails = Launched::new(&mut host, "fails", 2, |instance| {
        instance.user_data(b"#!/bin/sh\necho out\necho err >&2\nexit 3\n");
    });
    let _daemon = host.start();
    let launcher = Launcher::start(&host);
    launcher.launch(&config);
    launcher.launch(&fails);
    config.await_console(&host, "user data is no script", 1);
    fails.await_console(
        &host,
        "out\nerr\nimds: user data ended with exit code 3\n",
        1,
    );
    assert_eq!(config.sh(&host, &ask(INSTANCE_ID)), config.id().as_str());
}

#[test]
fn a_terminated_guest_leaves_nothing() {
    let Some(mut host) = host() else { return };
    let web = Launched::new(&mut host, "web", 1, |instance| {
        instance.user_data(b"#!/bin/sh\nnohup sleep 600 &\n");
    });
    let _daemon = host.start();
    let launcher = Launcher::start(&host);
    assert_eq!(traces(&host, &web), BTreeSet::new());
    let running = launcher.launch(&web);
    web.await_console(&host, "user data ended well", 1);
    // A tree that takes long to walk, and links out of it.
    drop(web.sh(
        &host,
        "for n in 1 2 3 4 5 6 7 8 9; do mkdir -p /var/d/$n && cd /var/d/$n; done; ln -s / /var/out",
    ));
    let found = traces(&host, &web);
    for mark in ["netns", "volume", "console", &web.names.port] {
        assert!(
            found.iter().any(|line| line.contains(mark)),
            "{mark}: {found:?}"
        );
    }
    let network = fs::metadata(format!("/proc/{}/ns/net", running.pid))
        .expect("it runs")
        .ino();
    let before = launcher.pid();
    launcher.done(&Order::Terminate { id: web.id() });
    assert_eq!(traces(&host, &web), BTreeSet::new());
    assert_eq!(launcher.state(&web), State::Absent);
    assert!(!is_alive(pid_of(&running)));
    eventually("the network ends", Duration::from_secs(5), || {
        users_of_network(network).is_empty().then_some(())
    });
    launcher.done(&Order::Terminate { id: web.id() });
    let descriptors = fs::read_dir(format!("/proc/{before}/fd"))
        .expect("it runs")
        .count();
    assert!(
        descriptors < 20,
        "the launcher holds {descriptors} descriptors"
    );
}

#[test]
fn a_guest_sees_nothing_of_the_host() {
    let Some(mut host) = host() else { return };
    let web = Launched::new(&mut host, "web", 1, |_| {});
    let _daemon = host.start();
    let launcher = Launcher::start(&host);
    let running = launcher.launch(&web);

    // Processes: its own first one, and what asks.
    let processes = web.sh(&host, "cd /proc; ls -d [0-9]* | wc -l");
    assert!(
        processes.parse::<u32>().expect("a number") <= 4,
        "{processes}"
    );
    // Files: neither the state directory nor what is beside it, nor sockets, pins, homes.
    let state_dir = host.state_dir();
    let hidden = [
        state_dir.to_str().expect("text"),
        host.dir().to_str().expect("text"),
        "/etc/shadow",
        "/etc/imds.toml",
        "/etc/ssh",
        "/root/.ssh",
        "/root/.aws",
        "/run/netns",
        "/sys/fs/bpf/*",
        "/sys/fs/cgroup/*",
        "/var/lib/imds/control.sock",
        "/var/run/docker.sock",
        "/work",
        "/dev/vda",
        "/dev/mem",
        "/dev/kmsg",
    ];
    for path in hidden {
        let line = format!("ls -d {path} 2>/dev/null || echo nothing");
        assert_eq!(web.sh(&host, &line), "nothing", "{path}");
    }
    // What it is told is mounted is nowhere below the host's own folders.
    let mounts = web.sh(&host, "cat /proc/self/mountinfo");
    assert!(!mounts.contains("/guests/"), "{mounts}");
    // The host's programs cannot be changed, its kernel not be told anything, its rights not be had.
    for refused in [
        "touch /usr/bin/x",
        "mount -o remount,rw /usr",
        "umount /usr",
        "umount -l /proc/sys; echo 1 >/proc/sys/kernel/sysrq",
        "echo b >/proc/sysrq-trigger",
        "echo /tmp/x >/proc/sys/kernel/core_pattern",
        "cat /proc/1/environ",
        "ls /proc/1/fd/",
        "cat /proc/1/maps",
        "readlink /proc/1/exe",
        "nsenter --target 1 --mount true",
        "dmesg --clear",
        "mknod /root/disk b 254 0",
        "mount -t bpf bpf /mnt",
        "date --set 2001-01-01",
        "chroot /proc/1/root true",
    ] {
        let output = web.exec(&host, &["sh", "-c", refused]);
        assert!(!output.status.success(), "{refused}: {output:?}");
    }
    // Ending the first process's debugger is as far as its root gets.
    let traced = web.exec(&host, &["sh", "-c", "kill -KILL 1; sleep 0.1; hostname"]);
    assert!(
        traced.status.success(),
        "process 1 is not killed from within: {traced:?}"
    );
    assert!(is_alive(pid_of(&running)));

    // In the host's words.
    let status = ProcessStatus::of(pid_of(&running));
    let uids: Vec<u32> = status
        .field("Uid")
        .split_whitespace()
        .map(|uid| uid.parse().expect("a number"))
        .collect();
    assert!(
        uids.iter()
            .all(|uid| (0x7000_0000..0x8000_0000).contains(uid)),
        "{uids:?}"
    );
    assert_eq!(status.field("NoNewPrivs"), "1");
    assert_eq!(status.field("CapBnd"), status.field("CapEff"));
    assert_eq!(status.field("CapInh"), "0000000000000000");
    let bounding = u64::from_str_radix(status.field("CapBnd"), 16).expect("hexadecimal");
    // CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_TIME, CAP_MKNOD, CAP_SYSLOG, CAP_BPF of capabilities(7).
    for forbidden in [16, 17, 25, 27, 34, 39] {
        assert_eq!(bounding & (1 << forbidden), 0, "capability {forbidden}");
    }
    for namespace in ["user", "mnt", "pid", "net", "uts", "ipc", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).expect("it runs");
        assert_ne!(of(&running.pid.to_string()), of("self"), "{namespace}");
    }
    let descriptors: Vec<PathBuf> = fs::read_dir(format!("/proc/{}/fd", running.pid))
        .expect("it runs")
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|path| path.is_absolute())
        .collect();
    let console = web.names.console();
    let allowed = [Path::new("/dev/null"), &console];
    assert!(
        descriptors
            .iter()
            .all(|path| allowed.contains(&path.as_path())),
        "{descriptors:?}"
    );
}

/// What a lab is used for: namespaces within, as containers on an instance have them.
#[test]
fn a_guests_root_rules_its_own_namespaces() {
    let Some(mut host) = host() else { return };
    let web = Launched::new(&mut host, "web", 1, |_| {});
    let _daemon = host.start();
    let launcher = Launcher::start(&host);
    launcher.launch(&web);
    for line in [
        "ip link add inner type veth peer name other && ip link set inner up",
        "ip address add 10.9.9.9/32 dev lo",
        "unshare --net --mount true",
        "mount -t tmpfs tmpfs /mnt && touch /mnt/x && umount /mnt",
        "touch /root/x /etc/x /var/lib/x /srv/x && mkdir /data",
        "python3 -c 'import ssl; ssl.create_default_context()' || ! command -v python3",
        "setpriv --reuid 1000 --regid 1000 --clear-groups cat /etc/passwd /etc/hosts",
        "setpriv --reuid 1000 --regid 1000 --clear-groups sh -c 'touch /tmp/x /var/tmp/x && ! ls /root'",
        "hostname other && test \"$(hostname)\" = other",
        "sleep 60 & kill $!",
    ] {
        drop(web.sh(&host, line));
    }
}

#[test]
fn nothing_of_a_guest_runs_before_its_port_is_served() {
    let Some(mut host) = host() else { return };
    let known = Launched::new(&mut host, "known", 1, |instance| {
        instance.user_data(COUNTS);
    });
    let unknown = Launched::new(&mut host, "unknown", 2, |_| {});
    host.forget("unknown");
    let hasty = Launcher::start_with(&host, &HASTY);
    let check_refused = |guest: &Launched| {
        let spec = guest.spec.clone();
        let Answer::Failed(why) = hasty.order(&Order::Launch { spec }) else {
            panic!("{} was launched", guest.id())
        };
        assert!(why.contains("is not served"), "{why}");
        assert_eq!(traces(&host, guest), BTreeSet::new());
        assert_eq!(hasty.state(guest), State::Absent);
    };
    // No daemon; then one that does not know the instance.
    check_refused(&known);
    let daemon = host.start();
    check_refused(&unknown);
    drop(hasty);
    let launcher = Launcher::start(&host);
    launcher.launch(&known);
    known.await_console(&host, "user data ended well", 1);
    // One that was there before stays, stopped, with what it had.
    launcher.done(&Order::Stop { id: known.id() });
    drop(launcher);
    daemon.stop();
    host.forget("known");
    let _daemon = host.start();
    let hasty = Launcher::start_with(&host, &HASTY);
    let Answer::Failed(why) = hasty.order(&Order::Start { id: known.id() }) else {
        panic!("it was started")
    };
    assert!(why.contains("is not served"), "{why}");
    assert_eq!(hasty.state(&known), State::Stopped);
    assert_eq!(known.console(&host).matches(" starts\n").count(), 1);
}

#[test]
fn guests_outlive_daemon_and_launcher_and_are_found_again() {
    let Some(mut host) = host() else { return };
    let web = Launched::new(&mut host, "web", 1, |_| {});
    let mut daemon = host.start();
    let launcher = Launcher::start(&host);
    let running = launcher.launch(&web);
    let responds = || {
        let answer = web.sh(
            &host,
            &format!(
                "{} --retry 20 --retry-all-errors --retry-delay 1",
                ask(INSTANCE_ID)
            ),
        );
        assert_eq!(answer, web.id().as_str());
    };
    daemon.crash();
    launcher.crash();
    assert!(is_alive(pid_of(&running)));
    responds();
    drop(daemon);
    let daemon = host.start();
    let launcher = Launcher::start(&host);
    assert_eq!(launcher.state(&web), State::Running(running.clone()));
    responds();
    daemon.stop();
    drop(launcher);
    let _daemon = host.start();
    let launcher = Launcher::start(&host);
    assert_eq!(launcher.state(&web), State::Running(running.clone()));
    responds();
    let spec = web.spec.clone();
    let again = launcher.order(&Order::Launch { spec });
    assert!(
        matches!(again, Answer::Failed(ref why) if why.contains("runs already")),
        "{again:?}"
    );
    // It ends by itself: no note says so, and it is known.
    kill(pid_of(&running), Signal::SIGKILL).expect("it runs");
    eventually("it is stopped", Duration::from_secs(5), || {
        (launcher.state(&web) == State::Stopped).then_some(())
    });
    let next = launcher.running(&Order::Start { id: web.id() });
    assert_ne!(next.pid, running.pid);
    responds();
}

/// A process of the number that a guest's first process had is not taken for it, nor one that is in its group.
#[test]
fn what_is_no_first_process_is_not_taken_for_one() {
    let Some(mut host) = host() else { return };
    let web = Launched::new(&mut host, "web", 1, |_| {});
    let _daemon = host.start();
    let launcher = Launcher::start(&host);
    launcher.launch(&web);
    launcher.done(&Order::Stop { id: web.id() });
    let mut stranger = Command::new("sleep")
        .arg("60")
        .stdin(Stdio::null())
        .spawn()
        .expect("sleep");
    let groups: Vec<PathBuf> = cgroup_mounts()
        .iter()
        .map(|mount| mount.join(&web.names.cgroup))
        .collect();
    let mount = cgroup_mounts()
        .into_iter()
        .find(|mount| mount.join("cgroup.controllers").exists());
    let group = mount
        .map(|mount| mount.join(&web.names.cgroup))
        .or(groups.first().cloned())
        .expect("a group");
    fs::create_dir_all(&group).expect("a group");
    fs::write(group.join("cgroup.procs"), stranger.id().to_string()).expect("it is put there");
    let state = launcher.state(&web);
    stranger.kill().expect("a child can be killed");
    stranger.wait().expect("a killed child can be waited for");
    assert_eq!(state, State::Stopped);
    launcher.running(&Order::Start { id: web.id() });
}

#[test]
fn a_launcher_that_is_killed_while_it_launches_leaves_nothing_that_runs() {
    let Some(mut host) = host() else { return };
    let web = Launched::new(&mut host, "web", 1, |instance| {
        instance.user_data(COUNTS);
    });
    // Nobody serves, so the launch waits at the door.
    let launcher = Launcher::start_with(&host, &["--patience", "30s"]);
    launcher.send(&Order::Launch {
        spec: web.spec.clone(),
    });
    let netns = Path::new("/run/netns").join(&web.names.netns);
    eventually("the guest is being made", Duration::from_secs(10), || {
        netns.exists().then_some(())
    });
    launcher.crash();
    let launcher = Launcher::start(&host);
    eventually("what waited ends", Duration::from_secs(5), || {
        (launcher.state(&web) == State::Stopped).then_some(())
    });
    let _daemon = host.start();
    launcher.launch(&web);
    web.await_console(&host, "user data ended well", 1);
    assert_eq!(web.console(&host).matches(" starts\n").count(), 1);
    launcher.done(&Order::Terminate { id: web.id() });
    assert_eq!(traces(&host, &web), BTreeSet::new());
}

#[test]
fn exec_hands_on_exit_codes_and_output() {
    let Some(mut host) = host() else { return };
    let web = Launched::new(&mut host, "web", 1, |_| {});
    let idle = Launched::new(&mut host, "idle", 2, |_| {});
    let _daemon = host.start();
    let launcher = Launcher::start(&host);
    launcher.launch(&web);
    let output = web.exec(&host, &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(
        (&*output.stdout, &*output.stderr),
        (&b"out\n"[..], &b"err\n"[..])
    );
    assert_eq!(
        web.exec(&host, &["sh", "-c", "kill -TERM $$"])
            .status
            .code(),
        Some(143)
    );
    assert_eq!(
        web.exec(&host, &["no-such-program"]).status.code(),
        Some(127)
    );
    assert_eq!(web.exec(&host, &["/etc/hosts"]).status.code(), Some(126));
    assert_eq!(
        web.sh(
            &host,
            "pwd; echo $HOME $USER; env | grep CARGO || echo clean"
        ),
        "/root
/root root
clean"
    );
    // By what the daemon calls it, and by how its id begins.
    for name in ["web", "i-000000000000000", "i-00000000000000001"] {
        let output = host.command(&format!("instance console {name}"));
        assert!(output.status.success(), "{name}: {output:?}");
    }
    for (name, code, says) in [("idle", 69, "no guest"), ("nobody", 64, "nobody")] {
        let output = host.command(&format!("instance console {name}"));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(says), "{said}");
    }
    assert_eq!(idle.exec(&host, &["true"]).status.code(), Some(69));
    launcher.done(&Order::Stop { id: web.id() });
    let stopped = web.exec(&host, &["true"]);
    assert_eq!(stopped.status.code(), Some(69), "{stopped:?}");
}

#[test]
fn a_command_in_a_guest_ends_with_whoever_called_it_and_with_the_guest() {
    let Some(mut host) = host() else { return };
    let web = Launched::new(&mut host, "web", 1, |_| {});
    let _daemon = host.start();
    let launcher = Launcher::start(&host);
    launcher.launch(&web);
    let sleepers = || {
        web.sh(
            &host,
            "grep -l '^sleep' /proc/[0-9]*/comm 2>/dev/null | wc -l",
        )
    };
    let mut caller = web.spawn(&host, &["sleep", "600"]);
    eventually("it sleeps", Duration::from_secs(10), || {
        (sleepers() == "1").then_some(())
    });
    caller.kill().expect("a child can be killed");
    caller.wait().expect("a killed child can be waited for");
    eventually("it is gone", Duration::from_secs(10), || {
        (sleepers() == "0").then_some(())
    });

    let mut caller = web.spawn(&host, &["sleep", "600"]);
    eventually("it sleeps", Duration::from_secs(10), || {
        (sleepers() == "1").then_some(())
    });
    launcher.done(&Order::Terminate { id: web.id() });
    let ended = eventually("the caller ends", Duration::from_secs(10), || {
        caller.try_wait().expect("a child")
    });
    assert!(!ended.success());
    assert_eq!(traces(&host, &web), BTreeSet::new());
}

#[test]
fn a_console_is_bounded_and_can_be_followed() {
    let Some(mut host) = host() else { return };
    let web = Launched::new(&mut host, "web", 1, |instance| {
        instance.user_data(
            b"#!/bin/sh\nyes 'a line of no interest' | head -c 20000000\necho the last line\n",
        );
    });
    let _daemon = host.start();
    let launcher = Launcher::start(&host);
    launcher.launch(&web);
    let follower = host.spawn(&format!("instance console --follow {}", web.id()));
    let follower = thread::spawn(|| follower.wait_with_output());
    web.await_console(&host, "the last line", 1);
    let metadata = fs::metadata(web.names.console()).expect("a console");
    assert!(metadata.blocks() * 512 <= 3 * KEPT_BYTES, "{metadata:?}");
    assert!(web.console(&host).len() as u64 <= KEPT_BYTES);
    launcher.done(&Order::Terminate { id: web.id() });
    let output = follower
        .join()
        .expect("no panic")
        .expect("it is waited for");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("the last line\n") && text.ends_with(" stops\n"),
        "{}",
        text.len()
    );
}

#[test]
fn a_guest_takes_no_more_than_its_bounds() {
    let Some(mut host) = host() else { return };
    let mut web = Launched::new(&mut host, "web", 1, |_| {});
    web.spec.bounds.pids = 40;
    web.spec.bounds.memory_bytes = 64 << 20;
    web.spec.bounds.volume_bytes = 8 << 20;
    let _daemon = host.start();
    let launcher = Launcher::start(&host);
    let running = launcher.launch(&web);
    let forks = "for n in $(seq 100); do sleep 5 & done 2>&1; wait";
    let output = web.exec(&host, &["timeout", "4", "sh", "-c", forks]);
    assert!(!output.status.success(), "a hundred processes: {output:?}");
    let full = web.exec(
        &host,
        &["dd", "if=/dev/zero", "of=/var/fill", "bs=1M", "count=20"],
    );
    let said = String::from_utf8_lossy(&full.stderr).into_owned();
    assert!(said.contains("No space left"), "{said}");
    drop(web.sh(&host, "rm /var/fill"));
    let hog = web.exec(
        &host,
        &[
            "sh",
            "-c",
            "head -c 200000000 /dev/zero | tail -c 190000000 | wc -c",
        ],
    );
    assert_ne!(
        String::from_utf8_lossy(&hog.stdout).trim(),
        "190000000",
        "{hog:?}"
    );
    assert!(is_alive(pid_of(&running)), "the first process outlives it");
    assert_eq!(web.sh(&host, &ask(INSTANCE_ID)), web.id().as_str());
}

#[test]
fn a_subnet_of_the_hosts_own_is_refused() {
    let Some(mut host) = host() else { return };
    let web = Launched::new(&mut host, "web", 1, |_| {});
    host.namespace()
        .ip("link add lan0 type bridge\nlink set lan0 up\naddress add 172.31.20.1/20 dev lan0");
    let _daemon = host.start();
    let launcher = Launcher::start(&host);
    let Answer::Failed(why) = launcher.order(&Order::Launch {
        spec: web.spec.clone(),
    }) else {
        panic!("it was launched")
    };
    assert!(why.contains("172.31.16.0/20"), "{why}");
    assert_eq!(traces(&host, &web), BTreeSet::new());
}

#[test]
fn a_guest_that_heeds_nothing_is_stopped_all_the_same() {
    let Some(mut host) = host() else { return };
    let web = Launched::new(&mut host, "web", 1, |instance| {
        instance.user_data(b"#!/bin/sh\ntrap '' TERM HUP\necho deaf\nwhile :; do sleep 1; done\n");
    });
    let _daemon = host.start();
    let launcher = Launcher::start(&host);
    launcher.launch(&web);
    web.await_console(&host, "deaf", 1);
    let started = Instant::now();
    launcher.done(&Order::Stop { id: web.id() });
    assert!(
        started.elapsed() < patience(Duration::from_secs(8)),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(launcher.state(&web), State::Stopped);
}

#[test]
fn an_image_of_docker_is_a_guest_like_any_other() {
    const ASK: &str = "printf 'GET /latest/meta-data/instance-id HTTP/1.1\\r\\nHost: 169.254.169.254\\r\\n\\r\\n' \
                       | busybox nc -w 2 169.254.169.254 80";
    let Some(mut host) = Host::new() else { return };
    let Some(docker) = Docker::start(&host) else {
        return;
    };
    let made = docker.import("talks", &["imds.role=admin"]);
    assert!(made.status.success(), "{made:?}");
    host.live_with(docker.jail());
    let mut web = Launched::new(&mut host, "web", 1, |_| {});
    web.spec.image = Image::Docker("talks".into());
    let socket = docker.socket();
    let socket = socket.to_str().expect("text");
    let name = web.names.netns.clone();
    let inside = |script: &str| {
        let output = docker.docker(&["exec", &name, "/bin/busybox", "sh", "-c", script]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let with_docker = ["--docker-socket", socket];
    let hasty = Launcher::start_with(&host, &[with_docker, HASTY].concat());
    let launch = |spec: &Spec| {
        let spec = spec.clone();
        hasty.order(&Order::Launch { spec })
    };
    // An image that does nothing ends, one that is not there is not found, one that nobody serves is taken away again.
    let missing = Spec {
        image: Image::Docker("no-such-image".into()),
        ..web.spec.clone()
    };
    for (spec, says) in [(&missing, "no image `no-such-image`"), (&web.spec, "")] {
        let Answer::Failed(why) = launch(spec) else {
            panic!("it was launched")
        };
        assert!(why.contains(says), "{why}");
        assert_eq!(docker.told("ps --all --quiet"), "");
        assert_eq!(traces(&host, &web), BTreeSet::new());
    }
    let rests = docker.import_with("rests", &["CMD [\"/bin/busybox\", \"sleep\", \"600\"]"]);
    assert!(rests.status.success(), "{rests:?}");
    web.spec.image = Image::Docker("rests".into());
    let Answer::Failed(why) = launch(&web.spec) else {
        panic!("it was launched")
    };
    assert!(why.contains("is not served"), "{why}");
    assert_eq!(docker.told("ps --all --quiet"), "");

    drop(hasty);
    let daemon = host.start();
    let launcher = Launcher::start_with(&host, &with_docker);
    let running = launcher.launch(&web);
    assert_eq!(running.port, web.names.port);
    assert!(inside(ASK).ends_with(web.id().as_str()), "{}", inside(ASK));
    assert_eq!(inside("busybox hostname").trim(), web.spec.hostname);
    drop(inside("echo kept >/kept"));
    let path = format!("PATH={}:/usr/bin:/bin", docker.commands().display());
    let state_dir = host.state_dir();
    let binary = imds_path();
    let words = [
        "env",
        &path,
        binary.to_str().expect("text"),
        "instance",
        "--state-dir",
        state_dir.to_str().expect("text"),
        "exec",
        web.id().as_str(),
        "--",
        "/bin/busybox",
        "sh",
        "-c",
        "echo out; exit 7",
    ]
    .map(str::to_owned);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let output = run(&words);
    assert_eq!(
        (output.status.code(), &*output.stdout),
        (Some(7), &b"out\n"[..]),
        "{output:?}"
    );

    launcher.done(&Order::Stop { id: web.id() });
    assert_eq!(launcher.state(&web), State::Stopped);
    launcher.running(&Order::Start { id: web.id() });
    assert_eq!(inside("cat /kept"), "kept\n");
    assert!(inside(ASK).ends_with(web.id().as_str()), "{}", inside(ASK));
    launcher.done(&Order::Terminate { id: web.id() });
    assert_eq!(launcher.state(&web), State::Absent);
    assert_eq!(docker.told("ps --all --quiet"), "");
    assert_eq!(traces(&host, &web), BTreeSet::new());
    drop(launcher);
    drop(daemon);
}

#[test]
fn the_launcher_keeps_the_rights_that_it_needs_and_no_others() {
    let Some(mut host) = host() else { return };
    let web = Launched::new(&mut host, "web", 1, |_| {});
    let _daemon = host.start();
    let launcher = Launcher::start(&host);
    launcher.launch(&web);
    let bits = |pid: Pid, set: &str| {
        u64::from_str_radix(ProcessStatus::of(pid).field(set), 16).expect("hexadecimal")
    };
    // A machine may have less to give than root has by rights.
    let had = bits(Pid::this(), "CapPrm");
    let needed = NEEDED_TO_LAUNCH.iter().filter(|needed| needed.is_in(had));
    let n_needed = needed.count();
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        let kept = bits(launcher.pid(), set);
        let needed = NEEDED_TO_LAUNCH.iter().filter(|needed| needed.is_in(kept));
        assert_eq!(needed.count(), n_needed, "{set} {kept:x}");
        assert_eq!(kept.count_ones() as usize, n_needed, "{set} {kept:x}");
    }
}

#[test]
fn taking_imds_down_takes_guests_along_unless_a_launcher_runs() {
    let Some(mut host) = host() else { return };
    let web = Launched::new(&mut host, "web", 1, |_| {});
    let daemon = host.start();
    let launcher = Launcher::start(&host);
    let running = launcher.launch(&web);
    daemon.stop();
    let refused = host.command("down");
    assert!(!refused.status.success(), "{refused:?}");
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("launcher"),
        "{refused:?}"
    );
    assert!(is_alive(pid_of(&running)));
    drop(launcher);
    host.take_down();
    assert!(!is_alive(pid_of(&running)));
    assert_eq!(traces(&host, &web), BTreeSet::new());
}
