//! Every wire, and the host that it is tried on.

use std::panic::resume_unwind;
use std::sync::Mutex;
use std::thread;

use harness::netns::Netns;

/// A wire on a host.
pub(crate) struct Wire {
    /// What is there before, as lines for a shell; where one fails, the kernel lacks what the wire needs.
    pub(crate) host: &'static [&'static str],
    pub(crate) spec: &'static str,
}

/// A NIC with addresses and ways.
pub(crate) const NIC: &str = "ip link add nic address 02:00:00:00:01:00 type veth peer name wire address 02:00:00:00:01:ff
    ip link set nic up; ip link set wire up
    ip address add 192.0.2.1/24 dev nic; ip address add 198.51.100.1/24 dev nic valid_lft 3000 preferred_lft 2000
    ip route add default via 192.0.2.2; ip neigh add 192.0.2.2 lladdr 02:00:00:00:01:ff dev nic nud permanent
    if [ -e /proc/net/if_inet6 ]
    then ip address add 2001:db8::1/64 dev nic; ip address add 2001:db8:1::1/64 dev nic valid_lft 3000 preferred_lft 2000
    ip address add 2001:db8:3::1/128 dev nic preferred_lft 0
    ip neigh add 2001:db8::2 lladdr 02:00:00:00:01:ff dev nic nud permanent router
    ip -6 route add default via 2001:db8::2 dev nic; fi";
/// A NIC that is down. A link has its queueing discipline from the first time that it is up.
const IDLE: &str =
    "ip link add nic address 02:00:00:00:01:00 type veth peer name wire address 02:00:00:00:01:ff
    ip link set nic up; ip link set nic down
    if [ -e /proc/net/if_inet6 ]; then ip address add 2001:db8::1/64 dev nic; fi";
/// Somebody's tap, tun, macvtap and bridge.
const TAP: &str = "ip tuntap add tap0 mode tap vnet_hdr; ip link set tap0 up; ip link set tap0 down
    if [ -e /proc/net/if_inet6 ]; then ip address add 2001:db8:9::1/64 dev tap0; fi";
const TUN: &str = "ip tuntap add tun0 mode tun vnet_hdr; ip link set tun0 up; ip link set tun0 down";
const MACVTAP: &str = "ip link add link nic name mine address 02:00:00:00:00:0b type macvtap
    ip link set mine up; ip link set mine down";
/// Its device.
pub(crate) const DEVICE: &str = "ip link set mine up; mount -t sysfs sysfs /sys
    mknod /run/tap c $(cat /sys/class/net/mine/macvtap/tap*/dev | tr : ' ')";
const BRIDGE: &str = "ip link add br1 address 02:00:00:00:02:00 type bridge
    ip link add in address 02:00:00:00:02:01 type veth peer name out address 02:00:00:00:02:02
    ip link set in master br1; for link in br1 in out; do ip link set $link up; done
    ip address add 10.8.0.1/24 dev br1";
/// Which is down.
const DOWN: &str = "for link in br1 in out; do ip link set $link down; done
    ip neigh add 10.8.0.9 lladdr 02:00:00:00:09:09 dev br1 nud permanent
    if [ -e /proc/net/if_inet6 ]; then ip address add 2001:db8:8::1/64 dev br1; fi";
const VLANS: &str = "ip link add vlans type bridge vlan_filtering 1; ip link del vlans";
const NAMESPACE: &str = "ip netns add there; ip -n there tuntap add tap0 mode tap vnet_hdr
    ip -n there link set tap0 up; ip -n there link set tap0 down";

pub(crate) const WIRES: [Wire; 31] = [
    Wire { host: &[], spec: "tap,host=172.31.0.1/24,mtu=9000" },
    Wire { host: &[NIC], spec: "tap" },
    Wire { host: &[TAP], spec: "tap=tap0,host=172.31.0.1/24,mtu=1400" },
    Wire { host: &[NIC], spec: "tap,nat,forward=8080:80" },
    Wire { host: &[NIC, TAP], spec: "tap=tap0,host=172.31.0.1/24,nat,forward=udp:53-54:153-154" },
    Wire { host: &[], spec: "tap,host=172.31.0.1/24,queues=2" },
    Wire { host: &[], spec: "bridge=br0" },
    Wire { host: &[BRIDGE], spec: "bridge=br1" },
    Wire { host: &[BRIDGE, DOWN], spec: "bridge=br1" },
    Wire { host: &[NIC], spec: "bridge=br0,uplink=nic" },
    Wire { host: &[NIC, BRIDGE], spec: "bridge=br1,uplink=nic" },
    Wire { host: &[IDLE], spec: "bridge=br0,uplink=nic" },
    Wire { host: &[VLANS], spec: "bridge=br0,vlan=10" },
    Wire { host: &[VLANS, NIC], spec: "bridge=br0,vlan=10,uplink=nic" },
    Wire { host: &[VLANS, NIC], spec: "bridge=br0,vlan=10:20-30,native=5,uplink=nic" },
    Wire { host: &[NIC], spec: "macvtap=nic" },
    Wire { host: &[NIC], spec: "macvtap=nic,mtu=1400,host=192.0.2.250/29" },
    Wire { host: &[IDLE], spec: "macvtap=nic,mode=vepa,host=192.0.2.250/29" },
    Wire { host: &[NIC], spec: "macvtap=nic,mode=private" },
    Wire { host: &[NIC], spec: "macvtap=nic,queues=2" },
    Wire { host: &[NIC], spec: "macvtap=nic,mode=source,source=02:00:00:00:00:01,source=02:00:00:00:00:02" },
    Wire { host: &[IDLE], spec: "macvtap=nic,mode=passthru" },
    Wire { host: &[NIC], spec: "macvtap=nic,mode=passthru,mac=02:00:00:00:00:0a" },
    Wire { host: &[NIC, MACVTAP], spec: "macvtap=mine,mac=02:00:00:00:00:0a,mtu=1400" },
    Wire { host: &[NIC, MACVTAP, DEVICE], spec: "fd=5" },
    Wire { host: &[NIC], spec: "tun" },
    Wire { host: &[], spec: "tun,host=10.0.0.1/32,guest=192.168.7.2" },
    Wire { host: &[TUN], spec: "tun=tun0,host=10.0.0.1/30,mtu=1400" },
    Wire { host: &[], spec: "tap,host=172.31.0.1/24,netns=vpn" },
    Wire { host: &[], spec: "bridge=br0,netns=vpn" },
    Wire { host: &[NAMESPACE], spec: "tap=tap0,host=172.31.0.1/24,nat,netns=there" },
];

/// A host with nothing on it, where IPv6 addresses are usable at once.
pub(crate) fn a_host() -> Result<Netns, String> {
    let host = Netns::with_own_run()?;
    let _ = host.try_sh("echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad");
    Ok(host)
}

pub(crate) fn every(_: &Wire) -> bool {
    true
}

/// Those that many a small kernel does not have.
pub(crate) fn vlans(wire: &Wire) -> bool {
    wire.host.contains(&VLANS)
}

/// Calls with each wire's host, its spec, and the state of the host before, several at a time; says which wires the kernel does
/// not have.
///
/// # Errors
/// There can be no host.
pub(crate) fn each_wire(
    which: fn(&Wire) -> bool,
    call: impl Fn(&Netns, &'static str, &str) + Sync,
) -> Result<(), String> {
    drop(a_host()?);
    let wires = Mutex::new(WIRES.iter().filter(|wire| which(wire)));
    let next = || wires.lock().unwrap().next();
    let work = || {
        while let Some(Wire { host: lines, spec }) = next() {
            let host = a_host().unwrap();
            match lines.iter().try_for_each(|lines| host.try_sh(&format!("set -e; {lines}")).map(drop)) {
                Ok(()) => call(&host, spec, &host.settled()),
                Err(why) => println!("skipped: {spec}: {}", why.lines().last().unwrap_or_default()),
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        let ended: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        ended.into_iter().for_each(|ended| ended.unwrap_or_else(|panic| resume_unwind(panic)));
    });
    Ok(())
}
