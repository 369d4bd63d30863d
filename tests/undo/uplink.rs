//! What the host has on an uplink goes to the bridge and comes back, whatever becomes of it meanwhile.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harness::netns::Netns;
use harness::{TempDir, skip};
use rustix::net::sockopt::{Timeout, set_ipv6_multicast_hops, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recvfrom, sendto, socket};

use super::table::a_host;
use super::{Guests, doctor_cleans, inside, open, running};

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

/// Waits until a command in the namespace prints what is `wanted`, and returns that.
#[track_caller]
fn until(place: &Netns, script: &str, wanted: impl Fn(&str) -> bool) -> String {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let printed = place.sh(script);
        if wanted(&printed) {
            return printed;
        }
        assert!(Instant::now() < end, "{script}:\n{printed}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A router on `lan0` that speaks when it is asked; it ends with this.
struct Router {
    silent: Arc<AtomicBool>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

const ROUTER_SOLICITATION: u8 = 133;

impl Router {
    fn on(lan: &Netns) -> Self {
        let (silent, ends) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let index =
            lan.sh("cat /proc/net/dev_snmp6/lan0 | head -1").split_whitespace().nth(1).unwrap().to_owned();
        let (quiet, over) = (Arc::clone(&silent), Arc::clone(&ends));
        let run = move || {
            let socket = socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6)).unwrap();
            set_ipv6_multicast_hops(&socket, 255).unwrap();
            set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(20))).unwrap();
            let mut message = [0; 256];
            while !over.load(Ordering::Relaxed) {
                let asked = recvfrom(&socket, &mut message[..], RecvFlags::empty());
                if asked.is_ok() && message[0] == ROUTER_SOLICITATION && !quiet.load(Ordering::Relaxed) {
                    advertise(&socket, index.parse().unwrap());
                }
            }
        };
        Self { silent, ends, thread: Some(lan.spawn(run)) }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// A router for half an hour, and a prefix to make addresses of for an hour (RFC 4861 §4.2, §4.6.2).
fn advertise(socket: &OwnedFd, link: u32) {
    let mut message = vec![134, 0, 0, 0, 64, 0];
    message.extend(1800_u16.to_be_bytes());
    message.extend([0; 8]);
    message.extend([3, 4, 64, 0xc0]);
    message.extend([3600_u32, 3600, 0].map(u32::to_be_bytes).concat());
    message.extend(Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 0).octets());
    let all_nodes = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 0, 0, link);
    sendto(socket, &message, SendFlags::empty(), &all_nodes).unwrap();
}

const DEFAULT: &str = "ip -6 route show default";
const AUTOCONFIGURED: &str = "ip -6 -o address show scope global | awk '{print $2, $4}'";

/// The route that the kernel makes of the advertisement: it alone has this protocol here.
fn is_learned_over(link: &str) -> impl Fn(&str) -> bool {
    let wanted = format!("default via fe80::254 dev {link} proto ra metric 1024 ");
    move |routes| routes.lines().count() == 1 && routes.starts_with(&wanted)
}

#[test]
fn what_the_kernel_has_learned_from_a_router_it_learns_anew() {
    let (host, lan) = match a_host_on_a_lan() {
        Ok(both) => both,
        Err(why) => skip!("{why}"),
    };
    let router = Router::on(&lan);
    host.sh("ip link set nic down; ip link set nic up");
    until(&host, DEFAULT, is_learned_over("nic"));
    let address = until(&host, AUTOCONFIGURED, |found| found.lines().count() == 1);
    for round in 0..2 {
        let opened = inside(&host, || open("bridge=br0,uplink=nic").unwrap());
        // At no moment is there none.
        assert!(host.sh(DEFAULT).contains(" dev br0 "), "round {round}");
        until(&host, DEFAULT, is_learned_over("br0"));
        assert_eq!(host.sh(AUTOCONFIGURED), address.replace("nic", "br0"));
        inside(&host, move || drop(opened));
        assert!(host.sh(DEFAULT).contains(" dev nic "), "round {round}");
        until(&host, DEFAULT, is_learned_over("nic"));
        assert_eq!(host.sh(AUTOCONFIGURED), address);
    }
    // A router that says nothing when it is asked: the host keeps its way for as long as it was said to be one.
    router.silent.store(true, Ordering::Relaxed);
    let opened = inside(&host, || open("bridge=br0,uplink=nic").unwrap());
    let stands_in = |link: &str, routes: &str| {
        let start = format!("default via fe80::254 dev {link} metric 1025 expires ");
        assert!(routes.starts_with(&start) && routes.lines().count() == 1, "{routes}");
    };
    stands_in("br0", &host.sh(DEFAULT));
    inside(&host, move || drop(opened));
    stands_in("nic", &host.sh(DEFAULT));
    router.silent.store(false, Ordering::Relaxed);
    host.sh("ip link set nic down; ip link set nic up");
    until(&host, DEFAULT, is_learned_over("nic"));
}

const LEASES: &str = "set -e
    ip address add 192.0.2.1/24 dev nic valid_lft 100 preferred_lft 100; ip address add 192.0.2.7/24 dev nic
    ip address add 2001:db8::1/64 dev nic valid_lft 100 preferred_lft 100
    ip route add default via 192.0.2.254; ip route add 198.51.100.0/24 via 192.0.2.254
    ip neigh add 192.0.2.254 lladdr 02:00:00:00:01:fe dev nic nud permanent";

/// What a DHCP client and a person do on the bridge.
fn change_on(bridge: &str) -> String {
    format!(
        "set -e
        ip address change 192.0.2.1/24 dev {bridge} valid_lft 3600 preferred_lft 3600
        ip address change 2001:db8::1/64 dev {bridge} valid_lft 3600 preferred_lft 3600
        ip address del 192.0.2.7/24 dev {bridge}; ip address add 192.0.2.9/24 dev {bridge}
        ip address add 2001:db8::9/64 dev {bridge} nodad
        ip route del 198.51.100.0/24; ip route add 203.0.113.0/24 via 192.0.2.254 metric 7
        ip neigh replace 192.0.2.254 lladdr 02:00:00:00:01:fd dev {bridge} nud permanent"
    )
}

/// Fails unless all that [`change_on`] did is on the NIC.
#[track_caller]
fn changed_on_nic(host: &Netns, when: &str) {
    let addresses = host.sh("ip -o address show dev nic scope global | awk '{print $4}' | sort");
    assert_eq!(addresses, "192.0.2.1/24\n192.0.2.9/24\n2001:db8::1/64\n2001:db8::9/64\n", "{when}");
    let left = host.sh("ip address show dev nic");
    let lasts = |line: &str| line.trim().strip_prefix("valid_lft 3").is_some_and(|rest| rest.contains("sec"));
    assert_eq!(left.lines().filter(|line| lasts(line)).count(), 2, "{when}: {left}");
    let routes = host.sh("ip -4 route show | sort; ip neigh show nud permanent | grep -v ' lo '");
    let wanted = "192.0.2.0/24 dev nic proto kernel scope link src 192.0.2.1 \n203.0.113.0/24 via 192.0.2.254 dev nic metric 7 \n\
                  default via 192.0.2.254 dev nic \n192.0.2.254 dev nic lladdr 02:00:00:00:01:fd PERMANENT \n";
    assert_eq!(routes, wanted, "{when}");
}

#[test]
fn what_the_bridge_has_at_the_end_goes_back() {
    let lan = match a_host_on_a_lan() {
        Ok(_) => a_host_on_a_lan,
        Err(why) => skip!("{why}"),
    };
    let (host, _lan) = lan().unwrap();
    host.sh(LEASES);
    let opened = inside(&host, || open("bridge=br0,uplink=nic").unwrap());
    host.sh(&change_on("br0"));
    inside(&host, move || drop(opened));
    changed_on_nic(&host, "at the end");

    let dir = TempDir::new();
    let guests = Guests::new(&dir);
    let (host, _lan) = lan().unwrap();
    host.sh(LEASES);
    let killed = running(&host, &guests, &["bridge=br0,uplink=nic"]);
    host.sh(&change_on("br0"));
    drop(killed);
    let told = host.command("sh").args(["-c", "\"$0\" doctor"]).arg(harness::wirevm_path()).output().unwrap();
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("ip address add 192.0.2.9/24") && !told.contains("192.0.2.7/24"), "{told}");
    doctor_cleans(&host);
    changed_on_nic(&host, "killed and cleaned");

    // Somebody took it out of the bridge that another wirevm joined it to: the second move is of one wirevm alone.
    let (host, _lan) = lan().unwrap();
    host.sh(LEASES);
    let other = inside(&host, || open("bridge=br0,uplink=nic").unwrap());
    host.sh(&format!(
        "ip link set nic nomaster; ip address flush dev br0; ip address flush dev nic; {LEASES}"
    ));
    let opened = inside(&host, || open("bridge=br0,uplink=nic").unwrap());
    host.sh(&change_on("br0"));
    inside(&host, move || drop(opened));
    changed_on_nic(&host, "one alone");
    inside(&host, move || drop(other));

    // The bridge is gone: what was recorded is all that is known.
    let (host, _lan) = lan().unwrap();
    host.sh(LEASES);
    let before = host.settled();
    drop(running(&host, &guests, &["bridge=br0,uplink=nic"]));
    host.sh("ip link del br0");
    doctor_cleans(&host);
    host.has_everything_as(&before, "killed, and its bridge deleted");
}

#[test]
fn what_a_bridge_has_of_its_own_stays_there() {
    let (host, _lan) = match a_host_on_a_lan() {
        Ok(both) => both,
        Err(why) => skip!("{why}"),
    };
    host.sh(LEASES);
    host.sh("set -e; ip link add br1 address 02:00:00:00:02:00 type bridge; ip link set br1 up
        ip address add 10.8.0.1/24 dev br1; ip route add 10.9.0.0/16 via 10.8.0.2");
    let opened = inside(&host, || open("bridge=br1,uplink=nic").unwrap());
    host.sh(&change_on("br1"));
    host.sh("set -e; ip address add 10.8.0.5/24 dev br1; ip route add 10.10.0.0/16 via 10.8.0.2");
    inside(&host, move || drop(opened));
    let routes = host.sh("ip -4 route show dev br1 | sort; ip -4 -o address show dev br1 | awk '{print $4}'");
    assert_eq!(
        routes,
        "10.10.0.0/16 via 10.8.0.2 linkdown \n10.8.0.0/24 proto kernel scope link src 10.8.0.1 linkdown \n\
         10.9.0.0/16 via 10.8.0.2 linkdown \n10.8.0.1/24\n10.8.0.5/24\n"
    );
    host.sh("ip link del br1");
    changed_on_nic(&host, "a bridge of its own");
}

#[test]
fn all_that_is_on_the_uplink_moves() {
    let (host, lan) = match a_host_on_a_lan() {
        Ok(both) => both,
        Err(why) => skip!("{why}"),
    };
    lan.sh("ip address add 2001:db8::66/64 dev lan0 nodad");
    host.sh("set -e; echo 1 > /proc/sys/net/ipv6/conf/nic/accept_dad
        ip address add 192.0.2.1/24 dev nic; ip address add 2001:db8::1/64 dev nic nodad
        ip address add fe80::1/64 dev nic nodad; ip address add 2001:db8::66/64 dev nic
        ip route add local 10.55.0.0/24 dev nic; ip route add local 10.56.0.0/24 dev nic table 77
        ip neigh add proxy 192.0.2.78 dev nic; ip neigh add proxy 2001:db8::78 dev nic
        cd /proc/sys/net/ipv4/conf/nic; for on in proxy_arp arp_filter log_martians src_valid_mark; do echo 1 > $on; done
        echo 0 > accept_redirects; echo 0 > send_redirects
        cd /proc/sys/net/ipv6/conf/nic; echo 1 > proxy_ndp; echo 1 > ndisc_notify; echo 0 > accept_ra_defrtr
        echo 1400 > mtu; echo 64 > accept_ra_rt_info_max_plen");
    until(&host, "ip -6 address show dev nic", |all| all.contains("dadfailed"));
    let (before, proxies) = (host.settled(), host.sh("ip neigh show proxy; ip -6 neigh show proxy"));
    let opened = inside(&host, || open("bridge=br0,uplink=nic").unwrap());
    let there = host.sh("ip -6 -o address show dev br0; ip neigh show proxy; ip route show table local; ip route show table 77");
    for moved in [
        "fe80::1/64 scope link",
        "192.0.2.78 dev br0 proxy",
        "2001:db8::78 dev br0 proxy",
        "local 10.55.0.0/24 dev br0",
        "local 10.56.0.0/24 dev br0",
    ] {
        assert!(there.contains(moved), "{moved}:\n{there}");
    }
    // Another host has it.
    assert!(!there.contains("2001:db8::66"), "{there}");
    let differs = host.sh("cd /proc/sys/net; for family in ipv4 ipv6
        do (cd $family/conf/nic; grep -s . * | sort) > /run/nic; (cd $family/conf/br0; grep -s . * | sort) > /run/br0
        diff /run/nic /run/br0 || true; done; rm /run/nic /run/br0");
    assert_eq!(differs, "");
    // The host answers at the address that a router of the LAN has for it.
    until(&lan, "ping -c1 -W1 fe80::1%lan0 || true", |printed| printed.contains(" 0% packet loss"));
    inside(&host, move || drop(opened));
    assert_eq!(host.sh("ip neigh show proxy; ip -6 neigh show proxy"), proxies);
    host.has_each_as(&before, "all moved and came back");
}

/// What the LAN's machine sends to, for an address.
fn known_as(lan: &Netns, address: &str) -> String {
    let known = lan.sh(&format!("ip neigh show {address} dev lan0"));
    known.split_whitespace().nth(2).unwrap_or_default().to_owned()
}

#[test]
fn the_neighbours_hear_at_once_where_the_host_is() {
    let (host, lan) = match a_host_on_a_lan() {
        Ok(both) => both,
        Err(why) => skip!("{why}"),
    };
    const NIC_MAC: &str = "02:00:00:00:01:00";
    const BRIDGE_MAC: &str = "02:00:00:00:00:55";
    host.sh(&format!("set -e; ip address add 192.0.2.1/24 dev nic; ip address add 2001:db8::1/64 dev nic nodad
        ip link add br1 type bridge; ip link set br1 address {BRIDGE_MAC} up; ip address add 10.88.0.1/24 dev br1"));
    let moved = ["192.0.2.1", "2001:db8::1"];
    for address in moved {
        until(&lan, &format!("ping -c1 -W1 {address} || true"), |printed| {
            printed.contains(" 0% packet loss")
        });
        assert_eq!(known_as(&lan, address), NIC_MAC);
    }
    let told = |mac: &str| {
        for address in moved {
            let is_told = |known: &str| known.contains(mac);
            until(&lan, &format!("ip neigh show {address} dev lan0"), is_told);
        }
    };
    let opened = inside(&host, || open("bridge=br1,uplink=nic").unwrap());
    told(BRIDGE_MAC);
    inside(&host, move || drop(opened));
    told(NIC_MAC);
    // Of what was the bridge's own they hear nothing.
    assert_eq!(known_as(&lan, "10.88.0.1"), "");
}

const MAC_AND_HOW: &str = "mount -t sysfs none /sys; cat /sys/class/net/br1/address /sys/class/net/br1/addr_assign_type; umount /sys";

#[test]
fn a_bridge_has_its_ethernet_address_afterwards() {
    let (host, _lan) = match a_host_on_a_lan() {
        Ok(both) => both,
        Err(why) => skip!("{why}"),
    };
    let on_each = |host: &Netns, say: &str| {
        for spec in ["bridge=br1", "bridge=br1,uplink=nic"] {
            let before = host.sh(MAC_AND_HOW);
            let opened = inside(host, move || open(spec).unwrap_or_else(|error| panic!("{spec}: {error:?}")));
            inside(host, move || drop(opened));
            let mac = |text: &str| text.lines().next().unwrap_or_default().to_owned();
            // Without a port, the kernel keeps only an address that was set.
            let of_it = |text: String| if say == "no port" { mac(&text) } else { text };
            let before = of_it(before);
            // A process that another test has just forked may hold the tap for a moment more, and with it the bridge's port.
            let until = Instant::now() + Duration::from_secs(5);
            let mut after = of_it(host.sh(MAC_AND_HOW));
            while after != before && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(20));
                after = of_it(host.sh(MAC_AND_HOW));
            }
            assert_eq!(after, before, "{say}, {spec}");
        }
    };
    // It takes its own of its ports, and stays with what they have.
    host.sh("set -e; ip link add br1 type bridge; ip link set br1 up
        ip link add in address 02:00:00:00:02:01 type veth peer name out; ip link set in master br1 up; ip link set out up");
    on_each(&host, "a port");
    host.sh("set -e; ip link del in; ip link del br1; ip link add br1 type bridge; ip link set br1 up");
    on_each(&host, "no port");
    // As another program's last port has left it.
    host.sh("set -e; ip link del br1; ip link add br1 type bridge; ip link set br1 up
        ip link add in type veth peer name out; ip link set in master br1; ip link del in");
    assert!(host.sh(MAC_AND_HOW).starts_with("00:00:00:00:00:00"));
    on_each(&host, "it has none");
    host.sh(
        "set -e; ip link del br1; ip link add br1 address 02:00:00:00:00:55 type bridge; ip link set br1 up",
    );
    on_each(&host, "set");
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

#[test]
fn where_settings_cannot_be_written_the_bridge_is_there_all_the_same() {
    let (host, _lan) = match a_host_on_a_lan() {
        Ok(both) => both,
        Err(why) => skip!("{why}"),
    };
    host.sh("set -e; ip address add 192.0.2.1/24 dev nic; echo 1 > /proc/sys/net/ipv4/conf/nic/arp_ignore
        echo 0 > /proc/sys/net/ipv6/conf/nic/accept_ra; mount -o bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys");
    let before = host.settled();
    let opened = inside(&host, || open("bridge=br0,uplink=nic").unwrap_or_else(|error| panic!("{error:?}")));
    let told: Vec<_> =
        opened.notices.iter().filter(|notice| notice.contains("is not set as nic is")).collect();
    assert_eq!(told.len(), 1, "{:?}", opened.notices);
    for lacked in ["net/ipv4/conf/br0/arp_ignore=1", "net/ipv6/conf/br0/accept_ra=0", "--sysctl"] {
        assert!(told[0].contains(lacked), "{lacked}: {told:?}");
    }
    inside(&host, move || drop(opened));
    host.has_everything_as(&before, "read-only");
}
