//! Part 10: how many instructions a guest's traffic takes, of its VMM, of the host's kernel on the VMM's threads, and of the guest
//! itself; in a lab whose clock counts them.
//!
//! Where all have one processor, each instruction of which takes a nanosecond, processor time is a count: the same in each run but for
//! what comes together by chance, and the same whatever else the machine does. It says nothing of caches, nor of what two processors do
//! at once.

use super::drive::{self, LOADS};
use super::{MEMORY_MIB, turns, vmms};
use crate::Options;
use crate::compare::Better;
use crate::report::Table;

pub(crate) fn run(options: &Options) -> Result<Table, String> {
    if std::env::var("LAB_CLOCK").as_deref() != Ok("instructions") {
        return Err("the clock here counts no instructions: see LAB_CLOCK of tests/lab/lab".to_owned());
    }
    let rounds = options.rounds(1);
    let (vmms, notes) = vmms(options);
    let measured = turns(options, "instructions", rounds, vmms, drive::instructions)?;
    let own = "thousands of instructions of the VMM's threads: its own, the host's kernel's on them, and the guest's";
    Ok(Table {
        title: format!(
            "Instructions: kernel {}, 1 vCPU, {MEMORY_MIB} MiB, one NIC on a tap, 1 processor, median of {rounds} (min-max)",
            measured.kernel
        ),
        rows: measured.rows(LOADS.into_iter().map(|(what, unit)| (what, unit, Some(Better::Less)))),
        notes: [vec![own.to_owned()], notes, measured.failures].concat(),
        columns: measured.names,
    })
}
