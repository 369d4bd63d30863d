//! The tap: its frames are the guest's, and go to the host's link and come from it as they are.

use std::io;
use std::os::fd::BorrowedFd;

use crate::queue::Queue;
use crate::tuntap::TunDevice;
use crate::{Backend, Error, LinkName, Offloads, Step, TunMode, Wiring};

/// A tap, by its first queue. Dropped, it goes, unless it is persistent: then it is as it was before.
#[derive(Debug)]
pub struct Tap {
    device: TunDevice,
}

impl Tap {
    /// Makes a tap and lets the kernel name it, or attaches to the one called `name`, or makes it where it is absent.
    ///
    /// Needs `CAP_NET_ADMIN` in the network namespace of the thread, or a persistent tap that the user owns.
    ///
    /// # Errors
    /// Each says what we tried, and has a [`remedy`](Error::remedy): the device is absent or not allowed, the right is
    /// missing, another process holds the tap, it has several queues, or the link is no tap.
    pub fn open(name: Option<&LinkName>) -> Result<Self, Error> {
        Self::open_queues(name, 1, &Wiring::begin()?, &mut |_| {}).map(|(tap, _)| tap)
    }

    /// The same with `queues` queues, of which those after the first come beside.
    pub(crate) fn open_queues(
        name: Option<&LinkName>,
        queues: u16,
        wiring: &Wiring,
        tell: &mut dyn FnMut(&Step),
    ) -> Result<(Self, Vec<Queue>), Error> {
        let (device, others) = TunDevice::open(TunMode::Tap, name, queues, wiring, tell)?;
        Ok((Self { device }, others))
    }

    /// The link's name.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// True where the link stays when this is dropped: somebody made it persistent.
    pub fn is_persistent(&self) -> bool {
        self.device.is_persistent()
    }
}

impl Backend for Tap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.device.fd()
    }

    fn offloads(&self) -> Offloads {
        self.device.offloads()
    }

    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        self.device.set_offloads(accepted)
    }

    fn vhost_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd())
    }
}
