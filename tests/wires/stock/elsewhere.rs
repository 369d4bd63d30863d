//! Stock Linux guests on wires whose host's end is in another network namespace, and on a network that gives no addresses.

use harness::netns::Netns;
use harness::{Vm, need, stock};

use super::COMMAND;

/// In the guest: pings each of these.
#[track_caller]
fn pings(vm: &mut Vm, addresses: &[&str]) {
    for address in addresses {
        vm.sh(&format!("ping -q -c 3 -i 0.4 -W 10 {address}"), COMMAND);
    }
}

/// A NIC `nic` in the host's namespace `field`, and at its other end a machine at 10.1.0.9 and fd00:1::9.
fn field(host: &Netns) -> Result<Netns, String> {
    let lan = Netns::new()?;
    host.sh(&format!(
        "ip netns add field && ip -n field link add nic type veth peer name wire netns {} && ip -n field link set nic up",
        lan.pid()
    ));
    lan.sh(
        "ip addr add 10.1.0.9/24 dev wire && ip link set wire up; ip addr add fd00:1::9/64 dev wire nodad",
    );
    Ok(lan)
}

#[test]
fn each_wire_works_in_another_namespace() {
    let kernel = need!(stock::fastest());
    let host = need!(Netns::with_own_run());
    let lan = need!(field(&host));
    let here = || host.state();
    let there = || host.sh("ip -n field -d link; ip -n field route; ip netns list");
    let before = (here(), there());
    let nets = [
        "macvtap=nic,netns=field",
        "bridge=br0,netns=made",
        "tap,host=10.3.0.1/24,host=fd00:3::1/64,netns=made",
        "tun,host=10.4.0.1/30,guest=10.4.0.2,host=fd00:4::1/64,netns=made",
    ];
    let nets: Vec<_> = (1..).zip(nets).map(|(n, net)| format!("{net},mac=02:00:00:00:00:0{n}")).collect();
    let args: Vec<_> = nets.iter().flat_map(|net| ["--net", net]).collect();
    let mut vm = kernel.boot(&host, "", &args);
    assert_eq!(here(), before.0, "nothing is where wirevm is");
    host.sh("ip -n made addr add 10.2.0.1/24 dev br0");
    // The addresses of the tap and the tun are told from there.
    vm.sh(
        "ip addr add 10.1.0.2/24 dev eth0; ip addr add fd00:1::2/64 dev eth0; ip addr add 10.2.0.2/24 dev eth1; \
         for nic in eth2 eth3; do udhcpc -i $nic -f -q -n -t 5 -T 2 -O mtu -s /etc/dhcp >/dev/null 2>&1; done",
        COMMAND,
    );
    pings(&mut vm, &["10.1.0.9", "fd00:1::9", "10.2.0.1", "10.3.0.1", "fd00:3::1", "10.4.0.1", "fd00:4::1"]);
    for address in ["10.2.0.2", "10.3.0.2", "10.4.0.2", "fd00:3::ff:fe00:3", "fd00:4::ff:fe00:4"] {
        host.sh(&format!("ip netns exec made ping -q -c 2 -i 0.2 -W 10 {address}"));
    }
    lan.sh("ping -q -c 2 -i 0.2 -W 10 10.1.0.2 && ip neigh | grep '10.1.0.2 .*02:00:00:00:00:01'");
    vm.type_in("poweroff\n");
    vm.ends_with(0, COMMAND);
    assert_eq!((here(), there()), before);
}

#[test]
fn a_guest_comes_up_where_nobody_gives_addresses() {
    let kernel = need!(stock::fastest());
    let host = need!(Netns::with_own_run());
    let lan = need!(field(&host));
    let args = ["--net", "macvtap=nic,netns=field,mac=02:00:00:00:00:01"];
    let mut vm = kernel.boot(&host, "wirevm.dhcp", &args);
    assert!(vm.console().contains("eth0: nobody answers DHCP"), "{}", vm.state());
    // Of IPv6 a guest has an address without anybody.
    let own = vm.sh("ip addr show dev eth0", COMMAND);
    assert!(!own.contains("inet ") && own.contains("inet6 fe80::ff:fe00:1/64"), "{own}");
    lan.sh("ping -q -c 2 -i 0.2 -W 10 fe80::ff:fe00:1%wire");
    vm.sh("ip addr add 10.1.0.2/24 dev eth0", COMMAND);
    pings(&mut vm, &["10.1.0.9"]);
    lan.sh("ping -q -c 2 -i 0.2 -W 10 10.1.0.2");
}
