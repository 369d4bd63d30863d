//! Links that carry frames of one Ethernet address alone, each in a network namespace of its own: a guest with an address of its
//! own is refused on them, and what the refusal names works.

mod namespace;

use std::process::{Command, Stdio};

use namespace::guest::{SOON, recv, send};
use namespace::settled::{assert_as, settled, until_up, without_dad};
use namespace::wire::{open, opened};
use namespace::{in_namespace, run, skip};

/// A NIC and the wire behind it.
fn nic() {
    without_dad();
    run("ip link add nic type veth peer name lan");
    run("ip link set nic up");
    run("ip link set lan up");
    until_up("nic");
}

/// Makes a link that the kernel may not have; says that `test` skips where not.
fn made(test: &str, link: &str) -> bool {
    let made =
        Command::new("ip").args("link add".split(' ').chain(link.split(' '))).stderr(Stdio::null()).status();
    let made = made.is_ok_and(|status| status.success());
    if !made {
        skip(test, &format!("this kernel makes no such link: {link}"));
    }
    made
}

/// Fails unless `spec` is refused with these words and this remedy.
#[track_caller]
fn is_refused(spec: &str, words: &str, remedy: &str) {
    let error = open(spec).expect_err(spec);
    assert!(error.to_string().contains(words), "{spec}: {error}");
    assert!(error.remedy().unwrap().contains(remedy), "{spec}: {error:?}");
}

/// A frame from the guest on `spec` reaches the LAN, and one from there to the guest's address reaches it.
fn passes(spec: &str) {
    let mut guest = opened(spec);
    let mut far = opened("macvtap=lan");
    let frame = |to: [u8; 6], from: [u8; 6]| [&to[..], &from, &[0x88, 0xb5], b"hello", &[0; 46]].concat();
    let (own, others) = (guest.mac.octets(), far.mac.octets());
    let is_hello = |frame: &[u8]| frame.get(14..19) == Some(b"hello");
    send(&mut guest, &frame([0xff; 6], own));
    assert!(recv(&mut far, SOON, is_hello).is_some(), "{spec}: out");
    send(&mut far, &frame(own, others));
    assert!(recv(&mut guest, SOON, is_hello).is_some(), "{spec}: in");
}

#[test]
fn a_macvlan_is_no_uplink_and_what_is_named_instead_works() {
    in_namespace("a_macvlan_is_no_uplink_and_what_is_named_instead_works", || {
        nic();
        for mode in ["bridge", "private", "vepa", "source"] {
            run(&format!("ip link add link nic name mv0 type macvlan mode {mode}"));
            run("ip link set mv0 up");
            let before = settled();
            is_refused("bridge=br0,uplink=mv0", "it is a macvlan, which carries no", "--net macvtap=mv0");
            assert_as(&before, mode);
            passes("macvtap=mv0");
            assert_as(&before, mode);
            run("ip link del mv0");
        }
        run("ip link add link nic name mt0 type macvtap mode bridge");
        is_refused("bridge=br0,uplink=mt0", "it is a macvtap, which carries no", "--net macvtap=mt0");
        run("ip link del mt0");
        // It has all that the NIC has.
        run("ip link add link nic name mv0 type macvlan mode passthru");
        passes("bridge=br0,uplink=mv0");
    });
}

#[test]
fn such_a_port_of_somebodys_bridge_is_told() {
    in_namespace("such_a_port_of_somebodys_bridge_is_told", || {
        nic();
        run("ip link add link nic name mv0 type macvlan mode bridge");
        run("ip link add br0 type bridge");
        run("ip link set mv0 master br0");
        run("ip link set mv0 up");
        run("ip link set br0 up");
        until_up("br0");
        let notices = opened("bridge=br0").notices;
        assert!(notices.len() == 1 && notices[0].contains("--net macvtap=mv0"), "{notices:?}");
    });
}

/// What small kernels do not have, and Debian's, and so the lab's, does.
mod stock {
    use super::*;

    #[test]
    fn an_ipvlan_takes_no_guest_of_its_own_address() {
        const NAME: &str = "an_ipvlan_takes_no_guest_of_its_own_address";
        in_namespace(NAME, || {
            nic();
            if !made(NAME, "link nic name iv0 type ipvlan mode l2") {
                return;
            }
            let before = settled();
            is_refused("bridge=br0,uplink=iv0", "it is an ipvlan, which carries no", "--net tap,nat");
            is_refused("macvtap=iv0", "the ipvlan iv0 carries no", "--net tap,nat");
            assert_as(&before, "after the refusals");
        });
    }

    #[test]
    fn nor_does_a_vlan_on_such_a_link() {
        const NAME: &str = "nor_does_a_vlan_on_such_a_link";
        in_namespace(NAME, || {
            nic();
            run("ip link add link nic name mv0 type macvlan mode bridge");
            if !made(NAME, "link mv0 name mv0.7 type vlan id 7") {
                return;
            }
            is_refused("bridge=br0,uplink=mv0.7", "it is on the macvlan mv0, which", "--net tap,nat");
            is_refused("macvtap=mv0.7", "the macvlan mv0 carries no", "--net tap,nat");
            run("ip link add link nic name nic.7 type vlan id 7");
            drop(opened("bridge=br0,uplink=nic.7"));
        });
    }
}
