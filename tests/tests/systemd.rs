//! What the unit promises, kept under a real systemd: a virtual machine that is a host of its own, with its unit installed
//! as the README says.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use imds_tests::{GuestSystem, Host, Machine, imds_path};

/// Says one fact a line, `fact NAME: VALUE`. The guest asks with a new connection each time, and for twenty seconds at most.
const SCRIPT: &str = r#"
exec > /dev/ttyS0 2>&1
fact() { echo "fact $1: $2"; }
ask() { nsenter --net=/run/netns/guest curl -sS -m 20 http://169.254.169.254/latest/meta-data/instance-id; }
answered() { test "$(ask)" = i-0123456789abcdef0 && echo yes || echo no; }
daemon() { systemctl show --property MainPID --value imds; }
responder() { imds status --json | sed -n '/"responder"/,/}/s/.*"pid": \([0-9]*\).*/\1/p'; }
# Until a command says so, as long as the machine may run.
until_is() { until test "$("${@:2}")" = "$1"; do sleep 0.1; done; }
is_another() { test "$(daemon)" != "$1" && test "$(daemon)" != 0 && systemctl is-active imds; }

begin_load() {
  : > /run/answers; rm -f /run/enough
  while ! test -e /run/enough; do answered >> /run/answers; done &
  until grep -q yes /run/answers; do sleep 0.1; done
}
end_load() {
  touch /run/enough; wait
  fact "$1, lost" "$(grep -c no /run/answers)"
  fact "$1, answered" "$(grep -c yes /run/answers)"
}

ip netns add guest
ip link add veth-guest type veth peer name eth0 netns guest
ip link set veth-guest up
ip -n guest addr add 10.0.0.2/24 dev eth0
ip -n guest link set eth0 up
ip -n guest route add default dev eth0
cat > /etc/imds.toml <<'END'
[[instance]]
name = "guest"
port = "veth-guest"
id = "i-0123456789abcdef0"
END

systemd-sysusers
systemctl daemon-reload
systemctl start imds
fact "started" "$(systemctl is-active imds)"
fact "first answer" "$(answered)"
fact "sockets that systemd keeps" "$(systemctl show --property NFileDescriptorStore --value imds)"
fact "the responder is" "$(ps -o user= -p "$(responder)" 2>/dev/null || stat -c %U "/proc/$(responder)")"
fact "exposure" "$(systemd-analyze security --no-pager imds.service | grep 'Overall exposure')"

FIRST=$(responder)
begin_load
systemctl restart imds
systemctl restart imds
end_load "restarts"
fact "restarts, same responder" "$(test "$(responder)" = "$FIRST" && echo yes || echo no)"

begin_load
KILLED=$(daemon)
kill -9 "$KILLED"
until_is active is_another "$KILLED"
end_load "daemon killed"
fact "daemon killed, same responder" "$(test "$(responder)" = "$FIRST" && echo yes || echo no)"

begin_load
install -m 755 /usr/bin/imds /usr/bin/imds.new && mv /usr/bin/imds.new /usr/bin/imds
systemctl restart imds
end_load "upgrade"
fact "upgrade, same responder" "$(test "$(responder)" = "$FIRST" && echo yes || echo no)"

kill -9 "$(daemon)" "$(responder)"
fact "both killed, answered" "$(answered)"
until_is active systemctl is-active imds
fact "both killed, sockets that systemd keeps" "$(systemctl show --property NFileDescriptorStore --value imds)"

systemctl stop imds
fact "stopped, answered" "$(answered)"
systemctl start imds

cp /etc/imds.toml /run/right.toml
echo 'port = 3' >> /etc/imds.toml
systemctl restart imds; fact "wrong file, restart says" "$?"
fact "wrong file" "$(systemctl is-failed imds)"
fact "wrong file, restarts" "$(systemctl show --property NRestarts --value imds)"
fact "wrong file, answered" "$(answered)"
cp /run/right.toml /etc/imds.toml
systemctl reset-failed imds
systemctl start imds

cp /usr/bin/imds /run/right
printf '#!/bin/sh\nexit 1\n' > /usr/bin/imds.new && chmod 755 /usr/bin/imds.new
DAEMON=$(daemon); RESPONDER=$(responder)
mv /usr/bin/imds.new /usr/bin/imds
kill -9 "$DAEMON" "$RESPONDER"
until_is failed systemctl is-failed imds
fact "given up, sockets that systemd keeps" "$(systemctl show --property NFileDescriptorStore --value imds)"
ask; fact "given up, curl says" "$?"
install -m 755 /run/right /usr/bin/imds.new && mv /usr/bin/imds.new /usr/bin/imds
systemctl reset-failed imds
systemctl start imds
fact "started again, answered" "$(answered)"

systemctl stop imds
imds down; fact "down says" "$?"
fact "processes left" "$(pgrep -c -x imds || true)"
fact "namespaces left" "$(ip netns list | wc -l)"
fact "end" reached
"#;

#[test]
fn the_unit_keeps_its_promises_under_systemd() {
    let (Some(machine), Some(system)) = (Machine::find(), GuestSystem::find()) else {
        return;
    };
    let Some(host) = Host::new() else { return };
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist");
    let read = |name: &str| fs::read_to_string(dist.join(name)).expect("it is in dist");
    let prepare = format!(
        "cp /bin/imds /disk/usr/bin/imds\n\
         cat > /disk/etc/systemd/system/imds.service <<'END-OF-UNIT'\n{}\nEND-OF-UNIT\n\
         cat > /disk/usr/lib/sysusers.d/imds.conf <<'END-OF-UNIT'\n{}\nEND-OF-UNIT\n",
        read("imds.service"),
        read("imds.sysusers")
    );
    let console = machine.run_as_systemd_host(&host, &system, &[&imds_path()], &prepare, SCRIPT);
    let facts: BTreeMap<&str, &str> = console
        .lines()
        .filter_map(|line| line.trim_end().strip_prefix("fact ")?.split_once(": "))
        .collect();
    for (name, value) in &facts {
        println!("{name}: {value}");
    }
    for (name, expected) in [
        ("started", "active"),
        ("first answer", "yes"),
        ("sockets that systemd keeps", "2"),
        ("the responder is", "imds"),
        ("restarts, lost", "0"),
        ("restarts, same responder", "yes"),
        ("daemon killed, lost", "0"),
        ("daemon killed, same responder", "yes"),
        ("upgrade, lost", "0"),
        ("upgrade, same responder", "no"),
        ("both killed, answered", "yes"),
        ("both killed, sockets that systemd keeps", "2"),
        ("stopped, answered", "yes"),
        ("wrong file", "failed"),
        ("wrong file, restarts", "0"),
        ("wrong file, answered", "yes"),
        ("given up, sockets that systemd keeps", "0"),
        // The connection was refused.
        ("given up, curl says", "7"),
        ("started again, answered", "yes"),
        ("down says", "0"),
        ("processes left", "0"),
        // The guest's own.
        ("namespaces left", "1"),
        ("end", "reached"),
    ] {
        assert_eq!(facts.get(name), Some(&expected), "{name}:\n{console}");
    }
}
