//! Part 7: a disk of the same file under each VMM, read and written from within the guest past its own page cache.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::netns::Netns;
use harness::stock::{Stock, add_program};
use harness::{TempDir, Vm};

use crate::Options;
use crate::compare::{Aim, Better, beside};
use crate::guest::{Guest, Kernel};
use crate::report::{Goal, Row, Table};
use crate::rounds::{Turns, take_turns};
use crate::traffic;
use crate::vmm::{Machine, Vmm};

const MEMORY_MIB: u64 = 256;
const DISK_MIB: u64 = 256;
const BOOT: Duration = Duration::from_secs(180);
const SOON: Duration = Duration::from_secs(60);
const SECONDS: u32 = 3;
const PROGRAM: &str = "guest-disk";

/// What the guest's program is told, and what that is.
const WORKS: [(&str, &str, &str); 7] = [
    ("random-read", "4 KiB read at random", "per s"),
    ("random-read:16", "the same, 16 in flight", "per s"),
    ("random-write:16", "4 KiB written at random, 16 in flight", "per s"),
    ("read:2", "1 MiB read in order, 2 in flight", "MiB/s"),
    ("write:2", "1 MiB written in order, 2 in flight", "MiB/s"),
    ("flush", "4 KiB written and flushed", "per s"),
    ("flush:16", "the same, 16 in flight", "per s"),
];
/// Each with the exits that one of them took.
const FIGURES: usize = 2 * WORKS.len();

const VMMS: [Vmm; 3] = [
    Vmm::Wirevm { vhost: false },
    Vmm::Qemu { machine: Machine::Microvm, vhost: false },
    Vmm::Qemu { machine: Machine::Q35, vhost: false },
];

pub(crate) fn run(options: &Options) -> Result<Table, String> {
    harness::stock::can_run()?;
    let kernel = Kernel::all().into_iter().next().ok_or("there is no kernel: run make setup")?;
    let rounds = options.rounds(3);
    let files = TempDir::new();
    let kernel = kernel.copied(&files)?;
    // Cargo puts the programs of one package into one directory.
    let program = std::env::current_exe().map_err(|error| error.to_string())?.with_file_name(PROGRAM);
    let initrd = files.path("with-program.cpio");
    let Kernel { name, image, initrd: before, .. } = &kernel;
    let stock = Stock { name: name.clone(), kernel: image.clone(), initrd: before.clone() };
    add_program(&stock, program.to_str().ok_or("a path that is not UTF-8")?, &initrd)?;
    let kernel = Kernel { initrd, ..kernel };
    let disk = files.path("disk");
    write_disk(&disk)?;
    let vmms: Vec<_> = VMMS.into_iter().filter(|vmm| vmm.name().contains(&options.only)).collect();
    vmms.iter().for_each(Vmm::warm_up);
    let names: Vec<_> = vmms.iter().map(Vmm::name).collect();
    let kept = options.out.as_deref().map(|out| out.join("disks.rounds"));
    let Turns { figures, failures } =
        take_turns(rounds, &names, kept.as_deref(), |at| measure(&vmms[at], &kernel, &disk));
    let row = |index: usize| {
        let (_, what, unit) = WORKS[index / 2];
        let (what, unit, better) = match index % 2 {
            0 => (what.to_owned(), unit, Better::More),
            _ => (format!("exits, {what}"), "each", Better::Less),
        };
        let cells: Vec<_> = figures.iter().map(|of_vmm| of_vmm[index].clone()).collect();
        let others: Vec<_> = names.iter().map(String::as_str).zip(&cells).skip(1).collect();
        let goal = beside(&cells[0], &others, better, Aim::Level).map(Goal::Beside);
        Row { what, unit, cells, goal }
    };
    let says = format!(
        "a raw file of {DISK_MIB} MiB in the host's memory; virtio-blk; io_uring in both, and a thread of its own for QEMU's disk (iothread); {SECONDS} s each"
    );
    Ok(Table {
        title: format!(
            "Disks: kernel {}, 1 vCPU, {MEMORY_MIB} MiB, median of {rounds} (min-max)",
            kernel.name
        ),
        columns: names.clone(),
        rows: (0..FIGURES).map(row).collect(),
        notes: [says].into_iter().chain(failures).collect(),
    })
}

/// All of it is there, so that nothing is allocated later.
fn write_disk(path: &Path) -> Result<(), String> {
    let bytes: Vec<_> = (0..1u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut file = std::fs::File::create(path).map_err(|error| error.to_string())?;
    let written = (0..DISK_MIB).try_for_each(|_| std::io::Write::write_all(&mut file, &bytes));
    written.map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn add_disk(vmm: &Vmm, command: &mut Command, disk: &Path) {
    let disk = disk.to_str().expect("a path in UTF-8");
    let device = match vmm {
        Vmm::Qemu { machine: Machine::Microvm, .. } => "virtio-blk-device",
        Vmm::Qemu { machine: Machine::Q35, .. } => "virtio-blk-pci",
        _ => {
            command.args(["--disk", disk]);
            return;
        }
    };
    command.args(["-object", "iothread,id=io", "-drive"]);
    command.arg(format!("file={disk},format=raw,if=none,id=disk,cache=writeback,aio=io_uring,discard=unmap"));
    command.args(["-device", &format!("{device},drive=disk,iothread=io")]);
}

fn measure(vmm: &Vmm, kernel: &Kernel, disk: &Path) -> Result<[Option<f64>; FIGURES], String> {
    let host = Netns::new()?;
    let guest = Guest { kernel: &kernel.image, initrd: &kernel.initrd, memory_mib: MEMORY_MIB, tap: None };
    let mut command = vmm.command(&guest);
    add_disk(vmm, &mut command, disk);
    let mut inside = host.command(command.get_program().to_str().expect("a path in UTF-8"));
    let mut vm = Vm::start(inside.args(command.get_args()));
    vm.expect("guest# ", BOOT);
    let mut figures = [None; FIGURES];
    for (at, (work, ..)) in WORKS.iter().enumerate() {
        let driven = drive(&mut vm, work);
        let (per_second, exits) = driven.map_err(|error| format!("{work}: {error}\n{}", vm.state()))?;
        figures[2 * at] = Some(per_second);
        figures[2 * at + 1] = Some(exits);
    }
    Ok(figures)
}

/// How many a second, and the exits that each took. The console is silent meanwhile.
fn drive(vm: &mut Vm, work: &str) -> Result<(f64, f64), String> {
    let command = format!("{PROGRAM} /dev/vda {work} {SECONDS} >/tmp/said 2>&1");
    let began = Instant::now();
    let (_, exits) = traffic::exits_during(|| {
        vm.sh(&command, SOON);
        Ok(())
    })?;
    let took = began.elapsed();
    if took < Duration::from_secs(SECONDS.into()) {
        return Err(format!("it ended after {took:?}: {}", vm.sh("cat /tmp/said", SOON)));
    }
    let said = vm.sh("cat /tmp/said", SOON);
    let per_second: f64 = said.trim().parse().map_err(|_| format!("it says {said:?}"))?;
    Ok((per_second, exits / (per_second * f64::from(SECONDS))))
}
