//! Virtio devices: their queues, their threads, and the transports by which a driver reaches them (virtio 1.2).

mod device;
pub mod mailbox;
pub mod mock;
pub mod net;
pub mod queue;
pub mod queue_thread;
mod transport;

pub use self::device::{Activation, ActiveQueue, Interrupt, VirtioDevice};
pub use self::transport::{mmio, pci};
