//! How many requests, and how many new connections, a guest may make each second.

use std::sync::atomic::{AtomicU64, Ordering};

const SECOND_NANOSECONDS: u64 = 1_000_000_000;

/// The allowance of one guest, kept as the moment at which everything that was asked would have been asked evenly (the
/// generic cell rate algorithm): one number, no timer. A second's allowance may be used at once.
#[derive(Debug, Default)]
pub struct Throttle(AtomicU64);

impl Throttle {
    /// Takes one request off the allowance of `per_second` (0 is no limit) at `now` on the server's own clock; false
    /// when it is used up.
    pub fn admits(&self, per_second: u32, now_nanoseconds: u64) -> bool {
        if per_second == 0 {
            return true;
        }
        let cost = SECOND_NANOSECONDS / u64::from(per_second);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |even| {
                let next = even.max(now_nanoseconds) + cost;
                (next - now_nanoseconds <= SECOND_NANOSECONDS).then_some(next)
            });
        taken.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(throttle: &Throttle, per_second: u32, now: u64, asked: u32, admitted: u32) {
        let count = (0..asked)
            .filter(|_| throttle.admits(per_second, now))
            .count();
        assert_eq!(count, admitted as usize, "{per_second} a second at {now}");
    }

    #[test]
    fn a_second_admits_its_requests_and_no_more() {
        let throttle = Throttle::default();
        check(&throttle, 100, SECOND_NANOSECONDS, 1000, 100);
        check(&throttle, 100, SECOND_NANOSECONDS, 1, 0);
        check(&throttle, 100, SECOND_NANOSECONDS * 3 / 2, 1000, 50);
        check(&throttle, 100, SECOND_NANOSECONDS * 60, 1000, 100);
    }

    #[test]
    fn zero_is_no_limit() {
        check(&Throttle::default(), 0, 0, 10_000, 10_000);
    }
}
