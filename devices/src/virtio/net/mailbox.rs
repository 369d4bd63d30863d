//! What a queue pair's thread is asked by message, over the [mailbox](crate::virtio::mailbox) of a queue's thread.
//!
//! Only a pair's own thread touches its rings and its backend, so whatever anybody wants of it is a message, and is answered: an
//! activation, a reset, a command of the driver's, which arrives at the first pair and concerns them all.
//!
//! **Invariant: nobody waits in a circle.** A vCPU (in an activation or a reset) and the holder of a
//! [`Handle`](super::handle::Handle) wait for any pair. The first pair, which has the control queue, waits for the others: a
//! command that the driver finds done is done on every pair (virtio 1.2 §5.1.6.5.5). The others wait for nobody, and answer in every
//! state: a pair that has no driver, is paused, or has ended its work does too. So each wait ends within the bursts in hand, in
//! whatever order messages arrive, and a thread that panics counts as an answer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use net::RxFilter;
use vm_memory::GuestMemoryMmap;

use super::control::{Control, OtherPairs, PairCommand};
use super::error::Error;
use super::queue_pair::{HostEnd, NicRate, ReceiveSpace};
use super::state::PairState;
use crate::virtio::device::{ActiveQueue, Interrupt};
use crate::virtio::mailbox::{Address, Answer, Gone, Reply};

/// A message to a pair's thread.
pub enum Message {
    /// Prepares the host's end for a driver that has said nothing yet: the host brings no frames to a pair after the first, and
    /// filters like this.
    Prepare(RxFilter, Reply<Result<(), Error>>),
    /// The driver is ready: moves frames between its rings and the backend.
    Start(Box<Start>, Reply<Result<(), Error>>),
    /// A reset: touches neither rings nor guest memory any more, and drops them. The backend stays for the next driver.
    Stop(Reply<()>),
    /// A command of the driver's, from the control queue.
    Command(PairCommand, Reply<io::Result<()>>),
    /// The driver resets a queue: touches neither its rings nor its buffers until it is enabled.
    ResetQueue(PairQueue, Reply<()>),
    /// Goes on with a queue that was reset, and is set up anew.
    EnableQueue(PairQueue, Box<ActiveQueue>, Reply<()>),
    /// The vectors of the queues may be others now.
    Reroute(Reply<io::Result<()>>),
    /// Moves no frames of the driver's from now on, until it is to resume: it touches neither its rings nor, by itself, its backend.
    Pause(Reply<io::Result<PairState>>),
    /// Goes on where it is.
    Resume(Reply<io::Result<()>>),
    /// Has nothing plugged in from now on, or what it had.
    Link(bool, Reply<io::Result<()>>),
    /// Takes another host's end, and gives the one before back; or the new one, where it cannot be taken.
    Exchange(Box<HostEnd>, Reply<Exchanged>),
    /// Says on the host's link whether there is somebody at the guest's end.
    Carrier(bool, Reply<()>),
    /// Interrupts the driver, if there is one: the configuration has changed.
    ConfigChanged(Reply<io::Result<()>>),
    /// Keeps to this rate, which all pairs share, or to none.
    Rate(Option<Arc<NicRate>>, Reply<()>),
    /// Sends these frames, each behind its header, as if the guest did.
    Send(Vec<Vec<u8>>, Reply<()>),
}

/// The host's end before; or the new one, and why it cannot be taken.
pub(super) type Exchanged = Result<Box<HostEnd>, (Box<HostEnd>, io::Error)>;

/// A queue, of those that a pair has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairQueue {
    /// Host to guest.
    Receive,
    /// Guest to host.
    Transmit,
    /// The NIC's control queue, of the pair that it rides with.
    Control,
}

/// All that a pair has for as long as one driver runs.
pub struct Start {
    /// Guest memory.
    pub(super) memory: GuestMemoryMmap,
    /// The feature bits that the driver accepted.
    pub(super) accepted: u64,
    /// How the driver is told.
    pub(super) interrupt: Arc<dyn Interrupt>,
    /// The receive queue.
    pub(super) rx: ActiveQueue,
    /// The transmit queue.
    pub(super) tx: ActiveQueue,
    /// What the driver posts for a frame, and reads.
    pub(super) space: ReceiveSpace,
    /// How long the thread, or the kernel's, polls for frames before it sleeps; none where the thread finds out.
    pub(super) poll: Option<Duration>,
    /// The control queue, for the first pair.
    pub(super) control: Option<Control>,
}

/// Sends each of `pairs` the message that `message` makes for its index there, and waits until all have answered, or ended.
pub(super) fn ask_all<T>(
    pairs: &[Address<Message>],
    message: impl Fn(usize, Reply<T>) -> Message,
) -> Vec<Result<T, Gone>> {
    let answers: Vec<_> =
        pairs.iter().enumerate().map(|(index, pair)| pair.ask(|reply| message(index, reply))).collect();
    answers.into_iter().map(Answer::wait).collect()
}

impl OtherPairs for Vec<Address<Message>> {
    fn count(&self) -> usize {
        self.len()
    }

    fn command_all(&self, command: &dyn Fn(usize) -> PairCommand) -> io::Result<()> {
        // A pair that has panicked moves nothing any more, so it needs no command either.
        ask_all(self, |index, reply| Message::Command(command(index), reply)).into_iter().flatten().collect()
    }
}
