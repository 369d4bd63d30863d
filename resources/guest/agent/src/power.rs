//! The power button: an input device of the kernel's `button` driver.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

/// `KEY_POWER` and the type `EV_KEY` of `linux/input-event-codes.h`.
const KEY_POWER: u16 = 116;
const EV_KEY: u16 = 1;
/// `struct input_event` on x86-64: a time of 16 bytes, the type, the code, the value.
const EVENT_LEN: usize = 24;

/// The guest's input devices, of which one is the button: wirevm's guests have no keyboard.
pub(crate) fn buttons() -> Vec<OwnedFd> {
    let open = |number| {
        let path = format!("/dev/input/event{number}");
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()
    };
    (0..8).filter_map(open).map(|file: File| file.into()).collect()
}

/// Whether what this device said since it was asked is that the button was pressed.
pub(crate) fn is_pressed(button: &OwnedFd) -> bool {
    let mut events = [0; 16 * EVENT_LEN];
    let len = rustix::io::read(button, &mut events).unwrap_or(0);
    events[..len].chunks_exact(EVENT_LEN).any(pressed)
}

fn pressed(event: &[u8]) -> bool {
    let word = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
    word(16) == EV_KEY && word(18) == KEY_POWER && event[20..24] == 1i32.to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_button_s_being_pressed_counts() {
        let event = |kind: u16, code: u16, value: i32| {
            [&[9; 16][..], &kind.to_ne_bytes(), &code.to_ne_bytes(), &value.to_ne_bytes()].concat()
        };
        assert!(pressed(&event(1, 116, 1)));
        for (kind, code, value) in [(1, 116, 0), (1, 30, 1), (0, 0, 0), (4, 116, 1)] {
            assert!(!pressed(&event(kind, code, value)));
        }
    }
}
