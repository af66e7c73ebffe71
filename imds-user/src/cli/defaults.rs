//! `imds defaults`: what new instances get, unless whoever launches them says otherwise.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use imds_user::control::{Ordered, Parameters, Request, client};
use imds_user::store::AccountDefaults;

use super::apply::write_change;
use super::failure::Refusal;
use super::table::{Align, Cell, Table};
use super::words::Words;
use super::{BOLD, DIM, EXIT_FINE, EXIT_USAGE, StateDir};

const EXAMPLES: &str = "\
Examples:
  imds defaults                                              what they are
  imds defaults set --http-tokens required                   new instances take IMDSv2 alone
  imds defaults set --http-put-response-hop-limit no-preference
  imds defaults set --http-tokens-enforced enabled           refuse launches that would not require tokens

Instances that exist stay as they are (imds options set --all …). The rules are those of EC2's
ModifyInstanceMetadataDefaults: what a launch says comes first, then these, then its image.";

/// The word for no default.
const NO_PREFERENCE: &str = "no-preference";

/// Show and change what new instances get
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, disable_help_subcommand = true)]
pub(crate) struct Defaults {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    state_dir: StateDir,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// The defaults of the account
    Get,
    /// Change some; what is not said stays
    Set(Box<Set>),
}

#[derive(Debug, clap::Args)]
struct Set {
    /// Whether requests need a session token
    #[arg(long, value_name = "USE", value_parser = TOKEN_USES)]
    http_tokens: Option<&'static str>,

    /// Whether the service answers at all
    #[arg(long, value_name = "SWITCH", value_parser = SWITCHES)]
    http_endpoint: Option<&'static str>,

    /// How many hops the answer with a token may take: 1 to 64, or no-preference
    #[arg(
        long,
        visible_alias = "hop-limit",
        value_name = "N",
        allow_hyphen_values = true
    )]
    http_put_response_hop_limit: Option<String>,

    /// Whether an instance's tags are in its metadata
    #[arg(long, value_name = "SWITCH", value_parser = SWITCHES)]
    instance_metadata_tags: Option<&'static str>,

    /// Whether launches that would not require tokens are refused
    #[arg(long, value_name = "SWITCH", value_parser = SWITCHES)]
    http_tokens_enforced: Option<&'static str>,

    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
}

const TOKEN_USES: Words<&'static str> = Words {
    all: &["optional", "required", NO_PREFERENCE],
    as_str: |word| word,
};
const SWITCHES: Words<&'static str> = Words {
    all: &["enabled", "disabled", NO_PREFERENCE],
    as_str: |word| word,
};

impl Defaults {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let state_dir = &self.state_dir.state_dir;
        match self.command {
            None | Some(Command::Get) => get(state_dir, self.json, out)?,
            Some(Command::Set(set)) => set.run(state_dir, self.json, out)?,
        }
        Ok(ExitCode::from(EXIT_FINE))
    }
}

fn get(state_dir: &Path, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let defaults = client::defaults(state_dir)?;
    if json {
        serde_json::to_writer_pretty(&mut *out, &defaults)?;
        writeln!(out)?;
    } else {
        write_defaults(out, &defaults)?;
    }
    Ok(())
}

impl Set {
    fn run(self, state_dir: &Path, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
        let dry_run = self.dry_run;
        let parameters = self.parameters();
        if parameters.is_empty() {
            return Err(Refusal {
                code: EXIT_USAGE,
                text: "say which default is to be what, such as --http-tokens required".to_owned(),
            }
            .into());
        }
        let request = Request::ModifyDefaults {
            parameters,
            dry_run,
        };
        let ordered = client::order(state_dir, request)?;
        if json {
            serde_json::to_writer_pretty(&mut *out, &ordered)?;
            writeln!(out)?;
        } else {
            write_set(out, &ordered)?;
        }
        Ok(())
    }

    fn parameters(self) -> Parameters {
        let hop_limit = self.http_put_response_hop_limit.map(|limit| {
            // EC2 has a number for it.
            if limit == NO_PREFERENCE {
                "-1".to_owned()
            } else {
                limit
            }
        });
        let all = [
            ("HttpTokens", self.http_tokens.map(str::to_owned)),
            ("HttpEndpoint", self.http_endpoint.map(str::to_owned)),
            ("HttpPutResponseHopLimit", hop_limit),
            (
                "InstanceMetadataTags",
                self.instance_metadata_tags.map(str::to_owned),
            ),
            (
                "HttpTokensEnforced",
                self.http_tokens_enforced.map(str::to_owned),
            ),
        ];
        let given = all.into_iter();
        given
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect()
    }
}

fn write_defaults(out: &mut dyn Write, defaults: &AccountDefaults) -> io::Result<()> {
    let switch =
        |switch: Option<imds_user::instance::Switch>| switch.map(|it| it.as_str().to_owned());
    let limit = defaults.http_put_response_hop_limit;
    let mut table = Table::new([("", Align::Left), ("", Align::Left)]);
    for (name, value) in [
        (
            "http-tokens",
            defaults.http_tokens.map(|it| it.as_str().to_owned()),
        ),
        ("http-endpoint", switch(defaults.http_endpoint)),
        (
            "http-put-response-hop-limit",
            limit.map(|limit| limit.to_string()),
        ),
        (
            "instance-metadata-tags",
            switch(defaults.instance_metadata_tags),
        ),
        (
            "http-tokens-enforced",
            switch(defaults.http_tokens_enforced),
        ),
    ] {
        let value = match value {
            Some(value) => Cell::styled(value, BOLD),
            None => Cell::styled(NO_PREFERENCE, DIM),
        };
        table.row([name.into(), value]);
    }
    table.write(out)
}

fn write_set(out: &mut dyn Write, ordered: &Ordered) -> io::Result<()> {
    for change in &ordered.changes {
        write_change(out, change)?;
    }
    match (&ordered.changes[..], ordered.dry_run) {
        ([], _) => writeln!(out, "nothing to change"),
        (_, true) => writeln!(out, "\nnothing is changed: this was a rehearsal"),
        (_, false) => writeln!(out, "\nchanged; it holds for instances from now on"),
    }
}

#[cfg(test)]
mod tests {
    use imds_user::instance::{Switch, TokenUse};

    use super::*;

    #[test]
    fn what_is_not_preferred_is_said_so() {
        let defaults = AccountDefaults {
            http_tokens: Some(TokenUse::Required),
            http_tokens_enforced: Some(Switch::Enabled),
            ..AccountDefaults::default()
        };
        let mut out = Vec::new();
        write_defaults(&mut out, &defaults).unwrap();
        let text = anstream::adapter::strip_str(std::str::from_utf8(&out).unwrap()).to_string();
        let expected = "  \
  http-tokens                  required
  http-endpoint                no-preference
  http-put-response-hop-limit  no-preference
  instance-metadata-tags       no-preference
  http-tokens-enforced         enabled
";
        assert_eq!(text, expected);
    }
}
