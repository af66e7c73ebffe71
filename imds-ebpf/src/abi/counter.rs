//! Packet counters: one slot of a per-CPU array each, so that counting never contends. The array outlives the daemon, so
//! a new counter goes to the end, and one that is no longer counted stays.

/// Length of the array, with room for counters to come.
pub const COUNTERS_MAX: u32 = 64;

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// What a packet is counted as. Drops carry the reason.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Counter {
            /// Every counter, in the order of the map.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The counter's name as operators see it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

counters! {
    /// Handed to the responder.
    Delivered = "delivered",
    /// Answered by the responder and handed to the guest's port.
    Replied = "replied",
    /// ARP request for the metadata address, answered in place.
    ArpAnswered = "arp-answered",
    /// Neighbour solicitation for the metadata address, answered in place.
    NeighbourAnswered = "neighbour-answered",
    /// Dropped: no instance belongs to the port.
    NoInstance = "no-instance",
    /// Dropped: addressed to the metadata service inside two VLAN tags.
    DoubleTagged = "double-tagged",
    /// Dropped: more VLAN tags than anybody can look behind.
    TagsTooDeep = "tags-too-deep",
    /// Dropped: a header contradicts itself.
    Malformed = "malformed",
    /// Dropped: ends before its TCP header does.
    Truncated = "truncated",
    /// Dropped: IPv4 options.
    IpOptions = "ip-options",
    /// Dropped: a fragment (IPv4 or IPv6).
    Fragment = "fragment",
    /// Dropped: an IPv6 extension header.
    ExtensionHeader = "extension-header",
    /// Dropped: UDP.
    Udp = "udp",
    /// Dropped: ICMP or ICMPv6 other than neighbour discovery.
    Icmp = "icmp",
    /// Dropped: another IP protocol.
    OtherProtocol = "other-protocol",
    /// Dropped: a source address that nobody can answer to (loopback, multicast, unspecified …).
    BadSource = "bad-source",
    /// Dropped: a guest speaking as the metadata service itself.
    SpoofedSource = "spoofed-source",
    /// Dropped: ARP about the metadata address that is not a request for it.
    ArpRefused = "arp-refused",
    /// Dropped: neighbour discovery about the metadata address that is not a proper solicitation.
    NeighbourRefused = "neighbour-refused",
    /// Dropped: the port used up its packets of this second.
    RateLimited = "rate-limited",
    /// Dropped: the kernel refused to rewrite the packet.
    RewriteFailed = "rewrite-failed",
    /// Dropped on its way out of the responder's namespace: not TCP from a tag address.
    ReplyForeign = "reply-foreign",
    /// Dropped on its way out: the slot belongs to nobody or to somebody else by now.
    ReplyStale = "reply-stale",
    /// Dropped on its way out: no packet of the guest told yet where it is.
    ReplyUnknownLink = "reply-unknown-link",
    /// Dropped: the responder's namespace is out of reach for a moment.
    NoResponder = "no-responder",
    /// Dropped on its way out by an uplink: forwarded to the metadata address, where the host's own service may be.
    Guarded = "guarded",
    /// Refused: a call of a process of the host itself to the metadata address, which its cgroup may not make.
    HostRefused = "host-refused",
}

impl Counter {
    /// Whether it counts packets that went no further.
    pub const fn is_drop(self) -> bool {
        !matches!(
            self,
            Self::Delivered | Self::Replied | Self::ArpAnswered | Self::NeighbourAnswered
        )
    }
}

const _: () = assert!(Counter::ALL.len() <= COUNTERS_MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_sits_where_its_number_says() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
    }
}
