//! Map keys, values and limits as both sides see them: fixed width, `repr(C)`, no padding that is not named.

pub mod counter;
pub mod device;
pub mod guard;
pub mod host_access;
pub mod link_header;
pub mod owner;
pub mod port;
pub mod rate;
pub mod slot;

/// Counted up when what is in the maps changes its meaning and not its shape (a shape is seen without it). A daemon finds
/// the maps of an earlier one by it, and leaves those of another revision alone: it makes new ones.
pub const REVISION: u32 = 1;

/// Marks the ABI types that aya may copy to and from maps byte by byte.
#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker trait is unsafe to implement")]
mod pod {
    use super::{link_header::LinkMemory, owner::Owner, port::SlotEntry, rate::Rate};

    // SAFETY: `repr(C)`, only fixed-width integers and arrays of them, every bit pattern valid, and the assertions
    // beside the types show that there is no padding.
    unsafe impl aya::Pod for SlotEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for LinkMemory {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Rate {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Owner {}
}
