//! Looks at the host: /proc, /sys, netlink, and the firewall's own tools where they are installed. Reads only.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::ifaddrs::getifaddrs;

use super::{Ahead, Facts, Interface, METADATA_ADDRESSES, Mount, Process, Uplink};
use crate::dataplane::ahead;
use crate::dataplane::filter::{Direction, Filters};
use crate::netns::link::{Link, LinkError, Links};
use crate::netns::uplink;

/// The tools that know the firewall's rules. Where `iptables` means nftables, the older tables have tools of their own.
const FIREWALL_TOOLS: [(&str, &[&str]); 5] = [
    ("iptables-save", &[]),
    ("ip6tables-save", &[]),
    ("iptables-legacy-save", &[]),
    ("ip6tables-legacy-save", &[]),
    ("nft", &["list", "ruleset"]),
];

/// Gathers what [`super::examine`] judges, for the network namespace of the calling thread. Must be called within
/// a tokio runtime. What cannot be read is left out: without root that is much.
///
/// # Errors
/// When the interfaces cannot be listed.
pub async fn facts() -> Result<Facts, LinkError> {
    let handle = Links::open()?;
    let (links, ways) = (handle.list().await?, handle.ways().await?);
    Ok(Facts {
        is_root: nix::unistd::geteuid().is_root(),
        capabilities: capabilities(&read("/proc/self/status")),
        kernel_release: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        kernel_config: kernel_config(),
        has_btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        // The kernel shows this setting exactly when it has the system call.
        has_bpf: Path::new("/proc/sys/kernel/unprivileged_bpf_disabled").exists(),
        jit: read("/proc/sys/net/core/bpf_jit_enable")
            .trim()
            .parse()
            .ok(),
        mounts: mounts(&read("/proc/self/mounts")),
        interfaces: interfaces(&links),
        uplinks: uplink::uplinks(&links, &ways)
            .into_iter()
            .map(describe_uplink)
            .collect(),
        // Without root nobody may look.
        ahead: programs_ahead(),
        firewall_rules: firewall_rules(),
        processes: processes(),
    })
}

/// A file of /proc, or nothing where there is none.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

/// Where distributions put it; `/proc/config.gz` is read by `zcat`, if that is there.
fn kernel_config() -> Option<String> {
    let release = read("/proc/sys/kernel/osrelease");
    let release = release.trim();
    let paths = [
        format!("/boot/config-{release}"),
        format!("/lib/modules/{release}/config"),
    ];
    paths
        .iter()
        .find_map(|path| fs::read_to_string(path).ok())
        .or_else(|| {
            if Path::new("/proc/config.gz").exists() {
                output_of("zcat", &["/proc/config.gz"])
            } else {
                None
            }
        })
}

/// Lines of `/proc/self/mounts`: what, where, file system, proc_pid_mounts(5).
fn mounts(text: &str) -> Vec<Mount> {
    let fields = text.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    fields
        .map(|(target, kind)| Mount {
            target: target.to_owned(),
            kind: kind.to_owned(),
        })
        .collect()
}

fn interfaces(links: &[Link]) -> Vec<Interface> {
    let mut addresses = metadata_addresses();
    let is_physical = |link: &Link| {
        Path::new("/sys/class/net")
            .join(&link.name)
            .join("device")
            .exists()
    };
    let physical: Vec<u32> = links
        .iter()
        .filter(|link| is_physical(link))
        .map(|link| link.index)
        .collect();
    let describe = |link: &Link| Interface {
        name: link.name.clone(),
        kind: link.kind.clone(),
        is_on_physical: link.peer_netnsid.is_none()
            && link.lower.is_some_and(|index| physical.contains(&index)),
        virtual_functions: read(&format!("/sys/class/net/{}/device/sriov_numvfs", link.name))
            .trim()
            .parse()
            .unwrap_or(0),
        metadata_addresses: addresses.remove(&link.name).unwrap_or_default(),
    };
    links.iter().map(describe).collect()
}

/// What cannot be asked counts as not there.
fn describe_uplink(link: &Link) -> Uplink {
    let filters = Filters::open();
    let (is_guarded, has_place) = filters.map_or((false, true), |mut filters| {
        let on = filters.on(link.index).unwrap_or_default();
        let is_guarded = on.iter().any(|one| one.direction == Direction::Egress);
        (
            is_guarded,
            !filters.has_no_way_out(link.index).unwrap_or(false),
        )
    });
    Uplink {
        name: link.name.clone(),
        is_guarded,
        has_place,
    }
}

fn programs_ahead() -> Vec<Ahead> {
    let found = ahead::all().unwrap_or_default();
    let describe = |one: ahead::Ahead| Ahead {
        interface: one.interface,
        is_way_out: one.direction == Direction::Egress,
        program: one.program,
    };
    found.into_iter().map(describe).collect()
}

/// Which interface has which metadata address.
fn metadata_addresses() -> HashMap<String, Vec<IpAddr>> {
    let wanted: Vec<IpAddr> = METADATA_ADDRESSES
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect();
    let mut found: HashMap<String, Vec<IpAddr>> = HashMap::new();
    for address in getifaddrs().into_iter().flatten() {
        let Some(socket) = address.address else {
            continue;
        };
        let ipv4 = socket.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        let ipv6 = socket.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip()));
        if let Some(ip) = ipv4.or(ipv6).filter(|ip| wanted.contains(ip)) {
            found.entry(address.interface_name).or_default().push(ip);
        }
    }
    found
}

fn firewall_rules() -> Vec<(&'static str, String)> {
    let mut found: Vec<(&'static str, String)> = Vec::new();
    for (tool, args) in FIREWALL_TOOLS {
        let rules = output_of(tool, args).unwrap_or_default();
        for rule in rules_about_us(&rules) {
            // Where `iptables` means the older tables, two tools tell of the same rule.
            if !found.iter().any(|(_, known)| known == rule) {
                found.push((tool, rule.to_owned()));
            }
        }
    }
    found
}

fn rules_about_us(rules: &str) -> impl Iterator<Item = &str> {
    let is_about_us = |line: &&str| {
        METADATA_ADDRESSES
            .iter()
            .any(|address| line.contains(address))
    };
    rules
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .filter(is_about_us)
}

/// What a tool prints, if it is installed and content.
fn output_of(tool: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(tool)
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The processes of this network namespace, and those that do not show where they are. What calls for a guest from
/// elsewhere, as in a container, is that namespace's business.
fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let here = fs::read_link("/proc/thread-self/ns/net").ok();
    let is_elsewhere = |pid: &u32| {
        let there = fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        there.is_some() && there != here
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| !is_elsewhere(pid))
        .filter_map(|pid| {
            Some(Process {
                pid,
                args: args_of(pid)?,
            })
        })
        .collect()
}

fn args_of(pid: u32) -> Option<Vec<String>> {
    /// The kernel has no bound for a command line; a QEMU of a large guest has some 10 KB.
    const ARGS_BYTES_MAX: u64 = 64 << 10;
    let mut bytes = Vec::new();
    fs::File::open(format!("/proc/{pid}/cmdline"))
        .ok()?
        .take(ARGS_BYTES_MAX)
        .read_to_end(&mut bytes)
        .ok()?;
    let args = bytes.split(|byte| *byte == 0).filter(|arg| !arg.is_empty());
    Some(
        args.map(|arg| String::from_utf8_lossy(arg).into_owned())
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::for_test::Scratch;
    use crate::netns::link::{Route, VethPair};

    #[test]
    fn capabilities_are_read_from_status() {
        assert_eq!(
            capabilities("Name:\timds\nCapInh:\t0000000000000001\nCapEff:\t000001ffffffffff\n"),
            0x1ff_ffff_ffff
        );
        assert_eq!(capabilities(""), 0);
    }

    #[test]
    fn mounts_are_read_by_kind() {
        let text = "bpf /sys/fs/bpf bpf rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\nodd\n";
        let kinds: Vec<_> = mounts(text)
            .into_iter()
            .map(|mount| (mount.kind, mount.target))
            .collect();
        assert_eq!(
            kinds,
            [
                ("bpf".into(), "/sys/fs/bpf".into()),
                ("cgroup2".into(), "/sys/fs/cgroup".into())
            ]
        );
    }

    #[test]
    fn rules_that_name_the_address_are_found() {
        let rules = "# 169.254.169.254\n-A PREROUTING -d 169.254.169.254/32 -j DNAT\n-A INPUT -j DROP\n\tip6 daddr fd00:ec2::254 drop\n";
        let found: Vec<_> = rules_about_us(rules).collect();
        assert_eq!(
            found,
            [
                "-A PREROUTING -d 169.254.169.254/32 -j DNAT",
                "ip6 daddr fd00:ec2::254 drop"
            ]
        );
    }

    #[test]
    fn an_interface_with_the_address_is_found() {
        let Some(scratch) = Scratch::new() else {
            return;
        };
        // This process is elsewhere: one of its threads is here, and the child that it makes.
        let (facts, child) = scratch
            .0
            .run_async(|| async {
                let mut child = Command::new("sleep").arg("60").spawn().unwrap();
                let links = Links::open().unwrap();
                links.add_veth(&VethPair::new("a", "b")).await.unwrap();
                links.set_up("a").await.unwrap();
                links
                    .add_address("a", "169.254.169.254".parse().unwrap(), 32)
                    .await
                    .unwrap();
                links
                    .add_route(&Route::to_host("192.0.2.1".parse().unwrap()).dev("a"))
                    .await
                    .unwrap();
                let facts = facts().await.unwrap();
                child.kill().unwrap();
                child.wait().unwrap();
                (facts, child.id())
            })
            .unwrap();
        let a = facts
            .interfaces
            .iter()
            .find(|interface| interface.name == "a")
            .unwrap();
        assert_eq!(
            a.metadata_addresses,
            ["169.254.169.254".parse::<IpAddr>().unwrap()]
        );
        assert!(!a.is_on_physical);
        assert!(facts.has_bpf && !facts.kernel_release.is_empty() && !facts.mounts.is_empty());
        let is_known = |pid: u32| facts.processes.iter().any(|process| process.pid == pid);
        assert!(is_known(child) && !is_known(std::process::id()));
    }
}
