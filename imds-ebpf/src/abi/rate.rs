//! How many packets a port may send to the service each second.
//!
//! EC2 grants every network interface 1024 packets a second to its link-local services and drops the rest in silence
//! (EC2 User Guide, "Packets per second (PPS) limits for link-local services").

/// Nanoseconds in a second, which is also how much of its allowance a port may use at once.
pub const SECOND_NANOSECONDS: u64 = 1_000_000_000;

/// The allowance of one slot, kept as the moment at which everything that was sent would have been sent evenly (the
/// generic cell rate algorithm): one number, no timer. Written by the daemon when the slot is given away, then by
/// `port_ingress`.
///
/// CPUs that count packets of one port at the same moment may count one of them only: the target has no atomic addition.
/// So the limit holds to the packet where a port's packets come in on one CPU, as a veth's or a single-queue tap's do, and
/// within a factor of the CPUs that really race otherwise.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// On the kernel's monotonic clock.
    pub even_nanoseconds: u64,
    /// What one packet costs; 0 is no limit.
    pub packet_nanoseconds: u64,
}

impl Rate {
    /// An untouched allowance of so many packets a second; 0 is no limit.
    pub const fn per_second(packets: u32) -> Self {
        let packet_nanoseconds = match packets {
            0 => 0,
            packets => SECOND_NANOSECONDS / packets as u64,
        };
        Self {
            even_nanoseconds: 0,
            packet_nanoseconds,
        }
    }

    /// Where the count must start from at `now`; none when the allowance of this second is used up.
    #[inline(always)]
    pub const fn admits(&self, now_nanoseconds: u64) -> Option<u64> {
        let even = self.even_nanoseconds;
        if even <= now_nanoseconds {
            return Some(now_nanoseconds);
        }
        if even - now_nanoseconds + self.packet_nanoseconds > SECOND_NANOSECONDS {
            return None;
        }
        Some(even)
    }
}

const _: () = assert!(size_of::<Rate>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    fn send(rate: &mut Rate, now: u64, packets: u32) -> u32 {
        let mut sent = 0;
        for _ in 0..packets {
            let Some(even) = rate.admits(now) else {
                continue;
            };
            rate.even_nanoseconds = even + rate.packet_nanoseconds;
            sent += 1;
        }
        sent
    }

    #[test]
    fn a_second_admits_its_packets_and_no_more() {
        let mut rate = Rate::per_second(1024);
        assert_eq!(send(&mut rate, 5 * SECOND_NANOSECONDS, 5000), 1024);
        assert_eq!(send(&mut rate, 5 * SECOND_NANOSECONDS, 1), 0);
        assert_eq!(
            send(
                &mut rate,
                5 * SECOND_NANOSECONDS + SECOND_NANOSECONDS / 2,
                5000
            ),
            512
        );
        assert_eq!(
            send(&mut rate, 60 * SECOND_NANOSECONDS, 5000),
            1024,
            "silence saves up no more than a second"
        );
    }

    #[test]
    fn zero_is_no_limit() {
        let mut rate = Rate::per_second(0);
        assert_eq!(send(&mut rate, 1, 100_000), 100_000);
    }

    #[test]
    fn one_packet_a_second_is_one() {
        let mut rate = Rate::per_second(1);
        assert_eq!(send(&mut rate, SECOND_NANOSECONDS, 5), 1);
        assert_eq!(send(&mut rate, 2 * SECOND_NANOSECONDS - 1, 5), 0);
        assert_eq!(send(&mut rate, 2 * SECOND_NANOSECONDS, 5), 1);
    }
}
