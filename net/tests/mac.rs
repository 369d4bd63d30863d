//! A guest's Ethernet address that somebody on the way of its frames has already, each test in a network namespace of its own.

mod namespace;

use std::os::fd::IntoRawFd;

use namespace::guest::{SOON, recv, send};
use namespace::settled::{assert_as, settled, until_up};
use namespace::wire::{open, opened};
use namespace::{child as be_child, holding, in_namespace, inheritable, kill, leave, macvtap_device, run};
use namespace::{run_in_own_mounts, tun_attached};

#[test]
fn child() {
    be_child();
}

const MAC: &str = "02:00:00:00:00:0a";
const MAC_BYTES: [u8; 6] = [2, 0, 0, 0, 0, 10];

/// Fails unless `spec` with [`MAC`] is refused, for `by` has the address.
#[track_caller]
fn is_taken(spec: &str, by: &str) {
    let error = open(&format!("{spec},mac={MAC}")).expect_err(spec);
    assert_eq!(error.to_string(), format!("mac={MAC}: {by} has this address"), "{spec}");
    assert!(error.remedy().unwrap().contains("drop mac="), "{spec}");
}

/// A frame of an experimental kind (IEEE 802).
fn frame(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    [&to[..], &from, &[0x88, 0xb5], b"hello", &[0; 46]].concat()
}

#[test]
fn on_a_bridge_no_link_has_it() {
    in_namespace("on_a_bridge_no_link_has_it", || {
        run(&format!("ip link add nic address {MAC} type veth peer name lan"));
        let before = settled();
        is_taken("bridge=br0,uplink=nic", "nic");
        assert_as(&before, "the bridge is not made");
        run("ip link add br0 address 02:00:00:00:00:01 type bridge");
        is_taken("bridge=br0,uplink=nic", "nic");
        run("ip link set nic master br0");
        is_taken("bridge=br0", "nic");
        // A tap that is a port.
        run("ip tuntap add tap0 mode tap vnet_hdr");
        run("ip link set tap0 master br0");
        is_taken("tap=tap0,dhcp=off", "nic");
        run("ip link set nic address 02:00:00:00:00:02");
        run(&format!("ip link set br0 address {MAC}"));
        is_taken("bridge=br0", "br0");
        is_taken("tap=tap0,dhcp=off", "br0");
        is_taken("macvtap=br0", "br0");
        run("ip link set br0 address 02:00:00:00:00:01");
        run(&format!("ip link add link br0 name mv0 address {MAC} type macvlan mode bridge"));
        is_taken("bridge=br0", "mv0");
        run("ip link del mv0");
        drop(opened(&format!("bridge=br0,mac={MAC}")));
    });
}

#[test]
fn on_a_bridge_no_other_guest_has_it() {
    in_namespace("on_a_bridge_no_other_guest_has_it", || {
        for guard in ["", ",guard=off"] {
            let other = holding(&format!("bridge=br0,mac={MAC}{guard}"));
            is_taken("bridge=br0", "the guest at wirevm0");
            is_taken("macvtap=br0", "the guest at wirevm0");
            leave(other);
            // Who was killed is waited for.
            kill(holding(&format!("bridge=br0,mac={MAC}{guard}")));
            drop(opened(&format!("bridge=br0,mac={MAC}{guard}")));
        }
        // One of another program, which has spoken.
        run("ip link add br0 type bridge");
        run("ip link add nic type veth peer name lan");
        run("ip tuntap add other mode tap vnet_hdr");
        for link in ["nic", "other"] {
            run(&format!("ip link set {link} master br0"));
        }
        for link in ["br0", "nic", "lan", "other"] {
            run(&format!("ip link set {link} up"));
        }
        let mut program = opened("tap=other,dhcp=off");
        let mut lan = opened("macvtap=lan");
        until_up("br0");
        let learned = |port: &str| {
            let entries = run(&format!("bridge fdb show dev {port}"));
            entries.lines().any(|line| line.starts_with(MAC))
        };
        let own = program.mac.octets();
        send(&mut program, &frame([0xff; 6], MAC_BYTES));
        let heard = recv(&mut lan, SOON, |frame| frame.get(6..12) == Some(&MAC_BYTES[..]));
        assert!(heard.is_some() && learned("other"));
        is_taken("bridge=br0", "the guest at other");
        // What is heard from the LAN may have been elsewhere until now.
        send(&mut lan, &frame(own, MAC_BYTES));
        let is_from = |frame: &[u8]| frame.get(6..12) == Some(&MAC_BYTES[..]);
        assert!(recv(&mut program, SOON, is_from).is_some() && learned("nic"));
        drop(opened(&format!("bridge=br0,mac={MAC}")));
    });
}

#[test]
fn the_bridge_knows_where_a_guest_is_that_has_not_spoken() {
    in_namespace("the_bridge_knows_where_a_guest_is_that_has_not_spoken", || {
        let [mut first, mut second, mut third] = ["bridge=br0"; 3].map(opened);
        let is_hello = |frame: &[u8]| frame.get(14..19) == Some(b"hello");
        let to_second = frame(second.mac.octets(), first.mac.octets());
        send(&mut first, &to_second);
        assert!(recv(&mut second, SOON, is_hello).is_some());
        assert!(recv(&mut third, namespace::guest::NEVER, is_hello).is_none(), "it is not for all");
    });
}

#[test]
fn on_a_macvtap_nothing_beside_it_has_it() {
    in_namespace("on_a_macvtap_nothing_beside_it_has_it", || {
        run(&format!("ip link add nic address {MAC} type veth peer name lan"));
        run("ip link set nic up");
        run("ip link set lan up");
        is_taken("macvtap=nic", "nic");
        run("ip link add link nic name mv0 type macvlan mode bridge");
        run("ip link set mv0 up");
        is_taken("macvtap=mv0", "nic");
        run("ip link add link nic name mt0 type macvtap mode bridge");
        is_taken("macvtap=mt0", "nic");
        run("ip link set nic address 02:00:00:00:00:02");
        run(&format!("ip link set mv0 address {MAC}"));
        for spec in ["macvtap=nic", "macvtap=mv0", "macvtap=mt0"] {
            is_taken(spec, "mv0");
        }
        run("ip link set mv0 address 02:00:00:00:00:03");
        run(&format!("ip link set mt0 address {MAC}"));
        is_taken("macvtap=mv0", "mt0");
        drop(opened(&format!("macvtap=mt0,mac={MAC}")));
    });
}

#[test]
fn the_hosts_end_of_a_tap_does_not_have_it() {
    in_namespace("the_hosts_end_of_a_tap_does_not_have_it", || {
        run("ip tuntap add tap0 mode tap vnet_hdr");
        run(&format!("ip link set tap0 address {MAC}"));
        let before = settled();
        is_taken("tap=tap0,host=172.31.0.1/24", "tap0");
        assert_as(&before, "after the refusal");
        let tap = tun_attached("tap0", libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
        inheritable(&tap);
        is_taken(&format!("fd={}", tap.into_raw_fd()), "tap0");
        // A tun has no address, and the one that wirevm answers with is another one than the guest's.
        drop(opened(&format!("tun,mac={MAC}")));
    });
}

#[test]
fn an_inherited_macvtap_does_not_take_one_that_is_beside_it() {
    in_namespace("an_inherited_macvtap_does_not_take_one_that_is_beside_it", || {
        run_in_own_mounts(|| {
            run(&format!("ip link add nic address {MAC} type veth peer name lan"));
            run("ip link add link nic name mt0 type macvtap mode bridge");
            run("ip link set nic up");
            run("ip link set mt0 up");
            let device = macvtap_device("mt0");
            inheritable(&device);
            is_taken(&format!("fd={}", device.into_raw_fd()), "another link on its NIC");
        });
    });
}
