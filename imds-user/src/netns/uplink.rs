//! Which interfaces of the calling thread's namespace are uplinks: those that a default route leaves by.

use std::{collections::BTreeSet, fs, io};

/// The names of the interfaces with a default route, IPv4 or IPv6.
///
/// # Errors
/// When /proc cannot be read.
pub fn uplinks() -> io::Result<BTreeSet<String>> {
    let v4 = fs::read_to_string("/proc/thread-self/net/route")?;
    // A kernel without IPv6 has no such file.
    let v6 = fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap_or_default();
    Ok(default_v4(&v4)
        .chain(default_v6(&v6))
        .map(str::to_owned)
        .collect())
}

/// Lines of `/proc/net/route`: interface, destination, gateway, flags, references, use, metric, mask …
fn default_v4(table: &str) -> impl Iterator<Item = &str> {
    table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_default = fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000");
        is_default.then(|| fields[0])
    })
}

/// Lines of `/proc/net/ipv6_route`: destination, its prefix length, … flags, interface. The kernel lists its own
/// "unreachable" default routes by `lo`.
fn default_v6(table: &str) -> impl Iterator<Item = &str> {
    table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let interface = *fields.last()?;
        let is_default =
            fields[0].bytes().all(|digit| digit == b'0') && fields.get(1) == Some(&"00");
        (is_default && interface != "lo").then_some(interface)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_are_found_in_the_kernels_tables() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                  wide0\t00000000\t010200C0\t0003\t0\t0\t0\t000000FE\t0\t0\t0\n";
        assert_eq!(default_v4(v4).collect::<Vec<_>>(), ["eth0"]);
        let zeros = "0".repeat(32);
        let v6 = format!(
            "{zeros} 00 {zeros} 00 fe80{} 00000400 1 0 00000003 eth1\n\
             fd00{} 40 {zeros} 00 {zeros} 00000100 1 0 00000001 eth2\n\
             {zeros} 00 {zeros} 00 {zeros} ffffffff 1 0 00200200 lo\n",
            "0".repeat(28),
            "0".repeat(28)
        );
        assert_eq!(default_v6(&v6).collect::<Vec<_>>(), ["eth1"]);
    }
}
