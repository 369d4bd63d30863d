//! `poll=auto|MICROSECONDS`

use std::time::Duration;

use super::keys::number;

/// The longest time, in microseconds: compared with it, a sleep costs nothing.
const MOST: u32 = 10_000;

/// None for `auto`.
pub(super) fn parse(text: &str) -> Result<Option<Duration>, &'static str> {
    if text == "auto" {
        return Ok(None);
    }
    let micros = number(text).filter(|micros| *micros <= MOST);
    micros
        .map(|micros: u32| Some(Duration::from_micros(micros.into())))
        .ok_or("it is auto, or a number of microseconds, 10000 at most: 50, or 0 to sleep at once")
}
