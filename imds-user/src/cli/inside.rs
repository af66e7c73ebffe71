//! `imds instance exec` and `imds instance console`: into a launched guest, and what it printed.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use imds_user::control::{self, PowerAction};
use imds_user::instance::InstanceId;
use imds_user::launch::{LaunchError, State, client, launchers, record};

use super::failure::Refusal;
use super::{EXIT_USAGE, require_root};

/// A command for a guest.
#[derive(Debug, clap::Args)]
pub(super) struct Exec {
    /// Which instance
    instance: String,

    /// The command and its arguments; its exit code is passed on
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND",
        value_hint = clap::ValueHint::CommandWithArguments
    )]
    command: Vec<OsString>,
}

/// Whose console.
#[derive(Debug, clap::Args)]
pub(super) struct Console {
    /// Which instance
    instance: String,

    /// Go on with what comes, until the instance is terminated
    #[arg(long, short)]
    follow: bool,
}

impl Exec {
    pub(super) fn run(self, state_dir: &Path) -> anyhow::Result<ExitCode> {
        require_root("a command in a guest")?;
        let (state_dir, id) = find(state_dir, &self.instance)?;
        let mut words = self.command.into_iter();
        let program = words.next().context("a command is needed after `--`")?;
        let code = launchers::exec(&state_dir, id, program, words.collect())?;
        Ok(ExitCode::from(code))
    }
}

impl Console {
    pub(super) fn run(self, state_dir: &Path, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        require_root("a guest's console")?;
        let (state_dir, id) = find(state_dir, &self.instance)?;
        let code = launchers::show_console(&state_dir, id, self.follow, out)?;
        Ok(ExitCode::from(code))
    }
}

/// A guest that was launched, for the switch of its instance.
pub(super) struct Launched {
    state_dir: PathBuf,
    id: InstanceId,
}

impl Launched {
    /// The guest of the instance that a text means, if it was launched here by hand.
    pub(super) fn of(state_dir: &Path, text: &str) -> anyhow::Result<Option<Self>> {
        // Without a directory there is no daemon either, and that is for the daemon's client to say.
        let Ok(state_dir) = state_dir.canonicalize() else {
            return Ok(None);
        };
        let guests = record::guests(&state_dir)?;
        if guests.is_empty() {
            return Ok(None);
        }
        let instances = control::client::instances(&state_dir, Some(text.to_owned()))?;
        // What RunInstances launched the daemon has switched.
        let ids = instances
            .iter()
            .filter(|instance| !instance.has_machine)
            .map(|instance| instance.instance_id.parse());
        let id = ids.flatten().find(|id| guests.contains(id));
        Ok(id.map(|id| Self { state_dir, id }))
    }

    /// Has done to the guest what is done to its instance.
    pub(super) fn switch(&self, action: PowerAction) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start a runtime")?;
        let (state_dir, id) = (&*self.state_dir, self.id);
        runtime.block_on(async {
            let is_running = match action {
                PowerAction::Stop => return client::stop(state_dir, id).await,
                PowerAction::Start | PowerAction::Reboot => {
                    matches!(client::state(state_dir, id).await?, State::Running(_))
                }
            };
            if !is_running {
                client::start(state_dir, id).await?;
            } else if action == PowerAction::Reboot {
                client::reboot(state_dir, id).await?;
            }
            Ok(())
        })?;
        Ok(())
    }
}

/// The guest that a text means: by the start of its id, or by what the daemon calls its instance.
fn find(state_dir: &Path, text: &str) -> anyhow::Result<(PathBuf, InstanceId)> {
    let state_dir = state_dir
        .canonicalize()
        .with_context(|| format!("find the state directory {}", state_dir.display()))?;
    let guests = record::guests(&state_dir)?;
    if let Some(id) = meant(&guests, text)? {
        return Ok((state_dir, id));
    }
    let instances = control::client::instances(&state_dir, Some(text.to_owned()))?;
    let id: InstanceId = instances
        .first()
        .context("the daemon knows no such instance")?
        .instance_id
        .parse()?;
    if !guests.contains(&id) {
        return Err(LaunchError::Absent(id).into());
    }
    Ok((state_dir, id))
}

/// The guest whose id begins so, if it is one.
fn meant(guests: &[InstanceId], text: &str) -> Result<Option<InstanceId>, Refusal> {
    if !text.starts_with(InstanceId::PREFIX) {
        return Ok(None);
    }
    let mut meant = guests.iter().filter(|id| id.as_str().starts_with(text));
    match (meant.next(), meant.next()) {
        (Some(one), Some(other)) if one.as_str() != text => Err(Refusal {
            code: EXIT_USAGE,
            text: format!(
                "`{text}` begins several ids, {one} and {other} among them: write more of it"
            ),
        }),
        (one, _) => Ok(one.copied()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_named_by_how_its_id_alone_begins() {
        let ids: Vec<InstanceId> = ["i-0aa00000000000001", "i-0ab00000000000001", "i-0ab00000"]
            .iter()
            .map(|id| id.parse().unwrap())
            .collect();
        let meant = |text: &str| {
            meant(&ids, text)
                .map(|id| id.map(|id| id.to_string()))
                .map_err(|refusal| refusal.code)
        };
        assert_eq!(meant("i-0aa"), Ok(Some(ids[0].to_string())));
        assert_eq!(meant("i-0ab00000000000001"), Ok(Some(ids[1].to_string())));
        assert_eq!(meant("i-0ab"), Err(EXIT_USAGE));
        assert_eq!(meant("i-1"), Ok(None));
        assert_eq!(meant("web"), Ok(None));
    }
}
