//! Part 3: whole guests, of the same kernel and initramfs under each VMM, one at a time on a tap of the same kind.
//!
//! All traffic is driven from the host, so that no byte crosses the console, and with it no exit, while exits are counted.

mod count;
mod drive;
mod requests;

use harness::TempDir;
use harness::netns::Netns;

use crate::Options;
use crate::guest::{Guest, Kernel};
use crate::report::{Row, Samples, Table};
use crate::rounds::{Turns, take_turns};
use crate::vmm::Vmm;
use count::Calls;

const MEMORY_MIB: u64 = 256;

/// A row of the table.
struct Figure {
    what: &'static str,
    unit: &'static str,
}

/// What is measured of a guest, in the order of the rows.
const FIGURES: [Figure; 24] = [
    Figure { what: "start to the shell of init", unit: "s" },
    Figure { what: "TCP, host to guest", unit: "Mbit/s" },
    Figure { what: "TCP, guest to host", unit: "Mbit/s" },
    Figure { what: "TCP, 4 streams, host to guest", unit: "Mbit/s" },
    Figure { what: "TCP, 4 streams, guest to host", unit: "Mbit/s" },
    Figure { what: "UDP, 64 bytes, host to guest", unit: "k/s" },
    Figure { what: "UDP, 64 bytes, guest to host", unit: "k/s" },
    Figure { what: "UDP lost, host to guest", unit: "%" },
    Figure { what: "UDP lost, guest to host", unit: "%" },
    Figure { what: "TCP request/response", unit: "per s" },
    Figure { what: "ping", unit: "ms" },
    Figure { what: "exits, TCP, host to guest", unit: "per MiB" },
    Figure { what: "exits, TCP, guest to host", unit: "per MiB" },
    Figure { what: "exits, UDP, host to guest", unit: "per frame" },
    Figure { what: "exits, UDP, guest to host", unit: "per frame" },
    Figure { what: "exits, request/response", unit: "each" },
    Figure { what: "exits, ping", unit: "each" },
    Figure { what: "exits, idle", unit: "per s" },
    Figure { what: "system calls, TCP, host to guest", unit: "per MiB" },
    Figure { what: "system calls, TCP, guest to host", unit: "per MiB" },
    Figure { what: "system calls, UDP, host to guest", unit: "per frame" },
    Figure { what: "system calls, UDP, guest to host", unit: "per frame" },
    Figure { what: "system calls, request/response", unit: "each" },
    Figure { what: "resident", unit: "MiB" },
];

/// What was measured of one guest, in the order of [`FIGURES`].
struct Seen([Option<f64>; FIGURES.len()]);

impl Seen {
    /// # Panics
    /// There is no such row.
    fn set(&mut self, what: &str, value: f64) {
        let row = FIGURES.iter().position(|figure| figure.what == what);
        self.0[row.unwrap_or_else(|| panic!("no row is {what:?}"))] = Some(value);
    }
}

pub(crate) fn run(options: &Options) -> Result<Table, String> {
    harness::stock::can_run()?;
    let kernel = Kernel::all().into_iter().next().ok_or("there is no kernel: run make setup")?;
    let rounds = options.rounds(3);
    let files = TempDir::new();
    let kernel = kernel.copied(&files)?;
    let guest = Guest {
        kernel: &kernel.image,
        initrd: &kernel.bench_initrd,
        memory_mib: MEMORY_MIB,
        tap: Some(drive::TAP),
    };
    let host = Netns::new()?;
    let (mut vmms, mut notes) = Vmm::all();
    vmms.retain(|vmm| vmm.name().contains(&options.only));
    let calls = Calls::new().map_err(|why| notes.push(format!("system calls are not counted: {why}"))).ok();
    for vmm in &vmms {
        vmm.warm_up();
    }

    let names: Vec<_> = vmms.iter().map(Vmm::name).collect();
    let measure = |at: usize| drive::measure(&vmms[at], &guest, &host, calls.as_ref()).map(|seen| seen.0);
    let Turns { figures, failures } = take_turns(rounds, &names, measure);
    // What was never measured is no column; the failures tell why.
    let was_measured =
        |(_, figures): &(Vmm, Vec<Samples>)| figures.iter().any(|samples| samples.median().is_some());
    let (vmms, figures): (Vec<_>, Vec<_>) = vmms.into_iter().zip(figures).filter(was_measured).unzip();
    if vmms.is_empty() {
        return Err(format!("no guest could be measured\n{}", failures.join("\n")));
    }
    let names: Vec<_> = vmms.iter().map(Vmm::name).collect();
    let row = |(index, figure): (usize, &Figure)| {
        let cells: Vec<_> = figures.iter().map(|of_vmm| of_vmm[index].clone()).collect();
        Row { what: figure.what.to_owned(), unit: figure.unit, cells, goal: None }
    };
    Ok(Table {
        title: format!(
            "Guests: kernel {}, 1 vCPU, {MEMORY_MIB} MiB, one NIC on a tap, median of {rounds} (min-max)",
            kernel.name
        ),
        columns: names.clone(),
        rows: FIGURES.iter().enumerate().map(row).collect(),
        notes: [drive::notes(), notes, failures].concat(),
    })
}
