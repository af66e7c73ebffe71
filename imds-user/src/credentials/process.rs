//! Runs credential processes: without a shell, in an environment of its own, as the daemon's user, bounded in time and
//! output, and ended with everything that it started when a bound is passed or nobody wants it any more.

use std::{ffi::OsString, io, os::unix::process::ExitStatusExt, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Pid, User, geteuid},
};
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
};
use zeroize::Zeroizing;

use super::source::CredentialProcess;

/// How long a command may take. The AWS CLI has no bound, the SDK for Go a minute. Nobody waits for it: credentials are
/// asked for long before they are needed.
pub(super) const TIME_MAX: Duration = Duration::from_secs(30);
/// The longest output. Session tokens have a few kilobytes at most.
pub(super) const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// Where commands are found if the daemon itself was started without a PATH.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a command gave no output. None of it is from the command: what it says may hold secrets.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProcessError {
    /// It did not start.
    #[error("it cannot be started: {0}")]
    Start(#[source] io::Error),
    /// It could not be read or waited for.
    #[error("it cannot be read: {0}")]
    Read(#[source] io::Error),
    /// It did not end with success.
    #[error("it ended with exit code {0}")]
    Code(i32),
    /// It was killed.
    #[error("it was ended by signal {0}")]
    Signal(i32),
    /// It did not end in time.
    #[error("it was ended, having taken more than {} s", .0.as_secs_f32())]
    Late(Duration),
    /// It printed too much.
    #[error("it was ended, having printed more than {OUTPUT_BYTES_MAX} bytes")]
    TooLong,
}

/// Runs a command to its end and returns what it printed.
///
/// Its standard error goes nowhere. It would help whoever looks for a mistake, but tools print there what they tried,
/// arguments, headers and answers included, and the log is read by more people than the credentials may be.
pub(super) async fn run(
    process: &CredentialProcess,
    time_max: Duration,
) -> Result<Zeroizing<Vec<u8>>, ProcessError> {
    let child = Command::new(&*process.program)
        .args(process.arguments.iter().map(AsRef::<str>::as_ref))
        .env_clear()
        .envs(environment(process))
        .current_dir("/")
        // A group of its own, so that what it starts can be ended with it.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(ProcessError::Start)?;
    let mut running = Running(child);
    match tokio::time::timeout(time_max, running.finish()).await {
        Ok(finished) => finished,
        Err(_) => Err(ProcessError::Late(time_max)),
    }
}

/// PATH, HOME and what is named, as the daemon has them.
fn environment(process: &CredentialProcess) -> Vec<(OsString, OsString)> {
    let own = |name: &str| std::env::var_os(name);
    let mut environment = vec![(
        OsString::from("PATH"),
        own("PATH").unwrap_or_else(|| PATH.into()),
    )];
    if let Some(home) = own("HOME").or_else(home_of_user) {
        environment.push(("HOME".into(), home));
    }
    let named = process.environment.iter();
    environment.extend(named.filter_map(|name| Some((OsString::from(&**name), own(name)?))));
    environment
}

/// A service manager starts system services without HOME.
fn home_of_user() -> Option<OsString> {
    let user = User::from_uid(geteuid()).ok().flatten()?;
    Some(user.dir.into_os_string())
}

/// A command that was started. Dropped before its end, it is killed with its group.
struct Running(Child);

impl Running {
    async fn finish(&mut self) -> Result<Zeroizing<Vec<u8>>, ProcessError> {
        let output = self.read().await?;
        let status = self.0.wait().await.map_err(ProcessError::Read)?;
        match (status.code(), status.signal()) {
            (Some(0), _) => Ok(output),
            (Some(code), _) => Err(ProcessError::Code(code)),
            (None, signal) => Err(ProcessError::Signal(signal.unwrap_or_default())),
        }
    }

    /// Everything that it prints, in a buffer that never moves, so that no copy of a secret is left behind.
    async fn read(&mut self) -> Result<Zeroizing<Vec<u8>>, ProcessError> {
        let mut output = Zeroizing::new(Vec::with_capacity(OUTPUT_BYTES_MAX + 1));
        let stdout = self.0.stdout.take().expect("it was asked for");
        // One byte more than allowed shows that it is too much.
        let mut stdout = stdout.take(OUTPUT_BYTES_MAX as u64 + 1);
        while output.len() < output.capacity() {
            let n_read = stdout
                .read_buf(&mut *output)
                .await
                .map_err(ProcessError::Read)?;
            if n_read == 0 {
                break;
            }
        }
        if output.len() > OUTPUT_BYTES_MAX {
            return Err(ProcessError::TooLong);
        }
        Ok(output)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // No number once it was waited for: then it ended by itself, and the number may be somebody else's by now.
        let Some(group) = self.0.id().and_then(|id| i32::try_from(id).ok()) else {
            return;
        };
        // Its leader may have ended in this very moment; as long as it was not waited for, the number is its own.
        killpg(Pid::from_raw(group), Signal::SIGKILL).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, time::Instant};

    use super::*;

    fn shell(script: &str) -> CredentialProcess {
        CredentialProcess {
            program: "sh".into(),
            arguments: Box::new(["-c".into(), script.into()]),
            environment: Box::default(),
        }
    }

    async fn check(script: &str, expected: Result<&str, &str>) {
        let output = run(&shell(script), Duration::from_secs(20)).await;
        let output = output
            .as_ref()
            .map(|output| std::str::from_utf8(output).unwrap())
            .map_err(ToString::to_string);
        assert_eq!(output, expected.map_err(str::to_owned), "{script}");
    }

    #[tokio::test]
    async fn what_it_prints_is_returned() {
        check("echo '{}'", Ok("{}\n")).await;
        check("echo to-stderr >&2", Ok("")).await;
        check("cat", Ok("")).await;
        check("pwd", Ok("/\n")).await;
    }

    #[tokio::test]
    async fn how_it_ended_is_told_without_what_it_said() {
        check(
            "echo hunter2; echo hunter2 >&2; exit 3",
            Err("it ended with exit code 3"),
        )
        .await;
        check("kill -9 $$", Err("it was ended by signal 9")).await;
        let missing = CredentialProcess {
            program: "/nonexistent/command".into(),
            ..shell("")
        };
        let error = run(&missing, TIME_MAX).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "it cannot be started: No such file or directory (os error 2)"
        );
    }

    #[tokio::test]
    async fn its_environment_is_path_home_and_what_is_named() {
        let named = CredentialProcess {
            environment: Box::new(["CARGO_MANIFEST_DIR".into(), "NOT_THERE".into()]),
            ..shell("env | cut -d= -f1 | grep -vE '^(PWD|OLDPWD|SHLVL|_)$' | sort")
        };
        let output = run(&named, TIME_MAX).await.unwrap();
        assert_eq!(
            std::str::from_utf8(&output).unwrap(),
            "CARGO_MANIFEST_DIR\nHOME\nPATH\n"
        );
    }

    #[tokio::test]
    async fn arguments_are_not_read_by_a_shell() {
        let literal = CredentialProcess {
            program: "echo".into(),
            arguments: Box::new(["$HOME; *".into(), "a  b".into()]),
            environment: Box::default(),
        };
        let output = run(&literal, TIME_MAX).await.unwrap();
        assert_eq!(&**output, b"$HOME; * a  b\n");
    }

    #[tokio::test]
    async fn output_is_bounded() {
        let print = |bytes: usize| format!("head -c {bytes} /dev/zero | tr '\\0' x");
        let most = "x".repeat(OUTPUT_BYTES_MAX);
        check(&print(OUTPUT_BYTES_MAX), Ok(&most)).await;
        let too_long = Err("it was ended, having printed more than 65536 bytes");
        check(&print(OUTPUT_BYTES_MAX + 1), too_long).await;
        check("cat /dev/zero", too_long).await;
    }

    /// The process that a script told the number of, once it did.
    async fn told(file: &Path) -> i32 {
        loop {
            let text = fs::read_to_string(file).unwrap_or_default();
            if let Some(pid) = text.strip_suffix('\n') {
                return pid.parse().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn until_ended(pid: i32) {
        let is_alive = || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // What nobody waits for in this container stays a zombie.
            !stat.is_empty() && !stat.contains(") Z ")
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while is_alive() {
            assert!(Instant::now() < deadline, "process {pid} lives");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn scratch(name: &str) -> std::path::PathBuf {
        let file = std::env::temp_dir().join(format!("imds-{name}-{}", std::process::id()));
        fs::remove_file(&file).ok();
        file
    }

    #[tokio::test]
    async fn what_takes_too_long_is_ended_with_all_that_it_started() {
        let file = scratch("late");
        let script = format!("sleep 600 & echo $! > {}; wait", file.display());
        let started = Instant::now();
        let outcome = run(&shell(&script), Duration::from_millis(500)).await;
        assert_eq!(
            outcome.unwrap_err().to_string(),
            "it was ended, having taken more than 0.5 s"
        );
        assert!(started.elapsed() < Duration::from_secs(10));
        until_ended(told(&file).await).await;
        fs::remove_file(file).unwrap();
    }

    /// It has ended, but what it left holds the pipe: that is the command's doing and bounded like it.
    #[tokio::test]
    async fn what_it_left_behind_with_its_output_is_ended_too() {
        let file = scratch("left");
        let script = format!("sleep 600 & echo $! > {}", file.display());
        let outcome = run(&shell(&script), Duration::from_millis(500)).await;
        assert!(matches!(outcome, Err(ProcessError::Late(_))), "{outcome:?}");
        until_ended(told(&file).await).await;
        fs::remove_file(file).unwrap();
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_ended() {
        let file = scratch("unwanted");
        let script = format!("echo $$ > {}; exec sleep 600", file.display());
        let task = tokio::spawn(async move { run(&shell(&script), TIME_MAX).await });
        let pid = told(&file).await;
        task.abort();
        until_ended(pid).await;
        fs::remove_file(file).unwrap();
    }
}
