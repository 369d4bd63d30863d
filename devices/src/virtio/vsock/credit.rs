//! Who may send how much (virtio 1.2 §5.10.6.3). All counts run over all values of 32 bits.

use super::packet::Header;

/// What the guest may send: no more than we have promised to take.
#[derive(Debug)]
pub(super) struct Inbound {
    /// How many bytes there is room for.
    promise: u32,
    received: u32,
    /// Handed to the host's program.
    forwarded: u32,
    /// The same, as the guest was last told.
    told: u32,
}

impl Inbound {
    pub(super) fn new(promise: u32) -> Self {
        Self { promise, received: 0, forwarded: 0, told: 0 }
    }

    pub(super) fn promise(&self) -> u32 {
        self.promise
    }

    /// Takes so many bytes; false where that is more than was promised.
    pub(super) fn take(&mut self, len: u32) -> bool {
        let waiting = self.received.wrapping_sub(self.forwarded);
        let takes = len <= self.promise - waiting;
        if takes {
            self.received = self.received.wrapping_add(len);
        }
        takes
    }

    /// So many of them are the host's now.
    pub(super) fn forward(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len);
    }

    /// Whether the guest is to hear of it, although there is nothing else to say: it thinks that less than half is free.
    pub(super) fn is_due(&self) -> bool {
        self.told != self.forwarded && self.received.wrapping_sub(self.told) > self.promise / 2
    }

    /// What a header tells of it.
    pub(super) fn tell(&mut self, header: &mut Header) {
        self.told = self.forwarded;
        (header.buf_alloc, header.fwd_cnt) = (self.promise, self.forwarded);
    }
}

/// What the host may send: no more than the guest says that it takes.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    sent: u32,
    alloc: u32,
    forwarded: u32,
}

impl Outbound {
    /// What the guest's header says. Any packet of the connection has it.
    pub(super) fn hear(&mut self, header: &Header) {
        (self.alloc, self.forwarded) = (header.buf_alloc, header.fwd_cnt);
    }

    /// How many bytes the guest has room for; a guest whose numbers make no sense has none.
    pub(super) fn room(&self) -> u32 {
        self.alloc.saturating_sub(self.sent.wrapping_sub(self.forwarded))
    }

    pub(super) fn send(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_sends_no_more_than_was_promised() {
        let mut credit =
            Inbound { promise: 100, received: u32::MAX - 10, forwarded: u32::MAX - 10, told: u32::MAX - 10 };
        assert!(credit.take(60) && !credit.take(41) && credit.take(40) && !credit.take(1));
        assert!(!credit.is_due(), "nothing is forwarded");
        credit.forward(1);
        assert!(credit.is_due());
        let mut header = Header::default();
        credit.tell(&mut header);
        assert_eq!((header.buf_alloc, header.fwd_cnt), (100, u32::MAX - 9));
        assert!(!credit.is_due() && credit.take(1) && !credit.take(1));
        credit.forward(100);
        credit.tell(&mut header);
        assert!(credit.take(50));
        credit.forward(50);
        assert!(!credit.is_due(), "half is free as the guest knows it");
        assert!(credit.take(1) && credit.is_due());
    }

    #[test]
    fn the_host_sends_no_more_than_the_guest_has_room_for() {
        let mut credit = Outbound::default();
        assert_eq!(credit.room(), 0);
        credit.hear(&Header { buf_alloc: 10, ..Header::default() });
        credit.send(10);
        assert_eq!(credit.room(), 0);
        credit.hear(&Header { buf_alloc: 10, fwd_cnt: 4, ..Header::default() });
        assert_eq!(credit.room(), 4);
        // Room that it takes back, and bytes that it was never sent.
        credit.hear(&Header { buf_alloc: 2, fwd_cnt: 4, ..Header::default() });
        assert_eq!(credit.room(), 0);
        credit.hear(&Header { buf_alloc: 10, fwd_cnt: 11, ..Header::default() });
        assert_eq!(credit.room(), 0);
    }
}
