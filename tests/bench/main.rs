//! Figures, each beside the one it is to be compared with, measured in one run.
//!
//! ```text
//! bench [start] [wire] [queues] [poll] [core] [native] [lab] [wires] [gaps] [disks] [idle] [image] [--rounds N] [--only TEXT] [--out DIRECTORY]
//! ```
//!
//! - `start`: how long `wirevm` and QEMU's microvm take to their first `KVM_RUN`, and what they hold in memory by then.
//! - `wire`: frames through the NIC's own thread and a tap, against a bare loop of the same system calls.
//! - `queues`: the same through two pairs, beside one.
//! - `poll`: one frame at a time, with a thread that looks about for the next one and with one that sleeps.
//! - `core`: the NIC's thread on the processor of a driver that polls, computes or halts, against a bare loop there.
//! - `native`: round trips, and processor time of a frame, under `wirevm`, QEMU's q35 and the VMMs that the environment names, of a
//!   guest that is a driver alone, and so runs on any KVM.
//! - `lab`: a guest's boot, throughput, latency, exits and system calls under `wirevm`, QEMU and the VMMs that the environment
//!   names. Needs a KVM that runs Linux.
//! - `wires`: throughput, latency and exits of a guest on each wire, beside the routed tap. Needs such a KVM too.
//! - `gaps`: how long a guest is cut off while its bridge is made again, its link flaps, or its NIC moves. The same.
//! - `disks`: a disk of the same file under `wirevm` and QEMU. The same.
//! - `idle`: what twenty guests that do nothing hold of memory, with free page reporting and without. The same.
//! - `image`: from Enter to the exit status of a command in a guest, beside virtme-ng where it is installed. The same.
//!
//! **Invariant: what is compared takes turns**, in every round, in an order that alternates, so that a machine that
//! becomes busy is unkind to all. A figure is the median of the rounds, with the least and the most beside it, and a ratio
//! is one of figures of the same round. Nothing here passes or fails: a goal is printed with what became of it.
//!
//! `make bench` builds what is measured, and runs each part where it can run. `unsafe` is in `sys.rs`.
#![deny(unsafe_code)]

mod compare;
mod disks;
mod gaps;
mod guest;
mod idle;
mod image;
mod lab;
mod memory;
mod native;
mod peer;
mod plot;
mod report;
mod rounds;
mod start;
mod sys;
mod traffic;
mod vmm;
mod wire;
mod wires;

use std::path::PathBuf;
use std::process::ExitCode;

use report::Table;

/// What a part needs to know.
struct Options {
    /// How often each thing is measured; none for what suits the part.
    rounds: Option<usize>,
    /// Of the wire, of the VMMs and of the fleets, only what has this in its name: for a profiler.
    only: String,
    /// Where files go.
    out: Option<PathBuf>,
}

impl Options {
    fn rounds(&self, usual: usize) -> usize {
        self.rounds.unwrap_or(usual).max(1)
    }
}

type Part = fn(&Options) -> Result<Table, String>;
const PARTS: [(&str, Part); 12] = [
    ("start", start::run),
    ("wire", wire::run),
    ("queues", wire::queues::run),
    ("poll", wire::poll::run),
    ("core", wire::core::run),
    ("native", native::run),
    ("lab", lab::run),
    ("wires", wires::run),
    ("gaps", gaps::run),
    ("disks", disks::run),
    ("idle", idle::run),
    ("image", image::run),
];

/// Parts that measure threads of ours and nobody else's.
const ALONE: [&str; 6] = ["start", "wire", "queues", "poll", "core", "native"];

fn main() -> ExitCode {
    let mut options = Options { rounds: None, only: String::new(), out: None };
    let mut wanted = Vec::new();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let part = PARTS.iter().find(|(name, _)| *name == word);
        match (word.as_str(), part) {
            (_, Some(part)) => wanted.push(part),
            ("--rounds", _) => match words.next().and_then(|number| number.parse().ok()) {
                Some(rounds) => options.rounds = Some(rounds),
                None => return usage(),
            },
            ("--only", _) => match words.next() {
                Some(text) => options.only = text,
                None => return usage(),
            },
            ("--out", _) => match words.next() {
                Some(directory) => options.out = Some(PathBuf::from(directory)),
                None => return usage(),
            },
            _ => return usage(),
        }
    }
    if wanted.is_empty() {
        return usage();
    }
    // Guests may have the kernel carry their frames, by a thread of its own that is not of our session (until Linux 6.4), and that would
    // wait for all that is.
    let alone = wanted.iter().all(|(name, _)| ALONE.contains(name));
    let _first = alone.then(Preferred::new);
    let mut status = ExitCode::SUCCESS;
    for (name, part) in wanted {
        let result = part(&options).and_then(|table| {
            table.print();
            options.out.as_deref().map_or(Ok(()), |out| table.write_json(&out.join(format!("{name}.json"))))
        });
        if let Err(error) = result {
            eprintln!("error: {name}: {error}");
            status = ExitCode::FAILURE;
        }
    }
    status
}

/// While it lives, other work on the machine gets little of it: without, the figures spread more. Threads and processes that
/// are started meanwhile inherit it. Takes root, and does nothing otherwise.
struct Preferred;

impl Preferred {
    /// The weight of our whole session against others, where the kernel groups by session (sched(7)).
    const SESSION: &str = "/proc/self/autogroup";

    fn new() -> Self {
        let _ = rustix::process::setpriority_process(None, -20);
        let _ = std::fs::write(Self::SESSION, "-20");
        Self
    }
}

impl Drop for Preferred {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::SESSION, "0");
    }
}

fn usage() -> ExitCode {
    let parts = PARTS.map(|(name, _)| format!("[{name}]")).join(" ");
    eprintln!("usage: bench {parts} [--rounds N] [--only TEXT] [--out DIRECTORY]");
    ExitCode::from(2)
}
