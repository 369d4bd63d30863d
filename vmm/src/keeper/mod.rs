//! The side towards the host: terminal, signals, console.

pub(crate) mod console;
pub(crate) mod output;
pub(crate) mod signals;
pub(crate) mod terminal;
