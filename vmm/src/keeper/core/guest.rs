//! What is in the guest: whether it has said that it is up, and the command that the run is for.

use std::os::fd::RawFd;
use std::time::Instant;

use vmm::config::ConsoleConfig;

use super::Core;
use crate::error::Error;
use crate::keeper::Ended;
use crate::keeper::attached::Attached;
use crate::keeper::guest_words::GuestWords;
use crate::keeper::vsock::{Door, Vsock};
use crate::protocol::Failure;
use crate::report;

impl Core {
    /// By which the end of the run's command is heard.
    pub(in crate::keeper) fn command_waits_for(&self) -> Option<RawFd> {
        self.attached.as_ref().and_then(Attached::waits_for)
    }

    /// The same, with those of its connections that are for wirevm itself, and whether somebody waits for those.
    pub(in crate::keeper) fn door_and_words(&mut self) -> (Option<&mut Door>, &mut GuestWords, bool) {
        let awaited = self.wait_ready.is_some() && !self.up;
        (self.vsock.as_mut().and_then(Vsock::door), &mut self.words, awaited)
    }

    /// The guest says something of itself.
    pub(in crate::keeper) fn hear_guest(&mut self, at: usize) {
        if self.words.read(at) && !std::mem::replace(&mut self.up, true) {
            log::info!("the guest is up");
            self.notify.say("STATUS=The guest is up");
            self.tell_ready();
        }
    }

    /// Whoever waits for a machine in the background waits no more.
    pub(super) fn tell_ready(&mut self) {
        if let Some(ready) = self.ready.take()
            && let Err(error) = ready.tell(self.place.name())
        {
            log::warn!("cannot leave the terminal: {error}");
        }
    }

    pub(super) fn ready_deadline(&self) -> Option<Instant> {
        self.ready_due.filter(|_| self.ready.is_some())
    }

    /// A guest that does not come up is ended, and whoever waits is told.
    pub(super) fn expire_ready(&mut self, now: Instant) {
        if self.ready_deadline().is_some_and(|due| due <= now) {
            self.ready_due = None;
            let error = Error::NotUp { seconds: self.wait_ready.map_or(0, |wait| wait.as_secs()) };
            self.end(Ended::Failed(Failure::new(&error, error.remedy())));
            self.force_stop();
        }
    }

    /// The process that the command's streams go by may have ended, and with it the run: nobody has asked for that. The machine's
    /// death is one reason, and is told as that.
    pub(in crate::keeper) fn look_at_attached(&mut self) {
        if self.attached.as_mut().is_some_and(|attached| attached.status().is_some()) {
            match self.stopping.is_asked() {
                true => self.conclude(),
                false => self.press_power_button(self.config.stop_timeout()),
            }
        }
    }

    /// Prints the last lines of a console that is shown nowhere.
    pub(super) fn show_last_words(&self) {
        const LINES: usize = 20;
        if self.config.console != ConsoleConfig::None {
            return;
        }
        let said = self.console.history();
        let said = String::from_utf8_lossy(&said);
        let lines: Vec<_> = said.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        let lines = &lines[lines.len().saturating_sub(LINES)..];
        if !lines.is_empty() {
            let lines: String = lines.iter().map(|line| format!("  | {}\n", net::printable(line))).collect();
            report::print(&format!("the guest's console:\n{lines}"));
        }
    }

    /// Starts the command that the run is for, if it is for one.
    pub(super) fn attach(&mut self) {
        if self.config.guest.is_none() {
            return;
        }
        let name = self.place.name();
        let log = self.ready.as_ref().map(|_| vmm::runtime::log(name, net::Opening::Existing));
        let started = log.transpose().map_err(Error::Name).and_then(|log| {
            Attached::start(name, log)
                .map_err(|source| Error::Host { what: "start the process for the guest's command", source })
        });
        match started {
            Ok(attached) => self.attached = Some(attached),
            // Without its command the guest runs for nothing.
            Err(error) => {
                self.end(Ended::Failed(Failure::new(&error, error.remedy())));
                self.force_stop();
            }
        }
    }
}
