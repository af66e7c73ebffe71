//! AssumeRole through STS with the host's own credentials, which the AWS SDK finds where it always does: environment,
//! profiles, container, the host's own metadata service.
//!
//! What goes to the log is put together here. An error's own text may carry parts of a request: STS answers a bad
//! signature with what it would have signed, the session token included.

use std::{error::Error, io, time::Duration};

use aws_config::{BehaviorVersion, Region, SdkConfig, timeout::TimeoutConfig};
use aws_sdk_sts::{
    Client,
    config::Builder,
    error::{ProvideErrorMetadata, SdkError},
    operation::assume_role::{AssumeRoleError, AssumeRoleOutput},
};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use tokio::sync::OnceCell;

use super::{
    ObtainError,
    schedule::{FailureKind, Obtained},
    source::AssumeRole,
};
use crate::instance::{Secret, UnixSeconds};

/// How long a question may take, with the SDK's own repetitions and the search for the host's credentials.
const TIME_MAX: Duration = Duration::from_secs(30);
/// How long one attempt may take.
const ATTEMPT_MAX: Duration = Duration::from_secs(10);
/// The longest text of STS that is passed on to the log.
const TEXT_CHARS_MAX: usize = 400;

/// The way to STS. Keeps the host's own credentials between questions, and renews them.
#[derive(Debug, Default)]
pub(super) struct Sts {
    config: OnceCell<SdkConfig>,
}

impl Sts {
    /// Assumes a role.
    pub(super) async fn assume(
        &self,
        role: &AssumeRole,
        now: UnixSeconds,
    ) -> Result<Obtained, ObtainError> {
        let client = self.client(role).await;
        let question = client
            .assume_role()
            .role_arn(&*role.role_arn)
            .role_session_name(&*role.session_name)
            .set_external_id(role.external_id.as_deref().map(str::to_owned))
            .duration_seconds(i32::try_from(role.duration_seconds).unwrap_or(i32::MAX))
            .send();
        match tokio::time::timeout(TIME_MAX, question).await {
            Ok(Ok(output)) => obtained(output, now),
            Ok(Err(error)) => Err(explain(&error)),
            Err(_) => Err(failed("STS did not answer in time")),
        }
    }

    async fn client(&self, role: &AssumeRole) -> Client {
        let region = Region::new(role.region.to_string());
        let config = self
            .config
            .get_or_init(|| shared_config(region.clone()))
            .await;
        let mut client = Builder::from(config).region(region);
        if let Some(url) = &role.endpoint_url {
            client = client.endpoint_url(&**url);
        }
        Client::from_conf(client.build())
    }
}

async fn shared_config(region: Region) -> SdkConfig {
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .build_https();
    let timeouts = TimeoutConfig::builder()
        .operation_timeout(TIME_MAX)
        .operation_attempt_timeout(ATTEMPT_MAX)
        .build();
    aws_config::defaults(BehaviorVersion::latest())
        .region(region)
        .http_client(http)
        .timeout_config(timeouts)
        .load()
        .await
}

fn obtained(output: AssumeRoleOutput, now: UnixSeconds) -> Result<Obtained, ObtainError> {
    let Some(credentials) = output.credentials else {
        return Err(failed("STS answered without credentials"));
    };
    let expiration = u64::try_from(credentials.expiration.secs())
        .map(UnixSeconds)
        .unwrap_or_default();
    if expiration <= now {
        return Err(failed(
            "the credentials that STS answered have expired already: is the host's clock right?",
        ));
    }
    Ok(Obtained {
        access_key_id: credentials.access_key_id.into(),
        secret_access_key: Secret::from(credentials.secret_access_key),
        token: Secret::from(credentials.session_token),
        expiration: Some(expiration),
    })
}

fn explain(error: &SdkError<AssumeRoleError>) -> ObtainError {
    match error {
        SdkError::ServiceError(refusal) => {
            let refusal = refusal.err();
            refused(refusal.code(), refusal.message())
        }
        SdkError::TimeoutError(_) => failed("STS did not answer in time"),
        SdkError::ResponseError(_) => failed("what STS answered is not understood"),
        SdkError::DispatchFailure(failure) if failure.is_timeout() => {
            failed("STS did not answer in time")
        }
        SdkError::DispatchFailure(failure) if failure.is_io() => match io_error_in(error) {
            Some(cause) => failed(&format!("STS cannot be reached: {cause}")),
            None => failed("STS cannot be reached"),
        },
        _ => failed(
            "the host has no credentials of its own that STS could be asked with: give the daemon some (environment, \
             profile, instance role) as for any program with an AWS SDK",
        ),
    }
}

/// What STS says of a refusal names who may not assume what, and helps. Of anything else only the code is passed on.
fn refused(code: Option<&str>, message: Option<&str>) -> ObtainError {
    let code = line(code.unwrap_or("an error without a code"));
    if code == "AccessDenied" {
        let message = line(message.unwrap_or_default());
        return ObtainError {
            why: FailureKind::Unauthorized,
            text: format!("STS refused: {code}: {message}").into(),
        };
    }
    failed(&format!("STS refused: {code}"))
}

/// Text from outside, fit for a line of the log.
fn line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(TEXT_CHARS_MAX)
        .collect()
}

fn failed(text: &str) -> ObtainError {
    ObtainError {
        why: FailureKind::Other,
        text: text.into(),
    }
}

/// What the kernel said, wherever it stands in the chain of causes.
fn io_error_in(error: &SdkError<AssumeRoleError>) -> Option<&io::Error> {
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    let mut found = None;
    while let Some(error) = cause {
        found = error.downcast_ref().or(found);
        cause = error.source();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sts_says_of_a_refusal_is_passed_on_and_nothing_else_is() {
        let check = |code, message, why, text: &str| {
            let error = refused(code, message);
            assert_eq!((error.why, &*error.text), (why, text));
        };
        check(
            Some("AccessDenied"),
            Some("User: u is not authorized\nto perform: sts:AssumeRole"),
            FailureKind::Unauthorized,
            "STS refused: AccessDenied: User: u is not authorized to perform: sts:AssumeRole",
        );
        check(
            Some("SignatureDoesNotMatch"),
            Some("The canonical string should have been hunter2"),
            FailureKind::Other,
            "STS refused: SignatureDoesNotMatch",
        );
        check(
            None,
            Some("hunter2"),
            FailureKind::Other,
            "STS refused: an error without a code",
        );
    }
}
