//! Who sees a packet on our hooks before we do: programs of somebody else that can end what we never begin.
//!
//! Of one hook, programs by TCX run first (Linux 6.6 and later), in an order of their own, and only where the last of them
//! says `TCX_NEXT` the filters of traffic control, by priority. Ours have the first priority; a program of somebody else at
//! the same one runs before ours if it was put there later (`tcf_classify`, `cls_bpf_change` in the kernel's net/sched).

use std::io;

use aya::programs::{SchedClassifier, TcAttachType};
use nix::net::if_::if_indextoname;

use super::filter::{Direction, Filter, Filters};

/// A program before one of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// The interface.
    pub interface: String,
    /// Which way packets pass there.
    pub direction: Direction,
    /// What it is: the way it was attached, its name if it has one, and its number.
    pub program: String,
}

/// Those before any filter of ours, in the namespace of the calling thread.
///
/// # Errors
/// When the filters cannot be listed.
pub fn all() -> io::Result<Vec<Ahead>> {
    let mut filters = Filters::open()?;
    let mut found = Vec::new();
    for ours in filters.all()? {
        // It may have gone meanwhile.
        let Ok(interface) = if_indextoname(ours.ifindex) else {
            continue;
        };
        let interface = interface.to_string_lossy().into_owned();
        let mut programs = by_tcx(&interface, ours.direction);
        programs.extend(by_filter(&mut filters, &ours)?);
        found.extend(programs.into_iter().map(|program| Ahead {
            interface: interface.clone(),
            direction: ours.direction,
            program,
        }));
    }
    Ok(found)
}

/// None on a kernel that has no TCX.
fn by_tcx(interface: &str, direction: Direction) -> Vec<String> {
    let way = match direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    };
    let programs = SchedClassifier::query_tcx(interface, way);
    let describe = |program: aya::programs::ProgramInfo| {
        let name = program.name_as_str().unwrap_or_default().to_owned();
        described("TCX", &name, program.id())
    };
    programs.map_or_else(
        |_| Vec::new(),
        |(_, programs)| programs.into_iter().map(describe).collect(),
    )
}

fn by_filter(filters: &mut Filters, ours: &Filter) -> io::Result<Vec<String>> {
    let before = filters.before(ours)?;
    let describe = |filter: Filter| described("filter", &filter.program, filter.program_id);
    Ok(before.into_iter().map(describe).collect())
}

fn described(way: &str, name: &str, number: u32) -> String {
    if name.is_empty() {
        format!("{way} {number}")
    } else {
        format!("{way} {name} ({number})")
    }
}
