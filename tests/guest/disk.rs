//! A program for a guest that keeps a block device busy and counts: `disk DEVICE WHAT SECONDS`, and it prints how many there were a second.
//!
//! WHAT is `random-read`, `random-write` (4 KiB each), `read`, `write` (1 MiB each, one after the other) or `flush` (4 KiB written, and a
//! flush), each past the guest's page cache; `:N` after it has N of them in flight. What was read or written is told by its number alone.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[derive(Clone, Copy)]
struct Kind {
    writes: bool,
    flushes: bool,
    random: bool,
    len: usize,
}

/// As direct transfers want it, whatever the block's size.
#[repr(align(4096))]
struct Buffer([u8; 1 << 20]);

fn main() {
    let args: Vec<_> = std::env::args().collect();
    let [_, device, what, seconds] = &args[..] else { panic!("DEVICE WHAT SECONDS") };
    let (what, deep) = what.split_once(':').unwrap_or((what, "1"));
    let (deep, seconds) = (deep.parse::<u64>().expect("a number"), seconds.parse().expect("seconds"));
    let small = Kind { writes: false, flushes: false, random: true, len: 4096 };
    let large = Kind { random: false, len: 1 << 20, ..small };
    let kind = match what {
        "random-read" => small,
        "random-write" => Kind { writes: true, ..small },
        "read" => large,
        "write" => Kind { writes: true, ..large },
        "flush" => Kind { writes: true, flushes: true, ..small },
        other => panic!("{other}"),
    };
    let done = AtomicU64::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..deep {
            let done = &done;
            scope.spawn(move || work(device, kind, number, deep, began + Duration::from_secs(seconds), done));
        }
    });
    println!("{:.1}", done.into_inner() as f64 / began.elapsed().as_secs_f64());
}

/// One of `all` that work at once, each on places of its own where they lie one after the other.
fn work(device: &str, kind: Kind, number: u64, all: u64, until: Instant, done: &AtomicU64) {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(kind.writes).custom_flags(libc::O_DIRECT).open(device);
    let file = file.expect("a block device");
    let len = kind.len as u64;
    let size = std::fs::File::open(device)
        .and_then(|mut file| std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)))
        .expect("a size");
    let places = size / len;
    let mut buffer = Box::new(Buffer([number as u8; 1 << 20]));
    let mut chance = 0x9e37_79b9_7f4a_7c15 ^ (number + 1);
    let mut at = number;
    while Instant::now() < until {
        let place = if kind.random {
            // xorshift64: spread well enough for places.
            chance ^= chance << 13;
            chance ^= chance >> 7;
            chance ^= chance << 17;
            chance % places
        } else {
            at % places
        };
        let bytes = &mut buffer.0[..kind.len];
        match kind.writes {
            true => file.write_all_at(bytes, place * len).expect("a write"),
            false => file.read_exact_at(bytes, place * len).expect("a read"),
        }
        if kind.flushes {
            file.sync_data().expect("a flush");
        }
        at += all;
        done.fetch_add(1, Ordering::Relaxed);
    }
}
