//! When a source is asked, and what is served meanwhile. Pure: time and randomness are arguments.
//!
//! Credentials are renewed long before they expire: botocore takes what has less than 10 minutes and up to 10 more left
//! for a sign of an outage, and other SDKs ask again every few seconds near the end. Whoever fetches is to have more than
//! an hour left where the source allows it, never less than 20 minutes where it can be helped. What cannot be renewed is
//! served until it truly expires; a guest gets no expired credentials, only EC2's document that says there are none.

use crate::instance::credentials::Validity;
use crate::instance::{Credentials, Secret, UnixMillis, UnixSeconds};

/// The longest time between renewals: EC2 renews hourly.
const RENEWAL_MAX: u64 = 60 * MINUTE;
/// The shortest, whatever a source hands out.
const RENEWAL_MIN: u64 = SECOND;
/// What whoever fetches should have left.
const COMFORT: u64 = 60 * MINUTE;
/// What whoever fetches must have left where the source allows it.
const FLOOR: u64 = 20 * MINUTE;
/// The wait after a first failure; it doubles with each further one.
const RETRY_MIN: u64 = SECOND;
/// The longest wait after a failure: a source that is back is noticed within a minute.
const RETRY_MAX: u64 = MINUTE;

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;

/// What a source gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obtained {
    /// `ASIA` and 16 characters, with AWS.
    pub access_key_id: Box<str>,
    /// The secret.
    pub secret_access_key: Secret,
    /// The session token.
    pub token: Secret,
    /// Until when they hold; `None` for ever.
    pub expiration: Option<UnixSeconds>,
}

/// Why a source gave nothing, as far as guests are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The role may not be assumed.
    Unauthorized,
    /// Anything else.
    Other,
}

/// What there is to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The source was not asked yet, or has not answered.
    Pending {
        /// Since when it is wanted.
        since: UnixSeconds,
    },
    /// These.
    Held(Credentials),
    /// None: the source failed, and what it gave before has expired.
    Failed {
        /// Why.
        why: FailureKind,
        /// Since when for this reason.
        since: UnixSeconds,
    },
}

/// The state of one source.
#[derive(Debug)]
pub struct Schedule {
    wanted_since: UnixSeconds,
    held: Option<Credentials>,
    failure: Option<Failure>,
    due: UnixMillis,
}

/// Failures since the last success.
#[derive(Debug)]
struct Failure {
    why: FailureKind,
    since: UnixSeconds,
    count: u32,
}

impl Schedule {
    /// Of a source that is wanted from now on: it is due at once.
    #[must_use]
    pub fn new(now: UnixMillis) -> Self {
        Self {
            wanted_since: now.seconds(),
            held: None,
            failure: None,
            due: now,
        }
    }

    /// Whether the source is to be asked now. A wait that no rule allows means that the clock was set back.
    #[must_use]
    pub fn is_due(&self, now: UnixMillis) -> bool {
        now >= self.due || self.due.0 - now.0 > RENEWAL_MAX
    }

    /// Milliseconds until something happens by itself: the source is due, or what is held expires.
    #[must_use]
    pub fn wait(&self, now: UnixMillis) -> u64 {
        let until_due = self.due.0.saturating_sub(now.0);
        let until_expiration = self.until_expiration(now).unwrap_or(until_due);
        until_due.min(until_expiration)
    }

    /// Milliseconds until what is held expires, if it has not and ever does.
    #[must_use]
    pub fn until_expiration(&self, now: UnixMillis) -> Option<u64> {
        self.expiration()?
            .0
            .checked_sub(now.0)
            .filter(|wait| *wait > 0)
    }

    /// The source gave credentials. When they are those that it gave before, nothing changes but the time of the next
    /// question, which comes the sooner the less of their life is left.
    pub fn succeed(&mut self, obtained: Obtained, now: UnixMillis, random: u64) {
        self.failure = None;
        let after = renew_after(obtained.expiration, now);
        let jitter = part(after / 10, random);
        self.due = later(now, (after - jitter).max(RENEWAL_MIN));
        if !self.holds(&obtained) {
            let validity = obtained.expiration.map(|expiration| Validity {
                last_updated: now.seconds(),
                expiration,
            });
            self.held = Some(Credentials {
                access_key_id: obtained.access_key_id,
                secret_access_key: obtained.secret_access_key,
                token: obtained.token,
                validity,
            });
        }
    }

    /// The source gave none. It is asked again after a wait that doubles every time, half of it by chance, so that what
    /// failed together is not asked together again.
    pub fn fail(&mut self, why: FailureKind, now: UnixMillis, random: u64) {
        let failure = self.failure.get_or_insert(Failure {
            why,
            since: now.seconds(),
            count: 0,
        });
        if failure.why != why {
            failure.why = why;
            failure.since = now.seconds();
        }
        let wait = RETRY_MIN
            .saturating_mul(2_u64.saturating_pow(failure.count))
            .min(RETRY_MAX);
        failure.count = failure.count.saturating_add(1);
        self.due = later(now, wait / 2 + part(wait / 2, random));
    }

    /// What there is to serve now.
    #[must_use]
    pub fn kept(&self, now: UnixMillis) -> Kept {
        let expired_since = match (&self.held, self.expiration()) {
            (Some(_), Some(expiration)) if expiration <= now => Some(expiration.seconds()),
            (Some(held), _) => return Kept::Held(held.clone()),
            (None, _) => None,
        };
        match (&self.failure, expired_since) {
            (Some(failure), _) => Kept::Failed {
                why: failure.why,
                since: failure.since.max(expired_since.unwrap_or_default()),
            },
            // Expired while the source is being asked.
            (None, Some(since)) => Kept::Failed {
                why: FailureKind::Other,
                since,
            },
            (None, None) => Kept::Pending {
                since: self.wanted_since,
            },
        }
    }

    fn expiration(&self) -> Option<UnixMillis> {
        let validity = self.held.as_ref()?.validity?;
        Some(UnixMillis(validity.expiration.0.saturating_mul(SECOND)))
    }

    fn holds(&self, obtained: &Obtained) -> bool {
        self.held.as_ref().is_some_and(|held| {
            held.access_key_id == obtained.access_key_id
                && held.secret_access_key == obtained.secret_access_key
                && held.token == obtained.token
                && held.validity.map(|validity| validity.expiration) == obtained.expiration
        })
    }
}

/// How long credentials that hold until `expiration` are served before new ones are asked for, at most.
///
/// An hour, if an hour or more is left then. What holds shorter is renewed so early that an hour is left, then so that
/// half of its life is left, then so that 20 minutes are: the first of these that does not ask the source more than four
/// times in a life.
fn renew_after(expiration: Option<UnixSeconds>, now: UnixMillis) -> u64 {
    let Some(expiration) = expiration else {
        return RENEWAL_MAX;
    };
    let life = expiration.0.saturating_mul(SECOND).saturating_sub(now.0);
    let leaving = |left| {
        life.checked_sub(left)
            .filter(|after: &u64| *after >= life / 4)
    };
    if let Some(after) = leaving(COMFORT) {
        return after.min(RENEWAL_MAX);
    }
    if life / 2 >= FLOOR {
        return life / 2;
    }
    leaving(FLOOR).unwrap_or(life / 4)
}

/// `of` times a number from 0 to 1 that `random` stands for.
fn part(of: u64, random: u64) -> u64 {
    let product = (u128::from(of) * u128::from(random)) >> u64::BITS;
    u64::try_from(product).unwrap_or(of)
}

fn later(now: UnixMillis, wait: u64) -> UnixMillis {
    UnixMillis(now.0.saturating_add(wait))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
    /// The two ends of randomness.
    const LEAST: u64 = 0;
    const MOST: u64 = u64::MAX;

    fn after(millis: u64) -> UnixMillis {
        UnixMillis(NOW.0 + millis)
    }

    fn obtained(key: &str, life_millis: Option<u64>) -> Obtained {
        Obtained {
            access_key_id: key.into(),
            secret_access_key: "secret".into(),
            token: "token".into(),
            expiration: life_millis.map(|life| after(life).seconds()),
        }
    }

    fn holding(life_millis: Option<u64>, random: u64) -> Schedule {
        let mut schedule = Schedule::new(NOW);
        schedule.succeed(obtained("one", life_millis), NOW, random);
        schedule
    }

    /// The key that is served, or what is said instead.
    fn served(schedule: &Schedule, now: UnixMillis) -> String {
        match schedule.kept(now) {
            Kept::Pending { since } => format!("pending since {}", since.0 - NOW.0 / 1000),
            Kept::Held(credentials) => credentials.access_key_id.into(),
            Kept::Failed { why, since } => format!("{why:?} since {}", since.0 - NOW.0 / 1000),
        }
    }

    #[test]
    fn a_source_is_due_as_soon_as_it_is_wanted() {
        let schedule = Schedule::new(NOW);
        assert!(schedule.is_due(NOW));
        assert_eq!(served(&schedule, NOW), "pending since 0");
    }

    /// Life in minutes; the latest and the earliest renewal in seconds.
    #[test]
    fn credentials_are_renewed_ahead_of_time() {
        let check = |life_minutes: Option<u64>, latest: u64, earliest: u64| {
            let life = life_minutes.map(|life| life * MINUTE);
            let wait = |random| holding(life, random).wait(NOW);
            assert_eq!(wait(LEAST), latest * SECOND, "{life_minutes:?}");
            let early = wait(MOST) / SECOND;
            assert_eq!(early, earliest, "{life_minutes:?}");
        };
        // What EC2 hands out, the longest that STS gives, and what never expires.
        check(Some(390), 3600, 3240);
        check(Some(12 * 60), 3600, 3240);
        check(None, 3600, 3240);
        // An hour is left after the last moment.
        check(Some(120), 3600, 3240);
        check(Some(119), 3540, 3186);
        check(Some(90), 1800, 1620);
        check(Some(80), 1200, 1080);
        // Half of it is left: STS's default is an hour.
        check(Some(79), 2370, 2133);
        check(Some(60), 1800, 1620);
        check(Some(40), 1200, 1080);
        // Twenty minutes are left.
        check(Some(39), 1140, 1026);
        check(Some(30), 600, 540);
        // The source does not allow it: three quarters are left. The shortest that STS gives is a quarter of an hour.
        check(Some(26), 390, 351);
        check(Some(15), 225, 202);
    }

    #[test]
    fn whoever_fetches_has_what_the_source_allows() {
        for minutes in 1..=1000 {
            let life = minutes * MINUTE;
            let left = life - holding(Some(life), LEAST).wait(NOW);
            let promised = match minutes {
                80.. => COMFORT,
                27.. => FLOOR,
                _ => life * 3 / 4,
            };
            assert!(left >= promised, "of {minutes} min {left} ms are left");
        }
    }

    #[test]
    fn the_shortest_lived_credentials_are_not_asked_for_in_a_loop() {
        for life in [1, 500, 1000, 3000] {
            assert!(
                holding(Some(life), MOST).due >= after(RENEWAL_MIN),
                "{life}"
            );
        }
    }

    /// Numbers of failures and the wait after it, without and with the most of chance, in milliseconds.
    #[test]
    fn waits_after_failures_double_up_to_a_minute() {
        for (failures, least, most) in [
            (1, 500, 1000),
            (2, 1000, 2000),
            (3, 2000, 4000),
            (6, 16_000, 32_000),
            (7, 30_000, 60_000),
            (8, 30_000, 60_000),
            (200, 30_000, 60_000),
        ] {
            for (random, wait) in [(LEAST, least), (MOST, most - 1)] {
                let mut schedule = Schedule::new(NOW);
                for _ in 0..failures {
                    schedule.fail(FailureKind::Other, NOW, random);
                }
                assert_eq!(schedule.wait(NOW), wait, "after {failures} failures");
                assert!(!schedule.is_due(after(wait - 1)));
                assert!(schedule.is_due(after(wait)));
            }
        }
    }

    #[test]
    fn a_success_ends_the_count_of_failures() {
        let mut schedule = Schedule::new(NOW);
        for _ in 0..5 {
            schedule.fail(FailureKind::Other, NOW, LEAST);
        }
        schedule.succeed(obtained("one", None), NOW, LEAST);
        schedule.fail(FailureKind::Other, NOW, LEAST);
        assert_eq!(schedule.wait(NOW), 500);
    }

    #[test]
    fn what_cannot_be_renewed_is_served_until_it_expires() {
        let mut schedule = holding(Some(10 * MINUTE), LEAST);
        schedule.fail(FailureKind::Unauthorized, after(5 * MINUTE), LEAST);
        assert_eq!(served(&schedule, after(5 * MINUTE)), "one");
        assert_eq!(served(&schedule, after(10 * MINUTE - 1)), "one");
        assert_eq!(
            served(&schedule, after(10 * MINUTE)),
            "Unauthorized since 600"
        );
    }

    #[test]
    fn expiry_is_an_event_of_its_own() {
        let mut schedule = holding(Some(10 * SECOND), LEAST);
        for _ in 0..10 {
            schedule.fail(FailureKind::Other, after(9 * SECOND), LEAST);
        }
        assert_eq!(schedule.wait(after(9 * SECOND)), SECOND);
        assert_eq!(
            schedule.wait(after(10 * SECOND)),
            29 * SECOND,
            "it happens once"
        );
    }

    #[test]
    fn credentials_that_expire_while_the_source_is_asked_are_not_served() {
        let schedule = holding(Some(10 * SECOND), LEAST);
        assert_eq!(served(&schedule, after(10 * SECOND)), "Other since 10");
    }

    #[test]
    fn failures_of_one_kind_are_one_state() {
        let mut schedule = Schedule::new(NOW);
        let mut check = |at: u64, why, expected: &str| {
            schedule.fail(why, after(at * SECOND), LEAST);
            assert_eq!(served(&schedule, after(at * SECOND)), expected);
        };
        check(1, FailureKind::Other, "Other since 1");
        check(2, FailureKind::Other, "Other since 1");
        check(5, FailureKind::Unauthorized, "Unauthorized since 5");
        check(9, FailureKind::Unauthorized, "Unauthorized since 5");
    }

    #[test]
    fn the_same_credentials_again_are_no_update() {
        let mut schedule = holding(Some(60 * MINUTE), LEAST);
        let before = schedule.kept(NOW);
        let later = after(30 * MINUTE);
        schedule.succeed(obtained("one", Some(60 * MINUTE)), later, LEAST);
        assert_eq!(schedule.kept(later), before);
        // Of the half hour that is left, ten minutes pass before the next question.
        assert_eq!(schedule.wait(later), 10 * MINUTE);
        schedule.succeed(obtained("two", Some(60 * MINUTE)), later, LEAST);
        let Kept::Held(credentials) = schedule.kept(later) else {
            panic!("none are held");
        };
        let validity = credentials.validity.expect("they expire");
        assert_eq!(validity.last_updated, later.seconds());
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_stop_renewals() {
        let schedule = holding(None, LEAST);
        assert!(!schedule.is_due(NOW));
        assert!(schedule.is_due(UnixMillis(NOW.0 - 1)));
        assert!(schedule.is_due(UnixMillis(0)));
    }
}
