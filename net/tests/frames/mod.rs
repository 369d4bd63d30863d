//! Frames to and from a backend, each with its header.
// Each test file has this module, and uses what it needs of it.
#![allow(dead_code)]

use std::io;
use std::time::{Duration, Instant};

use net::{Backend, IovBuffer, Sent};
use vm_memory::VolatileSlice;

pub(crate) fn send(backend: &mut dyn Backend, frame: &[u8]) -> io::Result<Sent> {
    let mut copy = frame.to_vec();
    let (first, second) = copy.split_at_mut(frame.len() / 2);
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    assert!(iov.push(VolatileSlice::from(first)) && iov.push(VolatileSlice::from(second)));
    backend.send(&iov)
}

pub(crate) fn recv(backend: &mut dyn Backend, space: usize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0xaa; space];
    let (first, second) = frame.split_at_mut(space / 2);
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    assert!(iov.push(VolatileSlice::from(first)) && iov.push(VolatileSlice::from(second)));
    let len = backend.recv(&mut iov)?;
    drop(iov);
    frame.truncate(len);
    Ok(frame)
}

/// Receives until a frame is as `wanted`; the kernel sends frames of its own too (IPv6).
pub(crate) fn recv_where(backend: &mut dyn Backend, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        match recv(backend, 70_000) {
            Ok(frame) if wanted(&frame) => return frame,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                assert!(Instant::now() < end, "no such frame came");
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("recv: {error}"),
        }
    }
}

/// Receives until there is nothing.
pub(crate) fn drain(backend: &mut dyn Backend) {
    while recv(backend, 70_000).is_ok() {}
}
