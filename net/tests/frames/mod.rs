//! Frames to and from a backend, each with its header.
// Each test file has this module, and uses what it needs of it.
#![allow(dead_code)]

use std::io;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use net::{Backend, HEADER_LEN, IovBuffer, Sent};
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

/// A router solicitation of the guest 02:00:00:00:00:01, without an address, to all routers.
pub(crate) fn router_solicitation() -> Vec<u8> {
    let mut frame = vec![0; HEADER_LEN];
    frame.extend([0x33, 0x33, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, 58, 255]);
    frame.extend(Ipv6Addr::UNSPECIFIED.octets());
    frame.extend(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2).octets());
    frame.extend([133, 0, 0x7b, 0xb8, 0, 0, 0, 0]);
    frame
}

/// A DHCPDISCOVER of the same.
pub(crate) fn discover() -> Vec<u8> {
    let mut frame = vec![0; HEADER_LEN];
    frame.extend([0xff; 6].into_iter().chain([2, 0, 0, 0, 0, 1, 8, 0]));
    // 20 bytes of IPv4, 8 of UDP without a checksum, 240 of BOOTP, 4 of options.
    frame.extend([0x45, 0, 1, 16, 0, 0, 0, 0, 64, 17, 0x79, 0xde, 0, 0, 0, 0, 255, 255, 255, 255]);
    frame.extend([0, 68, 0, 67, 0, 252, 0, 0]);
    let mut message = [0; 244];
    message[..3].copy_from_slice(&[1, 1, 6]);
    message[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    message[236..].copy_from_slice(&[0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]);
    frame.extend(message);
    frame
}
