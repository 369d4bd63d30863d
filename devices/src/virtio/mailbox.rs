//! The mailbox of a queue's thread: the only way to ask something of the thread once it has been spawned.
//!
//! **Invariant: a sender never waits for ever.** Each message carries a [`Reply`]. A thread that ends, or that panics, drops its
//! mailbox, and with it every reply that is still in there: the [`Answer`] is then [`Gone`].
//!
//! To send takes some memory, a lock held for a moment, one write to an eventfd and, for the answer, a futex: nothing that a confined
//! vCPU thread may not do. A few letters pass in a machine's life, so a locked queue serves as well as a channel, in far less code.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What a thread runs to confine itself, called on that thread with its name: it installs the thread's seccomp filter.
pub type ThreadHook = Arc<dyn Fn(&str) -> io::Result<()> + Send + Sync>;

/// What lies in a mailbox: the device's own messages, and the two that every queue's thread understands.
enum Letter<M> {
    Message(M),
    Confine(ThreadHook, Reply<io::Result<()>>),
    End,
}

/// The letters that wait; `None` once the thread has gone.
type Letters<M> = Mutex<Option<VecDeque<Letter<M>>>>;

/// The thread's end.
pub struct Mailbox<M> {
    letters: Arc<Letters<M>>,
    wake: Arc<EventFd>,
    name: Arc<str>,
}

/// A sender's end, of which there may be any number.
pub struct Address<M> {
    letters: Arc<Letters<M>>,
    wake: Arc<EventFd>,
    name: Arc<str>,
}

/// The thread has ended or panicked, and answers nothing any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the thread {name} has ended")]
pub struct Gone {
    name: Arc<str>,
}

impl From<Gone> for io::Error {
    fn from(gone: Gone) -> Self {
        Self::new(io::ErrorKind::BrokenPipe, gone)
    }
}

/// By which a thread answers one message, once.
pub struct Reply<T>(Arc<Slot<T>>);

/// What a thread will answer.
#[must_use = "the thread has not done it until it has answered"]
pub struct Answer<T> {
    slot: Arc<Slot<T>>,
    name: Arc<str>,
}

/// Where a reply puts the answer.
struct Slot<T> {
    said: Mutex<Said<T>>,
    settled: Condvar,
}

enum Said<T> {
    NotYet,
    This(T),
    Never,
}

fn not_yet<T>(said: &mut Said<T>) -> bool {
    matches!(said, Said::NotYet)
}

/// Both ends of the mailbox of the thread `name`.
///
/// # Errors
/// There is no descriptor left for its eventfd.
pub fn mailbox<M>(name: &str) -> io::Result<(Address<M>, Mailbox<M>)> {
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let letters = Arc::new(Mutex::new(Some(VecDeque::new())));
    let name = Arc::<str>::from(name);
    let address = Address { letters: Arc::clone(&letters), wake: Arc::clone(&wake), name: Arc::clone(&name) };
    Ok((address, Mailbox { letters, wake, name }))
}

/// What is under a lock here is whole even where its holder panicked.
fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M> Clone for Address<M> {
    fn clone(&self) -> Self {
        Self {
            letters: Arc::clone(&self.letters),
            wake: Arc::clone(&self.wake),
            name: Arc::clone(&self.name),
        }
    }
}

impl<M> Address<M> {
    /// The thread's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends the message that `message` makes of its reply, and does not wait.
    pub fn ask<T>(&self, message: impl FnOnce(Reply<T>) -> M) -> Answer<T> {
        self.post(|reply| Letter::Message(message(reply)))
    }

    /// Has the thread run `hook`, and does not wait.
    pub fn confine(&self, hook: ThreadHook) -> Answer<io::Result<()>> {
        self.post(|reply| Letter::Confine(hook, reply))
    }

    /// Has the thread end, after the messages that were sent before.
    pub(super) fn end(&self) {
        // Where the thread has gone already, that is what was wanted.
        let _ = self.put(Letter::End);
    }

    fn post<T>(&self, letter: impl FnOnce(Reply<T>) -> Letter<M>) -> Answer<T> {
        let slot = Arc::new(Slot { said: Mutex::new(Said::NotYet), settled: Condvar::new() });
        if !self.put(letter(Reply(Arc::clone(&slot)))) {
            *locked(&slot.said) = Said::Never;
        }
        Answer { slot, name: Arc::clone(&self.name) }
    }

    /// Whether the thread will see the letter, unless it ends before; a letter that it will not see is dropped here.
    fn put(&self, letter: Letter<M>) -> bool {
        match &mut *locked(&self.letters) {
            Some(letters) => letters.push_back(letter),
            None => return false,
        }
        // First the letter, then the wake: the thread that wakes finds it.
        self.wake.write(1).is_ok()
    }
}

impl<T> Reply<T> {
    /// Answers.
    pub fn send(self, value: T) {
        *locked(&self.0.said) = Said::This(value);
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        let mut said = locked(&self.0.said);
        if let Said::NotYet = *said {
            *said = Said::Never;
        }
        drop(said);
        self.0.settled.notify_one();
    }
}

impl<T> Answer<T> {
    /// Waits for the answer.
    ///
    /// # Errors
    /// The thread has ended, or ends before it answers.
    pub fn wait(self) -> Result<T, Gone> {
        let said = self.slot.settled.wait_while(locked(&self.slot.said), not_yet);
        match std::mem::replace(&mut *said.unwrap_or_else(PoisonError::into_inner), Said::Never) {
            Said::This(value) => Ok(value),
            Said::Never | Said::NotYet => Err(Gone { name: self.name }),
        }
    }

    /// Waits for the answer, and no longer than `most`: the thread talks to others, for whom it may have to wait.
    ///
    /// # Errors
    /// The thread has ended, or does not answer in that time, and then may do yet what it was asked.
    pub(super) fn wait_within(self, most: Duration) -> io::Result<T> {
        let said = self.slot.settled.wait_timeout_while(locked(&self.slot.said), most, not_yet);
        let (mut said, _) = said.unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *said, Said::Never) {
            Said::This(value) => Ok(value),
            Said::Never => Err(Gone { name: self.name }.into()),
            Said::NotYet => {
                let silent = format!("the thread {} does not answer", self.name);
                Err(io::Error::new(io::ErrorKind::TimedOut, silent))
            }
        }
    }
}

impl<M> Mailbox<M> {
    /// The eventfd to watch, edge-triggered: it is written after each message and never read.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Takes every message there is. To confine the thread is done here, whatever the device. `Break`: the thread is to end.
    pub fn take(&self, mut each: impl FnMut(M)) -> ControlFlow<()> {
        // The lock is let go of before a letter is read: what is in there may take its time.
        while let Some(letter) = self.next() {
            match letter {
                Letter::Message(message) => each(message),
                Letter::Confine(hook, reply) => reply.send(hook(&self.name)),
                Letter::End => return ControlFlow::Break(()),
            }
        }
        ControlFlow::Continue(())
    }

    fn next(&self) -> Option<Letter<M>> {
        locked(&self.letters).as_mut()?.pop_front()
    }
}

impl<M> Drop for Mailbox<M> {
    fn drop(&mut self) {
        let unread = locked(&self.letters).take();
        // Whose drop tells the senders; it may take other locks.
        drop(unread);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn who_waits_for_mail_is_never_held_up_by_it_nor_a_child_given_it() {
        let (_address, mailbox) = mailbox::<()>("test").unwrap();
        let info =
            std::fs::read_to_string(format!("/proc/self/fdinfo/{}", mailbox.wake().as_raw_fd())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
        assert_eq!(flags & (libc::O_NONBLOCK | libc::O_CLOEXEC), libc::O_NONBLOCK | libc::O_CLOEXEC);
    }

    #[test]
    fn messages_arrive_in_order_each_is_answered_and_none_after_the_end() {
        let (address, mailbox) = mailbox::<(u8, Reply<u8>)>("test-0").unwrap();
        let answers: Vec<_> = (0..3).map(|number| address.ask(|reply| (number, reply))).collect();
        assert_eq!(mailbox.wake().read().unwrap(), 3, "one wake each");
        assert_eq!(mailbox.take(|(number, reply)| reply.send(10 + number)), ControlFlow::Continue(()));
        assert_eq!(
            answers.into_iter().map(|answer| answer.wait().unwrap()).collect::<Vec<_>>(),
            [10, 11, 12]
        );

        address.end();
        let late = address.ask(|reply| (3, reply));
        assert_eq!(mailbox.take(|_| panic!("behind the end")), ControlFlow::Break(()));
        drop(mailbox);
        let never = address.ask(|reply| (4, reply));
        for answer in [late, never] {
            assert_eq!(answer.wait().unwrap_err().to_string(), "the thread test-0 has ended");
        }
    }

    #[test]
    fn who_waits_already_is_woken_by_the_answer_and_by_the_end() {
        for answers in [true, false] {
            let (address, mailbox) = mailbox::<Reply<u8>>("test-2").unwrap();
            let answer = address.ask(|reply| reply);
            let waiter = std::thread::spawn(move || answer.wait());
            // Long enough that it sleeps, mostly; it passes, too, where it does not yet.
            std::thread::sleep(Duration::from_millis(20));
            if answers {
                assert!(mailbox.take(|reply| reply.send(7)).is_continue());
            } else {
                drop(mailbox);
            }
            let until = Instant::now() + Duration::from_secs(10);
            while !waiter.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(waiter.is_finished(), "it waits for ever");
            assert_eq!(waiter.join().unwrap().ok(), answers.then_some(7));
        }
    }

    #[test]
    fn who_waits_within_a_time_has_the_answer_or_an_error() {
        let (address, mailbox) = mailbox::<Reply<u8>>("test-3").unwrap();
        let (soon, late) = (Duration::from_secs(20), Duration::from_millis(1));
        let silent = address.ask(|reply| reply).wait_within(late).unwrap_err();
        assert_eq!(silent.to_string(), "the thread test-3 does not answer");
        let answer = address.ask(|reply| reply);
        assert!(mailbox.take(|reply| reply.send(7)).is_continue());
        assert_eq!(answer.wait_within(soon).unwrap(), 7);
        drop(mailbox);
        let gone = address.ask(|reply| reply).wait_within(soon).unwrap_err();
        assert_eq!(gone.to_string(), "the thread test-3 has ended");
    }

    #[test]
    fn a_hook_runs_with_the_threads_name_and_its_error_comes_back() {
        let (address, mailbox) = mailbox::<()>("test-1").unwrap();
        let hook: ThreadHook = Arc::new(|name| Err(io::Error::other(format!("not {name}"))));
        let answer = address.confine(hook);
        assert!(mailbox.take(|()| ()).is_continue());
        assert_eq!(answer.wait().unwrap().unwrap_err().to_string(), "not test-1");
    }
}
