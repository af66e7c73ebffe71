//! `imds instance`: the instances of this host, and the power switch of each.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use imds_user::control::instance::{Notices, OptionsReport, UserDataReport};
use imds_user::control::{self, InstanceReport, PowerAction};

use super::added::{self, ADD_EXAMPLES, Add};
use super::event::write_done;
use super::inside::{Console, Exec, Launched};
use super::table::{Align, Cell, Table};
use super::{BOLD, DIM, EXIT_FINE, GOOD, StateDir, WARNING};

const EXAMPLES: &str = "\
Examples:
  imds instance list
  imds instance show web
  imds instance add web --port vnet0      serve a guest that you run yourself, also if it comes later
  imds instance remove web                forget it for good
  imds instance stop web                  off: its guest gets no answer
  imds instance start web                 on: launched anew, changed user data taken over
  imds instance exec i-0123456789abcdef0 -- curl -s http://169.254.169.254/
  imds instance console --follow web      what the guest printed, and what comes
  imds instance list --json | jq -r '.[] | select(.state == \"stopped\").name'

An instance is named by its name, its id, or how its id alone begins. `imds lab instance …` is the
same for a lab.";

/// Show, add and remove instances, and stop, start or reboot one
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Instance {
    #[command(flatten)]
    what: What,

    #[command(flatten)]
    state_dir: StateDir,
}

impl Instance {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        self.what.run(&self.state_dir.state_dir, out)
    }
}

/// Everything but which daemon it is about.
#[derive(Debug, clap::Args)]
#[command(disable_help_subcommand = true)]
pub(super) struct What {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Every instance
    List,
    /// One instance: what it is, what it is told, what is planned
    Show(Which),
    /// Switch it off: its guest gets no answer and its connections end
    Stop(Which),
    /// Switch it on: launched anew, with the configured user data; tokens of before are invalid
    Start(Which),
    /// Reboot it: launch time, tokens and user data stay; a scheduled reboot of it is canceled
    Reboot(Which),
    /// Register one whose guest you run yourself
    #[command(after_help = ADD_EXAMPLES)]
    Add(Box<Add>),
    /// Forget one for good: its guest is served no more
    #[command(visible_alias = "terminate")]
    Remove(Which),
    /// Run a command in its guest, if it was launched here
    Exec(Exec),
    /// Show what its guest printed, if it was launched here
    Console(Console),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// Which instance
    instance: String,
}

impl What {
    /// Asks the daemon of this state directory.
    pub(super) fn run(self, state_dir: &Path, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::List => list(state_dir, self.json, out)?,
            Command::Show(Which { instance }) => show(state_dir, instance, self.json, out)?,
            Command::Stop(which) => power(state_dir, which, PowerAction::Stop, self.json, out)?,
            Command::Start(which) => power(state_dir, which, PowerAction::Start, self.json, out)?,
            Command::Reboot(which) => power(state_dir, which, PowerAction::Reboot, self.json, out)?,
            Command::Add(add) => add.run(state_dir, self.json, out)?,
            Command::Remove(which) => added::remove(state_dir, which.instance, self.json, out)?,
            Command::Exec(exec) => return exec.run(state_dir),
            Command::Console(console) => return console.run(state_dir, out),
        }
        Ok(ExitCode::from(EXIT_FINE))
    }
}

fn power(
    state_dir: &Path,
    Which { instance }: Which,
    action: PowerAction,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let guest = Launched::of(state_dir, &instance)?;
    // What ends has its metadata until the end, what begins has it from the beginning.
    if let (Some(guest), PowerAction::Stop) = (&guest, action) {
        guest.switch(action)?;
    }
    let done = control::client::power(state_dir, instance, action)?;
    if let (Some(guest), PowerAction::Start | PowerAction::Reboot) = (&guest, action) {
        guest.switch(action)?;
    }
    write_done(out, &done, json)
}

fn list(state_dir: &Path, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let instances = control::client::instances(state_dir, None)?;
    if json {
        serde_json::to_writer_pretty(&mut *out, &instances)?;
        writeln!(out)?;
    } else {
        write_list(out, &instances)?;
    }
    Ok(())
}

fn show(state_dir: &Path, instance: String, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    for instance in control::client::instances(state_dir, Some(instance))? {
        if json {
            serde_json::to_writer_pretty(&mut *out, &instance)?;
            writeln!(out)?;
        } else {
            write_instance(out, &instance)?;
        }
    }
    Ok(())
}

fn write_list(out: &mut dyn Write, instances: &[InstanceReport]) -> io::Result<()> {
    if instances.is_empty() {
        return writeln!(out, "  no instances");
    }
    let mut table = Table::new([
        ("NAME", Align::Left),
        ("INSTANCE ID", Align::Left),
        ("STATE", Align::Left),
        ("TYPE", Align::Left),
        ("LIFE CYCLE", Align::Left),
        ("LAUNCHED", Align::Left),
        ("NOTES", Align::Left),
    ]);
    for instance in instances {
        table.row([
            called(instance),
            (&instance.instance_id).into(),
            state(instance),
            (&instance.instance_type).into(),
            (&instance.life_cycle).into(),
            (&instance.launched).into(),
            notes(instance),
        ]);
    }
    table.write(out)
}

/// Its name. One of the API's has its id for a name, and people call it by a tag.
pub(super) fn called(instance: &InstanceReport) -> Cell {
    let tag = instance.tags.get("Name");
    let name = match tag {
        Some(tag) if instance.name == instance.instance_id => tag,
        None if instance.name == instance.instance_id => "-",
        _ => &instance.name,
    };
    Cell::styled(name, BOLD)
}

fn state(instance: &InstanceReport) -> Cell {
    let style = match &*instance.state {
        "running" => GOOD,
        "terminated" => DIM,
        _ => WARNING,
    };
    Cell::styled(&instance.state, style)
}

/// What is out of the ordinary, in a few words each.
fn notes(instance: &InstanceReport) -> Cell {
    let notices = &instance.notices;
    let mut notes = Vec::new();
    if instance.waits.is_some() {
        notes.push("waits for its port".to_owned());
    }
    let options = instance.metadata_options.as_ref();
    if options.is_some_and(|options| options.state == "pending") {
        notes.push("options pending".to_owned());
    }
    if instance.user_data.is_pending {
        notes.push("user data pending".to_owned());
    }
    if let Some(spot) = &notices.spot_interruption {
        notes.push(format!("spot {} {}", spot.action, spot.time));
    }
    if notices.rebalance.is_some() {
        notes.push("rebalance".to_owned());
    }
    let n_scheduled = notices
        .maintenance
        .iter()
        .filter(|event| event.state == "active")
        .count();
    if n_scheduled > 0 {
        notes.push(format!("{n_scheduled} scheduled"));
    }
    if !instance.planned.is_empty() {
        notes.push(format!("{} planned", instance.planned.len()));
    }
    Cell::styled(notes.join(", "), WARNING)
}

fn write_instance(out: &mut dyn Write, instance: &InstanceReport) -> io::Result<()> {
    writeln!(
        out,
        "{BOLD}{}{BOLD:#}  {}  {}",
        instance.name, instance.instance_id, instance.state
    )?;
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
    let tags: Vec<String> = instance
        .tags
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    for (name, value) in [
        ("port", instance.port.clone()),
        ("waits", instance.waits.clone().unwrap_or_default()),
        ("brought by", brought_by(&instance.owner).to_owned()),
        ("type", instance.instance_type.clone()),
        ("life cycle", instance.life_cycle.clone()),
        ("launched", instance.launched.clone()),
        ("published", or_none(&instance.published)),
        ("private IPv4", or_none(&instance.private_ipv4)),
        ("public IPv4", or_none(&instance.public_ipv4)),
        ("security groups", instance.security_groups.join(", ")),
        ("tags", tags.join(", ")),
        ("role", or_none(&instance.role)),
        (
            "options",
            instance
                .metadata_options
                .as_ref()
                .map(options)
                .unwrap_or_default(),
        ),
        ("user data", user_data(instance.user_data)),
    ] {
        write_fact(out, name, &value)?;
    }
    write_notices(out, &instance.notices)?;
    for planned in &instance.planned {
        write_fact(
            out,
            "planned",
            &format!("{}: {}", planned.at, planned.change),
        )?;
    }
    Ok(())
}

fn brought_by(owner: &str) -> &str {
    match owner {
        "file" => "the configuration file",
        "api" => "the API or `imds instance add`",
        "admitted" => "`imds admit`",
        "discovered" => "discovery",
        other => other,
    }
}

/// The five options in a line.
fn options(options: &OptionsReport) -> String {
    let mut line = format!(
        "tokens {}, endpoint {}, hop limit {}, IPv6 {}, tags {}",
        options.http_tokens,
        options.http_endpoint,
        options.http_put_response_hop_limit,
        options.http_protocol_ipv6,
        options.instance_metadata_tags
    );
    if options.state != "applied" {
        line = format!("{line} ({})", options.state);
    }
    line
}

fn write_fact(out: &mut dyn Write, name: &str, value: &str) -> io::Result<()> {
    if value.is_empty() {
        return Ok(());
    }
    writeln!(out, "  {DIM}{name:<16}{DIM:#}{value}")
}

fn user_data(user_data: UserDataReport) -> String {
    let bytes = |bytes: Option<usize>| match bytes {
        Some(bytes) => format!("{bytes} bytes"),
        None => "none".to_owned(),
    };
    let has = bytes(user_data.bytes);
    if user_data.is_pending {
        let configured = bytes(user_data.configured_bytes);
        format!("{has}; the configuration has other by now ({configured}), for the next start")
    } else {
        has
    }
}

fn write_notices(out: &mut dyn Write, notices: &Notices) -> io::Result<()> {
    if let Some(spot) = &notices.spot_interruption {
        write_fact(
            out,
            "interruption",
            &format!("{} at {}", spot.action, spot.time),
        )?;
    }
    if let Some(time) = &notices.rebalance {
        write_fact(out, "rebalance", &format!("recommended at {time}"))?;
    }
    for event in &notices.maintenance {
        let deadline = match &event.not_before_deadline {
            Some(deadline) => format!(", deadline {deadline}"),
            None => String::new(),
        };
        let window = format!("{} to {}{deadline}", event.not_before, event.not_after);
        let value = format!(
            "{} {} {}, {window}",
            event.event_id, event.state, event.code
        );
        write_fact(out, "maintenance", &value)?;
    }
    if let Some(state) = &notices.target_lifecycle_state {
        write_fact(out, "Auto Scaling", &format!("to {state}"))?;
    }
    if let Some(is_configured) = notices.hibernation_configured {
        let value = if is_configured {
            "configured"
        } else {
            "not configured"
        };
        write_fact(out, "hibernation", value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use imds_user::control::instance::{MaintenanceReport, PlannedReport, SpotReport};

    use super::*;

    fn quiet() -> InstanceReport {
        InstanceReport {
            name: "db".into(),
            instance_id: "i-0123456789abcdef0".into(),
            owner: "file".into(),
            port: "vnet1".into(),
            waits: None,
            state: "stopped".into(),
            instance_type: "r6i.large".into(),
            life_cycle: "on-demand".into(),
            launched: "2026-01-01T00:00:00Z".into(),
            published: None,
            private_ipv4: Some("10.0.0.10".into()),
            public_ipv4: None,
            security_groups: vec!["default".into()],
            tags: BTreeMap::new(),
            role: None,
            metadata_options: Some(OptionsReport {
                state: "applied".into(),
                http_tokens: "optional".into(),
                http_endpoint: "enabled".into(),
                http_put_response_hop_limit: 1,
                http_protocol_ipv6: "disabled".into(),
                instance_metadata_tags: "disabled".into(),
            }),
            user_data: UserDataReport {
                bytes: None,
                is_pending: false,
                configured_bytes: None,
            },
            notices: Notices {
                spot_interruption: None,
                rebalance: None,
                maintenance: vec![],
                target_lifecycle_state: None,
                hibernation_configured: None,
            },
            has_machine: false,
            planned: vec![],
        }
    }

    fn busy() -> InstanceReport {
        InstanceReport {
            name: "web".into(),
            port: "vnet0".into(),
            state: "running".into(),
            life_cycle: "spot".into(),
            published: Some("2026-01-01T00:00:07Z".into()),
            tags: BTreeMap::from([
                ("Name".into(), "web".into()),
                ("Stage".into(), "test".into()),
            ]),
            role: Some("web-role".into()),
            user_data: UserDataReport {
                bytes: Some(120),
                is_pending: true,
                configured_bytes: None,
            },
            notices: Notices {
                spot_interruption: Some(SpotReport {
                    action: "terminate".into(),
                    time: "2026-01-01T00:02:00Z".into(),
                }),
                rebalance: Some("2026-01-01T00:00:00Z".into()),
                maintenance: vec![MaintenanceReport {
                    event_id: "instance-event-0123456789abcdef0".into(),
                    code: "system-reboot".into(),
                    state: "active".into(),
                    description: "scheduled reboot".into(),
                    not_before: "2026-01-02T00:00:00Z".into(),
                    not_after: "2026-01-02T02:00:00Z".into(),
                    not_before_deadline: Some("2026-01-09T00:00:00Z".into()),
                }],
                target_lifecycle_state: Some("InService".into()),
                hibernation_configured: Some(false),
            },
            planned: vec![PlannedReport {
                at: "2026-01-01T01:00:00.250Z".into(),
                change: "hibernation: configured".into(),
            }],
            ..quiet()
        }
    }

    fn text(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        anstream::adapter::strip_str(std::str::from_utf8(&out).unwrap()).to_string()
    }

    #[test]
    fn a_list_notes_what_is_out_of_the_ordinary() {
        let list = text(|out| write_list(out, &[busy(), quiet()]));
        let expected = "  \
  NAME  INSTANCE ID          STATE    TYPE       LIFE CYCLE  LAUNCHED              NOTES
  web   i-0123456789abcdef0  running  r6i.large  spot        2026-01-01T00:00:00Z  user data pending, spot terminate 2026-01-01T00:02:00Z, rebalance, 1 scheduled, 1 planned
  db    i-0123456789abcdef0  stopped  r6i.large  on-demand   2026-01-01T00:00:00Z
";
        assert_eq!(list, expected);
        assert_eq!(text(|out| write_list(out, &[])), "  no instances\n");
        // One of the API's: its id is its name.
        let nameless = InstanceReport {
            name: quiet().instance_id,
            ..quiet()
        };
        let tagged = InstanceReport {
            tags: BTreeMap::from([("Name".into(), "front".into())]),
            ..nameless.clone()
        };
        let list = text(|out| write_list(out, &[nameless, tagged]));
        let names = list
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().next());
        assert_eq!(names.collect::<Vec<_>>(), [Some("-"), Some("front")]);
    }

    #[test]
    fn one_instance_is_shown_with_all_that_it_is_told() {
        let expected = "\
web  i-0123456789abcdef0  running
  port            vnet0
  brought by      the configuration file
  type            r6i.large
  life cycle      spot
  launched        2026-01-01T00:00:00Z
  published       2026-01-01T00:00:07Z
  private IPv4    10.0.0.10
  public IPv4     none
  security groups default
  tags            Name=web, Stage=test
  role            web-role
  options         tokens optional, endpoint enabled, hop limit 1, IPv6 disabled, tags disabled
  user data       120 bytes; the configuration has other by now (none), for the next start
  interruption    terminate at 2026-01-01T00:02:00Z
  rebalance       recommended at 2026-01-01T00:00:00Z
  maintenance     instance-event-0123456789abcdef0 active system-reboot, 2026-01-02T00:00:00Z to 2026-01-02T02:00:00Z, deadline 2026-01-09T00:00:00Z
  Auto Scaling    to InService
  hibernation     not configured
  planned         2026-01-01T01:00:00.250Z: hibernation: configured
";
        assert_eq!(text(|out| write_instance(out, &busy())), expected);
    }
}
