//! Where the credentials of a role come from, when they come from elsewhere. Plain data: what it takes to ask, and what
//! makes two askings the same.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One source. Instances with equal sources share it: it is asked once for all of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CredentialSource {
    /// A command of the host.
    Process(CredentialProcess),
    /// STS, with the host's own credentials.
    AssumeRole(AssumeRole),
}

/// A command that prints credentials as the `credential_process` of the AWS CLI does.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CredentialProcess {
    /// Absolute path, or a name to be found in PATH.
    pub program: Box<str>,
    /// Its arguments, as they are: no shell reads them.
    pub arguments: Box<[Box<str>]>,
    /// Variables of the daemon's environment that it sees besides PATH and HOME.
    pub environment: Box<[Box<str>]>,
}

/// A role of IAM that the host may assume.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AssumeRole {
    /// `arn:aws:iam::…:role/…`
    pub role_arn: Box<str>,
    /// What CloudTrail shows. EC2 takes the instance's id, and so do we unless told otherwise.
    pub session_name: Box<str>,
    /// What the role's trust policy may ask for.
    pub external_id: Option<Box<str>>,
    /// How long the credentials are to hold.
    pub duration_seconds: u32,
    /// Where STS is, if not where the SDK looks for it.
    pub endpoint_url: Option<Box<str>>,
    /// The region whose STS is asked.
    pub region: Box<str>,
}

impl CredentialSource {
    /// Its kind, in the word of the configuration file and of `imds status`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Process(_) => "credential-process",
            Self::AssumeRole(_) => "assume-role",
        }
    }
}

/// For the log and `imds status`: what an operator knows it by, without a command's arguments, which may be secret.
impl fmt::Display for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(process) => write!(f, "command {}", process.program),
            Self::AssumeRole(role) => write!(f, "role {}", role.role_arn),
        }
    }
}

/// Shows no arguments.
impl fmt::Debug for CredentialProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialProcess")
            .field("program", &self.program)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_the_log_nor_debug_shows_a_commands_arguments() {
        let source = CredentialSource::Process(CredentialProcess {
            program: "/usr/bin/vault".into(),
            arguments: Box::new(["--token=hunter2".into()]),
            environment: Box::default(),
        });
        assert_eq!(source.to_string(), "command /usr/bin/vault");
        assert!(!format!("{source:?}").contains("hunter2"));
    }
}
