//! wirevm for Rust programs: machines as data, and those that run as objects.
//!
//! - [`MachineConfig`] is what the command line, the control socket and a saved machine speak.
//! - [`Vm`] is a running machine for a test: started, waited for, asked, and stopped.
//! - [`runtime`]: where running machines are found, by their names.
//! - [`agent`]: the agent in a guest, which runs commands there.
//! - [`client`]: calls to one that runs; [`info`], [`counters`]: what it answers.
#![forbid(unsafe_code)]

pub mod agent;
pub mod client;
pub mod config;
pub mod counters;
pub mod info;
pub mod runtime;
mod vm;

pub use config::MachineConfig;
pub use vm::{Vm, VmError};
