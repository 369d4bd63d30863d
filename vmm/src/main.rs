//! wirevm: a minimal KVM hypervisor whose subject is the NIC.
//!
//! **Invariant: this crate knows KVM, and joins the others.** What a device does is in `devices`, where frames go is in
//! `net`, how a kernel is loaded is in `boot`; here they meet: addresses with devices, eventfds with interrupt lines, host
//! links with virtqueues.
//!
//! **Invariant: two processes.** The keeper changes the host and never touches guest memory; the machine runs the guest and has no
//! right. They share what was opened and `protocol/`, nothing else: the machine is forked before there is a thread, and neither has
//! a path of a frame through the other.
//!
//! ```text
//! wirevm run ─► keeper/ ──────── fork ────────► machine/
//!               wires, console, terminal,       memory, kernel, vCPUs, devices;
//!               signals, control socket  ◄────► sandbox/   (protocol/, SCM_RIGHTS)
//! wirevm ls, show, stop... ─► the library's `client` ─► keeper/control/
//! ```
//!
//! - `main.rs`, `cli/`: the commands, and the words of `run`, which become a `MachineConfig`; `report.rs`, `error.rs`: what the
//!   user is told when they fail. `panics.rs`: what a bug of ours comes to. `timings.rs`: how long the start takes.
//! - `keeper/mod.rs`: its life. `events.rs`: its loop. `core/`: what it knows of the machine and does with it. `child.rs`: the
//!   machine's process. `nics.rs`, `nic_table.rs`, `move_spec.rs`: wires, what guests ask of them, and what a move may change.
//!   `stopping.rs`: how an end is asked for, and enforced.
//!   `guest/`: a guest that is made of an image or a directory. `attached.rs`: its command's streams. `guest_words.rs`: whether it is up.
//!   `console.rs`, `sink.rs`, `keyboard.rs`, `terminal.rs`, `watch.rs`: the serial port's other end. `control/`: the socket.
//!   `shares.rs`, `virtiofsd.rs`, `jail.rs`: the processes that share directories, and what confines them.
//!   `wire_watches.rs`, `dns_watches.rs`: what the loop watches of the network. `vsock.rs`: the host's end of the guest's sockets. `detach.rs`, `notify.rs`, `register.rs`, `counters.rs`,
//!   `metrics.rs`, `signals.rs`: what their names say.
//! - `machine/mod.rs`: its life. `build.rs`: what it is made of. `events.rs`: its loop. `vcpus.rs`: the vCPUs' threads, which run,
//!   stand still and end together. `slots.rs`: NICs that are plugged in and taken out. `others.rs`, `vsock.rs`: the devices beside them. `nic.rs`, `output.rs`: devices' other ends. `ending.rs`: why a guest ends.
//!   `sandbox/`: what confines it; `filter.rs` has each system call of each kind of thread, with a reason.
//! - `kvm/`: memory, the bus, CPUID, vCPUs and their `gate.rs`, interrupts; `transport.rs`, `pci_bus.rs`: where the guest finds its
//!   devices; `hugepages.rs`: the
//!   host's pools of them.
//! - `doctor.rs`, `doctor/`: what this host can do. `explain.rs`: what each wire is.
//!
//! Threads of the keeper: one. Of the machine: the main thread, one for each vCPU, one for each queue pair of a NIC, and one for
//! each other device (in `devices`). All are born of the main thread. A frame never meets the main thread or a vCPU's.
//!
//! `unsafe` is in `kvm/` (giving mapped memory to KVM, reading what KVM left in `kvm_run`, routes of interrupts), `fd.rs` (borrowing a
//! descriptor), `sys.rs` (system calls without a safe wrapper) and `machine/sandbox/trap.rs` (a signal handler).
#![deny(unsafe_code)]

mod cli;
mod doctor;
mod error;
mod explain;
mod fd;
mod keeper;
mod kvm;
mod machine;
mod panics;
mod protocol;
mod report;
mod sys;
mod timings;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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
    panics::handle();
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
            keeper::run(
                &args.machine(),
                Telling {
                    explain: args.explain,
                    wait_ready: args.wait_ready.map(Duration::from_secs),
                    timings,
                },
                ready,
            )
        }
        Command::TakeBack => {
            panics::take_back();
            ExitCode::FAILURE
        }
        Command::Attach(args) => cli::exec::attach::run(&args),
        Command::Ls(args) => machines::done(machines::ls(&args)),
        Command::Show(args) => machines::done(machines::show(&args)),
        Command::Stop(args) => machines::done(machines::stop(&args)),
        Command::Pause(args) => machines::done(machines::pause(&args)),
        Command::Resume(args) => machines::done(machines::resume(&args)),
        Command::Wait(args) => machines::done(machines::wait(&args)),
        Command::Exec(args) => cli::exec::run(&args),
        Command::Ssh(args) => cli::ssh::run(&args, cli.verbose),
        Command::SshProxy(args) => cli::ssh::proxy::run(&args),
        Command::Console(args) => machines::done(machines::console(&args)),
        Command::Logs(args) => machines::done(machines::logs(&args)),
        Command::Metrics(args) => machines::done(machines::metrics(&args)),
        Command::Net(args) => machines::done(cli::net::run(&args.command)),
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
