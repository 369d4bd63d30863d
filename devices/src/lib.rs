//! The guest's devices, as the guest sees them.
//!
//! **Invariant: this crate knows the guest's devices, never KVM.** An interrupt is an eventfd that somebody listens to, a
//! kick is an eventfd that somebody writes, and where a device sits in the guest's address space is the bus's business: a
//! device sees offsets.
//!
//! **Invariant: the guest is not trusted.** What it writes, to a register or to a ring, is checked before it is used, and
//! what makes no sense ends the part that it was meant for: a register ignores it, a queue pair stops and asks its driver
//! for a reset. Nothing here panics, allocates without bound, or loops for as long as the guest likes.
//!
//! **Invariant: ownership, not locks.** What moves frames is owned by the thread that moves them. A [`BusDevice`] locks
//! only its own registers, and what is touched for every interrupt not even that.
//!
//! # A frame in four hops
//! ```text
//! guest: kick ──ioeventfd──► QueuePair::process ─► transmit() ─► Backend::send ─► writev(2)
//!                            QueuePair::process ─► receive()  ─► Backend::recv ─► readv(2) ──irqfd──► guest
//! ```
//! With vhost-net, the kernel does all of that, and the pair's thread sleeps.
//!
//! A chain's buffers are gathered into a [`net::Iov`] and handed to the system call where they are, in guest memory. Used
//! buffers are shown, and the guest is interrupted, once for a burst of frames, and once for both ways where what was sent is
//! answered at once.
//!
//! # The map
//! | file | what |
//! |---|---|
//! | `serial.rs` | the console: a 16550A |
//! | `reset.rs` | reset, power off, power button, panic: the registers by which a guest ends |
//! | `rtc.rs` | the clock of a PC, which shows the host's time |
//! | `pci.rs` | the bus: configuration space by ECAM and ports, the window of the BARs; `Function` |
//! | `pci/config.rs`, `pci/msix.rs` | a function's configuration space; its vectors, their table, masks and pending bits |
//! | `pci/hotplug.rs` | the registers by which functions come and go while the guest runs |
//! | `pci/routes.rs` | `EventRoutes`: a function's events without exits |
//! | `virtio/device.rs` | the seam: `VirtioDevice` below, `Interrupt` above, `Activation` between them |
//! | `virtio/transport/setup.rs` | what a driver sets before its device runs: status, features, queues |
//! | `virtio/transport/pci.rs`, `mmio.rs` | the transports: registers, interrupts, and the queues' eventfds |
//! | `virtio/queue/` | a ring from the device's side: `pop`, `undo_pop`, `push_used`, `publish` |
//! | `virtio/queue_thread.rs`, `virtio/mailbox.rs` | a queue's thread, and the messages by which it is asked |
//! | `virtio/served.rs` | a device whose queues one thread serves, a chain at a time |
//! | `virtio/rng.rs`, `virtio/balloon.rs` | the entropy device; the balloon, which reports free pages |
//! | `virtio/vsock/` | sockets between guest and host |
//! | `virtio/block/` | disks: a request from the ring to the file and back, by io_uring or by the thread itself |
//! | `virtio/vhost_user/` | a device that another process works for: the protocol, and the thread that starts and stops it |
//! | `virtio/fs.rs` | directories of the host, by `virtiofsd` |
//! | `virtio/net/mod.rs` | the NIC: features, configuration, start and reset |
//! | `virtio/net/handle.rs` | what its owner can ask of a NIC while it runs |
//! | `virtio/net/mailbox.rs` | what a pair's thread is asked, and why nobody waits in a circle |
//! | `virtio/net/state.rs` | where a paused pair is, as plain data |
//! | `virtio/net/error.rs` | why a NIC could not start |
//! | `virtio/net/features.rs` | the feature bits, and the host's offloads that they stand for |
//! | `virtio/net/control.rs` | the control queue: which frames, with what left to do, under which address, by how many pairs |
//! | `virtio/net/control/command.rs` | what a command on it says |
//! | `virtio/net/vhost.rs` | the kernel as the carrier of frames, in place of the two loops |
//! | `virtio/net/queue_pair/` | the two loops, `transmit` and `receive`, and what each waits for |
//! | `virtio/net/pair_life.rs` | a pair over all its drivers: its states, start, stop, pause, resume |
//! | `virtio/net/pair_plug.rs` | what is plugged into a pair: its link, and another wire |
//! | `virtio/net/status.rs` | what the NIC says of its link |
//! | `virtio/net/pair_thread.rs` | its thread: work, polling, sleep |
//! | `virtio/net/kick_moderation.rs` | when that thread holds kicks off for a moment |
//! | `virtio/mock.rs` | a driver without a guest, for tests, fuzzers and benchmarks |
//! | `tests/` | the NIC whole, with the mock driver at one end and a socket at the other; the PCI bus with a driver |
//!
//! # The life of a virtio device
//! Its transport owns it behind a lock; its queues' threads are there before its driver and after it, and own what moves frames.
//! The driver negotiates features, places the queues, and sets `DRIVER_OK`: the transport checks the rings and gives them to
//! [`VirtioDevice::activate`](virtio::VirtioDevice::activate), which sends them to the threads. A reset, by the driver or by dropping
//! the transport, has the threads give up the rings, and keep the rest for the next driver. What else is asked of a device while it
//! runs is a message to the same threads ([`Handle`](virtio::net::Handle)).
#![deny(unsafe_code)]

mod lent;
mod log_once;
pub mod pci;
pub mod reset;
pub mod rtc;
pub mod serial;
pub mod virtio;

/// A device on the port or the MMIO bus.
///
/// Methods take `&self`, for every vCPU may call at once: a device locks what it must, and only that.
pub trait BusDevice: Send + Sync {
    /// The guest reads `data.len()` bytes at `offset` into the device. `data` comes filled with ones, as an empty bus
    /// reads, so what a device does not answer stays so.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` at `offset` into the device. What makes no sense is ignored.
    fn write(&self, offset: u64, data: &[u8]);
}

/// What a register of one byte takes of a write of `data`: its lowest byte, as `out dx, ax` means it for most drivers that say so.
fn low_byte(data: &[u8]) -> Option<u8> {
    data.first().copied()
}

/// What the guest asked of the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// It powered itself off (ACPI S5).
    PowerOff,
    /// It reset itself (i8042, ACPI, port 0xcf9).
    Reset,
    /// Its kernel panicked, as its pvpanic driver says.
    Panic,
}
