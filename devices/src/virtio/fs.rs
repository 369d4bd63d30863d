//! The file system device (virtio 1.2 §5.11): a directory of the host in the guest, by FUSE requests on its queues. The work is that of
//! another process, `virtiofsd`, behind a [vhost-user](super::vhost_user) front end.

use std::io;

use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use vm_memory::{Bytes, VolatileSlice};

use super::device::{Activation, DeviceThreads, VirtioDevice};
use super::queue::{self, Chain, Mapped, VirtQueue};
use super::served::Serve;
use super::vhost_user::{BackEnd, VhostUser};

/// The most bytes of a tag (§5.11.4).
pub const TAG_MAX: usize = 36;

/// The device.
pub struct VirtioFs {
    config: [u8; CONFIG],
    front_end: VhostUser,
}

/// The tag, padded with zeroes, and how many queues there are for requests.
const CONFIG: usize = TAG_MAX + 4;

/// Of each queue: the one for requests that must not wait, and one for the others, which is what `virtiofsd` has.
const QUEUE_MAX_SIZES: [u16; 2] = [1024, 1024];

impl VirtioFs {
    /// How many queues its back end must have.
    pub const QUEUES: u64 = QUEUE_MAX_SIZES.len() as u64;

    /// The device whose driver mounts it by `tag`, of which so much counts as is [allowed](TAG_MAX), with its thread `name`. Where
    /// the back end is of no use any more, `end` is called, which has its process end.
    ///
    /// # Errors
    /// There are no descriptors or no threads left.
    pub fn new(name: &str, tag: &str, back_end: BackEnd, end: Box<dyn Fn() + Send>) -> io::Result<Self> {
        let mut config = [0; CONFIG];
        let len = tag.len().min(TAG_MAX);
        config[..len].copy_from_slice(&tag.as_bytes()[..len]);
        config[TAG_MAX..].copy_from_slice(&(QUEUE_MAX_SIZES.len() as u32 - 1).to_le_bytes());
        let front_end = VhostUser::spawn(
            name,
            format!("the share {tag}"),
            back_end,
            end,
            QUEUE_MAX_SIZES.len(),
            NotConnected,
        )?;
        Ok(Self { config, front_end })
    }

    /// Its thread.
    pub fn threads(&self) -> Box<dyn DeviceThreads> {
        self.front_end.threads()
    }
}

impl VirtioDevice for VirtioFs {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn features(&self) -> u64 {
        self.front_end.features()
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_MAX_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.config.get(offset..));
        for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
            *to = *from;
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.front_end.start(activation)
    }

    fn rerouted(&mut self) {
        self.front_end.rerouted();
    }

    fn reset(&mut self) {
        self.front_end.stop();
    }
}

/// What the guest gets once `virtiofsd` is gone: `ENOTCONN` for each request, as of any FUSE file system whose server has ended.
struct NotConnected;

const ENOTCONN: i32 = 107;
/// `fuse_in_header` begins with length, kind and number of the request; `fuse_out_header` is length, error and that number.
const HEADER: usize = 16;

impl Serve for NotConnected {
    fn serve(
        &mut self,
        _index: u16,
        queue: &VirtQueue,
        rings: &Mapped<'_>,
        chain: Chain,
    ) -> Result<u32, queue::Error> {
        let (mut request, mut asked) = ([0; HEADER], 0);
        let (mut answer, mut answered) = ([0; HEADER], 0);
        let memory = |error: vm_memory::VolatileMemoryError| queue::Error::Memory(error.into());
        queue.gather(rings, chain, |buffer: VolatileSlice<'_>, writable| {
            if !writable {
                let len = buffer.len().min(HEADER - asked);
                buffer.read_slice(&mut request[asked..asked + len], 0).map_err(memory)?;
                asked += len;
                return Ok(());
            }
            // Those that read only come first.
            answer[..4].copy_from_slice(&(HEADER as u32).to_le_bytes());
            answer[4..8].copy_from_slice(&(-ENOTCONN).to_le_bytes());
            answer[8..].copy_from_slice(&request[8..]);
            let len = buffer.len().min(HEADER - answered);
            buffer.write_slice(&answer[answered..answered + len], 0).map_err(memory)?;
            answered += len;
            Ok(())
        })?;
        Ok(answered as u32)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::virtio::mock::{Buffer, MockRing};

    #[test]
    fn a_header_is_read_and_answered_however_it_is_cut() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 16)]).unwrap();
        let request: [u8; 24] = std::array::from_fn(|at| at as u8 + 1);
        let answer = [&[16, 0, 0, 0][..], &(-107_i32).to_le_bytes(), &request[8..16]].concat();
        for (asked, answered) in
            [(&[24][..], &[16][..]), (&[5, 3, 1, 15], &[3, 9, 0, 4]), (&[24], &[10, 40]), (&[16], &[7])]
        {
            let mut mock = MockRing::new(&memory, 0x1000, 16, false);
            memory.write_slice(&[0; 64], GuestAddress(0x9000)).unwrap();
            memory.write_slice(&request, GuestAddress(0x8000)).unwrap();
            let mut chain = Vec::new();
            for (start, lens, writable) in [(0x8000, asked, false), (0x9000, answered, true)] {
                let mut addr = start;
                for &len in lens {
                    chain.push(Buffer { addr, len, writable });
                    addr += u64::from(len);
                }
            }
            mock.add(&chain).unwrap();
            mock.publish();
            let mut queue = VirtQueue::new(mock.setup(), queue::F_VERSION_1, &memory).unwrap();
            let rings = queue.map(&memory).unwrap();
            let chain = queue.pop(&rings).unwrap().unwrap();
            let written = NotConnected.serve(0, &queue, &rings, chain).unwrap();
            let room = answered.iter().sum::<u32>().min(16);
            let mut said = [0; 64];
            memory.read_slice(&mut said, GuestAddress(0x9000)).unwrap();
            assert_eq!(written, room);
            assert_eq!(said[..room as usize], answer[..room as usize]);
            assert!(said[room as usize..].iter().all(|byte| *byte == 0));
        }
    }
}
