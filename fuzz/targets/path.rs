//! Paths: what one instance is told, and what of another it never is.
#![no_main]

use std::sync::LazyLock;

use imds_tests::properties::World;
use libfuzzer_sys::fuzz_target;

static WORLD: LazyLock<World> = LazyLock::new(World::new);

fuzz_target!(|path: &str| WORLD.check_path(path));
