//! Where the host's DNS server is on its loopback, wirevm is the guest's: each test in namespaces of its own.

mod frames;
mod namespace;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use frames::{discover, recv_where, router_solicitation, send};
use namespace::machine::{Guest, SHORT};
use namespace::wire::{open_all_told, opened};
use namespace::world::{guest_of_both, world};
use namespace::{in_namespace, own_run_directory, run};
use net::{HEADER_LEN, Opened, Wire};

/// For what is to come.
const PATIENCE: Duration = Duration::from_secs(20);
const RESOLVER: &str = "127.0.0.53:53";
const SPEC: &str = "tap,host=172.31.0.1/24,host=fd00::1/64,guest=fd00::2,nat,mac=02:00:00:00:00:01";

/// Has the host's resolver be where `resolv_conf` says.
fn a_host(resolv_conf: &str) {
    run("ip link set lo up");
    own_run_directory();
    run("mount -t tmpfs tmpfs /etc");
    std::fs::write("/etc/resolv.conf", resolv_conf).unwrap();
}

fn resolver() -> UdpSocket {
    let socket = UdpSocket::bind(RESOLVER).unwrap();
    socket.set_read_timeout(Some(SHORT)).unwrap();
    socket
}

/// A query with this ID and name.
fn query(id: u16, name: &str) -> Vec<u8> {
    let head = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u8]].concat();
    [&head[..], name.as_bytes(), &[0, 0, 1, 0, 1]].concat()
}

/// What answers it, with so many bytes behind.
fn answer(query: &[u8], more: usize) -> Vec<u8> {
    let mut answer = query.to_vec();
    (answer[2], answer[3]) = (0x81, 0x80);
    answer.resize(answer.len() + more, 0xab);
    answer
}

/// Hands on what there is, as the keeper does, while `work` goes on.
fn handing_on<T>(wire: &mut Wire, work: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                if is_readable(wire) {
                    wire.hand_dns_on();
                } else {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn is_readable(wire: &Wire) -> bool {
    let fd = wire.dns().expect("a relay").as_raw_fd();
    let mut one = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    poll(&mut one) > 0
}

#[allow(unsafe_code)]
fn poll(one: &mut libc::pollfd) -> libc::c_int {
    // SAFETY: it is one.
    unsafe { libc::poll(one, 1, 0) }
}

/// A socket of the guest's, and what it is to talk to.
fn of_guest(guest: &Guest, to: &str) -> UdpSocket {
    let to: SocketAddr = to.parse().unwrap();
    guest.run(move || {
        let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(SHORT)).unwrap();
        socket
    })
}

fn received(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 65_535];
    match socket.recv(&mut buffer) {
        Ok(len) => Some(buffer[..len].to_vec()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

/// What the guest is told of DNS over IPv4, if it is.
fn told_server(opened: &mut Opened) -> Option<[u8; 4]> {
    let backend = opened.backends[0].as_mut();
    send(backend, &discover()).unwrap();
    let offer = recv_where(backend, |frame| frame[HEADER_LEN + 12..][..2] == [8, 0]);
    // Option 6, of 4 bytes, behind the magic cookie.
    let options = &offer[HEADER_LEN + 14 + 20 + 8 + 240..];
    let at = options.windows(2).position(|two| two == [6, 4])?;
    Some(options[at + 2..][..4].try_into().unwrap())
}

#[test]
fn a_guest_asks_a_resolver_that_only_the_host_reaches() {
    in_namespace("a_guest_asks_a_resolver_that_only_the_host_reaches", || {
        let _world = world();
        a_host("nameserver 127.0.0.53\noptions edns0\n");
        let (mut opened, told) = open_all_told(SPEC);
        let line = "# answer DNS on wirevm0 at 172.31.0.1 and fd00::1: by 127.0.0.53";
        assert!(told.contains(&line.to_owned()), "{told:#?}");
        assert!(!opened.notices.iter().any(|notice| notice.contains("DNS")), "{:?}", opened.notices);
        assert_eq!(told_server(&mut opened), Some([172, 31, 0, 1]));
        send(opened.backends[0].as_mut(), &router_solicitation()).unwrap();
        let host: std::net::Ipv6Addr = "fd00::1".parse().unwrap();
        let advertisement =
            recv_where(opened.backends[0].as_mut(), |frame| frame.get(HEADER_LEN + 54) == Some(&134));
        assert!(advertisement.windows(16).any(|part| part == host.octets()), "{advertisement:02x?}");

        let resolver = resolver();
        let guest = guest_of_both(&mut opened);
        handing_on(&mut opened.wire, || {
            for (to, id, more) in
                [("172.31.0.1:53", 7, 0), ("[fd00::1]:53", 0xffff, 0), ("172.31.0.1:53", 9, 4000)]
            {
                let asker = of_guest(&guest, to);
                asker.send(&query(id, "example")).unwrap();
                let mut heard = [0; 100];
                let (len, from) = resolver.recv_from(&mut heard).unwrap();
                assert!(from.ip().is_loopback(), "{from}");
                assert_eq!(heard[2..len], query(id, "example")[2..], "but for its ID it is the same");
                let mut other = answer(&heard[..len], 1);
                other[0] ^= 1;
                for wrong in [&other[..], &heard[..len], &heard[..5]] {
                    resolver.send_to(wrong, from).unwrap();
                }
                resolver.send_to(&answer(&heard[..len], more), from).unwrap();
                // Once answered, no more.
                resolver.send_to(&answer(&heard[..len], more), from).unwrap();
                assert_eq!(received(&asker).unwrap(), answer(&query(id, "example"), more), "{to}");
                assert_eq!(received(&asker), None);
            }
        });
        drop((guest, opened, resolver));
        drop(UdpSocket::bind("0.0.0.0:53").expect("nobody listens any more"));
    });
}

#[test]
fn what_is_no_query_of_the_guests_is_not_handed_on() {
    in_namespace("what_is_no_query_of_the_guests_is_not_handed_on", || {
        let world = world();
        a_host("nameserver 127.0.0.53\n");
        let mut opened = opened(SPEC);
        let resolver = resolver();
        let guest = guest_of_both(&mut opened);
        handing_on(&mut opened.wire, || {
            let asker = of_guest(&guest, "172.31.0.1:53");
            let long = [&query(1, "example")[..], &[0; 1472]].concat();
            for bad in [&query(1, "example")[..11], &answer(&query(1, "example"), 0), &long, b"x"] {
                asker.send(bad).unwrap();
            }
            // The LAN knows the way.
            world.commands(&["ip route add 172.31.0.0/24 via 192.0.2.1"]);
            world.run(|| {
                UdpSocket::bind("0.0.0.0:0").unwrap().send_to(&query(1, "lan"), "172.31.0.1:53").unwrap()
            });
            asker.send(&query(2, "good")).unwrap();
            let heard = received(&resolver).unwrap();
            assert_eq!(heard[2..], query(2, "good")[2..]);
            assert_eq!(received(&resolver), None);
        });
    });
}

#[test]
fn a_guest_keeps_a_few_queries_of_the_resolver_busy() {
    in_namespace("a_guest_keeps_a_few_queries_of_the_resolver_busy", || {
        let _world = world();
        a_host("nameserver 127.0.0.53\n");
        let mut opened = opened(SPEC);
        let resolver = resolver();
        let guest = guest_of_both(&mut opened);
        handing_on(&mut opened.wire, || {
            let asker = of_guest(&guest, "172.31.0.1:53");
            for id in 0..200 {
                asker.send(&query(id, "example")).unwrap();
            }
            let mut waiting = Vec::new();
            let mut heard = [0; 100];
            while let Ok((len, from)) = resolver.recv_from(&mut heard) {
                waiting.push((heard[..len].to_vec(), from));
            }
            assert_eq!(waiting.len(), 64);
            let ids: std::collections::HashSet<_> =
                waiting.iter().map(|(query, _)| [query[0], query[1]]).collect();
            assert_eq!(ids.len(), 64, "each has an ID of its own");
            for (query, from) in &waiting {
                resolver.send_to(&answer(query, 0), *from).unwrap();
            }
            let answers: Vec<_> = std::iter::from_fn(|| received(&asker)).collect();
            assert_eq!(answers.len(), 64);
            // There is a place again.
            asker.send(&query(900, "later")).unwrap();
            assert_eq!(received(&resolver).unwrap()[2..], query(900, "later")[2..]);
        });
    });
}

#[test]
fn a_guest_asks_over_tcp_too() {
    in_namespace("a_guest_asks_over_tcp_too", || {
        let _world = world();
        a_host("nameserver 127.0.0.53\n");
        let mut opened = opened(SPEC);
        let resolver = TcpListener::bind(RESOLVER).unwrap();
        let guest = guest_of_both(&mut opened);
        handing_on(&mut opened.wire, || {
            for to in ["172.31.0.1:53", "[fd00::1]:53"] {
                let to: SocketAddr = to.parse().unwrap();
                let mut asker = guest.run(move || TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
                let (mut asked, _) = resolver.accept().unwrap();
                for stream in [&asker, &asked] {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                }
                asker.write_all(b"a question").unwrap();
                asker.shutdown(Shutdown::Write).unwrap();
                let mut question = Vec::new();
                asked.read_to_end(&mut question).unwrap();
                assert_eq!(question, b"a question");
                // More than all buffers on the way hold.
                let long: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_ne_bytes()[n as usize % 3]).collect();
                let writer = thread::spawn(move || {
                    asked.write_all(&long).unwrap();
                    long
                });
                thread::sleep(Duration::from_millis(50));
                let mut heard = Vec::new();
                asker.read_to_end(&mut heard).unwrap();
                assert!(heard == writer.join().unwrap(), "{} bytes", heard.len());
            }
            // Who is silent gives way to others.
            let connect = || guest.run(move || TcpStream::connect_timeout(&at_host(), PATIENCE)).unwrap();
            let mut connections: Vec<_> =
                (0..17).map(|_| (connect(), resolver.accept().unwrap().0)).collect();
            assert!(is_closed(&mut connections[0].0));
            let (last, asked) = &mut connections[16];
            last.write_all(b"x").unwrap();
            asked.set_read_timeout(Some(PATIENCE)).unwrap();
            asked.read_exact(&mut [0]).unwrap();
            // One whose resolver goes is closed too.
            asked.shutdown(Shutdown::Both).unwrap();
            assert!(is_closed(last));
        });
        drop(resolver);
        // Nobody listens there.
        handing_on(&mut opened.wire, || {
            let mut refused = guest.run(|| TcpStream::connect_timeout(&at_host(), PATIENCE)).unwrap();
            assert!(is_closed(&mut refused));
        });
        assert!(!is_readable(&opened.wire));
    });
}

fn at_host() -> SocketAddr {
    "172.31.0.1:53".parse().unwrap()
}

fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    match stream.read(&mut [0]) {
        Ok(len) => len == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn who_does_not_read_is_waited_for_and_costs_nothing() {
    in_namespace("who_does_not_read_is_waited_for_and_costs_nothing", || {
        let _world = world();
        a_host("nameserver 127.0.0.53\n");
        let mut opened = opened(SPEC);
        let resolver = TcpListener::bind(RESOLVER).unwrap();
        let guest = guest_of_both(&mut opened);
        let (mut asker, mut asked) = handing_on(&mut opened.wire, || {
            let asker = guest.run(|| TcpStream::connect_timeout(&at_host(), PATIENCE)).unwrap();
            (asker, resolver.accept().unwrap().0)
        });
        asked.set_nonblocking(true).unwrap();
        let mut sent = 0;
        let mut quiet = 0;
        while quiet < 200 {
            quiet += 1;
            while let Ok(len) = asked.write(&[7; 4096]) {
                (sent, quiet) = (sent + len, 0);
            }
            if is_readable(&opened.wire) {
                opened.wire.hand_dns_on();
            } else {
                thread::sleep(Duration::from_millis(1));
            }
        }
        assert!(!is_readable(&opened.wire), "{sent} bytes wait");
        drop(asked);
        let heard = handing_on(&mut opened.wire, || {
            let mut heard = Vec::new();
            asker.read_to_end(&mut heard).map(|_| heard.len())
        });
        assert_eq!(heard.unwrap(), sent);
    });
}

#[test]
fn there_is_a_relay_only_where_it_is_needed() {
    in_namespace("there_is_a_relay_only_where_it_is_needed", || {
        let _world = world();
        a_host("nameserver 127.0.0.53\n");
        let nat = "tap,host=172.31.0.1/24,nat,mac=02:00:00:00:00:01";
        for (spec, server) in [
            (nat.to_owned(), Some([172, 31, 0, 1])),
            (format!("{nat},dns=192.0.2.53"), Some([192, 0, 2, 53])),
            (nat.replace(",nat", ""), None),
            (format!("{nat},forward=udp:50-60:50-60"), None),
            (format!("{nat},forward=172.31.0.1:53:53"), None),
            (format!("{nat},forward=udp:192.0.2.1:53:53"), Some([172, 31, 0, 1])),
        ] {
            let mut wire = opened(&spec);
            assert_eq!(wire.wire.dns().is_some(), server == Some([172, 31, 0, 1]), "{spec}");
            assert_eq!(told_server(&mut wire), server, "{spec}");
            let is_told = wire.notices.iter().any(|notice| notice.contains("told of no DNS server"));
            assert_eq!(is_told, server.is_none() && spec.contains(",nat"), "{spec}: {:?}", wire.notices);
        }
        // Somebody listens on every address.
        let _theirs = UdpSocket::bind("0.0.0.0:53").unwrap();
        let mut wire = opened(nat);
        assert!(wire.wire.dns().is_none());
        assert_eq!(told_server(&mut wire), Some([172, 31, 0, 1]));
        let notices = wire.notices.join("\n");
        assert!(notices.contains("the host's own that listens on 172.31.0.1, port 53"), "{notices}");
    });
}

#[test]
fn a_resolver_of_another_namespace_is_not_asked() {
    in_namespace("a_resolver_of_another_namespace_is_not_asked", || {
        a_host("nameserver 127.0.0.53\n");
        run("ip netns add vpn");
        run("ip -n vpn link set lo up");
        let spec = "tap,host=172.31.0.1/24,nat,netns=vpn,mac=02:00:00:00:00:01";
        let wire = opened(spec);
        assert!(wire.wire.dns().is_none());
        assert!(wire.notices.iter().any(|notice| notice.contains("told of no DNS server")));
        drop(wire);
        std::fs::create_dir_all("/etc/netns/vpn").unwrap();
        std::fs::write("/etc/netns/vpn/resolv.conf", "nameserver 127.0.0.1\n").unwrap();
        let mut wire = opened(spec);
        assert_eq!(told_server(&mut wire), Some([172, 31, 0, 1]));
        let listening = run("ip netns exec vpn ss -Hlun");
        assert!(listening.contains("172.31.0.1%wirevm0:53"), "{listening}");
        assert!(!run("ss -Hlun").contains(":53 "));
        drop(wire);
        run("ip netns del vpn");
    });
}
