//! Part 3: whole guests, of the same kernel and initramfs under each VMM, one at a time on a tap of the same kind.
//!
//! All traffic is driven from the host, so that no byte crosses the console, and with it no exit, while exits are counted.

mod count;
mod drive;
mod requests;

use harness::TempDir;
use harness::netns::Netns;

use crate::Options;
use crate::compare::{Aim, Better, beside};
use crate::guest::{Guest, Kernel};
use crate::plot;
use crate::report::{Goal, Row, Samples, Table};
use crate::rounds::{Turns, take_turns};
use crate::vmm::Vmm;
use count::Calls;

const MEMORY_MIB: u64 = 256;

/// A row of the table.
struct Figure {
    what: &'static str,
    unit: &'static str,
    /// None for what says how the row above came about, and is no merit.
    better: Option<Better>,
}

const fn more(what: &'static str, unit: &'static str) -> Figure {
    Figure { what, unit, better: Some(Better::More) }
}

const fn less(what: &'static str, unit: &'static str) -> Figure {
    Figure { what, unit, better: Some(Better::Less) }
}

/// What is measured of a guest, in the order of the rows.
const FIGURES: [Figure; 24] = [
    less("start to the shell of init", "s"),
    more("TCP, host to guest", "Mbit/s"),
    more("TCP, guest to host", "Mbit/s"),
    more("TCP, 4 streams, host to guest", "Mbit/s"),
    more("TCP, 4 streams, guest to host", "Mbit/s"),
    more("UDP, 64 bytes, host to guest", "k/s"),
    more("UDP, 64 bytes, guest to host", "k/s"),
    Figure { what: "UDP lost, host to guest", unit: "%", better: None },
    Figure { what: "UDP lost, guest to host", unit: "%", better: None },
    more("TCP request/response", "per s"),
    less("ping", "ms"),
    less("exits, TCP, host to guest", "per MiB"),
    less("exits, TCP, guest to host", "per MiB"),
    less("exits, UDP, host to guest", "per frame"),
    less("exits, UDP, guest to host", "per frame"),
    less("exits, request/response", "each"),
    less("exits, ping", "each"),
    less("exits, idle", "per s"),
    less("system calls, TCP, host to guest", "per MiB"),
    less("system calls, TCP, guest to host", "per MiB"),
    less("system calls, UDP, host to guest", "per frame"),
    less("system calls, UDP, guest to host", "per frame"),
    less("system calls, request/response", "each"),
    less("resident", "MiB"),
];

/// What was measured of one guest, in the order of [`FIGURES`].
struct Seen([Option<f64>; FIGURES.len()]);

impl Seen {
    /// What is over nothing (no frame passed) is no figure.
    ///
    /// # Panics
    /// There is no such row.
    fn set(&mut self, what: &str, value: f64) {
        let row = FIGURES.iter().position(|figure| figure.what == what);
        self.0[row.unwrap_or_else(|| panic!("no row is {what:?}"))] = Some(value).filter(|v| v.is_finite());
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
    let kept = options.out.as_deref().map(|out| out.join("lab.rounds"));
    let Turns { figures, failures } = take_turns(rounds, &names, kept.as_deref(), measure);
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
        let goal = figure.better.and_then(|better| against(&vmms, &names, &cells, better)).map(Goal::Beside);
        Row { what: figure.what.to_owned(), unit: figure.unit, cells, goal }
    };
    let table = Table {
        title: format!(
            "Guests: kernel {}, 1 vCPU, {MEMORY_MIB} MiB, one NIC on a tap, median of {rounds} (min-max)",
            kernel.name
        ),
        columns: names.clone(),
        rows: FIGURES.iter().enumerate().map(row).collect(),
        notes: [drive::notes(), notes, failures].concat(),
    };
    if let Some(out) = &options.out {
        let better = FIGURES.map(|figure| figure.better);
        plot::write(&out.join("lab.svg"), &table, &better)?;
    }
    Ok(table)
}

/// What became of the two goals in one row: ahead of each user-space path with ours, and level with vhost-net under another
/// VMM with it under ours.
fn against(vmms: &[Vmm], names: &[String], cells: &[Samples], better: Better) -> Option<String> {
    let ours = |vmm: &Vmm| matches!(vmm, Vmm::Wirevm { .. });
    let compare = |vhost, aim| {
        let of = |vmm: &Vmm| vmm.vhost() == vhost;
        let mine = vmms.iter().position(|vmm| ours(vmm) && of(vmm))?;
        let others = (0..vmms.len()).filter(|&at| !ours(&vmms[at]) && of(&vmms[at]));
        let others: Vec<_> = others.map(|at| (names[at].as_str(), &cells[at])).collect();
        beside(&cells[mine], &others, better, aim)
    };
    let said: Vec<_> =
        [compare(false, Aim::Ahead), compare(true, Aim::Level)].into_iter().flatten().collect();
    (!said.is_empty()).then(|| said.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::Machine;

    #[test]
    fn a_figure_goes_into_its_row_and_what_is_over_nothing_does_not() {
        let mut seen = Seen([None; FIGURES.len()]);
        seen.set("ping", 2.5);
        seen.set("exits, ping", 1.0 / 0.0);
        let set: Vec<_> =
            FIGURES.iter().zip(seen.0).filter_map(|(row, value)| Some((row.what, value?))).collect();
        assert_eq!(set, [("ping", 2.5)]);
    }

    #[test]
    fn each_path_is_compared_with_its_own_kind() {
        let machine = Machine::Q35;
        let qemu = [false, true].map(|vhost| Vmm::Qemu { machine, vhost });
        let vmms = [false, true].map(|vhost| Vmm::Wirevm { vhost }).into_iter().chain(qemu);
        let vmms: Vec<_> = vmms.collect();
        let names: Vec<_> = vmms.iter().map(Vmm::name).collect();
        let cells: Vec<Samples> =
            [20.0, 39.0, 10.0, 40.0].map(|value| [value].into_iter().collect()).to_vec();
        let said = against(&vmms, &names, &cells, Better::More).unwrap();
        assert_eq!(said, "2.00 qemu q35, ahead; 0.97 qemu q35, vhost, level");
        // Without vhost, the other comparison remains.
        let user: Vec<_> = [0, 2].map(|at| vmms[at].clone()).to_vec();
        let (names, cells) = ([0, 2].map(|at| names[at].clone()), [0, 2].map(|at| cells[at].clone()));
        assert_eq!(against(&user, &names, &cells, Better::Less).unwrap(), "0.50 qemu q35, BEHIND");
    }
}
