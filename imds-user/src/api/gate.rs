//! Who may: which service a request is for, and whose it is. Pure.

use super::call::{Action, Caller, Entropy};
use super::fault::{Protocol, Service, Spoken};
use super::query::Params;
use super::sigv4::{self, Claim, Fault, Request};
use super::{ec2, sts};
use crate::instance::{Secret, UnixSeconds};
use crate::store::{AccessKey, KeyRole, View, Who};

/// The service that a request is for: as its signature says; without one as its target or the version of its parameters
/// does; else EC2.
#[must_use]
pub fn service_of(request: &Request<'_>, claim: Option<&Claim>, params: &Params<'_>) -> Service {
    let by_claim = claim.and_then(|claim| Service::from_scope(&claim.service));
    let by_target = || {
        let target = sigv4::headers(request, "x-amz-target").next()?;
        Service::from_target(std::str::from_utf8(target).ok()?)
    };
    let by_version = || match params.text("Version")? {
        "2011-06-15" => Some(Service::Sts),
        "2010-05-08" => Some(Service::Iam),
        "2010-03-31" => Some(Service::Sns),
        "2010-08-01" => Some(Service::CloudWatch),
        _ => None,
    };
    by_claim
        .or_else(by_target)
        .or_else(by_version)
        .unwrap_or(Service::Ec2)
}

/// How a request speaks to its service: older clients send CloudWatch a form, which has no target.
#[must_use]
pub fn spoken(request: &Request<'_>, service: Service) -> Spoken {
    let has_target = sigv4::headers(request, "x-amz-target").next().is_some();
    match service {
        Service::CloudWatch if !has_target => Spoken {
            service,
            protocol: Protocol::Query,
        },
        _ => service.into(),
    }
}

/// The actions of a service that are there, of those whose actions need the records alone.
#[must_use]
pub fn actions_of(service: Service) -> &'static [Action] {
    match service {
        Service::Ec2 => ec2::ACTIONS,
        Service::Sts => sts::ACTIONS,
        Service::Iam
        | Service::Sns
        | Service::Config
        | Service::Ssm
        | Service::Events
        | Service::CloudWatch => &[],
    }
}

/// Whose request it is, by its signature.
///
/// # Errors
/// When it is nobody's, or not for here or now.
pub fn caller(
    request: &Request<'_>,
    claim: &Claim,
    view: &View,
    region: &str,
    now: UnixSeconds,
) -> Result<Caller, Fault> {
    let key = view.access_key(&claim.key_id).ok_or(Fault::UnknownKey)?;
    claim.verify(request, &key.secret, None, region, now)?;
    if Service::from_scope(&claim.service).is_none() {
        return Err(Fault::Scope);
    }
    Ok(Caller {
        who: Who::AccessKey(key.id.clone()),
        role: key.role,
    })
}

/// The keys that there are to be and are not: one for each role.
#[must_use]
pub fn missing_keys(view: &View, entropy: &Entropy, now: UnixSeconds) -> Vec<AccessKey> {
    let roles = [KeyRole::Admin, KeyRole::ReadOnly];
    let has_key = |role| {
        view.access_keys()
            .values()
            .any(|key| key.value.role == role)
    };
    let missing = roles
        .into_iter()
        .zip(0..)
        .filter(|(role, _)| !has_key(*role));
    missing
        .map(|(role, number)| AccessKey {
            id: key_id(&entropy.bytes("access key", number)).into(),
            secret: secret(&entropy.bytes("secret access key", number)),
            role,
            created: now,
        })
        .collect()
}

/// `AKIA` and 16 characters, as EC2's are.
fn key_id(bytes: &[u8; 16]) -> String {
    const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let characters = bytes.iter().map(|byte| BASE32[usize::from(byte & 31)]);
    "AKIA".chars().chain(characters.map(char::from)).collect()
}

/// Forty characters of base64, as EC2's are.
fn secret(bytes: &[u8; 30]) -> Secret {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD
        .encode(bytes)
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::query::Query;
    use crate::store::Record;
    use crate::store::backend::{Item, Revision};

    fn view_with(keys: &[AccessKey]) -> View {
        let mut view = View::default();
        let items = keys.iter().map(|key| {
            let record = Record::AccessKey(key.clone());
            Item {
                key: record.key(),
                value: Some(record.encode().unwrap()),
                revision: Revision(1),
            }
        });
        view.take(Revision(1), items.collect()).unwrap();
        view
    }

    #[test]
    fn there_is_a_key_for_each_role_and_it_is_made_once() {
        let entropy = Entropy::new([1; 32]);
        let now = UnixSeconds(1_800_000_000);
        let keys = missing_keys(&View::default(), &entropy, now);
        let roles: Vec<_> = keys.iter().map(|key| key.role).collect();
        assert_eq!(roles, [KeyRole::Admin, KeyRole::ReadOnly]);
        for key in &keys {
            assert!(
                key.id.len() == 20 && key.secret.expose().len() == 40,
                "{}",
                key.id
            );
        }
        assert_eq!(missing_keys(&view_with(&keys), &entropy, now), []);
        let read_only = missing_keys(&view_with(&keys[..1]), &entropy, now);
        assert_eq!(read_only, keys[1..]);
    }

    fn check_service(headers: &[(&str, &[u8])], form: &str, expected: Service) {
        let request = Request {
            method: "POST",
            path: "/",
            query: "",
            headers,
            body: form.as_bytes(),
        };
        let query = Query::read(b"", form.as_bytes()).unwrap();
        assert_eq!(
            service_of(&request, None, &query.params()),
            expected,
            "{form}"
        );
    }

    #[test]
    fn cloudwatch_is_answered_as_it_was_asked() {
        let check = |headers: &[(&str, &[u8])], service: Service, protocol: Protocol| {
            let request = Request {
                method: "POST",
                path: "/",
                query: "",
                headers,
                body: b"",
            };
            assert_eq!(spoken(&request, service), Spoken { service, protocol });
        };
        let target: &[(&str, &[u8])] = &[("x-amz-target", b"GraniteServiceVersion20100801.X")];
        check(target, Service::CloudWatch, Protocol::Json);
        check(&[], Service::CloudWatch, Protocol::Query);
        check(&[], Service::Config, Protocol::Json);
        check(&[], Service::Ec2, Protocol::Ec2Query);
    }

    #[test]
    fn a_request_without_a_signature_is_for_some_service_too() {
        check_service(&[], "", Service::Ec2);
        check_service(&[], "Version=2016-11-15", Service::Ec2);
        check_service(&[], "Version=2011-06-15", Service::Sts);
        check_service(&[], "Version=2010-05-08", Service::Iam);
        check_service(&[], "Version=2010-08-01", Service::CloudWatch);
        check_service(
            &[("x-amz-target", b"StarlingDoveService.X")],
            "",
            Service::Config,
        );
    }
}
