//! A program for a guest, which speaks AF_VSOCK where busybox does not.
//!
//! - `echo PORT`: sends back what each stream to that port brings, and ends it after that has ended.
//! - `say PORT BYTES [CID]`: sends so many bytes to that port, of the host without a CID, and prints how many come back until the stream ends, or the error.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

fn main() {
    let args: Vec<_> = std::env::args().collect();
    let number = |at: usize| args[at].parse::<u32>().expect("a number");
    match args[1].as_str() {
        "echo" => echo(number(2)).expect("a port to listen at"),
        "say" => match say(args.get(4).map_or(libc::VMADDR_CID_HOST, |_| number(4)), number(2), number(3)) {
            Ok(came) => println!("{came} came back"),
            Err(error) => println!("{:?}", error.kind()),
        },
        other => panic!("{other}"),
    }
}

fn echo(port: u32) -> io::Result<()> {
    let listener = socket()?;
    let address = address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the address outlives the call, and the length is its own.
    checked(unsafe { libc::bind(listener.as_raw_fd(), (&raw const address).cast(), LEN) })?;
    // SAFETY: it takes numbers.
    checked(unsafe { libc::listen(listener.as_raw_fd(), 64) })?;
    println!("listening");
    loop {
        // SAFETY: it may be told no address.
        let fd = checked(unsafe {
            libc::accept(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut())
        })?;
        // SAFETY: the descriptor is new, and nobody else's.
        let mut stream = stream(unsafe { OwnedFd::from_raw_fd(fd) });
        std::thread::spawn(move || {
            let mut from = stream.try_clone().expect("a descriptor");
            let _ = io::copy(&mut from, &mut stream);
            let _ = stream.shutdown(Shutdown::Write);
        });
    }
}

fn say(cid: u32, port: u32, bytes: u32) -> io::Result<usize> {
    let socket = socket()?;
    let address = address(cid, port);
    // SAFETY: the address outlives the call, and the length is its own.
    checked(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), LEN) })?;
    let mut stream = stream(socket);
    let mut from = stream.try_clone()?;
    let reader = std::thread::spawn(move || {
        let mut came = Vec::new();
        from.read_to_end(&mut came).map(|_| came)
    });
    let said: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
    stream.write_all(&said)?;
    stream.shutdown(Shutdown::Write)?;
    let came = reader.join().expect("no panic")?;
    match said.starts_with(&came) {
        true => Ok(came.len()),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

const LEN: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: it takes numbers.
    let fd = checked(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all zeroes is an address.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    (address.svm_family, address.svm_cid, address.svm_port) = (libc::AF_VSOCK as u16, cid, port);
    address
}

/// Reads, writes and shutdowns are the same on any stream.
fn stream(socket: OwnedFd) -> TcpStream {
    socket.into()
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
