//! Running commands with a bound on their time, and reading what /proc says of a process.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Pid;

use crate::patience::patience;

/// Bound on a command.
const ENDED_WITHIN: Duration = Duration::from_secs(30);

/// Runs a command to its end, 30 seconds at most on a usual machine, in the namespace of the calling thread.
///
/// # Panics
/// When the command cannot be started.
#[must_use]
pub fn run(argv: &[&str]) -> Output {
    // coreutils' timeout, because std has no wait with a deadline; `-k` for those that ignore SIGTERM.
    let seconds_max = patience(ENDED_WITHIN).as_secs().to_string();
    Command::new("timeout")
        .args(["-k", "2", &seconds_max])
        .args(argv)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {argv:?}: {error}"))
}

/// Lets this process have this many descriptors, for tests that hold thousands of connections.
///
/// # Panics
/// When the machine's administrator has set a lower bound even for root.
pub fn allow_open_files(count: u64) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a process may read its limits");
    if soft < count {
        setrlimit(Resource::RLIMIT_NOFILE, count, hard.max(count))
            .expect("root may raise its limits up to fs.nr_open");
    }
}

/// Polls until `question` has an answer, `within` at most on a usual machine.
///
/// For what the kernel or another process does in its own time; the deadline is a bound, not a wait.
///
/// # Panics
/// When the time is over, naming `what` was waited for.
pub fn eventually<T>(what: &str, within: Duration, mut question: impl FnMut() -> Option<T>) -> T {
    let within = patience(within);
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = question() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {within:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The processes whose parent is `pid`.
#[must_use]
pub fn children_of(pid: Pid) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").expect("/proc is mounted");
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|child| parent_of(*child) == Some(pid.as_raw()))
        .map(Pid::from_raw)
        .collect()
}

/// Whether the process exists and is not a zombie.
#[must_use]
pub fn is_alive(pid: Pid) -> bool {
    const N_THREADS: usize = 17;
    stat(pid.as_raw()).is_some_and(|fields| {
        // The first thread of several that end may end first; files and locks are theirs until the last one has.
        let is_at_its_end = fields.first().is_some_and(|state| state == "Z");
        !is_at_its_end
            || fields
                .get(N_THREADS)
                .is_some_and(|n_threads| n_threads != "1")
    })
}

/// The network namespace that a process lives in, as the kernel numbers it.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn network_of(pid: Pid) -> u64 {
    fs::metadata(format!("/proc/{pid}/ns/net"))
        .expect("root may look at a running process")
        .ino()
}

/// Whatever keeps a network namespace alive that can be seen from here: processes in it and mounts of it.
#[must_use]
pub fn users_of_network(inode: u64) -> Vec<String> {
    let processes = fs::read_dir("/proc")
        .expect("/proc is mounted")
        .filter_map(|entry| Some(entry.ok()?.path()));
    let mut users: Vec<String> = processes
        .filter(|path| {
            fs::metadata(path.join("ns/net")).is_ok_and(|namespace| namespace.ino() == inode)
        })
        .map(|path| path.display().to_string())
        .collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    users.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&format!("net:[{inode}]")))
            .map(str::to_owned),
    );
    users
}

/// The responders of a state directory, the latest first: whoever listens on their sockets, in the kernel's words.
#[must_use]
pub fn responders_of(state_dir: &Path) -> Vec<Pid> {
    let entries = fs::read_dir(state_dir.join("responders"));
    let numbers = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut numbers: Vec<u64> = numbers.collect();
    numbers.sort_unstable_by(|one, other| other.cmp(one));
    let listener = |number: &u64| {
        let path = state_dir.join("responders").join(number.to_string());
        let stream = UnixStream::connect(path).ok()?;
        let peer = getsockopt(&stream, sockopt::PeerCredentials).ok()?;
        Some(Pid::from_raw(peer.pid()))
    };
    numbers.iter().filter_map(listener).collect()
}

/// The ids of the eBPF programs that a process holds.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn programs_of(pid: Pid) -> BTreeSet<String> {
    let infos =
        fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("root may look at a running process");
    let texts = infos.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    texts
        .filter_map(|text| {
            text.lines()
                .find_map(|line| Some(line.strip_prefix("prog_id:")?.trim().to_owned()))
        })
        .collect()
}

/// Whether any memory that a process may write holds these bytes.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn memory_contains(pid: Pid, bytes: &[u8]) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("root may look");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("root may look");
    let mut writable = maps.lines().filter_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        rest.starts_with("rw")
            .then_some((number(start)?, number(end)?))
    });
    writable.any(|(start, end)| {
        let mut region = vec![0; usize::try_from(end - start).expect("it fits in memory")];
        // What went meanwhile, and what the kernel shows nobody, holds nothing.
        memory.read_exact_at(&mut region, start).is_ok()
            && region.windows(bytes.len()).any(|window| window == bytes)
    })
}

/// Whether the kernel still has an eBPF program, by bpftool.
#[must_use]
pub fn program_exists(id: &str) -> bool {
    run(&["bpftool", "prog", "show", "id", id]).status.success()
}

fn parent_of(pid: i32) -> Option<i32> {
    stat(pid)?.get(1)?.parse().ok()
}

/// The fields of /proc/PID/stat after the command's name, which may itself hold spaces and parentheses.
fn stat(pid: i32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

/// What /proc/PID/status says.
pub struct ProcessStatus {
    pid: Pid,
    text: String,
}

impl ProcessStatus {
    /// Reads the status of a running process.
    ///
    /// # Panics
    /// When there is no such process.
    #[must_use]
    pub fn of(pid: Pid) -> Self {
        let text = fs::read_to_string(format!("/proc/{pid}/status"))
            .unwrap_or_else(|error| panic!("process {pid}: {error}"));
        Self { pid, text }
    }

    /// The value of a line such as `CapEff`, as the kernel prints it.
    ///
    /// # Panics
    /// When the kernel does not print such a line.
    #[must_use]
    pub fn field(&self, name: &str) -> &str {
        let value = self
            .text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value
            .unwrap_or_else(|| panic!("process {}: no field {name} in\n{}", self.pid, self.text))
            .trim()
    }

    /// Resident memory in KiB.
    #[must_use]
    pub fn resident_kib(&self) -> u64 {
        let value = self.field("VmRSS");
        value
            .trim_end_matches(" kB")
            .trim()
            .parse()
            .unwrap_or_else(|_| panic!("VmRSS is {value:?}"))
    }
}
