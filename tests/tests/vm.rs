//! A real virtual machine asks who it is.

use imds_tests::{Host, Machine};

const MAC: &str = "06:17:04:d7:26:09";

#[test]
fn a_virtual_machine_gets_its_own_instance_id() {
    let Some(machine) = Machine::find() else {
        return;
    };
    let Some(mut host) = Host::new() else { return };
    let data: Vec<u8> = (0..16_384_u32).map(|n| (n % 251) as u8).collect();
    let port = host
        .guest("vm")
        .tokens_required()
        .ipv6_enabled()
        .user_data(&data)
        .persistent_tap();
    // A neighbour with the same address: the answer has to be the machine's own all the same.
    let web = host.guest("web").routed("10.0.0.10").up();
    let _daemon = host.start();
    assert_eq!(web.get(imds_tests::INSTANCE_ID).text(), web.id());
    let script = r#"
echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad
ip link set eth0 up
ip addr add 10.0.0.10/24 dev eth0
ip route add 169.254.169.254/32 dev eth0
ip -6 route add fd00:ec2::254/128 dev eth0
# The card's link-local address comes a moment after the card: before, a call would leave with ::1 as its source.
N=0; until ip -6 addr show dev eth0 | grep -q 'scope link' || [ $N = 100 ]; do sleep 0.1; N=$((N+1)); done
for BASE in http://169.254.169.254 'http://[fd00:ec2::254]'; do
  TOKEN=$(curl -gsS --max-time 15 -X PUT $BASE/latest/api/token -H 'X-aws-ec2-metadata-token-ttl-seconds: 60')
  echo "instance-id by $BASE: $(curl -gsS --max-time 15 -H "X-aws-ec2-metadata-token: $TOKEN" $BASE/latest/meta-data/instance-id)"
  echo "user-data by $BASE: $(curl -gsS --max-time 15 -H "X-aws-ec2-metadata-token: $TOKEN" $BASE/latest/user-data | wc -c)"
done
"#;
    let console = machine.run(&host, &port.name, MAC, script);
    for base in ["http://169.254.169.254", "http://[fd00:ec2::254]"] {
        assert!(
            console.contains(&format!("instance-id by {base}: {}", port.id)),
            "{console}"
        );
        assert!(
            console.contains(&format!("user-data by {base}: 16384")),
            "{console}"
        );
    }
}
