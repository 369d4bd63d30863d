//! What a driver asks for, read out of a chain of descriptors (virtio 1.3 §5.2.6).
//!
//! The chain is bytes to the device, wherever its descriptors begin and end: a header of 16, then what is written or which ranges
//! are discarded; and bytes from it: what is read, then one of status.

use std::fmt;

use virtio_bindings::virtio_blk::*;
use vm_memory::VolatileSlice;

use super::buffers::Buffers;
use super::{
    F_DISCARD, F_WRITE_ZEROES, MAX_BYTES, MAX_DISCARD, MAX_RANGES, MAX_ZERO_RANGES, MAX_ZEROES, SECTOR,
};
use crate::virtio::queue::{Chain, Error, Mapped, VirtQueue};

/// The serial number, as `VIRTIO_BLK_T_GET_ID` gives it: with zeroes at its end where it is shorter.
pub(super) type Id = [u8; VIRTIO_BLK_ID_BYTES as usize];

/// Type, reserved, sector.
const HEADER_LEN: usize = 16;
/// Sector, number of sectors, flags (`struct virtio_blk_discard_write_zeroes`).
const RANGE_LEN: usize = 16;

/// What the driver is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    fn byte(self) -> u8 {
        (match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoError => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        }) as u8
    }
}

/// What is to be done for a request that makes sense. Offsets and lengths are in bytes, and end with the disk at the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Read {
        offset: u64,
    },
    Write {
        offset: u64,
    },
    Flush,
    /// Nothing more: its serial number is where it belongs.
    Identify,
    Discard,
    WriteZeroes,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { offset } => write!(f, "read at byte {offset}"),
            Self::Write { offset } => write!(f, "write at byte {offset}"),
            Self::Flush => f.write_str("flush what was written"),
            Self::Identify => f.write_str("say its serial number"),
            Self::Discard => f.write_str("give back what is discarded"),
            Self::WriteZeroes => f.write_str("write zeroes"),
        }
    }
}

/// A range of a request to discard or to write zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) len: u64,
    /// What is zeroed may be given back to the host.
    pub(super) unmap: bool,
}

/// What a request is held to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The size of the disk.
    pub(super) bytes: u64,
    pub(super) read_only: bool,
    /// The features on offer.
    pub(super) features: u64,
}

/// A request of the driver's, from its chain to its answer. Its room is used again for the next one.
#[derive(Debug)]
pub(super) struct Request<'m> {
    head: u16,
    header: [u8; HEADER_LEN],
    /// How much of the header there is.
    header_len: usize,
    /// What is read or written, without header and status.
    pub(super) buffers: Buffers<'m>,
    ranges: [u8; MAX_RANGES * RANGE_LEN],
    ranges_len: usize,
    /// Bytes to the device behind the header, and bytes from it before the status.
    sent: u64,
    room: u64,
    /// More pieces or ranges than any request may have.
    too_many: bool,
    status: Option<VolatileSlice<'m>>,
}

impl<'m> Request<'m> {
    /// Room for one.
    pub(super) fn new() -> Self {
        Self {
            head: 0,
            header: [0; HEADER_LEN],
            header_len: 0,
            buffers: Buffers::default(),
            ranges: [0; MAX_RANGES * RANGE_LEN],
            ranges_len: 0,
            sent: 0,
            room: 0,
            too_many: false,
            status: None,
        }
    }

    /// Reads the chain. For a driver that wants the serial number, `id` is written where it belongs.
    ///
    /// # Errors
    /// All that can be wrong with a chain; [`Error::TooShort`] where it has no byte for the status, so that there is no answer.
    pub(super) fn gather(
        &mut self,
        queue: &VirtQueue,
        rings: &Mapped<'m>,
        chain: Chain,
        id: &Id,
    ) -> Result<(), Error> {
        (self.head, self.header, self.header_len, self.ranges_len) = (chain.head, [0; HEADER_LEN], 0, 0);
        (self.sent, self.room, self.too_many, self.status) = (0, 0, false, None);
        self.buffers.clear();
        let mut last: Option<VolatileSlice<'m>> = None;
        queue.gather(rings, chain, |piece, writable| {
            if !writable {
                self.take_sent(piece)
            } else if let Some(before) = last.replace(piece) {
                self.take_room(before, id);
            }
            Ok(())
        })?;
        let last = last.ok_or(Error::TooShort(chain.head))?;
        let (room, status) =
            last.split_at(last.len() - 1).map_err(|error| Error::Buffer(chain.head, error.into()))?;
        self.take_room(room, id);
        self.status = Some(status);
        Ok(())
    }

    fn take_sent(&mut self, mut piece: VolatileSlice<'m>) {
        if self.header_len < HEADER_LEN {
            let taken = piece.copy_to(&mut self.header[self.header_len..]);
            self.header_len += taken;
            match piece.offset(taken) {
                Ok(rest) => piece = rest,
                Err(_) => return,
            }
        }
        self.sent += piece.len() as u64;
        match self.kind() {
            VIRTIO_BLK_T_OUT => self.too_many |= !self.buffers.push(piece),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                self.ranges_len += piece.copy_to(&mut self.ranges[self.ranges_len..]);
            }
            _ => {}
        }
    }

    fn take_room(&mut self, piece: VolatileSlice<'m>, id: &Id) {
        match self.kind() {
            VIRTIO_BLK_T_IN => self.too_many |= !self.buffers.push(piece),
            VIRTIO_BLK_T_GET_ID => piece.copy_from(&id[id.len().min(self.room as usize)..]),
            _ => {}
        }
        self.room += piece.len() as u64;
    }

    /// Its type; of less than a header, whatever is there.
    fn kind(&self) -> u32 {
        u32::from_le_bytes([self.header[0], self.header[1], self.header[2], self.header[3]])
    }

    /// What is to be done.
    ///
    /// # Errors
    /// The answer, where nothing is.
    pub(super) fn work(&self, limits: &Limits) -> Result<Work, Status> {
        if self.header_len < HEADER_LEN || self.too_many {
            return Err(Status::IoError);
        }
        match self.kind() {
            VIRTIO_BLK_T_IN if self.sent == 0 => {
                self.place(self.room, limits).map(|offset| Work::Read { offset })
            }
            VIRTIO_BLK_T_OUT if self.room == 0 && !limits.read_only => {
                self.place(self.sent, limits).map(|offset| Work::Write { offset })
            }
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT => Err(Status::IoError),
            VIRTIO_BLK_T_FLUSH => Ok(Work::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Work::Identify),
            VIRTIO_BLK_T_DISCARD if limits.features & F_DISCARD != 0 => {
                self.check_ranges(limits, MAX_RANGES, MAX_DISCARD).map(|()| Work::Discard)
            }
            VIRTIO_BLK_T_WRITE_ZEROES if limits.features & F_WRITE_ZEROES != 0 => {
                self.check_ranges(limits, MAX_ZERO_RANGES, MAX_ZEROES).map(|()| Work::WriteZeroes)
            }
            _ => Err(Status::Unsupported),
        }
    }

    /// Where on the disk its `len` bytes are.
    fn place(&self, len: u64, limits: &Limits) -> Result<u64, Status> {
        let [.., a, b, c, d, e, f, g, h] = self.header;
        let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let whole = len != 0 && len.is_multiple_of(SECTOR) && len <= MAX_BYTES;
        place(sector, len, limits.bytes).filter(|_| whole).ok_or(Status::IoError)
    }

    fn check_ranges(&self, limits: &Limits, most: usize, sectors: u32) -> Result<(), Status> {
        let flags = |range: &[u8]| u32::from_le_bytes([range[12], range[13], range[14], range[15]]);
        let ranges = || self.ranges[..self.ranges_len].chunks_exact(RANGE_LEN);
        // Flags that nobody knows, and a discard that says to unmap, which it does anyway (§5.2.6.2).
        let known = if self.kind() == VIRTIO_BLK_T_DISCARD { 0 } else { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP };
        if ranges().any(|range| flags(range) & !known != 0) {
            return Err(Status::Unsupported);
        }
        let count = self.ranges_len / RANGE_LEN;
        let whole = self.sent == (count * RANGE_LEN) as u64 && (1..=most).contains(&count);
        let good = |range: &[u8]| {
            let (sector, count) = range_of(range);
            count <= sectors && place(sector, u64::from(count) * SECTOR, limits.bytes).is_some()
        };
        let good = whole && !limits.read_only && ranges().all(good);
        if good { Ok(()) } else { Err(Status::IoError) }
    }

    /// How many bytes a request to read or to write moves.
    pub(super) fn bytes(&self) -> u64 {
        self.sent + self.room
    }

    /// The ranges of a request to discard or to write zeroes, which were found good.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        self.ranges[..self.ranges_len].chunks_exact(RANGE_LEN).map(|range| {
            let (sector, count) = range_of(range);
            let unmap = u32::from(range[12]) & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
            Range { offset: sector * SECTOR, len: u64::from(count) * SECTOR, unmap }
        })
    }

    /// Writes the answer. What is left to be given back: the chain's head, and how many bytes were written from the first one on.
    pub(super) fn answer(&mut self, status: Status) -> (u16, u32) {
        if let Some(place) = self.status.take() {
            place.copy_from(&[status.byte()]);
        }
        self.buffers.clear();
        // Of what failed nobody knows how far it came (§2.7.8.2).
        let whole = self.room == 0 || status == Status::Ok;
        (self.head, if whole { (self.room + 1).try_into().unwrap_or(u32::MAX) } else { 0 })
    }
}

fn range_of(range: &[u8]) -> (u64, u32) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = range else { return (0, 0) };
    (u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), u32::from_le_bytes([*i, *j, *k, *l]))
}

/// The offset in bytes of `len` bytes from `sector` on, if they are all on a disk of so many.
fn place(sector: u64, len: u64, disk: u64) -> Option<u64> {
    let offset = sector.checked_mul(SECTOR)?;
    (offset.checked_add(len)? <= disk).then_some(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_more_pieces_than_any_may_have_is_an_error() {
        let limits = Limits { bytes: 1 << 30, read_only: false, features: 0 };
        // Each apart from the next, so that they are so many.
        let mut bytes = vec![0; (Buffers::MAX + 1) * 1024];
        let memory = VolatileSlice::from(&mut bytes[..]);
        let pieces = |count: usize| (0..count).map(|nth| memory.subslice(1024 * nth, 512).unwrap());
        for (kind, count, good) in [
            (VIRTIO_BLK_T_OUT, Buffers::MAX, true),
            (VIRTIO_BLK_T_OUT, Buffers::MAX + 1, false),
            (VIRTIO_BLK_T_IN, Buffers::MAX, true),
            (VIRTIO_BLK_T_IN, Buffers::MAX + 1, false),
        ] {
            let mut header = [0; HEADER_LEN];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            let mut request = Request::new();
            request.take_sent(VolatileSlice::from(&mut header[..]));
            for piece in pieces(count) {
                match kind {
                    VIRTIO_BLK_T_OUT => request.take_sent(piece),
                    _ => request.take_room(piece, &[0; 20]),
                }
            }
            let expected = match (good, kind) {
                (false, _) => Err(Status::IoError),
                (true, VIRTIO_BLK_T_OUT) => Ok(Work::Write { offset: 0 }),
                (true, _) => Ok(Work::Read { offset: 0 }),
            };
            assert_eq!(request.work(&limits), expected, "{count} of {kind}");
        }
    }
}
