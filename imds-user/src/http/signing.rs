//! The signatures of a guest's identity document, in the process that has no keys: there, on their way, or to be asked for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, futures::Notified};

use crate::identity::Signatures;

/// How long a request waits for signatures. The daemon makes them in milliseconds once it has its keys; where it is away,
/// the guest is told so before common clients give up.
pub const WAIT_MAX: Duration = Duration::from_secs(2);

/// The signatures of one state of a guest. A new state begins without.
#[derive(Debug, Default)]
pub struct Signing {
    signatures: ArcSwapOption<Signatures>,
    /// When they were asked for, nanoseconds on the server's own clock; 0 when nobody waits for an answer.
    asked_nanoseconds: AtomicU64,
    changed: Notify,
}

impl Signing {
    /// The signatures, if there are any. They may be of an older document.
    pub fn signatures(&self) -> Option<Arc<Signatures>> {
        self.signatures.load_full()
    }

    /// Whether the caller is the one to ask for signatures now, however many want them: nobody asked, or it was so long ago
    /// that no answer comes any more.
    pub fn may_ask(&self, now_nanoseconds: u64) -> bool {
        let asked = self.asked_nanoseconds.load(Ordering::Relaxed);
        let waited = Duration::from_nanos(now_nanoseconds.saturating_sub(asked));
        let is_due = asked == 0 || waited >= WAIT_MAX;
        is_due
            && self
                .asked_nanoseconds
                .compare_exchange(
                    asked,
                    now_nanoseconds.max(1),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok()
    }

    /// Notes the answer; none when there are no signatures to be had.
    pub fn answer(&self, signatures: Option<Signatures>) {
        if let Some(signatures) = signatures {
            self.signatures.store(Some(Arc::new(signatures)));
        }
        self.asked_nanoseconds.store(0, Ordering::Relaxed);
        self.wake();
    }

    /// Has everyone who waits look again: at an answer, or because another state of the guest took this one's place.
    pub fn wake(&self) {
        self.changed.notify_waiters();
    }

    /// Ends at the next [`Self::wake`] after the call.
    pub fn woken(&self) -> Notified<'_> {
        self.changed.notified()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn of_many_who_want_signatures_one_asks() {
        let signing = Signing::default();
        let asks = |now| signing.may_ask(now);
        assert_eq!([asks(0), asks(0), asks(SECOND)], [true, false, false]);
        signing.answer(None);
        assert_eq!([asks(SECOND), asks(SECOND)], [true, false]);
    }

    #[test]
    fn a_question_that_nobody_answered_is_asked_again() {
        let signing = Signing::default();
        assert!(signing.may_ask(SECOND));
        assert!(!signing.may_ask(3 * SECOND - 1));
        assert!(signing.may_ask(3 * SECOND));
        assert!(!signing.may_ask(3 * SECOND));
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_an_answer_and_by_a_new_state() {
        let signing = Signing::default();
        // What `woken` counts begins with the call, not with the first look at it.
        let waiting = signing.woken();
        signing.answer(None);
        waiting.await;
        let waiting = signing.woken();
        signing.wake();
        waiting.await;
    }
}
