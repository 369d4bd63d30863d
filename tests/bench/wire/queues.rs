//! Two queue pairs beside one: how much more goes out when another core moves frames too; and two bare loops beside one, which is
//! what the host's kernel has to give.
//!
//! The driver fills the rings, then sleeps until the last frame is used, so that it takes no core from the pairs: each has one of
//! its own. The clock starts with the kicks.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use devices::virtio::mock::{Buffer, MockRing};
use devices::virtio::net::VirtioNet;
use devices::virtio::queue::VirtQueue;
use devices::virtio::{Activation, ActiveQueue, Interrupt, VirtioDevice};
use net::HEADER_LEN;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::pair::nic_thread;
use super::rig::{RING, Rig, Shape, TABLE, TABLES};
use crate::Options;
use crate::report::{Goal, Row, Samples, Table};
use crate::start::in_namespace;
use crate::sys::{self, Cpu};

/// Bytes of the Ethernet frames; of smaller ones a ring is sent before the second core is awake.
const SIZES: [usize; 2] = [1514, 65000];
const PAIRS: u16 = 2;
/// Of a frame with its virtio header: the second byte of TCP's source port.
const SOURCE_PORT: usize = HEADER_LEN + 14 + 20 + 1;
/// How often the rings are filled in a round.
const BURSTS: usize = 40;
/// Where the rings are, two for each pair, then the control queue's, its command and the answer to it.
const RINGS: u64 = 0x1_0000;
const CONTROL_RING: u64 = 0x6_0000;
const COMMAND: u64 = 0x7_0000;

/// An eventfd for each queue, which sleeps who reads it.
struct Irqs(Vec<EventFd>);

impl Interrupt for Irqs {
    fn queue(&self, index: u16) -> io::Result<()> {
        self.0[usize::from(index)].write(1)
    }

    fn config(&self) -> io::Result<()> {
        Ok(())
    }

    /// Wakes whoever waits for a frame that will not go.
    fn needs_reset(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|irq| irq.write(1))
    }
}

/// The guest's side of a pair.
struct Pair {
    tx: MockRing,
    kick: EventFd,
    irq: EventFd,
    thread: Cpu,
}

/// What takes turns: two movers or one, of the NIC's or bare loops.
const TURNS: [(usize, bool); 4] = [(2, true), (1, true), (2, false), (1, false)];

pub(crate) fn run(options: &Options) -> Result<Table, String> {
    let rounds = options.rounds(9);
    let rows = in_namespace(|| measure(rounds, &options.only).map_err(|error| error.to_string()))??;
    let columns =
        ["two over one", "two pairs", "one pair", "bare: two over one", "two bare loops", "one bare loop"];
    let title = format!("Queues: two queue pairs and a tap, no guest, median of {rounds} (min-max)");
    let notes = vec![
        "each pair has a core, so the goal is one where two cores are free".to_owned(),
        "a ring of 1514 bytes lasts an eighth of a millisecond, and to wake the second core is part of it, of the bare \
         loops' too: those sleep, wake and send the same frames to the same queues of the tap"
            .to_owned(),
        "awake: so many frames in the movers' own processor time, as in a stream that lets none of them sleep".to_owned(),
    ];
    Ok(Table { title, columns: columns.map(str::to_owned).to_vec(), rows, notes })
}

fn measure(rounds: usize, only: &str) -> io::Result<Vec<Row>> {
    let (rig, mut nic) = Rig::new(PAIRS)?;
    let mut pairs = start(&rig, &mut nic.device)?;
    let mut rows = Vec::new();
    for size in SIZES {
        let what = format!("send {size} bytes");
        if !what.contains(only) {
            continue;
        }
        let shape = Shape::new(size);
        rig.write_frames(shape)?;
        let bare = Bare::all(PAIRS)?;
        let [rates, awake, costs] = thread::scope(|scope| {
            for (number, bare) in (0..).zip(&bare) {
                let rig = &rig;
                scope.spawn(move || bare.run(rig, shape, number));
            }
            let figures = take_turns(&rig, shape, rounds, &mut pairs, &bare);
            bare.iter().try_for_each(Bare::end)?;
            figures
        })?;
        let row = |what, unit, [two, one, bare_two, bare_one]: [Samples; 4], goal| {
            let (over, bare_over) = (two.over(&one), bare_two.over(&bare_one));
            Row { what, unit, cells: vec![over, two, one, bare_over, bare_two, bare_one], goal }
        };
        rows.push(row(what.clone(), "k frames/s", rates, Some(Goal::AtLeast(1.7))));
        rows.push(row(format!("{what}, awake"), "k frames/s", awake, Some(Goal::AtLeast(1.7))));
        rows.push(row(format!("{what}, cpu"), "ns/frame", costs, None));
    }
    nic.device.reset();
    Ok(rows)
}

/// For each of [`TURNS`] the rate, what it is while the movers are awake, and the processor time of a frame.
fn take_turns(
    rig: &Rig,
    shape: Shape,
    rounds: usize,
    pairs: &mut [Pair],
    bare: &[Bare],
) -> io::Result<[[Samples; 4]; 3]> {
    let mut figures = [const { [const { Samples::new() }; 4] }; 3];
    // The first round warms up.
    for round in 0..=rounds {
        for at in 0..TURNS.len() {
            let at = if round % 2 == 0 { at } else { TURNS.len() - 1 - at };
            let (movers, ours) = TURNS[at];
            let threads: Vec<_> = match ours {
                true => pairs[..movers].iter().map(|pair| pair.thread).collect(),
                false => bare[..movers].iter().map(Bare::thread).collect(),
            };
            let cpu = || threads.iter().map(|thread| thread.time()).sum::<io::Result<Duration>>();
            let begin = cpu()?;
            let mut wall = Duration::ZERO;
            for _ in 0..BURSTS {
                wall += match ours {
                    true => burst(rig, shape, &mut pairs[..movers])?,
                    false => bare_burst(rig, shape, &bare[..movers])?,
                };
            }
            let frames = (BURSTS * movers * usize::from(RING)) as f64;
            if round > 0 {
                figures[0][at].push(frames / wall.as_secs_f64() / 1e3);
                let cost = (cpu()? - begin).as_nanos() as f64 / frames;
                figures[1][at].push(movers as f64 / cost * 1e6);
                figures[2][at].push(cost);
            }
        }
    }
    Ok(figures)
}

/// A loop of `writev(2)` on a queue of the tap, which sleeps until it is told of a ring full of frames, and tells when they are
/// gone.
struct Bare {
    kick: EventFd,
    irq: EventFd,
    thread: AtomicU32,
    failed: AtomicBool,
    over: AtomicBool,
}

impl Bare {
    fn all(count: u16) -> io::Result<Vec<Self>> {
        let one = |_| {
            let (kick, irq) = (EventFd::new(0)?, EventFd::new(0)?);
            Ok(Self {
                kick,
                irq,
                thread: AtomicU32::default(),
                failed: AtomicBool::default(),
                over: AtomicBool::default(),
            })
        };
        (0..count).map(one).collect()
    }

    fn run(&self, rig: &Rig, shape: Shape, number: u16) {
        self.thread.store(sys::thread_number(), Ordering::Release);
        let frames: Vec<_> = rig.frames(shape, false).collect();
        let work = || -> io::Result<()> {
            sys::pin(sys::thread_number(), rig.cores.pairs[usize::from(number)])?;
            loop {
                self.kick.read()?;
                if self.over.load(Ordering::Acquire) {
                    return Ok(());
                }
                for frame in 0..RING {
                    frames[usize::from(place(number, frame))]
                        .writev(rig.taps[usize::from(number)].as_fd())?;
                }
                self.irq.write(1)?;
            }
        };
        if work().is_err() {
            self.failed.store(true, Ordering::Release);
            let _ = self.irq.write(1);
        }
    }

    /// Its thread, once there is one.
    fn thread(&self) -> Cpu {
        loop {
            match self.thread.load(Ordering::Acquire) {
                0 => thread::yield_now(),
                number => return Cpu::Thread(number),
            }
        }
    }

    fn end(&self) -> io::Result<()> {
        self.over.store(true, Ordering::Release);
        self.kick.write(1)
    }
}

/// Where the frame of a mover is: each has memory of its own.
fn place(mover: u16, frame: u16) -> u16 {
    let own = RING / PAIRS;
    own * mover + frame % own
}

/// Writes the headers of a mover's frame, of a flow of its own, as a guest's processors have.
fn write_headers(rig: &Rig, shape: Shape, mover: u16, frame: u16) -> io::Result<()> {
    let mut headers = Rig::headers(shape);
    headers[SOURCE_PORT] = mover as u8 + 1;
    rig.write_headers(shape, &headers, place(mover, frame))
}

/// What [`burst`] is for the pairs.
fn bare_burst(rig: &Rig, shape: Shape, movers: &[Bare]) -> io::Result<Duration> {
    rig.show_carrier()?;
    for number in 0..movers.len() as u16 {
        (0..RING).try_for_each(|frame| write_headers(rig, shape, number, frame))?;
    }
    let begin = Instant::now();
    movers.iter().rev().try_for_each(|bare| bare.kick.write(1))?;
    for bare in movers {
        bare.irq.read()?;
        if bare.failed.load(Ordering::Acquire) {
            return Err(io::Error::other("the tap refuses a frame of a bare loop"));
        }
    }
    Ok(begin.elapsed())
}

/// Fills the ring of each pair, kicks them all, and says how long they took until the last frame was gone.
fn burst(rig: &Rig, shape: Shape, pairs: &mut [Pair]) -> io::Result<Duration> {
    for (number, pair) in (0..).zip(&mut *pairs) {
        while pair.tx.reap().is_some() {}
        for frame in 0..RING {
            write_headers(rig, shape, number, frame)?;
            let place = place(number, frame);
            let buffers = Rig::frame_buffers(shape, place);
            let head = match buffers.len() {
                1 => pair.tx.add(&buffers),
                _ => pair.tx.add_indirect(TABLES + TABLE * u64::from(place), &buffers),
            };
            head.expect("the ring is empty");
        }
        pair.tx.want_interrupt_after(RING);
        pair.tx.publish();
    }
    let begin = Instant::now();
    // The first pair's core is the driver's too, and whom it wakes there may run at once.
    pairs.iter().rev().try_for_each(|pair| pair.kick.write(1))?;
    for pair in &*pairs {
        pair.irq.read()?;
        if pair.tx.pending() != RING {
            return Err(io::Error::other("the device asks for a reset"));
        }
    }
    Ok(begin.elapsed())
}

/// Starts the NIC with all of its pairs enabled.
fn start(rig: &Rig, nic: &mut VirtioNet) -> io::Result<Vec<Pair>> {
    let accepted = nic.features();
    let eventfds = || (0..=2 * PAIRS).map(|_| EventFd::new(0)).collect::<io::Result<Vec<_>>>();
    let (kicks, irqs) = (eventfds()?, eventfds()?);
    let (mut rings, mut queues) = (Vec::new(), Vec::new());
    for index in 0..=2 * PAIRS {
        let (base, size) =
            if index == 2 * PAIRS { (CONTROL_RING, 64) } else { (RINGS + 0x1_0000 * u64::from(index), RING) };
        let ring = MockRing::new(&rig.memory, base, size, true);
        let active = VirtQueue::new(ring.setup(), accepted, &rig.memory).map_err(io::Error::other)?;
        let kick = Arc::new(kicks[usize::from(index)].try_clone()?);
        queues.push(ActiveQueue { index, ring: active, kick });
        rings.push(ring);
    }
    let copies = irqs.iter().map(EventFd::try_clone).collect::<io::Result<_>>()?;
    let interrupt = Arc::new(Irqs(copies));
    nic.activate(Activation { memory: rig.memory.clone(), accepted, interrupt, queues })?;

    // VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
    let [low, high] = PAIRS.to_le_bytes();
    rig.memory.write_slice(&[4, 0, low, high, 0xff], GuestAddress(COMMAND)).map_err(io::Error::other)?;
    let mut control = rings.pop().expect("the control queue");
    control.add(&[Buffer::readable(COMMAND, 4), Buffer::writable(COMMAND + 4, 1)]).expect("an empty ring");
    control.publish();
    kicks[usize::from(2 * PAIRS)].write(1)?;
    irqs[usize::from(2 * PAIRS)].read()?;
    let ack: u8 = rig.memory.read_obj(GuestAddress(COMMAND + 4)).map_err(io::Error::other)?;
    if ack != 0 {
        return Err(io::Error::other("the device does not enable its pairs"));
    }
    let sends = rings.into_iter().zip(kicks.into_iter().zip(irqs)).skip(1).step_by(2);
    let pair = |(number, (tx, (kick, irq)))| {
        let thread = Cpu::Thread(nic_thread(&format!("wire-{number}"))?);
        Ok(Pair { tx, kick, irq, thread })
    };
    sends.enumerate().map(pair).collect()
}
