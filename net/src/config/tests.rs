use std::net::IpAddr;
use std::num::NonZeroU64;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::HostAddress;

fn parse(text: &str) -> Result<NetConfig, Error> {
    text.parse()
}

fn wire(text: &str) -> WireConfig {
    parse(text).unwrap_or_else(|error| panic!("{text}: {error}")).wire
}

fn tap(text: &str) -> TapConfig {
    match wire(text) {
        WireConfig::Tap(tap) => tap,
        wire => panic!("{wire:?}"),
    }
}

fn shown<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(T::to_string).collect()
}

#[test]
fn the_keys_of_all_mean_what_they_say() {
    let config = parse("tap=tap0,mtu=9000,netns=vpn,mac=02:00:00:00:00:01").unwrap();
    assert_eq!((config.mtu, config.mac.unwrap().octets()), (Some(9000), [2, 0, 0, 0, 0, 1]));
    assert_eq!(config.netns.unwrap().as_str(), "vpn");
    let config = parse("tap").unwrap();
    assert_eq!((config.wire, config.mac), (WireConfig::Tap(TapConfig::default()), None));
    assert_eq!((config.mtu, config.netns), (None, None));
    assert!(parse("tap,mtu=68").is_ok() && parse("tap,mtu=65521").is_ok());
}

#[test]
fn a_tap_has_hosts_nat_and_forwards() {
    let config = tap("tap=tap0,host=172.31.0.1/24,host=fd00::1/64,nat,forward=8080:80,forward=udp:53:5353");
    assert_eq!(config.name.unwrap().as_str(), "tap0");
    assert_eq!(shown(&config.hosts), ["172.31.0.1/24", "fd00::1/64"]);
    assert!(config.dhcp && config.nat);
    assert_eq!(shown(&config.forwards), ["tcp:8080:80", "udp:53:5353"]);

    let config = tap("tap,host=172.31.0.1/24,guest=172.31.0.9/24,guest=fd00::9,host=fd00::1/64");
    assert_eq!(shown(&config.guests), ["172.31.0.9", "fd00::9"]);
    assert!(!tap("tap,host=172.31.0.1/24,dhcp=off").dhcp);
    assert!(tap("tap,dhcp=on").dhcp, "a subnet is chosen");
    assert_eq!(tap("tap,host=172.31.0.1/32,dhcp=off").hosts[0].prefix(), 32);
    assert!(tap("tap,nat=on").nat && !tap("tap,nat=off").nat && !tap("tap").nat);
    assert_eq!(tap("tap,nat,forward=tcp:1:2,forward=udp:1:2").forwards.len(), 2, "a port of each protocol");
}

#[test]
fn a_bridge_has_an_uplink_and_a_vlan() {
    let WireConfig::Bridge(config) = wire("bridge=br0,uplink=eth1,vlan=4094") else { panic!() };
    assert_eq!((config.name.as_str(), config.uplink.unwrap().as_str()), ("br0", "eth1"));
    assert_eq!(config.vlans, Some(Vlans::Access(4094)));
    let WireConfig::Bridge(config) = wire("bridge=br0,native=5,vlan=20-30:10") else { panic!() };
    let trunk = config.vlans.unwrap();
    assert_eq!(
        (shown(trunk.tagged()), trunk.untagged()),
        (vec!["10".to_owned(), "20-30".to_owned()], Some(5))
    );
    let WireConfig::Bridge(config) = wire("bridge=br0,vlan=10,native=5") else { panic!() };
    assert_eq!(shown(config.vlans.unwrap().tagged()), ["10"]);
}

#[test]
fn a_macvtap_has_a_mode() {
    let WireConfig::Macvtap(config) = wire("macvtap=eth0,host=192.0.2.1/24") else { panic!() };
    assert_eq!((config.parent.as_str(), config.mode), ("eth0", MacvtapMode::Bridge));
    assert_eq!(shown(&config.hosts), ["192.0.2.1/24"]);
    let source = "macvtap=eth0,mode=source,source=02:00:00:00:00:01,source=02:00:00:00:00:02";
    let WireConfig::Macvtap(config) = wire(source) else { panic!() };
    assert_eq!((config.mode, config.sources.len()), (MacvtapMode::Source, 2));
}

#[test]
fn a_tun_has_both_ends() {
    let WireConfig::Tun(config) = wire("tun=tun0,host=10.0.0.1/24,host=fd00::1/64,guest=10.0.0.9") else {
        panic!()
    };
    let guests: Vec<_> = config.hosts.iter().map(|&host| config.guest(host).unwrap()).collect();
    assert_eq!(shown(&guests), ["10.0.0.9", "fd00::2"], "as given, or the next one");
    let WireConfig::Tun(config) = wire("tun,host=10.0.0.1/32,guest=192.0.2.7") else { panic!() };
    assert_eq!(shown(&config.guests), ["192.0.2.7"], "the other end of a wire of two");
}

#[test]
fn a_descriptor_is_a_number_and_there_is_one_for_each_queue_pair() {
    assert_eq!(wire("fd=5"), WireConfig::Fd(FdConfig { fds: vec![5] }));
    let config = parse("fd=5:12:6").unwrap();
    assert_eq!(config.wire, WireConfig::Fd(FdConfig { fds: vec![5, 12, 6] }));
    assert_eq!(config.queues, Queues::Number(3));
}

#[test]
fn queues_are_a_number_or_follow_the_vcpus() {
    for kind in ["tap", "bridge=br0", "macvtap=eth0", "tun"] {
        let queues = |keys| parse(&format!("{kind}{keys}")).unwrap().queues;
        assert_eq!((queues(""), queues(",queues=64")), (Queues::Number(1), Queues::Number(64)), "{kind}");
        assert_eq!(queues(",queues=auto"), Queues::Auto, "{kind}");
    }
    let of = |queues: Queues, cpus| queues.of(cpus);
    assert_eq!((of(Queues::Auto, 1), of(Queues::Auto, 3)), (Queues::Number(1), Queues::Number(3)));
    assert_eq!((of(Queues::Auto, 65), of(Queues::Auto, u32::MAX)), (Queues::Number(64), Queues::Number(64)));
    assert_eq!(of(Queues::Number(2), 8), Queues::Number(2));
    for wrong in ["0", "65", "-1", "+2", "two", "65538"] {
        refused(&format!("tap,queues={wrong}"), &format!("queues={wrong}: there are 1 to 64"));
    }
    refused("tap,queues=2,queues=2", "queues= is given twice");
    refused("fd=5:6,queues=2", "queues=");
}

#[test]
fn each_queue_pair_may_have_a_cpu() {
    let affinity = |spec| parse(spec).unwrap().affinity;
    assert_eq!(affinity("tap"), [0; 0]);
    assert_eq!(affinity("tap,affinity=3"), [3]);
    assert_eq!(affinity("macvtap=eth0,queues=3,affinity=2:1023:2"), [2, 1023, 2]);
    assert_eq!(affinity("fd=5:6,affinity=0:1"), [0, 1]);
    let auto = parse("tun,queues=auto,affinity=0:1").unwrap();
    assert_eq!(auto.for_guest(2).unwrap().queues, Queues::Number(2));
    let error = auto.for_guest(3).unwrap_err();
    assert_eq!(error.to_string(), "affinity=0:1: there is one CPU for each queue pair, and these are 3");
    for wrong in ["tap,affinity=0:1", "fd=5:6,affinity=1", "bridge=br0,queues=2,affinity=0:1:2"] {
        refused(wrong, "there is one CPU for each queue pair");
    }
    refused("tap,affinity=1024", "expected numbers of CPUs below 1024");
    refused("tap,queues=2,affinity=0:1024", "expected numbers of CPUs below 1024");
    for wrong in ["x", "-1", "1024", "0,1", "0:", "0-1"] {
        refused(
            &format!("tap,queues=2,affinity={wrong}"),
            if wrong == "0,1" { "\"1\"" } else { "affinity=" },
        );
    }
}

#[test]
fn a_thread_looks_about_for_a_while_that_makes_sense() {
    for wire in ["tap", "bridge=br0", "macvtap=eth0", "tun", "fd=5"] {
        let poll = |text: &str| parse(&format!("{wire}{text}")).unwrap().poll;
        assert_eq!(
            ["", ",poll=auto", ",poll=0", ",poll=50", ",poll=10000"].map(poll),
            [None, None, Some(0), Some(50), Some(10_000)].map(|micros| micros.map(Duration::from_micros))
        );
    }
    for wrong in ["10001", "-1", "1.5", "50us", "on", "99999999999"] {
        refused(
            &format!("tap,poll={wrong}"),
            &format!("poll={wrong}: it is auto, or a number of microseconds, 10000 at most"),
        );
    }
    refused("tap,poll=1,poll=1", "poll= is given twice");
}

#[test]
fn the_kernel_carries_the_frames_of_every_wire_but_a_tun() {
    for wire in ["tap", "bridge=br0", "macvtap=eth0", "fd=5"] {
        let vhost = |text: &str| parse(&format!("{wire}{text}")).unwrap().vhost;
        assert_eq!(
            ["", ",vhost=off", ",vhost=on", ",vhost=auto"].map(vhost),
            [VhostMode::Off, VhostMode::Off, VhostMode::On, VhostMode::Auto]
        );
    }
    for wrong in ["1", "kernel"] {
        refused(&format!("tap,vhost={wrong}"), &format!("vhost={wrong}: it is on, off or auto"));
    }
    refused("tap,vhost=on,vhost=off", "vhost= is given twice");
    refused("tun,vhost=on", "tun has no key \"vhost\"");
}

#[test]
fn a_guest_is_trusted_unless_its_spec_says_otherwise() {
    for wire in ["macvtap=eth0", "fd=5"] {
        let trust = |text: &str| parse(&format!("{wire}{text}")).unwrap().trust;
        assert_eq!(["", ",trust=on", ",trust=off"].map(trust), [true, true, false]);
    }
    for wire in ["tap", "bridge=br0", "tun"] {
        assert!(parse(wire).unwrap().trust);
        refused(&format!("{wire},trust=off"), "has no key \"trust\"");
    }
    refused("fd=5,trust=maybe", "trust=maybe: it is on or off");
}

#[test]
fn a_guest_is_guarded_unless_its_spec_says_otherwise() {
    for wire in ["tap", "tap,nat", "bridge=br0", "tun"] {
        let guard = |text: &str| parse(&format!("{wire}{text}")).unwrap().guard;
        assert_eq!(["", ",guard=on", ",guard=off"].map(guard), [true, true, false], "{wire}");
        let must = |text: &str| parse(&format!("{wire}{text}")).unwrap().must_guard;
        assert_eq!(["", ",guard=on", ",guard=off"].map(must), [false, true, false], "{wire}");
        for said in ["", ",guard=on", ",guard=off"].map(|text| format!("{wire}{text}")) {
            assert_eq!(parse(&said).unwrap().to_string(), said);
        }
    }
    for wire in ["macvtap=eth0", "fd=5"] {
        assert!(parse(wire).unwrap().guard);
        refused(&format!("{wire},guard=off"), "has no key \"guard\"");
    }
    refused("tap,guard=maybe", "guard=maybe: it is on or off");
}

/// The text of the refusal names `key`.
fn refused(spec: &str, key: &str) {
    let error = parse(spec).expect_err(spec);
    assert!(error.is_usage(), "{spec}: {error}");
    let text = error.to_string();
    assert!(text.contains(key), "{spec}: {text:?} does not name {key:?}");
}

#[test]
fn what_makes_no_sense_is_refused_naming_the_key() {
    refused("", "\"\"");
    refused("veth=eth0", "veth");
    refused(" tap", "\" tap\"");
    refused("tap=", "tap=");
    refused("tap=a b", "tap=");
    refused("tap=sixteen-bytes-xx", "15 bytes");
    refused("tap,", "\"\"");
    refused("tap,dhcp", "\"dhcp\" is not key=value");
    refused("tap,colour", "\"colour\" is not key=value");
    refused("tap,vlan", "tap has no key \"vlan\" (vlan=)");
    refused("tap,vlan=5", "tap has no key \"vlan\" (vlan=)");
    refused("tap,colour=red", "colour=");
    refused("tap,tap=tap0", "tap=");
    refused("tap,=x", "\"\"");
    refused("tap,mtu=", "mtu=");
    refused("tap,mtu=67", "mtu=67");
    refused("tap,mtu=65522", "65521");
    for kind in ["tap", "tun", "macvtap=eth0"] {
        refused(&format!("{kind},mtu=1279,host=fd00::1/64"), "mtu=1279: IPv6 needs 1280");
        assert!(format!("{kind},mtu=1280,host=fd00::1/64").parse::<NetConfig>().is_ok());
        assert!(format!("{kind},mtu=1279,host=10.0.0.1/24").parse::<NetConfig>().is_ok());
    }
    for name in ["tap=all", "tap=default", "bridge=all", "tap=a;b", "bridge=-x"] {
        refused(name, name);
    }
    refused("tap,netns=-x", "netns=-x");
    refused("tap,mtu=+1500", "mtu=");
    refused("tap,mtu=99999999999", "mtu=");
    refused("tap,mtu=1500,mtu=1500", "mtu= is given twice");
    refused("tap,mac=01:00:00:00:00:00", "mac=");
    refused("tap,netns=a/b", "netns=a/b");
    refused("tap,host=10.0.0.0/24", "host=");
    refused("tap,host=10.0.0.1/32", "dhcp=off");
    refused("tap,host=10.0.0.1/24,host=10.0.1.1/24", "host=10.0.1.1/24: there is one for IPv4");
    refused("tap,host=10.0.0.1/24,host=fd00::1/64,host=fd01::1/64", "host=fd01::1/64");
    for (wrong, word) in [
        ("tap,dns=127.0.0.53", "another machine can reach"),
        ("tap,dns=fe80::1", "another machine can reach"),
        ("tun,dns=example.org", "another machine can reach"),
        ("tap,dns=1.1.1.1,dns=1.1.1.2,dns=1.1.1.3,dns=1.1.1.4", "three of a family"),
        ("tap,dhcp=off,host=10.0.0.1/24,dns=1.1.1.1", "told nothing"),
        ("tap,dhcp=off,host=10.0.0.1/24,search=lan", "told nothing"),
        ("tap,search=a..b", "expected a domain"),
        ("bridge=br0,search=lan", "search="),
    ] {
        refused(wrong, word);
    }
    let long: Vec<_> = (0..5).map(|n| format!("search=x{n}.{}", "y".repeat(30))).collect();
    refused(&format!("tap,{}", long.join(",")), "too long for a message");
    assert!(format!("tap,{}", long[..3].join(",")).parse::<NetConfig>().is_ok());
    refused("tap,dhcp=maybe,host=10.0.0.1/24", "dhcp=");
    refused("tap,nat=maybe", "nat=");
    refused("tap,nat,nat", "nat= is given twice");
    refused("tap,nat,dhcp=off", "nat=on");
    refused("tap,forward=80:80", "forward=tcp:80:80: it needs nat");
    refused("tap,nat,forward=80:80,forward=tcp:80:81", "forward=tcp:80:81: this port of the host");
    refused("tap,nat,forward=70-90:70-90,forward=127.0.0.1:80:81", "forward=tcp:127.0.0.1:80:81: this port");
    refused("tap,nat,forward=1000-1256:1000-1256", "256 ports of the host at most");
    refused("tap,nat,forward=1000-1199:1000-1199,forward=udp:1000-1099:1-100", "256 ports of the host");
    assert!(parse("tap,nat,forward=1000-1255:1000-1255").is_ok());
    for ports in ["80", "80:", ":80", "0:80", "80:0", "65536:1", "80:+1", "sctp:1:2", "tcp:1:2:3", "tcp:80"] {
        refused(&format!("tap,nat,forward={ports}"), &format!("forward={ports}"));
    }
}

#[test]
fn what_makes_no_sense_for_a_kind_is_refused_naming_the_key() {
    refused("bridge", "bridge=");
    refused("bridge=", "bridge=");
    refused("bridge=br0,uplink=br0", "uplink=br0");
    refused("bridge=br0,vlan=0", "vlan=0");
    refused("bridge=br0,vlan=4095", "vlan=4095");
    refused("bridge=br0,vlan=10:20-", "vlan=10:20-: a VLAN is from 1 to 4094");
    refused("bridge=br0,vlan=10:10", "vlan=10:10: a VLAN is there twice");
    refused("bridge=br0,native=5", "native=5: it is of a trunk");
    refused("bridge=br0,vlan=1-9,native=5", "native=5: its frames have no tag");
    refused("bridge=br0,vlan=5,native=5", "native=5: its frames have no tag");
    refused("bridge=br0,vlan=10,native=0", "native=0: a VLAN is from 1 to 4094");
    refused("bridge=br0,host=10.0.0.1/24", "host=");
    refused("bridge=br0,nat", "bridge has no key \"nat\"");
    refused("macvtap", "macvtap=");
    refused("macvtap=eth0,mode=hub", "mode=hub");
    refused("macvtap=eth0,mode=source", "source=");
    refused("macvtap=eth0,source=02:00:00:00:00:01", "source=02:00:00:00:00:01: it needs mode=source");
    let twice = "macvtap=eth0,mode=source,source=02:00:00:00:00:01,source=02:00:00:00:00:01";
    refused(twice, "source=02:00:00:00:00:01: it is given twice");
    for mode in ["private", "passthru", "source,source=02:00:00:00:00:01"] {
        refused(&format!("macvtap=eth0,mode={mode},host=10.0.0.1/24"), "host=10.0.0.1/24");
    }
    refused("macvtap=eth0,dhcp=on", "dhcp=");
    for kind in ["tap", "tun"] {
        refused(&format!("{kind},guest=10.0.0.2"), "guest=10.0.0.2: it needs a host=");
        let spec = |guest: &str| format!("{kind},host=10.0.0.1/24,guest={guest}");
        for (guest, why) in [
            ("fd00::2", "fd00::2: it needs a host="),
            ("10.0.1.2", "10.0.1.2: it is not in the subnet"),
            ("10.0.0.1", "10.0.0.1: the host has it"),
            ("10.0.0.255", "10.0.0.255: this is the broadcast address"),
            ("10.0.0.0", "10.0.0.0: this is the address of the subnet"),
            ("10.0.0.2/16", "10.0.0.2/16: the length is that of host="),
            ("10.0.0.2/", "10.0.0.2/: expected an address"),
            ("10.0.0.2,guest=10.0.0.3", "10.0.0.3: there is one"),
        ] {
            refused(&spec(guest), &format!("guest={why}"));
        }
    }
    refused("tap,host=10.0.0.1/32,guest=10.0.0.2,dhcp=off", "guest=10.0.0.2: the host is alone");
    refused("tun,host=10.0.0.1/32", "guest=");
    refused("tun,host=fd00::1/128", "guest=");
    refused("tun,nat", "nat");
    refused("fd", "fd=");
    for fd in ["", "x", "-1", "1", "5:", "5:x", "5:2", "99999999999"] {
        refused(&format!("fd={fd}"), &format!("fd={fd}"));
    }
    refused("fd=5:6:5", "fd=5:6:5: a queue pair has a descriptor of its own");
    let many: Vec<_> = (3..68).map(|fd: i32| fd.to_string()).collect();
    refused(&format!("fd={}", many.join(":")), "64 queue pairs at most");
    assert!(parse(&format!("fd={}", many[..64].join(":"))).is_ok());
    refused("fd=5,netns=vpn", "netns=");
    refused("fd=5,host=10.0.0.1/24", "host=");
}

#[test]
fn a_refusal_says_what_there_is() {
    let remedy = |spec: &str| parse(spec).unwrap_err().remedy().unwrap();
    for kind in ["tap", "bridge", "macvtap", "tun", "fd"] {
        assert!(remedy("veth").contains(kind), "{kind}");
    }
    for (spec, keys) in [
        ("tap,x=1", &["host=", "dhcp=", "nat", "forward="][..]),
        ("bridge=br0,x=1", &["uplink=", "vlan="]),
        ("macvtap=eth0,x=1", &["mode=", "source=", "host="]),
        ("tun,x=1", &["host=", "guest=", "dhcp="]),
        ("fd=5,x=1", &["mac=", "mtu=", "affinity=", "poll=", "vhost="]),
    ] {
        for key in keys {
            assert!(remedy(spec).contains(key), "{spec}: {key}");
        }
    }
    assert!(remedy("bridge").contains("bridge=br0"));
    for (spec, form) in [
        ("tap,mtu=x", "mtu=BYTES: mtu=1400"),
        ("tap,mtu=", "mtu=BYTES: mtu=1400"),
        ("tap,nat=maybe", "nat[=on|off]: nat=on"),
        ("tap=a b", "--net tap=tap0"),
        ("macvtap=eth0,host=x", "host=ADDRESS/LENGTH: host=192.168.1.250/29"),
    ] {
        assert!(remedy(spec).ends_with(form), "{spec}: {}", remedy(spec));
    }
}

#[test]
fn a_rate_goes_with_each_carrier() {
    assert!(parse("tap").unwrap().rate.is_off());
    let config = parse("bridge=br0,rate=20M:100M,pps=10k,burst=20,vhost=on").unwrap();
    assert_eq!(config.rate, "rate=20M:100M,pps=10k,burst=20".parse().unwrap());
    refused("tap,burst=20", "burst=20: there is neither a rate= nor a pps=");
    refused("tap,rate=fast", "rate=fast: it is bits per second, 16k to 1000G");
}

#[test]
fn serde_checks_a_spec_as_the_parser_does() {
    let refusal = |json: &str| serde_json::from_str::<NetConfig>(json).unwrap_err().to_string();
    assert!(refusal(r#""bridge=br0,nat""#).contains("bridge has no key \"nat\""));
    assert!(refusal(r#"{"kind": "tap"}"#).contains("string"));
    assert!(serde_json::from_str::<Mac>(r#""01:00:5e:00:00:01""#).is_err());
    assert!(serde_json::from_str::<HostAddress>(r#""10.0.0.0/24""#).is_err());
    assert_eq!(serde_json::from_str::<MacvtapMode>(r#""vepa""#).unwrap(), MacvtapMode::Vepa);
    // A reader does not lend its text, nor does one with escapes.
    assert_eq!(serde_json::from_reader::<_, VhostMode>(&br#""\u006fn""#[..]).unwrap(), VhostMode::On);
}

#[test]
fn two_nics_cannot_have_one_end() {
    let claim = |spec| parse(spec).unwrap().claims();
    assert_eq!(claim("tap=t0"), ["the tap t0"]);
    assert_ne!(claim("tap=t0,netns=a"), claim("tap=t0"));
    assert_eq!(claim("tun=t0"), ["the tun t0"]);
    assert!(claim("macvtap=eth0,mode=passthru")[0].contains("eth0"));
    assert_eq!(claim("fd=5:7"), ["the descriptor 5", "the descriptor 7"]);
    for shared in ["tap", "tun", "bridge=br0,uplink=eth0", "macvtap=eth0"] {
        assert_eq!(claim(shared), [""; 0], "{shared}");
    }
    let conflict = |one: &str, another: &str| parse(one).unwrap().conflict(&parse(another).unwrap());
    assert_eq!(conflict("fd=5:7", "fd=9:7").as_deref(), Some("the descriptor 7"));
    assert_eq!(conflict("tap=t0", "tap=t1"), None);
    let (many, one) = ("tap,nat,forward=8000-8010:8000-8010", "tap,nat,forward=127.0.0.1:8005:80");
    assert_eq!(conflict(many, one).as_deref(), Some("tcp port 8005 of the host (forward=)"));
    assert_eq!(conflict(many, &format!("{one},netns=vpn")), None);
    assert_eq!(conflict(many, "tap,nat,forward=8011:80,forward=udp:8000:80"), None);
}

/// The text of some keys of each kind, with values that are often right.
fn texts() -> impl Strategy<Value = String> {
    let link = "[a-z%/.=]{1,4}";
    let kind = prop_oneof![
        4 => prop_oneof!["tap", "tun", Just("bridge=br0".to_owned()), Just("macvtap=eth0".to_owned())],
        1 => prop_oneof![Just("fd=5".to_owned()), link.prop_map(|link| format!("tap={link}"))],
    ];
    let address = prop_oneof![
        any::<IpAddr>(),
        Just(IpAddr::from([10, 0, 0, 1])),
        Just(IpAddr::from([10, 0, 0, 2])),
        Just(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1])),
    ];
    let host = (address.clone(), prop_oneof![Just(24u8), Just(32), Just(64), 0..130u8]);
    let key = prop_oneof![
        4 => host.prop_map(|(address, prefix)| format!("host={address}/{prefix}")),
        1 => address.prop_map(|address| format!("guest={address}")),
        1 => "dhcp=(on|off)",
        2 => "nat",
        1 => "dns=[0-9]{1,3}\\.0\\.0\\.1",
        1 => "search=[a-z.]{0,5}",
        1 => "forward=((tcp|udp):)?([0-9.]{7,9}:)?[1-9][0-9]{0,3}(-[1-9][0-9]{0,3})?:[1-9][0-9]{0,3}(-[0-9]{4})?(/udp)?",
        1 => "uplink=[a-z]{1,4}",
        1 => "vlan=[0-9]{1,4}([:-][0-9]{1,4}){0,2}",
        1 => "native=[0-9]{1,4}",
        1 => "mode=(private|vepa|bridge|passthru|source)",
        1 => "source=02:00:00:00:00:0[0-9]",
        1 => "mac=02:00:00:00:00:0[0-9]",
        1 => "mtu=[0-9]{2,5}",
        1 => "queues=([0-9]{1,2}|auto)",
        1 => "affinity=[0-9]{1,2}(:[0-9]{1,2})?",
        1 => "poll=([0-9]{1,5}|auto)",
        1 => "coalesce=(on|off|x)",
        1 => "vhost=(on|off|auto|x)",
        1 => "(rate|pps)=[0-9]{1,6}[kMG]?(:(off|[0-9]{1,4}M))?",
        1 => "burst=[0-9]{1,4}",
        1 => "trust=(on|off)",
        1 => "guard=(on|off)",
        1 => "isolated=(on|off)",
        1 => "netns=[a-z.]{1,3}",
        1 => "[a-z]{0,4}(=[0-9a-f:./onf]{0,18})?",
    ];
    (kind, vec(key, 0..5)).prop_map(|(kind, keys)| [vec![kind], keys].concat().join(","))
}

fn hosts() -> impl Strategy<Value = Vec<HostAddress>> {
    let host = |address: BoxedStrategy<IpAddr>| {
        let host = (address, 1..=128u8);
        host.prop_filter_map("a host's", |(address, prefix)| HostAddress::new(address, prefix).ok())
            .prop_filter("with a guest", |host| host.guest().is_some())
    };
    let v4 = host(any::<[u8; 4]>().prop_map(IpAddr::from).boxed());
    let v6 = host(any::<[u8; 16]>().prop_map(IpAddr::from).boxed());
    (option::of(v4), option::of(v6)).prop_map(|(v4, v6)| v4.into_iter().chain(v6).collect())
}

fn macs() -> impl Strategy<Value = Mac> {
    any::<[u8; 6]>().prop_filter_map("a NIC's", |octets| Mac::new(octets).ok())
}

fn links() -> impl Strategy<Value = crate::LinkName> {
    "[!-~]{1,15}".prop_filter_map("a name", |name| name.parse().ok())
}

fn dns() -> impl Strategy<Value = DnsConfig> {
    let server = prop_oneof![
        (1..=9u8).prop_map(|last| IpAddr::from([192, 0, 2, last])),
        (1..=9u16).prop_map(|last| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last])),
    ];
    let servers = proptest::collection::btree_set(server, 0..4);
    let search = proptest::collection::btree_set("[a-z0-9_-]{1,9}(\\.[a-z]{1,9}){0,2}", 0..3);
    (servers, search).prop_map(|(servers, search)| DnsConfig {
        servers: servers.into_iter().collect(),
        search: search.iter().map(|domain| domain.parse().unwrap()).collect(),
    })
}

fn wires() -> impl Strategy<Value = WireConfig> {
    let address = option::of(prop_oneof![
        (1..=9u8).prop_map(|last| IpAddr::from([192, 0, 2, last])),
        (1..=9u16).prop_map(|last| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last])),
    ]);
    let forward = (any::<bool>(), address, 1..=65_000u16, 1..=65_000u16, 1..=64u16).prop_map(
        |(tcp, address, host_port, guest_port, count)| {
            let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
            Forward { protocol, address, host_port, guest_port, count }
        },
    );
    let guests = |hosts: &[HostAddress]| -> Vec<IpAddr> {
        let next = hosts.iter().filter_map(|host| host.guest());
        next.filter(|guest| HostAddress::new(*guest, 32).is_ok()).collect()
    };
    let tap = (option::of(links()), hosts(), any::<[bool; 2]>(), dns(), vec(forward, 0..5)).prop_map(
        move |(name, hosts, [dhcp, given], dns, mut forwards)| {
            let guests = if given { guests(&hosts) } else { Vec::new() };
            let mut taken: Vec<Forward> = Vec::new();
            forwards.retain(|forward| {
                let is_free = taken.iter().all(|other| other.shared_port(forward).is_none());
                taken.extend(is_free.then_some(*forward));
                is_free
            });
            let nat = !forwards.is_empty();
            let dhcp = dhcp || (nat && hosts.is_empty());
            let dns = if dhcp { dns } else { DnsConfig::default() };
            WireConfig::Tap(TapConfig { name, hosts, guests, dhcp, dns, nat, forwards })
        },
    );
    let tun = (option::of(links()), hosts(), any::<bool>(), dns(), any::<bool>()).prop_map(
        move |(name, hosts, dhcp, dns, given)| {
            let guests = if given { guests(&hosts) } else { Vec::new() };
            let dns = if dhcp { dns } else { DnsConfig::default() };
            WireConfig::Tun(TunConfig { name, hosts, guests, dhcp, dns })
        },
    );
    let bounds = proptest::collection::btree_set(2..=4094u16, 2..9);
    let trunk = (bounds, any::<bool>()).prop_map(|(bounds, native)| {
        let bounds: Vec<_> = bounds.into_iter().collect();
        let tagged = bounds.chunks_exact(2).map(|pair| VlanRange { first: pair[0], last: pair[1] }).collect();
        Vlans::Trunk { tagged, native: native.then_some(1) }
    });
    let vlans = prop_oneof![(1..=4094u16).prop_map(Vlans::Access), trunk];
    let bridge = (links(), option::of(links()), option::of(vlans), any::<bool>());
    let bridge = bridge.prop_map(|(name, uplink, vlans, isolated)| {
        let uplink = uplink.filter(|uplink| *uplink != name);
        WireConfig::Bridge(BridgeConfig { name, uplink, vlans, isolated })
    });
    let modes = ["private", "vepa", "bridge", "passthru"].map(|mode| mode.parse().unwrap());
    let macvtap = (links(), proptest::sample::select(modes.to_vec()), hosts(), option::of(macs())).prop_map(
        |(parent, mode, hosts, source)| {
            let apart = matches!(mode, MacvtapMode::Private | MacvtapMode::Passthru) || source.is_some();
            let mode = if source.is_some() { MacvtapMode::Source } else { mode };
            let hosts = if apart { Vec::new() } else { hosts };
            WireConfig::Macvtap(MacvtapConfig { parent, mode, hosts, sources: source.into_iter().collect() })
        },
    );
    let fds = proptest::collection::btree_set(3..=i32::MAX, 1..=64usize);
    let fd = fds.prop_map(|fds| WireConfig::Fd(FdConfig { fds: fds.into_iter().collect() }));
    prop_oneof![tap, bridge, macvtap, tun, fd]
}

fn specs() -> impl Strategy<Value = NetConfig> {
    let netns = option::of("[a-z]{1,9}".prop_map(|name| name.parse().unwrap()));
    let queues = prop_oneof![Queues::RANGE.prop_map(Queues::Number), Just(Queues::Auto)];
    let poll = option::of((0..=10_000u64).prop_map(Duration::from_micros));
    let vhost = proptest::sample::select(vec![VhostMode::Off, VhostMode::On, VhostMode::Auto]);
    let rate = prop_oneof![
        2 => Just(RateLimits::default()),
        1 => (16_000..1_000_000_000_000u64, option::of(1..1_000_000u64), 5..=1000u64).prop_map(|(bits, frames, burst)| {
            let sent = RateLimit { bits: NonZeroU64::new(bits), frames: frames.and_then(NonZeroU64::new) };
            RateLimits { sent, received: RateLimit::default(), burst: Duration::from_millis(burst) }
        }),
    ];
    let carrier = (queues, any::<bool>(), poll, (vhost, rate), any::<bool>(), any::<[bool; 3]>());
    (wires(), option::of(macs()), option::of(MTU), carrier, netns).prop_map(
        |(
            wire,
            mac,
            mtu,
            (queues, bound, poll, (vhost, rate), trust, [guard, must_guard, coalesce]),
            netns,
        )| {
            let trust = trust || wire.kind().key("trust").is_none();
            let guards = wire.kind().key("guard").is_some();
            let (guard, must_guard) = (guard || !guards, guard && must_guard && guards);
            let vhost = if matches!(wire, WireConfig::Tun(_)) { VhostMode::Off } else { vhost };
            let (queues, netns) = match &wire {
                WireConfig::Fd(FdConfig { fds }) => (Queues::Number(fds.len() as u16), None),
                _ => (queues, netns),
            };
            let cpus = if bound { queues.number() } else { 0 };
            let config = NetConfig {
                wire,
                mac,
                mtu,
                queues,
                affinity: (0..cpus).collect(),
                poll,
                coalesce,
                vhost,
                rate,
                trust,
                guard,
                must_guard,
                link: [LinkMode::Follow, LinkMode::Up, LinkMode::Down]
                    [poll.map_or(0, |poll| poll.as_micros() as usize % 3)],
                netns,
            };
            match config.check_mtu() {
                Ok(()) => config,
                Err(_) => NetConfig { mtu: None, ..config },
            }
        },
    )
}

proptest! {
    #[test]
    fn what_is_shown_parses_to_the_same(config in specs()) {
        prop_assert_eq!(parse(&config.to_string()).unwrap(), config);
    }

    #[test]
    fn serde_has_a_spec_as_its_text(config in specs(), host in hosts(), mac in macs(), link in links()) {
        let json = serde_json::to_string(&config).unwrap();
        prop_assert_eq!(&json, &serde_json::to_string(&config.to_string()).unwrap());
        prop_assert_eq!(serde_json::from_str::<NetConfig>(&json).unwrap(), config.clone());
        let parts = (host, mac, link, config.queues, config.vhost);
        let json = serde_json::to_string(&parts).unwrap();
        prop_assert_eq!(serde_json::from_str(&json).ok(), Some(parts), "{}", json);
    }

    #[test]
    fn no_text_panics(text in ".*") {
        let _ = parse(&text);
    }

    #[test]
    fn no_text_close_to_a_spec_panics_and_what_parses_is_shown_again(text in texts()) {
        match parse(&text) {
            Ok(config) => prop_assert_eq!(parse(&config.to_string()).unwrap(), config),
            Err(error) => prop_assert!(error.is_usage()),
        }
    }
}
