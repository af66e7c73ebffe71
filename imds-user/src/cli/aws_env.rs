//! `imds aws-env`: what points AWS's tools here.

use std::io::Write;
use std::process::ExitCode;

use clap::ValueEnum;
use imds_user::control::client;
use imds_user::store::KeyRole;
use serde_json::json;

use super::{EXIT_FINE, StateDir, require_root};

const EXAMPLES: &str = "\
Examples:
  eval \"$(imds aws-env)\"                 for this shell: aws, boto3, terraform
  imds aws-env --role read-only          for somebody who is to look and change nothing
  imds aws-env --json | jq -r .AWS_ENDPOINT_URL

Terraform needs no more than that. `imds run --api none` offers none of it.";

/// Print the environment that points AWS's tools at this host's control API
///
/// With it the AWS CLI, the SDKs and Terraform call EC2 here, unmodified. It has a secret in it: whoever has that may do with
/// this host's instances what its role allows.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AwsEnv {
    /// What the key may do
    #[arg(long, value_enum, default_value_t = Role::Admin)]
    role: Role,
    /// As JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    state_dir: StateDir,
}

/// What would lead tools elsewhere, or have them sign as somebody else, if the shell had it set.
const IN_THE_WAY: &[&str] = &[
    "AWS_ENDPOINT_URL_CLOUDWATCH",
    "AWS_ENDPOINT_URL_EC2",
    "AWS_ENDPOINT_URL_STS",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_PROFILE",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
];

/// [`KeyRole`], as it is typed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Role {
    Admin,
    ReadOnly,
}

impl AwsEnv {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        require_root("seeing access keys")?;
        let role = match self.role {
            Role::Admin => KeyRole::Admin,
            Role::ReadOnly => KeyRole::ReadOnly,
        };
        let found = client::aws_env(&self.state_dir.state_dir, role)?;
        // The last one keeps tools from asking the metadata service of this machine for credentials.
        let variables = [
            ("AWS_ENDPOINT_URL", found.endpoint.as_str()),
            ("AWS_ACCESS_KEY_ID", &found.access_key_id),
            ("AWS_SECRET_ACCESS_KEY", found.secret_access_key.expose()),
            ("AWS_DEFAULT_REGION", &found.region),
            ("AWS_REGION", &found.region),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ];
        if self.json {
            let variables = variables.map(|(name, value)| (name.to_owned(), json!(value)));
            let object = serde_json::Map::from_iter(variables);
            writeln!(out, "{}", serde_json::Value::Object(object))?;
        } else {
            writeln!(out, "unset {}", IN_THE_WAY.join(" "))?;
            // Keys, addresses and regions have no quotes in them.
            for (name, value) in variables {
                writeln!(out, "export {name}='{value}'")?;
            }
        }
        Ok(ExitCode::from(EXIT_FINE))
    }
}
