//! What a NIC says of its link (virtio 1.3 §5.1.4, `status`): written by its owner, read by its driver with the configuration.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use virtio_bindings::virtio_net::*;

const LINK_UP: u16 = VIRTIO_NET_S_LINK_UP as u16;
const ANNOUNCE: u16 = VIRTIO_NET_S_ANNOUNCE as u16;

/// The status of one NIC, for all who have to do with it.
#[derive(Clone, Debug, Default)]
pub(super) struct LinkStatus(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// The link is down.
    down: AtomicBool,
    /// The driver is asked to announce the guest, and has not acknowledged that.
    announce: AtomicU16,
    /// The driver accepted `VIRTIO_NET_F_GUEST_ANNOUNCE`.
    announces: AtomicBool,
}

impl LinkStatus {
    /// The field, as the driver reads it.
    pub(super) fn bits(&self) -> u16 {
        let link = if self.is_up() { LINK_UP } else { 0 };
        link | self.0.announce.load(Ordering::Acquire)
    }

    pub(super) fn is_up(&self) -> bool {
        !self.0.down.load(Ordering::Acquire)
    }

    pub(super) fn set_up(&self, up: bool) {
        self.0.down.store(!up, Ordering::Release);
    }

    /// A driver has started, or gone: whether one announces its guest when it is asked to.
    pub(super) fn set_driver(&self, announces: bool) {
        self.0.announce.store(0, Ordering::Release);
        self.0.announces.store(announces, Ordering::Release);
    }

    /// Asks the driver to announce its guest to the neighbours; false where there is none that does.
    pub(super) fn ask_to_announce(&self) -> bool {
        let announces = self.0.announces.load(Ordering::Acquire);
        if announces {
            self.0.announce.store(ANNOUNCE, Ordering::Release);
        }
        announces
    }

    /// The driver acknowledges that (`VIRTIO_NET_CTRL_ANNOUNCE_ACK`, §5.1.6.5.4).
    pub(super) fn announced(&self) {
        self.0.announce.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_is_asked_to_announce_until_it_says_that_it_has() {
        let status = LinkStatus::default();
        assert_eq!(status.bits(), LINK_UP);
        assert!(!status.ask_to_announce(), "there is no driver");
        assert_eq!(status.bits(), LINK_UP);
        status.set_driver(true);
        status.set_up(false);
        assert!(status.ask_to_announce());
        assert_eq!(status.bits(), ANNOUNCE);
        status.set_up(true);
        assert_eq!(status.bits(), LINK_UP | ANNOUNCE);
        status.announced();
        assert_eq!(status.bits(), LINK_UP);
        status.ask_to_announce();
        status.set_driver(false);
        assert_eq!(status.bits(), LINK_UP, "the next driver was asked nothing");
    }
}
