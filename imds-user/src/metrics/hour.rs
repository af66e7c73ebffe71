//! The counts of one instance in one hour, as bytes: for each minute in which something was counted, in order, its number in the
//! hour (one byte) and both counts (7 bits a byte, the lowest first; the highest bit says that another follows).

use std::collections::BTreeMap;

use super::{Counts, Minute};

const MINUTES: u64 = 60;

/// Writes those minutes of an hour in which something was counted; those of other hours are left out.
#[must_use]
pub fn encode(hour: u64, counts: &BTreeMap<Minute, Counts>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let begin = hour.saturating_mul(MINUTES);
    for (minute, counts) in counts.range(Minute(begin)..Minute(begin.saturating_add(MINUTES))) {
        if counts.is_nothing() {
            continue;
        }
        // Less than 60.
        bytes.push((minute.0 - begin) as u8);
        push(&mut bytes, counts.no_token);
        push(&mut bytes, counts.no_token_rejected);
    }
    bytes
}

/// Reads what [`encode`] wrote. `None` if it is not that.
#[must_use]
pub fn decode(hour: u64, bytes: &[u8]) -> Option<BTreeMap<Minute, Counts>> {
    let mut counts = BTreeMap::new();
    let mut rest = bytes.iter();
    while let Some(minute) = rest.next() {
        let minute = u64::from(*minute);
        if minute >= MINUTES {
            return None;
        }
        let minute = Minute(hour.checked_mul(MINUTES)?.checked_add(minute)?);
        let of_minute = Counts {
            no_token: take(&mut rest)?,
            no_token_rejected: take(&mut rest)?,
        };
        counts.insert(minute, of_minute);
    }
    Some(counts)
}

fn push(bytes: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take<'a>(bytes: &mut impl Iterator<Item = &'a u8>) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = bytes.next()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(counts: &[(u64, u64, u64)], bytes: &[u8]) {
        let counts: BTreeMap<_, _> = counts
            .iter()
            .map(|(minute, no_token, no_token_rejected)| {
                let counts = Counts {
                    no_token: *no_token,
                    no_token_rejected: *no_token_rejected,
                };
                (Minute(*minute), counts)
            })
            .collect();
        assert_eq!(encode(2, &counts), bytes);
        assert_eq!(decode(2, bytes), Some(counts));
    }

    #[test]
    fn an_hour_is_as_long_as_something_was_counted_in_it() {
        check(&[], &[]);
        check(&[(120, 1, 0)], &[0, 1, 0]);
        check(
            &[(121, 127, 128), (179, 0, 300)],
            &[1, 127, 0x80, 1, 59, 0, 0xac, 2],
        );
        let mut most = vec![5];
        most.extend([0xff; 9]);
        most.push(1);
        most.push(0);
        check(&[(125, u64::MAX, 0)], &most);
    }

    #[test]
    fn other_hours_and_nothing_are_left_out() {
        let one = Counts {
            no_token: 1,
            no_token_rejected: 0,
        };
        let counts = BTreeMap::from([
            (Minute(119), one),
            (Minute(120), Counts::default()),
            (Minute(180), one),
        ]);
        assert!(encode(2, &counts).is_empty());
    }

    #[test]
    fn what_is_no_hour_is_not_read() {
        for bytes in [&[60, 1, 1][..], &[0], &[0, 1], &[0, 0x80], &[0; 5]] {
            assert_eq!(decode(2, bytes), None, "{bytes:?}");
        }
        assert_eq!(decode(2, &[0xff; 12]), None);
        assert_eq!(decode(u64::MAX, &[0, 1, 1]), None);
    }
}
