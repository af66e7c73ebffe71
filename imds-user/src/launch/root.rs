//! A guest's file system: its own volume, with the host's programs in it, read-only.
//!
//! What a guest sees of the host is what is listed here, and of that what everybody may read: the host's root is nobody
//! to it. The volume is memory, bounded, and outlives stops and starts; it is filled while it is new, when no guest has
//! seen it yet. Later a guest may have put anything where we would write, so nothing is: a start only mounts, on
//! folders at the top of the volume that are folders still.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// The host's folders of programs. On most hosts all but the first are links into it.
const PROGRAMS: [&str; 9] = [
    "usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "libexec", "opt",
];

/// What of /etc belongs to those programs: a copy, as far as everybody may read it. Nothing that says who may enter the
/// host, how it reaches others, or what it runs.
const SETTINGS: [&str; 34] = [
    "alternatives",
    "bash.bashrc",
    "bashrc",
    "ca-certificates",
    "ca-certificates.conf",
    "crypto-policies",
    "debian_version",
    "fonts",
    "gai.conf",
    "host.conf",
    "inputrc",
    "iproute2",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "locale.conf",
    "localtime",
    "magic",
    "magic.mime",
    "mime.types",
    "networks",
    "os-release",
    "pki",
    "profile",
    "protocols",
    "python3",
    "rpc",
    "services",
    "shells",
    "ssl",
    "terminfo",
    "timezone",
    "vim",
];

/// Folders of the guest's own, and who may what there.
const FOLDERS: [(&str, u32); 20] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("media", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/mail", 0o755),
    ("var/opt", 0o755),
    ("var/spool", 0o755),
    ("var/tmp", 0o1777),
    ("etc/skel", 0o755),
];

/// Files of /etc that are the guest's own.
const FILES: [(&str, &str); 6] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    ("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n",
    ),
    // No name server: a lookup fails at once instead of waiting for one that this network does not have.
    ("etc/resolv.conf", ""),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/fstab", ""),
];

/// Devices that harm nobody.
const DEVICES: [&str; 6] = ["full", "null", "random", "tty", "urandom", "zero"];

/// Links in /dev.
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Files and folders that a volume may have: a kilobyte of the kernel's memory each.
const INODES_MAX: u32 = 65_536;

/// The largest file of the host's settings that is copied: the linker's cache and bundles of certificates are smaller.
const COPIED_BYTES_MAX: u64 = 4 << 20;

/// A folder that everybody can reach, for the moment in which the guest's root is mounted there: the guest's own root
/// may not look into the state directory. Only a mount namespace of the guest's ever has it there.
const WAY_IN: &str = "/tmp";

/// A part of the file system that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", path.display())]
pub struct RootError {
    action: &'static str,
    path: PathBuf,
    #[source]
    cause: io::Error,
}

/// Makes sure of a volume at a folder, of this size, for the guest whose root is this user id of the host; whether it
/// is new.
///
/// # Errors
/// When the kernel refuses.
pub fn mount_volume(volume: &Path, bytes: u64, uid: u32) -> Result<bool, RootError> {
    if is_mounted(volume) {
        return Ok(false);
    }
    fs::create_dir_all(volume).map_err(failed("make", volume))?;
    let options = format!("mode=755,uid={uid},gid={uid},size={bytes},nr_inodes={INODES_MAX}");
    mount(
        Some("imds"),
        volume,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(options.as_str()),
    )
    .map_err(failed("mount", volume))?;
    if let Err(error) = fill(volume, uid) {
        // Half a volume would be taken for a whole one.
        umount2(volume, MntFlags::MNT_DETACH).ok();
        return Err(error);
    }
    Ok(true)
}

/// Takes a volume away, with all that is in it.
///
/// # Errors
/// When the kernel refuses.
pub fn unmount_volume(volume: &Path) -> Result<(), RootError> {
    while is_mounted(volume) {
        umount2(volume, MntFlags::MNT_DETACH).map_err(failed("unmount", volume))?;
    }
    Ok(())
}

/// Whether something is mounted right here.
fn is_mounted(folder: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    places.any(|place| Path::new(place) == folder)
}

/// Builds the guest's view in the mount namespace of the calling process, which must be the guest's own and private:
/// the volume, and on it the host's programs, devices, and memory for what a boot leaves. At the end it stands where
/// [`enter`] finds it.
///
/// # Errors
/// When the kernel refuses, or the guest made something else of a folder that is needed.
pub fn build(volume: &Path, uid: u32) -> Result<(), RootError> {
    for name in PROGRAMS {
        let source = Path::new("/").join(name);
        // A link is in the volume already.
        if source.is_dir() && !source.is_symlink() {
            let target = folder_in(volume, name)?;
            bind_read_only(&source, &target)?;
        }
    }
    let ids = format!("uid={uid},gid={uid}");
    let dev = folder_in(volume, "dev")?;
    mount_memory(
        &dev,
        &format!("mode=755,size=64k,{ids}"),
        MsFlags::MS_NOEXEC,
    )?;
    make_devices(&dev, uid)?;
    let shm = dev.join("shm");
    mount_memory(
        &shm,
        &format!("mode=1777,size=16m,{ids}"),
        MsFlags::MS_NOEXEC,
    )?;
    let run = folder_in(volume, "run")?;
    mount_memory(&run, &format!("mode=755,size=16m,{ids}"), MsFlags::empty())?;
    let tmp = folder_in(volume, "tmp")?;
    mount_memory(&tmp, &format!("mode=1777,size=64m,{ids}"), MsFlags::empty())?;
    for name in ["proc", "sys"] {
        folder_in(volume, name)?;
    }
    bind(volume, Path::new(WAY_IN), MsFlags::MS_REC)
}

/// Makes what [`build`] has built the root of the calling process, in a mount namespace of the guest's own; nothing else
/// of the host's is mounted there afterwards. What it says is a fault that a guest can live with.
///
/// # Errors
/// When the kernel refuses.
#[expect(
    clippy::disallowed_methods,
    reason = "a change of root is one of the working directory; this process has one thread"
)]
pub fn enter() -> Result<Option<String>, RootError> {
    let way_in = Path::new(WAY_IN);
    let inside = |name| way_in.join(name);
    let proc_flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let proc = inside("proc");
    mount(Some("proc"), &proc, Some("proc"), proc_flags, None::<&str>)
        .map_err(failed("mount", &proc))?;
    let sys = inside("sys");
    let sys_flags = proc_flags | MsFlags::MS_RDONLY;
    // A host that is a container itself may show too little of its own /sys to give a guest one.
    let trouble = mount(Some("sysfs"), &sys, Some("sysfs"), sys_flags, None::<&str>)
        .err()
        .map(|errno| format!("/sys is empty: {}", errno.desc()));
    let pts = inside("dev/pts");
    mount(
        Some("devpts"),
        &pts,
        Some("devpts"),
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        Some("newinstance,ptmxmode=0666,mode=620,gid=5"),
    )
    .map_err(failed("mount", &pts))?;
    // A mount made in this namespace: one that came from the host's cannot become the root.
    bind(way_in, way_in, MsFlags::MS_REC)?;
    std::env::set_current_dir(way_in).map_err(failed("go to", way_in))?;
    // The old root comes to lie upon the new one, and is taken from there: pivot_root(2), "pivot_root(".", ".")".
    nix::unistd::pivot_root(".", ".").map_err(failed("enter", way_in))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(failed("leave the host's files by", "/"))?;
    std::env::set_current_dir("/").map_err(failed("go to", "/"))?;
    Ok(trouble)
}

/// Fills a volume that nobody has seen yet.
fn fill(volume: &Path, uid: u32) -> Result<(), RootError> {
    for (name, mode) in FOLDERS {
        make_folder(&volume.join(name), mode, uid)?;
    }
    for name in PROGRAMS {
        let source = Path::new("/").join(name);
        let target = volume.join(name);
        if let Ok(leads_to) = fs::read_link(&source) {
            symlink(leads_to, &target).map_err(failed("make", &target))?;
        } else if source.is_dir() {
            make_folder(&target, 0o755, uid)?;
        }
    }
    for (name, text) in FILES {
        let path = volume.join(name);
        fs::write(&path, text).map_err(failed("write", &path))?;
        let mode = fs::Permissions::from_mode(0o644);
        fs::set_permissions(&path, mode).map_err(failed("open", &path))?;
        chown(&path, Some(uid), Some(uid)).map_err(failed("hand over", &path))?;
    }
    let run = volume.join("var/run");
    symlink("/run", &run).map_err(failed("make", &run))?;
    for name in SETTINGS {
        copy(
            &Path::new("/etc").join(name),
            &volume.join("etc").join(name),
            uid,
        )?;
    }
    Ok(())
}

/// Copies what everybody may read.
fn copy(source: &Path, target: &Path, uid: u32) -> Result<(), RootError> {
    let Ok(metadata) = fs::symlink_metadata(source) else {
        return Ok(());
    };
    let may = |bits: u32| metadata.permissions().mode() & bits == bits;
    if metadata.is_symlink() {
        let leads_to = fs::read_link(source).map_err(failed("read", source))?;
        symlink(leads_to, target).map_err(failed("make", target))?;
    } else if metadata.is_dir() && may(0o005) {
        make_folder(target, 0o755, uid)?;
        for entry in fs::read_dir(source).map_err(failed("read", source))? {
            let entry = entry.map_err(failed("read", source))?;
            copy(&entry.path(), &target.join(entry.file_name()), uid)?;
        }
        return Ok(());
    } else if metadata.is_file() && may(0o004) && metadata.len() <= COPIED_BYTES_MAX {
        fs::copy(source, target).map_err(failed("copy", source))?;
    } else {
        return Ok(());
    }
    lchown(target, Some(uid), Some(uid)).map_err(failed("hand over", target))
}

fn make_folder(path: &Path, mode: u32, uid: u32) -> Result<(), RootError> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(failed("make", path))?;
    // Not by the builder, whose mode the umask cuts.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("open", path))?;
    chown(path, Some(uid), Some(uid)).map_err(failed("hand over", path))
}

/// A folder at the top of a volume to mount something on. A guest may have removed it or made a link of it, and a mount
/// follows links, out of the volume.
fn folder_in(volume: &Path, name: &str) -> Result<PathBuf, RootError> {
    let path = volume.join(name);
    match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_dir() => Ok(path),
        Ok(_) => Err(failed("mount on", &path)(Errno::ENOTDIR)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir(&path).map_err(failed("make", &path))?;
            Ok(path)
        }
        Err(cause) => Err(failed("look at", &path)(cause)),
    }
}

fn make_devices(dev: &Path, uid: u32) -> Result<(), RootError> {
    for name in DEVICES {
        let target = dev.join(name);
        fs::write(&target, "").map_err(failed("make", &target))?;
        bind(&Path::new("/dev").join(name), &target, MsFlags::empty())?;
    }
    for (name, leads_to) in DEVICE_LINKS {
        let link = dev.join(name);
        symlink(leads_to, &link).map_err(failed("make", &link))?;
    }
    for (name, mode) in [("pts", 0o755), ("shm", 0o1777)] {
        make_folder(&dev.join(name), mode, uid)?;
    }
    Ok(())
}

fn mount_memory(target: &Path, options: &str, more: MsFlags) -> Result<(), RootError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | more;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options))
        .map_err(failed("mount", target))
}

/// A bind mount takes its flags only when it is mounted once more.
fn bind_read_only(source: &Path, target: &Path) -> Result<(), RootError> {
    bind(source, target, MsFlags::empty())?;
    let flags = MsFlags::MS_BIND
        | MsFlags::MS_REMOUNT
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV;
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>).map_err(failed("close", target))
}

fn bind(source: &Path, target: &Path, more: MsFlags) -> Result<(), RootError> {
    let flags = MsFlags::MS_BIND | more;
    mount(Some(source), target, None::<&str>, flags, None::<&str>)
        .map_err(failed("mount on", target))
}

fn failed<E: Into<io::Error>>(
    action: &'static str,
    path: impl AsRef<OsStr>,
) -> impl FnOnce(E) -> RootError {
    let path = PathBuf::from(path.as_ref());
    move |cause| RootError {
        action,
        path,
        cause: cause.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_what_everybody_may_read_and_no_more() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: files are handed to another user");
            return;
        }
        let home = std::env::temp_dir().join(format!("imds-root-{}", std::process::id()));
        let from = home.join("from");
        fs::create_dir_all(from.join("shut")).unwrap();
        fs::write(from.join("open"), "text").unwrap();
        fs::write(from.join("secret"), "key").unwrap();
        fs::write(from.join("shut/inside"), "key").unwrap();
        symlink("/etc/shadow", from.join("link")).unwrap();
        let mode = |name: &str, mode| {
            fs::set_permissions(from.join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        mode("open", 0o644);
        mode("secret", 0o640);
        mode("shut", 0o750);
        mode("", 0o755);
        copy(&from, &home.join("to"), 4711).unwrap();
        let mut names: Vec<_> = fs::read_dir(home.join("to"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["link", "open"]);
        let link = home.join("to/link");
        assert!(link.is_symlink(), "a link is copied, not what it leads to");
        fs::remove_dir_all(home).unwrap();
    }

    #[test]
    fn nothing_is_mounted_on_what_a_guest_made_a_link() {
        let volume = std::env::temp_dir().join(format!("imds-volume-{}", std::process::id()));
        fs::create_dir(&volume).unwrap();
        symlink("/", volume.join("usr")).unwrap();
        fs::write(volume.join("dev"), "").unwrap();
        fs::create_dir(volume.join("run")).unwrap();
        assert!(folder_in(&volume, "usr").is_err());
        assert!(folder_in(&volume, "dev").is_err());
        assert_eq!(folder_in(&volume, "run").unwrap(), volume.join("run"));
        assert_eq!(folder_in(&volume, "sys").unwrap(), volume.join("sys"));
        fs::remove_dir_all(volume).unwrap();
    }

    #[test]
    fn no_setting_of_the_host_that_is_shared_is_one_that_opens_it() {
        for name in [
            "shadow",
            "ssh",
            "sudoers",
            "imds.toml",
            "environment",
            "passwd",
        ] {
            assert!(!SETTINGS.contains(&name), "{name}");
        }
    }
}
