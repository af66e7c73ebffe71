//! The host's firewall has no say between a guest and the service: neither can break it, nor need it be opened.

use imds_tests::{Address, Guest, Host, INSTANCE_ID, Namespace, has_command};

/// Everything that can be dropped in the families that know IP, as early as there is a hook.
const NFT_DROPS_ALL: &str = "
table inet imds_test {
  chain raw { type filter hook prerouting priority raw; policy drop; }
  chain input { type filter hook input priority filter; policy drop; }
  chain forward { type filter hook forward priority filter; policy drop; }
  chain output { type filter hook output priority filter; policy drop; }
  chain out { type filter hook postrouting priority raw; policy drop; }
}
";

/// The same for bridged packets.
const NFT_DROPS_BRIDGED: &str = "
table bridge imds_test {
  chain raw { type filter hook prerouting priority -300; policy drop; }
  chain input { type filter hook input priority filter; policy drop; }
  chain forward { type filter hook forward priority filter; policy drop; }
  chain output { type filter hook output priority filter; policy drop; }
}
";

const TABLES: [&str; 2] = ["iptables", "ip6tables"];

fn check_served(guests: &[Guest]) {
    for guest in guests {
        assert_eq!(
            guest.get(INSTANCE_ID).text(),
            guest.id(),
            "{}",
            guest.name()
        );
        assert_eq!(
            guest.get_from(Address::V6, INSTANCE_ID).text(),
            guest.id(),
            "{} over IPv6",
            guest.name()
        );
    }
}

/// Guests on every way; those behind a bridge ask on their link, because a bridge that lets no ARP in is no gateway.
fn guests_of(host: &mut Host) -> Vec<Guest> {
    vec![
        host.guest("routed")
            .routed("10.0.0.10")
            .ipv6("fd00:1::10")
            .up(),
        host.guest("onlink")
            .on_link("10.0.0.10")
            .ipv6("fd00:1::10")
            .up(),
        host.guest("bridged")
            .bridged("br0", "10.0.0.10")
            .ipv6("fd00:1::10")
            .up(),
    ]
}

fn check_with(block: impl Fn(&Namespace)) {
    let Some(mut host) = Host::new() else { return };
    let mut guests = guests_of(&mut host);
    block(host.namespace());
    let daemon = host.start();
    check_served(&guests[..2]);
    daemon.stop();
    // And where the rules come after the daemon, while a bridged guest knows its gateway already.
    guests.rotate_right(1);
    let Some(mut host) = Host::new() else { return };
    let guests = guests_of(&mut host);
    let _daemon = host.start();
    check_served(&guests);
    block(host.namespace());
    check_served(&guests);
}

#[test]
fn nftables_that_drop_everything_disturb_nothing() {
    if !has_command("nft") {
        return;
    }
    check_with(|host| host.batch("nft", &["-f", "-"], NFT_DROPS_ALL));
}

#[test]
fn nftables_that_drop_every_bridged_frame_disturb_nothing() {
    if !has_command("nft") {
        return;
    }
    check_with(|host| host.batch("nft", &["-f", "-"], NFT_DROPS_BRIDGED));
}

#[test]
fn iptables_that_drop_everything_disturb_nothing() {
    if !has_command("iptables-restore") {
        return;
    }
    check_with(|host| drop_by_iptables(host, ""));
}

#[test]
fn legacy_iptables_that_drop_everything_disturb_nothing() {
    if !has_command("iptables-legacy-restore") {
        return;
    }
    check_with(|host| drop_by_iptables(host, "-legacy"));
}

fn drop_by_iptables(host: &Namespace, flavour: &str) {
    let rules = "*raw\n:PREROUTING DROP\n:OUTPUT DROP\nCOMMIT\n\
                 *filter\n:INPUT DROP\n:FORWARD DROP\n:OUTPUT DROP\nCOMMIT\n";
    for table in TABLES {
        host.batch(&format!("{table}{flavour}-restore"), &[], rules);
    }
}

/// A rule that redirects the metadata address to something else, as agents of container platforms install it.
#[test]
fn address_translation_on_the_host_disturbs_nothing() {
    if !has_command("nft") {
        return;
    }
    let rules = "
table ip imds_test {
  chain pre { type nat hook prerouting priority dstnat; ip daddr 169.254.169.254 tcp dport 80 dnat to 127.0.0.1:8181; }
  chain post { type nat hook postrouting priority srcnat; masquerade; }
}
";
    check_with(|host| host.batch("nft", &["-f", "-"], rules));
}
