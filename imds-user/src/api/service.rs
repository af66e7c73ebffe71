//! What is done with a request: from its bytes to the reply, with the store in between. This is the edge's inner half: it
//! knows the store, the clock and randomness, and no socket.

use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use super::call::{Action, Call, Caller, Change, Effect, Entropy, Outcome, action_of, answer};
use super::fault::{Code, Protocol, Refusal, Reply, Service, Spoken};
use super::gate;
use super::monitoring::{self, Facts, History, Wants};
use super::query::Query;
use super::sigv4::{self, Fault, Request};
use crate::config::Ground;
use crate::instance::UnixMillis;
use crate::metrics::{Keeper, Minute};
use crate::store::{Note, Store, StoreError, Transaction, View};

/// Answers requests.
pub struct Api {
    store: Store,
    ground: Ground,
    /// What was counted of instances.
    counts: Keeper,
    surroundings: Option<Box<dyn Surroundings>>,
}

/// Somebody who can tell what launches find just now: whether there is a launcher, and which images it has.
pub trait Surroundings: Send + Sync {
    /// Looks, not for long, and brings the ground up to date.
    fn look<'a>(&'a self, ground: &'a mut Ground) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
}

/// Why a call has no outcome.
enum Trouble {
    /// In EC2's words.
    Refused(Refusal),
    /// What went wrong is for the log.
    Store(StoreError),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// One call, as far as it stays the same from one attempt to the next.
struct Attempt {
    action: &'static Action,
    query: Query,
    caller: Caller,
    note: Note,
    entropy: Entropy,
    request_id: String,
    /// What launches find, where the action depends on it.
    ground: Option<Ground>,
}

impl Api {
    /// An API over a store, where nobody counts what instances do. Access keys are made if there are none.
    ///
    /// # Errors
    /// When they cannot be kept.
    pub async fn start(store: Store, ground: Ground) -> Result<Arc<Self>, StoreError> {
        let counts = Keeper::open(store.clone(), now).await?;
        Self::start_in(store, ground, counts, None).await
    }

    /// An API over a store, over what is counted of its instances, and where launches find more than always.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_in(
        store: Store,
        ground: Ground,
        counts: Keeper,
        surroundings: Option<Box<dyn Surroundings>>,
    ) -> Result<Arc<Self>, StoreError> {
        let entropy = entropy()?;
        store
            .update(|view| {
                let now = now();
                let note = Note {
                    at: now,
                    who: crate::store::Who::Daemon,
                    what: "make access keys".into(),
                };
                let mut draft = view.draft(note);
                for key in gate::missing_keys(view, &entropy, now.seconds()) {
                    draft.put(&crate::store::Record::AccessKey(key))?;
                }
                // Nothing to note when they are there.
                let transaction = if draft.is_empty() {
                    Transaction::default()
                } else {
                    draft.finish()
                };
                Ok::<_, StoreError>((transaction, ()))
            })
            .await?;
        Ok(Arc::new(Self {
            store,
            ground,
            counts,
            surroundings,
        }))
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn ground(&self) -> &Ground {
        &self.ground
    }

    /// Answers a request. `peer` is who the kernel says is at the other end, where it does: they need no signature.
    pub async fn answer(&self, request: &Request<'_>, peer: Option<Caller>) -> Reply {
        let Ok(entropy) = entropy() else {
            // Without randomness there is not even an id to answer with.
            let refusal = Refusal::new(Code::InternalError, "An internal error has occurred");
            return Reply::refusal(Service::Ec2, &refusal, "");
        };
        let request_id = request_id(&entropy.bytes("request", 0));
        let claim = sigv4::claim(request);
        let query = Query::read(request.query.as_bytes(), form(request));
        let nothing = Query::default();
        let params = query.as_ref().unwrap_or(&nothing).params();
        let service = gate::service_of(request, claim.as_ref().ok(), &params);
        let spoken = gate::spoken(request, service);
        let caller = match peer {
            Some(caller) => Ok(caller),
            None => claim.and_then(|claim| self.caller(request, &claim)),
        };
        let caller = match caller {
            Ok(caller) => caller,
            Err(fault) => {
                tracing::info!("a call of {}: {fault}", service.as_str());
                return Reply::unknown_caller(spoken, &fault, &request_id);
            }
        };
        let answer = match (query, service) {
            (Err(refusal), _) => Err(refusal.into()),
            (Ok(query), Service::CloudWatch) => {
                self.monitor(request, spoken, query, caller, &request_id)
                    .await
            }
            (Ok(query), _) => {
                self.call(request, service, query, caller, entropy, &request_id)
                    .await
            }
        };
        answer.unwrap_or_else(|trouble| refused(spoken, trouble, &request_id))
    }

    fn caller(&self, request: &Request<'_>, claim: &sigv4::Claim) -> Result<Caller, Fault> {
        let region = self.ground.host.zone.region();
        let now = now().seconds();
        self.store
            .read(|view| gate::caller(request, claim, view, region, now))
    }

    async fn call(
        &self,
        request: &Request<'_>,
        service: Service,
        query: Query,
        caller: Caller,
        entropy: Entropy,
        request_id: &str,
    ) -> Result<Reply, Trouble> {
        if service.protocol() == Protocol::Json {
            // No operation of these is served yet.
            return Err(Refusal::invalid_action(&target(request)).into());
        }
        let action = action_of(gate::actions_of(service), &query.params())?;
        let note = Note {
            at: now(),
            who: caller.who.clone(),
            what: format!("{}:{}", service.as_str(), action.name).into(),
        };
        let attempt = Attempt {
            action,
            query,
            caller,
            note,
            entropy,
            request_id: request_id.to_owned(),
            ground: self.look_around(action).await,
        };
        let outcome = match action.effect {
            Effect::Reads => self.look(&attempt),
            Effect::Writes => self.change(&attempt).await,
        };
        // A call that is refused was not read to its end.
        let unknown = attempt.query.unknown();
        if outcome.is_ok() && !unknown.is_empty() {
            let names = unknown.join(", ");
            tracing::info!(
                "{}: parameters that nobody knows: {names}",
                attempt.note.what
            );
        }
        if let Err(Trouble::Refused(refusal)) = &outcome {
            let refused = Some(refusal.code.as_str());
            self.store.note(attempt.note.of_call(None, refused));
        }
        outcome.map(|outcome| Reply::xml(200, outcome.body, request_id))
    }

    /// Answers CloudWatch's operations, which look at what was counted.
    async fn monitor(
        &self,
        request: &Request<'_>,
        spoken: Spoken,
        query: Query,
        caller: Caller,
        request_id: &str,
    ) -> Result<Reply, Trouble> {
        let (operation, query) = if spoken.protocol == Protocol::Json {
            let target = target(request);
            let operation = target.strip_prefix(monitoring::TARGET_PREFIX);
            let operation = operation.unwrap_or(&target).to_owned();
            (operation, Query::of_json(request.body)?)
        } else {
            let params = query.params();
            let _version = params.text("Version");
            (params.required("Action")?.to_owned(), query)
        };
        // Whatever else a client may have written there is not for the history.
        if !monitoring::OPERATIONS.contains(&&*operation) {
            return Err(Refusal::invalid_action(&operation).into());
        }
        let note = Note {
            at: now(),
            who: caller.who,
            what: format!("{}:{operation}", spoken.service.as_str()).into(),
        };
        let answer = self.measure(&operation, &query, Minute::of(note.at)).await;
        let unknown = query.unknown();
        if answer.is_ok() && !unknown.is_empty() {
            let names = unknown.join(", ");
            tracing::info!("{}: parameters that nobody knows: {names}", note.what);
        }
        let refused = match &answer {
            Ok(_) => None,
            Err(Trouble::Refused(refusal)) => Some(refusal.code.as_str()),
            Err(Trouble::Store(_)) => Some(Code::InternalError.as_str()),
        };
        self.store.note(note.of_call(None, refused));
        let document = answer?;
        Ok(match spoken.protocol {
            Protocol::Json => Reply::json(spoken.service, 200, &document.json(), request_id),
            Protocol::Query | Protocol::Ec2Query => {
                Reply::xml(200, document.xml(&operation, request_id), request_id)
            }
        })
    }

    async fn measure(
        &self,
        operation: &str,
        query: &Query,
        now: Minute,
    ) -> Result<monitoring::Document, Trouble> {
        let request = monitoring::Request::read(operation, &query.params(), now)?;
        self.counts.look().await;
        let facts = match request.wants(now) {
            Wants::Counts(ids, minutes) => {
                let mut facts = Facts::default();
                for id in ids {
                    let history = History {
                        counts: self.counts.counts(id, minutes.clone()).await?,
                        present: self.store.read(|view| monitoring::presence(view, id, now)),
                    };
                    facts.histories.insert(id, history);
                }
                facts
            }
            Wants::Instances => {
                let counted = self.counts.counted().await?;
                let instances = self
                    .store
                    .read(|view| monitoring::instances(view, &counted, now));
                Facts {
                    instances,
                    ..Facts::default()
                }
            }
        };
        Ok(monitoring::answer(&request, &facts, now))
    }

    async fn look_around(&self, action: &Action) -> Option<Ground> {
        let surroundings = self.surroundings.as_ref();
        let surroundings = surroundings.filter(|_| action.looks_around)?;
        let mut ground = self.ground.clone();
        surroundings.look(&mut ground).await;
        Some(ground)
    }

    /// Answers a call that changes nothing. That it was made is noted behind it: nobody waits for the disk to look.
    fn look(&self, attempt: &Attempt) -> Result<Outcome, Trouble> {
        let outcome = self.store.read(|view| self.attempt(attempt, view))?;
        let about = outcome.about.clone();
        self.store.note(attempt.note.clone().of_call(about, None));
        Ok(outcome)
    }

    /// Answers a call that changes something, once that is kept.
    async fn change(&self, attempt: &Attempt) -> Result<Outcome, Trouble> {
        let decide = |view: &View| {
            let outcome = self.attempt(attempt, view)?;
            let transaction = transaction(view, &attempt.note, &outcome)?;
            Ok::<_, Trouble>((transaction, outcome))
        };
        if attempt.action.takes_long {
            // On a copy, so that nobody who writes waits for it.
            let view = self.store.read(View::clone);
            let (transaction, outcome) = tokio::task::block_in_place(|| decide(&view))?;
            return match self.store.commit(transaction).await {
                Ok(_) => Ok(outcome),
                Err(crate::store::CommitError::Conflict(_)) => {
                    Err(Refusal::new(Code::RequestLimitExceeded, "Request limit exceeded.").into())
                }
                Err(crate::store::CommitError::Store(error)) => Err(error.into()),
            };
        }
        let (_, outcome) = self.store.update(decide).await?;
        Ok(outcome)
    }

    fn attempt(&self, attempt: &Attempt, view: &View) -> Result<Outcome, Refusal> {
        let call = Call {
            action: attempt.action.name,
            params: attempt.query.params(),
            caller: &attempt.caller,
            view,
            ground: attempt.ground.as_ref().unwrap_or(&self.ground),
            now: attempt.note.at,
            entropy: attempt.entropy.clone(),
            request_id: &attempt.request_id,
        };
        answer(attempt.action, &call)
    }
}

fn transaction(view: &View, note: &Note, outcome: &Outcome) -> Result<Transaction, StoreError> {
    let mut draft = view.draft(note.clone());
    for change in &outcome.changes {
        match change {
            Change::Put(record) => draft.put(record)?,
            Change::Remove(key) => draft.remove(key),
        }
    }
    for key in &outcome.relies_on {
        draft.rely_on(key.clone());
    }
    for kind in &outcome.relies_on_all {
        draft.rely_on_all(*kind);
    }
    Ok(draft.finish())
}

fn refused(spoken: Spoken, trouble: Trouble, request_id: &str) -> Reply {
    let refusal = match trouble {
        Trouble::Refused(refusal) => refusal,
        Trouble::Store(error) => {
            tracing::error!("call {request_id}: {error}");
            Refusal::new(Code::InternalError, "An internal error has occurred")
        }
    };
    Reply::refusal(spoken, &refusal, request_id)
}

/// The operation of a JSON service that a request is for.
fn target(request: &Request<'_>) -> String {
    let target = sigv4::headers(request, "x-amz-target").next();
    String::from_utf8_lossy(target.unwrap_or_default()).into_owned()
}

/// The body, if it is a form: JSON is none. Clients that say nothing of it send one.
fn form<'a>(request: &Request<'a>) -> &'a [u8] {
    let kind = sigv4::headers(request, "content-type").next();
    let is_json = kind.is_some_and(|kind| kind.starts_with(b"application/x-amz-json"));
    if is_json { b"" } else { request.body }
}

/// As AWS's are: a UUID (RFC 9562, version 4).
fn request_id(bytes: &[u8; 16]) -> String {
    let mut bytes = *bytes;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let number = u128::from_be_bytes(bytes);
    let digits = format!("{number:032x}");
    let part = |from: usize, to: usize| &digits[from..to];
    format!(
        "{}-{}-{}-{}-{}",
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32)
    )
}

pub(super) fn entropy() -> Result<Entropy, StoreError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| StoreError::Io {
        what: "get randomness for",
        path: "a call".into(),
        cause: std::io::Error::other(error.to_string()),
    })?;
    Ok(Entropy::new(bytes))
}

pub(super) fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let millis = since.map_or(0, |since| since.as_millis());
    UnixMillis(u64::try_from(millis).unwrap_or(u64::MAX))
}
