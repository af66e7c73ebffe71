//! A thread of another process in the test's hands, by ptrace(2): it makes the system calls that the test wants, fails where
//! the test wants, and never returns. So a process is examined as it is, without a door in it for tests.
//!
//! A tracer is a thread: the one that seized has to do the rest.

use std::fs;
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::process::eventually;
use registers::Registers;

/// A stopped thread. Dropping it lets it go on as if nothing had been.
pub struct Tracee {
    process: Pid,
    thread: Pid,
    registers: Registers,
    is_over: bool,
}

/// What became of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It returned this.
    Done(i64),
    /// It was refused.
    Refused(nix::errno::Errno),
    /// It was the end of the process.
    Killed(Signal),
}

/// What the ABI lets a function use below its stack pointer, in bytes, and some more: nobody has anything there.
const BELOW_STACK: u64 = 1024;

impl Tracee {
    /// Stops a thread by its name where it waits for events.
    ///
    /// # Panics
    /// When there is no such thread, or root may not trace it.
    #[must_use]
    pub fn seize(process: Pid, name: &str) -> Self {
        let thread = thread_of(process, name);
        ptrace::seize(thread, ptrace::Options::empty()).expect("root may trace");
        // A thread that is at work is caught elsewhere as well: it may go on, until it is caught there.
        let registers = eventually("a wait for events", Duration::from_secs(10), || {
            ptrace::interrupt(thread).expect("a seized thread can be stopped");
            wait(thread);
            let registers = Registers::of(thread);
            if registers.are_in_wait(thread) {
                return Some(registers);
            }
            ptrace::cont(thread, None).expect("a stopped thread can go on");
            None
        });
        Self {
            process,
            thread,
            registers,
            is_over: false,
        }
    }

    /// Makes the thread do a system call, and says what came of it.
    ///
    /// # Panics
    /// When the thread is not where system calls are made.
    pub fn call(&mut self, number: libc::c_long, arguments: [u64; 6]) -> Outcome {
        assert!(!self.is_over, "the process has ended");
        self.registers.for_call(number, arguments).set(self.thread);
        ptrace::step(self.thread, None).expect("a stopped thread can go on");
        match wait(self.thread) {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Signaled(_, signal, _) => {
                self.is_over = true;
                return Outcome::Killed(signal);
            }
            other => panic!("system call {number}: {other:?}"),
        }
        let result = Registers::of(self.thread).result();
        match i32::try_from(-result) {
            Ok(errno @ 1..=4095) => Outcome::Refused(nix::errno::Errno::from_raw(errno)),
            _ => Outcome::Done(result),
        }
    }

    /// Puts bytes where the thread can name them to the kernel, and says where. The next ones replace them.
    ///
    /// # Panics
    /// When there are too many.
    #[must_use]
    pub fn lend(&self, bytes: &[u8]) -> u64 {
        assert!(bytes.len() < 256, "as much as fits below the stack");
        let start = self.registers.stack() - BELOW_STACK;
        for (index, word) in bytes.chunks(8).enumerate() {
            let mut whole = [0; 8];
            whole[..word.len()].copy_from_slice(word);
            let address = start + 8 * index as u64;
            ptrace::write(self.thread, address as _, i64::from_ne_bytes(whole))
                .expect("the stack is writable");
        }
        start
    }

    /// Lets the thread go on with a system call that fails in this way, as if the kernel had said so.
    ///
    /// # Panics
    /// When the kernel does not let it go.
    pub fn fail(mut self, errno: nix::errno::Errno) {
        self.registers = self.registers.with_result(-i64::from(errno as i32));
    }

    /// Lets the thread go into a loop without an end: an instruction that jumps to itself.
    ///
    /// # Panics
    /// When the process has no such two bytes in what it may execute, or the kernel does not let it go.
    pub fn loop_forever(mut self) {
        let address = address_of(self.process, registers::JUMP_TO_ITSELF);
        self.registers = self.registers.at(address);
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        if !self.is_over {
            self.registers.set(self.thread);
            ptrace::detach(self.thread, None).expect("a stopped thread can be let go");
        }
    }
}

fn wait(thread: Pid) -> WaitStatus {
    waitpid(thread, Some(WaitPidFlag::__WALL)).expect("a traced thread can be waited for")
}

fn thread_of(process: Pid, name: &str) -> Pid {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("the process runs");
    let found = tasks.filter_map(Result::ok).find(|task| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
    });
    let task = found.unwrap_or_else(|| panic!("process {process} has no thread {name}"));
    let number = task.file_name().to_string_lossy().parse();
    Pid::from_raw(number.expect("threads are numbered"))
}

/// Where these bytes are in what the process may execute.
fn address_of(process: Pid, bytes: &[u8]) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).expect("root may look");
    let program = fs::read(format!("/proc/{process}/exe")).expect("a process has a program");
    for line in maps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [range, rights, offset, _, _, path] = fields[..] else {
            continue;
        };
        if !rights.contains('x') || !path.starts_with('/') || path.contains(".so") {
            continue;
        }
        let number = |text: &str| usize::from_str_radix(text, 16).expect("maps are hexadecimal");
        let (start, end) = range.split_once('-').expect("a range has two ends");
        let (start, offset) = (number(start), number(offset));
        let length = number(end) - start;
        let text = &program[offset..program.len().min(offset + length)];
        let found = text
            .chunks_exact(bytes.len())
            .position(|chunk| chunk == bytes);
        if let Some(index) = found {
            return (start + index * bytes.len()) as u64;
        }
    }
    panic!("process {process} executes nothing with {bytes:x?} in it");
}

/// The registers of a thread that was stopped in a system call, right behind the instruction that made it.
#[cfg(target_arch = "x86_64")]
mod registers {
    use nix::sys::ptrace;
    use nix::unistd::Pid;

    pub(super) const JUMP_TO_ITSELF: &[u8] = &[0xeb, 0xfe];
    const SYSCALL_BYTES: u64 = 2;
    /// In no system call, so that the kernel restarts none.
    const NO_CALL: u64 = u64::MAX;

    #[derive(Clone, Copy)]
    pub(super) struct Registers(libc::user_regs_struct);

    impl Registers {
        pub(super) fn of(thread: Pid) -> Self {
            Self(ptrace::getregs(thread).expect("a stopped thread has registers"))
        }

        /// Whether the thread waits for events. Outside of a system call the number of one is -1.
        pub(super) fn are_in_wait(self, _thread: Pid) -> bool {
            let waits = [libc::SYS_epoll_wait, libc::SYS_epoll_pwait];
            waits.map(i64::cast_unsigned).contains(&self.0.orig_rax)
        }

        pub(super) fn set(self, thread: Pid) {
            ptrace::setregs(thread, self.0).expect("a stopped thread takes registers");
        }

        pub(super) fn for_call(self, number: libc::c_long, arguments: [u64; 6]) -> Self {
            let [rdi, rsi, rdx, r10, r8, r9] = arguments;
            Self(libc::user_regs_struct {
                rip: self.0.rip - SYSCALL_BYTES,
                orig_rax: NO_CALL,
                rax: number.cast_unsigned(),
                rdi,
                rsi,
                rdx,
                r10,
                r8,
                r9,
                ..self.0
            })
        }

        pub(super) fn result(self) -> i64 {
            self.0.rax.cast_signed()
        }

        pub(super) fn with_result(mut self, result: i64) -> Self {
            self.0.rax = result.cast_unsigned();
            self.0.orig_rax = NO_CALL;
            self
        }

        pub(super) fn at(mut self, address: u64) -> Self {
            self.0.rip = address;
            self.0.orig_rax = NO_CALL;
            self
        }

        pub(super) fn stack(self) -> u64 {
            self.0.rsp
        }
    }
}

/// The same, by the names of 64-bit Arm's registers. Written from its ABI; the tests were not run there.
#[cfg(target_arch = "aarch64")]
mod registers {
    use nix::sys::ptrace;
    use nix::unistd::Pid;

    pub(super) const JUMP_TO_ITSELF: &[u8] = &[0x00, 0x00, 0x00, 0x14];
    const SYSCALL_BYTES: u64 = 4;

    #[derive(Clone, Copy)]
    pub(super) struct Registers(libc::user_regs_struct);

    impl Registers {
        pub(super) fn of(thread: Pid) -> Self {
            Self(ptrace::getregs(thread).expect("a stopped thread has registers"))
        }

        /// Whether the thread waits for events: it is right behind `svc #0`, and that number is still in its register.
        pub(super) fn are_in_wait(self, thread: Pid) -> bool {
            const SVC: i64 = 0xd400_0001;
            let before = (self.0.pc - SYSCALL_BYTES) as *mut std::ffi::c_void;
            let word = ptrace::read(thread, before).expect("a thread's code can be read");
            word & 0xffff_ffff == SVC && self.0.regs[8] == libc::SYS_epoll_pwait.cast_unsigned()
        }

        pub(super) fn set(self, thread: Pid) {
            ptrace::setregs(thread, self.0).expect("a stopped thread takes registers");
        }

        pub(super) fn for_call(mut self, number: libc::c_long, arguments: [u64; 6]) -> Self {
            self.0.pc -= SYSCALL_BYTES;
            self.0.regs[8] = number.cast_unsigned();
            self.0.regs[..6].copy_from_slice(&arguments);
            self
        }

        pub(super) fn result(self) -> i64 {
            self.0.regs[0].cast_signed()
        }

        pub(super) fn with_result(mut self, result: i64) -> Self {
            self.0.regs[0] = result.cast_unsigned();
            self
        }

        pub(super) fn at(mut self, address: u64) -> Self {
            self.0.pc = address;
            self
        }

        pub(super) fn stack(self) -> u64 {
            self.0.sp
        }
    }
}
