//! Who runs where: the client on one CPU, the servers on another, so that neither takes the other's time.

use anyhow::Context as _;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// The CPUs of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpus {
    /// Where requests are made.
    pub(crate) client: usize,
    /// Where they are answered.
    pub(crate) server: usize,
    /// How many this process may use.
    pub(crate) count: usize,
    allowed: CpuSet,
}

impl Cpus {
    /// The first two that this process may use; with a single one, client and server share it.
    pub(crate) fn choose() -> anyhow::Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("ask for this process's CPUs")?;
        let cpus: Vec<usize> = (0..CpuSet::count())
            .filter(|cpu| allowed.is_set(*cpu).unwrap_or(false))
            .collect();
        let client = *cpus.first().context("a process has a CPU")?;
        Ok(Self {
            client,
            server: cpus.get(1).copied().unwrap_or(client),
            count: cpus.len(),
            allowed,
        })
    }

    /// Lets this thread, and what it starts from now on, run anywhere again.
    pub(crate) fn release(&self) -> anyhow::Result<()> {
        sched_setaffinity(Pid::from_raw(0), &self.allowed).context("unpin the thread")
    }
}

/// Keeps this thread, and what it starts from now on, on one CPU.
pub(crate) fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .with_context(|| format!("pin the thread to CPU {cpu}"))
}
