//! The test programs, as cargo builds them.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::command;

/// The program of a file of `tests/tests`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TestBinary {
    pub(super) name: String,
    pub(super) path: PathBuf,
}

/// Builds the test programs of all files and returns them, by name.
pub(super) fn build() -> anyhow::Result<Vec<TestBinary>> {
    let mut cargo = command::cargo();
    cargo.args(["test", "--quiet", "--package", "imds-tests", "--no-run"]);
    cargo.args(["--tests", "--message-format", "json-render-diagnostics"]);
    let mut binaries = read(&command::output(&mut cargo)?)?;
    binaries.sort_by(|one, other| one.name.cmp(&other.name));
    if binaries.is_empty() {
        bail!("cargo built no test program of tests/tests");
    }
    Ok(binaries)
}

/// Reads cargo's messages, one JSON document a line.
fn read(messages: &str) -> anyhow::Result<Vec<TestBinary>> {
    let mut binaries = Vec::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line)
            .with_context(|| format!("cargo printed what is not JSON: {line}"))?;
        binaries.extend(test_binary(&message));
    }
    Ok(binaries)
}

fn test_binary(message: &Value) -> Option<TestBinary> {
    let target = &message["target"];
    let is_test = target["kind"].as_array()?.iter().any(|kind| kind == "test");
    let path = message["executable"].as_str()?;
    is_test.then_some(TestBinary {
        name: target["name"].as_str()?.to_owned(),
        path: path.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"imds_tests"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"guard"},"executable":"/target/debug/deps/guard-1"}
{"reason":"build-finished","success":true}
"#;
        let expected = TestBinary {
            name: "guard".into(),
            path: "/target/debug/deps/guard-1".into(),
        };
        assert_eq!(read(messages).unwrap(), [expected]);
        assert!(read("warning: something").is_err());
    }
}
