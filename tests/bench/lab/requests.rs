//! One byte there and one back, over one TCP connection, as often as it goes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// What a guest's shell runs for an echo at `port`.
pub(super) fn guest_command(port: u16) -> String {
    format!("(nc -ll -p {port} -e cat </dev/null >/dev/null 2>&1 &)")
}

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Asks for so long, and returns how often it was answered, and in which time.
pub(super) fn ask(server: SocketAddr, during: Duration) -> Result<(u32, Duration), String> {
    let failed = |error: std::io::Error| format!("request/response with {server}: {error}");
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE).map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let (begin, mut answers) = (Instant::now(), 0);
    while begin.elapsed() < during {
        stream.write_all(b"?").map_err(failed)?;
        stream.read_exact(&mut [0]).map_err(failed)?;
        answers += 1;
    }
    Ok((answers, begin.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};
    use std::sync::mpsc;

    #[test]
    fn each_answer_is_waited_for_and_counted() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (asked, answered) = mpsc::channel();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() {
                stream.write_all(&byte).unwrap();
                asked.send(()).unwrap();
            }
        });
        let during = Duration::from_millis(20);
        let (answers, took) = ask(address, during).unwrap();
        server.join().unwrap();
        assert!(took >= during, "{took:?}");
        assert!(answers > 0);
        assert_eq!(answers as usize, answered.iter().count());
    }

    #[test]
    fn a_server_that_goes_is_an_error() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || drop(listener.accept()));
        assert!(ask(address, PATIENCE).is_err());
        server.join().unwrap();
    }
}
