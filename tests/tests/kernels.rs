//! Other kernels than this machine's: the programs load, and guests are told apart, on a machine that boots one.

use imds_tests::{Host, Machine, imds_path};

/// In the machine: a lab with three guests, asked who they are; then a daemon that is killed, and another that goes on.
const SCRIPT: &str = r#"
mount -t tmpfs none /run
mount -t tmpfs none /tmp
mount -t bpf none /sys/fs/bpf
mkdir -p /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup
echo "kernel: $(uname -r)"
imds doctor
echo "doctor: $?"
imds lab up
echo "up: $?"
for GUEST in web db legacy; do
  test $GUEST = db && TOKEN_OF_WEB=$TOKEN
  TOKEN=$(imds lab exec $GUEST -- curl -sS --max-time 20 -X PUT http://169.254.169.254/latest/api/token -H 'X-aws-ec2-metadata-token-ttl-seconds: 60')
  echo "$GUEST: $(imds lab exec $GUEST -- curl -sS --max-time 20 -H "X-aws-ec2-metadata-token: $TOKEN" http://169.254.169.254/latest/meta-data/instance-id)"
done
imds lab exec web -- curl -gsS --max-time 20 -o /dev/null -w 'web without a token over IPv6: %{http_code}\n' 'http://[fd00:ec2::254]/latest/meta-data/'
imds lab exec host -- ip route add default dev br0
sleep 1
imds status --state-dir /run/imds-lab | grep '^Guard'
kill -9 $(imds lab status --json | sed -n 's/.*"daemon_pid": \([0-9]*\).*/\1/p')
sleep 1
imds lab exec db -- curl -sS --max-time 20 http://169.254.169.254/latest/meta-data/
echo "without a daemon: $?"
ls /sys/fs/bpf/*
mkdir /sys/fs/cgroup/named
sed -i 's/^\[host\]/[host]\nhost-access = "allow-list"\nhost-access-cgroups = ["named"]/' /run/imds-lab/imds.toml
imds lab exec host -- imds run --config /run/imds-lab/imds.toml --state-dir /run/imds-lab &
for TRY in 1 2 3 4 5 6 7 8 9 10; do
  imds status --state-dir /run/imds-lab > /dev/null && break
  sleep 1
done
echo "web again: $(imds lab exec web -- curl -sS --max-time 20 -H "X-aws-ec2-metadata-token: $TOKEN_OF_WEB" http://169.254.169.254/latest/meta-data/instance-id)"
for URL in http://169.254.169.254 'http://[fd00:ec2::254]'; do
  imds lab exec host -- curl -gsS --max-time 2 $URL
done
sh -c 'echo $$ > /sys/fs/cgroup/named/cgroup.procs; exec imds lab exec host -- curl -sS --max-time 1 http://169.254.169.254'
imds status --state-dir /run/imds-lab | grep '^Host'
imds lab down
echo "down: $?"
echo "pins left: $(ls /sys/fs/bpf)."
"#;

#[test]
fn guests_are_told_apart_on_debians_kernel() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let Some(host) = Host::new() else { return };
    let console = machine.run_as_host(&host, &[&imds_path()], SCRIPT);
    let version = machine.kernel_version();
    for line in [
        &format!("kernel: {version}"),
        "up: 0",
        "down: 0",
        "web without a token over IPv6: 401",
        // The responder answers on.
        "without a daemon: 0",
        "Guard      on br0, veth-legacy",
        // The third call was of the cgroup that is named.
        "Host       may call its own metadata service: named; refused to / 2",
        "pins left: .",
    ] {
        assert!(console.contains(line), "{line} is missing:\n{console}");
    }
    let ids: Vec<&str> = ["web: i-", "db: i-", "legacy: i-", "web again: i-"]
        .into_iter()
        .map(|begins| {
            let line = console.lines().find(|line| line.starts_with(begins));
            line.unwrap_or_else(|| panic!("no line {begins}:\n{console}"))
        })
        .filter_map(|line| line.split(' ').next_back())
        .collect();
    assert!(
        ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2],
        "{ids:?}"
    );
    assert_eq!(ids[0], ids[3], "a token and an identity outlive the daemon");
}
