//! Whose a slot is, for the daemon that comes after this one.

/// Bytes of an instance id, padded with zeros: `i-` and 17 digits have 19.
pub const INSTANCE_ID_BYTES: usize = 24;

/// Value of the table of owners. The programs never read it; it is pinned with their maps, so that it begins and ends
/// with the packets and sockets that carry slots, which a file would not. Written before a slot is used, and again when
/// nothing carries it any more.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The slot that this index was last given away as, generation included. 0: never.
    pub slot: u32,
    /// The port's interface index. 0: given back.
    pub ifindex: u32,
    /// How many were given back before it, if it was.
    pub returned: u64,
    /// The instance's id.
    pub instance: [u8; INSTANCE_ID_BYTES],
}

const _: () = assert!(size_of::<Owner>() == 16 + INSTANCE_ID_BYTES);
