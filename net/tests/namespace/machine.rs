//! Machines for a test: each a network namespace with a thread in it that does what it is told.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use net::{Backend, IovBuffer, Opened};
use vm_memory::VolatileSlice;

use super::run;

/// For what is to succeed, also where the whole machine stands still for seconds: TCP asks again after 1, 3 and 7 of them.
const PATIENCE: Duration = Duration::from_secs(20);
/// For what is to fail: more than a connection here takes where nothing else runs.
pub(crate) const SHORT: Duration = Duration::from_millis(1500);

/// A network namespace of its own, and the thread in it.
pub(crate) struct Machine {
    jobs: Option<Sender<Box<dyn FnOnce() + Send>>>,
    thread: Option<JoinHandle<()>>,
    /// The thread's id, by which `ip link set netns` finds the namespace.
    id: libc::pid_t,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let (jobs, inbox) = channel::<Box<dyn FnOnce() + Send>>();
        let (tell, told) = channel();
        let thread = thread::spawn(move || {
            // SAFETY: CLONE_NEWNET takes no memory and changes this thread only; gettid has no arguments.
            let id = unsafe {
                assert_eq!(libc::unshare(libc::CLONE_NEWNET), 0, "{}", io::Error::last_os_error());
                libc::gettid()
            };
            tell.send(id).unwrap();
            inbox.iter().for_each(|job| job());
        });
        Self { jobs: Some(jobs), thread: Some(thread), id: told.recv().unwrap() }
    }

    /// Does `job` there, and returns when it is done.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        let job = move || {
            let _ = tell.send(std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)));
        };
        self.jobs.as_ref().unwrap().send(Box::new(job)).unwrap();
        told.recv().unwrap().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs commands there.
    pub(crate) fn commands(&self, commands: &[&str]) {
        let commands: Vec<String> = commands.iter().map(|&command| command.to_owned()).collect();
        self.run(move || commands.iter().for_each(|command| drop(run(command))));
    }

    /// Plugs a cable into it and into the caller's namespace: `here` and its `there`.
    pub(crate) fn plug(&self, here: &str, there: &str) {
        run(&format!("ip link add {here} type veth peer name {there} netns {}", self.id));
        run(&format!("ip link set {here} up"));
        self.commands(&[&format!("ip link set {there} up")]);
    }

    /// Waits at `at` for one connection, answers what it says with the same, and returns who it was.
    pub(crate) fn serve(&self, at: &str) -> Served {
        let at: SocketAddr = at.parse().unwrap();
        Served(self.run(move || {
            let listener = TcpListener::bind(at).unwrap();
            thread::spawn(move || {
                let (mut stream, peer) = listener.accept().unwrap();
                let mut text = [0; 5];
                stream.read_exact(&mut text).unwrap();
                stream.write_all(&text).unwrap();
                peer
            })
        }))
    }

    /// Connects to `to` from there, says something and hears it again.
    pub(crate) fn talk(&self, to: &str) -> io::Result<()> {
        let to = to.parse().unwrap();
        self.run(move || talk(to))
    }

    /// As [`talk`](Self::talk), where it is to fail: it is not waited for long.
    pub(crate) fn try_to_talk(&self, to: &str) -> io::Result<()> {
        let to = to.parse().unwrap();
        self.run(move || talk_within(SHORT, to))
    }

    /// Waits at `at` for one datagram, answers with the same, and returns who it was.
    pub(crate) fn serve_udp(&self, at: &str) -> Served {
        let at: SocketAddr = at.parse().unwrap();
        Served(self.run(move || {
            let socket = UdpSocket::bind(at).unwrap();
            thread::spawn(move || {
                let mut text = [0; 5];
                let (_, peer) = socket.recv_from(&mut text).unwrap();
                socket.send_to(&text, peer).unwrap();
                peer
            })
        }))
    }

    /// Sends a datagram to `to` from there and hears it again.
    pub(crate) fn talk_udp(&self, to: &str) -> io::Result<()> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(move || talk_udp(to))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.jobs = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Somebody who waits for one visitor.
pub(crate) struct Served(JoinHandle<SocketAddr>);

impl Served {
    /// The visitor's address as it was seen, once there was one.
    pub(crate) fn visitor(self) -> String {
        self.0.join().unwrap().ip().to_string()
    }
}

/// Connects to `to` from here, says something and hears it again.
pub(crate) fn talk(to: SocketAddr) -> io::Result<()> {
    talk_within(PATIENCE, to)
}

fn talk_within(patience: Duration, to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"hello")?;
    let mut text = [0; 5];
    stream.read_exact(&mut text)?;
    assert_eq!(&text, b"hello");
    Ok(())
}

/// Sends datagrams to `to` from here, one a second, until it hears one again.
pub(crate) fn talk_udp(to: SocketAddr) -> io::Result<()> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let end = Instant::now() + PATIENCE;
    let mut text = [0; 5];
    loop {
        socket.send(b"hello")?;
        let heard = match socket.recv(&mut text) {
            // Whoever answers once answered the one before, on a busy machine, and is gone.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                socket.recv(&mut text).map_err(|_| error)
            }
            heard => heard,
        };
        match heard {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {}
            heard => {
                heard?;
                break;
            }
        }
    }
    assert_eq!(&text, b"hello");
    Ok(())
}

/// A guest: a machine whose `eth0` is at the other end of a backend, with frames carried between the two.
pub(crate) struct Guest {
    machine: Machine,
    stop: Arc<AtomicBool>,
    carrier: Option<JoinHandle<()>>,
}

impl Guest {
    /// Takes the backend out of `opened`; the rest of it stays with the caller.
    pub(crate) fn on(opened: &mut Opened) -> Self {
        let machine = Machine::new();
        let mac = opened.mac;
        let mut inside = machine.run(move || {
            run("ip tuntap add dev eth0 mode tap vnet_hdr");
            run(&format!("ip link set dev eth0 address {mac}"));
            net::open(&"tap=eth0".parse().unwrap(), &net::Host::new()).unwrap()
        });
        let mut backends = [opened.backends.remove(0), inside.backends.remove(0)];
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let carrier = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let [host, guest] = &mut backends;
                let moved = carry(&mut **host, &mut **guest) | carry(&mut **guest, &mut **host);
                if !moved {
                    thread::sleep(Duration::from_micros(200));
                }
            }
            drop(inside);
        });
        Self { machine, stop, carrier: Some(carrier) }
    }
}

impl std::ops::Deref for Guest {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.carrier.take().map(JoinHandle::join);
    }
}

/// Moves every frame that there is now; true where there was one.
fn carry(from: &mut dyn Backend, to: &mut dyn Backend) -> bool {
    let mut moved = false;
    let mut frame = [0; 70_000];
    let mut room = IovBuffer::new();
    loop {
        let mut space = room.start();
        assert!(space.push(VolatileSlice::from(&mut frame[..])));
        let Ok(len) = from.recv(&mut space) else { return moved };
        drop(space);
        let mut iov = room.start();
        assert!(iov.push(VolatileSlice::from(&mut frame[..len])));
        let _ = to.send(&iov);
        moved = true;
    }
}
