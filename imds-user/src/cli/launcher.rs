//! `imds launcher`: launches guests for the daemon.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use imds_user::capabilities;
use imds_user::launch::launchers::{DOCKER_SOCKET, Launchers};
use imds_user::launch::server;
use imds_user::service_manager;
use tokio::signal::unix::{SignalKind, signal};

use super::wait::duration;
use super::{EXIT_FINE, StateDir, require_root};

const EXAMPLES: &str = "\
Examples:
  imds launcher                              beside `imds run`, in the same network namespace
  imds instance exec i-0123456789abcdef0 -- curl -s http://169.254.169.254/
  imds instance console --follow i-0123456789abcdef0

Guests outlive it, and the daemon: the next launcher finds them. A guest is namespaces on this host's kernel, with users
of its own; that keeps honest programs apart. For programs that you would not let onto this host, use a virtual machine.";

/// Launch guests: what RunInstances starts
///
/// It takes orders on a socket in the state directory and remembers nothing. It needs root, and none of its rights is
/// given to a guest.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Launcher {
    /// How long the daemon may take to serve a new guest's port before the launch is given up: 10s, 500ms, 1m
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    patience: Duration,

    /// Where Docker listens, for guests from its images
    #[arg(long, value_name = "FILE", default_value = DOCKER_SOCKET, value_hint = clap::ValueHint::FilePath)]
    docker_socket: PathBuf,

    #[command(flatten)]
    state_dir: StateDir,
}

impl Launcher {
    pub(super) fn run(self, _out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        require_root("launching guests")?;
        // While there is one thread: others inherit it.
        capabilities::keep_needed_to_launch().context("give up the rights that are not needed")?;
        super::log_to_stderr();
        let state_dir = self.state_dir.state_dir;
        std::fs::create_dir_all(&state_dir).context("make the state directory")?;
        let program = PathBuf::from("/proc/self/exe");
        let launcher = Launchers::open(&state_dir, program, self.docker_socket, self.patience)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("start a runtime")?;
        runtime.block_on(async {
            let listener = server::listen(&state_dir).context("listen for orders")?;
            let mut terminate = signal(SignalKind::terminate()).context("listen for signals")?;
            let mut interrupt = signal(SignalKind::interrupt()).context("listen for signals")?;
            service_manager::ready();
            tracing::info!("launching for {}", state_dir.display());
            tokio::select! {
                () = server::serve(listener, launcher) => {}
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            anyhow::Ok(())
        })?;
        Ok(ExitCode::from(EXIT_FINE))
    }
}
