//! The tap, guest memory, and where frames lie in it, the same for every mover.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use devices::virtio::mock::Buffer;
use devices::virtio::net::{NetDeviceConfig, VirtioNet};
use net::{HEADER_LEN, Wire};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::sys::{self, Iovecs, LinkSender};

/// Entries of a ring, and how many frames are there to be sent.
pub(super) const RING: u16 = 256;
const MEMORY: usize = 40 << 20;
pub(super) const RX_RING: u64 = 0x1_0000;
pub(super) const TX_RING: u64 = 0x2_0000;
/// An indirect table for each frame to send, and how far they are apart.
pub(super) const TABLES: u64 = 0x10_0000;
pub(super) const TABLE: u64 = 18 * 16 + 32;
/// What a guest's stack writes of each frame that it sends, whatever becomes of the payload: up to the end of TCP's header.
const HEADERS: usize = HEADER_LEN + 54;
/// Receive buffers: as Linux does, cut one behind the other out of large pages, which are apart.
const RX_DATA: u64 = 0x20_0000;
const LARGE_PAGE: u64 = 32 << 10;
const LARGE_PAGES_APART: u64 = LARGE_PAGE + 4096;
/// Frames to send.
const TX_DATA: u64 = 0x100_0000;
/// The room without which the NIC receives nothing: a frame of 64 KiB.
const ROOM: usize = HEADER_LEN + 65550;
const ETHERNET: usize = 14;
const TCP_SEGMENT: u16 = 1448;

/// Frames of one size, and how they lie in memory: as Linux has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Bytes of the Ethernet frame.
    pub(super) frame: usize,
    /// Bytes of each receive buffer. Linux learns from the frames it gets: up to 1.5 KiB for small ones, a page for large.
    pub(super) rx_buffer: usize,
    /// How many frames the tap's queue holds before a drain.
    pub(super) queue: usize,
    /// UDP whose checksums are left to the host, so many frames of one flow behind each other; 0 for TCP with none left.
    pub(super) train: usize,
}

impl Shape {
    pub(super) fn new(frame: usize) -> Self {
        let large = frame > 1514;
        Self {
            frame,
            rx_buffer: if large { 4096 } else { 1536 },
            queue: if large { 200 } else { 1000 },
            train: 0,
        }
    }

    /// Frames of UDP, so many of one flow behind each other.
    pub(super) fn of_trains(frame: usize, train: usize) -> Self {
        Self { train, ..Self::new(frame) }
    }

    /// Bytes with the header.
    pub(super) fn bytes(self) -> usize {
        HEADER_LEN + self.frame
    }

    /// How many receive buffers there are for one frame, which could be a large one.
    pub(super) fn window(self) -> usize {
        ROOM.div_ceil(self.rx_buffer)
    }

    /// How many receive buffers a frame takes.
    pub(super) fn taken(self) -> usize {
        self.bytes().div_ceil(self.rx_buffer)
    }

    /// Where the frame at `place` is to be sent from: one behind the other, as no power of two apart, or the processor's
    /// caches would hold few of them.
    fn place(self, place: u16) -> u64 {
        let frame = self.bytes().next_multiple_of(64) + 64;
        TX_DATA + frame as u64 * u64::from(place)
    }

    /// Where a frame to be sent is cut: its headers by themselves, and its payload in pages, where it is large enough.
    fn cuts(self, at: u64) -> Vec<Buffer> {
        let mut buffers = Vec::new();
        let (mut at, mut left, mut part) =
            (at, self.bytes(), if self.frame > 128 { HEADER_LEN + 66 } else { 256 });
        while left > 0 {
            let len = left.min(part);
            buffers.push(Buffer::readable(at, len as u32));
            (at, left, part) = (at + len as u64, left - len, 4096);
        }
        buffers
    }

    /// The header, of `len` bytes, and the frame: TCP over IPv4 to nobody on this link.
    fn content(self, header_len: usize) -> Vec<u8> {
        let mut bytes = vec![0; header_len];
        if self.frame > 1514 {
            // virtio_net_hdr: NEEDS_CSUM, TCPV4, hdr_len, gso_size, csum_start, csum_offset.
            bytes[..2].copy_from_slice(&[1, 1]);
            for (at, value) in [(2, 54), (4, TCP_SEGMENT), (6, 34), (8, 16)] {
                bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
            }
        }
        let packet = (self.frame - ETHERNET) as u16;
        if self.train > 0 {
            return self.datagram(bytes);
        }
        bytes.extend([2, 0, 0, 0, 0xaa, 0xaa, 2, 0, 0, 0, 0xbb, 0xbb, 8, 0]);
        bytes.extend([0x45, 0]);
        bytes.extend(packet.to_be_bytes());
        bytes.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        bytes.extend(Ipv4Addr::new(192, 0, 2, 1).octets());
        bytes.extend(Ipv4Addr::new(192, 0, 2, 2).octets());
        bytes.extend([0, 80, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
        bytes.resize(header_len + self.frame, 0x5a);
        bytes
    }

    /// A datagram to nobody behind its empty header, whose checksum is left to the host.
    fn datagram(self, mut bytes: Vec<u8>) -> Vec<u8> {
        let (header_len, len) = (bytes.len(), (self.frame - ETHERNET) as u16);
        bytes[0] = 1;
        for (at, value) in [(2, 42_u16), (6, 34), (8, 6)] {
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        bytes.extend([2, 0, 0, 0, 0xaa, 0xaa, 2, 0, 0, 0, 0xbb, 0xbb, 8, 0]);
        let network = bytes.len();
        bytes.extend([0x45, 0]);
        bytes.extend(len.to_be_bytes());
        bytes.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
        bytes.extend(Ipv4Addr::new(192, 0, 2, 1).octets());
        bytes.extend(Ipv4Addr::new(192, 0, 2, 2).octets());
        let checksum = !sum(&bytes[network..]);
        bytes[network + 10..network + 12].copy_from_slice(&checksum.to_be_bytes());
        bytes.extend([0, 80, 0, 80]);
        bytes.extend((len - 20).to_be_bytes());
        let pseudo = [&bytes[network + 12..network + 20], &[0, 17], &(len - 20).to_be_bytes()].concat();
        bytes.extend(sum(&pseudo).to_be_bytes());
        bytes.resize(header_len + self.frame, 0x5a);
        bytes
    }

    /// The source's port of the frame at `place`, and where it is written.
    fn port(self, place: u16) -> Option<(u64, [u8; 2])> {
        let flow = usize::from(place).checked_div(self.train)?;
        Some((self.place(place) + (HEADER_LEN + ETHERNET + 20) as u64, (0x4000 + flow as u16).to_be_bytes()))
    }
}

/// The sum of RFC 1071.
fn sum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum + (sum >> 16)) as u16
}

/// Who runs where.
#[derive(Clone, Debug)]
pub(super) struct Cores {
    pub(super) mover: usize,
    pub(super) driver: usize,
    /// Of each of several pairs.
    pub(super) pairs: Vec<usize>,
}

/// The NIC, and its link.
pub(super) struct Nic {
    pub(super) device: VirtioNet,
    _wire: Wire,
}

impl Nic {
    /// The same with threads that look about for so long before they sleep.
    pub(super) fn poll(self, poll: Option<Duration>) -> Self {
        Self { device: self.device.with_poll(poll), ..self }
    }
}

/// All that stays the same while the movers take turns, the NIC among them.
pub(super) struct Rig {
    pub(super) memory: GuestMemoryMmap,
    /// The queues of the NIC's tap, once more.
    pub(super) taps: Vec<OwnedFd>,
    pub(super) cores: Cores,
    /// The number of the tap's link.
    pub(super) link: u32,
    sender: LinkSender,
}

impl Rig {
    /// Makes a tap of so many queues in this thread's network namespace, which is to be otherwise empty. Each of several pairs
    /// has a core, as far as there are any.
    pub(super) fn new(queues: u16) -> io::Result<(Self, Nic)> {
        // The kernel's own IPv6 messages would be frames among ours.
        let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        let config = format!("tap,mtu=1500,queues={queues}").parse().map_err(io::Error::other)?;
        let opened = net::open(&config, &net::Host::new()).map_err(io::Error::other)?;
        let taps = opened.backends.iter().map(|backend| backend.fd().try_clone_to_owned());
        let taps = taps.collect::<io::Result<_>>()?;
        let queue = Command::new("ip").args(["link", "set", &opened.link, "txqueuelen", "1024"]).status()?;
        if !queue.success() {
            return Err(io::Error::other("ip cannot set the length of the tap's queue"));
        }
        let link = link_index(&opened.link)?;
        let sender = LinkSender::new(link)?;
        let cores = sys::cores()?;
        let affinity: Vec<_> =
            (0..queues).map(|pair| cores[usize::from(pair) % cores.len()] as u16).collect();
        let config = NetDeviceConfig {
            name: "wire".into(),
            mac: opened.mac,
            mtu: Some(opened.mtu),
            affinity: if queues > 1 { affinity.clone() } else { Vec::new() },
        };
        let device = VirtioNet::new(config, opened.backends, Vec::new())?;
        let nic = Nic { device, _wire: opened.wire };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).map_err(io::Error::other)?;
        let all = affinity.iter().map(|&core| core.into()).collect();
        let cores = Cores { mover: cores[cores.len() - 1], driver: cores[0], pairs: all };
        sys::pin(sys::thread_number(), cores.driver)?;
        Ok((Self { memory, taps, cores, link, sender }, nic))
    }

    /// Writes the frames to be sent into guest memory.
    pub(super) fn write_frames(&self, shape: Shape) -> io::Result<()> {
        let content = shape.content(HEADER_LEN);
        for place in 0..RING {
            self.memory.write_slice(&content, GuestAddress(shape.place(place))).map_err(io::Error::other)?;
            self.write_port(shape, place)?;
        }
        // Each page of the receive buffers is there, too.
        let last = Self::receive_buffer(shape, RING - 1).addr - RX_DATA;
        let pages = vec![0; last as usize + ROOM];
        self.memory.write_slice(&pages, GuestAddress(RX_DATA)).map_err(io::Error::other)
    }

    /// What [`Self::write_headers`] writes.
    pub(super) fn headers(shape: Shape) -> Vec<u8> {
        let mut content = shape.content(HEADER_LEN);
        content.truncate(HEADERS);
        content
    }

    /// Writes the headers of the frame at `place`, as the driver's core does before it gives a frame away.
    pub(super) fn write_headers(&self, shape: Shape, headers: &[u8], place: u16) -> io::Result<()> {
        self.memory.write_slice(headers, GuestAddress(shape.place(place))).map_err(io::Error::other)?;
        self.write_port(shape, place)
    }

    /// Writes of which flow the frame at `place` is.
    fn write_port(&self, shape: Shape, place: u16) -> io::Result<()> {
        match shape.port(place) {
            Some((at, port)) => self.memory.write_slice(&port, GuestAddress(at)).map_err(io::Error::other),
            None => Ok(()),
        }
    }

    /// The buffers of the frame at `place`.
    pub(super) fn frame_buffers(shape: Shape, place: u16) -> Vec<Buffer> {
        shape.cuts(shape.place(place))
    }

    /// The receive buffer at `place`.
    pub(super) fn receive_buffer(shape: Shape, place: u16) -> Buffer {
        let (len, place) = (shape.rx_buffer as u64, u64::from(place));
        let each = LARGE_PAGE / len;
        Buffer::writable(RX_DATA + LARGE_PAGES_APART * (place / each) + len * (place % each), len as u32)
    }

    /// Writes the question for the host's Ethernet address into the memory of the frame at each place: the host's kernel answers it
    /// before the write is over. Returns how long it is with its header.
    pub(super) fn write_questions(&self) -> io::Result<u32> {
        // The first addresses that a tap is given where there are no others.
        let [host, guest] = [[172, 30, 0, 1], [172, 30, 0, 2]];
        let mut question = vec![0; HEADER_LEN];
        question.extend([0xff; 6]);
        question.extend([2, 0, 0, 0, 0xbb, 0xbb, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        question.extend([2, 0, 0, 0, 0xbb, 0xbb]);
        question.extend(guest);
        question.extend([0; 6]);
        question.extend(host);
        for place in 0..RING {
            let at = GuestAddress(Shape::new(64).place(place));
            self.memory.write_slice(&question, at).map_err(io::Error::other)?;
        }
        Ok(question.len() as u32)
    }

    fn iovecs<'a>(&'a self, buffers: impl IntoIterator<Item = Buffer>) -> Iovecs<'a> {
        let slice = |buffer: Buffer| self.memory.get_slice(GuestAddress(buffer.addr), buffer.len as usize);
        buffers.into_iter().map(|buffer| slice(buffer).expect("it is in guest memory")).collect()
    }

    /// The frames to be sent.
    pub(super) fn frames(&self, shape: Shape, one_buffer: bool) -> impl Iterator<Item = Iovecs<'_>> {
        (0..RING).map(move |place| match one_buffer {
            true => self.iovecs([Buffer::readable(shape.place(place), shape.bytes() as u32)]),
            false => self.iovecs(Self::frame_buffers(shape, place)),
        })
    }

    /// The space for frames to be received: all buffers, how many of them one frame is offered, and how many it takes.
    pub(super) fn space(&self, shape: Shape, one_buffer: bool) -> (Iovecs<'_>, usize, usize) {
        let places = (0..RING).map(|place| Self::receive_buffer(shape, place));
        match one_buffer {
            true => (self.iovecs(places.map(|buffer| Buffer { len: ROOM as u32, ..buffer })), 1, 1),
            false => {
                (self.iovecs(places), ROOM.div_ceil(shape.rx_buffer), shape.bytes().div_ceil(shape.rx_buffer))
            }
        }
    }

    /// Has the tap's link take frames although the NIC has no driver, for a bare loop.
    pub(super) fn show_carrier(&self) -> io::Result<()> {
        self.taps.iter().try_for_each(|tap| sys::show_carrier(tap.as_fd()))
    }

    /// Puts one frame into the tap's queue.
    pub(super) fn fill_one(&self, shape: Shape) -> io::Result<()> {
        self.sender.send(&shape.content(HEADER_LEN - 2))
    }

    /// Puts frames into the tap's queue until it holds what it is to hold.
    pub(super) fn fill_tap(&self, shape: Shape) -> io::Result<()> {
        let frame = shape.content(HEADER_LEN - 2);
        (0..shape.queue).try_for_each(|_| self.sender.send(&frame))
    }
}

fn link_index(name: &str) -> io::Result<u32> {
    rustix::net::netdevice::name_to_index(
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?,
        name,
    )
    .map_err(io::Error::from)
}
