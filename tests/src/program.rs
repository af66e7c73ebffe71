//! Somebody else's program on a hook of the kernel that ours is on as well: it counts the packets that it sees, and says
//! of each the same.
#![expect(
    unsafe_code,
    reason = "aya loads programs from objects only; a few calls of bpf(2) make one by hand"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use tempfile::TempDir;

use crate::namespace::Namespace;
use crate::process::run;

/// On to the next program; `TCX_NEXT` is the same number.
pub const TC_ACT_UNSPEC: i32 = -1;
/// The packet passes, and nobody else is asked; `TCX_PASS` is the same number.
pub const TC_ACT_OK: i32 = 0;

// Commands, types and places, linux/bpf.h.
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;

/// A program of somebody else. Its filters stay on their interfaces when this is dropped, its TCX link does not.
pub struct ForeignProgram {
    program: OwnedFd,
    count: OwnedFd,
}

impl ForeignProgram {
    /// Loads one that says this of every packet.
    ///
    /// # Panics
    /// When the kernel refuses: the caller is root.
    #[must_use]
    pub fn load(verdict: i32) -> Self {
        let count = owned(bpf(BPF_MAP_CREATE, &mut [BPF_MAP_TYPE_ARRAY, 4, 8, 1, 0]));
        let count = count.expect("root may make a map");
        let program = load(&instructions(count.as_raw_fd(), verdict));
        Self {
            program: program.expect("root may load a program"),
            count,
        }
    }

    /// How many packets it saw.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn count(&self) -> u64 {
        let (key, mut value) = (0_u32, 0_u64);
        let mut attr = LookupAttr {
            map_fd: number(&self.count),
            padding: 0,
            key: (&raw const key) as u64,
            value: (&raw mut value) as u64,
            flags: 0,
        };
        bpf(BPF_MAP_LOOKUP_ELEM, &mut attr).expect("an array has its element 0");
        // SAFETY: the pointer is to `value`, which lives; the kernel wrote it through the number in `attr`, behind the
        // compiler's back.
        unsafe { (&raw const value).read_volatile() }
    }

    /// Puts it on an interface's way in by TCX, which runs before every filter of traffic control. It is there as long as
    /// the answer; none where the kernel has no TCX (before 6.6).
    ///
    /// # Panics
    /// When the kernel refuses for another reason.
    #[must_use]
    pub fn attach_tcx(&self, namespace: &Namespace, interface: &str) -> Option<OwnedFd> {
        let ifindex = namespace.index(interface);
        let mut attr = [
            number(&self.program),
            ifindex,
            BPF_TCX_INGRESS,
            0,
            0,
            0,
            0,
            0,
        ];
        match owned(namespace.enter(|| bpf(BPF_LINK_CREATE, &mut attr))) {
            Ok(link) => Some(link),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => None,
            Err(error) => panic!("TCX on {interface}: {error}"),
        }
    }

    /// Puts it on an interface's way in as a filter of traffic control, at this priority.
    ///
    /// # Panics
    /// When `tc` refuses.
    pub fn attach_filter(&self, namespace: &Namespace, interface: &str, priority: u16) {
        let pins = Pins::mount();
        let path = pins.path("program");
        let c_path = std::ffi::CString::new(path.as_str()).expect("a path without NUL");
        let mut attr = PinAttr {
            pathname: c_path.as_ptr() as u64,
            bpf_fd: number(&self.program),
            file_flags: 0,
        };
        bpf(BPF_OBJ_PIN, &mut attr).expect("a file system for programs takes one");
        // It may be there already, by ours.
        drop(namespace.run(&["tc", "qdisc", "add", "dev", interface, "clsact"]));
        let line = format!(
            "tc filter add dev {interface} ingress pref {priority} protocol all bpf da object-pinned {path}"
        );
        let words: Vec<&str> = line.split(' ').collect();
        let added = namespace.run(&words);
        assert!(added.status.success(), "{line}: {added:?}");
    }
}

/// A file system for programs of the test's own, for the moment in which `tc` is told of one.
struct Pins(TempDir);

impl Pins {
    fn mount() -> Self {
        let dir = tempfile::Builder::new().prefix("imds-bpf-").tempdir();
        let pins = Self(dir.expect("a temporary directory"));
        let mounted = run(&["mount", "-t", "bpf", "none", &pins.path("")]);
        assert!(mounted.status.success(), "{mounted:?}");
        pins
    }

    fn path(&self, name: &str) -> String {
        let path = self.0.path().join(name);
        path.to_str().expect("temporary paths are text").to_owned()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        drop(run(&["umount", &self.path("")]));
    }
}

/// Adds one to the element 0 of the map, and ends with the verdict.
fn instructions(map: libc::c_int, verdict: i32) -> [u64; 11] {
    [
        instruction(0x62, 10, 0, -4, 0), // *(u32 *)(r10 - 4) = 0
        instruction(0xbf, 2, 10, 0, 0),  // r2 = r10
        instruction(0x07, 2, 0, 0, -4),  // r2 += -4
        instruction(0x18, 1, 1, 0, map), // r1 = the map, in two
        instruction(0, 0, 0, 0, 0),
        instruction(0x85, 0, 0, 0, 1), // r0 = bpf_map_lookup_elem(r1, r2)
        instruction(0x15, 0, 0, 2, 0), // if r0 == 0, skip two
        instruction(0xb7, 1, 0, 0, 1), // r1 = 1
        instruction(0xdb, 0, 1, 0, 0), // lock *(u64 *)r0 += r1
        instruction(0xb7, 0, 0, 0, verdict), // r0 = verdict
        instruction(0x95, 0, 0, 0, 0), // exit
    ]
}

/// 8 bits of code, 4 of destination, 4 of source, 16 of offset, 32 of number.
fn instruction(code: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = number.to_le_bytes();
    u64::from_le_bytes([code, from << 4 | to, low, high, a, b, c, d])
}

/// The start of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// The same for BPF_MAP_LOOKUP_ELEM.
#[repr(C)]
struct LookupAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The same for BPF_OBJ_PIN.
#[repr(C)]
struct PinAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

fn load(instructions: &[u64]) -> io::Result<OwnedFd> {
    let licence = c"GPL";
    let mut attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        insns: instructions.as_ptr() as u64,
        license: licence.as_ptr() as u64,
    };
    owned(bpf(BPF_PROG_LOAD, &mut attr))
}

fn number(descriptor: &OwnedFd) -> u32 {
    u32::try_from(descriptor.as_raw_fd()).expect("an open descriptor is positive")
}

fn owned(made: io::Result<libc::c_int>) -> io::Result<OwnedFd> {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    made.map(|number| unsafe { OwnedFd::from_raw_fd(number) })
}

fn bpf<A>(command: libc::c_int, attr: &mut A) -> io::Result<libc::c_int> {
    let (attr, bytes): (*mut A, _) = (attr, size_of::<A>());
    // SAFETY: `attr` is the command's part of `union bpf_attr` up to `bytes`, which the kernel takes for all (what lies
    // behind counts as zero). What it points to lives in our caller until the call returns.
    let code = unsafe { libc::syscall(libc::SYS_bpf, command, attr, bytes) };
    if code < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(code).map_err(io::Error::other)
}
