//! `imds status`: what the daemon is doing.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use imds_user::control::{
    self, DiscoveryStatus, GuardStatus, HostAccessStatus, PortStatus, StatusReport,
};

use super::table::{Align, Cell, Table};
use super::{BAD, BOLD, DIM, EXIT_FINE, GOOD, StateDir, WARNING};

const EXAMPLES: &str = "\
Examples:
  imds status                                                 for people
  imds status --state-dir /run/imds-lab                       the lab's daemon
  imds status --json | jq '.ports[] | {name, requests}'       for scripts";

/// Show ports, instances and counters of the running daemon
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Status {
    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    state_dir: StateDir,
}

impl Status {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let report = control::client::status(&self.state_dir.state_dir)?;
        if self.json {
            serde_json::to_writer_pretty(&mut *out, &report)?;
            writeln!(out)?;
        } else {
            write_report(out, &report, SystemTime::now())?;
        }
        Ok(ExitCode::from(EXIT_FINE))
    }
}

fn write_report(out: &mut dyn Write, report: &StatusReport, now: SystemTime) -> io::Result<()> {
    write_processes(out, report, now)?;
    write_guard(out, &report.guard)?;
    write_host_access(out, &report.host_access)?;
    writeln!(out)?;
    write_ports(out, &report.ports)?;
    write_credentials(out, &report.ports, unix_seconds(now))?;
    write_discovery(out, &report.discovery)?;
    write_counts(out, "Packets", &report.packets, DIM)?;
    write_counts(out, "Dropped", &report.drops, WARNING)
}

fn write_processes(out: &mut dyn Write, report: &StatusReport, now: SystemTime) -> io::Result<()> {
    let daemon = &report.daemon;
    let age = age(unix_seconds(now).saturating_sub(daemon.started_unix_seconds));
    let config = match &*daemon.config {
        "" => "no configuration file",
        config => config,
    };
    writeln!(
        out,
        "{BOLD}Daemon{BOLD:#}     {GOOD}running{GOOD:#} for {age}, process {}, version {}, {config}",
        daemon.pid, daemon.version
    )?;
    let responder = &report.responder;
    write!(out, "{BOLD}Responder{BOLD:#}  ")?;
    match responder.pid {
        Some(pid) => write!(
            out,
            "{GOOD}running{GOOD:#}, process {pid}, {}",
            counted(responder.workers.into(), "worker")
        )?,
        None => write!(out, "{WARNING}being started again{WARNING:#}")?,
    }
    if responder.failed_starts > 0 {
        write!(
            out,
            ", {BAD}{}{BAD:#}",
            counted(responder.failed_starts.into(), "failed start")
        )?;
    }
    if responder.restarts > 0 {
        write!(
            out,
            ", {WARNING}{}{WARNING:#}",
            counted(responder.restarts, "restart")
        )?;
    }
    writeln!(out)
}

fn write_guard(out: &mut dyn Write, guard: &GuardStatus) -> io::Result<()> {
    write!(out, "{BOLD}Guard{BOLD:#}      ")?;
    if !guard.is_on {
        return writeln!(
            out,
            "{BAD}off{BAD:#}: guests that are not served may reach this host's own metadata service"
        );
    }
    let (on, off): (Vec<_>, Vec<_>) = guard.uplinks.iter().partition(|uplink| uplink.is_guarded);
    let names: Vec<&str> = on.iter().map(|uplink| uplink.interface.as_str()).collect();
    match names.is_empty() {
        true => write!(out, "no uplink")?,
        false => write!(out, "{GOOD}on{GOOD:#} {}", names.join(", "))?,
    }
    for (at, (interface, count)) in guard.dropped.iter().enumerate() {
        let begin = if at == 0 { ", dropped from " } else { ", " };
        write!(out, "{begin}{interface} {WARNING}{count}{WARNING:#}")?;
    }
    writeln!(out)?;
    for uplink in off {
        let why_not = uplink.why_not.as_deref().unwrap_or("nobody knows why");
        writeln!(
            out,
            "{:<11}{BAD}not on {}{BAD:#}: {why_not}",
            "", uplink.interface
        )?;
    }
    Ok(())
}

/// Nothing is said where every process of the host may.
fn write_host_access(out: &mut dyn Write, access: &HostAccessStatus) -> io::Result<()> {
    if !access.is_restricted {
        return Ok(());
    }
    write!(out, "{BOLD}Host{BOLD:#}       ")?;
    let names: Vec<String> = access
        .cgroups
        .iter()
        .map(|one| match one.is_there {
            true => one.cgroup.clone(),
            false => format!("{} (not there)", one.cgroup),
        })
        .collect();
    match names.is_empty() {
        true => write!(out, "no process may call its own metadata service")?,
        false => write!(
            out,
            "may call its own metadata service: {}",
            names.join(", ")
        )?,
    }
    for (at, (cgroup, count)) in access.refused.iter().enumerate() {
        let begin = if at == 0 { "; refused to " } else { ", " };
        write!(out, "{begin}{cgroup} {WARNING}{count}{WARNING:#}")?;
    }
    writeln!(out)
}

fn write_ports(out: &mut dyn Write, ports: &[PortStatus]) -> io::Result<()> {
    if ports.is_empty() {
        return writeln!(out, "  no ports");
    }
    let mut table = Table::new([
        ("NAME", Align::Left),
        ("PORT", Align::Left),
        ("INSTANCE ID", Align::Left),
        ("STATE", Align::Left),
        ("TOKENS", Align::Left),
        ("REQUESTS", Align::Right),
        ("ISSUED", Align::Right),
        ("NO TOKEN", Align::Right),
        ("REFUSED", Align::Right),
        ("THROTTLED", Align::Right),
        ("OPEN", Align::Right),
    ]);
    for port in ports {
        table.row([
            Cell::styled(&port.name, BOLD),
            (&port.port).into(),
            (&port.instance_id).into(),
            state(&port.state),
            (&port.http_tokens).into(),
            port.requests.into(),
            port.tokens_issued.into(),
            port.no_token.into(),
            warned(port.no_token_rejected),
            warned(port.throttled),
            port.connections.into(),
        ]);
    }
    table.write(out)
}

/// A line for each instance whose credentials are not as they should be.
fn write_credentials(out: &mut dyn Write, ports: &[PortStatus], now: u64) -> io::Result<()> {
    let troubled = ports.iter().filter_map(|port| {
        let credentials = port.credentials.as_ref()?;
        (credentials.state != "fresh").then_some((port, credentials))
    });
    for (at, (port, credentials)) in troubled.enumerate() {
        if at == 0 {
            writeln!(out, "\n{BOLD}Credentials{BOLD:#}")?;
        }
        let source = credentials.source.as_deref().unwrap_or(&credentials.kind);
        let style = if credentials.state == "failed" {
            BAD
        } else {
            WARNING
        };
        write!(
            out,
            "  {}: {style}{}{style:#}",
            port.name, credentials.state
        )?;
        if let Some(at) = credentials.expires_unix_seconds {
            write!(out, ", good for {}", age(at.saturating_sub(now)))?;
        }
        match &credentials.last_error {
            Some(error) => writeln!(out, "; {source}: {error}")?,
            None => writeln!(out, "; {source}: no answer yet")?,
        }
    }
    Ok(())
}

fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Who waits, what is closed and what to do about it, and what tells of guests.
fn write_discovery(out: &mut dyn Write, discovery: &DiscoveryStatus) -> io::Result<()> {
    write_reasons(
        out,
        "Waiting",
        discovery.waiting.iter().map(|waiting| {
            let name = Cell::styled(&waiting.name, BOLD);
            [name, (&waiting.port).into(), (&waiting.why).into()]
        }),
    )?;
    write_reasons(
        out,
        "Closed",
        discovery.closed.iter().map(|closed| {
            let port = Cell::styled(&closed.port, BOLD);
            let admit = closed.admit.as_deref().unwrap_or_default();
            [port, (&closed.why).into(), Cell::styled(admit, GOOD)]
        }),
    )?;
    for source in &discovery.sources {
        write!(out, "\n{BOLD}{}{BOLD:#}  {}", source.source, source.place)?;
        if let Some(trouble) = &source.trouble {
            write!(out, ": {WARNING}{trouble}{WARNING:#}")?;
        }
        writeln!(out)?;
        for refused in &source.refused {
            writeln!(out, "  {WARNING}{refused}{WARNING:#}")?;
        }
    }
    Ok(())
}

fn write_reasons(
    out: &mut dyn Write,
    title: &str,
    rows: impl ExactSizeIterator<Item = [Cell; 3]>,
) -> io::Result<()> {
    if rows.len() == 0 {
        return Ok(());
    }
    writeln!(out, "\n{BOLD}{title}{BOLD:#}")?;
    let mut table = Table::new([("", Align::Left); 3]);
    rows.for_each(|row| table.row(row));
    table.write(out)
}

/// A line of what was counted, without what never happened.
fn write_counts(
    out: &mut dyn Write,
    title: &str,
    counts: &BTreeMap<String, u64>,
    style: anstyle::Style,
) -> io::Result<()> {
    let counts: Vec<_> = counts.iter().filter(|(_, count)| **count > 0).collect();
    if counts.is_empty() {
        return Ok(());
    }
    write!(out, "\n{BOLD}{title}{BOLD:#}  ")?;
    for (at, (name, count)) in counts.into_iter().enumerate() {
        let comma = if at == 0 { "" } else { ", " };
        write!(
            out,
            "{comma}{style}{}{style:#} {count}",
            name.replace('_', " ")
        )?;
    }
    writeln!(out)
}

fn state(state: &str) -> Cell {
    if state == "running" {
        state.into()
    } else {
        Cell::styled(state, WARNING)
    }
}

fn warned(count: u64) -> Cell {
    if count == 0 {
        count.into()
    } else {
        Cell::styled(count.to_string(), WARNING)
    }
}

fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The two largest units of a time.
fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min {} s", seconds % 60),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use imds_user::control::discovery::{ClosedStatus, SourceStatus, WaitingStatus};
    use imds_user::control::{
        CgroupStatus, CredentialStatus, DaemonStatus, ResponderStatus, UplinkStatus,
    };

    use super::*;

    fn port(name: &str, http_tokens: &str, requests: u64, no_token_rejected: u64) -> PortStatus {
        PortStatus {
            port: format!("veth-{name}"),
            ifindex: 7,
            slot: Some(1),
            state: "running".into(),
            instance_id: "i-0123456789abcdef0".into(),
            name: name.into(),
            http_tokens: http_tokens.into(),
            requests,
            tokens_issued: 3,
            no_token: 0,
            no_token_rejected,
            throttled: 0,
            connections: 1,
            credentials: None,
        }
    }

    fn with_credentials(
        mut port: PortStatus,
        state: &str,
        expires_unix_seconds: Option<u64>,
        last_error: Option<&str>,
    ) -> PortStatus {
        port.credentials = Some(CredentialStatus {
            role: "web".into(),
            kind: "credential-process".into(),
            source: Some("command /bin/credentials".into()),
            state: state.into(),
            expires_unix_seconds,
            last_error: last_error.map(str::to_owned),
        });
        port
    }

    fn uplink(interface: &str, why_not: Option<&str>) -> UplinkStatus {
        UplinkStatus {
            interface: interface.into(),
            is_guarded: why_not.is_none(),
            why_not: why_not.map(str::to_owned),
        }
    }

    fn report() -> StatusReport {
        StatusReport {
            daemon: DaemonStatus {
                pid: 4711,
                version: "0.1.0".into(),
                started_unix_seconds: 1_700_000_000,
                config: "/etc/imds.toml".into(),
            },
            responder: ResponderStatus {
                pid: Some(4712),
                restarts: 0,
                failed_starts: 0,
                workers: 2,
            },
            ports: vec![
                port("web", "required", 1204, 1),
                port("legacy", "optional", 9, 0),
            ],
            guard: GuardStatus {
                is_on: true,
                uplinks: vec![uplink("eth0", None), uplink("eth1", None)],
                dropped: BTreeMap::new(),
            },
            host_access: HostAccessStatus::default(),
            discovery: DiscoveryStatus::default(),
            drops: BTreeMap::from([("udp".into(), 2), ("fragment".into(), 0)]),
            packets: BTreeMap::from([("arp_answered".into(), 1), ("intercepted".into(), 9999)]),
        }
    }

    fn check(report: &StatusReport, expected: &str) {
        let mut out = Vec::new();
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000 + 3723);
        write_report(&mut out, report, now).unwrap();
        let text = anstream::adapter::strip_str(std::str::from_utf8(&out).unwrap()).to_string();
        assert_eq!(text, expected);
    }

    #[test]
    fn people_see_a_table() {
        check(
            &report(),
            "\
Daemon     running for 1 h 2 min, process 4711, version 0.1.0, /etc/imds.toml
Responder  running, process 4712, 2 workers
Guard      on eth0, eth1

  NAME    PORT         INSTANCE ID          STATE    TOKENS    REQUESTS  ISSUED  NO TOKEN  REFUSED  THROTTLED  OPEN
  web     veth-web     i-0123456789abcdef0  running  required      1204       3         0        1          0     1
  legacy  veth-legacy  i-0123456789abcdef0  running  optional         9       3         0        0          0     1

Packets  arp answered 1, intercepted 9999

Dropped  udp 2
",
        );
    }

    #[test]
    fn who_waits_and_what_is_closed_is_told_with_what_to_do() {
        let mut report = report();
        report.ports.clear();
        report.packets.clear();
        report.drops.clear();
        let closed = |port: &str, why: &str, admit: Option<&str>| ClosedStatus {
            port: port.into(),
            ifindex: 7,
            why: why.into(),
            admit: admit.map(Into::into),
        };
        report.discovery = DiscoveryStatus {
            waiting: vec![WaitingStatus {
                name: "web".into(),
                port: "vnet0".into(),
                why: "interface vnet0 is not there (`vnet1` is)".into(),
            }],
            closed: vec![
                closed(
                    "vnet3",
                    "who is behind it is not known",
                    Some("imds admit --port vnet3"),
                ),
                closed("veth1", "container redis: imds.id: no", None),
            ],
            sources: vec![SourceStatus {
                source: "docker".into(),
                place: "/run/docker.sock".into(),
                trouble: Some("docker went away".into()),
                refused: vec!["container db: it has the host's own network".into()],
            }],
            lost_notifications: 0,
        };
        check(
            &report,
            "\
Daemon     running for 1 h 2 min, process 4711, version 0.1.0, /etc/imds.toml
Responder  running, process 4712, 2 workers
Guard      on eth0, eth1

  no ports

Waiting
  web  vnet0  interface vnet0 is not there (`vnet1` is)

Closed
  vnet3  who is behind it is not known  imds admit --port vnet3
  veth1  container redis: imds.id: no

docker  /run/docker.sock: docker went away
  container db: it has the host's own network
",
        );
    }

    #[test]
    fn what_is_not_there_is_not_shown() {
        let mut report = report();
        report.responder = ResponderStatus {
            pid: None,
            restarts: 1,
            failed_starts: 0,
            workers: 2,
        };
        report.ports.clear();
        report.guard.uplinks.clear();
        report.drops.clear();
        report.packets.clear();
        check(
            &report,
            "\
Daemon     running for 1 h 2 min, process 4711, version 0.1.0, /etc/imds.toml
Responder  being started again, 1 restart
Guard      no uplink

  no ports
",
        );
    }

    #[test]
    fn troubled_credentials_are_shown() {
        let mut report = report();
        report.drops.clear();
        report.packets.clear();
        let later = Some(1_700_000_000 + 3723 + 600);
        let error = Some("it ended with exit code 3");
        let ports = ["web", "db", "late", "gone"].map(|name| port(name, "required", 0, 0));
        let [web, db, late, gone] = ports;
        report.ports = vec![
            with_credentials(web, "fresh", later, None),
            with_credentials(db, "stale", later, error),
            with_credentials(late, "pending", None, None),
            with_credentials(gone, "failed", None, error),
        ];
        let mut out = Vec::new();
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000 + 3723);
        write_report(&mut out, &report, now).unwrap();
        let text = anstream::adapter::strip_str(std::str::from_utf8(&out).unwrap()).to_string();
        let (_, shown) = text
            .split_once("\nCredentials\n")
            .expect("a part of its own");
        let expected =
            "  db: stale, good for 10 min 0 s; command /bin/credentials: it ended with exit code 3
  late: pending; command /bin/credentials: no answer yet
  gone: failed; command /bin/credentials: it ended with exit code 3
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn the_guard_is_a_line_and_what_is_not_guarded_another() {
        for (is_on, uplinks, dropped, expected) in [
            (
                true,
                vec![uplink("eth0", None), uplink("eth1", Some("it is gone"))],
                BTreeMap::from([("tap7".to_owned(), 2), ("veth-late".to_owned(), 30)]),
                "Guard      on eth0, dropped from tap7 2, veth-late 30\n           not on eth1: it is gone\n",
            ),
            (
                false,
                vec![],
                BTreeMap::new(),
                "Guard      off: guests that are not served may reach this host's own metadata service\n",
            ),
        ] {
            let mut out = Vec::new();
            let guard = GuardStatus {
                is_on,
                uplinks,
                dropped,
            };
            write_guard(&mut out, &guard).unwrap();
            let text = anstream::adapter::strip_str(std::str::from_utf8(&out).unwrap()).to_string();
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn who_of_the_host_may_is_a_line_where_not_all_may() {
        let cgroup = |cgroup: &str, is_there| CgroupStatus {
            cgroup: cgroup.into(),
            is_there,
        };
        for (is_restricted, cgroups, refused, expected) in [
            (false, vec![], vec![], ""),
            (
                true,
                vec![],
                vec![],
                "Host       no process may call its own metadata service\n",
            ),
            (
                true,
                vec![cgroup("a.slice", true), cgroup("b.slice", false)],
                vec![("/", 2), ("user.slice", 30)],
                "Host       may call its own metadata service: a.slice, b.slice (not there); refused to / 2, user.slice 30\n",
            ),
        ] {
            let mut out = Vec::new();
            let refused = refused.into_iter();
            let access = HostAccessStatus {
                is_restricted,
                cgroups,
                refused: refused
                    .map(|(name, count)| (name.to_owned(), count))
                    .collect(),
            };
            write_host_access(&mut out, &access).unwrap();
            let text = anstream::adapter::strip_str(std::str::from_utf8(&out).unwrap()).to_string();
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn ages() {
        for (seconds, expected) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min 0 s"),
            (3599, "59 min 59 s"),
            (3600, "1 h 0 min"),
            (86_399, "23 h 59 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(age(seconds), expected);
        }
    }
}
