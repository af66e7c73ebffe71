//! Points in time and the three forms in which the service writes them. Nothing here reads a clock.

use std::fmt;

use serde::{Deserialize, Serialize};

const SECONDS_A_DAY: u64 = 86_400;
const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// The whole second that it lies in.
    #[must_use]
    pub fn seconds(self) -> UnixSeconds {
        UnixSeconds(self.0 / 1000)
    }

    /// `2023-06-13T08:32:59.042Z`, for people: no document of EC2's has fractions.
    #[must_use]
    pub fn iso(self) -> impl fmt::Display {
        fmt::from_fn(move |f| {
            let whole = self.seconds().iso().to_string();
            write!(f, "{}.{:03}Z", whole.trim_end_matches('Z'), self.0 % 1000)
        })
    }
}

/// Seconds since 1970-01-01T00:00:00Z.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct UnixSeconds(pub u64);

impl UnixSeconds {
    /// `2023-06-13T08:32:59Z`, as all JSON documents but events have it.
    #[must_use]
    pub fn iso(self) -> impl fmt::Display {
        let at = CivilTime::of(self);
        fmt::from_fn(move |f| {
            let CivilTime {
                year,
                month,
                day,
                hour,
                minute,
                second,
                ..
            } = at;
            write!(
                f,
                "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
            )
        })
    }

    /// `Tue, 13 Jun 2023 08:32:59 GMT`: the IMF-fixdate of RFC 9110, 5.6.7, as headers have it.
    #[must_use]
    pub fn imf_fixdate(self) -> impl fmt::Display {
        let at = CivilTime::of(self);
        fmt::from_fn(move |f| {
            let CivilTime {
                year,
                day,
                hour,
                minute,
                second,
                ..
            } = at;
            let (weekday, month) = (at.weekday_name(), at.month_name());
            write!(
                f,
                "{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT"
            )
        })
    }

    /// `1 May 2021 22:00:00 GMT`, as maintenance events have it: no leading zero of the day.
    #[must_use]
    pub fn event_date(self) -> impl fmt::Display {
        let at = CivilTime::of(self);
        fmt::from_fn(move |f| {
            let CivilTime {
                year,
                day,
                hour,
                minute,
                second,
                ..
            } = at;
            write!(
                f,
                "{day} {} {year:04} {hour:02}:{minute:02}:{second:02} GMT",
                at.month_name()
            )
        })
    }

    /// Reads `2023-06-13T08:32:59Z`, and nothing else.
    #[must_use]
    pub fn from_iso(text: &str) -> Option<Self> {
        let bytes: &[u8; 20] = text.as_bytes().try_into().ok()?;
        for (at, separator) in [
            (4, b'-'),
            (7, b'-'),
            (10, b'T'),
            (13, b':'),
            (16, b':'),
            (19, b'Z'),
        ] {
            if bytes[at] != separator {
                return None;
            }
        }
        let number = |from: usize, to: usize| {
            bytes[from..to].iter().try_fold(0u64, |sum, digit| {
                digit
                    .is_ascii_digit()
                    .then(|| sum * 10 + u64::from(digit - b'0'))
            })
        };
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        if year < 1970 || hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let days = days_from_civil(year, month, day);
        let at = Self(days * SECONDS_A_DAY + hour * 3600 + minute * 60 + second);
        // Catches month 13 and 30 February: they come back as another day.
        let back = CivilTime::of(at);
        ((back.year, back.month, back.day) == (year, month, day)).then_some(at)
    }
}

struct CivilTime {
    days: u64,
    year: u64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl CivilTime {
    /// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`, for days since 1970 or later.
    fn of(UnixSeconds(seconds): UnixSeconds) -> Self {
        let (days, rest) = (seconds / SECONDS_A_DAY, seconds % SECONDS_A_DAY);
        let z = days + 719_468;
        let (era, day_of_era) = (z / 146_097, z % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let month = if shifted_month < 10 {
            shifted_month + 3
        } else {
            shifted_month - 9
        };
        Self {
            days,
            year: year_of_era + era * 400 + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * shifted_month + 2) / 5 + 1,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
        }
    }

    fn weekday_name(&self) -> &'static str {
        WEEKDAYS[(self.days % 7) as usize]
    }

    fn month_name(&self) -> &'static str {
        MONTHS[(self.month - 1) as usize]
    }
}

/// The inverse of [`CivilTime::of`] for valid dates from 1970 on.
fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let (era, year_of_era) = (year / 400, year % 400);
    let shifted_month = (month + 9) % 12;
    let day_of_year = (153 * shifted_month + 2) / 5 + day;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).saturating_sub(719_469)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(seconds: u64, iso: &str, imf: &str, event: &str) {
        let at = UnixSeconds(seconds);
        assert_eq!(at.iso().to_string(), iso);
        assert_eq!(at.imf_fixdate().to_string(), imf);
        assert_eq!(at.event_date().to_string(), event);
        assert_eq!(UnixSeconds::from_iso(iso), Some(at));
    }

    #[test]
    fn times_are_written_in_the_three_forms() {
        check(
            0,
            "1970-01-01T00:00:00Z",
            "Thu, 01 Jan 1970 00:00:00 GMT",
            "1 Jan 1970 00:00:00 GMT",
        );
        // The example of RFC 9110.
        check(
            784_111_777,
            "1994-11-06T08:49:37Z",
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "6 Nov 1994 08:49:37 GMT",
        );
        check(
            951_782_400,
            "2000-02-29T00:00:00Z",
            "Tue, 29 Feb 2000 00:00:00 GMT",
            "29 Feb 2000 00:00:00 GMT",
        );
        check(
            1_735_689_599,
            "2024-12-31T23:59:59Z",
            "Tue, 31 Dec 2024 23:59:59 GMT",
            "31 Dec 2024 23:59:59 GMT",
        );
        check(
            1_548_061_243,
            "2019-01-21T09:00:43Z",
            "Mon, 21 Jan 2019 09:00:43 GMT",
            "21 Jan 2019 09:00:43 GMT",
        );
    }

    #[test]
    fn milliseconds_are_written_with_all_their_digits() {
        for (millis, iso) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (784_111_777_042, "1994-11-06T08:49:37.042Z"),
        ] {
            assert_eq!(UnixMillis(millis).iso().to_string(), iso);
        }
    }

    #[test]
    fn what_is_no_time_is_not_read() {
        for text in [
            "",
            "2023-06-13T08:32:59",
            "2023-06-13T08:32:59.0Z",
            "2023-06-13 08:32:59Z",
            "2023-13-01T00:00:00Z",
            "2023-00-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2023-01-00T00:00:00Z",
            "2023-01-01T24:00:00Z",
            "1969-12-31T23:59:59Z",
            "+023-01-01T00:00:00Z",
        ] {
            assert_eq!(UnixSeconds::from_iso(text), None, "{text}");
        }
    }
}
