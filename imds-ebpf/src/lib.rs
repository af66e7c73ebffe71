#![no_std]
//! What the programs in the kernel and the daemon in user space share, and everything of the programs that needs no
//! kernel: the layout of maps ([`abi`]), packet headers ([`wire`]) and the decisions about them ([`decide`]).
//!
//! Nothing here touches a map or calls a BPF helper, so all of it builds and is tested on the host
//! (`cargo test -p imds-ebpf --lib`). The programs themselves are the binary of this package, built for the BPF target
//! with the feature `programs`.

pub mod abi;
pub mod decide;
pub mod wire;
