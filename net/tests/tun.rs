//! Real tuns, each test in a network namespace of its own; for the guest, where one is needed, stands the kernel of another
//! namespace behind a tap: it has a real Ethernet, a real TCP, and every offload that a guest's driver has.

mod frames;
mod namespace;

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use frames::{discover, router_solicitation};
use namespace::wire::{open, open_run, open_told, without_ipv6};
use namespace::{elsewhere, in_namespace, run, set_udp_segment, skip, state};
use net::{Backend, HEADER_LEN, IovBuffer, Offloads, Opened, Sent, Tap};
use vm_memory::VolatileSlice;

const GUEST: &str = "02:00:00:00:00:01";

/// The buffers that a driver without mergeable ones would give: the header apart.
fn with_iov<T>(frame: &mut [u8], call: impl FnOnce(&mut net::Iov<'_>) -> T) -> T {
    let (first, second) = frame.split_at_mut(HEADER_LEN);
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    assert!(iov.push(VolatileSlice::from(first)) && iov.push(VolatileSlice::from(second)));
    call(&mut iov)
}

fn send(backend: &mut dyn Backend, frame: &[u8]) -> io::Result<Sent> {
    with_iov(&mut frame.to_vec(), |iov| backend.send(iov))
}

fn recv(backend: &mut dyn Backend, space: usize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0xaa; space];
    let len = with_iov(&mut frame, |iov| backend.recv(iov))?;
    frame.truncate(len);
    Ok(frame)
}

/// Receives until a frame is as `wanted`; the kernel sends frames of its own too (IPv6).
fn recv_where(backend: &mut dyn Backend, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        match recv(backend, 70_000) {
            Ok(frame) if wanted(&frame) => return frame,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                assert!(Instant::now() < end, "no such frame came");
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("recv: {error}"),
        }
    }
}

/// What passed a [`Cable`] one way.
#[derive(Default)]
struct Passed {
    /// Frames with segments, and with a checksum left to do.
    segmented: AtomicU64,
    unsummed: AtomicU64,
    refused: AtomicU64,
}

/// Moves frames between a tun and the tap that stands for the guest, as the queue pair of a device would, until dropped.
struct Cable {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    out: Arc<Passed>,
    back: Arc<Passed>,
}

impl Cable {
    fn between(mut tun: Box<dyn Backend>, mut tap: Box<dyn Backend>) -> Self {
        let all = tun.offloads();
        assert!(all.csum && all.tso4 && all.tso6);
        tun.set_offloads(all).unwrap();
        tap.set_offloads(all).unwrap();
        let (stop, out, back) = (Arc::<AtomicBool>::default(), Arc::<Passed>::default(), Arc::default());
        let (stopped, counts) = (Arc::clone(&stop), (Arc::clone(&out), Arc::clone(&back)));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let moved = carry(&mut *tap, &mut *tun, &counts.0) | carry(&mut *tun, &mut *tap, &counts.1);
                if !moved {
                    wait(&[&*tap, &*tun]);
                }
            }
        });
        Self { stop, thread: Some(thread), out, back }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let result = self.thread.take().unwrap().join();
        assert!(result.is_ok() || std::thread::panicking());
    }
}

/// Moves what there is from one to the other.
fn carry(from: &mut dyn Backend, to: &mut dyn Backend, passed: &Passed) -> bool {
    let mut moved = false;
    loop {
        let frame = match recv(from, HEADER_LEN + 65_550) {
            Ok(frame) => frame,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return moved,
            Err(error) => panic!("recv: {error}"),
        };
        moved = true;
        passed.unsummed.fetch_add(u64::from(frame[0] & 1), Ordering::Relaxed);
        passed.segmented.fetch_add(u64::from(frame[1] != 0), Ordering::Relaxed);
        if send(to, &frame).is_err() {
            passed.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Waits until one of them is readable, or a moment.
fn wait(backends: &[&dyn Backend]) {
    let fds: Vec<_> = backends.iter().map(|backend| backend.fd()).collect();
    let mut polled: Vec<_> =
        fds.iter().map(|fd| rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)).collect();
    let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    rustix::event::poll(&mut polled, Some(&timeout)).unwrap();
}

/// A namespace with a tap that stands for the guest, on which `work` is done when the cable is in.
fn guest<T: Send + 'static>(
    tun: Box<dyn Backend>,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<(T, Cable)> {
    elsewhere(move || {
        run("ip link set lo up");
        let tap = Tap::open(Some(&"eth0".parse().unwrap())).unwrap();
        run(&format!("ip link set eth0 address {GUEST}"));
        run("ip link set eth0 up");
        let cable = Cable::between(tun, Box::new(tap));
        (work(), cable)
    })
}

/// `len` bytes that are nowhere like others.
fn bytes(len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Waits for one connection, takes all that comes, and says it back.
fn echo(listener: TcpListener) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    stream.write_all(&got).unwrap();
}

/// Sends `sent` to an [`echo`] and returns what comes back.
fn talk(address: &str, sent: &[u8]) -> Vec<u8> {
    let end = Instant::now() + Duration::from_secs(5);
    let mut stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < end, "{address}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(sent).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    back
}

fn has_ipv6() -> bool {
    std::path::Path::new("/proc/net/if_inet6").exists()
}

#[test]
fn a_tun_is_made_and_goes() {
    in_namespace("a_tun_is_made_and_goes", || {
        let before = state();
        let (opened, told) = open_told("tun,host=10.0.0.1/30,mtu=9000");
        assert_eq!((opened.link.as_str(), opened.mtu), ("wirevm0", 9000));
        assert_eq!(
            without_ipv6(&told),
            [
                "ip tuntap add dev wirevm0 mode tun vnet_hdr",
                "ip link set dev wirevm0 mtu 9000",
                "ip address add 10.0.0.1/30 dev wirevm0",
                "ip link set dev wirevm0 up",
            ]
        );
        let link = run("ip -d link show wirevm0");
        for word in ["mtu 9000", ",UP", "tun type tun", "vnet_hdr on", "pi off", "link/none"] {
            assert!(link.contains(word), "{word}: {link}");
        }
        assert!(opened.backends[0].vhost_fd().is_none());
        let (second, _) = open_told("tun=mine,dhcp=off");
        assert_eq!((second.link.as_str(), second.mtu), ("mine", 1500));
        drop((opened, second));
        assert_eq!(state(), before);
    });
}

/// Somebody's tun0, up once: the kernel gives a link its queueing discipline then and does not take it back.
fn his_tun(flags: &str) {
    run(&format!("ip tuntap add dev tun0 mode tun {flags}"));
    run("ip link set tun0 up");
    run("ip link set tun0 down");
}

/// The state, but for how link-local addresses are made: a kernel changes that when a tun first has somebody attached.
fn settled() -> String {
    state().replace("addrgenmode random", "addrgenmode eui64")
}

#[test]
fn a_persistent_tun_is_used_and_given_back() {
    in_namespace("a_persistent_tun_is_used_and_given_back", || {
        his_tun("pi");
        let before = settled();
        let (opened, told) = open_run("tun=tun0,host=10.0.0.1/30");
        assert_eq!(told, ["ip address add 10.0.0.1/30 dev tun0", "ip link set dev tun0 up"]);
        drop(opened);
        assert_eq!(settled(), before);
    });
}

#[test]
fn a_host_alone_has_its_guest_for_a_peer() {
    in_namespace("a_host_alone_has_its_guest_for_a_peer", || {
        his_tun("vnet_hdr");
        let before = settled();
        let (first, told) = open_run("tun=tun0,host=10.0.0.1/32,guest=192.168.7.2");
        assert_eq!(told, ["ip link set dev tun0 up", "ip address add 10.0.0.1 peer 192.168.7.2 dev tun0"]);
        let route = run("ip route get 192.168.7.2");
        assert!(route.starts_with("192.168.7.2 dev tun0 src 10.0.0.1"), "{route}");
        // Another guest of the same host, whose address is in no subnet of it.
        let (second, told) = open_told("tun,host=10.0.0.1/32,guest=192.168.7.3");
        let lines = [
            "ip tuntap add dev wirevm0 mode tun vnet_hdr",
            "ip link set dev wirevm0 up",
            "ip address add 10.0.0.1 peer 192.168.7.3 dev wirevm0",
        ];
        assert_eq!(without_ipv6(&told), lines);
        assert!(run("ip route get 192.168.7.3").starts_with("192.168.7.3 dev wirevm0 src 10.0.0.1"));
        for (guest, on) in [("192.168.7.3", "wirevm0"), ("192.168.7.2", "tun0")] {
            let error = open(&format!("tun,host=10.0.0.9/32,guest={guest}")).unwrap_err();
            assert_eq!(error.to_string(), format!("guest={guest}: {on} has it at one of its ends already"));
            assert!(error.remedy().unwrap().contains(on));
        }
        let error = open("tun,host=10.0.0.9/32,guest=10.0.0.1").unwrap_err();
        assert!(error.to_string().contains("guest=10.0.0.1: "), "{error}");
        drop((first, second));
        assert_eq!(settled(), before);

        // What is there is neither done nor undone.
        run("ip address add 10.0.0.1 peer 192.168.7.2 dev tun0");
        let before = settled();
        let (first, told) = open_run("tun=tun0,host=10.0.0.1/32,guest=192.168.7.2");
        assert_eq!(told, ["ip link set dev tun0 up"]);
        drop(first);
        assert_eq!(settled(), before);
    });
}

#[test]
fn ipv6_has_peers_too() {
    const NAME: &str = "ipv6_has_peers_too";
    in_namespace(NAME, || {
        if !has_ipv6() {
            return skip(NAME, "this kernel has no IPv6; the lab's has");
        }
        run("ip link set lo up");
        his_tun("vnet_hdr");
        let before = settled();
        let (opened, told) = open_run("tun=tun0,host=fd00::1/128,guest=fd00:7::2");
        assert_eq!(told, ["ip link set dev tun0 up", "ip address add fd00::1 peer fd00:7::2 dev tun0 nodad"]);
        assert!(
            opened.notices.iter().any(|notice| notice.contains("fd00:7::2") && notice.contains("by hand"))
        );
        // The kernel hears of the carrier a moment later.
        run_until("ip -6 route show dev tun0", |all| all.contains("fd00:7::2 ") && !all.contains("linkdown"));
        let route = run("ip route get fd00:7::2");
        assert!(route.starts_with("fd00:7::2 from :: dev tun0") && route.contains("src fd00::1"), "{route}");
        drop(opened);
        assert_eq!(settled(), before);

        let opened = open("tun,host=fd00::1/64,guest=fd00::7").unwrap();
        let notices = opened.notices.join("\n");
        assert!(notices.contains("ip address add fd00::7/64 dev"), "{notices}");
        drop(opened);

        // One that is attached to has its link-local address a moment later, too, and then the guest knows it.
        for _ in 0..5 {
            run("ip link del tun0");
            run("ip tuntap add dev tun0 mode tun");
            run("ip link set tun0 up");
            let mut opened = open(&format!("tun=tun0,host=fd00::1/64,mac={GUEST}")).unwrap();
            let link_local = run("ip -6 -o address show dev tun0 scope link");
            let link_local = link_local.split_whitespace().nth(3).and_then(|local| local.split('/').next());
            let link_local: Ipv6Addr = link_local.unwrap().parse().unwrap();
            assert_eq!(send(&mut *opened.backends[0], &router_solicitation()).unwrap(), Sent::Answered);
            let advert = recv(&mut *opened.backends[0], 2000).unwrap();
            assert_eq!(advert[HEADER_LEN + 14 + 8..][..16], link_local.octets());
        }
    });
}

/// An ARP request of the guest.
fn who_has(address: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0; HEADER_LEN];
    frame.extend([0xff; 6].into_iter().chain([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]));
    frame.extend([2, 0, 0, 0, 0, 1, 10, 0, 0, 77, 0, 0, 0, 0, 0, 0].into_iter().chain(address));
    frame
}

#[test]
fn the_guest_is_told_its_address_and_finds_who_is_there() {
    in_namespace("the_guest_is_told_its_address_and_finds_who_is_there", || {
        let mut opened = open(&format!("tun,host=10.0.0.1/24,guest=10.0.0.77,mac={GUEST}")).unwrap();
        let backend = opened.backends[0].as_mut();
        assert_eq!(send(backend, &discover()).unwrap(), Sent::Answered);
        let offer = recv(backend, 2000).unwrap();
        assert_eq!(offer[HEADER_LEN + 14 + 20 + 8 + 16..][..4], [10, 0, 0, 77], "the address given");
        assert_eq!(offer[HEADER_LEN + 6..][..6], [6, 0, 0, 0, 0, 1], "from the gateway");
        assert_eq!(send(backend, &who_has([10, 0, 0, 1])).unwrap(), Sent::Answered);
        assert_eq!(send(backend, &who_has([10, 0, 0, 2])).unwrap(), Sent::Gone, "nobody is there");

        let mut opened = open(&format!("tun,host=10.1.0.1/30,dhcp=off,mac={GUEST}")).unwrap();
        let backend = opened.backends[0].as_mut();
        assert_eq!(send(backend, &discover()).unwrap(), Sent::Gone);
        assert_eq!(send(backend, &router_solicitation()).unwrap(), Sent::Gone);
        assert_eq!(send(backend, &who_has([10, 1, 0, 1])).unwrap(), Sent::Answered, "whatever is told");

        run("ip tuntap add dev tun0 mode tun");
        let mut opened = open(&format!("tun=tun0,mac={GUEST}")).unwrap();
        let backend = opened.backends[0].as_mut();
        assert_eq!(send(backend, &who_has([10, 0, 0, 2])).unwrap(), Sent::Answered, "who knows who is there");
    });
}

#[test]
fn the_guest_is_no_router_of_the_host() {
    const NAME: &str = "the_guest_is_no_router_of_the_host";
    in_namespace(NAME, || {
        if !has_ipv6() {
            return skip(NAME, "this kernel has no IPv6; the lab's has");
        }
        let setting = |link: &str| run(&format!("cat /proc/sys/net/ipv6/conf/{link}/accept_ra"));
        run("ip tuntap add dev tun0 mode tun");
        let (opened, his) = (open("tun").unwrap(), open("tun=tun0").unwrap());
        assert_eq!(setting(&opened.link), "0\n");
        assert_eq!(setting(&his.link), "1\n", "who made it knows what he wants");
    });
}

#[test]
fn what_is_no_tun_of_one_queue_is_named() {
    in_namespace("what_is_no_tun_of_one_queue_is_named", || {
        run("ip tuntap add dev many mode tun multi_queue");
        run("ip tuntap add dev layer2 mode tap");
        for (spec, words, remedy) in [
            ("tun=many", "cannot attach to the tun many: it is a multi_queue one", "mode tun"),
            ("tun=layer2", "cannot attach to layer2: it is a tap (layer 2), not a tun", "--net tun"),
            ("tun=lo", "a network interface, not a tun", "--net tun"),
        ] {
            let error = open(spec).unwrap_err();
            assert!(error.to_string().contains(words), "{spec}: {error}");
            assert!(error.remedy().unwrap().contains(remedy), "{spec}: {:?}", error.remedy());
        }
        let first = open("tun=tun0").unwrap();
        let error = open("tun=tun0").unwrap_err().to_string();
        assert_eq!(error, "cannot attach to the tun tun0: another --net of this command holds it");
        drop(first);
    });
}

#[test]
fn what_the_guest_accepts_it_gets_unfinished_and_counted_from_its_frame() {
    in_namespace("what_the_guest_accepts_it_gets_unfinished_and_counted_from_its_frame", || {
        let mut opened = open(&format!("tun,host=10.0.0.1/30,dhcp=off,mac={GUEST}")).unwrap();
        let socket = UdpSocket::bind("10.0.0.1:4321").unwrap();
        let backend = opened.backends[0].as_mut();
        let is_ours =
            |frame: &[u8]| frame.get(HEADER_LEN + 34..HEADER_LEN + 36) == Some(&4321u16.to_be_bytes());
        let csum = Offloads { csum: true, ..Offloads::default() };

        socket.send_to(b"hello", "10.0.0.2:5").unwrap();
        let frame = recv_where(backend, is_ours);
        assert_eq!(frame[..10], [0; 10], "finished");
        let ethernet = [2, 0, 0, 0, 0, 1, 6, 0, 0, 0, 0, 1, 8, 0, 0x45];
        assert_eq!((&frame[HEADER_LEN..][..15], frame.len()), (&ethernet[..], HEADER_LEN + 14 + 20 + 8 + 5));
        backend.set_offloads(csum).unwrap();
        socket.send_to(b"hello", "10.0.0.2:5").unwrap();
        // NEEDS_CSUM, no segments, csum_start of the UDP header, csum_offset of its checksum.
        assert_eq!(recv_where(backend, is_ours)[..10], [1, 0, 0, 0, 0, 0, 34, 0, 6, 0]);

        if backend.offloads().uso {
            backend.set_offloads(Offloads { uso: true, ..csum }).unwrap();
            set_udp_segment(&socket, 1000);
            socket.send_to(&[0; 3000], "10.0.0.2:5").unwrap();
            let frame = recv_where(backend, is_ours);
            // VIRTIO_NET_HDR_GSO_UDP_L4 is 5; hdr_len of at least the headers; gso_size.
            let hdr_len = u16::from_le_bytes([frame[2], frame[3]]);
            assert_eq!((frame[1], &frame[4..6]), (5, &1000u16.to_le_bytes()[..]));
            assert!(hdr_len >= 42 && usize::from(hdr_len) <= frame.len() - HEADER_LEN, "{hdr_len}");
            assert_eq!(frame.len(), HEADER_LEN + 3042);
        }
    });
}

#[test]
fn an_unfinished_frame_of_the_guest_is_finished_by_the_host() {
    in_namespace("an_unfinished_frame_of_the_guest_is_finished_by_the_host", || {
        let mut opened = open("tun,host=10.0.0.1/30").unwrap();
        let socket = UdpSocket::bind("10.0.0.1:4321").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let ip = [0x45, 0, 0, 33, 0, 0, 0, 0, 64, 17, 0x66, 0xca, 10, 0, 0, 2, 10, 0, 0, 1];
        // The sum of the pseudo-header is where the checksum shall be, as a driver leaves it.
        let pseudo = (0x0a00u32 + 2 + 0x0a00 + 1 + 17 + 13) as u16;
        let [high, low] = pseudo.to_be_bytes();
        let udp = [0, 5, 0x10, 0xe1, 0, 13, high, low, b'h', b'e', b'l', b'l', b'o'];
        let ethernet = [6, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 8, 0];
        for (start, arrives) in [(34, true), (20, false), (48, false)] {
            let header = [1, 0, 0, 0, 0, 0, start, 0, 6, 0, 1, 0];
            let sent = send(&mut *opened.backends[0], &[&header[..], &ethernet, &ip, &udp].concat());
            let mut got = [0; 16];
            let got = socket.recv(&mut got).map(|len| got[..len].to_vec());
            assert_eq!(got.is_ok_and(|got| got == b"hello"), arrives, "csum_start {start}: {sent:?}");
        }
    });
}

#[test]
fn a_packet_larger_than_the_space_is_an_error_and_an_exact_one_is_not() {
    in_namespace("a_packet_larger_than_the_space_is_an_error_and_an_exact_one_is_not", || {
        let mut opened = open("tun,host=10.0.0.1/30").unwrap();
        let backend = opened.backends[0].as_mut();
        let socket = UdpSocket::bind("10.0.0.1:4321").unwrap();
        let whole = HEADER_LEN + 14 + 20 + 8 + 5;
        for (space, expected) in [
            (whole, Ok(whole)),
            (whole - 1, Err(libc::EMSGSIZE)),
            (HEADER_LEN + 14, Err(libc::EMSGSIZE)),
            (HEADER_LEN, Err(libc::EMSGSIZE)),
        ] {
            // A packet of the kernel's own may come first, and be larger.
            let found = (0..20).any(|_| {
                while recv(backend, 70_000).is_ok() {}
                socket.send_to(b"hello", "10.0.0.2:5").unwrap();
                let got = recv(backend, space).map(|frame| frame.len());
                got.map_err(|error| error.raw_os_error().unwrap()) == expected
            });
            assert!(found, "space of {space}");
        }
    });
}

#[test]
fn a_guest_finds_its_gateway_and_tcp_passes_both_ways_in_segments() {
    in_namespace("a_guest_finds_its_gateway_and_tcp_passes_both_ways_in_segments", || {
        let Opened { backends, wire, ignored, .. } =
            open(&format!("tun,host=10.0.0.1/30,mac={GUEST}")).unwrap();
        let host = TcpListener::bind("10.0.0.1:7").unwrap();
        let host = std::thread::spawn(move || echo(host));
        let guest = guest(backends.into_iter().next().unwrap(), || {
            run("ip address add 10.0.0.2/30 dev eth0");
            run("ip route add default via 10.0.0.1");
            let listener = TcpListener::bind("10.0.0.2:7").unwrap();
            let sent = bytes(3_000_000);
            assert!(talk("10.0.0.1:7", &sent) == sent, "guest to host and back");
            let neighbours = run("ip neighbour show dev eth0");
            assert!(neighbours.contains("10.0.0.1 lladdr 06:00:00:00:00:01"), "{neighbours}");
            std::thread::spawn(move || echo(listener));
        });
        let ((), cable) = guest.join().unwrap();
        host.join().unwrap();
        let sent = bytes(3_000_000);
        assert!(talk("10.0.0.2:7", &sent) == sent, "host to guest and back");
        for (way, passed) in [("out", &cable.out), ("back", &cable.back)] {
            let [segmented, unsummed, refused] =
                [&passed.segmented, &passed.unsummed, &passed.refused].map(|n| n.load(Ordering::Relaxed));
            assert!(segmented > 20 && unsummed >= segmented, "{way}: {segmented}, {unsummed}");
            assert_eq!(refused, 0, "{way}");
        }
        // Three megabytes twice, mostly in segments that were cut nowhere, come with few retransmissions.
        let tcp = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
        let tcp: Vec<_> = tcp.lines().filter_map(|line| line.strip_prefix("Tcp: ")).collect();
        let errors = tcp[0].split(' ').zip(tcp[1].split(' ')).find(|(name, _)| *name == "InErrs").unwrap().1;
        assert_eq!(errors, "0", "wrong checksums");
        assert_eq!(ignored.load(Ordering::Relaxed), 0);
        drop((cable, wire));
    });
}

#[test]
fn what_is_not_ip_is_counted() {
    in_namespace("what_is_not_ip_is_counted", || {
        let mut opened = open("tun,host=10.0.0.1/30").unwrap();
        let mut lldp = vec![0; HEADER_LEN + 60];
        lldp[HEADER_LEN + 12..][..2].copy_from_slice(&[0x88, 0xcc]);
        for _ in 0..3 {
            assert_eq!(send(&mut *opened.backends[0], &lldp).unwrap(), Sent::Gone);
        }
        assert_eq!(opened.ignored.load(Ordering::Relaxed), 3);
    });
}

/// Waits until what is printed is as `wanted`, for some seconds, and returns it.
fn run_until(command: &str, wanted: impl Fn(&str) -> bool) -> String {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let printed = run(command);
        if wanted(&printed) || Instant::now() > end {
            assert!(wanted(&printed), "{command}: {printed}");
            return printed;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_guest_configures_ipv6_itself_and_tcp_passes_in_segments() {
    const NAME: &str = "a_guest_configures_ipv6_itself_and_tcp_passes_in_segments";
    in_namespace(NAME, || {
        if !has_ipv6() {
            return skip(NAME, "this kernel has no IPv6; the lab's has");
        }
        // Without it the kernel has no way to an IPv6 address of its own.
        run("ip link set lo up");
        run("sysctl -qw net.ipv6.conf.default.forwarding=1");
        let opened = open(&format!("tun,host=fd00::1/64,mtu=1400,mac={GUEST}")).unwrap();
        let Opened { backends, wire, link, .. } = opened;
        let link_local = run(&format!("ip -6 -o address show dev {link} scope link"));
        let link_local = link_local.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned();
        let host = TcpListener::bind("[fd00::1]:7").unwrap();
        let host = std::thread::spawn(move || echo(host));
        let guest = guest(backends.into_iter().next().unwrap(), move || {
            // With duplicate address detection, of two addresses: nobody but us could answer it.
            let addresses = run_until("ip -6 address show dev eth0", |all| {
                all.contains(" fd00::ff:fe00:1/64 ") && !all.contains("tentative")
            });
            assert!(!addresses.contains("dadfailed"), "{addresses}");
            let route = run("ip -6 route show default");
            assert!(route.starts_with(&format!("default via {link_local} dev eth0")), "{route}");
            // The host answers at the address from which it was told, which is its own.
            run(&format!("ping -c 1 -W 5 {link_local}%eth0"));
            let sent = bytes(3_000_000);
            assert!(talk("[fd00::1]:7", &sent) == sent, "guest to host and back");
            let neighbours = run("ip neighbour show dev eth0");
            for address in ["fd00::1", &link_local] {
                let line = format!("{address} lladdr 06:00:00:00:00:01 router");
                assert!(neighbours.contains(&line), "{line}: {neighbours}");
            }
        });
        let ((), cable) = guest.join().unwrap();
        host.join().unwrap();
        assert!(cable.out.segmented.load(Ordering::Relaxed) > 20);
        assert!(cable.back.segmented.load(Ordering::Relaxed) > 20);
        drop((cable, wire));
    });
}

#[test]
fn a_tun_without_an_address_for_the_host_gets_a_subnet_and_an_attached_one_does_not() {
    const NAME: &str = "a_tun_without_an_address_for_the_host_gets_a_subnet_and_an_attached_one_does_not";
    in_namespace(NAME, || {
        let (first, told) = open_told("tun");
        assert!(told.iter().any(|line| line == "ip address add 172.30.0.1/30 dev wirevm0"), "{told:?}");
        let (off, told) = open_told("tun,dhcp=off");
        assert!(!told.iter().any(|line| line.contains("address")), "{told:?}");
        run("ip tuntap add dev tun0 mode tun vnet_hdr");
        let (his, told) = open_run("tun=tun0");
        assert_eq!(told, ["ip link set dev tun0 up"]);
        drop((first, off, his));
    });
}

#[test]
fn the_descriptor_never_blocks() {
    in_namespace("the_descriptor_never_blocks", || {
        let opened = open("tun").unwrap();
        let fd = opened.backends[0].fd().as_raw_fd();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        let flags = i32::from_str_radix(flags, 8).unwrap();
        let wanted = libc::O_NONBLOCK | libc::O_CLOEXEC;
        assert_eq!(flags & wanted, wanted, "{info}");
    });
}
