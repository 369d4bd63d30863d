//! One wirevm at a time changes the host, and nobody has to wait for ever.

use harness::another::Another;
use harness::{TempDir, skip};
use rustix::process::Signal;

use super::table::{NIC, a_host};
use super::{Guests, SOON, doctor_cleans, running, start};

#[test]
fn a_signal_ends_the_wait_for_another_one() {
    let host = match a_host() {
        Ok(host) => host,
        Err(why) => skip!("{why}"),
    };
    host.sh(&format!("set -e; {NIC}"));
    let before = host.settled();
    let dir = TempDir::new();
    let guests = Guests::new(&dir);
    for (signal, spec) in [
        (Signal::INT, "tap"),
        (Signal::TERM, "bridge=br0,uplink=nic"),
        (Signal::HUP, "tap,netns=vpn"),
        (Signal::QUIT, "macvtap=nic"),
    ] {
        let _another = Another::on(&host);
        let mut vm = start(&host, &guests.stays, &[spec]);
        vm.expect_message("which is changing the host's network: it holds /run/wirevm/lock", SOON);
        assert!(vm.messages().contains("waiting for process "), "{}", vm.messages());
        vm.signal(signal);
        vm.ends_with(0, SOON);
        assert!(!vm.messages().contains("error"), "{}", vm.messages());
        host.has_everything_as(&before, &format!("{spec}, ended by {signal:?} before it began"));
    }
    let another = Another::on(&host);
    let mut vm = start(&host, &guests.ends, &["tap"]);
    vm.expect_message("waiting for process ", SOON);
    drop(another);
    vm.ends_with(0, SOON);
    host.has_everything_as(&before, "it waited");
}

#[test]
fn a_second_signal_ends_the_wait_to_undo() {
    let host = match a_host() {
        Ok(host) => host,
        Err(why) => skip!("{why}"),
    };
    host.sh(&format!(
        "set -e; {NIC}; ip link add far type veth peer name end; ip link set far up; ip link set end up"
    ));
    let before = host.settled();
    let dir = TempDir::new();
    let guests = Guests::new(&dir);
    let mut patient = running(&host, &guests, &["bridge=br0,uplink=nic"]);
    let mut hasty = running(&host, &guests, &["bridge=br0", "macvtap=far"]);
    let another = Another::on(&host);
    for vm in [&mut patient, &mut hasty] {
        vm.signal(Signal::TERM);
        vm.expect_message("waiting for process ", SOON);
    }
    hasty.signal(Signal::TERM);
    hasty.expect_message("left for the next wirevm", SOON);
    hasty.ends_with(0, SOON);
    drop(another);
    patient.ends_with(0, SOON);
    doctor_cleans(&host);
    host.has_each_as(&before, "one undid and one did not");
}
