//! One processor for all: the NIC's thread on that of the driver, as a queue's thread and a vCPU share one on a host with fewer
//! processors than they want. The other end of the tap has another.
//!
//! The bare loop stands beside it: the same system calls, on a thread of the usual policy that shares the processor in the same
//! way, and is kicked and interrupts by the same eventfds.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use devices::virtio::VirtioDevice;
use devices::virtio::net::VirtioNet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Apart;
use super::pair::{Driver, start};
use super::rig::{RING, Rig, Shape};
use crate::Options;
use crate::report::{Goal, Row, Samples, Table};
use crate::start::in_namespace;
use crate::sys::{self, Iovecs, LinkReceiver};

/// How long one thing is measured in a round.
const TIME: Duration = Duration::from_millis(200);
/// A frame that is not back by then is lost.
const LOST: Duration = Duration::from_millis(500);
/// Half of the ring, so that what is under way each way fits.
const MOST: usize = RING as usize / 2;

/// What a guest does while it has no frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Idle {
    /// It looks for them.
    Polls,
    /// It has other work, and looks every now and then.
    Computes,
    /// It leaves its processor until it is interrupted.
    Halts,
}

const IDLES: [(Idle, &str); 3] =
    [(Idle::Polls, "polls"), (Idle::Computes, "computes"), (Idle::Halts, "halts")];
/// How long a guest that computes does not look.
const COMPUTING: Duration = Duration::from_micros(20);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// The guest sends back what it receives.
    RoundTrips,
    Sends,
    Receives,
}

const WORKS: [(Work, &str, &str); 3] = [
    (Work::RoundTrips, "round trip, p50", "us"),
    (Work::Sends, "send 64 bytes", "k frames/s"),
    (Work::Receives, "receive 64 bytes", "k frames/s"),
];

/// The driver of a NIC, or what stands for one.
trait Guest {
    /// Takes what came, and makes room for as much.
    fn receive(&mut self) -> io::Result<usize>;
    /// Sends as many frames, as far as there is room, and returns how many.
    fn send(&mut self, frames: usize) -> io::Result<usize>;
    /// Waits for an interrupt, unless there is something to do by now.
    fn halt(&mut self) -> io::Result<()>;
}

pub(crate) fn run(options: &Options) -> Result<Table, String> {
    let rounds = options.rounds(9);
    let rows = in_namespace(|| measure(rounds, &options.only).map_err(|error| error.to_string()))??;
    let columns = ["NIC over bare loop", "NIC's thread", "bare loop"].map(str::to_owned).to_vec();
    let title =
        format!("Core: the NIC's thread on its driver's processor, a tap, median of {rounds} (min-max)");
    let notes = vec![
        "the bare loop is a thread of the usual policy on the same processor, by poll, readv and writev"
            .to_owned(),
        "a guest that computes looks for frames every 20 us; one that halts sleeps until it is interrupted"
            .to_owned(),
    ];
    Ok(Table { title, columns, rows, notes })
}

fn measure(rounds: usize, only: &str) -> io::Result<Vec<Row>> {
    let (rig, mut nic) = Rig::new(1)?;
    if rig.cores.driver == rig.cores.mover {
        return Err(io::Error::other("the other end of the tap needs a second processor"));
    }
    let shape = Shape::new(64);
    rig.write_frames(shape)?;
    let mut rows = Vec::new();
    for (work, what, unit) in WORKS {
        for (idle, guest) in IDLES {
            let what = format!("{what}, a guest that {guest}");
            if !what.contains(only) {
                continue;
            }
            let mut figures = [const { Samples::new() }; 2];
            // The first round warms up.
            for round in 0..=rounds {
                for at in 0..2 {
                    let at = (at + round) % 2;
                    let figure = match at {
                        0 => by_nic(&rig, &mut nic.device, shape, work, idle)?,
                        _ => by_bare_loop(&rig, shape, work, idle)?,
                    };
                    if round > 0 {
                        figures[at].push(figure);
                    }
                }
            }
            let [nic, bare] = figures;
            let goal = match work {
                Work::RoundTrips => Goal::Under(1.25),
                Work::Sends | Work::Receives => Goal::AtLeast(0.9),
            };
            rows.push(Row { what, unit, cells: vec![nic.over(&bare), nic, bare], goal: Some(goal) });
        }
    }
    Ok(rows)
}

/// Has `guest` work on this thread, and the other end of the tap on the other processor.
fn play(rig: &Rig, shape: Shape, work: Work, idle: Idle, guest: &mut dyn Guest) -> io::Result<f64> {
    let (over, received) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let far = scope.spawn(|| {
            sys::pin(sys::thread_number(), rig.cores.mover)?;
            let figure = far_end(rig, shape, work, &received);
            over.store(true, Ordering::Relaxed);
            // A guest that halts sleeps by now.
            let _ = rig.fill_one(shape);
            figure
        });
        let (mut sent, begin) = (0, Instant::now());
        while !over.load(Ordering::Relaxed) {
            let moved = match work {
                Work::RoundTrips => {
                    let came = guest.receive()?;
                    guest.send(came)?
                }
                Work::Sends => guest.send(MOST)?,
                Work::Receives => guest.receive()?,
            };
            match work {
                Work::Sends => sent += moved,
                _ => drop(received.fetch_add(moved, Ordering::Relaxed)),
            }
            match idle {
                Idle::Polls => std::hint::spin_loop(),
                Idle::Computes => {
                    let begin = Instant::now();
                    while begin.elapsed() < COMPUTING {
                        std::hint::spin_loop();
                    }
                }
                Idle::Halts if moved == 0 => guest.halt()?,
                Idle::Halts => {}
            }
        }
        let wall = begin.elapsed();
        let figure = far.join().expect("it does not panic")?;
        Ok(if work == Work::Sends { sent as f64 / wall.as_secs_f64() / 1e3 } else { figure })
    })
}

/// What the other end of the tap does, and what it measures.
fn far_end(rig: &Rig, shape: Shape, work: Work, received: &AtomicUsize) -> io::Result<f64> {
    let begin = Instant::now();
    match work {
        Work::Sends => std::thread::sleep(TIME),
        Work::Receives => {
            while begin.elapsed() < TIME {
                match rig.fill_one(shape) {
                    // The tap's queue is full.
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => std::hint::spin_loop(),
                    sent => sent?,
                }
            }
            return Ok(received.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64() / 1e3);
        }
        Work::RoundTrips => {
            let receiver = LinkReceiver::new(rig.link)?;
            let mut trips = Samples::new();
            while begin.elapsed() < TIME {
                let sent = Instant::now();
                rig.fill_one(shape)?;
                while !receiver.receive()? {
                    if sent.elapsed() > LOST {
                        return Err(io::Error::other("a frame does not come back"));
                    }
                    std::hint::spin_loop();
                }
                trips.push(sent.elapsed().as_nanos() as f64 / 1e3);
            }
            return trips.median().ok_or_else(|| io::Error::other("there was no trip"));
        }
    }
    Ok(0.0)
}

/// The mock driver.
struct Ring<'a> {
    driver: &'a mut Driver,
    rig: &'a Rig,
    shape: Shape,
    rx_place_of: Vec<u16>,
    /// Places whose frames are not under way.
    tx_free: Vec<u16>,
    tx_place_of: Vec<u16>,
    halts: bool,
}

impl Ring<'_> {
    fn post(&mut self, place: u16) {
        let head = self.driver.rx.add(&[Rig::receive_buffer(self.shape, place)]);
        self.rx_place_of[usize::from(head.expect("a place is a descriptor"))] = place;
    }

    fn show_posted(&mut self) -> io::Result<()> {
        if self.driver.rx.publish() { self.driver.rx_kick.write(1) } else { Ok(()) }
    }

    fn reap_sent(&mut self) {
        while let Some((head, _)) = self.driver.tx.reap() {
            self.tx_free.push(self.tx_place_of[usize::from(head)]);
        }
    }
}

impl Guest for Ring<'_> {
    fn receive(&mut self) -> io::Result<usize> {
        let mut came = 0;
        while came < MOST
            && let Some((head, _)) = self.driver.rx.reap()
        {
            let place = self.rx_place_of[usize::from(head)];
            self.post(place);
            came += 1;
        }
        if came > 0 {
            self.show_posted()?;
        }
        Ok(came)
    }

    fn send(&mut self, frames: usize) -> io::Result<usize> {
        self.reap_sent();
        let frames = frames.min(self.tx_free.len());
        for place in self.tx_free.drain(self.tx_free.len() - frames..).collect::<Vec<_>>() {
            let head = self.driver.tx.add(&Rig::frame_buffers(self.shape, place));
            self.tx_place_of[usize::from(head.expect("a place is a descriptor"))] = place;
        }
        if frames > 0 && self.driver.tx.publish() {
            self.driver.tx_kick.write(1)?;
        }
        Ok(frames)
    }

    fn halt(&mut self) -> io::Result<()> {
        let Driver { rx, tx, irq, .. } = &mut *self.driver;
        rx.want_interrupts(true);
        // As drivers do: when most of what is under way is sent.
        let under_way = RING - self.tx_free.len() as u16;
        if under_way > 0 && self.halts {
            tx.want_interrupt_after((under_way / 4 * 3).max(1));
        }
        if rx.pending() == 0 && tx.pending() <= under_way / 4 * 3 {
            wait_for(irq)?;
        }
        rx.want_interrupts(false);
        tx.want_interrupts(false);
        Ok(())
    }
}

/// Sleeps until the eventfd is written, and empties it.
fn wait_for(event: &EventFd) -> io::Result<()> {
    sys::sleep(event, None, Duration::from_secs(1))?;
    empty(event)
}

fn empty(event: &EventFd) -> io::Result<()> {
    match event.read() {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
}

fn by_nic(rig: &Rig, nic: &mut VirtioNet, shape: Shape, work: Work, idle: Idle) -> io::Result<f64> {
    let mut driver = start(rig, nic)?;
    sys::pin(driver.thread, rig.cores.driver)?;
    let mut ring = Ring {
        driver: &mut driver,
        rig,
        shape,
        rx_place_of: vec![0; RING.into()],
        tx_free: (0..RING).collect(),
        tx_place_of: vec![0; RING.into()],
        halts: work == Work::Sends,
    };
    (0..RING).for_each(|place| ring.post(place));
    ring.show_posted()?;
    let figure = play(ring.rig, shape, work, idle, &mut ring);
    nic.reset();
    drain(rig)?;
    figure
}

/// Takes what is left out of the tap's queue, for the next one.
fn drain(rig: &Rig) -> io::Result<()> {
    let mut frame = [0; 2048];
    loop {
        match rustix::io::read(&rig.taps[0], &mut frame) {
            Err(rustix::io::Errno::AGAIN) => return Ok(()),
            read => drop(read?),
        }
    }
}

/// What stands for the rings of the bare loop: counts, and whether somebody sleeps.
#[derive(Default)]
struct Counts {
    written: Apart,
    sent: Apart,
    came: Apart,
    taken: Apart,
    /// The loop wants a kick, and the guest an interrupt.
    kick_wanted: AtomicBool,
    interrupt_wanted: AtomicBool,
    over: AtomicBool,
}

struct Bare<'a> {
    counts: &'a Counts,
    kick: &'a EventFd,
    irq: &'a EventFd,
    headers: Vec<u8>,
    rig: &'a Rig,
    shape: Shape,
}

impl Guest for Bare<'_> {
    fn receive(&mut self) -> io::Result<usize> {
        let taken = self.counts.taken.0.load(Ordering::Relaxed);
        let came = self.counts.came.0.load(Ordering::Acquire) - taken;
        self.counts.taken.0.store(taken + came, Ordering::Release);
        Ok(came)
    }

    fn send(&mut self, frames: usize) -> io::Result<usize> {
        let at = self.counts.written.0.load(Ordering::Relaxed);
        let room = usize::from(RING) - (at - self.counts.sent.0.load(Ordering::Acquire));
        let frames = frames.min(room);
        for frame in at..at + frames {
            self.rig.write_headers(self.shape, &self.headers, (frame % usize::from(RING)) as u16)?;
        }
        self.counts.written.0.store(at + frames, Ordering::Release);
        fence(Ordering::SeqCst);
        if frames > 0 && self.counts.kick_wanted.swap(false, Ordering::Relaxed) {
            self.kick.write(1)?;
        }
        Ok(frames)
    }

    fn halt(&mut self) -> io::Result<()> {
        self.counts.interrupt_wanted.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let counts = self.counts;
        let came = counts.came.0.load(Ordering::Acquire) != counts.taken.0.load(Ordering::Relaxed);
        let room = usize::from(RING)
            - (counts.written.0.load(Ordering::Relaxed) - counts.sent.0.load(Ordering::Acquire));
        if !came && (room == usize::from(RING) || room < usize::from(RING) / 4 * 3) {
            wait_for(self.irq)?;
        }
        Ok(())
    }
}

fn by_bare_loop(rig: &Rig, shape: Shape, work: Work, idle: Idle) -> io::Result<f64> {
    rig.show_carrier()?;
    let (counts, kick, irq) = (Counts::default(), EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
    let figure = std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            sys::pin(sys::thread_number(), rig.cores.driver)?;
            let frames: Vec<_> = rig.frames(shape, true).collect();
            let (space, ..) = rig.space(shape, true);
            while !counts.over.load(Ordering::Relaxed) {
                bare_turn(rig, &counts, &frames, &space, &kick, &irq)?;
            }
            Ok::<_, io::Error>(())
        });
        let headers = Rig::headers(shape);
        let mut guest = Bare { counts: &counts, kick: &kick, irq: &irq, headers, rig, shape };
        let figure = play(rig, shape, work, idle, &mut guest);
        counts.over.store(true, Ordering::Relaxed);
        kick.write(1)?;
        mover.join().expect("the loop does not panic")?;
        figure
    });
    drain(rig)?;
    figure
}

/// Moves what there is, and sleeps.
fn bare_turn(
    rig: &Rig,
    counts: &Counts,
    frames: &[Iovecs<'_>],
    space: &Iovecs<'_>,
    kick: &EventFd,
    irq: &EventFd,
) -> io::Result<()> {
    let (mut sent, mut came) = (counts.sent.0.load(Ordering::Relaxed), counts.came.0.load(Ordering::Relaxed));
    let mut moved = false;
    let until = counts.written.0.load(Ordering::Acquire).min(sent + super::BURST);
    while sent < until {
        frames[sent % frames.len()].writev(rig.taps[0].as_fd())?;
        (sent, moved) = (sent + 1, true);
    }
    counts.sent.0.store(sent, Ordering::Release);
    let until = counts.taken.0.load(Ordering::Acquire) + usize::from(RING);
    for _ in 0..super::BURST {
        if came == until {
            break;
        }
        let place = came % usize::from(RING);
        match space.readv(place..place + 1, rig.taps[0].as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            read => drop(read?),
        }
        (came, moved) = (came + 1, true);
    }
    counts.came.0.store(came, Ordering::Release);
    fence(Ordering::SeqCst);
    if moved && counts.interrupt_wanted.swap(false, Ordering::Relaxed) {
        irq.write(1)?;
    }
    if moved {
        return Ok(());
    }
    counts.kick_wanted.store(true, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    if counts.written.0.load(Ordering::Acquire) != sent || counts.over.load(Ordering::Relaxed) {
        return Ok(());
    }
    let full = counts.taken.0.load(Ordering::Acquire) + usize::from(RING) == came;
    // A guest that makes room does not kick here: it is looked at again soon.
    match full {
        true => sys::sleep(kick, None, COMPUTING)?,
        false => sys::sleep(kick, Some(rig.taps[0].as_fd()), Duration::from_secs(1))?,
    }
    empty(kick)
}
