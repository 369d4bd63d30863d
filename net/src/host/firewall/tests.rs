use proptest::prelude::*;

use super::*;

/// A table of the old iptables with one rule, for a link, and the policies of three chains.
fn table(ipv6: bool, forward: i32) -> (Vec<u8>, Vec<u8>) {
    let (names, targets, length) = if ipv6 { (64, 140, 168) } else { (16, 88, 112) };
    let mut entries = Vec::new();
    let mut policies = [0u32; 5];
    let mut add = |link: &str, verdict: i32| {
        let start = entries.len();
        let mut entry = vec![0; length + 40];
        entry[names..names + link.len()].copy_from_slice(link.as_bytes());
        entry[targets..targets + 2].copy_from_slice(&(length as u16).to_ne_bytes());
        let len = entry.len() as u16;
        entry[targets + 2..targets + 4].copy_from_slice(&len.to_ne_bytes());
        entry[length + 32..length + 36].copy_from_slice(&verdict.to_ne_bytes());
        if link == "tap7" {
            // To 172.31.0.0/16, or to fd00::/16.
            let (at, address) = if ipv6 { (16, [0xfd, 0]) } else { (4, [172, 31]) };
            entry[at..at + 2].copy_from_slice(&address);
            let mask = at + if ipv6 { 32 } else { 8 };
            entry[mask..mask + 2].copy_from_slice(&[0xff, 0xff]);
        }
        entries.extend(entry);
        start as u32
    };
    policies[1] = add("", -2);
    add("tap7", -2);
    policies[2] = add("", forward);
    policies[3] = add("", -2);
    let mut info = vec![0; 84];
    for (at, policy) in (56..).step_by(4).zip(policies) {
        info[at..at + 4].copy_from_slice(&policy.to_ne_bytes());
    }
    (info, entries)
}

#[test]
fn the_policy_of_the_old_iptables_is_read() {
    for ipv6 in [false, true] {
        for (verdict, drops) in [(-1, true), (-2, false)] {
            let (info, entries) = table(ipv6, verdict);
            let table = Legacy { info: &info, entries: &entries, ipv6 };
            assert_eq!(table.forward_drops(), Some(drops), "{ipv6} {verdict}");
            let subnet = if ipv6 { "fd00::" } else { "172.31.0.0" };
            assert_eq!(table.accepts(), [(subnet.parse().unwrap(), 16)]);
            assert!(table.speaks_of("tap7"));
            assert!(!table.speaks_of("tap") && !table.speaks_of("tap70") && !table.speaks_of(""));
        }
    }
}

proptest! {
    #[test]
    fn nonsense_is_no_policy(info in proptest::collection::vec(any::<u8>(), 0..120), entries: Vec<u8>, ipv6: bool) {
        let table = Legacy { info: &info, entries: &entries, ipv6 };
        let _ = table.forward_drops();
        table.speaks_of("tap0");
        table.accepts();
    }
}
