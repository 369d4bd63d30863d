//! What a guest can bring about as often as it likes is said aloud once: it must not fill the host's log.

use std::sync::atomic::{AtomicBool, Ordering};

use log::Level;

/// How loud to say one such thing: a warning the first time, and for who debugs from then on. No reset forgets it.
#[derive(Debug, Default)]
pub struct LogOnce(AtomicBool);

impl LogOnce {
    /// The level of this time.
    pub fn level(&self) -> Level {
        if self.0.swap(true, Ordering::Relaxed) { Level::Debug } else { Level::Warn }
    }
}
