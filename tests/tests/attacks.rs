//! What a guest tries against its neighbours and against the service's own doors, as far as no other file has it: see
//! docs/pentest.md for all of it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use imds_tests::{Address, Arp, Guest, Host, INSTANCE_ID, Tap, TcpFrame, eventually, has_command};

const SERVICE: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The answer to bytes that the guest sent, head and all, as text.
fn answer_to(guest: &Guest, request: &str) -> String {
    let mut connection = guest.connect();
    connection
        .send(request.as_bytes())
        .expect("a short request");
    let (answer, is_closed) = connection.receive_raw(Duration::from_secs(5));
    assert!(is_closed, "{request:?} is still open");
    String::from_utf8(answer).expect("an answer is text")
}

/// Who asks is known from the port alone: nothing that is written into a request changes it.
#[test]
fn no_form_of_a_request_changes_who_is_asked_about() {
    let Some(mut host) = Host::new() else { return };
    let mallory = host.guest("mallory").routed("10.0.0.10").up();
    let victim = host.guest("victim").routed("10.0.0.11").up();
    let _daemon = host.start();
    let id = victim.id();
    let fields = [
        "Host: 10.0.0.11".to_owned(),
        "Host: victim".to_owned(),
        format!("Host: {id}"),
        "Host: 127.128.0.1\r\nHost: 127.128.0.2".to_owned(),
        "X-Forwarded-For: 10.0.0.11".to_owned(),
        "X-Forwarded-Host: victim".to_owned(),
        "Forwarded: for=10.0.0.11;host=victim".to_owned(),
        "X-Real-IP: 10.0.0.11".to_owned(),
        "X-Original-URL: /latest/user-data".to_owned(),
        "Via: 1.1 victim".to_owned(),
        format!("X-Instance-ID: {id}"),
        format!("X-aws-ec2-instance-id: {id}"),
        "Cookie: instance=victim".to_owned(),
        "Authorization: Basic dmljdGltOg==".to_owned(),
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings".to_owned(),
        "Transfer-Encoding: chunked\r\nContent-Length: 4".to_owned(),
    ];
    let targets = [
        INSTANCE_ID.to_owned(),
        format!("http://victim{INSTANCE_ID}"),
        format!("http://10.0.0.11{INSTANCE_ID}"),
        format!("http://{id}@169.254.169.254{INSTANCE_ID}"),
        format!("//victim{INSTANCE_ID}"),
        format!("{INSTANCE_ID}?instance-id={id}"),
        format!("{INSTANCE_ID}/../../../{id}/latest/meta-data/instance-id"),
        format!("/{id}{INSTANCE_ID}"),
    ];
    let mut n_told = 0;
    for target in &targets {
        for field in &fields {
            let request = format!("GET {target} HTTP/1.1\r\n{field}\r\n\r\n");
            let answer = answer_to(&mallory, &request);
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            assert!(!body.contains(id), "{request:?}: {answer:?}");
            n_told += u64::from(body == mallory.id());
        }
    }
    assert!(n_told > 0, "the guest was told who it is itself");
    assert_eq!(victim.get(INSTANCE_ID).text(), id);
}

/// A browser or a server inside the guest that can be made to GET any address, under any name (SSRF, DNS rebinding): where
/// tokens are required it learns nothing, since it can neither PUT nor add a field of its own.
#[test]
fn a_get_that_a_guest_was_tricked_into_opens_nothing_where_tokens_are_required() {
    let Some(mut host) = Host::new() else { return };
    let strict = host
        .guest("strict")
        .routed("10.0.0.10")
        .tokens_required()
        .up();
    let _daemon = host.start();
    let status = |request: &str| {
        let answer = answer_to(&strict, request);
        let status = answer.split(' ').nth(1).map(str::to_owned);
        status.unwrap_or_else(|| panic!("{request:?}: {answer:?}"))
    };
    for host in ["169.254.169.254", "rebound.example", "localhost"] {
        let get = format!("GET {INSTANCE_ID} HTTP/1.1\r\nHost: {host}\r\n");
        assert_eq!(status(&format!("{get}\r\n")), "401", "{host}");
        // What a page may set without being asked for leave does not help.
        let simple =
            "Accept: */*\r\nContent-Type: text/plain\r\nOrigin: http://rebound.example\r\n";
        assert_eq!(status(&format!("{get}{simple}\r\n")), "401", "{host}");
    }
    // A browser asks for leave before it sends a PUT or a field of its own, and is not given it.
    let leave = "OPTIONS /latest/api/token HTTP/1.1\r\nHost: rebound.example\r\nOrigin: http://rebound.example\r\n\
                 Access-Control-Request-Method: PUT\r\n\r\n";
    let answer = answer_to(&strict, leave);
    assert!(
        !answer.to_lowercase().contains("access-control"),
        "{answer:?}"
    );
    let post = "POST /latest/api/token HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
    assert!(!answer_to(&strict, post).starts_with("HTTP/1.1 2"));
    // That the guest itself gets on.
    let token = strict.put_token(60);
    assert_eq!(
        strict.get_with_token(INSTANCE_ID, &token).text(),
        strict.id()
    );
}

/// A guest plugged into the bridge of a victim that looks for the service on its own link.
fn on_one_bridge(host: &mut Host) -> (Guest, Tap) {
    let victim = host
        .guest("victim")
        .bridged("br0", "10.0.1.10")
        .ipv6("fd00:1::10")
        .up();
    victim
        .namespace()
        .ip("route add 169.254.169.254/32 dev eth0\nroute add fd00:ec2::254/128 dev eth0");
    let mallory = host.guest("mallory").tap();
    host.namespace()
        .ip(&format!("link set {} master br0", mallory.port()));
    (victim, mallory)
}

/// Claims of a guest that it has the service's address, by ARP and neighbour discovery, get no further than its port.
#[test]
fn a_claim_to_have_the_services_address_reaches_no_neighbour() {
    const NOBODY: [u8; 6] = [0; 6];
    let Some(mut host) = Host::new() else { return };
    let (victim, mallory) = on_one_bridge(&mut host);
    let _daemon = host.start();
    let mac = victim.namespace().mac("eth0");
    let mac: Vec<u8> = mac
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal"))
        .collect();
    let mac: [u8; 6] = mac.try_into().expect("six bytes");
    let victims = Ipv4Addr::new(10, 0, 1, 10);
    let frames = victim.frames();
    let claims = [
        (2, [0xff; 6], (NOBODY, SERVICE)),
        (1, [0xff; 6], (NOBODY, SERVICE)),
        (2, mac, (mac, victims)),
        (1, mac, (NOBODY, victims)),
    ];
    for (operation, destination_mac, target) in claims {
        let claim = Arp {
            destination_mac,
            vlan: None,
            operation,
            sender: (mallory.mac(), SERVICE),
            target,
        };
        mallory.send(&claim.bytes());
    }
    mallory.send(&advertisement(mallory.mac(), mac));
    // What is honest passes, and comes behind all that was sent before.
    let honest = Arp {
        destination_mac: [0xff; 6],
        vlan: None,
        operation: 1,
        sender: (mallory.mac(), Ipv4Addr::new(10, 0, 1, 66)),
        target: (NOBODY, victims),
    };
    mallory.send(&honest.bytes());
    let mut seen = Vec::new();
    eventually("the honest question", Duration::from_secs(5), || {
        seen.extend(frames.take());
        let asks = |frame: &Vec<u8>| frame.ends_with(&[&NOBODY[..], &victims.octets()].concat());
        seen.iter().any(asks).then_some(())
    });
    let of_mallory: Vec<_> = seen
        .iter()
        .filter(|frame| frame[6..12] == mallory.mac())
        .collect();
    assert_eq!(of_mallory.len(), 1, "{of_mallory:x?}");
    for address in [Address::V4, Address::V6] {
        assert_eq!(victim.get_from(address, INSTANCE_ID).text(), victim.id());
    }
    assert_eq!(host.counter("arp-refused"), claims.len() as u64);
    assert_eq!(host.counter("neighbour-refused"), 1);
}

/// An unsolicited neighbour advertisement that fd00:ec2::254 is at a hardware address.
fn advertisement(claimed: [u8; 6], to: [u8; 6]) -> Vec<u8> {
    const ICMPV6: u8 = 58;
    const ADVERTISEMENT: u8 = 136;
    let target = [
        0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, 0x54,
    ];
    let source = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x66];
    let mut destination = [0; 16];
    destination[0] = 0xff;
    destination[1] = 2;
    destination[15] = 1;
    let mut icmp = vec![ADVERTISEMENT, 0, 0, 0, 0x20, 0, 0, 0];
    icmp.extend(target);
    icmp.extend([2, 1]);
    icmp.extend(claimed);
    let length = u16::try_from(icmp.len()).expect("short").to_be_bytes();
    let pseudo = [
        &source[..],
        &destination,
        &[0, 0],
        &length,
        &[0, 0, 0, ICMPV6],
        &icmp,
    ]
    .concat();
    let sum: u32 = pseudo
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded twice");
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
    let header = [
        &[0x60, 0, 0, 0][..],
        &length,
        &[ICMPV6, 255],
        &source,
        &destination,
    ]
    .concat();
    [&to[..], &claimed, &[0x86, 0xdd], &header, &icmp].concat()
}

/// A bridge would hand a frame to the neighbour whose hardware address it bears, or to the host's own; the port is before it.
#[test]
fn a_frame_for_a_neighbours_hardware_address_brings_the_senders_own_id() {
    let Some(mut host) = Host::new() else { return };
    let (victim, mallory) = on_one_bridge(&mut host);
    let daemon = host.start();
    let responders = imds_tests::Namespace::of(daemon.responder_pid());
    let interfaces = responders.links();
    let of_responder = interfaces
        .iter()
        .filter_map(|link| link["address"].as_str())
        .find(|mac| *mac != "00:00:00:00:00:00")
        .expect("a hardware address");
    let macs = [
        victim.namespace().mac("eth0"),
        host.namespace().mac("br0"),
        of_responder.to_owned(),
    ];
    let frames = victim.frames();
    for (number, mac) in (0_u16..).zip(&macs) {
        let mac: Vec<u8> = mac
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal"))
            .collect();
        let syn = TcpFrame::syn(
            mallory.mac(),
            mac.try_into().expect("six bytes"),
            IpAddr::V4(Ipv4Addr::new(10, 0, 1, 66)),
            40_000 + number,
        );
        let request = format!("GET {INSTANCE_ID} HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer: Vec<u8> = mallory
            .fetch(&syn, request.as_bytes())
            .into_iter()
            .flat_map(|segment| segment.payload)
            .collect();
        let answer = String::from_utf8(answer).expect("an answer is text");
        assert!(answer.ends_with(mallory.id()), "{answer}");
    }
    let of_mallory = |frame: &&Vec<u8>| frame[6..12] == mallory.mac();
    assert_eq!(frames.take().iter().find(of_mallory), None);
}

/// Only root, and who the daemon runs as, may ask for anything there, whatever becomes of the modes of directories.
#[test]
fn the_control_socket_is_for_root_alone() {
    if !has_command("setpriv") || !has_command("perl") {
        return;
    }
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let _daemon = host.start();
    let state_dir = host.state_dir();
    let socket = state_dir.join("control.sock");
    let mode = |path: &std::path::Path| {
        let metadata = fs::metadata(path).expect("it is there");
        metadata.permissions().mode() & 0o777
    };
    assert_eq!((mode(&state_dir), mode(&socket)), (0o700, 0o600));
    let path = socket.to_str().expect("temporary paths are text");
    let script = "$s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die; print <$s>";
    let ask = ["perl", "-MIO::Socket::UNIX", "-e", script, path];
    let stranger = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let by_stranger = || host.namespace().run(&[&stranger[..], &ask].concat());
    let output = by_stranger();
    assert!(!output.status.success(), "{output:?}");
    for path in [host.dir(), &state_dir, socket.as_path()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("root may");
    }
    let output = by_stranger();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("only root may ask"), "{output:?}");
    assert!(!said.contains(web.id()), "{said}");
    // A guest's namespace has no part of it: neither a path nor an abstract name leads there.
    let names = web.run(&["cat", "/proc/net/unix"]);
    let names = String::from_utf8_lossy(&names.stdout).into_owned();
    assert!(!names.contains("control.sock"), "{names}");
}
