//! The socket device's host end: who listens at a port of the host, only the keeper knows.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use devices::virtio::vsock::{HostEnd, HostPorts};

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

/// The host's end that came with [`ToMachine::Vsock`](crate::protocol::ToMachine::Vsock).
///
/// # Errors
/// There was no room for its descriptors.
pub(super) fn host_end(descriptors: Vec<OwnedFd>) -> io::Result<HostEnd> {
    let [listener, asks] =
        <[OwnedFd; 2]>::try_from(descriptors).map_err(|_| io::Error::from_raw_os_error(libc::EMFILE))?;
    Ok(HostEnd { listener, ports: Box::new(KeeperPorts(Channel::over(asks))) })
}
