//! The NIC's thread as the mover, and the mock driver that keeps it busy.
//!
//! The driver polls, as Linux does under load, and asks for no interrupts.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use devices::virtio::mock::MockRing;
use devices::virtio::net::VirtioNet;
use devices::virtio::queue::VirtQueue;
use devices::virtio::{Activation, ActiveQueue, Interrupt, VirtioDevice};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Moved;
use super::rig::{RING, RX_RING, Rig, Shape, TABLE, TABLES, TX_RING};
use crate::sys::{self, Cpu};

/// No burst of frames takes so long, whatever else the machine does.
const STUCK: Duration = Duration::from_secs(20);

/// An interrupt as a VM's: an eventfd that KVM listens to.
struct Irq(EventFd);

impl Interrupt for Irq {
    fn queue(&self, _: u16) -> io::Result<()> {
        self.0.write(1)
    }

    fn config(&self) -> io::Result<()> {
        self.0.write(1)
    }

    fn needs_reset(&self) -> io::Result<()> {
        Err(io::Error::other("the device asks for a reset"))
    }
}

/// The guest's side of the NIC while it runs.
pub(super) struct Driver {
    pub(super) rx: MockRing,
    pub(super) tx: MockRing,
    pub(super) rx_kick: EventFd,
    pub(super) tx_kick: EventFd,
    /// What the NIC interrupts by.
    pub(super) irq: EventFd,
    /// The NIC's thread.
    pub(super) thread: u32,
}

/// Starts the NIC, its thread on the mover's core.
pub(super) fn start(rig: &Rig, nic: &mut VirtioNet) -> io::Result<Driver> {
    let accepted = nic.features();
    let ring = |base| {
        let mut ring = MockRing::new(&rig.memory, base, RING, true);
        ring.want_interrupts(false);
        ring
    };
    let (rx, tx) = (ring(RX_RING), ring(TX_RING));
    let (rx_kick, tx_kick) = (EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
    let queue = |index, ring: &MockRing, kick: &EventFd| {
        let ring = VirtQueue::new(ring.setup(), accepted, &rig.memory).map_err(io::Error::other)?;
        Ok::<_, io::Error>(ActiveQueue { index, ring, kick: Arc::new(kick.try_clone()?) })
    };
    let irq = EventFd::new(EFD_NONBLOCK)?;
    let activation = Activation {
        memory: rig.memory.clone(),
        accepted,
        interrupt: Arc::new(Irq(irq.try_clone()?)),
        queues: vec![queue(0, &rx, &rx_kick)?, queue(1, &tx, &tx_kick)?],
    };
    nic.activate(activation)?;
    let thread = nic_thread("wire-0")?;
    sys::pin(thread, rig.cores.mover)?;
    Ok(Driver { rx, tx, rx_kick, tx_kick, irq, thread })
}

/// The number of the NIC's thread of that name, which it has only once it runs.
pub(super) fn nic_thread(name: &str) -> io::Result<u32> {
    let end = Instant::now() + STUCK;
    while Instant::now() < end {
        for task in fs::read_dir("/proc/self/task")? {
            let path = task?.path();
            if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name) {
                let number =
                    path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
                return number.ok_or_else(|| io::Error::other("a thread without a number"));
            }
        }
    }
    Err(io::Error::other("the NIC has no thread"))
}

pub(super) fn stuck(begin: Instant, what: &str) -> io::Result<()> {
    if begin.elapsed() < STUCK { Ok(()) } else { Err(io::Error::other(format!("the NIC {what} no more"))) }
}

/// Sends frames for `time`.
pub(super) fn send(rig: &Rig, nic: &mut VirtioNet, shape: Shape, time: Duration) -> io::Result<Moved> {
    let mut driver = start(rig, nic)?;
    let counters = nic.counters().remove(0);
    let (dropped, calls) = (&counters.tx_dropped, &counters.calls);
    let [lost, called] = [dropped, calls].map(|counter| counter.load(Ordering::Relaxed));
    let headers = Rig::headers(shape);
    let frames: Vec<_> = (0..RING).map(|place| Rig::frame_buffers(shape, place)).collect();
    let mut places: Vec<u16> = (0..RING).collect();
    let mut place_of = [0; RING as usize];
    let cpu = Cpu::Thread(driver.thread);
    let (begin, cpu_begin, mut sent) = (Instant::now(), cpu.time()?, 0);
    loop {
        while let Some((head, _)) = driver.tx.reap() {
            places.push(place_of[usize::from(head)]);
            sent += 1;
        }
        if begin.elapsed() < time {
            // A train is shown whole.
            let whole = places.len() - places.len() % shape.train.max(1);
            let more = whole > 0;
            for place in places.drain(..whole) {
                rig.write_headers(shape, &headers, place)?;
                let buffers = &frames[usize::from(place)];
                // As Linux does: a table only where it saves descriptors.
                let head = match buffers.len() {
                    1 => driver.tx.add(buffers),
                    _ => driver.tx.add_indirect(TABLES + TABLE * u64::from(place), buffers),
                };
                place_of[usize::from(head.expect("a place is a descriptor"))] = place;
            }
            if more && driver.tx.publish() {
                driver.tx_kick.write(1)?;
            }
        } else if places.len() == usize::from(RING) {
            break;
        }
        std::hint::spin_loop();
        stuck(begin, "sends")?;
    }
    let (wall, cpu) = (begin.elapsed(), cpu.time()? - cpu_begin);
    nic.reset();
    let moved = Moved { frames: sent, wall, cpu, calls: calls.load(Ordering::Relaxed) - called };
    match dropped.load(Ordering::Relaxed) - lost {
        0 => Ok(moved),
        lost => Err(io::Error::other(format!("the tap refused {lost} of {sent} frames"))),
    }
}

/// Drains the tap's queue `drains` times.
///
/// While the queue fills, the NIC has no buffer: a driver begins with each drain, and posts as many buffers as its frames take, over
/// and above those into which a large one would fit.
pub(super) fn receive(rig: &Rig, nic: &mut VirtioNet, shape: Shape, drains: usize) -> io::Result<Moved> {
    let counters = nic.counters().remove(0);
    let calls = || counters.calls.load(Ordering::Relaxed);
    let mut sum = Moved::default();
    for _ in 0..drains {
        let mut driver = start(rig, nic)?;
        let mut places: Vec<u16> = (0..RING).collect();
        let mut place_of = [0; RING as usize];
        let cpu = Cpu::Thread(driver.thread);
        rig.fill_tap(shape)?;
        let mut left = shape.queue * shape.bytes();
        let mut to_post = shape.window() - 1 + shape.queue * shape.taken();
        let (begin, cpu_begin, calls_begin) = (Instant::now(), cpu.time()?, calls());
        while left > 0 {
            let more = places.len().min(to_post);
            for place in places.drain(places.len() - more..) {
                let buffer = Rig::receive_buffer(shape, place);
                let head = driver.rx.add(&[buffer]).expect("a place is a descriptor");
                place_of[usize::from(head)] = place;
            }
            to_post -= more;
            if more > 0 && driver.rx.publish() {
                driver.rx_kick.write(1)?;
            }
            while let Some((head, len)) = driver.rx.reap() {
                left = left.checked_sub(len as usize).expect("the tap has our frames only");
                places.push(place_of[usize::from(head)]);
            }
            std::hint::spin_loop();
            stuck(begin, "receives")?;
        }
        let (wall, cpu) = (begin.elapsed(), cpu.time()? - cpu_begin);
        sum += Moved { frames: shape.queue as u64, wall, cpu, calls: calls() - calls_begin };
        nic.reset();
    }
    Ok(sum)
}
