//! The history: who did what, when, and what it changed. Entries are only ever appended, with the change that they tell of,
//! in one piece: there is no change without its entry. Pure.
//!
//! What may be a secret never stands in it: that a password changed is told, not from what to what.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Revision;
use super::record::Key;
use super::shown::{Node, Tree};
use crate::instance::UnixMillis;

/// Who did something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// The daemon itself, when something planned became due, for example.
    Daemon,
    /// A user of this machine, by the Unix socket or the command line.
    User(u32),
    /// Whoever has this access key.
    AccessKey(Box<str>),
}

/// `daemon`, `uid 0` or `key AKIA…`
impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Daemon => f.write_str("daemon"),
            Self::User(uid) => write!(f, "uid {uid}"),
            Self::AccessKey(id) => write!(f, "key {id}"),
        }
    }
}

/// What a change is noted with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// When.
    pub at: UnixMillis,
    /// Who.
    pub who: Who,
    /// What was called: an action of the API, or a command with what it was given.
    pub what: Box<str>,
}

impl Note {
    /// Something that is noted though it changed nothing: a call that only looked, or was refused (with the error's code).
    #[must_use]
    pub fn of_call(self, about: Option<Key>, refused: Option<&str>) -> NewEntry {
        NewEntry {
            note: self,
            about,
            changes: Vec::new(),
            refused: refused.map(Box::from),
        }
    }
}

/// An entry that is still to be appended.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEntry {
    /// When, who and what.
    pub note: Note,
    /// The record that it is about.
    pub about: Option<Key>,
    /// What became of it.
    pub changes: Vec<FieldChange>,
    /// The code of the error, if it was refused.
    pub refused: Option<Box<str>>,
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Entries are numbered, from 1.
    pub number: u64,
    /// The revision that its change made, or the last one before it if it made none.
    pub revision: Revision,
    /// When, in milliseconds.
    pub at: UnixMillis,
    /// Who: `daemon`, `uid 0` or `key AKIA…`
    pub who: Box<str>,
    /// What was called.
    pub what: Box<str>,
    /// The record that it is about: `instance/i-…`, for example.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<Box<str>>,
    /// What became of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<FieldChange>,
    /// The code of the error, if it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Box<str>>,
}

/// One field that is another now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldChange {
    /// Its name, in the words of the configuration file: `metadata-options.http-tokens`. Empty if all of a record came or
    /// went.
    pub field: Box<str>,
    /// What it had; none if it was not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<Value>,
    /// What it has; none if it is not there any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<Value>,
}

/// The name of the field that is all of a record.
pub const WHOLE: &str = "";

/// `http-tokens: optional → required`
impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match (&self.old, &self.new) {
            (_, Some(_)) if &*self.field == WHOLE => f.write_str("added"),
            (_, None) if &*self.field == WHOLE => f.write_str("removed"),
            (Some(old), Some(new)) => {
                write!(f, "{}: {} → {}", self.field, text(old), text(new))
            }
            (None, Some(new)) => write!(f, "{}: {}", self.field, text(new)),
            (Some(old), None) => write!(f, "{}: {} → (nothing)", self.field, text(old)),
            (None, None) => f.write_str(&self.field),
        }
    }
}

/// What is different between two records. One that comes or goes is one change, of all that it is.
#[must_use]
pub fn difference(old: Option<&Tree>, new: Option<&Tree>) -> Vec<FieldChange> {
    let mut changes = Vec::new();
    match (old, new) {
        (None, None) => {}
        (Some(old), Some(new)) => compare_tables("", old, new, &mut changes),
        (old, new) => changes.push(FieldChange {
            field: WHOLE.into(),
            old: old.map(Tree::for_anybody),
            new: new.map(Tree::for_anybody),
        }),
    }
    changes
}

fn compare_tables(path: &str, old: &Tree, new: &Tree, changes: &mut Vec<FieldChange>) {
    let names: BTreeSet<&String> = old.0.keys().chain(new.0.keys()).collect();
    for name in names {
        let path = match path {
            "" => name.clone(),
            path => format!("{path}.{name}"),
        };
        compare(&path, old.0.get(name), new.0.get(name), changes);
    }
}

fn compare(path: &str, old: Option<&Node>, new: Option<&Node>, changes: &mut Vec<FieldChange>) {
    if old == new {
        return;
    }
    let nothing = Tree::default();
    match (old, new) {
        (Some(Node::Table(old)), Some(Node::Table(new))) => {
            compare_tables(path, old, new, changes);
        }
        (Some(Node::Table(old)), None) => compare_tables(path, old, &nothing, changes),
        (None, Some(Node::Table(new))) => compare_tables(path, &nothing, new, changes),
        (old, new) => changes.push(FieldChange {
            field: path.into(),
            old: old.map(Node::for_anybody),
            new: new.map(Node::for_anybody),
        }),
    }
}

impl Node {
    /// What anybody may see of it.
    #[must_use]
    pub fn for_anybody(&self) -> Value {
        match self {
            Self::Value(value) => value.clone(),
            Self::Secret { shown, .. } => shown.as_str().into(),
            Self::Table(table) => table.for_anybody(),
            Self::List(tables) => tables.iter().map(Tree::for_anybody).collect(),
        }
    }
}

impl Tree {
    /// What anybody may see of it.
    #[must_use]
    pub fn for_anybody(&self) -> Value {
        let fields = self.0.iter();
        let fields = fields.map(|(name, node)| (name.clone(), node.for_anybody()));
        Value::Object(fields.collect())
    }
}
