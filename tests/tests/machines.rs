//! Instances that RunInstances makes have guests: they run when the API says so, are in their metadata what the API says of
//! them, follow every call, and leave nothing when they are terminated, whoever dies meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use imds_tests::{
    Api, Daemon, Docker, Host, INSTANCE_ID, Launched, Launcher, Said, eventually, has_command,
    patience, skip, traces,
};
use imds_user::instance::InstanceId;
use imds_user::launch::order::{Answer, Order};
use imds_user::launch::plan::{Bounds, Image, Names, Spec};
use imds_user::launch::{Running, State};

/// Bound on what a call has set going: a launch takes some tenths of a second, an end of a guest that heeds nothing seven.
const WITHIN: Duration = Duration::from_secs(30);
/// User data that counts how often it is run.
const COUNTS: &str = "#!/bin/sh\necho run >>/root/runs\n";

/// A host without guests; none where guests cannot be launched.
fn host() -> Option<Host> {
    if !has_command("curl") {
        return None;
    }
    let mut host = Host::new()?;
    host.run_option("--api").run_option("none");
    Some(host)
}

/// A call by the Unix socket, as root.
fn ask(host: &Host, form: &str) -> Said {
    let mut api = Api::connect(&host.state_dir()).expect("a daemon");
    api.try_call(form)
        .unwrap_or_else(|error| panic!("{form}: {error}"))
}

fn call(host: &Host, form: &str) -> Said {
    let said = ask(host, form);
    assert_eq!(said.status, 200, "{form}: {}", said.body);
    said
}

/// What stands in every element of this name.
fn all(said: &Said, name: &str) -> Vec<String> {
    let open = format!("<{name}>");
    let parts = said.body.split(&open).skip(1);
    let texts = parts.filter_map(|part| part.split('<').next());
    texts.map(str::to_owned).collect()
}

/// The id of the image of this name.
fn image(host: &Host, name: &str) -> Option<String> {
    let form = format!("Action=DescribeImages&Filter.1.Name=name&Filter.1.Value.1={name}");
    call(host, &form).element("imageId").map(str::to_owned)
}

/// Launches instances, with more parameters.
fn run(host: &Host, n: usize, more: &str) -> Vec<InstanceId> {
    let image = image(host, "imds-guest").expect("an image");
    let form = format!("Action=RunInstances&ImageId={image}&MinCount={n}&MaxCount={n}{more}");
    let ids = all(&call(host, &form), "instanceId");
    ids.iter().map(|id| id.parse().expect("an id")).collect()
}

fn run_one(host: &Host, more: &str) -> InstanceId {
    let ids = run(host, 1, more);
    assert_eq!(ids.len(), 1);
    ids[0]
}

fn with_user_data(script: &str) -> String {
    let text = STANDARD.encode(script);
    let text = text.replace('+', "%2B").replace('=', "%3D");
    format!("&UserData={text}")
}

fn describe(host: &Host, id: InstanceId) -> Said {
    call(host, &format!("Action=DescribeInstances&InstanceId.1={id}"))
}

fn act(host: &Host, action: &str, id: InstanceId) {
    call(host, &format!("Action={action}&InstanceId.1={id}"));
}

fn state(host: &Host, id: InstanceId) -> String {
    state_in(&describe(host, id))
}

fn state_in(said: &Said) -> String {
    let state = said.element("instanceState").expect("a state");
    let (_, name) = state.split_once("<name>").expect("its name");
    name.trim_end_matches("</name>").to_owned()
}

/// Waits for a state, and returns what the API says then.
fn until(host: &Host, id: InstanceId, wanted: &str) -> Said {
    let deadline = Instant::now() + patience(WITHIN);
    loop {
        let said = describe(host, id);
        let found = state_in(&said);
        if found == wanted {
            return said;
        }
        assert!(
            Instant::now() < deadline,
            "{id} is {found}, not {wanted}: {}",
            said.body
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// The guest of an instance, by what the API says of it.
fn guest(host: &Host, id: InstanceId) -> Launched {
    let said = describe(host, id);
    let of = |name| {
        said.element(name)
            .unwrap_or_else(|| panic!("no {name}: {}", said.body))
    };
    let state_dir = host.state_dir().canonicalize().expect("it is there");
    let name = of("privateDnsName");
    let spec = Spec {
        id,
        image: Image::Host,
        hostname: name.split('.').next().expect("a label").to_owned(),
        ipv4: of("privateIpAddress").parse().expect("an address"),
        subnet: "172.31.16.0/20".parse().expect("a range"),
        mac: of("macAddress").parse().expect("a hardware address"),
        bounds: Bounds::default(),
    };
    let names = Names::of(&state_dir, id);
    Launched { spec, names }
}

/// What the guest is told at a path of the service.
fn told(host: &Host, guest: &Launched, path: &str) -> String {
    guest.sh(host, &format!("curl -sS http://169.254.169.254{path}"))
}

fn reason(host: &Host, id: InstanceId) -> Option<String> {
    let said = describe(host, id);
    let (_, code) = said.element("stateReason")?.split_once("<code>")?;
    Some(code.split_once("</code>")?.0.to_owned())
}

fn launch(host: &Host) -> (Daemon, Launcher) {
    // The launcher first: it need not wait for the daemon, and the daemon is to find it.
    fs::create_dir_all(host.state_dir()).expect("a folder");
    let launcher = Launcher::start(host);
    (host.start(), launcher)
}

#[test]
fn an_instance_that_is_run_is_a_guest_that_is_what_the_api_says() {
    let Some(host) = host() else { return };
    let (_daemon, launcher) = launch(&host);
    let more = format!(
        "{}&InstanceType=t3.micro&TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=Name\
         &TagSpecification.1.Tag.1.Value=web&MetadataOptions.InstanceMetadataTags=enabled",
        with_user_data(COUNTS)
    );
    let begun = Instant::now();
    let id = run_one(&host, &more);
    assert_eq!(state(&host, id), "pending");
    let shown = until(&host, id, "running");
    println!("from RunInstances to running: {:?}", begun.elapsed());
    assert_eq!(shown.element("state"), Some("disabled"), "monitoring");
    assert!(shown.body.contains("<state>applied</state>"), "{shown:?}");
    let web = guest(&host, id);
    assert!(matches!(launcher.state(&web), State::Running(_)));
    for (path, name) in [
        (INSTANCE_ID, "instanceId"),
        ("/latest/meta-data/ami-id", "imageId"),
        ("/latest/meta-data/instance-type", "instanceType"),
        ("/latest/meta-data/local-ipv4", "privateIpAddress"),
        ("/latest/meta-data/mac", "macAddress"),
        ("/latest/meta-data/local-hostname", "privateDnsName"),
        ("/latest/meta-data/reservation-id", "reservationId"),
        ("/latest/meta-data/security-groups", "groupName"),
    ] {
        let said = shown.element(name).expect(name);
        // The first group's name is that of the placement, which is empty.
        let said = if name == "groupName" { "default" } else { said };
        assert_eq!(told(&host, &web, path), said, "{path}");
    }
    assert_eq!(
        told(&host, &web, "/latest/meta-data/tags/instance/Name"),
        "web"
    );
    let address = web.spec.ipv4.to_string();
    assert!(
        web.sh(&host, "ip -4 -oneline address show eth0")
            .contains(&address)
    );
    assert_eq!(
        web.sh(&host, "cat /sys/class/net/eth0/address"),
        web.spec.mac.to_string()
    );
    assert_eq!(web.sh(&host, "hostname"), web.spec.hostname);
    web.await_console(&host, "user data ended well", 1);
    assert_eq!(web.sh(&host, "cat /root/runs"), "run");
    // By its name, and by how its id begins.
    for written in ["web", &id.as_str()[..10]] {
        let output = host.command(&format!("instance console {written}"));
        assert!(output.status.success(), "{written}: {output:?}");
    }
    // It is bounded as its type is.
    let text = fs::read_to_string(web.names.dir.join("guest.json")).expect("notes");
    assert!(text.contains("\"memory_bytes\":1073741824"), "{text}");
}

#[test]
fn a_guest_keeps_what_it_is_over_stop_start_and_reboot() {
    let Some(host) = host() else { return };
    let (_daemon, launcher) = launch(&host);
    let id = run_one(&host, &with_user_data(COUNTS));
    until(&host, id, "running");
    let web = guest(&host, id);
    web.await_console(&host, "user data ended well", 1);
    let running = |launcher: &Launcher| match launcher.state(&web) {
        State::Running(running) => running,
        other => panic!("{other:?}"),
    };
    let first = running(&launcher);
    act(&host, "StopInstances", id);
    let stopped = until(&host, id, "stopped");
    assert_eq!(launcher.state(&web), State::Stopped);
    assert_eq!(
        stopped.element("privateIpAddress"),
        Some(&*web.spec.ipv4.to_string())
    );
    act(&host, "StartInstances", id);
    until(&host, id, "running");
    let second = running(&launcher);
    assert_ne!(first.pid, second.pid);
    assert_eq!(first.port, second.port);
    act(&host, "RebootInstances", id);
    assert_eq!(state(&host, id), "running");
    let third = eventually("it is rebooted", WITHIN, || match launcher.state(&web) {
        State::Running(running) if running.pid != second.pid => Some(running),
        _ => None,
    });
    assert_eq!(third.port, first.port);
    // By the command it is the same.
    let pid = third.pid;
    for (verb, wanted) in [
        ("stop", "stopped"),
        ("stop", "stopped"),
        ("start", "running"),
        ("start", "running"),
    ] {
        let output = host.command(&format!("instance {verb} {id}"));
        assert!(output.status.success(), "{verb}: {output:?}");
        until(&host, id, wanted);
    }
    assert_ne!(running(&launcher).pid, pid);
    let output = host.command(&format!("instance reboot {id}"));
    assert!(output.status.success(), "{output:?}");
    let web = guest(&host, id);
    eventually("its guest answers", WITHIN, || {
        let output = web.exec(&host, &["cat", "/root/runs"]);
        (output.stdout == b"run\n").then_some(())
    });
    assert_eq!(told(&host, &web, INSTANCE_ID), id.as_str());
    assert_eq!(web.sh(&host, "hostname"), web.spec.hostname);
}

#[test]
fn a_terminated_instance_leaves_nothing_of_its_guest() {
    let Some(host) = host() else { return };
    let (_daemon, launcher) = launch(&host);
    let one = run_one(&host, "");
    let other = run_one(&host, "");
    // It is not waited for: what is under way is ended too.
    act(&host, "TerminateInstances", other);
    until(&host, one, "running");
    let guests = [guest(&host, one), guest(&host, other)];
    assert!(!traces(&host, &guests[0]).is_empty());
    act(&host, "StopInstances", one);
    act(&host, "TerminateInstances", one);
    for guest in &guests {
        until(&host, guest.id(), "terminated");
    }
    for guest in &guests {
        assert_eq!(traces(&host, guest), BTreeSet::new());
        assert_eq!(launcher.state(guest), State::Absent);
    }
    assert_eq!(
        reason(&host, one).as_deref(),
        Some("Client.UserInitiatedShutdown")
    );
    assert_eq!(host.status()["ports"].as_array().map(Vec::len), Some(0));
}

#[test]
fn a_guest_that_shuts_itself_down_is_stopped_or_gone_as_was_ordered() {
    let Some(host) = host() else { return };
    let (_daemon, _launcher) = launch(&host);
    let stops = run_one(&host, "");
    let goes = run_one(&host, "&InstanceInitiatedShutdownBehavior=terminate");
    for (id, ends) in [(stops, "stopped"), (goes, "terminated")] {
        until(&host, id, "running");
        let web = guest(&host, id);
        // Its own process 1, told as `shutdown` would.
        let output = web.exec(&host, &["kill", "-TERM", "1"]);
        assert!(output.status.code().is_some(), "{output:?}");
        until(&host, id, ends);
        assert_eq!(
            reason(&host, id).as_deref(),
            Some("Client.InstanceInitiatedShutdown")
        );
        let is_gone = traces(&host, &web).is_empty();
        assert_eq!(is_gone, ends == "terminated");
    }
    act(&host, "StartInstances", stops);
    until(&host, stops, "running");
    assert_eq!(reason(&host, stops), None);
    assert_eq!(
        told(&host, &guest(&host, stops), INSTANCE_ID),
        stops.as_str()
    );
}

#[test]
fn options_that_are_modified_are_those_of_the_guests_next_request() {
    let Some(host) = host() else { return };
    let (_daemon, _launcher) = launch(&host);
    let id = run_one(&host, "");
    until(&host, id, "running");
    let web = guest(&host, id);
    let status = "curl -sS -o /dev/null -w %{http_code} http://169.254.169.254/latest/meta-data/";
    assert_eq!(web.sh(&host, status), "200");
    call(
        &host,
        &format!("Action=ModifyInstanceMetadataOptions&InstanceId={id}&HttpTokens=required"),
    );
    eventually("it is applied", WITHIN, || {
        describe(&host, id)
            .body
            .contains("<state>applied</state>")
            .then_some(())
    });
    assert_eq!(web.sh(&host, status), "401");
}

/// The daemon is killed when the call is answered: before or while the guest is launched, or ended.
#[test]
fn a_daemon_that_is_killed_leaves_what_the_next_one_carries_out() {
    let Some(host) = host() else { return };
    let (mut daemon, launcher) = launch(&host);
    let id = run_one(&host, &with_user_data(COUNTS));
    daemon.crash();
    let mut daemon = host.start();
    until(&host, id, "running");
    let web = guest(&host, id);
    web.await_console(&host, "user data ended well", 1);
    assert_eq!(told(&host, &web, INSTANCE_ID), id.as_str());
    // What was lost is done once: the same guest runs.
    let State::Running(Running { pid, .. }) = launcher.state(&web) else {
        panic!("it runs")
    };
    daemon.crash();
    let mut daemon = host.start();
    thread::sleep(Duration::from_secs(2));
    assert_eq!(state(&host, id), "running");
    assert!(matches!(launcher.state(&web), State::Running(running) if running.pid == pid));

    act(&host, "StopInstances", id);
    daemon.crash();
    let mut daemon = host.start();
    until(&host, id, "stopped");
    assert_eq!(launcher.state(&web), State::Stopped);
    act(&host, "TerminateInstances", id);
    daemon.crash();
    let _daemon = host.start();
    until(&host, id, "terminated");
    assert_eq!(traces(&host, &web), BTreeSet::new());
}

/// Daemon and launcher, each alone and both, killed at several moments of a launch and of an end.
#[test]
fn whoever_is_killed_at_whatever_moment_what_was_ordered_is_done_and_nothing_else_is_left() {
    let Some(host) = host() else { return };
    let (daemon, launcher) = launch(&host);
    let (mut daemon, mut launcher) = (Some(daemon), Some(launcher));
    let mut kill = |after: u64, whom: usize| {
        // The moment is what is tried, so nothing can be waited for.
        thread::sleep(Duration::from_millis(after));
        if whom != 1 {
            daemon.take().expect("it runs").crash();
        }
        if whom != 0 {
            launcher.take().expect("it runs").crash();
            launcher = Some(Launcher::start(&host));
        }
        if whom != 1 {
            daemon = Some(host.start());
        }
    };
    for (whom, after) in [5, 15, 30, 45, 60, 75].into_iter().enumerate() {
        let id = run_one(&host, &with_user_data(COUNTS));
        kill(after, whom % 3);
        until(&host, id, "running");
        let web = guest(&host, id);
        web.await_console(&host, "user data ended well", 1);
        assert_eq!(web.sh(&host, "cat /root/runs"), "run");
        assert_eq!(told(&host, &web, INSTANCE_ID), id.as_str());
        act(&host, "RebootInstances", id);
        kill(after, whom % 3);
        eventually("its guest answers", WITHIN, || {
            let output = web.exec(&host, &["cat", "/root/runs"]);
            (output.stdout == b"run\n").then_some(())
        });
        assert_eq!(state(&host, id), "running");
        act(&host, "TerminateInstances", id);
        kill(after, whom % 3);
        until(&host, id, "terminated");
        assert_eq!(traces(&host, &web), BTreeSet::new());
    }
}

#[test]
fn while_the_launcher_is_away_instances_wait_for_it() {
    let Some(host) = host() else { return };
    let (daemon, launcher) = launch(&host);
    let before = run_one(&host, "");
    until(&host, before, "running");
    launcher.crash();
    let ids = run(&host, 2, "");
    act(&host, "StopInstances", before);
    thread::sleep(Duration::from_secs(2));
    assert_eq!(state(&host, ids[0]), "pending");
    assert_eq!(state(&host, before), "stopping");
    let log = daemon.log();
    assert_eq!(log.matches("instances wait for it").count(), 1, "{log}");
    let launcher = Launcher::start(&host);
    for id in &ids {
        until(&host, *id, "running");
        assert_eq!(told(&host, &guest(&host, *id), INSTANCE_ID), id.as_str());
    }
    until(&host, before, "stopped");
    assert!(daemon.log().contains("the launcher is there again"));
    // Killed while it launches: its successor does it.
    let id = run_one(&host, "");
    launcher.crash();
    let _launcher = Launcher::start(&host);
    until(&host, id, "running");
    assert_eq!(told(&host, &guest(&host, id), INSTANCE_ID), id.as_str());
}

#[test]
fn a_guest_that_is_gone_without_its_doing_is_not_taken_for_terminated() {
    let Some(host) = host() else { return };
    let (_daemon, launcher) = launch(&host);
    let id = run_one(&host, "&InstanceInitiatedShutdownBehavior=terminate");
    until(&host, id, "running");
    launcher.done(&Order::Terminate { id });
    until(&host, id, "stopped");
    assert_eq!(reason(&host, id).as_deref(), Some("Server.InternalError"));
    // It comes back, without its files.
    act(&host, "StartInstances", id);
    until(&host, id, "running");
    assert_eq!(told(&host, &guest(&host, id), INSTANCE_ID), id.as_str());
}

#[test]
fn taking_imds_down_ends_guests_and_leaves_their_instances_stopped() {
    let Some(host) = host() else { return };
    let (daemon, launcher) = launch(&host);
    let id = run_one(&host, "&InstanceInitiatedShutdownBehavior=terminate");
    until(&host, id, "running");
    let web = guest(&host, id);
    daemon.stop();
    drop(launcher);
    host.take_down();
    assert_eq!(traces(&host, &web), BTreeSet::new());
    let (_daemon, _launcher) = launch(&host);
    until(&host, id, "stopped");
}

/// AWS's own client, and its waiters.
#[test]
fn boto3_runs_waits_stops_and_terminates() {
    const SCRIPT: &str = r##"
import boto3, sys
ec2 = boto3.client("ec2")
patient = {"Delay": 1, "MaxAttempts": 60}
image = ec2.describe_images(Filters=[{"Name": "name", "Values": ["imds-guest"]}])["Images"][0]
made = ec2.run_instances(ImageId=image["ImageId"], MinCount=1, MaxCount=1, InstanceType="t3.micro",
                         UserData="#!/bin/sh\necho ran\n")["Instances"][0]
ids = [made["InstanceId"]]
assert made["State"]["Name"] == "pending"
print(ids[0], flush=True)
ec2.get_waiter("instance_running").wait(InstanceIds=ids, WaiterConfig=patient)
ec2.get_waiter("instance_status_ok").wait(InstanceIds=ids, WaiterConfig=patient)
ec2.stop_instances(InstanceIds=ids)
ec2.get_waiter("instance_stopped").wait(InstanceIds=ids, WaiterConfig=patient)
ec2.start_instances(InstanceIds=ids)
ec2.get_waiter("instance_running").wait(InstanceIds=ids, WaiterConfig=patient)
sys.stdin.readline()
ec2.terminate_instances(InstanceIds=ids)
ec2.get_waiter("instance_terminated").wait(InstanceIds=ids, WaiterConfig=patient)
"##;
    let python = std::env::var("IMDS_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let import = imds_tests::run(&[&python, "-c", "import boto3"]);
    if !import.status.success() {
        skip(&format!("{python} has no boto3"));
        return;
    }
    if !has_command("curl") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    host.run_option("--api").run_option("127.0.0.1:4566");
    let (_daemon, _launcher) = launch(&host);
    let variables = host.command("aws-env --json");
    let variables: serde_json::Value = serde_json::from_slice(&variables.stdout).expect("JSON");
    let variables = variables.as_object().expect("an object").iter();
    let mut command = Command::new(python);
    command
        .args(["-c", SCRIPT])
        .envs(variables.map(|(name, value)| (name, value.as_str().expect("a text"))))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut client = host.namespace().enter(|| command.spawn()).expect("Python");
    let mut said = BufReader::new(client.stdout.take().expect("a pipe"));
    let mut line = String::new();
    said.read_line(&mut line).expect("it says the id");
    if let Ok(id) = line.trim().parse() {
        // Stopped and started: by then it runs again.
        until(&host, id, "stopped");
        until(&host, id, "running");
        let web = guest(&host, id);
        web.await_console(&host, "ran\n", 1);
        assert_eq!(told(&host, &web, INSTANCE_ID), id.as_str());
    }
    let mut stdin = client.stdin.take().expect("a pipe");
    writeln!(stdin).ok();
    let output = client.wait_with_output().expect("it is waited for");
    assert!(output.status.success(), "{output:?}");
}

/// Terraform's instance is a guest, which sees what Terraform changes of it.
#[test]
fn terraform_makes_hardens_and_removes_a_guest() {
    if !has_command("curl") || !has_command("terraform") {
        return;
    }
    let mirror = "find / -xdev -path '*/hashicorp/aws' -type d 2>/dev/null | head -n 1";
    let mirror = imds_tests::run(&["sh", "-c", mirror]);
    let mirror = String::from_utf8_lossy(&mirror.stdout).into_owned();
    let Some(mirror) = Path::new(mirror.trim()).ancestors().nth(3) else {
        skip("a mirror of Terraform's AWS provider is not installed");
        return;
    };
    let Some(mut host) = Host::new() else { return };
    host.run_option("--api").run_option("127.0.0.1:4566");
    let (_daemon, _launcher) = launch(&host);
    let directory = host.dir().join("terraform");
    fs::create_dir(&directory).expect("a folder");
    let write = |name: &str, text: &str| {
        fs::write(directory.join(name), text).expect("the folder takes a file");
    };
    write(
        "settings.tfrc",
        &format!(
            "disable_checkpoint = true\nprovider_installation {{\n  filesystem_mirror {{\n    path = \"{}\"\n    \
             include = [\"*/*/*\"]\n  }}\n}}\n",
            mirror.display()
        ),
    );
    let image = image(&host, "imds-guest").expect("an image");
    let want = |tokens: &str| {
        for (name, text) in [
            ("main.tf", include_str!("../fixtures/control-api/main.tf")),
            (
                "instance.tf",
                include_str!("../fixtures/control-api/instance.tf"),
            ),
        ] {
            let text = text
                .replace("ENDPOINT", "http://127.0.0.1:4566")
                .replace("us-east-1", "eu-central-1")
                .replace("SKIPS", "")
                .replace("IMAGE", &image)
                .replace("TOKENS", tokens)
                .replace("STAGE", "test");
            write(name, &text);
        }
    };
    let variables = host.command("aws-env --json");
    let variables: serde_json::Value = serde_json::from_slice(&variables.stdout).expect("JSON");
    let run = |args: &[&str]| {
        let variables = variables.as_object().expect("an object").iter();
        let mut command = Command::new("timeout");
        command
            .args(["120", "terraform"])
            .args(args)
            .args(["-input=false", "-no-color"])
            .envs(variables.map(|(name, value)| (name, value.as_str().expect("a text"))))
            .env("TF_CLI_CONFIG_FILE", directory.join("settings.tfrc"))
            .env("CHECKPOINT_DISABLE", "1")
            .current_dir(&directory);
        let output = host.namespace().enter(|| command.output());
        let output = output.expect("Terraform can be started");
        assert!(output.status.success(), "{args:?}: {output:?}");
    };
    want("optional");
    run(&["init"]);
    run(&["apply", "-auto-approve"]);
    let running =
        "Action=DescribeInstances&Filter.1.Name=instance-state-name&Filter.1.Value.1=running";
    let ids = all(&call(&host, running), "instanceId");
    let id: InstanceId = ids[0].parse().expect("an id");
    let web = guest(&host, id);
    let status = "curl -sS -o /dev/null -w %{http_code} http://169.254.169.254/latest/meta-data/";
    assert_eq!(web.sh(&host, status), "200");
    want("required");
    run(&["apply", "-auto-approve"]);
    assert_eq!(web.sh(&host, status), "401");
    run(&["plan", "-detailed-exitcode"]);
    run(&["destroy", "-auto-approve"]);
    assert_eq!(state(&host, id), "terminated");
    assert_eq!(traces(&host, &web), BTreeSet::new());
}

#[test]
fn a_launch_that_fails_is_taken_back_and_the_log_says_why() {
    let Some(host) = host() else { return };
    // The subnet is the host's own already.
    host.namespace()
        .ip("link add lan0 type bridge\nlink set lan0 up\naddress add 172.31.20.1/20 dev lan0");
    let (daemon, launcher) = launch(&host);
    let id = run_one(&host, "");
    let web = guest(&host, id);
    let shown = until(&host, id, "terminated");
    assert_eq!(reason(&host, id).as_deref(), Some("Server.InternalError"));
    assert!(shown.body.contains("Internal error on launch"), "{shown:?}");
    assert!(
        !shown.body.contains("172.31.16.0/20"),
        "that is for the log: {shown:?}"
    );
    assert!(daemon.log().contains("172.31.16.0/20"), "{}", daemon.log());
    assert_eq!(traces(&host, &web), BTreeSet::new());
    assert_eq!(launcher.state(&web), State::Absent);
}

/// What ran before is stopped again, with its files.
#[test]
fn a_start_that_fails_leaves_an_instance_stopped() {
    let Some(host) = host() else { return };
    let (_daemon, _launcher) = launch(&host);
    let id = run_one(&host, "");
    until(&host, id, "running");
    drop(guest(&host, id).sh(&host, "echo kept >/root/kept"));
    act(&host, "StopInstances", id);
    until(&host, id, "stopped");
    host.namespace()
        .ip("link add lan0 type bridge\nlink set lan0 up\naddress add 172.31.20.1/20 dev lan0");
    act(&host, "StartInstances", id);
    eventually("the start fails", WITHIN, || {
        (reason(&host, id).as_deref() == Some("Server.InternalError")).then_some(())
    });
    until(&host, id, "stopped");
    host.namespace().ip("link delete lan0");
    act(&host, "StartInstances", id);
    until(&host, id, "running");
    assert_eq!(guest(&host, id).sh(&host, "cat /root/kept"), "kept");
}

#[test]
fn many_are_launched_at_once() {
    const N: usize = 10;
    let Some(host) = host() else { return };
    let (_daemon, launcher) = launch(&host);
    let begun = Instant::now();
    let ids = run(&host, N, "");
    assert_eq!(ids.len(), N);
    for id in &ids {
        until(&host, *id, "running");
    }
    println!("{N} instances run after {:?}", begun.elapsed());
    let guests: Vec<_> = ids.iter().map(|id| guest(&host, *id)).collect();
    for guest in &guests {
        assert_eq!(told(&host, guest, INSTANCE_ID), guest.id().as_str());
    }
    let named = ids.iter().enumerate();
    let named: String = named
        .map(|(index, id)| format!("&InstanceId.{}={id}", index + 1))
        .collect();
    let begun = Instant::now();
    call(&host, &format!("Action=TerminateInstances{named}"));
    for guest in &guests {
        until(&host, guest.id(), "terminated");
    }
    for guest in &guests {
        assert_eq!(traces(&host, guest), BTreeSet::new());
    }
    println!("and are gone after {:?}", begun.elapsed());
    assert_eq!(launcher.order(&Order::List {}), Answer::Guests(Vec::new()));
}

/// A guest that somebody else runs: the launch names its port, and launches nothing.
#[test]
fn a_launch_that_names_a_port_is_the_instance_of_the_guest_there() {
    let Some(mut host) = host() else { return };
    let web = host.guest("web").routed("10.0.0.10").unregistered().up();
    let port = web.port().to_owned();
    host.tables(&format!("[discovery]\nports = [\"{port}\"]"));
    let (_daemon, launcher) = launch(&host);
    let tag = |port: &str| {
        format!(
            "&TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=imds:port\
             &TagSpecification.1.Tag.1.Value={port}"
        )
    };
    let id = run_one(&host, &tag(&port));
    until(&host, id, "running");
    let told = || {
        let url = format!("http://169.254.169.254{INSTANCE_ID}");
        let output = web.run(&["curl", "-sS", "-m", "2", &url]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    eventually("it is served", WITHIN, || {
        (told() == id.as_str()).then_some(())
    });
    assert_eq!(launcher.order(&Order::List {}), Answer::Guests(Vec::new()));
    let image = image(&host, "imds-guest").expect("an image");
    for (tag, says) in [
        (tag(&port), "It is the port of i-"),
        (tag("a/b"), "InvalidParameterValue"),
    ] {
        let form = format!("Action=RunInstances&ImageId={image}&MinCount=1&MaxCount=1{tag}");
        let said = ask(&host, &form);
        assert!(said.status == 400 && said.body.contains(says), "{said:?}");
    }
    act(&host, "TerminateInstances", id);
    until(&host, id, "terminated");
    assert_eq!(told(), "");
}

#[test]
fn without_a_launcher_an_instance_is_a_record_that_says_so_or_is_refused() {
    let Some(mut host) = host() else { return };
    let daemon = host.start();
    let id = run_one(&host, "");
    until(&host, id, "running");
    assert_eq!(reason(&host, id).as_deref(), Some("imds.NoGuest"));
    eventually("the log says so", WITHIN, || {
        daemon
            .log()
            .contains("records without a guest")
            .then_some(())
    });
    act(&host, "TerminateInstances", id);
    until(&host, id, "terminated");
    daemon.stop();
    host.run_option("--launcher").run_option("required");
    let _daemon = host.start();
    let image = image(&host, "imds-guest").expect("an image");
    let form = format!("Action=RunInstances&ImageId={image}&MinCount=1&MaxCount=1");
    let said = ask(&host, &form);
    assert_eq!(said.status, 400);
    assert_eq!(said.element("Code"), Some("InsufficientInstanceCapacity"));
    assert!(said.body.contains("imds launcher"), "{said:?}");
    // One that comes is found without a restart.
    let _launcher = Launcher::start(&host);
    let id = run_one(&host, "");
    until(&host, id, "running");
    assert_eq!(reason(&host, id), None);
}

#[test]
fn a_local_image_of_docker_can_be_run() {
    const ASK: &str = "printf 'GET /latest/meta-data/instance-id HTTP/1.1\\r\\nHost: 169.254.169.254\\r\\n\\r\\n' \
                       | busybox nc -w 2 169.254.169.254 80";
    let Some(mut host) = host() else { return };
    let Some(docker) = Docker::start(&host) else {
        return;
    };
    let rests = docker.import_with("rests", &["CMD [\"/bin/busybox\", \"sleep\", \"600\"]"]);
    assert!(rests.status.success(), "{rests:?}");
    host.live_with(docker.jail());
    fs::create_dir_all(host.state_dir()).expect("a folder");
    let socket = docker.socket();
    let socket = socket.to_str().expect("text");
    let launcher = Launcher::start_with(&host, &["--docker-socket", socket]);
    let daemon = host.start();
    let rests = image(&host, "rests:latest").expect("it is listed");
    let form = format!("Action=RunInstances&ImageId={rests}&MinCount=1&MaxCount=1");
    let reply = call(&host, &form);
    let id = reply.element("instanceId").expect("an id");
    let id: InstanceId = id.parse().expect("an id");
    until(&host, id, "running");
    let web = guest(&host, id);
    let name = web.names.netns.clone();
    let output = docker.docker(&["exec", &name, "/bin/busybox", "sh", "-c", ASK]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.ends_with(id.as_str()), "{said}");
    act(&host, "StopInstances", id);
    until(&host, id, "stopped");
    act(&host, "StartInstances", id);
    until(&host, id, "running");
    act(&host, "TerminateInstances", id);
    until(&host, id, "terminated");
    assert_eq!(docker.told("ps --all --quiet"), "");
    assert_eq!(traces(&host, &web), BTreeSet::new());
    drop(launcher);
    drop(daemon);
}
