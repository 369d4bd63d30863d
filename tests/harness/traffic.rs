//! Streams between a namespace and a guest, checked byte by byte.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::mpsc;
use std::thread::JoinHandle;

use crate::netns::Netns;

/// A server that sends noise to its first client, and expects it back from its second.
pub struct Noise {
    address: SocketAddr,
    len: usize,
    server: JoinHandle<std::io::Result<Vec<u8>>>,
    sent: Vec<u8>,
}

impl Noise {
    /// Serves `len` bytes at `ip` in `netns`, on a port of the kernel's choice.
    pub fn serve(netns: &Netns, ip: IpAddr, len: usize) -> Self {
        let mut noise = vec![0; len];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut random| random.read_exact(&mut noise))
            .expect("noise");
        let sent = noise.clone();
        let (listening, address) = mpsc::channel();
        let server = netns.spawn(move || {
            let listener = TcpListener::bind((ip, 0))?;
            listening.send(listener.local_addr()?).expect("the test waits");
            listener.accept()?.0.write_all(&noise)?;
            let mut back = Vec::new();
            listener.accept()?.0.read_to_end(&mut back)?;
            Ok(back)
        });
        let address =
            address.recv().unwrap_or_else(|_| panic!("nobody can listen on {ip}: {:?}", netns.state()));
        Self { address, len, server, sent }
    }

    /// What a guest's shell runs to take the noise and send it back.
    pub fn guest_commands(&self) -> String {
        let (ip, port) = (self.address.ip(), self.address.port());
        format!(
            "nc {ip} {port} </dev/null >/dev/shm/noise && nc {ip} {port} </dev/shm/noise; rm /dev/shm/noise"
        )
    }

    /// Waits for the second client, and compares.
    pub fn check(self) -> Result<(), String> {
        let back = self.server.join().expect("the server does not panic").map_err(|e| e.to_string())?;
        match back == self.sent {
            true => Ok(()),
            false => Err(format!("{} bytes went out, and other {} came back", self.len, back.len())),
        }
    }
}
