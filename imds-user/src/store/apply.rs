//! A configuration file, applied: from the records that there are and what the file says to what changes. Pure.
//!
//! The file has the last word on its own instances, and none on others'. What the API may change too (each [`Facet`]) is
//! settled by three: what the file says, what it said when it was last applied, and what is true.
//!
//! | the file says it | as before | not as before | when a person applies it | when the daemon reads it |
//! |---|---|---|---|---|
//! | yes | x | | the file's | what is true |
//! | yes | | x | the file's | the file's |
//! | not any more | | x | the default | the default |
//! | it never did | x | | what is true | what is true |
//!
//! So a daemon that is started again takes nothing back that a call of the API was promised, a line that is edited
//! counts, and `imds apply` makes everything that the file says so.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU8;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::backend::Transaction;
use super::digest::Digest;
use super::history::{FieldChange, Note, difference};
use super::record::{AccountDefaults, InstanceRecord, Key, Owner, Record, RecordError};
use super::view::View;
use crate::config::{Facet, Guest, PortBy, Rest, Said};
use crate::instance::options::MetadataOptions;
use crate::instance::{InstanceId, TokenUse};

/// Whether what the file says counts, or only what is new in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precedence {
    /// A person applies it: all that it says.
    File,
    /// The daemon reads it, at its start or when it is told to: what was changed in it.
    Edits,
}

/// What becomes of the records.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What changes, in the order of the file; what goes comes last.
    pub changes: Vec<Change>,
    writes: Vec<InstanceRecord>,
    rest: Option<Rest>,
    removals: Vec<InstanceId>,
}

/// What becomes of one instance, or of what all share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Which; none for what the file says besides instances.
    pub instance_id: Option<InstanceId>,
    /// What commands call it.
    pub name: Box<str>,
    /// What happens to it.
    pub action: Action,
    /// What is other than before, if it is changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldChange>,
}

/// What happens to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It was not there, or was terminated.
    Add,
    /// It is another now.
    Change,
    /// The file does not have it any more.
    Remove,
}

/// Why a file is not applied. Nothing changes then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Two instances of one name.
    #[error(
        "instance {name} of the file: {other}, which is not the file's ({}), has that name: give it another, or take that one away",
        owner.as_str()
    )]
    NameTaken {
        /// The name.
        name: Box<str>,
        /// Who has it.
        other: InstanceId,
        /// Whose that is.
        owner: Owner,
    },
    /// Two instances at one port.
    #[error(
        "instance {name} of the file: its port {port} is that of {other}, which is not the file's ({}): take that one away first",
        owner.as_str()
    )]
    PortTaken {
        /// The name.
        name: Box<str>,
        /// The port.
        port: PortBy,
        /// Who has it.
        other: InstanceId,
        /// Whose that is.
        owner: Owner,
    },
    /// The account refuses such instances.
    #[error(
        "instance {0} of the file: the account's defaults enforce tokens (HttpTokensEnforced), and this one would not require them: write metadata-options.http-tokens = \"required\""
    )]
    TokensEnforced(Box<str>),
}

/// What applying a file changes. `guests` are its instances, `rest` is what it says besides.
///
/// # Errors
/// When it does not fit what there is of others.
pub fn plan(
    view: &View,
    guests: &[Guest],
    rest: &Rest,
    precedence: Precedence,
) -> Result<Plan, ApplyError> {
    let mut plan = Plan::default();
    plan.take_rest(view.rest(), rest);
    refuse_what_others_have(view, guests, precedence)?;
    let defaults = view.defaults();
    for guest in guests {
        let id = guest.instance.id;
        let present = view.instance(id);
        let next = match present {
            Some(present) if !present.is_terminated() => merged(guest, present, precedence),
            // Whoever terminated it was promised that it is gone. The file must be meant to bring it back.
            Some(_) if precedence == Precedence::Edits => continue,
            _ => launched(guest, defaults)?,
        };
        let Some(action) = action(present, &next) else {
            continue;
        };
        plan.note(action, present, &next);
        plan.writes.push(next);
    }
    let declared: BTreeSet<InstanceId> = guests.iter().map(|guest| guest.instance.id).collect();
    for (id, versioned) in view.instances() {
        let present = &versioned.value;
        if present.owner == Owner::File && !declared.contains(id) {
            plan.removals.push(*id);
            plan.changes.push(Change {
                instance_id: Some(*id),
                name: present.name.clone(),
                action: Action::Remove,
                fields: Vec::new(),
            });
        }
    }
    Ok(plan)
}

impl Plan {
    /// The guests of the file as they are to be served then: as the records have them, without those that are terminated.
    #[must_use]
    pub fn in_force(&self, view: &View, guests: Vec<Guest>) -> Vec<Guest> {
        let writes = self.writes.iter().map(|record| (record.spec.id, record));
        let writes: BTreeMap<InstanceId, &InstanceRecord> = writes.collect();
        let in_force = |guest: Guest| {
            let id = guest.instance.id;
            let record = writes.get(&id).copied().or_else(|| view.instance(id))?;
            (!record.is_terminated()).then(|| Guest {
                credential_source: record.credential_source.clone(),
                instance: record.spec.clone(),
                ..guest
            })
        };
        guests.into_iter().filter_map(in_force).collect()
    }

    /// Whether everything is as the file says already. What was said may have to be noted nevertheless.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.writes.is_empty() && self.removals.is_empty() && self.rest.is_none()
    }

    /// What is to be committed, on the condition that the view is still true.
    ///
    /// # Errors
    /// A record cannot be written down.
    pub fn transaction(&self, view: &View, note: Note) -> Result<Transaction, RecordError> {
        let mut draft = view.draft(note);
        for record in &self.writes {
            draft.put(&Record::Instance(Box::new(record.clone())))?;
        }
        for id in &self.removals {
            draft.remove(&Key::instance(*id));
        }
        if let Some(rest) = &self.rest {
            draft.put(&Record::Rest(rest.clone()))?;
        }
        // New instances follow from these.
        draft.rely_on(Key::defaults());
        Ok(draft.finish())
    }

    fn take_rest(&mut self, present: Option<&Rest>, next: &Rest) {
        if present == Some(next) {
            return;
        }
        let shown = |rest: &Rest| Record::Rest(rest.clone()).shown();
        let before = present.map(shown);
        self.changes.push(Change {
            instance_id: None,
            name: "[host], [discovery] and templates".into(),
            action: match present {
                Some(_) => Action::Change,
                None => Action::Add,
            },
            fields: match &before {
                Some(before) => difference(Some(before), Some(&shown(next))),
                None => Vec::new(),
            },
        });
        self.rest = Some(next.clone());
    }

    fn note(&mut self, action: Action, present: Option<&InstanceRecord>, next: &InstanceRecord) {
        let shown = |record: &InstanceRecord| Record::Instance(Box::new(record.clone())).shown();
        let fields = match (action, present) {
            (Action::Change, Some(present)) => {
                difference(Some(&shown(present)), Some(&shown(next)))
            }
            _ => Vec::new(),
        };
        // That the file says now what was true already is nothing to tell.
        if action == Action::Change && fields.is_empty() {
            return;
        }
        self.changes.push(Change {
            instance_id: Some(next.spec.id),
            name: next.name.clone(),
            action,
            fields,
        });
    }
}

/// The record of a guest that a person, a source or a template brought: as it says, or as is true already of what it says as
/// before (see the table at the top, read by the daemon). None where the record with its id is another one's.
#[must_use]
pub fn turned_up(view: &View, guest: &Guest, owner: Owner) -> Option<InstanceRecord> {
    let present = view.instance(guest.instance.id);
    let record = match present {
        Some(present) if !is_a_guest_that_turned_up(present) => return None,
        Some(present) => merged(guest, present, Precedence::Edits),
        None => {
            let mut record = declared(guest);
            let defaults = view.defaults();
            prefer(&mut record.spec.options, guest.said, defaults);
            // Nobody launches it who could be refused.
            if enforces_tokens(defaults) {
                record.spec.options.http_tokens = TokenUse::Required;
            }
            record
        }
    };
    Some(InstanceRecord { owner, ..record })
}

/// Whether it is such a guest's.
#[must_use]
pub fn is_a_guest_that_turned_up(record: &InstanceRecord) -> bool {
    matches!(record.owner, Owner::Admitted | Owner::Discovered) && !record.is_terminated()
}

fn enforces_tokens(defaults: AccountDefaults) -> bool {
    defaults
        .http_tokens_enforced
        .is_some_and(|switch| switch.is_enabled())
}

/// What happens to an instance that is to be `next`; nothing, perhaps.
fn action(present: Option<&InstanceRecord>, next: &InstanceRecord) -> Option<Action> {
    match present {
        Some(present) if present == next => None,
        Some(present) if !present.is_terminated() => Some(Action::Change),
        _ => Some(Action::Add),
    }
}

/// Those of others that stay must not have what the file gives its own. One with the same id becomes the file's.
///
/// A guest that turned up by itself makes way for the file's instance, as does one that was admitted when the daemon starts: a
/// file that was right must not become wrong because of those.
fn refuse_what_others_have(
    view: &View,
    guests: &[Guest],
    precedence: Precedence,
) -> Result<(), ApplyError> {
    let makes_way = |owner| match owner {
        Owner::File | Owner::Discovered => true,
        Owner::Admitted => precedence == Precedence::Edits,
        Owner::Api => false,
    };
    let declared: BTreeSet<InstanceId> = guests.iter().map(|guest| guest.instance.id).collect();
    let others = view.instances().values().map(|versioned| &*versioned.value);
    let others = others.filter(|other| {
        !makes_way(other.owner) && !other.is_terminated() && !declared.contains(&other.spec.id)
    });
    let (mut names, mut ports) = (BTreeMap::new(), BTreeMap::new());
    for other in others {
        names.insert(&*other.name, other);
        if let Some(port) = &other.port {
            ports.insert(port, other);
        }
    }
    for guest in guests {
        if let Some(other) = names.get(&*guest.name) {
            return Err(ApplyError::NameTaken {
                name: guest.name.clone(),
                other: other.spec.id,
                owner: other.owner,
            });
        }
        if let Some(other) = ports.get(&guest.port) {
            return Err(ApplyError::PortTaken {
                name: guest.name.clone(),
                port: guest.port.clone(),
                other: other.spec.id,
                owner: other.owner,
            });
        }
    }
    Ok(())
}

/// An instance as the file alone has it.
fn declared(guest: &Guest) -> InstanceRecord {
    let mut record = InstanceRecord::new(&guest.name, Owner::File, guest.instance.clone());
    record.port = Some(guest.port.clone());
    record.limits = guest.limits;
    record
        .credential_source
        .clone_from(&guest.credential_source);
    let said = Facet::ALL.iter().filter(|facet| guest.said.has(**facet));
    record.said = said
        .map(|facet| (*facet, digest(*facet, &record)))
        .collect();
    record
}

/// One that was not there: what the file does not say is as the account has it (EC2: "launch parameter, else account-level
/// default").
fn launched(guest: &Guest, defaults: AccountDefaults) -> Result<InstanceRecord, ApplyError> {
    let mut record = declared(guest);
    prefer(&mut record.spec.options, guest.said, defaults);
    if enforces_tokens(defaults) && record.spec.options.http_tokens == TokenUse::Optional {
        return Err(ApplyError::TokensEnforced(guest.name.clone()));
    }
    Ok(record)
}

fn prefer(options: &mut MetadataOptions, said: Said, defaults: AccountDefaults) {
    fn prefer<T>(option: &mut T, is_said: bool, default: Option<T>) {
        if let (false, Some(default)) = (is_said, default) {
            *option = default;
        }
    }
    let is_said = |facet| said.has(facet);
    prefer(
        &mut options.http_tokens,
        is_said(Facet::HttpTokens),
        defaults.http_tokens,
    );
    prefer(
        &mut options.http_endpoint,
        is_said(Facet::HttpEndpoint),
        defaults.http_endpoint,
    );
    prefer::<NonZeroU8>(
        &mut options.http_put_response_hop_limit,
        is_said(Facet::HttpPutResponseHopLimit),
        defaults.http_put_response_hop_limit,
    );
    prefer(
        &mut options.instance_metadata_tags,
        is_said(Facet::InstanceMetadataTags),
        defaults.instance_metadata_tags,
    );
}

/// One that is there: see the table at the top.
fn merged(guest: &Guest, present: &InstanceRecord, precedence: Precedence) -> InstanceRecord {
    let declared = declared(guest);
    let mut next = InstanceRecord {
        options: present.options,
        transition: present.transition,
        launch: present.launch.clone(),
        key_name: present.key_name.clone(),
        profile_association: present.profile_association,
        attributes: present.attributes.clone(),
        machine: present.machine.clone(),
        state_reason: present.state_reason,
        ..declared.clone()
    };
    for facet in Facet::ALL {
        if is_kept(*facet, &declared, present, precedence) {
            copy(*facet, present, &mut next);
        }
    }
    if next.spec.options != present.spec.options {
        next.options.change();
    }
    next
}

/// Whether what is true stays.
fn is_kept(
    facet: Facet,
    declared: &InstanceRecord,
    present: &InstanceRecord,
    precedence: Precedence,
) -> bool {
    // Groups belong to a VPC: those of another one cannot stay, whoever chose them.
    let has_moved = declared.spec.primary.subnet.vpc_id != present.spec.primary.subnet.vpc_id;
    if facet == Facet::SecurityGroups && has_moved {
        return false;
    }
    match (declared.said.get(&facet), present.said.get(&facet)) {
        (Some(now), Some(before)) if now == before => precedence == Precedence::Edits,
        (Some(_), _) | (None, Some(_)) => false,
        (None, None) => true,
    }
}

fn copy(facet: Facet, from: &InstanceRecord, to: &mut InstanceRecord) {
    let (options, new_options) = (&from.spec.options, &mut to.spec.options);
    match facet {
        Facet::HttpTokens => new_options.http_tokens = options.http_tokens,
        Facet::HttpEndpoint => new_options.http_endpoint = options.http_endpoint,
        Facet::HttpPutResponseHopLimit => {
            new_options.http_put_response_hop_limit = options.http_put_response_hop_limit;
        }
        Facet::HttpProtocolIpv6 => new_options.http_protocol_ipv6 = options.http_protocol_ipv6,
        Facet::InstanceMetadataTags => {
            new_options.instance_metadata_tags = options.instance_metadata_tags;
        }
        Facet::Type => to.spec.instance_type.clone_from(&from.spec.instance_type),
        Facet::Tags => to.spec.tags.clone_from(&from.spec.tags),
        Facet::UserData => to.spec.user_data.clone_from(&from.spec.user_data),
        Facet::Role => {
            to.spec.role.clone_from(&from.spec.role);
            to.credential_source.clone_from(&from.credential_source);
        }
        Facet::Monitoring => to.spec.set_monitoring(from.spec.details().monitoring),
        Facet::SecurityGroups => {
            let groups = &from.spec.primary.security_groups;
            to.spec.primary.security_groups.clone_from(groups);
        }
    }
}

/// A digest of what a facet of a record is.
fn digest(facet: Facet, record: &InstanceRecord) -> Digest {
    fn text(value: &impl Serialize) -> Value {
        // Nothing that is kept refuses to be written down.
        serde_json::to_value(value).unwrap_or_default()
    }
    let spec = &record.spec;
    let value = match facet {
        Facet::HttpTokens => text(&spec.options.http_tokens),
        Facet::HttpEndpoint => text(&spec.options.http_endpoint),
        Facet::HttpPutResponseHopLimit => text(&spec.options.http_put_response_hop_limit),
        Facet::HttpProtocolIpv6 => text(&spec.options.http_protocol_ipv6),
        Facet::InstanceMetadataTags => text(&spec.options.instance_metadata_tags),
        Facet::Type => text(&spec.instance_type),
        Facet::Tags => text(&spec.tags),
        Facet::UserData => text(&spec.user_data),
        Facet::Role => text(&(&spec.role, &record.credential_source)),
        Facet::Monitoring => text(&spec.details().monitoring),
        Facet::SecurityGroups => text(&spec.primary.security_groups),
    };
    Digest::of(value.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::super::backend::{Backend, State};
    use super::super::memory::Memory;
    use super::super::record::Transition;
    use super::super::{Owner, Who};
    use super::*;
    use crate::config::{self, Files, Installation};
    use crate::instance::{Switch, UnixMillis, UnixSeconds};

    fn guests(text: &str) -> Vec<Guest> {
        struct OneFile(String);
        impl Files for OneFile {
            fn read(&self, _path: &Path, _bytes_max: usize) -> io::Result<Vec<u8>> {
                Ok(self.0.clone().into())
            }
        }
        let installation = Installation {
            seed: [7; 16],
            created: UnixSeconds(1000),
        };
        let file = OneFile(text.to_owned());
        let settings = config::load(Path::new("imds.toml"), &installation, &file);
        settings.unwrap().guests
    }

    /// One instance of a file, with these lines.
    fn web(lines: &str) -> String {
        format!("[[instance]]\nname = \"web\"\nport = \"vnet0\"\n{lines}\n")
    }

    /// A store, and a file that is applied to it.
    #[derive(Default)]
    struct Story {
        store: Memory,
    }

    impl Story {
        fn of(text: &str) -> Self {
            let mut story = Self::default();
            story.apply(text, Precedence::File);
            story
        }

        fn view(&mut self) -> View {
            let State { revision, items } = self.store.load().unwrap();
            let mut view = View::default();
            view.take(revision, items).unwrap();
            view
        }

        /// Applies a file; what it says it changes, a line each.
        fn apply(&mut self, text: &str, precedence: Precedence) -> Vec<String> {
            let view = self.view();
            let rest = Rest::default();
            let plan = match plan(&view, &guests(text), &rest, precedence) {
                Ok(plan) => plan,
                Err(error) => return vec![error.to_string()],
            };
            let transaction = plan.transaction(&view, note()).unwrap();
            assert_eq!(transaction.writes.is_empty(), plan.is_nothing());
            self.store.commit(&transaction).unwrap();
            let again = super::plan(&self.view(), &guests(text), &rest, precedence).unwrap();
            assert_eq!(again, Plan::default(), "a second time: {text}");
            plan.changes.iter().flat_map(lines).collect()
        }

        /// What a daemon serves that reads this file.
        fn served(&mut self, text: &str) -> Vec<Guest> {
            let (view, guests) = (self.view(), guests(text));
            let plan = plan(&view, &guests, &Rest::default(), Precedence::Edits).unwrap();
            plan.in_force(&view, guests)
        }

        /// What a call of the API does.
        fn call(&mut self, change: impl Fn(&mut InstanceRecord)) {
            let view = self.view();
            let mut record =
                InstanceRecord::clone(&view.instances().values().next().unwrap().value);
            change(&mut record);
            self.add(record);
        }

        fn add(&mut self, record: InstanceRecord) {
            let view = self.view();
            let mut draft = view.draft(note());
            draft.put(&Record::Instance(Box::new(record))).unwrap();
            self.store.commit(&draft.finish()).unwrap();
        }

        fn only(&mut self) -> InstanceRecord {
            let view = self.view();
            let mut instances = view.instances().values();
            let only = InstanceRecord::clone(&instances.next().unwrap().value);
            assert!(instances.next().is_none());
            only
        }
    }

    fn note() -> Note {
        Note {
            at: UnixMillis(1),
            who: Who::User(0),
            what: "apply".into(),
        }
    }

    /// What the file says besides instances is the same in all of these.
    fn lines(change: &Change) -> Vec<String> {
        if change.instance_id.is_none() {
            return Vec::new();
        }
        let Change {
            name,
            action,
            fields,
            ..
        } = change;
        match action {
            Action::Add => vec![format!("+ {name}")],
            Action::Remove => vec![format!("- {name}")],
            Action::Change => fields
                .iter()
                .map(|field| format!("~ {name} {field}"))
                .collect(),
        }
    }

    /// What a second file changes after a first one.
    #[track_caller]
    fn check(first: &str, second: &str, expected: &[&str]) {
        for precedence in [Precedence::File, Precedence::Edits] {
            let mut story = Story::of(first);
            assert_eq!(story.apply(second, precedence), expected, "{precedence:?}");
            let declared: Vec<InstanceRecord> = guests(second).iter().map(declared).collect();
            let view = story.view();
            for record in &declared {
                let mut found = view.instance(record.spec.id).unwrap().clone();
                found.options = record.options;
                assert_eq!(found, *record, "where nobody else changed anything");
            }
            assert_eq!(view.instances().len(), declared.len());
        }
    }

    #[test]
    fn a_file_says_what_there_is() {
        check("", "", &[]);
        check("", &web(""), &["+ web"]);
        check(&web(""), &web(""), &[]);
        check(&web(""), "", &["- web"]);
        check(
            &web(""),
            "[[instance]]\nname = \"db\"\nport = \"vnet1\"",
            &["+ db", "- web"],
        );
        check(
            &web(""),
            &web("type = \"m5.large\"\nhostname = \"h\""),
            &["~ web hostname: h", "~ web type: t3.micro → m5.large"],
        );
        check(
            &web("tags = { a = \"1\", b = \"2\" }\nmonitoring = \"enabled\"\nrole.name = \"r\""),
            &web("tags = { a = \"1\", c = \"3\" }"),
            &[
                "~ web monitoring: enabled → (nothing)",
                "~ web role.instance-profile: r → (nothing)",
                "~ web role.instance-profile-id: AIPA6KD5GIH2YB4BO2CNG → (nothing)",
                "~ web role.name: r → (nothing)",
                "~ web tags.b: 2 → (nothing)",
                "~ web tags.c: 3",
            ],
        );
        check(
            &web("limits.connections = 5"),
            &web("limits.connections = 6\nuser-data = \"x\""),
            &[
                "~ web limits.connections: 5 → 6",
                "~ web user-data-base64: (1 bytes)",
            ],
        );
        // To say what is true already changes nothing.
        check(
            &web(""),
            &web("type = \"t3.micro\"\nmetadata-options.http-tokens = \"optional\""),
            &[],
        );
    }

    const REQUIRED: &str = "metadata-options.http-tokens = \"required\"";
    const OPTIONAL: &str = "metadata-options.http-tokens = \"optional\"";

    /// A file, a call of the API that makes tokens required or optional, and another file: what is true then, when a person
    /// applies it and when the daemon reads it.
    #[track_caller]
    fn check_tokens(
        first: &str,
        called: TokenUse,
        second: &str,
        applied: TokenUse,
        read: TokenUse,
    ) {
        for (precedence, expected) in [(Precedence::File, applied), (Precedence::Edits, read)] {
            let mut story = Story::of(&web(first));
            story.call(|record| record.spec.options.http_tokens = called);
            story.apply(&web(second), precedence);
            let found = story.only().spec.options.http_tokens;
            assert_eq!(
                found, expected,
                "{first} | {called:?} | {second} | {precedence:?}"
            );
        }
    }

    #[test]
    fn a_call_lasts_until_the_file_says_otherwise() {
        use TokenUse::{Optional, Required};
        // The file never said it: the call stands.
        check_tokens("", Required, "", Required, Required);
        // The file says it and did: a person means it, a daemon that starts again does not.
        check_tokens(OPTIONAL, Required, OPTIONAL, Optional, Required);
        check_tokens(REQUIRED, Optional, REQUIRED, Required, Optional);
        // The file says it now.
        check_tokens("", Required, OPTIONAL, Optional, Optional);
        check_tokens(OPTIONAL, Optional, REQUIRED, Required, Required);
        // The file does not say it any more.
        check_tokens(REQUIRED, Required, "", Optional, Optional);
    }

    /// Each facet is changed by a call, and the file of before is applied.
    #[test]
    fn every_facet_can_be_changed_by_calls_and_said_by_the_file() {
        let everything = web(
            "type = \"m5.large\"\ntags.a = \"1\"\nuser-data = \"x\"\nrole.name = \"r\"\nmonitoring = \"enabled\"\n\
             security-groups = [\"web\"]\nmetadata-options = { http-tokens = \"required\", http-endpoint = \"disabled\", \
             http-put-response-hop-limit = 7, http-protocol-ipv6 = \"enabled\", instance-metadata-tags = \"enabled\" }",
        );
        for facet in Facet::ALL {
            let by_call = |record: &mut InstanceRecord| {
                let other = declared(&guests(&web(""))[0]);
                let before = digest(*facet, record);
                copy(*facet, &other, record);
                assert_ne!(digest(*facet, record), before, "{facet:?}");
            };
            let mut story = Story::of(&everything);
            let as_declared = story.only();
            story.call(by_call);
            let changed = story.only();
            assert_eq!(
                story.apply(&everything, Precedence::Edits),
                [""; 0],
                "{facet:?}"
            );
            assert_eq!(story.only(), changed, "{facet:?}");
            assert!(
                !story.apply(&everything, Precedence::File).is_empty(),
                "{facet:?}"
            );
            assert_eq!(story.only().spec, as_declared.spec, "{facet:?}");
            // Where the file says nothing of it, the call stands in both cases.
            let mut story = Story::of(&web(""));
            story.call(|record| copy(*facet, &declared(&guests(&everything)[0]), record));
            let changed = story.only();
            for precedence in [Precedence::Edits, Precedence::File] {
                story.apply(&web(""), precedence);
                assert_eq!(story.only(), changed, "{facet:?}");
            }
        }
    }

    #[test]
    fn what_is_the_apis_alone_is_never_touched() {
        let mut story = Story::of(&web(""));
        story.call(|record| {
            record.attributes.disable_api_stop = true;
            record.key_name = Some("me".into());
            record.launch.client_token = Some("once".into());
        });
        let before = story.only();
        assert_eq!(
            story.apply(&web("type = \"m5.large\""), Precedence::File),
            ["~ web type: t3.micro → m5.large"]
        );
        let after = story.only();
        assert_eq!(
            (after.attributes, after.key_name, after.launch),
            (before.attributes, before.key_name, before.launch)
        );
    }

    #[test]
    fn changed_options_are_pending() {
        let mut story = Story::of(&web(""));
        assert_eq!(story.only().options.state(), "applied");
        story.apply(&web(REQUIRED), Precedence::Edits);
        assert_eq!(story.only().options.state(), "pending");
    }

    #[test]
    fn who_was_terminated_comes_back_only_if_a_person_applies_the_file() {
        let mut story = Story::of(&web(""));
        story
            .call(|record| record.transition = Some(Transition::Terminated { at: UnixSeconds(9) }));
        let edited = web("hostname = \"h\"");
        assert_eq!(story.apply(&edited, Precedence::Edits), [""; 0]);
        assert!(story.only().is_terminated());
        assert!(story.served(&edited).is_empty());
        assert_eq!(story.apply(&edited, Precedence::File), ["+ web"]);
        assert!(!story.only().is_terminated());
        // And is gone when the file does not have it.
        story
            .call(|record| record.transition = Some(Transition::Terminated { at: UnixSeconds(9) }));
        assert_eq!(story.apply("", Precedence::Edits), ["- web"]);
        assert!(story.view().instances().is_empty());
    }

    #[test]
    fn what_is_served_is_what_the_records_have() {
        let mut story = Story::of(&web(OPTIONAL));
        story.call(|record| record.spec.options.http_tokens = TokenUse::Required);
        assert_eq!(story.served(&web(OPTIONAL))[0].instance, story.only().spec);
        // Also before it is committed.
        let edited = web(&format!("{OPTIONAL}\nhostname = \"h\""));
        let served = story.served(&edited);
        assert_eq!(served[0].instance.options.http_tokens, TokenUse::Required);
        assert_eq!(served[0].instance.details().hostname.as_deref(), Some("h"));
        assert_eq!(Story::default().served(&edited), guests(&edited));
    }

    #[test]
    fn new_instances_get_what_the_account_has_and_others_do_not() {
        let mut story = Story::of(&web(""));
        let view = story.view();
        let mut draft = view.draft(note());
        let mut defaults = AccountDefaults {
            http_tokens: Some(TokenUse::Required),
            http_put_response_hop_limit: NonZeroU8::new(2),
            ..AccountDefaults::default()
        };
        draft.put(&Record::Defaults(defaults)).unwrap();
        story.store.commit(&draft.finish()).unwrap();
        assert_eq!(story.apply(&web(""), Precedence::File), [""; 0]);
        let two = format!("{}[[instance]]\nname = \"db\"\nport = \"vnet1\"\n", web(""));
        assert_eq!(story.apply(&two, Precedence::Edits), ["+ db"]);
        let mut of_db = || {
            let id = guests(&two)[1].instance.id;
            story.view().instance(id).unwrap().spec.options
        };
        let options = of_db();
        assert_eq!(options.http_tokens, TokenUse::Required);
        assert_eq!(options.http_put_response_hop_limit.get(), 2);
        // What it has from there the file did not say: it stays.
        story.apply(&two, Precedence::File);
        // What the file says goes first, unless the account enforces otherwise.
        story.apply(&web(""), Precedence::File);
        let insecure = format!("{two}{OPTIONAL}\n");
        assert_eq!(story.apply(&insecure, Precedence::File), ["+ db"]);
        story.apply(&web(""), Precedence::File);
        defaults.http_tokens_enforced = Some(Switch::Enabled);
        let view = story.view();
        let mut draft = view.draft(note());
        draft.put(&Record::Defaults(defaults)).unwrap();
        story.store.commit(&draft.finish()).unwrap();
        let refused = story.apply(&insecure, Precedence::File);
        assert!(refused[0].contains("HttpTokensEnforced"), "{refused:?}");
        assert_eq!(story.apply(&two, Precedence::File), ["+ db"]);
    }

    #[test]
    fn what_calls_changed_of_a_guest_that_turned_up_stays_until_it_says_something_else() {
        use TokenUse::{Optional, Required};
        let told = |story: &mut Story, lines: &str| {
            let guest = guests(&web(lines)).remove(0);
            turned_up(&story.view(), &guest, Owner::Admitted)
        };
        let tokens = |record: Option<InstanceRecord>| record.unwrap().spec.options.http_tokens;
        let mut story = Story::default();
        let first = told(&mut story, OPTIONAL).unwrap();
        assert_eq!(
            (first.owner, first.spec.options.http_tokens),
            (Owner::Admitted, Optional)
        );
        story.add(first.clone());
        assert_eq!(told(&mut story, OPTIONAL), Some(first));
        story.call(|record| record.spec.options.http_tokens = Required);
        assert_eq!(tokens(told(&mut story, OPTIONAL)), Required);
        story.call(|record| record.spec.options.http_tokens = Optional);
        assert_eq!(tokens(told(&mut story, REQUIRED)), Required);
        // What is somebody else's is theirs.
        story.call(|record| record.owner = Owner::Api);
        assert_eq!(told(&mut story, OPTIONAL), None);
    }

    #[test]
    fn a_guest_that_turns_up_gets_what_the_account_has_and_requires_what_it_enforces() {
        let check = |lines: &str, enforced, expected| {
            let mut story = Story::default();
            let view = story.view();
            let mut draft = view.draft(note());
            let defaults = AccountDefaults {
                http_put_response_hop_limit: NonZeroU8::new(2),
                http_tokens_enforced: enforced,
                ..AccountDefaults::default()
            };
            draft.put(&Record::Defaults(defaults)).unwrap();
            story.store.commit(&draft.finish()).unwrap();
            let guest = guests(&web(lines)).remove(0);
            let record = turned_up(&story.view(), &guest, Owner::Discovered).unwrap();
            let options = record.spec.options;
            let found = (
                options.http_tokens,
                options.http_put_response_hop_limit.get(),
            );
            assert_eq!(found, expected, "{lines} {enforced:?}");
        };
        check("", None, (TokenUse::Optional, 2));
        check(OPTIONAL, Some(Switch::Enabled), (TokenUse::Required, 2));
        check(OPTIONAL, Some(Switch::Disabled), (TokenUse::Optional, 2));
    }

    /// A file that was right does not become wrong because of a guest that turned up meanwhile.
    #[test]
    fn guests_that_turned_up_make_way_for_the_files() {
        for (owner, precedence, is_refused) in [
            (Owner::Discovered, Precedence::File, false),
            (Owner::Discovered, Precedence::Edits, false),
            (Owner::Admitted, Precedence::File, true),
            (Owner::Admitted, Precedence::Edits, false),
            (Owner::Api, Precedence::Edits, true),
        ] {
            let mut story = Story::default();
            let mut record = declared(&guests(&web(""))[0]);
            record.owner = owner;
            record.said.clear();
            story.add(record);
            let other = "[[instance]]\nname = \"web\"\nport = \"vnet1\"";
            let said = story.apply(other, precedence);
            assert_eq!(
                said != ["+ web"],
                is_refused,
                "{owner:?} {precedence:?}: {said:?}"
            );
        }
    }

    #[test]
    fn what_others_have_is_theirs() {
        let of_api = |name: &str, port: &str| {
            let lines = format!("[[instance]]\nname = \"{name}\"\nport = \"{port}\"\n");
            let mut record = declared(&guests(&lines)[0]);
            record.owner = Owner::Api;
            record.said.clear();
            record
        };
        let theirs = of_api("theirs", "vnet9");
        let id = theirs.spec.id;
        let mut story = Story::of(&web(""));
        story.add(theirs.clone());
        assert_eq!(story.apply("", Precedence::File), ["- web"]);
        assert_eq!(story.only(), theirs);
        assert_eq!(
            story.apply(
                "[[instance]]\nname = \"theirs\"\nport = \"vnet1\"",
                Precedence::File
            ),
            [format!(
                "instance theirs of the file: {id}, which is not the file's (api), has that name: give it another, or take that one away"
            )]
        );
        assert_eq!(
            story.apply(
                "[[instance]]\nid = \"i-0123456789abcdef0\"\nport = \"vnet9\"",
                Precedence::File
            ),
            [format!(
                "instance vnet9 of the file: its port vnet9 is that of {id}, which is not the file's (api): take that one away first"
            )]
        );
        // With its id it becomes the file's.
        assert_eq!(
            story.apply(
                &format!("[[instance]]\nid = \"{id}\"\nname = \"theirs\"\nport = \"vnet9\""),
                Precedence::File
            ),
            ["~ theirs owner: api → file"]
        );
        assert_eq!(story.apply("", Precedence::File), ["- theirs"]);
    }
}
