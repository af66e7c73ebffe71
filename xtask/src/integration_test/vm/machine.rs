//! The virtual machine: Debian's kernel under QEMU, with all files of this machine, to be read.
//!
//! QEMU emulates the processor, although that is slow, also where there is KVM: so it takes the same way everywhere, and
//! what calls itself KVM inside of a virtual machine does not always boot a kernel.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use super::initramfs;
use crate::{command, workspace};

/// Nothing is taken of this machine's memory until the virtual one uses it.
const MEMORY: &str = "3072M";
/// How many processors: as many as this machine has, of which more than these would stand idle.
const CPUS: std::ops::RangeInclusive<usize> = 2..=4;
/// Bound on virtiofsd's start.
const SHARED_WITHIN: Duration = Duration::from_secs(10);
/// Where virtiofsd listens, in the machine's folder: a whole path may be too long for a socket's.
const SOCKET: &str = "share.sock";

/// A kernel as its package has it, unpacked.
#[derive(Debug)]
pub(super) struct Kernel {
    vmlinuz: PathBuf,
    modules: PathBuf,
}

/// What a machine is made of.
#[derive(Debug)]
pub(super) struct Machine {
    kernel: Kernel,
    virtiofsd: PathBuf,
    /// Where its initramfs and its logs lie.
    dir: PathBuf,
}

/// A machine that runs. It ends with this value, and with this process, however that ends.
pub(super) struct Running {
    processes: Vec<Child>,
    lines: Receiver<String>,
    socket: PathBuf,
}

/// What there is to read of a machine.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    Line(String),
    /// It is off.
    Off,
    /// Nothing until the deadline.
    Nothing,
}

impl Kernel {
    /// Finds it in a folder with `boot/vmlinuz-*` and `lib/modules/*`, and makes the index by which modules are loaded.
    pub(super) fn find(folder: &Path) -> anyhow::Result<Self> {
        let kernel = Self {
            vmlinuz: first_in(&folder.join("boot"), "vmlinuz-")?,
            modules: first_in(&folder.join("lib/modules"), "")?,
        };
        if !kernel.modules.join("modules.dep").exists() {
            let mut depmod = Command::new("busybox");
            depmod.arg("depmod").arg("-b").arg(folder);
            command::quietly(depmod.arg(kernel.version()))?;
        }
        Ok(kernel)
    }

    pub(super) fn version(&self) -> String {
        let name = self.modules.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The folder of its modules.
    pub(super) fn modules(&self) -> &Path {
        &self.modules
    }
}

impl Machine {
    pub(super) fn new(kernel: Kernel, virtiofsd: PathBuf) -> anyhow::Result<Self> {
        let dir = workspace::target_dir("xtask/vm")?;
        Ok(Self {
            kernel,
            virtiofsd,
            dir,
        })
    }

    pub(super) fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// What the kernel said.
    pub(super) fn console_log(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// What the tests said.
    pub(super) fn tests_log(&self) -> PathBuf {
        self.dir.join("tests.log")
    }

    /// Boots it, to do what the script says.
    pub(super) fn boot(&self, plan: &str) -> anyhow::Result<Running> {
        initramfs::pack(&self.kernel, plan, &self.dir)?;
        let mut running = Running {
            processes: Vec::new(),
            lines: mpsc::channel().1,
            socket: self.dir.join(SOCKET),
        };
        running.processes.push(self.share()?);
        let mut qemu = self.qemu()?;
        let output = qemu.stdout.take();
        running.processes.push(qemu);
        running.lines = lines_of(output.context("QEMU has an output")?);
        Ok(running)
    }

    fn share(&self) -> anyhow::Result<Child> {
        let socket = self.dir.join(SOCKET);
        if socket.exists() {
            fs::remove_file(&socket).with_context(|| format!("remove {}", socket.display()))?;
        }
        let log = self.dir.join("share.log");
        let file = fs::File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let mut command = dies_with_us(&self.virtiofsd);
        command
            .current_dir(&self.dir)
            .arg(format!("--socket-path={SOCKET}"))
            .args([
                "-o",
                "source=/",
                "-o",
                "cache=always",
                "-o",
                "sandbox=chroot",
            ])
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("the log twice")?)
            .stderr(file);
        let mut child = command
            .spawn()
            .with_context(|| format!("start {}", command::shown(&command)))?;
        let deadline = Instant::now() + SHARED_WITHIN;
        while !socket.exists() {
            let ended = child.try_wait().context("look at virtiofsd")?;
            if ended.is_some() || Instant::now() > deadline {
                child.kill().ok();
                child.wait().ok();
                bail!("virtiofsd does not listen, see {}", log.display());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(child)
    }

    fn qemu(&self) -> anyhow::Result<Child> {
        let n_cpus = thread::available_parallelism().map_or(1, usize::from);
        let n_cpus = n_cpus.clamp(*CPUS.start(), *CPUS.end());
        let memory = format!("memory-backend-memfd,id=memory,size={MEMORY},share=on");
        let console = format!("file:{}", self.console_log().display());
        let mut command = dies_with_us(Path::new("qemu-system-x86_64"));
        command
            .current_dir(&self.dir)
            .args(["-accel", "tcg,thread=multi", "-cpu", "max"])
            .args(["-smp", &n_cpus.to_string(), "-m", MEMORY])
            // virtiofsd reads and writes the machine's memory itself.
            .args(["-object", &memory, "-numa", "node,memdev=memory"])
            .args(["-chardev", &format!("socket,id=share,path={SOCKET}")])
            .args(["-device", "vhost-user-fs-pci,chardev=share,tag=root"])
            .args(["-nic", "none", "-display", "none", "-no-reboot"])
            .args(["-serial", &console, "-serial", "stdio"])
            .args(["-append", "console=ttyS0 quiet panic=-1"])
            .arg("-kernel")
            .arg(&self.kernel.vmlinuz)
            .args(["-initrd", "initramfs.cpio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        command
            .spawn()
            .with_context(|| format!("start {}", command::shown(&command)))
    }
}

impl Running {
    /// The next line that the tests' port says, with its end.
    pub(super) fn next(&self, deadline: Instant) -> Said {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => Said::Line(line),
            Err(RecvTimeoutError::Timeout) => Said::Nothing,
            Err(RecvTimeoutError::Disconnected) => Said::Off,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            // It may have ended by itself.
            process.kill().ok();
            process.wait().ok();
        }
        fs::remove_file(&self.socket).ok();
    }
}

/// The command of a process that ends when this one does, by whatever.
fn dies_with_us(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

fn lines_of(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line).into_owned();
            // Nobody reads on when the machine is given up.
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

fn first_in(folder: &Path, start: &str) -> anyhow::Result<PathBuf> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("read the folder {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    let mut paths = paths.into_iter();
    paths
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(start))
        })
        .with_context(|| format!("{} has no {start}*", folder.display()))
}
