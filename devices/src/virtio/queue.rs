//! The device's side of a split virtqueue (virtio 1.2 §2.7), thin over [`virtio_queue::Queue`].

/// One split virtqueue.
pub struct VirtQueue;
