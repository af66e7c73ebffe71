//! `ModifyInstanceMetadataOptions`, and how the parameters of the options are read wherever they stand.

use std::num::NonZeroU8;

use super::instance::{the_one_to_change, write_options};
use crate::api::call::{Call, Outcome};
use crate::api::fault::{Code, Refusal};
use crate::api::query::Params;
use crate::config::resolve::is_servable_tag_key;
use crate::instance::options::HOP_LIMIT_MAX;
use crate::instance::{MetadataOptions, Switch, Tag, TokenUse};
use crate::store::{Key, Record};

const TOKENS: &[(&str, TokenUse)] = &[
    ("optional", TokenUse::Optional),
    ("required", TokenUse::Required),
];
const SWITCH: &[(&str, Switch)] = &[("enabled", Switch::Enabled), ("disabled", Switch::Disabled)];

/// The options that a call gives; none is not given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) http_tokens: Option<TokenUse>,
    pub(super) http_endpoint: Option<Switch>,
    pub(super) http_put_response_hop_limit: Option<NonZeroU8>,
    pub(super) http_protocol_ipv6: Option<Switch>,
    pub(super) instance_metadata_tags: Option<Switch>,
}

impl Given {
    pub(super) fn read(params: &Params<'_>) -> Result<Self, Refusal> {
        let hop_limit = params.number("HttpPutResponseHopLimit", 1..=i32::from(HOP_LIMIT_MAX))?;
        let hop_limit = hop_limit.and_then(|limit| u8::try_from(limit).ok());
        Ok(Self {
            http_tokens: params.word("HttpTokens", TOKENS)?,
            http_endpoint: params.word("HttpEndpoint", SWITCH)?,
            http_put_response_hop_limit: hop_limit.and_then(NonZeroU8::new),
            http_protocol_ipv6: params.word("HttpProtocolIpv6", SWITCH)?,
            instance_metadata_tags: params.word("InstanceMetadataTags", SWITCH)?,
        })
    }

    /// What is given, and of the rest what was there.
    pub(super) fn over(self, options: MetadataOptions) -> MetadataOptions {
        MetadataOptions {
            http_tokens: self.http_tokens.unwrap_or(options.http_tokens),
            http_endpoint: self.http_endpoint.unwrap_or(options.http_endpoint),
            http_put_response_hop_limit: self
                .http_put_response_hop_limit
                .unwrap_or(options.http_put_response_hop_limit),
            http_protocol_ipv6: self
                .http_protocol_ipv6
                .unwrap_or(options.http_protocol_ipv6),
            instance_metadata_tags: self
                .instance_metadata_tags
                .unwrap_or(options.instance_metadata_tags),
        }
    }
}

/// Tags can be served in metadata only if their keys can be part of a path.
pub(super) fn check_servable(options: &MetadataOptions, tags: &[Tag]) -> Result<(), Refusal> {
    if !options.instance_metadata_tags.is_enabled() {
        return Ok(());
    }
    match tags.iter().find(|tag| !is_servable_tag_key(&tag.key)) {
        None => Ok(()),
        Some(tag) => Err(Refusal::new(
            Code::InvalidParameterValue,
            format!(
                "'{}' is not a valid tag key. Tag keys must match pattern ([0-9a-zA-Z\\-_+=,.@:]{{1,255}}), and must \
                 not be a reserved name ('.', '..', '_index')",
                tag.key
            ),
        )),
    }
}

pub(super) fn modify(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let known = the_one_to_change(call)?;
    let given = Given::read(&call.params)?;
    let options = given.over(known.spec().options);
    check_servable(&options, known.tags())?;
    let mut record = known.record.clone();
    if options != record.spec.options {
        record.spec.options = options;
        record.options.change();
    }
    // A call that changes nothing has nothing to wait for, and says so as AWS does.
    let state = if record.options == known.record.options {
        record.options.state()
    } else {
        "pending"
    };
    let mut outcome = call.ec2_reply(|xml| {
        xml.el("instanceId", known.id());
        write_options(xml, "instanceMetadataOptions", state, &options);
    });
    outcome.about = Some(Key::instance(known.id()));
    Ok(if record == *known.record {
        outcome
    } else {
        outcome.put(Record::Instance(Box::new(record)))
    })
}
