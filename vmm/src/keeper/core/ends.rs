//! How a machine is asked to end, by signals and by clients.

use std::time::{Duration, Instant};

use vmm::info::MachineState;

use super::Core;
use crate::keeper::signals::Signal;
use crate::keeper::stopping::Do;
use crate::protocol::ToMachine;

impl Core {
    /// Signals that came before the loop began.
    pub(in crate::keeper) fn hear_signals_before(&mut self) {
        if self.signals.ends() > 0 {
            self.ask_to_stop(self.config.stop_timeout());
        }
    }

    pub(in crate::keeper) fn hear_signals(&mut self) {
        while let Some(signal) = self.signals.next() {
            match signal {
                // The first is for the command that the run is for, which has it already where a terminal sent it.
                Signal::End { number, by_terminal } => {
                    let attached = self.attached.as_mut();
                    if !attached.is_some_and(|attached| attached.takes(number, by_terminal)) {
                        self.ask_to_stop(self.config.stop_timeout());
                    }
                }
                Signal::Quit => self.force_stop(),
                Signal::Resumed => {
                    if let Err(error) = self.keyboard.resume() {
                        log::warn!("cannot take over the terminal: {error}");
                    }
                }
            }
        }
    }

    /// Asks the guest to power itself off, and ends it after `timeout`.
    pub(super) fn ask_to_stop(&mut self, timeout: Duration) {
        self.notify.say("STOPPING=1\nSTATUS=The guest is asked to power itself off");
        let next = self.stopping.ask(Instant::now(), timeout);
        self.carry_out(next);
    }

    pub(super) fn force_stop(&mut self) {
        self.notify.say("STOPPING=1");
        let next = self.stopping.force(Instant::now());
        self.carry_out(next);
    }

    pub(super) fn carry_out(&mut self, next: Option<Do>) {
        let Some(next) = next else { return };
        let said = match (next, self.state) {
            // Of a guest that does not run yet there is nothing to lose.
            (_, MachineState::Built) | (Do::Kill, _) => {
                self.child.kill();
                Ok(())
            }
            // One that stands still hears nothing.
            (Do::PressPowerButton, MachineState::Paused) => self
                .channel
                .try_send(&ToMachine::Resume)
                .and_then(|()| self.channel.try_send(&ToMachine::PowerButton)),
            (Do::PressPowerButton, _) => self.channel.try_send(&ToMachine::PowerButton),
            (Do::TellToEnd, _) => self.channel.try_send(&ToMachine::Stop),
        };
        // One that hears nothing is about to end, which is told elsewhere; or it has been taken over, and is killed when time is up.
        drop(said);
    }
}
