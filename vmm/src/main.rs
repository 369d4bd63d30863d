//! wirevm: a minimal KVM hypervisor whose subject is the NIC.
//!
//! **Invariant: this crate knows KVM, and joins the others.** What a device does is in `devices`, where frames go is in
//! `net`, how a kernel is loaded is in `boot`; here they meet: addresses with devices, eventfds with interrupt lines, host
//! links with virtqueues.
//!
//! - `main.rs`, `cli.rs`, `memory_config.rs`: the commands; `report.rs`, `error.rs`: what the user is told when they fail.
//! - `machine.rs`: builds, runs, takes apart. `memory.rs`, `bus.rs`, `cpuid.rs`, `vcpu.rs`, `nic.rs`: its parts.
//! - `hugepages.rs`: the host's pools of them. `timings.rs`: how long the start takes.
//! - `transport.rs`: where the guest finds its devices. `irq.rs`: irqfds, the routes of messages, ioeventfds.
//! - `console.rs`, `terminal.rs`, `signals.rs`, `ending.rs`: the main thread while the guest runs, and how it ends.
//!   `output.rs`: where the guest's serial port writes to.
//! - `doctor.rs`, `doctor/host.rs`: what this host can do. `explain.rs`: what each wire is.
//!
//! Threads: the main thread, one for each vCPU, and one for each queue pair of a NIC (in `devices`). A frame never meets the
//! main thread or a vCPU's.
//!
//! `unsafe` is in `memory.rs` (giving mapped memory to KVM), `vcpu.rs` (reading what KVM left in `kvm_run`) and `fd.rs`
//! (borrowing a descriptor).
#![deny(unsafe_code)]

mod cli;
mod doctor;
mod error;
mod explain;
mod fd;
mod keeper;
mod kvm;
mod machine;
mod protocol;
mod report;
mod sys;
mod timings;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use vmm::MachineConfig;

use crate::cli::{Cli, Command, machines};
use crate::keeper::Telling;
use crate::keeper::detach::{self, Detached};
use crate::timings::Timings;

fn main() -> ExitCode {
    let began = Instant::now();
    let cli = Cli::parse();
    report::log_from(match cli.verbose {
        0 => log::LevelFilter::Warn,
        1 => log::LevelFilter::Info,
        2 => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    });
    report::tell_panics();
    match cli.command {
        Command::Run(args) => {
            let timings = Timings::new(args.timings, began);
            timings.reached("command line read");
            allow_descriptors();
            let ready = match args.detach {
                false => None,
                true => match detach::detach() {
                    Ok(Detached::Command(code)) => return code,
                    Ok(Detached::Keeper(ready)) => Some(ready),
                    Err(source) => {
                        let error = error::Error::Host { what: "go on without the terminal", source };
                        report::error(&error, None);
                        return ExitCode::FAILURE;
                    }
                },
            };
            keeper::run(&MachineConfig::from(&args), Telling { explain: args.explain, timings }, ready)
        }
        Command::Ls(args) => machines::done(machines::ls(&args)),
        Command::Show(args) => machines::done(machines::show(&args)),
        Command::Stop(args) => machines::done(machines::stop(&args)),
        Command::Pause(args) => machines::done(machines::pause(&args)),
        Command::Resume(args) => machines::done(machines::resume(&args)),
        Command::Wait(args) => machines::done(machines::wait(&args)),
        Command::Console(args) => machines::done(machines::console(&args)),
        Command::Logs(args) => machines::done(machines::logs(&args)),
        Command::Metrics(args) => machines::done(machines::metrics(&args)),
        Command::Explain(args) => {
            report::answer(&explain::text(args.wire));
            ExitCode::SUCCESS
        }
        Command::Doctor(args) => match doctor::run(&args) {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        },
    }
}

/// Allows this process as many descriptors as it may allow itself: each queue pair has several. What it refuses is met later.
fn allow_descriptors() {
    let most = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most });
}
