//! `imds event`: what EC2 would tell an instance.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::builder::BoolishValueParser;
use imds_user::control::{self, Done};
use imds_user::instance::details::{
    MaintenanceCode, MaintenanceState, SpotAction, TargetLifecycleState,
};
use imds_user::life::{self, MaintenanceWindow, When};

use super::words::Words;
use super::{BOLD, EXIT_FINE, GOOD, StateDir, WARNING};

const EXAMPLES: &str = "\
Examples:
  imds event web spot-interruption                        two minutes' notice, from now
  imds event web spot-interruption stop --in 30s          half a minute's notice
  imds event web spot-interruption --at 2026-01-01T00:00:00Z --after 10m
  imds event web rebalance --after 1m                     a recommendation, in a minute
  imds event web maintenance system-reboot --not-before 2h --deadline 7d
  imds event web maintenance --complete instance-event-0d59937288b749b32
  imds event web autoscaling Terminated
  imds event web clear                                    as if nothing had been

WHEN is a time from now (90s, 1h30m, 2d) or a time in UTC (2026-01-01T00:00:00Z). An instance is
named by its name, its id, or how its id alone begins. The command returns when the guest's next
request sees it. `imds lab event …` is the same for a lab.";

/// Tell an instance what EC2 would: Spot interruptions, rebalancing, maintenance, Auto Scaling
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Event {
    #[command(flatten)]
    what: What,

    #[command(flatten)]
    state_dir: StateDir,
}

impl Event {
    pub(super) fn run(self, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        self.what.run(&self.state_dir.state_dir, out)
    }
}

/// Everything but which daemon it is about.
#[derive(Debug, clap::Args)]
#[command(
    disable_help_subcommand = true,
    subcommand_value_name = "KIND",
    subcommand_help_heading = "Kinds"
)]
pub(super) struct What {
    /// Which instance
    instance: String,

    /// Print JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    kind: Kind,
}

#[derive(Debug, clap::Subcommand)]
enum Kind {
    /// The interruption of a Spot Instance: spot/instance-action, spot/termination-time
    SpotInterruption(SpotInterruption),
    /// Shorthand for `spot-interruption hibernate`
    Hibernate(Hibernate),
    /// A rebalance recommendation: events/recommendations/rebalance
    Rebalance(Rebalance),
    /// Scheduled maintenance, and its end: events/maintenance/scheduled and history
    Maintenance(Maintenance),
    /// The state that Auto Scaling takes it to: autoscaling/target-lifecycle-state
    Autoscaling(Autoscaling),
    /// Whether hibernation is configured: hibernation/configured
    Hibernation(Hibernation),
    /// Take back what was told or planned, maintenance with its history
    Clear(Clear),
}

#[derive(Debug, clap::Args)]
struct After {
    /// Tell it only then
    #[arg(long, value_name = "WHEN")]
    after: Option<When>,
}

#[derive(Debug, clap::Args)]
struct Force {
    /// Also if it is no Spot Instance
    #[arg(long)]
    force: bool,
}

#[derive(Debug, clap::Args)]
struct SpotInterruption {
    /// What will happen to it
    #[arg(default_value = "terminate", value_parser = SPOT_ACTIONS)]
    action: SpotAction,

    #[command(flatten)]
    time: InterruptionTime,

    #[command(flatten)]
    after: After,

    #[command(flatten)]
    force: Force,
}

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct InterruptionTime {
    /// How long after the notice it happens [default: 2m; 0s for hibernate, which begins at once]
    #[arg(long = "in", value_name = "DURATION")]
    within: Option<When>,

    /// When it happens
    #[arg(long, value_name = "TIME")]
    at: Option<When>,
}

impl InterruptionTime {
    /// EC2 announces an interruption two minutes ahead, except for hibernation (EC2 User Guide, "Spot Instance
    /// interruption notices").
    fn of(&self, action: SpotAction) -> When {
        self.within.or(self.at).unwrap_or(match action {
            SpotAction::Terminate | SpotAction::Stop => When::In(120),
            SpotAction::Hibernate => When::In(0),
        })
    }
}

#[derive(Debug, clap::Args)]
struct Hibernate {
    #[command(flatten)]
    time: InterruptionTime,

    #[command(flatten)]
    after: After,

    #[command(flatten)]
    force: Force,
}

#[derive(Debug, clap::Args)]
struct Rebalance {
    #[command(flatten)]
    after: After,

    #[command(flatten)]
    force: Force,
}

#[derive(Debug, clap::Args)]
struct Maintenance {
    /// What kind of maintenance to schedule
    #[arg(required_unless_present_any = ["complete", "cancel"], value_parser = MAINTENANCE_CODES)]
    code: Option<MaintenanceCode>,

    /// The earliest start
    #[arg(long, value_name = "WHEN", default_value = "1h", conflicts_with_all = ENDS)]
    not_before: When,

    /// The latest end; a duration counts from the start
    #[arg(long, value_name = "WHEN", default_value = "2h", conflicts_with_all = ENDS)]
    not_after: When,

    /// Until when a reboot may be put off; a duration counts from the start
    #[arg(long = "deadline", alias = "not-before-deadline", value_name = "WHEN", conflicts_with_all = ENDS)]
    deadline: Option<When>,

    /// What people are told [default: EC2's text for that kind]
    #[arg(long, value_name = "TEXT", conflicts_with_all = ENDS)]
    description: Option<String>,

    /// It was done: move it into the history
    #[arg(long, value_name = "EVENT-ID", conflicts_with_all = ["code", "cancel"])]
    complete: Option<String>,

    /// It is called off: move it into the history
    #[arg(long, value_name = "EVENT-ID", conflicts_with = "code")]
    cancel: Option<String>,

    #[command(flatten)]
    after: After,
}

/// With these nothing is scheduled.
const ENDS: [&str; 2] = ["complete", "cancel"];

#[derive(Debug, clap::Args)]
struct Autoscaling {
    /// The state
    #[arg(value_parser = LIFECYCLE_STATES)]
    state: TargetLifecycleState,

    #[command(flatten)]
    after: After,
}

#[derive(Debug, clap::Args)]
struct Hibernation {
    /// Whether it is configured
    #[arg(value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    configured: bool,

    #[command(flatten)]
    after: After,
}

#[derive(Debug, clap::Args)]
struct Clear {
    /// Only these kinds
    #[arg(value_name = "KIND", value_parser = KINDS)]
    kinds: Vec<life::Kind>,
}

const SPOT_ACTIONS: Words<SpotAction> = Words {
    all: SpotAction::ALL,
    as_str: SpotAction::as_str,
};
const MAINTENANCE_CODES: Words<MaintenanceCode> = Words {
    all: MaintenanceCode::ALL,
    as_str: MaintenanceCode::as_str,
};
const LIFECYCLE_STATES: Words<TargetLifecycleState> = Words {
    all: TargetLifecycleState::ALL,
    as_str: TargetLifecycleState::as_str,
};
const KINDS: Words<life::Kind> = Words {
    all: life::Kind::ALL,
    as_str: life::Kind::as_str,
};

impl What {
    /// Asks the daemon of this state directory.
    pub(super) fn run(self, state_dir: &Path, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let (event, after) = self.kind.into_event();
        let done = control::client::event(state_dir, self.instance, event, after)?;
        write_done(out, &done, self.json)?;
        Ok(ExitCode::from(EXIT_FINE))
    }
}

impl Kind {
    fn into_event(self) -> (life::Event, Option<When>) {
        match self {
            Self::SpotInterruption(SpotInterruption {
                action,
                time,
                after,
                force,
            }) => interruption(action, &time, &after, &force),
            Self::Hibernate(Hibernate { time, after, force }) => {
                interruption(SpotAction::Hibernate, &time, &after, &force)
            }
            Self::Rebalance(Rebalance { after, force }) => {
                (life::Event::Rebalance { force: force.force }, after.after)
            }
            Self::Maintenance(maintenance) => maintenance.into_event(),
            Self::Autoscaling(Autoscaling { state, after }) => {
                (life::Event::Autoscaling { state }, after.after)
            }
            Self::Hibernation(Hibernation { configured, after }) => {
                (life::Event::Hibernation { configured }, after.after)
            }
            Self::Clear(Clear { kinds }) => (life::Event::Clear { kinds }, None),
        }
    }
}

fn interruption(
    action: SpotAction,
    time: &InterruptionTime,
    after: &After,
    force: &Force,
) -> (life::Event, Option<When>) {
    let event = life::Event::SpotInterruption {
        action,
        time: time.of(action),
        force: force.force,
    };
    (event, after.after)
}

impl Maintenance {
    fn into_event(self) -> (life::Event, Option<When>) {
        let over = |event_id, state| life::Event::MaintenanceOver { event_id, state };
        let event = match (self.code, self.complete, self.cancel) {
            (_, Some(event_id), _) => over(event_id, MaintenanceState::Completed),
            (_, _, Some(event_id)) => over(event_id, MaintenanceState::Canceled),
            (code, None, None) => life::Event::Maintenance {
                code: code.expect("clap asks for a kind of maintenance, or for the end of some"),
                window: MaintenanceWindow {
                    not_before: self.not_before,
                    not_after: self.not_after,
                    not_before_deadline: self.deadline,
                },
                description: self.description,
            },
        };
        (event, self.after.after)
    }
}

/// Says what was done, and since when the guest sees it.
pub(super) fn write_done(out: &mut dyn Write, done: &Done, json: bool) -> anyhow::Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut *out, done)?;
        writeln!(out)?;
        return Ok(());
    }
    write!(out, "{BOLD}{}{BOLD:#}  {}", done.instance.name, done.done)?;
    match (&done.in_force, &done.appears) {
        (_, Some(at)) => writeln!(out, "  {WARNING}planned for {at}{WARNING:#}")?,
        (Some(at), None) if done.is_changed => {
            writeln!(out, "  {GOOD}in force since {at}{GOOD:#}")?;
        }
        _ => writeln!(out)?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::{Args, Command, FromArgMatches};

    use super::*;

    fn parse(line: &str) -> Result<(life::Event, Option<When>), String> {
        let command = What::augment_args(Command::new("event").no_binary_name(true));
        let matches = command
            .try_get_matches_from(line.split(' '))
            .map_err(|error| error.to_string())?;
        Ok(What::from_arg_matches(&matches).unwrap().kind.into_event())
    }

    fn check(line: &str, event: life::Event, after: Option<When>) {
        assert_eq!(parse(line).unwrap(), (event, after), "{line}");
    }

    fn check_refused(line: &str, words: &str) {
        let error = parse(line).unwrap_err();
        assert!(error.contains(words), "{line}: {error}");
    }

    fn spot(action: SpotAction, time: When) -> life::Event {
        life::Event::SpotInterruption {
            action,
            time,
            force: false,
        }
    }

    #[test]
    fn interruptions_are_announced_two_minutes_ahead_unless_something_else_is_said() {
        use SpotAction::{Hibernate, Stop, Terminate};
        let at: When = "2026-01-01T00:00:00Z".parse().unwrap();
        check(
            "web spot-interruption",
            spot(Terminate, When::In(120)),
            None,
        );
        check(
            "web spot-interruption stop",
            spot(Stop, When::In(120)),
            None,
        );
        check(
            "web spot-interruption hibernate",
            spot(Hibernate, When::In(0)),
            None,
        );
        check("web hibernate", spot(Hibernate, When::In(0)), None);
        check("web hibernate --in 5s", spot(Hibernate, When::In(5)), None);
        check(
            "web spot-interruption --in 30s --after 1m",
            spot(Terminate, When::In(30)),
            Some(When::In(60)),
        );
        check(
            "web spot-interruption stop --at 2026-01-01T00:00:00Z",
            spot(Stop, at),
            None,
        );
        check_refused(
            "web spot-interruption --in 30s --at 2026-01-01T00:00:00Z",
            "cannot be used with",
        );
    }

    #[test]
    fn maintenance_is_scheduled_or_ended() {
        use MaintenanceCode::SystemReboot;
        let window = |not_before, not_after, not_before_deadline| MaintenanceWindow {
            not_before,
            not_after,
            not_before_deadline,
        };
        let scheduled = |window| life::Event::Maintenance {
            code: SystemReboot,
            window,
            description: None,
        };
        check(
            "web maintenance system-reboot",
            scheduled(window(When::In(3600), When::In(7200), None)),
            None,
        );
        check(
            "web maintenance system-reboot --not-before 2h --not-after 30m --deadline 7d",
            scheduled(window(
                When::In(7200),
                When::In(1800),
                Some(When::In(604_800)),
            )),
            None,
        );
        let over = |state| life::Event::MaintenanceOver {
            event_id: "instance-event-0".into(),
            state,
        };
        check(
            "web maintenance --complete instance-event-0",
            over(MaintenanceState::Completed),
            None,
        );
        check(
            "web maintenance --cancel instance-event-0 --after 5s",
            over(MaintenanceState::Canceled),
            Some(When::In(5)),
        );
        check_refused("web maintenance", "required");
        for line in [
            "web maintenance system-reboot --complete instance-event-0",
            "web maintenance --complete instance-event-0 --cancel instance-event-0",
            "web maintenance --complete instance-event-0 --not-before 1h",
        ] {
            check_refused(line, "cannot be used with");
        }
    }

    #[test]
    fn the_other_kinds() {
        check(
            "web rebalance --force",
            life::Event::Rebalance { force: true },
            None,
        );
        check(
            "web autoscaling Warmed:Stopped",
            life::Event::Autoscaling {
                state: TargetLifecycleState::WarmedStopped,
            },
            None,
        );
        check(
            "web hibernation true",
            life::Event::Hibernation { configured: true },
            None,
        );
        check("web clear", life::Event::Clear { kinds: vec![] }, None);
        check(
            "web clear rebalance maintenance",
            life::Event::Clear {
                kinds: vec![life::Kind::Rebalance, life::Kind::Maintenance],
            },
            None,
        );
    }

    #[test]
    fn a_wrong_word_is_answered_with_the_right_one() {
        for (line, meant) in [
            (
                "web spot-interruption terminat",
                "did you mean `terminate`?",
            ),
            (
                "web maintenance systemreboot",
                "did you mean `system-reboot`?",
            ),
            ("web autoscaling in-service", "did you mean `InService`?"),
            (
                "web autoscaling warmed:runing",
                "did you mean `Warmed:Running`?",
            ),
            ("web clear rebalence", "did you mean `rebalance`?"),
            ("web rebalanse", "'rebalance'"),
            ("web spot-interruption --in 30", "`30s`"),
            (
                "web spot-interruption --at tomorrow",
                "2026-01-31T12:00:00Z",
            ),
            (
                "web spot-interruption xyz",
                "write one of terminate, stop, hibernate",
            ),
        ] {
            check_refused(line, meant);
        }
    }

    #[test]
    fn people_read_what_was_done_and_since_when() {
        let instance: serde_json::Value = serde_json::json!({
            "name": "web", "instance_id": "i-0123456789abcdef0", "port": "vnet0", "state": "running",
            "instance_type": "t3.micro", "life_cycle": "spot", "launched": "2026-01-01T00:00:00Z",
            "published": null, "private_ipv4": null, "public_ipv4": null, "security_groups": [], "tags": {},
            "role": null,
            "user_data": {"bytes": null, "is_pending": false, "configured_bytes": null},
            "notices": {"spot_interruption": null, "rebalance": null, "maintenance": [],
                        "target_lifecycle_state": null, "hibernation_configured": null},
            "planned": [],
        });
        let at = || Some("2026-01-01T00:00:00.123Z".to_owned());
        for (is_changed, in_force, appears, expected) in [
            (
                true,
                at(),
                None,
                "web  stopped  in force since 2026-01-01T00:00:00.123Z\n",
            ),
            (false, at(), None, "web  stopped\n"),
            (
                true,
                None,
                at(),
                "web  stopped  planned for 2026-01-01T00:00:00.123Z\n",
            ),
        ] {
            let done = Done {
                done: "stopped".into(),
                is_changed,
                in_force,
                appears,
                event_id: None,
                instance: serde_json::from_value(instance.clone()).unwrap(),
            };
            let mut out = Vec::new();
            write_done(&mut out, &done, false).unwrap();
            let text = anstream::adapter::strip_str(std::str::from_utf8(&out).unwrap()).to_string();
            assert_eq!(text, expected);
        }
    }
}
