//! Account defaults of the metadata options, and what a launch makes of them.

use std::num::NonZeroU8;

use super::instance::{switch, token_use};
use super::options::Given;
use crate::api::call::{Call, Outcome};
use crate::api::fault::{Code, Refusal};
use crate::api::query::Params;
use crate::config::ground::Image;
use crate::instance::options::HOP_LIMIT_MAX;
use crate::instance::{MetadataOptions, Switch, TokenUse};
use crate::store::{AccountDefaults, Key, Record};

/// The hop limit of instances whose image asks for IMDSv2: containers on them are one hop further away.
const IMAGE_HOP_LIMIT: NonZeroU8 = NonZeroU8::new(2).expect("two is not zero");

/// A preference that a call gives: perhaps to have none.
type Given1<T> = Option<Option<T>>;

pub(super) fn get(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let defaults = call.view.defaults();
    let mut outcome = call.ec2_reply(|xml| {
        xml.within("accountLevel", |xml| {
            xml.el_if("httpTokens", defaults.http_tokens.map(token_use))
                .el_if(
                    "httpPutResponseHopLimit",
                    defaults.http_put_response_hop_limit,
                )
                .el_if("httpEndpoint", defaults.http_endpoint.map(switch))
                .el_if(
                    "instanceMetadataTags",
                    defaults.instance_metadata_tags.map(switch),
                )
                .el_if(
                    "httpTokensEnforced",
                    defaults.http_tokens_enforced.map(switch),
                )
                .el("managedBy", "account");
        });
    });
    outcome.about = Some(Key::defaults());
    Ok(outcome)
}

pub(super) fn modify(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let params = &call.params;
    let mut defaults = call.view.defaults();
    let tokens = params.word(
        "HttpTokens",
        &[
            ("optional", Some(TokenUse::Optional)),
            ("required", Some(TokenUse::Required)),
            ("no-preference", None),
        ],
    )?;
    set(&mut defaults.http_tokens, tokens);
    set(
        &mut defaults.http_put_response_hop_limit,
        hop_limit(params)?,
    );
    set(
        &mut defaults.http_endpoint,
        preference(params, "HttpEndpoint")?,
    );
    set(
        &mut defaults.instance_metadata_tags,
        preference(params, "InstanceMetadataTags")?,
    );
    set(
        &mut defaults.http_tokens_enforced,
        preference(params, "HttpTokensEnforced")?,
    );
    let mut outcome = call.ec2_done();
    outcome.about = Some(Key::defaults());
    Ok(if defaults == call.view.defaults() {
        outcome
    } else {
        outcome.put(Record::Defaults(defaults))
    })
}

fn set<T>(place: &mut Option<T>, given: Given1<T>) {
    if let Some(preference) = given {
        *place = preference;
    }
}

fn preference(params: &Params<'_>, name: &str) -> Result<Given1<Switch>, Refusal> {
    params.word(
        name,
        &[
            ("enabled", Some(Switch::Enabled)),
            ("disabled", Some(Switch::Disabled)),
            ("no-preference", None),
        ],
    )
}

/// -1 is to have no preference.
fn hop_limit(params: &Params<'_>) -> Result<Given1<NonZeroU8>, Refusal> {
    let name = "HttpPutResponseHopLimit";
    let right = format!("Valid values are -1 and 1 to {HOP_LIMIT_MAX}.");
    params.parsed(name, &right, |text| match text {
        "-1" => Some(None),
        text => {
            let limit: NonZeroU8 = text.parse().ok()?;
            (limit.get() <= HOP_LIMIT_MAX).then_some(Some(limit))
        }
    })
}

/// What an instance begins with: what its launch says, else the account, else its image, else EC2's defaults (EC2 User
/// Guide, "Order of precedence for instance metadata options").
///
/// An account that wants tokens optional beats an image that wants them required. The image's hop limit comes with the
/// tokens that it asks for, so a launch or an account that says something of tokens alone still gets it: the guide speaks of
/// each option by itself.
pub(super) fn at_launch(
    given: Given,
    defaults: AccountDefaults,
    image: &Image,
) -> Result<MetadataOptions, Refusal> {
    let mut options = MetadataOptions::default();
    if image.has_imds_v2 {
        options.http_tokens = TokenUse::Required;
        options.http_put_response_hop_limit = IMAGE_HOP_LIMIT;
    }
    let of_account = Given {
        http_tokens: defaults.http_tokens,
        http_endpoint: defaults.http_endpoint,
        http_put_response_hop_limit: defaults.http_put_response_hop_limit,
        http_protocol_ipv6: None,
        instance_metadata_tags: defaults.instance_metadata_tags,
    };
    let options = given.over(of_account.over(options));
    let is_enforced = defaults
        .http_tokens_enforced
        .is_some_and(Switch::is_enabled);
    if is_enforced && options.http_tokens == TokenUse::Optional {
        return Err(Refusal::new(
            Code::UnsupportedOperation,
            "You can't launch instances with IMDSv1 because httpTokensEnforced is enabled for this account. Either launch the \
             instance with httpTokens=required or contact your account owner to disable httpTokensEnforced.",
        ));
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::plan;

    fn check(given: &str, account: &str, image: bool, expected: &str) {
        let word = |text: &str| match text {
            "optional" => Some(TokenUse::Optional),
            "required" => Some(TokenUse::Required),
            _ => None,
        };
        let given = Given {
            http_tokens: word(given),
            ..Given::default()
        };
        let enforced = account.starts_with("enforced").then_some(Switch::Enabled);
        let defaults = AccountDefaults {
            http_tokens: word(account.trim_start_matches("enforced ")),
            http_tokens_enforced: enforced,
            ..AccountDefaults::default()
        };
        let image = Image {
            id: "ami-12345678".parse().unwrap(),
            name: "".into(),
            has_imds_v2: image,
            runs: plan::Image::Host,
        };
        let options = at_launch(given, defaults, &image);
        let shown = options.map_or_else(
            |refusal| refusal.code.as_str().to_owned(),
            |options| {
                let hops = options.http_put_response_hop_limit;
                format!("{} {hops}", token_use(options.http_tokens))
            },
        );
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_launch_beats_the_account_and_the_account_beats_the_image() {
        check("", "", false, "optional 1");
        check("", "", true, "required 2");
        check("", "optional", true, "optional 2");
        check("", "required", false, "required 1");
        check("optional", "required", true, "optional 2");
        check("required", "optional", false, "required 1");
    }

    #[test]
    fn an_account_that_enforces_tokens_refuses_launches_without() {
        check("", "enforced", false, "UnsupportedOperation");
        check(
            "optional",
            "enforced required",
            true,
            "UnsupportedOperation",
        );
        check("required", "enforced", false, "required 1");
        check("", "enforced required", false, "required 1");
        check("", "enforced", true, "required 2");
    }
}
