//! What is counted of an instance by the minute: CloudWatch's MetadataNoToken and MetadataNoTokenRejected.
//!
//! Responders count as they answer, in numbers that only grow. [`ledger`] makes of these what was counted in which minute,
//! whatever becomes of responders, daemons and slots meanwhile; [`meter`] is what a supervisor and whoever keeps the counts have
//! of it, and [`keeper`] brings them into the store and out again. [`hour`] is their form there: only minutes in which
//! something was counted.
//!
//! The bound, for 15 days ([`KEPT_MINUTES`]): a minute takes 3 bytes while less than 128 was counted of each, 21 at most, and
//! an hour some 40 besides, so an instance that calls without a token in every single minute takes about 85 kB, and ten thousand
//! such 850 MB of disk. Instances that do not take nothing. In memory there is what was not written yet: a minute's worth, as
//! long as the disk takes it ([`ledger::UNKEPT_MAX`] if not).

pub mod hour;
pub mod keeper;
pub mod ledger;
pub mod meter;

use std::ops::AddAssign;

pub use keeper::Keeper;
pub use meter::Meter;

use crate::instance::{InstanceId, UnixMillis, UnixSeconds};

/// How long counts are kept: CloudWatch keeps points of a minute for 15 days.
pub const KEPT_MINUTES: u64 = 15 * 24 * 60;

/// A metric of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    /// Calls without a token that were served.
    NoToken,
    /// Calls without a token that were refused because tokens are required.
    NoTokenRejected,
}

impl Metric {
    /// Every metric.
    pub const ALL: [Self; 2] = [Self::NoToken, Self::NoTokenRejected];

    /// What CloudWatch calls it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoToken => "MetadataNoToken",
            Self::NoTokenRejected => "MetadataNoTokenRejected",
        }
    }

    /// The metric of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.as_str() == name)
    }
}

/// What was counted of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// [`Metric::NoToken`].
    pub no_token: u64,
    /// [`Metric::NoTokenRejected`].
    pub no_token_rejected: u64,
}

impl Counts {
    /// Of one of them.
    #[must_use]
    pub fn of(self, metric: Metric) -> u64 {
        match metric {
            Metric::NoToken => self.no_token,
            Metric::NoTokenRejected => self.no_token_rejected,
        }
    }

    /// What is more in these than in `before`; never less than nothing.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        let more = |now: u64, before| now.saturating_sub(before);
        Self {
            no_token: more(self.no_token, before.no_token),
            no_token_rejected: more(self.no_token_rejected, before.no_token_rejected),
        }
    }

    /// The smaller of each.
    #[must_use]
    pub fn at_most(self, other: Self) -> Self {
        Self {
            no_token: self.no_token.min(other.no_token),
            no_token_rejected: self.no_token_rejected.min(other.no_token_rejected),
        }
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        let add = |count: &mut u64, more| *count = count.saturating_add(more);
        add(&mut self.no_token, more.no_token);
        add(&mut self.no_token_rejected, more.no_token_rejected);
    }
}

/// A minute, counted from 1970 on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Minute(pub u64);

impl Minute {
    /// The minute that a moment lies in.
    #[must_use]
    pub fn of(at: UnixMillis) -> Self {
        Self::holding(at.seconds())
    }

    /// The minute that a second lies in.
    #[must_use]
    pub fn holding(at: UnixSeconds) -> Self {
        Self(at.0 / 60)
    }

    /// Its first second.
    #[must_use]
    pub fn begin(self) -> UnixSeconds {
        UnixSeconds(self.0.saturating_mul(60))
    }

    /// The hour that it lies in, counted from 1970 on.
    #[must_use]
    pub fn hour(self) -> u64 {
        self.0 / 60
    }

    /// The first minute that is kept in this one.
    #[must_use]
    pub fn first_kept(self) -> Self {
        Self(self.0.saturating_sub(KEPT_MINUTES - 1))
    }
}

/// What a slot's counters were, as far as they are in the books. A later look counts from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// Whose slot it is.
    pub id: InstanceId,
    /// Its counters.
    pub counts: Counts,
}

/// What is to be kept in one piece: counts, and the bases that say that they are counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// What was counted of whom, and when.
    pub counts: Vec<(InstanceId, Minute, Counts)>,
    /// The bases of slots; none where nobody has the slot any more.
    pub bases: Vec<(u32, Option<Base>)>,
    /// Earlier minutes are not kept any more.
    pub first_kept: Minute,
}

impl Batch {
    /// Whether there is nothing to keep.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty() && self.bases.is_empty()
    }
}
