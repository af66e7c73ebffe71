//! The few calls of bpf(2) that the bench makes itself: an empty program, and runs of a program by the kernel.
#![expect(
    unsafe_code,
    reason = "aya loads programs from objects only, and an empty one must not be in the shipped object"
)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Instant,
};

/// Commands and the program type (linux/bpf.h).
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;

/// `r0 = -1` (TC_ACT_UNSPEC: on to the next program) and `exit`, as `port_ingress` ends for a foreign packet.
const EMPTY: [u64; 2] = [instruction(0xb7, -1), instruction(0x95, 0)];

/// An instruction of register 0: 8 bits of code, 8 of registers, 16 of offset, 32 of number.
const fn instruction(code: u8, number: i32) -> u64 {
    code as u64 | (number as u32 as u64) << 32
}

/// The start of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The start of `union bpf_attr` for BPF_PROG_TEST_RUN.
#[repr(C)]
struct TestAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// Loads the program that does nothing.
pub(crate) fn load_empty() -> io::Result<OwnedFd> {
    let licence = c"GPL";
    let mut attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        insn_cnt: EMPTY.len() as u32,
        insns: EMPTY.as_ptr() as u64,
        license: licence.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    let number = bpf(BPF_PROG_LOAD, &mut attr)?;
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// What became of a frame.
pub(crate) struct Ran {
    pub(crate) action: u32,
    /// One run, on average.
    pub(crate) nanoseconds: f64,
}

/// Runs the program this often on the frame. Timed here: the kernel's own figure has no fractions of nanoseconds, and what
/// the call itself takes is nothing over a million runs.
pub(crate) fn run(program: impl AsFd, frame: &[u8], repeat: u32) -> io::Result<Ran> {
    let mut attr = TestAttr {
        prog_fd: program.as_fd().as_raw_fd() as u32,
        retval: 0,
        data_size_in: frame.len() as u32,
        data_size_out: 0,
        data_in: frame.as_ptr() as u64,
        data_out: 0,
        repeat,
        duration: 0,
    };
    let started = Instant::now();
    bpf(BPF_PROG_TEST_RUN, &mut attr)?;
    let took = started.elapsed();
    Ok(Ran {
        action: attr.retval,
        nanoseconds: took.as_nanos() as f64 / f64::from(repeat),
    })
}

fn bpf<A>(command: libc::c_int, attr: &mut A) -> io::Result<libc::c_int> {
    let (attr, bytes): (*mut A, _) = (attr, size_of::<A>());
    // SAFETY: `attr` is the command's part of `union bpf_attr` up to `bytes`, which the kernel takes for all (what lies
    // behind counts as zero). What it points to is only read, and lives in our caller until the call returns.
    let code = unsafe { libc::syscall(libc::SYS_bpf, command, attr, bytes) };
    if code < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(code).map_err(io::Error::other)
}
