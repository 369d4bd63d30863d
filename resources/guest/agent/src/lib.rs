//! What the host and the agent in its guest both know: the words that they exchange, and the agent's configuration.
//!
//! - [`frame`]: the frames of a connection, each a kind, a length and a payload.
//! - [`request`]: what a connection is for: a command, or a question.
//! - [`config`]: what the agent does as the guest's init.
//! - `fields.rs`: the text that requests and the configuration are made of.
//!
//! **Invariant: neither end believes the other.** A frame is at most [`frame::PAYLOAD_MAX`] bytes long and a document [`DOCUMENT_MAX`],
//! whatever lengths the other end claims; what does not parse is an error, never a panic.
#![forbid(unsafe_code)]

pub mod config;
mod fields;
pub mod frame;
pub mod request;

pub use fields::{DOCUMENT_MAX, Malformed};

/// The vsock port that the agent listens at unless its configuration names another.
pub const PORT: u32 = 1024;

/// The vsock port of the host on which wirevm hears `READY=1` (sd_notify(3)).
pub const NOTIFY_PORT: u32 = 1023;

/// Where the agent's configuration is in its initramfs.
pub const CONFIG_PATH: &str = "/.wirevm/config";

/// Exit status of a command that could not be run, because wirevm or the agent failed.
pub const STATUS_FAILED: u8 = 125;
/// Exit status of a command that is there and cannot be executed.
pub const STATUS_NOT_EXECUTABLE: u8 = 126;
/// Exit status of a command that is not there.
pub const STATUS_NOT_FOUND: u8 = 127;
