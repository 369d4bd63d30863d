//! The world behind a host, and guests that are to reach it.

use net::Opened;

use super::machine::{Guest, Machine};
use super::run;

/// The world: 192.0.2.2 on the host's LAN, 203.0.113.7 behind it, and no way back to the guest's subnet.
pub(crate) fn world() -> Machine {
    let world = Machine::new();
    // No address is tentative for a second, so that states can be compared.
    let at_once = "sysctl -qw net.ipv6.conf.default.accept_dad=0";
    run(at_once);
    world.commands(&[at_once]);
    world.plug("eth0", "eth0");
    run("ip link set lo up");
    run("ip address add 192.0.2.1/24 dev eth0");
    run("ip address add 2001:db8::1/64 dev eth0 nodad");
    run("ip route add default via 192.0.2.2");
    run("ip -6 route add default via 2001:db8::2");
    world.commands(&[
        "ip link set lo up",
        "ip address add 192.0.2.2/24 dev eth0",
        "ip address add 203.0.113.7/32 dev lo",
        "ip address add 2001:db8::2/64 dev eth0 nodad",
        "ip address add 2001:db8:7::7/128 dev lo nodad",
    ]);
    world
}

/// A guest at 172.31.0.2 with the host as its router.
pub(crate) fn guest(opened: &mut Opened) -> Guest {
    let guest = Guest::on(opened);
    guest.commands(&["ip address add 172.31.0.2/24 dev eth0", "ip route add default via 172.31.0.1"]);
    guest
}

/// A guest with both families.
pub(crate) fn guest_of_both(opened: &mut Opened) -> Guest {
    let guest = guest(opened);
    guest.commands(&["ip address add fd00::2/64 dev eth0 nodad", "ip -6 route add default via fd00::1"]);
    guest
}
