//! The two directions of "which guest is behind which interface".

/// Capacity of the map of ports. As many as there can be instances: each has one port.
pub const PORTS_MAX: u32 = super::slot::INSTANCES_MAX;

/// Value of the table of slots: where the answers for a slot leave. Written by the daemon, read by
/// `responder_ingress`. All zero: nobody has this index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotEntry {
    /// The whole slot number, generation included: an answer that carries an older one is dropped.
    pub slot: u32,
    /// The port's interface index in the host's namespace.
    pub ifindex: u32,
    /// [`REPLY_TO_PEER`] or 0.
    pub flags: u32,
}

/// The port is one end of a veth pair whose other end lives in another namespace, so that an answer can be handed
/// to that end directly (`bpf_redirect_peer`), without a pass through the port's own queue.
pub const REPLY_TO_PEER: u32 = 1;

const _: () = assert!(size_of::<SlotEntry>() == 12);
