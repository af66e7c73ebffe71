//! `imds lab`: a host with guests to try things on.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use imds_user::instance::UnixSeconds;
use imds_user::lab::inside::{self, Place};
use imds_user::lab::{self, LabError, LabName, LabStatus, Step, Up};

use super::table::{Align, Cell, Table};
use super::{BAD, BOLD, DIM, EXIT_FINE, GOOD, WARNING, require_root};
use super::{event, instance};

const EXAMPLES: &str = "\
Examples:
  imds lab up
  imds lab exec legacy -- curl -s http://169.254.169.254/latest/meta-data/
  imds lab shell web
  imds lab event legacy spot-interruption
  imds lab down";

/// Try it out: a host of its own with three guests, this host's network untouched
///
/// The host is a network namespace with a daemon in it. The guests are web and db (the same IP address, tokens
/// required) and legacy (behind a bridge, tokens optional).
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, disable_help_subcommand = true)]
pub(crate) struct Lab {
    #[command(subcommand)]
    command: LabCommand,

    /// Which lab, for several beside each other
    #[arg(long, global = true, default_value = lab::DEFAULT_NAME)]
    name: LabName,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Build the lab and start its daemon
    Up,
    /// Run a command in a guest
    Exec(Exec),
    /// Open a shell in a guest
    Shell(Shell),
    /// Show the guests and whether the daemon runs
    Status(Status),
    /// Tell a guest what EC2 would, as `imds event`
    Event(event::What),
    /// Show, stop, start or reboot guests' instances, as `imds instance`
    Instance(instance::What),
    /// Stop the daemon and remove everything
    Down,
}

#[derive(Debug, clap::Args)]
struct Exec {
    #[command(flatten)]
    place: PlaceArg,

    /// The command and its arguments; its exit code is passed on
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    #[arg(value_hint = clap::ValueHint::CommandWithArguments)]
    command: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
struct Shell {
    #[command(flatten)]
    place: PlaceArg,
}

#[derive(Debug, clap::Args)]
struct PlaceArg {
    /// Where: a guest, or the host that the daemon runs on
    #[arg(value_name = "GUEST", value_parser = PossibleValuesParser::new(["web", "db", "legacy", "host"]))]
    place: String,
}

#[derive(Debug, clap::Args)]
struct Status {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Lab {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let name = self.name;
        match self.command {
            LabCommand::Up => up(&name, out)?,
            LabCommand::Down => down(&name, out)?,
            LabCommand::Status(Status { json }) => status(&name, json, out)?,
            LabCommand::Event(what) => return what.run(&name.state_dir(), out),
            LabCommand::Instance(what) => return what.run(&name.state_dir(), out),
            LabCommand::Shell(Shell { place }) => {
                require_root("a shell in a guest")?;
                return Err(inside::shell(&name, place.parse(), env::var_os("SHELL")).into());
            }
            LabCommand::Exec(Exec { place, command }) => {
                require_root("a command in a guest")?;
                let mut words = command.into_iter();
                let program = words.next().context("a command is needed after `--`")?;
                return Err(inside::exec(&name, place.parse(), program, words.collect()).into());
            }
        }
        Ok(ExitCode::from(EXIT_FINE))
    }
}

impl PlaceArg {
    fn parse(&self) -> Place {
        self.place.parse().map_or(Place::Host, Place::Guest)
    }
}

fn up(name: &LabName, out: &mut dyn Write) -> anyhow::Result<()> {
    require_root("the lab")?;
    let program = env::current_exe().context("find this program's file")?;
    let progress = |step| {
        // A lab is no worse for a line that nobody reads.
        writeln!(anstream::stderr(), "{DIM}{}{DIM:#}", step_text(step)).ok();
    };
    let outcome = block_on(lab::up(name, &program, now(), progress))??;
    let status = lab::status(name)?;
    match outcome {
        Up::Made => writeln!(
            out,
            "{GOOD}The lab is up:{GOOD:#} a host with a daemon and three guests.\n"
        )?,
        Up::Already => writeln!(out, "{GOOD}The lab is up already.{GOOD:#}\n")?,
    }
    write_guests(out, &status)?;
    write_next(out, name, &invocation())?;
    Ok(())
}

fn step_text(step: Step) -> &'static str {
    match step {
        Step::Wiring => "making network namespaces and connecting them",
        Step::Configuring => "writing the configuration",
        Step::Starting => "starting the daemon",
    }
}

fn down(name: &LabName, out: &mut dyn Write) -> anyhow::Result<()> {
    require_root("the lab")?;
    if block_on(lab::down(name))?? {
        writeln!(
            out,
            "{GOOD}The lab is gone{GOOD:#} and has left nothing behind."
        )?;
    } else {
        writeln!(out, "There is no lab to take down.")?;
    }
    Ok(())
}

fn status(name: &LabName, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    require_root("the lab")?;
    let status = lab::status(name)?;
    if json {
        serde_json::to_writer_pretty(&mut *out, &status)?;
        writeln!(out)?;
        return Ok(());
    }
    if !status.is_up {
        return Err(LabError::NotUp { name: name.clone() }.into());
    }
    write_status(out, &status)?;
    Ok(())
}

fn write_status(out: &mut dyn Write, status: &LabStatus) -> io::Result<()> {
    write!(out, "{BOLD}Daemon{BOLD:#}  ")?;
    let state_dir = status.state_dir.display();
    match status.daemon_pid {
        Some(pid) if status.is_ready => writeln!(
            out,
            "{GOOD}running{GOOD:#}, process {pid}, state in {state_dir}\n"
        )?,
        Some(pid) => writeln!(
            out,
            "{WARNING}starting{WARNING:#}, process {pid}, log in {state_dir}/imds.log\n"
        )?,
        None => writeln!(
            out,
            "{BAD}not running{BAD:#}, log in {state_dir}/imds.log\n"
        )?,
    }
    write_guests(out, status)
}

fn write_guests(out: &mut dyn Write, status: &LabStatus) -> io::Result<()> {
    let mut table = Table::new([
        ("GUEST", Align::Left),
        ("INSTANCE ID", Align::Left),
        ("IPV4", Align::Left),
        ("IPV6", Align::Left),
        ("TOKENS", Align::Left),
        ("NETWORK NAMESPACE", Align::Left),
    ]);
    for guest in &status.guests {
        let netns = if guest.is_up {
            (&guest.netns).into()
        } else {
            Cell::styled("missing", WARNING)
        };
        table.row([
            Cell::styled(guest.name.name(), BOLD),
            (&guest.instance_id).into(),
            (&guest.ipv4).into(),
            (&guest.ipv6).into(),
            guest.http_tokens.into(),
            netns,
        ]);
    }
    table.write(out)
}

/// Commands that work as they stand, for somebody who has just seen a lab come up.
fn write_next(out: &mut dyn Write, name: &LabName, imds: &str) -> io::Result<()> {
    let lab = |command: &str, rest: &str| format!("{imds} lab {command}{}{rest}", name.option());
    let url = "http://169.254.169.254/latest";
    writeln!(
        out,
        "\nTokens are optional in {BOLD}legacy{BOLD:#}, and required in {BOLD}web{BOLD:#}:\n"
    )?;
    writeln!(
        out,
        "  {}",
        lab(
            "exec",
            &format!(" legacy -- curl -sw '\\n' {url}/meta-data/instance-id")
        )
    )?;
    writeln!(
        out,
        "  {}",
        lab(
            "exec",
            &format!(" web -- curl -si {url}/meta-data/instance-id")
        )
    )?;
    writeln!(out, "\nWith a token, from a shell in {BOLD}web{BOLD:#}:\n")?;
    writeln!(out, "  {}", lab("shell", " web"))?;
    writeln!(
        out,
        "  TOKEN=$(curl -sX PUT {url}/api/token -H \"X-aws-ec2-metadata-token-ttl-seconds: 21600\")"
    )?;
    writeln!(
        out,
        "  curl -sw '\\n' -H \"X-aws-ec2-metadata-token: $TOKEN\" {url}/meta-data/"
    )?;
    writeln!(out, "  exit")?;
    writeln!(
        out,
        "\nHow the lab and its daemon are doing; and the end:\n"
    )?;
    writeln!(out, "  {}", lab("status", ""))?;
    writeln!(
        out,
        "  {imds} status --state-dir {}",
        name.state_dir().display()
    )?;
    writeln!(out, "  {}", lab("down", ""))
}

fn now() -> UnixSeconds {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    UnixSeconds(since.map_or(0, |since| since.as_secs()))
}

/// How to call this program again: as it was called now.
fn invocation() -> String {
    let program = env::args().next().unwrap_or_else(|| "imds".to_owned());
    let sudo = if env::var_os("SUDO_USER").is_some() {
        "sudo "
    } else {
        ""
    };
    if program.contains([' ', '\'', '"', '$']) {
        format!("{sudo}imds")
    } else {
        format!("{sudo}{program}")
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?;
    Ok(runtime.block_on(work))
}

#[cfg(test)]
mod tests {
    use imds_user::lab::plan::Guest;

    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        anstream::adapter::strip_str(std::str::from_utf8(&out).unwrap()).to_string()
    }

    #[test]
    fn places_are_the_guests_and_the_host() {
        for guest in Guest::ALL {
            assert_eq!(
                PlaceArg {
                    place: guest.name().into()
                }
                .parse(),
                Place::Guest(guest)
            );
        }
        assert_eq!(
            PlaceArg {
                place: "host".into()
            }
            .parse(),
            Place::Host
        );
    }

    #[test]
    fn what_to_type_next_is_about_this_lab() {
        let name: LabName = "other".parse().unwrap();
        let text = text(|out| write_next(out, &name, "sudo ./imds"));
        let commands: Vec<_> = text
            .lines()
            .filter(|line| line.contains("./imds"))
            .collect();
        assert_eq!(
            commands,
            [
                "  sudo ./imds lab exec --name other legacy -- curl -sw '\\n' \
                 http://169.254.169.254/latest/meta-data/instance-id",
                "  sudo ./imds lab exec --name other web -- curl -si http://169.254.169.254/latest/meta-data/instance-id",
                "  sudo ./imds lab shell --name other web",
                "  sudo ./imds lab status --name other",
                "  sudo ./imds status --state-dir /run/imds-other",
                "  sudo ./imds lab down --name other",
            ]
        );
    }

    #[test]
    fn status_says_what_is_missing() {
        let name: LabName = "no-such-lab".parse().unwrap();
        let status = lab::status(&name).unwrap();
        let text = text(|out| write_status(out, &status));
        assert!(
            text.starts_with("Daemon  not running, log in /run/imds-no-such-lab/imds.log\n"),
            "{text}"
        );
        assert_eq!(text.matches("missing").count(), 3, "{text}");
    }
}
