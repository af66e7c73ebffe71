//! Packets of a guest, as the programs in the kernel judge them.
#![no_main]

use imds_tests::properties::check_packet;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| check_packet(bytes));
