//! The clock of a PC (MC146818A, ports 0x70 and 0x71): the host's time in UTC, read-only, for guests without a clock of the hypervisor's.
//!
//! It is as real as a guest needs that sets its own clock by it: the time in BCD and 24 hours, the century, and an update that
//! begins and ends each second, so that who waits for either sees it. There are no alarms, no periodic interrupts, and no memory.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use crate::{BusDevice, low_byte};

/// The clock. What is written to its registers is ignored, but for the index.
pub struct Rtc {
    /// The time since 1970, UTC.
    now: Box<dyn Fn() -> Duration + Send + Sync>,
    /// Which register the data port reads.
    index: AtomicU8,
}

/// The registers (MC146818A datasheet, address map), and where PCs have the century.
const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const A: u8 = 0x0a;
const B: u8 = 0x0b;
const D: u8 = 0x0d;

/// In A: an update is in progress, or begins within [`AHEAD`].
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// In A: the time base is 32.768 kHz, and the rate the usual one.
const DIVIDER: u8 = 0x26;
/// In B: hours are 0 to 23.
const HOURS_24: u8 = 1 << 1;
/// In D: the battery is good.
const VALID: u8 = 1 << 7;
/// The time that a guest has left once it has seen that no update is in progress (t_BUC).
const AHEAD: Duration = Duration::from_micros(244);

impl Rtc {
    /// Its first port.
    pub const PORT: u64 = 0x70;
    /// How many ports it spans.
    pub const LEN: u64 = 2;
    /// The register of the century, as the FADT names it.
    pub const CENTURY: u8 = 0x32;
    const INDEX: u64 = 0;
    const DATA: u64 = 1;

    /// A clock that shows the host's.
    #[allow(clippy::new_without_default)] // what it shows is no default
    pub fn new() -> Self {
        // A host in the past of 1970 shows 1970.
        Self::of(Box::new(|| SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()))
    }

    fn of(now: Box<dyn Fn() -> Duration + Send + Sync>) -> Self {
        Self { now, index: AtomicU8::new(0) }
    }

    fn register(&self, index: u8) -> u8 {
        let now = (self.now)();
        let (days, second) = (now.as_secs() / 86_400, now.as_secs() % 86_400);
        let (year, month, day) = date(days);
        match index {
            SECONDS => bcd(second % 60),
            MINUTES => bcd(second / 60 % 60),
            HOURS => bcd(second / 3600),
            // 1970 began on a Thursday; Sunday is 1.
            WEEKDAY => bcd((days + 4) % 7 + 1),
            DAY => bcd(day),
            MONTH => bcd(month),
            YEAR => bcd(year % 100),
            Self::CENTURY => bcd(year / 100 % 100),
            A if now.subsec_nanos() + AHEAD.subsec_nanos() >= 1_000_000_000 => UPDATE_IN_PROGRESS | DIVIDER,
            A => DIVIDER,
            B => HOURS_24,
            D => VALID,
            _ => 0,
        }
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (Self::DATA, [byte, ..]) = (offset, data) {
            *byte = self.register(self.index.load(Ordering::Relaxed));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Self::INDEX, Some(index)) = (offset, low_byte(data)) {
            // The highest bit of the port masks the NMI.
            self.index.store(index & 0x7f, Ordering::Relaxed);
        }
    }
}

/// A number below 100 in binary-coded decimal.
fn bcd(number: u64) -> u8 {
    (((number / 10) << 4) | (number % 10)) as u8
}

/// Year, month and day (from 1) of the day that is so many after 1970-01-01, in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01: the leap day is the last of its year, and the months of 31 and 30 days have one pattern.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = (era * 400 + year, if month < 10 { month + 3 } else { month - 9 });
    (if month <= 2 { year + 1 } else { year }, month, day)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;

    fn read(rtc: &Rtc, index: u8) -> u8 {
        rtc.write(0, &[index]);
        let mut data = [0xff];
        rtc.read(1, &mut data);
        data[0]
    }

    fn at(seconds: u64, nanos: u32) -> Rtc {
        Rtc::of(Box::new(move || Duration::new(seconds, nanos)))
    }

    #[test]
    fn the_time_is_the_hosts_in_bcd_and_utc() {
        for (seconds, century, year, month, day, weekday, hour, minute, second) in [
            (0, 0x19, 0x70, 0x01, 0x01, 5, 0x00, 0x00, 0x00),
            (951_782_399, 0x20, 0x00, 0x02, 0x28, 2, 0x23, 0x59, 0x59),
            (951_782_400, 0x20, 0x00, 0x02, 0x29, 3, 0x00, 0x00, 0x00),
            (951_868_800, 0x20, 0x00, 0x03, 0x01, 4, 0x00, 0x00, 0x00),
            (1_735_689_599, 0x20, 0x24, 0x12, 0x31, 3, 0x23, 0x59, 0x59),
            (1_764_211_451, 0x20, 0x25, 0x11, 0x27, 5, 0x02, 0x44, 0x11),
            (4_107_542_400, 0x21, 0x00, 0x03, 0x01, 2, 0x00, 0x00, 0x00),
        ] {
            let rtc = at(seconds, 5);
            let registers = [Rtc::CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS];
            let expected = [century, year, month, day, weekday, hour, minute, second];
            assert_eq!(registers.map(|index| read(&rtc, index)), expected, "{seconds}");
        }
        let before = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() / 86_400;
        let day = read(&Rtc::new(), DAY);
        let after = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() / 86_400;
        assert!([before, after].iter().any(|&days| bcd(date(days).2) == day), "{day:#x}");
    }

    #[test]
    fn an_update_begins_and_ends_each_second() {
        let nanos = Arc::new(AtomicU64::new(0));
        let now = Arc::clone(&nanos);
        let rtc = Rtc::of(Box::new(move || Duration::from_nanos(now.load(Ordering::Relaxed))));
        for (at, in_progress) in
            [(0, 0), (999_755_999, 0), (999_756_000, 0x80), (999_999_999, 0x80), (1_000_000_000, 0)]
        {
            nanos.store(at, Ordering::Relaxed);
            assert_eq!(read(&rtc, A), DIVIDER | in_progress, "at {at} ns");
        }
    }

    #[test]
    fn it_says_how_to_read_it_and_takes_nothing() {
        let rtc = at(0, 0);
        assert_eq!([B, 0x0c, D, 0x0f, 0x40].map(|index| read(&rtc, index)), [0x02, 0, 0x80, 0, 0]);
        // With the NMI masked, and in one write of 16 bits, of which the data goes nowhere.
        assert_eq!(read(&rtc, 0x80 | D), 0x80);
        rtc.write(0, &[YEAR, 0x42]);
        rtc.write(1, &[0x42]);
        let mut data = [0xff; 2];
        rtc.read(1, &mut data);
        assert_eq!(data, [0x70, 0xff]);
        rtc.read(0, &mut data);
        assert_eq!(data, [0x70, 0xff], "the index is not to be read");
    }
}
