//! How a program of the host says which port of the guest it wants: `CONNECT PORT\n`, answered by `OK HOSTPORT\n` once the guest has
//! accepted, as other hypervisors have it.

use std::os::fd::BorrowedFd;

use rustix::io::{Errno, read};

/// The longest line in bytes, its end included: there is no longer port.
const LINE_MAX: usize = "CONNECT 4294967295\n".len();

/// What was read of the line so far.
#[derive(Debug, Default)]
pub(super) struct Greeting {
    line: [u8; LINE_MAX],
    len: usize,
}

/// What there is of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// More is to come.
    Part,
    /// All of it: the port.
    Port(u32),
    /// It is none, or its program is gone.
    Nonsense,
}

impl Greeting {
    /// Reads of the socket what there is of the line, and nothing behind it: that is the guest's.
    pub(super) fn read(&mut self, socket: BorrowedFd<'_>) -> Heard {
        while self.len < LINE_MAX {
            let mut byte = [0];
            match read(socket, &mut byte) {
                Ok(1) if byte == *b"\n" => return self.port().map_or(Heard::Nonsense, Heard::Port),
                Ok(1) => {
                    self.line[self.len] = byte[0];
                    self.len += 1;
                }
                Err(Errno::AGAIN) => return Heard::Part,
                Err(Errno::INTR) => {}
                _ => return Heard::Nonsense,
            }
        }
        Heard::Nonsense
    }

    fn port(&self) -> Option<u32> {
        let port = self.line[..self.len].strip_prefix(b"CONNECT ")?;
        // No sign, which a number may have.
        let digits = port.iter().all(u8::is_ascii_digit);
        std::str::from_utf8(port).ok().filter(|_| digits)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_line_is_read_to_its_end_and_no_further() {
        let (mut program, mut ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut greeting = Greeting::default();
        for piece in ["CONN", "ECT 10", "24"] {
            program.write_all(piece.as_bytes()).unwrap();
            assert_eq!(greeting.read(ours.as_fd()), Heard::Part);
        }
        program.write_all(b"\nrest").unwrap();
        assert_eq!(greeting.read(ours.as_fd()), Heard::Port(1024));
        let mut rest = [0; 8];
        assert_eq!(ours.read(&mut rest).unwrap(), 4);
    }

    #[test]
    fn what_is_no_line_is_refused() {
        for (line, port) in [
            ("CONNECT 4294967295\n", Some(u32::MAX)),
            ("CONNECT 0\n", Some(0)),
            ("CONNECT 4294967296\n", None),
            ("CONNECT +1\n", None),
            ("CONNECT \n", None),
            ("CONNECT 1 \n", None),
            ("connect 1\n", None),
            ("\n", None),
            ("CONNECT 00000000000000001\n", None),
            ("GET / HTTP/1.1 and more\n", None),
        ] {
            let (mut program, ours) = UnixStream::pair().unwrap();
            program.write_all(line.as_bytes()).unwrap();
            let heard = Greeting::default().read(ours.as_fd());
            assert_eq!(heard, port.map_or(Heard::Nonsense, Heard::Port), "{line:?}");
        }
        let (program, ours) = UnixStream::pair().unwrap();
        drop(program);
        assert_eq!(Greeting::default().read(ours.as_fd()), Heard::Nonsense);
    }
}
