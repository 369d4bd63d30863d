//! virtio-vsock (virtio 1.2 §5.10) in user space: sockets between programs of the guest and programs of the host, with no module of
//! the host's kernel and no right.
//!
//! **Invariant: the guest is not trusted, and pays for itself.** What its driver says of lengths, credit and ports is checked; it costs
//! bounded memory (`connections.rs`), and none of its connections holds up another.
//!
//! The packets are packed and parsed here: rust-vmm's crate for them wants its own iterator over a chain, which reads descriptors anew
//! and has no place for ours, which reads each once.
//!
//! | file | what |
//! |---|---|
//! | `mod.rs` | the device: what it offers, how it starts and stops |
//! | `host.rs` | the host's end, as the device's owner gives it |
//! | `packet.rs` | a packet's header |
//! | `credit.rs` | who may send how much |
//! | `greeting.rs` | how a program of the host asks for a port of the guest |
//! | `connection.rs`, `connection/` | one connection over its life |
//! | `connections.rs`, `connections/` | all of them: by their ports, by their turns |
//! | `guest.rs` | the two loops between rings and connections |
//! | `worker.rs` | the thread |
//! | `vhost.rs` | the device whose rings the kernel has instead (vhost-vsock) |

mod connection;
mod connections;
mod credit;
mod greeting;
mod guest;
mod host;
mod packet;
mod vhost;
mod worker;

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

pub use self::host::{HostEnd, HostPorts};
pub use self::vhost::VhostVsock;
use self::worker::{Message, Start};
use super::device::{Activation, ActiveQueue, DeviceThreads, VirtioDevice};
use super::mailbox::{Address, ThreadHook};
use super::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use super::queue_thread::QueueThread;

/// The device type of a socket device (virtio 1.2 §5).
pub const TYPE_VSOCK: u32 = VIRTIO_ID_VSOCK;
/// The address of the host, `VMADDR_CID_HOST`.
pub const HOST_CID: u64 = 2;
/// The address of a guest in user space, which shares it with nobody: the first that is not reserved (§5.10.4).
pub const GUEST_CID: u64 = 3;
/// `VIRTIO_VSOCK_F_STREAM`: stream sockets, and no others (§5.10.3).
const F_STREAM: u64 = 1 << 0;
/// Entries of the queues to receive and to send, and of the queue for events, of which there are none (§5.10.2).
const QUEUE_SIZES: [u16; 3] = [128, 128, 8];

/// A socket device, with a thread of its own.
///
/// - *Idle*: without a driver. A program that wants a port of the guest finds its connection closed.
/// - *Running*, from `activate` to `reset`, which closes every connection.
///
/// A driver that breaks a ring is asked for a reset, and its connections are closed.
pub struct VirtioVsock {
    active: bool,
    thread: QueueThread<Message>,
}

/// The thread, as the machine's owner reaches it.
struct Thread(Address<Message>);

impl VirtioVsock {
    /// A device whose host end is `host`. Its thread, called `vsock`, is spawned here, by the calling thread, and ends when the device
    /// is dropped.
    ///
    /// # Errors
    /// There are no descriptors or no threads left.
    pub fn new(host: HostEnd) -> io::Result<Self> {
        Ok(Self { active: false, thread: worker::spawn("vsock", GUEST_CID, host)? })
    }

    /// By which the machine's owner reaches the thread.
    pub fn threads(&self) -> Box<dyn DeviceThreads> {
        Box::new(Thread(self.thread.address().clone()))
    }
}

/// While it is paused, bytes wait in the sockets and on the rings, programs at the socket, and no time passes for who waits.
impl DeviceThreads for Thread {
    fn confine(&self, hook: &ThreadHook) -> io::Result<()> {
        self.0.confine(Arc::clone(hook)).wait()?
    }

    fn pause(&self) -> io::Result<()> {
        Ok(self.0.ask(Message::Pause).wait()?)
    }

    fn resume(&self) -> io::Result<()> {
        Ok(self.0.ask(Message::Resume).wait()?)
    }
}

impl VirtioDevice for VirtioVsock {
    fn device_type(&self) -> u32 {
        TYPE_VSOCK
    }

    fn features(&self) -> u64 {
        F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_STREAM
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_cid(GUEST_CID, offset, data);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let Activation { memory, interrupt, queues, .. } = activation;
        let [receive, transmit] = queues_of(queues)?;
        let start = Start { memory, interrupt, receive, transmit };
        self.active = true;
        self.thread.address().ask(|reply| Message::Start(Box::new(start), reply)).wait()?
    }

    fn reset(&mut self) {
        if std::mem::take(&mut self.active) {
            // One that has ended touches nothing.
            let _ = self.thread.address().ask(Message::Stop).wait();
        }
    }
}

impl Drop for VirtioVsock {
    fn drop(&mut self) {
        self.reset();
    }
}

/// Reads `virtio_vsock_config` (§5.10.4), which is the guest's address.
fn read_cid(cid: u64, offset: u64, data: &mut [u8]) {
    let config = cid.to_le_bytes();
    let from = config.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
    for (to, byte) in data.iter_mut().zip(&config[from..]) {
        *to = *byte;
    }
}

/// The queues to receive and to send; the one for events is the driver's to set up or not.
fn queues_of(queues: Vec<ActiveQueue>) -> io::Result<[ActiveQueue; 2]> {
    let both: Vec<_> = queues.into_iter().filter(|queue| queue.index < 2).collect();
    both.try_into().map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "the driver has not set up the queues to receive and to send",
        )
    })
}
