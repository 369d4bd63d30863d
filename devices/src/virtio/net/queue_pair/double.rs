//! A pair between a mock driver and a socket, without a thread.

use std::sync::Arc;
use std::time::Duration;

use net::{SocketBackend, SocketPeer};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{PairParts, QueuePair, ReceiveSpace};
use crate::virtio::device::ActiveQueue;
use crate::virtio::mock::{MockRing, NoInterrupts};
use crate::virtio::queue::{F_VERSION_1, VirtQueue};

/// Where the driver may have its buffers.
pub(in crate::virtio::net) const DATA: u64 = 0x8000;

/// A pair that does not poll, its rings, of eight, to receive and to send, and the host.
pub(in crate::virtio::net) fn pair() -> (QueuePair, [MockRing; 2], SocketPeer) {
    let (backend, peer) = SocketBackend::pair().unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    let [rx, tx] = [0x1000, 0x2000].map(|base| MockRing::new(&memory, base, 8, false));
    let queue = |index, ring: &MockRing| {
        let ring = VirtQueue::new(ring.setup(), F_VERSION_1, &memory).unwrap();
        ActiveQueue { index, ring, kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()) }
    };
    let parts = PairParts {
        name: "test".into(),
        memory: memory.clone(),
        accepted: F_VERSION_1,
        interrupt: Arc::new(NoInterrupts),
        rx: queue(0, &rx),
        tx: queue(1, &tx),
        backend: Box::new(backend),
        space: ReceiveSpace::new(F_VERSION_1, None),
        carrier: None,
        control: None,
        enabled: true,
        offloads: net::Offloads::default(),
        filter: net::RxFilter::new(net::Mac::random().unwrap()),
        poll: Some(Duration::ZERO),
        rate: None,
        counters: Arc::default(),
        broken: Arc::default(),
    };
    (QueuePair::new(parts), [rx, tx], peer)
}
