//! Descriptors of taps and macvtaps that somebody else opened, each test in a network namespace of its own.

mod namespace;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};

use namespace::{
    as_user, elsewhere, in_namespace, inheritable, macvtap_device, run, run_in_own_mounts, tun_attached,
    tun_flags, tun_header_len, warnings,
};
use net::{Addresses, Backend, Error, FdError, FdProblem, IovBuffer, Mac, Opened, RxFilter};
use vm_memory::VolatileSlice;

const FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

fn open(fd: RawFd, keys: &str) -> Result<Opened, Error> {
    net::open(&format!("fd={fd}{keys}").parse().unwrap(), &net::Host::new().telling(|step| panic!("{step}")))
}

/// Gives the descriptor away as if we had inherited it.
fn give(file: File) -> RawFd {
    inheritable(&file);
    file.into_raw_fd()
}

fn problem(fd: RawFd) -> FdProblem {
    match open(fd, "").unwrap_err() {
        Error::Fd(FdError { fd: number, problem, .. }) if number == fd => problem,
        error => panic!("{error}: {error:?}"),
    }
}

fn send(backend: &mut dyn Backend, mut frame: Vec<u8>) -> io::Result<()> {
    let mut room = IovBuffer::new();
    let mut iov = room.start();
    assert!(iov.push(VolatileSlice::from(&mut frame[..])));
    backend.send(&iov).map(drop)
}

/// Receives until a frame comes that is addressed `to`.
fn recv_to(backend: &mut dyn Backend, to: [u8; 6]) -> Vec<u8> {
    for _ in 0..2000 {
        let mut frame = vec![0; 70_000];
        let mut room = IovBuffer::new();
        let mut iov = room.start();
        assert!(iov.push(VolatileSlice::from(&mut frame[..])));
        match backend.recv(&mut iov) {
            Ok(len) => {
                drop(iov);
                frame.truncate(len);
                if frame[12..18] == to {
                    return frame;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            Err(error) => panic!("recv: {error}"),
        }
    }
    panic!("no such frame came");
}

/// An empty frame of an experimental kind (IEEE 802, 88b5), with its header.
fn frame(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    [&[0; 12][..], &to, &from, &[0x88, 0xb5], &[7; 46]].concat()
}

#[test]
fn an_inherited_tap_is_a_wire_without_any_right() {
    in_namespace("an_inherited_tap_is_a_wire_without_any_right", || {
        warnings();
        let file = tun_attached("tap0", FLAGS);
        run("ip link set tap0 mtu 4000 up");
        let keep = file.try_clone().unwrap();
        let number = give(file);
        as_user(65534, move || {
            let mut opened = open(number, "").unwrap();
            assert_eq!((opened.link.as_str(), opened.mtu), ("tap0", 4000));
            assert_eq!(opened.mac.octets()[0] & 3, 2, "the link's own address is the host's end");
            let backend = opened.backends[0].as_mut();
            assert!(backend.offloads().tso6, "{:?}", backend.offloads());
            backend.set_offloads(backend.offloads()).unwrap();
            assert!(backend.vhost_fd().is_some());
            send(backend, frame([0xff; 6], opened.mac.octets())).unwrap();
        });
        assert_eq!(tun_header_len(&keep), 10, "as before");
        let counted = run("ip -s link show tap0");
        assert!(counted.lines().any(|line| line.trim().starts_with("60       1 ")), "{counted}");
        assert_eq!(warnings(), [""; 0]);
    });
}

#[test]
fn the_mtu_and_the_mac_of_a_tap_may_be_told() {
    in_namespace("the_mtu_and_the_mac_of_a_tap_may_be_told", || {
        let attach = || give(tun_attached("tap0", FLAGS));
        let number = attach();
        run("ip link set tap0 mtu 4000 up");
        let opened = open(number, ",mtu=1300,mac=02:00:00:00:00:01").unwrap();
        assert_eq!(opened.notices, [""; 0]);
        assert_eq!((opened.mtu, opened.mac.to_string().as_str()), (1300, "02:00:00:00:00:01"));
        drop(opened);
        let number = attach();
        assert!(open(number, "").unwrap().notices[0].contains("tap0 is down"));
        let number = attach();
        run("ip link set tap0 mtu 4000 up");
        let error = open(number, ",mtu=4001").unwrap_err();
        assert_eq!(error.to_string(), "mtu=4001: tap0 carries 4000 bytes at most");
        assert!(error.remedy().unwrap().contains("ip link set dev tap0 mtu 4001"));
    });
}

#[test]
fn a_tap_of_another_namespace_is_as_good() {
    in_namespace("a_tap_of_another_namespace_is_as_good", || {
        let file = elsewhere(|| {
            let file = tun_attached("tap0", FLAGS);
            run("ip link set tap0 mtu 4000 up");
            file
        });
        let number = give(file.join().unwrap());
        // One of the same name, that is not it.
        let _here = tun_attached("tap0", FLAGS);
        run("ip link set tap0 mtu 9000 up");
        let mut opened = open(number, "").unwrap();
        assert_eq!((opened.link.as_str(), opened.mtu), ("tap0", 1500), "its own is out of our sight");
        send(opened.backends[0].as_mut(), frame([0xff; 6], [2, 0, 0, 0, 0, 1])).unwrap();
    });
}

#[test]
fn what_is_no_such_descriptor_is_told_apart() {
    in_namespace("what_is_no_such_descriptor_is_told_apart", || {
        assert_eq!(problem(999), FdProblem::Closed);
        let tap = net::Tap::open(None).unwrap();
        assert_eq!(problem(tap.fd().as_raw_fd()), FdProblem::Ours);
        assert!(tap.name().starts_with("wirevm"), "still there");
        let null = give(File::open("/dev/null").unwrap());
        assert_eq!(problem(null), FdProblem::Other("/dev/null".to_owned()));
        let device = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        assert_eq!(problem(give(device)), FdProblem::Unattached);
        let tun = give(tun_attached("tun0", libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR));
        assert_eq!(problem(tun), FdProblem::Layer3("tun0".to_owned()));
        for flags in [libc::IFF_TAP | libc::IFF_NO_PI, libc::IFF_TAP | libc::IFF_VNET_HDR] {
            let tap = give(tun_attached("bare", flags));
            assert_eq!(problem(tap), FdProblem::Flags("bare".to_owned()), "{flags:x}");
        }
        let error = open(999, "").unwrap_err();
        assert_eq!(error.to_string(), "cannot use the descriptor 999: it is not open");
        assert!(error.remedy().unwrap().contains("fd=999 999<>"));
    });
}

#[test]
fn a_second_taking_is_refused() {
    in_namespace("a_second_taking_is_refused", || {
        let number = give(tun_attached("tap0", FLAGS));
        let first = open(number, "").unwrap();
        assert_eq!(problem(number), FdProblem::Ours);
        drop(first);
        assert_eq!(problem(number), FdProblem::Closed);
    });
}

#[test]
fn an_inherited_macvtap_lends_the_guest_its_address() {
    const NAME: &str = "an_inherited_macvtap_lends_the_guest_its_address";
    const OWN: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
    in_namespace(NAME, || {
        run_in_own_mounts(|| {
            warnings();
            run("ip link add v0 type veth peer v1");
            run("ip link set v1 address 02:00:00:00:00:ff up");
            run("ip link set v0 mtu 4000 up");
            run("ip link add link v0 name mv0 address 02:00:00:00:00:0a type macvtap mode bridge");
            run("ip link set mv0 up");
            let keep = macvtap_device("mv0");
            let flags = tun_flags(&keep);
            let number = give(keep.try_clone().unwrap());
            let found = run("ip link show mv0");
            as_user(65534, move || {
                let mut opened = open(number, "").unwrap();
                assert_eq!((opened.link.as_str(), opened.mtu), ("mv0", 4000));
                assert_eq!(opened.mac.octets(), OWN, "what else would be brought to it?");
                send(opened.backends[0].as_mut(), frame([0xff; 6], OWN)).unwrap();
            });
            assert_eq!(tun_flags(&keep), flags, "as before");
            // A link changes its address for the guest's, and back.
            let number = give(keep.try_clone().unwrap());
            let other = [2, 0, 0, 0, 0, 0xb];
            as_user(65534, move || {
                let mut opened = open(number, ",mac=02:00:00:00:00:0b").unwrap();
                send(opened.backends[0].as_mut(), frame([2, 0, 0, 0, 0, 0xff], other)).unwrap();
                assert!(run("ip link show mv0").contains("02:00:00:00:00:0b"));
            });
            assert_eq!(run("ip link show mv0"), found);

            // What comes to the address comes to the guest.
            let number = give(keep);
            let mut opened = open(number, "").unwrap();
            run("ip address add 10.9.0.1/24 dev v1");
            run("ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:0a dev v1");
            let socket = std::net::UdpSocket::bind("10.9.0.1:0").unwrap();
            socket.send_to(b"hello", "10.9.0.2:9").unwrap();
            assert!(recv_to(opened.backends[0].as_mut(), OWN).ends_with(b"hello"));

            // And what comes to its groups, which go with the descriptor.
            let groups = || run("ip maddress show dev mv0");
            let before = groups();
            let mut filter = RxFilter::new(Mac::new(OWN).unwrap());
            filter.multicast = Addresses::Only(vec![[0x33, 0x33, 0, 0, 0, 0x77]]);
            opened.backends[0].set_filter(&filter).unwrap();
            assert!(groups().contains("33:33:00:00:00:77"), "{}", groups());
            drop(opened);
            assert_eq!(groups(), before);
            assert_eq!(warnings(), [""; 0]);
        });
    });
}
