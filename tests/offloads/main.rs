//! A NIC between two real stacks: what a guest leaves to the host in its frames, and takes from it, by what it negotiates, and while
//! that changes; and that it can be paused meanwhile.

mod driver;
mod pause;
mod stock;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use devices::virtio::net::{Handle, NetDeviceConfig, VirtioNet};
use harness::need;
use harness::netns::Netns;
use net::{HEADER_LEN, IovBuffer, Opened};
use vm_memory::VolatileSlice;

use driver::*;

const HOST: [&str; 2] = ["172.31.0.1", "fd00:31::1"];
const GUEST: &str = "172.31.0.2";
/// An Ethernet frame of the usual MTU.
const FULL: usize = HEADER_LEN + 1514;
/// `VIRTIO_NET_HDR_GSO_*` (virtio 1.2 §5.1.6).
const TCPV4: u8 = 1;
const TCPV6: u8 = 4;
const UDP_L4: u8 = 5;

/// A host, a guest's stack, and the NIC between them: all real, but for the driver.
struct World {
    host: Netns,
    guest: Netns,
    driver: Driver,
    handle: Handle,
    /// Dropped, they take their links down.
    _opened: [Opened; 2],
}

impl World {
    fn new() -> Result<Self, String> {
        Self::carried("vhost=off")
    }

    /// One whose frames are carried as this key says.
    fn carried(vhost: &str) -> Result<Self, String> {
        let (host, guest) = (Netns::new()?, Netns::new()?);
        let open = |netns: &Netns, spec: &str| {
            let config = spec.parse().expect("a spec");
            netns
                .spawn(move || net::open(&config, &net::Host::new()))
                .join()
                .expect("no panic")
                .map_err(|e| e.to_string())
        };
        guest.sh("ip tuntap add eth0 mode tap vnet_hdr");
        let mut opened =
            open(&host, &format!("tap=t0,host=172.31.0.1/24,host=fd00:31::1/64,dhcp=off,{vhost}"))?;
        let mut inside = open(&guest, "tap=eth0,dhcp=off")?;
        guest.sh("ip addr add 172.31.0.2/24 dev eth0; ip addr add fd00:31::2/64 dev eth0 nodad; ip link set eth0 up");
        let config = NetDeviceConfig {
            name: "test".into(),
            mac: opened.mac,
            mtu: Some(opened.mtu),
            affinity: Vec::new(),
        };
        let (backends, vhosts) = (std::mem::take(&mut opened.backends), std::mem::take(&mut opened.vhosts));
        let nic = VirtioNet::new(config, backends, vhosts).map_err(|error| error.to_string())?;
        let handle = nic.handle();
        let driver = Driver::new(nic, inside.backends.remove(0));
        Ok(Self { host, guest, driver, handle, _opened: [opened, inside] })
    }

    /// Noise from the host to the guest and back again, over IPv4 and IPv6. What the driver saw meanwhile.
    #[track_caller]
    fn streams(&mut self) -> Seen {
        for ip in HOST {
            let noise: Vec<u8> =
                (0..1u32 << 18).flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
            let (sent, ip) = (noise.clone(), ip.parse::<IpAddr>().expect("an address"));
            let listener = self
                .host
                .spawn(move || TcpListener::bind((ip, 0)))
                .join()
                .expect("no panic")
                .expect("a port");
            let at = listener.local_addr().expect("it listens");
            let server = self.host.spawn(move || {
                listener.accept()?.0.write_all(&sent)?;
                let mut back = Vec::new();
                listener.accept()?.0.read_to_end(&mut back).map(|_| back)
            });
            let client = self.guest.spawn(move || {
                let (mut got, patience) = (Vec::new(), Duration::from_secs(20));
                TcpStream::connect_timeout(&at, patience)?.read_to_end(&mut got)?;
                TcpStream::connect_timeout(&at, patience)?.write_all(&got)
            });
            self.driver.pump("the streams", || client.is_finished() && server.is_finished());
            client.join().expect("no panic").expect("the guest's stream");
            assert!(
                server.join().expect("no panic").expect("the host's stream") == noise,
                "{ip}: other bytes came back"
            );
        }
        self.driver.settle();
        self.driver.take_seen()
    }
}

#[test]
fn a_guest_takes_as_much_as_it_negotiates_and_another_driver_something_else() {
    let mut world = need!(World::new());
    let large = LINUX & !F_MRG_RXBUF;
    let tcp = [TCPV4, TCPV6];
    for (what, features, types) in [
        ("nothing", PLAIN, &[][..]),
        ("all", LINUX, &tcp),
        ("checksums alone", PLAIN | F_CSUM | F_GUEST_CSUM, &[]),
        ("large frames in one buffer", large, &tcp),
        ("mergeable buffers alone", PLAIN | F_MRG_RXBUF, &[]),
        ("large frames of IPv4 alone", LINUX & !F_GUEST_TSO6, &[TCPV4]),
        ("nothing to receive", LINUX & !(F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6), &[]),
        ("nothing to send", LINUX & !(F_CSUM | F_HOST_TSO4 | F_HOST_TSO6), &tcp),
        ("nothing again", PLAIN, &[]),
    ] {
        world.driver.start(features);
        let seen = world.streams();
        assert_eq!(seen.types, types.iter().copied().collect::<BTreeSet<_>>(), "{what}");
        assert_eq!(seen.partial, features & F_GUEST_CSUM != 0, "{what}: checksums that are not finished");
        match types {
            [] => assert_eq!(seen.largest, FULL, "{what}: the largest frame received"),
            _ => {
                assert!(seen.largest > 10_000, "{what}: {} bytes is the largest frame received", seen.largest)
            }
        }
    }
}

#[test]
fn offloads_change_between_streams_and_each_takes_them_as_they_are() {
    let mut world = need!(World::new());
    world.driver.start(LINUX);
    assert!(world.streams().largest > 10_000);
    let all = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6;
    for (bits, types) in
        [(F_GUEST_CSUM, &[][..]), (all, &[TCPV4, TCPV6]), (0, &[]), (F_GUEST_CSUM | F_GUEST_TSO6, &[TCPV6])]
    {
        assert!(world.driver.set_offloads(bits), "{bits:#x}");
        let seen = world.streams();
        assert_eq!(seen.types, types.iter().copied().collect::<BTreeSet<_>>(), "{bits:#x}");
        assert_eq!(seen.partial, bits & F_GUEST_CSUM != 0, "{bits:#x}");
        assert_eq!(seen.largest > FULL, !types.is_empty(), "{bits:#x}: {} bytes", seen.largest);
    }
    assert!(!world.driver.set_offloads(F_GUEST_USO4), "it was not negotiated");
    world.driver.start(LINUX);
    assert!(world.streams().largest > 10_000, "another driver begins anew");
}

#[test]
fn datagrams_of_many_segments_pass_both_ways() {
    const SEGMENT: u16 = 1000;
    const SEGMENTS: u16 = 40;
    let mut world = need!(World::new());
    if world.driver.offered() & F_HOST_USO == 0 {
        harness::skip!("this kernel's tap takes no UDP segments");
    }
    // What comes in by this link, the host routes to the guest.
    let inject = "tap=inject,host=192.0.2.1/24,dhcp=off".parse().expect("a spec");
    let inject = world.host.spawn(move || net::open(&inject, &net::Host::new())).join().expect("no panic");
    let mut inject = inject.expect("another tap");
    world.host.sh("sysctl -qw net.ipv4.ip_forward=1");
    let mac = |world: &World, link: &str| -> Vec<u8> {
        let line = world.host.sh(&format!("ip -o link show {link}"));
        let mac = line.split_once("link/ether ").expect("a MAC").1;
        mac[..17].split(':').map(|octet| u8::from_str_radix(octet, 16).expect("an octet")).collect()
    };
    let payload: Vec<u8> = (0..SEGMENT * SEGMENTS).map(|at| (at / SEGMENT) as u8).collect();
    let uso = LINUX | F_GUEST_USO4 | F_GUEST_USO6 | F_HOST_USO;
    for features in [uso, LINUX, uso & !F_MRG_RXBUF, PLAIN, uso] {
        world.driver.start(features);
        for out in [true, false] {
            if out && features & F_HOST_USO == 0 {
                continue;
            }
            let (netns, to) = if out { (&world.host, HOST[0]) } else { (&world.guest, GUEST) };
            let socket =
                netns.spawn(move || UdpSocket::bind((to, 7777)).expect("a port")).join().expect("no panic");
            let link = mac(&world, if out { "t0" } else { "inject" });
            let from = if out { [172, 31, 0, 2] } else { [192, 0, 2, 7] };
            let frame = datagrams(&link, from, to, SEGMENT, &payload);
            match out {
                true => world.driver.send(&frame),
                false => {
                    let mut frame = frame;
                    let mut room = IovBuffer::new();
                    let mut iov = room.start();
                    assert!(iov.push(VolatileSlice::from(&mut frame[..])));
                    inject.backends[0].send(&iov).expect("the host takes it");
                }
            }
            let receiver = std::thread::spawn(move || {
                socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
                let mut datagram = [0; 2000];
                (0..SEGMENTS)
                    .map(|_| socket.recv(&mut datagram).map(|len| (len, datagram[0], datagram[len - 1])))
                    .collect::<Vec<_>>()
            });
            world.driver.pump("the datagrams", || receiver.is_finished());
            for (number, datagram) in receiver.join().expect("no panic").into_iter().enumerate() {
                let want = (usize::from(SEGMENT), number as u8, number as u8);
                assert_eq!(datagram.expect("a datagram"), want, "{features:#x}, out: {out}");
            }
            let seen = world.driver.take_seen();
            let whole = !out && features & F_GUEST_USO4 != 0;
            assert_eq!(seen.types.contains(&UDP_L4), whole, "{features:#x}, out: {out}");
        }
    }
}

/// A frame of UDP over IPv4 to port 7777, to be sent in segments of so many bytes, behind its header.
fn datagrams(mac: &[u8], from: [u8; 4], to: &str, segment: u16, payload: &[u8]) -> Vec<u8> {
    let SocketAddr::V4(to) = SocketAddr::new(to.parse().expect("an address"), 7777) else { panic!("IPv4") };
    let to = to.ip().octets();
    // virtio_net_hdr_v1: NEEDS_CSUM, UDP_L4, hdr_len, gso_size, csum_start, csum_offset, num_buffers.
    let mut frame = vec![1, UDP_L4];
    frame.extend([42, segment, 34, 6, 0].map(u16::to_le_bytes).concat());
    frame.extend(mac);
    frame.extend([2, 0, 0, 0, 0, 0xee, 8, 0]);
    let udp_len = 8 + payload.len() as u16;
    let mut ip =
        [&[0x45, 0][..], &(20 + udp_len).to_be_bytes(), &[0, 0, 0x40, 0, 64, 17, 0, 0], &from, &to].concat();
    let checksum = !sum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(ip);
    // Of the pseudo header alone: the rest is left to do.
    let pseudo = sum(&[&from[..], &to, &[0, 17], &udp_len.to_be_bytes()].concat());
    frame.extend([7000u16, 7777, udp_len, pseudo].map(u16::to_be_bytes).concat());
    frame.extend(payload);
    frame
}

/// The sum of RFC 1071.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
