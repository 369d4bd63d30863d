//! The mailbox of a queue's thread: the only way to ask something of the thread once it has been spawned.
//!
//! **Invariant: a sender never waits for ever.** Each message carries a [`Reply`]. A thread that ends, or that panics, drops its
//! mailbox, and with it every reply that is still in there: the [`Answer`] is then [`Gone`].
//!
//! To send takes a list node, one write to an eventfd and, for the answer, a futex: nothing that a confined vCPU thread may not do.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What a thread runs to confine itself, called on that thread with its name: it installs the thread's seccomp filter.
pub type ThreadHook = Arc<dyn Fn(&str) -> io::Result<()> + Send + Sync>;

/// What lies in a mailbox: the device's own messages, and the two that every queue's thread understands.
enum Letter<M> {
    Message(M),
    Confine(ThreadHook, Reply<io::Result<()>>),
    End,
}

/// The thread's end.
pub struct Mailbox<M> {
    receiver: Receiver<Letter<M>>,
    wake: Arc<EventFd>,
    name: Arc<str>,
}

/// A sender's end, of which there may be any number.
pub struct Address<M> {
    sender: Sender<Letter<M>>,
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
pub struct Reply<T>(Sender<T>);

/// What a thread will answer.
#[must_use = "the thread has not done it until it has answered"]
pub struct Answer<T> {
    receiver: Option<Receiver<T>>,
    name: Arc<str>,
}

/// Both ends of the mailbox of the thread `name`.
///
/// # Errors
/// There is no descriptor left for its eventfd.
pub fn mailbox<M>(name: &str) -> io::Result<(Address<M>, Mailbox<M>)> {
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let (sender, receiver) = mpsc::channel();
    let name = Arc::<str>::from(name);
    let address = Address { sender, wake: Arc::clone(&wake), name: Arc::clone(&name) };
    Ok((address, Mailbox { receiver, wake, name }))
}

impl<M> Clone for Address<M> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), wake: Arc::clone(&self.wake), name: Arc::clone(&self.name) }
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
        let _ = self.sender.send(Letter::End).is_ok_and(|()| self.wake.write(1).is_ok());
    }

    fn post<T>(&self, letter: impl FnOnce(Reply<T>) -> Letter<M>) -> Answer<T> {
        let (sender, receiver) = mpsc::channel();
        // First the letter, then the wake: the thread that wakes finds it.
        let sent = self.sender.send(letter(Reply(sender))).is_ok() && self.wake.write(1).is_ok();
        Answer { receiver: sent.then_some(receiver), name: Arc::clone(&self.name) }
    }
}

impl<T> Reply<T> {
    /// Answers.
    pub fn send(self, value: T) {
        // The sender of the message may have stopped waiting.
        let _ = self.0.send(value);
    }
}

impl<T> Answer<T> {
    /// Waits for the answer.
    ///
    /// # Errors
    /// The thread has ended, or ends before it answers.
    pub fn wait(self) -> Result<T, Gone> {
        self.receiver.and_then(|receiver| receiver.recv().ok()).ok_or(Gone { name: self.name })
    }
}

impl<M> Mailbox<M> {
    /// The eventfd to watch, edge-triggered: it is written after each message and never read.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Takes every message there is. To confine the thread is done here, whatever the device. `Break`: the thread is to end.
    pub fn take(&self, mut each: impl FnMut(M)) -> ControlFlow<()> {
        for letter in self.receiver.try_iter() {
            match letter {
                Letter::Message(message) => each(message),
                Letter::Confine(hook, reply) => reply.send(hook(&self.name)),
                Letter::End => return ControlFlow::Break(()),
            }
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_hook_runs_with_the_threads_name_and_its_error_comes_back() {
        let (address, mailbox) = mailbox::<()>("test-1").unwrap();
        let hook: ThreadHook = Arc::new(|name| Err(io::Error::other(format!("not {name}"))));
        let answer = address.confine(hook);
        assert!(mailbox.take(|()| ()).is_continue());
        assert_eq!(answer.wait().unwrap().unwrap_err().to_string(), "not test-1");
    }
}
