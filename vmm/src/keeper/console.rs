//! What the main thread does while the guest runs: keys to the guest's serial port, signals, and the wait for the end.

use std::collections::VecDeque;
use std::io;

use devices::reset::AcpiPower;
use devices::serial::Serial;
use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::EventFd;

use crate::error::Error;
use crate::fd;
use crate::keeper::signals;
use crate::keeper::terminal::{self, Escape, Key, Raw};
use crate::machine::ending::{Ending, Outcome};
use crate::report;

/// Attends to console and signals until the run is over.
pub(crate) fn attend(
    serial: &Serial,
    power: &AcpiPower,
    ending: &Ending,
    signals: &EventFd,
    stdio: bool,
) -> Result<(), Error> {
    let terminal = |source| Error::Host { what: "take over the terminal", source };
    let resumed =
        signals::listen_for_resume().map_err(|source| Error::Host { what: "listen to signals", source })?;
    let mut raw = if stdio { Raw::enter().map_err(terminal)? } else { None };
    // Without the terminal's foreground its input is not ours to read.
    let input = stdio && (raw.is_some() || !rustix::termios::isatty(io::stdin()));
    let mut keyboard = Keyboard {
        serial,
        power,
        ending,
        signals,
        escape: raw.is_some().then(Escape::default),
        open: input,
        waiting: VecDeque::new(),
    };

    while ending.outcome().is_none() {
        let stdin = io::stdin();
        let wait_for_keys = keyboard.wants_more();
        let mut fds = vec![
            PollFd::from_borrowed_fd(fd::of(ending.event()), PollFlags::IN),
            PollFd::from_borrowed_fd(fd::of(signals), PollFlags::IN),
            PollFd::from_borrowed_fd(fd::of(serial.space_event()), PollFlags::IN),
            PollFd::from_borrowed_fd(fd::of(resumed), PollFlags::IN),
        ];
        if wait_for_keys {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result.map_err(|e| Error::Host { what: "wait for events", source: e.into() })?,
        };
        let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[1] {
            ending.end(Outcome::Quit);
            log::info!("ended by {}", signals::last().unwrap_or("a signal"));
        }
        if ready[2] {
            let _ = serial.space_event().read();
            keyboard.give();
        }
        if ready[3] {
            let _ = resumed.read();
            match &raw {
                _ if !stdio => {}
                // To read in the background would stop us.
                Some(raw) => keyboard.open = raw.resume().map_err(terminal)?,
                // It may have been started there.
                None => {
                    raw = Raw::enter().map_err(terminal)?;
                    keyboard.open |= raw.is_some();
                    keyboard.escape = raw.is_some().then(Escape::default);
                }
            }
        }
        if ready.get(4) == Some(&true) && keyboard.open {
            keyboard.read();
        }
    }
    Ok(())
}

/// Standard input on its way to the guest.
struct Keyboard<'a> {
    serial: &'a Serial,
    power: &'a AcpiPower,
    ending: &'a Ending,
    signals: &'a EventFd,
    /// On a terminal only: what comes through a pipe is all the guest's.
    escape: Option<Escape>,
    open: bool,
    /// Keys that the guest has no room for yet.
    waiting: VecDeque<u8>,
}

impl Keyboard<'_> {
    /// How many keys wait for a guest that reads none; those after them are lost, as on a terminal of its own.
    const WAITING: usize = 1 << 16;

    /// A pipe is left alone while the guest has no room, so that nothing of it is lost. A terminal is always read: the
    /// escape may come.
    fn wants_more(&self) -> bool {
        self.open && (self.escape.is_some() || self.serial.input_space() > 0)
    }

    /// Reads what there is.
    fn read(&mut self) {
        let mut bytes = [0; 64];
        let room =
            if self.escape.is_some() { bytes.len() } else { self.serial.input_space().min(bytes.len()) };
        let len = match rustix::io::read(io::stdin(), &mut bytes[..room]) {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return,
            Err(_) | Ok(0) => {
                self.open = false;
                return;
            }
            Ok(len) => len,
        };
        for &byte in &bytes[..len] {
            match self.escape.as_mut().map_or(Some(Key::Guest(byte)), |escape| escape.key(byte)) {
                None => {}
                Some(Key::Guest(byte)) if self.waiting.len() < Self::WAITING => self.waiting.push_back(byte),
                Some(Key::Guest(_)) => {}
                Some(Key::Quit) => {
                    self.ending.end(Outcome::Quit);
                    // As a signal does, it lets go of whoever waits to say something.
                    let _ = self.signals.write(1);
                }
                Some(Key::PowerButton) => {
                    if let Err(e) = self.power.press() {
                        log::warn!("cannot press the power button: {e}");
                    }
                }
                Some(Key::Help) => report::print(&format!("\n{}\n", terminal::HELP)),
            }
        }
        self.give();
    }

    /// Gives the guest as many keys as it has room for.
    fn give(&mut self) {
        let room = self.serial.input_space().min(self.waiting.len());
        let keys: Vec<_> = self.waiting.drain(..room).collect();
        if let Err(e) = self.serial.enqueue(&keys) {
            log::warn!("cannot tell the guest of its input: {e}");
        }
    }
}
