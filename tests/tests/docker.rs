//! Containers of Docker are guests by their labels, and by nothing that they or their images bring.

use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

use imds_tests::{Docker, Host, InstanceText, eventually};
use serde_json::Value;

/// Bound on what the daemon does after an event of Docker's.
const SOON: Duration = Duration::from_secs(10);

/// What a container asks: busybox' nc, since its wget has no names to look up and crashes without.
const ASK: &str = "printf 'GET /latest/meta-data/PATH HTTP/1.1\\r\\nHost: 169.254.169.254\\r\\n\\r\\n' | busybox nc -w 2 169.254.169.254 80";

/// A host with Docker on it and a daemon that looks at its containers. `keys` are of `[discovery]`.
struct Scene {
    // In the order in which they have to end.
    daemon: imds_tests::Daemon,
    docker: Docker,
    host: Host,
}

impl Scene {
    fn new(keys: &str) -> Option<Self> {
        let mut host = Host::new()?;
        let docker = Docker::start(&host)?;
        let socket = docker.socket();
        host.live_with(docker.jail());
        host.tables(&format!(
            "[discovery]\ndocker-socket = {socket:?}\n{keys}\n"
        ));
        let daemon = host.start();
        Some(Self {
            daemon,
            docker,
            host,
        })
    }

    /// Starts a container that does nothing.
    fn run(&self, name: &str, options: &str) {
        let line = format!("run --detach --name {name} {options}");
        let line = format!("{} busybox /bin/busybox sleep 600", line.trim_end());
        drop(self.docker.told(&line));
    }

    /// What a container is told at a path below `/latest/meta-data/`, if anything.
    fn ask(&self, container: &str, path: &str) -> Option<String> {
        let script = ASK.replace("PATH", path);
        let output = self
            .docker
            .docker(&["exec", container, "/bin/busybox", "sh", "-c", &script]);
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n")?;
        assert!(head.starts_with("HTTP/1."), "{answer}");
        let status = head.split(' ').nth(1).expect("a status");
        Some(match status {
            "200" => body.to_owned(),
            other => other.to_owned(),
        })
    }

    fn told(&self, container: &str, path: &str) -> String {
        eventually(&format!("an answer for {container}"), SOON, || {
            self.ask(container, path)
        })
    }

    fn check_silence(&self, container: &str) {
        assert_eq!(self.ask(container, "instance-id"), None, "{container}");
    }

    /// Waits until a closed interface is listed with these words; the interface.
    fn closed(&self, words: &str) -> String {
        eventually(&format!("closed: {words}"), SOON, || {
            let status = self.host.status();
            let closed = status["discovery"]["closed"].as_array()?;
            let is_it = |row: &&Value| row["why"].as_str().is_some_and(|why| why.contains(words));
            let row = closed.iter().find(is_it)?;
            Some(row["port"].as_str()?.to_owned())
        })
    }

    fn docker_status(&self) -> Value {
        self.host.status()["discovery"]["sources"][0].clone()
    }

    fn ports(&self) -> Vec<Value> {
        self.host.status()["ports"]
            .as_array()
            .expect("a list")
            .clone()
    }
}

#[test]
fn a_container_is_what_its_labels_say() {
    let Some(scene) = Scene::new("ports = [\"veth*\"]") else {
        return;
    };
    let begin = Instant::now();
    scene.run(
        "web",
        "--label imds.instance-type=m5.large --label imds.tags.Stage=test --label imds.instance-metadata-tags=enabled",
    );
    let started = begin.elapsed();
    let kind = scene.told("web", "instance-type");
    let known = begin.elapsed();
    assert_eq!(kind, "m5.large");
    assert_eq!(scene.told("web", "tags/instance/Stage"), "test");
    println!("docker: a container ran after {started:?} and was answered after {known:?}");
    scene.run("db", "--label imds.http-tokens=required");
    assert_eq!(scene.told("db", "instance-id"), "401");
    // Nobody knows this one.
    scene.run("nobody", "");
    let port = scene.closed("not known");
    scene.check_silence("nobody");
    // They go by their names where commands ask for one.
    let shown = scene.host.command("instance show web");
    assert!(shown.status.success(), "{shown:?}");
    let output = scene.host.command("forget web");
    assert_eq!(output.status.code(), Some(64), "{output:?}");

    // A container that is started again is the same instance, one that is made anew is another.
    let id = scene.told("web", "instance-id");
    drop(scene.docker.told("restart --time 0 web"));
    assert_eq!(scene.told("web", "instance-id"), id);
    drop(scene.docker.told("rm --force web"));
    scene.run("web", "--label imds.instance-type=m5.large");
    assert_ne!(scene.told("web", "instance-id"), id);

    // What is gone is gone.
    drop(scene.docker.told("rm --force db web nobody"));
    eventually("nothing is left", SOON, || {
        let closed = scene.host.status()["discovery"]["closed"].clone();
        (scene.ports().is_empty() && closed == Value::Array(vec![])).then_some(())
    });
    assert!(!scene.host.namespace().link_names().contains(&port));
}

#[test]
fn a_container_with_wrong_labels_stays_closed_and_the_reason_is_told() {
    let Some(mut scene) = Scene::new("") else {
        return;
    };
    let taken = InstanceText::new("taken", "no-such-port", "i-0123456789abcdef0");
    scene.host.add_instance(taken);
    scene.host.write_config();
    scene.daemon.reload();
    for (name, label, words) in [
        (
            "wrong-a",
            "imds.http-tokens=mandatory",
            "imds.http-tokens: `mandatory` is unknown",
        ),
        (
            "wrong-b",
            "imds.instance-typ=x",
            "did you mean `instance-type`",
        ),
        (
            "wrong-c",
            "imds.user-data-file=/etc/shadow",
            "imds.user-data-file: unknown key",
        ),
        (
            "wrong-d",
            "imds.id=i-0123456789abcdef0",
            "that of instance taken",
        ),
        ("wrong-e", "imds.name=taken", "the name `taken`"),
    ] {
        scene.run(name, &format!("--label {label}"));
        scene.closed(&format!("container {name}: "));
        scene.closed(words);
        scene.check_silence(name);
    }
    // No pattern says so: these are closed for what they claim to be.
    assert!(scene.daemon.log().contains("closed"));
    let n_closed = || {
        scene.host.status()["discovery"]["closed"]
            .as_array()
            .map(Vec::len)
    };
    assert_eq!(n_closed(), Some(5));
    drop(
        scene
            .docker
            .told("rm --force wrong-a wrong-b wrong-c wrong-d wrong-e"),
    );
    eventually("nothing is closed", SOON, || {
        (n_closed() == Some(0)).then_some(())
    });
}

#[test]
fn the_commands_of_the_document_do_what_it_says() {
    let Some(scene) = Scene::new("ports = [\"veth*\"]") else {
        return;
    };
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/discovery.md");
    let document = std::fs::read_to_string(document).expect("the document is there");
    let (_, block) = document.split_once("```sh docker\n").expect("a block");
    let mut lines = block.lines();
    let docker = lines.next().expect("a line").strip_prefix("docker ");
    drop(scene.docker.told(docker.expect("it starts a container")));
    assert_eq!(scene.told("web", "instance-id"), "401");
    let imds = lines.next().expect("a line").strip_prefix("imds ");
    let shown = scene.host.command(imds.expect("it shows it"));
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(text.contains("m5.large"), "{text}");
}

/// Docker tells of a container when its process runs already, so the first packets may find the port still closed.
#[test]
fn a_container_that_asks_at_once_is_answered() {
    const CONTAINERS: usize = 5;
    let Some(scene) = Scene::new("ports = [\"veth*\"]") else {
        return;
    };
    let ask = ASK.replace("PATH", "instance-type").replace("-w 2", "-w 5");
    let run = |script: &str| {
        let begin = Instant::now();
        let label = "imds.instance-type=m5.large";
        let output = scene.docker.docker(&[
            "run",
            "--rm",
            "--label",
            label,
            "busybox",
            "/bin/busybox",
            "sh",
            "-c",
            script,
        ]);
        (output, begin.elapsed())
    };
    let mut longest = Duration::ZERO;
    let (_, idle) = run("true");
    for _ in 0..CONTAINERS {
        let (output, took) = run(&ask);
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(answer.ends_with("m5.large"), "{output:?}");
        longest = longest.max(took);
    }
    println!(
        "docker: a container that does nothing takes {idle:?}, the slowest of {CONTAINERS} that ask at once {longest:?}"
    );
}

/// Anybody can make an image.
#[test]
fn labels_of_an_image_make_no_guest() {
    let Some(scene) = Scene::new("") else {
        return;
    };
    let imported = scene.docker.import("busybox", &["imds.role=admin"]);
    assert!(imported.status.success(), "{imported:?}");
    scene.run("thief", "");
    scene.closed("container thief: its imds.* labels come from its image");
    scene.check_silence("thief");
    scene.run("web", "--label imds.instance-type=m5.large");
    assert_eq!(scene.told("web", "instance-type"), "m5.large");
    assert_eq!(scene.told("web", "iam/security-credentials/"), "404");
}

/// Docker repeats some of what callers and images say without looking at it, so none of it may matter to others.
#[test]
fn a_container_that_docker_describes_oddly_troubles_no_other() {
    let Some(scene) = Scene::new("ports = [\"veth*\"]") else {
        return;
    };
    // A port of a protocol that Docker's description of its API does not know, in the list of all containers. An image's
    // configuration may ask for it as well as this option does.
    scene.run("odd", "--expose 80/icmp");
    let ports = scene.docker.told("ps --format {{.Ports}}");
    assert!(ports.contains("icmp"), "{ports}");
    // In what is said of a labelled one, a number that a signed one has no room for.
    let rate = u64::MAX;
    drop(scene.docker.told(&format!(
        "create --name huge --device-read-iops /dev/null:{rate} --label imds.instance-type=t3.nano busybox /bin/busybox true",
    )));
    scene.run("web", "--label imds.instance-type=m5.large");
    assert_eq!(scene.told("web", "instance-type"), "m5.large");
    assert_eq!(scene.docker_status()["trouble"], Value::Null);
    assert_eq!(scene.ports().len(), 1);
}

#[test]
fn a_container_has_one_port_and_shares_its_identity_with_none_but_its_own_network() {
    let Some(scene) = Scene::new("ports = [\"veth*\"]") else {
        return;
    };
    drop(scene.docker.told("network create other"));
    // On two networks it is served on the one that its default route leaves by.
    drop(scene.docker.told(
        "create --name web --network other --label imds.instance-type=m5.large busybox /bin/busybox sleep 600",
    ));
    drop(scene.docker.told("network connect bridge web"));
    drop(scene.docker.told("start web"));
    assert_eq!(scene.told("web", "instance-type"), "m5.large");
    scene.closed("container web: it is served on another of its interfaces");
    let id = scene.told("web", "instance-id");
    // A container in its network is in its instance.
    scene.run("sidecar", "--network container:web");
    assert_eq!(scene.told("sidecar", "instance-id"), id);
    // Labels of its own make it no other.
    scene.run(
        "claimant",
        "--network container:web --label imds.instance-type=t3.nano",
    );
    assert_eq!(scene.told("claimant", "instance-type"), "m5.large");
    let refused = |words: &str| {
        eventually(words, SOON, || {
            let refused = scene.docker_status()["refused"].to_string();
            refused.contains(words).then_some(())
        });
    };
    refused("container claimant: it has another container's network");
    // On the host's network it is no guest.
    scene.run("host", "--network host --label imds.instance-type=t3.nano");
    refused("container host: it has the host's own network");
    assert_eq!(scene.ports().len(), 1);
}

#[test]
fn a_restart_and_a_reload_go_on_with_containers() {
    let Some(mut scene) = Scene::new("") else {
        return;
    };
    scene.run("web", "--label imds.instance-type=m5.large");
    let id = scene.told("web", "instance-id");
    let slot = scene.ports()[0]["slot"].clone();
    assert!(slot.is_u64(), "{slot}");
    scene.daemon.reload();
    assert_eq!(scene.ask("web", "instance-id"), Some(id.clone()));
    scene.daemon.crash();
    scene.daemon = scene.host.start();
    // It is not even a moment unknown: its connections would live on.
    assert_eq!(scene.ask("web", "instance-id"), Some(id));
    assert_eq!(scene.ports()[0]["slot"], slot);
}

/// Docker comes up after the daemon, or not at all: what was a container's stays closed.
#[test]
fn containers_are_closed_while_docker_cannot_be_asked() {
    let Some(mut scene) = Scene::new("") else {
        return;
    };
    scene.run("web", "--label imds.instance-type=m5.large");
    let id = scene.told("web", "instance-id");
    assert_eq!(scene.docker_status()["trouble"], Value::Null);
    scene.daemon.crash();
    let socket = scene.docker.socket();
    let aside = socket.with_extension("aside");
    std::fs::rename(&socket, &aside).expect("a socket can be renamed");
    scene.daemon = scene.host.start();
    scene.closed("was a guest's");
    scene.check_silence("web");
    let trouble = scene.docker_status()["trouble"].to_string();
    assert!(trouble.contains("No such file"), "{trouble}");
    assert_eq!(scene.ports(), Vec::<Value>::new());
    std::fs::rename(&aside, &socket).expect("a socket can be renamed");
    assert_eq!(scene.told("web", "instance-id"), id);
    assert_eq!(scene.docker_status()["trouble"], Value::Null);
    let closed = scene.host.status()["discovery"]["closed"].clone();
    assert_eq!(closed, Value::Array(vec![]));
}

#[test]
fn many_containers_that_start_and_end_at_once_are_told_apart() {
    const CONTAINERS: usize = 8;
    let Some(scene) = Scene::new("ports = [\"veth*\"]") else {
        return;
    };
    let id = |number: usize| format!("i-{number:017x}");
    thread::scope(|scope| {
        for number in 0..CONTAINERS {
            let scene = &scene;
            scope.spawn(move || {
                let name = format!("c{number}");
                scene.run(&name, &format!("--label imds.id={}", id(number)));
                assert_eq!(scene.told(&name, "instance-id"), id(number));
                let gone: Output = scene.docker.docker(&["rm", "--force", &name]);
                assert!(gone.status.success(), "{gone:?}");
                // The next one has what was the last one's name and network.
                scene.run(&name, &format!("--label imds.id={}", id(number + 100)));
                assert_eq!(scene.told(&name, "instance-id"), id(number + 100));
            });
        }
    });
    assert_eq!(scene.ports().len(), CONTAINERS);
}
