//! A wire that this machine's kernel may lack, on the kernel that stock guests run on: the lab's has VLANs. Each look at a host
//! takes seconds there, so that only what is opened, left, killed and told is looked at.

use harness::{TempDir, skip};

use super::table::{Wire, each_wire, vlans};
use super::{Guests, by_hand, doctor_cleans, running, uplink};

#[test]
fn a_vlan_with_an_uplink_goes_too_and_is_told() {
    let which = |wire: &Wire| vlans(wire) && wire.spec.contains("uplink=");
    let dir = TempDir::new();
    let guests = Guests::new(&dir);
    let tried = each_wire(which, |host, spec, before| {
        drop(running(host, &guests, &[spec]));
        doctor_cleans(host);
        host.has_everything_as(before, &format!("{spec}, killed and cleaned"));
        // It looks at what is left, too.
        if let Some(differs) = by_hand::difference(host, &[spec], before) {
            panic!("by hand (+) it is another host:\n{differs}");
        }
    });
    if let Err(why) = tried {
        skip!("{why}");
    }
}

#[test]
fn an_uplink_that_cannot_be_one_is_refused_with_what_works() {
    if let Err(why) = uplink::each_is_refused(&uplink::OF_RARE_KINDS) {
        skip!("{why}");
    }
}
