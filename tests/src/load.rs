//! Guests that ask all the time, each on a connection that it keeps and on one for every request, and count what goes wrong.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::guest::Guest;
use crate::http::{Address, Connection};
use crate::{INSTANCE_ID, TOKEN_FIELD};

/// Between two requests of one client: a guest that is busy, on a machine that has other things to do.
const PAUSE: Duration = Duration::from_millis(2);

/// Load that goes on until it is told to finish.
pub struct Load {
    done: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Figures>>,
}

/// What the clients have seen.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Requests that were answered with the guest's own id.
    pub answered: u64,
    /// Requests, and connects, that were not answered at all, or not with 200.
    pub failed: Vec<String>,
    /// Answers that name another guest.
    pub wrong: Vec<String>,
    /// The longest time from the beginning of a request to its answer, connecting included.
    pub longest: Duration,
    /// How long each request took, in no order.
    pub waits: Vec<Duration>,
}

impl Load {
    /// Begins. Each guest mints a token, and every request shows it.
    ///
    /// # Panics
    /// When a guest gets no token to begin with.
    #[must_use]
    pub fn on(guests: &[&Guest]) -> Self {
        let (done, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut clients = Vec::new();
        for guest in guests {
            let token = guest.put_token(21_600);
            for keeps in [true, false] {
                let client = Client {
                    guest: (*guest).clone(),
                    token: token.clone(),
                    keeps,
                    kept: None,
                };
                let (done, answered) = (Arc::clone(&done), Arc::clone(&answered));
                clients.push(thread::spawn(move || client.run(&done, &answered)));
            }
        }
        Self {
            done,
            answered,
            clients,
        }
    }

    /// Lets the clients ask until this many more requests were answered.
    ///
    /// # Panics
    /// When that takes longer than half a minute.
    pub fn go_on_for(&self, requests: u64) {
        let until = self.answered.load(Ordering::Relaxed) + requests;
        crate::process::eventually("answers to the load", Duration::from_secs(30), || {
            (self.answered.load(Ordering::Relaxed) >= until).then_some(())
        });
    }

    /// Ends it.
    ///
    /// # Panics
    /// When a client did.
    #[must_use]
    pub fn finish(self) -> Figures {
        self.done.store(true, Ordering::Relaxed);
        let mut all = Figures::default();
        for client in self.clients {
            let seen = client.join().expect("a client counts what goes wrong");
            all.answered += seen.answered;
            all.failed.extend(seen.failed);
            all.wrong.extend(seen.wrong);
            all.longest = all.longest.max(seen.longest);
            all.waits.extend(seen.waits);
        }
        all
    }
}

impl Figures {
    /// The time within which this part of the requests ended, answered or not: the median of 0.5.
    ///
    /// # Panics
    /// When there were none.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Duration {
        let mut waits = self.waits.clone();
        waits.sort_unstable();
        let last = waits.len().checked_sub(1).expect("somebody asked");
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "a place in a list of some thousands"
        )]
        let place = (last as f64 * part).round() as usize;
        waits[place.min(last)]
    }

    /// Nothing went wrong.
    ///
    /// # Panics
    /// When something did; with what it was.
    pub fn assert_flawless(&self, what: &str) {
        self.assert_no_wrong_identity(what);
        assert!(
            self.failed.is_empty(),
            "{what}: {} requests failed, of {}: {:?}",
            self.failed.len(),
            self.answered,
            self.failed
        );
    }

    /// Nobody was taken for somebody else.
    ///
    /// # Panics
    /// When somebody was.
    pub fn assert_no_wrong_identity(&self, what: &str) {
        assert!(self.wrong.is_empty(), "{what}: {:?}", self.wrong);
        assert!(self.answered > 0, "{what}: nobody asked anything");
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} answered, {} failed, {} wrong identities, longest wait {:.0?}",
            self.answered,
            self.failed.len(),
            self.wrong.len(),
            self.longest
        )
    }
}

struct Client {
    guest: Guest,
    token: String,
    keeps: bool,
    kept: Option<Connection>,
}

impl Client {
    fn run(mut self, done: &AtomicBool, answered: &AtomicU64) -> Figures {
        let mut seen = Figures::default();
        let guest = self.guest.clone();
        guest.namespace().enter(|| {
            while !done.load(Ordering::Relaxed) {
                let began = Instant::now();
                match self.ask() {
                    Ok(id) if id == self.guest.id() => {
                        seen.answered += 1;
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(id) => seen.wrong.push(format!("{} is {id}", self.guest.id())),
                    Err(error) => {
                        let (name, keeps) = (self.guest.name(), self.keeps);
                        let waited = began.elapsed();
                        seen.failed
                            .push(format!("{name} (keeps: {keeps}) after {waited:?}: {error}"));
                    }
                }
                seen.longest = seen.longest.max(began.elapsed());
                seen.waits.push(began.elapsed());
                thread::sleep(PAUSE);
            }
        });
        seen
    }

    /// One request, as a client makes it that knows HTTP: what the server closes is opened anew for the next.
    fn ask(&mut self) -> io::Result<String> {
        let mut connection = match self.kept.take() {
            Some(connection) => connection,
            None => Connection::open(Address::V4)?,
        };
        let keep = if self.keeps { "keep-alive" } else { "close" };
        let fields = [("Connection", keep), (TOKEN_FIELD, self.token.as_str())];
        let answer = connection.exchange("GET", INSTANCE_ID, &fields)?;
        if answer.status() != 200 {
            return Err(io::Error::other(format!("{answer:?}")));
        }
        if self.keeps && answer.header("Connection") != Some("close") {
            self.kept = Some(connection);
        }
        Ok(answer.text().to_owned())
    }
}
