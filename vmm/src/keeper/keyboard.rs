//! What is typed: standard input on its way to the guest.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::termios::isatty;

use super::terminal::{Escape, Key, Raw};

/// Keys that wait for a guest that reads none; those after them are lost, as on a terminal of its own.
const WAITING: usize = 1 << 16;

/// What a key asks of the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Quit,
    PowerButton,
    Help,
}

/// Standard input, and the pipe to the machine.
pub(crate) struct Keyboard {
    to: File,
    /// Standard input is the guest's.
    used: bool,
    raw: Option<Raw>,
    /// On a terminal only: what comes through a pipe is all the guest's.
    escape: Option<Escape>,
    open: bool,
    waiting: VecDeque<u8>,
}

impl Keyboard {
    /// Gives keys to the machine by `to`, a pipe that does not block: those of standard input, where it is `used`.
    ///
    /// # Errors
    /// The terminal cannot be taken over.
    pub(crate) fn new(to: OwnedFd, used: bool) -> io::Result<Self> {
        let raw = if used { Raw::enter()? } else { None };
        // Without the terminal's foreground its input is not ours to read.
        let open = used && (raw.is_some() || !isatty(io::stdin()));
        let escape = raw.is_some().then(Escape::default);
        Ok(Self { to: to.into(), used, raw, escape, open, waiting: VecDeque::new() })
    }

    /// The process goes on after a stop, in which the terminal may have become ours, or another's.
    ///
    /// # Errors
    /// The terminal cannot be taken over.
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        match &self.raw {
            _ if !self.used => {}
            // To read in the background would stop us.
            Some(raw) => self.open = raw.resume()?,
            // It may have been started there.
            None => {
                self.raw = Raw::enter()?;
                self.open |= self.raw.is_some();
                self.escape = self.raw.is_some().then(Escape::default);
            }
        }
        Ok(())
    }

    /// Whether standard input is to be read. A pipe is left alone while the guest has no room, so that nothing of it is lost. A
    /// terminal is always read: the escape may come.
    pub(crate) fn reads(&self) -> bool {
        self.open && (self.escape.is_some() || self.waiting.is_empty())
    }

    /// Whether keys wait for room in the pipe.
    pub(crate) fn writes(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Reads what there is, and says what it asks for.
    pub(crate) fn read(&mut self) -> Vec<Command> {
        let mut bytes = [0; 256];
        let len = match rustix::io::read(io::stdin(), &mut bytes) {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return Vec::new(),
            Err(_) | Ok(0) => {
                self.open = false;
                return Vec::new();
            }
            Ok(len) => len,
        };
        let mut commands = Vec::new();
        for &byte in &bytes[..len] {
            match self.escape.as_mut().map_or(Some(Key::Guest(byte)), |escape| escape.key(byte)) {
                None => {}
                Some(Key::Guest(byte)) => drop(self.type_in(&[byte])),
                Some(Key::Quit) => commands.push(Command::Quit),
                Some(Key::PowerButton) => commands.push(Command::PowerButton),
                // This is the terminal of the run, which goes with it.
                Some(Key::Help | Key::Detach) => commands.push(Command::Help),
            }
        }
        self.give();
        commands
    }

    /// Takes keys for the guest, as many as may wait; returns how many.
    pub(crate) fn type_in(&mut self, keys: &[u8]) -> usize {
        let taken = keys.len().min(WAITING - self.waiting.len());
        self.waiting.extend(&keys[..taken]);
        taken
    }

    /// Gives the machine as many keys as its pipe has room for.
    pub(crate) fn give(&mut self) {
        while !self.waiting.is_empty() {
            let (first, _) = self.waiting.as_slices();
            match self.to.write(first) {
                Ok(len) => drop(self.waiting.drain(..len)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The machine is gone.
                Err(_) => return self.waiting.clear(),
            }
        }
    }
}

impl AsRawFd for Keyboard {
    /// The pipe.
    fn as_raw_fd(&self) -> RawFd {
        self.to.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    #[test]
    fn so_many_keys_wait_and_none_of_these_is_lost() {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        let mut keyboard = Keyboard::new(write, false).unwrap();
        let keys: Vec<u8> = (0..WAITING + 10).map(|at| at as u8).collect();
        assert_eq!(keyboard.type_in(&keys), WAITING);
        assert_eq!(keyboard.type_in(b"more"), 0);
        let mut all = Vec::new();
        let mut read = File::from(read);
        while keyboard.writes() {
            keyboard.give();
            let mut chunk = [0; 1000];
            let len = read.read(&mut chunk).unwrap();
            all.extend(&chunk[..len]);
        }
        drop(keyboard);
        read.read_to_end(&mut all).unwrap();
        assert_eq!(all, keys[..WAITING]);
    }
}
