//! `CreateTags`, `DeleteTags`, `DescribeTags`, and the tags that launches give.

use std::collections::{BTreeMap, BTreeSet};

use super::filter::{Column, Columns, Filters, Tags};
use super::instance::{all, find, id};
use super::options::check_servable;
use super::page::Page;
use crate::api::call::{Call, Outcome};
use crate::api::fault::{Code, Refusal};
use crate::api::query::Params;
use crate::config::resolve::{TAG_KEY_MAX, TAG_VALUE_MAX, TAGS_MAX};
use crate::instance::Tag;
use crate::store::{InstanceRecord, KeyPair, Record};

/// Something that has tags.
enum Resource {
    Instance(Box<InstanceRecord>),
    KeyPair(Box<KeyPair>),
}

impl Resource {
    fn tags(&self) -> BTreeMap<String, String> {
        let tags = match self {
            Self::Instance(record) => &record.spec.tags[..],
            Self::KeyPair(pair) => &pair.tags[..],
        };
        let pairs = tags.iter();
        pairs
            .map(|tag| (tag.key.to_string(), tag.value.to_string()))
            .collect()
    }

    fn with_tags(self, tags: BTreeMap<String, String>) -> Result<Record, Refusal> {
        let tags: Vec<Tag> = sorted(tags);
        check_number(&tags)?;
        Ok(match self {
            Self::Instance(mut record) => {
                check_servable(&record.spec.options, &tags)?;
                record.spec.tags = tags.into();
                Record::Instance(record)
            }
            Self::KeyPair(mut pair) => {
                pair.tags = tags;
                Record::KeyPair(pair)
            }
        })
    }
}

fn sorted(tags: BTreeMap<String, String>) -> Vec<Tag> {
    let tags = tags.into_iter();
    tags.map(|(key, value)| Tag {
        key: key.into(),
        value: value.into(),
    })
    .collect()
}

fn check_number(tags: &[Tag]) -> Result<(), Refusal> {
    let n_own = tags
        .iter()
        .filter(|tag| !tag.key.starts_with("aws:"))
        .count();
    if n_own <= TAGS_MAX {
        return Ok(());
    }
    Err(Refusal::new(
        Code::TagLimitExceeded,
        "The maximum number of Tags for a resource has been reached.",
    ))
}

pub(super) fn create(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let resources = resources(call)?;
    let given = read(&call.params, "Tag")?;
    if given.is_empty() {
        return Err(Refusal::missing("tagSet"));
    }
    change(call, resources, |tags| tags.extend(given.clone()))
}

/// With a value it goes only if it has that one, without one in any case; without tags at all, all go that are not AWS's.
pub(super) fn delete(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let resources = resources(call)?;
    let mut given = Vec::new();
    for item in call.params.list("Tag")? {
        given.push((item.required("Key")?, item.literal("Value")));
    }
    change(call, resources, |tags| {
        tags.retain(|key, value| {
            let is_named = given
                .iter()
                .any(|(name, only)| name == key && only.is_none_or(|only| only == value));
            let goes = is_named || given.is_empty() && !key.starts_with("aws:");
            !goes
        });
    })
}

fn change(
    call: &Call<'_>,
    resources: Vec<Resource>,
    change: impl Fn(&mut BTreeMap<String, String>),
) -> Result<Outcome, Refusal> {
    let mut outcome = call.ec2_done();
    for resource in resources {
        let mut tags = resource.tags();
        let before = tags.clone();
        change(&mut tags);
        if tags != before {
            outcome = outcome.put(resource.with_tags(tags)?);
        }
    }
    Ok(outcome)
}

/// Those that a call names, each once.
fn resources(call: &Call<'_>) -> Result<Vec<Resource>, Refusal> {
    let ids: BTreeSet<_> = call.params.texts("ResourceId")?.into_iter().collect();
    if ids.is_empty() {
        return Err(Refusal::missing("resourceIdSet"));
    }
    ids.into_iter().map(|id| resource(call, id)).collect()
}

fn resource(call: &Call<'_>, text: &str) -> Result<Resource, Refusal> {
    if text.starts_with("i-") {
        let known = find(call, id(text)?);
        let record = known.map(|known| Box::new(known.record.clone()));
        return record.map(Resource::Instance).ok_or_else(|| {
            Refusal::new(
                Code::InvalidInstanceIdNotFound,
                format!("The instance ID '{text}' does not exist"),
            )
        });
    }
    let mut pairs = call.view.key_pairs().values();
    let pair = pairs.find(|pair| pair.value.id.as_str() == text);
    pair.map(|pair| Resource::KeyPair(Box::new(KeyPair::clone(&pair.value))))
        .ok_or_else(|| Refusal::new(Code::InvalidId, format!("The ID '{text}' is not valid")))
}

/// The tags of a list of them: right by themselves, and none twice.
fn read(params: &Params<'_>, name: &str) -> Result<BTreeMap<String, String>, Refusal> {
    let mut tags = BTreeMap::new();
    for item in params.list(name)? {
        let key = item.required("Key")?;
        let value = item.literal("Value").unwrap_or_default();
        check(key, value)?;
        if tags.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(Refusal::new(
                Code::InvalidParameterValue,
                format!("Duplicate tag key '{key}' specified."),
            ));
        }
    }
    Ok(tags)
}

fn check(key: &str, value: &str) -> Result<(), Refusal> {
    let refusal = |message: String| Err(Refusal::new(Code::InvalidParameterValue, message));
    if key.chars().count() > TAG_KEY_MAX {
        return refusal(format!(
            "Tag key exceeds the maximum length of {TAG_KEY_MAX} characters"
        ));
    }
    if value.chars().count() > TAG_VALUE_MAX {
        return refusal(format!(
            "Tag value exceeds the maximum length of {TAG_VALUE_MAX} characters"
        ));
    }
    if key.starts_with("aws:") {
        return refusal("Tag keys starting with 'aws:' are reserved for internal use".to_owned());
    }
    Ok(())
}

/// What `TagSpecification.N` gives to new resources of a type. Types that a call does not make are refused.
pub(super) fn specified(
    params: &Params<'_>,
    made: &str,
    ignored: &[&str],
) -> Result<Vec<Tag>, Refusal> {
    let mut tags = BTreeMap::new();
    for item in params.list("TagSpecification")? {
        let resource_type = item.required("ResourceType")?;
        let given = read(&item, "Tag")?;
        if resource_type == made {
            tags.extend(given);
        } else if !ignored.contains(&resource_type) {
            return Err(Refusal::new(
                Code::InvalidParameterValue,
                format!(
                    "'{resource_type}' is not a valid taggable resource type for this operation."
                ),
            ));
        }
    }
    let tags = sorted(tags);
    check_number(&tags)?;
    Ok(tags)
}

/// One tag of something.
struct Tagged<'a> {
    resource_id: String,
    resource_type: &'static str,
    tag: &'a Tag,
}

pub(super) fn describe(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let filters = filters(call)?;
    let page = Page::read(&call.params, 5..=1000)?;
    let of_instances = all(call).flat_map(|known| {
        known.tags().iter().map(move |tag| Tagged {
            resource_id: known.id().to_string(),
            resource_type: "instance",
            tag,
        })
    });
    let of_pairs = call.view.key_pairs().values().flat_map(|pair| {
        pair.value.tags.iter().map(|tag| Tagged {
            resource_id: pair.value.id.to_string(),
            resource_type: "key-pair",
            tag,
        })
    });
    let tagged = of_instances.chain(of_pairs);
    let part = page.cut(tagged.filter(|tagged| filters.hold(tagged)), |tagged| {
        format!("{} {}", tagged.resource_id, tagged.tag.key)
    });
    Ok(call.ec2_reply(|xml| {
        xml.list("tagSet", &part.items, |xml, tagged| {
            xml.el("resourceId", &tagged.resource_id)
                .el("resourceType", tagged.resource_type)
                .el("key", &tagged.tag.key)
                .el("value", &tagged.tag.value);
        });
        xml.el_if("nextToken", part.next_token.as_deref());
    }))
}

fn filters<'a>(call: &Call<'a>) -> Result<Filters<Tagged<'a>>, Refusal> {
    let by_name: &[(&'static str, Column<Tagged<'a>>)] = &[
        ("key", |tagged| vec![tagged.tag.key.to_string()]),
        ("value", |tagged| vec![tagged.tag.value.to_string()]),
        ("resource-id", |tagged| vec![tagged.resource_id.clone()]),
        ("resource-type", |tagged| {
            vec![tagged.resource_type.to_owned()]
        }),
    ];
    let tags: Option<Tags<Tagged<'a>>> = Some(|tagged| std::slice::from_ref(tagged.tag));
    Filters::read(&call.params, &Columns { by_name, tags })
}
