//! vhost-net: the kernel carries frames between two rings and the descriptor of a tap or macvtap, in our place (kernel
//! `include/uapi/linux/vhost.h`, `drivers/vhost/net.c`).
//!
//! It is the only place of this crate that hears of a guest's memory, to hand it on: where rings are is a guest-physical
//! address, and what is in them only the kernel looks at.
//!
//! What is not written there, measured on Linux 6.12:
//! - The header before each frame is as long as the accepted features say, 12 bytes with `VIRTIO_F_VERSION_1`, and must be
//!   what the tap was set to; the kernel does not compare the two.
//! - The thread that moves frames is one of the process that made itself the owner, and runs on the CPUs of the thread that
//!   did. Before Linux 6.4 it was one of the kernel, on any CPU.
//! - It looks at a kick's eventfd and never reads it.
#![allow(unsafe_code)]

pub(crate) mod vsock;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::error::VhostError;
use crate::sys::VHOST_DEVICE as DEVICE;
use crate::{Error, NetConfig, VhostMode};

const VHOST: u32 = 0xaf;
/// A descriptor that stands for none.
const NONE: RawFd = -1;
/// How many regions of memory the kernel takes without being told otherwise (`max_mem_regions` of the module).
const REGIONS_MAX: usize = 64;

/// `vhost_vring_state`.
#[repr(C)]
struct State {
    index: u32,
    number: u32,
}

/// `vhost_vring_file`.
#[repr(C)]
struct Descriptor {
    index: u32,
    fd: RawFd,
}

/// `vhost_vring_addr`: addresses of this process.
#[repr(C)]
struct Addresses {
    index: u32,
    flags: u32,
    desc_table: u64,
    used_ring: u64,
    avail_ring: u64,
    log: u64,
}

/// `vhost_memory_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    guest_address: u64,
    len: u64,
    address: u64,
    flags: u64,
}

/// `vhost_memory`, whose ioctl has the size of its first two fields.
#[repr(C)]
struct Memory {
    count: u32,
    padding: u32,
    regions: [Region; REGIONS_MAX],
}

/// A ring for the kernel to work on.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    /// Entries, a power of two.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub desc_table: u64,
    /// Guest-physical address of the available ring.
    pub avail_ring: u64,
    /// Guest-physical address of the used ring.
    pub used_ring: u64,
    /// The eventfd that the driver kicks. Of this and the others, the kernel keeps what is behind the number.
    pub kick: RawFd,
    /// The eventfd that the kernel writes once it has used buffers.
    pub call: RawFd,
    /// The eventfd that the kernel writes when the ring makes no sense.
    pub error: RawFd,
}

/// vhost-net for one queue pair, at rest: it touches no memory. Or [vhost-vsock](Vhost::of_vsock).
#[derive(Debug)]
pub struct Vhost {
    device: File,
    features: u64,
    owned: bool,
    is_vsock: bool,
}

/// vhost-net at work on two rings.
///
/// It holds the guest's memory: the mapping stays as long as the kernel may write to it.
#[derive(Debug)]
pub struct Carrying {
    idle: Vhost,
    memory: GuestMemoryMmap,
}

impl Vhost {
    /// Opens the device, and asks what it can do.
    ///
    /// # Errors
    /// There is no such device, or no right to it, or it is of a kernel before Linux 2.6.34.
    fn open() -> io::Result<Self> {
        let mut options = OpenOptions::new();
        Self::over(options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE)?)
    }

    /// Takes over `device`, which is open and has no owner yet, and asks what it can do.
    ///
    /// # Errors
    /// It is no vhost-net.
    pub(crate) fn over(device: File) -> io::Result<Self> {
        let mut features = 0_u64;
        // SAFETY: VHOST_GET_FEATURES writes one u64.
        unsafe { call(&device, libc::_IOR::<u64>(VHOST, 0x00), &raw mut features as usize) }?;
        Ok(Self { device, features, owned: false, is_vsock: false })
    }

    /// The feature bits that the kernel knows of the rings and of the header before each frame; it leaves the rest to the tap.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Has the kernel make its thread, on the CPUs of the calling thread; it has one already the second time.
    ///
    /// # Errors
    /// There are no threads left.
    pub fn own(&mut self) -> io::Result<()> {
        if !self.owned {
            // SAFETY: VHOST_SET_OWNER takes no argument.
            unsafe { call(&self.device, libc::_IO(VHOST, 0x01), 0) }?;
            self.owned = true;
        }
        Ok(())
    }

    /// Gives the kernel `rings`, to receive and to transmit, as a driver of these `accepted` features wants them. It carries frames
    /// once it has a [wire](Carrying::carry). Before its thread sleeps, it polls for frames for `poll`.
    ///
    /// # Errors
    /// The kernel refuses; `self` comes back.
    // The error is large for what it returns, and as rare as it is large.
    #[allow(clippy::result_large_err)]
    pub fn start(
        mut self,
        memory: &GuestMemoryMmap,
        accepted: u64,
        rings: &[Ring; 2],
        poll: Duration,
    ) -> Result<Carrying, (Self, io::Error)> {
        if let Err(error) = self.own() {
            return Err((self, error));
        }
        // From here on the kernel may know the memory, so that it is held.
        let carrying = Carrying { memory: memory.clone(), idle: self };
        match carrying.set_up(accepted, rings, poll) {
            Ok(()) => Ok(carrying),
            Err(error) => Err((carrying.stop(), error)),
        }
    }
}

impl AsFd for Vhost {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl Carrying {
    fn set_up(&self, accepted: u64, rings: &[Ring; 2], poll: Duration) -> io::Result<()> {
        self.set(libc::_IOW::<u64>(VHOST, 0x00), &(accepted & self.idle.features))?;
        self.set_memory()?;
        (0..2).zip(rings).try_for_each(|(index, ring)| self.set_ring(index, ring, poll))
    }

    /// Has the kernel carry frames between the rings, from where it is in them, and `wire`, the descriptor of a tap or macvtap.
    ///
    /// A kick that came while it had no wire is lost on it: its handler finds no wire and forgets that it was called. Attaching one
    /// does not make up for that on every kernel and wire, for the handlers run then only if the wire itself is readable or writable
    /// just now. So the caller writes the kicks' eventfds afterwards, and the kernel looks at both rings.
    ///
    /// # Errors
    /// The kernel refuses, and carries nothing.
    pub fn carry(&self, wire: BorrowedFd<'_>) -> io::Result<()> {
        (0..2).try_for_each(|index| self.set_wire(index, wire.as_raw_fd())).inspect_err(|_| self.take_wire())
    }

    /// Has the kernel carry no frames until it has a wire again, and says how far it is in the available rings: the next entry of
    /// each that it will take. It has finished all that it had in hand, and keeps rings and eventfds.
    ///
    /// Of a tap, the kernel takes up to 64 frames ahead, and puts those back that it has not moved. Where the tap's queue has filled up
    /// behind them, as many are lost as find no room (`ptr_ring_unconsume`): the queue was about to overflow anyhow, and nothing we
    /// could do without the kernel's help would save them.
    ///
    /// # Errors
    /// The kernel does not say where it is; it carries nothing all the same.
    pub fn pause(&self) -> io::Result<[u16; 2]> {
        self.take_wire();
        let mut positions = [0; 2];
        for (index, position) in (0..2).zip(&mut positions) {
            let mut state = State { index, number: 0 };
            let request = libc::_IOWR::<State>(VHOST, 0x12);
            // SAFETY: VHOST_GET_VRING_BASE reads the index of this structure and writes its number.
            unsafe { call(&self.idle.device, request, &raw mut state as usize) }?;
            // The upper half is of packed rings alone.
            *position = state.number as u16;
        }
        Ok(positions)
    }

    /// Has the kernel be at `positions` of the available rings, as [`pause`](Self::pause) says them; where it is in the used rings it
    /// reads there. It has no wire at this moment.
    ///
    /// # Errors
    /// The kernel refuses: `EBUSY` where it carries frames.
    pub fn set_positions(&self, positions: [u16; 2]) -> io::Result<()> {
        (0..2).zip(positions).try_for_each(|(index, position)| self.set_position(index, position))
    }

    fn set_position(&self, index: u32, position: u16) -> io::Result<()> {
        self.set(libc::_IOW::<State>(VHOST, 0x12), &State { index, number: position.into() })
    }

    fn take_wire(&self) {
        if self.idle.is_vsock {
            let _ = self.set_running(false);
            return;
        }
        for index in 0..2 {
            // It cannot refuse to have nothing.
            let _ = self.set_wire(index, NONE);
        }
    }

    fn set_memory(&self) -> io::Result<()> {
        let mut table = Memory { count: 0, padding: 0, regions: [Region::default(); REGIONS_MAX] };
        for region in self.memory.iter() {
            let place = table.regions.get_mut(table.count as usize);
            *place.ok_or(io::ErrorKind::OutOfMemory)? = Region {
                guest_address: region.start_addr().raw_value(),
                len: region.len(),
                address: region.as_ptr() as u64,
                flags: 0,
            };
            table.count += 1;
        }
        self.set(libc::_IOW::<[u32; 2]>(VHOST, 0x03), &table)
    }

    fn set_ring(&self, index: u32, ring: &Ring, poll: Duration) -> io::Result<()> {
        let size = usize::from(ring.size);
        let ours = |at: u64, len: usize| -> io::Result<u64> {
            let slice = self.memory.get_slice(GuestAddress(at), len).map_err(io::Error::other)?;
            Ok(slice.ptr_guard().as_ptr() as u64)
        };
        self.set(libc::_IOW::<State>(VHOST, 0x10), &State { index, number: ring.size.into() })?;
        self.set_position(index, 0)?;
        let addresses = Addresses {
            index,
            flags: 0,
            desc_table: ours(ring.desc_table, 16 * size)?,
            used_ring: ours(ring.used_ring, 6 + 8 * size)?,
            avail_ring: ours(ring.avail_ring, 6 + 2 * size)?,
            log: 0,
        };
        self.set(libc::_IOW::<Addresses>(VHOST, 0x11), &addresses)?;
        let micros = u32::try_from(poll.as_micros()).unwrap_or(u32::MAX);
        match self.set(libc::_IOW::<State>(VHOST, 0x23), &State { index, number: micros }) {
            // A kernel before Linux 4.6 does not look about.
            Err(_) if micros == 0 => {}
            result => result?,
        }
        for (number, fd) in [(KICK, ring.kick), (CALL, ring.call), (ERROR, ring.error)] {
            self.set_event(number, index, fd)?;
        }
        Ok(())
    }

    /// Has the kernel say by another eventfd that it used buffers of ring `index` (0: receive, 1: transmit). What it says at
    /// this moment it says by one of the two.
    ///
    /// # Errors
    /// The kernel refuses, and it stays as it was.
    pub fn set_call(&self, index: usize, call: RawFd) -> io::Result<()> {
        self.set_event(CALL, index as u32, call)
    }

    /// Has the kernel leave rings and memory alone, which it does when this returns.
    pub fn silence(&self) {
        self.take_wire();
        for index in 0..2 {
            for number in [KICK, CALL, ERROR] {
                let _ = self.set_event(number, index, NONE);
            }
        }
    }

    /// The same for good.
    #[must_use]
    pub fn stop(self) -> Vhost {
        self.silence();
        self.idle
    }

    fn set_wire(&self, index: u32, fd: RawFd) -> io::Result<()> {
        self.set(libc::_IOW::<Descriptor>(VHOST, 0x30), &Descriptor { index, fd })
    }

    fn set_event(&self, number: u32, index: u32, fd: RawFd) -> io::Result<()> {
        self.set(libc::_IOW::<Descriptor>(VHOST, number), &Descriptor { index, fd })
    }

    /// Makes an ioctl that reads a `T`.
    fn set<T>(&self, request: libc::Ioctl, value: &T) -> io::Result<()> {
        // SAFETY: each request of this file that sets something reads a structure of the kernel's of which `T` is the image, and
        // keeps no pointer to it. The addresses in it are of `self.memory`, whose mapping lives as long as `self.idle` or until
        // `silence`, and which nobody in this process has a reference into: it is guest memory.
        unsafe { call(&self.idle.device, request, std::ptr::from_ref(value) as usize) }
    }
}

const KICK: u32 = 0x20;
const CALL: u32 = 0x21;
const ERROR: u32 = 0x22;

/// # Safety
/// As for the request: what it makes of `argument`.
unsafe fn call(device: &File, request: libc::Ioctl, argument: usize) -> io::Result<()> {
    // SAFETY: the caller's.
    match unsafe { libc::ioctl(device.as_raw_fd(), request, argument) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// vhost-net for each queue pair, as `config` says; none where wirevm's own threads are to carry the frames. Where that is so although
/// vhost-net was to be tried, a notice says why.
pub(crate) fn open(config: &NetConfig, notices: &mut Vec<String>) -> Result<Vec<Vhost>, Error> {
    let (mode, queues) = (config.vhost, config.queues.number());
    if mode == VhostMode::Off {
        return Ok(Vec::new());
    }
    let opened: io::Result<Vec<_>> = (0..queues).map(|_| Vhost::open()).collect();
    match (opened, mode) {
        (Err(error), VhostMode::Auto) => {
            notices
                .push(format!("wirevm's own threads carry the frames, for {DEVICE} does not open: {error}"));
            Ok(Vec::new())
        }
        (opened, _) => Ok(opened.map_err(|source| VhostError::Open { source })?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_those_of_the_kernel() {
        // As strace(1) shows them of other users of the device.
        assert_eq!(libc::_IOW::<[u32; 2]>(VHOST, 0x03), 0x4008_af03);
        assert_eq!(libc::_IOW::<State>(VHOST, 0x10), 0x4008_af10);
        assert_eq!(libc::_IOW::<State>(VHOST, 0x12), 0x4008_af12);
        assert_eq!(libc::_IOWR::<State>(VHOST, 0x12), 0xc008_af12);
        assert_eq!(libc::_IOW::<Addresses>(VHOST, 0x11), 0x4028_af11);
        assert_eq!(libc::_IOW::<Descriptor>(VHOST, KICK), 0x4008_af20);
        assert_eq!(libc::_IOW::<Descriptor>(VHOST, 0x30), 0x4008_af30);
        assert_eq!(libc::_IOR::<u64>(VHOST, 0x00), 0x8008_af00);
        assert_eq!(size_of::<Region>(), 32);
    }

    #[test]
    fn off_it_is_not_looked_for() {
        let mut notices = Vec::new();
        let tap = "tap,queues=4".parse().unwrap();
        assert!(open(&tap, &mut notices).unwrap().is_empty() && notices.is_empty());
    }

    #[test]
    fn where_it_is_not_to_be_had_it_is_said() {
        if std::path::Path::new(DEVICE).exists() {
            println!("skipped: where_it_is_not_to_be_had_it_is_said: there is {DEVICE}");
            return;
        }
        let mut notices = Vec::new();
        let [on, auto] = ["tap,vhost=on", "tap,vhost=auto"].map(|spec| spec.parse().unwrap());
        let error = open(&on, &mut notices).unwrap_err();
        assert_eq!(error.to_string(), "cannot open /dev/vhost-net");
        assert!(error.remedy().unwrap().contains("modprobe vhost_net") && notices.is_empty());
        assert!(open(&auto, &mut notices).unwrap().is_empty());
        assert!(
            matches!(&notices[..], [notice] if notice.contains("own threads") && notice.contains(DEVICE))
        );
    }
}
