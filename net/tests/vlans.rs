//! The VLANs of a guest on a bridge. The tests in `stock` need a kernel that has them, as the lab's: guests are frames here, too.

mod namespace;

use namespace::guest::{NEVER, recv, send};
use namespace::settled::{assert_as, settled, until_up, without_dad};
use namespace::wire::{open, open_told, opened};
use namespace::{in_namespace, run, skip};
use net::Opened;

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ALL: [u8; 6] = [0xff; 6];

/// A frame with these tags' VLANs, the outer one first, from the guest to all.
fn frame(tags: &[u16], body: &str) -> Vec<u8> {
    let tags: Vec<_> = tags.iter().flat_map(|vlan| [[0x81, 0x00], vlan.to_be_bytes()].concat()).collect();
    let mut frame = [&ALL[..], &OWN, &tags, &[0x88, 0xb5], body.as_bytes()].concat();
    frame.resize(frame.len().max(64), 0);
    frame
}

/// The tags of the next frame with this body that arrives; none where none does.
fn arrives(at: &mut Opened, body: &str) -> Option<Vec<u16>> {
    let is_it = |frame: &[u8]| frame.windows(body.len()).any(|part| part == body.as_bytes());
    let got = recv(at, NEVER, is_it)?;
    let mut rest = &got[12..];
    let mut tags = Vec::new();
    while let [0x81, 0x00, a, b, more @ ..] = rest {
        tags.push(u16::from_be_bytes([*a, *b]) & 0xfff);
        rest = more;
    }
    Some(tags)
}

/// A NIC and the LAN at its other end, where the kernel has VLANs on bridges.
fn a_host(name: &str) -> bool {
    without_dad();
    run("ip link set lo up");
    let tried = std::process::Command::new("ip")
        .args(["link", "add", "vlans", "type", "bridge", "vlan_filtering", "1"])
        .output();
    if !tried.unwrap().status.success() {
        skip(name, "this kernel has no VLANs on bridges");
        return false;
    }
    run("ip link del vlans");
    run("ip link add nic type veth peer name lan");
    for link in ["nic", "lan"] {
        run(&format!("ip link set {link} up"));
    }
    until_up("nic");
    true
}

mod stock {
    use super::*;

    #[test]
    fn a_trunk_carries_its_own_vlans() {
        const NAME: &str = "stock::a_trunk_carries_its_own_vlans";
        in_namespace(NAME, || {
            if !a_host(NAME) {
                return;
            }
            let before = settled();
            for guard in ["", ",guard=off"] {
                let mac = "mac=02:00:00:00:00:01";
                let (mut trunk, told) =
                    open_told(&format!("bridge=br0,uplink=nic,vlan=10:20-22,native=5,{mac}{guard}"));
                for line in [
                    "bridge vlan add dev wirevm0 vid 5 pvid untagged",
                    "bridge vlan add dev wirevm0 vid 20-22",
                    "bridge vlan del dev wirevm0 vid 1",
                    "bridge vlan add dev nic vid 5",
                    "bridge vlan add dev nic vid 20-22",
                ] {
                    assert!(told.contains(&line.to_owned()), "{line}: {told:#?}");
                }
                assert_eq!(trunk.notices.is_empty(), guard.is_empty(), "{:?}", trunk.notices);
                let mut access = opened("bridge=br0,vlan=21");
                let mut lan = opened("macvtap=lan");
                // Until its ports forward and the LAN listens.
                for round in 0.. {
                    send(&mut trunk, &frame(&[10], "first"));
                    if arrives(&mut lan, "first").is_some() {
                        break;
                    }
                    assert!(round < 50, "nothing comes through: {}", run("bridge vlan; bridge link"));
                }
                for (sent, at_lan, at_access) in [
                    (&[10][..], Some(vec![10]), None),
                    (&[20], Some(vec![20]), None),
                    (&[22], Some(vec![22]), None),
                    (&[21], Some(vec![21]), Some(vec![])),
                    (&[], Some(vec![5]), None),
                    (&[1], None, None),
                    (&[9], None, None),
                    (&[11], None, None),
                    (&[19], None, None),
                    (&[23], None, None),
                    (&[4094], None, None),
                ] {
                    let body = format!("from the guest {sent:?}");
                    send(&mut trunk, &frame(sent, &body));
                    assert_eq!(arrives(&mut lan, &body), at_lan, "{body}{guard}");
                    assert_eq!(arrives(&mut access, &body), at_access, "{body}{guard}");
                }
                if guard.is_empty() {
                    send(&mut trunk, &frame(&[10, 23], "hidden"));
                    assert_eq!(arrives(&mut lan, "hidden"), None, "a second tag");
                }
                for (sent, expected) in [
                    (&[10][..], Some(vec![10])),
                    (&[21], Some(vec![21])),
                    (&[5], Some(vec![])),
                    (&[6], None),
                    (&[], None),
                ] {
                    let body = format!("from the LAN {sent:?}");
                    let mut frame = frame(sent, &body);
                    // Another's: the guest's own stays where the guest is.
                    frame[11] = 9;
                    send(&mut lan, &frame);
                    assert_eq!(arrives(&mut trunk, &body), expected, "{body}{guard}");
                }
                drop((trunk, access, lan));
                assert_as(&before, guard);
            }
        });
    }

    #[test]
    fn a_trunk_without_a_native_vlan_has_tags_only() {
        const NAME: &str = "stock::a_trunk_without_a_native_vlan_has_tags_only";
        in_namespace(NAME, || {
            if !a_host(NAME) {
                return;
            }
            // The default VLAN is among those with tags; the host's own frames go on without.
            let (mut trunk, told) = open_told("bridge=br0,uplink=nic,vlan=1-3,mac=02:00:00:00:00:01");
            assert!(told.contains(&"bridge vlan add dev wirevm0 vid 1-3".to_owned()), "{told:#?}");
            assert!(told.contains(&"bridge vlan add dev nic vid 2-3".to_owned()), "{told:#?}");
            assert!(!told.iter().any(|line| line.contains("vlan del")), "{told:#?}");
            let mut lan = opened("macvtap=lan");
            for (sent, expected) in
                [(&[2][..], Some(vec![2])), (&[1], Some(vec![])), (&[], None), (&[4], None)]
            {
                let body = format!("from the guest {sent:?}");
                let wanted = expected.clone();
                let mut seen = None;
                for _ in 0..if wanted.is_some() { 50 } else { 1 } {
                    send(&mut trunk, &frame(sent, &body));
                    seen = arrives(&mut lan, &body);
                    if seen.is_some() {
                        break;
                    }
                }
                assert_eq!(seen, expected, "{body}");
            }
        });
    }

    #[test]
    fn a_vlan_of_a_trunk_that_the_host_takes_is_refused() {
        const NAME: &str = "stock::a_vlan_of_a_trunk_that_the_host_takes_is_refused";
        in_namespace(NAME, || {
            if !a_host(NAME) {
                return;
            }
            run("ip link add link nic name nic.21 type vlan id 21");
            let before = settled();
            let error = open("bridge=br0,uplink=nic,vlan=10:20-22").unwrap_err();
            assert!(error.to_string().starts_with("vlan=21: nic.21 takes"), "{error}");
            assert!(error.remedy().unwrap().contains("nic.21"));
            assert_as(&before, "after the refusal");
            drop(opened("bridge=br0,uplink=nic,vlan=10:20,native=22"));
        });
    }

    #[test]
    fn a_guard_of_a_trunk_is_what_its_lines_say() {
        const NAME: &str = "stock::a_guard_of_a_trunk_is_what_its_lines_say";
        in_namespace(NAME, || {
            if !a_host(NAME) {
                return;
            }
            let opened = opened("bridge=br0,vlan=10:20-22,native=5");
            let rules = run("nft list table netdev wirevm-wirevm0");
            for others in ["1-4", "6-9", "11-19", "23-4094"] {
                assert!(rules.contains(&format!("vlan id {others} counter")), "{others}: {rules}");
            }
            drop(opened);
        });
    }
}

#[test]
fn a_bridge_without_vlans_is_refused() {
    in_namespace("a_bridge_without_vlans_is_refused", || {
        // A link has its queueing discipline from the first time that it is up.
        for line in ["ip link add br1 type bridge", "ip link set br1 up", "ip link set br1 down"] {
            run(line);
        }
        let before = settled();
        for vlans in ["10", "10:20-30,native=5"] {
            let error = open(&format!("bridge=br1,vlan={vlans}")).unwrap_err();
            let vlans = vlans.split(',').next().unwrap();
            assert_eq!(error.to_string(), format!("vlan={vlans}: br1 does not filter VLANs"));
            assert!(error.remedy().unwrap().contains("vlan_filtering 1"));
        }
        assert_as(&before, "after the refusals");
    });
}
