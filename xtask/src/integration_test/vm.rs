//! The tests on another kernel: the programs that were built here run in a virtual machine that boots Debian's kernel and
//! has all files of this machine, to be read. So they find the tools that they find here.

mod binaries;
mod initramfs;
mod machine;
mod outcome;
mod transcript;

use std::{path::Path, process::ExitCode};

use anyhow::ensure;

use self::{
    binaries::TestBinary,
    machine::{Kernel, Machine},
    outcome::Outcome,
};
use super::{Selection, need_root};
use crate::{
    report,
    setup::{self, Extent},
    tally::Tally,
    test::{self, Environment},
    workspace,
};

/// Files of tests that stay out, and why.
const LEFT_OUT: [(&str, &str); 8] = [
    (
        "chaos",
        "counts what is lost within times of a machine at full speed",
    ),
    ("clients", "is about AWS's clients, not about kernels"),
    ("cloud_init", "boots a virtual machine of its own"),
    ("docker", "needs more memory and disk than the machine has"),
    ("fair", "needs floods faster than an emulated processor"),
    ("kernels", "boots a virtual machine of its own"),
    ("systemd", "boots a virtual machine of its own"),
    ("vm", "boots a virtual machine of its own"),
];

/// What `cargo xtask test` runs: the programs, every way into and out of them, and the guard. All of it takes half an hour
/// and more, and is for whoever changes what touches the kernel.
const QUICK: [&str; 4] = ["guard", "paths", "ports", "programs"];

/// What names the kernel.
const KERNEL_DIR: &str = "IMDS_TEST_KERNEL_DIR";
/// How many tests run at a time: with an emulated processor they do little else than compute, and some of the program's own
/// bounds, such as the twenty seconds that a request may take, are the same there.
const TEST_THREADS: &str = "2";
/// How much longer tests wait here for what has to happen: the processor is emulated.
const TIME_SCALE: &str = "6";
/// Bound on the tests of one file. `lasting` needs a third of it: it starts a daemon for every system call of a start.
const FILE_SECONDS_MAX: u64 = 1800;

/// In a virtual machine with Debian's kernel, 6.1 on Debian 12
///
/// The kernel is the newest of Debian's for clouds that apt has (`cargo xtask setup --tests` unpacks it), booted by QEMU
/// with an emulated processor: that takes no KVM, but patience. The machine sees all files of this one, and what it writes is
/// forgotten. Files of tests that make no sense in there are counted as skipped, with the reason. What was said is kept in
/// `target/xtask/vm`.
#[derive(Debug, clap::Args)]
pub(super) struct InVm {
    #[command(flatten)]
    selection: Selection,
}

/// What is run: programs, and arguments for all of them.
struct Plan<'a> {
    binaries: Vec<TestBinary>,
    names: Vec<&'a str>,
}

impl InVm {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let found = setup::ensure(Extent::Tests)?;
        need_root()?;
        test::build()?;
        let virtiofsd = found.virtiofsd.clone();
        let environment = Environment::new(found)?;
        let (files, names) = self.selection.split();
        let mut tally = Tally::default();
        let mut binaries = binaries::build()?;
        binaries.retain(|binary| files.is_empty() || files.contains(&binary.name.as_str()));
        binaries.retain(|binary| {
            let why = left_out(&binary.name);
            if let Some(why) = why {
                tally.skips.push(format!("vm {}: {why}", binary.name));
            }
            why.is_none()
        });
        match machine(virtiofsd.as_deref(), &environment)? {
            Ok(machine) => tally.add(Plan { binaries, names }.run_in(&machine, &environment)?),
            Err(why) => tally.skips.push(why),
        }
        self.selection.ensure_meant(&tally)?;
        Ok(tally.conclude())
    }
}

/// A few files, as a step of `cargo xtask test`. The binary under test is built already.
pub(crate) fn quick(virtiofsd: Option<&Path>, environment: &Environment) -> anyhow::Result<Tally> {
    let machine = match machine(virtiofsd, environment)? {
        Ok(machine) => machine,
        Err(why) => {
            return Ok(Tally {
                skips: vec![why],
                ..Tally::default()
            });
        }
    };
    let mut binaries = binaries::build()?;
    binaries.retain(|binary| QUICK.contains(&binary.name.as_str()));
    ensure!(
        binaries.len() == QUICK.len(),
        "a file of {QUICK:?} is no test of tests/tests any more"
    );
    let plan = Plan {
        binaries,
        names: Vec::new(),
    };
    plan.run_in(&machine, environment)
}

/// The machine, or why there is none.
fn machine(
    virtiofsd: Option<&Path>,
    environment: &Environment,
) -> anyhow::Result<Result<Machine, String>> {
    let Some(kernel) = environment.variable(KERNEL_DIR) else {
        return Ok(Err("vm: there is no kernel to boot".into()));
    };
    let Some(virtiofsd) = virtiofsd else {
        return Ok(Err("vm: there is no virtiofsd".into()));
    };
    let kernel = Kernel::find(Path::new(kernel))?;
    Machine::new(kernel, virtiofsd.to_owned()).map(Ok)
}

fn left_out(name: &str) -> Option<&'static str> {
    let found = LEFT_OUT.iter().find(|(left_out, _)| *left_out == name);
    found.map(|(_, why)| *why)
}

impl Plan<'_> {
    fn run_in(&self, machine: &Machine, environment: &Environment) -> anyhow::Result<Tally> {
        if self.binaries.is_empty() {
            return Ok(Tally::default());
        }
        let script = self.script(machine.kernel(), environment);
        let mut outcome = Outcome::new(&machine.tests_log())?;
        let running = machine.boot(&script)?;
        let end = outcome.follow(&running)?;
        drop(running);
        if let Some(why) = end.cause() {
            let names = self.binaries.iter().map(|binary| binary.name.as_str());
            outcome.break_off(why, names);
        }
        if !outcome.tally().failures.is_empty() {
            report::line(format_args!(
                "what the tests said is in {}, what the kernel said in {}",
                machine.tests_log().display(),
                machine.console_log().display()
            ));
        }
        Ok(outcome.into_tally())
    }

    /// What `run.sh` reads.
    fn script(&self, kernel: &Kernel, environment: &Environment) -> String {
        let mut script = String::new();
        // There is no machine in the machine: a test that wants one skips.
        let variables = environment.variables();
        for (name, value) in variables.filter(|(name, _)| *name != KERNEL_DIR) {
            script.push_str(&format!(
                "export {name}={}\n",
                quoted(&value.to_string_lossy())
            ));
        }
        script.push_str("export IMDS_SKIP_LOG=/run/imds-skips.log\n");
        script.push_str(&format!("export IMDS_TEST_TIME_SCALE={TIME_SCALE}\n"));
        let modules = kernel.modules().to_string_lossy();
        script.push_str(&format!("MODULES={}\n", quoted(&modules)));
        let tests = workspace::root().join("tests");
        script.push_str(&format!("TESTS={}\n", quoted(&tests.to_string_lossy())));
        script.push_str("plan() {\n");
        let names: Vec<String> = self.names.iter().map(|name| quoted(name)).collect();
        for TestBinary { name, path } in &self.binaries {
            script.push_str(&format!(
                "run {name} {FILE_SECONDS_MAX} {} --test-threads {TEST_THREADS} {}\n",
                quoted(&path.to_string_lossy()),
                names.join(" ")
            ));
        }
        script.push_str("}\n");
        script
    }
}

/// A word of the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_named_are_files_of_tests() {
        let left_out = LEFT_OUT.iter().map(|(name, _)| name);
        for name in left_out.chain(&QUICK) {
            assert!(super::super::is_test_file(name), "{name}");
        }
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
