//! Signals that end the process are heard by the main thread, which then undoes everything as at any other end; and the one by
//! which it goes on after a stop, when the terminal may have become ours.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::register_signal_handler;

static EVENT: OnceLock<EventFd> = OnceLock::new();
static RESUMED: OnceLock<EventFd> = OnceLock::new();
static LAST: AtomicI32 = AtomicI32::new(0);
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Only what may be done in a signal handler: atomic stores, an atomic load, and one `write(2)`.
extern "C" fn heard(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    LAST.store(signal, Ordering::Relaxed);
    COUNT.fetch_add(1, Ordering::Relaxed);
    if let Some(event) = EVENT.get() {
        // Full means readable already.
        let _ = event.write(1);
    }
}

/// As for [`heard`].
extern "C" fn resumed(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    if let Some(event) = RESUMED.get() {
        let _ = event.write(1);
    }
}

/// From now on SIGINT, SIGTERM, SIGHUP and SIGQUIT make the returned descriptor readable, and end nothing by themselves.
pub(crate) fn listen() -> io::Result<&'static EventFd> {
    let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
    let event = EVENT.get_or_init(|| event);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        register_signal_handler(signal, heard).map_err(io::Error::from)?;
    }
    Ok(event)
}

/// From now on SIGCONT makes the returned descriptor readable.
pub(crate) fn listen_for_resume() -> io::Result<&'static EventFd> {
    let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
    let event = RESUMED.get_or_init(|| event);
    register_signal_handler(libc::SIGCONT, resumed).map_err(io::Error::from)?;
    Ok(event)
}

/// What [`listen`] returned, where it was called.
pub(crate) fn event() -> Option<&'static EventFd> {
    EVENT.get()
}

/// How many were heard.
pub(crate) fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

/// The signal heard last, by name.
pub(crate) fn last() -> Option<&'static str> {
    match LAST.load(Ordering::Relaxed) {
        libc::SIGINT => Some("SIGINT"),
        libc::SIGTERM => Some("SIGTERM"),
        libc::SIGHUP => Some("SIGHUP"),
        libc::SIGQUIT => Some("SIGQUIT"),
        _ => None,
    }
}
