//! How long tests wait for what has to happen. The one place that knows of slower machines, such as a virtual one with an
//! emulated processor.

use std::sync::OnceLock;
use std::time::Duration;

/// Says how many times slower the machine is than one that the bounds were written for.
const VARIABLE: &str = "IMDS_TEST_TIME_SCALE";

/// The bound that this machine gets for something that has to happen within `bound` on a usual one.
///
/// Not for silence: how long nothing must come is no matter of speed.
///
/// # Panics
/// When `IMDS_TEST_TIME_SCALE` is set to something else than a number from 1 to 100.
#[must_use]
pub fn patience(bound: Duration) -> Duration {
    static SCALE: OnceLock<u32> = OnceLock::new();
    bound * *SCALE.get_or_init(|| scale(std::env::var(VARIABLE).ok().as_deref()))
}

fn scale(set: Option<&str>) -> u32 {
    let Some(set) = set else { return 1 };
    let scale = set.parse().ok().filter(|scale| (1..=100).contains(scale));
    scale.unwrap_or_else(|| panic!("{VARIABLE} is {set:?}, not a number from 1 to 100"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_as_they_stand_unless_the_machine_is_slow() {
        assert_eq!(scale(None), 1);
        assert_eq!(scale(Some("6")), 6);
        for wrong in ["", "0", "101", "fast"] {
            assert!(std::panic::catch_unwind(|| scale(Some(wrong))).is_err());
        }
    }
}
