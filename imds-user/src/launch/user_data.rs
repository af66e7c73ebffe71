//! User data at the first boot, as cloud-init runs a script: fetched from the service, executed once as root.
//!
//! Whether it was run stands in the guest's own file system, by instance: whoever gives the guest a new file system
//! gives it a first boot. Everything here happens inside the guest.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::instance::InstanceId;

/// Where an instance asks for its metadata.
const SERVICE: (Ipv4Addr, u16) = (Ipv4Addr::new(169, 254, 169, 254), 80);

/// How long the service may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often the service is asked before a boot goes on without user data.
const TRIES: u32 = 5;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// EC2's bound is 16 KB of user data; a head comes before it.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Header fields that an answer may have.
const FIELDS_MAX: usize = 32;

/// In the guest.
const HOME: &str = "/var/lib/imds";

/// The environment that programs of a guest begin with.
pub const ENVIRONMENT: [(&str, &str); 5] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("HOME", "/root"),
    ("USER", "root"),
    ("LOGNAME", "root"),
    ("LANG", "C.UTF-8"),
];

/// Runs it if this is the first boot, by becoming it; returns what there is to say otherwise. Standard output is the
/// console.
#[must_use]
pub fn run(id: InstanceId) -> String {
    let stamp = stamp_of(Path::new(HOME), id);
    if stamp.exists() {
        return "user data was run at the first boot".to_owned();
    }
    let user_data = match fetch_patiently() {
        Ok(Some(user_data)) => user_data,
        Ok(None) => return "there is no user data".to_owned(),
        Err(error) => return format!("user data is not run: {error}"),
    };
    if !is_script(&user_data) {
        return "user data is no script (it does not begin with #!), and is not run".to_owned();
    }
    let script = match prepare(Path::new(HOME), &stamp, &user_data) {
        Ok(script) => script,
        Err(error) => return format!("user data is not run: {error}"),
    };
    let error = Command::new(&script)
        .env_clear()
        .envs(ENVIRONMENT)
        .current_dir("/")
        .exec();
    format!("user data cannot be executed: {error}")
}

/// Whether the kernel would know what to do with it.
fn is_script(user_data: &[u8]) -> bool {
    user_data.starts_with(b"#!")
}

fn stamp_of(home: &Path, id: InstanceId) -> PathBuf {
    home.join("instances")
        .join(id.as_str())
        .join("user-data-ran")
}

/// Writes the script, and the stamp before it runs: once means once, however it ends.
fn prepare(home: &Path, stamp: &Path, user_data: &[u8]) -> io::Result<PathBuf> {
    let folder = stamp.parent().unwrap_or(home);
    fs::create_dir_all(folder)?;
    let script = folder.join("user-data");
    fs::write(&script, user_data)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700))?;
    fs::write(stamp, "")?;
    Ok(script)
}

fn fetch_patiently() -> Result<Option<Vec<u8>>, FetchError> {
    let mut tries = 1;
    loop {
        match fetch() {
            Err(FetchError::Talk(_)) if tries < TRIES => {
                tries += 1;
                thread::sleep(PAUSE);
            }
            outcome => return outcome,
        }
    }
}

fn fetch() -> Result<Option<Vec<u8>>, FetchError> {
    let token = ask(
        "PUT /latest/api/token",
        "X-aws-ec2-metadata-token-ttl-seconds: 60",
    )?;
    let token = String::from_utf8_lossy(&token.found()?).into_owned();
    let field = format!("X-aws-ec2-metadata-token: {token}");
    match ask("GET /latest/user-data", &field)? {
        Answer { status: 404, .. } => Ok(None),
        answer => answer.found().map(Some),
    }
}

fn ask(what: &str, field: &str) -> Result<Answer, FetchError> {
    let talk = || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from(SERVICE), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let host = SERVICE.0;
        write!(
            stream,
            "{what} HTTP/1.1\r\nHost: {host}\r\n{field}\r\nConnection: close\r\n\r\n"
        )?;
        let mut bytes = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = talk().map_err(FetchError::Talk)?;
    Answer::parse(&bytes).ok_or(FetchError::Answer)
}

/// What the service said.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl Answer {
    /// A whole answer, its connection closed after it.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut head = httparse::Response::new(&mut fields);
        let Ok(httparse::Status::Complete(start)) = head.parse(bytes) else {
            return None;
        };
        let length = head
            .headers
            .iter()
            .find(|field| field.name.eq_ignore_ascii_case("content-length"))?;
        let length: usize = std::str::from_utf8(length.value).ok()?.parse().ok()?;
        Some(Self {
            status: head.code?,
            body: bytes.get(start..start.checked_add(length)?)?.to_vec(),
        })
    }

    fn found(self) -> Result<Vec<u8>, FetchError> {
        match self.status {
            200 => Ok(self.body),
            status => Err(FetchError::Refused { status }),
        }
    }
}

/// Why there is no user data to be had.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("the metadata service does not answer: {0}")]
    Talk(#[source] io::Error),
    #[error("the metadata service answers with no HTTP")]
    Answer,
    #[error("the metadata service refuses with status {status}")]
    Refused { status: u16 },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_whole_or_not_at_all() {
        let answer = |status, body: &str| {
            Some(Answer {
                status,
                body: body.into(),
            })
        };
        for (text, expected) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
                answer(200, "hi"),
            ),
            (
                "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
                answer(404, ""),
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi", None),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nhi",
                None,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\nhi",
                None,
            ),
            ("HTTP/1.1 200 OK\r\n\r\nhi", None),
            ("HTTP/1.1 200 OK\r\nContent-Le", None),
            ("SSH-2.0\r\n\r\n", None),
            ("", None),
        ] {
            assert_eq!(Answer::parse(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn a_script_is_what_the_kernel_can_execute() {
        for (text, expected) in [
            ("#!/bin/sh\n", true),
            ("#!", true),
            ("#cloud-config\n", false),
            (" #!/bin/sh", false),
            ("", false),
        ] {
            assert_eq!(is_script(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn the_stamp_is_of_one_instance_and_there_before_the_script_runs() {
        let home = std::env::temp_dir().join(format!("imds-user-data-{}", std::process::id()));
        let [one, other]: [InstanceId; 2] =
            ["i-00000000000000001", "i-00000000000000002"].map(|id| id.parse().unwrap());
        let stamp = stamp_of(&home, one);
        let script = prepare(&home, &stamp, b"#!/bin/sh\n").unwrap();
        assert!(stamp.exists() && !stamp_of(&home, other).exists());
        let mode = fs::metadata(&script).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        fs::remove_dir_all(home).unwrap();
    }
}
