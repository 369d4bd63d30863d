//! Part 2: the wire alone. A mock driver, the NIC's own thread and a real tap, against a bare loop that makes the same
//! system calls on the same tap and knows nothing of rings.
//!
//! The one that moves the frames has a core, and what stands for the guest has another. What leaves through the tap is
//! addressed to nobody, so the host's kernel drops it at once. Its headers are written by the driver's core just before, for
//! the bare loop as well: no frame of a guest is in the mover's own cache. What comes in is in the tap's queue before the clock starts,
//! so that no sender is waited for: a drain.
//!
//! On a busy machine frames per second mean little, and the mover's own processor time for a frame still does.

pub(crate) mod core;
mod pair;
pub(crate) mod poll;
pub(crate) mod queues;
mod rig;

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use devices::virtio::net::VirtioNet;
use vmm_sys_util::eventfd::EventFd;

use crate::Options;
use crate::report::{Goal, Row, Samples, Table};
use crate::start::in_namespace;
use crate::sys::{self, Cpu};
use rig::{RING, Rig, Shape};

/// Ethernet frames without their checksum: the least, the most at the usual MTU, and one that TCP segmentation allows.
const SIZES: [usize; 3] = [64, 1514, 65000];
/// The same of UDP, so many frames of one flow behind each other; what that is called, and what it may cost at most, of the bare loop,
/// which writes each by itself.
const TRAINS: [(usize, usize, &str, Option<f64>); 5] = [
    (64, 1, " of UDP, no two of a flow", Some(1.05)),
    (64, 8, " of UDP, in eights", Some(0.3)),
    (64, 32, " of UDP, in 32s", Some(0.15)),
    (1514, 8, " of UDP, in eights", None),
    (1514, 32, " of UDP, in 32s", None),
];
/// How long frames are sent in a round.
const SENDING: Duration = Duration::from_millis(150);
/// How often the tap's queue is filled and drained in a round.
const DRAINS: usize = 20;

/// Who moves frames between guest memory and the tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mover {
    /// The NIC's thread.
    Pair,
    /// A loop of `writev(2)` or `readv(2)` with the buffers that the NIC would have.
    Bare,
    /// The same, each frame in one buffer.
    OneBuffer,
}

const MOVERS: [Mover; 3] = [Mover::Pair, Mover::Bare, Mover::OneBuffer];

/// A word in cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Apart(AtomicUsize);

/// What moving took.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    frames: u64,
    /// By the clock on the wall.
    wall: Duration,
    /// On a processor, of the thread that moved them.
    cpu: Duration,
    /// System calls of that thread.
    calls: u64,
}

impl std::ops::AddAssign for Moved {
    fn add_assign(&mut self, more: Self) {
        self.frames += more.frames;
        self.wall += more.wall;
        self.cpu += more.cpu;
        self.calls += more.calls;
    }
}

pub(crate) fn run(options: &Options) -> Result<Table, String> {
    let rounds = options.rounds(9);
    let rows = in_namespace(|| measure(rounds, &options.only).map_err(|error| error.to_string()))??;
    let columns = ["NIC over bare loop", "NIC's thread", "bare loop", "bare loop, one buffer"];
    let title = format!("Wire: one queue pair and a tap, no guest, median of {rounds} (min-max)");
    let notes = vec![
        "the bare loop has the NIC's buffers, and readv or writev for each frame (the NIC writes one in one buffer by write)".to_owned(),
        "system calls: of the NIC's thread as it counts them, those by which it waits among them".to_owned(),
        "cpu: processor time of the thread that moves the frames, which other work on the machine does not add to".to_owned(),
    ];
    Ok(Table { title, columns: columns.map(str::to_owned).to_vec(), rows, notes })
}

fn measure(rounds: usize, only: &str) -> io::Result<Vec<Row>> {
    let (rig, mut nic) = Rig::new(1)?;
    let nic = &mut nic.device;
    let mut rows = Vec::new();
    for sending in [true, false] {
        let trains = TRAINS.iter().filter(|_| sending);
        let plain = SIZES.map(|size| (Shape::new(size), "", Some(1.05)));
        let trains = trains.map(|&(size, train, what, goal)| (Shape::of_trains(size, train), what, goal));
        for (shape, what, goal) in plain.into_iter().chain(trains) {
            let name = format!("{} {} bytes{what}", if sending { "send" } else { "receive" }, shape.frame);
            if !name.contains(only) {
                continue;
            }
            rig.write_frames(shape)?;
            let mut rates = [const { Samples::new() }; MOVERS.len()];
            let (mut costs, mut calls) = (rates.clone(), rates.clone());
            // The first round warms up.
            for round in 0..=rounds {
                for at in 0..MOVERS.len() {
                    let at = if round % 2 == 0 { at } else { MOVERS.len() - 1 - at };
                    let moved = match sending {
                        true => send(&rig, nic, MOVERS[at], shape)?,
                        false => receive(&rig, nic, MOVERS[at], shape)?,
                    };
                    if round > 0 {
                        rates[at].push(moved.frames as f64 / moved.wall.as_secs_f64() / 1e3);
                        costs[at].push(moved.cpu.as_nanos() as f64 / moved.frames as f64);
                        calls[at].push(moved.calls as f64 / moved.frames as f64);
                    }
                }
            }
            let row = |what, unit, figures: &[Samples; MOVERS.len()], goal| Row {
                what,
                unit,
                cells: std::iter::once(figures[0].over(&figures[1])).chain(figures.iter().cloned()).collect(),
                goal,
            };
            rows.push(row(
                name.clone(),
                "k frames/s",
                &rates,
                (shape.train <= 1).then_some(Goal::AtLeast(0.9)),
            ));
            rows.push(row(format!("{name}, cpu"), "ns/frame", &costs, goal.map(Goal::Under)));
            rows.push(row(format!("{name}, system calls"), "per frame", &calls, None));
        }
    }
    Ok(rows)
}

fn send(rig: &Rig, nic: &mut VirtioNet, mover: Mover, shape: Shape) -> io::Result<Moved> {
    match mover {
        Mover::Pair => pair::send(rig, nic, shape, SENDING),
        Mover::Bare => bare_send(rig, shape, false),
        Mover::OneBuffer => bare_send(rig, shape, true),
    }
}

fn receive(rig: &Rig, nic: &mut VirtioNet, mover: Mover, shape: Shape) -> io::Result<Moved> {
    match mover {
        Mover::Pair => pair::receive(rig, nic, shape, DRAINS),
        Mover::Bare => bare_receive(rig, shape, false),
        Mover::OneBuffer => bare_receive(rig, shape, true),
    }
}

/// Runs `body` on a thread with the mover's core.
fn on_mover_core<T: Send>(rig: &Rig, body: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            sys::pin(sys::thread_number(), rig.cores.mover)?;
            body()
        });
        thread.join().expect("the loop does not panic")
    })
}

/// Frames that the bare loop is told of, and tells of, at once: the NIC's burst.
const BURST: usize = 64;

fn bare_send(rig: &Rig, shape: Shape, one_buffer: bool) -> io::Result<Moved> {
    rig.show_carrier()?;
    // How many frames the driver's core has written, and how many are sent: all that stands for the rings.
    let (written, sent, over) = (Apart::default(), Apart::default(), AtomicBool::new(false));
    let mover = || {
        let frames: Vec<_> = rig.frames(shape, one_buffer).collect();
        let cpu = Cpu::Thread(sys::thread_number());
        let (cpu_begin, mut at, mut idle) = (cpu.time()?, 0, Duration::ZERO);
        while !over.load(Ordering::Relaxed) {
            let mut known = written.0.load(Ordering::Acquire);
            if known == at {
                // To wait is no work, and the NIC's thread sleeps then.
                let begin = cpu.time()?;
                while known == at && !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                    known = written.0.load(Ordering::Acquire);
                }
                idle += cpu.time()? - begin;
            }
            let until = known.min(at + BURST);
            for frame in at..until {
                frames[frame % frames.len()].writev(rig.taps[0].as_fd())?;
            }
            at = until;
            sent.0.store(at, Ordering::Release);
        }
        // It waits by looking.
        Ok((at, cpu.time()? - cpu_begin - idle))
    };
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| on_mover_core(rig, mover));
        let headers = Rig::headers(shape);
        let (begin, mut at) = (Instant::now(), 0);
        while begin.elapsed() < SENDING && !mover.is_finished() {
            let until = sent.0.load(Ordering::Acquire) + usize::from(RING);
            for frame in at..until {
                rig.write_headers(shape, &headers, (frame % usize::from(RING)) as u16)?;
            }
            at = until;
            written.0.store(at, Ordering::Release);
        }
        over.store(true, Ordering::Relaxed);
        let wall = begin.elapsed();
        let (frames, cpu) = mover.join().expect("the loop does not panic")?;
        Ok(Moved { frames: frames as u64, wall, cpu, calls: frames as u64 })
    })
}

fn bare_receive(rig: &Rig, shape: Shape, one_buffer: bool) -> io::Result<Moved> {
    rig.show_carrier()?;
    let (kick, drained) = (EventFd::new(0)?, AtomicUsize::new(0));
    let drain = || {
        let (space, window, step) = rig.space(shape, one_buffer);
        let cpu = Cpu::Thread(sys::thread_number());
        let (mut at, mut spent) = (0, Duration::ZERO);
        for drain in 1..=DRAINS {
            let begin = cpu.time()?;
            // As the NIC's thread, it sleeps until it is told.
            kick.read()?;
            for _ in 0..shape.queue {
                space.readv(at..at + window, rig.taps[0].as_fd())?;
                at = (at + step) % (space.len() - window);
            }
            spent += cpu.time()? - begin;
            drained.store(drain, Ordering::Release);
        }
        Ok(spent)
    };
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| on_mover_core(rig, drain));
        let mut wall = Duration::ZERO;
        for drain in 1..=DRAINS {
            rig.fill_tap(shape)?;
            let begin = Instant::now();
            kick.write(1)?;
            while drained.load(Ordering::Acquire) != drain && !mover.is_finished() {
                std::hint::spin_loop();
            }
            wall += begin.elapsed();
        }
        let cpu = mover.join().expect("the loop does not panic")?;
        let frames = (DRAINS * shape.queue) as u64;
        // It sleeps before each drain.
        Ok(Moved { frames, wall, cpu, calls: frames + DRAINS as u64 })
    })
}
