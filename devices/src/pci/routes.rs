//! How the events of a function reach the guest, and the guest's notifications the function, without an exit.

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// What an interrupt is: data, written to an address at which interrupt controllers listen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Where it is written.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// How the events of one function reach their listener without an exit. Without any of it a device still works, at the price of
/// exits.
pub trait EventRoutes: Send + Sync {
    /// From now on each write to `event` sends `message`; one that was written before and not heard sends it too.
    ///
    /// # Errors
    /// There are no resources for it, or nobody can receive such a message.
    fn open(&self, vector: u16, event: &EventFd, message: Message) -> io::Result<()>;

    /// Undoes [`EventRoutes::open`]: from now on what is written to `event` stays there.
    fn close(&self, vector: u16, event: &EventFd);

    /// Drives the function's interrupt pin, or lets it go (PCI Local Bus 3.0 §2.2.6): as long as a function drives a line, it
    /// interrupts, whatever others on it do.
    ///
    /// # Errors
    /// The interrupt controller's.
    fn drive(&self, asserted: bool) -> io::Result<()>;

    /// From now on the guest's writes to `address`, of any value, are written to `kick`.
    ///
    /// # Errors
    /// There are no resources for it, or something else listens there.
    fn listen(&self, address: u64, kick: &EventFd) -> io::Result<()>;

    /// Undoes [`EventRoutes::listen`].
    fn unlisten(&self, address: u64, kick: &EventFd);

    /// The function is taken out, after all of its vectors are closed: what is kept for them is given back.
    fn forget(&self) {}
}
