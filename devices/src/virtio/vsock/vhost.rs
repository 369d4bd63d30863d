//! The socket device whose rings the host's kernel has (vhost-vsock). What is left is its thread, which sleeps: it passes interrupts on
//! where a queue has no eventfd of its own, and hears of a ring that makes no sense.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use net::Vhost;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{F_STREAM, QUEUE_SIZES, TYPE_VSOCK, queues_of, read_cid};
use crate::log_once::LogOnce;
use crate::virtio::device::{Activation, ActiveQueue, DeviceThreads, Interrupt, VirtioDevice};
use crate::virtio::mailbox::{Address, Mailbox, Reply, ThreadHook};
use crate::virtio::net::vhost::{Carrier, IdleCarrier, Load};
use crate::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use crate::virtio::queue_thread::QueueThread;
use vm_memory::GuestMemoryMmap;

/// `VIRTIO_VSOCK_F_SEQPACKET`: the kernel has these sockets, too.
const F_SEQPACKET: u64 = 1 << 1;

/// What the thread waits for.
const MAIL: u64 = 0;
const RELAYS: [u64; 2] = [1, 2];
const BROKEN: u64 = 3;

enum Message {
    Start(Box<Driver>, Reply<io::Result<()>>),
    Stop(Reply<()>),
    Pause(Reply<io::Result<()>>),
    Resume(Reply<io::Result<()>>),
    Reroute(Reply<io::Result<()>>),
}

/// All that the device has for as long as one driver runs.
struct Driver {
    memory: GuestMemoryMmap,
    accepted: u64,
    interrupt: Arc<dyn Interrupt>,
    receive: ActiveQueue,
    transmit: ActiveQueue,
}

/// A socket device of vhost-vsock, with a thread of its own.
pub struct VhostVsock {
    cid: u32,
    features: u64,
    active: bool,
    thread: QueueThread<Message>,
}

struct Thread(Address<Message>);

impl VhostVsock {
    /// A device of a guest whose address `vhost` has been given: `cid`. Its thread is spawned here, by the calling thread.
    ///
    /// # Errors
    /// There are no descriptors or no threads left.
    pub fn new(vhost: Vhost, cid: u32) -> io::Result<Self> {
        let rings = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_SEQPACKET;
        let features = rings & vhost.features() | F_STREAM;
        let idle = IdleCarrier::new(vhost)?;
        let thread = QueueThread::spawn("vsock", None, |mailbox| {
            let epoll = Epoll::new()?;
            let events = idle.events();
            let [receive, transmit] = &events.relays;
            let watched = [
                (mailbox.wake(), MAIL),
                (receive, RELAYS[0]),
                (transmit, RELAYS[1]),
                (&events.error, BROKEN),
            ];
            for (event, token) in watched {
                let edges = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, token);
                epoll.ctl(ControlOperation::Add, event.as_raw_fd(), edges)?;
            }
            let broken = LogOnce::default();
            let worker = Worker { mailbox, state: State::Idle(idle), paused: false, broken };
            Ok(move || worker.live(&epoll))
        })?;
        Ok(Self { cid, features, active: false, thread })
    }

    /// By which the machine's owner reaches the thread.
    pub fn threads(&self) -> Box<dyn DeviceThreads> {
        Box::new(Thread(self.thread.address().clone()))
    }
}

impl DeviceThreads for Thread {
    fn confine(&self, hook: &ThreadHook) -> io::Result<()> {
        self.0.confine(Arc::clone(hook)).wait()?
    }

    fn pause(&self) -> io::Result<()> {
        self.0.ask(Message::Pause).wait()?
    }

    fn resume(&self) -> io::Result<()> {
        self.0.ask(Message::Resume).wait()?
    }
}

impl VirtioDevice for VhostVsock {
    fn device_type(&self) -> u32 {
        TYPE_VSOCK
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_cid(self.cid.into(), offset, data);
    }

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let Activation { memory, accepted, interrupt, queues } = activation;
        let [receive, transmit] = queues_of(queues)?;
        let driver = Driver { memory, accepted, interrupt, receive, transmit };
        self.active = true;
        self.thread.address().ask(|reply| Message::Start(Box::new(driver), reply)).wait()?
    }

    fn rerouted(&mut self) {
        if let Ok(Err(error)) = self.thread.address().ask(Message::Reroute).wait() {
            log::warn!("vsock: interrupts come by other vectors: {error}");
        }
    }

    fn reset(&mut self) {
        if std::mem::take(&mut self.active) {
            // One that has ended touches nothing.
            let _ = self.thread.address().ask(Message::Stop).wait();
        }
    }
}

impl Drop for VhostVsock {
    fn drop(&mut self) {
        self.reset();
    }
}

enum State {
    Idle(IdleCarrier),
    Driven(Carrier, Box<Driver>),
    /// While a message takes it from one to the other.
    Between,
}

struct Worker {
    mailbox: Mailbox<Message>,
    state: State,
    paused: bool,
    broken: LogOnce,
}

impl Worker {
    fn live(mut self, epoll: &Epoll) {
        let mut events = [EpollEvent::default(); 4];
        loop {
            let happened = match epoll.wait(-1, &mut events) {
                Ok(happened) => happened,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return log::error!("vsock: cannot wait for events: {error}"),
            };
            for event in &events[..happened] {
                if event.data() == MAIL {
                    if self.take_mail() {
                        return;
                    }
                    continue;
                }
                match (event.data(), &self.state) {
                    (BROKEN, State::Driven(carrier, driver)) => {
                        let level = self.broken.level();
                        log::log!(level, "vsock: the guest's driver broke a ring, and is asked for a reset");
                        carrier.silence();
                        let _ = driver.interrupt.needs_reset();
                    }
                    (relay, State::Driven(_, driver)) => {
                        let queue = if relay == RELAYS[0] { &driver.receive } else { &driver.transmit };
                        if let Err(error) = driver.interrupt.queue(queue.index) {
                            log::warn!("cannot interrupt the guest: {error}");
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// Does what the messages say. True: the thread is to end.
    fn take_mail(&mut self) -> bool {
        let mut messages = Vec::new();
        let over = self.mailbox.take(|message| messages.push(message)).is_break();
        for message in messages {
            match message {
                Message::Start(driver, reply) => reply.send(self.start(*driver)),
                Message::Stop(reply) => {
                    self.stop();
                    reply.send(());
                }
                Message::Pause(reply) => reply.send(self.pause()),
                Message::Resume(reply) => reply.send(self.resume()),
                Message::Reroute(reply) => reply.send(match &self.state {
                    State::Driven(carrier, driver) => carrier.reroute(&*driver.interrupt),
                    State::Idle(_) | State::Between => Ok(()),
                }),
            }
        }
        over
    }

    fn start(&mut self, driver: Driver) -> io::Result<()> {
        self.stop();
        let State::Idle(idle) = std::mem::replace(&mut self.state, State::Between) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let Driver { memory, accepted, interrupt, receive, transmit } = &driver;
        let (accepted, queues) = (*accepted, [receive, transmit]);
        match idle.start(&Load { memory, accepted, interrupt, queues, poll: Duration::ZERO }) {
            Ok(carrier) => self.state = State::Driven(carrier, Box::new(driver)),
            Err((idle, error)) => {
                self.state = State::Idle(idle);
                return Err(error);
            }
        }
        if self.paused { Ok(()) } else { self.run().inspect_err(|_| self.stop()) }
    }

    fn run(&self) -> io::Result<()> {
        match &self.state {
            State::Driven(carrier, driver) => carrier.run([&driver.receive, &driver.transmit]),
            State::Idle(_) | State::Between => Ok(()),
        }
    }

    /// The kernel touches no guest memory when this returns.
    fn stop(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Between) {
            State::Driven(carrier, _) => State::Idle(carrier.stop()),
            other => other,
        };
    }

    fn pause(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.paused, true) {
            return Ok(());
        }
        match &mut self.state {
            State::Driven(carrier, driver) => {
                let Driver { memory, receive, transmit, .. } = &mut **driver;
                carrier.pause(memory, [receive, transmit])
            }
            State::Idle(_) | State::Between => Ok(()),
        }
    }

    fn resume(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.paused) { self.run() } else { Ok(()) }
    }
}
