//! Figure e: the control API with many instances: what a page of them takes, a change of one, a start of the daemon that has
//! them already, and what they take on the disk. Calls come by the Unix socket, so that signatures, which take the same time
//! with any number of instances, are left out.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use imds_tests::Api;

use crate::{
    growth::Town,
    options::Figure,
    results::{Aim, Row, Unit},
    tell,
};

const PAGE_AIM: Aim = Aim::Below { aim: 50.0 };
const CHANGE_AIM: Aim = Aim::Below { aim: 5.0 };
const START_AIM: Aim = Aim::Below { aim: 2.0 };
const DISK_AIM: Aim = Aim::Below { aim: 50.0 };

/// Bound on the wait until a change is called applied.
const APPLIED_WITHIN: Duration = Duration::from_secs(10);

/// How long it takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// How many instances.
    pub(crate) count: u32,
    /// How many of them are on a page.
    pub(crate) page: u32,
    /// How often each call is made.
    pub(crate) calls: u32,
    /// How often the daemon is started again.
    pub(crate) starts: u32,
}

/// Measures.
pub(crate) fn measure(extent: Extent) -> anyhow::Result<Vec<Row>> {
    let Extent {
        count,
        page,
        calls,
        starts,
    } = extent;
    tell(format_args!("e: {count} instances and their interfaces"));
    let town = Town::build(count)?;
    // The first start is figure d's: most of it is the kernel's work on interfaces that are new to it.
    let mut daemon = town.host.start();
    let mut again = Vec::new();
    for number in 1..=starts {
        tell(format_args!("e: start {number} of {starts} again"));
        daemon.stop();
        daemon = town.host.start();
        again.push(daemon.ready_after().as_secs_f64());
    }
    town.check_served()?;
    let mut api = town.host.api();
    let mut pages = Vec::new();
    let mut bytes = 0;
    for _ in 0..calls {
        let begun = Instant::now();
        let said = api.call(&format!("Action=DescribeInstances&MaxResults={page}"));
        pages.push(milliseconds(begun.elapsed()));
        bytes = said.body.len();
        let shown = said.body.matches("<instanceId>").count();
        ensure!(shown == page as usize, "a page has {shown} instances");
    }
    let (changes, applied) = change(&mut api, count, calls)?;
    let size = disk(&town).context("how large is the store?")?;
    daemon.stop();
    let row = |what: String, rounds: &[f64], unit| Row::of_rounds(Figure::E, what, rounds, unit);
    Ok(vec![
        row(
            format!("DescribeInstances, {page} of {count} instances"),
            &pages,
            Unit::Milliseconds,
        )
        .aimed(PAGE_AIM)
        .with("reply", &[("bytes", bytes as f64)]),
        row(
            format!("ModifyInstanceMetadataOptions, one of {count}"),
            &changes,
            Unit::Milliseconds,
        )
        .aimed(CHANGE_AIM),
        row(
            format!("from the call until it is said to be applied, one of {count}"),
            &applied,
            Unit::Milliseconds,
        ),
        row(
            format!("start again with {count} instances"),
            &again,
            Unit::Seconds,
        )
        .aimed(START_AIM),
        row(
            format!("the store with {count} instances"),
            &[size / 1e6],
            Unit::Megabytes,
        )
        .aimed(DISK_AIM),
    ])
}

/// Changes an instance after the other: how long each call took, and how long until its change was called applied.
fn change(api: &mut Api, count: u32, calls: u32) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let (mut changes, mut applied) = (Vec::new(), Vec::new());
    for number in 0..calls {
        let id = format!("i-{:017x}", number * (count / calls).max(1) % count + 1);
        let begun = Instant::now();
        api.call(&format!(
            "Action=ModifyInstanceMetadataOptions&InstanceId={id}&HttpPutResponseHopLimit=5"
        ));
        changes.push(milliseconds(begun.elapsed()));
        let describe = format!("Action=DescribeInstances&InstanceId.1={id}");
        while !api.call(&describe).body.contains("<state>applied</state>") {
            ensure!(begun.elapsed() < APPLIED_WITHIN, "{id} is never applied");
        }
        applied.push(milliseconds(begun.elapsed()));
    }
    Ok((changes, applied))
}

/// All files of the store, its log included.
fn disk(town: &Town) -> std::io::Result<f64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(town.host.state_dir())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("store") {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes as f64)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
