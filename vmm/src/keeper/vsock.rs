//! The host's end of the guest's sockets: the socket for programs, and which program the guest finds at a port of the host.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use devices::virtio::vsock::GUEST_CID;
use vmm::info::VsockInfo;
use vmm::runtime::{self, Place, VsockPorts};

use crate::error::Error;
use crate::protocol::{Channel, FromMachine, PortAnswer, PortRequest, ToMachine};

/// What the keeper has of it.
pub(crate) struct Vsock {
    ports: VsockPorts,
    /// By which the guest asks for a port.
    asks: Channel<PortAnswer, PortRequest>,
    info: VsockInfo,
    /// The loop watches that.
    pub(super) watched: bool,
}

impl Vsock {
    /// Makes the socket for programs, and gives it to the machine, which has no path.
    ///
    /// # Errors
    /// There is no socket to be had, or the machine is gone.
    pub(super) fn open(place: &Place, machine: &Channel<ToMachine, FromMachine>) -> Result<Self, Error> {
        let host = |what| move |source| Error::Host { what, source };
        let listener =
            place.listen_for_vsock().map_err(host("listen at the socket for ports of the guest"))?;
        let pair = || Ok::<_, io::Error>((place.vsock_ports()?, Channel::pair()?));
        let (ports, (asks, theirs)) = pair().map_err(host("open the guest's socket device"))?;
        let theirs = OwnedFd::from(theirs);
        machine
            .send_with(&ToMachine::Vsock, &[listener.as_fd(), theirs.as_fd()])
            .map_err(host("give the socket device to the process that runs the guest"))?;
        let socket = runtime::vsock_socket(place.name()).map_err(Error::Name)?;
        let info = VsockInfo { cid: GUEST_CID as u32, socket: Some(socket) };
        Ok(Self { ports, asks, info, watched: false })
    }

    /// What there is to say of it.
    pub(super) fn info(&self) -> &VsockInfo {
        &self.info
    }

    /// The socket on which the guest asks.
    pub(super) fn asks(&self) -> &Channel<PortAnswer, PortRequest> {
        &self.asks
    }

    /// Answers what it asked; false once nobody asks any more. Nothing waits: who does not read the answers gets no more of them.
    pub(super) fn answer(&self) -> bool {
        // One at a time: who has taken the machine over may ask without end.
        let PortRequest { id, port } = match self.asks.try_receive() {
            Ok(Some((request, _))) => request,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Ok(None) | Err(_) => return false,
        };
        let program = self.ports.connect(port);
        if let Err(error) = &program {
            log::debug!("the guest wants port {port}, and is refused: {error}");
        }
        let streams: Vec<_> = program.iter().map(AsFd::as_fd).collect();
        self.asks.try_send_with(&PortAnswer { id }, &streams).is_ok()
    }
}
