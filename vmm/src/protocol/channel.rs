//! One end of a socket that carries typed messages and descriptors (`AF_UNIX`, `SOCK_SEQPACKET`): a message arrives whole or not
//! at all.

use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest message in bytes. The longest that there is, a line of the log, is cut long before.
const MAX: usize = 128 << 10;
/// The most descriptors in a message, `SCM_MAX_FD` of the kernel: the widest NIC has 64 queue pairs, with vhost-net twice.
pub(crate) const MAX_DESCRIPTORS: usize = 253;

/// An end that sends `S` and receives `R`.
#[derive(Debug)]
pub(crate) struct Channel<S, R> {
    socket: OwnedFd,
    types: PhantomData<fn(S) -> R>,
}

impl<S: Serialize, R: DeserializeOwned> Channel<S, R> {
    /// Both ends of a new one.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn pair() -> io::Result<(Self, Channel<R, S>)> {
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self::over(one), Channel { socket: other, types: PhantomData }))
    }

    /// The end that `socket` is.
    pub(crate) fn over(socket: OwnedFd) -> Self {
        Self { socket, types: PhantomData }
    }

    /// Sends a message, and waits while the other end has too many.
    ///
    /// # Errors
    /// `EPIPE`: the other end is gone.
    pub(crate) fn send(&self, message: &S) -> io::Result<()> {
        self.send_with(message, &[])
    }

    /// The same with descriptors, of which the other end gets duplicates.
    pub(crate) fn send_with(&self, message: &S, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_flags(message, descriptors, SendFlags::empty())
    }

    /// The same without waiting.
    ///
    /// # Errors
    /// `EAGAIN`: the other end has too many.
    pub(crate) fn try_send(&self, message: &S) -> io::Result<()> {
        self.send_flags(message, &[], SendFlags::DONTWAIT)
    }

    /// The same with descriptors, of which the other end gets duplicates.
    ///
    /// # Errors
    /// As [`try_send`](Self::try_send).
    pub(crate) fn try_send_with(&self, message: &S, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_flags(message, descriptors, SendFlags::DONTWAIT)
    }

    fn send_flags(&self, message: &S, descriptors: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::from_raw_os_error(libc::ETOOMANYREFS));
        }
        loop {
            match sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, flags | SendFlags::NOSIGNAL) {
                Err(rustix::io::Errno::INTR) => {}
                result => return result.map(drop).map_err(io::Error::from),
            }
        }
    }

    /// Waits for a message; none once the other end is gone. Where this process has no room for all of its descriptors, it comes with
    /// none.
    ///
    /// # Errors
    /// It makes no sense: then the other end is not one of us any more.
    pub(crate) fn receive(&self) -> io::Result<Option<(R, Vec<OwnedFd>)>> {
        self.receive_flags(RecvFlags::empty())
    }

    /// The same without waiting.
    ///
    /// # Errors
    /// `EAGAIN`: there is none.
    pub(crate) fn try_receive(&self) -> io::Result<Option<(R, Vec<OwnedFd>)>> {
        self.receive_flags(RecvFlags::DONTWAIT)
    }

    fn receive_flags(&self, flags: RecvFlags) -> io::Result<Option<(R, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut into = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.socket, &mut into, &mut control, flags | RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                // The other end ended with messages unread.
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                result => break result?,
            }
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is cut off"));
        }
        // This process has too few descriptors free: some are not the message's.
        if received.flags.contains(ReturnFlags::CTRUNC) {
            descriptors.clear();
        }
        Ok(Some((serde_json::from_slice(&bytes[..received.bytes])?, descriptors)))
    }
}

impl<S, R> AsFd for Channel<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<S, R> From<Channel<S, R>> for OwnedFd {
    fn from(channel: Channel<S, R>) -> Self {
        channel.socket
    }
}

impl<S, R> AsRawFd for Channel<S, R> {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;
    use crate::protocol::{DiskCounters, FromMachine, NicCounters, PairCounters};

    #[test]
    fn messages_and_descriptors_arrive_whole() {
        let (one, other) = Channel::<String, u32>::pair().unwrap();
        let (mut read, write) = io::pipe().unwrap();
        one.send_with(&"a pipe".to_owned(), &[write.as_fd()]).unwrap();
        one.send(&"x".repeat(MAX / 2)).unwrap();
        drop(write);
        let (text, mut descriptors) = other.receive().unwrap().unwrap();
        assert_eq!((text.as_str(), descriptors.len()), ("a pipe", 1));
        let mut pipe = File::from(descriptors.remove(0));
        pipe.write_all(b"through").unwrap();
        drop(pipe);
        let mut through = String::new();
        read.read_to_string(&mut through).unwrap();
        assert_eq!(through, "through");
        let (text, descriptors) = other.receive().unwrap().unwrap();
        assert_eq!((text.len(), descriptors.len()), (MAX / 2, 0));
        assert_eq!(other.try_receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        other.send(&7).unwrap();
        assert_eq!(one.receive().unwrap().unwrap().0, 7);
        drop(one);
        assert!(other.receive().unwrap().is_none(), "the other end is gone");
        assert_eq!(other.send(&7).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn what_is_counted_of_the_widest_nic_fits() {
        let (one, other) = Channel::<FromMachine, u32>::pair().unwrap();
        // Of a length that no number exceeds: each of them has the most digits.
        let most = serde_json::to_value(PairCounters::default()).unwrap();
        let most: serde_json::Map<_, _> =
            most.as_object().unwrap().keys().map(|key| (key.clone(), u64::MAX.into())).collect();
        let pair: PairCounters = serde_json::from_value(most.into()).unwrap();
        let nic = NicCounters { number: 31, pairs: vec![pair; 64], ignored: u64::MAX };
        let (reads, read_bytes, writes, written_bytes) = (u64::MAX, u64::MAX, u64::MAX, u64::MAX);
        let (flushes, discards, errors) = (u64::MAX, u64::MAX, u64::MAX);
        let disk = DiskCounters { reads, read_bytes, writes, written_bytes, flushes, discards, errors };
        let rest = FromMachine::Counters { exits: vec![[u64::MAX; 3]; 1024], disks: vec![disk; 31] };
        for message in [FromMachine::NicCounters(nic), rest] {
            one.send(&message).unwrap();
            assert_eq!(other.receive().unwrap().unwrap().0, message);
        }
    }

    #[test]
    fn what_makes_no_sense_is_an_error() {
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let other = Channel::<(), u32>::over(other);
        rustix::io::write(&one, b"\"seven").unwrap();
        assert!(other.receive().is_err());
        rustix::io::write(&one, &vec![b'1'; MAX + 1]).unwrap();
        assert!(other.receive().unwrap_err().to_string().contains("cut off"));
    }
}
