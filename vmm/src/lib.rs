//! wirevm for Rust programs: a machine as data.
//!
//! [`MachineConfig`] is what the command line, the control socket and a saved machine speak.
#![forbid(unsafe_code)]

pub mod config;

pub use config::MachineConfig;
