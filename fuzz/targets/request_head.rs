//! Bytes on a connection: heads, whole or broken, one behind the other.
#![no_main]

use std::sync::LazyLock;

use imds_tests::properties::World;
use libfuzzer_sys::fuzz_target;

static WORLD: LazyLock<World> = LazyLock::new(World::new);

fuzz_target!(|bytes: &[u8]| WORLD.check_connection(bytes));
