//! Giving memory back to the system that was needed for a moment only.

/// Gives back what the allocator keeps for later. Reading a configuration takes many times the memory of what is kept of
/// it, once at every start and reload: ten thousand instances leave the daemon with 180 MB otherwise, of which it uses 20.
///
/// Only glibc's allocator has to be asked.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code, reason = "no crate in use wraps malloc_trim")]
        // SAFETY: malloc_trim takes no pointer, moves no allocation, and may be called by any thread at any time.
        // Its answer only says whether there was something to give back.
        unsafe {
            libc::malloc_trim(0)
        };
    }
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    fn resident_kib() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.parse().ok())
            .expect("a number of kB")
    }

    #[test]
    fn what_was_needed_for_a_moment_is_given_back() {
        const PIECES: usize = 64 << 10;
        const KIB: usize = PIECES;
        let mut pieces: Vec<Vec<u8>> = (0..PIECES).map(|_| vec![1; 1 << 10]).collect();
        // What is kept lies behind all the rest, so that the allocator does not shrink by itself.
        let kept = pieces.pop();
        drop(pieces);
        let before = resident_kib();
        give_back();
        let after = resident_kib();
        // Half of it, since other tests run meanwhile.
        assert!(after + KIB / 2 < before, "{before} KiB, then {after} KiB");
        assert_eq!(kept.map_or(0, |piece| piece.len()), 1 << 10);
    }
}
