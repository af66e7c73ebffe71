//! What the kernel starts with: busybox, the modules that it needs to see this machine's files, and two scripts.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::Command,
};

use anyhow::Context as _;

use super::machine::Kernel;
use crate::{command, workspace};

/// In the order of their needs. Which of them a kernel has built in differs.
const MODULES: [&str; 8] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "fs/fuse/fuse",
    "fs/fuse/virtiofs",
    "fs/overlayfs/overlay",
];

const INIT: &str = include_str!("init.sh");
const RUN: &str = include_str!("run.sh");

/// Packs it into `dir`, as `initramfs.cpio`.
pub(super) fn pack(kernel: &Kernel, plan: &str, dir: &Path) -> anyhow::Result<()> {
    let root = dir.join("initramfs");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
    }
    fill(kernel, plan, &root).with_context(|| format!("fill {}", root.display()))?;
    // The redirection is the shell's, since cpio reads names and writes the archive.
    let mut cpio = Command::new("sh");
    cpio.args([
        "-c",
        "find . -mindepth 1 | cpio --quiet -o -H newc > ../initramfs.cpio",
    ]);
    command::quietly(cpio.current_dir(&root))?;
    fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))
}

fn fill(kernel: &Kernel, plan: &str, root: &Path) -> anyhow::Result<()> {
    for folder in ["bin", "dev", "proc", "sys", "modules"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let busybox = workspace::program("busybox").context("busybox was found before")?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    symlink("busybox", root.join("bin/sh"))?;
    let mut order = String::new();
    for module in MODULES {
        let from = kernel.modules().join(format!("kernel/{module}.ko"));
        if from.exists() {
            let name = Path::new(module).file_name().context("a module's name")?;
            let name = name.to_string_lossy();
            fs::copy(from, root.join(format!("modules/{name}.ko")))?;
            order.push_str(&format!("{name}\n"));
        }
    }
    fs::write(root.join("modules/order"), order)?;
    fs::write(root.join("run.sh"), RUN)?;
    fs::write(root.join("plan.sh"), plan)?;
    let init = root.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
