//! Part 1: from the start of the process to the first `KVM_RUN`, and the memory held at that moment.
//!
//! The same stopwatch serves any VMM: the process starts under a seccomp filter that stops it at `KVM_RUN` and nowhere
//! else. Time runs from before the fork, so it includes the fork and the exec of a program of that size.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::Options;
use crate::guest::{Guest, Kernel};
use crate::memory::Resident;
use crate::report::{Goal, Row, Samples, Table};
use crate::sys;
use crate::vmm::{Machine, Vmm};

const MEMORY_MIB: u64 = 256;
const MIB: f64 = 1048576.0;
const VMMS: [Vmm; 2] = [Vmm::Wirevm { vhost: false }, Vmm::Qemu { machine: Machine::Microvm, vhost: false }];

struct Start {
    until_run: Duration,
    /// Of all its threads; unlike `until_run`, other work on the machine does not add to it.
    cpu: Duration,
    resident: Resident,
}

pub(crate) fn run(options: &Options) -> Result<Table, String> {
    let kernels = Kernel::all();
    if kernels.is_empty() {
        return Err("there is no kernel: run make setup".into());
    }
    let rounds = options.rounds(15);
    let mut rows = size_rows()?;
    for kernel in &kernels {
        rows.extend(in_namespace(|| start_rows(kernel, rounds))??);
    }
    let title = format!(
        "Start: process start to first KVM_RUN, one tap, {MEMORY_MIB} MiB of guest memory, median of {rounds} (min-max)"
    );
    let notes = vec![
        "resident: PSS of all processes together, over the guest's own memory, at the first KVM_RUN"
            .to_owned(),
    ];
    Ok(Table { title, columns: VMMS.map(|vmm| vmm.name()).to_vec(), rows, notes })
}

/// Runs `call` on a thread in a network namespace of its own, in which its children are too.
pub(crate) fn in_namespace<T: Send>(call: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            sys::new_network_namespace()
                .map_err(|error| format!("a network namespace, which takes root: {error}"))?;
            Ok(call())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn start_rows(kernel: &Kernel, rounds: usize) -> Result<Vec<Row>, String> {
    let guest = Guest { kernel: &kernel.image, initrd: &kernel.initrd, memory_mib: MEMORY_MIB, tap: None };
    let mut figures = [const { [const { Samples::new() }; 4] }; VMMS.len()];
    // The first round, not counted, brings programs and kernels into the page cache.
    for round in 0..=rounds {
        for at in 0..VMMS.len() {
            let at = if round % 2 == 0 { at } else { VMMS.len() - 1 - at };
            let start = match start(VMMS[at].command(&guest)) {
                Ok(start) => start,
                Err(error) if matches!(VMMS[at], Vmm::Wirevm { .. }) => {
                    return Err(format!("{} with {}: {error}", VMMS[at].name(), kernel.name));
                }
                // Some KVMs do not take QEMU: its column stays empty.
                Err(error) => {
                    if round == 0 {
                        eprintln!("bench: {} with {}: {error}", VMMS[at].name(), kernel.name);
                    }
                    continue;
                }
            };
            if round > 0 {
                let Start { until_run, cpu, resident } = start;
                figures[at][0].push(until_run.as_secs_f64() * 1e3);
                figures[at][1].push(cpu.as_secs_f64() * 1e3);
                figures[at][2].push(resident.all as f64 / MIB);
                figures[at][3].push(resident.anonymous as f64 / MIB);
            }
        }
    }
    let row = |what: &str, unit, index: usize, goal| Row {
        what: format!("{what}, kernel {}", kernel.name),
        unit,
        cells: figures.iter().map(|of_vmm| of_vmm[index].clone()).collect(),
        goal,
    };
    Ok(vec![
        row("first KVM_RUN", "ms", 0, Some(Goal::Under(15.0))),
        row("processor time until then", "ms", 1, None),
        row("resident", "MiB", 2, Some(Goal::Under(3.0))),
        row("resident, anonymous", "MiB", 3, None),
    ])
}

/// Starts a VMM, stops it at its first `KVM_RUN`, looks, and kills it.
fn start(mut command: Command) -> Result<Start, String> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let traced = sys::until_kvm_run(&mut command).map_err(|error| format!("{command:?}: {error}"))?;
    let time = |pid| sys::Cpu::Process(pid).time();
    let cpu = sys::family(traced.pid()).into_iter().map(time).sum::<Result<_, _>>();
    let cpu = cpu.map_err(|error| format!("its processor time: {error}"))?;
    let resident = Resident::of(traced.pid(), MEMORY_MIB << 20)?;
    Ok(Start { until_run: traced.elapsed(), cpu, resident })
}

/// The program's size, and how many crates are in it.
fn size_rows() -> Result<Vec<Row>, String> {
    let path = harness::wirevm_path();
    let size = std::fs::metadata(&path).map_err(|error| format!("{}: {error}", path.display()))?.len();
    let tree = Command::new("cargo")
        .args(["tree", "--offline", "-p", "vmm", "-e", "normal", "--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .map_err(|error| format!("cannot start cargo: {error}"))?;
    let tree = String::from_utf8_lossy(&tree.stdout).replace(" (*)", "");
    let crates: std::collections::BTreeSet<_> = tree.lines().filter(|line| !line.is_empty()).collect();
    let row = |what: &str, unit, value, goal| Row {
        what: what.to_owned(),
        unit,
        cells: vec![[value].into_iter().collect()],
        goal: Some(Goal::Under(goal)),
    };
    Ok(vec![
        row("the program, stripped", "MiB", size as f64 / MIB, 4.0),
        row("crates in it, ours included", "", crates.len() as f64, 110.0),
    ])
}
