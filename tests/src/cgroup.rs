//! Cgroups (v2) of a test's own, and processes in them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::namespace::Namespace;
use crate::skip::skip;

/// A cgroup below the root, removed with this value. Drop those below first.
pub struct Cgroup {
    root: PathBuf,
    name: String,
}

impl Cgroup {
    /// Makes one with a name of its own; `None`, and a skip, where cgroup v2 is not there to be written.
    #[must_use]
    pub fn new() -> Option<Self> {
        let cgroup = Self::not_yet()?;
        if let Err(error) = cgroup.make() {
            skip(&format!("no cgroup can be made: {error}"));
            return None;
        }
        Some(cgroup)
    }

    /// A name that no cgroup has yet; see [`Cgroup::make`].
    #[must_use]
    pub fn not_yet() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let Some(root) = root() else {
            skip("cgroup v2 is not mounted");
            return None;
        };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("imds-test-{}-{number}", std::process::id());
        Some(Self { root, name })
    }

    /// Makes it.
    ///
    /// # Errors
    /// Those of mkdir(2).
    pub fn make(&self) -> io::Result<()> {
        fs::create_dir(self.path())
    }

    /// Removes it, once nothing is in it any more.
    ///
    /// # Panics
    /// When something stays in it.
    pub fn remove(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Err(error) = fs::remove_dir(self.path()) {
            // What has just ended counts as being there for a moment.
            assert!(Instant::now() < deadline, "{}: {error}", self.name);
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Makes one below it.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        let child = Self {
            root: self.root.clone(),
            name: format!("{}/{name}", self.name),
        };
        child.make().expect("a cgroup has room for another");
        child
    }

    /// Its place below the root.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The place of the cgroup that this process is in: `/` or without one at its ends.
    ///
    /// # Panics
    /// When the process is in none.
    #[must_use]
    pub fn own() -> String {
        let lines = fs::read_to_string("/proc/self/cgroup").expect("/proc is mounted");
        let place = lines.lines().find_map(|line| line.strip_prefix("0::"));
        let place = place
            .expect("every process is in a cgroup")
            .trim_matches('/');
        if place.is_empty() { "/" } else { place }.to_owned()
    }

    /// Runs a command in it, in a network namespace, to its end.
    #[must_use]
    pub fn run(&self, namespace: &Namespace, argv: &[&str]) -> Output {
        let procs = self.path().join("cgroup.procs");
        let script = "echo $$ > \"$0\" && exec \"$@\"";
        let procs = procs.to_str().expect("names of tests are text");
        namespace.run(&[&["sh", "-c", script, procs], argv].concat())
    }

    fn path(&self) -> PathBuf {
        self.root.join(&self.name)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.path().exists() && !thread::panicking() {
            self.remove();
        }
        // In a panic as far as it goes.
        fs::remove_dir(self.path()).ok();
    }
}

/// On a hybrid host it is not where cgroups are, but below.
fn root() -> Option<PathBuf> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .map(Path::new)
        .into_iter()
        .find(|place| {
            place.join("cgroup.procs").exists() && place.join("cgroup.controllers").exists()
        })
        .map(Path::to_owned)
}
