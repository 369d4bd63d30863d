//! A guest's interrupts, of the two queues of a device.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use devices::virtio::Interrupt;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A guest's interrupts: counted, or by an eventfd for each queue.
pub(crate) struct Interrupts {
    pub(crate) by_event: AtomicBool,
    events: [EventFd; 2],
    queues: [AtomicU32; 2],
    pub(crate) resets: AtomicU32,
}

impl Interrupts {
    pub(crate) fn new() -> Self {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Self {
            by_event: AtomicBool::new(false),
            events: [event(), event()],
            queues: Default::default(),
            resets: AtomicU32::new(0),
        }
    }

    /// How often each queue's driver was told.
    pub(crate) fn counted(&self) -> [u32; 2] {
        self.queues.each_ref().map(|queue| queue.load(Ordering::SeqCst))
    }

    /// Which eventfds were written.
    pub(crate) fn events(&self) -> [bool; 2] {
        self.events.each_ref().map(|event| event.read().is_ok())
    }

    /// Waits up to twenty seconds.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !done(self) {
            assert!(Instant::now() < until, "{what}: {:?}", self.counted());
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

impl Interrupt for Interrupts {
    fn queue(&self, index: u16) -> io::Result<()> {
        self.queues[usize::from(index)].fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn event(&self, index: u16) -> Option<&EventFd> {
        self.by_event.load(Ordering::SeqCst).then(|| &self.events[usize::from(index)])
    }

    fn config(&self) -> io::Result<()> {
        Ok(())
    }

    fn needs_reset(&self) -> io::Result<()> {
        self.resets.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}
