//! Is this host fit to run imds, and what on it would get in the way?
//!
//! [`gather`] looks at the host, [`examine`] judges what was found and is pure. Nothing is changed and nothing
//! is sent: on a cloud machine 169.254.169.254 is a service that answers.

pub mod gather;

use std::net::IpAddr;

use serde::Serialize;

use crate::capabilities::NEEDED;

/// What was found on the host.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Whether the effective user is root.
    pub is_root: bool,
    /// The effective capabilities, one bit each (`CapEff` of /proc/self/status).
    pub capabilities: u64,
    /// As `uname -r` prints it.
    pub kernel_release: String,
    /// The kernel's build options, where they can be read.
    pub kernel_config: Option<String>,
    /// `/sys/kernel/btf/vmlinux` is there.
    pub has_btf: bool,
    /// The system call bpf(2) is there.
    pub has_bpf: bool,
    /// `net.core.bpf_jit_enable`.
    pub jit: Option<u32>,
    /// What is mounted.
    pub mounts: Vec<Mount>,
    /// This network namespace's interfaces.
    pub interfaces: Vec<Interface>,
    /// Interfaces by which what is for the metadata addresses leaves the host.
    pub uplinks: Vec<Uplink>,
    /// Programs of others that see packets before ours do.
    pub ahead: Vec<Ahead>,
    /// Rules of iptables and nftables that name a metadata address, and by which tool they were found.
    pub firewall_rules: Vec<(&'static str, String)>,
    /// Processes that matter.
    pub processes: Vec<Process>,
}

/// A file system that is mounted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mount {
    /// Where.
    pub target: String,
    /// `bpf`, `cgroup2` …
    pub kind: String,
}

/// An interface of the host.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// `veth`, `macvtap` …; empty for physical devices.
    pub kind: String,
    /// Whether what lies beneath it is a physical device.
    pub is_on_physical: bool,
    /// How many SR-IOV functions of it are in use.
    pub virtual_functions: u32,
    /// Metadata addresses that it has.
    pub metadata_addresses: Vec<IpAddr>,
}

/// An interface by which packets leave the host.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Whether the guard is on it.
    pub is_guarded: bool,
    /// Whether its queue has a place for the guard, should it have a queue.
    pub has_place: bool,
}

/// A program of somebody else, before one of ours.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ahead {
    /// The interface.
    pub interface: String,
    /// Whether it sees what leaves by it, rather than what comes.
    pub is_way_out: bool,
    /// How it is attached, its name and number.
    pub program: String,
}

/// A process of the host.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// What it was started as.
    pub args: Vec<String>,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, with a limit worth knowing.
    Warn,
    /// The daemon would not run, or not do its work.
    Fail,
}

/// One check and how it ended.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// How it ended.
    pub level: Level,
    /// What was looked at.
    pub subject: &'static str,
    /// What was found.
    pub found: String,
    /// What to do about it, unless all is well.
    pub advice: Option<String>,
}

impl Finding {
    fn ok(subject: &'static str, found: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            subject,
            found: found.into(),
            advice: None,
        }
    }

    fn warn(subject: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            subject,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }

    fn fail(subject: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Fail,
            subject,
            found: found.into(),
            advice: Some(advice.into()),
        }
    }
}

/// The oldest kernel that imds is tested on: Debian 12's.
const KERNEL_TESTED: (u32, u32) = (6, 1);

/// The oldest kernel that has all that is used: `bpf_redirect_peer` from a TC program, 5.10, and the cookie of a network
/// namespace, 5.14.
const KERNEL_NEEDED: (u32, u32) = (5, 14);

/// Build options without which something fails only when the daemon starts.
const KERNEL_OPTIONS: [&str; 6] = [
    "CONFIG_BPF_SYSCALL",
    "CONFIG_NET_CLS_ACT",
    "CONFIG_NET_CLS_BPF",
    "CONFIG_NET_NS",
    "CONFIG_NET_SCH_INGRESS",
    "CONFIG_VETH",
];

/// Programs that carry a guest's packets in a process of the host.
const USER_MODE_NETWORKING: [&str; 6] = [
    "gvproxy",
    "pasta",
    "passt",
    "rootlesskit",
    "slirp4netns",
    "vpnkit",
];

/// EC2's metadata addresses, as rules spell them.
const METADATA_ADDRESSES: [&str; 2] = ["169.254.169.254", "fd00:ec2::254"];

/// Judges the host: every check, in the order in which people are shown them.
#[must_use]
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![
        privileges(facts),
        kernel(facts),
        kernel_options(facts),
        bpf(facts),
        btf(facts),
        jit(facts),
        bpffs(facts),
        cgroup(facts),
    ];
    findings.extend(addresses(facts));
    findings.extend(guard(facts));
    findings.extend(ahead(facts));
    findings.extend(firewall(facts));
    findings.extend(out_of_reach(facts));
    findings.extend(user_mode_networking(facts));
    findings
}

fn privileges(facts: &Facts) -> Finding {
    const SUBJECT: &str = "capabilities";
    if !facts.is_root {
        return Finding::fail(SUBJECT, "not root", "run this (and the daemon) as root");
    }
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|one| one.is_vital && !one.is_in(facts.capabilities))
        .map(|one| one.name)
        .collect();
    if missing.is_empty() {
        return Finding::ok(SUBJECT, "root, with all that are needed");
    }
    let found = format!("root without {}", missing.join(", "));
    Finding::fail(
        SUBJECT,
        found,
        "give the container or service these capabilities",
    )
}

fn kernel(facts: &Facts) -> Finding {
    const SUBJECT: &str = "kernel";
    let release = &facts.kernel_release;
    let tested = format!("{}.{}", KERNEL_TESTED.0, KERNEL_TESTED.1);
    match version(release) {
        None => Finding::warn(
            SUBJECT,
            format!("{release:?}"),
            format!("make sure that it is {tested} or newer"),
        ),
        Some(version) if version < KERNEL_NEEDED => Finding::fail(
            SUBJECT,
            release,
            format!("boot {tested} or newer: the programs need bpf_redirect_peer"),
        ),
        Some(version) if version < KERNEL_TESTED => Finding::warn(
            SUBJECT,
            release,
            format!("{tested} and newer are tested, this one is not"),
        ),
        Some(_) => Finding::ok(SUBJECT, release),
    }
}

/// Major and minor number of a release such as `6.1.0-18-cloud-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel_options(facts: &Facts) -> Finding {
    const SUBJECT: &str = "kernel options";
    let Some(config) = &facts.kernel_config else {
        return Finding::ok(
            SUBJECT,
            "not readable here; the daemon says at its start what it misses",
        );
    };
    let is_set = |option: &&str| {
        config
            .lines()
            .any(|line| line == format!("{option}=y") || line == format!("{option}=m"))
    };
    let missing: Vec<_> = KERNEL_OPTIONS
        .iter()
        .copied()
        .filter(|option| !is_set(option))
        .collect();
    if missing.is_empty() {
        return Finding::ok(SUBJECT, "veth, network namespaces, TC with BPF");
    }
    Finding::fail(
        SUBJECT,
        format!("built without {}", missing.join(", ")),
        "boot a kernel that has them: a distribution's does",
    )
}

fn bpf(facts: &Facts) -> Finding {
    const SUBJECT: &str = "bpf system call";
    if facts.has_bpf {
        return Finding::ok(SUBJECT, "there");
    }
    Finding::fail(
        SUBJECT,
        "not there",
        "boot a kernel with CONFIG_BPF_SYSCALL, and mount /proc",
    )
}

fn btf(facts: &Facts) -> Finding {
    const SUBJECT: &str = "BTF";
    if facts.has_btf {
        return Finding::ok(SUBJECT, "/sys/kernel/btf/vmlinux");
    }
    Finding::fail(
        SUBJECT,
        "no /sys/kernel/btf/vmlinux",
        "boot a kernel with CONFIG_DEBUG_INFO_BTF, and mount /sys",
    )
}

fn jit(facts: &Facts) -> Finding {
    const SUBJECT: &str = "BPF JIT";
    match facts.jit {
        Some(0) => Finding::warn(
            SUBJECT,
            "off: programs are interpreted",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(_) => Finding::ok(SUBJECT, "on"),
        // Not shown in a network namespace of its own before 6.2, and there is none with CONFIG_BPF_JIT_ALWAYS_ON off.
        None => Finding::ok(SUBJECT, "not to be seen from here"),
    }
}

fn bpffs(facts: &Facts) -> Finding {
    const SUBJECT: &str = "bpffs";
    match facts.mounted("bpf") {
        Some(target) => Finding::ok(SUBJECT, target),
        None => Finding::warn(
            SUBJECT,
            "not mounted: the daemon mounts its own in its state directory",
            "mount -t bpf bpf /sys/fs/bpf, where bpftool looks, and which outlives a service manager's own mounts",
        ),
    }
}

/// On a hybrid host it is mounted somewhere else than at /sys/fs/cgroup.
fn cgroup(facts: &Facts) -> Finding {
    const SUBJECT: &str = "cgroup v2";
    match facts.mounted("cgroup2") {
        Some(target) => Finding::ok(SUBJECT, target),
        None => Finding::warn(
            SUBJECT,
            "not mounted",
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup, for `host-access = \"allow-list\"` (all else does without)",
        ),
    }
}

impl Facts {
    fn mounted(&self, kind: &str) -> Option<&str> {
        self.mounts
            .iter()
            .find(|mount| mount.kind == kind)
            .map(|mount| mount.target.as_str())
    }
}

fn addresses(facts: &Facts) -> Vec<Finding> {
    const SUBJECT: &str = "metadata address";
    let taken = facts.interfaces.iter().flat_map(|interface| {
        interface.metadata_addresses.iter().map(|address| {
            Finding::warn(
                SUBJECT,
                format!("interface {} has {address}", interface.name),
                "another metadata service seems to run here: guests on imds's ports will no longer reach it",
            )
        })
    });
    or_ok(taken.collect(), SUBJECT, "no interface has it")
}

/// Before the first start nothing is guarded, so that alone is no fault.
fn guard(facts: &Facts) -> Vec<Finding> {
    const SUBJECT: &str = "guard";
    let findings = facts.uplinks.iter().map(|uplink| {
        let name = &uplink.name;
        if uplink.is_guarded {
            return Finding::ok(SUBJECT, format!("on {name}"));
        }
        if !uplink.has_place {
            return Finding::warn(
                SUBJECT,
                format!("no place for it on {name}: its queue of kind `ingress` has no way out"),
                format!(
                    "replace it: tc qdisc delete dev {name} ingress; tc qdisc add dev {name} clsact"
                ),
            );
        }
        Finding::ok(SUBJECT, format!("not on {name}: the daemon puts it there"))
    });
    or_ok(findings.collect(), SUBJECT, "there is no uplink")
}

fn ahead(facts: &Facts) -> Vec<Finding> {
    const SUBJECT: &str = "programs before ours";
    let programs = facts.ahead.iter().map(|ahead| {
        let way = if ahead.is_way_out { "out of" } else { "into" };
        Finding::warn(
            SUBJECT,
            format!("{} on the way {way} {}", ahead.program, ahead.interface),
            "what it does not pass on never comes to imds: see that it ends with TCX_NEXT or TC_ACT_UNSPEC for packets of the \
             metadata service, or take it off",
        )
    });
    or_ok(programs.collect(), SUBJECT, "there are none")
}

fn firewall(facts: &Facts) -> Vec<Finding> {
    const SUBJECT: &str = "firewall";
    let rules = facts.firewall_rules.iter().map(|(tool, rule)| {
        let advice = match translates_to_metadata(rule) {
            true => {
                "it makes other addresses the host's metadata service: guests are kept from it by the guard, but processes of \
                 the host that call those are not seen by host-access; remove it if it was for guests"
            }
            false => "packets of imds's guests never come to this rule; remove it if it was for them",
        };
        Finding::warn(SUBJECT, format!("{tool}: {rule}"), advice)
    });
    or_ok(
        rules.collect(),
        SUBJECT,
        "no rule is about the metadata addresses",
    )
}

/// Whether a rule has a metadata address as its target, in the words of iptables (`--to-destination`) or nftables.
fn translates_to_metadata(rule: &str) -> bool {
    let targets = [
        "--to-destination ",
        "dnat to ",
        "dnat ip to ",
        "dnat ip6 to ",
    ];
    let mut of_rule = targets.iter().flat_map(|target| rule.split(target).skip(1));
    of_rule.any(|target| {
        let target = target.trim_start_matches('[');
        METADATA_ADDRESSES
            .iter()
            .any(|address| target.starts_with(address))
    })
}

fn out_of_reach(facts: &Facts) -> Vec<Finding> {
    const SUBJECT: &str = "guests' interfaces";
    let of_interfaces = facts.interfaces.iter().filter_map(|interface| {
        let name = &interface.name;
        let is_bypass = matches!(
            interface.kind.as_str(),
            "macvtap" | "macvlan" | "ipvtap" | "ipvlan"
        );
        if is_bypass && interface.is_on_physical {
            let found = format!("{name} is a {} on a physical device", interface.kind);
            return Some(Finding::warn(
                SUBJECT,
                found,
                "its guest is out of reach: put it on a bridge or a tap",
            ));
        }
        if interface.virtual_functions > 0 {
            let found = format!(
                "{name} lends {} SR-IOV functions",
                interface.virtual_functions
            );
            return Some(Finding::warn(
                SUBJECT,
                found,
                "a guest that has one is out of reach: give it a tap or a veth for metadata",
            ));
        }
        None
    });
    let of_processes = facts
        .processes
        .iter()
        .filter(|process| process.is_vhost_user())
        .map(|process| {
            let found = format!(
                "process {} ({}) uses vhost-user",
                process.pid,
                process.program()
            );
            Finding::warn(
                SUBJECT,
                found,
                "its guest is out of reach: give it a tap for metadata",
            )
        });
    or_ok(
        of_interfaces.chain(of_processes).collect(),
        SUBJECT,
        "none passes the host by (macvtap, SR-IOV, vhost-user)",
    )
}

fn user_mode_networking(facts: &Facts) -> Vec<Finding> {
    const SUBJECT: &str = "user-mode networking";
    let processes = facts
        .processes
        .iter()
        .filter(|process| process.is_user_mode_networking());
    let findings = processes.map(|process| {
        let found = format!("process {} ({})", process.pid, process.program());
        Finding::warn(
            SUBJECT,
            found,
            "to the host its guest's calls are this process's own: they reach the host's own metadata service, if there is one, \
             unless host-access = \"allow-list\" in [host] keeps processes from it; for a service of imds give the guest a \
             tap or a veth",
        )
    });
    or_ok(findings.collect(), SUBJECT, "none")
}

fn or_ok(findings: Vec<Finding>, subject: &'static str, found: &str) -> Vec<Finding> {
    if findings.is_empty() {
        vec![Finding::ok(subject, found)]
    } else {
        findings
    }
}

impl Process {
    /// The file name of what was started, without the suffix of passt's variants for CPUs.
    fn program(&self) -> &str {
        let program = self.args.first().map_or("", String::as_str);
        let name = program.rsplit('/').next().unwrap_or(program);
        name.strip_suffix(".avx2").unwrap_or(name)
    }

    fn is_user_mode_networking(&self) -> bool {
        USER_MODE_NETWORKING.contains(&self.program())
            || self.has_qemu_netdev("user")
            || self.has_qemu_default_network()
    }

    fn is_vhost_user(&self) -> bool {
        self.has_qemu_netdev("vhost-user")
    }

    /// A whole machine; `qemu-img` and `qemu-x86_64` are none.
    fn is_qemu_machine(&self) -> bool {
        let program = self.program();
        program.starts_with("qemu-system-") || matches!(program, "qemu-kvm" | "kvm")
    }

    /// QEMU takes `-netdev user,…`, `-nic user,…`, `-net user,…`, each with one hyphen or two; `-netdev` also in JSON, as
    /// libvirt writes it.
    fn has_qemu_netdev(&self, kind: &str) -> bool {
        let is_kind = |arg: &str| {
            let json = serde_json::from_str::<serde_json::Value>(arg);
            let is_in_json = json.is_ok_and(|value| value["type"] == kind);
            let first = arg.split(',').next().unwrap_or_default();
            is_in_json || first == kind || first == format!("type={kind}")
        };
        self.is_qemu_machine()
            && self
                .args
                .windows(2)
                .any(|pair| is_option(&pair[0], &NETWORK_OPTIONS) && is_kind(&pair[1]))
    }

    /// A machine that is started without a word about its network has a card with user-mode networking
    /// (qemu(1), `-nic`), unless it shall have no defaults.
    fn has_qemu_default_network(&self) -> bool {
        let is_about_it =
            |arg: &String| is_option(arg, &NETWORK_OPTIONS) || is_option(arg, &["nodefaults"]);
        self.is_qemu_machine() && !self.args.iter().any(is_about_it)
    }
}

/// QEMU's options about a machine's network.
const NETWORK_OPTIONS: [&str; 3] = ["netdev", "nic", "net"];

fn is_option(arg: &str, names: &[&str]) -> bool {
    arg.starts_with('-') && names.contains(&arg.trim_start_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that lacks nothing.
    fn good() -> Facts {
        Facts {
            is_root: true,
            capabilities: u64::MAX,
            kernel_release: "6.1.0-18-cloud-amd64".into(),
            kernel_config: Some(
                KERNEL_OPTIONS
                    .map(|option| format!("{option}=m\n"))
                    .concat(),
            ),
            has_btf: true,
            has_bpf: true,
            jit: Some(1),
            mounts: vec![
                Mount {
                    target: "/sys/fs/bpf".into(),
                    kind: "bpf".into(),
                },
                Mount {
                    target: "/sys/fs/cgroup/unified".into(),
                    kind: "cgroup2".into(),
                },
            ],
            ..Facts::default()
        }
    }

    fn interface(name: &str, kind: &str) -> Interface {
        Interface {
            name: name.into(),
            kind: kind.into(),
            ..Interface::default()
        }
    }

    fn process(command: &str) -> Process {
        Process {
            pid: 7,
            args: command.split(' ').map(str::to_owned).collect(),
        }
    }

    /// The host, after a change, leads to this finding and to no other that is not ok.
    fn check(change: impl FnOnce(&mut Facts), level: Level, subject: &str, found: &str) {
        let mut facts = good();
        change(&mut facts);
        let findings = examine(&facts);
        let odd: Vec<_> = findings
            .iter()
            .filter(|finding| finding.level != Level::Ok)
            .collect();
        let about: Vec<_> = findings
            .iter()
            .filter(|finding| finding.subject == subject)
            .collect();
        assert_eq!(about.len(), 1, "{about:?}");
        assert_eq!((about[0].level, about[0].found.as_str()), (level, found));
        assert_eq!(about[0].advice.is_some(), level != Level::Ok);
        assert_eq!(odd.len(), usize::from(level != Level::Ok), "{odd:?}");
    }

    #[test]
    fn a_good_host_is_fine_in_every_respect() {
        check(|_| {}, Level::Ok, "cgroup v2", "/sys/fs/cgroup/unified");
    }

    #[test]
    fn privileges() {
        let without = |bit: u32| move |facts: &mut Facts| facts.capabilities &= !(1 << bit);
        check(
            |facts| facts.is_root = false,
            Level::Fail,
            "capabilities",
            "not root",
        );
        check(
            without(21),
            Level::Fail,
            "capabilities",
            "root without CAP_SYS_ADMIN",
        );
        check(
            without(12),
            Level::Fail,
            "capabilities",
            "root without CAP_NET_ADMIN",
        );
        check(
            without(25),
            Level::Ok,
            "capabilities",
            "root, with all that are needed",
        );
    }

    #[test]
    fn kernels() {
        for (release, level) in [
            ("6.18.44", Level::Ok),
            ("6.1.0-18-cloud-amd64", Level::Ok),
            ("10.0-rc1", Level::Ok),
            ("6.0.19", Level::Warn),
            ("5.14.0", Level::Warn),
            ("5.13.19", Level::Fail),
            ("4.19.0", Level::Fail),
        ] {
            check(
                |facts| facts.kernel_release = release.into(),
                level,
                "kernel",
                release,
            );
        }
        check(
            |facts| facts.kernel_release = "odd".into(),
            Level::Warn,
            "kernel",
            "\"odd\"",
        );
    }

    #[test]
    fn kernel_features() {
        check(
            |facts| facts.has_bpf = false,
            Level::Fail,
            "bpf system call",
            "not there",
        );
        check(
            |facts| facts.has_btf = false,
            Level::Fail,
            "BTF",
            "no /sys/kernel/btf/vmlinux",
        );
        check(
            |facts| facts.jit = Some(0),
            Level::Warn,
            "BPF JIT",
            "off: programs are interpreted",
        );
        check(
            |facts| facts.jit = None,
            Level::Ok,
            "BPF JIT",
            "not to be seen from here",
        );
        check(
            |facts| facts.mounts.retain(|mount| mount.kind != "bpf"),
            Level::Warn,
            "bpffs",
            "not mounted: the daemon mounts its own in its state directory",
        );
        check(
            |facts| facts.mounts.retain(|mount| mount.kind != "cgroup2"),
            Level::Warn,
            "cgroup v2",
            "not mounted",
        );
        let lacking = |facts: &mut Facts| {
            let config = facts.kernel_config.take().unwrap();
            facts.kernel_config = Some(config.replace("CONFIG_VETH=m", "# CONFIG_VETH is not set"));
        };
        check(
            lacking,
            Level::Fail,
            "kernel options",
            "built without CONFIG_VETH",
        );
    }

    #[test]
    fn somebody_else_with_the_address() {
        let taken = |facts: &mut Facts| {
            let metadata_addresses = vec!["169.254.169.254".parse().unwrap()];
            facts.interfaces.push(Interface {
                metadata_addresses,
                ..interface("lo", "")
            });
        };
        check(
            taken,
            Level::Warn,
            "metadata address",
            "interface lo has 169.254.169.254",
        );
        let ruled = |facts: &mut Facts| {
            facts
                .firewall_rules
                .push(("nft", "ip daddr 169.254.169.254 drop".into()));
        };
        check(
            ruled,
            Level::Warn,
            "firewall",
            "nft: ip daddr 169.254.169.254 drop",
        );
    }

    #[test]
    fn rules_that_lead_to_the_service_are_told_from_those_about_it() {
        for (rule, expected) in [
            (
                "-A OUTPUT -d 203.0.113.9/32 -p tcp -j DNAT --to-destination 169.254.169.254:80",
                true,
            ),
            (
                "ip daddr 203.0.113.9 tcp dport 80 dnat to 169.254.169.254:80",
                true,
            ),
            ("ip6 daddr 2001:db8::9 dnat ip6 to [fd00:ec2::254]:80", true),
            (
                "-A PREROUTING -d 169.254.169.254/32 -j DNAT --to-destination 10.0.0.1:8080",
                false,
            ),
            ("ip daddr 169.254.169.254 dnat to 10.0.0.1", false),
            ("ip daddr 169.254.169.254 drop", false),
        ] {
            assert_eq!(translates_to_metadata(rule), expected, "{rule}");
        }
    }

    #[test]
    fn the_guard() {
        let with = |is_guarded, has_place| {
            move |facts: &mut Facts| {
                facts.uplinks.push(Uplink {
                    name: "eth0".into(),
                    is_guarded,
                    has_place,
                });
            }
        };
        check(|_| {}, Level::Ok, "guard", "there is no uplink");
        check(with(true, true), Level::Ok, "guard", "on eth0");
        check(
            with(false, true),
            Level::Ok,
            "guard",
            "not on eth0: the daemon puts it there",
        );
        check(
            with(false, false),
            Level::Warn,
            "guard",
            "no place for it on eth0: its queue of kind `ingress` has no way out",
        );
    }

    #[test]
    fn programs_before_ours() {
        const SUBJECT: &str = "programs before ours";
        let with = |is_way_out| {
            move |facts: &mut Facts| {
                facts.ahead.push(Ahead {
                    interface: "tap0".into(),
                    is_way_out,
                    program: "TCX drops (7)".into(),
                });
            }
        };
        check(|_| {}, Level::Ok, SUBJECT, "there are none");
        let found = "TCX drops (7) on the way into tap0";
        check(with(false), Level::Warn, SUBJECT, found);
        let found = "TCX drops (7) on the way out of tap0";
        check(with(true), Level::Warn, SUBJECT, found);
    }

    #[test]
    fn guests_out_of_reach() {
        const SUBJECT: &str = "guests' interfaces";
        const NONE: &str = "none passes the host by (macvtap, SR-IOV, vhost-user)";
        let with = |interface: Interface| move |facts: &mut Facts| facts.interfaces.push(interface);
        let macvtap = Interface {
            is_on_physical: true,
            ..interface("macvtap0", "macvtap")
        };
        check(
            with(macvtap),
            Level::Warn,
            SUBJECT,
            "macvtap0 is a macvtap on a physical device",
        );
        check(
            with(interface("macvtap0", "macvtap")),
            Level::Ok,
            SUBJECT,
            NONE,
        );
        check(with(interface("veth0", "veth")), Level::Ok, SUBJECT, NONE);
        let sriov = Interface {
            virtual_functions: 2,
            ..interface("ens1", "")
        };
        check(
            with(sriov),
            Level::Warn,
            SUBJECT,
            "ens1 lends 2 SR-IOV functions",
        );
        let qemu = process("/usr/bin/qemu-system-x86_64 -netdev vhost-user,id=n0,chardev=c0");
        check(
            |facts| facts.processes.push(qemu),
            Level::Warn,
            SUBJECT,
            "process 7 (qemu-system-x86_64) uses vhost-user",
        );
    }

    #[test]
    fn user_mode_networking() {
        for (command, is_found) in [
            ("slirp4netns --mtu=65520 4711 tap0", true),
            ("/usr/bin/pasta --config-net", true),
            ("/usr/bin/passt.avx2", true),
            ("qemu-system-x86_64 -m 512 -netdev user,id=n0", true),
            ("qemu-system-x86_64 -nic user", true),
            ("qemu-system-x86_64 -net nic -net user", true),
            ("qemu-system-aarch64 --netdev type=user,id=n0", true),
            ("qemu-kvm -netdev {\"type\":\"user\",\"id\":\"n0\"}", true),
            ("qemu-system-x86_64 -m 512", true),
            ("rootlesskit --net=slirp4netns", true),
            ("qemu-system-x86_64 -nodefaults", false),
            ("qemu-system-x86_64 -nic none", false),
            ("qemu-kvm -netdev {\"type\":\"tap\",\"id\":\"user\"}", false),
            ("qemu-img create user", false),
            ("qemu-x86_64 /bin/true", false),
            ("qemu-system-x86_64 -netdev tap,id=n0", false),
            ("qemu-system-x86_64 -name user -netdev tap", false),
            ("vim slirp4netns.c", false),
            ("", false),
        ] {
            let process = process(command);
            let found = if is_found {
                format!("process 7 ({})", process.program())
            } else {
                "none".into()
            };
            let level = if is_found { Level::Warn } else { Level::Ok };
            check(
                |facts| facts.processes.push(process),
                level,
                "user-mode networking",
                &found,
            );
        }
    }

    #[test]
    fn releases_have_two_numbers() {
        for (release, expected) in [
            ("6.1.0-18-cloud-amd64", Some((6, 1))),
            ("6.18", Some((6, 18))),
            ("6", None),
            ("", None),
            ("x.y", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
    }
}
