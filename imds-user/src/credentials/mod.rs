//! Credentials that live: obtained from a command or from STS, renewed ahead of time, and handed to whoever serves them.
//!
//! What is asked for when, and what is served meanwhile, is decided by [`schedule`], which is pure. Around it each source
//! has a task here that only waits, asks and tells. The edges are `process` and, with the feature `aws`, `sts`.
//!
//! The daemon says which instances want which source ([`Keeper::want`]), waits for changes ([`Keeper::changed`]) and
//! publishes what there is ([`Keeper::fill`]). It never waits for a source itself, and neither does a port: an instance
//! whose source has not answered yet is served EC2's document for credentials that cannot be had. The alternative, to
//! open the port a little later, would for that time leave the guest's packets to the host's routing. Sources are asked
//! as soon as the configuration was read, so that they answer while programs are loaded.
//!
//! Secrets are in [`Secret`](crate::instance::Secret) from the moment that they are parsed, and wiped when they are
//! replaced. What cannot be wiped: the pipe of a command (kernel memory), the pieces that serde_json unescapes a string
//! with, what the SDK's own HTTP client read, and the sockets between the processes and to the guest (kernel memory).

mod output;
mod process;
pub mod schedule;
pub mod source;
#[cfg(feature = "aws")]
mod sts;

use std::{
    collections::{BTreeSet, HashMap},
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{Notify, Semaphore, watch},
    task::JoinHandle,
};

use crate::instance::{
    Instance, UnixMillis, UnixSeconds,
    credentials::{CredentialsProblem, Role, RoleCredentials},
};
use schedule::{FailureKind, Kept, Obtained, Schedule};
pub use source::{AssumeRole, CredentialProcess, CredentialSource};

/// Questions at the same time. A host with hundreds of sources starts with all of them due.
const QUESTIONS_MAX: usize = 16;
/// The longest sleep of a task: the wall clock, by which credentials expire, may be set or stand still meanwhile.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// Why a source gave no credentials.
#[derive(Debug)]
struct ObtainError {
    why: FailureKind,
    /// For the operator; no secrets.
    text: Box<str>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Obtained, ObtainError>> + Send>>;
/// Asks a source. The daemon's way is [`Edges::ask`]; tests have their own.
type Ask = Arc<dyn Fn(CredentialSource) -> Answer + Send + Sync>;

/// Keeps the credentials of all sources that are wanted.
pub struct Keeper {
    ask: Ask,
    sources: HashMap<CredentialSource, Source>,
    changed: Arc<Notify>,
}

/// One source that is wanted.
struct Source {
    /// The instances that want it.
    wanted_by: BTreeSet<Box<str>>,
    state: watch::Receiver<State>,
    task: JoinHandle<()>,
    /// What the log knows.
    told: Told,
}

/// What is known of a source. Replaced whole.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    kept: Kept,
    /// Why the last question failed; none after a success.
    error: Option<Arc<str>>,
}

/// What was last said of a source in the log.
#[derive(Debug, Default)]
struct Told {
    error: Option<Arc<str>>,
    is_without: bool,
}

/// What `imds status` shows of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceStatus {
    /// `pending`, `fresh`, `stale` (the last renewal failed) or `failed`.
    pub state: &'static str,
    /// When what is served expires.
    pub expiration: Option<UnixSeconds>,
    /// Why the last question failed.
    pub error: Option<Arc<str>>,
}

impl Default for Keeper {
    fn default() -> Self {
        let edges = Arc::new(Edges::new());
        Self::new(Arc::new(move |source| {
            let edges = Arc::clone(&edges);
            Box::pin(async move { edges.ask(&source).await })
        }))
    }
}

impl Keeper {
    fn new(ask: Ask) -> Self {
        Self {
            ask,
            sources: HashMap::new(),
            changed: Arc::default(),
        }
    }

    /// Makes these the sources, each with the name of an instance that wants it. New ones are asked at once. Others are
    /// let go of: what they gave is wiped, and an answer that is under way comes to nobody.
    pub fn want<'a>(&mut self, wanted: impl IntoIterator<Item = (&'a str, &'a CredentialSource)>) {
        for source in self.sources.values_mut() {
            source.wanted_by.clear();
        }
        for (name, source) in wanted {
            if !self.sources.contains_key(source) {
                let started = self.start(source.clone());
                self.sources.insert(source.clone(), started);
            }
            if let Some(source) = self.sources.get_mut(source) {
                source.wanted_by.insert(name.into());
            }
        }
        self.sources
            .retain(|_, source| !source.wanted_by.is_empty());
    }

    fn start(&self, source: CredentialSource) -> Source {
        let schedule = Schedule::new(now());
        let (tell, state) = watch::channel(State {
            kept: schedule.kept(now()),
            error: None,
        });
        let attendant = Attendant {
            source,
            ask: Arc::clone(&self.ask),
            schedule,
            tell,
            changed: Arc::clone(&self.changed),
        };
        Source {
            wanted_by: BTreeSet::new(),
            state,
            task: tokio::spawn(attendant.run()),
            told: Told::default(),
        }
    }

    /// Returns when what [`Keeper::fill`] gives may have changed, and tells the log what happened. May be dropped at any
    /// time.
    pub async fn changed(&mut self) {
        self.changed.notified().await;
        for (source, kept) in &mut self.sources {
            kept.tell_log(source);
        }
    }

    /// Gives an instance the credentials of its source, or the document that says why there are none.
    pub fn fill(&self, instance: &mut Instance, source: &CredentialSource) {
        if let Some(role) = &mut instance.role {
            let credentials = self.credentials(source, role);
            role.credentials = credentials;
        }
    }

    /// Whether an instance has something else than [`Keeper::fill`] would give it.
    #[must_use]
    pub fn has_news_for(&self, instance: &Instance, source: &CredentialSource) -> bool {
        instance
            .role
            .as_deref()
            .is_some_and(|role| role.credentials != self.credentials(source, role))
    }

    fn credentials(&self, source: &CredentialSource, role: &Role) -> RoleCredentials {
        let kept = self.sources.get(source).map(|known| known.state.borrow());
        let problem = match kept.as_deref().map(|state| &state.kept) {
            Some(Kept::Held(credentials)) => return RoleCredentials::Given(credentials.clone()),
            Some(Kept::Failed {
                why: FailureKind::Unauthorized,
                since,
            }) => CredentialsProblem::unauthorized(&role.name, *since),
            Some(
                Kept::Failed {
                    why: FailureKind::Other,
                    since,
                }
                | Kept::Pending { since },
            ) => CredentialsProblem::failed(&role.name, *since),
            None => CredentialsProblem::failed(&role.name, now().seconds()),
        };
        RoleCredentials::Unavailable(problem)
    }

    /// How a source does.
    #[must_use]
    pub fn status(&self, source: &CredentialSource) -> Option<SourceStatus> {
        let state = self.sources.get(source)?.state.borrow();
        let (word, expiration) = match (&state.kept, &state.error) {
            (Kept::Pending { .. }, None) => ("pending", None),
            (Kept::Pending { .. } | Kept::Failed { .. }, _) => ("failed", None),
            (Kept::Held(credentials), error) => {
                let word = if error.is_some() { "stale" } else { "fresh" };
                (word, credentials.validity)
            }
        };
        Some(SourceStatus {
            state: word,
            expiration: expiration.map(|validity| validity.expiration),
            error: state.error.clone(),
        })
    }
}

impl Source {
    fn tell_log(&mut self, source: &CredentialSource) {
        let news = self.told.news(&self.state.borrow());
        let names: Vec<&str> = self.wanted_by.iter().map(AsRef::as_ref).collect();
        let whose = format!("credentials of {} ({source})", names.join(", "));
        for news in news {
            match news {
                News::Failing(error) => tracing::warn!("{whose}: {error}"),
                News::Without => tracing::error!("{whose}: there are none to serve"),
                News::Recovered => tracing::info!("{whose}: obtained again"),
            }
        }
    }
}

/// What is worth a line of the log.
#[derive(Debug, PartialEq, Eq)]
enum News {
    /// The source fails, or fails for another reason than before.
    Failing(Arc<str>),
    /// What it gave has expired, or it never gave anything.
    Without,
    /// It gives again.
    Recovered,
}

impl Told {
    /// What is new since the last time. A failure that repeats is said once.
    fn news(&mut self, state: &State) -> Vec<News> {
        let mut news = Vec::new();
        let is_without = matches!(state.kept, Kept::Failed { .. });
        match &state.error {
            Some(error) if self.error.as_ref() != Some(error) => {
                news.push(News::Failing(Arc::clone(error)));
            }
            None if !is_without && (self.error.is_some() || self.is_without) => {
                news.push(News::Recovered);
            }
            _ => {}
        }
        if is_without && !self.is_without {
            news.push(News::Without);
        }
        *self = Self {
            error: state.error.clone(),
            is_without,
        };
        news
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The task of one source.
struct Attendant {
    source: CredentialSource,
    ask: Ask,
    schedule: Schedule,
    tell: watch::Sender<State>,
    changed: Arc<Notify>,
}

impl Attendant {
    /// Asks when it is time, and tells what there is to serve, also while an answer is waited for: what is held may
    /// expire meanwhile.
    async fn run(mut self) {
        let mut asked: Option<Answer> = None;
        let mut error: Option<Arc<str>> = None;
        loop {
            if asked.is_none() && self.schedule.is_due(now()) {
                asked = Some((self.ask)(self.source.clone()));
            }
            let sleep = self.sleep(asked.is_some());
            tokio::select! {
                answer = answer_to(&mut asked) => {
                    asked = None;
                    error = self.note(answer);
                }
                () = tokio::time::sleep(sleep) => {}
            }
            self.publish(error.clone());
        }
    }

    fn sleep(&self, is_asked: bool) -> Duration {
        let wait = if is_asked {
            self.schedule.until_expiration(now())
        } else {
            Some(self.schedule.wait(now()))
        };
        wait.map_or(SLEEP_MAX, |wait| Duration::from_millis(wait).min(SLEEP_MAX))
    }

    fn note(&mut self, answer: Result<Obtained, ObtainError>) -> Option<Arc<str>> {
        match answer {
            Ok(obtained) => {
                self.schedule.succeed(obtained, now(), random());
                None
            }
            Err(ObtainError { why, text }) => {
                self.schedule.fail(why, now(), random());
                Some(text.into())
            }
        }
    }

    fn publish(&self, error: Option<Arc<str>>) {
        let state = State {
            kept: self.schedule.kept(now()),
            error,
        };
        let is_news = self.tell.send_if_modified(|known| {
            let is_news = *known != state;
            *known = state;
            is_news
        });
        if is_news {
            self.changed.notify_one();
        }
    }
}

/// The answer, once there is one; never, if nothing was asked.
async fn answer_to(asked: &mut Option<Answer>) -> Result<Obtained, ObtainError> {
    match asked {
        Some(answer) => answer.await,
        None => std::future::pending().await,
    }
}

/// The ways to the sources.
struct Edges {
    permits: Semaphore,
    #[cfg(feature = "aws")]
    sts: sts::Sts,
}

impl Edges {
    fn new() -> Self {
        Self {
            permits: Semaphore::new(QUESTIONS_MAX),
            #[cfg(feature = "aws")]
            sts: sts::Sts::default(),
        }
    }

    /// Asks a source, once fewer than [`QUESTIONS_MAX`] others are being asked.
    async fn ask(&self, source: &CredentialSource) -> Result<Obtained, ObtainError> {
        let _permit = self.permits.acquire().await;
        match source {
            CredentialSource::Process(process) => ask_process(process).await,
            #[cfg(feature = "aws")]
            CredentialSource::AssumeRole(role) => self.sts.assume(role, now().seconds()).await,
            // The configuration refuses it already.
            #[cfg(not(feature = "aws"))]
            CredentialSource::AssumeRole(_) => Err(ObtainError {
                why: FailureKind::Other,
                text: WITHOUT_AWS.into(),
            }),
        }
    }
}

async fn ask_process(source: &CredentialProcess) -> Result<Obtained, ObtainError> {
    let failed = |error: &dyn std::fmt::Display| ObtainError {
        why: FailureKind::Other,
        text: error.to_string().into(),
    };
    let output = process::run(source, process::TIME_MAX)
        .await
        .map_err(|error| failed(&error))?;
    output::parse(&output, now().seconds()).map_err(|error| failed(&error))
}

/// What an operator is told who wants STS from a build that cannot ask it.
pub(crate) const WITHOUT_AWS: &str =
    "this imds was built without STS: build it with `cargo build --release --features aws`";

fn now() -> UnixMillis {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// For jitter. Without randomness there is none.
fn random() -> u64 {
    getrandom::u64().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::instance::credentials::InstanceProfile;

    fn source(name: &str) -> CredentialSource {
        CredentialSource::Process(CredentialProcess {
            program: name.into(),
            arguments: Box::default(),
            environment: Box::default(),
        })
    }

    /// Credentials with this key that hold for an hour.
    fn good(key: &str) -> Result<Obtained, ObtainError> {
        Ok(Obtained {
            access_key_id: key.into(),
            secret_access_key: "secret".into(),
            token: "token".into(),
            expiration: Some(UnixSeconds(now().seconds().0 + 3600)),
        })
    }

    fn bad(why: FailureKind) -> Result<Obtained, ObtainError> {
        Err(ObtainError {
            why,
            text: "it is broken".into(),
        })
    }

    /// Answers a question; false if nobody waits for the answer any more.
    type Reply = Box<dyn FnOnce(Result<Obtained, ObtainError>) -> bool + Send>;

    /// A keeper, and the questions that its sources get, each with a way to answer it. One that is not answered hangs.
    fn keeper() -> (Keeper, mpsc::UnboundedReceiver<(String, Reply)>) {
        let (tell, asked) = mpsc::unbounded_channel();
        let ask: Ask = Arc::new(move |source| {
            let (answer, answered) = tokio::sync::oneshot::channel();
            let CredentialSource::Process(process) = source else {
                panic!("all sources here are commands");
            };
            let reply: Reply = Box::new(move |outcome| answer.send(outcome).is_ok());
            tell.send((process.program.into(), reply)).ok();
            Box::pin(async move {
                match answered.await {
                    Ok(outcome) => outcome,
                    Err(_) => std::future::pending().await,
                }
            })
        });
        (Keeper::new(ask), asked)
    }

    /// What an instance with a role of this name would be given.
    fn given(keeper: &Keeper, source: &CredentialSource) -> String {
        let role = Role {
            name: "web".into(),
            profile: InstanceProfile {
                name: "web".into(),
                id: "AIPAEXAMPLE".into(),
            },
            credentials: RoleCredentials::Generated,
        };
        match keeper.credentials(source, &role) {
            RoleCredentials::Given(credentials) => credentials.access_key_id.into(),
            RoleCredentials::Unavailable(problem) => problem.code.into(),
            RoleCredentials::Generated => panic!("nothing here is made up"),
        }
    }

    async fn changed(keeper: &mut Keeper) {
        tokio::time::timeout(Duration::from_secs(10), keeper.changed())
            .await
            .expect("something changes");
    }

    #[tokio::test]
    async fn instances_with_the_same_source_share_one_question() {
        let (mut keeper, mut asked) = keeper();
        let shared = source("shared");
        keeper.want([("one", &shared), ("two", &shared)]);
        keeper.want([("one", &shared), ("two", &shared), ("three", &shared)]);
        let (name, reply) = asked.recv().await.unwrap();
        assert_eq!(
            (&*name, given(&keeper, &shared)),
            ("shared", "Failed".into())
        );
        reply(good("key"));
        changed(&mut keeper).await;
        assert_eq!(given(&keeper, &shared), "key");
        assert!(asked.try_recv().is_err(), "it was asked twice");
    }

    #[tokio::test]
    async fn a_source_that_hangs_holds_up_no_other() {
        let (mut keeper, mut asked) = keeper();
        let (hangs, works) = (source("hangs"), source("works"));
        keeper.want([("one", &hangs), ("two", &works)]);
        let mut unanswered = Vec::new();
        for _ in 0..2 {
            let (name, reply) = asked.recv().await.unwrap();
            if name == "works" {
                reply(good("key"));
            } else {
                unanswered.push(reply);
            }
        }
        changed(&mut keeper).await;
        assert_eq!(given(&keeper, &works), "key");
        assert_eq!(given(&keeper, &hangs), "Failed");
        assert_eq!(keeper.status(&hangs).unwrap().state, "pending");
    }

    #[tokio::test]
    async fn failures_are_told_by_their_kind() {
        let (mut keeper, mut asked) = keeper();
        let source = source("source");
        keeper.want([("one", &source)]);
        for (why, code) in [
            (FailureKind::Other, "Failed"),
            (FailureKind::Unauthorized, "AssumeRoleUnauthorizedAccess"),
        ] {
            let (_, reply) = asked.recv().await.unwrap();
            reply(bad(why));
            changed(&mut keeper).await;
            assert_eq!(given(&keeper, &source), code);
            let status = keeper.status(&source).unwrap();
            assert_eq!(
                (status.state, status.error.as_deref()),
                ("failed", Some("it is broken"))
            );
        }
        let (_, reply) = asked.recv().await.unwrap();
        reply(good("key"));
        changed(&mut keeper).await;
        assert_eq!(given(&keeper, &source), "key");
        let status = keeper.status(&source).unwrap();
        assert_eq!((status.state, status.error), ("fresh", None));
    }

    #[tokio::test]
    async fn a_source_that_nobody_wants_is_given_up_with_what_it_gave() {
        let (mut keeper, mut asked) = keeper();
        let (former, present) = (source("former"), source("present"));
        keeper.want([("one", &former)]);
        let (_, reply) = asked.recv().await.unwrap();
        reply(good("former key"));
        changed(&mut keeper).await;
        assert_eq!(given(&keeper, &former), "former key");

        keeper.want([("one", &present)]);
        assert_eq!(given(&keeper, &former), "Failed");
        assert_eq!(given(&keeper, &present), "Failed");
        assert_eq!(keeper.status(&former), None);
        let (name, late) = asked.recv().await.unwrap();
        assert_eq!(name, "present");

        // Let go of and wanted again while the question is out: it is another question, and nobody hears the answer to
        // the first one.
        keeper.want([("one", &former)]);
        keeper.want([("one", &present)]);
        let reply = loop {
            let (name, reply) = asked.recv().await.unwrap();
            if name == "present" {
                break reply;
            }
        };
        assert!(!late(good("late key")), "the first question still waits");
        assert!(reply(good("present key")));
        changed(&mut keeper).await;
        assert_eq!(given(&keeper, &present), "present key");
    }

    #[tokio::test]
    async fn credentials_that_expire_while_the_source_hangs_are_not_served() {
        let (mut keeper, mut asked) = keeper();
        let source = source("source");
        keeper.want([("one", &source)]);
        let (_, reply) = asked.recv().await.unwrap();
        let mut short = good("key").unwrap();
        short.expiration = Some(UnixSeconds(now().seconds().0 + 2));
        reply(Ok(short));
        changed(&mut keeper).await;
        assert_eq!(given(&keeper, &source), "key");
        let _hanging = asked.recv().await.unwrap();
        assert_eq!(given(&keeper, &source), "key");
        changed(&mut keeper).await;
        assert_eq!(given(&keeper, &source), "Failed");
    }

    #[test]
    fn the_log_says_once_what_is_wrong() {
        let since = UnixSeconds(1);
        let held = || {
            let mut schedule = Schedule::new(UnixMillis(0));
            schedule.succeed(good("key").expect("credentials"), UnixMillis(0), 0);
            schedule.kept(UnixMillis(0))
        };
        let failed = |why| Kept::Failed { why, since };
        let why = FailureKind::Other;
        let failing = |error: &str| News::Failing(error.into());
        let mut told = Told::default();
        for (kept, error, expected) in [
            (Kept::Pending { since }, None, vec![]),
            (failed(why), Some("a"), vec![failing("a"), News::Without]),
            (failed(why), Some("a"), vec![]),
            (failed(why), Some("b"), vec![failing("b")]),
            (held(), None, vec![News::Recovered]),
            (held(), Some("b"), vec![failing("b")]),
            (failed(why), Some("b"), vec![News::Without]),
            (held(), None, vec![News::Recovered]),
            // Expired while the source hangs.
            (failed(why), None, vec![News::Without]),
            (held(), None, vec![News::Recovered]),
            (held(), None, vec![]),
        ] {
            let error = error.map(Arc::from);
            let state = State { kept, error };
            assert_eq!(told.news(&state), expected, "{state:?}");
        }
    }
}
