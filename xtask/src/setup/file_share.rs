//! virtiofsd: shows this machine's files to a virtual machine.

use std::path::{Path, PathBuf};

use super::Machine;
use crate::workspace;

/// Where packages put it, since nobody types its name: QEMU's own of before, and what came after it.
const PLACES: [&str; 2] = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];
/// The package of what came after; before, QEMU brought one along.
const PACKAGE: &str = "virtiofsd";

/// Finds or installs it; none where it cannot be had.
pub(super) fn ensure(machine: &mut Machine) -> anyhow::Result<Option<PathBuf>> {
    if let Some(program) = find() {
        machine.ok(format_args!("virtiofsd as {}", program.display()));
        return Ok(Some(program));
    }
    if !machine.apt.knows(PACKAGE) {
        machine.without(format_args!(
            "virtiofsd: apt has no {PACKAGE}, so no test will run in a virtual machine"
        ));
        return Ok(None);
    }
    machine.installing(format_args!(
        "{PACKAGE} (this machine's files in a virtual machine)"
    ));
    machine.apt.install(&[PACKAGE.to_owned()])?;
    Ok(find())
}

fn find() -> Option<PathBuf> {
    let mut places = PLACES.iter().map(|place| Path::new(place).to_owned());
    places
        .find(|place| place.is_file())
        .or_else(|| workspace::program("virtiofsd"))
}
