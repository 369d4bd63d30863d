//! What the host has the guest do.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use harness::{Terminal, Vm};

use super::threads::Threads;
use crate::guest::Guest;
use crate::sys::LinkAsker;
use crate::vmm::Vmm;

pub(super) const TAP: &str = "bench0";
const MEMORY_MIB: u64 = 64;
/// From the start to the guest's word, with QEMU's firmware before it.
const BOOT: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_secs(10);
/// Questions that are counted, after some that warm up.
const TRIPS: usize = 2000;
const WARM_UP: usize = 200;
/// Frames of a burst to the guest, which the tap's queue holds; and how many bursts. The guest sends as many at once.
pub(super) const BURST: u32 = 500;
const BURSTS: u32 = 40;

/// What the guest is asked (see its `op`).
#[derive(Clone, Copy)]
pub(super) enum Op {
    /// Nothing: the frame is counted.
    Nothing,
    Echo,
    Send {
        count: u32,
        len: u32,
    },
}

/// A guest at the other end of a tap.
pub(super) struct Host {
    pub(super) vm: Vm,
    asker: LinkAsker,
    _terminal: Option<Terminal>,
}

impl Host {
    /// Makes the tap in this thread's network namespace, starts the guest on it, and asks until it answers.
    pub(super) fn start(vmm: &Vmm, kernel: &Path) -> Result<Self, String> {
        ip(&["tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"])?;
        // The kernel's own messages would be frames among ours.
        fs::write(format!("/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6"), "1").ok();
        ip(&["link", "set", TAP, "up"])?;
        let guest = Guest { kernel, initrd: kernel, memory_mib: MEMORY_MIB, tap: Some(TAP) };
        let (mut vm, terminal) = vmm.start(&mut vmm.command(&guest));
        if !vm.shows("ready", BOOT) {
            return Err(format!("the guest is not ready: {}{}", vm.messages(), vm.console()));
        }
        let asker = LinkAsker::new(TAP).map_err(|error| format!("a packet socket: {error}"))?;
        let host = Self { vm, asker, _terminal: terminal };
        host.first_answer()?;
        Ok(host)
    }

    /// A link that is just up loses frames until the kernel has taken note of it.
    fn first_answer(&self) -> Result<(), String> {
        let wait_for =
            |longest| self.asker.wait_for(longest).map_err(|error| format!("a packet socket: {error}"));
        let begin = Instant::now();
        wait_for(Duration::from_millis(200))?;
        while self.ask(Op::Echo, 64)?.is_none() {
            if begin.elapsed() > BOOT {
                return Err("the guest does not answer".to_owned());
            }
        }
        // Those before may be answered late.
        while self.answer()?.is_some() {}
        wait_for(SOON)
    }

    /// Half of the questions are answered in less: microseconds.
    pub(super) fn trips(&self, pause: Duration) -> Result<f64, String> {
        let mut took = Vec::with_capacity(WARM_UP + TRIPS);
        for _ in 0..WARM_UP + TRIPS {
            if !pause.is_zero() {
                thread::sleep(pause);
            }
            let begin = Instant::now();
            self.ask(Op::Echo, 64)?.ok_or("a question has no answer")?;
            took.push(begin.elapsed());
        }
        let took = &mut took[WARM_UP..];
        took.sort_unstable();
        Ok(took[TRIPS / 2].as_nanos() as f64 / 1e3)
    }

    /// Processor time of a frame that the guest receives: microseconds.
    pub(super) fn receives(&self, threads: &Threads, len: usize) -> Result<f64, String> {
        let burst = || {
            (0..BURST).try_for_each(|_| self.send(Op::Nothing, len))?;
            self.ask(Op::Echo, 64)?.ok_or_else(|| "the frames do not arrive".to_owned())
        };
        let first = burst()?;
        let before = threads.time();
        let mut last = first;
        for _ in 0..BURSTS {
            last = burst()?;
        }
        let spent = threads.time() - before;
        // The questions are frames, too.
        let (came, sent) = (last.wrapping_sub(first), BURSTS * (BURST + 1));
        if came != sent {
            return Err(format!("of {sent} frames {came} arrived"));
        }
        Ok(spent.as_nanos() as f64 / 1e3 / f64::from(sent))
    }

    /// Processor time of a frame that the guest sends: microseconds.
    pub(super) fn sends(&self, threads: &Threads, len: usize) -> Result<f64, String> {
        let count = BURST * BURSTS;
        let op = Op::Send { count, len: len as u32 };
        let before = threads.time();
        self.ask(op, 64)?.ok_or("the frames do not leave")?;
        let spent = threads.time() - before;
        Ok(spent.as_nanos() as f64 / 1e3 / f64::from(count))
    }

    pub(super) fn send(&self, op: Op, len: usize) -> Result<(), String> {
        let (number, of) = match op {
            Op::Nothing => (0, [0; 2]),
            Op::Echo => (1, [0; 2]),
            Op::Send { count, len } => (2, [count, len]),
        };
        let mut frame = [0; 1514];
        frame[..6].fill(0xff);
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        frame[12..14].copy_from_slice(&LinkAsker::KIND.to_be_bytes());
        frame[14] = number;
        frame[16..20].copy_from_slice(&of[0].to_le_bytes());
        frame[20..24].copy_from_slice(&of[1].to_le_bytes());
        self.asker.send(&frame[..len]).map_err(|error| format!("a frame to the guest: {error}"))
    }

    /// How many frames had come to the guest before this one; none if it does not answer in time.
    pub(super) fn ask(&self, op: Op, len: usize) -> Result<Option<u32>, String> {
        self.send(op, len)?;
        self.answer()
    }

    fn answer(&self) -> Result<Option<u32>, String> {
        let mut frame = [0; 1514];
        let came = self.asker.receive(&mut frame);
        let came = came.map_err(|error| format!("a frame of the guest's: {error}"))?;
        Ok(came.map(|_| u32::from_le_bytes([frame[16], frame[17], frame[18], frame[19]])))
    }
}

fn ip(words: &[&str]) -> Result<(), String> {
    let run = Command::new("ip").args(words).output();
    let run = run.map_err(|error| format!("cannot start ip: {error}"))?;
    match run.status.success() {
        true => Ok(()),
        false => Err(format!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&run.stderr))),
    }
}
