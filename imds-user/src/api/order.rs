//! Orders of the command line: the actions of the API, asked for by a user of this machine and answered with what they change
//! instead of a document. So every rule is in one place, whoever asks.

use super::call::{Action, Call, Caller, Change as Write, answer};
use super::ec2;
use super::fault::Refusal;
use super::query::Query;
use super::service::{Api, entropy, now};
use crate::store::apply::{Action as Became, Change};
use crate::store::history::difference;
use crate::store::{Key, KeyRole, Kind, Note, Record, StoreError, View, Who};

/// One action that is ordered.
pub struct Order {
    /// Which.
    pub action: &'static Action,
    /// Its parameters, as a call has them.
    pub parameters: Vec<(String, String)>,
}

/// Who orders, and how the history is to tell it.
pub struct Orderer {
    /// The user.
    pub uid: u32,
    /// The command, with what it was given.
    pub what: String,
}

/// Why nothing is done.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// In EC2's words, and what was probably meant.
    #[error("{}{}", .0.message, .1.as_ref().map(|meant| format!("; {meant}")).unwrap_or_default())]
    Refused(Refusal, Option<String>),
    /// It cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Refusal> for OrderError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal, None)
    }
}

impl Api {
    /// Does all that is ordered, of which no two may be about the same record, or nothing; or only says what it would do. When
    /// this is answered it is kept.
    ///
    /// # Errors
    /// The first refusal, or that it cannot be kept.
    pub async fn carry_out(
        &self,
        by: Orderer,
        orders: &[Order],
        is_rehearsal: bool,
    ) -> Result<Vec<Change>, OrderError> {
        let entropy = entropy()?;
        let caller = Caller {
            who: Who::User(by.uid),
            role: KeyRole::Admin,
        };
        let note = Note {
            at: now(),
            who: caller.who.clone(),
            what: by.what.into(),
        };
        let queries: Vec<Query> = orders
            .iter()
            .map(|order| Query::of(order.parameters.iter().cloned()))
            .collect::<Result<_, _>>()?;
        let decide = |view: &View| {
            let mut draft = view.draft(note.clone());
            let mut changes = Vec::new();
            for (order, query) in orders.iter().zip(&queries) {
                let call = Call {
                    action: order.action.name,
                    params: query.params(),
                    caller: &caller,
                    view,
                    ground: self.ground(),
                    now: note.at,
                    entropy: entropy.clone(),
                    request_id: "",
                };
                let outcome = answer(order.action, &call).map_err(|refusal| {
                    let meant = ec2::meant(&refusal, &call.params, self.ground());
                    OrderError::Refused(refusal, meant)
                })?;
                for write in &outcome.changes {
                    changes.extend(told(view, write));
                    match write {
                        Write::Put(record) => draft.put(record).map_err(StoreError::from)?,
                        Write::Remove(key) => draft.remove(key),
                    }
                }
                for key in outcome.relies_on {
                    draft.rely_on(key);
                }
            }
            Ok::<_, OrderError>((draft.finish(), changes))
        };
        if is_rehearsal {
            return self.store().read(decide).map(|(_, changes)| changes);
        }
        let outcome = self.store().update(decide).await;
        if let Err(OrderError::Refused(refusal, _)) = &outcome {
            self.store()
                .note(note.of_call(None, Some(refusal.code.as_str())));
        }
        outcome.map(|(_, changes)| changes)
    }
}

/// What a write changes, for people; nothing, perhaps.
fn told(view: &View, write: &Write) -> Option<Change> {
    let (key, next) = match write {
        Write::Put(record) => (record.key(), Some(record)),
        Write::Remove(key) => (key.clone(), None),
    };
    let before = view.record(&key).map(|(_, record)| record);
    let before = before.or_else(|| Record::absent(&key));
    let instance_id = match key.kind {
        Kind::Instance | Kind::Life => key.name.parse().ok(),
        _ => None,
    };
    let (action, fields) = match (&before, next) {
        (None, None) => return None,
        (None, Some(_)) if key.kind == Kind::Instance => (Became::Add, Vec::new()),
        (Some(_), None) if key.kind == Kind::Instance => (Became::Remove, Vec::new()),
        (before, next) => {
            let (before, next) = (before.as_ref().map(Record::shown), next.map(Record::shown));
            (Became::Change, difference(before.as_ref(), next.as_ref()))
        }
    };
    if action == Became::Change && fields.is_empty() {
        return None;
    }
    Some(Change {
        instance_id,
        name: name_of(view, &key, next),
        action,
        fields,
    })
}

fn name_of(view: &View, key: &Key, next: Option<&Record>) -> Box<str> {
    if let Some(Record::Instance(record)) = next {
        return record.name.clone();
    }
    let record = key.name.parse().ok().and_then(|id| view.instance(id));
    match (key.kind, record) {
        (Kind::Instance | Kind::Life, Some(record)) => record.name.clone(),
        (Kind::Defaults, _) => "account defaults".into(),
        _ => key.name.clone(),
    }
}
