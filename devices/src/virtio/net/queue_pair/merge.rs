//! Several frames of the guest by one write, where the host's end cuts them again ([`Run`]).
//!
//! **Invariant: no frame waits for another.** What is on the ring now is looked at, as far as it goes with the frame in hand; the first
//! that does not is the next one in hand, gathered and not taken twice.
//!
//! **Invariant: a frame is used when it is sent.** Those of a packet are taken off the ring and are used together behind its write; if the
//! host says "not now", or refuses packets of this kind, all of them are put back.

use std::io;

use net::{FrameHead, HEADER_LEN, Iov, IovBuffer, Kinds, Run};
use vm_memory::VolatileSlice;

use super::rate::Allowance;
use super::transmit::MAX_FRAME;
use crate::virtio::queue::{Chain, Mapped, VirtQueue};

/// What a pair has for it, allocated once.
pub(super) struct Merge {
    /// The kinds of packets that the host's end takes, so far as it is known.
    kinds: Kinds,
    mtu: u16,
    ahead: IovBuffer,
    packet: IovBuffer,
    headers: [u8; FrameHead::MAX],
    read: [FrameHead; 2],
    heads: [u16; Run::FRAMES_MAX],
}

impl Merge {
    /// For a host's end that [merges](net::Backend::merges) so; none where it does not.
    pub(super) fn new((kinds, mtu): (Kinds, u16)) -> Option<Box<Self>> {
        let any = kinds.tso4 || kinds.tso6 || kinds.uso;
        any.then(|| {
            Box::new(Self {
                kinds,
                mtu,
                ahead: IovBuffer::new(),
                packet: IovBuffer::new(),
                headers: [0; FrameHead::MAX],
                read: [FrameHead::empty(); 2],
                heads: [0; Run::FRAMES_MAX],
            })
        })
    }

    /// Begins a burst.
    pub(super) fn start(&mut self) -> Ahead<'_> {
        Ahead {
            kinds: &mut self.kinds,
            mtu: self.mtu,
            next: None,
            frame: self.ahead.start(),
            read: &mut self.read,
            turned: false,
            is_read: false,
            headers: VolatileSlice::from(&mut self.headers[..]),
            packet: self.packet.start(),
            heads: &mut self.heads,
        }
    }
}

/// How a burst looks ahead.
pub(super) struct Ahead<'m> {
    kinds: &'m mut Kinds,
    mtu: u16,
    /// The chain that was taken and did not go with those before it, and its buffers.
    next: Option<Chain>,
    frame: Iov<'m>,
    /// The first bytes of the frame in hand and of that one; or the other way round, if they are turned.
    read: &'m mut [FrameHead; 2],
    turned: bool,
    /// Those of that one are there.
    is_read: bool,
    headers: VolatileSlice<'m>,
    /// The frames that go as one.
    packet: Iov<'m>,
    /// The chains of the packet.
    heads: &'m mut [u16; Run::FRAMES_MAX],
}

/// Frames that go as one.
pub(super) struct Packet {
    pub(super) frames: u64,
    /// Of the frames, without their virtio-net headers.
    pub(super) bytes: u64,
    kind: Kinds,
}

impl<'m> Ahead<'m> {
    /// The frame that was taken ahead, in the place of the last one in `frame`.
    pub(super) fn take(&mut self, frame: &mut Iov<'m>) -> Option<Chain> {
        let chain = self.next.take()?;
        std::mem::swap(frame, &mut self.frame);
        Some(chain)
    }

    /// Takes off the ring what goes with the frame in hand, as long as that is `left`. None where it goes alone.
    pub(super) fn gather(
        &mut self,
        ring: &mut VirtQueue,
        rings: &Mapped<'m>,
        (chain, frame): (Chain, &Iov<'m>),
        left: &Allowance,
    ) -> Option<Packet> {
        // What was that one is in hand now.
        let is_read = std::mem::take(&mut self.is_read);
        self.turned ^= is_read;
        let [one, other] = &mut *self.read;
        let (first, head) = if self.turned { (other, one) } else { (one, other) };
        if !is_read && !first.read(frame) {
            return None;
        }
        let first_chain = chain;
        let mut run: Option<Run> = None;
        let mut bytes = (frame.len() - HEADER_LEN) as u64;
        while bytes < left.bytes
            && run.as_ref().map_or(1, Run::frames) as u64 != left.frames
            && !run.as_ref().is_some_and(Run::is_closed)
        {
            // What is wrong with the ring is found when the frame is next.
            let Ok(Some(chain)) = ring.next_ahead(rings) else { break };
            self.frame.clear();
            let gathered = ring.readable(rings, chain, &mut self.frame);
            if gathered.is_err() || !(HEADER_LEN..=MAX_FRAME).contains(&self.frame.len()) {
                ring.undo_pop();
                break;
            }
            self.is_read = head.read(&self.frame);
            self.next = Some(chain);
            if !self.is_read || !first.may_go_with(head) {
                break;
            }
            let mut longer = match run {
                Some(run) => run,
                None => match Run::begin(first, *self.kinds, self.mtu) {
                    Some(run) => run,
                    None => break,
                },
            };
            if !longer.add(first, head) {
                break;
            }
            let skip = longer.headers_len();
            if run.is_none() {
                self.packet.clear();
                self.heads[0] = first_chain.head;
                let headers = self.headers.subslice(0, skip).ok()?;
                if !self.packet.push(headers) || !self.packet.append(frame, skip) {
                    break;
                }
            }
            if !self.packet.append(&self.frame, skip) {
                break;
            }
            bytes += (self.frame.len() - HEADER_LEN) as u64;
            self.heads[longer.frames() - 1] = chain.head;
            (run, self.next, self.is_read) = (Some(longer), None, false);
        }
        let run = run?;
        self.headers.copy_from(&run.headers(first));
        Some(Packet { frames: run.frames() as u64, bytes, kind: run.kind() })
    }

    /// The packet that was gathered.
    pub(super) fn packet(&self) -> &Iov<'m> {
        &self.packet
    }

    /// The chains of the packet, in order.
    pub(super) fn heads(&self, packet: &Packet) -> &[u16] {
        &self.heads[..packet.frames as usize]
    }

    /// True where `error` says that the host's end does not take packets of this kind after all: their frames go one by one from now
    /// on. (Linux before 6.2 has no packets of UDP, and a tap with `IFF_NAPI_FRAGS` takes few buffers at once; a frame's own header is
    /// never why, for the headers of a packet are ours.)
    #[cold]
    pub(super) fn is_refusal(&mut self, packet: &Packet, error: &io::Error) -> bool {
        let Packet { kind, .. } = packet;
        let refused =
            error.kind() == io::ErrorKind::InvalidInput || error.raw_os_error() == Some(libc::EMSGSIZE);
        if refused {
            // Once for each kind.
            let name = if kind.uso { "UDP" } else { "TCP" };
            log::info!(
                "the host's link takes no packets of several {name} frames ({error}): each goes by itself"
            );
            let kinds = &mut *self.kinds;
            (kinds.tso4, kinds.tso6, kinds.uso) =
                (kinds.tso4 && !kind.tso4, kinds.tso6 && !kind.tso6, kinds.uso && !kind.uso);
        }
        refused
    }

    /// Puts what was taken ahead back on the ring.
    pub(super) fn put_back(&mut self, ring: &mut VirtQueue) {
        if self.next.take().is_some() {
            ring.undo_pop();
        }
        self.is_read = false;
    }
}
