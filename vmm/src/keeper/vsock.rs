//! The host's end of the guest's sockets: the socket for programs, and which program the guest finds at a port of the host.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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
            log::info!(
                "every user of this host can connect to the guest's sockets (CID {cid}), those of its agent among them"
            );
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

    /// Answers what it asked; false once nobody asks any more. Nothing waits: an answer that there is no room for is lost, and the guest's
    /// connection with it. Who listens at the port of `words` has it only where nobody waits for those (`awaited`).
    pub(super) fn answer(&self, words: &mut GuestWords, awaited: bool) -> bool {
        // One at a time: who has taken the machine over may ask without end.
        let PortRequest { id, port } = match self.asks.try_receive() {
            Ok(Some((request, _))) => request,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Ok(None) => return false,
            Err(error) => {
                log::warn!("the guest finds no ports of the host any more: {error}");
                return false;
            }
        };
        let program = match port {
            NOTIFY_PORT => at_notify_port(words, awaited, || self.ports.connect(port)),
            port => self.ports.connect(port),
        };
        if let Err(error) = &program {
            log::debug!("the guest wants port {port}, and is refused: {error}");
        }
        let streams: Vec<_> = program.iter().map(AsFd::as_fd).collect();
        reply(&self.asks, id, &streams)
    }
}

/// Says which program it is, if any; false once nobody hears answers any more.
fn reply(asks: &Channel<PortAnswer, PortRequest>, id: u64, streams: &[BorrowedFd<'_>]) -> bool {
    let Err(error) = asks.try_send_with(&PortAnswer { id }, streams) else { return true };
    let over = matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
    let level = if over { log::Level::Info } else { log::Level::Warn };
    log::log!(level, "the guest does not hear which program of the host it has: {error}");
    !over
}

/// A program that listens where the guest says that it is up hears that in wirevm's place, unless somebody waits for it here.
fn at_notify_port(
    words: &mut GuestWords,
    awaited: bool,
    connect: impl FnOnce() -> io::Result<OwnedFd>,
) -> io::Result<OwnedFd> {
    let program = (!awaited).then(connect).and_then(Result::ok);
    program.map_or_else(|| words.open().map(OwnedFd::from), Ok)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn an_answer_without_room_is_lost_and_the_next_one_comes() {
        let (asks, guest) = Channel::<PortAnswer, PortRequest>::pair().unwrap();
        let mut sent = 0;
        // More than a socket has room for: the last ones find none.
        while sent < 100_000 && asks.try_send(&PortAnswer { id: sent }).is_ok() {
            sent += 1;
        }
        assert!(sent < 100_000 && reply(&asks, sent, &[]), "it is lost, and no more than that");
        for id in 0..sent {
            assert_eq!(guest.try_receive().unwrap().unwrap().0.id, id);
        }
        let (stream, _) = UnixStream::pair().unwrap();
        assert!(reply(&asks, 7, &[stream.as_fd()]));
        let (answer, streams) = guest.try_receive().unwrap().unwrap();
        assert_eq!((answer.id, streams.len()), (7, 1));
        drop(guest);
        assert!(!reply(&asks, 8, &[]), "nobody hears it");
    }

    #[test]
    fn a_program_has_the_port_of_the_guests_words_unless_they_are_awaited() {
        let mut words = GuestWords::default();
        let mut heard = |awaited, listens: bool| {
            let (_, program) = UnixStream::pair().unwrap();
            let connect = || if listens { Ok(program.into()) } else { Err(io::ErrorKind::NotFound.into()) };
            at_notify_port(&mut words, awaited, connect).unwrap();
            let ours = words.wait_for().into_iter().flatten().count();
            words = GuestWords::default();
            ours == 1
        };
        assert!(!heard(false, true), "the program's");
        assert!(heard(true, true) && heard(false, false) && heard(true, false));
    }
}
