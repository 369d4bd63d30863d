//! The state of a namespace once it has settled, and what differs.

use std::time::{Duration, Instant};

use super::{records, run, state};

/// The state of the namespace without what changes by itself: timers.
fn timeless() -> String {
    let mut timer = false;
    let state = state();
    let words = state.split_inclusive([' ', '\n']).filter(|word| {
        let keep = !timer;
        timer = word.contains("_timer") || timer && word.trim().is_empty();
        keep
    });
    words.collect()
}

/// The state of the namespace once it stays as it is: the kernel is slow to say that a link has a carrier.
pub(crate) fn settled() -> String {
    let mut last = timeless();
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let now = timeless();
        if now == last {
            return now;
        }
        last = now;
    }
}

/// Fails with the lines that differ.
#[track_caller]
pub(crate) fn assert_as(before: &str, when: &str) {
    let now = settled();
    let missing =
        before.lines().filter(|line| !now.lines().any(|l| l == *line)).map(|line| format!("- {line}\n"));
    let new =
        now.lines().filter(|line| !before.lines().any(|l| l == *line)).map(|line| format!("+ {line}\n"));
    let differ: String = missing.chain(new).collect();
    assert!(now == before, "{when}: the host is not as before:\n{differ}");
    assert_eq!(records(), [""; 0], "{when}");
}

/// Has IPv6 addresses there at once, without asking whether somebody has them.
pub(crate) fn without_dad() {
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0");
}

/// Waits until the link has a carrier, and its IPv6 addresses are there: the kernel looks at carriers once a second.
pub(crate) fn until_up(link: &str) {
    let end = Instant::now() + Duration::from_secs(5);
    let is_up = || {
        let state = run(&format!("ip address show {link}"));
        state.contains("state UP") && !state.contains("tentative")
    };
    while !is_up() {
        assert!(Instant::now() < end, "{link} is not up");
        std::thread::sleep(Duration::from_millis(20));
    }
}
