//! What `poll=` is good for: one frame at a time, with a thread that sleeps in between and with one that looks about.
//!
//! The driver waits for each frame before the next one, as a request waits for its answer, and asks for no interrupts: the time is
//! that of the kick, or of the host's event, and of the wake-up behind it.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use devices::virtio::VirtioDevice;
use devices::virtio::net::VirtioNet;

use super::Moved;
use super::pair::{start, stuck};
use super::rig::{RING, Rig, Shape};
use crate::Options;
use crate::report::{Row, Samples, Table};
use crate::start::in_namespace;
use crate::sys::{self, Cpu};

/// As README names it: more than the pause between two frames here.
const POLL: Duration = Duration::from_micros(50);
/// Frames of a round.
const FRAMES: u16 = 2000;

/// Which way a frame goes, and whether its driver has another core than its mover.
const WAYS: [(&str, bool, bool); 4] = [
    ("send", true, true),
    ("receive", false, true),
    ("send, one core for all", true, false),
    ("receive, one core for all", false, false),
];

pub(crate) fn run(options: &Options) -> Result<Table, String> {
    let rounds = options.rounds(9);
    let rows = in_namespace(|| measure(rounds, &options.only).map_err(|error| error.to_string()))??;
    let columns = ["poll=50 over poll=0", "poll=50", "poll=0"].map(str::to_owned).to_vec();
    let title =
        format!("Poll: one frame of 64 bytes at a time, a tap, no guest, median of {rounds} (min-max)");
    let notes = vec![
        "a frame waits for the one before, as an answer for its request; nobody sleeps but the NIC's thread".to_owned(),
        "one core for all: the driver and the thread share it, as a vCPU and the thread do where cores are few".to_owned(),
    ];
    Ok(Table { title, columns, rows, notes })
}

fn measure(rounds: usize, only: &str) -> io::Result<Vec<Row>> {
    let (rig, mut nic) = Rig::new(1)?;
    let shape = Shape::new(64);
    rig.write_frames(shape)?;
    let mut rows = Vec::new();
    for (what, sending, apart) in WAYS.into_iter().filter(|(what, ..)| what.contains(only)) {
        let (mut times, mut costs, mut calls) =
            ([const { Samples::new() }; 2], [const { Samples::new() }; 2], [const { Samples::new() }; 2]);
        // The first round warms up.
        for round in 0..=rounds {
            for at in 0..2 {
                let at = (at + round) % 2;
                nic = nic.poll([POLL, Duration::ZERO][at]);
                let moved = one_by_one(&rig, &mut nic.device, shape, sending, apart)?;
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
        rows.extend(figures.map(|(of, unit, [polling, sleeping])| Row {
            what: format!("{what}{of}"),
            unit,
            cells: vec![polling.over(&sleeping), polling, sleeping],
            goal: None,
        }));
    }
    Ok(rows)
}

fn one_by_one(rig: &Rig, nic: &mut VirtioNet, shape: Shape, sending: bool, apart: bool) -> io::Result<Moved> {
    let mut driver = start(rig, nic)?;
    if !apart {
        sys::pin(driver.thread, rig.cores.driver)?;
    }
    let (ring, kick) = match sending {
        true => (&mut driver.tx, &driver.tx_kick),
        false => (&mut driver.rx, &driver.rx_kick),
    };
    let buffer = |place: u16| match sending {
        true => Rig::frame_buffers(shape, place)[0],
        false => Rig::receive_buffer(shape, place),
    };
    // To receive takes the room for a large frame.
    let ahead = if sending { 0 } else { RING - 1 };
    for place in 0..ahead {
        ring.add(&[buffer(place)]);
    }
    let counters = nic.counters().remove(0);
    let calls = || counters.calls.load(Ordering::Relaxed);
    let cpu = Cpu::Thread(driver.thread);
    let (begin, cpu_begin, calls_begin) = (Instant::now(), cpu.time()?, calls());
    for frame in 0..FRAMES {
        ring.add(&[buffer(frame % RING)]);
        if ring.publish() {
            kick.write(1)?;
        }
        if !sending {
            rig.fill_one(shape)?;
        }
        while ring.reap().is_none() {
            match apart {
                true => std::hint::spin_loop(),
                // As a guest without work halts, and leaves its processor to others.
                false => std::thread::yield_now(),
            }
            stuck(begin, "moves frames")?;
        }
    }
    let (wall, cpu) = (begin.elapsed(), cpu.time()? - cpu_begin);
    let calls = calls() - calls_begin;
    nic.reset();
    Ok(Moved { frames: FRAMES.into(), wall, cpu, calls })
}
