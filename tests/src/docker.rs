//! A real Docker daemon on a test host, and containers that are guests.
//!
//! It runs in namespaces of its own beneath the host's network, with all that it writes in a folder of the test. Ending
//! its first process ends every other of them, containers too, and what they had mounted.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::host::Host;
use crate::jail::Jail;
use crate::process::{children_of, run};
use crate::skip::{has_command, skip};

/// It is up within a second on an idle machine.
const READY_WITHIN: Duration = Duration::from_secs(40);
/// No test takes longer, and nothing of it stays longer, however the test ends.
const LIFE_SECONDS: &str = "240";
/// The only program of the image.
const BUSYBOX: &str = "busybox";

/// What runs as the first process of its namespaces. The folder of the daemon is `$1`.
const SCRIPT: &str = r#"
set -e
mount -t tmpfs none /run
mkdir -p /run/lock /run/netns "$1/etc" "$1/work"
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$1/etc,workdir=$1/work" /etc
exec dockerd --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/pid" --host "unix://$1/sock" \
    --cgroup-parent "$2" --log-level warn >>"$1/log" 2>&1
"#;

/// A Docker daemon. Dropping it ends it and everything that it started.
pub struct Docker {
    /// What started the namespaces, and ends when they do.
    child: Child,
    dir: TempDir,
    tools: PathBuf,
    cgroup: String,
}

impl Docker {
    /// Starts one on a host, with an image `busybox` in it; none, and a skip, where the machine has no Docker to start or
    /// does not let it.
    ///
    /// `IMDS_TEST_DOCKER_DIR` names a folder with the files of Debian's packages of Docker.
    ///
    /// # Panics
    /// When a temporary folder cannot be made.
    #[must_use]
    pub fn start(host: &Host) -> Option<Self> {
        let Some(tools) = std::env::var_os("IMDS_TEST_DOCKER_DIR").map(PathBuf::from) else {
            skip("IMDS_TEST_DOCKER_DIR names no Docker to start");
            return None;
        };
        let commands = ["unshare", "timeout", "iptables", "tar", BUSYBOX];
        if !commands.into_iter().all(has_command) {
            return None;
        }
        // Short, because the path of a socket is.
        let dir = tempfile::Builder::new()
            .prefix("imds-d-")
            .tempdir()
            .expect("a temporary directory");
        let name = dir.path().file_name().expect("it has a name");
        let cgroup = name.to_str().expect("it is text").to_owned();
        let child = host
            .namespace()
            .enter(|| spawn(&tools, dir.path(), &cgroup));
        let mut docker = Self {
            child,
            dir,
            tools,
            cgroup,
        };
        if let Err(why) = docker.become_ready() {
            skip(&format!("dockerd does not run here: {why}"));
            return None;
        }
        Some(docker)
    }

    fn become_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + READY_WITHIN;
        while !self.docker(&["version"]).status.success() {
            let ended = self.child.try_wait().expect("a child can be waited for");
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                return Err(lines[lines.len().saturating_sub(3)..].join(" | "));
            }
            thread::sleep(Duration::from_millis(50));
        }
        let imported = self.import("busybox", &[]);
        if !imported.status.success() {
            return Err(format!("{imported:?}"));
        }
        Ok(())
    }

    /// Makes an image of this name with busybox in it, and these labels.
    #[must_use]
    pub fn import(&self, name: &str, labels: &[&str]) -> Output {
        let labels: Vec<String> = labels
            .iter()
            .map(|label| format!("LABEL {label}"))
            .collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        self.import_with(name, &labels)
    }

    /// Makes an image of this name with busybox in it, and what these lines of a Dockerfile say.
    ///
    /// # Panics
    /// When it cannot be put together.
    #[must_use]
    pub fn import_with(&self, name: &str, lines: &[&str]) -> Output {
        let root = self.dir.path().join("image");
        let archive = self.dir.path().join("image.tar");
        let bin = root.join("bin");
        if !bin.exists() {
            fs::create_dir_all(&bin).expect("a folder");
            fs::copy(program(BUSYBOX), bin.join(BUSYBOX)).expect("a copy of busybox");
            for applet in ["sh", "sleep"] {
                symlink(BUSYBOX, bin.join(applet)).expect("a link");
            }
            let tar = ["tar", "-C", text(&root), "-cf", text(&archive), "."];
            assert!(run(&tar).status.success(), "tar");
        }
        let mut args = vec!["import"];
        for line in lines {
            args.extend(["--change", line]);
        }
        args.extend([text(&archive), name]);
        self.docker(&args)
    }

    /// Runs `docker` with these arguments.
    #[must_use]
    pub fn docker(&self, args: &[&str]) -> Output {
        let host = format!("unix://{}", text(&self.socket()));
        let docker = self.tools.join("usr/bin/docker");
        Command::new("timeout")
            .args(["-k", "2", "30", text(&docker), "--host", &host])
            .args(args)
            .env("DOCKER_CONFIG", self.dir.path())
            .stdin(Stdio::null())
            .output()
            .expect("timeout can be started")
    }

    /// Runs a command of `docker` that has to succeed; what it says.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn told(&self, line: &str) -> String {
        let args: Vec<&str> = line.split(' ').collect();
        let output = self.docker(&args);
        assert!(output.status.success(), "docker {line}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The folder of the command `docker`.
    #[must_use]
    pub fn commands(&self) -> PathBuf {
        self.tools.join("usr/bin")
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    /// Where it lives: what it mounts is seen only there.
    ///
    /// # Panics
    /// When it is not running any more.
    #[must_use]
    pub fn jail(&self) -> Jail {
        let first = self.first_process().expect("Docker runs");
        Jail::of(first).expect("root may look at a running process")
    }

    /// The first process of its namespaces: the child of `unshare`, which is the child of `timeout`.
    fn first_process(&self) -> Option<Pid> {
        let timeout = Pid::from_raw(i32::try_from(self.child.id()).ok()?);
        let unshare = children_of(timeout).into_iter().next()?;
        children_of(unshare).into_iter().next()
    }

    /// Ends it and its containers at once.
    fn end(&mut self) {
        if let Some(first) = self.first_process() {
            kill(first, Signal::SIGKILL).ok();
        } else {
            self.child.kill().ok();
        }
        self.child.wait().ok();
    }

    /// Removes the control groups of its containers: they are the machine's, and stay when their processes end.
    fn remove_control_groups(&self) {
        let Ok(roots) = fs::read_dir("/sys/fs/cgroup") else {
            return;
        };
        let mut places = vec![Path::new("/sys/fs/cgroup").join(&self.cgroup)];
        places.extend(roots.filter_map(|root| Some(root.ok()?.path().join(&self.cgroup))));
        let deadline = Instant::now() + Duration::from_secs(2);
        for place in places.into_iter().filter(|place| place.exists()) {
            while place.exists() && Instant::now() < deadline {
                remove_folders(&place);
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if thread::panicking() {
            report(&fs::read_to_string(self.dir.path().join("log")).unwrap_or_default());
        }
        self.end();
        self.remove_control_groups();
    }
}

fn spawn(tools: &Path, dir: &Path, cgroup: &str) -> Child {
    let path = format!(
        "{0}/usr/sbin:{0}/usr/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        text(tools)
    );
    // Libraries that came along with the packages.
    let libraries = ["usr/lib", "lib"].map(|folder| {
        let arch = std::env::consts::ARCH;
        format!("{}/{folder}/{arch}-linux-gnu", text(tools))
    });
    Command::new("timeout")
        .args(["-s", "KILL", LIFE_SECONDS, "unshare"])
        .args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child"])
        .args(["--propagation", "private", "sh", "-c", SCRIPT, "sh"])
        .arg(dir)
        .arg(format!("/{cgroup}"))
        .env("PATH", path)
        .env("LD_LIBRARY_PATH", libraries.join(":"))
        .env("HOME", dir)
        .env("TMPDIR", dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("timeout can be started")
}

/// Control groups are folders whose files cannot be removed, and need not be.
fn remove_folders(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_folders(&entry.path());
    }
    fs::remove_dir(folder).ok();
}

fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).map(|folder| folder.join(name));
    folders
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} was found a moment ago"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

#[expect(clippy::print_stderr, reason = "a failed test shows what Docker said")]
fn report(log: &str) {
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(40)..].join("\n");
    eprintln!("--- the end of Docker's log ---\n{tail}\n--- end ---");
}
