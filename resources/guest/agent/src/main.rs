//! The agent in a wirevm guest: init where the guest has none, and what runs commands for the host.
//!
//! **Invariant: process 1 does little, and survives what others do.** It has one thread, believes nothing that it reads, and forks a
//! process for each connection ([`session`]), which alone parses what the host says and runs the command. No memory shortage picks process 1.
//!
//! ```text
//! init ─► mounts, root ─► network (a process for each NIC) ─► server ─── fork ──► session ──► command
//! ```
//!
//! - [`init`]: the guest's start and end. [`mounts`], [`root`]: file systems. [`power`]: the power button.
//! - [`network`]: addresses by DHCP; router advertisements are the kernel's.
//! - [`notify`]: the host is told that the guest is up.
//! - [`server`]: who connects, and whose processes end. [`session`]: a connection. [`relay`]: a command's streams.
//!   [`spawn`], [`user`]: how a command starts.
//! - [`sys`]: the system calls for which no crate has a safe name; `unsafe` is there and in [`spawn`] alone.
#![deny(unsafe_code)]

mod init;
mod mounts;
mod network;
mod notify;
mod power;
mod relay;
mod root;
mod server;
mod session;
mod spawn;
mod sys;
mod user;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use wirevm_agent::{PORT, request};

use crate::server::{Context, Listener};

const HELP: &str = "\
The agent in a wirevm guest: it runs commands for the host.

As process 1 it is the guest's init, which wirevm configures. In a guest that has an init:

  wirevm-agent --serve               listen on vsock, for wirevm exec; what a service runs
  wirevm-agent --serve --port PORT   on another port than 1024
  wirevm-agent --serve --unix PATH   on a Unix socket instead: for containers, and tests
  wirevm-agent --dhcp NIC            give a network interface its address by DHCP, and renew it
  wirevm-agent --version
";

/// What the command line says.
enum Call {
    Help,
    Version,
    Serve { port: u32, unix: Option<PathBuf> },
    Dhcp(String),
}

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let call = read(&words);
    // The kernel gives init the words of its command line that it does not know.
    if sys::is_init() && !matches!(call, Some(Call::Serve { .. } | Call::Dhcp(_))) {
        init::run();
    }
    let done = match call {
        Some(Call::Help) => print(HELP),
        Some(Call::Version) => print(concat!("wirevm-agent ", env!("CARGO_PKG_VERSION"), "\n")),
        Some(Call::Serve { port, unix }) => serve(port, unix),
        Some(Call::Dhcp(nic)) => network::run_one(&nic),
        None => {
            log(format_args!("these options make no sense\n{HELP}"));
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            log(format_args!("{why}"));
            ExitCode::FAILURE
        }
    }
}

fn read(words: &[OsString]) -> Option<Call> {
    let words: Vec<_> = words.iter().map(|word| word.to_str()).collect::<Option<_>>()?;
    match words[..] {
        ["--help" | "-h"] => Some(Call::Help),
        ["--version" | "-V"] => Some(Call::Version),
        ["--dhcp", nic] => Some(Call::Dhcp(nic.to_owned())),
        ["--serve"] => Some(Call::Serve { port: PORT, unix: None }),
        ["--serve", "--port", port] => Some(Call::Serve { port: port.parse().ok()?, unix: None }),
        ["--serve", "--unix", path] => Some(Call::Serve { port: PORT, unix: Some(path.into()) }),
        _ => None,
    }
}

/// Serves beside another init, until it is ended.
fn serve(port: u32, unix: Option<PathBuf>) -> Result<(), String> {
    let on_vsock = unix.is_none();
    let listener = match &unix {
        Some(path) => {
            Listener::unix(path).map_err(|why| format!("cannot listen at {}: {why}", path.display()))?
        }
        None => Listener::vsock(port).map_err(|why| {
            format!("cannot listen on vsock: {why}; is the module vmw_vsock_virtio_transport loaded?")
        })?,
    };
    let context = Context::new(request::Command::default(), Ok(()), on_vsock)
        .map_err(|why| format!("cannot make pipes: {why}"))?;
    server::run(listener, context, Vec::new());
    if let Some(path) = &unix {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

fn print(text: &str) -> Result<(), String> {
    std::io::stdout().write_all(text.as_bytes()).map_err(|why| format!("cannot print: {why}"))
}

/// Says something on standard error, which is the guest's console where the agent is init. What `eprintln` does where that fails,
/// a panic, would end the guest.
fn log(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "wirevm-agent: {what}");
}
