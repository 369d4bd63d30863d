//! A guest that is no machine: a test that sends and receives its frames.

use std::io;
use std::time::{Duration, Instant};

use net::{HEADER_LEN, IovBuffer, Opened};
use vm_memory::VolatileSlice;

/// Sends a frame, without its header, as the guest would.
pub(crate) fn send(guest: &mut Opened, frame: &[u8]) {
    let mut copy = vec![0; HEADER_LEN];
    copy.extend(frame);
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    assert!(iov.push(VolatileSlice::from(&mut copy[..])));
    guest.backends[0].send(&iov).unwrap();
}

/// Receives frames until one is as `wanted`, and returns it without its header; none after so long.
pub(crate) fn recv(
    guest: &mut Opened,
    patience: Duration,
    wanted: impl Fn(&[u8]) -> bool,
) -> Option<Vec<u8>> {
    let end = Instant::now() + patience;
    loop {
        let mut frame = vec![0; 70_000];
        let mut room = IovBuffer::new();
        let mut iov = room.start();
        assert!(iov.push(VolatileSlice::from(&mut frame[..])));
        let received = guest.backends[0].recv(&mut iov);
        drop(iov);
        match received {
            Ok(len) if wanted(&frame[HEADER_LEN..len]) => return Some(frame[HEADER_LEN..len].to_vec()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() > end {
                    return None;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("recv: {error}"),
        }
    }
}

/// Long enough for what comes.
pub(crate) const SOON: Duration = Duration::from_secs(5);
/// Long enough to believe that nothing comes.
pub(crate) const NEVER: Duration = Duration::from_millis(100);
