//! What the host has on an uplink goes to the bridge and comes back, whatever becomes of it meanwhile.

use harness::netns::Netns;
use harness::skip;

use super::table::a_host;
use super::{inside, open};

/// The host, and a LAN at the other end of its `nic`.
fn a_host_on_a_lan() -> Result<(Netns, Netns), String> {
    let (host, lan) = (a_host()?, Netns::new()?);
    host.sh(&format!(
        "set -e; ip link add nic address 02:00:00:00:01:00 type veth peer name lan0 netns {}; ip link set nic up
        echo 0 > /proc/sys/net/ipv6/conf/nic/use_tempaddr",
        lan.pid()
    ));
    lan.sh("set -e; echo 1 > /proc/sys/net/ipv6/conf/lan0/forwarding
        ip link set lan0 address 02:00:00:00:01:fe up
        ip address add 192.0.2.254/24 dev lan0; ip address add fe80::254/64 dev lan0 nodad
        ip address add 2001:db8::254/64 dev lan0 nodad");
    Ok((host, lan))
}

/// What is refused, on a host that has `lines` done: words of the error, and of its remedy.
pub(crate) struct Refused {
    lines: &'static str,
    spec: &'static str,
    says: &'static str,
    remedy: &'static str,
    /// The remedy ends with a line after which it is no longer refused.
    mends: bool,
}

const fn refused(lines: &'static str, says: &'static str, remedy: &'static str) -> Refused {
    Refused { lines, spec: "bridge=br0,uplink=nic", says, remedy, mends: false }
}

const BOUND_ROUTES: [Refused; 3] = [
    Refused {
        mends: true,
        ..refused(
            "ip link add other type veth peer name far; ip link set other up; ip link set far up
            ip address add 198.51.100.1/24 dev other; ip route add 203.0.113.0/24 metric 9 \
                nexthop via 192.0.2.254 dev nic weight 2 nexthop via 198.51.100.254 dev other",
            "203.0.113.0/24 proto 3 scope 0 metric 9 nexthop via 192.0.2.254 dev nic weight 2 \
             nexthop via 198.51.100.254 dev other weight 1",
            "ip route replace 203.0.113.0/24 via 192.0.2.254 dev nic",
        )
    },
    Refused {
        mends: true,
        ..refused(
            "ip link add other type veth peer name far; ip link set other up; ip link set far up
            ip address add 2001:db8:1::1/64 dev other nodad; ip -6 route add 2001:db8:9::/48 \
                nexthop via 2001:db8::254 dev nic nexthop via 2001:db8:1::254 dev other",
            "2001:db8:9::/48",
            "ip -6 route replace 2001:db8:9::/48 via 2001:db8::254 dev nic",
        )
    },
    Refused {
        mends: true,
        ..refused(
            "ip nexthop add id 5 via 192.0.2.254 dev nic; ip route add 203.0.113.0/24 nhid 5",
            "nhid 5",
            "ip route replace 203.0.113.0/24 via 192.0.2.254 dev nic",
        )
    },
];

const TAKEN: [Refused; 5] = [
    refused("ip link add mv0 link nic type macvlan", "the macvlan mv0 is on it", "ip link del dev mv0"),
    refused(
        "ip netns add there; ip link add mv0 link nic netns there type macvlan",
        "master br0",
        "macvlan in another network namespace",
    ),
    Refused {
        spec: "bridge=lo",
        ..refused(
            "true",
            "it is a network interface, not a bridge",
            "name a bridge (ip link show type bridge)",
        )
    },
    Refused { spec: "bridge=nic", ..refused("true", "it is a veth, not a bridge", "bridge=br0,uplink=nic") },
    Refused {
        spec: "bridge=br0,uplink=br7",
        ..refused("ip link add br7 type bridge", "a bridge itself", "--net bridge=br7")
    },
];

/// Those of kinds of link that many a small kernel does not have.
pub(crate) const OF_RARE_KINDS: [Refused; 6] = [
    Refused {
        spec: "bridge=br0,uplink=nic,vlan=100",
        mends: true,
        ..refused(
            "ip link add link nic name nic.100 type vlan id 100",
            "vlan=100: nic.100 takes that VLAN's frames",
            "bridge=br100,uplink=nic.100",
        )
    },
    refused("ip link add iv0 link nic type ipvlan", "the ipvlan iv0 is on it", "ip link del dev iv0"),
    refused("ip link add ms0 link nic type macsec", "the macsec ms0 is on it", "uplink=ms0"),
    refused(
        "ip link add v0 type vrf table 10; ip link set v0 up; ip link set nic master v0",
        "a part of the vrf v0",
        "ip link set nic master br0; --net bridge=br0",
    ),
    Refused {
        spec: "bridge=br0,uplink=v0",
        ..refused("ip link add v0 type vrf table 10; ip link set v0 up", "no bridge takes a vrf", "tap,nat")
    },
    Refused {
        spec: "bridge=v0",
        ..refused("ip link add v0 type vrf table 10", "it is a vrf, not", "name a bridge (ip")
    },
];

/// Opens each, and follows its remedy where that mends it; says which the kernel does not have.
///
/// # Errors
/// There can be no host.
pub(crate) fn each_is_refused(cases: &'static [Refused]) -> Result<(), String> {
    for case in cases {
        let (host, _lan) = a_host_on_a_lan()?;
        host.sh("set -e; ip address add 192.0.2.1/24 dev nic; ip address add 2001:db8::1/64 dev nic nodad");
        if let Err(why) = host.try_sh(&format!("set -e; {}", case.lines)) {
            println!("skipped: {}: {}", case.lines, why.lines().last().unwrap_or_default());
            continue;
        }
        let before = host.settled();
        let refused = inside(&host, || open(case.spec).map(drop).unwrap_err());
        assert!(refused.to_string().contains(case.says), "{refused}");
        let told = refused.remedy().unwrap_or_default();
        assert!(told.contains(case.remedy), "{refused}: {told}");
        host.has_everything_as(&before, case.says);
        if case.mends {
            let line = told.rsplit_once("sudo ").unwrap_or_default().1.to_owned();
            host.sh(&line);
            let opened = inside(&host, || open(case.spec).map(drop));
            opened.unwrap_or_else(|error| panic!("{line}: {error:?}"));
        }
    }
    Ok(())
}

#[test]
fn a_route_that_cannot_move_is_refused_with_the_line_that_lets_it() {
    if let Err(why) = each_is_refused(&BOUND_ROUTES) {
        skip!("{why}");
    }
}

#[test]
fn who_takes_the_uplinks_frames_already_is_named() {
    if let Err(why) = each_is_refused(&TAKEN) {
        skip!("{why}");
    }
}
