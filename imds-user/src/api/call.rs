//! A call that is to be answered, and what became of it. An action is a function from the one to the other: it looks at the
//! records as they are, and says what is to be written. Whether that is written, and that it is tried again on what is there
//! by then if somebody else was faster, is for whoever called.

use sha2::{Digest as _, Sha256};

use super::fault::{Code, Refusal};
use super::query::Params;
use super::xml::Xml;
use crate::config::Ground;
use crate::instance::{AccountId, UnixMillis, UnixSeconds};
use crate::store::{Key, KeyRole, Kind, Record, View, Who};

/// Who calls, by the key that they signed with or the user that they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// As the history has it.
    pub who: Who,
    /// What they may do.
    pub role: KeyRole,
}

/// Randomness for one call. The same for every attempt at it, so that an attempt that was repeated makes the same ids.
#[derive(Clone)]
pub struct Entropy([u8; 32]);

impl Entropy {
    /// From 32 random bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Bytes for the `number`th thing of a kind.
    #[must_use]
    pub fn bytes<const N: usize>(&self, what: &str, number: u64) -> [u8; N] {
        const { assert!(N <= 32) };
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(what.as_bytes());
        hash.update([0]);
        hash.update(number.to_be_bytes());
        let digest: [u8; 32] = hash.finalize().into();
        std::array::from_fn(|at| digest[at])
    }
}

/// One call.
pub struct Call<'a> {
    /// Its action.
    pub action: &'a str,
    /// Its parameters.
    pub params: Params<'a>,
    /// Who calls.
    pub caller: &'a Caller,
    /// The records.
    pub view: &'a View,
    /// Where launches land.
    pub ground: &'a Ground,
    /// When.
    pub now: UnixMillis,
    /// For ids.
    pub entropy: Entropy,
    /// What its answer is known by.
    pub request_id: &'a str,
}

impl Call<'_> {
    /// When, in seconds.
    #[must_use]
    pub fn now(&self) -> UnixSeconds {
        self.now.seconds()
    }

    /// The account.
    #[must_use]
    pub fn account(&self) -> AccountId {
        self.ground.host.account_id
    }

    /// An ARN of the account: `arn:aws:iam::123456789012:user/admin`.
    #[must_use]
    pub fn arn(&self, service: &str, region: &str, what: &str) -> String {
        let partition = self.ground.host.zone.partition();
        format!(
            "arn:{partition}:{service}:{region}:{}:{what}",
            self.account()
        )
    }
}

/// Something to be written.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// This record, new or in place of what it was.
    Put(Record),
    /// The record with this key is to go.
    Remove(Key),
}

/// What became of a call: the document to answer with, and what must be written before. It may have a private key in it, so
/// there is no way to print it.
#[derive(Clone, Default)]
pub struct Outcome {
    /// The document.
    pub body: Vec<u8>,
    /// What is to be written, each key once.
    pub changes: Vec<Change>,
    /// Records that must still be what they were, though they stay.
    pub relies_on: Vec<Key>,
    /// Kinds of which every record must still be what it was, and no other be there.
    pub relies_on_all: Vec<Kind>,
    /// The record that the call was about, for the history: where nothing changes too.
    pub about: Option<Key>,
}

impl Outcome {
    /// With something to write.
    #[must_use]
    pub fn put(mut self, record: Record) -> Self {
        self.changes.push(Change::Put(record));
        self
    }
}

/// Whether an action changes anything, and so who may call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It looks.
    Reads,
    /// It changes something.
    Writes,
}

/// An action of a service.
#[derive(Clone, Copy)]
pub struct Action {
    /// Its name.
    pub name: &'static str,
    /// Who may.
    pub effect: Effect,
    /// What it does.
    pub run: fn(&Call<'_>) -> Result<Outcome, Refusal>,
    /// Whether it computes for so long that it is to be done on a copy of the records.
    pub takes_long: bool,
    /// Whether it depends on what launches would find here just now.
    pub looks_around: bool,
}

impl Action {
    /// An action that looks.
    pub(super) const fn reads(
        name: &'static str,
        run: fn(&Call<'_>) -> Result<Outcome, Refusal>,
    ) -> Self {
        Self {
            name,
            effect: Effect::Reads,
            run,
            takes_long: false,
            looks_around: false,
        }
    }

    /// An action that changes something.
    pub(super) const fn writes(
        name: &'static str,
        run: fn(&Call<'_>) -> Result<Outcome, Refusal>,
    ) -> Self {
        Self {
            name,
            effect: Effect::Writes,
            run,
            takes_long: false,
            looks_around: false,
        }
    }
}

impl Action {
    /// The same, when it computes for long.
    pub(super) const fn taking_long(self) -> Self {
        Self {
            takes_long: true,
            ..self
        }
    }

    /// The same, when it depends on what launches would find.
    pub(super) const fn looking_around(self) -> Self {
        Self {
            looks_around: true,
            ..self
        }
    }
}

/// Answers a call of an action.
///
/// A rehearsal (`DryRun`) is judged like the real thing: what would be refused is refused, and only what would have been
/// done is not.
///
/// # Errors
/// In EC2's words.
pub fn answer(action: &Action, call: &Call<'_>) -> Result<Outcome, Refusal> {
    if action.effect == Effect::Writes && call.caller.role == KeyRole::ReadOnly {
        return Err(Refusal::unauthorized());
    }
    let is_rehearsal = call.params.flag("DryRun")?.unwrap_or(false);
    let outcome = (action.run)(call)?;
    if is_rehearsal {
        return Err(Refusal::dry_run());
    }
    Ok(outcome)
}

/// The action that parameters name, of those that a service has.
///
/// # Errors
/// `MissingAction`, `InvalidAction`.
pub fn action_of(
    actions: &'static [Action],
    params: &Params<'_>,
) -> Result<&'static Action, Refusal> {
    let _version = params.text("Version");
    let name = params.text("Action").ok_or_else(|| {
        Refusal::new(
            Code::MissingAction,
            "The request is missing an action. Please specify an action.",
        )
    })?;
    let found = actions.iter().find(|action| action.name == name);
    found.ok_or_else(|| Refusal::invalid_action(name))
}

/// EC2's name space.
pub(super) const EC2_NAMESPACE: &str = "http://ec2.amazonaws.com/doc/2016-11-15/";

impl Call<'_> {
    /// EC2's reply: the id of the request, and what belongs to the action.
    pub(super) fn ec2_reply(&self, inside: impl FnOnce(&mut Xml)) -> Outcome {
        let body = Xml::reply(self.action, EC2_NAMESPACE, |xml| {
            xml.el("requestId", self.request_id);
            inside(xml);
        });
        Outcome {
            body,
            ..Outcome::default()
        }
    }

    /// EC2's reply to actions that have nothing to say but that it is done.
    pub(super) fn ec2_done(&self) -> Outcome {
        self.ec2_reply(|xml| {
            xml.el("return", true);
        })
    }
}
