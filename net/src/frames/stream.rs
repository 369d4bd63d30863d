//! Bytes of a stream socket, straight from and to the buffers of a frame: for what is no frame at all (vsock).

use std::io;
use std::os::fd::BorrowedFd;

use crate::{Iov, sys};

/// Sends the bytes of `buffers` on a stream socket, as many as there is room for: how many.
///
/// # Errors
/// Those of `sendmsg(2)`: `EAGAIN` where a socket that does not block has no room, `EPIPE` (and no signal) where nobody reads.
pub fn send_bytes(socket: BorrowedFd<'_>, buffers: &Iov<'_>) -> io::Result<usize> {
    sys::sendmsg(socket, buffers)
}

/// Receives bytes of a stream socket into `buffers`, as many as there are: how many, and none at the stream's end.
///
/// # Errors
/// Those of `readv(2)`: `EAGAIN` where a socket that does not block has none.
pub fn receive_bytes(socket: BorrowedFd<'_>, buffers: &Iov<'_>) -> io::Result<usize> {
    sys::recv_bytes(socket, buffers)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use vm_memory::VolatileSlice;

    use super::*;
    use crate::IovBuffer;

    #[test]
    fn bytes_go_from_buffers_to_buffers() {
        let (one, other) = UnixStream::pair().unwrap();
        other.set_nonblocking(true).unwrap();
        let (mut from, mut into) = (*b"abcdef", [0; 8]);
        let mut room = IovBuffer::new();
        let mut iov = room.start();
        let memory = VolatileSlice::from(&mut from[..]);
        assert!(iov.push(memory.subslice(4, 2).unwrap()) && iov.push(memory.subslice(0, 3).unwrap()));
        assert_eq!(send_bytes(one.as_fd(), &iov).unwrap(), 5);
        drop(iov);

        let mut iov = room.start();
        let memory = VolatileSlice::from(&mut into[..]);
        assert!(iov.push(memory.subslice(6, 2).unwrap()) && iov.push(memory.subslice(0, 4).unwrap()));
        assert_eq!(receive_bytes(other.as_fd(), &iov).unwrap(), 5);
        assert_eq!(receive_bytes(other.as_fd(), &iov).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(one);
        assert_eq!(receive_bytes(other.as_fd(), &iov).unwrap(), 0);
        assert_eq!(send_bytes(other.as_fd(), &iov).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        drop(iov);
        assert_eq!(&into, b"abc\0\0\0ef");
    }
}
