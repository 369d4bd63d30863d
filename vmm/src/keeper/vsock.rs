//! The host's end of the guest's sockets: the socket for programs, and which program the guest finds at a port of the host.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use devices::virtio::vsock::GUEST_CID;
use vmm::config::VsockConfig;
use vmm::info::VsockInfo;
use vmm::runtime::{self, Place, VsockPorts};

use super::guest_words::{GuestWords, NOTIFY_PORT};
use crate::error::Error;
use crate::protocol::{Channel, FromMachine, PortAnswer, PortRequest, ToMachine};

/// What the keeper has of it.
pub(crate) struct Vsock {
    /// Where the guest asks; none under vhost-vsock.
    door: Option<Door>,
    info: VsockInfo,
}

/// By which the guest finds programs of the host.
pub(super) struct Door {
    ports: VsockPorts,
    /// By which the guest asks for a port.
    asks: Channel<PortAnswer, PortRequest>,
    /// The loop watches that.
    pub(super) watched: bool,
}

impl Vsock {
    /// Makes the host's end as `config` says, and gives it to the machine, which has no path. Nothing where there is to be none.
    ///
    /// # Errors
    /// There is no socket to be had, or no vhost-vsock, or the machine is gone.
    pub(super) fn open(
        config: VsockConfig,
        place: &Place,
        machine: &Channel<ToMachine, FromMachine>,
    ) -> Result<Option<Self>, Error> {
        let given = |source| Error::Host {
            what: "give the socket device to the process that runs the guest",
            source,
        };
        let cid = match config {
            VsockConfig::Off => return Ok(None),
            VsockConfig::On => None,
            VsockConfig::Vhost(cid) => Some(cid),
        };
        if let Some(cid) = cid {
            let (device, cid) = net::open_vhost_vsock(cid).map_err(Error::Vsock)?;
            machine.send_with(&ToMachine::Vsock { vhost: Some(cid) }, &[device.as_fd()]).map_err(given)?;
            return Ok(Some(Self { door: None, info: VsockInfo { cid, socket: None } }));
        }
        let listen = |source| Error::Host { what: "listen at the socket for ports of the guest", source };
        let listener = place.listen_for_vsock().map_err(listen)?;
        let (asks, theirs) = Channel::pair().map_err(given)?;
        let theirs = OwnedFd::from(theirs);
        let ends = [listener.as_fd(), theirs.as_fd()];
        machine.send_with(&ToMachine::Vsock { vhost: None }, &ends).map_err(given)?;
        let socket = runtime::vsock_socket(place.name()).map_err(Error::Name)?;
        let door = Door { ports: place.vsock_ports().map_err(given)?, asks, watched: false };
        Ok(Some(Self { door: Some(door), info: VsockInfo { cid: GUEST_CID as u32, socket: Some(socket) } }))
    }

    /// What there is to say of it.
    pub(super) fn info(&self) -> &VsockInfo {
        &self.info
    }

    /// Where the guest asks.
    pub(super) fn door(&mut self) -> Option<&mut Door> {
        self.door.as_mut()
    }
}

impl Door {
    /// The socket on which the guest asks.
    pub(super) fn asks(&self) -> &Channel<PortAnswer, PortRequest> {
        &self.asks
    }

    /// Answers what it asked; false once nobody asks any more. Nothing waits: who does not read the answers gets no more of them.
    /// The port of `words` is no program's.
    pub(super) fn answer(&self, words: &mut GuestWords) -> bool {
        // One at a time: who has taken the machine over may ask without end.
        let PortRequest { id, port } = match self.asks.try_receive() {
            Ok(Some((request, _))) => request,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Ok(None) | Err(_) => return false,
        };
        let program = match port {
            NOTIFY_PORT => words.open().map(OwnedFd::from),
            port => self.ports.connect(port),
        };
        if let Err(error) = &program {
            log::debug!("the guest wants port {port}, and is refused: {error}");
        }
        let streams: Vec<_> = program.iter().map(AsFd::as_fd).collect();
        self.asks.try_send_with(&PortAnswer { id }, &streams).is_ok()
    }
}
