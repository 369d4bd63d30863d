//! The registers by which functions come and go while the guest runs, as its ACPI tables describe them (ACPI 6.5 §6.3).
//!
//! Four registers of 32 bits. Two say which slots the guest is to look at, and which it is to let go; reading one clears it. By the
//! other two the guest answers: it lets slots go, or has its word on what it was asked.
//!
//! **Invariant: the guest has one word for each question.** What it says unasked is dropped, so that nothing grows by it and nobody
//! is woken.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::BusDevice;

/// The whole bus, where a slot is asked about: in slot 0 is the host bridge, which does not come or go.
pub const WHOLE_BUS: usize = 0;

/// What the guest says to what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It has looked at the slot.
    Looked,
    /// It has looked, and cannot use what it found; the status as ACPI 6.5 §6.3.5 has it.
    Refused(u16),
    /// It uses the slot's function no more.
    LetGo,
    /// It keeps the slot's function; the status likewise.
    Keeps(u16),
}

/// The registers.
pub struct HotPlug {
    state: Mutex<State>,
    answered: EventFd,
}

/// A bit for each slot.
#[derive(Default)]
struct State {
    /// The guest is to look, and does not know it yet.
    look: u32,
    /// The guest is to let go, likewise.
    leave: u32,
    /// Its word on these is waited for.
    looks_asked: u32,
    leaves_asked: u32,
    words: Vec<(usize, Word)>,
}

impl HotPlug {
    /// How many ports they span.
    pub const LEN: u64 = 16;
    /// Offset of the slots to look at.
    pub const LOOK: u64 = 0;
    /// Offset of the slots to let go.
    pub const LEAVE: u64 = 4;
    /// Offset of the slots that the guest lets go.
    pub const EJECT: u64 = 8;
    /// Offset of the guest's word: slot, event and status.
    pub const STATUS: u64 = 12;
    /// In a word: where the slot begins, of five bits.
    pub const SLOT_SHIFT: u8 = 27;
    /// In a word: where the event begins, of eleven bits. Below it is the status.
    pub const EVENT_SHIFT: u8 = 16;

    /// Events (§5.6.6): a look at the bus, a look at a slot, a request to let go.
    const BUS_CHECK: u32 = 0;
    const DEVICE_CHECK: u32 = 1;
    const EJECT_REQUEST: u32 = 3;
    /// Status: done.
    const SUCCESS: u16 = 0;
    /// Status: the guest is still at it, of a look (§6.3.5.3) and of a request to let go (§6.3.5.1).
    const LOOKS_ON: u16 = 0x80;
    const LEAVES_ON: u16 = 0x84;

    /// Registers that ask nothing.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { state: Mutex::default(), answered: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)? })
    }

    /// Has the guest look at a slot, or at the [whole bus](WHOLE_BUS). It hears of it once it is interrupted.
    pub fn ask_to_look(&self, slot: usize) {
        let mut state = self.state();
        state.look |= bit(slot);
        state.looks_asked |= bit(slot);
    }

    /// Has the guest let a slot go. It hears of it once it is interrupted.
    pub fn ask_to_leave(&self, slot: usize) {
        let mut state = self.state();
        state.leave |= bit(slot);
        state.leaves_asked |= bit(slot);
    }

    /// Nothing about a slot is asked any more, and what the guest has said of it and nobody has taken is dropped.
    pub fn forget(&self, slot: usize) {
        let mut state = self.state();
        let State { look, leave, looks_asked, leaves_asked, words } = &mut *state;
        for slots in [look, leave, looks_asked, leaves_asked] {
            *slots &= !bit(slot);
        }
        words.retain(|(about, _)| *about != slot);
    }

    /// Readable once the guest has said something.
    pub fn answered(&self) -> &EventFd {
        &self.answered
    }

    /// Takes all that the guest has said since the last time: slots, and its word on each.
    pub fn take_words(&self) -> Vec<(usize, Word)> {
        let _ = self.answered.read();
        std::mem::take(&mut self.state().words)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, state: &mut State, slot: usize, word: Word) {
        state.words.push((slot, word));
        // The counter cannot come near its end, at which alone this fails.
        let _ = self.answered.write(1);
    }
}

fn bit(slot: usize) -> u32 {
    1 << slot
}

impl BusDevice for HotPlug {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if data.len() != 4 {
            return;
        }
        let mut state = self.state();
        let value = match offset {
            Self::LOOK => std::mem::take(&mut state.look),
            Self::LEAVE => std::mem::take(&mut state.leave),
            Self::EJECT | Self::STATUS => 0,
            _ => return,
        };
        data.copy_from_slice(&value.to_le_bytes());
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else { return };
        let mut state = self.state();
        let state = &mut *state;
        match offset {
            Self::EJECT => {
                let gone = value & state.leaves_asked;
                state.leaves_asked &= !gone;
                for slot in (0..32).filter(|slot| gone & bit(*slot) != 0) {
                    self.say(state, slot, Word::LetGo);
                }
            }
            Self::STATUS => {
                let slot = (value >> Self::SLOT_SHIFT) as usize;
                let (event, status) = (value >> Self::EVENT_SHIFT & 0x7ff, value as u16);
                let (asked, word) = match (event, status) {
                    (Self::BUS_CHECK | Self::DEVICE_CHECK, Self::LOOKS_ON)
                    | (Self::EJECT_REQUEST, Self::LEAVES_ON) => return,
                    (Self::BUS_CHECK | Self::DEVICE_CHECK, Self::SUCCESS) => {
                        (&mut state.looks_asked, Word::Looked)
                    }
                    (Self::BUS_CHECK | Self::DEVICE_CHECK, status) => {
                        (&mut state.looks_asked, Word::Refused(status))
                    }
                    // It lets go by the other register, before this.
                    (Self::EJECT_REQUEST, status) => (&mut state.leaves_asked, Word::Keeps(status)),
                    _ => return,
                };
                if *asked & bit(slot) != 0 {
                    *asked &= !bit(slot);
                    self.say(state, slot, word);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(registers: &HotPlug, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        registers.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn say(registers: &HotPlug, slot: u32, event: u32, status: u32) {
        let word = slot << HotPlug::SLOT_SHIFT | event << HotPlug::EVENT_SHIFT | status;
        registers.write(HotPlug::STATUS, &word.to_le_bytes());
    }

    fn eject(registers: &HotPlug, slots: u32) {
        registers.write(HotPlug::EJECT, &slots.to_le_bytes());
    }

    #[test]
    fn the_guest_reads_once_what_it_is_asked() {
        let registers = HotPlug::new().unwrap();
        for slot in [1, 31, WHOLE_BUS] {
            registers.ask_to_look(slot);
        }
        registers.ask_to_leave(2);
        // A part of a register, and what lies across two, are none.
        let mut part = [0xff; 2];
        registers.read(HotPlug::LOOK, &mut part);
        assert_eq!((part, read(&registers, 2)), ([0xff; 2], u32::MAX));
        assert_eq!((read(&registers, HotPlug::LOOK), read(&registers, HotPlug::LOOK)), (0x8000_0003, 0));
        assert_eq!((read(&registers, HotPlug::LEAVE), read(&registers, HotPlug::LEAVE)), (4, 0));
        assert_eq!((read(&registers, HotPlug::EJECT), read(&registers, HotPlug::STATUS)), (0, 0));
    }

    #[test]
    fn the_guest_has_one_word_for_each_question() {
        let registers = HotPlug::new().unwrap();
        // Unasked: of no account, and nobody is woken.
        eject(&registers, u32::MAX);
        (0..32).for_each(|slot| say(&registers, slot, 1, 0));
        assert!(registers.take_words().is_empty() && registers.answered().read().is_err());

        registers.ask_to_look(1);
        registers.ask_to_look(WHOLE_BUS);
        registers.ask_to_leave(2);
        registers.ask_to_leave(3);
        registers.ask_to_look(4);
        // It is still at it; it ejects what its user wanted ejected; and this is no event that it was sent.
        say(&registers, 1, 1, 0x80);
        say(&registers, 2, 3, 0x84);
        say(&registers, 3, 0x103, 0);
        assert!(registers.take_words().is_empty());
        say(&registers, 1, 1, 0);
        say(&registers, 1, 1, 1);
        say(&registers, 0, 0, 0);
        eject(&registers, 1 << 1 | 1 << 2);
        say(&registers, 2, 3, 0);
        say(&registers, 3, 3, 0x82);
        eject(&registers, 1 << 3);
        say(&registers, 4, 1, 0x81);
        assert_eq!(registers.answered().read().unwrap(), 5);
        let words = [
            (1, Word::Looked),
            (0, Word::Looked),
            (2, Word::LetGo),
            (3, Word::Keeps(0x82)),
            (4, Word::Refused(0x81)),
        ];
        assert_eq!(registers.take_words(), words);
        assert!(registers.take_words().is_empty());
    }

    #[test]
    fn what_is_forgotten_is_not_asked_and_not_answered() {
        let registers = HotPlug::new().unwrap();
        registers.ask_to_leave(5);
        registers.ask_to_look(5);
        registers.ask_to_leave(6);
        registers.forget(5);
        assert_eq!((read(&registers, HotPlug::LOOK), read(&registers, HotPlug::LEAVE)), (0, 1 << 6));
        eject(&registers, 1 << 5 | 1 << 6);
        say(&registers, 5, 1, 0);
        registers.forget(6);
        assert!(registers.take_words().is_empty());
    }
}
