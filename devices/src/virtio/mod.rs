//! Virtio devices: their queues, their threads, and the transports by which a driver reaches them (virtio 1.2).

pub mod balloon;
pub mod block;
mod device;
pub mod fs;
pub mod mailbox;
pub mod mock;
pub mod net;
pub mod queue;
pub mod queue_thread;
pub mod rng;
mod served;
mod transport;
pub mod vhost_user;
pub mod vsock;

pub use self::device::{Activation, ActiveQueue, DeviceThreads, Interrupt, VirtioDevice};
pub use self::transport::{mmio, pci};
