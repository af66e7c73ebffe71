//! Of the metadata address, port 80 is open and every other one closed: refused at once, not left to time out.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use imds_tests::{Address, Host, INSTANCE_ID};

#[test]
fn a_closed_port_refuses_at_once() {
    let Some(mut host) = Host::new() else { return };
    let guests = [
        host.guest("web")
            .routed("10.0.0.10")
            .ipv6("fd00:1::10")
            .up(),
        host.guest("legacy")
            .bridged("br0", "10.0.0.10")
            .ipv6("fd00:1::10")
            .up(),
    ];
    let _daemon = host.start();
    for guest in &guests {
        for address in [Address::V4, Address::V6] {
            assert_eq!(guest.get_from(address, INSTANCE_ID).text(), guest.id());
            for port in [1, 22, 53, 79, 81, 443, 8080, 65_535] {
                let to = SocketAddr::new(address.socket().ip(), port);
                let begin = Instant::now();
                let error = guest
                    .try_connect(Address::Other(to))
                    .err()
                    .unwrap_or_else(|| panic!("{to} is open"));
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
                assert!(
                    begin.elapsed() < Duration::from_millis(900),
                    "{to} took {:?}",
                    begin.elapsed()
                );
            }
        }
    }
}
