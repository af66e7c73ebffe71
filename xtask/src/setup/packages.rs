//! The one list of what is taken from the system's packages, with why.

use std::process::Command;

use super::Machine;
use crate::{command, workspace};

/// Something that the system provides.
#[derive(Debug)]
pub(super) struct Package {
    /// What Debian and Ubuntu call it.
    debian: &'static str,
    probe: Probe,
    why: &'static str,
}

/// How to tell that it is there already, from wherever.
#[derive(Debug)]
enum Probe {
    Program(&'static str),
    /// A program that needs no shared library, to be put into a guest.
    StaticProgram(&'static str),
    PythonModules(&'static str),
}

/// For the daemon, the lab and the demo.
pub(super) const RUN: &[Package] = &[
    Package {
        debian: "iproute2",
        probe: Probe::Program("ip"),
        why: "looking at guests and their interfaces in the lab",
    },
    Package {
        debian: "curl",
        probe: Probe::Program("curl"),
        why: "what the lab's guests call the service with",
    },
];

/// For the tests.
pub(super) const TESTS: &[Package] = &[
    Package {
        debian: "iptables",
        probe: Probe::Program("iptables"),
        why: "a host whose rules drop everything else",
    },
    Package {
        debian: "nftables",
        probe: Probe::Program("nft"),
        why: "the same, by nftables",
    },
    Package {
        debian: "ethtool",
        probe: Probe::Program("ethtool"),
        why: "guests whose network cards leave nothing, or everything, to us",
    },
    Package {
        debian: "bpftool",
        probe: Probe::Program("bpftool"),
        why: "looking for programs that were left in the kernel",
    },
    Package {
        debian: "openssl",
        probe: Probe::Program("openssl"),
        why: "verifying the signed identity",
    },
    Package {
        debian: "strace",
        probe: Probe::Program("strace"),
        why: "a daemon that is killed at any of its system calls",
    },
    Package {
        debian: "python3-venv",
        probe: Probe::PythonModules("venv, ensurepip"),
        why: "AWS's clients in Python in a place of their own",
    },
    Package {
        debian: "qemu-system-x86",
        probe: Probe::Program("qemu-system-x86_64"),
        why: "a guest that is a virtual machine",
    },
    Package {
        debian: "busybox-static",
        probe: Probe::StaticProgram("busybox"),
        why: "the user space of that guest",
    },
    Package {
        debian: "g++",
        probe: Probe::Program("g++"),
        why: "the fuzzers' runtime, which is in C++",
    },
    Package {
        debian: "systemd",
        probe: Probe::Program("systemd-analyze"),
        why: "judging the unit; nothing of it is started",
    },
    Package {
        debian: "cpio",
        probe: Probe::Program("cpio"),
        why: "packing that guest's initramfs",
    },
    Package {
        debian: "mmdebstrap",
        probe: Probe::Program("mmdebstrap"),
        why: "a guest's system with cloud-init",
    },
    Package {
        debian: "e2fsprogs",
        probe: Probe::Program("mke2fs"),
        why: "that system as a disk",
    },
];

/// Installs those of the list that are missing.
pub(super) fn ensure(machine: &mut Machine, list: &[Package]) -> anyhow::Result<()> {
    let mut missing = Vec::new();
    for package in list {
        if package.is_there() {
            machine.ok(format_args!("{} ({})", package.debian, package.why));
        } else {
            machine.installing(format_args!("{} ({})", package.debian, package.why));
            missing.push(package.debian.to_owned());
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    machine.apt.install(&missing)
}

impl Package {
    fn is_there(&self) -> bool {
        match self.probe {
            Probe::Program(name) => workspace::program(name).is_some(),
            Probe::StaticProgram(name) => workspace::program(name).is_some_and(|program| {
                // ldd refuses what has nothing to load.
                !command::succeeds(Command::new("ldd").arg(program))
            }),
            Probe::PythonModules(modules) => {
                let import = format!("import {modules}");
                command::succeeds(Command::new("python3").args(["-c", &import]))
            }
        }
    }
}
