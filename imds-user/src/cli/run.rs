//! `imds run`: the daemon.

use std::{io::Write, net::SocketAddr, path::PathBuf, process::ExitCode, str::FromStr};

use anyhow::Context;
use clap::Args;
use imds_user::{
    config::ground::ImageAlias,
    daemon::{self, ApiPlace, LaunchMode, Options, USUAL_ADDRESS},
    dataplane::load::KernelLog,
};

use super::STATE_DIR;

const EXAMPLES: &str = "\
Examples:
  imds run                                               everything comes by command: imds instance add
  imds run --config /etc/imds.toml
  imds run --config lab.toml --state-dir /run/imds-lab   a second daemon, in a namespace of its own
  imds run --config /etc/imds.toml --api none            without a port for AWS's tools (imds aws-env)
  imds run --image ami-0123456789abcdef0                 launch that one too, with this host's programs
  kill -HUP $(imds status --json | jq .daemon.pid)       read the configuration again

Set RUST_LOG=debug for more in the log.";

/// Serve this host's guests until SIGTERM; SIGHUP reads the configuration again
///
/// The configuration is checked as a whole before anything is touched. When the daemon stops, however it stops, guests stay
/// served with what was last true, and the next daemon, of this version or another, goes on where it ended without a lost
/// request. Its programs stay on the ports and uplinks, so that no guest reaches the metadata service that this host may have
/// itself (a cloud host). `imds down` ends it all.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Run {
    /// The configuration file (TOML; see docs/configuration.md); without one what `imds apply`, `imds instance add` and calls of
    /// the API made: nothing at first
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// Where keys and the control socket live; one daemon per directory
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    state_dir: PathBuf,
    /// Threads that answer guests [default: one for each CPU, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: Option<u16>,
    /// Do not start, or take over a new configuration, while an interface that it names is not there
    #[arg(long)]
    strict: bool,
    /// Where AWS's tools reach the control API: an address of this machine alone, unless there is a certificate; `none` for
    /// nowhere [default: 127.0.0.1:4566, or another port if that is taken]
    #[arg(long, value_name = "ADDRESS:PORT")]
    api: Option<Api>,
    /// The certificate of the control API (PEM, the server's own first), to offer it beyond this machine
    #[arg(long, value_name = "FILE", requires_all = ["api", "api_key"])]
    api_certificate: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "api_certificate")]
    api_key: Option<PathBuf>,
    /// What RunInstances does for an instance whose port it does not name
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Launcher::Auto)]
    launcher: Launcher,
    /// Another id of the image of this host's programs (imds-guest), for commands that were written for EC2; may be repeated
    #[arg(long = "image", value_name = "AMI[=NAME]")]
    images: Vec<ImageAlias>,
    /// Room in bytes for what the kernel tells of interfaces
    #[arg(long, value_name = "BYTES", hide = true)]
    notification_bytes: Option<usize>,
    /// Log every packet that the programs in the kernel drop (slow; off costs nothing)
    #[arg(long)]
    log_packets: bool,
}

/// Where the control API is to be, as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    At(SocketAddr),
    Nowhere,
}

impl FromStr for Api {
    type Err = String;

    fn from_str(typed: &str) -> Result<Self, Self::Err> {
        if typed == "none" {
            return Ok(Self::Nowhere);
        }
        let address = typed.parse().map(Self::At);
        address.map_err(|_| {
            format!("an address and a port, such as {USUAL_ADDRESS} or [::1]:4566, or `none`")
        })
    }
}

/// Whether RunInstances has guests launched.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Launcher {
    /// By `imds launcher` if one was ever started with this state directory; else the instance is a record without a guest
    Auto,
    /// By `imds launcher`; without one the call is refused
    Required,
    /// Never: every instance is a record
    Never,
}

impl From<Launcher> for LaunchMode {
    fn from(launcher: Launcher) -> Self {
        match launcher {
            Launcher::Auto => Self::Auto,
            Launcher::Required => Self::Required,
            Launcher::Never => Self::Never,
        }
    }
}

impl Run {
    pub(crate) fn run(self, _out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        super::log_to_stderr();
        let kernel_log = if self.log_packets {
            KernelLog::Debug
        } else {
            KernelLog::Off
        };
        let Self {
            config,
            state_dir,
            workers,
            strict: is_strict,
            notification_bytes,
            api,
            api_certificate,
            api_key,
            launcher,
            images,
            ..
        } = self;
        let api = match api {
            None => ApiPlace::Usual,
            Some(Api::Nowhere) => ApiPlace::Nowhere,
            Some(Api::At(address)) => ApiPlace::At {
                address,
                tls: api_certificate.zip(api_key),
            },
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime")?;
        runtime.block_on(daemon::run(Options {
            config,
            state_dir,
            workers,
            kernel_log,
            is_strict,
            notification_bytes,
            api,
            launch: launcher.into(),
            images,
        }))?;
        Ok(ExitCode::SUCCESS)
    }
}
