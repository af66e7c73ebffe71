//! What a credential process prints: the format of the AWS CLI's `credential_process`, version 1 (AWS SDKs and Tools
//! Reference Guide, "Process credential provider").
//!
//! No error here carries a piece of the output: it is secret, however malformed.

use serde::Deserialize;

use super::schedule::Obtained;
use crate::instance::{Secret, UnixSeconds};

/// What is wrong with an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum OutputError {
    /// Nothing was printed.
    #[error("it printed nothing")]
    Empty,
    /// It cannot be parsed.
    #[error("what it printed is not JSON (line {line}, column {column})")]
    NotJson {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// Something else than the documented object.
    #[error(
        "what it printed has a value of a wrong type (line {line}, column {column}): Version is the number 1, all else is text"
    )]
    WrongType {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// The version is not the one that there is.
    #[error("what it printed has Version {0}: only 1 is known")]
    Version(u64),
    /// A key is not there.
    #[error("what it printed has no {0}")]
    Missing(&'static str),
    /// A key is empty, or has blanks or control characters.
    #[error("what it printed has a {0} that is empty or has a blank in it")]
    Blank(&'static str),
    /// The time is not one.
    #[error("what it printed has an Expiration that is not a time such as 2030-01-31T12:00:00Z")]
    NotATime,
    /// The credentials are of no use any more.
    #[error("the credentials that it printed have expired at {}", .0.iso())]
    Expired(UnixSeconds),
}

/// The object, as far as we look at it: other keys, such as AccountId, are let be.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Printed {
    version: Option<u64>,
    access_key_id: Option<Secret>,
    secret_access_key: Option<Secret>,
    session_token: Option<Secret>,
    expiration: Option<String>,
}

/// Reads an output.
///
/// SessionToken is optional in the AWS CLI. Here it is not: the document that guests get has a token, and without one
/// the keys would be an IAM user's, which never expire and which no guest should have.
///
/// # Errors
/// When it is not credentials that hold at `now`.
pub(super) fn parse(output: &[u8], now: UnixSeconds) -> Result<Obtained, OutputError> {
    if output.trim_ascii().is_empty() {
        return Err(OutputError::Empty);
    }
    // serde_json's own text may quote what it read.
    let printed: Printed = serde_json::from_slice(output).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        if error.is_data() {
            OutputError::WrongType { line, column }
        } else {
            OutputError::NotJson { line, column }
        }
    })?;
    match printed.version {
        Some(1) => {}
        Some(other) => return Err(OutputError::Version(other)),
        None => return Err(OutputError::Missing("Version")),
    }
    Ok(Obtained {
        access_key_id: word("AccessKeyId", printed.access_key_id)?.expose().into(),
        secret_access_key: word("SecretAccessKey", printed.secret_access_key)?,
        token: word("SessionToken", printed.session_token)?,
        expiration: printed
            .expiration
            .map(|text| expiration(&text, now))
            .transpose()?,
    })
}

fn word(key: &'static str, value: Option<Secret>) -> Result<Secret, OutputError> {
    let value = value.ok_or(OutputError::Missing(key))?;
    let is_bad = |c: char| c.is_whitespace() || c.is_control();
    if value.expose().is_empty() || value.expose().contains(is_bad) {
        return Err(OutputError::Blank(key));
    }
    Ok(value)
}

fn expiration(text: &str, now: UnixSeconds) -> Result<UnixSeconds, OutputError> {
    let at = rfc3339(text).ok_or(OutputError::NotATime)?;
    if at <= now {
        return Err(OutputError::Expired(at));
    }
    Ok(at)
}

/// `2030-01-31T12:00:00`, perhaps a fraction, and `Z` or a distance from it such as `+01:00` (RFC 3339, 5.6). The
/// fraction is cut off: credentials then end a part of a second early.
fn rfc3339(text: &str) -> Option<UnixSeconds> {
    let (time, rest) = text.split_at_checked("2030-01-31T12:00:00".len())?;
    let local = UnixSeconds::from_iso(&format!("{time}Z"))?;
    let zone = match rest.strip_prefix('.') {
        Some(fraction) => {
            let zone = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            (zone.len() < fraction.len()).then_some(zone)?
        }
        None => rest,
    };
    if zone == "Z" {
        return Some(local);
    }
    let (sign, distance) = zone.split_at_checked(1)?;
    let (hours, minutes) = distance.split_once(':')?;
    let two_digits = |text: &str, max: u64| {
        let is_number = text.len() == 2 && text.bytes().all(|digit| digit.is_ascii_digit());
        let number: u64 = is_number.then(|| text.parse().ok())??;
        (number <= max).then_some(number)
    };
    let seconds = two_digits(hours, 23)? * 3600 + two_digits(minutes, 59)? * 60;
    match sign {
        "+" => local.0.checked_sub(seconds).map(UnixSeconds),
        "-" => Some(UnixSeconds(local.0 + seconds)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixSeconds = UnixSeconds(1_700_000_000);

    fn check(output: &str, expected: Result<Option<u64>, OutputError>) {
        let parsed = parse(output.as_bytes(), NOW);
        let expiration = parsed.map(|obtained| {
            assert_eq!(&*obtained.access_key_id, "ASIAEXAMPLE");
            assert_eq!(obtained.secret_access_key.expose(), "secret/+");
            assert_eq!(obtained.token.expose(), "token==");
            obtained.expiration.map(|at| at.0)
        });
        assert_eq!(expiration, expected, "{output}");
    }

    /// An output with these members besides the usual ones.
    fn with(members: &str) -> String {
        format!(
            r#"{{"AccessKeyId":"ASIAEXAMPLE","SecretAccessKey":"secret\/+","SessionToken":"token==",{members}}}"#
        )
    }

    #[test]
    fn the_documented_format_is_read() {
        check(
            "{\n  \"Version\": 1,\n  \"AccessKeyId\": \"ASIAEXAMPLE\",\n  \"SecretAccessKey\": \"secret/+\",\n  \"SessionToken\": \"token==\",\n  \"Expiration\": \"2033-05-18T03:33:20Z\"\n}\n",
            Ok(Some(2_000_000_000)),
        );
        check(&with(r#""Version":1"#), Ok(None));
        check(&with(r#""Version":1,"Expiration":null"#), Ok(None));
        check(
            &with(r#""Version":1,"AccountId":"123456789012","More":[{}]"#),
            Ok(None),
        );
    }

    #[test]
    fn times_are_read_as_rfc_3339_has_them() {
        let check = |text: &str, expected: Option<u64>| {
            let output = with(&format!(r#""Version":1,"Expiration":"{text}""#));
            check(&output, expected.map(Some).ok_or(OutputError::NotATime));
        };
        check("2033-05-18T03:33:20Z", Some(2_000_000_000));
        check("2033-05-18T03:33:20.999Z", Some(2_000_000_000));
        // What the AWS CLI prints.
        check("2033-05-18T03:33:20+00:00", Some(2_000_000_000));
        check("2033-05-18T05:33:20+02:00", Some(2_000_000_000));
        check("2033-05-17T22:03:20-05:30", Some(2_000_000_000));
        for nonsense in [
            "",
            "soon",
            "2033-05-18",
            "2033-05-18T03:33:20",
            "2033-05-18T03:33:20.Z",
            "2033-05-18T03:33:20+0000",
            "2033-05-18T03:33:20+24:00",
            "2033-05-18T03:33:20+1:00",
            "2033-05-18T03:33:20*01:00",
            "2033-13-18T03:33:20Z",
            "2033-05-18T03:33:20é",
            "2000000000",
        ] {
            check(nonsense, None);
        }
    }

    #[test]
    fn what_is_no_output_is_named() {
        check("", Err(OutputError::Empty));
        check(" \n", Err(OutputError::Empty));
        check("secret", Err(OutputError::NotJson { line: 1, column: 1 }));
        check(
            "{\"Version\": 1,\n",
            Err(OutputError::NotJson { line: 2, column: 0 }),
        );
        check("[1]", Err(OutputError::WrongType { line: 1, column: 3 }));
        check(
            r#"{"Version":"1"}"#,
            Err(OutputError::WrongType {
                line: 1,
                column: 14,
            }),
        );
        check(&with(r#""Version":2"#), Err(OutputError::Version(2)));
        check(
            &with(r#""Version":1,"Expiration":"2023-11-14T22:13:20Z""#),
            Err(OutputError::Expired(NOW)),
        );
        check(
            &with(r#""Version":1,"Expiration":"2023-11-14T22:13:21Z""#),
            Ok(Some(NOW.0 + 1)),
        );
    }

    #[test]
    fn every_key_but_the_expiration_is_needed() {
        let members = [
            ("Version", "1"),
            ("AccessKeyId", "\"a\""),
            ("SecretAccessKey", "\"b\""),
            ("SessionToken", "\"c\""),
        ];
        for (missing, _) in members {
            let others: Vec<_> = members
                .iter()
                .filter(|(key, _)| *key != missing)
                .map(|(key, value)| format!("\"{key}\":{value}"))
                .collect();
            let output = format!("{{{}}}", others.join(","));
            check(&output, Err(OutputError::Missing(missing)));
        }
    }

    #[test]
    fn values_are_one_word() {
        for bad in ["", "a b", "a\\n", "\\u0000"] {
            let output = format!(r#"{{"Version":1,"AccessKeyId":"{bad}"}}"#);
            check(&output, Err(OutputError::Blank("AccessKeyId")));
        }
    }

    #[test]
    fn errors_quote_nothing_of_the_output() {
        for output in [
            "hunter2",
            r#"{"Version":"hunter2"}"#,
            r#"{"Version":1,"AccessKeyId":["hunter2"]}"#,
            r#"{"Version":1,"hunter2":1,"hunter2":2}"#,
            r#"{"Version":1,"AccessKeyId":"hunter2 "}"#,
        ] {
            let said = parse(output.as_bytes(), NOW).unwrap_err().to_string();
            assert!(!said.contains("hunter2"), "{said}");
        }
    }
}
