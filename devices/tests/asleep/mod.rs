//! Whether a device's thread sleeps, and how to wake it for nothing.
#![allow(dead_code, unreachable_pub, unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use devices::virtio::mailbox::ThreadHook;

/// The number of a thread, which a hook on it tells.
pub fn thread_of(confine: impl FnOnce(&ThreadHook)) -> i32 {
    let number = Arc::new(AtomicI32::new(0));
    let note = Arc::clone(&number);
    let hook: ThreadHook = Arc::new(move |_: &str| {
        note.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::SeqCst);
        Ok(())
    });
    confine(&hook);
    number.load(Ordering::SeqCst)
}

/// Whether it sleeps, most of the times that it is looked at: one that looks about all the time does so hardly ever.
pub fn sleeps(thread: i32) -> bool {
    let asleep = (0..50).filter(|_| {
        std::thread::sleep(Duration::from_millis(1));
        let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('S')
    });
    asleep.count() > 25
}

/// Interrupts it in whatever system call it is.
pub fn interrupt(thread: i32) {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: the handler does nothing, and the thread is one of this process.
    unsafe {
        libc::signal(libc::SIGUSR1, nothing as *const () as libc::sighandler_t);
        assert_eq!(libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGUSR1), 0);
    }
}
