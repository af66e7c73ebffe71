//! The programs that the daemon loads into the kernel. The decisions are in the library half of this package.
#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "packet pointers, map values and BPF helpers are raw by nature; each use argues for itself"
)]

mod maps;
mod packet;
mod programs {
    mod host_access;
    mod port_ingress;
    mod responder_ingress;
    mod uplink_egress;
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier accepts no program in which this could be reached: it loops for ever.
    loop {}
}

/// `bpf_csum_diff` and the redirect helpers are for GPL programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
