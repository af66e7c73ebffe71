//! Where the credentials of a role come from: exactly one source, and only the keys that belong to it.

use toml::Spanned;

use super::super::Problem;
use super::super::file::{CommandLine, RoleEntry, Text};
use super::{Resolver, line, problem, time};
use crate::credentials::{AssumeRole, CredentialProcess, CredentialSource, WITHOUT_AWS};
use crate::instance::credentials::{
    Credentials, CredentialsProblem, RoleCredentials, Secret, Validity,
};
use crate::instance::{AccountId, Instance};

/// Life of a session that STS gives without being asked for more, and the most that it gives to a host whose own
/// credentials are a role's (IAM User Guide, "Role chaining").
const SESSION_SECONDS: u32 = 3600;
/// What AssumeRole takes (STS API Reference, DurationSeconds).
const SESSION_SECONDS_MIN: u32 = 900;
const SESSION_SECONDS_MAX: u32 = 12 * 3600;

/// What was typed.
enum Typed<'a> {
    /// Nothing: credentials are made up.
    Nothing,
    /// The credentials themselves.
    Keys,
    Process(&'a Spanned<CommandLine>),
    AssumeRole(&'a Text),
}

impl Resolver<'_> {
    /// What the instance is given from the start. Credentials that come from elsewhere are not there yet.
    pub(super) fn credentials(&self, entry: &RoleEntry) -> Result<RoleCredentials, Problem> {
        match typed(entry)? {
            Typed::Nothing => Ok(RoleCredentials::Generated),
            Typed::Keys => self.keys(entry).map(RoleCredentials::Given),
            Typed::Process(_) | Typed::AssumeRole(_) => Ok(RoleCredentials::Unavailable(
                CredentialsProblem::failed(entry.name.get_ref(), self.created),
            )),
        }
    }

    /// Where the credentials of the instance come from, if from elsewhere.
    pub(super) fn credential_source(
        &self,
        entry: &RoleEntry,
        instance: &Instance,
    ) -> Result<Option<CredentialSource>, Problem> {
        match typed(entry)? {
            Typed::Nothing | Typed::Keys => Ok(None),
            Typed::Process(command) => {
                let process = process(command, &entry.credential_process_environment)?;
                Ok(Some(CredentialSource::Process(process)))
            }
            Typed::AssumeRole(arn) => {
                let zone = instance.details().zone.as_ref().unwrap_or(self.zone);
                let role = assume_role(arn, entry, instance.id.as_str(), zone.region())?;
                if !cfg!(feature = "aws") {
                    return Err(problem(arn, WITHOUT_AWS));
                }
                Ok(Some(CredentialSource::AssumeRole(role)))
            }
        }
    }

    fn keys(&self, entry: &RoleEntry) -> Result<Credentials, Problem> {
        let (Some(key_id), Some(secret), Some(token)) =
            (&entry.access_key_id, &entry.secret_access_key, &entry.token)
        else {
            let message = "credentials are access-key-id, secret-access-key and token together, \
                           or none of them to have made-up ones";
            return Err(problem(&entry.name, message));
        };
        let expiration = entry.expiration.as_ref().map(time).transpose()?;
        Ok(Credentials {
            access_key_id: line(key_id)?.into(),
            secret_access_key: Secret::from(line(secret)?),
            token: Secret::from(line(token)?),
            validity: expiration.map(|expiration| Validity {
                last_updated: self.created,
                expiration,
            }),
        })
    }
}

fn typed(entry: &RoleEntry) -> Result<Typed<'_>, Problem> {
    let keys = [
        ("access-key-id", &entry.access_key_id),
        ("secret-access-key", &entry.secret_access_key),
        ("token", &entry.token),
        ("expiration", &entry.expiration),
    ];
    let first_key = keys
        .iter()
        .find_map(|(name, key)| key.as_ref().map(|key| (*name, key.span())));
    let process = entry.credential_process.as_ref();
    let role = entry.assume_role_arn.as_ref();
    let mut sources = [
        first_key.clone(),
        process.map(|command| ("credential-process", command.span())),
        role.map(|arn| ("assume-role-arn", arn.span())),
    ]
    .into_iter()
    .flatten();
    if let (Some((one, _)), Some((other, span))) = (sources.next(), sources.next()) {
        let message = format!(
            "a role has one source of credentials, and this one has {one} too: keep one of {one} and {other}"
        );
        return Err(Problem { span, message });
    }
    refuse_strays(entry)?;
    Ok(match (first_key, process, role) {
        (_, Some(command), _) => Typed::Process(command),
        (_, _, Some(arn)) => Typed::AssumeRole(arn),
        (Some(_), _, _) => Typed::Keys,
        (None, None, None) => Typed::Nothing,
    })
}

/// Keys that say more of a source that is not there.
fn refuse_strays(entry: &RoleEntry) -> Result<(), Problem> {
    let environment = entry.credential_process_environment.as_ref();
    let seconds = entry.session_duration_seconds.as_ref();
    let of_role = [
        entry.external_id.as_ref().map(Spanned::span),
        entry.session_name.as_ref().map(Spanned::span),
        seconds.map(Spanned::span),
        entry.endpoint_url.as_ref().map(Spanned::span),
    ];
    let stray = |span, belongs_to: &str| {
        let message = format!(
            "belongs to {belongs_to}, which this role does not have: write that too, or remove this"
        );
        Err(Problem { span, message })
    };
    if let Some(environment) = environment.filter(|_| entry.credential_process.is_none()) {
        return stray(environment.span(), "credential-process");
    }
    match of_role.into_iter().flatten().next() {
        Some(span) if entry.assume_role_arn.is_none() => stray(span, "assume-role-arn"),
        _ => Ok(()),
    }
}

fn process(
    command: &Spanned<CommandLine>,
    environment: &Option<Spanned<Vec<Text>>>,
) -> Result<CredentialProcess, Problem> {
    let words = &command.get_ref().0;
    let Some((program, arguments)) = words.split_first() else {
        return Err(problem(
            command,
            "is empty: write the command and its arguments, such as [\"/usr/local/bin/credentials\", \"web\"]",
        ));
    };
    if let Some(word) = words.iter().find(|word| word.get_ref().contains('\0')) {
        return Err(problem(word, "no argument of a command can hold a zero"));
    }
    let path = line(program)?;
    if path.contains('/') && !path.starts_with('/') {
        let message = format!(
            "`{path}` depends on where the daemon was started: write an absolute path, or a name to be found in PATH"
        );
        return Err(problem(program, message));
    }
    let names = environment.as_ref().map(|names| names.get_ref().iter());
    Ok(CredentialProcess {
        program: path.into(),
        arguments: arguments
            .iter()
            .map(|argument| argument.get_ref().as_str().into())
            .collect(),
        environment: names
            .into_iter()
            .flatten()
            .map(variable)
            .collect::<Result<_, _>>()?,
    })
}

fn variable(name: &Text) -> Result<Box<str>, Problem> {
    let text = line(name)?;
    if text.contains('=') {
        return Err(problem(
            name,
            "write the name alone: the variable has the value that it has for the daemon (for another one, begin the \
             command with env: [\"env\", \"NAME=value\", …])",
        ));
    }
    Ok(text.into())
}

fn assume_role(
    arn: &Text,
    entry: &RoleEntry,
    instance_id: &str,
    region: &str,
) -> Result<AssumeRole, Problem> {
    Ok(AssumeRole {
        role_arn: role_arn(arn)?.into(),
        session_name: match &entry.session_name {
            Some(name) => made_of(name, 2..=64, "+=,.@_-")?.into(),
            None => instance_id.into(),
        },
        external_id: match &entry.external_id {
            Some(id) => Some(made_of(id, 2..=1224, "+=,.@:/_-")?.into()),
            None => None,
        },
        duration_seconds: super::bounded(
            &entry.session_duration_seconds,
            "seconds of a session",
            SESSION_SECONDS_MIN,
            SESSION_SECONDS_MAX,
            SESSION_SECONDS,
        )?,
        endpoint_url: match &entry.endpoint_url {
            Some(url) => Some(endpoint_url(url)?.into()),
            None => None,
        },
        region: region.into(),
    })
}

fn role_arn(text: &Text) -> Result<&str, Problem> {
    let arn = line(text)?;
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let is_role = match parts[..] {
        ["arn", partition, "iam", "", account, role] => {
            let name = role.strip_prefix("role/").unwrap_or_default();
            partition.starts_with("aws")
                && account.parse::<AccountId>().is_ok()
                && !name.is_empty()
                && !name.ends_with('/')
        }
        _ => false,
    };
    if !is_role {
        return Err(problem(
            text,
            format!(
                "`{arn}` is not the ARN of a role: write one such as `arn:aws:iam::123456789012:role/web`"
            ),
        ));
    }
    Ok(arn)
}

/// Text of letters, digits and a few others, in the bounds that STS sets.
fn made_of<'a>(
    text: &'a Text,
    characters: std::ops::RangeInclusive<usize>,
    others: &str,
) -> Result<&'a str, Problem> {
    let word = text.get_ref().as_str();
    let is_fit = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
    if !characters.contains(&word.len()) || !word.chars().all(is_fit) {
        let (min, max) = characters.into_inner();
        return Err(problem(
            text,
            format!("STS takes {min} to {max} letters, digits and {others} here"),
        ));
    }
    Ok(word)
}

fn endpoint_url(text: &Text) -> Result<&str, Problem> {
    let url = line(text)?;
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"));
    let has_host = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
    if !has_host || url.contains(char::is_whitespace) {
        return Err(problem(
            text,
            format!(
                "`{url}` is not a URL: write one such as `https://sts.eu-central-1.amazonaws.com`"
            ),
        ));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::super::super::{Files, Installation, file};
    use super::*;
    use crate::instance::UnixSeconds;

    struct NoFiles;

    impl Files for NoFiles {
        fn read(&self, _: &Path, _: usize) -> io::Result<Vec<u8>> {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    /// The credentials and their source in a file whose `[instance.role]` has these lines besides the name.
    fn resolve(lines: &str) -> Result<(RoleCredentials, Option<CredentialSource>), String> {
        let text = format!(
            "[host]\nregion = \"eu-central-1\"\n[[instance]]\nport = \"veth0\"\nid = \"i-0123456789abcdef0\"\n\
             [instance.role]\nname = \"web\"\n{lines}"
        );
        let installation = Installation {
            seed: [0; 16],
            created: UnixSeconds(1_700_000_000),
        };
        let settings = file::parse(&text).and_then(|file| {
            super::super::resolve(&file, &installation, Path::new("/etc"), &NoFiles)
        });
        let mut settings = settings
            .map_err(|problem| problem.located(Path::new("imds.toml"), &text).to_string())?;
        let guest = settings.guests.remove(0);
        let role = guest.instance.role.expect("it has a role");
        Ok((role.credentials, guest.credential_source))
    }

    #[track_caller]
    fn check_refusal(lines: &str, expected: &str) {
        assert_eq!(resolve(lines).unwrap_err(), expected, "{lines}");
    }

    const KEYS: &str =
        "access-key-id = \"ASIAEXAMPLE\"\nsecret-access-key = \"s\"\ntoken = \"t\"\n";
    const PROCESS: &str = "credential-process = [\"/bin/credentials\", \"web\"]\n";
    const ROLE: &str = "assume-role-arn = \"arn:aws:iam::123456789012:role/path/web\"\n";

    #[test]
    fn keys_and_nothing_are_no_source() {
        let (credentials, source) = resolve(KEYS).unwrap();
        assert!(matches!(credentials, RoleCredentials::Given(_)) && source.is_none());
        let (credentials, source) = resolve("").unwrap();
        assert!(matches!(credentials, RoleCredentials::Generated) && source.is_none());
    }

    #[test]
    fn a_command_is_a_source() {
        let lines = format!("{PROCESS}credential-process-environment = [\"AWS_PROFILE\"]");
        let (credentials, source) = resolve(&lines).unwrap();
        assert!(matches!(credentials, RoleCredentials::Unavailable(_)));
        let expected = CredentialProcess {
            program: "/bin/credentials".into(),
            arguments: Box::new(["web".into()]),
            environment: Box::new(["AWS_PROFILE".into()]),
        };
        assert_eq!(source, Some(CredentialSource::Process(expected)));
    }

    /// In a build that can ask STS.
    fn role(lines: &str) -> Option<AssumeRole> {
        let resolved = resolve(&format!("{ROLE}{lines}"));
        if !cfg!(feature = "aws") {
            let refusal = format!("imds.toml:8:19: assume-role-arn: {WITHOUT_AWS}");
            assert_eq!(resolved.unwrap_err(), refusal);
            return None;
        }
        match resolved.unwrap().1 {
            Some(CredentialSource::AssumeRole(role)) => Some(role),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_role_of_iam_is_a_source() {
        if let Some(role) = role("") {
            let expected = AssumeRole {
                role_arn: "arn:aws:iam::123456789012:role/path/web".into(),
                session_name: "i-0123456789abcdef0".into(),
                external_id: None,
                duration_seconds: 3600,
                endpoint_url: None,
                region: "eu-central-1".into(),
            };
            assert_eq!(role, expected);
        }
        let all = "external-id = \"a:b/c\"\nsession-name = \"web\"\nsession-duration-seconds = 43200\n\
                   endpoint-url = \"http://127.0.0.1:4566\"\n";
        if let Some(role) = role(all) {
            assert_eq!(&*role.session_name, "web");
            assert_eq!(role.external_id.as_deref(), Some("a:b/c"));
            assert_eq!(role.duration_seconds, 43_200);
            assert_eq!(role.endpoint_url.as_deref(), Some("http://127.0.0.1:4566"));
        }
    }

    #[test]
    fn sources_exclude_each_other() {
        check_refusal(
            &format!("{KEYS}{PROCESS}"),
            "imds.toml:11:22: credential-process: a role has one source of credentials, and this one has access-key-id \
             too: keep one of access-key-id and credential-process",
        );
        check_refusal(
            &format!("{ROLE}{PROCESS}"),
            "imds.toml:8:19: assume-role-arn: a role has one source of credentials, and this one has \
             credential-process too: keep one of credential-process and assume-role-arn",
        );
        check_refusal(
            &format!("{ROLE}expiration = \"2030-01-01T00:00:00Z\""),
            "imds.toml:8:19: assume-role-arn: a role has one source of credentials, and this one has expiration too: \
             keep one of expiration and assume-role-arn",
        );
    }

    #[test]
    fn keys_of_a_source_that_is_not_there_are_refused() {
        let strays = [
            ("external-id = \"abc\"", 15, "assume-role-arn"),
            ("session-name = \"abc\"", 16, "assume-role-arn"),
            ("session-duration-seconds = 900", 28, "assume-role-arn"),
            ("endpoint-url = \"http://sts\"", 16, "assume-role-arn"),
            (
                "credential-process-environment = [\"A\"]",
                34,
                "credential-process",
            ),
        ];
        for (stray, column, belongs_to) in strays {
            let key = stray.split(' ').next().expect("a key");
            for (line, others) in [(8, ""), (11, KEYS)] {
                check_refusal(
                    &format!("{others}{stray}"),
                    &format!(
                        "imds.toml:{line}:{column}: {key}: belongs to {belongs_to}, which this role does not have: \
                         write that too, or remove this"
                    ),
                );
            }
        }
        check_refusal(
            &format!("{PROCESS}external-id = \"abc\""),
            "imds.toml:9:15: external-id: belongs to assume-role-arn, which this role does not have: write that too, \
             or remove this",
        );
    }

    #[test]
    fn incomplete_keys_are_refused() {
        let message = "imds.toml:7:8: name: credentials are access-key-id, secret-access-key and token together, or \
                       none of them to have made-up ones";
        check_refusal("token = \"t\"", message);
        check_refusal("expiration = \"2030-01-01T00:00:00Z\"", message);
        check_refusal("access-key-id = \"a\"\nsecret-access-key = \"s\"", message);
    }

    #[test]
    fn a_command_that_cannot_be_run_is_refused() {
        let check = |value: &str, column: u32, message: &str| {
            check_refusal(
                &format!("credential-process = {value}"),
                &format!("imds.toml:8:{column}: credential-process: {message}"),
            );
        };
        let list = "write a list of the command and its arguments, such as [\"/usr/local/bin/credentials\", \"web\"]: no \
                    shell reads it, so nothing has to be quoted";
        check("\"credentials hunter2\"", 22, list);
        check("5", 22, list);
        check(
            "[]",
            22,
            "is empty: write the command and its arguments, such as [\"/usr/local/bin/credentials\", \"web\"]",
        );
        check("[\"\"]", 23, "must be one line, and not empty");
        check(
            "[\"bin/credentials\"]",
            23,
            "`bin/credentials` depends on where the daemon was started: write an absolute path, or a name to be found \
             in PATH",
        );
        check(
            "[\"a\", \"b\\u0000\"]",
            28,
            "no argument of a command can hold a zero",
        );
        check_refusal(
            &format!("{PROCESS}credential-process-environment = [\"A=b\"]"),
            "imds.toml:9:35: credential-process-environment: write the name alone: the variable has the value that it \
             has for the daemon (for another one, begin the command with env: [\"env\", \"NAME=value\", …])",
        );
    }

    #[test]
    fn what_sts_would_not_take_is_refused() {
        for arn in [
            "web",
            "arn:aws:iam::123456789012:user/web",
            "arn:aws:iam::12345:role/web",
            "arn:aws:iam::123456789012:role/",
            "arn:aws:iam:eu-central-1:123456789012:role/web",
            "arn:aws:sts::123456789012:role/web",
        ] {
            check_refusal(
                &format!("assume-role-arn = \"{arn}\""),
                &format!(
                    "imds.toml:8:19: assume-role-arn: `{arn}` is not the ARN of a role: write one such as \
                     `arn:aws:iam::123456789012:role/web`"
                ),
            );
        }
        let check = |line: &str, expected: &str| {
            check_refusal(&format!("{ROLE}{line}"), &format!("imds.toml:9:{expected}"));
        };
        check(
            "session-name = \"a\"",
            "16: session-name: STS takes 2 to 64 letters, digits and +=,.@_- here",
        );
        check(
            "session-name = \"a b\"",
            "16: session-name: STS takes 2 to 64 letters, digits and +=,.@_- here",
        );
        check(
            "external-id = \"a b\"",
            "15: external-id: STS takes 2 to 1224 letters, digits and +=,.@:/_- here",
        );
        for seconds in [899, 43_201, -1] {
            check(
                &format!("session-duration-seconds = {seconds}"),
                &format!(
                    "28: session-duration-seconds: {seconds} is out of range: seconds of a session are 900 to 43200"
                ),
            );
        }
        for url in [
            "sts.amazonaws.com",
            "https://",
            "ftp://sts",
            "https:///x",
            "http://a b",
        ] {
            check(
                &format!("endpoint-url = \"{url}\""),
                &format!(
                    "16: endpoint-url: `{url}` is not a URL: write one such as `https://sts.eu-central-1.amazonaws.com`"
                ),
            );
        }
    }
}
