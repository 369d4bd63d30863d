//! NICs: the cables that the keeper gives, joined to the devices that the guest sees.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use devices::virtio::mailbox::ThreadHook;
use devices::virtio::net::{Counters, Handle, NetDeviceConfig, VirtioNet};
use net::{Backend, Cable, CableSpec, Plugged, RateLimits, RxFilter, Unplugged};

use crate::error::Error;
use crate::machine::sandbox::{Filters, Thread};
use crate::machine::vsock::SocketDevice;
use crate::protocol::{
    self, Channel, FilterAnswer, FilterRequest, FromMachine, NicCounters, PairCounters, ToMachine,
};

/// One NIC, as the machine knows it.
pub(crate) struct Nic {
    /// Its number among the machine's NICs.
    number: usize,
    /// The link on the host, for the log.
    link: String,
    /// Until the bus takes it.
    device: Option<VirtioNet>,
    handle: Handle,
    /// The kernel carries its frames, and counts on the link alone.
    carried: bool,
    /// Frames of the guest for which the wire has no way.
    ignored: Arc<AtomicU64>,
    /// By which its driver asks the keeper, whatever the wire.
    asks: Arc<Asks>,
}

type Asks = Channel<FilterRequest, FilterAnswer>;

impl Nic {
    /// Receives each NIC from the keeper, until it says that there is no further one, and the socket device. Their threads are
    /// born here.
    ///
    /// # Errors
    /// The keeper is gone, or there are not enough threads or descriptors.
    pub(crate) fn receive_all(
        channel: &Channel<FromMachine, ToMachine>,
    ) -> Result<(Vec<Self>, Option<SocketDevice>), Error> {
        let (mut nics, mut sockets) = (Vec::new(), None);
        loop {
            let received =
                channel.receive().map_err(|source| Error::Host { what: "hear the keeper", source })?;
            match received {
                None => return Err(Error::NoKeeper),
                Some((ToMachine::Nic(nic), descriptors)) => nics.push(Self::new(*nic, descriptors)?),
                Some((ToMachine::Vsock { vhost }, descriptors)) => {
                    let what = "make a socket device of what the keeper gave";
                    let made = SocketDevice::new(vhost, descriptors);
                    sockets = Some(made.map_err(|source| Error::Host { what, source })?);
                }
                Some((ToMachine::Start, _)) => return Ok((nics, sockets)),
                Some((ToMachine::Stop, _)) => return Err(Error::Over),
                // Before there is a guest, there is none to press a button for or to pause.
                Some(_) => {}
            }
        }
    }

    /// The NIC that the keeper gave. Its threads are born here.
    ///
    /// # Errors
    /// There are not enough threads or descriptors, or these are others than the keeper says.
    pub(crate) fn new(nic: protocol::Nic, mut descriptors: Vec<OwnedFd>) -> Result<Self, Error> {
        let failed = |source| Error::Host { what: "make a NIC of what the keeper gave", source };
        let asks = Arc::new(Asks::over(descriptors.pop().ok_or_else(|| failed(no_room()))?));
        let plugged = plug(nic.cable, descriptors, 1, nic.wire, &asks).map_err(failed)?;
        let Plugged { backends, vhosts, mac, mtu, link, ignored } = plugged;
        let (name, affinity) = (format!("net{}", nic.number), nic.affinity);
        let config = NetDeviceConfig { name, mac, mtu: Some(mtu), affinity };
        let device = VirtioNet::new(config, backends, vhosts).map_err(failed)?;
        let device = device.with_poll(nic.poll.map(Duration::from_micros));
        let handle = device.handle();
        handle.set_rate(&nic.rate).map_err(failed)?;
        Ok(Self {
            number: nic.number,
            link,
            handle,
            device: Some(device),
            carried: nic.carried,
            ignored,
            asks,
        })
    }

    /// Has its link as it is to be.
    pub(crate) fn set_link(&self, link: &protocol::Link) -> io::Result<()> {
        self.handle.set_carrier(link.carrier)?;
        self.handle.set_link(link.up)?;
        link.announcement.clone().map_or(Ok(()), |frames| self.handle.announce(frames))
    }

    /// Holds it to other limits.
    pub(crate) fn set_rate(&self, limits: &RateLimits) -> io::Result<()> {
        self.handle.set_rate(limits)
    }

    /// Moves it to another wire, or takes the one away that it has.
    pub(crate) fn swap(&mut self, wire: Option<protocol::Nic>, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let pairs = self.handle.pairs();
        let Some(wire) = wire else {
            let nothing = |_| Ok::<_, io::Error>(Box::new(Unplugged::new()?) as Box<dyn Backend>);
            return self.handle.swap((0..pairs).map(nothing).collect::<io::Result<_>>()?, Vec::new());
        };
        if descriptors.is_empty() {
            return Err(no_room());
        }
        let plugged = plug(wire.cable, descriptors, pairs, wire.wire, &self.asks)?;
        let Plugged { backends, vhosts, link, ignored, .. } = plugged;
        self.handle.swap(backends, vhosts)?;
        self.handle.set_rate(&wire.rate)?;
        (self.link, self.ignored, self.carried) = (link, ignored, wire.carried);
        Ok(())
    }

    /// Its number among the machine's NICs.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// The device that the guest sees.
    ///
    /// # Panics
    /// The second time.
    pub(crate) fn take_device(&mut self) -> VirtioNet {
        self.device.take().expect("a NIC goes onto one bus")
    }

    /// Confines its threads.
    pub(crate) fn confine(&self, filters: &Arc<Filters>) -> io::Result<()> {
        let filters = Arc::clone(filters);
        let hook: ThreadHook = Arc::new(move |_: &str| filters.enter(Thread::Queue));
        self.handle.confine(&hook)
    }

    /// Stops its queues where they are.
    pub(crate) fn pause(&self) -> io::Result<()> {
        let states = self.handle.pause()?;
        log::debug!("{}: paused at {states:?}", self.link);
        Ok(())
    }

    /// Lets its queues go on.
    pub(crate) fn resume(&self) -> io::Result<()> {
        self.handle.resume()
    }

    /// What went over the wire.
    pub(crate) fn counters(&self) -> NicCounters {
        NicCounters {
            number: self.number,
            pairs: self.handle.counters().iter().map(|pair| read(pair)).collect(),
            ignored: self.ignored.load(Ordering::Relaxed),
        }
    }

    /// Logs what went over the wire.
    pub(crate) fn log_counters(&self) {
        let NicCounters { pairs, ignored, .. } = self.counters();
        for pair in pairs.iter().filter(|_| !self.carried) {
            log::info!(
                "{}: sent {} frames ({} bytes, {} lost), received {} ({} bytes, {} lost), {} interrupts, {} system calls",
                self.link,
                pair.tx_frames,
                pair.tx_bytes,
                pair.tx_dropped,
                pair.rx_frames,
                pair.rx_bytes,
                pair.rx_dropped,
                pair.interrupts,
                pair.calls
            );
        }
        if ignored > 0 {
            log::info!(
                "{}: {ignored} of the frames sent were neither IP nor about neighbours, and went nowhere",
                self.link
            );
        }
    }
}

/// Makes the backends of a wire, for a NIC of so many queue pairs at least.
fn plug(
    spec: CableSpec,
    descriptors: Vec<OwnedFd>,
    pairs: usize,
    wire: u32,
    asks: &Arc<Asks>,
) -> io::Result<Plugged> {
    let asks = Arc::clone(asks);
    let ask = move |filter: &RxFilter| ask(&asks, wire, filter);
    Cable { spec, descriptors }.for_pairs(pairs).plug(Box::new(ask))
}

/// Descriptors that came found no room in this process: then it has none of them.
fn no_room() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}

fn read(counters: &Counters) -> PairCounters {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    PairCounters {
        tx_frames: read(&counters.tx_frames),
        tx_rate_waits: read(&counters.tx_rate_waits),
        tx_merged: read(&counters.tx_merged),
        tx_packets: read(&counters.tx_packets),
        tx_bytes: read(&counters.tx_bytes),
        tx_dropped: read(&counters.tx_dropped),
        tx_too_long: read(&counters.tx_too_long),
        tx_link_down: read(&counters.tx_link_down),
        tx_host_down: read(&counters.tx_host_down),
        rx_frames: read(&counters.rx_frames),
        rx_rate_waits: read(&counters.rx_rate_waits),
        rx_bytes: read(&counters.rx_bytes),
        rx_dropped: read(&counters.rx_dropped),
        rx_too_long: read(&counters.rx_too_long),
        rx_no_buffer: read(&counters.rx_no_buffer),
        rx_unread: read(&counters.rx_unread),
        kicks: read(&counters.kicks),
        interrupts: read(&counters.interrupts),
        calls: read(&counters.calls),
    }
}

/// Asks the keeper for other frames or another address, and waits for its answer.
fn ask(keeper: &Asks, wire: u32, filter: &RxFilter) -> io::Result<()> {
    keeper.send(&FilterRequest { wire, filter: filter.clone() })?;
    match keeper.receive()? {
        Some((FilterAnswer(answer), _)) => answer.map_err(io::Error::from_raw_os_error),
        None => Err(io::ErrorKind::BrokenPipe.into()),
    }
}
