//! Real macvtaps, each test in a network namespace of its own.

mod frames;
mod namespace;

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use frames::{recv, recv_where, send};
use namespace::wire::{open, open_run, open_told, opened, without_ipv6};
use namespace::{
    as_user, child as be_child, holding, in_namespace, kill, killed_at, leave, own_devices, records, run,
    state, warnings,
};
use net::{
    Addresses, Backend, Error, HEADER_LEN, LinkName, Mac, Macvtap, MacvtapError, Offloads, Opened, RxFilter,
    Sent, Tap,
};

#[test]
fn child() {
    be_child();
}

/// A NIC `nic` of the host whose cable ends in a switch, where a machine of the LAN is too.
struct Lan {
    machine: Tap,
}

const MACHINE: [u8; 6] = [2, 0, 0, 0, 0, 0xff];

impl Lan {
    /// With a switch that sends frames back to the port they came from, or not.
    fn new(hairpin: bool) -> Self {
        run("ip link add nic address 02:00:00:00:01:00 type veth peer port");
        run("ip link add switch type bridge mcast_snooping 0");
        run("ip link set port master switch");
        run(&format!("bridge link set dev port hairpin {}", if hairpin { "on" } else { "off" }));
        let machine = Tap::open(Some(&"machine".parse::<LinkName>().unwrap())).unwrap();
        run("ip link set machine master switch");
        for link in ["nic", "port", "switch", "machine"] {
            run(&format!("ip link set {link} up"));
        }
        // The switch is of this host, but is to be none: it answers for addresses of other links otherwise.
        fs::write("/proc/sys/net/ipv4/conf/switch/arp_ignore", "1").unwrap();
        Self { machine }
    }
}

/// What wirevm could change of these links; a switch tells more, which changes by itself.
fn links(names: &[&str]) -> String {
    let all = run("ip -br link").lines().count().to_string();
    let each = names.iter().map(|name| run(&format!("ip -d link show {name}")));
    let addresses = run("ip -br -4 address");
    each.chain([all, addresses]).collect()
}

/// A frame that nobody but these tests knows.
fn frame(to: [u8; 6], from: [u8; 6], tag: u8) -> Vec<u8> {
    let mut frame = vec![0; HEADER_LEN];
    frame.extend(to);
    frame.extend(from);
    frame.extend([0x88, 0xb5, tag]);
    frame.resize(HEADER_LEN + 60, 0);
    frame
}

/// How many frames of this tag come within the time that they take.
fn count(backend: &mut dyn Backend, tag: u8) -> usize {
    // What goes to many, the kernel copies in a work queue, which a busy machine gets to later.
    let (mut found, mut end) = (0, Instant::now() + Duration::from_millis(150));
    while Instant::now() < end {
        match recv(backend, 70_000) {
            Ok(frame) if frame.get(HEADER_LEN + 12..HEADER_LEN + 15) == Some(&[0x88, 0xb5, tag]) => {
                found += 1;
                // Once more, for a copy.
                end = Instant::now() + Duration::from_millis(10);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("recv: {error}"),
        }
    }
    found
}

const ALL: [u8; 6] = [0xff; 6];
const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 0x77];
const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 0x0a];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 0x0b];
const NIC: [u8; 6] = [2, 0, 0, 0, 1, 0];

fn filter(mac: [u8; 6]) -> RxFilter {
    RxFilter::new(Mac::new(mac).unwrap())
}

/// Two guests on one NIC, and a machine of its LAN; what a frame from each does at another.
struct Guests {
    lan: Lan,
    guest: Opened,
    other: Opened,
    tag: u8,
}

impl Guests {
    fn new(hairpin: bool, mode: &str) -> Self {
        let lan = Lan::new(hairpin);
        let source = if mode == "source" { ",source=02:00:00:00:00:ff" } else { "" };
        let open = |mac: &str| opened(&format!("macvtap=nic,mode={mode},mac={mac}{source}"));
        let (guest, other) = (open("02:00:00:00:00:0a"), open("02:00:00:00:00:0b"));
        let mut this = Self { lan, guest, other, tag: 0 };
        // A port of a bridge carries nothing at first.
        let end = Instant::now() + Duration::from_secs(5);
        while !this.passes("guest", "machine", ALL) {
            assert!(Instant::now() < end, "the LAN does not come up");
        }
        this
    }

    fn end(&mut self, name: &str) -> &mut dyn Backend {
        match name {
            "guest" => &mut *self.guest.backends[0],
            "other" => &mut *self.other.backends[0],
            _ => &mut self.lan.machine,
        }
    }

    /// Whether a frame between the two comes, once.
    fn passes(&mut self, from: &str, to: &str, address: [u8; 6]) -> bool {
        self.tag += 1;
        let tag = self.tag;
        let source = match from {
            "guest" => GUEST,
            "other" => OTHER,
            _ => MACHINE,
        };
        assert_eq!(send(self.end(from), &frame(address, source, tag)).unwrap(), Sent::Gone);
        let count = count(self.end(to), tag);
        assert!(count < 2, "{from} to {to}: {count} copies");
        count == 1
    }

    /// What passes between the guests and between the guest and the LAN, both ways.
    fn reach(&mut self) -> String {
        let between = [("guest", "other", OTHER), ("guest", "machine", MACHINE), ("machine", "guest", GUEST)];
        let mut reach = String::new();
        for (from, to, station) in between {
            for address in [station, ALL, GROUP] {
                reach.push(if self.passes(from, to, address) { 'y' } else { '-' });
            }
        }
        reach
    }
}

#[test]
fn who_reaches_whom_in_each_mode() {
    // Each three: a station's frame, one to all, one to a group. Guest to the other guest, guest to LAN, LAN to guest.
    for (mode, plain, hairpin) in [
        ("private", "---yyyyyy", "y--yyyyyy"),
        ("vepa", "---yyyyyy", "yyyyyyyyy"),
        ("bridge", "yyyyyyyyy", "yyyyyyyyy"),
        ("source", "---yyyyyy", "---yyyyyy"),
    ] {
        for (reflects, wanted) in [(false, plain), (true, hairpin)] {
            in_namespace("who_reaches_whom_in_each_mode", move || {
                let mut guests = Guests::new(reflects, mode);
                for (name, mac) in [("guest", GUEST), ("other", OTHER)] {
                    guests.end(name).set_filter(&filter(mac)).unwrap();
                }
                assert_eq!(guests.reach(), wanted, "{mode}, the switch reflects: {reflects}");
            });
        }
    }
}

#[test]
fn source_admits_those_that_are_listed() {
    in_namespace("source_admits_those_that_are_listed", || {
        let mut guests = Guests::new(false, "source");
        let stranger = [2, 0, 0, 0, 0, 0xee];
        for (from, tag, comes) in [(MACHINE, 0x80, 1), (stranger, 0x81, 0)] {
            send(&mut guests.lan.machine, &frame(GUEST, from, tag)).unwrap();
            assert_eq!(count(guests.end("guest"), tag), comes);
        }
    });
}

#[test]
fn groups_come_where_the_guest_wants_them() {
    in_namespace("groups_come_where_the_guest_wants_them", || {
        let mut guests = Guests::new(false, "bridge");
        let others = [0x01, 0, 0x5e, 0, 0, 0xfb];
        assert!(!guests.passes("machine", "guest", GROUP), "the kernel knows nothing of the guest's groups");
        let mut filter = filter(GUEST);
        let mut pass = |multicast| {
            filter.multicast = multicast;
            guests.end("guest").set_filter(&filter).unwrap();
            assert!(guests.passes("machine", "guest", ALL) && guests.passes("machine", "guest", GUEST));
            [GROUP, others].map(|group| guests.passes("machine", "guest", group))
        };
        assert_eq!(pass(Addresses::Every), [true, true]);
        assert_eq!(pass(Addresses::Only(vec![GROUP])), [true, false]);
        assert_eq!(pass(Addresses::Only(vec![others, GROUP, GROUP, OTHER])), [true, true]);
        assert!(pass(Addresses::Only(vec![others]))[1]);
        assert!(!pass(Addresses::Only(vec![]))[0], "the kernel lets a group go one change later");
        filter.all_multicast = true;
        guests.end("guest").set_filter(&filter).unwrap();
        assert!(guests.passes("machine", "guest", GROUP));
        (filter.all_multicast, filter.promiscuous) = (false, true);
        guests.end("guest").set_filter(&filter).unwrap();
        assert!(guests.passes("machine", "guest", GROUP));
        let link = guests.guest.link.clone();
        assert!(run(&format!("ip -d link show {link}")).contains("promiscuity 1"));
        filter.promiscuous = false;
        guests.end("guest").set_filter(&filter).unwrap();
        let after = run(&format!("ip -d link show {link}"));
        assert!(after.contains("promiscuity 0") && after.contains("allmulti 0"), "{after}");
    });
}

#[test]
fn the_address_follows_the_guest() {
    in_namespace("the_address_follows_the_guest", || {
        let mut guests = Guests::new(false, "bridge");
        let new = [2, 0, 0, 0, 0, 0x1a];
        guests.end("guest").set_filter(&filter(new)).unwrap();
        assert!(guests.passes("machine", "guest", new) && !guests.passes("machine", "guest", GUEST));
        for taken in [OTHER, NIC] {
            guests.end("guest").set_filter(&filter(taken)).unwrap_err();
            assert!(guests.passes("machine", "guest", new), "as before");
        }
    });
}

#[test]
fn a_guest_that_is_not_trusted_keeps_its_address() {
    in_namespace("a_guest_that_is_not_trusted_keeps_its_address", || {
        let mut guests = Guests::new(false, "bridge,trust=off");
        let other = filter([2, 0, 0, 0, 0, 0x1a]);
        let every = RxFilter { promiscuous: true, ..filter(GUEST) };
        for refused in [other, every] {
            let error = guests.end("guest").set_filter(&refused).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{refused:?}");
            assert!(guests.passes("machine", "guest", GUEST), "as before");
        }
        let none = RxFilter { multicast: Addresses::Only(vec![]), ..filter(GUEST) };
        for (wanted, comes) in [(none, false), (filter(GUEST), true)] {
            guests.end("guest").set_filter(&wanted).unwrap();
            assert_eq!(guests.passes("machine", "guest", GROUP), comes, "groups follow what it asks");
        }
    });
}

#[test]
fn passthru_takes_the_whole_nic() {
    in_namespace("passthru_takes_the_whole_nic", || {
        let mut lan = Lan::new(false);
        let before = links(&["nic"]);
        let mut guest = opened("macvtap=nic,mode=passthru");
        assert_eq!(guest.mac.octets(), NIC, "its address is the guest's");
        assert!(guest.notices[0].contains("the guest has all of nic"), "{:?}", guest.notices);
        guest.backends[0].set_filter(&filter(NIC)).unwrap();
        for (tag, to) in [NIC, ALL, GROUP, [2, 0, 0, 0, 0, 0x77]].into_iter().enumerate() {
            send(&mut lan.machine, &frame(to, MACHINE, tag as u8)).unwrap();
            assert_eq!(count(&mut *guest.backends[0], tag as u8), 1, "{to:x?}");
        }
        let error = open("macvtap=nic").unwrap_err();
        let taken = format!("cannot make a macvtap on nic: {} has all of it (mode passthru)", guest.link);
        assert_eq!(error.to_string(), taken);
        assert!(error.remedy().unwrap().contains("ip link del"), "{error:?}");
        drop(guest);
        assert_eq!(links(&["nic"]), before);

        let (guest, told) = open_run("macvtap=nic,mode=passthru,mac=02:00:00:00:00:0a");
        assert_eq!(guest.mac.octets(), GUEST);
        assert_eq!(
            told,
            [
                "ip link add link nic name wirevm0 type macvtap mode passthru",
                "ip link set dev wirevm0 address 02:00:00:00:00:0a",
                "ip link set dev wirevm0 addrgenmode none",
                "ip link set dev wirevm0 up"
            ]
        );
        assert!(run("ip link show nic").contains("02:00:00:00:00:0a"), "the NIC has the guest's address");
        drop(guest);
        assert_eq!(links(&["nic"]), before, "and then its own again");
    });
}

#[test]
fn a_macvtap_is_made_and_goes() {
    in_namespace("a_macvtap_is_made_and_goes", || {
        run("ip link add nic type veth peer wire");
        run("ip link set nic up");
        run("ip link set nic down");
        let before = state();
        let (guest, told) = open_run("macvtap=nic,mode=vepa,mac=02:00:00:00:00:0a,mtu=1400");
        assert_eq!((guest.link.as_str(), guest.mtu, guest.mac.octets()), ("wirevm0", 1400, GUEST));
        let lines = [
            "ip link set dev nic up",
            "ip link add link nic name wirevm0 address 02:00:00:00:00:0a mtu 1400 type macvtap mode vepa",
            "ip link set dev wirevm0 addrgenmode none",
            "ip link set dev wirevm0 up",
        ];
        assert_eq!(told, lines);
        let ours = || {
            let text = run("ip -d link show wirevm0") + &run("ip link show nic");
            ["mtu 1400", ",UP", "macvtap mode vepa", "02:00:00:00:00:0a", "wirevm0@nic"]
                .map(|word| text.contains(word))
        };
        assert_eq!(ours(), [true; 5]);
        // The second one finds the NIC up, and keeps it so when the first one leaves.
        let (second, told) = open_told("macvtap=nic");
        assert_eq!((told.len(), second.mtu), (4, 1500), "{told:?}");
        assert!(told[3].starts_with("# open /dev/tap") && told[3].contains(" (c "), "{told:?}");
        assert!(!run("ip address show wirevm1").contains("inet6"), "the guest's address is its own");
        drop(guest);
        assert!(run("ip link show nic").contains(",UP"));
        drop(second);
        assert_eq!((state(), records()), (before.clone(), vec![]));

        lines.iter().for_each(|line| drop(run(line)));
        assert_eq!(ours(), [true; 5], "what is told does the same by hand");
        run("ip link del wirevm0");
        let guest = opened("macvtap=nic,mode=source,source=02:00:00:00:00:01,source=02:00:00:00:00:02");
        let by_wirevm = run(&format!("ip -d link show {}", guest.link));
        for remote in ["remotes (2)", "02:00:00:00:00:01", "02:00:00:00:00:02"] {
            assert!(by_wirevm.contains(remote), "{by_wirevm}");
        }
        drop(guest);
        run(
            "ip link add link nic name x type macvtap mode source macaddr set 02:00:00:00:00:01 02:00:00:00:00:02",
        );
        assert!(run("ip -d link show x").contains("remotes (2)"));
    });
}

#[test]
fn what_a_killed_one_leaves_is_cleaned() {
    in_namespace("what_a_killed_one_leaves_is_cleaned", || {
        run("ip link add nic type veth peer wire");
        run("ip link set nic up");
        run("ip link set nic down");
        let before = state();
        let spec = "macvtap=nic,host=172.31.0.1/24";
        let mut step = 1;
        while killed_at(spec, step) {
            assert_ne!(state(), before, "step {step}");
            net::clean(&net::Host::new()).unwrap();
            assert_eq!((state(), records()), (before.clone(), vec![]), "step {step}");
            step += 1;
        }
        assert!(step > 7, "{step}");
        // One that is alive is left alone, and so is the NIC that both need.
        let living = holding("macvtap=nic");
        kill(holding("macvtap=nic"));
        net::clean(&net::Host::new()).unwrap();
        let links = run("ip link");
        assert!(links.contains("wirevm0") && !links.contains("wirevm1"), "{links}");
        assert!(run("ip link show nic").contains(",UP"));
        leave(living);
        assert_eq!((state(), records()), (before, vec![]));
    });
}

#[test]
fn an_adopted_one_is_left_as_it_was() {
    in_namespace("an_adopted_one_is_left_as_it_was", || {
        warnings();
        let lan = Lan::new(false);
        run("ip link add link nic name mine address 02:00:00:00:00:0b type macvtap mode vepa");
        run("ip link set mine up");
        run("ip link set mine down");
        let before = links(&["nic", "mine"]);
        let (mut guest, told) = open_run("macvtap=mine");
        assert_eq!(told, ["ip link set dev mine up"]);
        assert_eq!((guest.link.as_str(), guest.mac.octets(), guest.mtu), ("mine", OTHER, 1500));
        assert!(guest.notices[0].contains("reflective relay"), "by its own mode: {:?}", guest.notices);
        guest.backends[0].set_filter(&RxFilter { promiscuous: true, ..filter(GUEST) }).unwrap();
        assert!(run("ip link show mine").contains("02:00:00:00:00:0a"));
        for wire_first in [true, false] {
            let Opened { backends, wire, .. } = guest;
            if wire_first {
                drop(wire);
                drop(backends);
            } else {
                drop(backends);
                drop(wire);
            }
            assert_eq!(links(&["nic", "mine"]), before, "wire first: {wire_first}");
            let told;
            (guest, told) = open_run("macvtap=mine,mac=02:00:00:00:00:0a,mtu=1400");
            let lines = [
                "ip link set dev mine address 02:00:00:00:00:0a",
                "ip link set dev mine mtu 1400",
                "ip link set dev mine up",
            ];
            assert_eq!(told, lines);
        }

        let error = open("macvtap=mine").unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot attach to the macvtap mine: another --net of this command holds it"
        );
        drop(guest);
        for (spec, key) in [("mode=private", "mode"), ("mode=source,source=02:00:00:00:00:01", "mode")] {
            let error = open(&format!("macvtap=mine,{spec}")).unwrap_err();
            assert!(
                matches!(&error, Error::Macvtap(MacvtapError::Adopted { key: found, .. }) if *found == key),
                "{error}"
            );
            assert!(error.remedy().is_some());
        }
        kill(holding("macvtap=mine,mac=02:00:00:00:00:0a,mtu=1400"));
        net::clean(&net::Host::new()).unwrap();
        assert_eq!((links(&["nic", "mine"]), records()), (before, vec![]), "also after a kill");
        // Deleted meanwhile, there is nothing to give back.
        let mut guest = opened("macvtap=mine");
        run("ip link del mine");
        let error = recv(&mut *guest.backends[0], 2000).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "which no event follows");
        drop(guest);
        assert_eq!(warnings(), [""; 0]);
        drop(lan);
    });
}

#[test]
fn what_cannot_have_a_macvtap_is_named() {
    in_namespace("what_cannot_have_a_macvtap_is_named", || {
        run("ip link add nic type veth peer wire");
        run("ip link add br0 type bridge");
        run("ip link set wire master br0");
        run("ip tuntap add dev layer3 mode tun");
        run("ip link add link nic name taken type macvlan mode bridge");
        let before = state();
        for (spec, words, remedy) in [
            ("macvtap=lo", "on lo: it is no Ethernet", "wired"),
            ("macvtap=layer3", "on layer3: it is no Ethernet", "wired"),
            ("macvtap=none", "no link none", "ip link"),
            ("macvtap=wire", "on wire: it is a port of the bridge br0", "--net bridge=br0"),
            (
                "macvtap=nic,mode=passthru",
                "mode passthru takes all of it, and taken is on it",
                "del dev taken",
            ),
            ("macvtap=nic,mtu=9000", "mtu=9000: nic carries 1500 bytes at most", "dev nic mtu 9000"),
        ] {
            let error = open(spec).unwrap_err();
            assert!(error.to_string().contains(words), "{spec}: {error}");
            let told = error.remedy().unwrap_or_default();
            assert!(told.contains(remedy), "{spec}: {told}");
            assert!(!told.contains("  "), "{told}");
        }
        assert_eq!((state(), records()), (before.clone(), vec![]));
        let mac = run("ip -br link show nic").split_whitespace().nth(2).unwrap().to_owned();
        let error = open(&format!("macvtap=nic,mac={mac}")).unwrap_err();
        assert_eq!(error.to_string(), format!("mac={mac}: nic has this address"));
        assert_eq!((state(), records()), (before, vec![]));
    });
}

/// An ARP request of the guest, 172.31.0.9, with its header.
fn arp_request(target: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0; HEADER_LEN];
    frame.extend([ALL, GUEST].concat());
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(GUEST);
    frame.extend([172, 31, 0, 9, 0, 0, 0, 0, 0, 0]);
    frame.extend(target);
    frame
}

#[test]
fn the_host_is_cut_off_unless_it_has_a_place() {
    in_namespace("the_host_is_cut_off_unless_it_has_a_place", || {
        let _lan = Lan::new(false);
        run("ip address add 172.31.0.1/24 dev nic");
        let before = links(&["nic"]);
        let mut guest = opened("macvtap=nic,mac=02:00:00:00:00:0a");
        let trap = "the host itself cannot reach this guest, nor the guest the host: host=ADDRESS/LENGTH";
        assert!(guest.notices[0].starts_with(trap), "{:?}", guest.notices);
        send(&mut *guest.backends[0], &arp_request([172, 31, 0, 1])).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let answered = std::iter::from_fn(|| recv(&mut *guest.backends[0], 70_000).ok());
        assert!(!answered.into_iter().any(|frame| frame[HEADER_LEN + 12..][..2] == [0x08, 0x06]), "cut off");
        drop(guest);

        let (mut guest, told) = open_run("macvtap=nic,mac=02:00:00:00:00:0a,host=172.31.0.5/29,mtu=1400");
        assert_eq!(guest.notices, [""; 0]);
        let lines = [
            "ip link add link nic name wirevm1 mtu 1400 type macvlan mode bridge",
            "ip address add 172.31.0.5/29 dev wirevm1",
            "ip link set dev wirevm1 up",
        ];
        assert_eq!(without_ipv6(&told)[3..], lines);
        send(&mut *guest.backends[0], &arp_request([172, 31, 0, 5])).unwrap();
        recv_where(&mut *guest.backends[0], |frame| {
            frame.get(HEADER_LEN + 12..HEADER_LEN + 22) == Some(&[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2])
        });
        assert!(run("ip route get 172.31.0.3").contains("dev wirevm1"), "a guest of that part");
        assert!(run("ip route get 172.31.0.77").contains("dev nic"), "and the rest as before");

        for (spec, words) in [
            ("host=172.31.0.6/24", "host=172.31.0.6/24: nic itself has 172.31.0.1/24"),
            ("host=172.31.0.6/16", "host=172.31.0.6/16: nic itself has 172.31.0.1/24"),
            ("host=172.31.0.1/30", "host=172.31.0.1/30: nic has 172.31.0.1/24 already"),
            ("host=172.31.0.2/30", "host=172.31.0.2/30: wirevm1 has 172.31.0.5/29 already"),
        ] {
            let error = open(&format!("macvtap=nic,{spec}")).unwrap_err();
            assert!(error.to_string().starts_with(words), "{error}");
            assert!(error.remedy().is_some());
        }
        drop(guest);
        assert_eq!((links(&["nic"]), records()), (before, vec![]));
    });
}

#[test]
fn the_device_is_found_whatever_dev_has() {
    in_namespace("the_device_is_found_whatever_dev_has", || {
        run("ip link add nic type veth peer wire");
        run("ip link add link nic name mine type macvtap");
        run("ip link add link nic name decoy type macvtap");
        let index = |link: &str| {
            let line = run(&format!("ip -o link show {link}"));
            line.split(':').next().unwrap().to_owned()
        };
        let node = |link: &str| format!("/dev/tap{}", index(link));
        // /sys shows another namespace, in which there is no such link.
        assert!(fs::metadata("/sys/class/net/mine").is_err());
        let number = |path: &str| fs::metadata(path).map(|found| found.rdev());
        let (mine, decoy) = (number(&node("mine")).unwrap(), number(&node("decoy")).unwrap());
        let (path, name) = (node("mine"), "mine".parse::<LinkName>().unwrap());
        let opens = || {
            let macvtap = Macvtap::open(&name).unwrap();
            let fd = macvtap.fd().try_clone_to_owned().unwrap();
            let found = fs::File::from(fd).metadata().unwrap();
            assert!(found.file_type().is_char_device());
            assert_eq!((found.rdev(), macvtap.name()), (mine, "mine"));
        };
        opens();
        // Then a /dev without it, and one with another macvtap in its place.
        own_devices();
        assert!(number(&path).is_err());
        opens();
        let (major, minor) = (libc::major(decoy), libc::minor(decoy));
        run_with_devices(&format!("mknod {path} c {major} {minor}"));
        assert_eq!(number(&path).unwrap(), decoy);
        opens();
    });
}

/// As [`run`], where `/dev` has no `null`.
fn run_with_devices(command: &str) {
    let mut words = command.split_whitespace();
    let mut command = std::process::Command::new(words.next().unwrap());
    let command = command.args(words).stdin(std::process::Stdio::piped());
    assert!(command.status().unwrap().success());
}

#[test]
fn without_rights_there_are_words_and_a_given_device_works() {
    in_namespace("without_rights_there_are_words_and_a_given_device_works", || {
        run("ip link add nic type veth peer wire");
        run("ip link add link nic name mine type macvtap");
        run("ip link set nic up");
        run("ip link set mine up");
        let user = 65534;
        let error = as_user(user, || open("macvtap=nic").unwrap_err());
        assert!(error.to_string().contains("ip link add link nic name wirevm0"), "{error}");
        assert!(error.remedy().unwrap().starts_with("run it as root"), "{error:?}");
        let error = as_user(user, || Macvtap::open(&"mine".parse().unwrap()).unwrap_err());
        assert_eq!(error.to_string(), "cannot open the device of the macvtap mine");
    });
}

/// A UDP packet of the machine whose checksum is not finished: by offload, 34 and 6.
fn unfinished() -> Vec<u8> {
    let mut packet = frame(GUEST, MACHINE, 0);
    packet[HEADER_LEN + 12..].fill(0);
    packet[..10].copy_from_slice(&[1, 0, 0, 0, 0, 0, 34, 0, 6, 0]);
    packet[HEADER_LEN + 12..][..12].copy_from_slice(&[8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17]);
    // A host that filters bridged packets drops those of a wrong header.
    packet[HEADER_LEN + 24..][..2].copy_from_slice(&[0x22, 0x7e]);
    packet[HEADER_LEN + 26..][..12].copy_from_slice(&[172, 31, 0, 1, 172, 31, 0, 2, 0x12, 0x34, 0, 9]);
    packet[HEADER_LEN + 38..][..2].copy_from_slice(&[0, 26]);
    packet
}

fn is_ours(frame: &[u8]) -> bool {
    frame.get(HEADER_LEN + 34..HEADER_LEN + 36) == Some(&[0x12, 0x34])
}

#[test]
fn offloads_are_the_guests() {
    in_namespace("offloads_are_the_guests", || {
        let mut guests = Guests::new(false, "bridge");
        assert!(guests.end("guest").vhost_fd().is_some());
        let uso = guests.end("guest").offloads().uso;
        let all = Offloads { csum: true, tso4: true, tso6: true, uso };
        assert_eq!(guests.end("guest").offloads(), all);
        for (accepted, flags) in [(Offloads::default(), 0), (all, 1), (Offloads::default(), 0)] {
            guests.end("guest").set_offloads(accepted).unwrap();
            send(&mut guests.lan.machine, &unfinished()).unwrap();
            assert_eq!(recv_where(guests.end("guest"), is_ours)[0], flags, "{accepted:?}");
        }
    });
}

#[test]
fn an_adopted_one_gives_its_next_holder_what_it_gave_the_last() {
    in_namespace("an_adopted_one_gives_its_next_holder_what_it_gave_the_last", || {
        let mut lan = Lan::new(false);
        run("ip link add link nic name mine address 02:00:00:00:00:0a type macvtap");
        run("ip link set mine up");
        drop(opened("macvtap=mine"));
        let index = run("ip -o link show mine").split(':').next().unwrap().to_owned();
        let mut options = fs::OpenOptions::new();
        let device = options.read(true).custom_flags(libc::O_NONBLOCK).open(format!("/dev/tap{index}"));
        let (mut device, mut frame) = (device.unwrap(), [0; 2000]);
        let end = Instant::now() + Duration::from_secs(5);
        // Whoever does not say otherwise takes what is not finished, behind a header of ten bytes.
        while frame[10 + 34..][..2] != [0x12, 0x34] {
            assert!(Instant::now() < end, "nothing came");
            send(&mut lan.machine, &unfinished()).unwrap();
            std::thread::sleep(Duration::from_millis(10));
            let _ = device.read(&mut frame);
        }
        assert_eq!(frame[0], 1);
    });
}

#[test]
fn a_nic_that_is_slow_never_says_not_now() {
    in_namespace("a_nic_that_is_slow_never_says_not_now", || {
        let mut guests = Guests::new(false, "bridge");
        run("tc qdisc add dev nic root tbf rate 20mbit burst 3000 limit 10000000");
        let mut large = frame(MACHINE, GUEST, 1);
        large.resize(HEADER_LEN + 1514, 0);
        // No event would say when there is room again.
        for number in 0..500 {
            assert_eq!(send(guests.end("guest"), &large).unwrap(), Sent::Gone, "frame {number}");
        }
    });
}
