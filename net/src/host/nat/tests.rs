use super::*;
use crate::error::NatError;
use crate::host::nft::Table;

fn lines(link: &str, hosts: &[&str], forwards: &[&str]) -> Vec<String> {
    lines_with(link, hosts, &[], forwards)
}

fn lines_with(link: &str, hosts: &[&str], given: &[&str], forwards: &[&str]) -> Vec<String> {
    let given: Vec<IpAddr> = given.iter().map(|guest| guest.parse().unwrap()).collect();
    let hosts: Vec<HostAddress> = hosts.iter().map(|host| host.parse().unwrap()).collect();
    let forwards: Vec<Forward> = forwards.iter().map(|forward| forward.parse().unwrap()).collect();
    let guests = guests(&hosts, &given, "02:00:00:00:00:01".parse().unwrap());
    let forwards: Vec<_> =
        forwards.into_iter().map(|forward| (forward, guest_of(&forward, &guests).unwrap())).collect();
    let [link, nic] = [link, "eth0"].map(|name| LinkId { index: 7, name: name.to_owned() });
    let switched = [Switched { link: nic, ipv6: true }];
    let plan = Plan {
        link: &link,
        hosts: &hosts,
        forwards: &forwards,
        switched: &switched,
        guarded: true,
        connections: Some(4096),
    };
    plan.table().steps().into_iter().map(|step| step.command).collect()
}

#[test]
fn a_guest_without_ports_has_no_chains_for_them() {
    assert_eq!(
        lines("tap0", &["172.31.0.1/24", "fd00::1/64"], &[]),
        [
            "nft add table inet wirevm-tap0",
            "nft 'add set inet wirevm-tap0 connections { typeof ct id; size 256; flags dynamic; }'",
            "nft 'add chain inet wirevm-tap0 new { type filter hook prerouting priority -150; }'",
            "nft 'add rule inet wirevm-tap0 new iif \"tap0\" ct state new add @connections { ct id & 255 ct count over 16 } counter drop'",
            "nft 'add chain inet wirevm-tap0 forward { type filter hook forward priority 0; }'",
            "nft 'add rule inet wirevm-tap0 forward ct state established,related accept'",
            "nft 'add rule inet wirevm-tap0 forward ct status dnat accept'",
            "nft 'add rule inet wirevm-tap0 forward iif \"tap0\" ct state invalid counter drop'",
            "nft 'add rule inet wirevm-tap0 forward oif \"tap0\" counter drop'",
            "nft 'add rule inet wirevm-tap0 forward meta protocol ip6 iif \"eth0\" counter drop'",
            "nft 'add chain inet wirevm-tap0 postrouting { type nat hook postrouting priority 100; }'",
            "nft 'add rule inet wirevm-tap0 postrouting ip saddr 172.31.0.0/24 oif != \"tap0\" masquerade'",
            "nft 'add rule inet wirevm-tap0 postrouting ip6 saddr fd00::/64 oif != \"tap0\" masquerade'",
        ]
    );
}

#[test]
fn a_port_leads_to_ipv4_where_there_is_ipv4() {
    let both = lines("tap0", &["fd00::1/64", "172.31.0.1/30"], &["udp:53:5353"]).join("\n");
    assert!(both.contains("fib daddr type local udp dport 53 dnat ip to 172.31.0.2:5353"), "{both}");
    assert!(!both.contains("dnat ip6 to"), "{both}");
}

#[test]
fn a_port_leads_to_the_ipv6_address_that_the_guest_makes() {
    let slaac = lines("tap0", &["fd00::1/64"], &["tcp:8080:80"]).join("\n");
    assert!(
        slaac.contains("prerouting fib daddr type local tcp dport 8080 dnat ip6 to [fd00::ff:fe00:1]:80"),
        "{slaac}"
    );
    assert!(slaac.contains("output ip6 daddr != ::1 fib daddr type local"), "{slaac}");
    let other = lines("tap0", &["fd00::1/112"], &["tcp:8080:80"]).join("\n");
    assert!(other.contains("dnat ip6 to [fd00::2]:80"), "{other}");
}

#[test]
fn a_port_leads_to_the_address_that_the_guest_is_given() {
    let port = ["tcp:8080:80"];
    let of_both = lines_with("tap0", &["fd00::1/64", "172.31.0.1/24"], &["fd00::7", "172.31.0.9"], &port);
    assert!(of_both.join("\n").contains("tcp dport 8080 dnat ip to 172.31.0.9:80"), "{of_both:#?}");
    let ipv6 = lines_with("tap0", &["fd00::1/64"], &["fd00::7"], &port).join("\n");
    assert!(ipv6.contains("dnat ip6 to [fd00::7]:80") && !ipv6.contains("ff:fe00"), "{ipv6}");
}

#[test]
fn ports_of_an_address_are_no_others() {
    let hosts = ["172.31.0.1/30", "fd00::1/64"];
    let forwards = ["udp:192.0.2.5:8000-8010:8000-8010", "[2001:db8::1]:8080:80", "8000-8002:9000-9002"];
    let lines = lines("tap0", &hosts, &forwards);
    let rules = |chain: &str| {
        let start = format!("nft 'add rule inet wirevm-tap0 {chain} ");
        lines.iter().filter_map(|line| line.strip_prefix(&start)).collect::<Vec<_>>()
    };
    let expected = [
        "fib daddr type local ip daddr 192.0.2.5/32 udp dport 8000-8010 dnat ip to 172.31.0.2'",
        "fib daddr type local ip6 daddr 2001:db8::1/128 tcp dport 8080 dnat ip6 to [fd00::ff:fe00:1]:80'",
        "fib daddr type local tcp dport 8000-8002 dnat ip to 172.31.0.2:tcp dport map @ports2'",
    ];
    assert_eq!((rules("prerouting"), rules("output")), (expected.to_vec(), expected.to_vec()));
    let map = "nft 'add map inet wirevm-tap0 ports2 { type inet_service : inet_service; size 3; \
               elements = { 8000 : 9000, 8001 : 9001, 8002 : 9002 }; }'";
    assert!(lines.contains(&map.to_owned()), "{lines:#?}");
    assert_eq!(lines.iter().filter(|line| line.contains("add map")).count(), 1);
}

#[test]
fn a_port_of_the_loopback_is_the_hosts_own() {
    let lines = lines("tap0", &["172.31.0.1/30"], &["127.0.0.1:8080:80"]).join("\n");
    assert!(
        lines.contains("output fib daddr type local ip daddr 127.0.0.1/32 tcp dport 8080 dnat"),
        "{lines}"
    );
    assert!(!lines.contains("prerouting fib daddr type local ip daddr 127.0.0.1"), "{lines}");
}

#[test]
fn each_link_has_a_table_name_that_nft_takes() {
    assert_eq!(Table::name_for("eth0.5"), "wirevm-eth0.5");
    assert_eq!(Table::name_for("a=b"), "wirevm-a_3db");
    assert_eq!(Table::name_for("a_3db"), "wirevm-a_5f3db", "another link's");
}

#[test]
fn a_kernel_without_nftables_is_said_with_what_helps() {
    for errno in [libc::EPROTONOSUPPORT, libc::EOPNOTSUPP, libc::EAFNOSUPPORT, libc::ENOENT] {
        let refusal = Refusal::from(io::Error::from_raw_os_error(errno));
        let error = NatError::Nft { table: "wirevm-tap0".to_owned(), refusal };
        assert!(error.remedy().unwrap().contains("modprobe -a nf_tables"), "{error:?}");
    }
}
