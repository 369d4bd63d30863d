//! Hears what a guest asks on a link whose frames the kernel carries past us (vhost-net): a packet socket on the host's side
//! of it, where a filter lets through what may be a question, and nothing else.
//!
//! The host's own stack has the questions too, and no answer to them. What is written to the socket goes to the guest.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{readv, writev};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::error::VhostError;
use crate::host::{Link, Wiring};
use crate::sys::packet::{self, Instruction};
use crate::{Error, HEADER_LEN, VhostMode};

/// Of the header that a packet socket has before each frame: `virtio_net_hdr_v1` without `num_buffers`.
const SOCKET_HEADER_LEN: usize = 10;

#[derive(Debug)]
pub(crate) struct Listener(OwnedFd);

impl Listener {
    /// On the link of that index in the thread's namespace. Needs `CAP_NET_RAW`.
    pub(crate) fn open(index: u32) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Protocol 0 receives no frame until all else is set.
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
        let fd = socket.as_fd();
        packet::set_vnet_hdr(fd)?;
        packet::ignore_outgoing(fd)?;
        packet::attach_filter(fd, &QUESTIONS)?;
        packet::bind(fd, index)?;
        Ok(Self(socket))
    }

    /// On the host's `link`, where the kernel is to carry its frames. Where `vhost` leaves that open and there cannot be one, a notice
    /// says so, and our own threads carry them.
    pub(crate) fn beside(wiring: &mut Wiring, link: &Link, vhost: VhostMode) -> Result<Option<Self>, Error> {
        if vhost == VhostMode::Off {
            return Ok(None);
        }
        match Self::open(link.id.index) {
            Ok(listener) => Ok(Some(listener)),
            Err(error) if vhost == VhostMode::Auto => {
                wiring.notice(format!(
                    "wirevm's own threads carry the frames, for nothing else would hear the guest's DHCP: {error}"
                ));
                Ok(None)
            }
            Err(source) => Err(VhostError::Listen { link: link.id.name.clone(), source }.into()),
        }
    }

    /// Takes over `socket`, which was opened so.
    pub(crate) fn over(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Readable when there may be a question.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Takes a frame, header first, of at most the length of `frame`; what is longer is cut.
    pub(crate) fn recv(&self, frame: &mut [u8]) -> io::Result<usize> {
        let (header, packet) = frame.split_at_mut(HEADER_LEN);
        header.fill(0);
        let mut slices = [IoSliceMut::new(&mut header[..SOCKET_HEADER_LEN]), IoSliceMut::new(packet)];
        let len = readv(&self.0, &mut slices)?;
        Ok(len.saturating_sub(SOCKET_HEADER_LEN) + HEADER_LEN)
    }

    /// Sends a frame, header first, to the guest.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        let (header, packet) = frame.split_at(HEADER_LEN);
        writev(&self.0, &[IoSlice::new(&header[..SOCKET_HEADER_LEN]), IoSlice::new(packet)])?;
        Ok(())
    }
}

/// Lets through what [`dhcp`](crate::dhcp) and [`router`](crate::router) may take for a question: the first fragment of UDP
/// to port 67, and ICMPv6 of type 133; in no VLAN.
const QUESTIONS: [Instruction; 18] = {
    // Offsets of jumps are counted from the next instruction; both ways out are at the end.
    const NO: u8 = 17;
    const YES: u8 = 16;
    [
        // A tag is beside the frame, not in it.
        load(WORD, (libc::SKF_AD_OFF + libc::SKF_AD_VLAN_TAG_PRESENT) as u32),
        equal(0, 0, NO - 2),
        load(HALF, 12),
        equal(libc::ETH_P_IP as u32, 1, 0),
        equal(libc::ETH_P_IPV6 as u32, 7, NO - 5),
        // IPv4: protocol, fragment offset, and the port behind a header of variable length.
        load(BYTE, 23),
        equal(17, 0, NO - 7),
        load(HALF, 20),
        jump(libc::BPF_JSET, 0x1fff, NO - 9, 0),
        Instruction { code: (libc::BPF_LDX | libc::BPF_MSH) as u16 | BYTE, jt: 0, jf: 0, k: 14 },
        Instruction { code: (libc::BPF_LD | libc::BPF_IND) as u16 | HALF, jt: 0, jf: 0, k: 16 },
        equal(67, YES - 12, NO - 12),
        // IPv6: next header, and the type behind the header.
        load(BYTE, 20),
        equal(58, 0, NO - 14),
        load(BYTE, 54),
        equal(133, 0, NO - 16),
        Instruction { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: u32::MAX },
        Instruction { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 },
    ]
};

const WORD: u16 = libc::BPF_W as u16;
const HALF: u16 = libc::BPF_H as u16;
const BYTE: u16 = libc::BPF_B as u16;

const fn load(size: u16, at: u32) -> Instruction {
    Instruction { code: (libc::BPF_LD | libc::BPF_ABS) as u16 | size, jt: 0, jf: 0, k: at }
}

const fn equal(value: u32, yes: u8, no: u8) -> Instruction {
    jump(libc::BPF_JEQ, value, yes, no)
}

const fn jump(condition: u32, value: u32, yes: u8, no: u8) -> Instruction {
    let code = (libc::BPF_JMP | condition | libc::BPF_K) as u16;
    Instruction { code, jt: yes, jf: no, k: value }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use vm_memory::VolatileSlice;

    use super::*;
    use crate::error::VhostError;
    use crate::host::{Host, Netlink, Wiring};
    use crate::{Backend, Error, IovBuffer, NetConfig, Opened, open, sys};

    const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];

    /// A frame to all, header first, with `packet` behind that Ethernet type.
    fn frame(kind: u16, packet: &[u8]) -> Vec<u8> {
        [&[0; HEADER_LEN][..], &[0xff; 6], &GUEST, &kind.to_be_bytes(), packet].concat()
    }

    /// An IPv4 packet with `options` words of options, for that port.
    fn udp(protocol: u8, options: u8, fragment: u16, port: u16) -> Vec<u8> {
        let mut packet = vec![0; 20 + 4 * usize::from(options) + 8];
        let len = packet.len() as u16;
        (packet[0], packet[8], packet[9]) = (0x45 + options, 64, protocol);
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[16..20].fill(0xff);
        let at = 20 + 4 * usize::from(options) + 2;
        packet[at..at + 2].copy_from_slice(&port.to_be_bytes());
        packet
    }

    fn icmpv6(next: u8, kind: u8) -> Vec<u8> {
        let mut packet = vec![0; 48];
        (packet[0], packet[5], packet[6], packet[7], packet[40]) = (0x60, 8, next, 255, kind);
        packet
    }

    /// What `listener` hears in a short while.
    fn heard(listener: &Listener) -> Vec<Vec<u8>> {
        let (mut all, until) = (Vec::new(), Instant::now() + Duration::from_millis(200));
        while Instant::now() < until {
            let mut frame = [0; 200];
            match listener.recv(&mut frame) {
                Ok(len) => all.push(frame[..len].to_vec()),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        all
    }

    fn send(backend: &mut dyn Backend, frame: &[u8]) {
        let (mut frame, mut iov) = (frame.to_vec(), IovBuffer::new());
        let mut iov = iov.start();
        assert!(iov.push(VolatileSlice::from(&mut frame[..])));
        backend.send(&iov).expect("the tap takes it");
    }

    /// A tap that is up, in a namespace of the thread's own.
    fn tap() -> Result<Opened, String> {
        sys::unshare_network().map_err(|error| format!("a network namespace: {error}"))?;
        let config: NetConfig = "tap,host=172.31.0.1/24,dhcp=off".parse().expect("a spec");
        open(&config, &Host::new()).map_err(|error| format!("a tap: {error}"))
    }

    fn on_own_thread(test: impl FnOnce() + Send) {
        std::thread::scope(|scope| scope.spawn(test).join()).unwrap_or_else(|p| std::panic::resume_unwind(p));
    }

    #[test]
    fn it_hears_questions_alone_and_what_it_says_goes_to_the_guest() {
        on_own_thread(|| {
            let mut opened = match tap() {
                Ok(opened) => opened,
                Err(why) => {
                    return println!(
                        "skipped: it_hears_questions_alone_and_what_it_says_goes_to_the_guest: {why}"
                    );
                }
            };
            let backend = &mut *opened.backends[0];
            let index = Netlink::new().link(&opened.link).unwrap().unwrap().id.index;
            let listener = Listener::open(index).unwrap();
            let questions = [
                frame(0x800, &udp(17, 0, 0, 67)),
                frame(0x800, &udp(17, 10, 0, 67)),
                frame(0x86dd, &icmpv6(58, 133)),
            ];
            let others = [
                frame(0x800, &udp(17, 0, 0, 68)),
                frame(0x800, &udp(17, 0, 0x2001, 67)),
                frame(0x800, &udp(6, 0, 0, 67)),
                frame(0x86dd, &icmpv6(58, 135)),
                frame(0x86dd, &icmpv6(17, 133)),
                frame(0x806, &udp(17, 0, 0, 67)),
                frame(0x8100, &[&[0, 5, 8, 0][..], &udp(17, 0, 0, 67)].concat()),
            ];
            for other in &others {
                send(backend, other);
            }
            assert_eq!(heard(&listener), Vec::<Vec<u8>>::new());
            for question in &questions {
                send(backend, question);
            }
            assert_eq!(heard(&listener), questions);

            // The answer comes to the guest, and not back to us.
            let answer = frame(0x88b5, b"an answer of some length, for Ethernet has a least one of its own");
            listener.send(&answer).unwrap();
            assert_eq!(heard(&listener), Vec::<Vec<u8>>::new());
            let (mut space, mut iov) = ([0; 200], IovBuffer::new());
            let found = (0..100).any(|_| {
                let mut iov = iov.start();
                assert!(iov.push(VolatileSlice::from(&mut space[..])));
                let len = backend.recv(&mut iov).unwrap_or(0);
                drop(iov);
                space[HEADER_LEN..len.max(HEADER_LEN)] == answer[HEADER_LEN..]
            });
            assert!(found, "the guest has the answer");
        });
    }

    #[test]
    fn there_is_one_where_the_kernel_may_carry_the_frames_and_its_lack_is_told() {
        const NAME: &str = "there_is_one_where_the_kernel_may_carry_the_frames_and_its_lack_is_told";
        on_own_thread(|| {
            let opened = match tap() {
                Ok(opened) => opened,
                Err(why) => return println!("skipped: {NAME}: {why}"),
            };
            let mut link = Netlink::new().link(&opened.link).unwrap().unwrap();
            let mut wiring = Wiring::begin(&Host::new(), None).unwrap();
            for (vhost, listens) in [(VhostMode::Off, false), (VhostMode::Auto, true), (VhostMode::On, true)]
            {
                let listener = Listener::beside(&mut wiring, &link, vhost).unwrap();
                assert_eq!(listener.is_some(), listens, "{vhost:?}");
            }
            assert_eq!(wiring.take_notices(), [""; 0]);

            // A link that is gone.
            link.id.index = i32::MAX as u32;
            assert!(Listener::beside(&mut wiring, &link, VhostMode::Off).unwrap().is_none());
            assert_eq!(wiring.take_notices(), [""; 0]);
            assert!(Listener::beside(&mut wiring, &link, VhostMode::Auto).unwrap().is_none());
            let notices = wiring.take_notices();
            assert!(matches!(&notices[..], [one] if one.contains("own threads carry")), "{notices:?}");
            let refused = Listener::beside(&mut wiring, &link, VhostMode::On).unwrap_err();
            assert!(matches!(refused, Error::Vhost(VhostError::Listen { .. })), "{refused:?}");
            assert_eq!(wiring.take_notices(), [""; 0]);
        });
    }
}
