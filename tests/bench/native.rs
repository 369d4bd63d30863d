//! Whole VMMs where KVM runs no Linux, or anywhere: a guest that is a polling driver and nothing else (`native/guest.rs`).
//!
//! The vCPU has a processor; all other threads of the VMM share one with the program that asks. While that sends a burst, nothing
//! preempts it: so the whole burst is on the tap before the first of its frames is received.

mod host;
mod threads;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::TempDir;

use crate::Options;
use crate::compare::{Aim, Better, beside};
use crate::report::{Goal, Row, Samples, Table};
use crate::rounds::{Turns, take_turns};
use crate::start::in_namespace;
use crate::sys;
use crate::vmm::{Machine, Vmm};
use host::{BURST, Host};
use threads::Threads;

/// Between two questions: microseconds.
const PAUSES: [u64; 3] = [0, 20, 100];
/// Bytes of the frames that are counted.
const FRAMES: [usize; 2] = [64, 1514];
/// Each figure, in the order of the rows.
const FIGURES: usize = PAUSES.len() + 2 * FRAMES.len();

pub(crate) fn run(options: &Options) -> Result<Table, String> {
    let files = TempDir::new();
    let kernel = build(&files)?;
    let rounds = options.rounds(5);
    let (mut vmms, mut notes) = Vmm::all();
    vmms.retain(|vmm| {
        // Its NIC is on no bus that the guest knows.
        let microvm = matches!(vmm, Vmm::Qemu { machine: Machine::Microvm, .. });
        !vmm.vhost() && !microvm && vmm.name().contains(&options.only)
    });
    vmms.iter().for_each(Vmm::warm_up);
    let names: Vec<_> = vmms.iter().map(Vmm::name).collect();
    // Each on a thread of its own, whose processor the next VMM does not inherit.
    let turn = |at: usize| in_namespace(|| measure(&vmms[at], &kernel))?;
    let turns = take_turns(rounds, &names, None, turn);
    let Turns { figures, failures } = turns;
    let trips = PAUSES.map(|pause| (format!("round trip, {pause} us apart, half under"), "us"));
    let ways = ["received", "sent"]
        .map(|way| FRAMES.map(|frame| (format!("{way}, {frame} bytes, cpu"), "us/frame")));
    let rows = trips.into_iter().chain(ways.into_iter().flatten()).enumerate();
    let rows = rows.map(|(index, (what, unit))| {
        let cells: Vec<_> = figures.iter().map(|of_vmm| of_vmm[index].clone()).collect();
        let goal = against(&vmms, &names, &cells);
        Row { what, unit, cells, goal }
    });
    notes.extend([
        "the guest polls on a processor of its own; all other threads of the VMM share one with the program that asks".to_owned(),
        format!("cpu: of those other threads; received in bursts of {BURST}, and sent as fast as the guest fills the ring"),
    ]);
    notes.extend(failures);
    Ok(Table {
        title: format!("Native: a guest of a driver alone, one NIC on a tap, median of {rounds} (min-max)"),
        rows: rows.collect(),
        columns: names,
        notes,
    })
}

fn against(vmms: &[Vmm], names: &[String], cells: &[Samples]) -> Option<Goal> {
    let ours = |vmm: &Vmm| matches!(vmm, Vmm::Wirevm { .. });
    let mine = vmms.iter().position(ours)?;
    let others = (0..vmms.len()).filter(|&at| !ours(&vmms[at]));
    let others: Vec<_> = others.map(|at| (names[at].as_str(), &cells[at])).collect();
    beside(&cells[mine], &others, Better::Less, Aim::Ahead).map(Goal::Beside)
}

/// The guest as an ELF file with a PVH note. It needs no more than the compiler that built this.
fn build(files: &TempDir) -> Result<PathBuf, String> {
    const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/native");
    let (guest, script) = (files.path("guest"), format!("link-arg=-Wl,-T,{SOURCE}/guest.ld"));
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args([
        "--edition",
        "2024",
        "-O",
        "-C",
        "panic=abort",
        "-C",
        "relocation-model=static",
        "-C",
        &script,
    ]);
    for option in ["-nostdlib", "-static", "-Wl,--build-id=none", "-Wl,-z,norelro"] {
        rustc.args(["-C", &format!("link-arg={option}")]);
    }
    let run = rustc.arg("-o").arg(&guest).arg(format!("{SOURCE}/guest.rs")).output();
    let run = run.map_err(|error| format!("cannot start rustc: {error}"))?;
    match run.status.success() {
        true => Ok(guest),
        false => Err(format!("the guest: {}", String::from_utf8_lossy(&run.stderr))),
    }
}

fn measure(vmm: &Vmm, kernel: &Path) -> Result<[Option<f64>; FIGURES], String> {
    let host = Host::start(vmm, kernel)?;
    figures(&host).map_err(|error| format!("{error}\n{}", host.vm.state()))
}

fn figures(host: &Host) -> Result<[Option<f64>; FIGURES], String> {
    let threads = Threads::of(host.vm.pid())?;
    let mut figures = Vec::new();
    for pause in PAUSES {
        figures.push(host.trips(Duration::from_micros(pause))?);
    }
    let unpreempted = sys::Unpreempted::new().map_err(|error| format!("a real-time priority: {error}"))?;
    for len in FRAMES {
        figures.push(host.receives(&threads, len)?);
    }
    drop(unpreempted);
    for len in FRAMES {
        figures.push(host.sends(&threads, len)?);
    }
    let figures: Vec<_> = figures.into_iter().map(Some).collect();
    Ok(figures.try_into().expect("each figure is there"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::host::{Op, TAP};
    use super::*;

    #[test]
    fn the_guest_counts_answers_and_sends() {
        let files = TempDir::new();
        let kernel = build(&files).unwrap();
        harness::need!(in_namespace(|| {
            let host = Host::start(&Vmm::Wirevm { vhost: false }, &kernel).unwrap();
            let ask = |op| host.ask(op, 64).unwrap().expect("an answer");
            let before = ask(Op::Echo);
            for len in [60, 64, 1514] {
                host.send(Op::Nothing, len).unwrap();
            }
            assert_eq!(ask(Op::Echo) - before, 4);
            // Bytes and packets that the tap has from the guest (proc_pid_net(5)).
            let counted = || {
                let text = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
                let line =
                    text.lines().find_map(|line| line.trim().strip_prefix(&format!("{TAP}:"))).unwrap();
                let mut numbers = line.split_whitespace().map(|word| word.parse::<u64>().unwrap());
                [numbers.next().unwrap(), numbers.next().unwrap()]
            };
            let [bytes, packets] = counted();
            ask(Op::Send { count: 1000, len: 100 });
            assert_eq!(counted(), [bytes + 1000 * 100 + 64, packets + 1001]);
            assert!(!Threads::of(host.vm.pid()).unwrap().time().is_zero());
        }));
    }
}
