//! Moments as a person types them: so long from now, or a time.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::instance::{UnixMillis, UnixSeconds};

/// The longest time from now: ten years, so that every moment has four digits of a year for a long time.
const SECONDS_MAX: u64 = 10 * 365 * 86_400;

/// Units, the largest first.
const UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];

/// A moment, as `90s`, `1h30m` or `2026-01-01T00:00:00Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum When {
    /// So many seconds from the moment that is spoken of.
    In(u64),
    /// At that time.
    At(UnixSeconds),
}

/// A text that is no moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhenError {
    /// A number alone.
    #[error("`{0}` has no unit: write `{0}s` for seconds, or `{0}m`, `{0}h`, `{0}d`")]
    NoUnit(String),
    /// Too far away.
    #[error("`{0}` is too long: at most ten years (`3650d`)")]
    TooLong(String),
    /// Neither form.
    #[error(
        "`{0}` is neither a time from now, such as `90s` or `1h30m`, nor a time in UTC, such as `2026-01-31T12:00:00Z`"
    )]
    Form(String),
}

impl When {
    /// The moment, counted from `start`.
    #[must_use]
    pub fn after(self, start: UnixSeconds) -> UnixSeconds {
        match self {
            Self::In(seconds) => UnixSeconds(start.0.saturating_add(seconds)),
            Self::At(at) => at,
        }
    }

    /// The same, to the millisecond.
    #[must_use]
    pub fn after_millis(self, start: UnixMillis) -> UnixMillis {
        match self {
            Self::In(seconds) => UnixMillis(start.0.saturating_add(seconds.saturating_mul(1000))),
            Self::At(at) => UnixMillis(at.0.saturating_mul(1000)),
        }
    }
}

impl FromStr for When {
    type Err = WhenError;

    fn from_str(text: &str) -> Result<Self, WhenError> {
        if let Some(at) = UnixSeconds::from_iso(text) {
            return Ok(Self::At(at));
        }
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(WhenError::NoUnit(text.to_owned()));
        }
        match seconds(text) {
            Some(seconds) if seconds <= SECONDS_MAX => Ok(Self::In(seconds)),
            Some(_) => Err(WhenError::TooLong(text.to_owned())),
            None => Err(WhenError::Form(text.to_owned())),
        }
    }
}

/// Numbers with units, each unit once and the larger before the smaller.
fn seconds(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut sum = 0u64;
    for (unit, unit_seconds) in UNITS {
        let Some((number, after)) = rest.split_once(unit) else {
            continue;
        };
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        // What has too many digits to be counted is as long as can be.
        let number: u64 = number.parse().unwrap_or(u64::MAX);
        sum = sum.saturating_add(number.saturating_mul(unit_seconds));
        rest = after;
    }
    (rest.is_empty() && !text.is_empty()).then_some(sum)
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = match self {
            Self::At(at) => return at.iso().fmt(f),
            Self::In(0) => return f.write_str("0s"),
            Self::In(seconds) => *seconds,
        };
        for (unit, unit_seconds) in UNITS {
            if rest >= unit_seconds {
                write!(f, "{}{unit}", rest / unit_seconds)?;
                rest %= unit_seconds;
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for When {
    type Error = WhenError;

    fn try_from(text: String) -> Result<Self, WhenError> {
        text.parse()
    }
}

impl From<When> for String {
    fn from(when: When) -> Self {
        when.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<When, &str>) {
        let parsed = text.parse::<When>().map_err(|error| error.to_string());
        assert_eq!(parsed, expected.map_err(str::to_owned), "{text}");
    }

    #[test]
    fn moments_are_read_as_people_write_them() {
        check("0s", Ok(When::In(0)));
        check("30s", Ok(When::In(30)));
        check("2m", Ok(When::In(120)));
        check("1h30m", Ok(When::In(5400)));
        check("1d2h3m4s", Ok(When::In(93_784)));
        check("90m", Ok(When::In(5400)));
        check("3650d", Ok(When::In(SECONDS_MAX)));
        check(
            "2026-01-01T00:00:00Z",
            Ok(When::At(UnixSeconds(1_767_225_600))),
        );
    }

    #[test]
    fn what_is_no_moment_is_answered_with_one() {
        check(
            "30",
            Err("`30` has no unit: write `30s` for seconds, or `30m`, `30h`, `30d`"),
        );
        let too_long = |text: &str| format!("`{text}` is too long: at most ten years (`3650d`)");
        for text in ["3651d", "99999999999999999999999s"] {
            check(text, Err(&too_long(text)));
        }
        for text in [
            "",
            "s",
            "2 m",
            "-2m",
            "+2m",
            "2m1h",
            "2m2m",
            "1.5h",
            "soon",
            "2min",
            "2026-01-01T00:00:00",
            "2026-02-30T00:00:00Z",
            "14:02",
        ] {
            let form = format!(
                "`{text}` is neither a time from now, such as `90s` or `1h30m`, nor a time in UTC, such as \
                 `2026-01-31T12:00:00Z`"
            );
            check(text, Err(&form));
        }
    }

    #[test]
    fn moments_are_written_as_they_are_read() {
        for text in ["0s", "1h30m", "2m", "1d4s", "2026-01-01T00:00:00Z"] {
            assert_eq!(text.parse::<When>().unwrap().to_string(), text);
        }
        assert_eq!(When::In(5400).to_string(), "1h30m");
    }

    #[test]
    fn a_moment_is_counted_from_another() {
        let now = UnixMillis(100_900);
        for (when, seconds, millis) in [
            (When::In(2), 102, 102_900),
            (When::At(UnixSeconds(7)), 7, 7000),
        ] {
            assert_eq!(when.after(now.seconds()), UnixSeconds(seconds));
            assert_eq!(when.after_millis(now), UnixMillis(millis));
        }
    }
}
