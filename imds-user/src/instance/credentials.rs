//! The IAM role of an instance profile and its credentials.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::UnixSeconds;

/// The role that an instance profile gives an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    /// Name of the role, without path.
    pub name: Box<str>,
    /// The instance profile that contains it.
    pub profile: InstanceProfile,
    /// What `iam/security-credentials/<role>` serves.
    pub credentials: RoleCredentials,
}

/// An instance profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceProfile {
    /// Path and name, as they stand in the ARN behind `instance-profile/`.
    pub name: Box<str>,
    /// `AIPA` and 17 characters.
    pub id: Box<str>,
}

/// Where a role's credentials come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RoleCredentials {
    /// These.
    Given(Credentials),
    /// Made up from the host's seed, renewed every hour. They open nothing: for labs and tests.
    Generated,
    /// None to be had: the document says why, with status 200.
    Unavailable(CredentialsProblem),
}

/// Credentials from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// `ASIA` and 16 characters.
    pub access_key_id: Box<str>,
    /// The secret.
    pub secret_access_key: Secret,
    /// The session token.
    pub token: Secret,
    /// When they were obtained, and until when they hold. `None` for such as never expire: then the document shows a
    /// life of about six hours, renewed every hour, as clients expect.
    pub validity: Option<Validity>,
}

/// A span of time in which credentials hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validity {
    /// `LastUpdated`.
    pub last_updated: UnixSeconds,
    /// `Expiration`.
    pub expiration: UnixSeconds,
}

/// Why there are no credentials, in EC2's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialsProblem {
    /// For example `AssumeRoleUnauthorizedAccess`.
    pub code: Box<str>,
    /// For people.
    pub message: Box<str>,
    /// When it was found.
    pub last_updated: UnixSeconds,
}

impl CredentialsProblem {
    /// The role may not be assumed. The one failure whose document is known, word for word, from real instances.
    #[must_use]
    pub fn unauthorized(role: &str, last_updated: UnixSeconds) -> Self {
        Self {
            code: "AssumeRoleUnauthorizedAccess".into(),
            message: format!("EC2 cannot assume the role {role}.  {SEE_GUIDE}").into(),
            last_updated,
        }
    }

    /// There are none for another reason, or there are none yet. No real document of this is known, so code and message
    /// are our choice. Clients look whether the code is `Success` or the one above, and show people the rest; what
    /// really happened is for the host's operator, not for them.
    #[must_use]
    pub fn failed(role: &str, last_updated: UnixSeconds) -> Self {
        Self {
            code: "Failed".into(),
            message: format!("EC2 cannot obtain credentials for the role {role}.  {SEE_GUIDE}")
                .into(),
            last_updated,
        }
    }
}

/// How EC2 ends such messages.
const SEE_GUIDE: &str = "Please see documentation at https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_iam-ec2.html#troubleshoot_iam-ec2_errors-info-doc.";

/// A text that is wiped from memory when it is dropped and that `Debug` does not show.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let credentials = Credentials {
            access_key_id: "ASIAEXAMPLE".into(),
            secret_access_key: "hunter2".into(),
            token: "hunter3".into(),
            validity: None,
        };
        let shown = format!("{credentials:?}");
        assert!(
            shown.contains("ASIAEXAMPLE") && !shown.contains("hunter"),
            "{shown}"
        );
    }
}
