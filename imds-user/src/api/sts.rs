//! The Security Token Service, as far as clients ask it who they are.

use super::call::{Action, Call, Outcome};
use super::fault::Refusal;
use super::xml::Xml;
use crate::store::{KeyRole, Who};

const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

/// What may be called.
pub const ACTIONS: &[Action] = &[Action::reads("GetCallerIdentity", get_caller_identity)];

/// A user for each role: what policies and Terraform look at. The id is the key's, which is the caller's one name here.
fn get_caller_identity(call: &Call<'_>) -> Result<Outcome, Refusal> {
    let user = match call.caller.role {
        KeyRole::Admin => "admin",
        KeyRole::ReadOnly => "read-only",
    };
    let id = match &call.caller.who {
        Who::AccessKey(id) => id.to_string(),
        other => other.to_string(),
    };
    let body = Xml::reply(call.action, NAMESPACE, |xml| {
        xml.within("GetCallerIdentityResult", |xml| {
            xml.el("Arn", call.arn("iam", "", &format!("user/{user}")))
                .el("UserId", id)
                .el("Account", call.account());
        })
        .within("ResponseMetadata", |xml| {
            xml.el("RequestId", call.request_id);
        });
    });
    Ok(Outcome {
        body,
        ..Outcome::default()
    })
}
