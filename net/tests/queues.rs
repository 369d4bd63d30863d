//! Links with several queues, each test in a network namespace of its own.

mod frames;
mod namespace;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::time::Duration;

use frames::{drain, recv, recv_where, send};
use namespace::wire::open_told;
use namespace::{
    as_user, elsewhere, in_namespace, inheritable, macvtap_device, own_tun_device, run, run_in_own_mounts,
    state, tun_attached, tun_flags, tun_header_len, warnings,
};
use net::{Backend, Error, FdError, FdProblem, HEADER_LEN, NetConfig, Opened, Sent};

const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn open(spec: &str) -> Result<Opened, Error> {
    net::open(&spec.parse().unwrap(), &net::Host::new())
}

fn opened(spec: &str) -> Opened {
    open(spec).unwrap_or_else(|error| panic!("{spec}: {error}: {error:?}"))
}

/// How many queues the link brings frames to.
fn attached(link: &str) -> (u32, u32) {
    let text = run(&format!("ip -d link show {link}"));
    let count = |word: &str| {
        let after = text.split_once(word).map(|(_, rest)| rest.split_whitespace().next().unwrap());
        after.map_or(0, |number| number.parse().unwrap())
    };
    (count("numqueues "), count("numdisabled "))
}

/// Sends datagrams of 64 flows to the guest at `to`, and says by which queues they came.
fn spread(queues: &mut [Box<dyn Backend>], to: &str) -> HashSet<usize> {
    queues.iter_mut().for_each(|queue| drain(&mut **queue));
    let sockets: Vec<_> = (0..64).map(|_| UdpSocket::bind("0.0.0.0:0").unwrap()).collect();
    for socket in &sockets {
        socket.send_to(b"a datagram", to).unwrap();
    }
    let (mut by, mut count) = (HashSet::new(), 0);
    for _ in 0..1000 {
        for (index, queue) in queues.iter_mut().enumerate() {
            while let Ok(frame) = recv(&mut **queue, 2000) {
                if frame.ends_with(b"a datagram") {
                    by.insert(index);
                    count += 1;
                }
            }
        }
        if count == sockets.len() {
            return by;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{count} of {} came", sockets.len());
}

/// Disables and enables all queues but the first.
fn check_queues(queues: &mut [Box<dyn Backend>], to: &str) {
    let all: HashSet<_> = (0..queues.len()).collect();
    let first = HashSet::from([0]);
    assert_eq!(spread(queues, to), all);
    for _ in 0..2 {
        for queue in &mut queues[1..] {
            queue.set_enabled(false).unwrap();
            queue.set_enabled(false).unwrap();
        }
        assert_eq!(spread(queues, to), first);
        for queue in &mut queues[1..] {
            queue.set_enabled(true).unwrap();
            queue.set_enabled(true).unwrap();
        }
        assert_eq!(spread(queues, to), all);
    }
}

#[test]
fn a_tap_of_several_queues_spreads_flows_and_goes() {
    in_namespace("a_tap_of_several_queues_spreads_flows_and_goes", || {
        warnings();
        let before = state();
        let (mut opened, told) = open_told("tap,host=10.0.0.1/24,dhcp=off,queues=3");
        assert_eq!(told[0], "ip tuntap add dev wirevm0 mode tap multi_queue vnet_hdr");
        assert_eq!((opened.backends.len(), attached("wirevm0")), (3, (3, 0)));
        run("ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:01 dev wirevm0");
        check_queues(&mut opened.backends, "10.0.0.2:9");
        assert_eq!(opened.backends[1].offloads(), opened.backends[0].offloads());
        assert!(opened.backends.iter().all(|queue| queue.vhost_fd().is_some()));

        // What the guest says by one queue, it is answered there.
        let socket = UdpSocket::bind("10.0.0.1:7").unwrap();
        let answered = |opened: &mut Opened, by: usize, at: usize| {
            let words = [b"question", &[b'0' + by as u8][..]].concat();
            let question = udp(GUEST, [10, 0, 0, 2], 1000, [10, 0, 0, 1], 7, &words);
            assert_eq!(send(opened.backends[by].as_mut(), &question).unwrap(), Sent::Gone);
            let mut heard = [0; 9];
            let (_, from) = socket.recv_from(&mut heard).unwrap();
            assert_eq!(heard[..], words);
            socket.send_to(&heard, from).unwrap();
            recv_where(opened.backends[at].as_mut(), |frame| frame.ends_with(&words));
        };
        for number in [1, 2, 0, 1] {
            answered(&mut opened, number, number);
        }
        // And it can send by one that is disabled.
        opened.backends[1].set_enabled(false).unwrap();
        opened.backends[2].set_enabled(false).unwrap();
        assert_eq!(attached("wirevm0"), (1, 2));
        answered(&mut opened, 2, 0);
        drop(opened);
        assert_eq!(state(), before);
        assert_eq!(warnings(), [""; 0]);
    });
}

/// An ARP request of the guest, 10.0.0.2, for the host, 10.0.0.1, with its header.
fn arp_request() -> Vec<u8> {
    let mut frame = vec![0; HEADER_LEN];
    frame.extend([0xff; 6]);
    frame.extend(GUEST);
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(GUEST);
    frame.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
    frame
}

#[test]
fn what_is_told_makes_the_same_by_hand() {
    in_namespace("what_is_told_makes_the_same_by_hand", || {
        for spec in ["tap=t0,host=10.0.0.1/24,queues=2", "tun=t0,host=10.0.0.1/24,queues=2"] {
            let words = || {
                let text = run("ip -d link show t0");
                ["multi_queue numqueues", "vnet_hdr on", "pi off"].map(|word| text.contains(word))
            };
            let (opened, told) = open_told(spec);
            assert_eq!(words(), [true; 3], "{spec}");
            drop(opened);
            run(&told[0]);
            assert_eq!(words(), [true; 3], "{}", told[0]);
            // And is attached to, as one of yours.
            assert_eq!(attached("t0"), (0, 0));
            assert_eq!(self::opened(spec).backends.len(), 2);
            run("ip link del t0");
        }
    });
}

#[test]
fn a_tap_of_yours_is_as_before_in_whatever_order_its_queues_go() {
    in_namespace("a_tap_of_yours_is_as_before_in_whatever_order_its_queues_go", || {
        warnings();
        run("ip tuntap add dev tap0 mode tap multi_queue pi");
        run("ip link set tap0 up");
        run("ip link set tap0 down");
        let before = state();
        assert!(before.contains("pi on vnet_hdr off multi_queue numqueues 0"), "{before}");
        for last in 0..3 {
            let mut opened = opened("tap=tap0,host=10.0.0.1/24,queues=3");
            opened.backends[1].set_enabled(false).unwrap();
            let stays = opened.backends.remove(last);
            drop(opened);
            drop(stays);
            assert_eq!(state(), before, "queue {last} goes last");
        }
        assert_eq!(warnings(), [""; 0]);
    });
}

#[test]
fn a_link_with_other_queues_is_refused_and_says_what_to_do() {
    in_namespace("a_link_with_other_queues_is_refused_and_says_what_to_do", || {
        for mode in ["tap", "tun"] {
            run(&format!("ip tuntap add dev {mode}1 mode {mode}"));
            run(&format!("ip tuntap add dev {mode}2 mode {mode} multi_queue"));
            // A link that is up for the first time gets its queueing discipline, and keeps it.
            run(&format!("ip link set {mode}2 up"));
            run(&format!("ip link set {mode}2 down"));
            let before = state();
            let refused = |spec: &str| {
                let error = open(spec).unwrap_err();
                (error.to_string(), error.remedy().unwrap())
            };
            let (error, remedy) = refused(&format!("{mode}={mode}2"));
            assert!(error.ends_with("it is a multi_queue one, and we attach one queue"), "{error}");
            assert!(remedy.starts_with("give it more: queues=2; or"), "{remedy}");
            let (error, remedy) = refused(&format!("{mode}={mode}1,queues=2"));
            assert!(error.ends_with("it is one without multi_queue, and we attach 2 queues"), "{error}");
            assert!(remedy.starts_with("drop queues=; or"), "{remedy}");
            assert!(remedy.contains("user $USER multi_queue vnet_hdr"), "{remedy}");
            assert_eq!(state(), before);

            // The kernel would let a second one in, and give it some of the frames.
            let mut first = opened(&format!("{mode}={mode}2,queues=2"));
            let (error, _) = refused(&format!("{mode}={mode}2,queues=2"));
            assert!(error.ends_with("another --net of this command holds it"), "{error}");
            first.backends[1].set_enabled(false).unwrap();
            assert_eq!(attached(&format!("{mode}2")), (1, 1));
            drop(first);
            // Also beside one who has detached his only queue for a while.
            let kind = if mode == "tap" { libc::IFF_TAP } else { libc::IFF_TUN };
            let flags = kind | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE;
            let queue = tun_attached(&format!("{mode}2"), flags);
            detach(&queue);
            let (error, _) = refused(&format!("{mode}={mode}2,queues=2"));
            assert!(error.ends_with("another --net of this command holds it"), "{error}");
            drop(queue);
            // As every tun does that was up with a carrier once, whoever did it.
            let settled = |text: String| text.replace("addrgenmode random", "addrgenmode eui64");
            assert_eq!(settled(state()), settled(before));
            run(&format!("ip link del {mode}1"));
            run(&format!("ip link del {mode}2"));
        }
    });
}

#[test]
fn without_rights_the_remedy_makes_a_link_with_as_many_queues() {
    in_namespace("without_rights_the_remedy_makes_a_link_with_as_many_queues", || {
        own_tun_device(Some(0o666));
        let error = as_user(65534, || open("tap,queues=2").unwrap_err());
        let remedy = error.remedy().unwrap();
        assert!(remedy.contains("mode tap user $USER multi_queue vnet_hdr"), "{remedy}");
        assert!(remedy.ends_with("--net tap=tap0,queues=2"), "{remedy}");
        run("ip tuntap add dev tap0 mode tap user 65534 multi_queue vnet_hdr");
        run("ip link set dev tap0 up");
        let queues = as_user(65534, || opened("tap=tap0,queues=2").backends.len());
        assert_eq!(queues, 2);
    });
}

#[test]
fn a_bridge_has_a_tap_of_several_queues() {
    in_namespace("a_bridge_has_a_tap_of_several_queues", || {
        let before = state();
        let mut opened = opened("bridge=br0,queues=2");
        assert_eq!(attached(&opened.link), (2, 0));
        run("ip address add 10.0.0.1/24 dev br0");
        run("ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:01 dev br0");
        check_queues(&mut opened.backends, "10.0.0.2:9");
        drop(opened);
        assert_eq!(state(), before);
    });
}

#[test]
fn a_guest_is_told_what_it_asks_by_whatever_queue() {
    in_namespace("a_guest_is_told_what_it_asks_by_whatever_queue", || {
        let mut opened = opened("tap,host=10.0.0.1/24,queues=2,mac=02:00:00:00:00:01");
        // The guest changes its address, of which the device tells every queue.
        let mac = [2, 0, 0, 0, 0, 2];
        let filter = net::RxFilter::new(net::Mac::new(mac).unwrap());
        for queue in &mut opened.backends {
            queue.set_filter(&filter).unwrap();
        }
        for queue in opened.backends.iter_mut().rev() {
            assert_eq!(send(&mut **queue, &discover(mac)).unwrap(), Sent::Answered);
            let offer = recv(&mut **queue, 2000).unwrap();
            assert_eq!(offer[HEADER_LEN + 42 + 16..][..4], [10, 0, 0, 2], "yiaddr");
        }
    });
}

/// A DHCPDISCOVER of the NIC `mac`, with its header.
fn discover(mac: [u8; 6]) -> Vec<u8> {
    let dhcp = [
        &[1, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0x80, 0][..],
        &[0; 16],
        &mac,
        &[0; 202],
        &[99, 130, 83, 99, 53, 1, 1, 255],
        &[0; 56],
    ]
    .concat();
    udp(mac, [0; 4], 68, [255; 4], 67, &dhcp)
}

/// A datagram of the NIC `mac` to everybody on its wire, with its header.
fn udp(mac: [u8; 6], from: [u8; 4], from_port: u16, to: [u8; 4], to_port: u16, text: &[u8]) -> Vec<u8> {
    let len = |more: usize| ((text.len() + more) as u16).to_be_bytes();
    let udp = [from_port.to_be_bytes(), to_port.to_be_bytes(), len(8), [0, 0]].concat();
    let mut ip = [&[0x45, 0][..], &len(28), &[0, 0, 0, 0, 64, 17, 0, 0], &from, &to].concat();
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [&[0; HEADER_LEN][..], &[0xff; 6], &mac, &[8, 0], &ip, &udp, text].concat()
}

#[test]
fn a_tun_of_several_queues_is_one_wire() {
    in_namespace("a_tun_of_several_queues_is_one_wire", || {
        let spec = "tun=t0,host=10.0.0.1/30,guest=10.0.0.2,queues=2,mac=02:00:00:00:00:01";
        let (mut opened, told) = open_told(spec);
        assert_eq!(told[0], "ip tuntap add dev t0 mode tun multi_queue vnet_hdr");
        check_queues(&mut opened.backends, "10.0.0.2:9");
        // Each answers for the gateway, by itself.
        for queue in &mut opened.backends {
            assert_eq!(send(&mut **queue, &arp_request()).unwrap(), Sent::Answered);
            let reply = recv(&mut **queue, 2000).unwrap();
            assert_eq!(reply[HEADER_LEN..][..6], GUEST);
            assert_eq!(reply[HEADER_LEN + 12..][..10], [8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
        }
        // And counts with the others what goes nowhere.
        let mut lldp = vec![0; HEADER_LEN + 60];
        lldp[HEADER_LEN + 12..][..2].copy_from_slice(&[0x88, 0xcc]);
        for queue in &mut opened.backends {
            assert_eq!(send(&mut **queue, &lldp).unwrap(), Sent::Gone);
        }
        assert_eq!(opened.ignored.load(std::sync::atomic::Ordering::Relaxed), 2);
    });
}

/// A NIC `v0` whose other end, `v1`, has 10.9.0.1 and knows the guest as 10.9.0.2.
fn cable() {
    run("ip link add v0 type veth peer v1");
    run("ip link set v1 addrgenmode none address 02:00:00:00:00:ff up");
    run("ip link set v0 addrgenmode none up");
    // Their carriers come a moment later.
    let up = || ["v0", "v1"].iter().all(|link| run(&format!("ip link show {link}")).contains("state UP"));
    (0..1000)
        .find(|_| {
            up() || {
                std::thread::sleep(Duration::from_millis(5));
                false
            }
        })
        .expect("a carrier");
    run("ip address add 10.9.0.1/24 dev v1");
    run("ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:01 dev v1");
}

#[test]
fn a_macvtap_of_several_queues_spreads_flows_and_follows_one_filter() {
    in_namespace("a_macvtap_of_several_queues_spreads_flows_and_follows_one_filter", || {
        run_in_own_mounts(|| {
            warnings();
            cable();
            let before = state();
            let mut opened = opened("macvtap=v0,mac=02:00:00:00:00:01,queues=3");
            assert_eq!(opened.backends.len(), 3);
            check_queues(&mut opened.backends, "10.9.0.2:9");
            // What came to a queue before it was disabled is not what it brings afterwards.
            for _ in 0..8 {
                UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"stale", "10.9.0.2:9").unwrap();
            }
            std::thread::sleep(Duration::from_millis(50));
            for enabled in [false, true] {
                opened.backends[1].set_enabled(enabled).unwrap();
                opened.backends[2].set_enabled(enabled).unwrap();
            }
            for queue in &mut opened.backends[1..] {
                let error = recv(&mut **queue, 2000).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            }
            drop(opened);
            assert_eq!(state(), before);

            // One that is there.
            run("ip link add link v0 name mv0 address 02:00:00:00:00:01 type macvtap mode bridge");
            run("ip link set mv0 addrgenmode none up");
            let before = state();
            let mut opened = self::opened("macvtap=mv0,queues=2");
            check_queues(&mut opened.backends, "10.9.0.2:9");
            drop(opened);
            assert_eq!(state(), before);
            assert_eq!(warnings(), [""; 0]);
        });
    });
}

const FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Gives the descriptor away as if we had inherited it.
fn give(file: fs::File) -> RawFd {
    inheritable(&file);
    file.into_raw_fd()
}

fn open_fds(fds: &[RawFd]) -> Result<Opened, Error> {
    let spec = format!("fd={}", fds.iter().map(RawFd::to_string).collect::<Vec<_>>().join(":"));
    let config: NetConfig = spec.parse().unwrap();
    net::open(&config, &net::Host::new().telling(|step| panic!("{step}")))
}

#[test]
fn inherited_queues_of_a_tap_are_one_nic_without_any_right() {
    in_namespace("inherited_queues_of_a_tap_are_one_nic_without_any_right", || {
        warnings();
        let keep = [0; 3].map(|_| tun_attached("tap0", FLAGS | libc::IFF_MULTI_QUEUE));
        run("ip link set tap0 up");
        run("ip address add 10.0.0.1/24 dev tap0");
        run("ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:01 dev tap0");
        for last in 0..3 {
            let fds = keep.each_ref().map(|file| give(file.try_clone().unwrap()));
            as_user(65534, move || {
                let mut opened = open_fds(&fds).unwrap();
                assert_eq!(opened.link, "tap0");
                check_queues(&mut opened.backends, "10.0.0.2:9");
                opened.backends[2].set_enabled(false).unwrap();
                let stays = opened.backends.remove(last);
                drop(opened);
                drop(stays);
            });
            assert_eq!(attached("tap0"), (3, 0), "as before");
            assert_eq!(tun_header_len(&keep[0]), 10, "as before");
        }
        assert_eq!(warnings(), [""; 0]);
    });
}

/// Has the link bring nothing to the queue.
#[allow(unsafe_code)]
fn detach(queue: &fs::File) {
    // SAFETY: all zeroes is an ifreq, which TUNSETQUEUE reads.
    let result = unsafe {
        let mut ifreq: libc::ifreq = std::mem::zeroed();
        ifreq.ifr_ifru.ifru_flags = libc::IFF_DETACH_QUEUE as i16;
        libc::ioctl(queue.as_raw_fd(), libc::TUNSETQUEUE, &ifreq)
    };
    assert_eq!(result, 0, "TUNSETQUEUE: {}", io::Error::last_os_error());
}

#[test]
fn a_queue_that_its_owner_detached_is_so_again() {
    in_namespace("a_queue_that_its_owner_detached_is_so_again", || {
        let keep = [0; 2].map(|_| tun_attached("tap0", FLAGS | libc::IFF_MULTI_QUEUE));
        let detached =
            || keep.each_ref().map(|file| i32::from(tun_flags(file)) & libc::IFF_DETACH_QUEUE != 0);
        detach(&keep[0]);
        assert_eq!(detached(), [true, false]);
        let opened = open_fds(&keep.each_ref().map(|file| give(file.try_clone().unwrap()))).unwrap();
        assert_eq!(detached(), [false, false]);
        drop(opened);
        assert_eq!(detached(), [true, false]);
    });
}

#[test]
fn descriptors_that_are_no_queues_of_one_link_are_refused() {
    in_namespace("descriptors_that_are_no_queues_of_one_link_are_refused", || {
        let queue = |name: &str| tun_attached(name, FLAGS | libc::IFF_MULTI_QUEUE);
        let problem = |files: Vec<fs::File>| {
            let fds: Vec<_> = files.into_iter().map(give).collect();
            match open_fds(&fds).unwrap_err() {
                Error::Fd(FdError { fd, problem, .. }) => {
                    assert_eq!(fds.last(), Some(&fd), "{problem}");
                    assert!(problem.to_string().len() > 20);
                    (problem, fds[0])
                }
                error => panic!("{error}: {error:?}"),
            }
        };
        let keep = queue("tap0");
        let other = |first| FdProblem::OtherLink { link: "tap1".to_owned(), first };
        let (found, first) = problem(vec![queue("tap0"), queue("tap1")]);
        assert_eq!(found, other(first));
        // Of that name in another namespace.
        let there = elsewhere(|| tun_attached("tap0", FLAGS)).join().unwrap();
        let (found, first) = problem(vec![queue("tap0"), there]);
        assert_eq!(found, FdProblem::OtherLink { link: "tap0".to_owned(), first });
        let file = queue("tap0");
        let (found, first) = problem(vec![file.try_clone().unwrap(), queue("tap0"), file]);
        assert_eq!(found, FdProblem::Duplicate(first));
        let tun = tun_attached("tun0", libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
        assert_eq!(problem(vec![queue("tap0"), tun]).0, FdProblem::Layer3("tun0".to_owned()));
        assert_eq!(tun_header_len(&keep), 10, "nothing was changed");
        assert_eq!(attached("tap0"), (1, 0));
    });
}

#[test]
fn inherited_queues_of_a_macvtap_are_one_nic() {
    in_namespace("inherited_queues_of_a_macvtap_are_one_nic", || {
        run_in_own_mounts(|| {
            warnings();
            cable();
            run("ip link add link v0 name mv0 address 02:00:00:00:00:01 type macvtap mode bridge");
            run("ip link set mv0 addrgenmode none up");
            let before = state();
            let first = macvtap_device("mv0");
            let again = || fs::File::options().read(true).write(true).open("/dev/net/tap").unwrap();
            let second = again();
            let flags = tun_flags(&second);
            let copies = [first.try_clone().unwrap(), second.try_clone().unwrap()];
            let mut opened = open_fds(&copies.map(give)).unwrap();
            assert_eq!(opened.mac.octets(), GUEST);
            check_queues(&mut opened.backends, "10.9.0.2:9");
            // A change of the address is the link's, and is taken back once.
            let mac = net::Mac::new([2, 0, 0, 0, 0, 7]).unwrap();
            for queue in &mut opened.backends {
                queue.set_filter(&net::RxFilter::new(mac)).unwrap();
            }
            assert!(run("ip link show mv0").contains("02:00:00:00:00:07"));
            drop(opened);
            assert_eq!(state(), before);
            assert_eq!(tun_flags(&second), flags);
            let error = open_fds(&[give(first.try_clone().unwrap()), give(first)]).unwrap_err();
            assert!(matches!(error, Error::Fd(FdError { problem: FdProblem::Duplicate(_), .. })), "{error}");
            assert_eq!(warnings(), [""; 0]);
        });
    });
}
