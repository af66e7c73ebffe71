//! The system of a guest, as a cloud's image has it: Debian (or Ubuntu, on such a host) with cloud-init, never installed
//! on this machine but unpacked into a folder, and the same once more as a disk for a virtual machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use super::Machine;
use crate::{command, workspace};

/// What is in it besides the smallest Debian: an init system and a network that cloud-init finds; what cloud-init comes
/// with; and two clients of instance metadata that are packages of Debian, `ec2metadata` and `ec2-metadata`.
const PACKAGES: [&str; 10] = [
    "systemd-sysv",
    "udev",
    "dbus",
    "iproute2",
    "openssh-server",
    "sudo",
    "cloud-init",
    "cloud-guest-utils",
    "amazon-ec2-utils",
    "curl",
];

/// Files of the image's maker, as such an image has them: no name of its own, no name server (the guest has no way to
/// one, and cloud-init would wait for its answer), the locale that Debian's cloud images have.
const FILES: [(&str, &str); 3] = [
    ("etc/hostname", "localhost\n"),
    ("etc/resolv.conf", ""),
    ("etc/cloud/cloud.cfg.d/10_image.cfg", "locale: C.UTF-8\n"),
];

/// What Debian's cloud images have enabled and its packages have not.
const ENABLED: &str = "systemd-networkd.service";

/// Of what nobody reads in a guest.
const LEFT_OUT: [&str; 3] = [
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
];

/// Sparse: it takes what is in it.
const DISK_BYTES: u64 = 1 << 30;

/// A mirror of the host's own distribution.
#[derive(Debug, PartialEq, Eq)]
struct Mirror {
    url: String,
    codename: String,
    components: &'static str,
}

/// Returns the folder that has `root/` and `root.ext4`; none where the host has no Debian or Ubuntu to take it from.
pub(super) fn ensure(machine: &mut Machine) -> anyhow::Result<Option<PathBuf>> {
    let dir = workspace::root().join("target/test-guest");
    if fs::read_to_string(dir.join(STAMP)).is_ok_and(|stamp| stamp == recipe()) {
        machine.ok(format_args!("a guest's system in {}", dir.display()));
        return Ok(Some(dir));
    }
    let mirror = if machine.apt.knows("cloud-init") {
        own_mirror()
    } else {
        None
    };
    let Some(mirror) = mirror else {
        machine.without(
            "a guest's system: apt has no cloud-init of Debian or Ubuntu, so the tests with it will be skipped",
        );
        return Ok(None);
    };
    machine.installing(format_args!(
        "{} with cloud-init in {}, by mmdebstrap (takes about a minute)",
        mirror.codename,
        dir.display()
    ));
    make(&mirror, &dir)?;
    Ok(Some(dir))
}

/// A file that is written last. It says what the system is made of, so that another recipe makes another system.
const STAMP: &str = "recipe";

fn recipe() -> String {
    format!("{PACKAGES:?} {FILES:?} {ENABLED} {LEFT_OUT:?} {DISK_BYTES}")
}

fn make(mirror: &Mirror, dir: &Path) -> anyhow::Result<()> {
    command::quietly(
        Command::new("rm")
            .args(["-rf", "--one-file-system"])
            .arg(dir),
    )?;
    fs::create_dir_all(dir).with_context(|| format!("make the folder {}", dir.display()))?;
    let root = dir.join("root");
    bootstrap(mirror, &root)?;
    for (name, text) in FILES {
        let path = root.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    pack(&root, &dir.join("root.ext4"))?;
    fs::write(dir.join(STAMP), recipe()).with_context(|| format!("write into {}", dir.display()))
}

fn bootstrap(mirror: &Mirror, root: &Path) -> anyhow::Result<()> {
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.args(["--quiet", "--mode=root", "--variant=minbase"]);
    // Where packages of keyrings put them; a newer Debian has them nowhere else.
    mmdebstrap.arg("--keyring=/usr/share/keyrings");
    mmdebstrap.arg(format!("--components={}", mirror.components));
    mmdebstrap.arg(format!("--include={}", PACKAGES.join(",")));
    mmdebstrap.args(LEFT_OUT.map(|path| format!("--dpkgopt=path-exclude={path}")));
    mmdebstrap.arg(format!(
        "--customize-hook=chroot \"$1\" systemctl enable {ENABLED}"
    ));
    mmdebstrap.arg(&mirror.codename).arg(root).arg(&mirror.url);
    command::quietly(&mut mmdebstrap)
}

/// Fills a file system without mounting it.
fn pack(root: &Path, disk: &Path) -> anyhow::Result<()> {
    let file = fs::File::create(disk).with_context(|| format!("make {}", disk.display()))?;
    file.set_len(DISK_BYTES)
        .with_context(|| format!("make {} large enough", disk.display()))?;
    let program = workspace::program("mke2fs").context("mke2fs was found before")?;
    let mut mke2fs = Command::new(program);
    mke2fs.args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0"]);
    command::quietly(mke2fs.arg("-d").arg(root).arg(disk))
}

/// The mirror that the host's own apt takes its distribution from.
fn own_mirror() -> Option<Mirror> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format"]);
    targets.arg("$(CREATED_BY) $(CODENAME) $(COMPONENT) $(ORIGIN) $(REPO_URI)");
    targets.arg("Created-By: Packages");
    let said = command::output(&mut targets).ok()?;
    find_mirror(codename(&release)?, &said)
}

/// Reads `/etc/os-release`.
fn codename(release: &str) -> Option<&str> {
    let line = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(line.trim_matches('"'))
}

/// Reads what `apt-get indextargets` says in the format above.
fn find_mirror(codename: &str, said: &str) -> Option<Mirror> {
    said.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let ["Packages", suite, "main", origin, url] = fields[..] else {
            return None;
        };
        let components = match origin {
            "Debian" => "main",
            "Ubuntu" => "main,universe",
            _ => return None,
        };
        (suite == codename).then(|| Mirror {
            url: url.to_owned(),
            codename: codename.to_owned(),
            components,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codename_is_read_with_and_without_quotes() {
        let check = |release: &str, expected| assert_eq!(codename(release), expected, "{release}");
        check(
            "NAME=\"Debian GNU/Linux\"\nVERSION_CODENAME=bookworm\nID=debian\n",
            Some("bookworm"),
        );
        check("VERSION_CODENAME=\"noble\"\n", Some("noble"));
        check("NAME=Fedora\n", None);
    }

    #[test]
    fn the_mirror_is_that_of_the_release_itself() {
        let said = "Packages nodistro main . https://deb.nodesource.com/node_20.x/\n\
                    Packages bookworm-updates main Debian http://mirror/debian/\n\
                    Packages bookworm contrib Debian http://mirror/debian/\n\
                    Packages bookworm main Debian http://mirror/debian/\n";
        let mirror = find_mirror("bookworm", said).unwrap();
        assert_eq!(
            (mirror.url.as_str(), mirror.components),
            ("http://mirror/debian/", "main")
        );
        assert_eq!(find_mirror("trixie", said), None);
        assert_eq!(find_mirror("bookworm", ""), None);
    }
}
