//! A host's DHCP server, as guests of a cloud have one: busybox' own.

use std::fs;
use std::process::{Child, Command, Stdio};

use crate::host::Host;

/// A running server. Dropping it ends it.
pub struct Dhcp(Child);

impl Dhcp {
    /// Serves one address on one interface of the host. The gateway is an address of that interface.
    ///
    /// # Panics
    /// When there is no busybox.
    #[must_use]
    pub fn start(host: &Host, interface: &str, address: &str, gateway: &str) -> Self {
        let file = |name: &str| host.dir().join(name).display().to_string();
        let config = format!(
            "interface {interface}\nstart {address}\nend {address}\nmax_leases 1\noption subnet 255.255.255.0\n\
             option router {gateway}\noption lease 3600\nlease_file {}\npidfile {}\n",
            file("dhcp.leases"),
            file("dhcp.pid")
        );
        fs::write(file("dhcp.conf"), config).expect("the temporary directory takes a file");
        fs::write(file("dhcp.leases"), "").expect("the temporary directory takes a file");
        let child = host.namespace().enter(|| {
            Command::new("busybox")
                .args(["udhcpd", "-f", &file("dhcp.conf")])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
        });
        Self(child.expect("busybox was found before"))
    }
}

impl Drop for Dhcp {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
