//! The vhost-user protocol, from the front end's side (QEMU `docs/interop/vhost-user.rst`): messages over a Unix socket, by which a
//! process is given the guest's memory and a device's rings, and takes kicks and gives interrupts by eventfds.
//!
//! **Invariant: the back end is not trusted, and nobody waits for it for ever.** A conversation of any number of messages is over
//! after a [time](PATIENCE), however slowly bytes come; an answer has the size that it must have, and descriptors that come are dropped by
//! the kernel. It sees no address of this process: the addresses by which it is told where the rings are, are the guest's.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, recvmsg};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::virtio::queue::{F_VERSION_1, QueueSetup};

/// How long a conversation may take as a rule: what is asked of the back end waits for requests in hand, and those for the host's disk.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// `VHOST_USER_F_PROTOCOL_FEATURES`, among the feature bits of virtio.
const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// `VHOST_USER_PROTOCOL_F_MQ`: it says how many queues it has.
const PROTOCOL_MQ: u64 = 1 << 0;
/// `VHOST_USER_PROTOCOL_F_REPLY_ACK`: it answers whatever asks for an answer.
const PROTOCOL_REPLY_ACK: u64 = 1 << 3;

/// The flags of a header: the version, an answer, an answer wanted.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 0b11;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
const HEADER: usize = 12;

/// How many regions of memory a message has at most.
const REGIONS_MAX: usize = 8;

/// The requests that a front end makes, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, missing_docs)] // as the specification has them
pub enum Request {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    SET_MEM_TABLE = 5,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    GET_VRING_BASE = 11,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    SET_VRING_ERR = 14,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    GET_QUEUE_NUM = 17,
    SET_VRING_ENABLE = 18,
}

/// Why a back end is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other process has ended, or wants no more of it.
    #[error("it has closed the connection")]
    Closed,
    /// It takes no message, or does not answer one.
    #[error("it does not answer {0:?}")]
    Silent(Request),
    /// An answer to something else, or of another size than such an answer has.
    #[error("its answer to {0:?} makes no sense")]
    Nonsense(Request),
    /// It says that it failed.
    #[error("it refuses {0:?}")]
    Refused(Request),
    /// It spoke without being asked.
    #[error("it says what nobody asked for")]
    Unasked,
    /// It cannot do what every back end of a device must.
    #[error("it has no {0}")]
    Lacks(&'static str),
    /// A device needs more queues than it has.
    #[error("it has {0} queues, which are too few")]
    Queues(u64),
    /// Memory that is no file, or in too many pieces.
    #[error("the guest's memory cannot be shared with it")]
    Memory,
    /// The socket's.
    #[error("cannot talk to it")]
    Socket(#[source] io::Error),
}

/// The other end of the protocol: it has said what it can, and has no memory yet.
#[derive(Debug)]
pub struct BackEnd {
    socket: UnixStream,
    features: u64,
    acknowledges: bool,
    patience: Duration,
    /// When the conversation is over.
    until: Instant,
}

/// A ring as the back end is to have it.
pub(super) struct Ring<'a> {
    pub(super) index: u16,
    pub(super) setup: QueueSetup,
    /// The entry of the available ring that it takes next.
    pub(super) next_avail: u16,
    pub(super) kick: &'a EventFd,
    pub(super) call: &'a EventFd,
    pub(super) error: &'a EventFd,
}

impl BackEnd {
    /// Takes up the connection that `socket` is, with the back end of a device of so many queues. No conversation with it takes longer
    /// than `patience`.
    ///
    /// # Errors
    /// It does not answer, or cannot be the back end of such a device.
    pub fn over(socket: UnixStream, queues: u64, patience: Duration) -> Result<Self, Error> {
        use Request::*;
        socket.set_nonblocking(true).map_err(Error::Socket)?;
        let mut new = Self { socket, features: 0, acknowledges: false, patience, until: Instant::now() };
        new.begin();
        new.features = new.get(GET_FEATURES)?;
        for (bit, name) in
            [(F_VERSION_1, "VIRTIO_F_VERSION_1"), (F_PROTOCOL_FEATURES, "VHOST_USER_F_PROTOCOL_FEATURES")]
        {
            if new.features & bit == 0 {
                return Err(Error::Lacks(name));
            }
        }
        let protocol = new.get(GET_PROTOCOL_FEATURES)? & (PROTOCOL_MQ | PROTOCOL_REPLY_ACK);
        new.set(SET_PROTOCOL_FEATURES, &words(&[protocol]), &[])?;
        new.acknowledges = protocol & PROTOCOL_REPLY_ACK != 0;
        if protocol & PROTOCOL_MQ != 0 {
            let has = new.get(GET_QUEUE_NUM)?;
            if has < queues {
                return Err(Error::Queues(has));
            }
        }
        new.set(SET_OWNER, &[], &[])?;
        Ok(new)
    }

    /// The feature bits that it has.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// Begins a conversation: all that is asked from now on shares its time.
    pub(super) fn begin(&mut self) {
        self.until = Instant::now() + self.patience;
    }

    /// Has it work on `rings` in `memory`, as a driver of these `accepted` features wants it.
    pub(super) fn start(
        &self,
        memory: &GuestMemoryMmap,
        accepted: u64,
        rings: &[Ring<'_>],
    ) -> Result<(), Error> {
        use Request::*;
        self.set(SET_FEATURES, &words(&[accepted & self.features | F_PROTOCOL_FEATURES]), &[])?;
        self.set_memory(memory)?;
        for ring in rings {
            let QueueSetup { size, desc_table, avail_ring, used_ring } = ring.setup;
            let state = |request, number: u16| self.set(request, &pair(ring.index, number), &[]);
            let event = |request, event: &EventFd| {
                self.set(request, &words(&[ring.index.into()]), &[event.as_raw_fd()])
            };
            state(SET_VRING_NUM, size)?;
            state(SET_VRING_BASE, ring.next_avail)?;
            // Index and flags, then the places; none of a log.
            let places = words(&[ring.index.into(), desc_table, used_ring, avail_ring, 0]);
            self.set(SET_VRING_ADDR, &places, &[])?;
            event(SET_VRING_CALL, ring.call)?;
            event(SET_VRING_ERR, ring.error)?;
            // With this it may begin, where it does not wait for the next.
            event(SET_VRING_KICK, ring.kick)?;
            state(SET_VRING_ENABLE, 1)?;
        }
        self.settle()
    }

    /// Has it leave ring `index` alone, and says which entry of the available ring it would have taken next.
    pub(super) fn stop(&self, index: u16) -> Result<u16, Error> {
        let request = Request::GET_VRING_BASE;
        self.send(request, 0, &pair(index, 0), &[])?;
        let mut answer = [0; 8];
        self.answer(request, &mut answer)?;
        let [of, _, base, _] = [0, 2, 4, 6].map(|at| u16::from_le_bytes([answer[at], answer[at + 1]]));
        if of == index { Ok(base) } else { Err(Error::Nonsense(request)) }
    }

    /// Has it interrupt by another eventfd for ring `index`.
    pub(super) fn set_call(&self, index: u16, call: &EventFd) -> Result<(), Error> {
        self.set(Request::SET_VRING_CALL, &words(&[index.into()]), &[call.as_raw_fd()])
    }

    /// What it has done without being asked: nothing, if it is well.
    pub(super) fn look(&self) -> Result<(), Error> {
        match self.receive(&mut [0], RecvFlags::PEEK) {
            Ok(0) => Err(Error::Closed),
            Ok(_) => Err(Error::Unasked),
            Err(Errno::WOULDBLOCK) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Whether its process has closed the socket, as one that ends does: then it does not touch the guest's memory any more.
    pub(super) fn has_ended(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    /// Waits no longer than `most` for that.
    pub(super) fn ends_within(&self, most: Duration) -> bool {
        let until = Instant::now() + most;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
            // A hangup is told whether it is asked for or not.
            let mut socket = [PollFd::new(&self.socket, PollFlags::empty())];
            match poll(&mut socket, Some(&timeout)) {
                Err(Errno::INTR) if !left.is_zero() => {}
                _ => return socket[0].revents().intersects(PollFlags::HUP | PollFlags::ERR),
            }
        }
    }

    fn set_memory(&self, memory: &GuestMemoryMmap) -> Result<(), Error> {
        let (mut table, mut files) = (Vec::new(), Vec::new());
        for region in memory.iter() {
            let file = region.file_offset().ok_or(Error::Memory)?;
            let start = region.start_addr().raw_value();
            // Where the guest has it, how long it is, by which address the rings are told, and where it is in the file.
            table.extend([start, region.len(), start, file.start()]);
            files.push(file.file().as_raw_fd());
        }
        if files.len() > REGIONS_MAX {
            return Err(Error::Memory);
        }
        table.insert(0, files.len() as u64);
        self.set(Request::SET_MEM_TABLE, &words(&table), &files)
    }

    /// Asks for a number.
    fn get(&self, request: Request) -> Result<u64, Error> {
        self.send(request, 0, &[], &[])?;
        self.number(request)
    }

    /// Says something, and waits until it is taken where the back end can say so.
    fn set(&self, request: Request, payload: &[u8], fds: &[RawFd]) -> Result<(), Error> {
        let wanted = if self.acknowledges { NEED_REPLY } else { 0 };
        self.send(request, wanted, payload, fds)?;
        match self.acknowledges && self.number(request)? != 0 {
            true => Err(Error::Refused(request)),
            false => Ok(()),
        }
    }

    /// Waits until all that was said is taken: messages are taken in order.
    fn settle(&self) -> Result<(), Error> {
        if self.acknowledges { Ok(()) } else { self.get(Request::GET_FEATURES).map(drop) }
    }

    fn number(&self, request: Request) -> Result<u64, Error> {
        let mut number = [0; 8];
        self.answer(request, &mut number)?;
        Ok(u64::from_le_bytes(number))
    }

    fn send(&self, request: Request, flags: u32, payload: &[u8], fds: &[RawFd]) -> Result<(), Error> {
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        for word in [request as u32, VERSION | flags, payload.len() as u32] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(payload);
        let (mut left, mut fds) = (&bytes[..], fds);
        while !left.is_empty() {
            match self.socket.send_with_fds(&[left], fds).map_err(io::Error::from) {
                // The descriptors go with the first byte.
                Ok(sent) => (left, fds) = (&left[sent..], &[]),
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::WOULDBLOCK) => self.wait(PollFlags::OUT, request)?,
                    Some(Errno::INTR) => {}
                    Some(error) => return Err(failed(error)),
                    None => return Err(Error::Socket(error)),
                },
            }
        }
        Ok(())
    }

    /// Takes the answer to `request`, which fills `payload`.
    fn answer(&self, request: Request, payload: &mut [u8]) -> Result<(), Error> {
        let mut header = [0; HEADER];
        self.fill(request, &mut header)?;
        let [of, flags, len] =
            [0, 4, 8].map(|at| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes")));
        if of != request as u32
            || flags & VERSION_MASK != VERSION
            || flags & REPLY == 0
            || len as usize != payload.len()
        {
            return Err(Error::Nonsense(request));
        }
        self.fill(request, payload)
    }

    fn fill(&self, request: Request, mut into: &mut [u8]) -> Result<(), Error> {
        while !into.is_empty() {
            match self.receive(into, RecvFlags::empty()) {
                Ok(0) => return Err(Error::Closed),
                Ok(len) => into = &mut into[len..],
                Err(Errno::WOULDBLOCK) => self.wait(PollFlags::IN, request)?,
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    fn receive(&self, into: &mut [u8], flags: RecvFlags) -> Result<usize, Errno> {
        loop {
            // Without room for descriptors: the kernel drops those that come.
            let mut control = RecvAncillaryBuffer::default();
            match recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(into)],
                &mut control,
                flags | RecvFlags::DONTWAIT,
            ) {
                Err(Errno::INTR) => {}
                result => return result.map(|message| message.bytes),
            }
        }
    }

    /// Waits until the socket is ready, or time is up.
    fn wait(&self, flags: PollFlags, request: Request) -> Result<(), Error> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Silent(request));
        }
        let left = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&self.socket, flags)], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }
}

impl AsRawFd for BackEnd {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn failed(error: Errno) -> Error {
    match error {
        Errno::PIPE | Errno::CONNRESET => Error::Closed,
        error => Error::Socket(error.into()),
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// `vhost_vring_state`.
fn pair(index: u16, number: u16) -> [u8; 8] {
    (u64::from(index) | u64::from(number) << 32).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_its_process_is_waited_for_so_long_and_no_longer() {
        let (socket, other) = UnixStream::pair().unwrap();
        let patience = Duration::ZERO;
        let back_end = BackEnd { socket, features: 0, acknowledges: false, patience, until: Instant::now() };
        let began = Instant::now();
        assert!(!back_end.has_ended() && !back_end.ends_within(Duration::from_millis(30)));
        assert!(began.elapsed() >= Duration::from_millis(30));
        let ends = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            drop(other);
        });
        assert!(back_end.ends_within(Duration::from_secs(60)) && back_end.has_ended());
        ends.join().unwrap();
    }
}
