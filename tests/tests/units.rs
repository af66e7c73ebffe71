//! The systemd units say what the code needs, and what the documentation says of it is true.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use imds_tests::{has_command, imds_path, run};
use imds_user::capabilities::{NEEDED, NEEDED_TO_LAUNCH};

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The daemon's.
const DAEMON: &str = "imds.service";
/// The launcher's.
const LAUNCHER: &str = "imds-launcher.service";

fn unit(name: &str) -> String {
    fs::read_to_string(top().join("dist").join(name)).expect("the unit is there")
}

/// The value of a setting that a unit has once.
fn setting(unit_name: &str, name: &str) -> String {
    let unit = unit(unit_name);
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
fn units_grant_the_capabilities_that_their_processes_keep() {
    for (unit, needed) in [(DAEMON, &NEEDED[..]), (LAUNCHER, &NEEDED_TO_LAUNCH[..])] {
        let granted = setting(unit, "CapabilityBoundingSet");
        let granted: BTreeSet<&str> = granted.split(' ').collect();
        let needed: BTreeSet<&str> = needed.iter().map(|needed| needed.name).collect();
        assert_eq!(granted, needed, "{unit}");
    }
}

/// Guests stay when the launcher is stopped, and inherit what its unit says of system calls.
#[test]
fn the_launchers_unit_leaves_guests_alone() {
    assert_eq!(setting(LAUNCHER, "KillMode"), "process");
    assert_eq!(setting(LAUNCHER, "Type"), "notify");
    let text = unit(LAUNCHER);
    let settings: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| Some(line.split_once('=')?.0))
        .collect();
    for missed in [
        "MemoryDenyWriteExecute",
        "RestrictNamespaces",
        "PrivateMounts",
        "PrivateTmp",
        "ProtectSystem",
        "ProtectHome",
        "ProtectHostname",
    ] {
        assert!(!settings.contains(&missed), "{missed}");
    }
}

/// The settings without which a restart would lose requests.
#[test]
fn the_unit_leaves_the_responder_alone_and_keeps_its_sockets() {
    assert_eq!(setting(DAEMON, "KillMode"), "process");
    assert_eq!(setting(DAEMON, "Type"), "notify");
    assert_eq!(setting(DAEMON, "Restart"), "always");
    let kept = setting(DAEMON, "FileDescriptorStoreMax");
    assert!(kept.parse::<u32>().unwrap() >= 2);
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    if !has_command("systemd-analyze") {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    let binary = imds_path();
    for name in [DAEMON, LAUNCHER] {
        let copy = folder.path().join(name);
        let text = unit(name).replace("/usr/bin/imds", binary.to_str().expect("text"));
        fs::write(&copy, text).expect("a file");
        let copy = copy.to_str().expect("text");
        let output = run(&["systemd-analyze", "verify", "--man=no", copy]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        assert_eq!(said, "", "systemd has something to say of {name}");
    }
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
