//! Two queue pairs beside one: how much more goes out when another core moves frames too.
//!
//! The driver fills the rings, then sleeps until the last frame is used, so that it takes no core from the pairs: each has one of
//! its own. The clock starts with the kicks.

use std::io;
use std::sync::Arc;
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
use crate::sys::Cpu;

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

pub(crate) fn run(options: &Options) -> Result<Table, String> {
    let rounds = options.rounds(9);
    let rows = in_namespace(|| measure(rounds, &options.only).map_err(|error| error.to_string()))??;
    let columns = ["two over one", "two pairs", "one pair"].map(str::to_owned).to_vec();
    let title = format!("Queues: two queue pairs and a tap, no guest, median of {rounds} (min-max)");
    let notes = vec![
        "each pair has a core, so the goal is one where two cores are free".to_owned(),
        "a ring of 1514 bytes lasts an eighth of a millisecond, and to wake the second core is part of it"
            .to_owned(),
    ];
    Ok(Table { title, columns, rows, notes })
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
        let mut rates = [const { Samples::new() }; 2];
        let mut costs = rates.clone();
        // The first round warms up.
        for round in 0..=rounds {
            for at in 0..2 {
                // Two, then one, and the other way round.
                let at = (at + round) % 2;
                let pairs = &mut pairs[..2 - at];
                let cpu = |pairs: &[Pair]| {
                    pairs.iter().map(|pair| pair.thread.time()).sum::<io::Result<Duration>>()
                };
                let begin = cpu(pairs)?;
                let wall: Duration = (0..BURSTS).map(|_| burst(&rig, shape, pairs)).sum::<io::Result<_>>()?;
                let frames = (BURSTS * pairs.len() * usize::from(RING)) as f64;
                if round > 0 {
                    rates[at].push(frames / wall.as_secs_f64() / 1e3);
                    costs[at].push((cpu(pairs)? - begin).as_nanos() as f64 / frames);
                }
            }
        }
        let row = |what, unit, figures: &[Samples; 2], goal| Row {
            what,
            unit,
            cells: std::iter::once(figures[0].over(&figures[1])).chain(figures.iter().cloned()).collect(),
            goal,
        };
        rows.push(row(what.clone(), "k frames/s", &rates, Some(Goal::AtLeast(1.7))));
        rows.push(row(format!("{what}, cpu"), "ns/frame", &costs, None));
    }
    nic.device.reset();
    Ok(rows)
}

/// Fills the ring of each pair, kicks them all, and says how long they took until the last frame was gone.
fn burst(rig: &Rig, shape: Shape, pairs: &mut [Pair]) -> io::Result<Duration> {
    for (number, pair) in pairs.iter_mut().enumerate() {
        // A flow of its own, as a guest's processors have, in memory of its own.
        let mut headers = Rig::headers(shape);
        headers[SOURCE_PORT] = number as u8 + 1;
        while pair.tx.reap().is_some() {}
        for frame in 0..RING {
            let own = RING / PAIRS;
            let place = own * number as u16 + frame % own;
            rig.write_headers(shape, &headers, place)?;
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
        queues.push(ActiveQueue { index, ring: active, kick: kicks[usize::from(index)].try_clone()? });
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
