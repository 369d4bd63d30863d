//! The socket device, and its host end: who listens at a port of the host, only the keeper knows.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use devices::virtio::vsock::{HostEnd, HostPorts, VhostVsock, VirtioVsock};
use devices::virtio::{DeviceThreads, VirtioDevice};
use net::Vhost;

use crate::machine::sandbox::Thread;
use crate::protocol::{Channel, PortAnswer, PortRequest};

/// The ports of the host, by the keeper.
struct KeeperPorts(Channel<PortRequest, PortAnswer>);

impl HostPorts for KeeperPorts {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn connect(&mut self, id: u64, port: u32) -> io::Result<()> {
        self.0.try_send(&PortRequest { id, port })
    }

    fn answer(&mut self) -> io::Result<(u64, Option<OwnedFd>)> {
        let (PortAnswer { id }, descriptors) = self.0.try_receive()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((id, descriptors.into_iter().next()))
    }
}

/// The socket device, until the bus takes it.
pub(crate) struct SocketDevice {
    pub(super) device: Box<dyn VirtioDevice>,
    pub(super) threads: Box<dyn DeviceThreads>,
    /// What confines those.
    pub(super) kind: Thread,
}

impl SocketDevice {
    /// The one whose descriptors came with [`ToMachine::Vsock`](crate::protocol::ToMachine::Vsock). Its thread is born here.
    ///
    /// # Errors
    /// There was no room for them, or there is no thread to be had.
    pub(super) fn new(vhost: Option<u32>, descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or_else(|| io::Error::from_raw_os_error(libc::EMFILE));
        if let Some(cid) = vhost {
            let vsock = VhostVsock::new(Vhost::of_vsock(next()?)?, cid)?;
            return Ok(Self { threads: vsock.threads(), device: Box::new(vsock), kind: Thread::Queue });
        }
        let (listener, asks) = (next()?, Channel::over(next()?));
        let vsock = VirtioVsock::new(HostEnd { listener, ports: Box::new(KeeperPorts(asks)) })?;
        Ok(Self { threads: vsock.threads(), device: Box::new(vsock), kind: Thread::Vsock })
    }
}
