//! A real virtual machine: Debian's cloud kernel under QEMU, an initramfs of busybox and curl, and a tap on the host. It
//! may go on to a disk, as an instance does.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::guest_system::{DMI_PRODUCT, DMI_UUID, DMI_VENDOR, GuestSystem};
use crate::host::Host;
use crate::process::run;
use crate::skip::{has_command, skip};

/// What a kernel without built-in drivers needs for a virtio network card, in the order of their needs.
const CARD_MODULES: [&str; 8] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
];

/// What it needs for a disk, besides what the card needs. Its file system is built in.
const DISK_MODULE: &str = "drivers/block/virtio_blk";

/// What it needs to be a host with namespaces for guests.
const HOST_MODULES: [&str; 6] = [
    "net/llc/llc",
    "net/802/stp",
    "net/bridge/bridge",
    "drivers/net/veth",
    "net/sched/sch_ingress",
    "net/sched/cls_bpf",
];

/// What the initramfs does with a disk.
const MOUNT_DISK: &str = "mkdir -p /disk\nmount -t ext4 /dev/vda /disk";
const GO_ON_FROM_DISK: &str = "exec switch_root /disk /sbin/init";

/// Programs of the guest: what it runs is a shell script over these.
const BUSYBOX: &str = "busybox";

/// A kernel to boot, with its modules, and the programs that are needed around it.
pub struct Machine {
    vmlinuz: PathBuf,
    modules: PathBuf,
}

/// One boot: what is in the machine, and what it does.
struct Boot<'a> {
    host: &'a Host,
    modules: &'a [&'a str],
    programs: &'a [&'a Path],
    /// Arguments of QEMU.
    devices: &'a [&'a str],
    /// More of the kernel's command line.
    append: &'a str,
    script: &'a str,
    seconds_max: u32,
}

impl Machine {
    /// Finds all that is needed; none, and a skip, where something is missing.
    ///
    /// `IMDS_TEST_KERNEL_DIR` names a folder with `boot/vmlinuz-*` and `lib/modules/*`, as an unpacked package of a
    /// Debian kernel has them.
    #[must_use]
    pub fn find() -> Option<Self> {
        let Some(folder) = std::env::var_os("IMDS_TEST_KERNEL_DIR").map(PathBuf::from) else {
            skip("IMDS_TEST_KERNEL_DIR names no kernel to boot");
            return None;
        };
        let commands = ["qemu-system-x86_64", BUSYBOX, "cpio", "curl", "ldd"];
        if !commands.into_iter().all(has_command) {
            return None;
        }
        let vmlinuz = first_in(&folder.join("boot"), "vmlinuz-");
        let modules = first_in(&folder.join("lib/modules"), "");
        let (Some(vmlinuz), Some(modules)) = (vmlinuz, modules) else {
            skip(&format!(
                "{} has no boot/vmlinuz-* or no lib/modules/*",
                folder.display()
            ));
            return None;
        };
        Some(Self { vmlinuz, modules })
    }

    /// Boots with a network card on a tap device of the host, runs `script` and returns what the console said.
    ///
    /// The script is for busybox' shell, with curl; the card is `eth0`, not yet up.
    ///
    /// # Panics
    /// When the initramfs cannot be made or QEMU cannot be started.
    #[must_use]
    pub fn run(&self, host: &Host, tap: &str, mac: &str, script: &str) -> String {
        let [network, device] = card(tap, mac);
        self.boot(&Boot {
            host,
            modules: &CARD_MODULES,
            programs: &[],
            devices: &["-netdev", &network, "-device", &device],
            append: "",
            script,
            seconds_max: 120,
        })
    }

    /// The same without a device of the host: QEMU carries the guest's packets itself, and calls whomever the guest calls.
    ///
    /// # Panics
    /// As [`Machine::run`].
    #[must_use]
    pub fn run_in_user_mode(&self, host: &Host, script: &str) -> String {
        self.boot(&Boot {
            host,
            modules: &CARD_MODULES,
            programs: &[],
            devices: &[
                "-netdev",
                "user,id=net0",
                "-device",
                "virtio-net-pci,netdev=net0,romfile=",
            ],
            script,
            append: "",
            seconds_max: 120,
        })
    }

    /// Boots a guest's system from its disk as an instance boots, until the guest switches itself off, and returns what
    /// the console said. What the guest writes to the disk is forgotten.
    ///
    /// # Panics
    /// When QEMU cannot be started, or the guest does not switch itself off within five minutes (it needs one).
    #[must_use]
    pub fn run_system(&self, host: &Host, system: &GuestSystem, tap: &str, mac: &str) -> String {
        let [network, device] = card(tap, mac);
        let disk = disk(system);
        let firmware = format!(
            "type=1,manufacturer={DMI_VENDOR},product={DMI_PRODUCT},uuid={DMI_UUID},serial={DMI_UUID}"
        );
        let mut modules = CARD_MODULES.to_vec();
        modules.push(DISK_MODULE);
        self.boot(&Boot {
            host,
            modules: &modules,
            programs: &[],
            devices: &[
                "-netdev", &network, "-device", &device, "-drive", &disk, "-smbios", &firmware,
            ],
            append: "",
            script: &format!("{MOUNT_DISK}\n{GO_ON_FROM_DISK}"),
            seconds_max: 300,
        })
    }

    /// Boots without a network, with the program of the project and what it needs of the kernel: a host of its own,
    /// whatever kernel this machine has. The script finds the programs in its path.
    ///
    /// # Panics
    /// When the initramfs cannot be made or QEMU cannot be started.
    #[must_use]
    pub fn run_as_host(&self, host: &Host, programs: &[&Path], script: &str) -> String {
        self.boot(&Boot {
            host,
            modules: &HOST_MODULES,
            programs,
            devices: &["-nic", "none"],
            append: "",
            script,
            seconds_max: 120,
        })
    }

    /// Boots that system without a network as a host of its own, with systemd and the program of the project, and has
    /// systemd run `script` instead of what it starts otherwise. It is for the shell of the system, and switches the
    /// machine off when it ends. `prepare` is run before, with the system under `/disk`.
    ///
    /// # Panics
    /// When the initramfs cannot be made or QEMU cannot be started.
    #[must_use]
    pub fn run_as_systemd_host(
        &self,
        host: &Host,
        system: &GuestSystem,
        programs: &[&Path],
        prepare: &str,
        script: &str,
    ) -> String {
        let mut modules = CARD_MODULES.to_vec();
        modules.push(DISK_MODULE);
        modules.extend(HOST_MODULES);
        let script = format!(
            "{MOUNT_DISK}\n{prepare}\ncat > /disk/script <<'END-OF-SCRIPT'\n{script}\nEND-OF-SCRIPT\n{GO_ON_FROM_DISK}"
        );
        self.boot(&Boot {
            host,
            modules: &modules,
            programs,
            devices: &["-nic", "none", "-drive", &disk(system)],
            append: "systemd.run=\"/bin/bash /script\" systemd.run_success_action=poweroff systemd.run_failure_action=poweroff",
            script: &script,
            seconds_max: 300,
        })
    }

    /// The kernel's version, as the name of its modules' folder tells it.
    #[must_use]
    pub fn kernel_version(&self) -> String {
        let name = self.modules.file_name().expect("a folder has a name");
        name.to_string_lossy().into_owned()
    }

    fn boot(&self, boot: &Boot<'_>) -> String {
        let root = boot.host.dir().join("initramfs");
        self.fill(&root, boot);
        let image = boot.host.dir().join("initramfs.cpio");
        pack(&root, &image);
        let seconds_max = boot.seconds_max.to_string();
        let command_line = format!("console=ttyS0 quiet panic=-1 {}", boot.append);
        let fixed = [
            "timeout",
            "-k",
            "2",
            &seconds_max,
            "qemu-system-x86_64",
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-m",
            "512",
            "-nographic",
            "-no-reboot",
            "-append",
            &command_line,
            "-kernel",
            text(&self.vmlinuz),
            "-initrd",
            text(&image),
        ];
        let argv = [&fixed[..], boot.devices].concat();
        let output = boot.host.namespace().enter(|| {
            Command::new(argv[0])
                .args(&argv[1..])
                .stdin(Stdio::null())
                .output()
        });
        let output = output.unwrap_or_else(|error| panic!("cannot run QEMU: {error}"));
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success(),
            "QEMU ended with {}: {errors}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn fill(&self, root: &Path, boot: &Boot<'_>) {
        for folder in ["bin", "dev", "proc", "sys", "modules", "run", "tmp", "etc"] {
            fs::create_dir_all(root.join(folder)).expect("a folder of the initramfs");
        }
        let busybox = which(BUSYBOX);
        fs::copy(&busybox, root.join("bin/busybox")).expect("a copy of busybox");
        symlink("busybox", root.join("bin/sh")).expect("a link");
        copy_with_libraries(&which("curl"), root);
        for program in boot.programs {
            copy_with_libraries(program, root);
        }
        let mut load = String::new();
        for module in boot.modules {
            let name = module.rsplit('/').next().expect("a name");
            if self.copy_module(module, &root.join("modules")) {
                load.push_str(&format!("/bin/busybox insmod /modules/{name}.ko\n"));
            }
        }
        let init = format!(
            "#!/bin/sh\n/bin/busybox --install -s /bin\nmount -t proc none /proc\nmount -t sysfs none /sys\n\
             mount -t devtmpfs none /dev\n{load}ip link set lo up\n{}\npoweroff -f\n",
            boot.script
        );
        let path = root.join("init");
        fs::write(&path, init).expect("the init script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
    }

    /// Copies a module; false where this kernel has it built in or not at all.
    fn copy_module(&self, module: &str, to: &Path) -> bool {
        let from = self.modules.join(format!("kernel/{module}.ko"));
        if !from.exists() {
            return false;
        }
        let name = from.file_name().expect("a module has a name");
        fs::copy(&from, to.join(name)).expect("a copy of a module");
        true
    }
}

/// The argument for the disk of a guest's system. What is written to it is forgotten.
fn disk(system: &GuestSystem) -> String {
    format!(
        "file={},format=raw,if=virtio,snapshot=on",
        text(system.disk())
    )
}

/// Arguments for a network card on a tap device of the host: its two ends.
fn card(tap: &str, mac: &str) -> [String; 2] {
    [
        format!("tap,id=net0,ifname={tap},script=no,downscript=no"),
        format!("virtio-net-pci,netdev=net0,mac={mac},romfile="),
    ]
}

fn first_in(folder: &Path, begins: &str) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    entries.sort();
    entries.into_iter().find(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(begins))
    })
}

fn which(command: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(command))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{command} was found before"))
}

/// Copies a program to bin, and the libraries that ldd names to where it names them.
fn copy_with_libraries(program: &Path, root: &Path) {
    fs::copy(
        program,
        root.join("bin")
            .join(program.file_name().expect("a program has a name")),
    )
    .expect("a copy of a program");
    let output = run(&["ldd", text(program)]);
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    for library in lines
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("a library lies in a folder"))
            .expect("a folder of the initramfs");
        fs::copy(library, to).expect("a copy of a library");
    }
}

fn pack(root: &Path, image: &Path) {
    let names = run(&["find", text(root), "-mindepth", "1", "-printf", "%P\n"]);
    assert!(names.status.success(), "{names:?}");
    let mut child = Command::new("cpio")
        .args(["--quiet", "-o", "-H", "newc", "-D", text(root)])
        .stdin(Stdio::piped())
        .stdout(File::create(image).expect("the temporary directory takes a file"))
        .spawn()
        .expect("cpio was found before");
    child
        .stdin
        .take()
        .expect("stdin is a pipe")
        .write_all(&names.stdout)
        .expect("cpio reads names");
    assert!(child.wait().expect("cpio ends").success());
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}
