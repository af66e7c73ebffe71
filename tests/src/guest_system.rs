//! A guest's system as a cloud's image has it, with cloud-init: `cargo xtask setup` makes it, nothing of it is installed
//! on this machine. A guest in a namespace runs programs of it in a container, a virtual machine boots from its disk.

use std::path::{Path, PathBuf};
use std::process::Output;

use tempfile::TempDir;

use crate::guest::Guest;
use crate::skip::{has_command, path_of, skip};

/// What the firmware of an instance says of itself, by which programs know that they are on EC2. The UUID is one of
/// EC2's: it starts with `ec2` and is the serial number as well.
pub(crate) const DMI_UUID: &str = "ec2a1b2c-3d4e-5f60-7182-93a4b5c6d7e8";
/// Manufacturer.
pub(crate) const DMI_VENDOR: &str = "Amazon EC2";
/// Product, which on Nitro is the instance type.
pub(crate) const DMI_PRODUCT: &str = "t3.micro";

/// Makes a container of the folder `$1` at the folder `$2`, and runs the shell script `$3` in it. It starts in namespaces
/// of its own, so that nothing of this is left when it ends.
///
/// What can be written is a copy in memory; `/usr` is the folder's own, to be read. There is no disk in it that cloud-init
/// could resize or mount, and it is told so. `/sys` has what the guest has: its interfaces, and an instance's firmware. For
/// cloud-init believes no firmware in a container, systemd says of this one that it is a machine.
const CONTAINER: &str = r#"
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 none "$2"
(cd "$1" && find . -mindepth 1 -maxdepth 1 ! -name usr -exec cp -a -t "$2" {} +)
mkdir -p "$2/usr" "$2/proc" "$2/dev" "$2/sys" "$2/mnt"
mount --bind "$1/usr" "$2/usr"
mount -o remount,bind,ro "$2/usr"
mount -t proc none "$2/proc"
mount -t tmpfs -o mode=755 none "$2/dev"
for DEVICE in null zero full random urandom; do
  : > "$2/dev/$DEVICE"
  mount --bind "/dev/$DEVICE" "$2/dev/$DEVICE"
done
ln -s /proc/self/fd "$2/dev/fd"
mount -t sysfs none "$2/mnt"
mount -t tmpfs -o mode=755 none "$2/sys"
mkdir -p "$2/sys/devices" "$2/sys/class/net" "$2/sys/class/dmi/id"
mount --bind "$2/mnt/devices" "$2/sys/devices"
mount --bind "$2/mnt/class/net" "$2/sys/class/net"
umount -l "$2/mnt"
printf 'growpart: { mode: "off" }\nresize_rootfs: false\n' > "$2/etc/cloud/cloud.cfg.d/90_container.cfg"
cat > "$2/detect-virt" << 'END'
#!/bin/sh
case " $* " in *" -c "* | *" --container "*) exit 1 ;; esac
echo amazon
END
chmod 755 "$2/detect-virt"
mount --bind "$2/detect-virt" "$2/usr/bin/systemd-detect-virt"
say() { printf '%s\n' "$2" > "$1"; }
cd "$2/sys/class/dmi/id"
say product_uuid "$DMI_UUID"
say product_serial "$DMI_UUID"
say sys_vendor "$DMI_VENDOR"
say chassis_asset_tag "$DMI_VENDOR"
say product_name "$DMI_PRODUCT"
cd /
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 chroot "$2" sh -c "$3"
"#;

/// The system, as a folder and as a disk.
pub struct GuestSystem {
    root: PathBuf,
    disk: PathBuf,
}

impl GuestSystem {
    /// Finds it; none, and a skip, where it is missing.
    ///
    /// `IMDS_TEST_GUEST_DIR` names a folder with `root/` and `root.ext4`.
    #[must_use]
    pub fn find() -> Option<Self> {
        let dir = path_of("IMDS_TEST_GUEST_DIR", "a guest's system with cloud-init")?;
        let (root, disk) = (dir.join("root"), dir.join("root.ext4"));
        if !root.join("usr/bin/cloud-init").is_file() || !disk.is_file() {
            skip(&format!(
                "{} has no root/usr/bin/cloud-init or no root.ext4",
                dir.display()
            ));
            return None;
        }
        Some(Self { root, disk })
    }

    /// The disk that a virtual machine boots from.
    #[must_use]
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// Runs a shell script in the guest as in a container of this system, with an instance's firmware; 30 seconds at
    /// most. None, and a skip, where the machine lacks the command for it.
    ///
    /// # Panics
    /// When the command cannot be started.
    #[must_use]
    pub fn run(&self, guest: &Guest, script: &str) -> Option<Output> {
        if !has_command("unshare") {
            return None;
        }
        let dir = TempDir::new().expect("a temporary directory");
        let (uuid, vendor, product) = (
            format!("DMI_UUID={DMI_UUID}"),
            format!("DMI_VENDOR={DMI_VENDOR}"),
            format!("DMI_PRODUCT={DMI_PRODUCT}"),
        );
        let own = ["--mount", "--uts", "--ipc", "--pid", "--kill-child"];
        let container = ["sh", "-c", CONTAINER, "container", text(&self.root)];
        let argv = [
            &["env", &uuid, &vendor, &product, "unshare"],
            &own[..],
            &container[..],
            &[text(dir.path()), script],
        ]
        .concat();
        Some(guest.run(&argv))
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}
