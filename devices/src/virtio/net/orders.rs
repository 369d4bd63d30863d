//! What the control queue, which rides on the first pair's thread, has the other pairs do.
//!
//! Only a pair's own thread touches it, so it is told by message, and answers. The control queue waits for the answers: a
//! command that the driver finds done is done on every pair (virtio 1.2 §5.1.6.5.5). They come within a burst, and from a pair
//! that ends meanwhile at once, for its inbox is closed then. No pair ever waits for the first.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};

use net::{Offloads, RxFilter};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// One thing for a pair to do.
#[derive(Clone, Debug)]
pub(super) enum Order {
    /// Receive frames, or leave them to the other pairs.
    Enable(bool),
    /// Another address, or other frames to receive.
    Filter(RxFilter),
    /// Leave other work to the driver in the frames that it receives.
    Offloads(Offloads),
}

type Message = (Order, Sender<io::Result<()>>);

/// The first pair's end: orders to one other pair.
pub struct Orders {
    sender: Sender<Message>,
    wake: EventFd,
}

/// The other pair's end.
pub struct Inbox {
    receiver: Option<Receiver<Message>>,
    wake: EventFd,
}

/// What a pair will answer.
pub(super) struct Answer(Option<Receiver<io::Result<()>>>);

/// Both ends.
///
/// # Errors
/// There is no descriptor left.
pub(super) fn orders() -> io::Result<(Orders, Inbox)> {
    let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    let (sender, receiver) = channel();
    Ok((Orders { sender, wake: wake.try_clone()? }, Inbox { receiver: Some(receiver), wake }))
}

impl Orders {
    /// Gives an order, and does not wait.
    pub(super) fn give(&self, order: Order) -> Answer {
        let (sender, receiver) = channel();
        let sent = self.sender.send((order, sender)).is_ok() && self.wake.write(1).is_ok();
        Answer(sent.then_some(receiver))
    }
}

impl Answer {
    /// Waits for it; none where the pair has ended and moves nothing any more.
    pub(super) fn wait(self) -> Option<io::Result<()>> {
        self.0?.recv().ok()
    }
}

impl Inbox {
    /// Readable once there may be orders.
    pub(super) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Does with each order what `obey` does, and answers.
    pub(super) fn obey(&self, mut obey: impl FnMut(Order) -> io::Result<()>) {
        for (order, answer) in self.receiver.iter().flat_map(Receiver::try_iter) {
            // Who gave it waits for the answer.
            let _ = answer.send(obey(order));
        }
    }

    /// Takes no more: who waits for an answer, or will, hears that there is none.
    pub(super) fn close(&mut self) {
        self.receiver = None;
    }
}
