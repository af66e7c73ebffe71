//! What an operator gets wrong is said in one line, with what to do, and leaves nothing half done.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use imds_tests::{Host, INSTANCE_ID, has_command, imds_path};

const OK: i32 = 0;
const WRONG_USE: i32 = 64;
const SOMETHING_MISSING: i32 = 69;
const NO_PERMISSION: i32 = 77;

/// One line on standard error with all of `words` in it, this exit code, and nothing on standard output.
fn check_refusal(what: &str, output: &Output, code: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{what}: {said}");
    assert_eq!(
        said.trim_end().lines().count(),
        1,
        "{what}: more or less than one line:\n{said}"
    );
    for word in words {
        assert!(
            said.contains(word),
            "{what}: {word:?} is missing in: {said}"
        );
    }
    assert!(
        output.stdout.is_empty(),
        "{what}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// A host with one port, its configuration as given.
fn check_config(toml: &str, code: i32, words: &[&str]) {
    check_config_with(&[], toml, code, words);
}

/// The same, with more options of `imds run`.
fn check_config_with(options: &[&str], toml: &str, code: i32, words: &[&str]) {
    let Some(mut host) = Host::new() else { return };
    let _web = host.guest("web").routed("10.0.0.10").up();
    let links = host.namespace().link_names();
    host.write_raw_config(toml);
    for option in options {
        host.run_option(option);
    }
    check_refusal(toml, &host.run_to_the_end(), code, words);
    check_untouched(&host, &links);
}

/// The host as it was before: same interfaces, no queueing discipline of ours on the port.
fn check_untouched(host: &Host, links: &[String]) {
    assert_eq!(host.namespace().link_names(), links);
    let disciplines = host
        .namespace()
        .run(&["tc", "qdisc", "show", "dev", "veth-web"]);
    let disciplines = String::from_utf8_lossy(&disciplines.stdout).into_owned();
    assert!(!disciplines.contains("clsact"), "{disciplines}");
}

/// A host that boots has no interfaces of guests yet, so that one is missing is no error: see `discovery.rs`. Whoever wants
/// it to be one says so.
#[test]
fn a_missing_interface_is_named() {
    check_config_with(
        &["--strict"],
        "[[instance]]\nname = \"web\"\nport = \"veth-wbe\"\n",
        SOMETHING_MISSING,
        &["veth-wbe", "web"],
    );
    for by in ["netns = \"nowhere\"", "port-mac = \"02:00:00:00:00:01\""] {
        let toml = format!("[[instance]]\nname = \"web\"\n{by}\n");
        let named = by.split('"').nth(1).expect("a text in quotes");
        check_config_with(&["--strict"], &toml, SOMETHING_MISSING, &[named, "web"]);
    }
}

/// The first port is there and the second is not: the first is not left with a program on it.
#[test]
fn a_missing_interface_after_a_good_one_leaves_the_good_one_alone() {
    let toml = "[[instance]]\nport = \"veth-web\"\n\n[[instance]]\nport = \"veth-wbe\"\n";
    check_config_with(&["--strict"], toml, SOMETHING_MISSING, &["veth-wbe"]);
}

/// To wait for it would be in vain.
#[test]
fn an_interface_that_can_be_no_port_is_refused() {
    check_config(
        "[[instance]]\nname = \"web\"\nport = \"lo\"\n",
        SOMETHING_MISSING,
        &["lo", "web", "Ethernet"],
    );
}

#[test]
fn what_is_said_of_discovery_is_checked() {
    let instance = |lines: &str| format!("[[instance]]\n{lines}\n");
    check_config(
        &instance("port = \"veth-web\"\nnetns = \"blue\""),
        WRONG_USE,
        &["exclude"],
    );
    check_config(&instance("netns = \"a/b\""), WRONG_USE, &["a/b", "2"]);
    check_config(&instance("port-mac = \"06:17\""), WRONG_USE, &["06:17"]);
    check_config(
        &instance("ports = [\"veth*\"]"),
        WRONG_USE,
        &["[[template]]"],
    );
    check_config("[[template]]\ntype = \"x\"\n", WRONG_USE, &["ports"]);
    let template = |line: &str| format!("[[template]]\nports = [\"tap*\"]\n{line}\n");
    check_config(
        &template("private-ipv4 = \"10.0.0.1\""),
        WRONG_USE,
        &["private-ipv4", "only one"],
    );
    check_config(
        &template("[template.metadata-options]\nhttp-tokens = \"mandatory\""),
        WRONG_USE,
        &["mandatory", "4"],
    );
    check_config(
        "[discovery]\nports = [\"a b\"]\n",
        WRONG_USE,
        &["a b", "pattern"],
    );
    check_config("[discovery]\nport = [\"a\"]\n", WRONG_USE, &["ports"]);
    check_config(
        "[discovery]\ndocker = false\ndocker-socket = \"/x\"\n",
        WRONG_USE,
        &["docker-socket"],
    );
}

#[test]
fn two_instances_on_one_port_are_named() {
    let toml = "[[instance]]\nname = \"one\"\nport = \"veth-web\"\n\n[[instance]]\nname = \"two\"\nport = \"veth-web\"\n";
    check_config(toml, WRONG_USE, &["veth-web", "one", "two"]);
}

#[test]
fn two_instances_of_one_name_or_id_are_named() {
    let names = "[[instance]]\nname = \"one\"\nport = \"veth-web\"\n\n[[instance]]\nname = \"one\"\nport = \"veth-db\"\n";
    check_config(names, WRONG_USE, &["one"]);
    let ids = "[[instance]]\nport = \"veth-web\"\nid = \"i-0123456789abcdef0\"\n\n\
               [[instance]]\nport = \"veth-db\"\nid = \"i-0123456789abcdef0\"\n";
    check_config(ids, WRONG_USE, &["i-0123456789abcdef0"]);
}

#[test]
fn unknown_keys_are_named_with_their_line() {
    check_config(
        "[host]\nregoin = \"eu-central-1\"\n",
        WRONG_USE,
        &["regoin", "region", "2"],
    );
    check_config(
        "[[instance]]\nport = \"veth-web\"\nuserdata = \"x\"\n",
        WRONG_USE,
        &["userdata", "user-data", "3"],
    );
    let option = "[[instance]]\nport = \"veth-web\"\n[instance.metadata-options]\nhttp-token = \"required\"\n";
    check_config(option, WRONG_USE, &["http-token", "4"]);
}

#[test]
fn wrong_values_are_refused_with_the_right_form() {
    let instance = |line: &str| format!("[[instance]]\nport = \"veth-web\"\n{line}\n");
    check_config(
        &instance("id = \"i-12345\""),
        WRONG_USE,
        &["i-12345", "i-", "17"],
    );
    check_config(
        &instance("image-id = \"ubuntu\""),
        WRONG_USE,
        &["ubuntu", "ami-"],
    );
    check_config(
        &instance("private-ipv4 = \"10.0.0.300\""),
        WRONG_USE,
        &["10.0.0.300", "private-ipv4"],
    );
    check_config(&instance("mac = \"06:17\""), WRONG_USE, &["06:17", "mac"]);
    check_config(
        &instance("user-data-file = \"/no/such/file\""),
        WRONG_USE,
        &["/no/such/file"],
    );
    check_config(
        &instance("user-data-base64 = \"%%\""),
        WRONG_USE,
        &["user-data-base64"],
    );
    let options = |line: &str| instance(&format!("[instance.metadata-options]\n{line}"));
    check_config(
        &options("http-tokens = \"mandatory\""),
        WRONG_USE,
        &["mandatory", "optional", "required"],
    );
    check_config(
        &options("http-put-response-hop-limit = 65"),
        WRONG_USE,
        &["65", "64"],
    );
    check_config(
        &options("http-put-response-hop-limit = 0"),
        WRONG_USE,
        &["0", "64"],
    );
}

#[test]
fn user_data_over_sixteen_kilobytes_is_refused() {
    let toml = format!(
        "[[instance]]\nport = \"veth-web\"\nuser-data = \"{}\"\n",
        "x".repeat(16_385)
    );
    check_config(&toml, WRONG_USE, &["user-data", "16384"]);
}

#[test]
fn a_file_that_is_no_toml_is_refused_with_its_line() {
    check_config("[host]\nregion = \n", WRONG_USE, &["2"]);
}

#[test]
fn a_missing_configuration_file_is_named() {
    let Some(host) = Host::new() else { return };
    check_refusal("no file", &host.run_to_the_end(), WRONG_USE, &["imds.toml"]);
}

#[test]
fn a_configuration_can_be_checked_without_anything_being_touched() {
    let Some(mut host) = Host::new() else { return };
    let _web = host.guest("web").routed("10.0.0.10").up();
    let links = host.namespace().link_names();
    host.write_config();
    let path = host.config_path();
    let path = path.to_str().expect("temporary paths are text");
    let good = host.imds(&["check", "--config", path]);
    assert_eq!(good.status.code(), Some(OK), "{good:?}");
    host.write_raw_config("[host]\nregoin = \"eu-central-1\"\n");
    check_refusal(
        "imds check",
        &host.imds(&["check", "--config", path]),
        WRONG_USE,
        &["regoin"],
    );
    check_untouched(&host, &links);
}

#[test]
fn a_wrong_command_line_is_refused() {
    let Some(host) = Host::new() else { return };
    for args in [
        &["rnu"][..],
        &["run", "--config"],
        &["run", "--no-such-option"],
    ] {
        let output = host.imds(args);
        assert_eq!(
            output.status.code(),
            Some(WRONG_USE),
            "{args:?}: {output:?}"
        );
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn without_root_one_line_says_so() {
    if !has_command("setpriv") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let _web = host.guest("web").routed("10.0.0.10").up();
    let links = host.namespace().link_names();
    host.write_config();
    let binary = binary_for_everybody(&host);
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let state_dir = host.dir().join("state-of-nobody");
    fs::create_dir(&state_dir).expect("a directory");
    fs::set_permissions(&state_dir, fs::Permissions::from_mode(0o777)).expect("a mode");
    let (config, state_dir) = (host.config_path(), state_dir);
    let run = [
        &binary,
        "run",
        "--config",
        config.to_str().expect("text"),
        "--state-dir",
        state_dir.to_str().expect("text"),
    ];
    let output = host.namespace().run(&[&nobody[..], &run].concat());
    check_refusal("run by nobody", &output, NO_PERMISSION, &["root"]);
    check_untouched(&host, &links);
}

/// A copy of the binary where any user may run it; the build folder may lie in a home that is closed.
fn binary_for_everybody(host: &Host) -> String {
    for (path, mode) in [(host.dir().to_owned(), 0o755), (host.config_path(), 0o644)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
    }
    let copy = host.dir().join("imds");
    fs::copy(imds_path(), &copy).expect("a copy of the binary");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("a mode");
    copy.to_str().expect("text").to_owned()
}

/// An empty file system over /sys/kernel/btf, in a mount namespace of its own, hides the kernel's type information.
#[test]
fn without_btf_one_line_says_so() {
    if !has_command("unshare") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let _web = host.guest("web").routed("10.0.0.10").up();
    let links = host.namespace().link_names();
    host.write_config();
    let (binary, config, state_dir) = (imds_path(), host.config_path(), host.state_dir());
    let script =
        "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" run --config \"$1\" --state-dir \"$2\"";
    let arguments =
        [&binary, &config, &state_dir].map(|path| path.to_str().expect("text").to_owned());
    let [binary, config, state_dir] = &arguments;
    let output = host.namespace().run(&[
        "unshare", "--mount", "sh", "-c", script, binary, config, state_dir,
    ]);
    check_refusal(
        "no BTF",
        &output,
        SOMETHING_MISSING,
        &["BTF", "CONFIG_DEBUG_INFO_BTF"],
    );
    check_untouched(&host, &links);
}

#[test]
fn a_second_daemon_on_one_state_directory_is_refused_and_the_first_serves_on() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let _daemon = host.start();
    let output = host.run_to_the_end();
    assert!(!output.status.success(), "{output:?}");
    assert_ne!(
        output.status.code(),
        Some(124),
        "the second daemon ran until it was ended"
    );
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    assert_eq!(web.get(INSTANCE_ID).text(), web.id());
}

#[test]
fn status_of_a_host_without_a_daemon_says_so() {
    let Some(host) = Host::new() else { return };
    let state_dir = host.state_dir();
    let output = host.imds(&["status", "--state-dir", state_dir.to_str().expect("text")]);
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr)
            .trim_end()
            .lines()
            .count(),
        1,
        "{output:?}"
    );
}

#[test]
fn doctor_tells_what_is_there_and_what_to_do() {
    let Some(host) = Host::new() else { return };
    let output = host.imds(&["doctor", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let text = json.to_string();
    for word in ["kernel", "btf", "capabilities"] {
        assert!(
            text.to_lowercase().contains(word),
            "{word} is missing in {text}"
        );
    }
}
