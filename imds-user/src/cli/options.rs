//! `imds options`: the metadata options of instances, shown and changed.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use imds_user::control::client::{self, ClientError};
use imds_user::control::instance::OptionsReport;
use imds_user::control::{InstanceReport, Ordered, Parameters, Request};
use imds_user::instance::options::HOP_LIMIT_MAX;
use imds_user::instance::{Switch, TokenUse};
use serde_json::json;

use super::apply::write_change;
use super::failure::Refusal;
use super::instance::called;
use super::table::{Align, Cell, Table};
use super::words::Words;
use super::{DIM, EXIT_FINE, EXIT_USAGE, GOOD, StateDir, WARNING};

const EXAMPLES: &str = "\
Examples:
  imds options get                                        of every instance
  imds options set web --http-tokens required             IMDSv2 only, from its next request on
  imds options set web db --http-put-response-hop-limit 2
  imds options set --all --http-tokens required --dry-run
  imds options get --json | jq -r '.[] | select(.metadata_options.http_tokens == \"optional\").name'

What is not said stays as it is. An instance is named by its name, its id, how that begins, or its
tag Name. The rules are those of EC2's ModifyInstanceMetadataOptions, and AWS's tools do the same
(imds aws-env).";

const SET_EXAMPLES: &str = "\
Examples:
  imds options set web --http-tokens required
  imds options set web db --http-endpoint disabled --dry-run
  imds options set --all --http-tokens required

When this returns the next request sees it, on connections that are open too. What is set of a
stopped instance is in force when it is started.";

/// How long it is waited for what is set to be in force.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Show and change the metadata options of instances
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, disable_help_subcommand = true)]
pub(crate) struct Options {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    state_dir: StateDir,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// The options of every instance, or of some
    Get(Get),
    /// Change options of instances; all of them or none
    #[command(after_help = SET_EXAMPLES)]
    Set(Set),
}

#[derive(Debug, clap::Args)]
struct Get {
    /// Which instances [default: every one that is not gone]
    #[arg(value_name = "INSTANCE")]
    instances: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Set {
    /// Which instances
    #[arg(
        value_name = "INSTANCE",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    instances: Vec<String>,

    /// Every instance that is not gone
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    given: Given,

    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
}

/// Metadata options, as they are typed: with the names that the AWS CLI has for them.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Given {
    /// Whether requests need a session token
    #[arg(long, value_name = "USE", value_parser = TOKEN_USES, help_heading = "Metadata options")]
    http_tokens: Option<TokenUse>,

    /// Whether the service answers at all
    #[arg(long, value_name = "SWITCH", value_parser = SWITCHES, help_heading = "Metadata options")]
    http_endpoint: Option<Switch>,

    /// How many hops the answer with a token may take, 1 to 64
    #[arg(
        long,
        visible_alias = "hop-limit",
        value_name = "N",
        value_parser = clap::value_parser!(u8).range(1..=i64::from(HOP_LIMIT_MAX)),
        help_heading = "Metadata options"
    )]
    http_put_response_hop_limit: Option<u8>,

    /// Whether fd00:ec2::254 answers too
    #[arg(long, value_name = "SWITCH", value_parser = SWITCHES, help_heading = "Metadata options")]
    http_protocol_ipv6: Option<Switch>,

    /// Whether the instance's tags are in its metadata
    #[arg(long, value_name = "SWITCH", value_parser = SWITCHES, help_heading = "Metadata options")]
    instance_metadata_tags: Option<Switch>,
}

const TOKEN_USES: Words<TokenUse> = Words {
    all: TokenUse::ALL,
    as_str: TokenUse::as_str,
};
const SWITCHES: Words<Switch> = Words {
    all: Switch::ALL,
    as_str: Switch::as_str,
};

impl Given {
    /// As parameters of a call, behind this name.
    pub(super) fn parameters(&self, behind: &str) -> Parameters {
        let hop_limit = self.http_put_response_hop_limit;
        let all = [
            ("HttpTokens", self.http_tokens.map(|it| it.as_str().into())),
            (
                "HttpEndpoint",
                self.http_endpoint.map(|it| it.as_str().into()),
            ),
            (
                "HttpPutResponseHopLimit",
                hop_limit.map(|it| it.to_string()),
            ),
            (
                "HttpProtocolIpv6",
                self.http_protocol_ipv6.map(|it| it.as_str().into()),
            ),
            (
                "InstanceMetadataTags",
                self.instance_metadata_tags.map(|it| it.as_str().into()),
            ),
        ];
        let given = all.into_iter();
        given
            .filter_map(|(name, value)| Some((format!("{behind}{name}"), value?)))
            .collect()
    }
}

impl Options {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let state_dir = &self.state_dir.state_dir;
        match self.command {
            Command::Get(get) => get.run(state_dir, self.json, out)?,
            Command::Set(set) => set.run(state_dir, self.json, out)?,
        }
        Ok(ExitCode::from(EXIT_FINE))
    }
}

impl Get {
    fn run(self, state_dir: &Path, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
        let instances = if self.instances.is_empty() {
            let all = client::instances(state_dir, None)?.into_iter();
            all.filter(|instance| instance.state != "terminated")
                .collect()
        } else {
            let mut instances = Vec::new();
            for written in self.instances {
                instances.extend(client::instances(state_dir, Some(written))?);
            }
            instances
        };
        if json {
            let shown: Vec<_> = instances.iter().map(for_scripts).collect();
            serde_json::to_writer_pretty(&mut *out, &shown)?;
            writeln!(out)?;
        } else {
            write_options(out, &instances)?;
        }
        Ok(())
    }
}

impl Set {
    fn run(self, state_dir: &Path, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
        let parameters = self.given.parameters("");
        if parameters.is_empty() {
            return Err(Refusal {
                code: EXIT_USAGE,
                text: "say which option is to be what, such as --http-tokens required".to_owned(),
            }
            .into());
        }
        let mut ordered = client::order(
            state_dir,
            Request::ModifyOptions {
                instances: self.instances,
                all: self.all,
                parameters,
                dry_run: self.dry_run,
            },
        )?;
        if !self.dry_run {
            for instance in &mut ordered.instances {
                await_applied(state_dir, instance)?;
            }
        }
        if json {
            serde_json::to_writer_pretty(&mut *out, &ordered)?;
            writeln!(out)?;
        } else {
            write_set(out, &ordered)?;
        }
        Ok(())
    }
}

fn is_pending(instance: &InstanceReport) -> bool {
    let options = instance.metadata_options.as_ref();
    options.is_some_and(|options| options.state == "pending")
}

/// What is in force already when the daemon answers is not waited for, nor what a stopped instance waits with.
fn await_applied(state_dir: &Path, instance: &mut InstanceReport) -> Result<(), ClientError> {
    let deadline = Instant::now() + PATIENCE;
    while is_pending(instance)
        && matches!(&*instance.state, "running" | "pending")
        && Instant::now() < deadline
    {
        thread::sleep(LOOK_EVERY);
        let id = instance.instance_id.clone();
        if let Some(now) = client::instances(state_dir, Some(id))?.pop() {
            *instance = now;
        }
    }
    Ok(())
}

fn for_scripts(instance: &InstanceReport) -> serde_json::Value {
    json!({
        "name": instance.name,
        "instance_id": instance.instance_id,
        "state": instance.state,
        "metadata_options": instance.metadata_options,
    })
}

fn write_options(out: &mut dyn Write, instances: &[InstanceReport]) -> io::Result<()> {
    if instances.is_empty() {
        return writeln!(out, "  no instances");
    }
    let mut table = Table::new([
        ("NAME", Align::Left),
        ("INSTANCE ID", Align::Left),
        ("TOKENS", Align::Left),
        ("ENDPOINT", Align::Left),
        ("HOP LIMIT", Align::Right),
        ("IPV6", Align::Left),
        ("TAGS", Align::Left),
        ("STATE", Align::Left),
    ]);
    for instance in instances {
        let Some(options) = &instance.metadata_options else {
            continue;
        };
        table.row([
            called(instance),
            (&instance.instance_id).into(),
            tokens(options),
            (&options.http_endpoint).into(),
            options.http_put_response_hop_limit.into(),
            (&options.http_protocol_ipv6).into(),
            (&options.instance_metadata_tags).into(),
            state(options),
        ]);
    }
    table.write(out)
}

fn tokens(options: &OptionsReport) -> Cell {
    let style = match &*options.http_tokens {
        "required" => GOOD,
        _ => WARNING,
    };
    Cell::styled(&options.http_tokens, style)
}

fn state(options: &OptionsReport) -> Cell {
    let style = match &*options.state {
        "applied" => DIM,
        _ => WARNING,
    };
    Cell::styled(&options.state, style)
}

fn write_set(out: &mut dyn Write, ordered: &Ordered) -> io::Result<()> {
    for change in &ordered.changes {
        write_change(out, change)?;
    }
    let n_changed = ordered.changes.len();
    let n_same = ordered.instances.len().saturating_sub(n_changed);
    if n_changed == 0 {
        writeln!(out, "nothing to change")?;
    } else {
        let would = if ordered.dry_run { "would be " } else { "" };
        writeln!(out, "\n{would}changed: {n_changed}, as before: {n_same}")?;
    }
    if ordered.dry_run {
        return Ok(());
    }
    for instance in ordered
        .instances
        .iter()
        .filter(|instance| is_pending(instance))
    {
        let why = match &*instance.state {
            "running" | "pending" => "not in force yet; `imds options get` tells when it is",
            _ => "in force when it is started",
        };
        let (name, state) = (&instance.name, &instance.state);
        writeln!(out, "{WARNING}pending:{WARNING:#} {name} ({state}): {why}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use imds_user::store::apply::{Action, Change};
    use imds_user::store::history::FieldChange;

    use super::*;

    fn instance(name: &str, state: &str, options_state: &str) -> InstanceReport {
        serde_json::from_value(json!({
            "name": name, "instance_id": "i-0123456789abcdef0", "owner": "api", "port": "vnet0", "state": state,
            "instance_type": "t3.micro", "life_cycle": "on-demand", "launched": "2026-01-01T00:00:00Z",
            "published": null, "private_ipv4": null, "public_ipv4": null, "security_groups": [], "tags": {},
            "role": null,
            "metadata_options": {
                "state": options_state, "http_tokens": "required", "http_endpoint": "enabled",
                "http_put_response_hop_limit": 12, "http_protocol_ipv6": "disabled", "instance_metadata_tags": "disabled",
            },
            "user_data": {"bytes": null, "is_pending": false, "configured_bytes": null},
            "notices": {"spot_interruption": null, "rebalance": null, "maintenance": [],
                        "target_lifecycle_state": null, "hibernation_configured": null},
            "planned": [],
        }))
        .unwrap()
    }

    fn text(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        anstream::adapter::strip_str(std::str::from_utf8(&out).unwrap()).to_string()
    }

    #[test]
    fn options_stand_in_a_table() {
        let instances = [
            instance("web", "running", "applied"),
            instance("a-longer-name", "stopped", "pending"),
        ];
        let expected = "  \
  NAME           INSTANCE ID          TOKENS    ENDPOINT  HOP LIMIT  IPV6      TAGS      STATE
  web            i-0123456789abcdef0  required  enabled          12  disabled  disabled  applied
  a-longer-name  i-0123456789abcdef0  required  enabled          12  disabled  disabled  pending
";
        assert_eq!(text(|out| write_options(out, &instances)), expected);
        assert_eq!(text(|out| write_options(out, &[])), "  no instances\n");
    }

    #[test]
    fn what_is_set_is_told_with_what_it_was_and_what_waits() {
        let change = Change {
            instance_id: Some("i-0123456789abcdef0".parse().unwrap()),
            name: "web".into(),
            action: Action::Change,
            fields: vec![FieldChange {
                field: "metadata-options.http-tokens".into(),
                old: Some("optional".into()),
                new: Some("required".into()),
            }],
        };
        let mut ordered = Ordered {
            dry_run: false,
            changes: vec![change],
            instances: vec![
                instance("web", "running", "applied"),
                instance("db", "stopped", "pending"),
            ],
        };
        let line =
            "~ web i-0123456789abcdef0\n    metadata-options.http-tokens: optional → required\n\n";
        assert_eq!(
            text(|out| write_set(out, &ordered)),
            format!(
                "{line}changed: 1, as before: 1\npending: db (stopped): in force when it is started\n"
            )
        );
        ordered.dry_run = true;
        assert_eq!(
            text(|out| write_set(out, &ordered)),
            format!("{line}would be changed: 1, as before: 1\n")
        );
        ordered.changes.clear();
        assert_eq!(text(|out| write_set(out, &ordered)), "nothing to change\n");
    }

    #[test]
    fn what_is_given_becomes_parameters_of_a_call() {
        let given = Given {
            http_tokens: Some(TokenUse::Required),
            http_put_response_hop_limit: Some(2),
            ..Given::default()
        };
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            given.parameters("MetadataOptions."),
            [
                pair("MetadataOptions.HttpTokens", "required"),
                pair("MetadataOptions.HttpPutResponseHopLimit", "2"),
            ]
        );
    }
}
