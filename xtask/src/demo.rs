//! `cargo xtask demo`: sets up, starts the lab and plays what a guest sees, with real output.
//!
//! Every line shown is run as it stands by a shell that knows `imds`, so it can be typed again; and every output is
//! checked, so the demo cannot show something that is not so. Requests are made inside the lab's guests only.

use std::{
    env,
    ffi::OsString,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, bail, ensure};

use crate::{
    command, integration_test, report,
    setup::{self, Extent},
    test, workspace,
};

const METADATA: &str = "http://169.254.169.254/latest/meta-data";
const TOKEN_URL: &str = "http://169.254.169.254/latest/api/token";
const WITH_TOKEN: &str = r#"-H "X-aws-ec2-metadata-token: $TOKEN""#;

/// Set everything up, start the lab and show what its guests get
///
/// Needs root. The lab is a host of its own in a network namespace: the machine's own network is not touched, and
/// nothing is left behind.
#[derive(Debug, clap::Args)]
pub(crate) struct Demo {}

impl Demo {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        setup::ensure(Extent::Run)?;
        integration_test::need_root()?;
        report::outcome("building", "imds");
        test::build()?;
        let mut lab = Lab::up(Shell::new()?)?;
        play(&mut lab.shell)?;
        lab.down()?;
        report::line(format_args!(
            "\nEach guest got its own metadata. To look around in the lab: {} lab up",
            workspace::imds()?.display()
        ));
        Ok(ExitCode::SUCCESS)
    }
}

fn play(shell: &mut Shell) -> anyhow::Result<()> {
    shell.say("Guest `web` requires tokens, so a plain request (IMDSv1) is refused:");
    let refused = shell.run(&format!("imds lab exec web -- curl -si {METADATA}/"))?;
    ensure!(
        status(&refused) == Some(401),
        "the plain request was not refused with 401"
    );

    shell.say("With a token (IMDSv2) it is answered:");
    shell.assign(
        "TOKEN",
        &format!(
            r#"imds lab exec web -- curl -s -X PUT {TOKEN_URL} -H "X-aws-ec2-metadata-token-ttl-seconds: 21600""#
        ),
    )?;
    let listing = shell.run(&format!(
        "imds lab exec web -- curl -s {WITH_TOKEN} {METADATA}/"
    ))?;
    ensure!(
        listing.lines().any(|category| category == "instance-id"),
        "the listing has no instance-id"
    );
    let web = shell.run(&format!(
        "imds lab exec web -- curl -s {WITH_TOKEN} {METADATA}/instance-id"
    ))?;

    shell.say("Guest `db` has the same IP address, and is somebody else:");
    let web_address = shell.run("imds lab exec web -- ip -4 -oneline address show scope global")?;
    let db_address = shell.run("imds lab exec db -- ip -4 -oneline address show scope global")?;
    ensure!(
        address(&web_address).is_some() && address(&web_address) == address(&db_address),
        "`web` and `db` do not have the same address"
    );
    shell.assign(
        "TOKEN",
        &format!(
            r#"imds lab exec db -- curl -s -X PUT {TOKEN_URL} -H "X-aws-ec2-metadata-token-ttl-seconds: 21600""#
        ),
    )?;
    let db = shell.run(&format!(
        "imds lab exec db -- curl -s {WITH_TOKEN} {METADATA}/instance-id"
    ))?;

    shell.say("Guest `legacy`, behind a bridge, may do without tokens:");
    let legacy = shell.run(&format!(
        "imds lab exec legacy -- curl -s {METADATA}/instance-id"
    ))?;
    all_different(&[&web, &db, &legacy])
}

/// Fails unless each is an instance id, and no two are the same.
fn all_different(ids: &[&str]) -> anyhow::Result<()> {
    for (index, id) in ids.iter().enumerate() {
        ensure!(id.starts_with("i-"), "{id:?} is not an instance id");
        ensure!(
            !ids[..index].contains(id),
            "two guests got the instance id {id}"
        );
    }
    Ok(())
}

/// The status of an answer that begins with its head.
fn status(answer: &str) -> Option<u16> {
    answer.split_whitespace().nth(1)?.parse().ok()
}

/// The address in a line of `ip -oneline address`, without its prefix length.
fn address(line: &str) -> Option<&str> {
    let (_, after) = line.split_once(" inet ")?;
    after.split(['/', ' ']).next()
}

/// Runs the transcript's lines.
struct Shell {
    path: OsString,
    variables: Vec<(&'static str, String)>,
}

impl Shell {
    fn new() -> anyhow::Result<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let programs = [workspace::profile_dir()?];
        let path = env::join_paths(programs.into_iter().chain(env::split_paths(&path)))?;
        Ok(Self {
            path,
            variables: Vec::new(),
        })
    }

    fn say(&self, text: &str) {
        report::line(format_args!("\n# {text}"));
    }

    /// Shows the line, runs it, shows what it printed and returns that, without the line ends after it.
    fn run(&self, line: &str) -> anyhow::Result<String> {
        report::line(format_args!("$ {line}"));
        let said = self.output(line)?;
        report::line(&said);
        Ok(said)
    }

    /// Keeps a line's output for later lines, as `VARIABLE=$(line)` does.
    fn assign(&mut self, variable: &'static str, line: &str) -> anyhow::Result<()> {
        report::line(format_args!("$ {variable}=$({line})"));
        let value = self.output(line)?;
        ensure!(!value.is_empty(), "`{line}` printed nothing");
        self.variables.retain(|(name, _)| *name != variable);
        self.variables.push((variable, value));
        Ok(())
    }

    fn output(&self, line: &str) -> anyhow::Result<String> {
        let output = self
            .command(line)
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("start `{line}`"))?;
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("`{line}` ended with {}\n{said}", output.status);
        }
        Ok(said.replace('\r', "").trim_end().to_owned())
    }

    /// Shows the line and runs it on our own streams, which what it leaves running may keep.
    fn run_through(&self, line: &str) -> anyhow::Result<()> {
        report::line(format_args!("$ {line}"));
        command::run(&mut self.command(line))
    }

    fn command(&self, line: &str) -> Command {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", line])
            .stdin(Stdio::null())
            .env("PATH", &self.path)
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        shell
    }
}

/// The lab, which is taken down also when the demo fails.
struct Lab {
    shell: Shell,
    is_up: bool,
}

impl Lab {
    fn up(shell: Shell) -> anyhow::Result<Self> {
        report::line("");
        // A lab that was up before is somebody's: that `up` fails then, and nothing is taken down.
        shell.run_through("imds lab up")?;
        Ok(Self { shell, is_up: true })
    }

    fn down(mut self) -> anyhow::Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> anyhow::Result<()> {
        if !std::mem::replace(&mut self.is_up, false) {
            return Ok(());
        }
        report::line("");
        self.shell.run_through("imds lab down")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(cause) = self.take_down() {
            report::error(&cause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_the_second_word() {
        assert_eq!(
            status("HTTP/1.1 401 Unauthorized\nServer: EC2ws\n"),
            Some(401)
        );
        assert_eq!(status(""), None);
        assert_eq!(status("curl: (7) refused"), None);
    }

    #[test]
    fn the_address_is_read_without_its_prefix_length() {
        let line =
            "2: eth0    inet 10.0.0.10/24 brd 10.0.0.255 scope global eth0\\ valid_lft forever";
        assert_eq!(address(line), Some("10.0.0.10"));
        assert_eq!(address(""), None);
    }

    #[test]
    fn ids_must_be_ids_and_differ() {
        assert!(all_different(&["i-1", "i-2", "i-3"]).is_ok());
        assert!(all_different(&["i-1", "i-2", "i-1"]).is_err());
        assert!(all_different(&["i-1", ""]).is_err());
    }
}
