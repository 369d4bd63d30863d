//! A device whose work another process does, by the vhost-user protocol: which device it is, is the business of who has the front end.
//!
//! ```text
//! guest: kick ──ioeventfd──► back end: the rings, in memory that it shares ──irqfd──► guest
//! ```
//! Kicks go to the back end and interrupts come from it without us. What is left is a thread that starts and stops the rings there, and
//! hears of the back end's end. From then on the device is served by its fallback here, which answers each request with
//! an error. A back end does not come back. One that is late or lies is made to end, and its rings are left alone until it has: it has
//! the guest's memory for as long as it is there.
//!
//! ```text
//!          Start              Pause
//!   Idle ────────► Running ◄────────► Paused       the back end is gone, or makes no sense: Orphaned, for good;
//!    ▲                │      Resume     │           the same states, with the fallback at work
//!    └──── Stop ──────┴─────────────────┘
//! ```
//!
//! Messages by hand rather than by the crate vhost: that brings eight crates more (uuid and rand among them), and waits for an answer for
//! as long as a byte comes now and then.

mod protocol;
mod worker;

use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use self::protocol::{BackEnd, Error, PATIENCE, Request};
use self::worker::{Message, prepare};
use super::device::{Activation, DeviceThreads};
use super::mailbox::{Address, ThreadHook};
use super::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use super::queue_thread::QueueThread;
use super::served::Serve;

/// How long anybody waits for the thread: twice as long as it takes with a back end that is late, for it may have another message first.
const MOST: Duration = Duration::from_secs(2 * PATIENCE.as_secs() + 5);

/// The front end of such a device.
pub(super) struct VhostUser {
    thread: QueueThread<Message>,
    features: u64,
}

impl VhostUser {
    /// Spawns the thread `name`, for a device of so many queues that `back_end` works for, and `fallback` once that is gone. The log
    /// calls it `title`. Where the back end is of no use any more, `end` is called, which has its process end.
    ///
    /// # Errors
    /// There are no descriptors or no threads left.
    pub(super) fn spawn(
        name: &str,
        title: String,
        back_end: BackEnd,
        end: Box<dyn Fn() + Send>,
        queues: usize,
        fallback: impl Serve,
    ) -> io::Result<Self> {
        let features = F_VERSION_1 | back_end.features() & (F_EVENT_IDX | F_INDIRECT_DESC);
        let prepare = move |mailbox| prepare(mailbox, title, back_end, end, queues, fallback);
        QueueThread::spawn(name, None, prepare).map(|thread| Self { thread, features })
    }

    /// The feature bits of the rings that both ends know; those of the device come on top.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// Starts with a driver's queues. It cannot fail for the back end: where that does, the fallback starts.
    pub(super) fn start(&self, activation: Activation) -> io::Result<()> {
        self.thread.address().ask(|reply| Message::Start(Box::new(activation), reply)).wait_within(MOST)?
    }

    /// The queues have other vectors.
    pub(super) fn rerouted(&self) {
        // A thread that is gone interrupts nobody.
        let _ = self.thread.address().ask(Message::Reroute).wait_within(MOST);
    }

    /// Returns once nothing touches the driver's queues any more. Where the back end does not say so, it is made to end; and where it
    /// does not, as a process that waits for the host's disk does not, this returns all the same, and the device does nothing from then on
    /// until it has.
    pub(super) fn stop(&self) {
        // A thread that is gone touches nothing.
        let _ = self.thread.address().ask(Message::Stop).wait_within(MOST);
    }

    /// By which the machine's owner reaches the thread.
    pub(super) fn threads(&self) -> Box<dyn DeviceThreads> {
        Box::new(Thread(self.thread.address().clone()))
    }
}

struct Thread(Address<Message>);

impl DeviceThreads for Thread {
    fn confine(&self, hook: &ThreadHook) -> io::Result<()> {
        self.0.confine(Arc::clone(hook)).wait()?
    }

    fn pause(&self) -> io::Result<()> {
        self.0.ask(Message::Pause).wait_within(MOST)
    }

    fn resume(&self) -> io::Result<()> {
        self.0.ask(Message::Resume).wait_within(MOST)
    }
}
