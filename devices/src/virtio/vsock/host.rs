//! The host's end of a [`VirtioVsock`](super::VirtioVsock), as its owner gives it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// The host's end.
pub struct HostEnd {
    /// A socket that listens and does not block: each who connects says which port of the guest he wants (`CONNECT PORT\n`).
    pub listener: OwnedFd,
    /// Where the guest's requests go.
    pub ports: Box<dyn HostPorts>,
}

/// The ports of the host, at which the guest can find somebody. Who has them is another process's to know.
pub trait HostPorts: Send {
    /// Readable once there is an answer; polled edge-triggered.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Asks for a connection to `port`, and does not wait: [`answer`](Self::answer) brings it, under the same `id`.
    ///
    /// # Errors
    /// There is nobody to ask, or too much was asked: the guest is refused.
    fn connect(&mut self, id: u64, port: u32) -> io::Result<()>;

    /// The next answer: the `id`, and a stream socket that does not block, or none where nobody listens.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) where there is none yet; any other where none will come.
    fn answer(&mut self) -> io::Result<(u64, Option<OwnedFd>)>;
}
