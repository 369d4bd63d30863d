//! What polling is good for: one frame at a time, with a thread that sleeps in between, with one that looks about, and with one that
//! finds out by itself.
//!
//! The driver waits for each frame before the next one, as a request waits for its answer, and asks for no interrupts: the time is
//! that of the kick, or of the host's event, and of the wake-up behind it. In a round trip the host's kernel answers at once.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use devices::virtio::VirtioDevice;
use devices::virtio::mock::Buffer;
use devices::virtio::net::VirtioNet;

use super::Moved;
use super::pair::{Driver, start, stuck};
use super::rig::{RING, Rig, Shape};
use crate::Options;
use crate::report::{Row, Samples, Table};
use crate::start::in_namespace;
use crate::sys::{self, Cpu};

/// As README names it: more than the pause between two frames here.
const POLL: Duration = Duration::from_micros(50);
const POLLS: [Option<Duration>; 3] = [None, Some(POLL), Some(Duration::ZERO)];
/// Frames of a round.
const FRAMES: u16 = 2000;

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Sent,
    Received,
    /// The host's kernel answers.
    RoundTrip,
}

/// How each is called, and whether its driver has another core than its mover.
const WAYS: [(&str, Way, bool); 6] = [
    ("send", Way::Sent, true),
    ("receive", Way::Received, true),
    ("round trip", Way::RoundTrip, true),
    ("send, one core for all", Way::Sent, false),
    ("receive, one core for all", Way::Received, false),
    ("round trip, one core for all", Way::RoundTrip, false),
];

pub(crate) fn run(options: &Options) -> Result<Table, String> {
    let rounds = options.rounds(9);
    let rows = in_namespace(|| measure(rounds, &options.only).map_err(|error| error.to_string()))??;
    let columns = ["poll=auto over poll=0", "poll=auto", "poll=50", "poll=0"].map(str::to_owned).to_vec();
    let title =
        format!("Poll: one frame of 64 bytes at a time, a tap, no guest, median of {rounds} (min-max)");
    let notes = vec![
        "a frame waits for the one before, as an answer for its request; nobody sleeps but the NIC's thread".to_owned(),
        "a round trip is a question for an Ethernet address, which the host's kernel answers".to_owned(),
        "one core for all: the driver and the thread share it, as a vCPU and the thread do where cores are few".to_owned(),
    ];
    Ok(Table { title, columns, rows, notes })
}

fn measure(rounds: usize, only: &str) -> io::Result<Vec<Row>> {
    let (rig, mut nic) = Rig::new(1)?;
    let shape = Shape::new(64);
    let mut rows = Vec::new();
    for (what, way, apart) in WAYS.into_iter().filter(|(what, ..)| what.contains(only)) {
        let mut times = [const { Samples::new() }; POLLS.len()];
        let (mut costs, mut calls) = (times.clone(), times.clone());
        rig.write_frames(shape)?;
        let len = match way {
            Way::RoundTrip => rig.write_questions()?,
            Way::Sent | Way::Received => shape.bytes() as u32,
        };
        // The first round warms up.
        for round in 0..=rounds {
            for at in 0..POLLS.len() {
                let at = (at + round) % POLLS.len();
                nic = nic.poll(POLLS[at]);
                let moved = one_by_one(&rig, &mut nic.device, (shape, len), way, apart)?;
                if round > 0 {
                    let frames = moved.frames as f64;
                    times[at].push(moved.wall.as_nanos() as f64 / 1e3 / frames);
                    costs[at].push(moved.cpu.as_nanos() as f64 / 1e3 / frames);
                    calls[at].push(moved.calls as f64 / frames);
                }
            }
        }
        let figures =
            [("", "us/frame", times), (", cpu", "us/frame", costs), (", system calls", "per frame", calls)];
        rows.extend(figures.map(|(of, unit, figures)| Row {
            what: format!("{what}{of}"),
            unit,
            cells: std::iter::once(figures[0].over(&figures[2])).chain(figures).collect(),
            goal: None,
        }));
    }
    Ok(rows)
}

/// Moves frames of `len` bytes with their header.
fn one_by_one(
    rig: &Rig,
    nic: &mut VirtioNet,
    (shape, len): (Shape, u32),
    way: Way,
    apart: bool,
) -> io::Result<Moved> {
    let mut driver = start(rig, nic)?;
    if !apart {
        sys::pin(driver.thread, rig.cores.driver)?;
    }
    let to_send = |place: u16| Buffer::readable(Rig::frame_buffers(shape, place)[0].addr, len);
    // To receive takes the room for a large frame.
    for place in 0..if way == Way::Sent { 0 } else { RING - 1 } {
        driver.rx.add(&[Rig::receive_buffer(shape, place)]);
    }
    if way == Way::RoundTrip {
        first_answer(&mut driver, to_send(0))?;
    }
    let counters = nic.counters().remove(0);
    let calls = || counters.calls.load(Ordering::Relaxed);
    let cpu = Cpu::Thread(driver.thread);
    let (begin, cpu_begin, calls_begin) = (Instant::now(), cpu.time()?, calls());
    for frame in 1..=FRAMES {
        let place = frame % RING;
        if way != Way::Sent {
            driver.rx.add(&[Rig::receive_buffer(shape, place)]);
            if driver.rx.publish() {
                driver.rx_kick.write(1)?;
            }
        }
        if way == Way::Received {
            rig.fill_one(shape)?;
        } else {
            send(&mut driver, to_send(place))?;
        }
        let end = if way == Way::Sent { &mut driver.tx } else { &mut driver.rx };
        while end.reap().is_none() {
            match apart {
                true => std::hint::spin_loop(),
                // As a guest without work halts, and leaves its processor to others.
                false => std::thread::yield_now(),
            }
            stuck(begin, "moves frames")?;
        }
        while way == Way::RoundTrip && driver.tx.reap().is_none() {
            stuck(begin, "moves frames")?;
        }
    }
    let (wall, cpu) = (begin.elapsed(), cpu.time()? - cpu_begin);
    let calls = calls() - calls_begin;
    nic.reset();
    Ok(Moved { frames: FRAMES.into(), wall, cpu, calls })
}

fn send(driver: &mut Driver, frame: Buffer) -> io::Result<()> {
    driver.tx.add(&[frame]);
    if driver.tx.publish() {
        driver.tx_kick.write(1)?;
    }
    Ok(())
}

/// Asks until there is an answer: a link that is just up loses what it is to send, until the kernel has taken note.
fn first_answer(driver: &mut Driver, question: Buffer) -> io::Result<()> {
    let begin = Instant::now();
    driver.rx.publish();
    driver.rx_kick.write(1)?;
    while driver.rx.reap().is_none() {
        send(driver, question)?;
        std::thread::sleep(Duration::from_millis(5));
        driver.tx.reap();
        stuck(begin, "brings answers")?;
    }
    // One of the others may have an answer as well.
    let mut quiet = Instant::now();
    while quiet.elapsed() < Duration::from_millis(20) {
        if driver.rx.reap().is_some() || driver.tx.reap().is_some() {
            quiet = Instant::now();
        }
    }
    Ok(())
}
