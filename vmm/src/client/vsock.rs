//! Streams to programs of a machine's guest, by their ports.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::{Client, ClientError, end_of};
use crate::info::VsockInfo;
use crate::runtime;

/// The longest answer in bytes, its end included.
const ANSWER_MAX: usize = "OK 4294967295\n".len();

/// Connects to the program that listens at `port` in the guest of the machine `name`, over the guest's socket device. The stream
/// blocks, and has no timeout. Of a machine with `--vsock vhost` it is one of AF_VSOCK, which is read, written and shut down like any
/// other, and whose addresses a [`UnixStream`] cannot tell.
///
/// # Errors
/// No such machine runs, or it has no such device; no program of the guest accepts, or none does within `timeout`.
///
/// ```no_run
/// use std::io::{Read, Write};
/// use std::time::Duration;
///
/// let mut stream = vmm::client::connect_vsock("web", 1024, Duration::from_secs(5))?;
/// stream.write_all(b"date\n")?;
/// let mut answer = String::new();
/// stream.read_to_string(&mut answer)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn connect_vsock(name: &str, port: u32, timeout: Duration) -> Result<UnixStream, ClientError> {
    let until = end_of(timeout);
    match runtime::connect_vsock(name, timeout)? {
        Some(stream) => handshake(stream, port, until).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => ClientError::PortSilent { port },
            ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                ClientError::PortRefused { port }
            }
            _ => ClientError::Connection(error),
        }),
        None => connect_by_kernel(name, port, until),
    }
}

/// The same of a machine whose sockets the host's kernel carries.
fn connect_by_kernel(name: &str, port: u32, until: Instant) -> Result<UnixStream, ClientError> {
    // Never zero, which would be for ever.
    let left = || until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut client = Client::connect(name)?;
    client.set_timeout(Some(left())).map_err(ClientError::Connection)?;
    let Some(VsockInfo { cid, socket: None }) = client.info()?.vsock else {
        return Err(ClientError::NoVsock { name: name.to_owned() });
    };
    net::connect_vsock(cid, port, left()).map(UnixStream::from).map_err(|error| match error.kind() {
        ErrorKind::TimedOut => ClientError::PortSilent { port },
        ErrorKind::ConnectionReset => ClientError::PortRefused { port },
        _ => ClientError::Connection(error),
    })
}

/// Asks for the port, and reads the answer and nothing behind it.
fn handshake(mut stream: UnixStream, port: u32, until: Instant) -> io::Result<UnixStream> {
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') && answer.len() < ANSWER_MAX {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => answer.push(byte[0]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let host = answer.strip_prefix(b"OK ").and_then(|rest| rest.strip_suffix(b"\n"));
    if host.is_none_or(|host| host.is_empty() || !host.iter().all(u8::is_ascii_digit)) {
        return Err(io::Error::new(ErrorKind::InvalidData, "its answer makes no sense"));
    }
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(answer: &[u8]) -> Result<UnixStream, ErrorKind> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answer).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let stream =
            handshake(ours, 5, Instant::now() + Duration::from_secs(10)).map_err(|error| error.kind());
        let mut asked = [0; 10];
        theirs.read_exact(&mut asked).unwrap();
        assert_eq!(&asked, b"CONNECT 5\n");
        stream
    }

    #[test]
    fn the_answer_is_read_and_nothing_behind_it() {
        let mut stream = after(b"OK 1073741824\nhello").unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert_eq!((rest.as_str(), stream.read_timeout().unwrap()), ("hello", None));
    }

    #[test]
    fn whoever_waits_for_ever_is_told_the_same() {
        let absent = connect_vsock("no-such-machine", 5, Duration::MAX).unwrap_err();
        assert_eq!(
            absent.to_string(),
            connect_vsock("no-such-machine", 5, Duration::from_secs(1)).unwrap_err().to_string()
        );
        assert!(end_of(Duration::MAX) > Instant::now());
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for (answer, kind) in [
            (&b""[..], ErrorKind::UnexpectedEof),
            (b"OK 12", ErrorKind::UnexpectedEof),
            (b"OK \n", ErrorKind::InvalidData),
            (b"OK x\n", ErrorKind::InvalidData),
            (b"NO 1\n", ErrorKind::InvalidData),
            (b"OK 10737418241073741824\n", ErrorKind::InvalidData),
        ] {
            assert_eq!(after(answer).unwrap_err(), kind, "{answer:?}");
        }
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let error = handshake(ours, 5, Instant::now() + Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock), "{error}");
    }
}
