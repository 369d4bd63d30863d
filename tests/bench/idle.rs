//! Part 8: what many guests that have worked, and do nothing now, hold of the host's memory: with free page reporting and without.

use std::process::Command;
use std::thread;
use std::time::Duration;

use harness::netns::Netns;
use harness::{TempDir, Vm};

use crate::Options;
use crate::guest::{Guest, Kernel};
use crate::report::{Row, Table};
use crate::rounds::{Turns, take_turns};
use crate::sys;
use crate::vmm::{Machine, Vmm};

const GUESTS: usize = 20;
/// Linux reports nothing of the last 64 MiB that are free.
const MEMORY_MIB: u64 = 256;
/// What each has used and given back before it is idle.
const USED_MIB: u64 = 96;
const BOOT: Duration = Duration::from_secs(90);
const SOON: Duration = Duration::from_secs(120);
/// Linux reports what has been free for two seconds, a part at a time.
const REST: Duration = Duration::from_secs(20);

const FLEETS: [(&str, Vmm, &[&str]); 4] = [
    ("wirevm", Vmm::Wirevm { vhost: false }, &[]),
    ("wirevm --balloon off", Vmm::Wirevm { vhost: false }, &["--balloon", "off"]),
    (
        "qemu microvm, free-page-reporting=on",
        Vmm::Qemu { machine: Machine::Microvm, vhost: false },
        &["-device", "virtio-balloon-device,free-page-reporting=on"],
    ),
    ("qemu microvm", Vmm::Qemu { machine: Machine::Microvm, vhost: false }, &[]),
];
const FIGURES: [&str; 2] = ["busy, MiB a guest", "idle, MiB a guest"];

pub(crate) fn run(options: &Options) -> Result<Table, String> {
    harness::stock::can_run()?;
    // The slim one has no balloon.
    let kernel = Kernel::all().into_iter().find(|kernel| kernel.name != "slim");
    let kernel = kernel.ok_or("there is no kernel of Debian's: run make setup")?;
    let rounds = options.rounds(1);
    let files = TempDir::new();
    let kernel = kernel.copied(&files)?;
    let fleets: Vec<_> = FLEETS.into_iter().filter(|(name, ..)| name.contains(&options.only)).collect();
    let names: Vec<_> = fleets.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let kept = options.out.as_deref().map(|out| out.join("idle.rounds"));
    let Turns { figures, failures } = take_turns(rounds, &names, kept.as_deref(), |at| {
        let (_, vmm, args) = &fleets[at];
        measure(vmm, args, &kernel).map(|figures| figures.map(Some))
    });
    let row =
        |((name, ..), cells): ((&str, _, _), _)| Row { what: name.to_owned(), unit: "", cells, goal: None };
    let says = format!(
        "PSS of all processes of a guest, its memory too; each has written {USED_MIB} MiB and freed them, and rests for {} s",
        REST.as_secs()
    );
    Ok(Table {
        title: format!(
            "{GUESTS} idle guests: kernel {}, 1 vCPU, {MEMORY_MIB} MiB, a NIC each, median of {rounds} (min-max)",
            kernel.name
        ),
        columns: FIGURES.map(str::to_owned).to_vec(),
        rows: fleets.into_iter().zip(figures).map(row).collect(),
        notes: [says].into_iter().chain(failures).collect(),
    })
}

fn measure(vmm: &Vmm, args: &[&str], kernel: &Kernel) -> Result<[f64; FIGURES.len()], String> {
    let host = Netns::new()?;
    let guest = Guest { kernel: &kernel.image, initrd: &kernel.initrd, memory_mib: MEMORY_MIB, tap: None };
    let command = vmm.command(&guest);
    let start = || {
        let mut inside: Command = host.command(command.get_program().to_str().expect("a path in UTF-8"));
        Vm::start(inside.args(command.get_args()).args(args))
    };
    // One after another: so many that boot at once are more than the lab bears. Its QEMU breaks one now and then, and another
    // takes its place.
    let mut fleet = Vec::with_capacity(GUESTS);
    let mut more = GUESTS / 2;
    while fleet.len() < GUESTS {
        let mut vm = start();
        if vm.shows("guest# ", BOOT) {
            fleet.push(vm);
        } else {
            more =
                more.checked_sub(1).ok_or_else(|| format!("too many guests do not start\n{}", vm.state()))?;
        }
    }
    for vm in &mut fleet {
        // The balloon's among them.
        vm.sh("while read -r module; do insmod \"$module\" 2>/dev/null; done </lib/modules.more", SOON);
        vm.sh(&format!("dd if=/dev/zero of=/dev/shm/used bs=1M count={USED_MIB} 2>/dev/null"), SOON);
    }
    let busy = resident(&fleet)?;
    for vm in &mut fleet {
        vm.sh("rm /dev/shm/used", SOON);
    }
    thread::sleep(REST);
    let idle = resident(&fleet)?;
    // So many ends at once are more than the lab's QEMU bears now and then.
    eprintln!("bench: {busy:.1} MiB a guest, then {idle:.1}");
    Ok([busy, idle])
}

/// MiB of a guest, on the average.
fn resident(fleet: &[Vm]) -> Result<f64, String> {
    let mut kib = 0;
    for pid in fleet.iter().flat_map(|vm| sys::family(vm.pid())) {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = std::fs::read_to_string(&path).map_err(|error| format!("cannot read {path}: {error}"))?;
        kib += pss(&text).ok_or_else(|| format!("{path} has no Pss"))?;
    }
    Ok(kib as f64 / 1024.0 / fleet.len() as f64)
}

fn pss(smaps: &str) -> Option<u64> {
    let line = smaps.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_s_part_of_its_memory() {
        let text = "00400000-7ffd [rollup]\nRss:  900 kB\nPss:                 123 kB\nPss_Dirty:  9 kB\n";
        assert_eq!(pss(text), Some(123));
        assert_eq!(pss("Rss: 1 kB\n"), None);
    }
}
