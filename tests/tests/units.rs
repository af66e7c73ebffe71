//! The systemd unit says what the code needs, and what the documentation says of it is true.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use imds_tests::{has_command, imds_path, run};
use imds_user::capabilities::NEEDED;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn unit() -> String {
    fs::read_to_string(top().join("dist/imds.service")).expect("the unit is there")
}

/// The value of a setting that the unit has once.
fn setting(name: &str) -> String {
    let unit = unit();
    let values: Vec<&str> = unit
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        .collect();
    let [value] = values[..] else {
        panic!("{name} is there {} times", values.len());
    };
    value.to_owned()
}

#[test]
fn the_unit_grants_the_capabilities_that_the_daemon_keeps() {
    let granted = setting("CapabilityBoundingSet");
    let granted: BTreeSet<&str> = granted.split(' ').collect();
    let needed: BTreeSet<&str> = NEEDED.iter().map(|needed| needed.name).collect();
    assert_eq!(granted, needed);
}

/// The settings without which a restart would lose requests.
#[test]
fn the_unit_leaves_the_responder_alone_and_keeps_its_sockets() {
    assert_eq!(setting("KillMode"), "process");
    assert_eq!(setting("Type"), "notify");
    assert_eq!(setting("Restart"), "always");
    assert!(setting("FileDescriptorStoreMax").parse::<u32>().unwrap() >= 2);
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    if !has_command("systemd-analyze") {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    let copy = folder.path().join("imds.service");
    let binary = imds_path();
    let text = unit().replace("/usr/bin/imds", binary.to_str().expect("text"));
    fs::write(&copy, text).expect("a file");
    let copy = copy.to_str().expect("text");
    let output = run(&["systemd-analyze", "verify", "--man=no", copy]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert_eq!(said, "", "systemd has something to say");
}

/// Not higher than what ARCHITECTURE.md says. Versions of systemd know more or fewer settings, so it may be lower.
#[test]
fn the_unit_is_as_closed_as_the_documentation_says() {
    if !has_command("systemd-analyze") {
        return;
    }
    let unit = top().join("dist/imds.service");
    let unit = unit.to_str().expect("text");
    let output = run(&[
        "systemd-analyze",
        "security",
        "--offline=true",
        "--no-pager",
        unit,
    ]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let level = said
        .lines()
        .find_map(|line| line.split_once("exposure level for imds.service: "))
        .and_then(|(_, level)| level.split(' ').next()?.parse::<f32>().ok())
        .unwrap_or_else(|| panic!("no level in:\n{said}"));
    println!("exposure level: {level}");
    let documented = fs::read_to_string(top().join("ARCHITECTURE.md")).expect("a document");
    let documented = documented
        .split_once("exposure level ")
        .and_then(|(_, level)| {
            level
                .split([' ', ',', '.', ')'])
                .take(2)
                .collect::<Vec<_>>()
                .join(".")
                .parse::<f32>()
                .ok()
        })
        .expect("ARCHITECTURE.md states the exposure level");
    assert!(
        level <= documented,
        "{level}, documented as {documented}:\n{said}"
    );
}
