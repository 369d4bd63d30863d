//! How a machine is asked to end, by signals and by clients; and its end.

use std::time::{Duration, Instant};

use vmm::info::{Event, MachineState};

use super::{Core, Letter};
use crate::keeper::Ended;
use crate::keeper::signals::Signal;
use crate::keeper::stopping::Do;
use crate::protocol::{End, ToMachine};

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
                    let attached = self.attached.as_mut().filter(|_| !self.gone);
                    if !attached.is_some_and(|attached| attached.takes(number, by_terminal)) {
                        self.ask_to_stop(self.config.stop_timeout());
                    } else if !by_terminal {
                        // Who sends it to this process wants the machine's end, whatever the command makes of it.
                        self.told_due = Instant::now().checked_add(self.config.stop_timeout());
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

    /// Somebody wants an end: asks the guest to power itself off, and ends it after `timeout`.
    pub(super) fn ask_to_stop(&mut self, timeout: Duration) {
        self.end_wanted = true;
        self.press_power_button(timeout);
    }

    /// The same, where that is the run's own end.
    pub(super) fn press_power_button(&mut self, timeout: Duration) {
        self.told_due = None;
        self.notify.say("STOPPING=1\nSTATUS=The guest is asked to power itself off");
        let next = self.stopping.ask(Instant::now(), timeout);
        self.carry_out(next);
    }

    pub(super) fn force_stop(&mut self) {
        (self.end_wanted, self.told_due) = (true, None);
        self.notify.say("STOPPING=1");
        let next = self.stopping.force(Instant::now());
        self.carry_out(next);
    }

    /// The command has had its time.
    pub(super) fn expire_told(&mut self, now: Instant) {
        if self.told_due.is_some_and(|due| due <= now) {
            self.ask_to_stop(self.config.stop_timeout());
        }
    }

    /// The machine's process has ended, and all that it said is heard.
    pub(in crate::keeper) fn machine_died(&mut self) {
        let death = self.child.wait();
        let of_itself = match self.end_wanted || self.stopping.is_forced() {
            true => Ended::Guest(End::Stopped),
            false => Ended::Died(death),
        };
        self.end(of_itself);
        self.gone = true;
        self.conclude();
    }

    /// Ends the run once the machine is gone, and the command's process: who reads the output is waited for, unless somebody wants an
    /// end.
    pub(super) fn conclude(&mut self) {
        if self.over || !self.gone {
            return;
        }
        let Some(ended) = &mut self.ended else { return };
        if let (Some(attached), Ended::Guest(End::PowerOff | End::Reset | End::Stopped)) =
            (&mut self.attached, &*ended)
        {
            if attached.status().is_none() && !self.end_wanted {
                return;
            }
            *ended = Ended::Command(attached.finish());
        }
        let (status, good) = (ended.status(), ended.is_good());
        if !good {
            self.show_last_words();
        }
        self.enter(MachineState::Ended);
        self.letters.push(Letter::Event(Event::Ended { status }));
        self.over = true;
    }

    pub(super) fn carry_out(&mut self, next: Option<Do>) {
        if self.gone {
            return self.conclude();
        }
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
