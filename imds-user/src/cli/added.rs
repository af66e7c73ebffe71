//! `imds instance add` and `imds instance remove`: instances whose guests somebody else runs.

use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use base64::Engine as _;
use imds_user::config::port_by::NetnsName;
use imds_user::config::{PortBy, PortName};
use imds_user::control::client::{self, ClientError};
use imds_user::control::{InstanceReport, Ordered, Parameters, Request};
use imds_user::instance::{MacAddress, USER_DATA_BYTES_MAX};

use super::apply::write_change;
use super::failure::Refusal;
use super::options::Given;
use super::{BOLD, DIM, EXIT_USAGE, GOOD, WARNING};

pub(super) const ADD_EXAMPLES: &str = "\
Examples:
  imds instance add web --port vnet0                     the host's side: tap of a VM, veth of a container
  imds instance add db --netns blue --type m5.large --tag Name=db --http-tokens required
  imds instance add ci --port-mac 52:54:00:12:34:56 --role ci --user-data cloud-init.yaml
  imds instance add web --port vnet0 --dry-run           is it right?

The interface need not be there yet: the guest is served as soon as it is. What is not said is as in
a launch by the API: `imds defaults` first, then EC2's defaults. Unlike `imds admit` it lasts over
restarts and interfaces, and AWS's tools know it.";

/// How long it is waited for a guest to be gone.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// An instance to be registered.
#[derive(Debug, clap::Args)]
pub(super) struct Add {
    /// What commands will call it
    name: String,

    #[command(flatten)]
    port: Port,

    /// Its type [default: t3.micro]
    #[arg(long = "type", visible_alias = "instance-type", value_name = "TYPE")]
    instance_type: Option<String>,

    /// Its image [default: the host's own]
    #[arg(long = "image", visible_alias = "image-id", value_name = "ID")]
    image: Option<String>,

    /// The private IPv4 address that its guest has [default: a made-up one]
    #[arg(long = "ip", visible_alias = "private-ipv4", value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,

    /// The hardware address that its guest has [default: a made-up one]
    #[arg(long, value_name = "ADDRESS")]
    mac: Option<MacAddress>,

    /// A tag; may be said several times
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = tag)]
    tags: Vec<(String, String)>,

    /// The name of its IAM role, whose credentials are made up
    #[arg(long, value_name = "NAME")]
    role: Option<String>,

    /// A key pair that the API knows
    #[arg(long, value_name = "NAME")]
    key_name: Option<String>,

    /// A file with its user data
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    user_data: Option<PathBuf>,

    #[command(flatten)]
    given: Given,

    /// Only say what would be added
    #[arg(long)]
    dry_run: bool,
}

/// How its port is found.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Port {
    /// Its port: the name of the host's interface
    #[arg(long, value_name = "INTERFACE")]
    port: Option<PortName>,

    /// The hardware address of its port
    #[arg(long, value_name = "ADDRESS")]
    port_mac: Option<MacAddress>,

    /// The network namespace that the other end of its port, a veth pair, is in
    #[arg(long, value_name = "NAME")]
    netns: Option<NetnsName>,
}

impl Add {
    pub(super) fn run(
        self,
        state_dir: &Path,
        json: bool,
        out: &mut dyn Write,
    ) -> anyhow::Result<()> {
        let port = self.port.by()?;
        let request = Request::AddInstance {
            name: self.name.clone(),
            port: port.clone(),
            parameters: self.parameters()?,
            dry_run: self.dry_run,
        };
        let ordered = client::order(state_dir, request)?;
        if json {
            serde_json::to_writer_pretty(&mut *out, &ordered)?;
            writeln!(out)?;
            return Ok(());
        }
        write_added(out, &ordered, &port)?;
        Ok(())
    }

    fn parameters(&self) -> anyhow::Result<Parameters> {
        let mut parameters: Parameters = [
            ("InstanceType", self.instance_type.clone()),
            ("ImageId", self.image.clone()),
            ("Address", self.ip.map(|it| it.to_string())),
            ("MacAddress", self.mac.map(|it| it.to_string())),
            ("IamInstanceProfile.Name", self.role.clone()),
            ("KeyName", self.key_name.clone()),
            (
                "UserData",
                self.user_data.as_deref().map(user_data).transpose()?,
            ),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect();
        parameters.extend(self.given.parameters("MetadataOptions."));
        let mut add = |name: String, value: &str| {
            parameters.push((format!("TagSpecification.1.{name}"), value.to_owned()));
        };
        for ((key, value), number) in self.tags.iter().zip(1..) {
            if number == 1 {
                add("ResourceType".to_owned(), "instance");
            }
            add(format!("Tag.{number}.Key"), key);
            add(format!("Tag.{number}.Value"), value);
        }
        Ok(parameters)
    }
}

impl Port {
    fn by(&self) -> anyhow::Result<PortBy> {
        let by = None
            .or(self.port.clone().map(PortBy::Name))
            .or(self.port_mac.map(PortBy::Mac))
            .or(self.netns.clone().map(PortBy::Netns));
        by.context("clap asks for a port")
    }
}

/// A file in base64, as calls have it.
fn user_data(file: &Path) -> anyhow::Result<String> {
    let bytes =
        fs::read(file).with_context(|| format!("read user data from {}", file.display()))?;
    if bytes.len() > USER_DATA_BYTES_MAX {
        return Err(Refusal {
            code: EXIT_USAGE,
            text: format!(
                "{}: user data has at most {USER_DATA_BYTES_MAX} bytes, and this has {}",
                file.display(),
                bytes.len()
            ),
        }
        .into());
    }
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
}

fn tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write a key and its value, such as Name=web".to_owned()),
    }
}

fn write_added(out: &mut dyn Write, ordered: &Ordered, port: &PortBy) -> io::Result<()> {
    for change in &ordered.changes {
        write_change(out, change)?;
    }
    if ordered.dry_run {
        return writeln!(out, "\nnothing is added: this was a rehearsal");
    }
    let mut instances = ordered.instances.iter();
    if let Some(why) = instances.find_map(|instance| instance.waits.as_ref()) {
        return writeln!(
            out,
            "\n{WARNING}waits{WARNING:#} for its port: {why}; its guest is served as soon as it is"
        );
    }
    writeln!(out, "\n{GOOD}in force{GOOD:#} at {BOLD}{port}{BOLD:#}")
}

/// Has the daemon forget an instance, and waits until it is gone.
pub(super) fn remove(
    state_dir: &Path,
    instance: String,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let mut ordered = client::order(state_dir, Request::RemoveInstance { instance })?;
    for instance in &mut ordered.instances {
        await_end(state_dir, instance)?;
    }
    if json {
        serde_json::to_writer_pretty(&mut *out, &ordered)?;
        writeln!(out)?;
        return Ok(());
    }
    for instance in &ordered.instances {
        write_removed(out, instance)?;
    }
    Ok(())
}

fn await_end(state_dir: &Path, instance: &mut InstanceReport) -> Result<(), ClientError> {
    let deadline = Instant::now() + PATIENCE;
    while instance.state == "shutting-down" && Instant::now() < deadline {
        thread::sleep(LOOK_EVERY);
        let id = instance.instance_id.clone();
        match client::instances(state_dir, Some(id)) {
            Ok(found) => {
                if let Some(now) = found.into_iter().next() {
                    *instance = now;
                }
            }
            // It is not even remembered.
            Err(ClientError::Unfit { .. }) => "terminated".clone_into(&mut instance.state),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn write_removed(out: &mut dyn Write, instance: &InstanceReport) -> io::Result<()> {
    let (name, id) = (&instance.name, &instance.instance_id);
    write!(out, "{BOLD}{name}{BOLD:#} {DIM}{id}{DIM:#}  ")?;
    match &*instance.state {
        "shutting-down" => writeln!(
            out,
            "{WARNING}on its way{WARNING:#}: its guest has not ended yet"
        ),
        _ => writeln!(out, "{GOOD}removed{GOOD:#}"),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::*;

    fn parse(line: &str) -> Result<Add, String> {
        let command = Add::augment_args(Command::new("add").no_binary_name(true));
        let matches = command.try_get_matches_from(line.split(' '));
        let matches = matches.map_err(|error| error.to_string())?;
        Ok(Add::from_arg_matches(&matches).unwrap())
    }

    fn check(line: &str, port: &str, expected: &[(&str, &str)]) {
        let add = parse(line).unwrap();
        assert_eq!(add.port.by().unwrap().to_string(), port, "{line}");
        let parameters = add.parameters().unwrap();
        let parameters: Vec<_> = parameters
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(parameters, expected, "{line}");
    }

    fn check_refused(line: &str, words: &str) {
        let error = parse(line).unwrap_err();
        assert!(error.contains(words), "{line}: {error}");
    }

    #[test]
    fn what_is_typed_becomes_parameters_of_a_launch() {
        check("web --port vnet0", "vnet0", &[]);
        check("web --netns blue", "netns blue", &[]);
        check(
            "web --port-mac 52:54:00:12:34:56 --mac 02:00:00:00:00:01",
            "mac 52:54:00:12:34:56",
            &[("MacAddress", "02:00:00:00:00:01")],
        );
        check(
            "web --port vnet0 --type m5.large --ip 10.0.0.10 --tag Name=web --tag a=b=c --http-tokens required --hop-limit 2",
            "vnet0",
            &[
                ("InstanceType", "m5.large"),
                ("Address", "10.0.0.10"),
                ("MetadataOptions.HttpTokens", "required"),
                ("MetadataOptions.HttpPutResponseHopLimit", "2"),
                ("TagSpecification.1.ResourceType", "instance"),
                ("TagSpecification.1.Tag.1.Key", "Name"),
                ("TagSpecification.1.Tag.1.Value", "web"),
                ("TagSpecification.1.Tag.2.Key", "a"),
                ("TagSpecification.1.Tag.2.Value", "b=c"),
            ],
        );
    }

    #[test]
    fn what_is_wrong_is_said_before_anybody_is_asked() {
        check_refused("web", "--port");
        check_refused("web --port vnet0 --netns blue", "cannot be used with");
        check_refused("web --port a/b", "is not the name of a network interface");
        check_refused("web --port vnet0 --tag Name", "such as Name=web");
        check_refused(
            "web --port vnet0 --http-tokens requierd",
            "did you mean `required`?",
        );
        check_refused("web --port vnet0 --hop-limit 65", "65 is not in 1..=64");
    }
}
