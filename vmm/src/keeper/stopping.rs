//! How a run is ended from outside: the power button, a while, then the end; a second request does not wait.

use std::time::{Duration, Instant};

/// How long the machine may take to end once it is told to: its threads stop within milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stopping {
    /// Nobody has asked.
    #[default]
    No,
    /// The power button is pressed, and the guest has until then.
    Asked(Instant),
    /// The machine was told to end, and has until then.
    Told(Instant),
    /// It is killed.
    Killed,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Do {
    PressPowerButton,
    TellToEnd,
    Kill,
}

impl Stopping {
    /// Somebody asks for an end, who gives the guest `timeout` to power itself off. Who asks once more does not wait.
    pub(crate) fn ask(&mut self, now: Instant, timeout: Duration) -> Option<Do> {
        match self {
            Self::No => {
                *self = Self::Asked(now.checked_add(timeout).unwrap_or(now + PATIENCE));
                Some(Do::PressPowerButton)
            }
            Self::Asked(_) => self.force(now),
            Self::Told(_) => Some(self.kill()),
            Self::Killed => None,
        }
    }

    /// The guest is not asked, or does not hear.
    pub(crate) fn force(&mut self, now: Instant) -> Option<Do> {
        match self {
            Self::No | Self::Asked(_) => {
                *self = Self::Told(now + PATIENCE);
                Some(Do::TellToEnd)
            }
            Self::Told(_) | Self::Killed => None,
        }
    }

    fn kill(&mut self) -> Do {
        *self = Self::Killed;
        Do::Kill
    }

    /// When time is up next.
    pub(crate) fn deadline(self) -> Option<Instant> {
        match self {
            Self::Asked(at) | Self::Told(at) => Some(at),
            Self::No | Self::Killed => None,
        }
    }

    /// Time may be up.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Do> {
        match *self {
            Self::Asked(at) if at <= now => self.force(now),
            Self::Told(at) if at <= now => Some(self.kill()),
            _ => None,
        }
    }

    /// Whether an end was asked for.
    pub(crate) fn is_asked(self) -> bool {
        self != Self::No
    }

    /// Whether the machine is ended, whatever its guest does.
    pub(crate) fn is_forced(self) -> bool {
        matches!(self, Self::Told(_) | Self::Killed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_a_while_and_a_second_request_ends_it() {
        let (now, while_) = (Instant::now(), Duration::from_secs(10));
        let mut stopping = Stopping::default();
        assert_eq!((stopping.deadline(), stopping.is_asked()), (None, false));
        assert_eq!(stopping.ask(now, while_), Some(Do::PressPowerButton));
        assert_eq!(stopping.expire(now + Duration::from_secs(9)), None);
        assert_eq!((stopping.deadline(), stopping.is_forced()), (Some(now + while_), false));
        assert_eq!(stopping.expire(now + while_), Some(Do::TellToEnd));
        assert_eq!(stopping.expire(now + while_ + PATIENCE), Some(Do::Kill));
        assert_eq!((stopping.expire(now + while_ * 9), stopping.deadline()), (None, None));

        let mut stopping = Stopping::default();
        stopping.ask(now, while_);
        assert_eq!(stopping.ask(now, while_), Some(Do::TellToEnd));
        assert!(stopping.is_forced());
        assert_eq!(stopping.force(now), None, "it was told");
        assert_eq!(stopping.ask(now, while_), Some(Do::Kill));
        assert_eq!(stopping.ask(now, while_), None);
    }
}
